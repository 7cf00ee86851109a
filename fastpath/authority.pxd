"""The live view of authority: tasks, revocations, owners and approvals, read and charged by every decision.

The control plane changes it under one lock after its own store is durable; a call takes the same lock twice, to see
where it stands and, when it is allowed, to take what it costs. So a call that starts after a change was acknowledged
sees it, and two calls never spend the same budget or use the same approval.
"""
from fastpath.c.pthread cimport pthread_mutex_t
from fastpath.request cimport Request
from fastpath.rowmap cimport RowKey, RowMap
from fastpath.scope cimport Scope, ScopeRow
from fastpath.rows cimport Table
from fastpath.value cimport Arena, Uid
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    CHAIN_MAX = 8            # tasks from a call's own up to the root
    TASK_ID_MAX = 64         # bytes of an id of a task or an approval
    EVALUATION_BYTES = 32
    AGENT_BYTES_MAX = 512    # of a SPIFFE ID that is compared; a longer one reports nothing
    SETTLED_MAX = 4


cdef enum Budget:
    BUDGET_CALLS = 0
    BUDGET_COST = 1
    BUDGET_BYTES = 2
    BUDGETS = 3


cpdef enum EffectKind:       # of remit.decisions.v1.Effect: what redo adds to the state
    EFFECT_CALLS = 1         # key: task; value: calls spent
    EFFECT_COST = 2
    EFFECT_BYTES = 3
    EFFECT_APPROVAL = 4      # key: approval; value: uses


cdef enum TaskState:
    TASK_OPEN = 0
    TASK_SUSPENDED = 1
    TASK_COMPLETED = 2
    TASK_CANCELLED = 3
    TASK_EXPIRED = 4
    TASK_REVOKED = 5


cdef enum RevocationKind:
    REVOKED_AGENT = 1
    REVOKED_CLASS = 2
    REVOKED_TASK = 3
    REVOKED_TOOL = 4
    REVOKED_SERVER = 5
    REVOKED_DESTINATION = 6
    REVOKED_CREDENTIAL = 7
    REVOKED_OWNER = 8
    REVOKED_TRUST_DOMAIN = 9
    REVOCATION_KINDS = 10


cdef enum RevocationMode:
    MODE_DENY = 0
    MODE_READ_ONLY = 1
    MODE_STEP_UP = 2
    MODES = 3


cdef struct Task:
    RowKey key               # its id
    Text agent               # SPIFFE ID that it is bound to
    Text owner               # id of the Person who answers for it
    Text purpose
    Text parent              # id of the task that it was delegated from, or empty
    Text origin
    uint8_t state            # TaskState
    uint8_t attenuated
    uint8_t on_behalf
    uint32_t depth
    uint32_t max_depth
    int64_t expires_unix_ns
    int64_t ends_boot_ns     # the same moment on the clock that nobody sets
    int64_t left[BUDGETS]    # -1: unlimited
    int64_t over[BUDGETS]    # spent beyond what there was: what comes back pays it first
    int64_t spent[BUDGETS]   # by calls of its own; grows but for what is released
    Scope *scope
    Task *next               # open tasks of the same agent


cdef struct AgentTasks:
    RowKey key               # SPIFFE ID
    Task *first


cdef struct Revocation:      # followed by the text of key and reason
    RowKey key
    int64_t until_unix_ns[MODES]   # 0: not in this mode; INT64_MAX: until lifted
    Text reason
    Uid *uid                 # of kinds that hold groups: class, server
    Revocation *next         # of those


cdef struct OwnerState:      # followed by the text
    RowKey key


cdef struct Approval:
    RowKey key               # digest of the action, kind APPROVAL_EXACT or APPROVAL_CLASS
    uint8_t digest[32]
    Text id
    Text task                # empty: of any task of the agent
    int64_t uses             # left
    int64_t expires_unix_ns
    int64_t ends_boot_ns
    int64_t decided_unix_ns
    uint8_t self_approved
    uint8_t break_glass
    Approval *next           # for the same digest


cdef struct Settled:         # what a report changes; to be journaled before it is applied
    uint8_t kind             # EffectKind
    char key[TASK_ID_MAX]
    uint32_t key_n
    int64_t value


cdef struct Reservation:     # what an allowed call took, until Report or the deadline settles it
    char evaluation[EVALUATION_BYTES]
    Text task                # points to task_text
    char task_text[TASK_ID_MAX]
    Text approval
    char approval_text[TASK_ID_MAX]
    Text agent               # who made the call, points to agent_text
    char agent_text[AGENT_BYTES_MAX]
    uint8_t of_envoy         # an Envoy asked: it alone knows what became of the call
    int64_t took[BUDGETS]
    int64_t deadline_boot_ns
    uint8_t open


cdef struct StepUp           # authority.pyx


cdef struct Change:          # one change of the control plane, ready to be linked without Python
    int what                 # ChangeKind (authority.pyx)
    void *row                # of a put: Task, Revocation, OwnerState or Approval
    Text key
    uint32_t kind            # RevocationKind of a lift
    int state                # TaskState, or RevocationMode of a lift
    bint reset               # a put task forgets what the one before it had spent
    int64_t delta[BUDGETS]


