"""Writes the many rows of an image, nodes and policies, from flat arrays (filing.pxd) into a buffer.

Only the compiler uses this, with the GIL. Of what there is little (types, notes, constants) sidecar/policy/rows.py
writes the rows.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cpython cimport array
from fastpath.filing cimport Rules
from fastpath.image cimport Entries, Entry, List, Node, Policy
from fastpath.names cimport Names


cdef struct Free:                         # what is free of a row, as offsets
    uint64_t at
    uint64_t end


cdef class _Sources:                      # what nodes are written from; see Layout.nodes
    cdef array.array rows, attrs, tags, parent_starts, parents
    cdef array.array values
    cdef array.array closure_rows, closure_starts, closures


cdef class Layout:
    cdef Names uids
    cdef Names types
    cdef Rules rules
    cdef readonly array.array order      # uids by rank: a rank is a node's index
    cdef readonly array.array ranks      # of uids
    cdef readonly array.array type_order
    cdef readonly array.array type_ranks
    cdef readonly Names lists            # of nodes that found no room in their rows, each padded to 8 bytes
    cdef uint64_t lists_at               # where they will stand
    cdef uint64_t *uid_at                # offset of each node's Uid, by rank
    cdef uint8_t *up                     # NODE_ABOVE flags that a uid gives to those it is a parent of
    cdef void *scratch                   # one list of ranks or of entries while it is made
    cdef uint64_t scratch_room           # its bytes
    cdef int _long_uids(self, uint8_t *out, uint64_t out_size, uint64_t at) except -1
    cdef int _uid(self, uint8_t *out, uint32_t rank) except -1
    cdef const uint32_t *_ranked(self, const uint32_t *numbers, uint32_t n, uint32_t *kept) except NULL
    cdef int _scratch(self, uint64_t size) except -1
    cdef int _list(self, uint8_t *out, List *into, const uint32_t *members, uint32_t n, Free *free_) except -1
    cdef uint32_t _stand(self, uint8_t *out, const void *raw, uint64_t size, Free *free_) except? 0xFFFFFFFF
    cdef uint64_t _overflow(self, const void *raw, uint64_t size) except? 0xFFFFFFFFFFFFFFFF
    cdef uint32_t _guard(self, uint32_t policy) except? 0xFFFFFFFF
    cdef const Entry *_entries(self, const uint32_t *policies, uint32_t n) except NULL
    cdef int _policies(self, uint8_t *out, Node *node, uint32_t number, const uint32_t *inherited, uint32_t n,
                       Free *free_) except -1
    cdef uint32_t _type(self, const char *name, uint32_t size) except? 0xFFFFFFFF
    cdef uint32_t _inherit(self, const Node *node, uint32_t row, _Sources from_, uint32_t *found) noexcept
    cdef uint32_t _inherited(self, int kind, uint32_t row, _Sources from_, uint32_t *found) noexcept
    cdef bint _gather(self, int kind, uint32_t number, uint32_t *found, uint32_t *n) noexcept
    cdef int _ups(self, _Sources from_) except -1
    cdef uint8_t _lists(self, uint32_t number) noexcept
    cdef int _node(self, uint8_t *out, uint64_t at, uint32_t rank, _Sources from_) except -1
    cdef int _policy(self, Policy *policy, uint32_t rank, array.array actions) except -1
    cdef uint32_t _rank(self, uint32_t number) except? 0xFFFFFFFF
    cdef uint32_t _type_rank(self, uint32_t number) except? 0xFFFFFFFF
