"""Encodes the journal record of a decision (remit.decisions.v1.Record), and says what a record lacks.

Only what is named here is recorded. Headers, bodies, queries, arguments and credentials have no way in: no field of
Request that holds one is read.
"""
from fastpath.columns cimport (
    COL_APPROVAL_MATCHES,
    COL_APPROVAL_STATE,
    COL_CALL_DATA_LEVEL,
    COL_CRED_BOUND,
    COL_CRED_KIND,
    COL_CRED_TTL_S,
    COL_RISK_AGENT,
    COL_RISK_SOURCE_AGE_S,
    COL_RISK_USER,
    COL_SESSION_LABELS_SEEN,
    COL_SESSION_LEVEL_SEEN,
    COL_SESSION_UNTRUSTED_SEEN,
    COL_TASK_ID,
    COL_TASK_OWNER,
    columns_absent,
)
from fastpath.decide cimport LISTED_MAX, OUTCOME_ALLOW, Listed, PEER_AGENT
from fastpath.live_state cimport BUDGET_BYTES, BUDGET_CALLS, BUDGET_COST, Standing
from fastpath.program cimport (
    EVAL_ARITY,
    EVAL_ATTRIBUTE,
    EVAL_ENTITY,
    EVAL_EXTENSION,
    EVAL_LIMIT,
    EVAL_OVERFLOW,
    EVAL_TAG,
    EVAL_TYPE,
    EVAL_UNSENT,
)
from fastpath.rows cimport Table, node_attrs
from fastpath.spending cimport EFFECT_APPROVAL, EFFECT_BYTES, EFFECT_CALLS, EFFECT_COST, Settled
from fastpath.value cimport (
    KIND_BOOL,
    KIND_ENTITY,
    KIND_LONG,
    KIND_SET,
    KIND_STRING,
    Arena,
    Cell,
    Uid,
    arena_take,
    cell_at,
    cell_bool,
    cell_entity,
    cell_long,
    cell_point,
    cell_string,
    record_get,
    uid_id,
    uid_make,
    uid_type,
)
from fastpath.wire cimport (
    WIRE_BYTES,
    WIRE_FIXED64,
    WIRE_OK,
    WIRE_VARINT,
    Reader,
    Text,
    WireField,
    out_ascii,
    out_bytes,
    out_close,
    out_close_long,
    out_few,
    out_fixed64,
    out_open,
    out_open_long,
    out_raw,
    out_uint,
    out_varint,
    reader_next,
    reader_open,
    tag_of,
    text_is,
    text_of,
)

from fastpath.columns import COLUMNS

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

cdef enum:
    TEXT_BYTES_MAX = 512     # of every text but the path
    PATH_BYTES_MAX = 2048
    LABELS_MAX = 32

# Field numbers of remit.decisions.v1.Decision.
cdef enum:
    F_EVALUATION_ID = 1
    F_TIME = 2
    F_OUTCOME = 3
    F_REASON = 4
    F_POLICY_IDS = 5
    F_POLICIES_TOTAL = 6
    F_ERRORS = 7
    F_ERRORS_TOTAL = 8
    F_SHADOWS = 9
    F_AGENT = 10
    F_AGENT_TYPE = 11
    F_SUBJECT = 12
    F_PEER = 13
    F_CREDENTIAL = 14
    F_OWNER = 15
    F_ACTION_TYPE = 20
    F_ACTION = 21
    F_RESOURCE_TYPE = 22
    F_RESOURCE = 23
    F_DESTINATION = 24
    F_PROTOCOL = 25
    F_METHOD = 26
    F_HOST = 27
    F_PATH = 28
    F_ARGS_DIGEST = 29
    F_DATA_LEVEL = 30
    F_INPUT_MODE = 31
    F_GENERATION = 40
    F_DIGEST = 41
    F_EPOCH = 42
    F_TASK = 43
    F_CHAIN = 44
    F_TASK_REV = 49
    F_TAINT = 45
    F_APPROVAL = 46
    F_POSTURE = 47
    F_REMEDIATION = 48
    F_DOOR = 60
    F_LATENCY = 61
    F_TRACE_ID = 62
    F_SPAN_ID = 63
    F_REQUEST_ID = 64
    F_DRY_RUN = 65
    F_LATE = 66
    F_OBLIGATION = 67
    F_SANITISED = 68
    F_EFFECTS = 69
    F_TRUNCATED = 70


