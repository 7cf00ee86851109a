"""What allowed calls spend (spending.pxd): accounts, and the newest calls that Report can still settle."""
from fastpath.approved cimport approval_again, approval_by_id
from fastpath.columns cimport COL_CALL_BYTES
from fastpath.live_state cimport (
    BOOT_BYTES,
    BUDGET_BYTES,
    BUDGET_CALLS,
    BUDGET_COST,
    CHAIN_MAX,
    Approval,
    Reservation,
    Task,
    hop_fault,
    id_of,
    live_boot_ns,
    live_now,
    remaining,
)
from fastpath.c.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from fastpath.request cimport DOOR_EXT_AUTHZ, DOOR_EXT_AUTHZ_NETWORK
from fastpath.rowmap cimport rows_find
from fastpath.value cimport KIND_LONG, Cell
from fastpath.wire cimport text_equal, text_of
from libc.stdint cimport INT64_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.stdlib cimport posix_memalign

cdef enum:
    RESERVATIONS = 1 << 14   # power of two
    CACHE_LINE = 64


cdef struct Claim:           # what an allowed call would take
    Task *task
    Approval *approval
    int64_t wanted[BUDGETS]


if sizeof(Reservation) != CACHE_LINE:
    raise ImportError("spending.pyx: a reservation is not one cache line")


# ---------------------------------------------------------------- accounts


cdef Account *account_new(Text task, Text agent) noexcept nogil:
    cdef Account *account = <Account *> calloc(1, sizeof(Account) + task.n + agent.n)
    cdef char *room = <char *> account + sizeof(Account)
    if account == NULL:
        return NULL
    if task.n:
        memcpy(room, task.p, task.n)
    if agent.n:
        memcpy(room + task.n, agent.p, agent.n)
    account.task.p, account.task.n = room, task.n
    account.agent.p, account.agent.n = room + task.n, agent.n
    account.refs = 1
    return account


cdef void account_drop(Account *account) noexcept nogil:
    cdef Account *above
    while account != NULL:
        account.refs -= 1
        if account.refs:
            return
        above = account.above
        free(account)
        account = above


cdef Account *payer_of(Account *account) noexcept nogil:
    """The account that a late change goes to: a closed task has given back what it had, so the nearest one above that
    is in force pays, and is paid. NULL when none is.
    """
    while account != NULL and not account.living:
        account = account.above
    return account


cdef void link_above(LiveState *s, const Task *task) noexcept nogil:
    """Tie the accounts of a chain together; once, since nothing gives a task another parent."""
    cdef Account *account = task.account
    cdef const Task *parent
    cdef uint32_t n = 0
    while account.above == NULL and task.parent.n and n < CHAIN_MAX:
        parent = <const Task *> rows_find(&s.tasks, 0, task.parent)
        if parent == NULL:
            return
        account.above = parent.account
        parent.account.refs += 1
        task, account = parent, parent.account
        n += 1


cdef inline int64_t plus(int64_t a, int64_t b) noexcept nogil:
    """The sum, or the bound that it would cross: a cost is any number that a caller names."""
    if b > 0 and a > INT64_MAX - b:
        return INT64_MAX
    if b < 0 and a < -INT64_MAX - b:
        return -INT64_MAX
    return a + b


cdef void move_left(Account *account, int budget, int64_t amount) noexcept nogil:
    cdef int64_t now = plus(account.left[budget] - account.over[budget], amount)
    account.left[budget] = max(<int64_t> 0, now)
    account.over[budget] = max(<int64_t> 0, -now)


cdef void charge(Account *account, int budget, int64_t amount) noexcept nogil:
    if amount == 0:
        return
    account.spent[budget] = plus(account.spent[budget], amount)
    if account.left[budget] >= 0:
        move_left(account, budget, -amount)


cdef inline bint affords(const Account *account, const int64_t *wanted) noexcept nogil:
    cdef int i
    for i in range(<int> BUDGETS):
        # What is owed must be paid first, also by a call that would cost nothing.
        if account.left[i] >= 0 and (account.left[i] < wanted[i] or account.over[i] > 0):
            return False
    return True


