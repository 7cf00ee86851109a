"""The decision: peer, request, generation and live state in; outcome, reasons and what the record needs out."""
from fastpath.candidates cimport Walk, candidates_meet, candidates_visit, scope_matches
from fastpath.columns cimport (
    COL_APPROVAL_BREAK_GLASS,
    COL_APPROVAL_STATE,
    COL_CALL_BODY_COMPLETE,
    COL_CALL_PROTOCOL,
    COL_DEST,
    COL_RISK_SOURCE_AGE_S,
    COL_TASK_PRESENT,
    COLUMN_COUNT,
    columns_absent,
)
from fastpath.image cimport (
    EFFECT_FORBID,
    NODE_PRESENT,
    NONE32,
    POLICY_CURABLE,
    POLICY_NEVER,
    POLICY_OBLIGES,
    POLICY_SHADOW,
    POLICY_TASKLESS,
    Node,
    Policy,
)
from fastpath.live_state cimport Standing, authority_epoch
from fastpath.program cimport EVAL_LIMIT, EVAL_OK, EVAL_UNSENT, program_run
from fastpath.request cimport DOOR_EXPLAIN
from fastpath.rows cimport policy_order, span_text, table_node, table_note, table_policy
from fastpath.spending cimport authority_take, authority_would_take
from fastpath.standing cimport authority_enter, authority_observes
from fastpath.step_ups cimport authority_note_step_up
from fastpath.table cimport table_fetch_row, table_fetch_slot, table_is_in, table_resolve
from fastpath.value cimport UID_UNKNOWN, Uid, arena_take, cell_copy, uid_equal
from libc.string cimport memcpy, memmove, memset, strlen
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

cdef extern from *:
    """
    #define remit_next(p) __atomic_add_fetch((p), 1, __ATOMIC_RELAXED)
    """
    uint64_t remit_next(uint64_t *p) nogil

cdef enum:
    VISITS_PER_LOOK = 256    # candidates evaluated between two looks at the clock
    STOP_LATE = 100          # ends the walk beside EVAL_UNSENT and EVAL_LIMIT
    APPROVAL_COLUMNS = COL_APPROVAL_BREAK_GLASS - COL_APPROVAL_STATE + 1

cdef struct Selected:        # the first LISTED_MAX policies in the table's order, and how many there were
    uint32_t index[LISTED_MAX]
    uint8_t error[LISTED_MAX]
    uint32_t n
    uint32_t total

ctypedef void (*Fetch)(const Table *t, const Uid *uid) noexcept nogil

cdef struct Run:             # one evaluation over the candidates
    const Table *t
    const Authority *authority
    EvalContext context
    Walk walk
    Arena *arena
    All *all
    int64_t deadline_ns
    uint32_t visits
    Selected permits
    Selected forbids
    Selected errors
    Selected shadows
    uint32_t hard_forbid     # first satisfied forbid that no approval lifts, or NONE32
    uint32_t forbids_erring
    uint32_t obliged_permit  # first satisfied permit with an obligation, or NONE32
    uint32_t obliged_forbid
    Standing *standing
    uint32_t taskless        # satisfied permits that need no task
    uint32_t crossed         # satisfied forbids that break-glass crossed


# ---------------------------------------------------------------- texts and clocks


cdef inline Text literal(const char *s) noexcept nogil:
    cdef Text t
    t.p = s
    t.n = <uint32_t> strlen(s)
    return t


cdef Text joined(Arena *arena, Text head, Text tail) noexcept nogil:
    """Both texts in the arena, or the head alone when they do not fit."""
    cdef Text made
    cdef char *room = <char *> arena_take(arena, <size_t> head.n + tail.n)
    if room is NULL:
        return head
    memcpy(room, head.p, head.n)
    memcpy(room + head.n, tail.p, tail.n)
    made.p = room
    made.n = head.n + tail.n
    return made


cdef int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return 1000000000 * <int64_t> now.tv_sec + now.tv_nsec


cdef inline int64_t monotonic_ns(const Authority *authority) noexcept nogil:
    return authority.now_ns if authority.now_ns else clock_ns(CLOCK_MONOTONIC)


cdef inline int64_t unix_ns(const Authority *authority) noexcept nogil:
    return authority.now_unix_ns if authority.now_unix_ns else clock_ns(CLOCK_REALTIME)


# ---------------------------------------------------------------- collecting


