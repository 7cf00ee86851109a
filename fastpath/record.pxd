"""The journal record of one decision (remit.decisions.v1.Record), encoded natively."""
from fastpath.decide cimport Authority, Decision, Peer
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.wire cimport Out


cdef enum:
    RECORD_BYTES_MAX = 65536    # room that always suffices for record_encode


# `peer`, `table` and `authority` may be NULL. Texts are cut at their caps and made valid UTF-8; out.failed only when
# out.cap is less than RECORD_BYTES_MAX.
cdef void record_encode(
    Out *out, const Peer *peer, const Request *request, const Table *table, const Authority *authority,
    const Decision *decision) noexcept nogil