cdef inline int64_t bytes_wanted(const Account *account, const Request *request) noexcept nogil:
    """What a call takes of a budget of bytes: of a length that nobody knows yet, all that is left and at least one."""
    cdef const Cell *size = request.columns + <int> COL_CALL_BYTES
    if size.kind == KIND_LONG and size.v >= 0:
        return size.v
    return max(<int64_t> 1, account.left[<int> BUDGET_BYTES]) if account.left[<int> BUDGET_BYTES] >= 0 else 0


# ---------------------------------------------------------------- an allowed call takes its share


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


cdef Text claim_task(
    LiveState *s, const Request *request, const Standing *standing, Claim *out
) noexcept nogil:
    cdef Text fault
    out.task = <Task *> standing.task_row
    if standing.version != s.version:
        # A decision takes less than its time budget, so what it was judged by is what time it is.
        fault = task_again(s, standing.task, standing.unix_ns, standing.boot_ns)
        if fault.n:
            return fault
        out.task = <Task *> rows_find(&s.tasks, 0, standing.task)
    out.wanted[<int> BUDGET_CALLS] = 1
    out.wanted[<int> BUDGET_COST] = request.cost
    out.wanted[<int> BUDGET_BYTES] = bytes_wanted(out.task.account, request)
    return text_of(b"") if affords(out.task.account, out.wanted) else text_of(b"task.budget")


cdef Text claim(LiveState *s, const Request *request, const Standing *standing, Claim *out) noexcept nogil:
    memset(out, 0, sizeof(Claim))
    if standing.approval.n:
        out.approval = approval_again(s, standing)
        if out.approval == NULL:
            return text_of(b"approval.used")
    if standing.task.n and standing.task_fault.n == 0:
        return claim_task(s, request, standing, out)
    return text_of(b"")


cdef Account *holder_of(LiveState *s, const Request *request, const Claim *claimed) noexcept nogil:
    """The account of a call, held once more; NULL when there is no memory: nobody can report the call then."""
    if claimed.task == NULL:
        return account_new(text_of(b""), id_of(request.principal))
    link_above(s, claimed.task)
    claimed.task.account.refs += 1
    return claimed.task.account


cdef void reserve(
    LiveState *s, const Request *request, const char *evaluation, uint64_t sequence, const Standing *standing,
    const Claim *claimed
) noexcept nogil:
    cdef uint64_t at = sequence & (RESERVATIONS - 1)
    cdef Reservation *slot = &s.reservations[at]
    # Whatever stood here is too old to be settled: it counts as spent.
    account_drop(slot.account)
    slot.account = holder_of(s, request, claimed)
    slot.sequence = sequence
    memcpy(slot.boot, evaluation, BOOT_BYTES)
    slot.calls = <uint8_t> claimed.wanted[<int> BUDGET_CALLS]
    slot.cost = claimed.wanted[<int> BUDGET_COST]
    slot.size = claimed.wanted[<int> BUDGET_BYTES]
    slot.of_envoy = request.door == DOOR_EXT_AUTHZ or request.door == DOOR_EXT_AUTHZ_NETWORK
    slot.deadline_boot_ns = standing.boot_ns + s.reserve_ns
    slot.approval_n = <uint8_t> standing.approval.n
    if slot.approval_n:
        memcpy(s.reserved_approvals + TASK_ID_MAX * at, standing.approval.p, slot.approval_n)
    slot.open = slot.account != NULL


cdef Text take_locked(
    LiveState *s, const Request *request, const char *evaluation, uint64_t sequence, Standing *standing
) noexcept nogil:
    cdef Claim claimed
    cdef Text fault = claim(s, request, standing, &claimed)
    cdef int i
    if fault.n:
        return fault
    if claimed.task != NULL:
        for i in range(<int> BUDGETS):
            charge(claimed.task.account, i, claimed.wanted[i])
            standing.took[i] = claimed.wanted[i]
    if claimed.approval != NULL:
        claimed.approval.uses -= 1
    if claimed.task != NULL or claimed.approval != NULL:
        reserve(s, request, evaluation, sequence, standing, &claimed)
        standing.settled = 1
    return fault


