"""Which approval a call may use (approved.pxd)."""
from fastpath.arguments cimport input_digest
from fastpath.c.openssl cimport SHA256
from fastpath.columns cimport (
    COL_APPROVAL_AGE_S,
    COL_APPROVAL_BREAK_GLASS,
    COL_APPROVAL_MATCHES,
    COL_APPROVAL_SELF_APPROVED,
    COL_APPROVAL_STATE,
    COL_CALL_DATA_LABELS,
    COL_CALL_DATA_LEVEL,
)
from fastpath.json_tree cimport Json
from fastpath.live_state cimport (
    APPROVAL_CLASS,
    APPROVAL_EXACT,
    SECOND_NS,
    AgentTasks,
    ApprovalName,
    column,
    id_of,
    kept,
    remaining,
)
from fastpath.request cimport Content
from fastpath.rowmap cimport rows_find
from fastpath.value cimport (
    KIND_LONG,
    KIND_SET,
    KIND_STRING,
    Cell,
    Uid,
    arena_take,
    cell_at,
    cell_bool,
    cell_long,
    cell_string,
    uid_id,
    uid_type,
)
from fastpath.wire cimport text_equal, text_is
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef struct Digesting:       # length-prefixed parts, so that no two lists of parts give the same bytes
    uint8_t *p
    size_t n
    size_t cap


cdef void digest_part(Digesting *d, const void *p, size_t n) noexcept nogil:
    cdef uint64_t length = n
    if d.p == NULL or n + 8 > d.cap - d.n:
        d.p = NULL
        return
    memcpy(d.p + d.n, &length, 8)
    if n:
        memcpy(d.p + d.n + 8, p, n)
    d.n += 8 + n


cdef void digest_uid(Digesting *d, const Uid *uid) noexcept nogil:
    digest_part(d, uid_type(uid), uid.type_len)
    digest_part(d, uid_id(uid), uid.id_len)


cdef bint params_digest(const Json *params, Arena *arena, uint8_t *out) noexcept nogil:
    """SHA-256 over the members of an MCP call's params, but for what the protocol itself adds to each message."""
    cdef Json bound = params[0]
    cdef uint32_t i
    bound.items = <Json *> arena_take(arena, (params.n + 1) * sizeof(Json))
    bound.n = 0
    if bound.items == NULL:
        return False
    for i in range(params.n):
        if not text_is(params.items[i].key, b"_meta"):
            bound.items[bound.n] = params.items[i]
            bound.n += 1
    return input_digest(&bound, arena, out) == 0


cdef void digest_content(Digesting *d, const Content *content, Arena *arena) noexcept nogil:
    """The call as it was sent. A body is digested by itself, and only here: few calls need it."""
    cdef uint8_t digest[32]
    digest_part(d, content.method.p, content.method.n)
    digest_part(d, content.target.p, content.target.n)
    digest_part(d, content.media.p, content.media.n)
    digest_part(d, content.coding.p, content.coding.n)
    if content.body.n:
        SHA256(<const unsigned char *> content.body.p, content.body.n, digest)
    digest_part(d, digest, 32 if content.body.n else 0)
    if content.params != NULL and not params_digest(content.params, arena, digest):
        d.p = NULL
    digest_part(d, digest, 32 if content.params != NULL else 0)


cdef bint make_digests(const Request *request, Arena *arena, Standing *out) noexcept nogil:
    """What an approval is bound to: subject, action, resource, destination, arguments and content; a class: the first
    three."""
    cdef Digesting d
    cdef size_t mark = arena.used
    cdef int failed = arena.failed
    if out.has_digest:
        return True
    d.cap = (
        320 + request.principal.type_len + request.principal.id_len + request.action.type_len + request.action.id_len
        + request.resource.type_len + request.resource.id_len + request.destination.n
        + request.content.method.n + request.content.target.n + request.content.media.n + request.content.coding.n
    )
    d.p, d.n = <uint8_t *> arena_take(arena, d.cap), 0
    digest_uid(&d, request.principal)
    digest_uid(&d, request.action)
    digest_uid(&d, request.resource)
    if d.p != NULL:
        SHA256(d.p, d.n, out.class_digest)
    digest_part(&d, request.destination.p, request.destination.n)
    digest_part(&d, request.args_digest, 32 if request.has_args_digest else 0)
    digest_content(&d, &request.content, arena)
    if d.p != NULL:
        SHA256(d.p, d.n, out.digest)
        out.has_digest = 1
    # Without room there is no digest, and so no approval: that is answer enough.
    arena.used, arena.failed = mark, failed
    return out.has_digest


