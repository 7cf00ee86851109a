"""The live view of authority (authority.pxd): where a call stands, and what it takes when it is allowed."""
cimport cython
from fastpath.c.openssl cimport SHA256
from fastpath.c.pthread cimport pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from fastpath.columns cimport (
    COL_APPROVAL_AGE_S,
    COL_APPROVAL_BREAK_GLASS,
    COL_APPROVAL_MATCHES,
    COL_APPROVAL_SELF_APPROVED,
    COL_APPROVAL_STATE,
    COL_CALL_BYTES,
    COL_CALL_DATA_LEVEL,
    COL_DELEGATION_CHAIN_OK,
    COL_DELEGATION_DEPTH,
    COL_DELEGATION_ON_BEHALF,
    COL_DELEGATION_ORIGIN,
    COL_DEST,
    COL_TASK_ATTENUATED,
    COL_TASK_CALLS_LEFT,
    COL_TASK_COST_LEFT,
    COL_TASK_COVERS_ACTION,
    COL_TASK_COVERS_DATA,
    COL_TASK_COVERS_DEST,
    COL_TASK_COVERS_TOOL,
    COL_TASK_DEPTH,
    COL_TASK_ID,
    COL_TASK_MAX_DEPTH,
    COL_TASK_MAX_LEVEL,
    COL_TASK_OWNER,
    COL_TASK_PRESENT,
    COL_TASK_PURPOSE,
    COL_TASK_STATE,
    COL_TASK_TTL_S,
)
from fastpath.image cimport NODE_PRESENT, Node
from fastpath.request cimport DOOR_EXT_AUTHZ, DOOR_EXT_AUTHZ_NETWORK
from fastpath.rowmap cimport rows_add, rows_find, rows_free, rows_take
from fastpath.scope cimport Covers, scope_covers
from fastpath.rows cimport node_attrs, table_node
from fastpath.table cimport table_find, table_is_in, table_resolve
from fastpath.value cimport (
    KIND_BOOL,
    KIND_ENTITY,
    KIND_LONG,
    UID_UNKNOWN,
    Cell,
    arena_take,
    cell_at,
    cell_bool,
    cell_entity,
    cell_long,
    cell_string,
    record_get,
    uid_equal,
    uid_hash,
    uid_id,
    uid_make,
    uid_type,
)
from fastpath.wire cimport text_equal, text_is, text_of
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport INT64_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from fastpath.errors import ProtocolError

cdef extern from * nogil:
    """
    #include <time.h>
    static inline void remit_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t remit_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    """
    int CLOCK_BOOTTIME       # counts while the machine sleeps, and nobody sets it
    void remit_store(uint64_t *p, uint64_t v)
    uint64_t remit_load(const uint64_t *p)

cdef enum:
    RESERVATIONS = 1 << 14   # newest allowed calls that Report can still settle; power of two
    STEP_UPS = 1 << 9        # newest STEP_UP answers that an approval can be asked for; power of two
    NAME_BYTES = 256
    RESOURCE_BYTES = 1024
    APPROVAL_EXACT = 1
    APPROVAL_CLASS = 2
    SECOND_NS = 1000000000

cdef int64_t RESERVE_NS = 300 * <int64_t> SECOND_NS

cdef struct StepUp:          # texts longer than their room are cut; the digests are over the whole ones
    char evaluation[EVALUATION_BYTES]
    uint8_t digest[32]
    uint8_t class_digest[32]
    char task[TASK_ID_MAX]
    char reason[NAME_BYTES]
    char agent[NAME_BYTES]
    char action[NAME_BYTES]
    char resource_type[NAME_BYTES]
    char resource[RESOURCE_BYTES]
    char destination[RESOURCE_BYTES]
    char method[NAME_BYTES]
    char chain[CHAIN_MAX * NAME_BYTES]   # NUL-separated
    uint32_t chain_bytes
    int64_t level
    int64_t unix_ns
    uint8_t cut
    uint8_t emergency

STATES = ("open", "suspended", "completed", "cancelled", "expired", "revoked")
KINDS = {
    "agent": REVOKED_AGENT, "class": REVOKED_CLASS, "task": REVOKED_TASK, "tool": REVOKED_TOOL,
    "server": REVOKED_SERVER, "destination": REVOKED_DESTINATION, "credential": REVOKED_CREDENTIAL,
    "owner": REVOKED_OWNER, "trust_domain": REVOKED_TRUST_DOMAIN,
}
AXES = tuple((name, f"spent_{name}", f"over_{name}") for name in ("calls", "cost", "bytes"))
MODES_BY_NAME = {"deny": MODE_DENY, "read_only": MODE_READ_ONLY, "step_up": MODE_STEP_UP}


# ---------------------------------------------------------------- small things


cdef inline Text state_text(int state) noexcept nogil:
    if state == TASK_OPEN:
        return text_of(b"open")
    if state == TASK_SUSPENDED:
        return text_of(b"suspended")
    if state == TASK_COMPLETED:
        return text_of(b"completed")
    if state == TASK_CANCELLED:
        return text_of(b"cancelled")
    if state == TASK_EXPIRED:
        return text_of(b"expired")
    return text_of(b"revoked")


cdef inline Text state_fault(int state) noexcept nogil:
    if state == TASK_SUSPENDED:
        return text_of(b"task.suspended")
    if state == TASK_COMPLETED:
        return text_of(b"task.completed")
    if state == TASK_CANCELLED:
        return text_of(b"task.cancelled")
    if state == TASK_EXPIRED:
        return text_of(b"task.expired")
    return text_of(b"task.revoked")


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


cdef inline Cell *column(Request *request, int at) noexcept nogil:
    return request.columns + at


cdef inline Text id_of(const Uid *uid) noexcept nogil:
    cdef Text text
    text.p, text.n = uid_id(uid), uid.id_len
    return text


cdef Text kept(Text text, Arena *arena) noexcept nogil:
    """A copy in the arena: what the lock guards may be gone when the call reads it. Empty when there is no room."""
    cdef Text copy
    copy.p, copy.n = NULL, 0
    if text.n:
        copy.p = <const char *> arena_take(arena, text.n)
        if copy.p != NULL:
            memcpy(<void *> copy.p, text.p, text.n)
            copy.n = text.n
    return copy


cdef int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t> SECOND_NS * now.tv_sec + now.tv_nsec


cdef inline int64_t boot_ns(const LiveState *s) noexcept nogil:
    return s.now_boot_ns if s.now_boot_ns else clock_ns(CLOCK_BOOTTIME)


cdef int64_t unix_ns(LiveState *s) noexcept nogil:
    """The wall clock, never earlier than it was before."""
    cdef int64_t now = s.now_unix_ns if s.now_unix_ns else clock_ns(CLOCK_REALTIME)
    if now > s.unix_floor_ns:
        s.unix_floor_ns = now
    return s.unix_floor_ns


cdef inline int64_t remaining(
    int64_t expires_unix_ns, int64_t ends_boot_ns, int64_t unix_now, int64_t boot_now
) noexcept nogil:
    """By whichever clock says that less is left."""
    return min(expires_unix_ns - unix_now, ends_boot_ns - boot_now)


cdef int64_t ends_at(LiveState *s, int64_t expires_unix_ns) noexcept nogil:
    """The moment on the boot clock that the wall clock calls `expires_unix_ns`, by what both say now."""
    cdef int64_t left = expires_unix_ns - unix_ns(s)
    cdef int64_t now = boot_ns(s)
    return INT64_MAX if left > INT64_MAX - now else now + left


cdef uint64_t authority_epoch(const LiveState *live) noexcept nogil:
    return remit_load(&live.epoch)


# ---------------------------------------------------------------- revocations


cdef void apply_revocation(const Revocation *row, int64_t now, Arena *arena, Standing *out) noexcept nogil:
    cdef bint hit = False
    if row.until_unix_ns[<int> MODE_DENY] > now:
        if out.refusal.n == 0:
            out.refusal = revoked_reason(row.key.kind)
        hit = True
    if row.until_unix_ns[<int> MODE_READ_ONLY] > now:
        out.read_only = 1
        hit = True
    if row.until_unix_ns[<int> MODE_STEP_UP] > now:
        out.step_up = 1
        hit = True
    if hit and out.remediation.n == 0:
        out.remediation = kept(row.reason, arena) if row.reason.n else revoked_reason(row.key.kind)


