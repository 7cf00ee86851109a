"""One call at a native door: who asks, what for, and whether it is decided here, refused, or left to Python."""
from fastpath.admission cimport Guest
from fastpath.call cimport Call, call_answer
from fastpath.decide cimport PEER_AGENT, PEER_ENVOY
from fastpath.grpc_text cimport (
    CODE_DEADLINE_EXCEEDED, CODE_INVALID_ARGUMENT, CODE_NOT_FOUND, CODE_OK, CODE_RESOURCE_EXHAUSTED,
    CODE_UNAUTHENTICATED, CODE_UNAVAILABLE,
)
from fastpath.held cimport Held, slot_enter, slot_leave, slot_puts
from fastpath.http2 cimport (
    Conn, METHOD_BATCH, METHOD_EXT_AUTHZ, METHOD_HEALTH, METHOD_REPORT, METHOD_WATCH, Stream, http2_full,
    http2_message,
)
from fastpath.http2_out cimport http2_refuse, http2_reply
from fastpath.lane cimport lane_ask
from fastpath.loop cimport Loop, Peps, remit_flag
from fastpath.request cimport DOOR_BATCH, DOOR_CHECK, DOOR_EXT_AUTHZ, DOOR_REPORT
from fastpath.streams cimport answer_talk
from fastpath.tls cimport tls_identify
from fastpath.verify cimport REFUSED_EXPIRED, REFUSED_INTERNAL, REFUSED_NOT_YET_VALID, Trust
from fastpath.wire cimport Reader, Text, WIRE_BYTES, WireField, out_raw, reader_next, reader_open, text_is, text_of
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, strlen

cdef int64_t MICROSECOND_NS = 1000


cdef bint _pep(Loop self, Conn *conn) noexcept nogil:
    """Whether the caller is a PEP by the list now in force."""
    cdef Held *held = slot_enter(self.peps)
    cdef const Peps *peps
    cdef uint32_t i
    cdef bint found = False
    if held == NULL:
        return False
    peps = <const Peps *> held.data
    for i in range(peps.count):
        if peps.ids[i].n == conn.peer.spiffe_id.n and (
            memcmp(peps.ids[i].p, conn.peer.spiffe_id.p, conn.peer.spiffe_id.n) == 0
        ):
            found = True
            break
    slot_leave(held)
    return found


cdef void _look_at_chain(Loop self, Conn *conn) noexcept nogil:
    """Verify the chain behind a TLS connection again, when the bundles changed or the clock alone may say otherwise."""
    cdef uint64_t puts = slot_puts(self.trust)
    cdef int refusal = conn.refusal
    cdef Held *held
    cdef const Trust *trust
    if refusal == 0 and conn.trusted_at == puts + 1:
        return
    held = slot_enter(self.trust)
    trust = <const Trust *> held.data
    # The clock alone changes these verdicts, so they are not remembered.
    if trust.generation != conn.peer.bundle_generation or refusal == REFUSED_EXPIRED or (
        refusal == REFUSED_NOT_YET_VALID or refusal == REFUSED_INTERNAL
    ):
        tls_identify(conn, trust)
        conn.listed_at = 0
    slot_leave(held)
    conn.trusted_at = puts + 1


cdef void identify(Loop self, Conn *conn) noexcept nogil:
    """Who calls, as of now: the chain again when the bundles changed, the kind by the list of PEPs."""
    cdef uint64_t puts = slot_puts(self.peps)
    # A loop without TLS has no `trust`.
    if conn.tls != NULL:
        _look_at_chain(self, conn)
    if conn.peer.refusal.n == 0 and conn.listed_at != puts + 1:
        conn.peer.kind = PEER_ENVOY if _pep(self, conn) else PEER_AGENT
        conn.listed_at = puts + 1


cdef bint is_late(const Stream *stream, int64_t now, int64_t deadline_ns) noexcept nogil:
    cdef int64_t timeout = stream.timeout_ns if stream.timeout_ns >= 0 else deadline_ns
    # No answer can arrive within a microsecond.
    return timeout < MICROSECOND_NS or now - stream.opened_ns >= timeout


