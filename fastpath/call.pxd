"""One call from received bytes to the bytes of its answer."""
from fastpath.counters cimport Counters
from fastpath.decide cimport Authority, Decision, Peer
from fastpath.envoy cimport CanonicalRules
from fastpath.journal cimport Journal
from fastpath.replay cimport Replay
from fastpath.reply cimport ReplyRules
from fastpath.request cimport Request
from fastpath.table cimport Table
from fastpath.value cimport Arena
from fastpath.wire cimport Out, Text
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef struct Call:            # one call in flight; everything it points to outlives it
    const Peer *peer
    const Table *table       # NULL while no generation is in force
    const void *rules        # of the Mapping in force
    Authority authority      # snapshot taken when the call started
    uint64_t revision        # of mapping and bundles, of the same moment
    Arena *arena
    uint8_t *record          # RECORD_BYTES_MAX bytes for the journal's record
    Out reply
    Request *request
    Decision decision
    int code                 # gRPC status; the reply is its message when it is not 0


cdef class Pdp:
    cdef Authority live
    cdef Counters counters_
    cdef CanonicalRules canonical
    cdef ReplyRules reply_rules
    cdef int64_t budget_ns
    cdef uint64_t revision   # grows with every mapping and bundle change
    cdef Replay replay
    cdef Journal journal     # or None: nothing is recorded (benches of the decision alone)
    cdef bint has_journal
    cdef object _generation
    cdef object _mapping
    cdef bytes _not_ready
    cdef list _scratch       # idle Scratch objects, one per call in flight at the peak
    cdef size_t arena_bytes
    cdef dict _causes

    cdef tuple _answer(self, int door, bytes request, object peer)
    cdef int _count_cause(self, Text reason) except -1
