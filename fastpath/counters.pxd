"""Decision counts and latency, kept natively: adding to them takes no lock and no Python."""
from fastpath.decide cimport Decision
from libc.stdint cimport uint64_t


cdef enum:
    DOORS = 7                # fastpath.request Door
    OUTCOMES = 5             # fastpath.decide Outcome
    BUCKETS = 16             # latency buckets, the last one without a bound


cdef struct Counters:
    uint64_t decisions[DOORS][OUTCOMES]
    uint64_t latency[DOORS][BUCKETS]
    uint64_t latency_sum_ns[DOORS]
    uint64_t replayed        # answers given again without a decision
    uint64_t malformed       # messages that did not decode


cdef void counters_add(Counters *c, int door, const Decision *decision) noexcept nogil
cdef void counters_bump(uint64_t *counter) noexcept nogil
cdef dict counters_view(const Counters *c)
