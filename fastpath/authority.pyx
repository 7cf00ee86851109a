"""What the control plane says of authority, in and out of the live state that calls are decided on.

It changes the state under one lock after its own store is durable; a call takes the same lock twice, to see where it
stands (standing.pyx) and, when it is allowed, to take what it costs (spending.pyx). So a call that starts after a
change was acknowledged sees it, and two calls never spend the same budget or use the same approval.
"""
cimport cython
from fastpath.bells cimport NEWS_APPROVAL, NEWS_OWNER, NEWS_REVOCATION, NEWS_TASK, Bells, Touched, bells_ring, touch_all
from fastpath.c.pthread cimport pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from fastpath.changes cimport (
    CHANGE_APPROVAL,
    CHANGE_APPROVAL_GONE,
    CHANGE_BUDGET,
    CHANGE_FORGET,
    CHANGE_LIFT,
    CHANGE_NOTHING,
    CHANGE_OWNER_OFF,
    CHANGE_OWNER_ON,
    CHANGE_REVOKE,
    CHANGE_STATE,
    CHANGE_TASK,
    Change,
    free_rows,
    link_changes,
    link_ends,
    new_revocation,
    only_end,
)
from fastpath.live_state cimport (
    APPROVAL_CLASS,
    APPROVAL_EXACT,
    BUDGETS,
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
    SECOND_NS,
    TASK_ID_MAX,
    Account,
    AgentTasks,
    OwnerState,
    Revocation,
    authority_epoch,
    ends_at, surely_ends_at,
    live_boot_ns,
    live_now,
    remaining,
    remit_store,
)
from fastpath.rowmap cimport rows_find
from fastpath.spending cimport (
    EFFECT_APPROVAL,
    EFFECT_CALLS,
    Settled,
    account_drop,
    account_new,
    authority_redo,
    reservations_close,
    reservations_open,
)
from fastpath.step_ups cimport step_up_of, step_ups_free, step_ups_new
from fastpath.value cimport UID_UNKNOWN, Uid, uid_hash
from fastpath.wire cimport Text, text_equal, text_of
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastpath.errors import ProtocolError

STATES = ("open", "suspended", "completed", "cancelled", "expired", "revoked")
KINDS = {
    "agent": REVOKED_AGENT, "class": REVOKED_CLASS, "task": REVOKED_TASK, "tool": REVOKED_TOOL,
    "server": REVOKED_SERVER, "destination": REVOKED_DESTINATION, "credential": REVOKED_CREDENTIAL,
    "owner": REVOKED_OWNER, "trust_domain": REVOKED_TRUST_DOMAIN,
}
AXES = tuple((name, f"spent_{name}", f"over_{name}") for name in ("calls", "cost", "bytes"))
MODES_BY_NAME = {"deny": MODE_DENY, "read_only": MODE_READ_ONLY, "step_up": MODE_STEP_UP}


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
        self.task.rev = data.get("rev", 0)
        self.task.expires_unix_ns = data["expires_unix_ns"]
        self._account(data)

    def __dealloc__(self):
        # INVARIANT (accounts): the account of a row that calls can see changes under the lock alone. A row that is let
        # go of was replaced, and has none any more, or was never linked, or goes with the whole state.
        account_drop(self.task.account)
        free(self.task.person)

    cdef int _account(self, dict data) except -1:
        cdef Account *account = account_new(self.task.key.text, self.task.agent)
        if account == NULL:
            raise MemoryError
        self.task.account = account
        for i, (left, spent, over) in enumerate(AXES):
            account.left[i] = data[left]
            account.spent[i] = data.get(spent, 0)
            account.over[i] = data.get(over, 0)
        return 0


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
        self.approval.agent = _borrow(kept, data["agent"])
        self.approval.max_level, self.approval.max_cost = data["data_level"], data["cost"]
        self._read_labels(kept, data["data_labels"])
        self.approval.task = _borrow(kept, data.get("task") or "")
        self.kept = tuple(kept)
        self.approval.uses = data["uses"]
        self.approval.generation = data.get("generation", 0)
        self.approval.expires_unix_ns = data["expires_unix_ns"]
        self.approval.decided_unix_ns = data["decided_unix_ns"]
        self.approval.self_approved = data.get("self_approved", False)
        self.approval.break_glass = data.get("break_glass", False)

    cdef int _read_labels(self, list kept, object labels) except -1:
        cdef bytearray room = bytearray(max(1, len(labels)) * sizeof(Text))
        kept.append(room)
        self.approval.labels = <Text *> <char *> room
        for label in labels:
            self.approval.labels[self.approval.label_count] = _borrow(kept, label)
            self.approval.label_count += 1
        return 0


