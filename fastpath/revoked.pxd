"""What was revoked of a call: its agent, class, task, tool, server, destination, credential, owner, trust domain."""
from fastpath.live_state cimport LiveState, Standing
from fastpath.request cimport Request
from fastpath.rows cimport Table
from fastpath.value cimport Arena, Uid
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint32_t


# Under the lock; each notes what it finds in `out`: the refusal, or the modes that the call is under.
cdef void revoked_call(
    LiveState *s, const Request *request, Text credential, const Table *t, int64_t now, Arena *arena,
    Standing *out
) noexcept nogil
cdef void revoked_key(LiveState *s, uint32_t kind, Text key, int64_t now, Arena *arena, Standing *out) noexcept nogil
# An agent that delegated, and may do nothing any more, takes what it delegated with it; so does its owner.
cdef void revoked_above(
    LiveState *s, Text agent, Text owner, const Request *request, const Table *t, int64_t now, Arena *arena,
    Standing *out
) noexcept nogil
# Whether `uid`, which is resolved, is the group or in it.
cdef bint in_group(const Table *t, const Uid *uid, const Uid *group) noexcept nogil
