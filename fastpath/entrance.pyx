"""Who comes in at a native door (entrance.pxd): accepted, judged by what the kernel says, counted, given to a loop."""
from fastpath.admission cimport (
    admission_count, admission_enter, admission_hand_over, admission_least, admission_open, admission_take,
)
from fastpath.c.inet cimport AF_INET6, sockaddr_in, sockaddr_in6
from fastpath.c.linux cimport (
    EPOLLIN, EPOLLRDHUP, EPOLL_CTL_ADD, IPPROTO_TCP, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET, SO_PEERCRED,
    SO_PEERGROUPS, SO_PEERPIDFD, TCP_NODELAY, accept4, epoll_ctl, epoll_event, getpeername, getsockopt, setsockopt,
    socklen_t, ucred,
)
from fastpath.c.openssl_ssl cimport SSL_CTX
from fastpath.connection cimport PROCESS, conn_close, conn_count, conn_flush
from fastpath.decide cimport PEER_AGENT
from fastpath.held cimport Held, slot_enter, slot_leave
from fastpath.http2 cimport (
    CAUSE_CREDENTIALS, CAUSE_CROWD, CAUSE_DIED, CAUSE_DRAIN, CAUSE_FULL, CAUSE_HANDSHAKE, CAUSE_MEMORY, CAUSE_NONE,
    Conn, http2_open,
)
from fastpath.http2_out cimport http2_drain
from fastpath.line cimport Place, line_add
from fastpath.loop cimport Loop
from fastpath.strangers cimport strangers_add
from fastpath.tls cimport tls_begin
from fastpath.turns cimport PIECE_FIRST
from fastpath.wire cimport Text, text_of
from libc.errno cimport EMFILE, ENFILE, ENOPROTOOPT, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc
from libc.string cimport memcmp, memcpy
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.unistd cimport close, geteuid

cdef enum:
    ACCEPTS = 2              # connections accepted between two looks at the others
    MAPPED_N = 12
    GROUPS_MAX = 256         # supplementary groups of a Unix peer that are looked at
    INT64_BITS = 63

cdef const char *MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"   # before an address of IPv4 (RFC 4291 section 2.5.5.2)


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
    conn_close(self, oldest)


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
        failed = _may_enter(self, conn) or conn_count(self, conn, conn.peer.credential)
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
        conn_flush(self, conn)
    if conn.cause != CAUSE_NONE:
        conn_close(self, conn)


cdef void _share_out(Loop self, int fd) noexcept nogil:
    """Keep an accepted connection, or leave it to a loop that has fewer."""
    cdef int loop = admission_least(self.admission, self.door.loop)
    if loop != self.door.loop and admission_hand_over(self.admission, loop, fd):
        return
    admission_count(self.admission, self.door.loop, 1)
    _welcome(self, fd)


cdef void entrance_take_over(Loop self) noexcept nogil:
    """Connections that other loops accepted for this one."""
    cdef int fd = admission_take(self.admission, self.door.loop)
    while fd >= 0:
        _welcome(self, fd)
        fd = admission_take(self.admission, self.door.loop)


cdef void entrance_accept(Loop self) noexcept nogil:
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
