"""How often each reason code was given, counted without the GIL."""
from libc.stdint cimport uint32_t, uint64_t

from fastpath.c.pthread cimport pthread_mutex_t
from fastpath.wire cimport Text


cdef enum:
    CAUSES_MAX = 1024        # distinct reason codes; a policy set has fewer. Others are not counted
    CAUSE_SLOTS = 2048       # power of two


cdef struct Cause:
    char *text               # owned; NULL: the slot is free; atomic, and set last
    uint32_t n
    uint64_t count           # atomic


cdef class Causes:
    cdef pthread_mutex_t lock    # to take a slot
    cdef Cause slots[CAUSE_SLOTS]
    cdef uint32_t used
    cdef dict view(self)


cdef void causes_add(Causes causes, Text reason) noexcept nogil
