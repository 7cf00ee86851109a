"""Memory that is there when the heap has none, so that nghttp2 ends a connection in order instead of half-way.

nghttp2 1.52 is left with items that it freed already when an allocation fails in the middle of a frame, and aborts when
the session is deleted. So its allocations come from here: from the heap, and when that fails from a reserve of the loop
until the connection is closed, which happens at the next look at `short_of`.
"""
from fastpath.c.nghttp2 cimport nghttp2_mem
from libc.stdint cimport uint8_t


cdef struct Reserve:
    uint8_t *base            # owned, RESERVE_BYTES
    size_t used              # from the start; back to 0 with the last block
    size_t live              # blocks that were handed out and not given back
    int short_of             # the heap failed since somebody looked


# Make room. 0, or 1 when memory is short.
cdef int reserve_open(Reserve *reserve) noexcept nogil
cdef void reserve_close(Reserve *reserve) noexcept nogil
# The allocator of sessions that belong to the reserve's thread.
cdef nghttp2_mem reserve_mem(Reserve *reserve) noexcept nogil
# Whether the heap failed since the last question.
cdef bint reserve_was_short(Reserve *reserve) noexcept nogil
