"""Texts of gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md): timeouts, content types, status messages."""
from fastpath.wire cimport Text
from libc.stdint cimport int64_t


cdef enum GrpcCode:          # grpc/doc/statuscodes.md
    CODE_OK = 0
    CODE_INVALID_ARGUMENT = 3
    CODE_DEADLINE_EXCEEDED = 4
    CODE_NOT_FOUND = 5
    CODE_RESOURCE_EXHAUSTED = 8
    CODE_UNIMPLEMENTED = 12
    CODE_INTERNAL = 13
    CODE_UNAVAILABLE = 14
    CODE_UNAUTHENTICATED = 16


# Nanoseconds of a grpc-timeout (1 to 8 digits and one of HMSmun), cut at a day; -1 when it is none.
cdef int64_t grpc_timeout_ns(const char *p, size_t n) noexcept nogil
# Whether a content type is gRPC with protobuf: application/grpc, with `+proto` or parameters, in any case.
cdef bint grpc_content_type(const char *p, size_t n) noexcept nogil
# `message` percent-encoded into `out`, cut where `cap` ends; bytes written.
cdef size_t grpc_message(Text message, char *out, size_t cap) noexcept nogil
