"""Classes of plain calls. What says nothing is taken for the worst."""
from fastpath.wire cimport text_is, text_of

from libc.string cimport memcmp

cdef enum:
    VERBS = 27

cdef struct Verb:
    const char *prefix
    const char *action

cdef Verb[VERBS] VERB_TABLE = [
    Verb(b"Get", b"read"), Verb(b"List", b"read"), Verb(b"Watch", b"read"), Verb(b"Read", b"read"),
    Verb(b"Describe", b"read"), Verb(b"Search", b"read"), Verb(b"Query", b"read"), Verb(b"Lookup", b"read"),
    Verb(b"BatchGet", b"read"),
    Verb(b"Create", b"write"), Verb(b"Update", b"write"), Verb(b"Set", b"write"), Verb(b"Put", b"write"),
    Verb(b"Insert", b"write"), Verb(b"Add", b"write"), Verb(b"Patch", b"write"), Verb(b"Write", b"write"),
    Verb(b"Upload", b"write"), Verb(b"Upsert", b"write"), Verb(b"BatchCreate", b"write"),
    Verb(b"Delete", b"delete"), Verb(b"Remove", b"delete"), Verb(b"Purge", b"delete"), Verb(b"BatchDelete", b"delete"),
    Verb(b"Send", b"send"), Verb(b"Publish", b"send"), Verb(b"Notify", b"send"),
]


cdef bint begins_with_verb(Text name, const char *verb) noexcept nogil:
    """Whether the first CamelCase word is the verb: `GetUser`, not `Getaway`."""
    cdef Text wanted = text_of(verb)
    if name.n < wanted.n or memcmp(name.p, wanted.p, wanted.n) != 0:
        return False
    return name.n == wanted.n or not c'a' <= name.p[wanted.n] <= c'z'


cdef Text grpc_class(Text method) noexcept nogil:
    cdef int i
    for i in range(VERBS):
        if begins_with_verb(method, VERB_TABLE[i].prefix):
            return text_of(VERB_TABLE[i].action)
    return text_of(b"execute")


cdef Text http_class(Text method, Text path) noexcept nogil:
    if text_is(method, b"GET") or text_is(method, b"HEAD") or text_is(method, b"OPTIONS"):
        return text_of(b"list" if path.n and path.p[path.n - 1] == c'/' else b"read")
    if text_is(method, b"POST") or text_is(method, b"PUT") or text_is(method, b"PATCH"):
        return text_of(b"write")
    if text_is(method, b"DELETE"):
        return text_of(b"delete")
    return text_of(b"send" if text_is(method, b"CONNECT") else b"execute")
