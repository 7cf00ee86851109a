"""Which approval a call may use (approved.pxd)."""
from fastpath.c.openssl cimport SHA256
from fastpath.columns cimport (
    COL_APPROVAL_AGE_S,
    COL_APPROVAL_BREAK_GLASS,
    COL_APPROVAL_MATCHES,
    COL_APPROVAL_SELF_APPROVED,
    COL_APPROVAL_STATE,
)
from fastpath.live_state cimport (
    APPROVAL_CLASS,
    APPROVAL_EXACT,
    SECOND_NS,
    column,
    kept,
    remaining,
)
from fastpath.rowmap cimport rows_find
from fastpath.value cimport Uid, arena_take, cell_bool, cell_long, cell_string, uid_id, uid_type
from fastpath.wire cimport text_equal
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


cdef bint make_digests(const Request *request, Arena *arena, Standing *out) noexcept nogil:
    """What an approval is bound to: subject, action, resource, destination and arguments; a class: the first three."""
    cdef Digesting d
    cdef size_t mark = arena.used
    cdef int failed = arena.failed
    if out.has_digest:
        return True
    d.cap = (
        256 + request.principal.type_len + request.principal.id_len + request.action.type_len + request.action.id_len
        + request.resource.type_len + request.resource.id_len + request.destination.n
    )
    d.p, d.n = <uint8_t *> arena_take(arena, d.cap), 0
    digest_uid(&d, request.principal)
    digest_uid(&d, request.action)
    digest_uid(&d, request.resource)
    if d.p != NULL:
        SHA256(d.p, d.n, out.class_digest)
    digest_part(&d, request.destination.p, request.destination.n)
    digest_part(&d, request.args_digest, 32 if request.has_args_digest else 0)
    if d.p != NULL:
        SHA256(d.p, d.n, out.digest)
        out.has_digest = 1
    # Without room there is no digest, and so no approval: that is answer enough.
    arena.used, arena.failed = mark, failed
    return out.has_digest


cdef inline bint usable(const Approval *row, int64_t now, int64_t boot) noexcept nogil:
    return row.uses > 0 and remaining(row.expires_unix_ns, row.ends_boot_ns, now, boot) > 0


cdef Approval *approval_for(LiveState *s, uint32_t kind, const uint8_t *digest, const Standing *at) noexcept nogil:
    cdef Text key
    cdef Approval *row
    key.p, key.n = <const char *> digest, 32
    row = <Approval *> rows_find(&s.approvals, kind, key)
    while row != NULL:
        # Policies that came later may ask for what nobody has looked at.
        if (
            usable(row, at.unix_ns, at.boot_ns) and text_equal(row.task, at.task)
            and (row.generation == 0 or row.generation == at.generation)
        ):
            return row
        row = row.next
    return NULL


cdef void fill_approval(LiveState *s, Request *request, Arena *arena, Standing *out) noexcept nogil:
    cdef Approval *row
    cdef int64_t age_ns
    if not make_digests(request, arena, out):
        return
    row = approval_for(s, APPROVAL_EXACT, out.digest, out)
    if row == NULL:
        row = approval_for(s, APPROVAL_CLASS, out.class_digest, out)
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
    cdef Approval *row
    cdef size_t i
    for i in range(s.approvals.size):
        row = <Approval *> s.approvals.slots[i].row
        while row != NULL:
            if text_equal(row.id, id_):
                return row
            row = row.next
    return NULL
