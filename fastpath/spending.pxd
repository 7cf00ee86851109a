"""What allowed calls spend: taken under the lock, given back, reported, done again from the journal."""
from fastpath.live_state cimport (
    BUDGETS,
    EVALUATION_BYTES,
    TASK_ID_MAX,
    Account,
    LiveState,
    Standing,
)
from fastpath.request cimport Request
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cpdef enum EffectKind:       # of remit.decisions.v1.Effect: what redo adds to the state
    EFFECT_CALLS = 1         # key: task; value: calls spent
    EFFECT_COST = 2
    EFFECT_BYTES = 3
    EFFECT_APPROVAL = 4      # key: approval; value: uses


cdef enum:
    SETTLED_MAX = 4


cdef struct Settled:         # what a report changes
    uint8_t kind             # EffectKind
    char key[TASK_ID_MAX]
    uint32_t key_n
    int64_t value


cdef struct Grounds:         # what an ALLOW rests on, for as long as it is remembered
    uint8_t any              # something that ends by itself; 0: nothing does, as of a DENY
    uint8_t settled          # it took something, which must not have been given back
    char evaluation[EVALUATION_BYTES]
    uint64_t sequence
    char task[TASK_ID_MAX]
    uint32_t task_n
    char approval[TASK_ID_MAX]
    uint32_t approval_n


# Room for the calls that can be reported; 0, or 1 when there is no memory.
cdef int reservations_open(LiveState *s) noexcept nogil
cdef void reservations_close(LiveState *s) noexcept nogil
# An account of nothing yet with one holder, or NULL; one holder less, and its end with the last of them.
cdef Account *account_new(Text task, Text agent) noexcept nogil
cdef void account_drop(Account *account) noexcept nogil
# Add to what is left. Below zero it is owed: no call may spend what only pays for an earlier one.
cdef void move_left(Account *account, int budget, int64_t amount) noexcept nogil

# Take what an allowed call costs: empty, or the reason why it may not be allowed after all.
cdef Text authority_take(
    LiveState *live, const Request *request, const char *evaluation, uint64_t sequence, Standing *standing
) noexcept nogil
# What authority_take would say now, and nothing taken.
cdef Text authority_would_take(LiveState *live, const Request *request, Standing *standing) noexcept nogil
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
# call, or no more. What is charged is so already, what comes back does with authority_settle: a crash in between, or a
# snapshot, then finds too much spent and never too little.
cdef int authority_close(
    LiveState *live, Text evaluation, Text agent, bint executed, int64_t cost, int64_t size, Settled *out
) noexcept nogil
# The changes stand in the journal.
cdef void authority_settle(LiveState *live, const Settled *changes, int n) noexcept nogil
# They could not be journaled: the report can be made again.
cdef void authority_reopen(LiveState *live, Text evaluation, const Settled *changes, int n) noexcept nogil
# Add what a record says to the state.
cdef void authority_redo(LiveState *live, const Settled *changes, int n) noexcept nogil
