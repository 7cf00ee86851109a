"""What the journal asks of the kernel about the memory and the files behind its segments."""
import os

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from posix.fcntl cimport F_UNLCK, F_WRLCK, O_CLOEXEC, fcntl, open
from posix.stat cimport stat, struct_stat
from posix.uio cimport iovec, pwritev
from posix.unistd cimport fdatasync, fsync, pread, pwrite

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <sys/mman.h>
    #include <sys/vfs.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif

    /* Of file systems that write over a block where it is (linux/magic.h); 0 when that is not known, -1 on error. */
    static int disk_in_place(const char *path) {
        struct statfs about;
        if (statfs(path, &about)) return -1;
        switch ((unsigned long) about.f_type) {
        case 0xEF53:      /* ext4 */
        case 0x58465342:  /* XFS */
        case 0x01021994:  /* tmpfs */
            return 1;
        }
        return 0;
    }

    static int disk_blocks(int fd, off_t n) {
        int cause;
        do cause = posix_fallocate(fd, 0, n); while (cause == EINTR);
        if (!cause) return 0;
        errno = cause;
        return -1;
    }
    """
    enum: MADV_POPULATE_WRITE
    enum: F_SETSIG
    enum: F_SETLEASE
    enum: SIGURG
    int disk_in_place(const char *path)
    int disk_blocks(int fd, int64_t n)
    int madvise(void *p, size_t n, int advice)

cdef extern from "<fcntl.h>" nogil:
    unsigned int SYNC_FILE_RANGE_WRITE
    int sync_file_range(int fd, int64_t at, int64_t n, unsigned int flags)

cdef enum:
    MODE = 0o600
    BLOCK_BYTES = 512    # of st_blocks (inode(7))
    READ_BYTES = 16384   # read at once


cdef bint disk_populate(uint8_t *p, size_t n) noexcept nogil:
    return madvise(p, n, MADV_POPULATE_WRITE) == 0


cdef void disk_write_behind(int fd, size_t at, size_t n) noexcept nogil:
    sync_file_range(fd, <int64_t> at, <int64_t> n, SYNC_FILE_RANGE_WRITE)


cdef int disk_open(const char *path, int flags) noexcept nogil:
    cdef int fd = open(path, flags | O_CLOEXEC, MODE)
    while fd < 0 and errno == EINTR:
        fd = open(path, flags | O_CLOEXEC, MODE)
    return fd


cdef int disk_write(int fd, const uint8_t *p, size_t n, uint64_t at) noexcept nogil:
    cdef ssize_t done
    while n:
        done = pwrite(fd, p, n, <int64_t> at)
        if done < 0:
            if errno == EINTR:
                continue
            return -1
        p += done
        at += <uint64_t> done
        n -= <size_t> done
    return 0


cdef int disk_write_both(int fd, const uint8_t *p, size_t n, const uint8_t *q, size_t m, uint64_t at) noexcept nogil:
    cdef iovec[2] parts
    cdef ssize_t done
    parts[0].iov_base, parts[0].iov_len = <void *> p, n
    parts[1].iov_base, parts[1].iov_len = <void *> q, m
    done = pwritev(fd, parts, 2, <int64_t> at)
    if done == <ssize_t> (n + m):
        return 0
    if done < 0:
        if errno != EINTR:
            return -1
        done = 0
    if <size_t> done < n:
        if disk_write(fd, p + done, n - <size_t> done, at + <uint64_t> done):
            return -1
        done = <ssize_t> n
    return disk_write(fd, q + (<size_t> done - n), m - (<size_t> done - n), at + <uint64_t> done)


cdef int disk_sync(int fd) noexcept nogil:
    while fsync(fd):
        if errno != EINTR:
            return -1
    return 0


cdef int disk_sync_data(int fd) noexcept nogil:
    while fdatasync(fd):
        if errno != EINTR:
            return -1
    return 0


cdef void disk_read_through(int fd, uint64_t at, size_t n) noexcept nogil:
    cdef uint8_t[READ_BYTES] room
    cdef ssize_t got
    while n:
        got = pread(fd, room, min(<size_t> READ_BYTES, n), <int64_t> at)
        if got <= 0:
            return
        at += <uint64_t> got
        n -= <size_t> got


cdef int disk_allocate(int fd, uint64_t n) noexcept nogil:
    return disk_blocks(fd, <int64_t> n)


cdef bint disk_has_alone(int fd) noexcept nogil:
    # Whoever opens the file meanwhile breaks the lease, and the signal that then comes would else end the process.
    return (fcntl(fd, F_SETSIG, <int> SIGURG) == 0 and fcntl(fd, F_SETLEASE, <int> F_WRLCK) == 0
            and fcntl(fd, F_SETLEASE, <int> F_UNLCK) == 0)


cdef int disk_serves_again(const char *path, uint64_t n) noexcept nogil:
    cdef struct_stat about
    if stat(path, &about):
        return -1
    if about.st_size != <int64_t> n or <uint64_t> about.st_blocks * BLOCK_BYTES < n or about.st_nlink != 1:
        return 0
    return disk_in_place(path)


cdef object disk_error(bytes path):
    cdef int cause = errno
    return OSError(cause, os.strerror(cause), os.fsdecode(path))


def has_alone(int fd):
    return disk_has_alone(fd)
