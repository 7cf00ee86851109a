"""Fronts: small files whose memory calls write their records to, in turns and for as long as the journal is open.

What a process had written to them outlives it, so a start looks for what the segments do not have yet.
"""
import contextlib
import os

import cython

from fastpath.disk cimport disk_allocate, disk_error, disk_open, disk_populate, disk_write
from fastpath.frames cimport END_BYTES

from libc.stdint cimport uint8_t
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDWR
from posix.mman cimport MAP_FAILED, MAP_SHARED, MS_SYNC, PROT_READ, PROT_WRITE, mmap, msync, munmap
from posix.unistd cimport close

SUFFIX = ".front"


@cython.final
cdef class _Front:
    cdef uint8_t *map
    cdef size_t size
    cdef bytes path

    def __dealloc__(self):
        if self.map != NULL:
            munmap(self.map, self.size)


@cython.final
cdef class FrontFiles:
    def __init__(self, SpoolFolder folder not None, bytes header not None, size_t size):
        self.folder, self.header, self.size = folder, header, size
        self.made = []

    cdef uint8_t *create(self) except NULL:
        cdef _Front made = _Front.__new__(_Front)
        cdef bytes head = self.header + bytes(END_BYTES)
        cdef bytes path = b"%s%03d.front" % (self.folder.path, len(self.made))
        cdef const char *name = path
        cdef const uint8_t *p = <const uint8_t *> <const char *> head
        cdef size_t n = <size_t> len(head)
        cdef void *map = MAP_FAILED
        cdef int file
        cdef int failed
        with nogil:
            file = disk_open(name, O_RDWR | O_CREAT | O_EXCL)
            # INVARIANT (fallocate): no block is missing under memory that calls write to.
            failed = file < 0 or disk_allocate(file, self.size) or disk_write(file, p, n, 0)
            if not failed:
                map = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                failed = map == MAP_FAILED
        if failed:
            error = disk_error(path)
            if file >= 0:
                close(file)
                os.unlink(path)
            raise error
        close(file)
        made.map, made.size, made.path = <uint8_t *> map, self.size, path
        with nogil:
            disk_populate(made.map, self.size)
        self.made.append(made)
        return made.map

    cdef bint sync(self):
        """Have on disk what they hold; whether it is."""
        cdef _Front one
        cdef int failed = 0
        for one in self.made:
            with nogil:
                failed |= msync(one.map, one.size, MS_SYNC)
        return not failed

    def close(self, bint empty):
        """Unmap all; with `empty` they hold nothing that the segments lack, and are removed."""
        for one in self.made if empty else []:
            with contextlib.suppress(FileNotFoundError):   # somebody made room by hand
                os.unlink((<_Front> one).path)
        self.made.clear()
