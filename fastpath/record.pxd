"""The journal record of one decision (remit.decisions.v1.Record), encoded natively."""
from fastpath.spending cimport Settled
from fastpath.decide cimport Authority, Decision, Peer
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.wire cimport Out, Text
from libc.stdint cimport int64_t, uint64_t


cdef enum:
    RECORD_BYTES_MAX = 65536    # room that always suffices for record_encode


# `peer`, `table` and `authority` may be NULL. Texts are cut at their caps and made valid UTF-8; out.failed only when
# out.cap is less than RECORD_BYTES_MAX.
cdef void record_encode(
    Out *out, const Peer *peer, const Request *request, const Table *table, const Authority *authority,
    const Decision *decision) noexcept nogil
# The Event record of a report: what it says became of the call `evaluation`, and what that changes.
cdef void record_settled(
    Out *out, int64_t unix_ns, uint64_t generation, uint64_t epoch, Text evaluation, bint executed,
    const Settled *changes, int n) noexcept nogil