cdef inline bint goes_before(const Table *t, uint32_t index, uint32_t other) noexcept nogil:
    """Whether a policy has the smaller id. The base's stand in this order, so without a delta the indexes tell."""
    if t.delta is NULL or other == NONE32:
        return index < other
    return policy_order(t, index) < policy_order(t, other)


cdef void select(const Table *t, Selected *selected, uint32_t index, int error) noexcept nogil:
    """Keep the smallest ids: the order of candidates is the index's, the order of a record is the table's."""
    cdef uint32_t at = selected.n
    selected.total += 1
    while at > 0 and goes_before(t, index, selected.index[at - 1]):
        at -= 1
    if at == LISTED_MAX:
        return
    if selected.n < LISTED_MAX:
        selected.n += 1
    memmove(selected.index + at + 1, selected.index + at, (selected.n - 1 - at) * sizeof(uint32_t))
    memmove(selected.error + at + 1, selected.error + at, selected.n - 1 - at)
    selected.index[at] = index
    selected.error[at] = <uint8_t> error


cdef void note_error(Run *run, uint32_t index, int error) noexcept nogil:
    select(run.t, &run.errors, index, error)
    if run.all is not NULL and run.all.erring_count < run.all.cap:
        run.all.erring[run.all.erring_count] = index
        if run.all.causes is not NULL:
            run.all.causes[run.all.erring_count] = <uint8_t> error
        run.all.erring_count += 1


cdef void note_satisfied(Run *run, const Policy *policy, uint32_t index) noexcept nogil:
    if policy.effect == EFFECT_FORBID:
        select(run.t, &run.forbids, index, EVAL_OK)
        if not policy.flags & POLICY_CURABLE and goes_before(run.t, index, run.hard_forbid):
            run.hard_forbid = index
        if policy.flags & POLICY_OBLIGES and goes_before(run.t, index, run.obliged_forbid):
            run.obliged_forbid = index
    else:
        select(run.t, &run.permits, index, EVAL_OK)
        run.taskless += (policy.flags & POLICY_TASKLESS) != 0
        if policy.flags & POLICY_OBLIGES and goes_before(run.t, index, run.obliged_permit):
            run.obliged_permit = index
    if run.all is not NULL and run.all.satisfied_count < run.all.cap:
        run.all.satisfied[run.all.satisfied_count] = index
        run.all.satisfied_count += 1


cdef bint too_late(Run *run) noexcept nogil:
    run.visits += 1
    if run.visits % VISITS_PER_LOOK or run.deadline_ns == 0:
        return False
    return monotonic_ns(run.authority) > run.deadline_ns


cdef inline bint crosses(const Run *run, const Policy *policy) noexcept nogil:
    """Break-glass crosses every forbid that is not marked @never."""
    return run.standing.break_glass and policy.effect == EFFECT_FORBID and not policy.flags & POLICY_NEVER


cdef void hide_approval(Cell *columns, Cell *kept) noexcept nogil:
    """Leave the columns as if nobody had approved; `kept` takes what they held."""
    cdef Cell all_columns[COLUMN_COUNT]
    cdef int i
    columns_absent(all_columns)
    for i in range(<int> APPROVAL_COLUMNS):
        cell_copy(kept + i, columns + COL_APPROVAL_STATE + i)
        cell_copy(columns + COL_APPROVAL_STATE + i, all_columns + COL_APPROVAL_STATE + i)


cdef void show_approval(Cell *columns, const Cell *kept) noexcept nogil:
    cdef int i
    for i in range(<int> APPROVAL_COLUMNS):
        cell_copy(columns + COL_APPROVAL_STATE + i, kept + i)


cdef int run_without_approval(Run *run, const Policy *policy, bint *satisfied) noexcept nogil:
    """Evaluate as if nobody had approved: what nobody may cross does not look at an emergency."""
    cdef Cell kept[APPROVAL_COLUMNS]
    cdef Cell *columns = <Cell *> run.context.columns
    cdef int error
    hide_approval(columns, kept)
    error = program_run(run.t, policy, &run.context, run.arena, satisfied)
    show_approval(columns, kept)
    return error


