"""Where a call stands (standing.pxd): under the lock once, with as few lookups as the call's task allows."""
from fastpath.approved cimport fill_approval, has_approvals, make_digests
from fastpath.c.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from fastpath.certificate cimport certificate_serial
from fastpath.columns cimport (
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
from fastpath.live_state cimport (
    BUDGET_CALLS,
    BUDGET_COST,
    CHAIN_MAX,
    REVOKED_CREDENTIAL,
    REVOKED_OWNER,
    REVOKED_TASK,
    SECOND_NS,
    TASK_CANCELLED,
    TASK_COMPLETED,
    TASK_EXPIRED,
    TASK_OPEN,
    TASK_SUSPENDED,
    AgentTasks,
    Owners,
    Task,
    column,
    hop_fault,
    id_of,
    kept,
    live_now,
    remaining,
)
from fastpath.revoked cimport in_group, revoked_above, revoked_call, revoked_key
from fastpath.rowmap cimport rows_find
from fastpath.rows cimport node_attrs, node_uid, table_node
from fastpath.scope cimport Covers, scope_narrow
from fastpath.table cimport table_find
from fastpath.value cimport (
    KIND_BOOL,
    KIND_ENTITY,
    UID_UNKNOWN,
    Cell,
    Uid,
    arena_take,
    cell_at,
    cell_bool,
    cell_entity,
    cell_long,
    cell_string,
    record_get,
    uid_make,
    uid_type,
)
from fastpath.wire cimport text_equal, text_is, text_of
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy


# ---------------------------------------------------------------- owners


cdef bint active_in_store(const Table *t, uint32_t person) noexcept nogil:
    """Whether the entity store has the person, and does not say that they left."""
    cdef const Node *node = table_node(t, person)
    cdef const Cell *active
    if node == NULL or not node.flags & NODE_PRESENT:
        return False
    active = record_get(node_attrs(t, person), b"active", 6)
    return active == NULL or (active.kind == KIND_BOOL and active.v == 1)


cdef void find_agent_owner(uint32_t row, const Table *t, Owners *out) noexcept nogil:
    cdef const Node *agent = table_node(t, row)
    cdef const Cell *owner
    out.agent_owned = 0
    if agent == NULL or not agent.flags & NODE_PRESENT:
        return
    owner = record_get(node_attrs(t, row), b"owner", 5)
    if owner == NULL or owner.kind != KIND_ENTITY:
        return
    out.agent_owned = 1
    out.agent_owner = <const Uid *> cell_at(owner)
    out.agent_active = active_in_store(t, out.agent_owner.index)


cdef void find_person(const Uid *person, const Table *t, Owners *out) noexcept nogil:
    cdef uint32_t row = table_find(t, person)
    out.person = person if row == <uint32_t> UID_UNKNOWN else node_uid(t, row)
    out.person_active = active_in_store(t, row)


cdef const Owners *owners_of(const Request *request, Task *task, const Table *t) noexcept nogil:
    """Who answers for the call, found once per table and caller: neither changes from call to call."""
    cdef Owners *owners = &task.owners
    if owners.table != t.serial or owners.agent != request.principal.index:
        find_agent_owner(request.principal.index, t, owners)
        find_person(task.person, t, owners)
        owners.table, owners.agent = t.serial, request.principal.index
    return owners


cdef inline bint disabled(const LiveState *s, const Uid *person) noexcept nogil:
    return s.owners.used and rows_find(&s.owners, 0, id_of(person)) != NULL


cdef void look_owner(LiveState *s, const Uid *person, bint active, Arena *arena, Standing *out) noexcept nogil:
    if not active or disabled(s, person):
        out.owner_fault = text_of(b"owner.inactive")
    elif s.revoked[<int> REVOKED_OWNER]:
        revoked_key(s, REVOKED_OWNER, id_of(person), out.unix_ns, arena, out)


cdef void fill_owner(Request *request, const Owners *owners, Arena *arena) noexcept nogil:
    cdef size_t n = sizeof(Uid) + owners.person.type_len + owners.person.id_len
    cdef Uid *copy
    if owners.person.index != <uint32_t> UID_UNKNOWN:
        # The table's own uid, which nobody has to look up again.
        cell_entity(column(request, COL_TASK_OWNER), owners.person)
        return
    copy = <Uid *> arena_take(arena, n)
    if copy != NULL:
        memcpy(copy, owners.person, n)
        cell_entity(column(request, COL_TASK_OWNER), copy)


cdef Text about(const char *what, Text name, Arena *arena) noexcept nogil:
    """`owner of spiffe://..`: the cause that a record names."""
    cdef Text prefix = text_of(what)
    cdef Text made
    made.p = <const char *> arena_take(arena, prefix.n + name.n)
    made.n = prefix.n + name.n if made.p != NULL else 0
    if made.n:
        memcpy(<void *> made.p, prefix.p, prefix.n)
        memcpy(<void *> (made.p + prefix.n), name.p, name.n)
    return made


cdef void judge_owners(LiveState *s, const Owners *owners, bint tasked, Arena *arena, Standing *out) noexcept nogil:
    if not owners.agent_owned:
        out.owner_fault = text_of(b"owner.missing")
        return
    look_owner(s, owners.agent_owner, owners.agent_active, arena, out)
    if tasked and out.owner_fault.n == 0 and owners.person.index != owners.agent_owner.index:
        look_owner(s, owners.person, owners.person_active, arena, out)


cdef void look_owners_above(
    LiveState *s, const Task *task, const Request *request, const Table *t, Arena *arena, Standing *out
) noexcept nogil:
    """Who delegated must be somebody that may act: the agent's owner and the task's are active, as the caller's own."""
    cdef Owners owners
    cdef Text before = out.owner_fault
    cdef Uid *agent = uid_make(
        arena, uid_type(request.principal), request.principal.type_len, task.agent.p, task.agent.n
    )
    if agent == NULL:
        return
    find_agent_owner(table_find(t, agent), t, &owners)
    find_person(task.person, t, &owners)
    judge_owners(s, &owners, True, arena, out)
    if before.n == 0 and out.owner_fault.n and out.remediation.n == 0:
        out.remediation = about(b"owner of ", task.agent, arena)


cdef void look_owners(
    LiveState *s, Request *request, Task *task, const Table *t, Arena *arena, Standing *out
) noexcept nogil:
    """No active owner on agent and task, no allow."""
    cdef Owners alone
    cdef const Owners *owners = &alone
    if task == NULL:
        find_agent_owner(request.principal.index, t, &alone)
    else:
        owners = owners_of(request, task, t)
        fill_owner(request, owners, arena)
    judge_owners(s, owners, task != NULL, arena, out)


# ---------------------------------------------------------------- which task


cdef Task *named_task(LiveState *s, const Request *request, Standing *out) noexcept nogil:
    """The task that the call names, which must be the caller's; a name that leads nowhere denies."""
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, request.task)
    # Nobody learns that the task of another exists.
    if task == NULL or not text_equal(task.agent, id_of(request.principal)):
        out.refusal = text_of(b"task.unknown")
        return NULL
    return task


