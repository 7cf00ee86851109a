"""Python objects that native threads read without the GIL: swapped whole, kept alive until the last reader left.

A reader's `enter` and `leave` touch a lock and two counters; everything that Python must do (letting go of an object
that was replaced) waits for the next `put` or `sweep`, which run with the GIL.
"""
from libc.stdint cimport int64_t, uint64_t

from fastpath.c.pthread cimport pthread_mutex_t


cdef struct Held:
    int64_t readers          # atomic; grows only under the slot's lock and only while this is the current one
    const void *data         # what readers read; memory of `owner`
    void *owner              # PyObject, one reference of ours
    Held *next               # replaced earlier and not let go yet


cdef class Slot:
    """One value in force. `put` and `sweep` need the GIL; `enter` and `leave` any thread may call without it."""
    cdef pthread_mutex_t lock
    cdef Held *current       # NULL: nothing was put yet
    cdef Held *replaced      # list by `next`; changed under the GIL only
    cdef uint64_t puts       # how often something was put; atomic
    cdef int put(self, object owner, const void *data) except -1
    cdef int sweep(self) except -1


cdef extern from * nogil:
    """
    static inline uint64_t remit_puts(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    """
    uint64_t remit_puts(const uint64_t *p)


cdef inline uint64_t slot_puts(Slot slot) noexcept nogil:
    """What is made of a value holds as long as this is the same; ask before the value is read."""
    return remit_puts(&slot.puts)


# The value in force, which stays readable until `slot_leave`; NULL when there is none. Never blocks for long.
cdef Held *slot_enter(Slot slot) noexcept nogil
cdef void slot_leave(Held *held) noexcept nogil
