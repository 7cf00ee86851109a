"""What time brings to the connections of a loop (clocks.pxd)."""
from fastpath.c.nghttp2 cimport NGHTTP2_CANCEL
from fastpath.connection cimport conn_close, conn_flush, conn_part
from fastpath.grpc_text cimport CODE_DEADLINE_EXCEEDED
from fastpath.http2 cimport (
    CAUSE_AGE, CAUSE_HANDSHAKE, CAUSE_IDLE, CAUSE_NONE, CAUSE_SETTINGS, CAUSE_STALL, Conn, Stream, http2_stalled,
)
from fastpath.http2_out cimport (
    http2_drain, http2_drain_last, http2_finish, http2_over, http2_ping, http2_push, http2_refuse, http2_reset,
)
from fastpath.line cimport line_add
from fastpath.loop cimport Loop
from fastpath.streams cimport verify_talks
from fastpath.talk cimport Talk
from fastpath.wire cimport text_of
from libc.stdint cimport int64_t, uint32_t

cdef enum:
    TICKED = 128             # connections and their streams of a tick between two looks at what arrived


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


cdef void _tick_talk(Conn *conn, Stream *stream) noexcept nogil:
    """A CheckStream may be silent for as long as it likes; what it has begun, and its answers, must come to an end."""
    cdef Talk *talk = stream.talk
    cdef int64_t now = conn.door.now_ns
    if stream.timeout_ns >= 0 and now - stream.opened_ns >= stream.timeout_ns:
        http2_finish(conn, stream, CODE_DEADLINE_EXCEEDED, text_of(b"late"))
    if (talk.part_ns and now - talk.part_ns > conn.door.limits.stream_ns and not http2_stalled(conn, talk)) or (
        talk.due_ns and now - talk.due_ns > conn.door.limits.stream_ns
    ):
        http2_reset(conn, stream.id, NGHTTP2_CANCEL)


cdef void _tick_slow(Conn *conn, Stream *stream) noexcept nogil:
    """A call in the slow lane: its first answer is due by its deadline or ours, the end of its stream by its own."""
    cdef int64_t timeout = stream.timeout_ns
    if timeout < 0:
        timeout = conn.door.limits.watch_ns if stream.answered else conn.door.limits.deadline_ns
    timeout = min(timeout, conn.door.limits.watch_ns)
    if conn.door.now_ns - stream.opened_ns < timeout or stream.code >= 0:
        return
    if stream.answered:
        http2_push(conn, stream, NULL, 0, CODE_DEADLINE_EXCEEDED)
    else:
        conn.door.stats.refused += 1
        http2_refuse(conn, stream, CODE_DEADLINE_EXCEEDED, text_of(b"late"))
        stream.code = CODE_DEADLINE_EXCEEDED


cdef void _tick_streams(Conn *conn) noexcept nogil:
    cdef int64_t now = conn.door.now_ns
    cdef Stream *stream = conn.first
    # They stand in the order of opening: behind one that has time left only those with clocks of their own have none.
    while stream != NULL and (conn.lasting or now - stream.opened_ns > conn.door.limits.stream_ns):
        if stream.ticket != NULL and stream.code < 0:
            _tick_slow(conn, stream)
        elif stream.talk != NULL and stream.talk.begun:
            _tick_talk(conn, stream)
        elif now - stream.opened_ns > conn.door.limits.stream_ns and stream.queued == 0:
            http2_reset(conn, stream.id, NGHTTP2_CANCEL)
        stream = stream.next
    if not conn.pinged and now - conn.heard_ns > conn.door.limits.keepalive_ns:
        conn.pinged, conn.pinged_ns = 1, now
        http2_ping(conn)


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
            _tick_streams(conn)
        conn_flush(self, conn)
        if conn.ready != NULL:
            line_add(&self.turns, &conn.turn)
        if conn.cause == CAUSE_NONE and conn.out == NULL and conn.draining and http2_over(conn):
            conn_part(self, conn)
    if conn.cause != CAUSE_NONE:
        conn_close(self, conn)


cdef void clocks_look(Loop self) noexcept nogil:
    """Look at the clocks of some connections; those that remain have their look after the events at hand."""
    cdef Conn *conn
    cdef uint32_t looked = 0
    while looked < TICKED and self.ticking != NULL:
        conn = self.ticking
        self.ticking = conn.next
        looked += 1 + conn.stream_count
        _tick_conn(self, conn)