cdef int visit(void *state, uint32_t index) noexcept nogil:
    cdef Run *run = <Run *> state
    cdef const Policy *policy = table_policy(run.t, index)
    cdef bint satisfied = False
    cdef int error
    if not scope_matches(run.t, &run.context, policy):
        return 0
    if too_late(run):
        return STOP_LATE
    if run.standing.break_glass and policy.flags & POLICY_NEVER:
        error = run_without_approval(run, policy, &satisfied)
    else:
        error = program_run(run.t, policy, &run.context, run.arena, &satisfied)
    if policy.flags & POLICY_SHADOW:
        # A shadow never decides, not even by what it could not evaluate.
        if error != EVAL_OK or satisfied:
            select(run.t, &run.shadows, index, error)
        return 0
    if error != EVAL_OK:
        note_error(run, index, error)
        run.forbids_erring += policy.effect == EFFECT_FORBID
        return error if error == EVAL_UNSENT or error == EVAL_LIMIT else 0
    if satisfied and crosses(run, policy):
        run.crossed += 1
    elif satisfied:
        note_satisfied(run, policy, index)
    return 0


# ---------------------------------------------------------------- before and after the evaluation


cdef Text peer_refusal(const Peer *peer, const Authority *authority, int64_t now_unix_ns) noexcept nogil:
    """Repeated per call, since a connection outlives the credential and the bundle that it was accepted with."""
    cdef int64_t now = now_unix_ns if now_unix_ns else unix_ns(authority)
    if peer is NULL:
        return literal(b"identity.missing")
    if peer.refusal.n:
        return peer.refusal
    if peer.kind != PEER_AGENT and peer.kind != PEER_ENVOY:
        return literal(b"identity.missing")
    if now // 1000000000 > peer.not_after_s:
        return literal(b"identity.expired")
    # Generation 0 is a Unix socket's: no bundle stands behind it.
    if peer.bundle_generation and peer.bundle_generation < authority.bundle_generation:
        return literal(b"identity.bundle_changed")
    return literal(b"")


cdef void authority_fill(const Authority *authority, Request *request) noexcept nogil:
    """The columns of live state (task to risk) as the authority holds them; what it does not hold stays absent.

    dest, cred and call are the door's, and no door can set these.
    """
    cdef int column
    if authority.columns is not NULL:
        for column in range(<int> COL_TASK_PRESENT, <int> COL_RISK_SOURCE_AGE_S + 1):
            cell_copy(request.columns + column, authority.columns + column)


cdef inline void resolve(const Table *table, Uid *uid) noexcept nogil:
    """Look a uid up, unless whoever made it did: a request is made and decided by one table."""
    if uid.index == UID_UNKNOWN and uid.type_index == UID_UNKNOWN:
        table_resolve(table, uid)


cdef void request_context(const Table *table, Request *request, EvalContext *context) noexcept nogil:
    resolve_all(table, request)
    fill_context(table, request, context)


cdef void resolve_all(const Table *table, Request *request) noexcept nogil:
    resolve(table, request.principal)
    resolve(table, request.action)
    resolve(table, request.resource)


cdef void fill_context(const Table *table, Request *request, EvalContext *context) noexcept nogil:
    cdef const Node *node
    memset(context, 0, sizeof(EvalContext))
    context.principal = request.principal
    context.action = request.action
    context.resource = request.resource
    context.columns = request.columns
    context.extras = &request.extras
    context.unsent = request.unsent
    context.unsent_count = request.unsent_count
    if request.resource_parent is NULL or uid_equal(request.resource_parent, request.resource):
        return
    node = table_node(table, request.resource.index)
    if node is NULL or not node.flags & NODE_PRESENT:
        resolve(table, request.resource_parent)
        context.resource_parent = request.resource_parent


cdef bint only_request_read(const Table *t) noexcept nogil:
    """Whether no policy reads live state: `dest` and `call` are functions of the request."""
    cdef uint64_t read[2]
    cdef int column
    read[0] = t.totals.columns_read[0]
    read[1] = t.totals.columns_read[1]
    read[COL_DEST >> 6] &= ~(<uint64_t> 1 << (COL_DEST & 63))
    for column in range(<int> COL_CALL_PROTOCOL, <int> COL_CALL_BODY_COMPLETE + 1):
        read[column >> 6] &= ~(<uint64_t> 1 << (column & 63))
    return (read[0] | read[1]) == 0


cdef void finish(Decision *out, int outcome, Text reason) noexcept nogil:
    out.outcome = <uint8_t> outcome
    out.reason = reason


# ---------------------------------------------------------------- the outcome


cdef uint32_t list_selected(const Table *t, const Selected *selected, Listed *out) noexcept nogil:
    cdef uint32_t i
    for i in range(selected.n):
        out[i].id = span_text(t, &table_policy(t, selected.index[i]).id)
        out[i].error = selected.error[i]
    return selected.total


