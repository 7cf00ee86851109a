"""What one thread of a native door owns (loop.pxd); fastpath/rounds.pyx runs it."""
from fastpath.c.linux cimport (
    AF_UNIX, EFD_CLOEXEC, EFD_NONBLOCK, EPOLLEXCLUSIVE, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, SOL_SOCKET, SO_DOMAIN,
    epoll_create1, epoll_ctl, epoll_event, eventfd, getsockopt, socklen_t,
)
from fastpath.call cimport CALL_REPLY_BYTES
from fastpath.http2 cimport http2_setup
from fastpath.record cimport RECORD_BYTES_MAX
from fastpath.reserve cimport reserve_close, reserve_open
from fastpath.turns cimport PIECE_MAX
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.unistd cimport close


cdef int _family(int fd) noexcept nogil:
    cdef int family = 0
    cdef socklen_t n = sizeof(int)
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &n)
    return family


cdef class PepList:

    def __init__(self, ids):
        cdef bytes name
        self._names = [one.encode() for one in ids]
        self.peps.ids = <Text *> calloc(len(self._names) or 1, sizeof(Text))
        if self.peps.ids == NULL:
            raise MemoryError
        for name in self._names:
            self.peps.ids[self.peps.count].p = name
            self.peps.ids[self.peps.count].n = <uint32_t> len(name)
            self.peps.count += 1

    def __dealloc__(self):
        free(self.peps.ids)


cdef class Loop:

    def __cinit__(self):
        self.epoll = self.wake = self.listening = self.spare = -1

    def __dealloc__(self):
        for fd in (self.wake, self.epoll, self.spare):
            if fd >= 0:
                close(fd)
        reserve_close(&self.door.reserve)
        free(self.arena.base)
        free(self.reply)
        free(self.record)
        free(self.inbox)
        free(self.outbox)

    cdef int _memory(self, size_t arena_bytes) except -1:
        self.arena.base = <uint8_t *> malloc(arena_bytes)
        self.arena.cap = arena_bytes
        self.reply = <uint8_t *> malloc(CALL_REPLY_BYTES)
        self.record = <uint8_t *> malloc(RECORD_BYTES_MAX)
        self.inbox = <uint8_t *> malloc(PIECE_MAX)
        self.outbox = <uint8_t *> malloc(OUTBOX)
        if self.arena.base == NULL or self.reply == NULL or self.record == NULL:
            raise MemoryError
        if self.inbox == NULL or self.outbox == NULL or reserve_open(&self.door.reserve) or http2_setup():
            raise MemoryError
        self.wake = self.door.room.wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.spare = open_file(b"/dev/null", O_RDONLY | O_CLOEXEC)
        if self.wake < 0 or self.epoll < 0:
            raise OSError(errno, "no descriptor is left for a listener")
        return 0

    cdef int _join(self, int fd) except -1:
        """Wait for connections on `fd` beside the other loops."""
        cdef epoll_event event
        cdef int failed
        self.listening = fd
        self.local = _family(fd) == AF_UNIX
        event.events = EPOLLIN | EPOLLEXCLUSIVE
        event.data.ptr = &self.listening
        failed = epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event)
        event.events = EPOLLIN
        event.data.ptr = &self.wake
        if failed or epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.wake, &event):
            raise OSError(errno, "cannot wait for the listening socket")
        self.accepting = 1
        return 0
