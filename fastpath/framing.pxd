"""Where in its frames a connection stands, by their headers alone: what nghttp2 tells only once a frame is there.

A peer that stops in the middle of a frame or a header block holds the connection, and resets are counted before they
are parsed, so that the session stays whole when there are too many.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy


cdef enum:
    FRAME_HEAD = 9           # bytes before a frame's payload (RFC 9113 section 4.1)
    FRAME_PREFACE = 24       # bytes before the first frame (section 3.4)
    FRAME_HEADERS = 1
    FRAME_RST_STREAM = 3
    FRAME_CONTINUATION = 9
    FRAME_END_HEADERS = 4


cdef struct Framing:
    uint32_t skip            # bytes of the preface or of a payload that are still to come
    uint8_t head[FRAME_HEAD]
    uint8_t head_n
    uint8_t block            # in a header block
    uint8_t within           # in the middle of a frame or a header block
    uint8_t fresh            # which began in the bytes that were fed last


cdef inline size_t framing_feed(Framing *at, const uint8_t *p, size_t n, int64_t *resets) noexcept nogil:
    """How many of these bytes may be parsed: up to the first RST_STREAM for which no token is left in `resets`."""
    cdef size_t used = 0
    cdef size_t take
    at.fresh = 0
    while used < n:
        if at.skip:
            take = min(n - used, <size_t> at.skip)
            at.skip -= <uint32_t> take
            used += take
        else:
            if at.head_n == 0 and not at.block:
                at.fresh = 1
            take = min(n - used, <size_t> (FRAME_HEAD - at.head_n))
            memcpy(at.head + at.head_n, p + used, take)
            at.head_n += <uint8_t> take
            if at.head_n == FRAME_HEAD:
                if at.head[3] == FRAME_RST_STREAM:
                    resets[0] -= 1
                    if resets[0] < 0:
                        return used
                framing_head(at)
            used += take
    at.within = at.skip != 0 or at.head_n != 0 or at.block
    return used


cdef inline void framing_head(Framing *at) noexcept nogil:
    """A frame's header is there."""
    at.head_n = 0
    at.skip = (<uint32_t> at.head[0] << 16) | (<uint32_t> at.head[1] << 8) | at.head[2]
    if at.head[3] == FRAME_HEADERS or at.head[3] == FRAME_CONTINUATION:
        at.block = not at.head[4] & FRAME_END_HEADERS
