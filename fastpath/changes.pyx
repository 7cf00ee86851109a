"""Changes of the control plane, linked into the live state (changes.pxd). Everything here is under the lock."""
from fastpath.bells cimport NEWS_APPROVAL, NEWS_OWNER, NEWS_REVOCATION, NEWS_TASK, touch_agent, touch_all
from fastpath.c.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from fastpath.live_state cimport (
    MODES,
    TASK_OPEN,
    TASK_SUSPENDED,
    Account,
    AgentTasks,
    Approval,
    OwnerState,
    Task,
    remit_store,
)
from fastpath.rowmap cimport rows_add, rows_find, rows_free, rows_take
from fastpath.spending cimport account_drop, move_left
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef enum:
    HOLD_CHANGES = 256       # ended tasks in one hold of the lock


# ---------------------------------------------------------------- links between rows


cdef void unlink_open(LiveState *s, Task *task) noexcept nogil:
    """Take the task out of its agent's open ones, if it is among them."""
    cdef AgentTasks *agent = <AgentTasks *> rows_find(&s.agents, 0, task.agent) if task.listed else NULL
    if agent == NULL:
        return
    s.steps += 1
    if task.next != NULL:
        task.next.previous = task.previous
    if task.previous != NULL:
        task.previous.next = task.next
    else:
        agent.first = task.next
    task.next = task.previous = NULL
    task.listed = 0
    agent.open -= 1
    drop_idle(s, agent)


cdef void drop_idle(LiveState *s, AgentTasks *agent) noexcept nogil:
    """Forget an agent of which nothing is in force."""
    if agent.first == NULL and agent.approvals == 0:
        rows_take(&s.agents, 0, agent.key.text)
        free(agent)


cdef AgentTasks *agent_row(LiveState *s, Text id_) noexcept nogil:
    """What is in force of the agent, to be added to; NULL when there is no memory."""
    cdef AgentTasks *agent = <AgentTasks *> rows_find(&s.agents, 0, id_)
    if agent != NULL:
        return agent
    agent = <AgentTasks *> calloc(1, sizeof(AgentTasks) + id_.n)
    if agent == NULL:
        return NULL
    agent.key.text.p, agent.key.text.n = <const char *> agent + sizeof(AgentTasks), id_.n
    memcpy(<char *> agent + sizeof(AgentTasks), id_.p, id_.n)
    if rows_add(&s.agents, &agent.key):
        free(agent)
        return NULL
    return agent


cdef int link_open(LiveState *s, Task *task) noexcept nogil:
    """Put it among its agent's open ones; 0, or 1 when there is no memory."""
    cdef AgentTasks *agent = agent_row(s, task.agent)
    if agent == NULL:
        return 1
    task.next, task.previous = agent.first, NULL
    if agent.first != NULL:
        agent.first.previous = task
    agent.first = task
    task.listed = 1
    agent.open += 1
    return 0


cdef void unlink_approval(LiveState *s, Approval *approval) noexcept nogil:
    cdef Approval *first = <Approval *> rows_take(&s.approvals, approval.key.kind, approval.key.text)
    cdef Approval *at = first
    cdef AgentTasks *agent = <AgentTasks *> rows_find(&s.agents, 0, approval.agent)
    rows_take(&s.approval_names, 0, approval.id)
    touch_agent(&s.touched, approval.agent, NEWS_APPROVAL)
    if agent != NULL and agent.approvals:
        agent.approvals -= 1
        drop_idle(s, agent)
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
    cdef AgentTasks *agent = agent_row(s, approval.agent)
    if agent == NULL:
        return 1
    approval.name.key.text, approval.name.approval = approval.id, approval
    if rows_add(&s.approval_names, &approval.name.key):
        return 1
    agent.approvals += 1
    touch_agent(&s.touched, approval.agent, NEWS_APPROVAL)
    if first == NULL:
        return rows_add(&s.approvals, &approval.key)
    approval.next = first.next
    first.next = approval
    return 0


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


