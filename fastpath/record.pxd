"""The journal record of one decision (remit.decisions.v1.Record), encoded natively."""
from fastpath.decide cimport Authority, Decision, Peer
from fastpath.request cimport Request
from fastpath.table cimport Table
from fastpath.wire cimport Out


cdef void record_encode(Out *out, const Peer *peer, const Request *request, const Table *table, const Authority *authority, const Decision *decision) noexcept nogil
