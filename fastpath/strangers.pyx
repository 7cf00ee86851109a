"""Refused users, counted until Python takes the counts: a flood of connections is a line of the log now and then."""
from libc.stdint cimport uint32_t

from fastpath.c.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)


cdef class Strangers:

    def __cinit__(self):
        if pthread_mutex_init(&self.lock, NULL) or pthread_cond_init(&self.waits, NULL):
            raise MemoryError

    def __dealloc__(self):
        pthread_cond_destroy(&self.waits)
        pthread_mutex_destroy(&self.lock)

    def take(self):
        cdef list told = []
        cdef int i
        with nogil:
            pthread_mutex_lock(&self.lock)
            while self.n == 0 and not self.closed:
                pthread_cond_wait(&self.waits, &self.lock)
            pthread_mutex_unlock(&self.lock)
        pthread_mutex_lock(&self.lock)
        try:
            for i in range(self.n):
                told.append((self.found[i].uid, self.found[i].times))
            if self.others:
                told.append((None, self.others))
            self.n, self.others = 0, 0
        finally:
            pthread_mutex_unlock(&self.lock)
        return told

    def close(self):
        pthread_mutex_lock(&self.lock)
        self.closed = 1
        pthread_cond_broadcast(&self.waits)
        pthread_mutex_unlock(&self.lock)


cdef void strangers_add(Strangers strangers, uint32_t uid) noexcept nogil:
    cdef int i = 0
    pthread_mutex_lock(&strangers.lock)
    while i < strangers.n and strangers.found[i].uid != uid:
        i += 1
    if i == STRANGERS_MAX:
        strangers.others += 1
    else:
        if i == strangers.n:
            strangers.found[i].uid, strangers.found[i].times = uid, 0
            strangers.n += 1
        strangers.found[i].times += 1
    pthread_cond_signal(&strangers.waits)
    pthread_mutex_unlock(&strangers.lock)