cdef Text obligation_of(const Table *t, uint32_t index) noexcept nogil:
    return span_text(t, &table_note(t, table_policy(t, index)).obligation) if index != NONE32 else literal(b"")


cdef void stopped(Run *run, int stop, Decision *out) noexcept nogil:
    if stop == EVAL_UNSENT:
        out.input_missing = run.context.missing
        finish(out, OUTCOME_DENY, joined(run.arena, literal(b"input.missing."), run.context.missing))
    elif stop == STOP_LATE:
        out.late = 1
        finish(out, OUTCOME_ERROR, literal(b"late"))
    else:
        finish(out, OUTCOME_ERROR, literal(b"limit"))


cdef void forbidden(Run *run, Decision *out) noexcept nogil:
    """Some forbid is satisfied: an approval helps when it lifts all of them, and something permits."""
    cdef bint hard = run.hard_forbid != NONE32
    # What no approval lifts is what the caller must hear of, whatever else forbids as well.
    cdef const Policy *first = table_policy(run.t, run.hard_forbid if hard else run.forbids.index[0])
    cdef Text reason = span_text(run.t, &table_note(run.t, first).reason)
    if reason.n == 0:
        reason = literal(b"policy.forbid")
    if hard or run.permits.total == 0 or run.forbids_erring:
        # An obligation that is named where it would not help sends people for approvals in vain.
        if hard:
            out.obligation = obligation_of(run.t, run.hard_forbid)
            out.crossable = run.permits.total > 0 and run.forbids_erring == 0
        finish(out, OUTCOME_DENY, reason)
    else:
        out.obligation = obligation_of(run.t, run.obliged_forbid)
        finish(out, OUTCOME_STEP_UP, reason)


cdef bint denied_by_error(const Run *run) noexcept nogil:
    """Strict mode: no forbid is satisfied, but one could not be evaluated."""
    return run.t.strict and run.forbids_erring and not run.forbids.total


cdef void conclude(Run *run, Decision *out) noexcept nogil:
    if run.forbids.total:
        forbidden(run, out)
    elif denied_by_error(run):
        finish(out, OUTCOME_DENY, literal(b"policy.error"))
    elif run.permits.total:
        # The only ALLOW there is.
        out.obligation = obligation_of(run.t, run.obliged_permit)
        finish(out, OUTCOME_ALLOW, literal(b"ok"))
    else:
        finish(out, OUTCOME_DENY, literal(b"policy.none"))


cdef Text ungoverned(const Run *run) noexcept nogil:
    """Why authority does not stand behind what the policies allow; empty: it does."""
    cdef const Standing *standing = run.standing
    if standing.task_fault.n and not (run.taskless and standing.task.n == 0):
        return standing.task_fault
    if standing.owner_fault.n:
        return standing.owner_fault
    return literal(b"")


cdef void govern(Run *run, const Request *request, Decision *out) noexcept nogil:
    """What policies allow still needs a task that covers it, an owner who answers for it, and no revocation."""
    cdef Text fault
    if run.standing.live is NULL:
        return
    fault = ungoverned(run)
    out.crossable &= fault.n == 0
    if out.outcome != OUTCOME_ALLOW and out.outcome != OUTCOME_STEP_UP:
        return
    if fault.n == 0 and run.standing.read_only and not authority_observes(run.standing.live, request, run.t):
        fault = literal(b"revoked.read_only")
    if fault.n:
        out.obligation = literal(b"")
        finish(out, OUTCOME_DENY, fault)
    elif out.outcome == OUTCOME_ALLOW and run.standing.step_up and not run.standing.approved:
        out.obligation = literal(b"approval")
        finish(out, OUTCOME_STEP_UP, literal(b"revoked.step_up"))
    elif out.outcome == OUTCOME_ALLOW and run.crossed:
        out.obligation = literal(b"review")


cdef void list_all(const Run *run, Decision *out) noexcept nogil:
    """What determined, erred and shadowed; after a stop only what erred, since the rest is incomplete."""
    out.errors_total = list_selected(run.t, &run.errors, out.errors)
    out.shadows_total = list_selected(run.t, &run.shadows, out.shadows)
    if run.forbids.total:
        out.policies_total = list_selected(run.t, &run.forbids, out.policies)
    elif not denied_by_error(run):
        out.policies_total = list_selected(run.t, &run.permits, out.policies)


