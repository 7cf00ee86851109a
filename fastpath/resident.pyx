"""Keeps a mapped rule table in memory: a call must not wait for a disk because its rows were not asked for lately."""
import errno as _errno

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno
from libc.stdint cimport uintptr_t


cdef extern from "sys/mman.h":
    enum: MADV_HUGEPAGE
    int madvise(void *addr, size_t length, int advice) nogil
    int mlock(const void *addr, size_t length) nogil


cdef extern from "unistd.h":
    enum: _SC_PAGESIZE
    long sysconf(int name) nogil


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