# Field numbers of remit.decisions.v1.Event, and its own in Record.
cdef enum:
    EVENT = 3
    E_TIME = 1
    E_NAME = 2
    E_DETAIL = 3
    E_GENERATION = 4
    E_EPOCH = 5
    E_EFFECTS = 6
    E_EVALUATION_ID = 7


cdef struct Pen:             # a record that is being written
    Out out
    bint truncated           # what happened to its texts
    bint sanitised


cdef Text _no_text
_no_text.p, _no_text.n = "", 0


# ------------------------------------------------------------------ text

cdef size_t _utf8_char(const uint8_t *p, size_t n) noexcept nogil:
    """Bytes of the well-formed character at `p` (Unicode 15, table 3-7), or 0."""
    cdef uint8_t low = 0x80
    cdef uint8_t high = 0xBF
    cdef size_t size, i
    if p[0] < 0x80:
        return 1
    if p[0] < 0xC2 or p[0] > 0xF4:
        return 0
    size = 2 if p[0] < 0xE0 else 3 if p[0] < 0xF0 else 4
    if size > n:
        return 0
    if p[0] == 0xE0:
        low = 0xA0
    elif p[0] == 0xED:
        high = 0x9F
    elif p[0] == 0xF0:
        low = 0x90
    elif p[0] == 0xF4:
        high = 0x8F
    if not low <= p[1] <= high:
        return 0
    for i in range(2, size):
        if p[i] & 0xC0 != 0x80:
            return 0
    return size


cdef void _put_mended(Pen *pen, uint32_t tag, const char *text, uint32_t n, uint32_t cap) noexcept nogil:
    """What of a text is UTF-8 and fits, with U+FFFD for each byte that is not."""
    cdef const uint8_t *p = <const uint8_t *> text
    cdef uint8_t room[PATH_BYTES_MAX]
    cdef uint16_t head = <uint16_t> tag
    cdef size_t used = 0
    cdef size_t at = 0
    cdef size_t size
    while at < n:
        size = _utf8_char(p + at, n - at)
        if used + (size if size else 3) > cap:
            pen.truncated = True
            break
        if size:
            memcpy(room + used, p + at, size)
            used += size
            at += size
        else:
            # Bytes that are not UTF-8 would make the whole record unreadable; they become U+FFFD.
            memcpy(room + used, <const char *> b"\xEF\xBF\xBD", 3)
            pen.sanitised = True
            used += 3
            at += 1
    out_few(&pen.out, &head, tag >> 16)
    out_varint(&pen.out, used)
    out_raw(&pen.out, room, used)


cdef void _put_tagged(Pen *pen, uint32_t tag, const char *text, uint32_t n, uint32_t cap) noexcept nogil:
    if n > cap or not out_ascii(&pen.out, tag, text, n):
        _put_mended(pen, tag, text, n, cap)


cdef inline void _put_text(Pen *pen, uint32_t field, const char *text, uint32_t n) noexcept nogil:
    """A string field of at most TEXT_BYTES_MAX bytes of UTF-8, written even when empty."""
    _put_tagged(pen, tag_of(field), text, n, TEXT_BYTES_MAX)


cdef inline void _put(Pen *pen, uint32_t field, Text text) noexcept nogil:
    """A string field, left out when empty."""
    if text.n:
        _put_text(pen, field, text.p, text.n)


cdef Text _cell_text(const Cell *cell) noexcept nogil:
    """The text of a string cell, the id of an entity cell; empty for all else."""
    cdef Text text = _no_text
    cdef const Uid *uid
    if cell.kind == KIND_STRING and cell.n:
        text.p, text.n = <const char *> cell_at(cell), cell.n
    elif cell.kind == KIND_ENTITY:
        uid = <const Uid *> cell_at(cell)
        text.p, text.n = uid_id(uid), uid.id_len
    return text