cdef void keep_determining(const Run *run, All *all) noexcept nogil:
    """Of all satisfied policies the forbids, if there are any; no permit determines what an erring forbid denied."""
    cdef uint32_t kept = 0
    cdef uint32_t i
    if run.forbids.total == 0 and not denied_by_error(run):
        return
    for i in range(all.satisfied_count):
        if table_policy(run.t, all.satisfied[i]).effect == EFFECT_FORBID:
            all.satisfied[kept] = all.satisfied[i]
            kept += 1
    all.satisfied_count = kept


cdef bint stand(
    const Peer *peer, Request *request, const Table *table, const Authority *authority, Arena *arena, Decision *out
) noexcept nogil:
    """See where the call stands; false when that decides it."""
    cdef Standing *standing = &out.standing
    if authority.live is NULL:
        return True
    authority_enter(authority.live, request, peer.credential, table, arena, standing)
    out.epoch = standing.epoch
    if standing.refusal.n == 0:
        return True
    finish(out, OUTCOME_ERROR if standing.refusal_is_ours else OUTCOME_DENY, standing.refusal)
    return False


cdef bint resource_holds_others(const Table *table, const EvalContext *context) noexcept nogil:
    """Whether a resource that has its parent from the request has another uid of the call in it, or its parent: what is
    in the resource would be in that parent as well, where the index does not look for it.
    """
    cdef uint32_t resource = context.resource.index
    return context.resource_parent is not NULL and (
        table_is_in(table, context.principal, resource)
        or table_is_in(table, context.action, resource)
        or table_is_in(table, context.resource_parent, resource)
    )


cdef void evaluate(
    const Peer *peer, Request *request, const Table *table, const Authority *authority, Arena *arena, Decision *out,
    All *all
) noexcept nogil:
    cdef Run run
    begin(&run, request, table, authority, arena, out, all)
    if resource_holds_others(table, &run.context):
        finish(out, OUTCOME_DENY, literal(b"request.ambiguous.resource"))
        return
    authority_fill(authority, request)
    if not stand(peer, request, table, authority, arena, out):
        return
    out.cacheable = authority.live is NULL and only_request_read(table)
    if out.standing.approval.n and allowed_anyway(&run, request, out):
        return
    weigh(&run, request, out)


cdef void begin(
    Run *run, Request *request, const Table *table, const Authority *authority, Arena *arena, Decision *out, All *all
) noexcept nogil:
    memset(run, 0, sizeof(Run))
    request_context(table, request, &run.context)
    # A large table is in no cache: policies are on their way while the columns are copied.
    candidates_meet(&run.walk, table, &run.context)
    run.t = table
    run.authority = authority
    run.arena = arena
    run.all = all
    run.deadline_ns = request.deadline_ns
    run.obliged_permit = run.obliged_forbid = run.hard_forbid = NONE32
    run.standing = &out.standing


cdef bint allowed_anyway(Run *run, Request *request, Decision *out) noexcept nogil:
    """Decide as if nobody had approved: what is allowed so uses no approval up. Otherwise nothing is left of it."""
    cdef Standing *standing = run.standing
    cdef Standing approved = standing[0]
    cdef Cell kept[APPROVAL_COLUMNS]
    hide_approval(request.columns, kept)
    standing.approval = literal(b"")
    standing.approval_row = NULL
    standing.approved = standing.break_glass = 0
    weigh(run, request, out)
    if out.outcome == OUTCOME_ALLOW:
        return True
    standing[0] = approved
    show_approval(request.columns, kept)
    out.obligation = out.input_missing = literal(b"")
    out.crossable = out.late = 0
    out.policies_total = 0
    if run.all is not NULL:
        run.all.satisfied_count = run.all.erring_count = 0
    begin(run, request, run.t, run.authority, run.arena, out, run.all)
    return False


cdef void weigh(Run *run, Request *request, Decision *out) noexcept nogil:
    """Walk the candidates, and say what follows from it."""
    cdef All *all = run.all
    cdef int stop = candidates_visit(&run.walk, visit, run)
    if stop:
        # Lists of a walk that did not end would pass for complete.
        memset(&run.permits, 0, sizeof(Selected))
        memset(&run.forbids, 0, sizeof(Selected))
        if all is not NULL:
            all.satisfied_count = 0
        stopped(run, stop, out)
    else:
        conclude(run, out)
        govern(run, request, out)
        if all is not NULL:
            keep_determining(run, all)
    list_all(run, out)


