"""Stands in for fastpath.call in a door: `install` before fastpath.answers is imported, which takes it from there."""
from fastpath.call cimport CALL_REPLY_BYTES, Call, Pdp
from fastpath.decide cimport Peer
from fastpath.value cimport Arena
from fastpath.wire cimport Text, out_raw
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

import sys

cdef bytes _answer = b""
cdef const uint8_t *_p = NULL
cdef size_t _n = 0


cdef void call_answer(
    Pdp pdp, int door, Text message, const Peer *peer, int64_t now_ns, Arena *arena, uint8_t *reply, uint8_t *record,
    Call *c
) noexcept nogil:
    memset(c, 0, sizeof(Call))
    c.reply.p, c.reply.cap = reply, CALL_REPLY_BYTES
    out_raw(&c.reply, _p, _n)


def install(bytes answer not None):
    """Every native door of this process answers `answer` from now on."""
    global _answer, _p, _n
    if "fastpath.answers" in sys.modules:
        raise RuntimeError("fastpath.answers is imported already, and has taken the real decision")
    import fastpath.call as call

    _answer = answer
    _p, _n = answer, len(answer)
    # Modules of Cython hand C functions to each other through these capsules when they are imported.
    call.__pyx_capi__["call_answer"] = sys.modules[__name__].__pyx_capi__["call_answer"]
