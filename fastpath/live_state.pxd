"""The live state of authority: what the control plane changes and calls read and charge, all under one lock.

Rows are what the control plane said last; it replaces them whole. An account is what the calls of one task spent, and
stays while such a call can be reported, whatever becomes of the row.
"""
from fastpath.bells cimport Touched
from fastpath.c.pthread cimport pthread_mutex_t
from fastpath.rowmap cimport RowKey, RowMap
from fastpath.scope cimport Scope
from fastpath.value cimport Arena, Cell, Uid, arena_take, uid_id
from fastpath.request cimport Request
from fastpath.wire cimport Text, text_of
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

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
    CHAIN_MAX = 8            # tasks from a call's own up to the root
    TASK_ID_MAX = 64         # bytes of an id of a task or an approval
    EVALUATION_BYTES = 32
    BOOT_BYTES = 16          # of it; the rest is the number of the call
    SECOND_NS = 1000000000


cdef enum Budget:
    BUDGET_CALLS = 0
    BUDGET_COST = 1
    BUDGET_BYTES = 2
    BUDGETS = 3


cdef enum TaskState:
    TASK_OPEN = 0
    TASK_SUSPENDED = 1       # up to here it has an account that can be charged
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


cdef enum ApprovalScope:     # kinds of an approval's key
    APPROVAL_EXACT = 1
    APPROVAL_CLASS = 2


cdef struct Account:         # both texts follow it
    Text task                # id of the task; empty: of calls that need none
    Text agent               # SPIFFE ID of whose calls these are
    Account *above           # of the task that it was delegated from; NULL: none, or no call was made yet
    uint32_t refs            # its task's row, calls that can be reported, accounts below
    uint8_t living           # its task is open or suspended: what comes late is charged here
    int64_t left[BUDGETS]    # -1: unlimited
    int64_t over[BUDGETS]    # spent beyond what there was: what comes back pays it first
    int64_t spent[BUDGETS]   # grows but for what is released


cdef struct Owners:          # who answers for a caller and for its task, by one table
    uint64_t table           # its serial; 0: not looked for yet
    uint32_t agent           # row of the caller
    uint8_t agent_owned      # the caller is in the store and names an owner
    uint8_t agent_active     # and that person is there, and did not leave
    uint8_t person_active    # the same of the task's owner
    const Uid *agent_owner   # in the table
    const Uid *person        # the task's owner: in the table when that has it


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
    uint8_t delegable        # some row of it let it have children: their agents stand on it too
    uint64_t rev             # of its row in the store
    int64_t expires_unix_ns
    int64_t ends_boot_ns     # the same moment on the clock that nobody sets
    Account *account         # NULL: the row was replaced or forgotten
    Scope *scope
    Uid *person              # the owner's uid, not resolved
    Owners owners            # found by the last call
    Task *next               # open tasks of the same agent
    Task *previous
    uint8_t listed           # it is among them


cdef struct AgentTasks:      # what is in force of one agent
    RowKey key               # SPIFFE ID
    Task *first              # its open tasks
    uint32_t open
    uint32_t approvals


cdef struct Revocation:      # followed by the text of key and reason
    RowKey key
    int64_t until_unix_ns[MODES]   # 0: not in this mode; INT64_MAX: until lifted
    int64_t until_boot_ns[MODES]   # the same moment on the clock that nobody sets; it ends when both have reached it
    int64_t step_up_unix_ns        # when it was last made in that mode
    Text reason


cdef struct OwnerState:      # followed by the text
    RowKey key


cdef struct ApprovalName:
    RowKey key               # id of an approval
    Approval *approval


cdef struct Approval:
    RowKey key               # digest of the action, kind ApprovalScope
    ApprovalName name        # the same row by its id
    uint8_t digest[32]
    Text id
    Text agent
    Text task                # empty: for calls of no task
    uint64_t generation      # of the policies that asked for it; 0: of any
    # What was shown to whoever approved: a call that asks for more is not covered.
    int64_t max_level
    int64_t max_cost
    Text *labels
    uint32_t label_count
    int64_t uses             # left
    int64_t expires_unix_ns
    int64_t ends_boot_ns
    int64_t decided_unix_ns
    uint8_t self_approved
    uint8_t break_glass
    Approval *next           # for the same digest