cdef void _health(Loop self, Conn *conn, Stream *stream, Text message) noexcept nogil:
    """grpc.health.v1.Health/Check: HealthCheckRequest{service = 1} to HealthCheckResponse{status = 1}."""
    cdef Reader reader
    cdef WireField field
    cdef Text service = text_of(b"")
    cdef uint8_t answer[2]
    reader_open(&reader, message)
    while reader_next(&reader, &field):
        if field.number == 1 and field.type == WIRE_BYTES:
            service = field.bytes
    if reader.error:
        http2_refuse(conn, stream, CODE_INVALID_ARGUMENT, text_of(b"request.malformed"))
        return
    answer[0] = 8
    if text_is(service, b"live"):
        answer[1] = 1
    elif service.n == 0 or text_is(service, b"ready"):
        answer[1] = 1 if remit_flag(&self.ready) and not self.stop_at_ns else 2
    else:
        http2_refuse(conn, stream, CODE_NOT_FOUND, text_of(b""))
        return
    self.door.stats.health += 1
    http2_reply(conn, stream, answer, 2)


cdef void _slow(Loop self, Conn *conn, Stream *stream, const char *method, Text message) noexcept nogil:
    """Leave a call to Python; a lane without room, for all or for this peer, is an ERROR."""
    cdef Guest *guest = <Guest *> conn.guest
    cdef uint32_t *share = &guest.tickets if guest != NULL else &conn.tickets
    stream.ticket = lane_ask(
        &self.lane.table, self.door.loop, conn, stream, method, message, share, self.door.limits.tickets)
    if stream.ticket != NULL:
        conn.lasting = 1
        self.door.stats.slow += 1
        return
    self.door.stats.slow_full += 1
    http2_refuse(conn, stream, CODE_UNAVAILABLE, text_of(b"slow.full"))


cdef void _ask(Loop self, Conn *conn, int door, Text message, Call *call) noexcept nogil:
    self.arena.used, self.arena.failed = 0, 0
    call_answer(self.pdp, door, message, &conn.peer, self.door.now_ns, &self.arena, self.reply, self.record, call)


cdef bint _is_bundle_change(const Call *call) noexcept nogil:
    cdef const char *reason = "identity.bundle_changed"
    return call.reply.n == strlen(reason) and memcmp(call.reply.p, reason, call.reply.n) == 0


cdef void decide_message(Loop self, Conn *conn, int door, Text message, Call *call) noexcept nogil:
    identify(self, conn)
    self.door.stats.calls += 1
    _ask(self, conn, door, message, call)
    if conn.tls != NULL and call.code == CODE_UNAUTHENTICATED and _is_bundle_change(call):
        # Other bundles came into force between the two steps: the caller is verified again, by those.
        identify(self, conn)
        _ask(self, conn, door, message, call)
    if call.code == CODE_OK and call.reply.n == 0:
        # Envoy takes an empty answer for ALLOW.
        self.door.stats.internal += 1
        call.code = CODE_UNAVAILABLE
        out_raw(&call.reply, b"unavailable", strlen(b"unavailable"))


cdef void _decide(Loop self, Conn *conn, Stream *stream, Text message) noexcept nogil:
    cdef Call call
    cdef Text why
    cdef int door = DOOR_CHECK
    if stream.method == METHOD_EXT_AUTHZ:
        door = DOOR_EXT_AUTHZ
    elif stream.method == METHOD_BATCH:
        door = DOOR_BATCH
    elif stream.method == METHOD_REPORT:
        door = DOOR_REPORT
    decide_message(self, conn, door, message, &call)
    if call.code:
        why.p, why.n = <const char *> call.reply.p, <uint32_t> call.reply.n
        http2_refuse(conn, stream, call.code, why)
    else:
        http2_reply(conn, stream, call.reply.p, call.reply.n)


cdef void answer_call(Loop self, Conn *conn, Stream *stream) noexcept nogil:
    cdef Text message
    if stream.talk != NULL:
        answer_talk(self, conn, stream)
    elif not http2_message(stream, &message):
        self.door.stats.refused += 1
        http2_refuse(conn, stream, stream.refusal, text_of(stream.why))
    elif is_late(stream, self.door.now_ns, self.door.limits.deadline_ns):
        self.door.stats.refused += 1
        http2_refuse(conn, stream, CODE_DEADLINE_EXCEEDED, text_of(b"late"))
    elif http2_full(conn):
        self.door.stats.refused += 1
        http2_refuse(conn, stream, CODE_RESOURCE_EXHAUSTED, text_of(b"request.memory"))
    elif stream.method == METHOD_HEALTH:
        _health(self, conn, stream, message)
    elif stream.method == METHOD_WATCH:
        _slow(self, conn, stream, b"grpc.health.v1.Health/Watch", message)
    else:
        _decide(self, conn, stream, message)
