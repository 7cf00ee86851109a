"""Classes of plain calls: by HTTP method, and by the verb that a gRPC method's name begins with."""
from fastpath.wire cimport Text


# "list", "read", "write", "delete", "send", or "execute" for what says nothing (RFC 9110 section 9.3).
cdef Text http_class(Text method, Text path) noexcept nogil
cdef Text grpc_class(Text method) noexcept nogil
