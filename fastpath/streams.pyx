"""CheckStream at a native door (streams.pxd).

A stream waits in the loop's order of calls like a call, and each time one question of it is decided, by the same way
as Check. Its answers and notices leave in the order in which they were made.
"""
from fastpath.admission cimport Guest
from fastpath.answers cimport decide_message, identify, is_late
from fastpath.bells cimport ear_open, ear_rings
from fastpath.call cimport DOOR_STREAM, NOTICE_BYTES, Call, call_notice, call_peer_refusal
from fastpath.grpc_text cimport (
    CODE_DEADLINE_EXCEEDED, CODE_INTERNAL, CODE_OK, CODE_RESOURCE_EXHAUSTED, CODE_UNAUTHENTICATED, CODE_UNAVAILABLE,
)
from fastpath.http2 cimport Conn, Stream, http2_full, http2_go_on, http2_heard, http2_stalled
from fastpath.http2_out cimport http2_finish, http2_refuse, http2_say, http2_talk
from fastpath.line cimport line_add
from fastpath.loop cimport Loop
from fastpath.open_streams cimport stream_wants
from fastpath.talk cimport CUT_BROKEN, CUT_MESSAGE, CUT_PART, Talk, talk_cut, talk_idle
from fastpath.wire cimport Out, Text, text_is, text_of
from libc.stdint cimport uint8_t, uint32_t

cdef extern from * nogil:
    """
    static inline uint32_t remit_one_more(uint32_t *p) { return __atomic_add_fetch(p, 1, __ATOMIC_RELAXED); }
    static inline void remit_one_less(uint32_t *p) { __atomic_fetch_sub(p, 1, __ATOMIC_RELAXED); }
    """
    uint32_t remit_one_more(uint32_t *p)
    void remit_one_less(uint32_t *p)


# ---------------------------------------------------------------- the begin

cdef bint _counted(Loop self, Conn *conn, Talk *talk) noexcept nogil:
    """Whether this peer may have one more."""
    cdef Guest *guest = <Guest *> conn.guest
    talk.share = &guest.talks if guest != NULL else &conn.talks
    if remit_one_more(talk.share) <= self.door.limits.talks:
        return True
    remit_one_less(talk.share)
    return False


cdef Text _refusal(Loop self, Conn *conn) noexcept nogil:
    """Why the caller may not ask as of now. Bundles that changed between two looks are no reason: they are looked at
    again."""
    cdef Text why
    identify(self, conn)
    why = call_peer_refusal(self.pdp, &conn.peer)
    return text_of(b"") if text_is(why, b"identity.bundle_changed") else why


cdef bint _refuse(Loop self, Conn *conn, Stream *stream, int code, Text why) noexcept nogil:
    self.door.stats.refused += 1
    stream.code = code
    http2_refuse(conn, stream, code, why)
    return False


cdef bint _begin(Loop self, Conn *conn, Stream *stream) noexcept nogil:
    cdef Text why = _refusal(self, conn)
    if why.n:
        return _refuse(self, conn, stream, CODE_UNAUTHENTICATED, why)
    if is_late(stream, self.door.now_ns, self.door.limits.deadline_ns):
        return _refuse(self, conn, stream, CODE_DEADLINE_EXCEEDED, text_of(b"late"))
    if http2_full(conn):
        return _refuse(self, conn, stream, CODE_RESOURCE_EXHAUSTED, text_of(b"request.memory"))
    if not _counted(self, conn, stream.talk):
        return _refuse(self, conn, stream, CODE_RESOURCE_EXHAUSTED, text_of(b"request.streams"))
    ear_open(&self.pdp.bells.table, &self.door.room, &stream.talk.ear, conn.peer.spiffe_id)
    stream.talk.leaving = conn.draining == 2
    http2_talk(conn, stream)
    _tell(self, conn, stream, True)
    return True


# ---------------------------------------------------------------- one question

