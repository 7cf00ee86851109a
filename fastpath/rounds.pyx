"""The rounds of a loop (rounds.pxd): what arrived, then some turns of those who wait, the clocks, what has ended."""
from fastpath.admission cimport admission_left, admission_over
from fastpath.c.linux cimport (
    EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLL_CTL_DEL, epoll_ctl, epoll_event, epoll_wait, eventfd_read,
)
from fastpath.clocks cimport clocks_look
from fastpath.connection cimport PROCESS, conn_bury, conn_close, conn_flush, conn_serve
from fastpath.entrance cimport entrance_accept, entrance_take_over
from fastpath.http2 cimport CAUSE_DIED, CAUSE_DRAIN, CAUSE_NONE, Conn, Stream
from fastpath.http2_out cimport http2_drain, http2_push
from fastpath.lane cimport Answer, lane_fetch
from fastpath.line cimport Place, line_add
from fastpath.loop cimport Loop, loop_read_clock, remit_flag, remit_flag_set
from fastpath.streams cimport tell_talks
from fastpath.turns cimport (
    PIECE_FIRST, ROUND_LIT_NS, ROUND_NS, Lit, Taken, lit_by, lit_for, turn_took,
)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

cdef enum:
    EVENTS = 64              # taken from epoll at once
    BURIED = 64              # connections and their streams freed in a round, and a share of what is left
    BURIED_SHARE = 4
    TICK_MS = 250            # how late a deadline may be noticed
    CONNS = 4                # of `turns`

cdef int64_t MS_NS = 1000000


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
            conn_serve(self, conn)
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
            conn_flush(self, conn)
        free(answer.p)
        if conn.cause != CAUSE_NONE:
            conn_close(self, conn)


cdef void _woken(Loop self) noexcept nogil:
    cdef uint64_t times
    eventfd_read(self.wake, &times)
    entrance_take_over(self)
    _come_back(self)
    tell_talks(self)


cdef void _event(Loop self, void *of, uint32_t what) noexcept nogil:
    cdef Conn *conn
    if of == &self.listening:
        entrance_accept(self)
        return
    if of == &self.wake:
        _woken(self)
        return
    conn = <Conn *> (<size_t> of & ~<size_t> PROCESS)
    if conn.fd < 0:
        return
    if <size_t> of & PROCESS:
        conn.cause = CAUSE_DIED
        conn_close(self, conn)
    elif conn.heavy or what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        # Nobody waits for the end of a connection, and many may end at once.
        line_add(&self.turns, &conn.turn)
    else:
        lit_by(&self.lit, conn, self.door.now_ns)
        conn_serve(self, conn)


cdef void _give_turns(Loop self) noexcept nogil:
    """A round of those that wait for their turn, as long as it may delay the others."""
    cdef const Place *next = self.turns.first
    cdef bint lit = next != NULL and lit_for(&self.lit, <const Conn *> next.conn, self.door.now_ns)
    cdef int64_t end = self.door.now_ns + (ROUND_LIT_NS if lit else ROUND_NS)
    while self.turns.first != NULL and self.door.now_ns < end:
        conn_serve(self, <Conn *> self.turns.first.conn)


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


cdef void _serve(Loop self) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef int64_t ticked
    cdef int n, i
    loop_read_clock(self)
    ticked = self.door.now_ns
    while True:
        n = epoll_wait(self.epoll, events, EVENTS, _patience(self))
        loop_read_clock(self)
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
        clocks_look(self)
        # Who opens and leaves faster than that does not pile up memory.
        conn_bury(self, BURIED + self.owed // BURIED_SHARE)
        if _over(self):
            entrance_take_over(self)
            if self.first == NULL or self.door.now_ns >= self.stop_at_ns:
                return


cdef void _end_all(Loop self) noexcept nogil:
    while self.first != NULL:
        self.first.cause = CAUSE_DRAIN
        conn_close(self, self.first)
    conn_bury(self, <uint32_t> -1)


cdef void rounds_run(Loop self) noexcept nogil:
    _serve(self)
    _end_all(self)


# ---------------------------------------------------------------- Python face

def turns(list given not None):
    cdef Conn conns[CONNS]
    cdef Conn *conn
    cdef Lit lit
    cdef Taken taken
    cdef int64_t began, ended
    cdef bint short
    cdef list made = []
    memset(conns, 0, sizeof(conns))
    memset(&lit, 0, sizeof(Lit))
    for who in range(CONNS):
        conns[who].piece, conns[who].heavy = PIECE_FIRST, 1
    for who, began, ended, size, more in given:
        if not 0 <= who < CONNS:
            raise ValueError(f"connection {who}: there are {CONNS}")
        conn = &conns[<int> who]
        lit_by(&lit, conn, began)
        short = lit_for(&lit, conn, ended)
        made.append((conn.piece, short))
        taken.bytes, taken.calls, taken.more = size, 1, more
        turn_took(conn, began, ended, &taken, short)
    return made
