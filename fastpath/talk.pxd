"""One CheckStream at a native door: its messages as they come out of DATA, and its answers until they are sent.

Nothing here knows of HTTP/2: http2.pyx brings and takes the bytes, streams.pyx decides what the messages ask.
"""
from fastpath.bells cimport Ear
from fastpath.reserve cimport Reserve
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum Cut:               # what is at the front of what came
    CUT_NONE = 0             # nothing
    CUT_PART = 1             # a message that has not ended
    CUT_MESSAGE = 2
    CUT_BROKEN = 3           # what is no message


cdef enum:
    WHY_MAX = 96             # a reason code


cdef struct Talk:
    Talk *prev               # in the order of opening, of one loop
    Talk *next
    void *conn               # Conn * and Stream * that it is of
    void *stream
    uint32_t *share          # streams of the peer, borrowed; NULL: not counted yet
    Ear ear
    int begun                # its first notice is queued
    int leaving              # it ends when all that came is answered
    int news                 # there may be some, to be told when nothing waits
    char why[WHY_MAX]        # grpc-message that ends it
    uint32_t why_n
    uint8_t *came            # owned; bytes that are not decided yet stand from came_at to came_n
    uint32_t came_at
    uint32_t came_n
    uint32_t came_cap
    uint32_t whole           # up to here stand whole messages, as far as they were counted
    uint32_t owed            # bytes taken for which the peer was not given new window yet
    int64_t part_ns          # when the message began that has not ended; 0: there is none
    uint8_t *out             # owned; bytes to be sent stand from out_at to out_n
    uint32_t out_at
    uint32_t out_n
    uint32_t out_cap
    uint32_t waiting         # messages in it since it was empty last
    # INVARIANT (due): what had been queued by `due_ns` is all sent once `sent` has reached `due_at`.
    uint64_t sent            # bytes, ever
    uint64_t due_at
    int64_t due_ns           # 0: nothing waits


# Bytes that came, copied; how much more memory is held, or -1 when there is none.
cdef int64_t talk_take(Reserve *reserve, Talk *talk, const uint8_t *p, size_t n) noexcept nogil
# Bytes of memory that taking `n` would add.
cdef int64_t talk_would_take(const Talk *talk, size_t n) noexcept nogil
# What is at the front: a Cut. Of a message its bytes, which stay until the next talk_take; of what is none the gRPC
# code and why.
cdef int talk_cut(const Talk *talk, uint32_t message_bytes, Text *message, int *code, const char **why) noexcept nogil
# How many messages have become whole since the last question.
cdef int talk_whole(Talk *talk) noexcept nogil
# The message at the front has been dealt with; memory given back.
cdef int64_t talk_done(Reserve *reserve, Talk *talk, Text message) noexcept nogil
# Queue a message with its prefix; how much more memory is held, or -1 when there is none.
cdef int64_t talk_say(Reserve *reserve, Talk *talk, const uint8_t *p, size_t n, int64_t now) noexcept nogil
# Bytes to be sent next, at most `cap`; how many. `freed`: memory given back.
cdef size_t talk_send(
    Reserve *reserve, Talk *talk, uint8_t *to, size_t cap, int64_t now, int64_t *freed) noexcept nogil
# Give back all it owns; how much memory that was.
cdef int64_t talk_free(Reserve *reserve, Talk *talk) noexcept nogil


cdef inline bint talk_idle(const Talk *talk) noexcept nogil:
    """Whether nothing waits to be sent."""
    return talk.out_n == talk.out_at