cdef Task *only_task(LiveState *s, const Request *request, Standing *out) noexcept nogil:
    """The agent's only open task."""
    cdef const AgentTasks *agent = <const AgentTasks *> rows_find(&s.agents, 0, id_of(request.principal))
    cdef Task *found = NULL
    cdef Task *task = agent.first if agent != NULL else NULL
    out.task_fault = text_of(b"task.none")
    while task != NULL:
        if remaining(task.expires_unix_ns, task.ends_boot_ns, out.unix_ns, out.boot_ns) > 0:
            if found != NULL:
                out.task_fault = text_of(b"task.unnamed")
                return NULL
            found = task
        task = task.next
    return found


# ---------------------------------------------------------------- its chain


cdef struct Chain:           # what a call's task and all above it say together
    Covers covers
    int64_t ttl_ns
    int64_t max_level
    uint8_t attenuated
    uint8_t on_behalf
    Text origin


cdef void join(Chain *chain, const Task *at, const Request *request, const Table *t, uint32_t dest) noexcept nogil:
    """Every task up to the root must cover the call: what a parent may not do, no child may."""
    chain.max_level = min(chain.max_level, at.scope.max_level)
    if at.parent.n:
        chain.attenuated &= at.attenuated
    chain.on_behalf |= at.on_behalf
    chain.origin = at.origin
    scope_narrow(at.scope, request, t, dest, &chain.covers)


cdef inline void look_hop(const Task *at, Chain *chain, Standing *out) noexcept nogil:
    cdef int64_t ttl = remaining(at.expires_unix_ns, at.ends_boot_ns, out.unix_ns, out.boot_ns)
    chain.ttl_ns = min(chain.ttl_ns, ttl)
    if out.task_fault.n == 0:
        out.task_fault = hop_fault(at, ttl)


