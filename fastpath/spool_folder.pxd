"""The folder of a journal, of the process that writes to it."""
from libc.stdint cimport uint64_t


cdef class SpoolFolder:
    cdef readonly bytes path    # ends with "/"
    cdef int names              # descriptor of the directory
    cdef int floor_file

    # Have on disk what was made, renamed and removed here.
    cdef int sync(self) except -1
    # Replace a file as a whole; it is on disk when this returns.
    cdef int replace(self, bytes path, bytes data) except -1
    cpdef close(self)
    cdef int put_floor(self, uint64_t sequence) except -1
