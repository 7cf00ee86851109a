"""Where a call stands: what was revoked of it, which task covers it, who answers for it, who approved it."""
from fastpath.live_state cimport LiveState, Standing
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.value cimport Arena
from fastpath.wire cimport Text


# See where the call stands and fill the columns that policies of `t` or the record read. Uids of the request are
# resolved against `t`, and its destination is made `t`'s own.
cdef void authority_enter(
    LiveState *live, Request *request, Text credential, const Table *t, Arena *arena, Standing *out
) noexcept nogil
# Whether a caller that may only read may do this.
cdef bint authority_observes(const LiveState *live, const Request *request, const Table *t) noexcept nogil