# ---------------------------------------------------------------- revocations


cdef int put_revocation(LiveState *s, Revocation *row) noexcept nogil:
    """Put the row in the place of the one that it adds a mode to; 0, or 1 when there is no memory."""
    cdef Revocation *before = <Revocation *> rows_take(&s.revocations, row.key.kind, row.key.text)
    cdef int mode
    if before != NULL:
        for mode in range(<int> MODES):
            # Only lifting makes one shorter.
            row.until_unix_ns[mode] = max(row.until_unix_ns[mode], before.until_unix_ns[mode])
            row.until_boot_ns[mode] = max(row.until_boot_ns[mode], before.until_boot_ns[mode])
        row.step_up_unix_ns = max(row.step_up_unix_ns, before.step_up_unix_ns)
        drop_revocation(s, before)
    if rows_add(&s.revocations, &row.key):
        return 1
    s.revoked[row.key.kind] += 1
    return 0


cdef void drop_revocation(LiveState *s, Revocation *row) noexcept nogil:
    """Give back a row that is out of the map already."""
    s.revoked[row.key.kind] -= 1
    free(row)


cdef void lift_revocation(LiveState *s, uint32_t kind, Text key, int mode) noexcept nogil:
    cdef Revocation *row = <Revocation *> rows_find(&s.revocations, kind, key)
    cdef int at
    if row == NULL:
        return
    row.until_unix_ns[mode] = row.until_boot_ns[mode] = 0
    for at in range(<int> MODES):
        if row.until_unix_ns[at]:
            return
    rows_take(&s.revocations, kind, key)
    drop_revocation(s, row)


# ---------------------------------------------------------------- tasks


cdef void touch_task(LiveState *s, const Task *task) noexcept nogil:
    """Its agent is to hear of it, and who has a part of it: that may be anybody."""
    if task.delegable:
        touch_all(&s.touched, NEWS_TASK)
    else:
        touch_agent(&s.touched, task.agent, NEWS_TASK)


cdef void take_over(Task *task, Task *before, bint reset) noexcept nogil:
    """Go on with the account of the row before: what calls have spent meanwhile is known there alone."""
    cdef Account *made = task.account
    task.account, before.account = before.account, NULL
    if reset:
        memcpy(task.account.left, made.left, sizeof(made.left))
        memcpy(task.account.over, made.over, sizeof(made.over))
        memcpy(task.account.spent, made.spent, sizeof(made.spent))
    else:
        # A task's end never moves away: only what is shorter on both clocks is taken over.
        task.ends_boot_ns = min(task.ends_boot_ns, before.ends_boot_ns)
    account_drop(made)


cdef void put_task(LiveState *s, Change *change, int *failed) noexcept nogil:
    cdef Task *task = <Task *> change.row
    cdef Task *before = <Task *> rows_take(&s.tasks, 0, task.key.text)
    if before != NULL:
        if before.state == TASK_OPEN:
            unlink_open(s, before)
        take_over(task, before, change.reset)
        task.delegable = before.delegable
        touch_task(s, task)
    task.delegable |= task.max_depth > task.depth
    # Nobody has a part of a new one.
    touch_agent(&s.touched, task.agent, NEWS_TASK)
    task.account.living = task.state <= TASK_SUSPENDED
    failed[0] |= rows_add(&s.tasks, &task.key)
    if task.state == TASK_OPEN:
        failed[0] |= link_open(s, task)


cdef void put_state(LiveState *s, Text id_, int state, uint64_t rev, int *failed) noexcept nogil:
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, id_)
    if task == NULL:
        return
    if rev:
        task.rev = rev
    if task.state == state:
        return
    if task.state == TASK_OPEN:
        unlink_open(s, task)
    task.state = state
    touch_task(s, task)
    task.account.living = state <= TASK_SUSPENDED
    if state == TASK_OPEN:
        failed[0] |= link_open(s, task)


