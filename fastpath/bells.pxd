"""Who is told that what decides has changed: the control plane rings, open CheckStreams listen.

A ring comes after what it tells of is in force. So whoever has heard it, and decides then, decides by no older state.
"""
from fastpath.c.pthread cimport pthread_mutex_t
from fastpath.wire cimport Out, Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    static inline uint64_t remit_rung(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    """
    uint64_t remit_rung(const uint64_t *p)


cdef enum News:              # what changed; NoticeCause of authz.proto less one
    NEWS_REVOCATION = 0
    NEWS_TASK = 1
    NEWS_OWNER = 2
    NEWS_APPROVAL = 3
    NEWS_POLICY = 4
    NEWS = 5


cdef enum:
    BELLS = 256              # power of two; agents that share one are now and then told what concerns another


cdef struct Touched:         # whom one change concerns; a bit per News
    uint8_t everyone
    uint8_t some[BELLS]


cdef struct Room:            # a thread that listens, for any number of ears
    Room *next
    int wake                 # its eventfd
    int64_t ears             # atomic; without any it is not woken


cdef struct BellTable:
    pthread_mutex_t lock     # of those who ring, and of the list of rooms
    uint64_t rung            # atomic; grows last
    uint64_t everyone[NEWS]  # atomic
    uint64_t some[BELLS][NEWS]
    Room *rooms


cdef struct Ear:             # of one stream; its room's thread alone touches it
    uint64_t rung
    uint64_t heard[NEWS]
    uint32_t bell


cdef class Bells:
    cdef BellTable table


cdef class BellRoom:         # for threads of Python
    cdef Bells bells
    cdef Room room
    cdef int closed          # atomic


# The change concerns everybody, or the agent of this SPIFFE ID.
cdef void touch_all(Touched *touched, int news) noexcept nogil
cdef void touch_agent(Touched *touched, Text agent, int news) noexcept nogil
# Tell them. What was touched is forgotten.
cdef void bells_ring(BellTable *table, Touched *touched) noexcept nogil
cdef void bells_ring_all(BellTable *table, int news) noexcept nogil
cdef void room_enter(BellTable *table, Room *room) noexcept nogil
cdef void room_leave(BellTable *table, Room *room) noexcept nogil
# Listen for what concerns the agent from now on; what is in force now counts as heard.
cdef void ear_open(BellTable *table, Room *room, Ear *ear, Text agent) noexcept nogil
cdef void ear_close(Room *room) noexcept nogil


cdef inline bint ear_rings(const BellTable *table, const Ear *ear) noexcept nogil:
    """Whether there may be news; most of the time there are none."""
    return remit_rung(&table.rung) != ear.rung


# What of interest changed since the ear listened last, a bit per News.
cdef uint32_t ear_listen(const BellTable *table, Ear *ear) noexcept nogil
# remit.authz.v1.CheckStreamResponse with a notice.
cdef void notice_write(Out *out, uint32_t news, uint64_t epoch, uint64_t generation) noexcept nogil
