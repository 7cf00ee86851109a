"""Users who may not enter a Unix door, from its loops to the log: a loop never waits, so what is told is bounded."""
from fastpath.c.pthread cimport pthread_cond_t, pthread_mutex_t
from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    STRANGERS_MAX = 64       # users told of at once; connections of others meanwhile are told of as one number


cdef struct Stranger:
    uint32_t uid
    uint64_t times


cdef class Strangers:
    cdef pthread_mutex_t lock
    cdef pthread_cond_t waits
    cdef Stranger found[STRANGERS_MAX]
    cdef int n
    cdef uint64_t others
    cdef int closed


# A connection of this user was refused.
cdef void strangers_add(Strangers strangers, uint32_t uid) noexcept nogil
