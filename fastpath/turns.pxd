"""Whose turn it is on a loop: connections with more to do wait in a line, each served a bounded piece at a time.

A connection that took little in its last turn is served as soon as its bytes arrive. One that took much waits in the
line even for its first piece, and between pieces of the line the loop looks for new bytes of the others; so what a
call waits for is bounded by the pieces of few, not by all that the busy have sent.
"""
from fastpath.http2 cimport Conn
from libc.stdint cimport int64_t, uint32_t


cdef enum:
    PIECE_MIN = 1024         # bytes of one turn, by what the connection's bytes cost
    PIECE_FIRST = 2048       # room for a first call
    PIECE_MAX = 16384
    PIECE_RECORDS = 128      # of TLS, in one turn
    PIECE_CALLS = 32         # answered in one turn
    LIGHT_BYTES = 4096       # of a turn that needs no waiting for it
    LIGHT_CALLS = 4
    PIECE_NS = 100000        # a turn that took longer makes the next smaller
    PIECE_LIT_NS = 50000     # the same while there are others that ask little
    ROUND_NS = 100000        # of turns from the line, then a look at the others
    ROUND_LIT_NS = 30000     # the same while there are others that ask little; a turn is as long
    LIT_NS = 100000000       # for so long after one of them did
    BUSY_BYTES = 24576       # taken in turns in a row by one that does not ask little for as long


cdef struct Lit:             # who asked little
    const Conn *by           # the last one; to compare, it may be gone
    int64_t ns               # when
    int64_t before_ns        # when another one did


cdef inline void lit_by(Lit *lit, const Conn *conn, int64_t now_ns) noexcept nogil:
    """Note a connection whose bytes came and that has no long turn to wait for, unless it was busy a moment ago.

    The rest of a burst is little too, and what comes after it: for each other's sake the busy need no short turns.
    """
    if conn.heavy or now_ns - conn.busy_ns < LIT_NS:
        return
    if lit.by != conn:
        lit.by, lit.before_ns = conn, lit.ns
    lit.ns = now_ns


cdef inline bint lit_for(const Lit *lit, const Conn *conn, int64_t now_ns) noexcept nogil:
    """Whether others than this one asked little a moment ago, so that its turns are to be short."""
    return now_ns - (lit.before_ns if lit.by == conn else lit.ns) < LIT_NS


cdef struct Taken:           # in a turn
    size_t bytes
    int calls                # answered
    bint more                # there is more to do


cdef inline void turn_took(Conn *conn, int64_t began_ns, int64_t now_ns, const Taken *taken, bint lit) noexcept nogil:
    """Judge a turn: after much the next one is waited for, and bytes that cost much come in smaller pieces.

    How long a turn took decides nothing but the size: on a busy machine it is chance.
    """
    cdef int64_t most = PIECE_LIT_NS if lit else PIECE_NS
    cdef int64_t ns = now_ns - began_ns
    conn.heavy = taken.more or taken.calls > LIGHT_CALLS or taken.bytes > LIGHT_BYTES
    conn.row = <uint32_t> min(<size_t> BUSY_BYTES, conn.row + taken.bytes)
    if conn.row == BUSY_BYTES:
        conn.busy_ns = now_ns
    if not taken.more:
        conn.row = 0
    if ns > most:
        conn.piece = max(<uint32_t> PIECE_MIN, conn.piece // 2)
    elif ns < most // 2:
        conn.piece = min(<uint32_t> PIECE_MAX, conn.piece * 2)