cdef struct Linking:
    Change *changes
    size_t n


cdef void take_touched(LiveState *s, Touched *out) noexcept nogil:
    """Whom the changes concern that were just linked. Under the lock."""
    out[0] = s.touched
    memset(&s.touched, 0, sizeof(Touched))


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
            if self.rows[i].what == CHANGE_REVOKE or self.rows[i].what == CHANGE_OWNER_OFF:
                free(self.rows[i].row)
        free(self.rows)

    cdef int _read(self, Change *change, str name, data) except -1:
        if name == "task":
            self._read_task(change, data)
        elif name == "state":
            change.what, change.key = CHANGE_STATE, _borrow(self.kept, data["id"])
            change.state, change.rev = STATES.index(data["state"]), data.get("rev", 0)
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
        cdef TaskRow before = self.live._tasks.get(data["id"])
        if before is not None and not (
            text_equal(task.task.agent, before.task.agent) and text_equal(task.task.parent, before.task.parent)
        ):
            # Whose calls an account is charged for, and who pays after it, never changes.
            raise ProtocolError(f"task: `{data['id']}` has another agent or parent already")
        task.task.person = _new_uid(self.live.state.person_type, task.task.owner)
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
        if mode == MODE_STEP_UP:
            row.step_up_unix_ns = data.get("revoked_unix_ns", 0)
        row.until_unix_ns[mode] = row.until_boot_ns[mode] = data.get("expires_unix_ns") or INT64_MAX
        if "left_ns" in data:
            row.until_boot_ns[mode] = live_boot_ns(self.live.state) + <int64_t> data["left_ns"]
        elif row.until_unix_ns[mode] != INT64_MAX:
            row.until_boot_ns[mode] = surely_ends_at(self.live.state, row.until_unix_ns[mode])
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

    def __cinit__(self, *, str namespace="", reserve_s=300, followed=False):
        cdef LiveState *s = <LiveState *> calloc(1, sizeof(LiveState))
        self.state = s
        self._tasks, self._approvals, self._kept = {}, {}, []
        self._namespace = namespace
        if s == NULL or pthread_mutex_init(&s.lock, NULL):
            raise MemoryError
        prefix = f"{namespace}::" if namespace else ""
        s.step_ups = step_ups_new()
        if s.step_ups == NULL or reservations_open(s):
            raise MemoryError
        s.reserve_ns = <int64_t> reserve_s * SECOND_NS
        s.followed = followed
        s.person_type = _borrow(self._kept, f"{prefix}Person")
        s.action_type = _borrow(self._kept, f"{prefix}Action")
        s.class_type = _borrow(self._kept, f"{prefix}AgentClass")
        s.server_type = _borrow(self._kept, f"{prefix}Server")
        s.observe = _new_uid(s.action_type, text_of(b"observe"))

    def __dealloc__(self):
        cdef LiveState *s = self.state
        if s == NULL:
            return
        free_rows(s)
        reservations_close(s)
        step_ups_free(s.step_ups)
        free(s.observe)
        pthread_mutex_destroy(&s.lock)
        free(s)

    cdef int listen(self, Bells bells) except -1:
        """Ring these bells from now on; all of it may be new to those who listen."""
        cdef Touched touched
        memset(&touched, 0, sizeof(Touched))
        for news in (NEWS_REVOCATION, NEWS_TASK, NEWS_OWNER, NEWS_APPROVAL):
            touch_all(&touched, news)
        self._bells = bells
        bells_ring(&bells.table, &touched)
        return 0

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
        cdef Bells bells = self._bells
        cdef bint has_bells = bells is not None
        cdef Touched touched
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
                    if n == 1 and only_end(all_[i].changes, all_[i].n):
                        failed |= link_ends(self.state, all_[i].changes, all_[i].n)
                    else:
                        failed |= link_changes(self.state, all_[i].changes, all_[i].n)
                remit_store(&self.state.version, self.state.version + 1)
                remit_store(&self.state.epoch, number)
                take_touched(self.state, &touched)
                pthread_mutex_unlock(&self.state.lock)
                if has_bells:
                    bells_ring(&bells.table, &touched)
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
        cdef LiveState *s = self.state
        cdef int64_t ahead = <int64_t> unix_ns - live_boot_ns(s)
        pthread_mutex_lock(&s.lock)
        s.unix_ahead_ns = ahead if s.followed else max(ahead, s.unix_ahead_ns)
        pthread_mutex_unlock(&s.lock)

    # ------------------------------------------------------------ what calls did

    @property
    def epoch(self):
        return authority_epoch(self.state)

    def counts(self):
        cdef LiveState *s = self.state
        return {
            "tasks": s.tasks.used, "revocations": s.revocations.used, "owners": s.owners.used,
            "approvals": s.approvals.used,
        }

    def work(self):
        return {"steps": self.state.steps, "held_most": self.state.held_most}

    def open_tasks(self, str agent not None):
        cdef list kept = []
        cdef Text id_ = _borrow(kept, agent)
        cdef const AgentTasks *found
        cdef uint32_t n
        pthread_mutex_lock(&self.state.lock)
        found = <const AgentTasks *> rows_find(&self.state.agents, 0, id_)
        n = found.open if found != NULL else 0
        pthread_mutex_unlock(&self.state.lock)
        return n

    def task(self, str id_ not None):
        cdef bytes key = id_.encode()
        cdef Text text
        cdef Task task
        cdef Account account
        cdef const Task *found
        cdef int64_t now, boot
        text.p, text.n = key, <uint32_t> len(key)
        pthread_mutex_lock(&self.state.lock)
        now = live_now(self.state, &boot)
        found = <const Task *> rows_find(&self.state.tasks, 0, text)
        if found != NULL:
            task, account = found[0], found.account[0]
        pthread_mutex_unlock(&self.state.lock)
        if found == NULL:
            return None
        return {
            "id": id_, "state": STATES[task.state],
            "calls": account.left[0], "cost": account.left[1], "bytes": account.left[2],
            "spent_calls": account.spent[0], "spent_cost": account.spent[1], "spent_bytes": account.spent[2],
            "over_calls": account.over[0], "over_cost": account.over[1], "over_bytes": account.over[2],
            "ttl_ns": max(<int64_t> 0, remaining(task.expires_unix_ns, task.ends_boot_ns, now, boot)),
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
        cdef list spent = []
        cdef int64_t *numbers = <int64_t *> calloc(BUDGETS * len(tasks) + 1, sizeof(int64_t))
        cdef int64_t *uses = <int64_t *> calloc(len(approvals) + 1, sizeof(int64_t))
        cdef uint8_t *there = <uint8_t *> calloc(len(tasks) + 1, 1)
        cdef const Task *found
        cdef size_t i
        if numbers == NULL or uses == NULL or there == NULL:
            free(numbers)
            free(uses)
            free(there)
            raise MemoryError
        pthread_mutex_lock(&self.state.lock)
        for i, task in enumerate(tasks):
            found = &task.task
            if found.account == NULL:
                # Replaced by a change that is in force and not yet among `_tasks`.
                found = <const Task *> rows_find(&self.state.tasks, 0, found.key.text)
            if found != NULL:
                there[i] = 1
                memcpy(numbers + BUDGETS * i, found.account.spent, BUDGETS * sizeof(int64_t))
        for i, approval in enumerate(approvals):
            uses[i] = approval.approval.uses
        pthread_mutex_unlock(&self.state.lock)
        for i, task in enumerate(tasks):
            if there[i]:
                spent.append((
                    _str(task.task.key.text), numbers[BUDGETS * i], numbers[BUDGETS * i + 1], numbers[BUDGETS * i + 2]
                ))
        used = [(_str((<ApprovalRow> row).approval.id), uses[i]) for i, row in enumerate(approvals)]
        free(numbers)
        free(uses)
        free(there)
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
        return step_up_of(self.state, evaluation_id.encode())