cdef inline bint usable(const Approval *row, int64_t now, int64_t boot) noexcept nogil:
    return row.uses > 0 and remaining(row.expires_unix_ns, row.ends_boot_ns, now, boot) > 0


cdef bint approves_label(const Approval *row, const Cell *label) noexcept nogil:
    cdef Text text
    cdef uint32_t i
    if label.kind != KIND_STRING:
        return False
    text.p, text.n = <const char *> cell_at(label), label.n
    for i in range(row.label_count):
        if text_equal(row.labels[i], text):
            return True
    return False


cdef bint approves_use(const Approval *row, const Request *request) noexcept nogil:
    """Whether the call stays within what the approver was shown: level and labels of its data, and its cost."""
    cdef const Cell *level = request.columns + <int> COL_CALL_DATA_LEVEL
    cdef const Cell *labels = request.columns + <int> COL_CALL_DATA_LABELS
    cdef uint32_t i
    if level.kind != KIND_LONG or level.v > row.max_level or request.cost > row.max_cost or labels.kind != KIND_SET:
        return False
    for i in range(labels.n):
        if not approves_label(row, <const Cell *> cell_at(labels) + i):
            return False
    return True


cdef bint has_approvals(LiveState *s, const Request *request) noexcept nogil:
    cdef const AgentTasks *agent
    if s.approvals.used == 0:
        return False
    agent = <const AgentTasks *> rows_find(&s.agents, 0, id_of(request.principal))
    return agent != NULL and agent.approvals > 0


cdef Approval *approval_for(
    LiveState *s, uint32_t kind, const uint8_t *digest, const Request *request, const Standing *at
) noexcept nogil:
    cdef Text key
    cdef Approval *row
    key.p, key.n = <const char *> digest, 32
    row = <Approval *> rows_find(&s.approvals, kind, key)
    while row != NULL:
        # Policies and revocations that came later may ask for what nobody has looked at; those of one commit have one
        # moment.
        if (
            usable(row, at.unix_ns, at.boot_ns) and text_equal(row.task, at.task)
            and (row.generation == 0 or row.generation == at.generation)
            and row.decided_unix_ns > at.step_up_unix_ns and approves_use(row, request)
        ):
            return row
        row = row.next
    return NULL


cdef void fill_approval(LiveState *s, Request *request, Arena *arena, Standing *out) noexcept nogil:
    cdef Approval *row = NULL
    cdef int64_t age_ns
    # What was granted since the digests could be made is for the next call.
    if not out.has_digest:
        return
    if request.content.seen:
        row = approval_for(s, APPROVAL_EXACT, out.digest, request, out)
    if row == NULL:
        row = approval_for(s, APPROVAL_CLASS, out.class_digest, request, out)
    if row == NULL:
        return
    out.approval_row = row
    out.approval = kept(row.id, arena)
    out.approved = out.approval.n > 0 and not row.self_approved
    out.break_glass = row.break_glass and out.approved
    age_ns = max(<int64_t> 0, out.unix_ns - row.decided_unix_ns)
    cell_string(column(request, COL_APPROVAL_STATE), b"granted", 7)
    cell_bool(column(request, COL_APPROVAL_MATCHES), True)
    cell_bool(column(request, COL_APPROVAL_SELF_APPROVED), row.self_approved)
    cell_long(column(request, COL_APPROVAL_AGE_S), age_ns // SECOND_NS)
    cell_bool(column(request, COL_APPROVAL_BREAK_GLASS), row.break_glass)


cdef Approval *same_approval(LiveState *s, const Standing *standing) noexcept nogil:
    cdef Text key
    cdef Approval *row
    cdef int kind
    for kind in range(APPROVAL_EXACT, APPROVAL_CLASS + 1):
        key.p, key.n = <const char *> standing.digest, 32
        if kind == APPROVAL_CLASS:
            key.p = <const char *> standing.class_digest
        row = <Approval *> rows_find(&s.approvals, kind, key)
        while row != NULL:
            if text_equal(row.id, standing.approval):
                return row
            row = row.next
    return NULL


cdef Approval *approval_again(LiveState *s, const Standing *standing) noexcept nogil:
    cdef Approval *row = standing.approval_row
    if standing.version != s.version:
        row = same_approval(s, standing)
    if row == NULL or not usable(row, standing.unix_ns, standing.boot_ns):
        return NULL
    return row


cdef Approval *approval_by_id(LiveState *s, Text id_) noexcept nogil:
    cdef ApprovalName *name = <ApprovalName *> rows_find(&s.approval_names, 0, id_)
    return name.approval if name != NULL else NULL
