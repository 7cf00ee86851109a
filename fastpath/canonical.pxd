"""One canonicaliser for method, host, path and query (RFC 3986 sections 2, 3.2.2, 5.2.4, 6.2)."""
from fastpath.envoy cimport CanonicalRules, HttpCall
from fastpath.value cimport Arena
from fastpath.wire cimport Text


# Fill the canonical part of `call`, or its `refusal`.
cdef void canonical_call(HttpCall *call, const CanonicalRules *rules, Arena *arena) noexcept nogil
# Whether a content type is gRPC's or gRPC-Web's: application/grpc and what follows it, in any case (RFC 9110 8.3.1).
cdef bint is_grpc_type(Text value) noexcept nogil
