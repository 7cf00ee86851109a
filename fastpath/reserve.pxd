"""Memory of one loop: blocks that were given back before the heap is asked, and a reserve for when the heap has none.

A call takes and gives back some ten blocks, and finds them where the last one left them. They are kept for the next as
far as IDLE_BYTES_MAX, and as long as the loop has connections.

nghttp2 1.52 is left with items that it freed already when an allocation fails in the middle of a frame, and aborts when
the session is deleted. So what it asks for comes from a reserve when the heap fails, until the connection is closed,
which happens at the next look at `short_of`.
"""
from fastpath.c.nghttp2 cimport nghttp2_mem
from libc.stdint cimport uint8_t


cdef enum:
    STEP = 64                # sizes of blocks that are kept are multiples of it
    CLASSES = 32             # so many sizes
    IDLE_BYTES_MAX = 1 << 20


cdef struct Block:           # stands before every block
    size_t size_class        # its size in STEPs; 0: too large to be kept; RESERVED: of the reserve
    Block *next              # of those of its size that nobody has


cdef struct Reserve:
    uint8_t *base            # owned, RESERVE_BYTES
    size_t used              # from the start; back to 0 with the last block
    size_t live              # blocks that were handed out and not given back
    int short_of             # the heap failed since somebody looked
    Block *idle[CLASSES + 1]
    size_t idle_bytes


# Make room. 0, or 1 when memory is short.
cdef int reserve_open(Reserve *reserve) noexcept nogil
cdef void reserve_close(Reserve *reserve) noexcept nogil
# The allocator of sessions that belong to the reserve's thread.
cdef nghttp2_mem reserve_mem(Reserve *reserve) noexcept nogil
# Whether the heap failed since the last question.
cdef bint reserve_was_short(Reserve *reserve) noexcept nogil
# For the loop's own: NULL when the heap has nothing left. Blocks are given back to the Reserve that they are of.
cdef void *block_take(Reserve *reserve, size_t n) noexcept nogil
cdef void block_give(Reserve *reserve, void *p) noexcept nogil
# `p` (NULL: none) with room for `n` bytes, its first `held` kept; NULL, and `p` as it was, when there is none.
cdef void *block_grow(Reserve *reserve, void *p, size_t held, size_t n) noexcept nogil
# Give all that nobody has back to the heap.
cdef void reserve_trim(Reserve *reserve) noexcept nogil