cdef void fetch(const Table *table, const Request *request, Fetch what) noexcept nogil:
    """Begin to fetch what the lookup of the call's uids reads. A refused call may lack some, and a table its image."""
    if table is NULL or table.image is NULL:
        return
    if request.principal is not NULL:
        what(table, request.principal)
    if request.action is not NULL:
        what(table, request.action)
    if request.resource is not NULL:
        what(table, request.resource)


cdef void judge(
    const Peer *peer, Request *request, const Table *table, Authority *authority, Arena *arena, Decision *out, All *all
) noexcept nogil:
    """What keeps a call from being evaluated, in this order: our own state, the peer, the request."""
    cdef Text refusal
    if authority.not_ready.n:
        finish(out, OUTCOME_ERROR, authority.not_ready)
        return
    if table is NULL or table.image is NULL:
        finish(out, OUTCOME_ERROR, literal(b"not_ready.rules"))
        return
    refusal = peer_refusal(peer, authority, request.started_unix_ns)
    if refusal.n == 0:
        refusal = request.refusal
    if refusal.n:
        finish(out, OUTCOME_DENY, refusal)
        return
    if request.principal is NULL or request.action is NULL or request.resource is NULL or arena.failed:
        # The door could not build what it should have built.
        finish(out, OUTCOME_ERROR, literal(b"limit"))
        return
    if request.resource_parent is not NULL and (
        uid_equal(request.principal, request.resource) or uid_equal(request.action, request.resource)
    ):
        # One uid cannot have the parent as a resource and lack it as a principal or an action.
        finish(out, OUTCOME_DENY, literal(b"request.ambiguous.resource"))
        return
    evaluate(peer, request, table, authority, arena, out, all)


cdef Text settle_allow(Request *request, const Authority *authority, Decision *out) noexcept nogil:
    """What an ALLOW costs is taken; a dry run hears what a call would, and takes nothing."""
    if request.dry_run or request.door == DOOR_EXPLAIN:
        return authority_would_take(authority.live, request, &out.standing)
    return authority_take(authority.live, request, out.evaluation_id, out.sequence, &out.standing)


cdef void settle(Request *request, const Authority *authority, Arena *arena, Decision *out) noexcept nogil:
    """The last step: an ALLOW takes what it costs, a STEP_UP can be asked an approval for."""
    cdef Text fault
    if authority.live is NULL:
        return
    if out.outcome == OUTCOME_ALLOW:
        fault = settle_allow(request, authority, out)
        if fault.n:
            out.obligation = literal(b"")
            finish(out, OUTCOME_DENY, fault)
    elif (out.outcome == OUTCOME_STEP_UP or out.crossable) and not request.dry_run and request.door != DOOR_EXPLAIN:
        authority_note_step_up(
            authority.live, request, out.evaluation_id, out.reason, out.crossable, arena, &out.standing
        )


cdef void hex16(uint64_t value, char *out) noexcept nogil:
    cdef int i
    for i in range(16):
        out[15 - i] = b"0123456789abcdef"[value & 15]
        value >>= 4


cdef void decide(
    const Peer *peer, Request *request, const Table *table, Authority *authority, Arena *arena, Decision *out, All *all
) noexcept nogil:
    cdef int64_t now
    cdef int64_t started = request.started_ns
    # A large table is in no cache: slots, then rows are on their way while something else is done.
    fetch(table, request, table_fetch_slot)
    memset(out, 0, <char *> out.policies - <char *> out)
    finish(out, OUTCOME_ERROR, literal(b"internal"))
    if all is not NULL:
        all.satisfied_count = all.erring_count = 0
    if started == 0:
        started = monotonic_ns(authority)
    out.epoch = authority.epoch if authority.live is NULL else authority_epoch(authority.live)
    out.sequence = remit_next(&authority.sequence)
    fetch(table, request, table_fetch_row)
    hex16(authority.boot, out.evaluation_id)
    hex16(out.sequence, out.evaluation_id + 16)
    if table is not NULL:
        out.generation = table.generation
    judge(peer, request, table, authority, arena, out, all)
    now = monotonic_ns(authority)
    if request.deadline_ns and now > request.deadline_ns:
        out.late = 1
        finish(out, OUTCOME_ERROR, literal(b"late"))
    settle(request, authority, arena, out)
    if out.outcome == OUTCOME_ERROR:
        # What an evaluation has left behind goes with an answer of its own only.
        out.cacheable = 0
        out.obligation = literal(b"")
    out.latency_ns = now - started
