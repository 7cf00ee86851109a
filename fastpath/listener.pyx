"""The loops of a native door: accept, read, parse, decide, write, look at the clock.

Everything between `serve` and its end runs without the GIL, so an interpreter that is busy stops no call; what needs
Python leaves through the slow lane (fastpath/lane.pxd) and wakes its loop when it comes back. What a call
reads is taken from the Pdp's slot at its start (fastpath/held.pxd); who calls is judged at the handshake and again at
each call, since a connection outlives credentials, bundles and lists.
"""
from fastpath.admission cimport (
    Admission, Guest, admission_count, admission_enter, admission_hand_over, admission_least, admission_leave,
    admission_left, admission_open, admission_over, admission_take,
)
from fastpath.answers cimport answer_call
from fastpath.bells cimport room_enter, room_leave
from fastpath.c.inet cimport AF_INET6, sockaddr_in, sockaddr_in6
from fastpath.c.linux cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, IPPROTO_TCP,
    MSG_NOSIGNAL, SHUT_WR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET, SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD,
    TCP_NODELAY, accept4, epoll_ctl, epoll_event, epoll_wait, eventfd_read, eventfd_write, getpeername, getsockopt,
    recv, setsockopt, shutdown, socklen_t, ucred,
)
from fastpath.c.openssl_ssl cimport SSL_CTX
from fastpath.call cimport Pdp
from fastpath.decide cimport PEER_AGENT
from fastpath.held cimport Held, Slot, slot_enter, slot_leave
from fastpath.http2 cimport (
    CAUSES, CAUSE_AGE, CAUSE_CREDENTIALS, CAUSE_CROWD, CAUSE_DIED, CAUSE_DRAIN, CAUSE_FULL, CAUSE_HANDSHAKE, CAUSE_IDLE,
    CAUSE_MEMORY, CAUSE_NONE, CAUSE_PEER, CAUSE_PROTOCOL, CAUSE_SETTINGS, CAUSE_STALL, Conn, Door, FRAME_ROOM, STATUSES,
    Stats, Stream, http2_close, http2_drain, http2_drain_last, http2_farewell, http2_feed, http2_next, http2_open,
    http2_over, http2_pull, http2_push, http2_shed, http2_tick,
)
from fastpath.lane cimport Answer, Lane, lane_fetch
from fastpath.line cimport Place, line_add, line_drop
from fastpath.loop cimport INBOX, Loop, OUTBOX, PepList, remit_flag, remit_flag_set
from fastpath.reserve cimport reserve_trim
from fastpath.strangers cimport Strangers, strangers_add
from fastpath.streams cimport tell_talks, verify_talks
from fastpath.tls cimport TlsIdentity, tls_begin, tls_end, tls_handshake, tls_pending, tls_read, tls_write
from fastpath.turns cimport (
    LIGHT_BYTES, LIGHT_CALLS, LIT_NS, PIECE_CALLS, PIECE_FIRST, PIECE_RECORDS, ROUND_LIT_NS, ROUND_NS, turn_took,
)
from fastpath.verify cimport REFUSALS, Trust, Verifier, refusal_text
from fastpath.wire cimport Text, text_of
from libc.errno cimport EAGAIN, EINTR, EMFILE, ENFILE, ENOPROTOOPT, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, geteuid

import os
import threading

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
    EVENTS = 64              # taken from epoll at once
    ACCEPTS = 2              # connections accepted between two looks at the others
    TICKED = 128             # connections and their streams of a tick between two looks at what arrived
    BURIED = 64              # connections and their streams freed between two such looks, and a share of what is left
    BURIED_SHARE = 4
    ENDED = 8                # streams of a connection that is freed at once
    TICK_MS = 250            # how late a deadline may be noticed
    MAPPED_N = 12
    GROUPS_MAX = 256         # supplementary groups of a Unix peer that are looked at
    INT64_BITS = 63
    PROCESS = 1              # added to a Conn * in epoll: the process behind it, not its socket

cdef const char *MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"   # before an address of IPv4 (RFC 4291 section 2.5.5.2)
cdef int64_t MS_NS = 1000000
NOTICE_MS = 1000         # how long a draining peer may take to hear of it

