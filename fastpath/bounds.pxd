"""Memory that must be checked before it is trusted: spans and cells that stay inside it."""
from fastpath.image cimport Header
from fastpath.value cimport Cell, Uid
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct View:            # an image, or a value made outside of one
    const uint8_t *base      # aligned to 8
    uint64_t size
    const Header *header     # of the image whose nodes and types the uids name; NULL: uids must be unresolved
    uint64_t budget          # cells that may still be visited: what is checked twice is paid twice
    const char *cause        # why a check failed: static text


# Whether `n` items of `width` bytes at offset `off`, aligned to `align`, are inside the view.
cdef bint view_has(View *view, uint64_t off, uint64_t n, uint32_t width, uint32_t align) noexcept nogil
# Whether the uid at offset `off` is inside, carries its hash, and is resolved as the view asks. `index` is the node it
# must be, or UID_UNKNOWN for whatever it says itself.
cdef bint view_uid(View *view, uint64_t off, uint32_t index) noexcept nogil
# Whether the cell (itself inside) and all it names are inside, in order, and nested VALUE_DEPTH_MAX deep at most.
cdef bint view_cell(View *view, const Cell *cell, uint32_t depth) noexcept nogil
