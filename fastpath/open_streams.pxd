"""Streams of a connection: those that are open, those that wait for an answer, and a bit for each that we reset."""
from fastpath.accounts cimport account_hold, stop_parsing
from fastpath.bells cimport ear_close
from fastpath.c.nghttp2 cimport nghttp2_session_get_stream_user_data
from fastpath.http2 cimport CAUSE_MEMORY, Conn, Door, Stream
from fastpath.lane cimport lane_gone
from fastpath.reserve cimport block_give, block_take
from fastpath.talk cimport Talk, talk_free
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset

cdef enum:
    NO_TIMEOUT = -1
    DROPPED_MAX = 8192       # newest streams, which we may have reset: more than EARLY_MAX, a power of two

cdef extern from * nogil:
    """
    static inline void remit_count_by(uint32_t *p, int by) { __atomic_fetch_add(p, by, __ATOMIC_RELAXED); }
    """
    void remit_count_by(uint32_t *p, int by)


# ---------------------------------------------------------------- open

cdef inline Stream *stream_of(Conn *conn, int32_t id) noexcept nogil:
    """The stream, or NULL; frames and headers of one mostly come together."""
    if conn.recent == NULL or conn.recent.id != id:
        conn.recent = <Stream *> nghttp2_session_get_stream_user_data(conn.session, id)
    return conn.recent


cdef inline Stream *stream_open(Conn *conn, int32_t id) noexcept nogil:
    cdef Stream *stream = <Stream *> block_take(&conn.door.reserve, sizeof(Stream))
    if stream == NULL:
        return NULL
    memset(stream, 0, <char *> stream.authority - <char *> stream)
    stream.id = id
    stream.opened_ns = conn.door.now_ns
    stream.timeout_ns = NO_TIMEOUT
    stream.authority_n = -1
    stream.http_status = b"200"
    stream.code = -1
    stream.prev = conn.last
    if conn.last != NULL:
        conn.last.next = stream
    else:
        conn.first = stream
    conn.last = stream
    conn.stream_count += 1
    conn.active_ns = conn.door.now_ns
    conn.door.stats.streams += 1
    return stream


cdef inline void stream_unqueue(Conn *conn, Stream *stream) noexcept nogil:
    cdef Stream *at = conn.ready
    cdef Stream *before = NULL
    while at != stream:
        before = at
        at = at.next_ready
    if before != NULL:
        before.next_ready = stream.next_ready
    else:
        conn.ready = stream.next_ready
    if conn.ready_last == stream:
        conn.ready_last = before
    stream.queued = 0


cdef inline void _free_talk(Conn *conn, Talk *talk) noexcept nogil:
    cdef Door *door = conn.door
    if talk.begun:
        if talk.prev != NULL:
            talk.prev.next = talk.next
        else:
            door.talks = talk.next
        if talk.next != NULL:
            talk.next.prev = talk.prev
        remit_count_by(talk.share, -1)
        ear_close(&door.room)
    account_hold(conn, -talk_free(&door.reserve, talk))


cdef inline void stream_free(Conn *conn, Stream *stream) noexcept nogil:
    if stream.queued:
        stream_unqueue(conn, stream)
    if conn.recent == stream:
        conn.recent = NULL
    if stream.prev != NULL:
        stream.prev.next = stream.next
    else:
        conn.first = stream.next
    if stream.next != NULL:
        stream.next.prev = stream.prev
    else:
        conn.last = stream.prev
    conn.stream_count -= 1
    conn.active_ns = conn.door.now_ns
    if stream.ticket != NULL:
        lane_gone(conn.door.lane, stream.ticket)
    if stream.talk != NULL:
        _free_talk(conn, stream.talk)
    account_hold(conn, -<int64_t> (stream.body_cap + stream.reply_n + stream.after_n))
    block_give(&conn.door.reserve, stream.body)
    block_give(&conn.door.reserve, stream.after)
    block_give(&conn.door.reserve, stream.reply)
    block_give(&conn.door.reserve, stream)


cdef inline void stream_queue(Conn *conn, Stream *stream) noexcept nogil:
    stream.queued = 1
    stream.next_ready = NULL
    if conn.ready_last != NULL:
        conn.ready_last.next_ready = stream
    else:
        conn.ready = stream
    conn.ready_last = stream


cdef inline void stream_note(Stream *stream, int code, const char *why, const char *http_status) noexcept nogil:
    """Remember why this is no call that we decide; the first reason stays."""
    if stream.refusal == 0:
        stream.refusal = code
        stream.why = why
        stream.http_status = http_status


cdef inline void stream_wants(Conn *conn, Stream *stream) noexcept nogil:
    if not stream.queued and stream.code < 0:
        stream_queue(conn, stream)


# ---------------------------------------------------------------- reset by us

cdef inline void stream_drop(Conn *conn, int32_t id) noexcept nogil:
    """Remember that we reset a stream: what the peer sent before it heard of that is ignored (RFC 9113 section 5.1)."""
    cdef uint32_t at = (<uint32_t> id >> 1) & (DROPPED_MAX - 1)
    if conn.dropped == NULL:
        conn.dropped = <uint8_t *> block_take(&conn.door.reserve, DROPPED_MAX // 8)
        if conn.dropped == NULL:
            stop_parsing(conn, CAUSE_MEMORY)
            return
        memset(conn.dropped, 0, DROPPED_MAX // 8)
    conn.dropped[at >> 3] |= <uint8_t> (1 << (at & 7))


cdef inline bint stream_is_dropped(const Conn *conn, int32_t id) noexcept nogil:
    cdef uint32_t at = (<uint32_t> id >> 1) & (DROPPED_MAX - 1)
    if conn.dropped == NULL or (conn.last_id - id) >> 1 >= DROPPED_MAX or not id & 1:
        return False
    return conn.dropped[at >> 3] >> (at & 7) & 1


cdef inline void streams_advance(Conn *conn, int32_t id) noexcept nogil:
    """A new stream takes the bits of those that are too old to be remembered."""
    cdef uint32_t at
    cdef int32_t passed
    if conn.dropped != NULL and id > conn.last_id:
        if (id - conn.last_id) >> 1 >= DROPPED_MAX:
            memset(conn.dropped, 0, DROPPED_MAX // 8)
        else:
            for passed in range((conn.last_id >> 1) + 1, (id >> 1) + 1):
                at = <uint32_t> passed & (DROPPED_MAX - 1)
                conn.dropped[at >> 3] &= <uint8_t> ~(1 << (at & 7))
    conn.last_id = max(conn.last_id, id)