cdef struct LiveState:
    pthread_mutex_t lock
    uint64_t epoch           # atomic: read without the lock by whoever only compares
    RowMap tasks             # Task by id
    RowMap agents            # AgentTasks by SPIFFE ID
    RowMap revocations       # Revocation by kind and key
    RowMap owners            # OwnerState: inactive ones
    RowMap approvals         # Approval by kind and digest
    uint64_t revoked[REVOCATION_KINDS]   # how many of each kind
    Revocation *groups       # those of classes and servers
    Reservation *reservations
    StepUp *step_ups
    uint64_t step_up_count   # atomic
    int64_t reserve_ns       # after it a reservation counts as spent
    int64_t now_boot_ns      # injected by tests; 0: read the clock
    int64_t now_unix_ns
    int64_t unix_floor_ns    # the latest wall clock ever seen: a clock set back makes nothing younger
    int64_t fresh_until_ns   # boot clock; after it followed state is stale; 0: our own state, always fresh
    Text person_type
    Text action_type
    Text class_type
    Text server_type
    Uid *observe             # Action::"observe": what a read-only caller may do


cdef struct Standing:        # where one call stands; texts in its arena or static
    int64_t boot_ns          # the clocks that the call was judged by
    int64_t unix_ns
    uint8_t enforced
    uint64_t epoch           # of the very state that was seen
    const LiveState *live    # NULL: no authority is enforced, and all else is empty
    Text refusal             # no decision is needed: DENY with this reason, or ERROR
    uint8_t refusal_is_ours
    Text task_fault          # why no task covers the call; empty: one does
    Text owner_fault
    uint8_t read_only
    uint8_t step_up
    uint8_t approved
    uint8_t break_glass
    Text approval
    Text task                # id of the task in force
    Text chain[CHAIN_MAX]    # SPIFFE IDs, outermost first; in the arena
    uint32_t chain_count
    Text remediation         # revocation in force and its cause
    uint8_t has_digest
    uint8_t digest[32]
    uint8_t class_digest[32]
    int64_t took[BUDGETS]    # by authority_take
    uint8_t settled          # the call took what it costs: the record must say so


cdef struct Grounds:         # what an ALLOW rests on, for as long as it is remembered
    uint8_t any              # something that ends by itself; 0: nothing does, as of a DENY
    uint8_t settled          # it took something, which must not have been given back
    char evaluation[EVALUATION_BYTES]
    uint64_t sequence
    char task[TASK_ID_MAX]
    uint32_t task_n
    char approval[TASK_ID_MAX]
    uint32_t approval_n


# Rows hold texts alone, in tuples: nothing for the collector of cycles, which would go through every open task.
cdef class TaskRow:
    cdef Task task
    cdef ScopeRow scope
    cdef tuple kept


cdef class ApprovalRow:
    cdef Approval approval
    cdef tuple kept


cdef class Live:
    cdef LiveState *state
    cdef dict _tasks         # id: TaskRow
    cdef dict _approvals     # id: ApprovalRow
    cdef list _kept
    cdef str _namespace


cdef class Changes:          # read, and not in force yet; they own their rows until then
    cdef Live live
    cdef Change *rows
    cdef size_t n
    cdef bint taken          # put, or tried to
    cdef list kept           # texts that rows borrow until they are linked
    cdef list tasks          # (id, TaskRow, or None of one that is forgotten)
    cdef list approvals      # (place in rows, id, ApprovalRow, or None of one that is taken out)
    cdef int _read(self, Change *change, str name, data) except -1
    cdef int _read_task(self, Change *change, data) except -1
    cdef int _read_revocation(self, Change *change, data) except -1
    cdef int _read_owner(self, Change *change, data) except -1
    cdef int _read_approval(self, Change *change, data) except -1
    cdef int resolve(self, Live live, dict approvals) except -1


cdef uint64_t authority_epoch(const LiveState *live) noexcept nogil
# See where the call stands and fill its columns. Uids of the request are resolved against `t`.
cdef void authority_enter(
    LiveState *live, Request *request, Text credential, const Table *t, Arena *arena, Standing *out
) noexcept nogil
# Whether a caller that may only read may do this.
cdef bint authority_observes(const LiveState *live, const Request *request, const Table *t) noexcept nogil
# Take what an allowed call costs: empty, or the reason why it may not be allowed after all.
cdef Text authority_take(
    LiveState *live, const Request *request, const char *evaluation, uint64_t sequence, Standing *standing
) noexcept nogil
# Note what an ALLOW rests on.
cdef void authority_ground(
    const char *evaluation, uint64_t sequence, const Standing *standing, Grounds *out
) noexcept nogil
# Whether it still does: what ends by the clock moves no epoch.
cdef bint authority_holds(LiveState *live, const Grounds *grounds) noexcept nogil
# Give back what authority_take took: the call is not answered ALLOW.
cdef void authority_release(LiveState *live, const char *evaluation, uint64_t sequence) noexcept nogil
# Close the reservation of an allowed call that `agent` asked for itself (empty: that an Envoy asked for) and say in
# `out` what that changes, -1 for a cost or size that is not known; the number of changes, or -1 when there is no such
# call, or no more.
cdef int authority_close(
    LiveState *live, Text evaluation, Text agent, bint executed, int64_t cost, int64_t size, Settled *out
) noexcept nogil
# Open it again: what was closed could not be journaled.
cdef void authority_reopen(LiveState *live, Text evaluation) noexcept nogil
# Add what a record says to the state.
cdef void authority_redo(LiveState *live, const Settled *changes, int n) noexcept nogil
# Remember a STEP_UP, so that an approval can be asked for by its evaluation id; with `emergency` a DENY that only an
# emergency approval crosses.
cdef void authority_note_step_up(
    LiveState *live, const Request *request, const char *evaluation, uint64_t sequence, Text reason, bint emergency,
    Arena *arena, Standing *standing
) noexcept nogil
