"""Byte strings that a compiler meets millions of times: each is kept once, and numbered in the order of its arrival.

They stand in three flat blocks, not in a Python object each. Only the compiler uses this, with the GIL.
"""
from libc.stdint cimport uint32_t, uint64_t


cdef class Names:
    cdef char *text              # all strings, one behind the other
    cdef uint64_t text_used
    cdef uint64_t text_room
    cdef uint64_t *ends          # of string i; it begins where the one before it ends
    cdef uint32_t count
    cdef uint32_t room           # of `ends`
    cdef uint32_t *slots         # number of a string or NONE, probed linearly; at least half are free
    cdef uint32_t slots_mask     # a power of two less one
    cdef uint32_t put(self, const char *raw, uint64_t size) except? 0xFFFFFFFF
    cdef const char *at(self, uint32_t number, uint64_t *size) noexcept nogil
    cdef uint32_t _slot(self, const char *raw, uint64_t size) noexcept nogil
    cdef int _grow_ends(self) except -1
    cdef int _grow_text(self, uint64_t size) except -1
    cdef int _grow_slots(self) except -1
