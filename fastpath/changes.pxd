"""Changes of the control plane: prepared with Python, linked into the live state without."""
from fastpath.live_state cimport BUDGETS, LiveState, Revocation
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint32_t, uint64_t


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


cdef struct Change:          # one change, ready to be linked
    int what                 # ChangeKind
    void *row                # of a put: Task, Revocation, OwnerState or Approval
    Text key
    uint32_t kind            # RevocationKind of a lift
    int state                # TaskState, or RevocationMode of a lift
    uint64_t rev             # of a state: that of the task's row; 0: as it was
    bint reset               # a put task forgets what the one before it had spent
    int64_t delta[BUDGETS]


# A row with the texts of its own, given back by free; NULL when there is no memory.
cdef Revocation *new_revocation(uint32_t kind, Text key, Text reason) noexcept nogil
# Make all changes, under the lock; 0, or 1 when memory ran out and the state is no longer what it should be.
cdef int link_changes(LiveState *s, Change *changes, size_t n) noexcept nogil
# Whether the changes end tasks and do nothing else: a call that sees a part of them sees less, never more.
cdef bint only_end(const Change *changes, size_t n) noexcept nogil
# As link_changes, of changes that only end tasks: so many at a time, so that calls in between wait for few.
cdef int link_ends(LiveState *s, Change *changes, size_t n) noexcept nogil
# Give back the rows that are the state's own, at its end.
cdef void free_rows(LiveState *s) noexcept nogil
