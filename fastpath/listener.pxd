"""A native door: threads with an epoll loop each, from the listening socket to the decision without Python."""
from fastpath.admission cimport Admission
from fastpath.held cimport Slot
from fastpath.http2 cimport Door
from fastpath.lane cimport Lane
from fastpath.strangers cimport Strangers


cdef class Listener:
    cdef list _loops         # of Loop
    cdef Door **_doors       # owned; of the loops, in their order
    cdef Admission _admission
    cdef Slot _identity
    cdef Slot _peps
    cdef readonly Lane lane  # calls of this door for Python
    cdef readonly Strangers strangers
    cdef int _serving
