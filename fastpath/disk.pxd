"""The memory behind a mapped segment."""
from libc.stdint cimport uint8_t


# Make pages of a shared mapping present and writable, as a first write to each would; `p` is a multiple of a page.
# False when the kernel (before Linux 5.14) or the file does not let us: then the writes themselves do it.
cdef bint disk_populate(uint8_t *p, size_t n) noexcept nogil
# Have the `n` bytes from page-aligned `p` of a shared mapping no pages; what they hold stays in the file.
cdef void disk_let_go(uint8_t *p, size_t n) noexcept nogil
# Begin to write `n` bytes of a file from `at` to its disk, and wait for none of it. What fails, or is not begun, the
# sync that follows tells.
cdef void disk_write_behind(int fd, size_t at, size_t n) noexcept nogil
