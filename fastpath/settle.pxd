"""What became of an allowed call: remit.authz.v1.ReportRequest in, ReportResponse out."""
from fastpath.wire cimport Out, Text
from libc.stdint cimport int64_t, uint8_t, uint32_t


cpdef enum ReportResult:     # as in remit.authz.v1.ReportResult
    REPORT_SETTLED = 1
    REPORT_UNKNOWN = 2


cdef struct Report:
    Text evaluation
    uint8_t executed
    int64_t cost             # -1: not said
    int64_t size             # bytes that the call sent; -1: not said
    uint32_t status
    uint8_t malformed


# Read a ReportRequest; 0, or 1 when the bytes are none. Texts are borrowed.
cdef int report_read(Text message, Report *out) noexcept nogil
cdef void report_reply(Out *out, int result) noexcept nogil
