"""What Envoy would pay if deciding cost nothing: the doors' own code around an answer that is always the same."""
from fastpath.call cimport Call, Pdp
from fastpath.decide cimport Peer
from fastpath.value cimport Arena
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t


# As fastpath.call.call_answer, but nothing is read, decided, recorded or counted.
cdef void call_answer(
    Pdp pdp, int door, Text message, const Peer *peer, int64_t now_ns, Arena *arena, uint8_t *reply, uint8_t *record,
    Call *c
) noexcept nogil