cdef inline const Cell *_column(const Request *r, int column) noexcept nogil:
    return &r.columns[column]


cdef inline int64_t _cell_number(const Cell *cell) noexcept nogil:
    return cell.v if cell.kind == KIND_LONG or cell.kind == KIND_BOOL else 0


cdef inline void _put_number(Pen *pen, uint32_t field, int64_t v) noexcept nogil:
    """A varint field, left out when 0."""
    if v != 0:
        out_uint(&pen.out, field, <uint64_t> v)


# ------------------------------------------------------------------ groups of fields

cdef const char *_cause(int error) noexcept nogil:
    if error == EVAL_TYPE:
        return "type"
    if error == EVAL_ATTRIBUTE:
        return "attribute"
    if error == EVAL_TAG:
        return "tag"
    if error == EVAL_ENTITY:
        return "entity"
    if error == EVAL_OVERFLOW:
        return "overflow"
    if error == EVAL_EXTENSION:
        return "extension"
    if error == EVAL_ARITY:
        return "arity"
    if error == EVAL_UNSENT:
        return "unsent"
    if error == EVAL_LIMIT:
        return "limit"
    return ""


cdef inline uint32_t _listed(uint32_t total) noexcept nogil:
    return total if total < LISTED_MAX else LISTED_MAX


cdef void _put_policies(Pen *pen, const Decision *d) noexcept nogil:
    cdef uint32_t i
    cdef size_t start
    cdef const char *cause
    for i in range(_listed(d.policies_total)):
        _put_text(pen, F_POLICY_IDS, d.policies[i].id.p, d.policies[i].id.n)
    _put_number(pen, F_POLICIES_TOTAL, d.policies_total)
    for i in range(_listed(d.errors_total)):
        cause = _cause(d.errors[i].error)
        start = out_open(&pen.out, F_ERRORS)
        _put(pen, 1, d.errors[i].id)
        out_bytes(&pen.out, 2, cause, strlen(cause))
        out_close(&pen.out, start)
    _put_number(pen, F_ERRORS_TOTAL, d.errors_total)
    for i in range(_listed(d.shadows_total)):
        _put_text(pen, F_SHADOWS, d.shadows[i].id.p, d.shadows[i].id.n)


cdef void _put_uid(
        Pen *pen, uint32_t type_field, uint32_t id_field, const Uid *uid, Text otherwise) noexcept nogil:
    """Type and id of an entity; the id is mandatory, so it is there even when the call named no entity."""
    if uid == NULL:
        _put_text(pen, id_field, otherwise.p, otherwise.n)
        return
    _put_text(pen, type_field, uid_type(uid), uid.type_len)
    _put_text(pen, id_field, uid_id(uid), uid.id_len)


cdef Text _owner(const Request *r, const Table *table) noexcept nogil:
    """Who answers for the call: the task's owner, else the one that the store names for the agent."""
    cdef Text owner = _cell_text(_column(r, COL_TASK_OWNER))
    cdef const Cell *found
    if owner.n or table == NULL or r.principal == NULL:
        return owner
    found = node_attrs(table, r.principal.index)
    if found != NULL:
        found = record_get(found, b"owner", 5)
    return _cell_text(found) if found != NULL and found.kind == KIND_ENTITY else owner


cdef void _put_who(Pen *pen, const Peer *peer, const Request *r, const Table *table) noexcept nogil:
    cdef Text caller = _no_text
    if peer != NULL and peer.kind == PEER_AGENT:
        caller = peer.spiffe_id   # a call refused before it was mapped still has an agent
    _put_uid(pen, F_AGENT_TYPE, F_AGENT, r.principal, caller)
    _put(pen, F_SUBJECT, r.subject)
    if peer != NULL:
        _put(pen, F_PEER, peer.spiffe_id)
        _put(pen, F_CREDENTIAL, peer.credential)
    _put(pen, F_OWNER, _owner(r, table))