cdef struct Reservation:     # one cache line: every allowed call writes one that left the cache long ago
    uint64_t sequence
    char boot[BOOT_BYTES]
    Account *account         # who pays, and whose call it was; NULL: never used
    int64_t cost
    int64_t size
    int64_t deadline_boot_ns
    uint8_t calls
    uint8_t open
    uint8_t of_envoy         # an Envoy asked: it alone knows what became of the call
    uint8_t approval_n       # of the text in LiveState.reserved_approvals


cdef struct LiveState:
    pthread_mutex_t lock
    uint64_t epoch           # atomic: read without the lock by whoever only compares
    # Atomic. Of all rows: grows whenever some are linked or changed, also by what has no epoch of its own, so that
    # equal versions are the same rows in the same states.
    uint64_t version
    RowMap tasks             # Task by id
    RowMap agents            # AgentTasks by SPIFFE ID
    RowMap revocations       # Revocation by kind and key
    RowMap owners            # OwnerState: inactive ones
    RowMap approvals         # Approval by kind and digest
    RowMap approval_names    # ApprovalName by id
    uint64_t revoked[REVOCATION_KINDS]   # how many of each kind
    Reservation *reservations
    char *reserved_approvals   # TASK_ID_MAX bytes beside each
    int64_t reserve_ns       # after it a reservation counts as spent
    int64_t now_boot_ns      # injected by tests; 0: read the clock
    int64_t now_unix_ns
    # How far the wall clock was ever ahead of the one that nobody sets; of followed state: how far the other one's is.
    int64_t unix_ahead_ns
    uint8_t followed         # the rows are another sidecar's, and so is what ends them
    int64_t fresh_until_ns   # boot clock; after it followed state is stale; 0: our own state, always fresh
    void *step_ups           # step_ups.pyx; under a lock of its own
    Touched touched          # by the change under way
    Text person_type
    Text action_type
    Text class_type
    Text server_type
    Uid *observe             # Action::"observe": what a read-only caller may do
    # Work under the lock, for tests: nothing that a caller can make many of may make a call or a change walk far.
    uint64_t steps           # rows that were walked, or looked up one by one for a uid and its ancestors
    uint64_t held_most       # most changes in one hold


cdef struct Standing:        # where one call stands; texts in its arena or static
    int64_t boot_ns          # the clocks that the call was judged by
    int64_t unix_ns
    uint8_t enforced
    uint64_t epoch           # of the very state that was seen
    uint64_t generation      # of the policies that the call is judged by
    uint64_t version
    const LiveState *live    # NULL: no authority is enforced, and all else is empty
    Text refusal             # no decision is needed: DENY with this reason, or ERROR
    uint8_t refusal_is_ours
    Text task_fault          # why no task covers the call; empty: one does
    Text owner_fault
    uint8_t read_only
    uint8_t step_up
    int64_t step_up_unix_ns  # what was approved before was approved without knowing of it
    uint8_t approved
    uint8_t break_glass
    Text approval
    Text task                # id of the task in force
    uint64_t task_rev        # of its row in the store; 0: not known
    # INVARIANT (same version): these rows are there while the state's version is still `version`, and only then.
    const Task *task_row
    Approval *approval_row
    Text chain[CHAIN_MAX]    # SPIFFE IDs, outermost first
    uint32_t chain_count
    Text credential          # serial of the principal's certificate that an Envoy passed on; empty: not readable
    uint8_t serial_read      # which is done when some credential is revoked
    Text remediation         # revocation in force and its cause
    uint8_t has_digest
    uint8_t digest[32]
    uint8_t class_digest[32]
    int64_t took[BUDGETS]    # by authority_take
    uint8_t settled          # the call took what it costs: the record must say so


