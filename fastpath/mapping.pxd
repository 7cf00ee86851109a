"""What the call is: from an HttpCall to principal, action, resource, destination and context of a Request."""
from fastpath.envoy cimport HttpCall
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.value cimport Arena
from fastpath.wire cimport Text


cdef class Mapping:
    """Compiled `mapping:` section of the configuration: trust domains, tools, destinations and routes. Immutable."""
    cdef void *rules         # MappingRules (mapping_rules.pxd), flat memory owned by this object
    cdef object _room        # keeps the memory of `rules`


# Every function below expects `request` after request_init; door, times and deadline are the caller's.

# Set request.principal and the cred columns (x509-svid, bound) from a verified SPIFFE ID, or request.refusal
# ("identity.missing", "identity.not_spiffe", "identity.trust_domain"). Doors of agents call it with the peer's SPIFFE
# ID before mapping_check.
cdef void mapping_principal(
    const void *rules, Text spiffe_id, const Table *table, Arena *arena, Request *request
) noexcept nogil
# Map one call; on refusal sets request.refusal. `table` resolves tool actions and input shapes; it may be NULL.
cdef void mapping_apply(
    const void *rules, const HttpCall *call, const Table *table, Arena *arena, Request *request
) noexcept nogil
# Decode remit.authz.v1.CheckRequest and map it. 0, or 1 when the bytes are not one. The principal is the one that
# mapping_principal set from the verified caller; nothing in the message can name another.
cdef int mapping_check(
    const void *rules, const unsigned char *p, size_t n, const Table *table, Arena *arena, Request *request
) noexcept nogil