cdef void climb(
    LiveState *s, const Task *task, const Request *request, const Table *t, uint32_t dest, Arena *arena, Chain *chain,
    Standing *out
) noexcept nogil:
    """What the tasks above the call's own say."""
    cdef Text hops[CHAIN_MAX]
    cdef const Task *at = task
    cdef uint32_t n = 0
    cdef uint32_t i
    while at.parent.n and n < CHAIN_MAX - 1:
        at = <const Task *> rows_find(&s.tasks, 0, at.parent)
        if at == NULL:
            break
        hops[n] = kept(at.agent, arena)
        n += 1
        look_hop(at, chain, out)
        if s.revocations.used:
            revoked_key(s, REVOKED_TASK, at.key.text, out.unix_ns, arena, out)
            revoked_above(s, at.agent, at.owner, request, t, out.unix_ns, arena, out)
        look_owners_above(s, at, request, t, arena, out)
        join(chain, at, request, t, dest)
    if at == NULL or at.parent.n:
        # A parent that is not there cannot be asked, and a chain without an end is no chain.
        out.task_fault = text_of(b"task.chain")
    for i in range(n):
        out.chain[i] = hops[n - 1 - i]
    out.chain[n] = id_of(request.principal)
    out.chain_count = n + 1


cdef void look_chain(
    LiveState *s, const Task *task, const Request *request, const Table *t, uint32_t dest, Arena *arena, Chain *chain,
    Standing *out
) noexcept nogil:
    chain.covers.tool = chain.covers.action = chain.covers.dest = chain.covers.data = 1
    chain.ttl_ns = chain.max_level = INT64_MAX
    chain.attenuated, chain.on_behalf = 1, 0
    look_hop(task, chain, out)
    if s.revocations.used:
        revoked_key(s, REVOKED_TASK, task.key.text, out.unix_ns, arena, out)
    join(chain, task, request, t, dest)
    climb(s, task, request, t, dest, arena, chain, out)


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


# ---------------------------------------------------------------- its columns


cdef inline Text state_text(const Task *task, int64_t ttl_ns) noexcept nogil:
    if task.state == TASK_OPEN:
        return text_of(b"open") if ttl_ns else text_of(b"expired")
    if task.state == TASK_SUSPENDED:
        return text_of(b"suspended")
    if task.state == TASK_COMPLETED:
        return text_of(b"completed")
    if task.state == TASK_CANCELLED:
        return text_of(b"cancelled")
    if task.state == TASK_EXPIRED:
        return text_of(b"expired")
    return text_of(b"revoked")


cdef inline bint reads(const Table *t, int at) noexcept nogil:
    """Whether some policy reads the column; what none reads is not filled."""
    return (t.totals.columns_read[at >> 6] >> (at & 63)) & 1


cdef inline void put_bool(Request *request, const Table *t, int at, bint value) noexcept nogil:
    if reads(t, at):
        cell_bool(column(request, at), value)


cdef inline void put_long(Request *request, const Table *t, int at, int64_t value) noexcept nogil:
    if reads(t, at):
        cell_long(column(request, at), value)


cdef inline void put_text(Request *request, int at, Text text) noexcept nogil:
    cell_string(column(request, at), text.p, text.n)


cdef inline void put_left(Request *request, const Table *t, int at, int64_t left) noexcept nogil:
    """What is unlimited must compare as more than any number."""
    put_long(request, t, at, INT64_MAX if left < 0 else left)


