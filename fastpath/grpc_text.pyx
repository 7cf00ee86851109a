"""Texts of gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md, Requests and Responses)."""
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum:
    TIMEOUT_DIGITS_MAX = 8
    MESSAGE_MAX = 4096

cdef int64_t DAY_NS = 86400 * <int64_t> 1000000000


cdef int64_t _unit_ns(char unit) noexcept nogil:
    if unit == c"S":
        return 1000000000
    if unit == c"m":
        return 1000000
    if unit == c"u":
        return 1000
    if unit == c"n":
        return 1
    if unit == c"M":
        return 60 * <int64_t> 1000000000
    return 3600 * <int64_t> 1000000000 if unit == c"H" else 0


cdef int64_t grpc_timeout_ns(const char *p, size_t n) noexcept nogil:
    cdef int64_t value = 0
    cdef int64_t unit
    cdef size_t i
    if n < 2 or n > TIMEOUT_DIGITS_MAX + 1:
        return -1
    for i in range(n - 1):
        if p[i] < c"0" or p[i] > c"9":
            return -1
        value = value * 10 + (p[i] - c"0")
    unit = _unit_ns(p[n - 1])
    if unit == 0:
        return -1
    return DAY_NS if value >= DAY_NS // unit else value * unit


cdef bint grpc_content_type(const char *p, size_t n) noexcept nogil:
    cdef const char *wanted = "application/grpc"
    cdef const char *proto = "+proto"
    cdef size_t i
    cdef size_t at = 16
    if n < 16:
        return False
    for i in range(16):
        if (p[i] | 0x20 if c"A" <= p[i] <= c"Z" else p[i]) != wanted[i]:
            return False
    if n >= 22 and p[at] == c"+":
        for i in range(6):
            if (p[at + i] | 0x20 if c"A" <= p[at + i] <= c"Z" else p[at + i]) != proto[i]:
                return False
        at = 22
    return n == at or p[at] == c";"


cdef size_t grpc_message(Text message, char *out, size_t cap) noexcept nogil:
    cdef const char *digits = "0123456789ABCDEF"
    cdef size_t n = 0
    cdef uint32_t i
    cdef uint8_t byte
    for i in range(message.n):
        byte = <uint8_t> message.p[i]
        if 0x20 <= byte <= 0x7E and byte != c"%":
            if n + 1 > cap:
                break
            out[n] = <char> byte
            n += 1
            continue
        if n + 3 > cap:
            break
        out[n], out[n + 1], out[n + 2] = c"%", digits[byte >> 4], digits[byte & 15]
        n += 3
    return n


# ---------------------------------------------------------------- the Python face

def timeout_ns(bytes text not None) -> int:
    return grpc_timeout_ns(text, len(text))


def is_grpc(bytes content_type not None) -> bool:
    return grpc_content_type(content_type, len(content_type))


def message(bytes text not None, int room=1024) -> bytes:
    cdef Text given
    cdef char out[MESSAGE_MAX]
    given.p, given.n = text, <uint32_t> len(text)
    return out[:grpc_message(given, out, max(0, min(room, <int> MESSAGE_MAX)))]