cdef void put_budget(LiveState *s, Text id_, const int64_t *delta) noexcept nogil:
    cdef Task *task = <Task *> rows_find(&s.tasks, 0, id_)
    cdef Account *account
    cdef int i
    if task == NULL:
        return
    account = task.account
    for i in range(<int> BUDGETS):
        if account.left[i] >= 0:
            move_left(account, i, delta[i])


cdef void forget_task(LiveState *s, Text id_) noexcept nogil:
    cdef Task *task = <Task *> rows_take(&s.tasks, 0, id_)
    if task == NULL:
        return
    if task.state == TASK_OPEN:
        unlink_open(s, task)
    if task.state <= TASK_SUSPENDED:
        touch_task(s, task)
    # Calls that can still be reported keep the account.
    task.account.living = 0
    account_drop(task.account)
    task.account = NULL


# ---------------------------------------------------------------- all of them


cdef void put_owner(LiveState *s, OwnerState *row, int *failed) noexcept nogil:
    if rows_find(&s.owners, 0, row.key.text) != NULL:
        free(row)
    else:
        failed[0] |= rows_add(&s.owners, &row.key)


cdef bint only_end(const Change *changes, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if changes[i].what != CHANGE_STATE or changes[i].state == TASK_OPEN:
            return False
    return True


cdef int link_ends(LiveState *s, Change *changes, size_t n) noexcept nogil:
    cdef size_t at = 0
    cdef size_t piece
    cdef int failed = 0
    while at < n:
        if at:
            # What was ended so far is seen by whoever comes in between.
            remit_store(&s.version, s.version + 1)
            pthread_mutex_unlock(&s.lock)
            sched_yield()
            pthread_mutex_lock(&s.lock)
        piece = min(<size_t> HOLD_CHANGES, n - at)
        failed |= link_changes(s, changes + at, piece)
        at += piece
    return failed


cdef int link_changes(LiveState *s, Change *changes, size_t n) noexcept nogil:
    """0, or 1 when memory ran out and the state is no longer what it should be."""
    cdef Change *change
    cdef int failed = 0
    cdef size_t i
    s.held_most = max(s.held_most, <uint64_t> n)
    for i in range(n):
        change = &changes[i]
        if change.what == CHANGE_TASK:
            put_task(s, change, &failed)
        elif change.what == CHANGE_STATE:
            put_state(s, change.key, change.state, change.rev, &failed)
        elif change.what == CHANGE_BUDGET:
            put_budget(s, change.key, change.delta)
        elif change.what == CHANGE_FORGET:
            forget_task(s, change.key)
        elif change.what == CHANGE_REVOKE:
            failed |= put_revocation(s, <Revocation *> change.row)
            touch_all(&s.touched, NEWS_REVOCATION)
        elif change.what == CHANGE_LIFT:
            lift_revocation(s, change.kind, change.key, change.state)
            touch_all(&s.touched, NEWS_REVOCATION)
        elif change.what == CHANGE_OWNER_OFF:
            put_owner(s, <OwnerState *> change.row, &failed)
            touch_all(&s.touched, NEWS_OWNER)
        elif change.what == CHANGE_OWNER_ON:
            free(rows_take(&s.owners, 0, change.key))
            touch_all(&s.touched, NEWS_OWNER)
        elif change.what == CHANGE_APPROVAL:
            failed |= link_approval(s, <Approval *> change.row)
        elif change.what == CHANGE_APPROVAL_GONE:
            unlink_approval(s, <Approval *> change.row)
    return failed


cdef void free_rows(LiveState *s) noexcept nogil:
    cdef size_t i
    for i in range(s.agents.size):
        free(s.agents.slots[i].row)
    for i in range(s.owners.size):
        free(s.owners.slots[i].row)
    for i in range(s.revocations.size):
        free(s.revocations.slots[i].row)
    rows_free(&s.tasks)
    rows_free(&s.agents)
    rows_free(&s.revocations)
    rows_free(&s.owners)
    rows_free(&s.approvals)
    rows_free(&s.approval_names)
