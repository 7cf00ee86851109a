"""Counts of connections per peer, and the desks over which loops share out what they accept.

epoll wakes the loop that waited last, so without sharing out one loop would get nearly all connections, and they stay
where they are for minutes.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy
from posix.unistd cimport close

from fastpath.c.linux cimport eventfd_write
from fastpath.c.pthread cimport pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from fastpath.c.xxhash cimport XXH3_64bits

cdef extern from * nogil:
    """
    static inline void remit_change(int64_t *p, int by) { __atomic_fetch_add(p, by, __ATOMIC_RELEASE); }
    static inline int64_t remit_count(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline int remit_less(int *p) { return __atomic_sub_fetch(p, 1, __ATOMIC_ACQ_REL); }
    static inline int remit_left(const int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    """
    void remit_change(int64_t *p, int by)
    int64_t remit_count(const int64_t *p)
    int remit_less(int *p)
    int remit_left(const int *p)


cdef class Admission:

    def __cinit__(self, int loops, per_peer):
        cdef int i
        if not 1 <= loops <= LOOPS_MAX:
            raise ValueError(f"a door has 1 to {LOOPS_MAX} threads")
        self.loops = self.accepting = loops
        self.per_peer = per_peer
        for i in range(LOOPS_MAX):
            self.desks[i].wake = -1
        if pthread_mutex_init(&self.lock, NULL):
            raise MemoryError

    def __dealloc__(self):
        cdef Guest *guest
        cdef int i
        for i in range(PEER_BUCKETS):
            while self.buckets[i] != NULL:
                guest = self.buckets[i]
                self.buckets[i] = guest.next
                free(guest)
        self.close_waiting()
        pthread_mutex_destroy(&self.lock)

    cdef int close_waiting(self) except -1:
        """Close what no loop came to take."""
        cdef int loop, fd
        for loop in range(self.loops):
            while True:
                fd = admission_take(self, loop)
                if fd < 0:
                    break
                close(fd)
                admission_count(self, loop, -1)
        return 0


cdef int64_t admission_open(Admission admission) noexcept nogil:
    cdef int64_t total = 0
    cdef int i
    for i in range(admission.loops):
        total += remit_count(&admission.desks[i].open)
    return total


cdef int admission_least(Admission admission, int own) noexcept nogil:
    cdef int best = own
    cdef int i
    for i in range(admission.loops):
        if remit_count(&admission.desks[i].open) < remit_count(&admission.desks[best].open):
            best = i
    return best


cdef bint admission_hand_over(Admission admission, int loop, int fd) noexcept nogil:
    cdef Desk *desk = &admission.desks[loop]
    cdef bint room
    pthread_mutex_lock(&admission.lock)
    room = desk.n < DESK_MAX
    if room:
        desk.fds[desk.n] = fd
        desk.n += 1
        remit_change(&desk.open, 1)
    pthread_mutex_unlock(&admission.lock)
    if room:
        eventfd_write(desk.wake, 1)
    return room


cdef int admission_take(Admission admission, int loop) noexcept nogil:
    cdef Desk *desk = &admission.desks[loop]
    cdef int fd = -1
    pthread_mutex_lock(&admission.lock)
    if desk.n:
        desk.n -= 1
        fd = desk.fds[desk.n]
    pthread_mutex_unlock(&admission.lock)
    return fd


cdef void admission_count(Admission admission, int loop, int change) noexcept nogil:
    remit_change(&admission.desks[loop].open, change)


cdef Guest *_guest(Admission admission, Text name, uint64_t hash) noexcept nogil:
    """The peer's entry, made when it is new; NULL when memory is short. Needs the lock."""
    cdef Guest **bucket = &admission.buckets[hash & (PEER_BUCKETS - 1)]
    cdef Guest *guest = bucket[0]
    while guest != NULL:
        if guest.hash == hash and guest.n == name.n and memcmp(guest.name, name.p, name.n) == 0:
            return guest
        guest = guest.next
    guest = <Guest *> malloc(sizeof(Guest) - PEER_NAME_MAX + name.n)
    if guest == NULL:
        return NULL
    guest.hash, guest.n, guest.count, guest.tickets, guest.talks = hash, name.n, 0, 0, 0
    memcpy(guest.name, name.p, name.n)
    guest.next = bucket[0]
    bucket[0] = guest
    return guest


cdef Guest *admission_enter(Admission admission, Text name, uint32_t most) noexcept nogil:
    cdef Guest *guest
    if name.n > PEER_NAME_MAX:
        return NULL
    pthread_mutex_lock(&admission.lock)
    guest = _guest(admission, name, XXH3_64bits(name.p, name.n))
    # An entry that was just made has no connection yet, and so always takes one: none stays behind empty.
    if guest != NULL and guest.count < most:
        guest.count += 1
    else:
        guest = NULL
    pthread_mutex_unlock(&admission.lock)
    return guest


cdef void admission_leave(Admission admission, Guest *guest) noexcept nogil:
    cdef Guest **at
    if guest == NULL:
        return
    pthread_mutex_lock(&admission.lock)
    guest.count -= 1
    if guest.count == 0:
        at = &admission.buckets[guest.hash & (PEER_BUCKETS - 1)]
        while at[0] != guest:
            at = &at[0].next
        at[0] = guest.next
        free(guest)
    pthread_mutex_unlock(&admission.lock)


cdef void admission_left(Admission admission) noexcept nogil:
    cdef int i
    if remit_less(&admission.accepting) == 0:
        for i in range(admission.loops):
            eventfd_write(admission.desks[i].wake, 1)


cdef bint admission_over(Admission admission) noexcept nogil:
    return remit_left(&admission.accepting) <= 0
