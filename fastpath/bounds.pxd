"""Memory that must be checked before it is trusted: spans and cells that stay inside it."""
from fastpath.image cimport Span
from fastpath.rows cimport Table
from fastpath.value cimport Cell
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct View:            # an image, a delta, or a value made outside of one
    const uint8_t *base      # aligned to 8
    uint64_t size
    # Whose nodes and types the uids name: its header and sections have been checked. NULL: uids must be unresolved.
    const Table *table
    uint64_t budget          # cells that may still be visited: what is checked twice is paid twice
    const char *cause        # why a check failed: static text


# Whether `n` items of `width` bytes at offset `off`, aligned to `align`, are inside the view.
cdef bint view_has(View *view, uint64_t off, uint64_t n, uint32_t width, uint32_t align) noexcept nogil
# Whether `n` items of `width` bytes from `at` are inside the table: all of them in its base, or in its delta.
cdef bint view_reaches(View *view, uint32_t at, uint64_t n, uint32_t width) noexcept nogil
# Whether the text of a row is inside, and UTF-8, as protobuf strings of replies and records must be.
cdef bint view_text(View *view, const Span *span) noexcept nogil
# Whether the uid of node `index` is inside, carries its hash, and says so itself.
cdef bint view_node_uid(View *view, uint32_t index) noexcept nogil
# Whether the uid at offset `off` is inside, carries its hash, and is resolved as the view asks.
cdef bint view_uid(View *view, uint64_t off) noexcept nogil
# Whether the cell (itself inside) and all it names are inside, in order, and nested VALUE_DEPTH_MAX deep at most.
cdef bint view_cell(View *view, const Cell *cell, uint32_t depth) noexcept nogil
