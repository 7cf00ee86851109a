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
from fastpath.rowmap cimport RowProbe, rows_begin, rows_find, rows_finish
from fastpath.rows cimport list_rows, node_uid, table_node
from fastpath.table cimport table_find, table_is_in, table_resolve
from fastpath.value cimport KIND_ENTITY, Cell, cell_at, uid_equal, uid_make, uid_type
from fastpath.wire cimport text_equal, text_of
from libc.string cimport memchr

cdef enum:
    PROBES_MAX = 9           # revoked_call makes no more


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
        hit = True
    if hit and out.remediation.n == 0:
        out.remediation = kept(row.reason, arena) if row.reason.n else revoked_reason(row.key.kind)


cdef void revoked_key(
    const LiveState *s, uint32_t kind, Text key, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    cdef const Revocation *row
    if s.revoked[kind] == 0 or key.n == 0:
        return
    row = <const Revocation *> rows_find(&s.revocations, kind, key)
    if row != NULL:
        apply_revocation(row, now, arena, out)


cdef bint in_group(const Table *t, const Uid *uid, const Uid *group) noexcept nogil:
    return uid_equal(uid, group) or table_is_in(t, uid, table_find(t, group))


cdef struct Group:           # revocations of what holds others by the entity store
    uint32_t kind
    Text type


cdef void look_uid(
    LiveState *s, const Group *group, const Uid *uid, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    cdef Text type_
    type_.p, type_.n = uid_type(uid), uid.type_len
    s.steps += 1
    if text_equal(type_, group.type):
        revoked_key(s, group.kind, id_of(uid), now, arena, out)


cdef void look_rows(
    LiveState *s, const Group *group, const Table *t, const List *rows, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    cdef const uint32_t *row = list_rows(t, rows)
    cdef uint32_t i
    for i in range(rows.n):
        look_uid(s, group, node_uid(t, row[i]), now, arena, out)


cdef void look_groups(
    LiveState *s, const Group *group, const Uid *uid, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    """The uid and all above it, each looked up: however many are revoked, it costs what stands above."""
    cdef const Node *node
    cdef const uint32_t *parents
    cdef uint32_t i
    if s.revoked[group.kind] == 0:
        return
    look_uid(s, group, uid, now, arena, out)
    node = table_node(t, uid.index)
    if node == NULL:
        return
    if node.flags & NODE_PARENT:
        look_rows(s, group, t, &node.closure, now, arena, out)
        return
    look_rows(s, group, t, &node.parents, now, arena, out)
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n):
        look_rows(s, group, t, &table_node(t, parents[i]).closure, now, arena, out)


cdef void look_classes(
    LiveState *s, const Uid *agent, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    """Classes hold agents."""
    cdef Group classes
    classes.kind, classes.type = REVOKED_CLASS, s.class_type
    look_groups(s, &classes, agent, t, now, arena, out)


cdef void look_servers(
    LiveState *s, const Request *request, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    """Servers hold tools."""
    cdef Group servers
    servers.kind, servers.type = REVOKED_SERVER, s.server_type
    look_groups(s, &servers, request.resource, t, now, arena, out)
    if request.resource_parent != NULL:
        look_groups(s, &servers, request.resource_parent, t, now, arena, out)


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


cdef struct Probes:          # what is looked up of one call
    RowProbe items[PROBES_MAX]
    uint32_t n


cdef inline void probe(const LiveState *s, uint32_t kind, Text key, Probes *out) noexcept nogil:
    if s.revoked[kind] and key.n and out.n < PROBES_MAX:
        rows_begin(&s.revocations, kind, key, &out.items[out.n])
        out.n += 1


cdef void probe_destinations(const LiveState *s, const Request *request, Probes *out) noexcept nogil:
    cdef const Cell *dest = request.columns + <int> COL_DEST
    probe(s, REVOKED_DESTINATION, request.destination, out)
    probe(s, REVOKED_DESTINATION, without_port(request.destination), out)
    if dest.kind == KIND_ENTITY and not text_equal(id_of(<const Uid *> cell_at(dest)), request.destination):
        probe(s, REVOKED_DESTINATION, id_of(<const Uid *> cell_at(dest)), out)


cdef void revoked_call(
    LiveState *s, const Request *request, Text credential, const Table *t, int64_t now, Arena *arena,
    Standing *out
) noexcept nogil:
    cdef Text agent = id_of(request.principal)
    cdef const Revocation *row
    cdef Probes probes
    cdef uint32_t i
    probes.n = 0
    probe(s, REVOKED_AGENT, agent, &probes)
    probe(s, REVOKED_TRUST_DOMAIN, trust_domain_of(agent), &probes)
    probe(s, REVOKED_CREDENTIAL, serial_of(credential), &probes)
    probe(s, REVOKED_CREDENTIAL, out.credential, &probes)
    probe(s, REVOKED_TOOL, id_of(request.resource), &probes)
    probe(s, REVOKED_SERVER, server_of(request), &probes)
    probe_destinations(s, request, &probes)
    for i in range(probes.n):
        row = <const Revocation *> rows_finish(&s.revocations, &probes.items[i])
        if row != NULL:
            apply_revocation(row, now, arena, out)
    look_classes(s, request.principal, t, now, arena, out)
    look_servers(s, request, t, now, arena, out)


cdef void revoked_above(
    LiveState *s, Text agent, Text owner, const Request *request, const Table *t, int64_t now, Arena *arena,
    Standing *out
) noexcept nogil:
    cdef Uid *uid
    revoked_key(s, REVOKED_AGENT, agent, now, arena, out)
    revoked_key(s, REVOKED_TRUST_DOMAIN, trust_domain_of(agent), now, arena, out)
    revoked_key(s, REVOKED_OWNER, owner, now, arena, out)
    if s.revoked[<int> REVOKED_CLASS] == 0:
        return
    uid = uid_make(arena, uid_type(request.principal), request.principal.type_len, agent.p, agent.n)
    if uid != NULL:
        table_resolve(t, uid)
        look_classes(s, uid, t, now, arena, out)