CAUSE_NAMES = ("none", "peer", "protocol", "resets", "faults", "flood", "handshake", "settings", "idle", "stall", "age",
               "drain", "memory", "credentials", "full", "crowd", "died")


# ---------------------------------------------------------------- one connection

cdef void _read_clock(Loop self) noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    self.door.now_ns = <int64_t> t.tv_sec * 1000000000 + t.tv_nsec


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


cdef void _flush(Loop self, Conn *conn) noexcept nogil:
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
    conn.cause = _count(self, conn, conn.peer.spiffe_id)
    if conn.cause == CAUSE_NONE and http2_open(conn):
        conn.cause = CAUSE_MEMORY
    if conn.cause == CAUSE_NONE and self.stop_at_ns:
        http2_drain(conn, CAUSE_DRAIN)
    return conn.cause == CAUSE_NONE


cdef bint _take_in(Loop self, Conn *conn, bint *much) noexcept nogil:
    """Read and parse a piece, unless requests wait for their answers still; whether more may be there.

    `much` is set when that was more than a turn without waiting has.
    """
    cdef size_t room = conn.piece if conn.heavy else min(<uint32_t> LIGHT_BYTES, conn.piece)
    cdef ssize_t got = 0
    cdef int count
    cdef bint more
    if conn.ready == NULL and not conn.cut:
        got = _read(self, conn, room)
        if got and not conn.lingers_ns:
            conn.heard_ns = self.door.now_ns
            http2_feed(conn, self.inbox, got)
    count = _answer_some(self, conn, PIECE_CALLS if conn.heavy else LIGHT_CALLS)
    # What the peer made us say counts before more of it is parsed.
    _flush(self, conn)
    more = conn.ready != NULL or <size_t> got == room or conn.over
    if conn.tls != NULL:
        more = more or conn.records >= PIECE_RECORDS or tls_pending(conn)
    if conn.cut:
        more = conn.ready != NULL
        if conn.cause == CAUSE_NONE and not more and conn.out == NULL:
            conn.cause = conn.cut
    much[0] = more or count > LIGHT_CALLS or got > LIGHT_BYTES
    return more


cdef void _part(Loop self, Conn *conn) noexcept nogil:
    """All is said on both sides: end the connection, unless the peer may not have heard so yet.

    Who writes on a closed connection may lose what we said before: it is told to go, and what it sends is dropped.
    """
    if not conn.draining:
        conn.cause = CAUSE_PEER if conn.left else CAUSE_PROTOCOL
    elif not conn.unheard:
        conn.cause = conn.drain_cause
    elif conn.lingers_ns == 0:
        conn.lingers_ns = self.door.now_ns


cdef void _serve_conn(Loop self, Conn *conn) noexcept nogil:
    """One turn of a connection: what is left to write, then a piece of what it sent."""
    cdef int64_t began = self.door.now_ns
    cdef bint more = False
    cdef bint much = False
    line_drop(&self.turns, &conn.turn)
    if _secure(self, conn):
        if conn.cause == CAUSE_NONE and conn.out != NULL:
            _flush(self, conn)
        if conn.cause == CAUSE_NONE and conn.out == NULL:
            more = _take_in(self, conn, &much)
        if conn.cause == CAUSE_NONE and conn.out == NULL and http2_over(conn):
            _part(self, conn)
        _read_clock(self)
        turn_took(conn, self.door.now_ns - began, much)
    if conn.cause != CAUSE_NONE:
        _close(self, conn)
    elif more and conn.out == NULL:
        # While it does not take what we say it has no turn; that it does again is an event.
        line_add(&self.turns, &conn.turn)


cdef void _forget(Loop self, int fd) noexcept nogil:
    """Close a descriptor that names a connection in epoll.

    A process forked meanwhile may hold a copy: then closing ours does not take it out of epoll, and its next event
    would name a connection that was freed.
    """
    epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, NULL)
    close(fd)


