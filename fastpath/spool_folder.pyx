"""The folder of a journal: files that are replaced as a whole, and the small ones beside the segments.

    journal   identity: JSON, and on a second line its CRC32C
    cursor    what upstream has acknowledged, the same
    floor     first sequence of the newest segment that has a name, 20 digits, and its CRC32C
"""
import json
import os

from fastpath.disk cimport disk_error, disk_open, disk_sync, disk_write

from fastpath.frames import crc32c

from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport rename
from posix.fcntl cimport O_CREAT, O_DIRECTORY, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
from posix cimport unistd


def checked(str text not None):
    cdef bytes line = text.encode()
    return b"%s\n%08x\n" % (line, crc32c(line))


def unchecked(bytes data not None):
    line, crc = data.splitlines()
    if int(crc, 16) != crc32c(line):
        raise ValueError("the checksum does not fit")
    return line.decode()


def read_checked(path):
    if not path.is_file():
        return None
    try:
        fields = json.loads(unchecked(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


FLOOR_BYTES = len(checked(f"{0:020d}"))


cdef class SpoolFolder:
    def __cinit__(self):
        self.names = self.floor_file = -1

    def __init__(self, directory):
        cdef bytes floor = os.fsencode(directory / "floor")
        self.path = os.fsencode(directory) + b"/"
        self.names = disk_open(self.path, O_RDONLY | O_DIRECTORY)
        if self.names < 0:
            raise disk_error(self.path)
        if os.path.lexists(floor) and not os.path.isfile(floor):
            # Opening a pipe would wait for ever.
            raise OSError(f"`{directory}/floor` is not a regular file; move it away")
        self.floor_file = disk_open(floor, O_RDWR | O_CREAT | <int> os.O_NOFOLLOW)
        if self.floor_file < 0:
            raise disk_error(floor)

    def __dealloc__(self):
        self.close()

    cpdef close(self):
        if self.floor_file >= 0:
            unistd.close(self.floor_file)
        if self.names >= 0:
            unistd.close(self.names)
        self.floor_file = self.names = -1

    cdef int sync(self) except -1:
        cdef int failed
        with nogil:
            failed = disk_sync(self.names)
        if failed:
            raise disk_error(self.path)
        return 0

    cdef int replace(self, bytes path, bytes data) except -1:
        cdef bytes room = self.path + b"replacing.tmp"
        cdef const char *made = room
        cdef const char *name = path
        cdef const uint8_t *p = <const uint8_t *> <const char *> data
        cdef size_t n = <size_t> len(data)
        cdef int fd
        cdef int failed = -1
        with nogil:
            fd = disk_open(made, O_WRONLY | O_CREAT | O_TRUNC)
            if fd >= 0:
                failed = disk_write(fd, p, n, 0) or disk_sync(fd)
        if failed:
            error = disk_error(room)
            if fd >= 0:
                unistd.close(fd)
            raise error
        with nogil:
            unistd.close(fd)
            failed = rename(made, name)
        if failed:
            raise disk_error(path)
        return self.sync()

    cdef int put_floor(self, uint64_t sequence) except -1:
        # In place, and not on disk when this returns: each segment has one, and it is no more than a hint of one that
        # is missing. Always as long, and well within a sector, so that a power cut leaves the old one or the new one.
        cdef bytes line = checked(f"{sequence:020d}")
        if disk_write(self.floor_file, <const uint8_t *> <const char *> line, <size_t> len(line), 0):
            raise disk_error(self.path + b"floor")
        return 0

    @property
    def floor(self):
        try:
            return int(unchecked(os.pread(self.floor_file, FLOOR_BYTES + 1, 0)))
        except ValueError:
            return 0

    def write_over(self, path, bytes data not None):
        self.replace(os.fsencode(path), data)

    def write(self, str name not None, dict fields not None):
        self.replace(self.path + name.encode(), checked(json.dumps(fields, sort_keys=True)))
