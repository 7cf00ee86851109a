"""What was revoked of a call (revoked.pxd)."""
from fastpath.columns cimport COL_DEST
from fastpath.image cimport NODE_PARENT, List, Node
from fastpath.live_state cimport (
    MODE_DENY,
    MODE_READ_ONLY,
    MODE_STEP_UP,
    REVOKED_AGENT,
    REVOKED_CLASS,
    REVOKED_CREDENTIAL,
    REVOKED_DESTINATION,
    REVOKED_OWNER,
    REVOKED_SERVER,
    REVOKED_TASK,
    REVOKED_TOOL,
    REVOKED_TRUST_DOMAIN,
    Revocation,
    id_of,
    kept,
)
from fastpath.rowmap cimport RowProbe, rows_begin, rows_finish
from fastpath.rows cimport list_rows, node_uid, table_node
from fastpath.table cimport table_find, table_is_in, table_resolve
from fastpath.value cimport KIND_ENTITY, Cell, cell_at, uid_equal, uid_make, uid_type
from fastpath.wire cimport text_equal, text_of
from libc.string cimport memchr

cdef enum:
    LOOKS = 16               # lookups on their way together; more of them wait for these


cdef inline Text revoked_reason(uint32_t kind) noexcept nogil:
    if kind == REVOKED_AGENT:
        return text_of(b"revoked.agent")
    if kind == REVOKED_CLASS:
        return text_of(b"revoked.class")
    if kind == REVOKED_TASK:
        return text_of(b"revoked.task")
    if kind == REVOKED_TOOL:
        return text_of(b"revoked.tool")
    if kind == REVOKED_SERVER:
        return text_of(b"revoked.server")
    if kind == REVOKED_DESTINATION:
        return text_of(b"revoked.destination")
    if kind == REVOKED_CREDENTIAL:
        return text_of(b"revoked.credential")
    if kind == REVOKED_OWNER:
        return text_of(b"revoked.owner")
    return text_of(b"revoked.trust_domain")


cdef inline bint revoked_in(const Revocation *row, int mode, int64_t now, int64_t boot) noexcept nogil:
    """It ends when both clocks say so: taking authority away for too long is the safe side of a clock that was set."""
    return row.until_unix_ns[mode] > now or row.until_boot_ns[mode] > boot


cdef void apply_revocation(const Revocation *row, int64_t now, Arena *arena, Standing *out) noexcept nogil:
    cdef bint hit = False
    if revoked_in(row, <int> MODE_DENY, now, out.boot_ns):
        if out.refusal.n == 0:
            out.refusal = revoked_reason(row.key.kind)
        hit = True
    if revoked_in(row, <int> MODE_READ_ONLY, now, out.boot_ns):
        out.read_only = 1
        hit = True
    if revoked_in(row, <int> MODE_STEP_UP, now, out.boot_ns):
        out.step_up = 1
        out.step_up_unix_ns = max(out.step_up_unix_ns, row.step_up_unix_ns)
        hit = True
    if hit and out.remediation.n == 0:
        out.remediation = kept(row.reason, arena) if row.reason.n else revoked_reason(row.key.kind)


# ---------------------------------------------------------------- lookups, all begun before any is waited for


cdef struct Look:            # of one call, under the lock
    LiveState *s
    int64_t now
    Arena *arena
    Standing *out
    RowProbe items[LOOKS]    # begun and not finished
    uint32_t n


cdef inline void look_open(Look *look, LiveState *s, int64_t now, Arena *arena, Standing *out) noexcept nogil:
    look.s, look.now, look.arena, look.out, look.n = s, now, arena, out, 0


cdef void look_close(Look *look) noexcept nogil:
    """Apply what the lookups find, in the order that they were begun in."""
    cdef const Revocation *row
    cdef uint32_t i
    for i in range(look.n):
        row = <const Revocation *> rows_finish(&look.s.revocations, &look.items[i])
        if row != NULL:
            apply_revocation(row, look.now, look.arena, look.out)
    look.n = 0


cdef void look_up(Look *look, uint32_t kind, Text key) noexcept nogil:
    if look.s.revoked[kind] == 0 or key.n == 0:
        return
    if look.n == LOOKS:
        look_close(look)
    rows_begin(&look.s.revocations, kind, key, &look.items[look.n])
    look.n += 1


cdef void revoked_key(LiveState *s, uint32_t kind, Text key, int64_t now, Arena *arena, Standing *out) noexcept nogil:
    cdef Look look
    look_open(&look, s, now, arena, out)
    look_up(&look, kind, key)
    look_close(&look)


# ---------------------------------------------------------------- what holds others by the entity store


cdef bint in_group(const Table *t, const Uid *uid, const Uid *group) noexcept nogil:
    return uid_equal(uid, group) or table_is_in(t, uid, table_find(t, group))


cdef struct Group:           # revocations of what holds others by the entity store
    uint32_t kind
    Text type


cdef void look_uid(Look *look, const Group *group, const Uid *uid) noexcept nogil:
    cdef Text type_
    type_.p, type_.n = uid_type(uid), uid.type_len
    look.s.steps += 1
    if text_equal(type_, group.type):
        look_up(look, group.kind, id_of(uid))