cdef void _put_what(Pen *pen, const Request *r) noexcept nogil:
    _put_uid(pen, F_ACTION_TYPE, F_ACTION, r.action, _no_text)
    _put_uid(pen, F_RESOURCE_TYPE, F_RESOURCE, r.resource, _no_text)
    _put(pen, F_DESTINATION, r.destination)
    _put(pen, F_PROTOCOL, r.protocol)
    _put(pen, F_METHOD, r.method)
    _put(pen, F_HOST, r.host)
    if r.path.n:
        _put_tagged(pen, tag_of(F_PATH), r.path.p, r.path.n, PATH_BYTES_MAX)
    if r.has_args_digest:
        out_bytes(&pen.out, F_ARGS_DIGEST, r.args_digest, 32)
    _put_number(pen, F_DATA_LEVEL, _cell_number(_column(r, COL_CALL_DATA_LEVEL)))
    _put_number(pen, F_INPUT_MODE, r.input_mode)


cdef void _put_taint(Pen *pen, const Request *r) noexcept nogil:
    cdef const Cell *labels = _column(r, COL_SESSION_LABELS_SEEN)
    cdef const Cell *cells
    cdef int64_t level = _cell_number(_column(r, COL_SESSION_LEVEL_SEEN))
    cdef int64_t untrusted = _cell_number(_column(r, COL_SESSION_UNTRUSTED_SEEN))
    cdef uint32_t count = labels.n if labels.kind == KIND_SET else 0
    cdef uint32_t i
    cdef size_t start
    if level == 0 and untrusted == 0 and count == 0:
        return
    start = out_open(&pen.out, F_TAINT)
    _put_number(pen, 1, level)
    cells = <const Cell *> cell_at(labels)
    pen.truncated |= count > LABELS_MAX
    for i in range(count if count < LABELS_MAX else LABELS_MAX):
        _put(pen, 2, _cell_text(&cells[i]))
    _put_number(pen, 3, untrusted)
    out_close(&pen.out, start)


cdef void _put_approval(Pen *pen, const Request *r, const Decision *d) noexcept nogil:
    cdef Text state = _cell_text(_column(r, COL_APPROVAL_STATE))
    cdef size_t start
    if state.n == 0 or text_is(state, "none"):
        return
    start = out_open(&pen.out, F_APPROVAL)
    _put(pen, 1, d.standing.approval)
    _put(pen, 2, state)
    _put_number(pen, 3, _cell_number(_column(r, COL_APPROVAL_MATCHES)))
    out_close(&pen.out, start)


cdef void _put_posture(Pen *pen, const Request *r) noexcept nogil:
    cdef int64_t agent = _cell_number(_column(r, COL_RISK_AGENT))
    cdef int64_t user = _cell_number(_column(r, COL_RISK_USER))
    cdef int64_t age_s = _cell_number(_column(r, COL_RISK_SOURCE_AGE_S))
    cdef Text credential = _cell_text(_column(r, COL_CRED_KIND))
    cdef size_t start
    if text_is(credential, "none"):
        credential = _no_text
    if agent == 0 and user == 0 and age_s == -1 and credential.n == 0:
        return
    start = out_open(&pen.out, F_POSTURE)
    _put_number(pen, 1, agent)
    _put_number(pen, 2, user)
    out_uint(&pen.out, 3, <uint64_t> age_s << 1 ^ <uint64_t> (age_s >> 63))   # 0 is an age: it is always written
    _put(pen, 4, credential)
    _put_number(pen, 5, _cell_number(_column(r, COL_CRED_TTL_S)))
    _put_number(pen, 6, _cell_number(_column(r, COL_CRED_BOUND)))
    out_close(&pen.out, start)


cdef void _put_authority(Pen *pen, const Request *r, const Table *table, const Decision *d) noexcept nogil:
    cdef Text task = _cell_text(_column(r, COL_TASK_ID))
    cdef uint32_t i
    out_uint(&pen.out, F_GENERATION, d.generation)
    if table != NULL:
        out_bytes(&pen.out, F_DIGEST, table.digest.p, table.digest.n)
    out_uint(&pen.out, F_EPOCH, d.epoch)
    _put(pen, F_TASK, task if task.n else r.task)   # the task in force, else the one the call named
    _put_taint(pen, r)
    for i in range(d.standing.chain_count):
        _put(pen, F_CHAIN, d.standing.chain[i])
    _put_approval(pen, r, d)
    _put_posture(pen, r)
    _put(pen, F_REMEDIATION, d.standing.remediation)
    if d.standing.task_rev:
        out_uint(&pen.out, F_TASK_REV, d.standing.task_rev)


