"""Who has how many connections at a door, and which of its loops gets the next one. Shared by the door's threads."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastpath.c.pthread cimport pthread_mutex_t
from fastpath.wire cimport Text


cdef enum:
    LOOPS_MAX = 64           # threads of one door
    DESK_MAX = 64            # connections that wait to be taken by one loop
    PEER_BUCKETS = 1024      # power of two
    PEER_NAME_MAX = 2048     # bytes of a SPIFFE ID (SPIFFE-ID section 2.3)


cdef struct Guest:           # one peer with open connections
    Guest *next              # in its bucket
    uint64_t hash
    uint32_t count
    uint32_t tickets         # in the door's slow lane, under its lock
    uint32_t talks           # open CheckStreams; atomic
    uint32_t n
    char name[PEER_NAME_MAX]


cdef struct Desk:            # what one loop is handed by the others
    int64_t open             # connections of the loop, with those on the desk; atomic
    int wake                 # its eventfd; -1: there is no such loop
    int n
    int fds[DESK_MAX]        # accepted, not taken yet


cdef class Admission:
    cdef pthread_mutex_t lock
    cdef Desk desks[LOOPS_MAX]
    cdef int loops
    cdef int accepting       # loops that still take connections from the listening socket; atomic
    cdef uint32_t per_peer   # connections that one peer may have
    cdef Guest *buckets[PEER_BUCKETS]

    cdef int close_waiting(self) except -1


# Connections of the door: open, or on their way to a loop.
cdef int64_t admission_open(Admission admission) noexcept nogil
# The loop with the fewest connections; `own` when none has fewer.
cdef int admission_least(Admission admission, int own) noexcept nogil
# Put an accepted connection on a loop's desk and wake it; false when the desk is full.
cdef bint admission_hand_over(Admission admission, int loop, int fd) noexcept nogil
# The next connection on the loop's own desk, or -1.
cdef int admission_take(Admission admission, int loop) noexcept nogil
# One connection more, or less, on a loop. A handed over connection was counted when it was put on the desk.
cdef void admission_count(Admission admission, int loop, int change) noexcept nogil
# Count a connection for its peer, or its address; NULL when that has `most` already, or memory is short.
cdef Guest *admission_enter(Admission admission, Text name, uint32_t most) noexcept nogil
cdef void admission_leave(Admission admission, Guest *guest) noexcept nogil
# The loop takes no more connections; the last one wakes the others.
cdef void admission_left(Admission admission) noexcept nogil
cdef bint admission_over(Admission admission) noexcept nogil
