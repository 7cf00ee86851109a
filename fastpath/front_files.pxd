"""The files behind the memory that calls write their records to. Under the journal's own lock."""
from libc.stdint cimport uint8_t

from fastpath.spool_folder cimport SpoolFolder


cdef class FrontFiles:
    cdef SpoolFolder folder
    cdef bytes header            # of each, as of a segment
    cdef size_t size             # of each
    cdef list made               # _Front

    # The mapping of one more, empty and with its pages ready; it stays mapped until `close`.
    cdef uint8_t *create(self) except NULL
    cdef bint sync(self)
