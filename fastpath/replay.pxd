"""Repeated requests: the same caller, request id and content get the same answer, and count once."""
from fastpath.live_state cimport LiveState
from fastpath.spending cimport Grounds
from fastpath.wire cimport Out
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cpdef enum ReplayFound:
    REPLAY_NEW = 0          # decide it; replay_answer or replay_forget must follow
    REPLAY_ANSWERED = 1     # the earlier answer was written
    REPLAY_PENDING = 2      # the first call with this id is still being decided
    REPLAY_REUSED = 3       # the id was used for another content
    REPLAY_UNTRACKED = 4    # decide it; there was no room to remember it


cdef struct ReplayKey:
    uint8_t caller[32]      # SHA-256 over SPIFFE ID, request id and credential
    uint8_t content[32]     # SHA-256 of the request's bytes
    uint64_t generation     # an answer holds while generation, epoch, changes and revision are the same
    uint64_t epoch
    uint64_t changes        # of the live view: a change that no disk took has no epoch, and counts all the same
    uint64_t revision       # of mapping and bundles


cdef class Replay:
    cdef void *memory       # Store (replay.pyx)
    # What `live` does not stand behind any more is new.
    cdef int begin(self, const ReplayKey *key, int64_t now_ns, LiveState *live, Out *reply) noexcept nogil
    cdef void answer(self, const ReplayKey *key, const Grounds *grounds, const Out *reply) noexcept nogil
    cdef void forget(self, const ReplayKey *key) noexcept nogil
