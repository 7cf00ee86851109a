"""The canonical request at its start: nothing known, every column absent."""
from fastpath.columns cimport columns_absent
from fastpath.value cimport KIND_RECORD, arena_take
from fastpath.wire cimport text_of

from libc.string cimport memcpy, memset


cdef void request_init(Request *request) noexcept nogil:
    memset(request, 0, <char *> request.columns - <char *> request)
    columns_absent(request.columns)
    request.extras.kind = KIND_RECORD


cdef Text reason_named(const char *prefix, Text name, Arena *arena) noexcept nogil:
    cdef Text reason = text_of(prefix)
    cdef uint32_t n = name.n if name.n < REASON_NAME_MAX else REASON_NAME_MAX
    cdef char *room = <char *> arena_take(arena, reason.n + n)
    if room is NULL:
        return reason        # the arena is full: the call ends in ERROR whatever its reason
    memcpy(room, reason.p, reason.n)
    memcpy(room + reason.n, name.p, n)
    reason.p = room
    reason.n += n
    return reason
