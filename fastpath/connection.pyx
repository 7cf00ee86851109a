"""One connection on its loop (connection.pxd): bytes from the socket to the session and back, its turn, its end."""
from fastpath.admission cimport Guest, admission_count, admission_enter, admission_leave
from fastpath.answers cimport answer_call
from fastpath.c.linux cimport (
    EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_DEL, EPOLL_CTL_MOD, MSG_NOSIGNAL, SHUT_WR, epoll_ctl, epoll_event, recv,
    shutdown,
)
from fastpath.held cimport Held, slot_enter, slot_leave
from fastpath.http2 cimport (
    CAUSE_CREDENTIALS, CAUSE_CROWD, CAUSE_DRAIN, CAUSE_HANDSHAKE, CAUSE_MEMORY, CAUSE_NONE, CAUSE_PEER,
    CAUSE_PROTOCOL, Conn, FRAME_ROOM, Stream, http2_close, http2_feed, http2_next, http2_open, http2_shed,
)
from fastpath.http2_out cimport http2_drain, http2_farewell, http2_over, http2_pull
from fastpath.line cimport line_add, line_drop
from fastpath.loop cimport Loop, OUTBOX, loop_read_clock
from fastpath.reserve cimport reserve_trim
from fastpath.tls cimport tls_end, tls_handshake, tls_pending, tls_read, tls_write
from fastpath.turns cimport LIGHT_BYTES, LIGHT_CALLS, PIECE_CALLS, PIECE_MAX, PIECE_RECORDS, Taken, lit_for, turn_took
from fastpath.verify cimport Trust
from fastpath.wire cimport Text
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.unistd cimport close

cdef extern from * nogil:
    """
    #include <sys/syscall.h>
    #include <unistd.h>

    /* recv and send without being points where a thread may be cancelled, which costs them two atomic steps each. */
    static inline ssize_t remit_recv(int fd, void *p, size_t n) {
        return syscall(SYS_recvfrom, fd, p, n, 0, NULL, NULL);
    }
    static inline ssize_t remit_send(int fd, const void *p, size_t n, int flags) {
        return syscall(SYS_sendto, fd, p, n, flags, NULL, 0);
    }
    """
    ssize_t remit_recv(int fd, void *p, size_t n)
    ssize_t remit_send(int fd, const void *p, size_t n, int flags)

cdef enum:
    ENDED = 8                # streams of a connection that is freed at once


cdef void _listen_for(Loop self, Conn *conn, bint writing) noexcept nogil:
    """While bytes of ours wait nothing more is read: a peer that does not take answers gets to ask nothing."""
    cdef epoll_event event
    if conn.writing == writing:
        return
    conn.writing = writing
    event.events = EPOLLOUT if writing else EPOLLIN | EPOLLRDHUP
    event.data.ptr = conn
    epoll_ctl(self.epoll, EPOLL_CTL_MOD, conn.fd, &event)
    if not writing:
        # Requests and decrypted bytes that waited meanwhile make no event.
        line_add(&self.turns, &conn.turn)


cdef ssize_t _write(Conn *conn, const void *p, size_t n) noexcept nogil:
    """Bytes that the socket took; 0 when it takes none now, -1 when it is over."""
    cdef ssize_t done
    if conn.tls != NULL:
        done = tls_write(conn, p, n)
        if done < 0:
            return 0 if done == -1 else -1
    else:
        done = remit_send(conn.fd, p, n, MSG_NOSIGNAL)
        if done < 0:
            return 0 if errno == EAGAIN or errno == EINTR else -1
    conn.door.stats.bytes_out += done
    return done


cdef bint _write_rest(Loop self, Conn *conn) noexcept nogil:
    """Whether nothing is left over from before."""
    cdef ssize_t done
    while conn.out_at < conn.out_n:
        done = _write(conn, conn.out + conn.out_at, conn.out_n - conn.out_at)
        if done < 0:
            conn.cause = CAUSE_PEER
        if done <= 0:
            return False
        conn.out_at += done
    free(conn.out)
    conn.out = NULL
    conn.out_n = conn.out_at = 0
    return True


cdef void _keep(Conn *conn, const uint8_t *p, size_t n) noexcept nogil:
    conn.out = <uint8_t *> malloc(n)
    if conn.out == NULL:
        conn.cause = CAUSE_MEMORY
        return
    memcpy(conn.out, p, n)
    conn.out_at, conn.out_n = 0, n
    conn.out_ns = conn.door.now_ns