cdef void _put_effect(Pen *pen, int kind, Text key, int64_t value) noexcept nogil:
    cdef size_t start
    if value == 0 or key.n == 0:
        return
    start = out_open(&pen.out, F_EFFECTS)
    out_uint(&pen.out, 1, kind)
    _put(pen, 2, key)
    out_uint(&pen.out, 3, <uint64_t> value)
    out_close(&pen.out, start)


cdef void _put_effects(Pen *pen, const Decision *d) noexcept nogil:
    """What an ALLOW took: a restart that finds this record takes it again."""
    cdef const Standing *standing = &d.standing
    if d.outcome != OUTCOME_ALLOW or not standing.settled:
        return
    _put_effect(pen, EFFECT_CALLS, standing.task, standing.took[<int> BUDGET_CALLS])
    _put_effect(pen, EFFECT_COST, standing.task, standing.took[<int> BUDGET_COST])
    _put_effect(pen, EFFECT_BYTES, standing.task, standing.took[<int> BUDGET_BYTES])
    _put_effect(pen, EFFECT_APPROVAL, standing.approval, 1)


cdef void _put_how(Pen *pen, const Request *r, const Decision *d) noexcept nogil:
    out_uint(&pen.out, F_DOOR, r.door)
    _put_number(pen, F_LATENCY, d.latency_ns)
    _put(pen, F_TRACE_ID, r.trace_id)
    _put(pen, F_SPAN_ID, r.span_id)
    _put(pen, F_REQUEST_ID, r.request_id)
    _put_number(pen, F_DRY_RUN, r.dry_run != 0)
    _put_number(pen, F_LATE, d.late != 0)
    _put(pen, F_OBLIGATION, d.obligation)


cdef inline Pen _pen(const Out *out, bint sanitised) noexcept nogil:
    cdef Pen pen
    pen.out = out[0]
    pen.truncated = False
    pen.sanitised = sanitised
    return pen


cdef void record_encode(
        Out *out, const Peer *peer, const Request *request, const Table *table, const Authority *authority,
        const Decision *decision) noexcept nogil:
    cdef Pen pen = _pen(out, request.sanitised != 0)
    cdef size_t start = out_open_long(&pen.out, 1)
    _put_text(
        &pen, F_EVALUATION_ID, decision.evaluation_id,
        sizeof(decision.evaluation_id) if decision.evaluation_id[0] else 0)
    out_fixed64(&pen.out, F_TIME, <uint64_t> request.started_unix_ns)
    out_uint(&pen.out, F_OUTCOME, decision.outcome)
    _put_text(&pen, F_REASON, decision.reason.p, decision.reason.n)
    _put_policies(&pen, decision)
    _put_who(&pen, peer, request, table)
    _put_what(&pen, request)
    _put_authority(&pen, request, table, decision)
    _put_how(&pen, request, decision)
    _put_number(&pen, F_SANITISED, pen.sanitised)
    _put_effects(&pen, decision)
    _put_number(&pen, F_TRUNCATED, pen.truncated)
    out_close_long(&pen.out, start)
    out[0] = pen.out


