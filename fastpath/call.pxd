"""One call from received bytes to the bytes of its answer."""
from fastpath.authority cimport Live
from fastpath.bells cimport BellRoom, Bells, Ear
from fastpath.causes cimport Causes
from fastpath.counters cimport Counters
from fastpath.decide cimport Authority, Decision, Peer
from fastpath.envoy cimport CanonicalRules
from fastpath.held cimport Slot
from fastpath.journal cimport Journal
from fastpath.mapping cimport Mapping
from fastpath.replay cimport Replay
from fastpath.reply cimport ReplyRules
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.table cimport Generation
from fastpath.value cimport Arena
from fastpath.wire cimport Out, Text
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef enum:
    REPLY_BYTES = 16384      # room for the answer to one question
    BATCH_MAX = 64           # questions in one BatchCheck
    CALL_REPLY_BYTES = BATCH_MAX * REPLY_BYTES   # room for any answer
    NOTICE_BYTES = 64        # room for any notice
    DOOR_STREAM = 64         # beside those of Door: a question of a CheckStream, recorded as DOOR_CHECK


cdef struct Force:           # what a call takes at its start, so that one answer never mixes two states
    const Table *table       # NULL while no generation is in force
    const void *rules        # of the Mapping in force, or NULL
    Authority authority
    uint64_t revision


cdef class InForce:
    cdef Force force
    cdef Generation _generation
    cdef Mapping _mapping
    cdef Live _live
    cdef bytes _not_ready


cdef struct Call:            # one call in flight; everything it points to outlives it
    const Peer *peer
    int64_t now_ns           # monotonic, when its bytes were handed to us; 0: when it is begun
    const Table *table       # NULL while no generation is in force
    const void *rules        # of the Mapping in force
    Authority authority      # snapshot taken when the call started
    uint64_t revision        # of mapping and bundles, of the same moment
    uint64_t changes         # of live authority, read before anything was decided
    Arena *arena
    uint8_t *record          # RECORD_BYTES_MAX bytes for the journal's record
    Out reply
    Request *request
    Decision decision
    int code                 # gRPC status; the reply is its message when it is not 0
    bint several             # one of several answers: ERROR is an answer too, and no status


cdef class Pdp:
    cdef Authority live
    cdef Counters counters_
    cdef CanonicalRules canonical
    cdef ReplyRules reply_rules
    cdef int64_t budget_ns
    cdef uint64_t revision   # grows when another mapping, bundle or live view comes in force
    cdef Replay replay
    cdef Journal journal     # or None: nothing is recorded (benches of the decision alone)
    cdef bint has_journal
    cdef Slot in_force       # of InForce; never empty
    cdef Bells bells         # rung by what comes in force
    cdef Causes causes
    cdef Generation _generation
    cdef Mapping _mapping
    cdef Live _live          # or None: no authority is enforced
    cdef bytes _not_ready
    cdef list _scratch       # idle Scratch objects, one per call in flight at the peak
    cdef size_t arena_bytes

    cdef int _put(self) except -1
    cdef tuple _answer(self, int door, bytes request, object peer)


cdef class StreamEar:        # of one CheckStream at the grpcio door
    cdef Pdp _pdp
    cdef BellRoom _room
    cdef Ear _ear
    cdef bint _begun
    cdef bint _open


# Decide one call at `door` (fastpath.request Door) for any thread, with or without the GIL. It arrived at `now_ns` of
# the monotonic clock; 0: now. `arena` is empty and the caller's own, `reply` has room for CALL_REPLY_BYTES and `record`
# for RECORD_BYTES_MAX. Afterwards c.code is the gRPC status and c.reply the answer, or the status message when the code
# is not 0; both live in `reply` and `arena`.
cdef void call_answer(
    Pdp pdp, int door, Text message, const Peer *peer, int64_t now_ns, Arena *arena, uint8_t *reply, uint8_t *record,
    Call *c
) noexcept nogil
# Why `peer` may not ask now; empty when it may.
cdef Text call_peer_refusal(Pdp pdp, const Peer *peer) noexcept nogil
# A notice of what the ear has not heard yet, into `out`; false when there is nothing. `first`: of the stream's begin,
# whatever there is.
cdef bint call_notice(Pdp pdp, Ear *ear, bint first, Out *out) noexcept nogil
