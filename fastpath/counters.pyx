"""Decision counts and latency by door. Relaxed atomic adds: readers see each figure whole, not all at one moment."""
from fastpath.decide cimport Decision

from fastpath.decide import Outcome
from fastpath.request import Door

cdef extern from * nogil:
    """
    static inline void remit_add(uint64_t *p, uint64_t v) { __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
    static inline uint64_t remit_read(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    """
    void remit_add(uint64_t *p, uint64_t v)
    uint64_t remit_read(const uint64_t *p)

# Upper bounds of the latency buckets in nanoseconds.
BOUNDS_NS = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000,
             10_000_000, 20_000_000, 50_000_000, 100_000_000)

# A door more needs a row more: counters_view would read past the end.
assert max(Door) < DOORS

cdef uint64_t bounds[BUCKETS - 1]
for _i, _bound in enumerate(BOUNDS_NS):
    bounds[_i] = _bound


cdef void counters_bump(uint64_t *counter) noexcept nogil:
    remit_add(counter, 1)


cdef void counters_add(Counters *c, int door, const Decision *decision) noexcept nogil:
    cdef uint64_t ns = decision.latency_ns if decision.latency_ns > 0 else 0
    cdef int bucket = 0
    if door < 0 or door >= DOORS or decision.outcome >= OUTCOMES:
        return
    while bucket < BUCKETS - 1 and ns > bounds[bucket]:
        bucket += 1
    remit_add(&c.decisions[door][decision.outcome], 1)
    remit_add(&c.latency[door][bucket], 1)
    remit_add(&c.latency_sum_ns[door], ns)


def _label(member) -> str:
    return member.name.split("_", 1)[1].lower()


cdef dict counters_view(const Counters *c):
    """{"decisions": {(door, outcome): n}, "latency_ns": {door: (bounds, counts, sum)}, "replayed": n, ..}."""
    doors = {int(member): _label(member) for member in Door if int(member)}
    outcomes = {int(member): _label(member) for member in Outcome if int(member)}
    return {
        "decisions": {(door, outcome): remit_read(&c.decisions[i][j])
                      for i, door in doors.items() for j, outcome in outcomes.items()},
        "latency_ns": {door: (BOUNDS_NS, tuple(remit_read(&c.latency[i][k]) for k in range(BUCKETS)),
                              remit_read(&c.latency_sum_ns[i])) for i, door in doors.items()},
        "replayed": remit_read(&c.replayed),
        "malformed": remit_read(&c.malformed),
    }