cdef void record_settled(
        Out *out, int64_t unix_ns, uint64_t generation, uint64_t epoch, Text evaluation, bint executed,
        const Settled *changes, int n) noexcept nogil:
    cdef Pen pen = _pen(out, False)
    cdef Text key
    cdef size_t effect
    cdef size_t start = out_open(&pen.out, EVENT)
    cdef int i
    out_fixed64(&pen.out, E_TIME, <uint64_t> unix_ns)
    _put(&pen, E_NAME, text_of("call.reported"))
    _put(&pen, E_DETAIL, text_of("executed" if executed else "not executed"))
    out_uint(&pen.out, E_GENERATION, generation)
    out_uint(&pen.out, E_EPOCH, epoch)
    for i in range(n):
        key.p, key.n = <const char *> changes[i].key, changes[i].key_n
        effect = out_open(&pen.out, E_EFFECTS)
        out_uint(&pen.out, 1, changes[i].kind)
        _put(&pen, 2, key)
        out_uint(&pen.out, 3, <uint64_t> changes[i].value)
        out_close(&pen.out, effect)
    _put(&pen, E_EVALUATION_ID, evaluation)
    out_close(&pen.out, start)
    out[0] = pen.out


# ------------------------------------------------------------------ the audit minimum

MANDATORY = {
    F_EVALUATION_ID: "evaluation_id", F_TIME: "time_unix_nano", F_OUTCOME: "outcome", F_REASON: "reason",
    F_AGENT: "agent", F_ACTION: "action", F_RESOURCE: "resource", F_GENERATION: "generation",
    F_EPOCH: "revocation_epoch", F_DOOR: "door",
}
_WIRE_TYPE = {
    F_TIME: WIRE_FIXED64, F_OUTCOME: WIRE_VARINT, F_GENERATION: WIRE_VARINT, F_EPOCH: WIRE_VARINT, F_DOOR: WIRE_VARINT,
}
# An agent, action or resource may be unknown (a refused call) and is then empty; these never are.
_NEVER_EMPTY = frozenset((F_EVALUATION_ID, F_TIME, F_OUTCOME, F_REASON))


def missing_fields(bytes payload not None):
    cdef Reader outer, inner
    cdef WireField field
    cdef Text text
    cdef bint decision = False
    text.p, text.n = <const char *> payload, <uint32_t> len(payload)
    reader_open(&outer, text)
    found = set()
    while reader_next(&outer, &field):
        if field.number != 1 or field.type != WIRE_BYTES:
            continue
        decision = True
        reader_open(&inner, field.bytes)
        while reader_next(&inner, &field):
            if field.type == _WIRE_TYPE.get(field.number, WIRE_BYTES) and (
                    field.number not in _NEVER_EMPTY or (field.bytes.n if field.type == WIRE_BYTES else field.v)):
                found.add(field.number)
        if inner.error != WIRE_OK:
            raise ValueError("the record's decision is not a protobuf message")
    if outer.error != WIRE_OK:
        raise ValueError("the record is not a protobuf message")
    return tuple(name for number, name in MANDATORY.items() if number not in found) if decision else ()


# ------------------------------------------------------------------ Python face

