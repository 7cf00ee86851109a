"""One thread of a native door: what it owns and shares, and who may assert another principal there."""
from fastpath.admission cimport Admission
from fastpath.call cimport Pdp
from fastpath.held cimport Slot
from fastpath.http2 cimport Conn, Door
from fastpath.lane cimport Lane
from fastpath.line cimport Line
from fastpath.strangers cimport Strangers
from fastpath.turns cimport Lit
from fastpath.value cimport Arena
from fastpath.verify cimport REFUSALS
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from * nogil:
    """
    static inline int remit_flag(const int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void remit_flag_set(int *p, int v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    """
    int remit_flag(const int *p)
    void remit_flag_set(int *p, int v)

cdef enum:
    OUTBOX = 131072


cdef struct Peps:            # SPIFFE IDs that may assert another principal
    uint32_t count
    Text *ids                # owned by the PepList


cdef class PepList:
    cdef Peps peps
    cdef list _names         # keeps the bytes of the IDs


cdef class Loop:             # connections stay with it
    cdef Pdp pdp
    cdef Slot trust          # of the Verifier; None on a Unix socket
    cdef Slot identity       # of TlsIdentity; empty: no handshake succeeds
    cdef Slot peps           # of PepList
    cdef Admission admission    # of the door
    cdef Lane lane           # of the door
    cdef Strangers strangers    # of the door
    cdef Door door
    cdef uint64_t refusals[REFUSALS]   # chains refused in handshakes
    cdef Arena arena         # of the call under way
    cdef uint8_t *reply      # CALL_REPLY_BYTES
    cdef uint8_t *record     # RECORD_BYTES_MAX
    cdef uint8_t *inbox      # PIECE_MAX
    cdef uint8_t *outbox
    cdef Conn *first         # open connections
    cdef Conn *ticking       # the next one at whose clocks the tick under way looks; NULL: none is under way
    cdef Lit lit             # who asked little
    cdef Line turns          # connections with more to do
    cdef Line handshakes     # connections in the TLS handshake: nobody knows yet whose they are
    cdef Conn *closed        # closed while events were at hand that may name them
    cdef uint32_t owed       # streams of such connections that are still to be freed
    cdef int epoll
    cdef int wake            # eventfd: something is in another thread's hand for this loop
    cdef int listening       # the caller's socket while `serve` runs
    cdef int accepting       # it is in epoll
    cdef int spare           # closed for a moment to accept and refuse when no descriptor is left
    cdef int local           # the socket is a Unix one: who may enter is judged by uid and gid
    cdef uint32_t group      # gid that may enter
    cdef int ready           # health; set by any thread
    cdef int stopping        # `stop` was called; set by any thread
    cdef int64_t grace_ns    # of it
    cdef int64_t notice_ns   # of it: how long a peer may take to hear that the end is near
    cdef int64_t stop_at_ns  # when what is open is closed; 0: not stopping
    cdef int secure          # mutual TLS
    cdef bytes _spiffe_id    # whom the Unix socket belongs to
    cdef const char *_spiffe_id_p
    cdef uint32_t _spiffe_id_n

    cdef int _memory(self, size_t arena_bytes) except -1
    cdef int _join(self, int fd) except -1


cdef inline void loop_read_clock(Loop self) noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    self.door.now_ns = <int64_t> t.tv_sec * 1000000000 + t.tv_nsec
