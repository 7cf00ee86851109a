"""The segment files of a journal: those that have a name, those that are written to, those that serve again.

What is done once per segment comes between calls, when the caches are full of theirs and each step costs many times
what it costs in a row: so it is compiled, asks the kernel by itself, and knows what is there without listing the
folder.
"""
import os

import cython

from fastpath.disk cimport (
    disk_allocate,
    disk_error,
    disk_has_alone,
    disk_open,
    disk_serves_again,
    disk_sync,
    disk_write,
)
from fastpath.frames cimport END_BYTES

from fastpath.frames import frame, gap_record

from libc.errno cimport ENOENT, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport rename
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDWR
from posix.unistd cimport close, ftruncate, link, unlink

CAUSE_DROPPED = "dropped: the journal reached its cap"
GAP_ROOM = 256          # at least what a segment with nothing but such a Gap has
WHOLE = <size_t> -1     # no end to cut a segment at


cdef int remove(bytes path) except -1:
    """Remove a file that somebody may have removed by hand, to make room."""
    if unlink(path) and errno != ENOENT:
        raise disk_error(path)
    return 0


cdef int move(bytes old, bytes new) except -1:
    cdef const char *was = old
    cdef const char *name = new
    cdef int failed
    with nogil:
        failed = rename(was, name)
    if failed:
        raise disk_error(old)
    return 0


@cython.final
cdef class Named:
    pass


cdef Named named(bytes path, uint64_t first, uint64_t size):
    cdef Named made = Named.__new__(Named)
    made.path, made.first_sequence, made.size = path, first, size
    return made


@cython.final
cdef class Opened:
    def __cinit__(self):
        self.file = -1

    def __dealloc__(self):
        self.let_go()

    cdef void let_go(self) noexcept:
        with nogil:
            if self.file >= 0:
                close(self.file)
        self.file = -1


