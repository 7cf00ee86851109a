"""Buffers of one CheckStream (talk.pxd): messages are cut where their prefixes say, and answers queue behind one
another. Both buffers grow with what is in them and are given back when they are empty and large.
"""
from fastpath.grpc_text cimport CODE_INTERNAL, CODE_RESOURCE_EXHAUSTED, CODE_UNIMPLEMENTED
from fastpath.reserve cimport block_give, block_grow
from libc.string cimport memcpy, memmove

cdef enum:
    PREFIX = 5               # flag and length of a gRPC message
    LEAST = 256              # bytes of a buffer
    KEPT = 2048              # an empty buffer of more is given back: most streams wait most of the time


cdef uint32_t _room_for(uint32_t cap, size_t need) noexcept nogil:
    cdef size_t size = max(<uint32_t> LEAST, cap)
    while size < need:
        size *= 2
    return <uint32_t> size


# ---------------------------------------------------------------- what came

cdef int64_t talk_would_take(const Talk *talk, size_t n) noexcept nogil:
    return <int64_t> _room_for(talk.came_cap, talk.came_n - talk.came_at + n) - talk.came_cap


cdef int64_t talk_take(Reserve *reserve, Talk *talk, const uint8_t *p, size_t n) noexcept nogil:
    cdef int64_t more = talk_would_take(talk, n)
    cdef uint8_t *moved
    if talk.came_at:
        talk.came_n -= talk.came_at
        talk.whole -= talk.came_at
        memmove(talk.came, talk.came + talk.came_at, talk.came_n)
        talk.came_at = 0
    if more:
        moved = <uint8_t *> block_grow(reserve, talk.came, talk.came_n, talk.came_cap + more)
        if moved == NULL:
            return -1
        talk.came, talk.came_cap = moved, <uint32_t> (talk.came_cap + more)
    memcpy(talk.came + talk.came_n, p, n)
    talk.came_n += <uint32_t> n
    return more


cdef inline uint32_t _length(const uint8_t *p) noexcept nogil:
    return (<uint32_t> p[1] << 24) | (<uint32_t> p[2] << 16) | (<uint32_t> p[3] << 8) | p[4]


cdef int talk_whole(Talk *talk) noexcept nogil:
    cdef int count = 0
    cdef uint32_t left = talk.came_n - talk.whole
    cdef uint32_t length
    while left >= PREFIX:
        length = _length(talk.came + talk.whole)
        if left - PREFIX < length:
            break
        talk.whole += PREFIX + length
        left -= PREFIX + length
        count += 1
    return count


cdef int _broken(int *code, const char **why, int is_, const char *because) noexcept nogil:
    code[0], why[0] = is_, because
    return CUT_BROKEN


cdef int talk_cut(const Talk *talk, uint32_t message_bytes, Text *message, int *code, const char **why) noexcept nogil:
    cdef const uint8_t *p = talk.came + talk.came_at
    cdef uint32_t n = talk.came_n - talk.came_at
    cdef uint32_t length
    if n < PREFIX:
        return CUT_PART if n else CUT_NONE
    length = _length(p)
    if p[0] == 1:
        return _broken(code, why, CODE_UNIMPLEMENTED, b"request.compressed")
    if p[0] != 0:
        return _broken(code, why, CODE_INTERNAL, b"request.framing")
    if length > message_bytes:
        return _broken(code, why, CODE_RESOURCE_EXHAUSTED, b"request.too_large")
    if n - PREFIX < length:
        return CUT_PART
    message.p, message.n = <const char *> p + PREFIX, length
    return CUT_MESSAGE


cdef int64_t talk_done(Reserve *reserve, Talk *talk, Text message) noexcept nogil:
    cdef int64_t freed = 0
    talk.came_at += PREFIX + message.n
    if talk.came_at == talk.came_n:
        talk.came_at = talk.came_n = talk.whole = 0
        if talk.came_cap > KEPT:
            freed = talk.came_cap
            block_give(reserve, talk.came)
            talk.came, talk.came_cap = NULL, 0
    return freed


# ---------------------------------------------------------------- what leaves

cdef int64_t talk_say(Reserve *reserve, Talk *talk, const uint8_t *p, size_t n, int64_t now) noexcept nogil:
    cdef uint32_t cap
    cdef int64_t more
    cdef uint8_t *to
    if talk.out_at and talk.out_n + PREFIX + n > talk.out_cap:
        talk.out_n -= talk.out_at
        memmove(talk.out, talk.out + talk.out_at, talk.out_n)
        talk.out_at = 0
    cap = _room_for(talk.out_cap, talk.out_n + PREFIX + n)
    more = <int64_t> cap - talk.out_cap
    if more:
        to = <uint8_t *> block_grow(reserve, talk.out, talk.out_n, cap)
        if to == NULL:
            return -1
        talk.out, talk.out_cap = to, cap
    to = talk.out + talk.out_n
    to[0] = 0
    to[1], to[2], to[3], to[4] = <uint8_t> (n >> 24), <uint8_t> (n >> 16), <uint8_t> (n >> 8), <uint8_t> n
    memcpy(to + PREFIX, p, n)
    talk.out_n += <uint32_t> (PREFIX + n)
    talk.waiting += 1
    if talk.due_ns == 0:
        talk.due_ns, talk.due_at = now, talk.sent + talk.out_n - talk.out_at
    return more


cdef size_t talk_send(
        Reserve *reserve, Talk *talk, uint8_t *to, size_t cap, int64_t now, int64_t *freed) noexcept nogil:
    cdef size_t n = min(cap, <size_t> (talk.out_n - talk.out_at))
    freed[0] = 0
    if n == 0:
        return 0
    memcpy(to, talk.out + talk.out_at, n)
    talk.out_at += <uint32_t> n
    talk.sent += n
    if talk.out_at < talk.out_n:
        if talk.sent >= talk.due_at:
            talk.due_ns, talk.due_at = now, talk.sent + talk.out_n - talk.out_at
        return n
    talk.out_at = talk.out_n = talk.waiting = 0
    talk.due_ns = 0
    if talk.out_cap > KEPT:
        freed[0] = talk.out_cap
        block_give(reserve, talk.out)
        talk.out, talk.out_cap = NULL, 0
    return n


cdef int64_t talk_free(Reserve *reserve, Talk *talk) noexcept nogil:
    cdef int64_t freed = <int64_t> talk.came_cap + talk.out_cap
    block_give(reserve, talk.came)
    block_give(reserve, talk.out)
    block_give(reserve, talk)
    return freed