cdef void conn_flush(Loop self, Conn *conn) noexcept nogil:
    cdef size_t n
    cdef ssize_t done
    while conn.cause == CAUSE_NONE and _write_rest(self, conn):
        n = http2_pull(conn, self.outbox, OUTBOX)
        if n == 0:
            break
        done = _write(conn, self.outbox, n)
        if done < 0:
            conn.cause = CAUSE_PEER
        elif <size_t> done < n:
            _keep(conn, self.outbox + done, n - done)
        elif OUTBOX - n > FRAME_ROOM:
            break
    if conn.cause == CAUSE_NONE:
        _listen_for(self, conn, conn.out != NULL)


cdef int _answer_some(Loop self, Conn *conn, int most) noexcept nogil:
    """Answer what is complete, at most so many; how many there were."""
    cdef Stream *stream
    cdef int count = 0
    while count < most and conn.cause == CAUSE_NONE:
        stream = http2_next(conn)
        if stream == NULL:
            break
        answer_call(self, conn, stream)
        count += 1
    return count


cdef ssize_t _read(Loop self, Conn *conn, size_t room) noexcept nogil:
    """At most `room` bytes into the inbox; 0 when there are none now or the peer is gone, which sets the cause."""
    cdef ssize_t got = 0
    cdef size_t n = 0
    if conn.tls != NULL:
        # The records that are there come before the first answer: a call and its reset arrive in records of their own.
        conn.records = 0
        while n < room and conn.records < PIECE_RECORDS:
            got = tls_read(conn, self.inbox + n, room - n)
            if got <= 0:
                break
            n += got
        conn.over = got == -2
        if n == 0 and conn.over and conn.cause == CAUSE_NONE:
            conn.cause = CAUSE_PEER
        return n
    got = remit_recv(conn.fd, self.inbox, room)
    if got == 0 or (got < 0 and errno != EAGAIN and errno != EINTR):
        conn.cause = CAUSE_PEER
    return max(<ssize_t> 0, got)


cdef bint _secure(Loop self, Conn *conn) noexcept nogil:
    """Whether TLS is established; goes on with the handshake when it is not."""
    cdef Held *held
    cdef epoll_event event
    cdef int done
    if conn.tls == NULL or conn.secured:
        return True
    held = slot_enter(self.trust)
    done = tls_handshake(conn, <const Trust *> held.data)
    slot_leave(held)
    if done < 0:
        conn.cause = CAUSE_CREDENTIALS if conn.refusal else CAUSE_HANDSHAKE
        self.refusals[conn.refusal] += conn.refusal != 0
        return False
    event.events = EPOLLOUT if conn.writing and not done else EPOLLIN | EPOLLRDHUP
    event.data.ptr = conn
    epoll_ctl(self.epoll, EPOLL_CTL_MOD, conn.fd, &event)
    if not done:
        return False
    conn.writing = 0
    line_drop(&self.handshakes, &conn.shaking)
    admission_leave(self.admission, <Guest *> conn.guest)
    conn.cause = conn_count(self, conn, conn.peer.spiffe_id)
    if conn.cause == CAUSE_NONE and http2_open(conn):
        conn.cause = CAUSE_MEMORY
    if conn.cause == CAUSE_NONE and self.stop_at_ns:
        http2_drain(conn, CAUSE_DRAIN)
    return conn.cause == CAUSE_NONE


cdef void _take_in(Loop self, Conn *conn, Taken *taken) noexcept nogil:
    """Read and parse a piece, unless requests wait for their answers still; `more` may be there."""
    cdef size_t room = conn.piece if conn.heavy else min(<uint32_t> LIGHT_BYTES, conn.piece)
    cdef ssize_t got = 0
    cdef bint more
    if conn.ready == NULL and not conn.cut:
        got = _read(self, conn, room)
        if got and not conn.lingers_ns:
            conn.heard_ns = self.door.now_ns
            http2_feed(conn, self.inbox, got)
    taken.calls = _answer_some(self, conn, PIECE_CALLS if conn.heavy else LIGHT_CALLS)
    # What the peer made us say counts before more of it is parsed.
    conn_flush(self, conn)
    more = conn.ready != NULL or <size_t> got == room or conn.over
    if conn.tls != NULL:
        more = more or conn.records >= PIECE_RECORDS or tls_pending(conn)
    if conn.cut:
        more = conn.ready != NULL
        if conn.cause == CAUSE_NONE and not more and conn.out == NULL:
            conn.cause = conn.cut
    taken.bytes, taken.more = got, more


