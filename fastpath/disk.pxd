"""What the journal asks of the kernel about the memory and the files behind its segments."""
from libc.stdint cimport uint8_t, uint64_t


# Make pages of a shared mapping present and writable, as a first write to each would; `p` is a multiple of a page.
# False when the kernel (before Linux 5.14) or the file does not let us: then the writes themselves do it.
cdef bint disk_populate(uint8_t *p, size_t n) noexcept nogil
# Begin to write `n` bytes of a file from `at` to its disk, and wait for none of it. What fails, or is not begun, the
# sync that follows tells.
cdef void disk_write_behind(int fd, size_t at, size_t n) noexcept nogil

# Where something can fail, -1 with `errno` set says that it did; a signal in between is no failure.

# A descriptor that no other program inherits; files that are made are for their owner alone.
cdef int disk_open(const char *path, int flags) noexcept nogil
# All `n` bytes, from `at` of the file.
cdef int disk_write(int fd, const uint8_t *p, size_t n, uint64_t at) noexcept nogil
# All `n` bytes and `m` behind them, from `at` of the file; in one call, if the kernel takes them.
cdef int disk_write_both(int fd, const uint8_t *p, size_t n, const uint8_t *q, size_t m, uint64_t at) noexcept nogil
# All that was written to this file, or to the names of this directory, is on disk when this returns.
cdef int disk_sync(int fd) noexcept nogil
# The same, but for what is only about the file, such as when it was written.
cdef int disk_sync_data(int fd) noexcept nogil
# Read `n` bytes from `at` of a file into the kernel's memory alone, which takes large pieces of it for that, where a
# write in small ones would take small ones. What fails is read when it is needed.
cdef void disk_read_through(int fd, uint64_t at, size_t n) noexcept nogil
# The first `n` bytes of a file have blocks, so that writing them cannot fail for want of space.
cdef int disk_allocate(int fd, uint64_t n) noexcept nogil
# Whether no other descriptor of the file is open anywhere: only then is a write lease given (fcntl(2)).
cdef bint disk_has_alone(int fd) noexcept nogil
# Whether a file of `n` bytes may be written over: it has all its blocks and no second name, and a block that is written
# over needs no new one, so that a full disk cannot make it fail (ext4, XFS, tmpfs; file systems that copy on write do,
# of others we do not know).
cdef int disk_serves_again(const char *path, uint64_t n) noexcept nogil
# What `errno` says, about this file.
cdef object disk_error(bytes path)
