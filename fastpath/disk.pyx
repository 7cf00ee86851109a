"""What the journal asks of the kernel about the memory and the files behind its segments."""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t

import os

cdef extern from * nogil:
    """
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
    """
    enum: MADV_POPULATE_WRITE
    enum: MADV_DONTNEED
    int disk_in_place(const char *path)
    int madvise(void *p, size_t n, int advice)

cdef extern from "<fcntl.h>" nogil:
    unsigned int SYNC_FILE_RANGE_WRITE
    int sync_file_range(int fd, int64_t at, int64_t n, unsigned int flags)


cdef bint disk_populate(uint8_t *p, size_t n) noexcept nogil:
    return madvise(p, n, MADV_POPULATE_WRITE) == 0


cdef void disk_let_go(uint8_t *p, size_t n) noexcept nogil:
    madvise(p, n, MADV_DONTNEED)


cdef void disk_write_behind(int fd, size_t at, size_t n) noexcept nogil:
    sync_file_range(fd, <int64_t> at, <int64_t> n, SYNC_FILE_RANGE_WRITE)


def overwrites_in_place(str path not None):
    cdef bytes name = os.fsencode(path)
    cdef int found = disk_in_place(name)
    if found < 0:
        raise OSError(errno, os.strerror(errno), path)
    return bool(found)