cdef void conn_part(Loop self, Conn *conn) noexcept nogil:
    """All is said on both sides: end the connection, unless the peer may not have heard so yet.

    Who writes on a closed connection may lose what we said before: it is told to go, and what it sends is dropped.
    """
    if not conn.draining:
        conn.cause = CAUSE_PEER if conn.left else CAUSE_PROTOCOL
    elif not conn.unheard:
        conn.cause = conn.drain_cause
    elif conn.lingers_ns == 0:
        conn.lingers_ns = self.door.now_ns


cdef void conn_serve(Loop self, Conn *conn) noexcept nogil:
    """One turn of a connection: what is left to write, then a piece of what it sent."""
    cdef int64_t began = self.door.now_ns
    cdef Taken taken
    taken.bytes, taken.calls, taken.more = 0, 0, False
    line_drop(&self.turns, &conn.turn)
    if _secure(self, conn):
        if conn.cause == CAUSE_NONE and conn.out != NULL:
            conn_flush(self, conn)
        if conn.cause == CAUSE_NONE and conn.out == NULL:
            _take_in(self, conn, &taken)
        if conn.cause == CAUSE_NONE and conn.out == NULL and http2_over(conn):
            conn_part(self, conn)
        loop_read_clock(self)
        turn_took(conn, began, self.door.now_ns, &taken, lit_for(&self.lit, conn, self.door.now_ns))
    if conn.cause != CAUSE_NONE:
        conn_close(self, conn)
    elif taken.more and conn.out == NULL:
        # While it does not take what we say it has no turn; that it does again is an event.
        line_add(&self.turns, &conn.turn)


cdef void _forget(Loop self, int fd) noexcept nogil:
    """Close a descriptor that names a connection in epoll.

    A process forked meanwhile may hold a copy: then closing ours does not take it out of epoll, and its next event
    would name a connection that was freed.
    """
    epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, NULL)
    close(fd)


cdef void conn_close(Loop self, Conn *conn) noexcept nogil:
    """End a connection. What names it in the events at hand is told by its fd; `conn_bury` frees it after them.

    Many streams are freed later, in pieces; but not where Python, or a notice, may come back to one.
    """
    cdef uint8_t last[32]
    self.door.stats.closed[conn.cause] += 1
    line_drop(&self.turns, &conn.turn)
    if self.ticking == conn:
        self.ticking = conn.next
    line_drop(&self.handshakes, &conn.shaking)
    if conn.session != NULL and conn.cause != CAUSE_PEER and conn.out == NULL and not conn.told:
        _write(conn, last, http2_farewell(conn, last))
    tls_end(conn, conn.cause != CAUSE_PEER)
    # What we did not read would turn the close into a reset that can overtake the farewell.
    shutdown(conn.fd, SHUT_WR)
    recv(conn.fd, self.inbox, PIECE_MAX, 0)
    _forget(self, conn.fd)
    conn.fd = -1
    if conn.pidfd >= 0:
        _forget(self, conn.pidfd)
    if conn.prev != NULL:
        conn.prev.next = conn.next
    else:
        self.first = conn.next
    if conn.next != NULL:
        conn.next.prev = conn.prev
    conn.next = self.closed
    self.closed = conn
    if conn.lasting or conn.stream_count <= ENDED:
        _release(self, conn)
    else:
        self.owed += conn.stream_count


cdef void _release(Loop self, Conn *conn) noexcept nogil:
    """Give back what a closed connection held."""
    http2_close(conn)
    # Its calls in the slow lane were counted for its peer until here.
    admission_leave(self.admission, <Guest *> conn.guest)
    free(conn.out)
    conn.out = NULL
    conn.released = 1
    if self.first == NULL:
        reserve_trim(&self.door.reserve)
    # Last: who sees that no connection is left finds nothing held either.
    admission_count(self.admission, self.door.loop, -1)


cdef void conn_bury(Loop self, uint32_t most) noexcept nogil:
    """Free closed connections, as far as so many streams go."""
    cdef Conn *conn
    cdef uint32_t n
    cdef uint32_t freed = 0
    while self.closed != NULL and freed < most:
        conn = self.closed
        if not conn.released:
            n = http2_shed(conn, most - freed)
            self.owed -= n
            freed += n
            if conn.first != NULL:
                return
            _release(self, conn)
        freed += 1
        self.closed = conn.next
        free(conn)


cdef int conn_count(Loop self, Conn *conn, Text name) noexcept nogil:
    """CAUSE_CROWD when this peer has all the connections that it may have."""
    conn.guest = admission_enter(self.admission, name, self.admission.per_peer)
    return CAUSE_CROWD if conn.guest == NULL else CAUSE_NONE
