"""The segment files of a journal. Not thread-safe: the journal calls it under its own lock."""
from libc.stdint cimport uint64_t

from fastpath.spool_folder cimport SpoolFolder


cdef class Named:
    """A segment that has its name."""
    cdef readonly bytes path
    cdef readonly uint64_t first_sequence
    cdef readonly uint64_t size


cdef class Opened:
    """A segment that is written to, or will be."""
    cdef readonly int file       # its descriptor
    cdef readonly uint64_t id
    cdef bytes path
    cdef bint named
    cdef readonly bint fresh     # the file is new: it never held a segment

    cdef void let_go(self) noexcept


cdef class SegmentFiles:
    cdef SpoolFolder folder
    cdef bytes header            # of each segment
    cdef size_t size             # of a segment
    cdef uint64_t cap_bytes      # of all of them
    cdef bint durable            # they must survive a power cut
    cdef list held               # Named, in their order
    cdef dict opened             # id -> Opened
    cdef list reuse              # paths of files that serve again, the newest last
    cdef int reused_max
    cdef uint64_t last_id
    cdef readonly uint64_t dropped_segments

    cpdef Opened create(self)
    cpdef name(self, uint64_t number, uint64_t first)
    cpdef release(self, uint64_t number, size_t end=*)
    cpdef uint64_t bytes_held(self)
    cpdef bint has_room(self)
    cpdef keep_for_reuse(self, int count)
    cpdef bint drop_oldest(self, uint64_t acknowledged) except? False
    cpdef discard_below(self, uint64_t sequence)
    cdef int take_reuse(self, Opened made) except -1
    cdef bytes keep(self, bytes path)
    cdef int discard(self, bytes path) except -1
    cdef bint has_open(self, bytes path)