cdef Text authority_take(
    LiveState *live, const Request *request, const char *evaluation, uint64_t sequence, Standing *standing
) noexcept nogil:
    cdef Text fault
    pthread_mutex_lock(&live.lock)
    fault = take_locked(live, request, evaluation, sequence, standing)
    pthread_mutex_unlock(&live.lock)
    return fault


cdef Text authority_would_take(LiveState *live, const Request *request, Standing *standing) noexcept nogil:
    cdef Claim claimed
    cdef Text fault
    pthread_mutex_lock(&live.lock)
    fault = claim(live, request, standing, &claimed)
    pthread_mutex_unlock(&live.lock)
    return fault


# ---------------------------------------------------------------- the reservation of a call


cdef int reservations_open(LiveState *s) noexcept nogil:
    cdef void *room = NULL
    s.reserved_approvals = <char *> calloc(RESERVATIONS, TASK_ID_MAX)
    if s.reserved_approvals == NULL or posix_memalign(&room, CACHE_LINE, RESERVATIONS * sizeof(Reservation)):
        return 1
    memset(room, 0, RESERVATIONS * sizeof(Reservation))
    s.reservations = <Reservation *> room
    return 0


cdef void reservations_close(LiveState *s) noexcept nogil:
    cdef size_t i
    if s.reservations != NULL:
        for i in range(<size_t> RESERVATIONS):
            account_drop(s.reservations[i].account)
    free(s.reservations)
    free(s.reserved_approvals)


cdef Reservation *slot_of(LiveState *s, const char *evaluation, uint64_t sequence) noexcept nogil:
    """The slot that the call was given; NULL when another call has it by now."""
    cdef Reservation *slot = &s.reservations[sequence & (RESERVATIONS - 1)]
    if slot.account == NULL or slot.sequence != sequence or memcmp(slot.boot, evaluation, BOOT_BYTES):
        return NULL
    return slot


cdef Reservation *reservation_of(LiveState *s, const char *evaluation, uint64_t sequence) noexcept nogil:
    cdef Reservation *slot = slot_of(s, evaluation, sequence)
    return slot if slot != NULL and slot.open else NULL


cdef Text approval_id(LiveState *s, const Reservation *slot) noexcept nogil:
    cdef Text id_
    id_.p, id_.n = s.reserved_approvals + TASK_ID_MAX * (slot - s.reservations), slot.approval_n
    return id_


cdef void give_back(LiveState *s, Reservation *slot) noexcept nogil:
    cdef Account *account = payer_of(slot.account)
    cdef Approval *approval = approval_by_id(s, approval_id(s, slot)) if slot.approval_n else NULL
    if account != NULL:
        charge(account, BUDGET_CALLS, -<int64_t> slot.calls)
        charge(account, BUDGET_COST, -slot.cost)
        charge(account, BUDGET_BYTES, -slot.size)
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


# ---------------------------------------------------------------- what an ALLOW rests on


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
    cdef int64_t boot
    cdef int64_t now = live_now(s, &boot)
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


# ---------------------------------------------------------------- what became of an allowed call


