"""Reason codes by how often they were given. Policies choose some of them, so their number is bounded."""
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from fastpath.c.pthread cimport pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from fastpath.c.xxhash cimport XXH3_64bits

cdef extern from * nogil:
    """
    static inline char *remit_text(char **p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void remit_publish(char **p, char *text) { __atomic_store_n(p, text, __ATOMIC_RELEASE); }
    static inline void remit_one_more(uint64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
    static inline uint64_t remit_times(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    """
    char *remit_text(char **p)
    void remit_publish(char **p, char *text)
    void remit_one_more(uint64_t *p)
    uint64_t remit_times(const uint64_t *p)


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
        """{reason: times}."""
        cdef int i
        cdef dict found = {}
        for i in range(CAUSE_SLOTS):
            if remit_text(&self.slots[i].text) != NULL:
                name = (<bytes> self.slots[i].text[:self.slots[i].n]).decode("utf-8", "replace")
                found[name] = found.get(name, 0) + remit_times(&self.slots[i].count)
        return found


cdef Cause *_find(Causes causes, Text reason, uint64_t at) noexcept nogil:
    """The slot of `reason`, or the free one where it would be. Once a slot has a text, that never changes."""
    cdef Cause *cause
    cdef const char *text
    while True:
        cause = &causes.slots[at & (CAUSE_SLOTS - 1)]
        text = remit_text(&cause.text)
        if text == NULL or (cause.n == reason.n and memcmp(text, reason.p, reason.n) == 0):
            return cause
        at += 1


cdef Cause *_new(Causes causes, Text reason, uint64_t at) noexcept nogil:
    """The slot of `reason`, taken unless somebody else took it meanwhile; NULL when there is no room."""
    cdef Cause *cause
    cdef char *text = <char *> malloc(reason.n)
    pthread_mutex_lock(&causes.lock)
    cause = _find(causes, reason, at)
    if cause.text == NULL and text != NULL and causes.used < CAUSES_MAX:
        memcpy(text, reason.p, reason.n)
        cause.n = reason.n
        remit_publish(&cause.text, text)
        causes.used += 1
        text = NULL
    if cause.text == NULL:
        cause = NULL
    pthread_mutex_unlock(&causes.lock)
    free(text)
    return cause


cdef void causes_add(Causes causes, Text reason) noexcept nogil:
    cdef uint64_t at
    cdef Cause *cause
    if reason.n == 0:
        return
    at = XXH3_64bits(reason.p, reason.n)
    cause = _find(causes, reason, at)
    if remit_text(&cause.text) == NULL:
        cause = _new(causes, reason, at)
    if cause != NULL:
        remit_one_more(&cause.count)
