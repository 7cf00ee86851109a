"""Reason codes by how often they were given. Policies choose some of them, so their number is bounded."""
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from fastpath.c.pthread cimport pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from fastpath.c.xxhash cimport XXH3_64bits


cdef class Causes:

    def __cinit__(self):
        if pthread_mutex_init(&self.lock, NULL):
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(CAUSE_SLOTS):
            free(self.slots[i].text)
        pthread_mutex_destroy(&self.lock)

    cdef dict view(self):
        """{reason: times}. A text once counted never moves, so its count is all that the lock guards here."""
        cdef int i
        cdef dict found = {}
        for i in range(CAUSE_SLOTS):
            if self.slots[i].text != NULL:
                name = (<bytes> self.slots[i].text[:self.slots[i].n]).decode("utf-8", "replace")
                found[name] = found.get(name, 0) + self.slots[i].count
        return found


cdef Cause *_slot(Causes causes, Text reason) noexcept nogil:
    """The slot of `reason`, taken when it is new; NULL when there is no room. Needs the lock."""
    cdef uint64_t at = XXH3_64bits(reason.p, reason.n)
    cdef Cause *cause
    while True:
        cause = &causes.slots[at & (CAUSE_SLOTS - 1)]
        if cause.text == NULL:
            break
        if cause.n == reason.n and memcmp(cause.text, reason.p, reason.n) == 0:
            return cause
        at += 1
    if causes.used >= CAUSES_MAX:
        return NULL
    cause.n = reason.n
    cause.text = <char *> malloc(reason.n)
    if cause.text != NULL:
        memcpy(cause.text, reason.p, reason.n)
        causes.used += 1
    return cause if cause.text != NULL else NULL


cdef void causes_add(Causes causes, Text reason) noexcept nogil:
    cdef Cause *cause
    if reason.n == 0:
        return
    pthread_mutex_lock(&causes.lock)
    cause = _slot(causes, reason)
    if cause != NULL:
        cause.count += 1
    pthread_mutex_unlock(&causes.lock)