cdef int64_t hex_value(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef bint sequence_of(Text evaluation, uint64_t *out) noexcept nogil:
    """The number of the call: the second half of its evaluation id. False when it is none of ours."""
    cdef int64_t digit
    cdef int i
    out[0] = 0
    if evaluation.n != EVALUATION_BYTES:
        return False
    for i in range(BOOT_BYTES, EVALUATION_BYTES):
        digit = hex_value(evaluation.p[i])
        if digit < 0:
            return False
        out[0] = out[0] << 4 | <uint64_t> digit
    return True


cdef void settled(Settled *out, int *n, int kind, Text key, int64_t value) noexcept nogil:
    if value == 0 or key.n == 0:
        return
    out[n[0]].kind = <uint8_t> kind
    memcpy(out[n[0]].key, key.p, key.n)
    out[n[0]].key_n = key.n
    out[n[0]].value = value
    n[0] += 1


cdef int changes_of(
    LiveState *s, const Reservation *slot, bint executed, int64_t cost, int64_t size, Settled *out
) noexcept nogil:
    cdef Account *account = payer_of(slot.account)
    cdef Text payer = account.task if account != NULL else text_of(b"")
    cdef int n = 0
    if executed:
        settled(out, &n, EFFECT_COST, payer, cost - slot.cost if cost >= 0 else 0)
        settled(out, &n, EFFECT_BYTES, payer, size - slot.size if size >= 0 else 0)
        return n
    settled(out, &n, EFFECT_CALLS, payer, -<int64_t> slot.calls)
    settled(out, &n, EFFECT_COST, payer, -slot.cost)
    settled(out, &n, EFFECT_BYTES, payer, -slot.size)
    settled(out, &n, EFFECT_APPROVAL, approval_id(s, slot), -1)
    return n


cdef void redo_locked(LiveState *s, const Settled *change, int64_t value) noexcept nogil:
    cdef Approval *approval
    cdef Task *task
    cdef Text key
    key.p, key.n = <const char *> change.key, change.key_n
    if change.kind == EFFECT_APPROVAL:
        approval = approval_by_id(s, key)
        if approval != NULL:
            approval.uses = max(<int64_t> 0, approval.uses - value)
        return
    task = <Task *> rows_find(&s.tasks, 0, key)
    if task != NULL:
        charge(task.account, change.kind - EFFECT_CALLS, value)


cdef int close_locked(
    LiveState *s, Text evaluation, Text agent, bint executed, int64_t cost, int64_t size, Settled *out
) noexcept nogil:
    cdef Reservation *slot
    cdef uint64_t sequence
    cdef int n, i
    if not sequence_of(evaluation, &sequence):
        return -1
    slot = reservation_of(s, evaluation.p, sequence)
    if slot == NULL or slot.deadline_boot_ns < live_boot_ns(s) or slot.of_envoy != (agent.n == 0):
        # An agent that guesses the id of a call through Envoy must not say that it was never made.
        return -1
    if agent.n and not text_equal(agent, slot.account.agent):
        return -1
    slot.open = 0
    n = changes_of(s, slot, executed, cost, size, out)
    for i in range(n):
        if out[i].value > 0:
            redo_locked(s, &out[i], out[i].value)
    return n


cdef int authority_close(
    LiveState *live, Text evaluation, Text agent, bint executed, int64_t cost, int64_t size, Settled *out
) noexcept nogil:
    cdef int n
    pthread_mutex_lock(&live.lock)
    n = close_locked(live, evaluation, agent, executed, cost, size, out)
    pthread_mutex_unlock(&live.lock)
    return n


cdef void authority_settle(LiveState *live, const Settled *changes, int n) noexcept nogil:
    cdef int i
    pthread_mutex_lock(&live.lock)
    for i in range(n):
        if changes[i].value < 0:
            redo_locked(live, changes + i, changes[i].value)
    pthread_mutex_unlock(&live.lock)


cdef void authority_reopen(LiveState *live, Text evaluation, const Settled *changes, int n) noexcept nogil:
    cdef Reservation *slot
    cdef uint64_t sequence
    cdef int i
    if not sequence_of(evaluation, &sequence):
        return
    pthread_mutex_lock(&live.lock)
    slot = slot_of(live, evaluation.p, sequence)
    if slot != NULL:
        slot.open = 1
    for i in range(n):
        if changes[i].value > 0:
            redo_locked(live, changes + i, -changes[i].value)
    pthread_mutex_unlock(&live.lock)


cdef void authority_redo(LiveState *live, const Settled *changes, int n) noexcept nogil:
    cdef int i
    pthread_mutex_lock(&live.lock)
    for i in range(n):
        redo_locked(live, changes + i, changes[i].value)
    pthread_mutex_unlock(&live.lock)
