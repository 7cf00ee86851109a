"""Protobuf in and out, without a Python object: a bounded, total reader and a writer into memory the caller owns."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove


cdef struct Text:        # borrowed bytes
    const char *p
    uint32_t n


# ---------------------------------------------------------------- writer

cdef struct Out:
    uint8_t *p
    size_t n
    size_t cap
    int failed           # set once something did not fit; nothing after it is written


cdef inline void out_raw(Out *o, const void *p, size_t n) noexcept nogil:
    if o.failed or n > o.cap - o.n:
        o.failed = 1
        return
    if n:
        memcpy(o.p + o.n, p, n)
        o.n += n


cdef inline void out_varint(Out *o, uint64_t v) noexcept nogil:
    cdef uint8_t room[10]
    cdef int n = 0
    while v >= 0x80:
        room[n] = <uint8_t> (v | 0x80)
        v >>= 7
        n += 1
    room[n] = <uint8_t> v
    out_raw(o, room, n + 1)


cdef inline void out_uint(Out *o, uint32_t field, uint64_t v) noexcept nogil:
    """A varint field; written even when 0."""
    out_varint(o, <uint64_t> field << 3)
    out_varint(o, v)


cdef inline void out_bytes(Out *o, uint32_t field, const void *p, size_t n) noexcept nogil:
    """A string, bytes or message field; written even when empty."""
    out_varint(o, (<uint64_t> field << 3) | 2)
    out_varint(o, n)
    out_raw(o, p, n)


cdef inline void out_text(Out *o, uint32_t field, Text t) noexcept nogil:
    """A string field, left out when empty (proto3 default)."""
    if t.n:
        out_bytes(o, field, t.p, t.n)


cdef inline void out_fixed64(Out *o, uint32_t field, uint64_t v) noexcept nogil:
    out_varint(o, (<uint64_t> field << 3) | 1)
    out_raw(o, &v, 8)


cdef inline size_t out_open(Out *o, uint32_t field) noexcept nogil:
    """Begin a nested message; give the result to `out_close`."""
    out_varint(o, (<uint64_t> field << 3) | 2)
    return o.n


cdef inline void out_close(Out *o, size_t start) noexcept nogil:
    """End the nested message begun at `start`: its length is written before it by moving it up."""
    cdef size_t n
    cdef size_t room
    cdef uint64_t v
    if o.failed:
        return
    n = o.n - start
    room = 1
    v = n >> 7
    while v:
        room += 1
        v >>= 7
    if room > o.cap - o.n:
        o.failed = 1
        return
    memmove(o.p + start + room, o.p + start, n)
    o.n = start
    out_varint(o, n)
    o.n += n