@cython.final
cdef class SegmentFiles:
    def __init__(self, SpoolFolder folder not None, bytes header not None, size_t segment_bytes, uint64_t cap_bytes,
                 bint durable):
        self.folder = folder
        self.header = header
        self.size = segment_bytes
        self.cap_bytes = cap_bytes
        self.durable = durable
        self.held = []
        self.opened = {}
        self.reuse = []

    def put_held(self, segments):
        self.held = [named(os.fsencode(one.path), one.first_sequence, one.size) for one in segments]

    def put_size(self, path, uint64_t size):
        cdef Named segment
        for segment in self.held:
            if segment.path == os.fsencode(path):
                segment.size = size

    # ------------------------------------------------------------------ segments that are written to

    cpdef Opened create(self):
        cdef Opened made = Opened.__new__(Opened)
        cdef bytes head = self.header + bytes(END_BYTES)
        cdef bytes path, was
        cdef const char *name
        cdef const char *old
        cdef const uint8_t *p = <const uint8_t *> <const char *> head
        cdef size_t n = <size_t> len(head)
        cdef bint moved = False
        cdef int failed
        self.last_id += 1
        made.id = self.last_id
        path = was = b"%s%06d.spare" % (self.folder.path, made.id)
        made.fresh = not self.take_reuse(made)
        if not made.fresh:
            was = made.path
        made.path = path
        name, old = path, was
        with nogil:
            if made.file < 0:
                made.file = disk_open(old, O_RDWR | O_CREAT | O_EXCL)
            failed = made.file < 0
            # The end comes before the name: what the file held before is never read as a segment.
            failed = failed or disk_allocate(made.file, self.size) or disk_write(made.file, p, n, 0)
            failed = failed or (self.durable and disk_sync(made.file))
            if not failed:
                failed = rename(old, name)
                moved = not failed
            failed = failed or (self.durable and disk_sync(self.folder.names))
        if failed:
            error = disk_error(path)
            if made.file >= 0:
                remove(path if moved else was)
            raise error
        self.opened[made.id] = made
        return made

    cdef int take_reuse(self, Opened made) except -1:
        """Open a file to write over, which nobody else has open: whoever still reads it would read other records.

        Whether there is one; its path is then `made.path`.
        """
        cdef bytes path
        cdef const char *name
        cdef bint alone
        while self.reuse:
            path = self.reuse[len(self.reuse) - 1]
            name = path
            with nogil:
                made.file = disk_open(name, O_RDWR)
                alone = made.file >= 0 and disk_has_alone(made.file)
            if made.file < 0 and errno != ENOENT:
                raise disk_error(path)
            self.reuse.pop()
            if alone:
                made.path = path
                return True
            if made.file >= 0:
                close(made.file)
                made.file = -1
                remove(path)
        return False

    cpdef name(self, uint64_t number, uint64_t first):
        cdef Opened one = self.opened[number]
        cdef bytes path
        if one.named:
            return
        path = b"%s%020d.seg" % (self.folder.path, first)
        move(one.path, path)
        one.path, one.named = path, True
        self.held.append(named(path, first, self.size))
        self.folder.put_floor(first)

    cpdef release(self, uint64_t number, size_t end=WHOLE):
        cdef Opened one = self.opened.pop(number)
        cdef int failed = 0
        if end != WHOLE and one.named:
            failed = ftruncate(one.file, <ssize_t> end)
        if failed:
            raise disk_error(one.path)
        one.let_go()
        if not one.named:
            remove(one.path)

    def let_go_of_all(self, bint clean):
        cdef Opened one
        for one in self.opened.values():
            one.let_go()
            if clean and not one.named:
                remove(one.path)
        self.opened.clear()
        for path in self.reuse if clean else []:
            remove(path)
        self.reuse.clear()

    # ------------------------------------------------------------------ room

    cpdef uint64_t bytes_held(self):
        cdef Named segment
        cdef Opened one
        cdef uint64_t held = 0
        for segment in self.held:
            held += segment.size
        for one in self.opened.values():
            if not one.named:
                held += self.size
        return held

    cpdef bint has_room(self):
        cdef uint64_t held = self.bytes_held()
        # The Gap in the place of what was dropped comes on top: under a cap of two segments nothing else can go for it.
        if self.held and (<Named> self.held[0]).size <= GAP_ROOM:
            held -= (<Named> self.held[0]).size
        # What serves again was counted when it held records.
        return bool(self.reuse) or held + self.size <= self.cap_bytes

    def look_again(self):
        cdef Py_ssize_t before = len(self.held)
        self.held = [segment for segment in self.held if os.path.exists((<Named> segment).path)]
        return len(self.held) < before

    cpdef keep_for_reuse(self, int count):
        self.reused_max = count
        while len(self.reuse) > count:
            remove(self.reuse.pop(0))

    cdef bint has_open(self, bytes path):
        cdef Opened one
        for one in self.opened.values():
            if one.path == path:
                return True
        return False

    cdef bytes keep(self, bytes path):
        """Where the file of a segment that is not needed any more may wait for its reuse, or None when it must go."""
        if len(self.reuse) >= self.reused_max or self.has_open(path) or disk_serves_again(path, self.size) <= 0:
            return None
        self.last_id += 1
        return b"%s%06d.reuse" % (self.folder.path, self.last_id)

    cdef int discard(self, bytes path) except -1:
        """Take a segment's file out of the journal."""
        cdef bytes kept = self.keep(path)
        if kept is None:
            return remove(path)
        move(path, kept)
        self.reuse.append(kept)
        return 0

    cpdef bint drop_oldest(self, uint64_t acknowledged) except? False:
        cdef Named oldest, segment
        cdef Py_ssize_t count = 0
        cdef uint64_t first, last
        cdef uint64_t freed = 0
        cdef bytes gap, kept
        while count < len(self.held) - 1 and freed < self.size:
            segment = self.held[count]
            if self.has_open(segment.path):
                break
            freed += segment.size
            count += 1
        if not count:
            return False
        oldest = self.held[0]
        first = max(oldest.first_sequence, acknowledged + 1)
        last = (<Named> self.held[count]).first_sequence - 1
        # Replacing comes first: a crash in between leaves records that the Gap already covers, which readers skip.
        gap = self.header + frame(self.header, last, gap_record(first, last, CAUSE_DROPPED))
        if freed <= <uint64_t> len(gap):
            return False
        kept = self.keep(oldest.path)
        if kept is not None and link(oldest.path, kept):
            raise disk_error(kept)
        try:
            self.folder.replace(oldest.path, gap)
        except OSError:
            if kept is not None:
                remove(kept)
            raise
        if kept is not None:
            self.reuse.append(kept)
        oldest.size = <uint64_t> len(gap)
        while count > 1:
            self.discard((<Named> self.held[1]).path)
            del self.held[1]
            self.dropped_segments += 1
            count -= 1
        self.dropped_segments += 1
        return True

    cpdef discard_below(self, uint64_t sequence):
        while len(self.held) > 1 and (<Named> self.held[1]).first_sequence <= sequence + 1:
            self.discard((<Named> self.held[0]).path)
            del self.held[0]
