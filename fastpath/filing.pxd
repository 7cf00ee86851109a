"""Policies and links while they are compiled: a flat row each, ranked by id, and filed under the rarest constraint.

Only the compiler uses this, with the GIL. Uids, types and ids are numbers of Names; what arrives later may still be
named, so counts stand in arrays that are made when the rows are complete.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastpath.names cimport Names


cdef struct Rule:
    uint32_t id              # number of its id
    uint8_t effect
    uint8_t flags
    uint8_t principal_op     # Scope
    uint8_t action_op
    uint8_t resource_op
    uint8_t reserved[3]
    uint32_t principal       # numbers of uids and types; NONE32 for none
    uint32_t principal_type
    uint32_t action
    uint32_t resource
    uint32_t resource_type
    uint32_t actions         # row of its list of actions; NONE32: it has none
    uint32_t code            # as in Policy
    uint32_t code_words
    uint32_t stack
    uint32_t note


cdef struct Way:             # one way to file a policy: all uids under one kind of key, or one type
    uint32_t kind            # FiledUnder
    uint32_t n
    const uint32_t *members
    bint any_of              # a list of actions: being in one of them is enough


cdef class Rules:
    cdef readonly Names ids
    cdef Rule *rows
    cdef uint32_t count
    cdef uint32_t room
    cdef list lists              # of arrays of uids: lists of actions
    # Set by `file`:
    cdef uint32_t uid_count
    cdef uint32_t type_count
    cdef uint32_t *ranked        # rules by rank
    cdef uint32_t *starts        # by key: kind * uid_count + uid, then types; it ends where the next one starts
    cdef uint32_t *members       # ranks, ascending under each key
    cdef uint32_t *guards        # by rank: of its Entry (image.pxd), with the number of the uid or type for its row
    cdef uint32_t *anywhere      # ranks of what is filed under nothing
    cdef uint32_t anywhere_count
    cdef int _grow(self) except -1
    cdef int _rank(self) except -1
    cdef uint64_t _key(self, uint32_t kind, uint32_t number) noexcept nogil
    cdef uint32_t _ways(self, const Rule *rule, Way *ways) except? 0xFFFFFFFF
    cdef int _count(self, uint32_t *counts) except -1
    cdef uint32_t _guard(self, const Way *ways, uint32_t n, uint32_t filed, const uint32_t *counts) noexcept nogil
    cdef int _choose(self, const uint32_t *counts, uint8_t *chosen) except -1
    cdef int _fill(self, const uint8_t *chosen, uint64_t keys) except -1
    cdef const uint32_t *filed(self, uint32_t kind, uint32_t number, uint32_t *n) noexcept nogil
