"""Routes of the configuration: which one a call takes, and the entities and attributes that it makes of the call."""
from fastpath.envoy cimport HttpCall
from fastpath.mapping_rules cimport CAPTURES_MAX, Attribute, MappingRules, RouteRule, Template
from fastpath.value cimport Arena, Cell, Uid
from fastpath.wire cimport Text


cdef struct Matched:
    const RouteRule *route   # NULL: none
    Text captures[CAPTURES_MAX]


# The first route that the call fits. Its canonical fields are valid.
cdef void route_find(const MappingRules *rules, const HttpCall *call, Matched *out) noexcept nogil
# The route of that name when the call fits it: 0, 1 when there is no such route, 2 when the call does not fit.
cdef int route_named(const MappingRules *rules, const HttpCall *call, Text name, Matched *out) noexcept nogil
# The entity that a template makes, or NULL with `refusal` set (or with the arena full).
cdef Uid *route_entity(
    const Template *t, const HttpCall *call, const Matched *m, Arena *arena, Text *refusal
) noexcept nogil
# The value of a context attribute: 1 with `out` set, 0 when the call does not have it, -1 with `refusal` set.
cdef int route_attribute(
    const Attribute *a, const HttpCall *call, const Matched *m, Arena *arena, Cell *out, Text *refusal
) noexcept nogil
