"""What the headers of a request say, one by one: which method it is for, or why it is no call that we decide
(RFC 9113 section 8.3, PROTOCOL-HTTP2.md).
"""
from fastpath.grpc_text cimport CODE_INTERNAL, CODE_UNIMPLEMENTED, grpc_content_type, grpc_timeout_ns
from fastpath.http2 cimport (
    Door, METHOD_BATCH, METHOD_CHECK, METHOD_EXT_AUTHZ, METHOD_HEALTH, METHOD_NONE, METHOD_REPORT, METHOD_STREAM,
    METHOD_WATCH, Stream,
)
from fastpath.open_streams cimport stream_note
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, strlen

cdef enum Seen:              # headers that may come once
    SEEN_CONTENT_TYPE = 1
    SEEN_TE = 2
    SEEN_TIMEOUT = 4
    SEEN_ENCODING = 8
    SEEN_HOST = 16
    SEEN_AUTHORIZATION = 32
    SEEN_METHOD = 64
    SEEN_SCHEME = 128
    SEEN_PATH = 256


cdef inline bint _is(const uint8_t *p, size_t n, const char *text) noexcept nogil:
    return n == strlen(text) and memcmp(p, text, strlen(text)) == 0


cdef inline int _method(const Door *door, const uint8_t *p, size_t n) noexcept nogil:
    """A method is its exact name."""
    if _is(p, n, b"/grpc.health.v1.Health/Check"):
        return METHOD_HEALTH
    if _is(p, n, b"/grpc.health.v1.Health/Watch"):
        return METHOD_WATCH
    if door.serves_envoy:
        return METHOD_EXT_AUTHZ if _is(p, n, b"/envoy.service.auth.v3.Authorization/Check") else METHOD_NONE
    if _is(p, n, b"/remit.authz.v1.Authorization/Check"):
        return METHOD_CHECK
    if _is(p, n, b"/remit.authz.v1.Authorization/Report"):
        return METHOD_REPORT
    if _is(p, n, b"/remit.authz.v1.Authorization/CheckStream"):
        return METHOD_STREAM
    return METHOD_BATCH if _is(p, n, b"/remit.authz.v1.Authorization/BatchCheck") else METHOD_NONE


cdef inline bint _once(Stream *stream, uint32_t which) noexcept nogil:
    if stream.seen & which:
        stream_note(stream, CODE_INTERNAL, b"request.header_twice", b"400")
        return False
    stream.seen |= which
    return True


cdef inline void header_pseudo(const Door *door, Stream *stream, const uint8_t *name, size_t name_n,
                               const uint8_t *value, size_t value_n) noexcept nogil:
    if _is(name, name_n, b":path"):
        stream.method = _method(door, value, value_n)
        stream.seen |= SEEN_PATH
    elif _is(name, name_n, b":method"):
        if not _is(value, value_n, b"POST"):
            stream_note(stream, CODE_INTERNAL, b"request.method", b"405")
    elif _is(name, name_n, b":scheme"):
        if not _is(value, value_n, b"http") and not _is(value, value_n, b"https"):
            stream_note(stream, CODE_INTERNAL, b"request.scheme", b"400")
    elif _is(name, name_n, b":authority"):
        stream.authority_n = <int32_t> min(value_n, <size_t> 1 << 20)
        memcpy(stream.authority, value, min(value_n, sizeof(stream.authority)))
    else:
        stream_note(stream, CODE_INTERNAL, b"request.header", b"400")


cdef inline void _host(Stream *stream, const uint8_t *value, size_t value_n) noexcept nogil:
    """`host` may only repeat :authority (RFC 9113 section 8.3.1); a longer one than we keep is refused."""
    if stream.authority_n >= 0 and (
        <size_t> stream.authority_n != value_n or value_n > sizeof(stream.authority)
        or memcmp(value, stream.authority, value_n) != 0
    ):
        stream_note(stream, CODE_INTERNAL, b"request.host", b"400")


cdef inline void _timeout(Stream *stream, const uint8_t *value, size_t value_n) noexcept nogil:
    stream.timeout_ns = grpc_timeout_ns(<const char *> value, value_n)
    if stream.timeout_ns < 0:
        stream_note(stream, CODE_INTERNAL, b"request.timeout", b"200")


cdef inline void header_field(Stream *stream, const uint8_t *name, size_t name_n, const uint8_t *value,
                              size_t value_n) noexcept nogil:
    if _is(name, name_n, b"content-type"):
        if _once(stream, SEEN_CONTENT_TYPE) and not grpc_content_type(<const char *> value, value_n):
            stream_note(stream, CODE_INTERNAL, b"request.content_type", b"415")
    elif _is(name, name_n, b"te"):
        if _once(stream, SEEN_TE) and not _is(value, value_n, b"trailers"):
            stream_note(stream, CODE_INTERNAL, b"request.te", b"400")
    elif _is(name, name_n, b"grpc-timeout"):
        if _once(stream, SEEN_TIMEOUT):
            _timeout(stream, value, value_n)
    elif _is(name, name_n, b"grpc-encoding"):
        if _once(stream, SEEN_ENCODING) and not _is(value, value_n, b"identity"):
            stream_note(stream, CODE_UNIMPLEMENTED, b"request.encoding", b"200")
    elif _is(name, name_n, b"host"):
        if _once(stream, SEEN_HOST):
            _host(stream, value, value_n)
    elif _is(name, name_n, b"authorization"):
        _once(stream, SEEN_AUTHORIZATION)


cdef inline void headers_end(Stream *stream) noexcept nogil:
    """What only the whole block shows."""
    if not stream.seen & SEEN_CONTENT_TYPE:
        stream_note(stream, CODE_INTERNAL, b"request.content_type", b"415")
    if not stream.seen & SEEN_TE:
        stream_note(stream, CODE_INTERNAL, b"request.te", b"400")
    if stream.method == METHOD_NONE:
        stream_note(stream, CODE_UNIMPLEMENTED, b"request.unimplemented", b"200")
