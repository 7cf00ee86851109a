"""The canonical request at its start: nothing known, every column absent."""
from fastpath.columns cimport columns_absent
from fastpath.value cimport KIND_RECORD

from libc.string cimport memset


cdef void request_init(Request *request) noexcept nogil:
    memset(request, 0, sizeof(Request))
    columns_absent(request.columns)
    request.extras.kind = KIND_RECORD