cdef void look_revoked(
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


cdef void look_classes(
    const LiveState *s, const Uid *agent, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    cdef const Revocation *row = s.groups if s.revoked[<int> REVOKED_CLASS] else NULL
    while row != NULL:
        if row.key.kind == REVOKED_CLASS and in_group(t, agent, row.uid):
            apply_revocation(row, now, arena, out)
        row = row.next


cdef void look_groups(
    const LiveState *s, const Request *request, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    """Classes hold agents and servers hold tools by the entity store."""
    cdef const Revocation *row = s.groups
    look_classes(s, request.principal, t, now, arena, out)
    while row != NULL:
        if row.key.kind == REVOKED_SERVER and (
            in_group(t, request.resource, row.uid)
            or (request.resource_parent != NULL and in_group(t, request.resource_parent, row.uid))
        ):
            apply_revocation(row, now, arena, out)
        row = row.next


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


cdef void look_everywhere(
    LiveState *s, const Request *request, Text credential, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    cdef Text agent = id_of(request.principal)
    cdef const Cell *dest = request.columns + <int> COL_DEST
    if s.revocations.used == 0:
        return
    look_revoked(s, REVOKED_AGENT, agent, now, arena, out)
    look_revoked(s, REVOKED_TRUST_DOMAIN, trust_domain_of(agent), now, arena, out)
    look_revoked(s, REVOKED_CREDENTIAL, serial_of(credential), now, arena, out)
    look_revoked(s, REVOKED_TOOL, id_of(request.resource), now, arena, out)
    look_revoked(s, REVOKED_SERVER, server_of(request), now, arena, out)
    look_revoked(s, REVOKED_DESTINATION, request.destination, now, arena, out)
    look_revoked(s, REVOKED_DESTINATION, without_port(request.destination), now, arena, out)
    if dest.kind == KIND_ENTITY and not text_equal(id_of(<const Uid *> cell_at(dest)), request.destination):
        look_revoked(s, REVOKED_DESTINATION, id_of(<const Uid *> cell_at(dest)), now, arena, out)
    look_groups(s, request, t, now, arena, out)


# ---------------------------------------------------------------- owners


cdef bint active_in_store(const Table *t, const Uid *person) noexcept nogil:
    """Whether the entity store has the person, whose row is known, and does not say that they left."""
    cdef const Node *node = table_node(t, person.index)
    cdef const Cell *active
    if node == NULL or not node.flags & NODE_PRESENT:
        return False
    active = record_get(node_attrs(t, person.index), b"active", 6)
    return active == NULL or (active.kind == KIND_BOOL and active.v == 1)


cdef bint owner_fits(
    LiveState *s, const Uid *person, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    if rows_find(&s.owners, 0, id_of(person)) != NULL or not active_in_store(t, person):
        return False
    look_revoked(s, REVOKED_OWNER, id_of(person), now, arena, out)
    return True


cdef void look_owners(
    LiveState *s, Request *request, Text task_owner, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    """No active owner on agent and task, no allow."""
    cdef const Node *agent = table_node(t, request.principal.index)
    cdef const Cell *owner
    cdef Uid *person
    if agent == NULL or not agent.flags & NODE_PRESENT:
        out.owner_fault = text_of(b"owner.missing")
        return
    owner = record_get(node_attrs(t, request.principal.index), b"owner", 5)
    if owner == NULL or owner.kind != KIND_ENTITY:
        out.owner_fault = text_of(b"owner.missing")
    elif not owner_fits(s, <const Uid *> cell_at(owner), t, now, arena, out):
        out.owner_fault = text_of(b"owner.inactive")
    if out.task.n == 0:
        return
    person = uid_make(arena, s.person_type.p, s.person_type.n, task_owner.p, task_owner.n)
    if person == NULL:
        return
    table_resolve(t, person)
    cell_entity(column(request, COL_TASK_OWNER), person)
    if out.owner_fault.n == 0 and not owner_fits(s, person, t, now, arena, out):
        out.owner_fault = text_of(b"owner.inactive")


# ---------------------------------------------------------------- tasks


cdef Task *named_task(LiveState *s, const Request *request, Standing *out) noexcept nogil:
    """The task that the call names, which must be the caller's; a name that leads nowhere denies."""
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, request.task)
    if task == NULL:
        out.refusal = text_of(b"task.unknown")
        return NULL
    if not text_equal(task.agent, id_of(request.principal)):
        # Nobody learns that the task of another exists.
        out.refusal = text_of(b"task.unknown")
        return NULL
    return task


cdef Task *only_task(LiveState *s, const Request *request, int64_t now, int64_t boot, Standing *out) noexcept nogil:
    """The agent's only open task."""
    cdef const AgentTasks *agent = <const AgentTasks *> rows_find(&s.agents, 0, id_of(request.principal))
    cdef Task *found = NULL
    cdef Task *task
    out.task_fault = text_of(b"task.none")
    if agent == NULL:
        return NULL
    task = agent.first
    while task != NULL:
        if remaining(task.expires_unix_ns, task.ends_boot_ns, now, boot) > 0:
            if found != NULL:
                out.task_fault = text_of(b"task.unnamed")
                return NULL
            found = task
        task = task.next
    return found


cdef struct Chain:           # what a call's task and all above it say together
    Covers covers
    int64_t ttl_ns
    int64_t max_level
    uint8_t attenuated
    uint8_t complete         # every hop was found and is open
    Text origin
    uint8_t on_behalf


cdef Text hop_fault(const Task *task, int64_t ttl_ns) noexcept nogil:
    if task.state != TASK_OPEN:
        return state_fault(task.state)
    if ttl_ns <= 0:
        return text_of(b"task.expired")
    return text_of(b"")


cdef void look_above(
    LiveState *s, const Task *task, const Request *request, const Table *t, int64_t now, Arena *arena, Standing *out
) noexcept nogil:
    """An agent that delegated and may do nothing any more takes what it delegated with it."""
    cdef Uid *agent
    look_revoked(s, REVOKED_AGENT, task.agent, now, arena, out)
    look_revoked(s, REVOKED_TRUST_DOMAIN, trust_domain_of(task.agent), now, arena, out)
    look_revoked(s, REVOKED_OWNER, task.owner, now, arena, out)
    if s.revoked[<int> REVOKED_CLASS] == 0:
        return
    agent = uid_make(arena, uid_type(request.principal), request.principal.type_len, task.agent.p, task.agent.n)
    if agent != NULL:
        table_resolve(t, agent)
        look_classes(s, agent, t, now, arena, out)


cdef void climb(
    LiveState *s, Task *task, const Request *request, const Table *t, int64_t now, int64_t boot, Arena *arena,
    Chain *chain, Standing *out
) noexcept nogil:
    """Every task up to the root must stand and cover the call: what a parent may not do, no child may."""
    cdef Covers covers
    cdef Text hops[CHAIN_MAX]
    cdef int64_t ttl
    cdef Task *at = task
    cdef uint32_t n = 0
    cdef uint32_t i
    memset(chain, 0, sizeof(Chain))
    chain.covers.tool = chain.covers.action = chain.covers.dest = chain.covers.data = 1
    chain.ttl_ns = chain.max_level = INT64_MAX
    chain.attenuated = chain.complete = 1
    while at != NULL and n < CHAIN_MAX:
        ttl = remaining(at.expires_unix_ns, at.ends_boot_ns, now, boot)
        chain.ttl_ns = min(chain.ttl_ns, ttl)
        chain.max_level = min(chain.max_level, at.scope.max_level)
        if at.parent.n:
            chain.attenuated &= at.attenuated
        chain.on_behalf |= at.on_behalf
        chain.origin = at.origin
        if out.task_fault.n == 0:
            out.task_fault = hop_fault(at, ttl)
        look_revoked(s, REVOKED_TASK, at.key.text, now, arena, out)
        if at != task:
            look_above(s, at, request, t, now, arena, out)
        scope_covers(at.scope, request, t, &covers)
        chain.covers.tool &= covers.tool
        chain.covers.action &= covers.action
        chain.covers.dest &= covers.dest
        chain.covers.data &= covers.data
        hops[n] = kept(at.agent, arena)
        n += 1
        if at.parent.n == 0:
            break
        at = <Task *> rows_find(&s.tasks, 0, at.parent)
    if at == NULL or at.parent.n:
        # A parent that is not there cannot be asked, and a chain without an end is no chain.
        out.task_fault = text_of(b"task.chain")
    chain.complete = out.task_fault.n == 0
    out.chain_count = n
    for i in range(n):
        out.chain[i] = hops[n - 1 - i]


cdef Text scope_fault(const Covers *covers) noexcept nogil:
    if not covers.tool:
        return text_of(b"task.scope.tool")
    if not covers.action:
        return text_of(b"task.scope.action")
    if not covers.dest:
        return text_of(b"task.scope.destination")
    if not covers.data:
        return text_of(b"task.scope.data")
    return text_of(b"")


cdef inline int64_t budget_column(int64_t left) noexcept nogil:
    """What is unlimited must compare as more than any number."""
    return INT64_MAX if left < 0 else left


cdef void fill_text(Request *request, int at, Text text) noexcept nogil:
    cell_string(column(request, at), text.p, text.n)


cdef void fill_task(Request *request, const Task *task, const Chain *chain, Arena *arena, Standing *out) noexcept nogil:
    cdef int64_t ttl = max(<int64_t> 0, chain.ttl_ns)
    cdef int state = task.state
    out.task = kept(task.key.text, arena)
    if state == TASK_OPEN and ttl == 0:
        state = TASK_EXPIRED
    cell_bool(column(request, COL_TASK_PRESENT), True)
    fill_text(request, COL_TASK_ID, out.task)
    fill_text(request, COL_TASK_STATE, state_text(state))
    fill_text(request, COL_TASK_PURPOSE, kept(task.purpose, arena))
    cell_bool(column(request, COL_TASK_COVERS_TOOL), chain.covers.tool)
    cell_bool(column(request, COL_TASK_COVERS_ACTION), chain.covers.action)
    cell_bool(column(request, COL_TASK_COVERS_DEST), chain.covers.dest)
    cell_bool(column(request, COL_TASK_COVERS_DATA), chain.covers.data)
    cell_long(column(request, COL_TASK_MAX_LEVEL), chain.max_level)
    cell_long(column(request, COL_TASK_TTL_S), ttl // SECOND_NS)
    cell_long(column(request, COL_TASK_CALLS_LEFT), budget_column(task.left[<int> BUDGET_CALLS]))
    cell_long(column(request, COL_TASK_COST_LEFT), budget_column(task.left[<int> BUDGET_COST]))
    cell_long(column(request, COL_TASK_DEPTH), task.depth)
    cell_long(column(request, COL_TASK_MAX_DEPTH), task.max_depth)
    cell_bool(column(request, COL_TASK_ATTENUATED), chain.attenuated)
    cell_long(column(request, COL_DELEGATION_DEPTH), task.depth)
    fill_text(request, COL_DELEGATION_ORIGIN, kept(chain.origin, arena))
    cell_bool(column(request, COL_DELEGATION_CHAIN_OK), chain.complete)
    cell_bool(column(request, COL_DELEGATION_ON_BEHALF), chain.on_behalf)


# ---------------------------------------------------------------- approvals


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


cdef const Approval *approval_for(
    LiveState *s, uint32_t kind, const uint8_t *digest, Text task, int64_t now, int64_t boot
) noexcept nogil:
    cdef Text key
    cdef Approval *row
    key.p, key.n = <const char *> digest, 32
    row = <Approval *> rows_find(&s.approvals, kind, key)
    while row != NULL:
        if (
            row.uses > 0
            and remaining(row.expires_unix_ns, row.ends_boot_ns, now, boot) > 0
            and (row.task.n == 0 or text_equal(row.task, task))
        ):
            return row
        row = row.next
    return NULL


cdef const Approval *find_approval(
    LiveState *s, const Request *request, Text task, int64_t now, int64_t boot, Arena *arena, Standing *out
) noexcept nogil:
    cdef const Approval *row
    if s.approvals.used == 0 or not make_digests(request, arena, out):
        return NULL
    row = approval_for(s, APPROVAL_EXACT, out.digest, task, now, boot)
    if row == NULL:
        row = approval_for(s, APPROVAL_CLASS, out.class_digest, task, now, boot)
    return row


cdef void fill_approval(
    LiveState *s, Request *request, int64_t now, int64_t boot, Arena *arena, Standing *out
) noexcept nogil:
    cdef const Approval *row = find_approval(s, request, out.task, now, boot, arena, out)
    if row == NULL:
        return
    out.approval = kept(row.id, arena)
    out.approved = out.approval.n > 0 and not row.self_approved
    out.break_glass = row.break_glass and out.approved
    fill_text(request, COL_APPROVAL_STATE, text_of(b"granted"))
    cell_bool(column(request, COL_APPROVAL_MATCHES), True)
    cell_bool(column(request, COL_APPROVAL_SELF_APPROVED), row.self_approved)
    cell_long(column(request, COL_APPROVAL_AGE_S), max(<int64_t> 0, now - row.decided_unix_ns) // SECOND_NS)
    cell_bool(column(request, COL_APPROVAL_BREAK_GLASS), row.break_glass)


# ---------------------------------------------------------------- a call comes


cdef void enter_locked(
    LiveState *s, Request *request, Text credential, const Table *t, Arena *arena, Standing *out
) noexcept nogil:
    cdef int64_t boot = boot_ns(s)
    cdef int64_t now = unix_ns(s)
    cdef Chain chain
    cdef Task *task
    cdef Text owner
    owner.p, owner.n = NULL, 0
    out.boot_ns, out.unix_ns = boot, now
    if s.fresh_until_ns and boot > s.fresh_until_ns:
        out.refusal = text_of(b"not_ready.authority_stale")
        out.refusal_is_ours = 1
        return
    look_everywhere(s, request, credential, t, now, arena, out)
    if out.refusal.n:
        return
    task = named_task(s, request, out) if request.task.n else only_task(s, request, now, boot, out)
    if task != NULL:
        out.task_fault = text_of(b"")
        climb(s, task, request, t, now, boot, arena, &chain, out)
        if out.task_fault.n == 0:
            out.task_fault = scope_fault(&chain.covers)
        fill_task(request, task, &chain, arena, out)
        owner = task.owner
    if out.refusal.n == 0:
        look_owners(s, request, owner, t, now, arena, out)
    if out.refusal.n == 0:
        fill_approval(s, request, now, boot, arena, out)


cdef void authority_enter(
    LiveState *live, Request *request, Text credential, const Table *t, Arena *arena, Standing *out
) noexcept nogil:
    out.live = live
    out.enforced = 1
    pthread_mutex_lock(&live.lock)
    out.epoch = live.epoch
    enter_locked(live, request, credential, t, arena, out)
    pthread_mutex_unlock(&live.lock)
    if arena.failed:
        # Half a picture of where the call stands is none.
        out.refusal = text_of(b"limit")
        out.refusal_is_ours = 1


cdef bint authority_observes(const LiveState *live, const Request *request, const Table *t) noexcept nogil:
    cdef Text id_ = id_of(request.action)
    cdef Text type_
    type_.p, type_.n = uid_type(request.action), request.action.type_len
    if in_group(t, request.action, live.observe):
        return True
    return text_equal(type_, live.action_type) and (text_is(id_, b"read") or text_is(id_, b"list"))


# ---------------------------------------------------------------- an allowed call takes its share


cdef inline bint affords(const Task *task, const int64_t *wanted) noexcept nogil:
    cdef int i
    for i in range(<int> BUDGETS):
        if task.left[i] >= 0 and task.left[i] < wanted[i]:
            return False
    return True


cdef inline int64_t plus(int64_t a, int64_t b) noexcept nogil:
    """The sum, or the bound that it would cross: a cost is any number that a caller names."""
    if b > 0 and a > INT64_MAX - b:
        return INT64_MAX
    if b < 0 and a < -INT64_MAX - b:
        return -INT64_MAX
    return a + b


cdef void move_left(Task *task, int budget, int64_t amount) noexcept nogil:
    """Add to what is left. Below zero it is owed: no call may spend what only pays for an earlier one."""
    cdef int64_t now = plus(task.left[budget] - task.over[budget], amount)
    task.left[budget] = max(<int64_t> 0, now)
    task.over[budget] = max(<int64_t> 0, -now)


cdef void charge(Task *task, const int64_t *took, int sign) noexcept nogil:
    cdef int i
    for i in range(<int> BUDGETS):
        task.spent[i] = plus(task.spent[i], sign * took[i])
        if task.left[i] >= 0:
            move_left(task, i, -sign * took[i])


cdef inline void note_text(char *room, uint32_t cap, Text text, Text *out) noexcept nogil:
    out.p, out.n = room, min(cap, text.n)
    if out.n:
        memcpy(room, text.p, out.n)


cdef void reserve(
    LiveState *s, const Request *request, const char *evaluation, uint64_t sequence, const Standing *standing,
    int64_t boot
) noexcept nogil:
    cdef Reservation *slot = &s.reservations[sequence & (RESERVATIONS - 1)]
    # Whatever stood here is too old to be settled: it counts as spent.
    memcpy(slot.evaluation, evaluation, EVALUATION_BYTES)
    note_text(slot.task_text, TASK_ID_MAX, standing.task, &slot.task)
    note_text(slot.approval_text, TASK_ID_MAX, standing.approval, &slot.approval)
    note_text(slot.agent_text, AGENT_BYTES_MAX, id_of(request.principal), &slot.agent)
    slot.of_envoy = request.door == DOOR_EXT_AUTHZ or request.door == DOOR_EXT_AUTHZ_NETWORK
    memcpy(slot.took, standing.took, sizeof(slot.took))
    slot.deadline_boot_ns = boot + s.reserve_ns
    slot.open = 1


cdef Approval *own_approval(LiveState *s, const Standing *standing, int64_t now, int64_t boot) noexcept nogil:
    """The approval that the call was judged by, if it is still there."""
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
                if row.uses > 0 and remaining(row.expires_unix_ns, row.ends_boot_ns, now, boot) > 0:
                    return row
                return NULL
            row = row.next
    return NULL


cdef Text task_again(LiveState *s, Text id_, int64_t now, int64_t boot) noexcept nogil:
    """Whether the task and all above it still stand: something may have changed while the policies were evaluated."""
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, id_)
    cdef Text fault
    cdef uint32_t n = 0
    while task != NULL and n < CHAIN_MAX:
        fault = hop_fault(task, remaining(task.expires_unix_ns, task.ends_boot_ns, now, boot))
        if fault.n or task.parent.n == 0:
            return fault
        task = <Task *> rows_find(&s.tasks, 0, task.parent)
        n += 1
    return text_of(b"task.chain")


cdef Text take_locked(
    LiveState *s, const Request *request, const char *evaluation, uint64_t sequence, Standing *standing
) noexcept nogil:
    # A decision takes less than its time budget, so what it was judged by is what time it is.
    cdef int64_t boot = standing.boot_ns
    cdef int64_t now = standing.unix_ns
    cdef const Cell *size = request.columns + <int> COL_CALL_BYTES
    cdef Approval *approval = NULL
    cdef Task *task = NULL
    cdef Text fault
    if standing.approval.n:
        approval = own_approval(s, standing, now, boot)
        if approval == NULL:
            return text_of(b"approval.used")
    if standing.task.n and standing.task_fault.n == 0:
        fault = task_again(s, standing.task, now, boot)
        if fault.n:
            return fault
        task = <Task *> rows_find(&s.tasks, 0, standing.task)
        standing.took[<int> BUDGET_CALLS] = 1
        standing.took[<int> BUDGET_COST] = request.cost
        standing.took[<int> BUDGET_BYTES] = size.v if size.kind == KIND_LONG and size.v > 0 else 0
        if not affords(task, standing.took):
            memset(standing.took, 0, sizeof(standing.took))
            return text_of(b"task.budget")
        charge(task, standing.took, 1)
    if approval != NULL:
        approval.uses -= 1
    if task != NULL or approval != NULL:
        reserve(s, request, evaluation, sequence, standing, boot)
        standing.settled = 1
    return text_of(b"")


cdef Text authority_take(
    LiveState *live, const Request *request, const char *evaluation, uint64_t sequence, Standing *standing
) noexcept nogil:
    cdef Text fault
    pthread_mutex_lock(&live.lock)
    fault = take_locked(live, request, evaluation, sequence, standing)
    pthread_mutex_unlock(&live.lock)
    return fault


cdef Reservation *reservation_of(LiveState *s, const char *evaluation, uint64_t sequence) noexcept nogil:
    cdef Reservation *slot = &s.reservations[sequence & (RESERVATIONS - 1)]
    if not slot.open or memcmp(slot.evaluation, evaluation, EVALUATION_BYTES):
        return NULL
    return slot


cdef Approval *approval_by_id(LiveState *s, Text id_) noexcept nogil:
    """Looked up among all: only a call that failed after it was allowed comes here."""
    cdef Approval *row
    cdef size_t i
    for i in range(s.approvals.size):
        row = <Approval *> s.approvals.slots[i].row
        while row != NULL:
            if text_equal(row.id, id_):
                return row
            row = row.next
    return NULL


cdef void authority_ground(
    const char *evaluation, uint64_t sequence, const Standing *standing, Grounds *out
) noexcept nogil:
    out.any = standing.live != NULL
    out.settled = standing.settled
    memcpy(out.evaluation, evaluation, EVALUATION_BYTES)
    out.sequence = sequence
    # No longer than their rooms: what is in force was refused else.
    out.task_n = min(<uint32_t> TASK_ID_MAX, standing.task.n) if standing.task_fault.n == 0 else 0
    out.approval_n = min(<uint32_t> TASK_ID_MAX, standing.approval.n)
    if out.task_n:
        memcpy(out.task, standing.task.p, out.task_n)
    if out.approval_n:
        memcpy(out.approval, standing.approval.p, out.approval_n)


cdef bint holds_locked(LiveState *s, Grounds *grounds) noexcept nogil:
    cdef int64_t now = unix_ns(s)
    cdef int64_t boot = boot_ns(s)
    cdef const Approval *approval
    cdef Text id_
    if s.fresh_until_ns and boot > s.fresh_until_ns:
        return False
    if grounds.settled and reservation_of(s, grounds.evaluation, grounds.sequence) == NULL:
        return False
    id_.p, id_.n = grounds.approval, grounds.approval_n
    if id_.n:
        approval = approval_by_id(s, id_)
        if approval == NULL or remaining(approval.expires_unix_ns, approval.ends_boot_ns, now, boot) <= 0:
            return False
    id_.p, id_.n = grounds.task, grounds.task_n
    return id_.n == 0 or task_again(s, id_, now, boot).n == 0


cdef bint authority_holds(LiveState *live, const Grounds *grounds) noexcept nogil:
    cdef bint holds
    if live == NULL or not grounds.any:
        return True
    pthread_mutex_lock(&live.lock)
    holds = holds_locked(live, <Grounds *> grounds)
    pthread_mutex_unlock(&live.lock)
    return holds


cdef void give_back(LiveState *s, Reservation *slot) noexcept nogil:
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, slot.task)
    cdef Approval *approval = approval_by_id(s, slot.approval) if slot.approval.n else NULL
    if task != NULL:
        charge(task, slot.took, -1)
    if approval != NULL:
        approval.uses += 1
    slot.open = 0


cdef void authority_release(LiveState *live, const char *evaluation, uint64_t sequence) noexcept nogil:
    cdef Reservation *slot
    pthread_mutex_lock(&live.lock)
    slot = reservation_of(live, evaluation, sequence)
    if slot != NULL:
        give_back(live, slot)
    pthread_mutex_unlock(&live.lock)


# ---------------------------------------------------------------- what became of an allowed call


cdef int64_t hex_value(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef Reservation *reserved(LiveState *s, Text evaluation) noexcept nogil:
    """The slot of an evaluation id, whose second half is the number of the call."""
    cdef uint64_t sequence = 0
    cdef int64_t digit
    cdef int i
    if evaluation.n != EVALUATION_BYTES:
        return NULL
    for i in range(16, EVALUATION_BYTES):
        digit = hex_value(evaluation.p[i])
        if digit < 0:
            return NULL
        sequence = sequence << 4 | <uint64_t> digit
    return reservation_of(s, evaluation.p, sequence)


cdef void settled(Settled *out, int *n, int kind, Text key, int64_t value) noexcept nogil:
    if value == 0 or key.n == 0:
        return
    out[n[0]].kind = <uint8_t> kind
    memcpy(out[n[0]].key, key.p, key.n)
    out[n[0]].key_n = key.n
    out[n[0]].value = value
    n[0] += 1


cdef int close_locked(
    LiveState *s, Text evaluation, Text agent, bint executed, int64_t cost, int64_t size, Settled *out
) noexcept nogil:
    cdef Reservation *slot = reserved(s, evaluation)
    cdef int n = 0
    if slot == NULL or slot.deadline_boot_ns < boot_ns(s) or slot.of_envoy != (agent.n == 0):
        # An agent that guesses the id of a call through Envoy must not say that it was never made.
        return -1
    if agent.n and not text_equal(agent, slot.agent):
        return -1
    slot.open = 0
    if executed:
        settled(out, &n, EFFECT_COST, slot.task, cost - slot.took[<int> BUDGET_COST] if cost >= 0 else 0)
        settled(out, &n, EFFECT_BYTES, slot.task, size - slot.took[<int> BUDGET_BYTES] if size >= 0 else 0)
        return n
    settled(out, &n, EFFECT_CALLS, slot.task, -slot.took[<int> BUDGET_CALLS])
    settled(out, &n, EFFECT_COST, slot.task, -slot.took[<int> BUDGET_COST])
    settled(out, &n, EFFECT_BYTES, slot.task, -slot.took[<int> BUDGET_BYTES])
    settled(out, &n, EFFECT_APPROVAL, slot.approval, -1)
    return n


cdef int authority_close(
    LiveState *live, Text evaluation, Text agent, bint executed, int64_t cost, int64_t size, Settled *out
) noexcept nogil:
    cdef int n
    pthread_mutex_lock(&live.lock)
    n = close_locked(live, evaluation, agent, executed, cost, size, out)
    pthread_mutex_unlock(&live.lock)
    return n


cdef void authority_reopen(LiveState *live, Text evaluation) noexcept nogil:
    cdef Reservation *slot
    cdef int i
    pthread_mutex_lock(&live.lock)
    # A closed one is not found by its id: only a journal that fails comes here.
    for i in range(RESERVATIONS):
        slot = &live.reservations[i]
        if memcmp(slot.evaluation, evaluation.p, EVALUATION_BYTES) == 0:
            slot.open = 1
            break
    pthread_mutex_unlock(&live.lock)


cdef void redo_locked(LiveState *s, const Settled *change) noexcept nogil:
    cdef int64_t took[BUDGETS]
    cdef Approval *approval
    cdef Task *task
    cdef Text key
    key.p, key.n = <const char *> change.key, change.key_n
    if change.kind == EFFECT_APPROVAL:
        approval = approval_by_id(s, key)
        if approval != NULL:
            approval.uses = max(<int64_t> 0, approval.uses - change.value)
        return
    task = <Task *> rows_find(&s.tasks, 0, key)
    if task != NULL:
        memset(took, 0, sizeof(took))
        took[change.kind - EFFECT_CALLS] = change.value
        charge(task, took, 1)


cdef void authority_redo(LiveState *live, const Settled *changes, int n) noexcept nogil:
    cdef int i
    pthread_mutex_lock(&live.lock)
    for i in range(n):
        redo_locked(live, changes + i)
    pthread_mutex_unlock(&live.lock)


# ---------------------------------------------------------------- STEP_UP, for whoever asks for an approval


cdef void put_text(char *room, uint32_t cap, Text text, uint8_t *cut) noexcept nogil:
    """NUL-terminated, cut to its room."""
    cdef uint32_t n = min(cap - 1, text.n)
    cut[0] |= n < text.n
    if n:
        memcpy(room, text.p, n)
    room[n] = 0


cdef void authority_note_step_up(
    LiveState *live, const Request *request, const char *evaluation, uint64_t sequence, Text reason, bint emergency,
    Arena *arena, Standing *standing
) noexcept nogil:
    cdef StepUp *slot = &live.step_ups[sequence & (STEP_UPS - 1)]
    cdef const Cell *level = request.columns + <int> COL_CALL_DATA_LEVEL
    cdef Text type_
    cdef uint32_t i
    if not make_digests(request, arena, standing):
        return
    pthread_mutex_lock(&live.lock)
    memset(slot, 0, sizeof(StepUp))
    memcpy(slot.evaluation, evaluation, EVALUATION_BYTES)
    memcpy(slot.digest, standing.digest, 32)
    memcpy(slot.class_digest, standing.class_digest, 32)
    put_text(slot.task, TASK_ID_MAX, standing.task, &slot.cut)
    put_text(slot.reason, NAME_BYTES, reason, &slot.cut)
    put_text(slot.agent, NAME_BYTES, id_of(request.principal), &slot.cut)
    put_text(slot.action, NAME_BYTES, id_of(request.action), &slot.cut)
    type_.p, type_.n = uid_type(request.resource), request.resource.type_len
    put_text(slot.resource_type, NAME_BYTES, type_, &slot.cut)
    put_text(slot.resource, RESOURCE_BYTES, id_of(request.resource), &slot.cut)
    put_text(slot.destination, RESOURCE_BYTES, request.destination, &slot.cut)
    put_text(slot.method, NAME_BYTES, request.method, &slot.cut)
    for i in range(standing.chain_count):
        put_text(slot.chain + slot.chain_bytes, NAME_BYTES, standing.chain[i], &slot.cut)
        slot.chain_bytes += min(<uint32_t> NAME_BYTES - 1, standing.chain[i].n) + 1
    slot.level = level.v if level.kind == KIND_LONG else 0
    slot.unix_ns = unix_ns(live)
    slot.emergency = emergency
    pthread_mutex_unlock(&live.lock)


# ---------------------------------------------------------------- what the control plane changes


cdef Text _borrow(list keep, str text):
    """The text's UTF-8, which lives as long as what `keep` holds. UnicodeEncodeError when there is none."""
    cdef Py_ssize_t n
    cdef Text made
    made.p = PyUnicode_AsUTF8AndSize(text, &n)
    made.n = <uint32_t> n
    keep.append(text)
    return made


cdef str _str(Text text):
    return text.p[:text.n].decode("utf-8", "replace") if text.n else ""


cdef Uid *_new_uid(Text type_, Text id_) except NULL:
    """A Uid in memory of its own, given back by free."""
    cdef Uid *uid = <Uid *> calloc(1, sizeof(Uid) + type_.n + id_.n)
    if uid == NULL:
        raise MemoryError
    memcpy(<char *> uid + sizeof(Uid), type_.p, type_.n)
    memcpy(<char *> uid + sizeof(Uid) + type_.n, id_.p, id_.n)
    uid.hash = uid_hash(<const char *> uid + sizeof(Uid), type_.n, id_.n)
    uid.index = uid.type_index = UID_UNKNOWN
    uid.type_len, uid.id_len = type_.n, id_.n
    return uid


@cython.no_gc
cdef class TaskRow:

    def __cinit__(self, row, str namespace):
        cdef dict data = row if type(row) is dict else dict(row)
        cdef list kept = []
        self.scope = ScopeRow(data["scope"], namespace)
        self.task.scope = &self.scope.scope
        self.task.key.text = _borrow(kept, data["id"])
        if not 0 < self.task.key.text.n <= TASK_ID_MAX:
            raise ProtocolError(f"task: `id` has not 1 to {<int> TASK_ID_MAX} bytes")
        self.task.agent = _borrow(kept, data["agent"])
        self.task.owner = _borrow(kept, data["owner"])
        self.task.purpose = _borrow(kept, data["purpose"])
        self.task.parent = _borrow(kept, data.get("parent") or "")
        self.task.origin = _borrow(kept, data.get("origin", "agent"))
        self.kept = tuple(kept)
        self.task.state = STATES.index(data["state"])
        self.task.attenuated = data.get("attenuated", False)
        self.task.on_behalf = data.get("on_behalf", False)
        self.task.depth, self.task.max_depth = data["depth"], data["max_depth"]
        self.task.expires_unix_ns = data["expires_unix_ns"]
        for i, (left, spent, over) in enumerate(AXES):
            self.task.left[i] = data[left]
            self.task.spent[i] = data.get(spent, 0)
            self.task.over[i] = data.get(over, 0)


@cython.no_gc
cdef class ApprovalRow:

    def __cinit__(self, data):
        cdef bytes digest = data["digest"]
        cdef list kept = []
        if len(digest) != 32 or not 0 < len(data["id"].encode()) <= TASK_ID_MAX:
            raise ProtocolError("approval: `digest` has not 32 bytes, or `id` not 1 to 64")
        memcpy(self.approval.digest, <const char *> digest, 32)
        self.approval.key.text.p, self.approval.key.text.n = <const char *> self.approval.digest, 32
        self.approval.key.kind = APPROVAL_CLASS if data["scope"] == "class" else APPROVAL_EXACT
        self.approval.id = _borrow(kept, data["id"])
        self.approval.task = _borrow(kept, data.get("task") or "")
        self.kept = tuple(kept)
        self.approval.uses = data["uses"]
        self.approval.expires_unix_ns = data["expires_unix_ns"]
        self.approval.decided_unix_ns = data["decided_unix_ns"]
        self.approval.self_approved = data.get("self_approved", False)
        self.approval.break_glass = data.get("break_glass", False)


cdef void unlink_open(LiveState *s, Task *task) noexcept nogil:
    """Take the task out of its agent's open ones."""
    cdef AgentTasks *agent = <AgentTasks *> rows_find(&s.agents, 0, task.agent)
    cdef Task **at
    if agent == NULL:
        return
    at = &agent.first
    while at[0] != NULL:
        if at[0] == task:
            at[0] = task.next
            break
        at = &at[0].next
    if agent.first == NULL:
        rows_take(&s.agents, 0, task.agent)
        free(agent)


cdef int link_open(LiveState *s, Task *task) noexcept nogil:
    """Put it among its agent's open ones; 0, or 1 when there is no memory."""
    cdef AgentTasks *agent = <AgentTasks *> rows_find(&s.agents, 0, task.agent)
    if agent == NULL:
        agent = <AgentTasks *> calloc(1, sizeof(AgentTasks) + task.agent.n)
        if agent == NULL:
            return 1
        agent.key.text.p, agent.key.text.n = <const char *> agent + sizeof(AgentTasks), task.agent.n
        memcpy(<char *> agent + sizeof(AgentTasks), task.agent.p, task.agent.n)
        if rows_add(&s.agents, &agent.key):
            free(agent)
            return 1
    task.next = agent.first
    agent.first = task
    return 0


cdef void unlink_approval(LiveState *s, Approval *approval) noexcept nogil:
    cdef Approval *first = <Approval *> rows_take(&s.approvals, approval.key.kind, approval.key.text)
    cdef Approval *at = first
    if first == approval:
        first = approval.next
    else:
        while at != NULL and at.next != approval:
            at = at.next
        if at != NULL:
            at.next = approval.next
    approval.next = NULL
    if first != NULL:
        # There is room: one was taken out just now.
        rows_add(&s.approvals, &first.key)


cdef int link_approval(LiveState *s, Approval *approval) noexcept nogil:
    cdef Approval *first = <Approval *> rows_find(&s.approvals, approval.key.kind, approval.key.text)
    if first == NULL:
        return rows_add(&s.approvals, &approval.key)
    approval.next = first.next
    first.next = approval
    return 0


cdef void unlink_group(LiveState *s, const Revocation *row) noexcept nogil:
    cdef Revocation **at = &s.groups
    while at[0] != NULL:
        if at[0] == row:
            at[0] = row.next
            return
        at = &at[0].next


cdef Revocation *new_revocation(uint32_t kind, Text key, Text reason) noexcept nogil:
    cdef Revocation *row = <Revocation *> calloc(1, sizeof(Revocation) + key.n + reason.n)
    cdef char *room
    if row == NULL:
        return NULL
    room = <char *> row + sizeof(Revocation)
    memcpy(room, key.p, key.n)
    memcpy(room + key.n, reason.p, reason.n)
    row.key.text.p, row.key.text.n = room, key.n
    row.key.kind = kind
    row.reason.p, row.reason.n = room + key.n, reason.n
    return row


cdef int put_revocation(LiveState *s, Revocation *row) noexcept nogil:
    """Put the row in the place of the one that it adds a mode to; 0, or 1 when there is no memory."""
    cdef Revocation *before = <Revocation *> rows_take(&s.revocations, row.key.kind, row.key.text)
    cdef int mode
    if before != NULL:
        for mode in range(<int> MODES):
            if row.until_unix_ns[mode] == 0:
                row.until_unix_ns[mode] = before.until_unix_ns[mode]
        drop_revocation(s, before)
    if rows_add(&s.revocations, &row.key):
        return 1
    s.revoked[row.key.kind] += 1
    if row.uid != NULL:
        row.next = s.groups
        s.groups = row
    return 0


cdef void drop_revocation(LiveState *s, Revocation *row) noexcept nogil:
    """Give back a row that is out of the map already."""
    s.revoked[row.key.kind] -= 1
    if row.uid != NULL:
        unlink_group(s, row)
        free(row.uid)
    free(row)


cdef void lift_revocation(LiveState *s, uint32_t kind, Text key, int mode) noexcept nogil:
    cdef Revocation *row = <Revocation *> rows_find(&s.revocations, kind, key)
    cdef int at
    if row == NULL:
        return
    row.until_unix_ns[mode] = 0
    for at in range(<int> MODES):
        if row.until_unix_ns[at]:
            return
    rows_take(&s.revocations, kind, key)
    drop_revocation(s, row)


cdef enum ChangeKind:
    CHANGE_TASK
    CHANGE_STATE
    CHANGE_BUDGET
    CHANGE_FORGET
    CHANGE_REVOKE
    CHANGE_LIFT
    CHANGE_OWNER_OFF
    CHANGE_OWNER_ON
    CHANGE_APPROVAL
    CHANGE_APPROVAL_GONE
    CHANGE_NOTHING           # an approval that is not in force is taken out


cdef void put_task(LiveState *s, Change *change, int *failed) noexcept nogil:
    cdef Task *task = <Task *> change.row
    cdef Task *before = <Task *> rows_take(&s.tasks, 0, task.key.text)
    if before != NULL:
        unlink_open(s, before)
        if not change.reset:
            # What calls have spent meanwhile is known here alone.
            memcpy(task.left, before.left, sizeof(task.left))
            memcpy(task.over, before.over, sizeof(task.over))
            memcpy(task.spent, before.spent, sizeof(task.spent))
            # A task's end never moves away: only what is shorter on both clocks is taken over.
            task.ends_boot_ns = min(task.ends_boot_ns, before.ends_boot_ns)
    failed[0] |= rows_add(&s.tasks, &task.key)
    if task.state == TASK_OPEN:
        failed[0] |= link_open(s, task)


cdef void put_state(LiveState *s, Text id_, int state, int *failed) noexcept nogil:
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, id_)
    if task == NULL or task.state == state:
        return
    if task.state == TASK_OPEN:
        unlink_open(s, task)
    task.state = state
    if state == TASK_OPEN:
        failed[0] |= link_open(s, task)


cdef void put_budget(LiveState *s, Text id_, const int64_t *delta) noexcept nogil:
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, id_)
    cdef int i
    if task == NULL:
        return
    for i in range(<int> BUDGETS):
        if task.left[i] >= 0:
            move_left(task, i, delta[i])


cdef void forget_task(LiveState *s, Text id_) noexcept nogil:
    cdef Task *task = <Task *> rows_take(&s.tasks, 0, id_)
    if task != NULL and task.state == TASK_OPEN:
        unlink_open(s, task)


cdef void put_owner(LiveState *s, OwnerState *row, int *failed) noexcept nogil:
    if rows_find(&s.owners, 0, row.key.text) != NULL:
        free(row)
    else:
        failed[0] |= rows_add(&s.owners, &row.key)


cdef int link_changes(LiveState *s, Change *changes, size_t n) noexcept nogil:
    """0, or 1 when memory ran out and the state is no longer what it should be."""
    cdef Change *change
    cdef int failed = 0
    cdef size_t i
    for i in range(n):
        change = &changes[i]
        if change.what == CHANGE_TASK:
            put_task(s, change, &failed)
        elif change.what == CHANGE_STATE:
            put_state(s, change.key, change.state, &failed)
        elif change.what == CHANGE_BUDGET:
            put_budget(s, change.key, change.delta)
        elif change.what == CHANGE_FORGET:
            forget_task(s, change.key)
        elif change.what == CHANGE_REVOKE:
            failed |= put_revocation(s, <Revocation *> change.row)
        elif change.what == CHANGE_LIFT:
            lift_revocation(s, change.kind, change.key, change.state)
        elif change.what == CHANGE_OWNER_OFF:
            put_owner(s, <OwnerState *> change.row, &failed)
        elif change.what == CHANGE_OWNER_ON:
            free(rows_take(&s.owners, 0, change.key))
        elif change.what == CHANGE_APPROVAL:
            failed |= link_approval(s, <Approval *> change.row)
        elif change.what == CHANGE_APPROVAL_GONE:
            unlink_approval(s, <Approval *> change.row)
    return failed


cdef struct Linking:
    Change *changes
    size_t n


cdef void keep_rows(dict held, list done):
    """Keep what was put under its id, and let go of what was taken out (None)."""
    for id_, row in done:
        if row is None:
            held.pop(id_, None)
        else:
            held[id_] = row


cdef class Changes:

    def __cinit__(self, Live live not None, changes):
        self.live = live
        self.kept, self.tasks, self.approvals = [], [], []
        self.rows = <Change *> calloc(len(changes) + 1, sizeof(Change))
        if self.rows == NULL:
            raise MemoryError
        for name, data in changes:
            # Counted first: what fails half-way holds rows of its own as well.
            self.n += 1
            self._read(&self.rows[self.n - 1], name, data)

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.n):
            if self.rows[i].what == CHANGE_REVOKE and self.rows[i].row != NULL:
                free((<Revocation *> self.rows[i].row).uid)
                free(self.rows[i].row)
            elif self.rows[i].what == CHANGE_OWNER_OFF:
                free(self.rows[i].row)
        free(self.rows)

    cdef int _read(self, Change *change, str name, data) except -1:
        if name == "task":
            self._read_task(change, data)
        elif name == "state":
            change.what, change.key = CHANGE_STATE, _borrow(self.kept, data["id"])
            change.state = STATES.index(data["state"])
        elif name == "budget":
            change.what, change.key = CHANGE_BUDGET, _borrow(self.kept, data["id"])
            for i, budget in enumerate(("calls", "cost", "bytes")):
                change.delta[i] = data.get(budget, 0)
        elif name == "forget":
            change.what, change.key = CHANGE_FORGET, _borrow(self.kept, data["id"])
            self.tasks.append((data["id"], None))
        elif name == "revoke":
            self._read_revocation(change, data)
        elif name == "lift":
            change.what, change.kind = CHANGE_LIFT, KINDS[data["kind"]]
            change.key, change.state = _borrow(self.kept, data["key"]), MODES_BY_NAME[data["mode"]]
        elif name == "owner":
            self._read_owner(change, data)
        elif name == "approval":
            self._read_approval(change, data)
        else:
            raise ProtocolError(f"authority: no change is named `{name}`")
        return 0

    cdef int _read_task(self, Change *change, data) except -1:
        cdef TaskRow task = TaskRow(data, self.live._namespace)
        task.task.ends_boot_ns = ends_at(self.live.state, task.task.expires_unix_ns)
        self.tasks.append((data["id"], task))
        change.what, change.row, change.reset = CHANGE_TASK, &task.task, data.get("reset", False)
        return 0

    cdef int _read_revocation(self, Change *change, data) except -1:
        cdef uint32_t kind = KINDS[data["kind"]]
        cdef int mode = MODES_BY_NAME[data["mode"]]
        cdef Revocation *row
        cdef Text key = _borrow(self.kept, data["key"])
        row = new_revocation(kind, key, _borrow(self.kept, data.get("reason", "")))
        if row == NULL:
            raise MemoryError
        change.what, change.row = CHANGE_REVOKE, row
        row.until_unix_ns[mode] = data.get("expires_unix_ns") or INT64_MAX
        if kind == REVOKED_CLASS:
            row.uid = _new_uid(self.live.state.class_type, key)
        elif kind == REVOKED_SERVER:
            row.uid = _new_uid(self.live.state.server_type, key)
        return 0

    cdef int _read_owner(self, Change *change, data) except -1:
        cdef OwnerState *row
        cdef Text id_ = _borrow(self.kept, data["id"])
        change.what, change.key = CHANGE_OWNER_ON, id_
        if data["active"]:
            return 0
        row = <OwnerState *> calloc(1, sizeof(OwnerState) + id_.n)
        if row == NULL:
            raise MemoryError
        memcpy(<char *> row + sizeof(OwnerState), id_.p, id_.n)
        row.key.text.p, row.key.text.n = <const char *> row + sizeof(OwnerState), id_.n
        change.what, change.row = CHANGE_OWNER_OFF, row
        return 0

    cdef int _read_approval(self, Change *change, data) except -1:
        cdef ApprovalRow row = ApprovalRow(data) if data["state"] == "granted" else None
        change.what = CHANGE_APPROVAL if row is not None else CHANGE_APPROVAL_GONE
        if row is not None:
            row.approval.ends_boot_ns = ends_at(self.live.state, row.approval.expires_unix_ns)
        self.approvals.append((self.n - 1, data["id"], row))
        return 0

    cdef int resolve(self, Live live, dict approvals) except -1:
        """Say which rows approvals are about. `approvals`: what becomes of them by id by changes that are put before
        these; commands that were made durable together are put in force together."""
        cdef ApprovalRow row, before
        cdef size_t at
        if self.live is not live or self.taken:
            raise ProtocolError("authority: these changes were prepared for another view, or are in force already")
        self.taken = True
        for at, id_, row in self.approvals:
            before = approvals.get(id_, live._approvals.get(id_))
            if row is not None and before is not None:
                raise ProtocolError(f"approval: `{id_}` is in force already")
            approvals[id_] = row
            if row is None and before is None:
                self.rows[at].what = CHANGE_NOTHING
            else:
                self.rows[at].row = &row.approval if row is not None else &before.approval
        return 0


cdef class Live:

    def __cinit__(self, *, str namespace="", reserve_s=300):
        cdef LiveState *s = <LiveState *> calloc(1, sizeof(LiveState))
        self.state = s
        self._tasks, self._approvals, self._kept = {}, {}, []
        self._namespace = namespace
        if s == NULL or pthread_mutex_init(&s.lock, NULL):
            raise MemoryError
        prefix = f"{namespace}::" if namespace else ""
        s.reservations = <Reservation *> calloc(RESERVATIONS, sizeof(Reservation))
        s.step_ups = <StepUp *> calloc(STEP_UPS, sizeof(StepUp))
        if s.reservations == NULL or s.step_ups == NULL:
            raise MemoryError
        s.reserve_ns = <int64_t> reserve_s * SECOND_NS
        s.person_type = _borrow(self._kept, f"{prefix}Person")
        s.action_type = _borrow(self._kept, f"{prefix}Action")
        s.class_type = _borrow(self._kept, f"{prefix}AgentClass")
        s.server_type = _borrow(self._kept, f"{prefix}Server")
        s.observe = _new_uid(s.action_type, text_of(b"observe"))

    def __dealloc__(self):
        cdef LiveState *s = self.state
        cdef size_t i
        if s == NULL:
            return
        for i in range(s.agents.size):
            free(s.agents.slots[i].row)
        for i in range(s.owners.size):
            free(s.owners.slots[i].row)
        for i in range(s.revocations.size):
            if s.revocations.slots[i].row != NULL:
                free((<Revocation *> s.revocations.slots[i].row).uid)
                free(s.revocations.slots[i].row)
        rows_free(&s.tasks)
        rows_free(&s.agents)
        rows_free(&s.revocations)
        rows_free(&s.owners)
        rows_free(&s.approvals)
        free(s.reservations)
        free(s.step_ups)
        free(s.observe)
        pthread_mutex_destroy(&s.lock)
        free(s)

    # ------------------------------------------------------------ changes

    def apply(self, changes, epoch):
        self.put((self.prepare(changes),), epoch)

    def prepare(self, changes):
        return Changes(self, changes)

    def put(self, prepared, epoch):
        cdef uint64_t number = epoch
        cdef Changes one
        # What a change borrows or replaces lives until all are linked.
        cdef Linking *all_ = <Linking *> calloc(len(prepared) + 1, sizeof(Linking))
        cdef size_t i, n = 0
        cdef int failed = 0
        cdef dict approvals = {}
        if all_ == NULL:
            raise MemoryError
        try:
            for one in prepared:
                one.resolve(self, approvals)
                all_[n].changes, all_[n].n = one.rows, one.n
                n += 1
            with nogil:
                pthread_mutex_lock(&self.state.lock)
                for i in range(n):
                    failed |= link_changes(self.state, all_[i].changes, all_[i].n)
                remit_store(&self.state.epoch, number)
                pthread_mutex_unlock(&self.state.lock)
        finally:
            free(all_)
        # The rows are linked now; those that they replaced go with the old entries.
        for one in prepared:
            one.n = 0
            keep_rows(self._tasks, one.tasks)
        keep_rows(self._approvals, list(approvals.items()))
        if failed:
            raise MemoryError("authority: no memory for the live state; what is in force is incomplete")

    def put_fresh(self, boot_ns):
        self.state.fresh_until_ns = boot_ns

    def put_clock(self, *, boot_ns=0, unix_ns=0):
        self.state.now_boot_ns, self.state.now_unix_ns = boot_ns, unix_ns

    def put_floor(self, unix_ns):
        self.state.unix_floor_ns = max(<int64_t> unix_ns, self.state.unix_floor_ns)

    # ------------------------------------------------------------ what calls did

    @property
    def epoch(self):
        return authority_epoch(self.state)

    @property
    def floor_unix_ns(self):
        return self.state.unix_floor_ns

    def counts(self):
        cdef LiveState *s = self.state
        return {
            "tasks": s.tasks.used, "revocations": s.revocations.used, "owners": s.owners.used,
            "approvals": s.approvals.used,
        }

    def task(self, str id_ not None):
        cdef bytes key = id_.encode()
        cdef Text text
        cdef Task task
        cdef const Task *found
        text.p, text.n = key, <uint32_t> len(key)
        pthread_mutex_lock(&self.state.lock)
        found = <const Task *> rows_find(&self.state.tasks, 0, text)
        if found != NULL:
            task = found[0]
        pthread_mutex_unlock(&self.state.lock)
        if found == NULL:
            return None
        return {
            "id": id_, "state": STATES[task.state],
            "calls": task.left[0], "cost": task.left[1], "bytes": task.left[2],
            "spent_calls": task.spent[0], "spent_cost": task.spent[1], "spent_bytes": task.spent[2],
            "over_calls": task.over[0], "over_cost": task.over[1], "over_bytes": task.over[2],
            "ttl_ns": max(
                <int64_t> 0,
                remaining(task.expires_unix_ns, task.ends_boot_ns, unix_ns(self.state), boot_ns(self.state)),
            ),
        }

    def uses(self, str approval not None):
        cdef ApprovalRow row = self._approvals.get(approval)
        return None if row is None else row.approval.uses

    def snapshot(self):
        """([(task, calls, cost, bytes spent)], [(approval, uses left)]), of one moment."""
        cdef TaskRow task
        cdef ApprovalRow approval
        cdef list tasks = list(self._tasks.values())
        cdef list approvals = list(self._approvals.values())
        cdef list spent = [None] * len(tasks)
        cdef int64_t *numbers = <int64_t *> calloc(BUDGETS * len(tasks) + len(approvals) + 1, sizeof(int64_t))
        cdef size_t i
        if numbers == NULL:
            raise MemoryError
        pthread_mutex_lock(&self.state.lock)
        for i, task in enumerate(tasks):
            memcpy(numbers + BUDGETS * i, task.task.spent, BUDGETS * sizeof(int64_t))
        for i, approval in enumerate(approvals):
            numbers[BUDGETS * len(tasks) + i] = approval.approval.uses
        pthread_mutex_unlock(&self.state.lock)
        for i, task in enumerate(tasks):
            spent[i] = (
                _str(task.task.key.text), numbers[BUDGETS * i], numbers[BUDGETS * i + 1], numbers[BUDGETS * i + 2]
            )
        used = [
            (_str((<ApprovalRow> row).approval.id), numbers[BUDGETS * len(tasks) + i])
            for i, row in enumerate(approvals)
        ]
        free(numbers)
        return spent, used

    def redo(self, effects):
        cdef Settled change
        cdef bytes key
        for kind, name, value in effects:
            key = name.encode()
            if not EFFECT_CALLS <= kind <= EFFECT_APPROVAL or len(key) > TASK_ID_MAX:
                raise ProtocolError(f"effects: kind {kind} of `{name}` is unknown")
            change.kind, change.key_n, change.value = kind, <uint32_t> len(key), value
            memcpy(change.key, <const char *> key, len(key))
            authority_redo(self.state, &change, 1)

    def step_up(self, str evaluation_id not None):
        cdef bytes text = evaluation_id.encode()
        cdef StepUp *copy
        cdef uint64_t sequence
        cdef bint found
        if len(text) != EVALUATION_BYTES:
            return None
        try:
            sequence = int(evaluation_id[16:], 16)
        except (ValueError, OverflowError):
            return None
        copy = <StepUp *> calloc(1, sizeof(StepUp))
        if copy == NULL:
            raise MemoryError
        pthread_mutex_lock(&self.state.lock)
        copy[0] = self.state.step_ups[sequence & (STEP_UPS - 1)]
        pthread_mutex_unlock(&self.state.lock)
        try:
            found = memcmp(copy.evaluation, <const char *> text, EVALUATION_BYTES) == 0
            return _step_up(copy) if found else None
        finally:
            free(copy)


cdef dict _step_up(StepUp *row):
    return {
        "digest": row.digest[:32], "class_digest": row.class_digest[:32],
        "task": row.task.decode("utf-8", "replace"), "reason": row.reason.decode("utf-8", "replace"),
        "agent": row.agent.decode("utf-8", "replace"), "action": row.action.decode("utf-8", "replace"),
        "resource_type": row.resource_type.decode("utf-8", "replace"),
        "resource": row.resource.decode("utf-8", "replace"),
        "destination": row.destination.decode("utf-8", "replace"), "method": row.method.decode("utf-8", "replace"),
        "chain": [hop.decode("utf-8", "replace") for hop in row.chain[:row.chain_bytes].split(b"\0") if hop],
        "data_level": row.level, "unix_ns": row.unix_ns, "truncated": bool(row.cut),
        "emergency_only": bool(row.emergency),
    }