# ---------------------------------------------------------------- texts


cdef inline Cell *column(Request *request, int at) noexcept nogil:
    return request.columns + at


cdef inline Text id_of(const Uid *uid) noexcept nogil:
    cdef Text text
    text.p, text.n = uid_id(uid), uid.id_len
    return text


cdef inline Text kept(Text text, Arena *arena) noexcept nogil:
    """A copy in the arena: what the lock guards may be gone when the call reads it. Empty when there is no room."""
    cdef Text copy
    copy.p, copy.n = NULL, 0
    if text.n:
        copy.p = <const char *> arena_take(arena, text.n)
        if copy.p != NULL:
            memcpy(<void *> copy.p, text.p, text.n)
            copy.n = text.n
    return copy


# ---------------------------------------------------------------- clocks


cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <int64_t> SECOND_NS * now.tv_sec + now.tv_nsec


cdef inline int64_t live_boot_ns(const LiveState *s) noexcept nogil:
    return s.now_boot_ns if s.now_boot_ns else clock_ns(CLOCK_BOOTTIME)


cdef inline int64_t live_now(LiveState *s, int64_t *boot_ns) noexcept nogil:
    """The wall clock, never earlier than it was before and what has passed since, and that other clock.

    Of followed state: never earlier than what the other side said last and what has passed since. When our own clock
    was ahead for a while, nothing is over that is not over there.
    """
    cdef int64_t wall = s.now_unix_ns if s.now_unix_ns else clock_ns(CLOCK_REALTIME)
    # Read behind the wall clock: a pause between both must not put it ahead.
    boot_ns[0] = live_boot_ns(s)
    if s.followed:
        return max(wall, boot_ns[0] + s.unix_ahead_ns)
    s.unix_ahead_ns = max(s.unix_ahead_ns, wall - boot_ns[0])
    return boot_ns[0] + s.unix_ahead_ns


cdef inline int64_t remaining(
    int64_t expires_unix_ns, int64_t ends_boot_ns, int64_t unix_now, int64_t boot_now
) noexcept nogil:
    """By whichever clock says that less is left."""
    return min(expires_unix_ns - unix_now, ends_boot_ns - boot_now)


cdef inline int64_t ends_at(LiveState *s, int64_t expires_unix_ns) noexcept nogil:
    """The moment on the boot clock that the wall clock calls `expires_unix_ns`, by what both say now.

    Of followed state that is live_now's alone: what our own clock says at this moment may be wrong by the next.
    """
    cdef int64_t now
    cdef int64_t left = expires_unix_ns - live_now(s, &now)
    if s.followed:
        return INT64_MAX
    return INT64_MAX if left > INT64_MAX - now else now + left


cdef inline int64_t surely_ends_at(LiveState *s, int64_t expires_unix_ns) noexcept nogil:
    """The same by what the wall clock says now, whatever it said before: for what takes authority away."""
    cdef int64_t left = expires_unix_ns - (s.now_unix_ns if s.now_unix_ns else clock_ns(CLOCK_REALTIME))
    cdef int64_t now = live_boot_ns(s)
    return INT64_MAX if left > INT64_MAX - now else now + left


cdef inline uint64_t authority_epoch(const LiveState *live) noexcept nogil:
    return remit_load(&live.epoch)


cdef inline uint64_t authority_changes(const LiveState *live) noexcept nogil:
    """Another number after every change. Of one view it never repeats; an epoch may stand still or agree late."""
    return remit_load(&live.version)


# ---------------------------------------------------------------- tasks


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


cdef inline Text hop_fault(const Task *task, int64_t ttl_ns) noexcept nogil:
    """Why a task of a chain does not stand, by itself; empty: it does."""
    if task.state != TASK_OPEN:
        return state_fault(task.state)
    return text_of(b"") if ttl_ns > 0 else text_of(b"task.expired")
