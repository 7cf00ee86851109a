"""Bells: counters that grow with what changes, and threads that are woken to look at them (bells.pxd)."""
from fastpath.c.linux cimport EFD_CLOEXEC, eventfd, eventfd_read, eventfd_write
from fastpath.c.pthread cimport pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from fastpath.c.xxhash cimport XXH3_64bits
from fastpath.wire cimport out_close, out_open, out_uint, out_varint
from libc.errno cimport errno
from libc.string cimport memset
from posix.unistd cimport close

cdef extern from * nogil:
    """
    /* Sequentially consistent: an ear that opens while a bell rings is woken, or has heard it already. */
    static inline void remit_ring(uint64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_SEQ_CST); }
    static inline void remit_ears(int64_t *p, int by) { __atomic_fetch_add(p, by, __ATOMIC_SEQ_CST); }
    static inline int64_t remit_listen(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline int remit_is_shut(const int *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void remit_shut(int *p) { __atomic_store_n(p, 1, __ATOMIC_SEQ_CST); }
    """
    void remit_ring(uint64_t *p)
    void remit_ears(int64_t *p, int by)
    int64_t remit_listen(const int64_t *p)
    int remit_is_shut(const int *p)
    void remit_shut(int *p)

cdef enum NoticeField:       # authz.proto
    RESPONSE_NOTICE = 2
    NOTICE_CAUSES = 1
    NOTICE_EPOCH = 2
    NOTICE_GENERATION = 3


cdef inline uint32_t bell_of(Text agent) noexcept nogil:
    return <uint32_t> XXH3_64bits(agent.p, agent.n) & (BELLS - 1)


# ---------------------------------------------------------------- those who ring

cdef void touch_all(Touched *touched, int news) noexcept nogil:
    touched.everyone |= <uint8_t> (1 << news)


cdef void touch_agent(Touched *touched, Text agent, int news) noexcept nogil:
    touched.some[bell_of(agent)] |= <uint8_t> (1 << news)


cdef void ring_bits(uint64_t *counters, uint8_t bits) noexcept nogil:
    cdef int news
    for news in range(<int> NEWS):
        if bits >> news & 1:
            remit_ring(&counters[news])


cdef void bells_ring(BellTable *table, Touched *touched) noexcept nogil:
    cdef Room *room
    cdef int i
    pthread_mutex_lock(&table.lock)
    ring_bits(table.everyone, touched.everyone)
    for i in range(BELLS):
        if touched.some[i]:
            ring_bits(table.some[i], touched.some[i])
    memset(touched, 0, sizeof(Touched))
    remit_ring(&table.rung)
    room = table.rooms
    while room != NULL:
        if remit_listen(&room.ears):
            eventfd_write(room.wake, 1)
        room = room.next
    pthread_mutex_unlock(&table.lock)


cdef void bells_ring_all(BellTable *table, int news) noexcept nogil:
    cdef Touched touched
    memset(&touched, 0, sizeof(Touched))
    touch_all(&touched, news)
    bells_ring(table, &touched)


# ---------------------------------------------------------------- those who listen

cdef void room_enter(BellTable *table, Room *room) noexcept nogil:
    pthread_mutex_lock(&table.lock)
    room.next = table.rooms
    table.rooms = room
    pthread_mutex_unlock(&table.lock)


cdef void room_leave(BellTable *table, Room *room) noexcept nogil:
    cdef Room **at = &table.rooms
    pthread_mutex_lock(&table.lock)
    while at[0] != NULL and at[0] != room:
        at = &at[0].next
    if at[0] == room:
        at[0] = room.next
    pthread_mutex_unlock(&table.lock)


cdef void ear_open(BellTable *table, Room *room, Ear *ear, Text agent) noexcept nogil:
    remit_ears(&room.ears, 1)
    ear.bell = bell_of(agent)
    ear_listen(table, ear)


cdef void ear_close(Room *room) noexcept nogil:
    remit_ears(&room.ears, -1)


cdef uint32_t ear_listen(const BellTable *table, Ear *ear) noexcept nogil:
    cdef uint32_t found = 0
    cdef uint64_t now
    cdef int news
    # First: what rings between this and the counters is looked for again, and not missed.
    ear.rung = remit_rung(&table.rung)
    for news in range(<int> NEWS):
        now = remit_rung(&table.everyone[news]) + remit_rung(&table.some[ear.bell][news])
        if now != ear.heard[news]:
            found |= <uint32_t> 1 << news
            ear.heard[news] = now
    return found


cdef void notice_write(Out *out, uint32_t news, uint64_t epoch, uint64_t generation) noexcept nogil:
    cdef size_t notice = out_open(out, RESPONSE_NOTICE)
    cdef size_t causes
    cdef int bit
    if news:
        causes = out_open(out, NOTICE_CAUSES)
        for bit in range(<int> NEWS):
            if news >> bit & 1:
                out_varint(out, bit + 1)
        out_close(out, causes)
    if epoch:
        out_uint(out, NOTICE_EPOCH, epoch)
    if generation:
        out_uint(out, NOTICE_GENERATION, generation)
    out_close(out, notice)


# ---------------------------------------------------------------- the Python face

cdef class Bells:

    def __cinit__(self):
        if pthread_mutex_init(&self.table.lock, NULL):
            raise MemoryError

    def __dealloc__(self):
        # Rooms hold a reference to their bells, so none is left now.
        pthread_mutex_destroy(&self.table.lock)


cdef class BellRoom:

    def __cinit__(self, Bells bells not None):
        self.bells = bells
        self.room.wake = eventfd(0, EFD_CLOEXEC)
        if self.room.wake < 0:
            raise OSError(errno, "no descriptor is left to wait for notices")
        room_enter(&bells.table, &self.room)

    def __dealloc__(self):
        if self.room.wake >= 0:
            room_leave(&self.bells.table, &self.room)
            close(self.room.wake)

    def wait(self):
        cdef uint64_t times
        with nogil:
            eventfd_read(self.room.wake, &times)
        return not remit_is_shut(&self.closed)

    def close(self):
        remit_shut(&self.closed)
        eventfd_write(self.room.wake, 1)
