"""The data plane in one object: bytes of a call in, bytes of the answer out (ARCHITECTURE: the way of one call).

Python enters with the bytes and the verified peer and leaves with the reply; everything between runs without the GIL
and touches no Python object. What the call reads (generation, mapping, state) is taken once at its start, so that one
answer never mixes two of them.
"""
from fastpath.authority cimport Live
from fastpath.bells cimport (
    NEWS_POLICY, BellRoom, Bells, Ear, bells_ring_all, ear_close, ear_listen, ear_open, ear_rings, notice_write
)
from fastpath.c.openssl cimport SHA256
from fastpath.canonical cimport canonical_call
from fastpath.causes cimport Causes, causes_add
from fastpath.columns cimport COL_CRED_BOUND, COL_CRED_KIND, COL_CRED_TTL_S
from fastpath.counters cimport counters_add, counters_bump, counters_view
from fastpath.decide cimport (
    OUTCOME_ALLOW,
    OUTCOME_ERROR,
    OUTCOME_UNSPECIFIED,
    PEER_ENVOY,
    Decision,
    Peer,
    decide,
    peer_refusal,
)
from fastpath.envoy cimport HttpCall, envoy_decode
from fastpath.held cimport Held, Slot, slot_enter, slot_leave
from fastpath.journal cimport JOURNAL_FULL
from fastpath.live_state cimport authority_changes, authority_epoch
from fastpath.mapping cimport Mapping, mapping_apply, mapping_check, mapping_principal
from fastpath.peer cimport VerifiedPeer
from fastpath.record cimport RECORD_BYTES_MAX, record_encode, record_settled
from fastpath.replay cimport (
    REPLAY_ANSWERED,
    REPLAY_NEW,
    REPLAY_PENDING,
    REPLAY_REUSED,
    REPLAY_UNTRACKED,
    ReplayKey,
)
from fastpath.reply cimport reply_check, reply_ext_authz
from fastpath.request cimport (
    DOOR_BATCH,
    DOOR_CHECK,
    DOOR_EXPLAIN,
    DOOR_EXT_AUTHZ,
    DOOR_EXT_AUTHZ_NETWORK,
    DOOR_REPORT,
    Request,
    request_init,
)
from fastpath.settle cimport REPORT_SETTLED, REPORT_UNKNOWN, Report, report_read, report_reply
from fastpath.spending cimport (
    SETTLED_MAX,
    Grounds,
    Settled,
    authority_close,
    authority_ground,
    authority_release,
    authority_reopen,
    authority_settle,
)
from fastpath.table cimport Generation
from fastpath.stream_messages cimport question_of, write_error
from fastpath.target cimport column
from fastpath.value cimport Arena, arena_take, cell_bool, cell_long, cell_string, uid_make
from fastpath.wire cimport (
    WIRE_BYTES,
    Out,
    Reader,
    Text,
    WireField,
    out_close,
    out_open,
    out_raw,
    reader_next,
    reader_open,
    text_of,
)

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

import secrets

cdef extern from * nogil:
    """
    static inline uint64_t remit_take(uint64_t *p) { return __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
    """
    uint64_t remit_take(uint64_t *p)


cdef enum GrpcStatus:        # grpc/status.proto
    GRPC_OK = 0
    GRPC_INVALID_ARGUMENT = 3
    GRPC_UNAVAILABLE = 14
    GRPC_UNAUTHENTICATED = 16

cdef enum:
    BATCH_ITEMS_FIELD = 1    # BatchCheckRequest.items and BatchCheckResponse.items
    STREAM_ANSWER_FIELD = 1  # CheckStreamResponse.answer


cdef class Scratch:
    """Native memory of one call in flight. The record has room of its own: a call that fills the arena is recorded."""
    cdef Arena arena
    cdef uint8_t *reply
    cdef uint8_t *record

    def __cinit__(self, size_t arena_bytes):
        memset(&self.arena, 0, sizeof(Arena))
        self.arena.base = <uint8_t *> malloc(arena_bytes)
        self.arena.cap = arena_bytes
        self.reply = <uint8_t *> malloc(CALL_REPLY_BYTES)
        self.record = <uint8_t *> malloc(RECORD_BYTES_MAX)
        if self.arena.base == NULL or self.reply == NULL or self.record == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.arena.base)
        free(self.reply)
        free(self.record)


