"""What a peer may cost us, in tokens that come back with time and with work done, and the bytes it makes us hold.

Resets, faults (streams that it makes us reset) and frames without a request have an account each; who overdraws one
is sent away, and nothing more of it is parsed.
"""
from fastpath.c.nghttp2 cimport NGHTTP2_ERR_CALLBACK_FAILURE
from fastpath.http2 cimport Bucket, CAUSE_FAULTS, CAUSE_FLOOD, CAUSE_NONE, Conn, Door
from libc.stdint cimport int64_t

cdef enum:
    RESETS_BURST = 100       # streams that a peer may reset at once, and per second
    RESETS_PER_S = 10
    FAULTS_BURST = 50        # streams that a peer may make us reset
    FAULTS_PER_S = 5
    FRAMES_BURST = 1000      # frames without a request; each request gives some back
    FRAMES_PER_S = 100
    FRAMES_PER_REQUEST = 8
    SECOND_NS = 1000000000

cdef extern from * nogil:
    """
    /* Only the loop's own thread writes it, the others read it. */
    static inline void remit_held(int64_t *p, int64_t by) { __atomic_store_n(p, *p + by, __ATOMIC_RELAXED); }
    static inline int64_t remit_holds(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    """
    void remit_held(int64_t *p, int64_t by)
    int64_t remit_holds(const int64_t *p)


cdef inline void bucket_refill(Bucket *bucket, int64_t now, int64_t burst, int64_t per_s) noexcept nogil:
    cdef int64_t back = (now - bucket.at_ns) * per_s // SECOND_NS
    if back > 0:
        bucket.tokens = min(burst, bucket.tokens + back)
        bucket.at_ns = now


cdef inline bint bucket_take(Bucket *bucket, int64_t now, int64_t burst, int64_t per_s,
                             int64_t tokens=1) noexcept nogil:
    """Whether so many tokens were there."""
    bucket_refill(bucket, now, burst, per_s)
    bucket.tokens -= tokens
    return bucket.tokens >= 0


cdef inline int stop_parsing(Conn *conn, int cause) noexcept nogil:
    """Stop parsing: nothing after this of what the peer sent is looked at."""
    if conn.cause == CAUSE_NONE:
        conn.cause = cause
    return NGHTTP2_ERR_CALLBACK_FAILURE


cdef inline bint account_toll(Conn *conn, int64_t tokens) noexcept nogil:
    if bucket_take(&conn.frames, conn.door.now_ns, FRAMES_BURST, FRAMES_PER_S, tokens):
        return True
    stop_parsing(conn, CAUSE_FLOOD)
    return False


cdef inline int account_fault(Conn *conn) noexcept nogil:
    if bucket_take(&conn.faults, conn.door.now_ns, FAULTS_BURST, FAULTS_PER_S):
        return 0
    return stop_parsing(conn, CAUSE_FAULTS)


cdef inline void account_hold(Conn *conn, int64_t bytes) noexcept nogil:
    conn.held += bytes
    remit_held(&conn.door.held, bytes)
    if conn.held > <int64_t> conn.door.stats.buffered_max:
        conn.door.stats.buffered_max = conn.held


cdef inline int64_t account_door_held(const Door *door) noexcept nogil:
    cdef int64_t total = 0
    cdef int i
    for i in range(door.loops):
        total += remit_holds(&door.beside[i].held)
    return total