cdef void _question(Loop self, Conn *conn, Stream *stream, Text message) noexcept nogil:
    cdef Call call
    cdef Text why
    decide_message(self, conn, DOOR_STREAM, message, &call)
    if call.code:
        why.p, why.n = <const char *> call.reply.p, <uint32_t> call.reply.n
        http2_finish(conn, stream, call.code, why)
        return
    http2_say(conn, stream, call.reply.p, call.reply.n)
    http2_heard(conn, stream, message)


cdef void _end(Conn *conn, Stream *stream, bint cut_short) noexcept nogil:
    """Nothing is left to decide: end the stream when it is to end."""
    if stream.refusal:
        http2_finish(conn, stream, stream.refusal, text_of(stream.why))
    elif stream.ended and cut_short:
        http2_finish(conn, stream, CODE_INTERNAL, text_of(b"request.framing"))
    elif stream.ended:
        http2_finish(conn, stream, CODE_OK, text_of(b""))
    elif stream.talk.leaving:
        http2_finish(conn, stream, CODE_UNAVAILABLE, text_of(b"draining"))


cdef void answer_talk(Loop self, Conn *conn, Stream *stream) noexcept nogil:
    cdef Talk *talk = stream.talk
    cdef Text message
    cdef int code
    cdef const char *why
    cdef int cut
    if stream.code >= 0 or (not talk.begun and not _begin(self, conn, stream)):
        return
    if http2_stalled(conn, talk):
        # Its turn comes again when the answers were taken.
        return
    _tell(self, conn, stream, False)
    cut = talk_cut(talk, self.door.limits.message_bytes, &message, &code, &why)
    if cut == CUT_MESSAGE and http2_full(conn):
        http2_finish(conn, stream, CODE_RESOURCE_EXHAUSTED, text_of(b"request.memory"))
    elif cut == CUT_MESSAGE:
        _question(self, conn, stream, message)
    elif cut == CUT_BROKEN:
        http2_finish(conn, stream, code, text_of(why))
    else:
        _end(conn, stream, cut == CUT_PART)
    if stream.code < 0 and not http2_stalled(conn, talk):
        if talk.owed:
            # The peer could not go on with its message meanwhile.
            talk.part_ns = 0
        http2_go_on(conn, stream)


# ---------------------------------------------------------------- notices

cdef void _tell(Loop self, Conn *conn, Stream *stream, bint first) noexcept nogil:
    """Queue a notice when there is news: before what is decided after it."""
    cdef uint8_t room[NOTICE_BYTES]
    cdef Out out
    stream.talk.news = 0
    if not first and not ear_rings(&self.pdp.bells.table, &stream.talk.ear):
        return
    out.p, out.n, out.cap, out.failed = room, 0, sizeof(room), 0
    if call_notice(self.pdp, &stream.talk.ear, first, &out):
        self.door.stats.notices += 1
        http2_say(conn, stream, out.p, out.n)


cdef void tell_talks(Loop self) noexcept nogil:
    cdef Talk *talk = self.door.talks
    cdef Conn *conn
    while talk != NULL:
        if ear_rings(&self.pdp.bells.table, &talk.ear):
            conn = <Conn *> talk.conn
            if talk_idle(talk):
                stream_wants(conn, <Stream *> talk.stream)
                line_add(&self.turns, &conn.turn)
            else:
                # Behind what waits: a newer notice takes the place of one that was not told.
                talk.news = 1
        talk = talk.next


cdef void verify_talks(Loop self, Conn *conn) noexcept nogil:
    cdef Stream *stream = conn.first
    cdef Text why
    why.n = 0
    while stream != NULL:
        if stream.talk != NULL and stream.talk.begun and stream.code < 0:
            why = why if why.n else _refusal(self, conn)
            if why.n == 0:
                return
            http2_finish(conn, stream, CODE_UNAUTHENTICATED, why)
        stream = stream.next
