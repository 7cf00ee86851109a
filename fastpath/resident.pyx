"""Keeps a mapped rule table in memory: a call must not wait for a disk because its rows were not asked for lately."""
import errno as _errno

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr


cdef extern from *:
    """
    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #endif
    """
    enum: MADV_POPULATE_READ


cdef extern from "sys/mman.h":
    enum: MADV_HUGEPAGE
    enum: MAP_SHARED
    enum: PROT_READ
    void *MAP_FAILED
    int madvise(void *addr, size_t length, int advice) nogil
    int mincore(void *addr, size_t length, unsigned char *pages) nogil
    int mlock(const void *addr, size_t length) nogil
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset) nogil
    int munmap(void *addr, size_t length) nogil


cdef extern from "fcntl.h":
    enum: POSIX_FADV_DONTNEED
    int posix_fadvise(int fd, long offset, long length, int advice) nogil


cdef extern from "unistd.h":
    enum: _SC_PAGESIZE
    long sysconf(int name) nogil


cdef enum:
    HUGE_PAGE_BYTES = 2097152


cdef bint in_memory(void *mapped, size_t size) noexcept nogil:
    """Whether all pages of a mapping are there; true as well when that is not to be known."""
    cdef size_t page = <size_t> sysconf(_SC_PAGESIZE)
    cdef size_t pages = (size + page - 1) // page
    cdef unsigned char *there = <unsigned char *> malloc(pages)
    cdef bint all_there = there is NULL or mincore(mapped, size, there) != 0 or memchr(there, 0, pages) is NULL
    free(there)
    return all_there


cdef bint fetched(int fd, size_t size) noexcept nogil:
    cdef void *mapped = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)
    cdef bint missing
    if mapped == MAP_FAILED:
        return False
    missing = not in_memory(mapped, size)
    if missing:
        # What is there in small pages would keep what is missing out of huge ones.
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)
        madvise(mapped, size, MADV_HUGEPAGE)
        # Unlike a read of the mapping, this is no SIGBUS where the file ends early.
        madvise(mapped, size, MADV_POPULATE_READ)
    munmap(mapped, size)
    return missing


def fetch(int fd, size_t size):
    """Read a large file of which something is not in memory, in huge pages where the system has them: in what has been
    read otherwise, each row that a call asks for costs a walk through page tables as well. Whether that was so. What
    cannot be read is left to whoever reads it next.
    """
    cdef bint missing
    if size < HUGE_PAGE_BYTES:
        return False
    with nogil:
        missing = fetched(fd, size)
    return bool(missing)


cdef int locked(uintptr_t start, size_t size) noexcept nogil:
    """0, or the error of mlock(2). What has to come from disk comes in huge pages where the system has them."""
    cdef uintptr_t page = <uintptr_t> sysconf(_SC_PAGESIZE)
    cdef uintptr_t first = start & ~(page - 1)
    size += start - first
    madvise(<void *> first, size, MADV_HUGEPAGE)  # a hint: what it refuses is as good in small pages
    return errno if mlock(<const void *> first, size) else 0


def keep(data not None):
    """Lock the pages of `data` (bytes-like, inside a mapping that whoever keeps `data` keeps) into memory until it is
    unmapped. Its size in bytes is charged to RLIMIT_MEMLOCK. Why that cannot be, as the name of an errno; empty: done.
    """
    cdef Py_buffer view
    cdef int failed
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    with nogil:
        failed = locked(<uintptr_t> view.buf, <size_t> view.len)
    PyBuffer_Release(&view)
    return _errno.errorcode.get(failed, str(failed)) if failed else ""