cdef void fill_task(
    Request *request, const Task *task, const Chain *chain, const Table *t, Arena *arena, const Standing *out
) noexcept nogil:
    cdef int64_t ttl = max(<int64_t> 0, chain.ttl_ns)
    # The record reads it, whatever the policies do.
    put_text(request, COL_TASK_ID, out.task)
    put_bool(request, t, COL_TASK_PRESENT, True)
    if reads(t, COL_TASK_STATE):
        put_text(request, COL_TASK_STATE, state_text(task, ttl))
    if reads(t, COL_TASK_PURPOSE):
        put_text(request, COL_TASK_PURPOSE, kept(task.purpose, arena))
    put_long(request, t, COL_TASK_MAX_LEVEL, chain.max_level)
    put_long(request, t, COL_TASK_TTL_S, ttl // SECOND_NS)
    put_left(request, t, COL_TASK_CALLS_LEFT, task.account.left[<int> BUDGET_CALLS])
    put_left(request, t, COL_TASK_COST_LEFT, task.account.left[<int> BUDGET_COST])
    put_long(request, t, COL_TASK_DEPTH, task.depth)
    put_long(request, t, COL_TASK_MAX_DEPTH, task.max_depth)
    put_bool(request, t, COL_TASK_ATTENUATED, chain.attenuated)


cdef void fill_covers(Request *request, const Covers *covers, const Table *t) noexcept nogil:
    put_bool(request, t, COL_TASK_COVERS_TOOL, covers.tool)
    put_bool(request, t, COL_TASK_COVERS_ACTION, covers.action)
    put_bool(request, t, COL_TASK_COVERS_DEST, covers.dest)
    put_bool(request, t, COL_TASK_COVERS_DATA, covers.data)


cdef void fill_delegation(
    Request *request, const Task *task, const Chain *chain, bint complete, const Table *t, Arena *arena
) noexcept nogil:
    put_long(request, t, COL_DELEGATION_DEPTH, task.depth)
    if reads(t, COL_DELEGATION_ORIGIN):
        put_text(request, COL_DELEGATION_ORIGIN, kept(chain.origin, arena))
    put_bool(request, t, COL_DELEGATION_CHAIN_OK, complete)
    put_bool(request, t, COL_DELEGATION_ON_BEHALF, chain.on_behalf)


# ---------------------------------------------------------------- a call comes


cdef uint32_t settle_destination(Request *request, const Table *t) noexcept nogil:
    """The row of the call's destination, which from here on is the table's own uid: nobody looks it up again."""
    cdef Cell *cell = column(request, COL_DEST)
    cdef uint32_t row
    if cell.kind != KIND_ENTITY:
        return UID_UNKNOWN
    row = table_find(t, <const Uid *> cell_at(cell))
    if row != <uint32_t> UID_UNKNOWN:
        cell_entity(cell, node_uid(t, row))
    return row


cdef void look_task(
    LiveState *s, Task *task, Request *request, const Table *t, Arena *arena, Standing *out
) noexcept nogil:
    cdef uint32_t dest = settle_destination(request, t)
    cdef bint complete
    cdef Chain chain
    out.task_fault = text_of(b"")
    out.task_row = task
    out.task = kept(task.key.text, arena)
    out.task_rev = task.rev
    look_chain(s, task, request, t, dest, arena, &chain, out)
    complete = out.task_fault.n == 0
    if complete:
        out.task_fault = scope_fault(&chain.covers)
    fill_task(request, task, &chain, t, arena, out)
    fill_covers(request, &chain.covers, t)
    fill_delegation(request, task, &chain, complete, t, arena)


cdef void enter_locked(
    LiveState *s, Request *request, Text credential, const Table *t, Arena *arena, Standing *out
) noexcept nogil:
    cdef Task *task
    out.epoch, out.version = s.epoch, s.version
    out.unix_ns = live_now(s, &out.boot_ns)
    if s.revoked[<int> REVOKED_CREDENTIAL] and out.serial_read and out.credential.n == 0:
        # It may be the one that was revoked.
        out.refusal = text_of(b"identity.certificate")
        return
    if s.fresh_until_ns and out.boot_ns > s.fresh_until_ns:
        out.refusal = text_of(b"not_ready.authority_stale")
        out.refusal_is_ours = 1
        return
    if s.revocations.used:
        revoked_call(s, request, credential, t, out.unix_ns, arena, out)
    if out.refusal.n:
        return
    task = named_task(s, request, out) if request.task.n else only_task(s, request, out)
    if task != NULL:
        look_task(s, task, request, t, arena, out)
    if out.refusal.n == 0:
        look_owners(s, request, task, t, arena, out)
    if out.refusal.n == 0 and s.approvals.used:
        fill_approval(s, request, arena, out)


cdef bint lacks_serial(const LiveState *s, const Request *request, const Standing *out) noexcept nogil:
    """Whether a credential is revoked, and which one an Envoy's caller has was not read yet."""
    return s.revoked[<int> REVOKED_CREDENTIAL] > 0 and request.certificate.n > 0 and not out.serial_read


cdef void enter_ready(LiveState *s, const Request *request, Arena *arena, Standing *out) noexcept nogil:
    """Take the lock with all at hand that what is under it is compared with.

    A certificate is parsed and a body hashed only for a state that asks for it, and for neither does another call
    wait. So the state may have begun to ask meanwhile: it is looked at again, until it is one that we are ready for.
    """
    cdef bint digested = False
    cdef bint serial, digests
    while True:
        pthread_mutex_lock(&s.lock)
        serial = lacks_serial(s, request, out)
        digests = not digested and has_approvals(s, request)
        if not serial and not digests:
            return
        pthread_mutex_unlock(&s.lock)
        if serial:
            out.credential = certificate_serial(request.certificate, arena)
            out.serial_read = 1
        if digests:
            make_digests(request, arena, out)
            digested = True


cdef void authority_enter(
    LiveState *live, Request *request, Text credential, const Table *t, Arena *arena, Standing *out
) noexcept nogil:
    out.live = live
    out.generation = t.generation if t != NULL else 0
    out.enforced = 1
    enter_ready(live, request, arena, out)
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