cdef class _Room:
    """Memory behind the structs of one `encode`."""
    cdef list kept
    cdef bytearray memory
    cdef Arena arena

    def __cinit__(self):
        self.kept = []
        self.memory = bytearray(1 << 20)
        self.arena.base, self.arena.cap = <uint8_t *> <char *> self.memory, len(self.memory)

    cdef Text text(self, value):
        cdef bytes data = value.encode() if isinstance(value, str) else value
        cdef Text made
        self.kept.append(data)
        made.p, made.n = <const char *> data, <uint32_t> len(data)
        return made

    cdef Uid *uid(self, pair):
        if pair is None:
            return NULL
        cdef Text type_ = self.text(pair[0])
        cdef Text id_ = self.text(pair[1])
        return uid_make(&self.arena, type_.p, type_.n, id_.p, id_.n)

    cdef int column(self, Cell *cell, str kind, value) except -1:
        cdef Text text
        cdef Cell *cells
        if kind == "bool":
            cell_bool(cell, value)
        elif kind == "long":
            cell_long(cell, value)
        elif kind == "entity":
            cell_entity(cell, self.uid(value))
        elif kind == "string":
            text = self.text(value)
            cell_string(cell, text.p, text.n)
        else:
            cells = <Cell *> arena_take(&self.arena, len(value) * sizeof(Cell))
            for i, item in enumerate(value):
                self.column(&cells[i], "string", item)
            memset(cell, 0, sizeof(Cell))
            cell.kind, cell.n = KIND_SET, <uint32_t> len(value)
            cell_point(cell, cells)
        return 0

    cdef int listed(self, Listed *into, uint32_t *total, names) except -1:
        for i, name in enumerate(names[:LISTED_MAX]):
            into[i].id = self.text(name[0] if isinstance(name, tuple) else name)
            into[i].error = name[1] if isinstance(name, tuple) else 0
        total[0] = <uint32_t> len(names)
        return 0

    cdef int fill_request(self, Request *r, dict f) except -1:
        cdef bytes digest
        cdef size_t i
        r.principal, r.action, r.resource = self.uid(f["principal"]), self.uid(f["action"]), self.uid(f["resource"])
        columns_absent(r.columns)
        given = f.get("columns", {})
        for i, (path, kind, _) in enumerate(COLUMNS):
            if path in given:
                self.column(&r.columns[i], kind, given[path])
        r.door, r.input_mode = f.get("door", 0), f.get("input_mode", 0)
        r.dry_run, r.sanitised = f.get("dry_run", False), f.get("sanitised", False)
        r.request_id, r.trace_id = self.text(f.get("request_id", "")), self.text(f.get("trace_id", ""))
        r.span_id, r.task = self.text(f.get("span_id", "")), self.text(f.get("task", ""))
        r.protocol, r.method = self.text(f.get("protocol", "")), self.text(f.get("method", ""))
        r.host, r.path = self.text(f.get("host", "")), self.text(f.get("path", ""))
        r.destination, r.subject = self.text(f.get("destination", "")), self.text(f.get("subject", ""))
        r.denial_id = self.text(f.get("denial_id", ""))
        r.started_unix_ns = f.get("started_unix_ns", 0)
        digest = f.get("args_digest", b"")
        if digest:
            memcpy(r.args_digest, <const char *> digest, 32)
            r.has_args_digest = 1
        return 0

    cdef int fill_decision(self, Decision *d, dict f) except -1:
        cdef bytes id_ = f.get("evaluation_id", "").encode()
        memcpy(d.evaluation_id, <const char *> id_, min(<size_t> len(id_), sizeof(d.evaluation_id)))
        d.outcome, d.late = f.get("outcome", 0), f.get("late", False)
        d.reason, d.obligation = self.text(f.get("reason", "")), self.text(f.get("obligation", ""))
        self.listed(d.policies, &d.policies_total, f.get("policies", ()))
        self.listed(d.errors, &d.errors_total, f.get("errors", ()))
        self.listed(d.shadows, &d.shadows_total, f.get("shadows", ()))
        d.generation, d.epoch, d.latency_ns = f.get("generation", 0), f.get("epoch", 0), f.get("latency_ns", 0)
        return 0


def encode(dict request not None, dict decision not None, *, peer=None, bytes digest=None):
    cdef _Room room = _Room()
    cdef Request r
    cdef Decision d
    cdef Peer p
    cdef Table t
    cdef Authority authority
    cdef Out out
    cdef bytearray buffer = bytearray(RECORD_BYTES_MAX)
    memset(&r, 0, sizeof(r))
    memset(&d, 0, sizeof(d))
    memset(&p, 0, sizeof(p))
    memset(&t, 0, sizeof(t))
    memset(&authority, 0, sizeof(authority))
    room.fill_request(&r, request)
    room.fill_decision(&d, decision)
    if peer is not None:
        p.kind = peer[0]
        p.spiffe_id, p.credential = room.text(peer[1]), room.text(peer[2])
    if digest is not None:
        t.digest.p, t.digest.n = digest, <uint32_t> len(digest)
    if room.arena.failed:
        raise MemoryError("the request does not fit")
    out.p, out.n, out.cap, out.failed = <uint8_t *> <char *> buffer, 0, RECORD_BYTES_MAX, 0
    with nogil:
        record_encode(&out, &p if peer is not None else NULL, &r, &t if digest is not None else NULL, &authority, &d)
    if out.failed:
        raise MemoryError("the record does not fit")
    return bytes(buffer[:out.n])