cdef int64_t _read(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <int64_t> t.tv_sec * 1000000000 + t.tv_nsec


cdef Request *_new_request(Call *c, int door, int64_t budget_ns) noexcept nogil:
    """An empty request on the arena, timed; NULL when even that does not fit."""
    cdef Request *request = <Request *> arena_take(c.arena, sizeof(Request))
    cdef int64_t injected = c.authority.now_ns
    if request == NULL:
        return NULL
    request_init(request)
    # Nobody is named until the mapping names them: what is refused earlier is recorded with empty uids.
    request.principal = request.action = request.resource = uid_make(c.arena, b"", 0, b"", 0)
    if request.principal == NULL:
        return NULL
    request.door = door
    request.started_ns = injected or c.now_ns or _read(CLOCK_MONOTONIC)
    request.started_unix_ns = c.authority.now_unix_ns if c.authority.now_unix_ns else _read(CLOCK_REALTIME)
    request.deadline_ns = request.started_ns + budget_ns
    return request


cdef void _refuse(Request *request, const char *reason) noexcept nogil:
    if request.refusal.n == 0:
        request.refusal = text_of(reason)


cdef void _fail(Decision *decision, const char *reason) noexcept nogil:
    """Turn whatever was decided into ERROR."""
    decision.outcome = OUTCOME_ERROR
    decision.reason = text_of(reason)
    decision.obligation.n = 0
    decision.policies_total = 0
    decision.cacheable = 0


cdef void _unrecorded(Call *c, const char *reason) noexcept nogil:
    """What the journal did not take is not answered, and so has cost nothing."""
    if c.decision.outcome == OUTCOME_ALLOW and c.authority.live != NULL:
        authority_release(c.authority.live, c.decision.evaluation_id, c.decision.sequence)
    _fail(&c.decision, reason)


cdef void _decide(Pdp pdp, Call *c) noexcept nogil:
    """Decide, record, count. The record is in the journal before the answer exists: nothing answered is lost."""
    cdef Out record
    # The number is taken from the shared state, so that two calls never get one id; the snapshot carries it to decide.
    c.authority.sequence = remit_take(&pdp.live.sequence)
    decide(c.peer, c.request, c.table, &c.authority, c.arena, &c.decision, NULL)
    if pdp.has_journal:
        record.p = c.record
        record.n = 0
        record.cap = RECORD_BYTES_MAX
        record.failed = 0
        record_encode(&record, c.peer, c.request, c.table, &c.authority, &c.decision)
        if record.failed:
            _unrecorded(c, b"limit")
        elif pdp.journal.append(record.p, record.n) == 0:
            _unrecorded(c, b"journal.full" if pdp.journal.state == JOURNAL_FULL else b"journal.failed")
    counters_add(&pdp.counters_, c.request.door, &c.decision)


cdef void _status(Call *c, int code, Text message) noexcept nogil:
    """Answer with a gRPC status: the reply is its message."""
    c.code = code
    c.reply.n = 0
    c.reply.failed = 0
    out_raw(&c.reply, message.p, message.n)


cdef bint _open_request(Pdp pdp, Call *c, int door) noexcept nogil:
    """Begin a call; false when it cannot even be judged, and then the status is set."""
    c.request = _new_request(c, door, pdp.budget_ns)
    if c.request == NULL:
        _status(c, GRPC_UNAVAILABLE, text_of(b"limit"))
        return False
    return True


cdef bint _refused_peer(Pdp pdp, Call *c) noexcept nogil:
    """Whether the caller may not ask at all; then it is recorded and answered, and no byte of it was parsed."""
    cdef Text refusal = peer_refusal(c.peer, &c.authority, c.request.started_unix_ns)
    if refusal.n == 0:
        return False
    _decide(pdp, c)
    _status(c, GRPC_UNAUTHENTICATED, refusal)
    return True


cdef void _malformed(Pdp pdp, Call *c) noexcept nogil:
    counters_bump(&pdp.counters_.malformed)
    _refuse(c.request, b"request.malformed")
    _decide(pdp, c)
    _status(c, GRPC_INVALID_ARGUMENT, text_of(b"request.malformed"))


cdef void _ext_authz(Pdp pdp, Call *c, Text message) noexcept nogil:
    cdef HttpCall *http
    if not _open_request(pdp, c, DOOR_EXT_AUTHZ) or _refused_peer(pdp, c):
        return
    http = <HttpCall *> arena_take(c.arena, sizeof(HttpCall))
    if http == NULL:
        _status(c, GRPC_UNAVAILABLE, text_of(b"limit"))
        return
    if envoy_decode(<const uint8_t *> message.p, message.n, c.arena, http) != 0:
        _malformed(pdp, c)
        return
    if not http.has_http:
        c.request.door = DOOR_EXT_AUTHZ_NETWORK
    if c.peer.kind != PEER_ENVOY:
        # INVARIANT (who asserts): only an allow-listed PEP may name a principal other than itself.
        _refuse(c.request, b"identity.not_a_pep")
    elif c.rules != NULL:
        canonical_call(http, &pdp.canonical, c.arena)
        mapping_apply(c.rules, http, c.table, c.arena, c.request)
    _decide(pdp, c)
    reply_ext_authz(&c.reply, &c.decision, c.request, &pdp.reply_rules)


cdef void _replay_key(const Call *c, Text message, ReplayKey *key) noexcept nogil:
    """Identify a repeated request: caller, credential and request id, content, and what decides it."""
    cdef uint8_t parts[96]
    SHA256(<const unsigned char *> c.peer.spiffe_id.p, c.peer.spiffe_id.n, &parts[0])
    SHA256(<const unsigned char *> c.request.request_id.p, c.request.request_id.n, &parts[32])
    # Policies read how the caller was known, so an answer holds for that credential alone.
    SHA256(<const unsigned char *> c.peer.credential.p, c.peer.credential.n, &parts[64])
    SHA256(parts, 96, key.caller)
    SHA256(<const unsigned char *> message.p, message.n, key.content)
    key.generation = c.table.generation if c.table != NULL else 0
    key.epoch = c.authority.epoch
    key.changes = c.changes
    key.revision = c.revision


cdef void _answer_check(Pdp pdp, Call *c) noexcept nogil:
    _decide(pdp, c)
    if c.decision.outcome == OUTCOME_ERROR and not c.several:
        _status(c, GRPC_UNAVAILABLE, c.decision.reason)
        return
    reply_check(&c.reply, &c.decision, c.request)


cdef void _check_once(Pdp pdp, Call *c, Text message) noexcept nogil:
    """Decide a mapped Check unless the same question was answered already."""
    cdef ReplayKey key
    cdef Grounds grounds
    cdef int64_t now = c.request.started_ns
    cdef int found = REPLAY_UNTRACKED
    # While we must not decide, an answer from before that moment must not be given either.
    if c.request.request_id.n and c.request.refusal.n == 0 and c.authority.not_ready.n == 0 and c.table != NULL:
        _replay_key(c, message, &key)
        found = pdp.replay.begin(&key, now, c.authority.live, &c.reply)
    if found == REPLAY_ANSWERED:
        counters_bump(&pdp.counters_.replayed)
        return
    if found == REPLAY_PENDING:
        _status(c, GRPC_UNAVAILABLE, text_of(b"request.in_flight"))
        return
    if found == REPLAY_REUSED:
        _refuse(c.request, b"request.id_reused")
    _answer_check(pdp, c)
    if found == REPLAY_NEW:
        if c.decision.outcome == OUTCOME_ERROR:
            # The sidecar's own state failed the call: a retry deserves a new decision.
            pdp.replay.forget(&key)
        else:
            memset(&grounds, 0, sizeof(Grounds))
            if c.decision.outcome == OUTCOME_ALLOW:
                authority_ground(c.decision.evaluation_id, c.decision.sequence, &c.decision.standing, &grounds)
            pdp.replay.answer(&key, &grounds, &c.reply)


cdef void _direct_credential(const Peer *peer, Request *request) noexcept nogil:
    """What a caller at our own door proved: the mapping only knows what Envoy says of a caller."""
    if peer.bundle_generation == 0:
        # A Unix socket: the folder's permissions are the proof, nothing that a peer could lose or that ends.
        cell_string(column(request, COL_CRED_KIND), b"unix", 4)
        cell_bool(column(request, COL_CRED_BOUND), False)
        return
    cell_long(column(request, COL_CRED_TTL_S), max(0, peer.not_after_s - request.started_unix_ns // 1000000000))


cdef bint _map_check(Pdp pdp, Call *c, Text message) noexcept nogil:
    """Who asks and what; false when the message is not a CheckRequest."""
    if c.rules == NULL:
        return True
    mapping_principal(c.rules, c.peer.spiffe_id, c.table, c.arena, c.request)
    _direct_credential(c.peer, c.request)
    return mapping_check(c.rules, <const uint8_t *> message.p, message.n, c.table, c.arena, c.request) == 0


cdef void _check(Pdp pdp, Call *c, Text message) noexcept nogil:
    if not _open_request(pdp, c, DOOR_CHECK) or _refused_peer(pdp, c):
        return
    if not _map_check(pdp, c, message):
        _malformed(pdp, c)
        return
    _check_once(pdp, c, message)


cdef void _explain(Pdp pdp, Call *c, Text message) noexcept nogil:
    """A dry run in the name of an agent: recorded as such, nothing else moves."""
    if not _open_request(pdp, c, DOOR_EXPLAIN) or _refused_peer(pdp, c):
        return
    if not _map_check(pdp, c, message):
        _status(c, GRPC_INVALID_ARGUMENT, text_of(b"request.malformed"))
        return
    c.request.dry_run = 1
    _answer_check(pdp, c)


cdef size_t _begin_part(Call *c, uint32_t field, Out *whole) noexcept nogil:
    """Begin an answer within the reply: until _end_part `c.reply` is that answer alone."""
    cdef size_t start = out_open(&c.reply, field)
    whole[0] = c.reply
    c.reply.p += whole.n
    c.reply.n = 0
    c.reply.cap = min(<size_t> REPLY_BYTES, whole.cap - whole.n)
    return start


cdef void _end_part(Call *c, size_t start, Out *whole) noexcept nogil:
    whole.n += c.reply.n
    c.reply = whole[0]
    out_close(&c.reply, start)


cdef void _stream(Pdp pdp, Call *c, Text message) noexcept nogil:
    """One question of a CheckStream, as Check decides it. What our own state fails is an answer here."""
    cdef Out whole
    cdef Text question
    cdef size_t start
    if not _open_request(pdp, c, DOOR_CHECK) or _refused_peer(pdp, c):
        return
    if not question_of(message, &question) or not _map_check(pdp, c, question):
        _malformed(pdp, c)
        return
    c.several = True
    start = _begin_part(c, STREAM_ANSWER_FIELD, &whole)
    _check_once(pdp, c, question)
    if c.code != GRPC_OK:
        # The same question is being decided for another call of the caller's.
        c.code = GRPC_OK
        write_error(&c.reply, c.request.request_id, b"request.in_flight")
    _end_part(c, start, &whole)


cdef int _batch_item(Pdp pdp, Call *c, Text message) noexcept nogil:
    """Answer one question of a batch into the reply; 0, or 1 when its status ends the whole batch."""
    cdef size_t used = c.arena.used
    cdef Out whole
    cdef size_t start = _begin_part(c, BATCH_ITEMS_FIELD, &whole)
    memset(&c.decision, 0, sizeof(Decision))
    if not _open_request(pdp, c, DOOR_BATCH):
        return 1
    if not _map_check(pdp, c, message):
        _malformed(pdp, c)
        return 1
    _check_once(pdp, c, message)
    if c.code != GRPC_OK or c.reply.failed:
        return 1
    _end_part(c, start, &whole)
    # What the item built is no longer needed: the bound holds per item, not per batch.
    c.arena.used = used
    c.arena.failed = 0
    return c.reply.failed


cdef void _batch(Pdp pdp, Call *c, Text message) noexcept nogil:
    cdef Reader reader
    cdef WireField f
    cdef int count = 0
    cdef Out start = c.reply
    c.several = True
    if not _open_request(pdp, c, DOOR_BATCH) or _refused_peer(pdp, c):
        return
    reader_open(&reader, message)
    while reader_next(&reader, &f):
        if f.number != BATCH_ITEMS_FIELD:
            continue
        count += 1
        if f.type != WIRE_BYTES or count > BATCH_MAX or _batch_item(pdp, c, f.bytes):
            break
    else:
        if reader.error == 0 and count:
            return
    # A batch is answered whole or not at all.
    start.n = 0
    c.reply.p, c.reply.cap = start.p, start.cap
    if c.code == GRPC_OK or c.code == GRPC_INVALID_ARGUMENT:
        _status(c, GRPC_INVALID_ARGUMENT, text_of(b"request.batch"))
    else:
        _status(c, c.code, text_of(b"not_ready.batch"))


cdef bint _journaled(Pdp pdp, Call *c, const Report *report, const Settled *changes, int n) noexcept nogil:
    """Whether the journal has what the report changes."""
    cdef Out record
    if not pdp.has_journal:
        return True
    record.p, record.n, record.cap, record.failed = c.record, 0, RECORD_BYTES_MAX, 0
    record_settled(
        &record, c.request.started_unix_ns, c.table.generation if c.table != NULL else 0, c.authority.epoch,
        report.evaluation, report.executed, changes, n)
    return not record.failed and pdp.journal.append(record.p, record.n) != 0


cdef void _report(Pdp pdp, Call *c, Text message) noexcept nogil:
    """Settle what an allowed call took. Who made the call may report it, and an Envoy what it asked for."""
    cdef Settled changes[SETTLED_MAX]
    cdef Report report
    cdef Text agent
    cdef int n
    if not _open_request(pdp, c, DOOR_REPORT) or _refused_peer(pdp, c):
        return
    if report_read(message, &report):
        _malformed(pdp, c)
        return
    if c.authority.live == NULL:
        report_reply(&c.reply, REPORT_UNKNOWN)
        return
    agent = text_of(b"") if c.peer.kind == PEER_ENVOY else c.peer.spiffe_id
    n = authority_close(
        c.authority.live, report.evaluation, agent, report.executed, report.cost, report.size, changes)
    if n < 0:
        report_reply(&c.reply, REPORT_UNKNOWN)
    elif _journaled(pdp, c, &report, changes, n):
        authority_settle(c.authority.live, changes, n)
        report_reply(&c.reply, REPORT_SETTLED)
    else:
        authority_reopen(c.authority.live, report.evaluation, changes, n)
        _status(c, GRPC_UNAVAILABLE, text_of(b"journal.failed"))


cdef class InForce:
    """Owns what one Force points to."""


cdef void call_answer(
    Pdp pdp, int door, Text message, const Peer *peer, int64_t now_ns, Arena *arena, uint8_t *reply, uint8_t *record,
    Call *c
) noexcept nogil:
    cdef Held *held = slot_enter(pdp.in_force)
    cdef const Force *force = <const Force *> held.data
    # Until `decide` has filled it a decision has no outcome and no reason, and nothing else of it is read.
    c.decision.outcome = OUTCOME_UNSPECIFIED
    c.decision.reason = text_of(b"")
    c.request = NULL
    c.code = GRPC_OK
    c.several = False
    c.peer = peer
    c.now_ns = now_ns
    c.table = force.table
    c.rules = force.rules
    c.authority = force.authority
    c.changes = 0
    if c.authority.live != NULL:
        c.authority.epoch = authority_epoch(c.authority.live)
        c.changes = authority_changes(c.authority.live)
    c.revision = force.revision
    c.arena = arena
    c.record = record
    c.reply.p, c.reply.n, c.reply.cap, c.reply.failed = reply, 0, CALL_REPLY_BYTES, 0
    if door == DOOR_EXT_AUTHZ:
        _ext_authz(pdp, c, message)
    elif door == DOOR_CHECK:
        _check(pdp, c, message)
    elif door == DOOR_STREAM:
        _stream(pdp, c, message)
    elif door == DOOR_EXPLAIN:
        _explain(pdp, c, message)
    elif door == DOOR_REPORT:
        _report(pdp, c, message)
    else:
        _batch(pdp, c, message)
    causes_add(pdp.causes, c.decision.reason)
    slot_leave(held)


cdef Text call_peer_refusal(Pdp pdp, const Peer *peer) noexcept nogil:
    cdef Held *held = slot_enter(pdp.in_force)
    cdef Text why = peer_refusal(peer, &(<const Force *> held.data).authority, 0)
    slot_leave(held)
    return why


cdef bint call_notice(Pdp pdp, Ear *ear, bint first, Out *out) noexcept nogil:
    cdef Held *held
    cdef const Force *force
    cdef uint32_t news = ear_listen(&pdp.bells.table, ear)
    if news == 0 and not first:
        return False
    # Read after the ear has listened: what the notice names is as new as what it tells of.
    held = slot_enter(pdp.in_force)
    force = <const Force *> held.data
    notice_write(
        out, 0 if first else news,
        authority_epoch(force.authority.live) if force.authority.live != NULL else force.authority.epoch,
        force.table.generation if force.table != NULL else 0)
    slot_leave(held)
    return True


cdef class StreamEar:

    def __init__(self, Pdp pdp not None, BellRoom room not None, str agent not None):
        cdef bytes name = agent.encode()
        cdef Text text
        text.p, text.n = name, <uint32_t> len(name)
        self._pdp, self._room = pdp, room
        ear_open(&pdp.bells.table, &room.room, &self._ear, text)
        self._open = True

    def __dealloc__(self):
        if self._open:
            ear_close(&self._room.room)

    def notice(self):
        cdef uint8_t room[NOTICE_BYTES]
        cdef Out out
        out.p, out.n, out.cap, out.failed = room, 0, sizeof(room), 0
        if self._begun and not ear_rings(&self._pdp.bells.table, &self._ear):
            return None
        if not call_notice(self._pdp, &self._ear, not self._begun, &out):
            return None
        self._begun = True
        return PyBytes_FromStringAndSize(<char *> out.p, out.n)


cdef class Pdp:
    """Decides calls. Thread-safe: each call uses the generation, mapping and state in force when it started."""

    def __init__(self, journal, *, int budget_ms=50, bint strict_path=True, int headers_max=1024,
                 int path_bytes_max=8192, int mcp_status=403, bint identity_headers=True, size_t arena_bytes=4 << 20):
        self.journal = journal
        self.has_journal = journal is not None
        self.budget_ns = <int64_t> budget_ms * 1000000
        self.canonical.strict_path = strict_path
        self.canonical.headers_max = headers_max
        self.canonical.path_bytes_max = path_bytes_max
        memset(&self.reply_rules, 0, sizeof(self.reply_rules))
        self.reply_rules.mcp_status = mcp_status
        self.reply_rules.identity_header = identity_headers
        self.arena_bytes = arena_bytes
        self.replay = Replay()
        self.causes = Causes()
        self.in_force = Slot()
        self.bells = Bells()
        self._scratch = []
        self._not_ready = b"not_ready.starting"
        self.put_clock(0, 0, secrets.randbits(64), 0)

    def put_generation(self, Generation generation):
        """Put a generation in force; None: no decision until there is one. Calls in flight keep theirs."""
        self._generation = generation
        self._put()
        bells_ring_all(&self.bells.table, NEWS_POLICY)

    def put_mapping(self, Mapping mapping not None):
        self._mapping = mapping
        self.revision += 1
        self._put()
        bells_ring_all(&self.bells.table, NEWS_POLICY)

    def put_rules(self, Generation generation, Mapping mapping not None):
        """Put both in force together: no call sees one without the other."""
        # What was in force goes after both are in place: its end may run Python, and so other calls.
        cdef object before = (self._generation, self._mapping)
        self._generation, self._mapping = generation, mapping
        self.revision += 1
        self._put()
        bells_ring_all(&self.bells.table, NEWS_POLICY)
        del before

    def put_authority(self, Live live):
        """Enforce tasks, revocations, owners and approvals from now on; None: none of them."""
        self._live = live
        self.revision += 1
        self._put()
        if live is not None:
            live.listen(self.bells)

    def put_state(self, *, epoch, bundle_generation, str not_ready):
        """Put live state in force. `not_ready` is a reason code ("not_ready.svid", ..) or empty."""
        if bundle_generation != self.live.bundle_generation:
            self.revision += 1
        self.live.epoch = epoch
        self.live.bundle_generation = bundle_generation
        self._not_ready = not_ready.encode("ascii")
        self._put()

    def put_clock(self, now_ns, now_unix_ns, boot, sequence):
        """Inject clock and ids (tests); a clock of 0 is the real one."""
        self.live.now_ns, self.live.now_unix_ns = now_ns, now_unix_ns
        self.live.boot, self.live.sequence = boot, sequence
        self._put()

    cdef int _put(self) except -1:
        """Put what the attributes now say in force, whole: a call that begins sees all of it."""
        # Made first, since that may run other threads; from here to the swap none runs, and so no older state can
        # replace a newer one.
        cdef InForce made = InForce.__new__(InForce)
        made._generation, made._mapping = self._generation, self._mapping
        made._live = self._live
        made._not_ready = self._not_ready if self._mapping is not None else b"not_ready.mapping"
        made.force.table = &made._generation.table if made._generation is not None else NULL
        made.force.rules = made._mapping.rules if made._mapping is not None else NULL
        made.force.authority = self.live
        made.force.authority.live = made._live.state if made._live is not None else NULL
        made.force.authority.not_ready.p = made._not_ready
        made.force.authority.not_ready.n = <uint32_t> len(made._not_ready)
        made.force.revision = self.revision
        return self.in_force.put(made, &made.force)

    def ext_authz(self, bytes request not None, VerifiedPeer peer not None):
        """(gRPC status code, CheckResponse bytes, or the status message when the code is not 0)."""
        return self._answer(DOOR_EXT_AUTHZ, request, peer)

    def check(self, bytes request not None, VerifiedPeer peer not None):
        return self._answer(DOOR_CHECK, request, peer)

    def check_stream(self, bytes request not None, VerifiedPeer peer not None):
        return self._answer(DOOR_STREAM, request, peer)

    def bell_room(self):
        return BellRoom(self.bells)

    def batch_check(self, bytes request not None, VerifiedPeer peer not None):
        return self._answer(DOOR_BATCH, request, peer)

    def explain(self, bytes request not None, VerifiedPeer peer not None):
        """Like check, as a dry run; the record names the door."""
        return self._answer(DOOR_EXPLAIN, request, peer)

    def report(self, bytes request not None, VerifiedPeer peer not None):
        """What became of an allowed call: (gRPC status code, ReportResponse bytes or the status message)."""
        return self._answer(DOOR_REPORT, request, peer)

    def counters(self):
        """{"decisions": {(door, outcome): n}, "causes": {reason: n}, "latency_ns": {door: (bounds, counts, sum)}}."""
        view = counters_view(&self.counters_)
        view["causes"] = self.causes.view()
        return view

    cdef tuple _answer(self, int door, bytes request, object peer):
        # Taken first: making it may run other threads, and what follows must be of one moment.
        cdef Scratch scratch = self._scratch.pop() if self._scratch else Scratch(self.arena_bytes)
        # These names keep what the call borrows alive until it has been answered.
        cdef VerifiedPeer caller = peer
        cdef Call c
        cdef Text message
        message.p, message.n = request, <uint32_t> len(request)
        scratch.arena.used, scratch.arena.failed = 0, 0
        with nogil:
            call_answer(self, door, message, &caller.peer, 0, &scratch.arena, scratch.reply, scratch.record, &c)
        reply = PyBytes_FromStringAndSize(<char *> c.reply.p, c.reply.n)
        self._scratch.append(scratch)
        return c.code, reply
