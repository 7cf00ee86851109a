"""One canonicaliser for method, host, path and query (RFC 3986 sections 2, 3.2.2, 5.2.4, 6.2)."""
from fastpath.envoy cimport CanonicalRules, HttpCall
from fastpath.value cimport Arena


# Fill the canonical part of `call`, or its `refusal`.
cdef void canonical_call(HttpCall *call, const CanonicalRules *rules, Arena *arena) noexcept nogil