cdef void _close(Loop self, Conn *conn) noexcept nogil:
    """End a connection. What names it in the events at hand is told by its fd; `_bury` frees it after them.

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
    recv(conn.fd, self.inbox, INBOX, 0)
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


cdef void _bury(Loop self, uint32_t most) noexcept nogil:
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


# ---------------------------------------------------------------- accepting

cdef int _may_enter(Loop self, Conn *conn) noexcept nogil:
    """Why the process behind a Unix socket may not enter, as the kernel knows it (UD-01), or CAUSE_NONE."""
    cdef ucred peer
    cdef uint32_t groups[GROUPS_MAX]
    cdef socklen_t n = sizeof(ucred)
    cdef uint32_t i
    cdef bint member
    if getsockopt(conn.fd, SOL_SOCKET, SO_PEERCRED, &peer, &n):
        return CAUSE_CREDENTIALS
    conn.peer.credential.n = snprintf(conn.credential, sizeof(conn.credential), b"unix:%u", peer.uid)
    conn.peer.credential.p = conn.credential
    member = peer.uid == 0 or peer.uid == geteuid() or peer.gid == self.group
    n = sizeof(groups)
    if not member and getsockopt(conn.fd, SOL_SOCKET, SO_PEERGROUPS, groups, &n) == 0:
        for i in range(n // sizeof(uint32_t)):
            member = member or groups[i] == self.group
    if not member:
        strangers_add(self.strangers, peer.uid)
        return CAUSE_CREDENTIALS
    return _hold_process(self, conn)


cdef int _hold_process(Loop self, Conn *conn) noexcept nogil:
    """Watch the process that connected: a pid can be used again, a pidfd cannot (UD-02). Linux 6.5."""
    cdef socklen_t n = sizeof(int)
    cdef epoll_event event
    if getsockopt(conn.fd, SOL_SOCKET, SO_PEERPIDFD, &conn.pidfd, &n):
        conn.pidfd = -1
        if errno == EMFILE or errno == ENFILE:
            return CAUSE_FULL
        return CAUSE_NONE if errno == ENOPROTOOPT else CAUSE_DIED
    event.events = EPOLLIN
    event.data.ptr = <char *> conn + PROCESS
    return CAUSE_MEMORY if epoll_ctl(self.epoll, EPOLL_CTL_ADD, conn.pidfd, &event) else CAUSE_NONE


cdef Conn *_new_conn(Loop self, int fd) noexcept nogil:
    cdef Conn *conn = <Conn *> calloc(1, sizeof(Conn))
    cdef int64_t now = self.door.now_ns
    if conn == NULL:
        return NULL
    conn.door = &self.door
    conn.fd = fd
    conn.pidfd = -1
    conn.turn.conn = conn.shaking.conn = conn
    conn.piece = PIECE_FIRST
    # Who has just come waits behind those who are known to take little.
    conn.heavy = 1
    conn.opened_ns = conn.heard_ns = conn.active_ns = now
    conn.peer.kind = PEER_AGENT
    conn.peer.not_after_s = <int64_t> ((<uint64_t> 1 << INT64_BITS) - 1)
    conn.peer.spiffe_id.p, conn.peer.spiffe_id.n = self._spiffe_id_p, self._spiffe_id_n
    conn.next = self.first
    if self.first != NULL:
        self.first.prev = conn
    self.first = conn
    return conn


cdef int _count(Loop self, Conn *conn, Text name) noexcept nogil:
    """CAUSE_CROWD when this peer has all the connections that it may have."""
    conn.guest = admission_enter(self.admission, name, self.admission.per_peer)
    return CAUSE_CROWD if conn.guest == NULL else CAUSE_NONE


cdef Text _source(Conn *conn) noexcept nogil:
    """The address of a caller over TCP, kept in conn.credential; of IPv6 the half that names its network."""
    cdef sockaddr_in6 found
    cdef socklen_t n = sizeof(found)
    cdef Text address = text_of(b"")
    address.p = conn.credential
    if getpeername(conn.fd, &found, &n):
        return address
    if found.sin6_family != AF_INET6:
        memcpy(conn.credential, &(<sockaddr_in *> &found).sin_addr, sizeof(uint32_t))
        address.n = sizeof(uint32_t)
        return address
    memcpy(conn.credential, &found.sin6_addr, sizeof(found.sin6_addr))
    # The first half of a mapped address of IPv4 is the same for all of them.
    address.n = 16 if memcmp(conn.credential, MAPPED, MAPPED_N) == 0 else 8
    return address


cdef void _make_room(Loop self, Conn *oldest, int cause) noexcept nogil:
    oldest.cause = cause
    _close(self, oldest)


cdef Conn *_oldest_of(Loop self, Text address) noexcept nogil:
    """The oldest connection in the handshake that came from this address, or NULL."""
    cdef Place *place = self.handshakes.first
    cdef Conn *conn
    while place != NULL:
        conn = <Conn *> place.conn
        if conn.peer.credential.n == address.n and memcmp(conn.peer.credential.p, address.p, address.n) == 0:
            return conn
        place = place.behind
    return NULL


cdef int _await_credential(Loop self, Conn *conn) noexcept nogil:
    """Count a connection before its handshake, in whose place the oldest such one is closed when there is no room.

    A handshake takes milliseconds, so it is the strangers who fill a door that lose their place, and who has shown a
    credential keeps its own.
    """
    cdef Conn *oldest
    conn.peer.credential = _source(conn)
    if self.handshakes.count >= self.door.limits.handshakes:
        _make_room(self, <Conn *> self.handshakes.first.conn, CAUSE_FULL)
    conn.guest = admission_enter(self.admission, conn.peer.credential, self.door.limits.handshakes_per_address)
    if conn.guest == NULL:
        oldest = _oldest_of(self, conn.peer.credential)
        if oldest == NULL:
            return CAUSE_CROWD
        _make_room(self, oldest, CAUSE_CROWD)
        conn.guest = admission_enter(self.admission, conn.peer.credential, self.door.limits.handshakes_per_address)
    line_add(&self.handshakes, &conn.shaking)
    return CAUSE_NONE if conn.guest != NULL else CAUSE_CROWD


cdef int _admit(Loop self, Conn *conn) noexcept nogil:
    """Why the connection may not stay, a Cause, or CAUSE_NONE once it is set up."""
    cdef Held *held
    cdef int failed = CAUSE_NONE
    if admission_open(self.admission) > <int64_t> self.door.limits.connections:
        if self.handshakes.first == NULL:
            return CAUSE_FULL
        _make_room(self, <Conn *> self.handshakes.first.conn, CAUSE_FULL)
    if self.local:
        failed = _may_enter(self, conn) or _count(self, conn, conn.peer.credential)
    elif self.secure:
        failed = _await_credential(self, conn)
    if failed:
        return failed
    if not self.secure:
        return CAUSE_MEMORY if http2_open(conn) else CAUSE_NONE
    held = slot_enter(self.identity)
    if held == NULL or held.data == NULL:
        slot_leave(held)
        return CAUSE_HANDSHAKE
    failed = tls_begin(conn, <SSL_CTX *> held.data)
    slot_leave(held)
    return CAUSE_MEMORY if failed else CAUSE_NONE


cdef void _welcome(Loop self, int fd) noexcept nogil:
    """Set up a connection that was counted for this loop already."""
    cdef Conn *conn = _new_conn(self, fd)
    cdef epoll_event event
    cdef int on = 1
    self.door.stats.accepted += 1
    if conn == NULL:
        self.door.stats.closed[<int> CAUSE_MEMORY] += 1
        admission_count(self.admission, self.door.loop, -1)
        close(fd)
        return
    if not self.local:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(int))
    conn.cause = _admit(self, conn)
    event.events = EPOLLIN | EPOLLRDHUP
    event.data.ptr = conn
    if conn.cause == CAUSE_NONE and epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event):
        conn.cause = CAUSE_MEMORY
    if conn.cause == CAUSE_NONE and conn.session != NULL:
        if self.stop_at_ns:
            http2_drain(conn, CAUSE_DRAIN)
        _flush(self, conn)
    if conn.cause != CAUSE_NONE:
        _close(self, conn)


cdef void _share_out(Loop self, int fd) noexcept nogil:
    """Keep an accepted connection, or leave it to a loop that has fewer."""
    cdef int loop = admission_least(self.admission, self.door.loop)
    if loop != self.door.loop and admission_hand_over(self.admission, loop, fd):
        return
    admission_count(self.admission, self.door.loop, 1)
    _welcome(self, fd)


cdef void _take_over(Loop self) noexcept nogil:
    """Connections that other loops accepted for this one."""
    cdef int fd = admission_take(self.admission, self.door.loop)
    while fd >= 0:
        _welcome(self, fd)
        fd = admission_take(self.admission, self.door.loop)


cdef void _accept(Loop self) noexcept nogil:
    cdef int fd, _i
    for _i in range(ACCEPTS):
        fd = accept4(self.listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            _share_out(self, fd)
            continue
        if (errno != EMFILE and errno != ENFILE) or self.spare < 0:
            return
        # Without a descriptor the backlog would wake us forever: take one caller off it and refuse it.
        close(self.spare)
        fd = accept4(self.listening, NULL, NULL, SOCK_CLOEXEC)
        if fd >= 0:
            self.door.stats.accepted += 1
            self.door.stats.closed[<int> CAUSE_FULL] += 1
            close(fd)
        self.spare = open_file(b"/dev/null", O_RDONLY | O_CLOEXEC)
        if fd < 0:
            return


# ---------------------------------------------------------------- the clock

cdef int _overdue(Loop self, const Conn *conn) noexcept nogil:
    """The Cause for which time is up on this connection, or CAUSE_NONE."""
    cdef int64_t now = self.door.now_ns
    if not conn.began:
        return CAUSE_HANDSHAKE if now - conn.opened_ns > self.door.limits.handshake_ns else CAUSE_NONE
    if not conn.settled and now - conn.began_ns > self.door.limits.settings_ns:
        return CAUSE_SETTINGS
    # For all of them: a peer that takes a byte now and then would hold its answers for as long as it likes.
    if conn.out != NULL and now - conn.out_ns > self.door.limits.stream_ns:
        return CAUSE_STALL
    if conn.pinged and now - conn.pinged_ns > self.door.limits.ping_ns:
        return CAUSE_STALL
    # A header block that has begun keeps all streams from going on, and nothing else ends it.
    if conn.part_ns and now - conn.part_ns > self.door.limits.stream_ns:
        return CAUSE_STALL
    if conn.draining and now - conn.drained_ns > self.door.limits.grace_ns:
        return conn.drain_cause
    if conn.lingers_ns and now - conn.lingers_ns > self.notice_ns:
        return conn.drain_cause
    return CAUSE_NONE


cdef bint _idle(Loop self, const Conn *conn) noexcept nogil:
    """Whether it has had no request for too long; the first one is due soon."""
    cdef int64_t now = self.door.now_ns
    if not conn.began or conn.stream_count:
        return False
    if conn.last_id == 0 and now - conn.began_ns > self.door.limits.first_request_ns:
        return True
    return now - conn.active_ns > self.door.limits.idle_ns


cdef void _tick_conn(Loop self, Conn *conn) noexcept nogil:
    cdef int64_t now = self.door.now_ns
    conn.cause = _overdue(self, conn)
    if conn.cause == CAUSE_NONE and conn.session != NULL:
        if _idle(self, conn):
            http2_drain(conn, CAUSE_IDLE)
        # Ages differ by up to a tenth, so that peers which came together do not all leave together.
        if now - conn.opened_ns > self.door.limits.age_ns - self.door.limits.age_ns // 100 * (conn.fd % 11):
            http2_drain(conn, CAUSE_AGE)
        if conn.draining == 1 and now - conn.drained_ns > self.notice_ns:
            http2_drain_last(conn)
        if self.door.talks != NULL:
            verify_talks(self, conn)
        if not conn.lingers_ns:
            http2_tick(conn)
        _flush(self, conn)
        if conn.ready != NULL:
            line_add(&self.turns, &conn.turn)
        if conn.cause == CAUSE_NONE and conn.out == NULL and conn.draining and http2_over(conn):
            _part(self, conn)
    if conn.cause != CAUSE_NONE:
        _close(self, conn)


cdef void _tick(Loop self) noexcept nogil:
    """Look at the clocks of some connections; those that remain have their look after the events at hand."""
    cdef Conn *conn
    cdef uint32_t looked = 0
    while looked < TICKED and self.ticking != NULL:
        conn = self.ticking
        self.ticking = conn.next
        looked += 1 + conn.stream_count
        _tick_conn(self, conn)


cdef void _leave_socket(Loop self) noexcept nogil:
    if self.accepting:
        self.accepting = 0
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, self.listening, NULL)
        admission_left(self.admission)


cdef void _begin_stop(Loop self) noexcept nogil:
    """Leave the listening socket, tell every connection; the earlier of two ends counts."""
    cdef Conn *conn = self.first
    cdef Conn *after
    cdef int64_t at = self.door.now_ns + self.grace_ns
    _leave_socket(self)
    self.stop_at_ns = min(self.stop_at_ns, at) if self.stop_at_ns else at
    while conn != NULL:
        after = conn.next
        # Who is in the handshake still hears of the end in order: a connection that breaks fails the calls behind it.
        if conn.session != NULL:
            http2_drain(conn, CAUSE_DRAIN)
            _serve_conn(self, conn)
        conn = after


cdef void _come_back(Loop self) noexcept nogil:
    """Send what Python answered."""
    cdef Answer answer
    cdef Conn *conn
    cdef Stream *stream
    while lane_fetch(&self.lane.table, self.door.loop, &answer):
        conn, stream = <Conn *> answer.conn, <Stream *> answer.stream
        # A stream that was ended meanwhile, for its deadline or the end of its connection, takes nothing more.
        if stream.code < 0 and conn.cause == CAUSE_NONE:
            http2_push(conn, stream, answer.p, answer.n, answer.code)
            _flush(self, conn)
        free(answer.p)
        if conn.cause != CAUSE_NONE:
            _close(self, conn)


cdef void _woken(Loop self) noexcept nogil:
    cdef uint64_t times
    eventfd_read(self.wake, &times)
    _take_over(self)
    _come_back(self)
    tell_talks(self)


cdef void _event(Loop self, void *of, uint32_t what) noexcept nogil:
    cdef Conn *conn
    if of == &self.listening:
        _accept(self)
        return
    if of == &self.wake:
        _woken(self)
        return
    conn = <Conn *> (<size_t> of & ~<size_t> PROCESS)
    if conn.fd < 0:
        return
    if <size_t> of & PROCESS:
        conn.cause = CAUSE_DIED
        _close(self, conn)
    elif conn.heavy or what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        # Nobody waits for the end of a connection, and many may end at once.
        line_add(&self.turns, &conn.turn)
    else:
        self.lit_ns = self.door.now_ns
        _serve_conn(self, conn)


cdef void _give_turns(Loop self) noexcept nogil:
    """A round of those that wait for their turn, as long as it may delay the others."""
    cdef bint lit = self.door.now_ns - self.lit_ns < LIT_NS
    cdef int64_t end = self.door.now_ns + (ROUND_LIT_NS if lit else ROUND_NS)
    while self.turns.first != NULL and self.door.now_ns < end:
        _serve_conn(self, <Conn *> self.turns.first.conn)


cdef int _patience(Loop self) noexcept nogil:
    """How long, in ms, nothing needs to happen."""
    if self.turns.first != NULL or self.ticking != NULL or self.closed != NULL:
        return 0
    return TICK_MS if self.first != NULL or self.stop_at_ns else -1


cdef bint _over(Loop self) noexcept nogil:
    """Whether a loop that stops has nothing left, or no time."""
    if self.stop_at_ns == 0:
        return False
    return self.door.now_ns >= self.stop_at_ns or (self.first == NULL and admission_over(self.admission))


cdef void _loop(Loop self) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef int64_t ticked
    cdef int n, i
    _read_clock(self)
    ticked = self.door.now_ns
    while True:
        n = epoll_wait(self.epoll, events, EVENTS, _patience(self))
        _read_clock(self)
        self.door.stats.events += max(0, n)
        for i in range(n):
            _event(self, events[i].data.ptr, events[i].events)
        if remit_flag(&self.stopping):
            remit_flag_set(&self.stopping, 0)
            _begin_stop(self)
        _give_turns(self)
        if self.ticking == NULL and self.door.now_ns - ticked > TICK_MS * MS_NS:
            ticked = self.door.now_ns
            self.ticking = self.first
        _tick(self)
        # Who opens and leaves faster than that does not pile up memory.
        _bury(self, BURIED + self.owed // BURIED_SHARE)
        if _over(self):
            _take_over(self)
            if self.first == NULL or self.door.now_ns >= self.stop_at_ns:
                return


cdef void _close_all(Loop self) noexcept nogil:
    while self.first != NULL:
        self.first.cause = CAUSE_DRAIN
        _close(self, self.first)
    _bury(self, <uint32_t> -1)


# ---------------------------------------------------------------- the Python face

def _run(Loop loop not None):
    """Serve until the loop is stopped."""
    with nogil:
        room_enter(&loop.pdp.bells.table, &loop.door.room)
        _loop(loop)
        _close_all(loop)
        room_leave(&loop.pdp.bells.table, &loop.door.room)


cdef int _limit(Door *door, dict limits) except -1:
    """Fill the bounds of a loop from the arguments of its Listener."""
    door.limits.message_bytes, door.limits.streams = limits["message_bytes"], limits["streams"]
    door.limits.headers, door.limits.header_bytes = limits["headers"], limits["header_bytes"]
    door.limits.connections = limits["connections"]
    door.limits.handshakes = max(1, limits["handshakes"] // limits["threads"])
    door.limits.handshakes_per_address = limits["handshakes_per_address"]
    door.limits.held, door.limits.door_held = limits["held_bytes"], limits["door_held_bytes"]
    door.limits.handshake_ns, door.limits.settings_ns = limits["handshake_ms"] * MS_NS, limits["settings_ms"] * MS_NS
    door.limits.stream_ns, door.limits.deadline_ns = limits["stream_ms"] * MS_NS, limits["deadline_ms"] * MS_NS
    door.limits.talks, door.limits.talk_waiting = limits["check_streams_per_peer"], limits["stream_questions"]
    door.limits.talk_bytes = limits["stream_queue_bytes"]
    door.limits.tickets, door.limits.watch_ns = limits["slow_calls_per_peer"], limits["watch_ms"] * MS_NS
    door.limits.first_request_ns = limits["first_request_ms"] * MS_NS
    door.limits.idle_ns, door.limits.age_ns = limits["idle_ms"] * MS_NS, limits["age_ms"] * MS_NS
    door.limits.grace_ns = limits["grace_ms"] * MS_NS
    door.limits.keepalive_ns, door.limits.ping_ns = limits["keepalive_ms"] * MS_NS, limits["ping_ms"] * MS_NS
    return 0


cdef class Listener:

    def __init__(self, Pdp pdp not None, *, envoy, str spiffe_id="", group=-1, Verifier verifier=None, int threads=1,
                 message_bytes=262144, streams=256, headers=64, header_bytes=16384, connections=4096,
                 connections_per_peer=256, handshakes=2048, handshakes_per_address=512, held_bytes=4194304,
                 door_held_bytes=268435456, handshake_ms=5000, settings_ms=2000, first_request_ms=10000,
                 stream_ms=10000, deadline_ms=1000, idle_ms=300000, keepalive_ms=20000, ping_ms=10000, age_ms=600000,
                 grace_ms=30000, slow_calls=1024, slow_calls_per_peer=128, watch_ms=600000,
                 check_streams_per_peer=64, stream_questions=256, stream_queue_bytes=65536, arena_bytes=4194304):
        cdef dict limits = {
            "message_bytes": message_bytes, "streams": streams, "headers": headers, "header_bytes": header_bytes,
            "connections": connections, "threads": threads, "handshakes": handshakes,
            "handshakes_per_address": handshakes_per_address, "held_bytes": held_bytes,
            "door_held_bytes": door_held_bytes, "handshake_ms": handshake_ms, "settings_ms": settings_ms,
            "first_request_ms": first_request_ms, "stream_ms": stream_ms, "deadline_ms": deadline_ms,
            "idle_ms": idle_ms, "keepalive_ms": keepalive_ms, "ping_ms": ping_ms, "age_ms": age_ms,
            "grace_ms": grace_ms, "slow_calls_per_peer": slow_calls_per_peer, "watch_ms": watch_ms,
            "check_streams_per_peer": check_streams_per_peer, "stream_questions": stream_questions,
            "stream_queue_bytes": stream_queue_bytes,
        }
        cdef Loop loop
        cdef int i
        self._identity, self._peps = Slot(), Slot()
        self._admission = Admission(threads, connections_per_peer)
        self.lane = Lane(threads, slow_calls)
        self.strangers = Strangers()
        self._doors = <Door **> calloc(threads, sizeof(Door *))
        if self._doors == NULL:
            raise MemoryError
        self._loops = []
        for i in range(threads):
            loop = Loop()
            loop.pdp, loop.lane, loop.admission = pdp, self.lane, self._admission
            loop.strangers = self.strangers
            loop.trust = verifier.in_force if verifier is not None else None
            loop.secure = verifier is not None
            loop.identity, loop.peps = self._identity, self._peps
            loop._spiffe_id = spiffe_id.encode()
            loop._spiffe_id_p, loop._spiffe_id_n = loop._spiffe_id, <uint32_t> len(loop._spiffe_id)
            loop.group = <uint32_t> (group & 0xFFFFFFFF)
            loop.door.serves_envoy = bool(envoy)
            _limit(&loop.door, limits)
            loop._memory(arena_bytes)
            loop.notice_ns = NOTICE_MS * MS_NS
            loop.door.lane, loop.door.loop = &self.lane.table, i
            loop.door.beside, loop.door.loops = self._doors, threads
            self._doors[i] = &loop.door
            self.lane.table.wakes[i] = self._admission.desks[i].wake = loop.wake
            self._loops.append(loop)

    def __dealloc__(self):
        free(self._doors)

    def put_identity(self, TlsIdentity identity):
        self._identity.put(identity, identity.ctx if identity is not None else NULL)

    def put_peps(self, PepList peps not None):
        self._peps.put(peps, &peps.peps)

    def put_ready(self, ready):
        cdef Loop loop
        for loop in self._loops:
            remit_flag_set(&loop.ready, bool(ready))

    def stop(self, grace_ms, notice_ms=NOTICE_MS):
        cdef Loop loop
        for loop in self._loops:
            loop.notice_ns = notice_ms * MS_NS
            loop.grace_ns = grace_ms * MS_NS
            remit_flag_set(&loop.stopping, 1)
            eventfd_write(loop.wake, 1)

    def serve(self, int fd):
        cdef Loop loop
        if self._serving:
            raise RuntimeError("this listener serves already, or has served")
        self._serving = 1
        os.set_blocking(fd, False)
        for loop in self._loops:
            loop._join(fd)
        others = [threading.Thread(target=_run, args=(loop,), name="door", daemon=True) for loop in self._loops[1:]]
        try:
            for other in others:
                other.start()
            _run(self._loops[0])
        finally:
            # When a thread cannot be started those that were are ended: they work on memory of ours.
            if any(other.ident is None for other in others):
                self.stop(0, 0)
            for other in others:
                if other.ident is not None:
                    other.join()
            self._admission.close_waiting()
            self.lane.close()
            self.strangers.close()

    def counters(self):
        cdef dict total = {}
        cdef Loop loop
        for loop in self._loops:
            for name, value in _counted(loop).items():
                if isinstance(value, dict):
                    into = total.setdefault(name, {})
                    for key, n in value.items():
                        into[key] = into.get(key, 0) + n
                elif name == "buffered_max":
                    total[name] = max(total.get(name, 0), value)
                else:
                    total[name] = total.get(name, 0) + value
        total["loops"] = [self._doors[i].stats.accepted for i in range(len(self._loops))]
        total["open"] = admission_open(self._admission)
        total["slow_waiting"] = self.lane.waiting()
        return total


cdef dict _counted(Loop loop):
    cdef const Stats *s = &loop.door.stats
    return {
        "accepted": s.accepted, "events": s.events, "bytes_in": s.bytes_in, "bytes_out": s.bytes_out,
        "records_in": s.records_in,
        "frames_in": s.frames_in, "headers_in": s.headers_in, "streams": s.streams, "calls": s.calls,
        "health": s.health,
        "slow": s.slow, "slow_full": s.slow_full, "check_streams": s.talks, "notices": s.notices,
        "refused": s.refused, "resets_in": s.resets_in,
        "resets_out": s.resets_out, "cancelled": s.cancelled, "buffered_max": s.buffered_max,
        "internal": s.internal, "verified": s.verified, "held": loop.door.held,
        "goaways": {CAUSE_NAMES[i]: s.goaways[i] for i in range(1, CAUSES) if s.goaways[i]},
        "statuses": {i: s.statuses[i] for i in range(STATUSES) if s.statuses[i]},
        "closed": {CAUSE_NAMES[i]: s.closed[i] for i in range(1, CAUSES) if s.closed[i]},
        "refusals": {(<bytes> refusal_text(i)).decode(): loop.refusals[i]
                     for i in range(1, REFUSALS) if loop.refusals[i]},
    }
