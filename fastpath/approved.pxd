"""Which approval a call may use: bound to a digest of what was approved."""
from fastpath.live_state cimport Approval, LiveState, Standing
from fastpath.request cimport Request
from fastpath.value cimport Arena
from fastpath.wire cimport Text
from libc.stdint cimport int64_t


# The digests of the call, once; false when there is no room for them.
cdef bint make_digests(const Request *request, Arena *arena, Standing *out) noexcept nogil
# Whether an approval of the caller is in force. Under the lock, as those below.
cdef bint has_approvals(LiveState *s, const Request *request) noexcept nogil
# Note in columns and `out` the approval that holds for the call, if one does; the digests were made before the lock.
cdef void fill_approval(LiveState *s, Request *request, Arena *arena, Standing *out) noexcept nogil
# The approval that the call was judged by, if it can still be used.
cdef Approval *approval_again(LiveState *s, const Standing *standing) noexcept nogil
# The approval in force that has this id, or NULL.
cdef Approval *approval_by_id(LiveState *s, Text id_) noexcept nogil