cdef void look_rows(Look *look, const Group *group, const Table *t, const List *rows) noexcept nogil:
    cdef const uint32_t *row = list_rows(t, rows)
    cdef uint32_t i
    for i in range(rows.n):
        look_uid(look, group, node_uid(t, row[i]))


cdef void look_groups(Look *look, const Group *group, const Uid *uid, const Table *t) noexcept nogil:
    """The uid and all above it, each looked up: however many are revoked, it costs what stands above."""
    cdef const Node *node
    cdef const uint32_t *parents
    cdef uint32_t i
    if look.s.revoked[group.kind] == 0:
        return
    look_uid(look, group, uid)
    node = table_node(t, uid.index)
    if node == NULL:
        return
    if node.flags & NODE_PARENT:
        look_rows(look, group, t, &node.closure)
        return
    look_rows(look, group, t, &node.parents)
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n):
        look_rows(look, group, t, &table_node(t, parents[i]).closure)


cdef void look_classes(Look *look, const Uid *agent, const Table *t) noexcept nogil:
    """Classes hold agents."""
    cdef Group classes
    classes.kind, classes.type = REVOKED_CLASS, look.s.class_type
    look_groups(look, &classes, agent, t)


cdef void look_servers(Look *look, const Request *request, const Table *t) noexcept nogil:
    """Servers hold tools."""
    cdef Group servers
    servers.kind, servers.type = REVOKED_SERVER, look.s.server_type
    look_groups(look, &servers, request.resource, t)
    if request.resource_parent != NULL:
        look_groups(look, &servers, request.resource_parent, t)


# ---------------------------------------------------------------- what a call names


cdef Text server_of(const Request *request) noexcept nogil:
    """`files` of the resource `files/open`: tools and endpoints bear the server's name first."""
    cdef Text id_ = id_of(request.resource)
    cdef const char *slash = <const char *> memchr(id_.p, c'/', id_.n)
    if slash != NULL:
        id_.n = <uint32_t> (slash - id_.p)
    return id_


cdef Text without_port(Text authority) noexcept nogil:
    """`db.internal` of `db.internal:8443`: a host that is revoked is so on every port. Empty when none is named."""
    cdef Text host = authority
    cdef uint32_t n = authority.n
    while n and c'0' <= authority.p[n - 1] <= c'9':
        n -= 1
    host.n = n - 1 if 1 < n < authority.n and authority.p[n - 1] == c':' else 0
    return host


cdef Text serial_of(Text credential) noexcept nogil:
    """`0a1b` of the credential `x509-svid:0a1b`."""
    cdef const char *colon = <const char *> memchr(credential.p, c':', credential.n) if credential.n else NULL
    if colon != NULL:
        credential.n -= <uint32_t> (colon + 1 - credential.p)
        credential.p = colon + 1
    return credential


cdef Text trust_domain_of(Text spiffe_id) noexcept nogil:
    """The part between `spiffe://` and the path (SPIFFE-ID section 2.1)."""
    cdef Text name
    cdef const char *slash
    name.p, name.n = NULL, 0
    if spiffe_id.n > 9:
        name.p, name.n = spiffe_id.p + 9, spiffe_id.n - 9
        slash = <const char *> memchr(name.p, c'/', name.n)
        if slash != NULL:
            name.n = <uint32_t> (slash - name.p)
    return name


cdef void look_destinations(Look *look, const Request *request) noexcept nogil:
    cdef const Cell *dest = request.columns + <int> COL_DEST
    look_up(look, REVOKED_DESTINATION, request.destination)
    look_up(look, REVOKED_DESTINATION, without_port(request.destination))
    if dest.kind == KIND_ENTITY and not text_equal(id_of(<const Uid *> cell_at(dest)), request.destination):
        look_up(look, REVOKED_DESTINATION, id_of(<const Uid *> cell_at(dest)))


cdef void revoked_call(
    LiveState *s, const Request *request, Text credential, const Table *t, int64_t now, Arena *arena,
    Standing *out
) noexcept nogil:
    cdef Text agent = id_of(request.principal)
    cdef Look look
    look_open(&look, s, now, arena, out)
    look_up(&look, REVOKED_AGENT, agent)
    look_up(&look, REVOKED_TRUST_DOMAIN, trust_domain_of(agent))
    look_up(&look, REVOKED_CREDENTIAL, serial_of(credential))
    look_up(&look, REVOKED_CREDENTIAL, out.credential)
    look_up(&look, REVOKED_TOOL, id_of(request.resource))
    look_up(&look, REVOKED_SERVER, server_of(request))
    look_destinations(&look, request)
    look_classes(&look, request.principal, t)
    look_servers(&look, request, t)
    look_close(&look)


cdef void revoked_above(
    LiveState *s, Text agent, Text owner, const Request *request, const Table *t, int64_t now, Arena *arena,
    Standing *out
) noexcept nogil:
    cdef Look look
    cdef Uid *uid = NULL
    look_open(&look, s, now, arena, out)
    look_up(&look, REVOKED_AGENT, agent)
    look_up(&look, REVOKED_TRUST_DOMAIN, trust_domain_of(agent))
    look_up(&look, REVOKED_OWNER, owner)
    if s.revoked[<int> REVOKED_CLASS]:
        uid = uid_make(arena, uid_type(request.principal), request.principal.type_len, agent.p, agent.n)
    if uid != NULL:
        table_resolve(t, uid)
        look_classes(&look, uid, t)
    look_close(&look)
