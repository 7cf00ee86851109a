"""HTTP/2 sessions of the native doors on nghttp2, with accounting of our own.

nghttp2 1.52 counts neither headers nor what a peer makes us reset, and drops headers with illegal values silently, so
all of that is counted and refused here (RFC 9113 sections 8.2.1, 8.3, 10.5).
"""
from fastpath.bells cimport ear_close
from fastpath.c.nghttp2 cimport (
    NGHTTP2_CANCEL, NGHTTP2_DATA, NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_END_STREAM, NGHTTP2_ENHANCE_YOUR_CALM,
    NGHTTP2_ERR_CALLBACK_FAILURE, NGHTTP2_ERR_CANCEL, NGHTTP2_ERR_DEFERRED, NGHTTP2_ERR_FLOODED, NGHTTP2_ERR_NOMEM,
    NGHTTP2_ERR_REFUSED_STREAM,
    NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE,
    NGHTTP2_FLOW_CONTROL_ERROR, NGHTTP2_GOAWAY, NGHTTP2_HCAT_REQUEST, NGHTTP2_HEADERS, NGHTTP2_INTERNAL_ERROR,
    NGHTTP2_NO_ERROR, NGHTTP2_NV_FLAG_NO_COPY_NAME, NGHTTP2_NV_FLAG_NO_COPY_VALUE, NGHTTP2_PING, NGHTTP2_PRIORITY,
    NGHTTP2_PROTOCOL_ERROR, NGHTTP2_REFUSED_STREAM, NGHTTP2_RST_STREAM, NGHTTP2_SETTINGS,
    NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
    NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, nghttp2_data_provider, nghttp2_data_source,
    nghttp2_data_source_read_callback, nghttp2_frame, nghttp2_frame_hd, nghttp2_mem, nghttp2_nv, nghttp2_option,
    nghttp2_option_new,
    nghttp2_option_set_max_outbound_ack, nghttp2_option_set_no_auto_window_update,
    nghttp2_option_set_no_closed_streams,
    nghttp2_option_set_user_recv_extension_type, nghttp2_session, nghttp2_session_callbacks,
    nghttp2_session_callbacks_new, nghttp2_session_callbacks_set_on_begin_frame_callback,
    nghttp2_session_callbacks_set_on_begin_headers_callback, nghttp2_session_callbacks_set_on_data_chunk_recv_callback,
    nghttp2_session_callbacks_set_on_frame_recv_callback, nghttp2_session_callbacks_set_on_frame_send_callback,
    nghttp2_session_callbacks_set_on_header_callback, nghttp2_session_callbacks_set_on_invalid_frame_recv_callback,
    nghttp2_session_callbacks_set_on_invalid_header_callback, nghttp2_session_callbacks_set_on_stream_close_callback,
    nghttp2_session_callbacks_set_unpack_extension_callback, nghttp2_session_consume_connection,
    nghttp2_session_consume_stream, nghttp2_session_del,
    nghttp2_session_get_last_proc_stream_id, nghttp2_session_get_outbound_queue_size,
    nghttp2_session_get_stream_user_data, nghttp2_session_mem_recv, nghttp2_session_mem_send,
    nghttp2_session_resume_data, nghttp2_session_server_new3, nghttp2_session_set_local_window_size,
    nghttp2_session_set_stream_user_data, nghttp2_session_want_read, nghttp2_session_want_write, nghttp2_settings_entry,
    nghttp2_submit_goaway, nghttp2_submit_ping, nghttp2_submit_response, nghttp2_submit_rst_stream,
    nghttp2_submit_settings, nghttp2_session_terminate_session, nghttp2_submit_shutdown_notice, nghttp2_submit_trailer,
)
from fastpath.framing cimport FRAME_PREFACE, framing_feed
from fastpath.grpc_text cimport (
    CODE_DEADLINE_EXCEEDED, CODE_INTERNAL, CODE_RESOURCE_EXHAUSTED, CODE_UNAVAILABLE, CODE_UNIMPLEMENTED,
    grpc_content_type, grpc_message, grpc_timeout_ns,
)
from fastpath.lane cimport lane_gone
from fastpath.reserve cimport block_give, block_grow, block_take, reserve_mem, reserve_was_short
from fastpath.talk cimport (
    CUT_MESSAGE, CUT_PART, Talk, WHY_MAX, talk_cut, talk_done, talk_free, talk_idle, talk_say, talk_send,
    talk_take, talk_whole, talk_would_take,
)
from fastpath.wire cimport Text, text_of
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset, strlen

cdef enum:
    PREFIX = 5               # flag and length of a gRPC message
    BODY_FIRST = 256         # least allocation for a message; it grows with what really arrives
    WINDOW = 1 << 20         # bytes that a connection may send before we take them
    TAKEN = 1 << 16          # bytes of a connection for which new window is given at once
    EAGER = 16384            # bytes of a stream for which no new window is given: most end before
    QUEUE_MAX = 1000         # frames of ours that wait
    RESETS_BURST = 100       # streams that a peer may reset at once, and per second
    RESETS_PER_S = 10
    FAULTS_BURST = 50        # streams that a peer may make us reset
    FAULTS_PER_S = 5
    FAULT_CALLS = 16         # answered calls that give a fault back; each gives a reset back
    EARLY_MAX = 4096         # streams over the limit that a peer may open before our SETTINGS can have reached it
    FRAMES_BURST = 1000      # frames without a request; each request gives some back
    FRAMES_PER_S = 100
    FRAMES_PER_REQUEST = 8
    PRIORITY_TOKENS = 16     # of a frame that means nothing here (RFC 9113 section 5.3.2): more than a request gives
    SHOWN_MAX = 1024         # bytes of a grpc-message
    DROPPED_MAX = 8192       # newest streams, which we may have reset: more than EARLY_MAX, a power of two
    TYPES_KNOWN = 10         # frame types of RFC 9113
    PING_BYTES = 8           # that a PING carries (RFC 9113 section 6.7)

cdef enum Seen:              # headers that may come once
    SEEN_CONTENT_TYPE = 1
    SEEN_TE = 2
    SEEN_TIMEOUT = 4
    SEEN_ENCODING = 8
    SEEN_HOST = 16
    SEEN_AUTHORIZATION = 32
    SEEN_METHOD = 64
    SEEN_SCHEME = 128
    SEEN_PATH = 256

cdef int64_t SECOND_NS = 1000000000
cdef const uint8_t *PING_ALIVE = <const uint8_t *> b"alive   "
cdef const uint8_t *PING_DRAIN = <const uint8_t *> b"draining"
cdef int64_t NO_TIMEOUT = -1

cdef extern from * nogil:
    """
    /* Only the loop's own thread writes it, the others read it. */
    static inline void remit_held(int64_t *p, int64_t by) { __atomic_store_n(p, *p + by, __ATOMIC_RELAXED); }
    static inline int64_t remit_holds(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void remit_count_by(uint32_t *p, int by) { __atomic_fetch_add(p, by, __ATOMIC_RELAXED); }
    """
    void remit_held(int64_t *p, int64_t by)
    int64_t remit_holds(const int64_t *p)
    void remit_count_by(uint32_t *p, int by)

cdef nghttp2_session_callbacks *_callbacks = NULL
cdef nghttp2_option *_option = NULL


# ---------------------------------------------------------------- accounts

cdef void _refill(Bucket *bucket, int64_t now, int64_t burst, int64_t per_s) noexcept nogil:
    cdef int64_t back = (now - bucket.at_ns) * per_s // SECOND_NS
    if back > 0:
        bucket.tokens = min(burst, bucket.tokens + back)
        bucket.at_ns = now


cdef bint _take(Bucket *bucket, int64_t now, int64_t burst, int64_t per_s, int64_t tokens=1) noexcept nogil:
    """Whether so many tokens were there."""
    _refill(bucket, now, burst, per_s)
    bucket.tokens -= tokens
    return bucket.tokens >= 0


cdef int _end(Conn *conn, int cause) noexcept nogil:
    """Stop parsing: nothing after this of what the peer sent is looked at."""
    if conn.cause == CAUSE_NONE:
        conn.cause = cause
    return NGHTTP2_ERR_CALLBACK_FAILURE


cdef bint http2_toll(Conn *conn, int64_t tokens) noexcept nogil:
    if _take(&conn.frames, conn.door.now_ns, FRAMES_BURST, FRAMES_PER_S, tokens):
        return True
    _end(conn, CAUSE_FLOOD)
    return False


cdef int _fault(Conn *conn) noexcept nogil:
    if _take(&conn.faults, conn.door.now_ns, FAULTS_BURST, FAULTS_PER_S):
        return 0
    return _end(conn, CAUSE_FAULTS)


cdef void _hold(Conn *conn, int64_t bytes) noexcept nogil:
    conn.held += bytes
    remit_held(&conn.door.held, bytes)
    if conn.held > <int64_t> conn.door.stats.buffered_max:
        conn.door.stats.buffered_max = conn.held


cdef int64_t _door_held(const Door *door) noexcept nogil:
    cdef int64_t total = 0
    cdef int i
    for i in range(door.loops):
        total += remit_holds(&door.beside[i].held)
    return total


# ---------------------------------------------------------------- streams

cdef inline Stream *_stream(Conn *conn, int32_t id) noexcept nogil:
    """The stream, or NULL; frames and headers of one mostly come together."""
    if conn.recent == NULL or conn.recent.id != id:
        conn.recent = <Stream *> nghttp2_session_get_stream_user_data(conn.session, id)
    return conn.recent


cdef Stream *_open(Conn *conn, int32_t id) noexcept nogil:
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


cdef void _unqueue(Conn *conn, Stream *stream) noexcept nogil:
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


cdef void _free_talk(Conn *conn, Talk *talk) noexcept nogil:
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
    _hold(conn, -talk_free(&door.reserve, talk))


cdef void _free(Conn *conn, Stream *stream) noexcept nogil:
    if stream.queued:
        _unqueue(conn, stream)
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
    _hold(conn, -<int64_t> (stream.body_cap + stream.reply_n + stream.after_n))
    block_give(&conn.door.reserve, stream.body)
    block_give(&conn.door.reserve, stream.after)
    block_give(&conn.door.reserve, stream.reply)
    block_give(&conn.door.reserve, stream)


cdef void _queue(Conn *conn, Stream *stream) noexcept nogil:
    stream.queued = 1
    stream.next_ready = NULL
    if conn.ready_last != NULL:
        conn.ready_last.next_ready = stream
    else:
        conn.ready = stream
    conn.ready_last = stream


cdef void _note(Stream *stream, int code, const char *why, const char *http_status) noexcept nogil:
    """Remember why this is no call that we decide; the first reason stays."""
    if stream.refusal == 0:
        stream.refusal = code
        stream.why = why
        stream.http_status = http_status


cdef void _drop(Conn *conn, int32_t id) noexcept nogil:
    """Remember that we reset a stream: what the peer sent before it heard of that is ignored (RFC 9113 section 5.1)."""
    cdef uint32_t at = (<uint32_t> id >> 1) & (DROPPED_MAX - 1)
    if conn.dropped == NULL:
        conn.dropped = <uint8_t *> block_take(&conn.door.reserve, DROPPED_MAX // 8)
        if conn.dropped == NULL:
            _end(conn, CAUSE_MEMORY)
            return
        memset(conn.dropped, 0, DROPPED_MAX // 8)
    conn.dropped[at >> 3] |= <uint8_t> (1 << (at & 7))


cdef bint _is_dropped(const Conn *conn, int32_t id) noexcept nogil:
    cdef uint32_t at = (<uint32_t> id >> 1) & (DROPPED_MAX - 1)
    if conn.dropped == NULL or (conn.last_id - id) >> 1 >= DROPPED_MAX or not id & 1:
        return False
    return conn.dropped[at >> 3] >> (at & 7) & 1


cdef void _advance(Conn *conn, int32_t id) noexcept nogil:
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


# ---------------------------------------------------------------- one header

cdef inline bint _is(const uint8_t *p, size_t n, const char *text) noexcept nogil:
    return n == strlen(text) and memcmp(p, text, strlen(text)) == 0


cdef int _method(const Door *door, const uint8_t *p, size_t n) noexcept nogil:
    """A method is its exact name."""
    if _is(p, n, b"/grpc.health.v1.Health/Check"):
        return METHOD_HEALTH
    if _is(p, n, b"/grpc.health.v1.Health/Watch"):
        return METHOD_WATCH
    if door.serves_envoy:
        return METHOD_EXT_AUTHZ if _is(p, n, b"/envoy.service.auth.v3.Authorization/Check") else METHOD_NONE
    if _is(p, n, b"/remit.authz.v1.Authorization/Check"):
        return METHOD_CHECK
    if _is(p, n, b"/remit.authz.v1.Authorization/Report"):
        return METHOD_REPORT
    if _is(p, n, b"/remit.authz.v1.Authorization/CheckStream"):
        return METHOD_STREAM
    return METHOD_BATCH if _is(p, n, b"/remit.authz.v1.Authorization/BatchCheck") else METHOD_NONE


cdef bint _once(Stream *stream, uint32_t which) noexcept nogil:
    if stream.seen & which:
        _note(stream, CODE_INTERNAL, b"request.header_twice", b"400")
        return False
    stream.seen |= which
    return True


cdef void _pseudo(const Door *door, Stream *stream, const uint8_t *name, size_t name_n, const uint8_t *value,
                  size_t value_n) noexcept nogil:
    if _is(name, name_n, b":path"):
        stream.method = _method(door, value, value_n)
        stream.seen |= SEEN_PATH
    elif _is(name, name_n, b":method"):
        if not _is(value, value_n, b"POST"):
            _note(stream, CODE_INTERNAL, b"request.method", b"405")
    elif _is(name, name_n, b":scheme"):
        if not _is(value, value_n, b"http") and not _is(value, value_n, b"https"):
            _note(stream, CODE_INTERNAL, b"request.scheme", b"400")
    elif _is(name, name_n, b":authority"):
        stream.authority_n = <int32_t> min(value_n, <size_t> 1 << 20)
        memcpy(stream.authority, value, min(value_n, sizeof(stream.authority)))
    else:
        _note(stream, CODE_INTERNAL, b"request.header", b"400")


cdef void _host(Stream *stream, const uint8_t *value, size_t value_n) noexcept nogil:
    """`host` may only repeat :authority (RFC 9113 section 8.3.1); a longer one than we keep is refused."""
    if stream.authority_n >= 0 and (
        <size_t> stream.authority_n != value_n or value_n > sizeof(stream.authority)
        or memcmp(value, stream.authority, value_n) != 0
    ):
        _note(stream, CODE_INTERNAL, b"request.host", b"400")


cdef void _timeout(Stream *stream, const uint8_t *value, size_t value_n) noexcept nogil:
    stream.timeout_ns = grpc_timeout_ns(<const char *> value, value_n)
    if stream.timeout_ns < 0:
        _note(stream, CODE_INTERNAL, b"request.timeout", b"200")


cdef void _field(Stream *stream, const uint8_t *name, size_t name_n, const uint8_t *value,
                 size_t value_n) noexcept nogil:
    if _is(name, name_n, b"content-type"):
        if _once(stream, SEEN_CONTENT_TYPE) and not grpc_content_type(<const char *> value, value_n):
            _note(stream, CODE_INTERNAL, b"request.content_type", b"415")
    elif _is(name, name_n, b"te"):
        if _once(stream, SEEN_TE) and not _is(value, value_n, b"trailers"):
            _note(stream, CODE_INTERNAL, b"request.te", b"400")
    elif _is(name, name_n, b"grpc-timeout"):
        if _once(stream, SEEN_TIMEOUT):
            _timeout(stream, value, value_n)
    elif _is(name, name_n, b"grpc-encoding"):
        if _once(stream, SEEN_ENCODING) and not _is(value, value_n, b"identity"):
            _note(stream, CODE_UNIMPLEMENTED, b"request.encoding", b"200")
    elif _is(name, name_n, b"host"):
        if _once(stream, SEEN_HOST):
            _host(stream, value, value_n)
    elif _is(name, name_n, b"authorization"):
        _once(stream, SEEN_AUTHORIZATION)


cdef void _headers_end(Stream *stream) noexcept nogil:
    """What only the whole block shows."""
    if not stream.seen & SEEN_CONTENT_TYPE:
        _note(stream, CODE_INTERNAL, b"request.content_type", b"415")
    if not stream.seen & SEEN_TE:
        _note(stream, CODE_INTERNAL, b"request.te", b"400")
    if stream.method == METHOD_NONE:
        _note(stream, CODE_UNIMPLEMENTED, b"request.unimplemented", b"200")


# ---------------------------------------------------------------- callbacks: received

cdef int _on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef int tokens
    conn.door.stats.frames_in += 1
    if hd.type == NGHTTP2_HEADERS and hd.stream_id > conn.last_id:
        _advance(conn, hd.stream_id)
        return 0
    if hd.type == NGHTTP2_HEADERS and _stream(conn, hd.stream_id) == NULL and not _is_dropped(conn, hd.stream_id):
        # An id that was used or passed over (RFC 9113 section 5.1.1); nghttp2 would ignore it.
        return _end(conn, CAUSE_PROTOCOL)
    if hd.type == NGHTTP2_PRIORITY and hd.stream_id == 0:
        # RFC 9113 section 6.3; since priorities are off, nghttp2 does not look.
        return _end(conn, CAUSE_PROTOCOL)
    tokens = 1
    if hd.type == NGHTTP2_PRIORITY:
        tokens = PRIORITY_TOKENS
    elif hd.type == NGHTTP2_HEADERS and _stream(conn, hd.stream_id) == NULL:
        # Decoded for the sake of the table alone.
        tokens = FRAMES_PER_REQUEST
    return 0 if http2_toll(conn, tokens) else NGHTTP2_ERR_CALLBACK_FAILURE


cdef int _on_unknown(nghttp2_session *session, void **payload, const nghttp2_frame_hd *hd, void *user) noexcept nogil:
    """A frame of a type that we do not know is ignored (RFC 9113 section 4.1); _on_begin_frame has counted it."""
    return NGHTTP2_ERR_CANCEL


cdef int _one_too_many(Conn *conn) noexcept nogil:
    """A stream was refused for the limit of streams, which the peer may not have heard of yet (RFC 9113 section 5.1.2).

    Counted here and not when the reset is sent: until then much more could be parsed.
    """
    if conn.settled or conn.early >= EARLY_MAX:
        return _fault(conn)
    conn.early += 1
    # What still comes on that stream was sent in good faith.
    conn.frames.tokens = min(<int64_t> FRAMES_BURST, conn.frames.tokens + FRAMES_PER_REQUEST)
    return 0


cdef int _on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    if conn.stream_count >= conn.door.limits.streams:
        # nghttp2 holds a peer to our SETTINGS only after it acknowledged them.
        _reset(conn, frame.hd.stream_id, NGHTTP2_REFUSED_STREAM)
        return _one_too_many(conn) or NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    stream = _open(conn, frame.hd.stream_id)
    if stream == NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    nghttp2_session_set_stream_user_data(session, stream.id, stream)
    return 0


cdef int _on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
                    const uint8_t *value, size_t value_n, uint8_t flags, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream = _stream(conn, frame.hd.stream_id)
    conn.door.stats.headers_in += 1
    if stream == NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    stream.headers += 1
    stream.header_bytes += <uint32_t> (name_n + value_n + 32)
    if stream.headers > conn.door.limits.headers or stream.header_bytes > conn.door.limits.header_bytes:
        _reset(conn, stream.id, NGHTTP2_ENHANCE_YOUR_CALM)
        # Counted here and not when it is sent: until then much more could be parsed.
        return _fault(conn) or NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if name_n and name[0] == c":":
        _pseudo(conn.door, stream, name, name_n, value, value_n)
    else:
        _field(stream, name, name_n, value, value_n)
    return 0


cdef int _on_invalid_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
                            const uint8_t *value, size_t value_n, uint8_t flags, void *user) noexcept nogil:
    # Left out silently, a header that a rule looks for would be absent: the stream ends instead.
    cdef Conn *conn = <Conn *> user
    conn.door.stats.headers_in += 1
    _reset(conn, frame.hd.stream_id, NGHTTP2_PROTOCOL_ERROR)
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE


cdef int _grow(Conn *conn, Stream *stream, size_t n) noexcept nogil:
    """Make room for `n` bytes more; 1 when that is too much for this connection or the machine."""
    cdef size_t need = stream.body_n + n
    cdef size_t cap = max(<size_t> BODY_FIRST, <size_t> stream.body_cap)
    cdef uint8_t *moved
    if need <= stream.body_cap:
        return 0
    while cap < need:
        cap *= 2
    if conn.held + <int64_t> cap - stream.body_cap > conn.door.limits.held or (
        _door_held(conn.door) > conn.door.limits.door_held
    ):
        return 1
    moved = <uint8_t *> block_grow(&conn.door.reserve, stream.body, stream.body_n, cap)
    if moved == NULL:
        return 1
    _hold(conn, <int64_t> cap - stream.body_cap)
    stream.body, stream.body_cap = moved, <uint32_t> cap
    return 0


cdef void _prefix(const Door *door, Stream *stream) noexcept nogil:
    """Length-Prefixed-Message (PROTOCOL-HTTP2.md): a flag, four bytes of length. Judged before room is made for it."""
    cdef const uint8_t *p = stream.body
    cdef uint32_t length
    if stream.body_want or stream.body_n < PREFIX:
        return
    length = (<uint32_t> p[1] << 24) | (<uint32_t> p[2] << 16) | (<uint32_t> p[3] << 8) | p[4]
    if p[0] == 1:
        _note(stream, CODE_UNIMPLEMENTED, b"request.compressed", b"200")
    elif p[0] != 0:
        _note(stream, CODE_INTERNAL, b"request.framing", b"200")
    elif length > door.limits.message_bytes:
        _note(stream, CODE_RESOURCE_EXHAUSTED, b"request.too_large", b"200")
    else:
        stream.body_want = PREFIX + length


cdef void _more_window(Conn *conn, int32_t id, size_t n) noexcept nogil:
    if nghttp2_session_consume_stream(conn.session, id, n) == NGHTTP2_ERR_NOMEM:
        _end(conn, CAUSE_MEMORY)


cdef void _more_of_all(Conn *conn) noexcept nogil:
    """What came is taken in, whatever became of its stream."""
    if nghttp2_session_consume_connection(conn.session, conn.taken) == NGHTTP2_ERR_NOMEM:
        _end(conn, CAUSE_MEMORY)
    conn.taken = 0


cdef int _on_talk(Conn *conn, Stream *stream, const uint8_t *p, size_t n) noexcept nogil:
    """Bytes of a CheckStream."""
    cdef Talk *talk = stream.talk
    cdef int64_t more = talk_would_take(talk, n)
    if stream.code >= 0:
        return 0
    if conn.held + more > conn.door.limits.held or _door_held(conn.door) > conn.door.limits.door_held:
        more = -1
    else:
        more = talk_take(&conn.door.reserve, talk, p, n)
    if more < 0:
        _note(stream, CODE_RESOURCE_EXHAUSTED, b"request.memory", b"200")
        http2_wants(conn, stream)
        return 0
    _hold(conn, more)
    # Each question may come in as many frames as a call.
    conn.frames.tokens = min(<int64_t> FRAMES_BURST, conn.frames.tokens + FRAMES_PER_REQUEST * talk_whole(talk))
    talk.owed += <uint32_t> n
    if not http2_stalled(conn, talk):
        http2_go_on(conn, stream)
    return 0


cdef int _on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *p, size_t n,
                  void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream = _stream(conn, id)
    # Frames full of data are work, not noise.
    conn.frames.tokens = min(<int64_t> FRAMES_BURST, conn.frames.tokens + <int64_t> (n // 1024))
    conn.taken += <uint32_t> n
    if stream == NULL or stream.refusal:
        return 0
    if stream.talk != NULL:
        return _on_talk(conn, stream, p, n)
    if stream.answered:
        return 0
    if stream.body_want and stream.body_n + n > stream.body_want:
        _note(stream, CODE_INTERNAL, b"request.framing", b"200")
    elif _grow(conn, stream, n):
        _note(stream, CODE_RESOURCE_EXHAUSTED, b"request.memory", b"200")
    else:
        memcpy(stream.body + stream.body_n, p, n)
        stream.body_n += <uint32_t> n
        _prefix(conn.door, stream)
        if stream.body_n > EAGER:
            _more_window(conn, id, n)
    return 0


cdef int _on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream
    if frame.hd.type == NGHTTP2_RST_STREAM:
        conn.door.stats.resets_in += 1
    elif frame.hd.type == NGHTTP2_SETTINGS:
        if not conn.began:
            conn.began, conn.began_ns = 1, conn.door.now_ns
        conn.settled |= frame.hd.flags & NGHTTP2_FLAG_ACK
    elif frame.hd.type == NGHTTP2_PING and frame.hd.flags & NGHTTP2_FLAG_ACK:
        _on_pong(conn, frame.ping.opaque_data)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        conn.left = 1
    elif frame.hd.type == NGHTTP2_HEADERS or frame.hd.type == NGHTTP2_DATA:
        stream = _stream(conn, frame.hd.stream_id)
        if stream != NULL:
            _on_request_frame(conn, stream, frame)
    return 0


cdef void _on_pong(Conn *conn, const uint8_t *which) noexcept nogil:
    """A ping of ours came back; what answers another one says nothing about this one."""
    if memcmp(which, PING_ALIVE, PING_BYTES) == 0:
        conn.pinged = 0
    elif conn.draining == 1 and memcmp(which, PING_DRAIN, PING_BYTES) == 0:
        http2_drain_last(conn)


cdef void _new_talk(Conn *conn, Stream *stream) noexcept nogil:
    stream.talk = <Talk *> block_take(&conn.door.reserve, sizeof(Talk))
    if stream.talk == NULL:
        _note(stream, CODE_RESOURCE_EXHAUSTED, b"request.memory", b"200")
        return
    memset(stream.talk, 0, sizeof(Talk))
    stream.talk.conn, stream.talk.stream = conn, stream
    conn.lasting = 1


cdef void _on_request_frame(Conn *conn, Stream *stream, const nghttp2_frame *frame) noexcept nogil:
    if frame.hd.type == NGHTTP2_HEADERS:
        if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            _headers_end(stream)
            if stream.method == METHOD_STREAM and stream.refusal == 0:
                _new_talk(conn, stream)
        else:
            _note(stream, CODE_INTERNAL, b"request.trailers", b"200")
    if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream.ended = 1
    if stream.talk != NULL:
        if frame.hd.type == NGHTTP2_HEADERS or stream.ended:
            http2_wants(conn, stream)
        return
    if stream.answered or stream.queued:
        return
    if stream.ended:
        conn.frames.tokens = min(<int64_t> FRAMES_BURST, conn.frames.tokens + FRAMES_PER_REQUEST)
        _queue(conn, stream)
    elif stream.refusal:
        # Known to be none of ours: say so now and read no more of it.
        _queue(conn, stream)


cdef int _on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int code, void *user) noexcept nogil:
    # The stream is reset, or its connection ends. Counted here and not when the reset is sent, as in _on_header.
    if frame.hd.stream_id:
        _drop(<Conn *> user, frame.hd.stream_id)
    # nghttp2 itself refuses streams over a limit that was not acknowledged.
    return _one_too_many(<Conn *> user) if code == NGHTTP2_ERR_REFUSED_STREAM else _fault(<Conn *> user)


cdef void _work_done(Conn *conn) noexcept nogil:
    """A call that was answered in order excuses another that was not: an Envoy resets what its clients gave up."""
    conn.resets.tokens = min(<int64_t> RESETS_BURST, conn.resets.tokens + 1)
    conn.answered += 1
    if conn.answered % FAULT_CALLS == 0:
        conn.faults.tokens = min(<int64_t> FAULTS_BURST, conn.faults.tokens + 1)


cdef int _on_close(nghttp2_session *session, int32_t id, uint32_t code, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream = _stream(conn, id)
    if stream != NULL:
        conn.door.stats.cancelled += stream.queued
        if stream.answered and not stream.refusal and code == <uint32_t> NGHTTP2_NO_ERROR:
            _work_done(conn)
        _free(conn, stream)
    return 0


# ---------------------------------------------------------------- callbacks: sent

cdef bint _is_fault(uint32_t code) noexcept nogil:
    """Whether a reset of ours that nothing told of before counts when it is sent.

    NO_ERROR follows an answer, CANCEL a stream that came to its time, as many may at once; others were counted before.
    """
    return code != <uint32_t> NGHTTP2_NO_ERROR and code != <uint32_t> NGHTTP2_ENHANCE_YOUR_CALM and (
        code != <uint32_t> NGHTTP2_REFUSED_STREAM and code != <uint32_t> NGHTTP2_CANCEL
    )


cdef int _on_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream
    cdef bint counted
    if frame.hd.type == NGHTTP2_RST_STREAM:
        conn.door.stats.resets_out += 1
        counted = _is_dropped(conn, frame.hd.stream_id)
        _drop(conn, frame.hd.stream_id)
        if frame.rst_stream.error_code == <uint32_t> NGHTTP2_FLOW_CONTROL_ERROR:
            # A window past 2^31-1 ends the connection (RFC 9113 sections 6.9.1 and 6.9.2); nghttp2 resets the stream.
            nghttp2_session_terminate_session(session, NGHTTP2_FLOW_CONTROL_ERROR)
        if not counted and _is_fault(frame.rst_stream.error_code):
            return _fault(conn)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        conn.told = conn.draining != 1
        if conn.told:
            conn.door.stats.goaways[conn.drain_cause if conn.draining else <int> CAUSE_PROTOCOL] += 1
    elif frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream = _stream(conn, frame.hd.stream_id)
        if stream != NULL and not stream.ended:
            # Answered before the request ended: what is left of it is not wanted (RFC 9113 section 8.1).
            _reset(conn, stream.id, NGHTTP2_NO_ERROR)
    return 0


cdef void _header(nghttp2_nv *nv, const char *name, const char *value, size_t n) noexcept nogil:
    nv.name, nv.namelen = <uint8_t *> name, strlen(name)
    nv.value, nv.valuelen = <uint8_t *> value, n
    nv.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME


cdef void _constant(nghttp2_nv *nv, const char *name, const char *value) noexcept nogil:
    _header(nv, name, value, strlen(value))
    nv.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE


cdef ssize_t _end_data(nghttp2_session *session, int32_t id, int code, uint32_t *flags) noexcept nogil:
    """Trailers instead of more data; 0, or what a read callback returns when memory is short."""
    cdef nghttp2_nv trailer
    cdef char number[2]
    flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
    if code == 0:
        _constant(&trailer, b"grpc-status", b"0")
    else:
        _header(&trailer, b"grpc-status", number, _decimal(code, number))
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE if nghttp2_submit_trailer(session, id, &trailer, 1) else 0


cdef ssize_t _end_talk(nghttp2_session *session, int32_t id, int code, const Talk *talk,
                       uint32_t *flags) noexcept nogil:
    """The same of a CheckStream, which says why."""
    cdef nghttp2_nv trailers[2]
    cdef char number[2]
    cdef char shown[3 * WHY_MAX]
    cdef Text why
    why.p, why.n = talk.why, talk.why_n
    if why.n == 0:
        return _end_data(session, id, code, flags)
    flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
    _header(&trailers[0], b"grpc-status", number, _decimal(code, number))
    _header(&trailers[1], b"grpc-message", shown, grpc_message(why, shown, sizeof(shown)))
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE if nghttp2_submit_trailer(session, id, trailers, 2) else 0


cdef ssize_t _on_read(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length, uint32_t *flags,
                      nghttp2_data_source *source, void *user) noexcept nogil:
    """The one message of an answer."""
    cdef Stream *stream = <Stream *> source.ptr
    cdef size_t n = min(length, <size_t> (stream.reply_n - stream.reply_at))
    memcpy(buf, stream.reply + stream.reply_at, n)
    stream.reply_at += <uint32_t> n
    if stream.reply_at == stream.reply_n and _end_data(session, id, 0, flags):
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    return <ssize_t> n


cdef ssize_t _on_read_more(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length, uint32_t *flags,
                           nghttp2_data_source *source, void *user) noexcept nogil:
    """What there is of several messages; their stream waits while there is nothing."""
    cdef Stream *stream = <Stream *> source.ptr
    cdef size_t n
    if stream.reply_at == stream.reply_n and stream.after != NULL:
        _hold(<Conn *> user, -<int64_t> stream.reply_n)
        block_give(&(<Conn *> user).door.reserve, stream.reply)
        stream.reply, stream.reply_n, stream.reply_at = stream.after, stream.after_n, 0
        stream.after, stream.after_n = NULL, 0
    n = min(length, <size_t> (stream.reply_n - stream.reply_at))
    memcpy(buf, stream.reply + stream.reply_at, n)
    stream.reply_at += <uint32_t> n
    if stream.reply_at == stream.reply_n and stream.after == NULL:
        if stream.code >= 0:
            if _end_data(session, id, stream.code, flags):
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
            return <ssize_t> n
        if n == 0:
            stream.deferred = 1
            return NGHTTP2_ERR_DEFERRED
    return <ssize_t> n


cdef ssize_t _on_read_talk(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length, uint32_t *flags,
                           nghttp2_data_source *source, void *user) noexcept nogil:
    """What is queued on a CheckStream; what waited for the queue to be empty goes on then."""
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream = <Stream *> source.ptr
    cdef Talk *talk = stream.talk
    cdef int64_t freed
    cdef size_t n = talk_send(&conn.door.reserve, talk, buf, length, conn.door.now_ns, &freed)
    _hold(conn, -freed)
    if not talk_idle(talk):
        return <ssize_t> n
    if stream.code >= 0:
        if _end_talk(session, id, stream.code, talk, flags):
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        return <ssize_t> n
    if talk.came_n or talk.news or talk.leaving or stream.ended or stream.refusal:
        http2_wants(conn, stream)
    if n == 0:
        stream.deferred = 1
        return NGHTTP2_ERR_DEFERRED
    return <ssize_t> n


# ---------------------------------------------------------------- a connection

cdef int http2_setup() noexcept nogil:
    cdef int type_
    if _callbacks != NULL:
        return 0
    if nghttp2_option_new(&_option) or nghttp2_session_callbacks_new(&_callbacks):
        return 1
    nghttp2_option_set_no_closed_streams(_option, 1)
    # A CheckStream whose answers wait is given no new window.
    nghttp2_option_set_no_auto_window_update(_option, 1)
    nghttp2_option_set_max_outbound_ack(_option, QUEUE_MAX)
    # nghttp2 tells of unknown frames only when their types are asked for.
    for type_ in range(TYPES_KNOWN, 256):
        nghttp2_option_set_user_recv_extension_type(_option, <uint8_t> type_)
    nghttp2_session_callbacks_set_unpack_extension_callback(_callbacks, _on_unknown)
    nghttp2_session_callbacks_set_on_begin_frame_callback(_callbacks, _on_begin_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(_callbacks, _on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(_callbacks, _on_header)
    nghttp2_session_callbacks_set_on_invalid_header_callback(_callbacks, _on_invalid_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_callbacks, _on_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(_callbacks, _on_frame)
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(_callbacks, _on_invalid_frame)
    nghttp2_session_callbacks_set_on_stream_close_callback(_callbacks, _on_close)
    nghttp2_session_callbacks_set_on_frame_send_callback(_callbacks, _on_sent)
    return 0


cdef int http2_open(Conn *conn) noexcept nogil:
    cdef nghttp2_settings_entry entries[3]
    cdef nghttp2_mem mem = reserve_mem(&conn.door.reserve)
    cdef int64_t now = conn.door.now_ns
    conn.resets.tokens, conn.resets.at_ns = RESETS_BURST, now
    conn.faults.tokens, conn.faults.at_ns = FAULTS_BURST, now
    conn.frames.tokens, conn.frames.at_ns = FRAMES_BURST, now
    conn.framing.skip = FRAME_PREFACE
    if nghttp2_session_server_new3(&conn.session, _callbacks, conn, _option, &mem):
        return 1
    entries[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    entries[0].value = conn.door.limits.streams
    entries[1].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    entries[1].value = conn.door.limits.header_bytes
    entries[2].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
    entries[2].value = 1
    if nghttp2_submit_settings(conn.session, NGHTTP2_FLAG_NONE, entries, 3):
        return 1
    return nghttp2_session_set_local_window_size(conn.session, NGHTTP2_FLAG_NONE, 0, WINDOW) != 0


cdef void http2_feed(Conn *conn, const uint8_t *p, size_t n) noexcept nogil:
    cdef ssize_t got
    _refill(&conn.resets, conn.door.now_ns, RESETS_BURST, RESETS_PER_S)
    n = framing_feed(&conn.framing, p, n, &conn.resets.tokens)
    if conn.resets.tokens < 0:
        conn.cut = CAUSE_RESETS
    if conn.framing.fresh or not conn.framing.within:
        conn.part_ns = conn.door.now_ns if conn.framing.within else 0
    conn.door.stats.bytes_in += n
    got = nghttp2_session_mem_recv(conn.session, p, n)
    if conn.taken >= TAKEN:
        _more_of_all(conn)
    if reserve_was_short(&conn.door.reserve):
        _end(conn, CAUSE_MEMORY)
    if got >= 0:
        if nghttp2_session_get_outbound_queue_size(conn.session) > QUEUE_MAX + conn.door.limits.streams:
            _end(conn, CAUSE_FLOOD)
        return
    if got == NGHTTP2_ERR_NOMEM:
        _end(conn, CAUSE_MEMORY)
    elif got == NGHTTP2_ERR_FLOODED:
        _end(conn, CAUSE_FLOOD)
    else:
        _end(conn, CAUSE_PROTOCOL)


cdef Stream *http2_next(Conn *conn) noexcept nogil:
    cdef Stream *stream = conn.ready
    if stream != NULL:
        _unqueue(conn, stream)
    return stream


cdef bint http2_message(Stream *stream, Text *message) noexcept nogil:
    if stream.refusal == 0 and (stream.body_want == 0 or stream.body_n != stream.body_want):
        _note(stream, CODE_INTERNAL, b"request.framing", b"200")
    if stream.refusal:
        return False
    message.p, message.n = <const char *> stream.body + PREFIX, stream.body_want - PREFIX
    return True


cdef bint http2_full(const Conn *conn) noexcept nogil:
    return conn.held > conn.door.limits.held or _door_held(conn.door) > conn.door.limits.door_held


cdef uint8_t *_framed(Conn *conn, const uint8_t *p, size_t n) noexcept nogil:
    """A message with its prefix, owned by the caller; NULL when memory is short."""
    cdef uint8_t *made = <uint8_t *> block_take(&conn.door.reserve, PREFIX + n)
    if made != NULL:
        made[0] = 0
        made[1], made[2], made[3], made[4] = <uint8_t> (n >> 24), <uint8_t> (n >> 16), <uint8_t> (n >> 8), <uint8_t> n
        memcpy(made + PREFIX, p, n)
    return made


cdef void _respond(Conn *conn, Stream *stream, nghttp2_data_source_read_callback read) noexcept nogil:
    cdef nghttp2_nv headers[2]
    cdef nghttp2_data_provider body
    _constant(&headers[0], b":status", b"200")
    _constant(&headers[1], b"content-type", b"application/grpc")
    body.source.ptr = stream
    body.read_callback = read
    if nghttp2_submit_response(conn.session, stream.id, headers, 2, &body):
        _end(conn, CAUSE_MEMORY)


cdef void _reset(Conn *conn, int32_t id, uint32_t code) noexcept nogil:
    """End one stream; when memory is short for even that, the connection."""
    _drop(conn, id)
    if nghttp2_submit_rst_stream(conn.session, NGHTTP2_FLAG_NONE, id, code):
        _end(conn, CAUSE_MEMORY)


cdef void http2_reply(Conn *conn, Stream *stream, const uint8_t *p, size_t n) noexcept nogil:
    stream.answered = 1
    stream.reply = _framed(conn, p, n)
    if stream.reply == NULL:
        _reset(conn, stream.id, NGHTTP2_INTERNAL_ERROR)
        return
    stream.reply_n = <uint32_t> (PREFIX + n)
    _hold(conn, stream.reply_n)
    _respond(conn, stream, _on_read)


cdef void http2_push(Conn *conn, Stream *stream, const uint8_t *p, size_t n, int code) noexcept nogil:
    cdef uint8_t *made
    if code < 0 and conn.draining == 2:
        code = CODE_UNAVAILABLE
    if not stream.answered and p == NULL and code > 0:
        stream.code = code
        http2_refuse(conn, stream, code, text_of(b""))
        return
    if p != NULL:
        made = _framed(conn, p, n)
        if made == NULL:
            _reset(conn, stream.id, NGHTTP2_INTERNAL_ERROR)
            return
        _hold(conn, <int64_t> (PREFIX + n) - stream.after_n)
        block_give(&conn.door.reserve, stream.after)
        stream.after, stream.after_n = made, <uint32_t> (PREFIX + n)
    stream.code = code
    if not stream.answered:
        stream.answered = 1
        _respond(conn, stream, _on_read_more)
    else:
        _resume(conn, stream)


cdef void _resume(Conn *conn, Stream *stream) noexcept nogil:
    if stream.deferred:
        stream.deferred = 0
        if nghttp2_session_resume_data(conn.session, stream.id) == NGHTTP2_ERR_NOMEM:
            _end(conn, CAUSE_MEMORY)


cdef size_t _decimal(int code, char *out) noexcept nogil:
    if code < 10:
        out[0] = <char> (c"0" + code)
        return 1
    out[0], out[1] = <char> (c"0" + code // 10), <char> (c"0" + code % 10)
    return 2


cdef void http2_refuse(Conn *conn, Stream *stream, int code, Text why) noexcept nogil:
    """Trailers-Only (PROTOCOL-HTTP2.md): one header block that ends the stream."""
    cdef nghttp2_nv headers[5]
    cdef char number[2]
    cdef char shown[SHOWN_MAX]
    cdef size_t n = 4
    stream.answered = 1
    stream.refusal = code
    if 0 <= code < STATUSES:
        conn.door.stats.statuses[code] += 1
    _constant(&headers[0], b":status", stream.http_status)
    _constant(&headers[1], b"content-type", b"application/grpc")
    _header(&headers[2], b"grpc-status", number, _decimal(code, number))
    _header(&headers[3], b"grpc-message", shown, grpc_message(why, shown, SHOWN_MAX))
    if code == CODE_UNIMPLEMENTED:
        _constant(&headers[4], b"grpc-accept-encoding", b"identity")
        n = 5
    if nghttp2_submit_response(conn.session, stream.id, headers, n, NULL):
        _end(conn, CAUSE_MEMORY)


# ---------------------------------------------------------------- CheckStream

cdef bint http2_stalled(const Conn *conn, const Talk *talk) noexcept nogil:
    return talk.waiting >= conn.door.limits.talk_waiting or (
        talk.out_n - talk.out_at >= conn.door.limits.talk_bytes
    )


cdef void http2_wants(Conn *conn, Stream *stream) noexcept nogil:
    if not stream.queued and stream.code < 0:
        _queue(conn, stream)


cdef void http2_talk(Conn *conn, Stream *stream) noexcept nogil:
    stream.answered = 1
    stream.talk.begun = 1
    stream.talk.next = conn.door.talks
    if conn.door.talks != NULL:
        conn.door.talks.prev = stream.talk
    conn.door.talks = stream.talk
    conn.door.stats.talks += 1
    _respond(conn, stream, _on_read_talk)


cdef void http2_say(Conn *conn, Stream *stream, const uint8_t *p, size_t n) noexcept nogil:
    cdef int64_t more = talk_say(&conn.door.reserve, stream.talk, p, n, conn.door.now_ns)
    if more < 0:
        _reset(conn, stream.id, NGHTTP2_INTERNAL_ERROR)
        return
    _hold(conn, more)
    _resume(conn, stream)


cdef void http2_finish(Conn *conn, Stream *stream, int code, Text why) noexcept nogil:
    if stream.code >= 0:
        return
    stream.code = code
    conn.unheard |= not stream.ended
    if code < STATUSES:
        conn.door.stats.statuses[code] += code != 0
    stream.talk.why_n = min(why.n, <uint32_t> WHY_MAX)
    memcpy(stream.talk.why, why.p, stream.talk.why_n)
    _resume(conn, stream)


cdef void http2_heard(Conn *conn, Stream *stream, Text message) noexcept nogil:
    _hold(conn, -talk_done(&conn.door.reserve, stream.talk, message))
    stream.talk.part_ns = 0


cdef void http2_go_on(Conn *conn, Stream *stream) noexcept nogil:
    """What came is looked at: it has the time of a call for the rest of its message, and window for more."""
    cdef Talk *talk = stream.talk
    cdef Text message
    cdef int code
    cdef const char *why
    cdef int cut = talk_cut(talk, conn.door.limits.message_bytes, &message, &code, &why)
    if cut != CUT_PART:
        talk.part_ns = 0
    elif talk.part_ns == 0:
        talk.part_ns = conn.door.now_ns
    if talk.owed:
        _more_window(conn, stream.id, talk.owed)
        talk.owed = 0
    if cut >= CUT_MESSAGE or stream.ended or stream.refusal or talk.leaving:
        http2_wants(conn, stream)


cdef void _tick_talk(Conn *conn, Stream *stream) noexcept nogil:
    """A CheckStream may be silent for as long as it likes; what it has begun, and its answers, must come to an end."""
    cdef Talk *talk = stream.talk
    cdef int64_t now = conn.door.now_ns
    if stream.timeout_ns >= 0 and now - stream.opened_ns >= stream.timeout_ns:
        http2_finish(conn, stream, CODE_DEADLINE_EXCEEDED, text_of(b"late"))
    if (talk.part_ns and now - talk.part_ns > conn.door.limits.stream_ns and not http2_stalled(conn, talk)) or (
        talk.due_ns and now - talk.due_ns > conn.door.limits.stream_ns
    ):
        _reset(conn, stream.id, NGHTTP2_CANCEL)


cdef size_t http2_pull(Conn *conn, uint8_t *out, size_t cap) noexcept nogil:
    cdef const uint8_t *p
    cdef size_t n = 0
    cdef ssize_t got
    while cap - n > FRAME_ROOM:
        got = nghttp2_session_mem_send(conn.session, &p)
        if got < 0:
            _end(conn, CAUSE_MEMORY if got == NGHTTP2_ERR_NOMEM else CAUSE_PROTOCOL)
            break
        if got == 0:
            break
        if <size_t> got > cap - n:
            _end(conn, CAUSE_MEMORY)
            break
        memcpy(out + n, p, got)
        n += got
    if reserve_was_short(&conn.door.reserve):
        _end(conn, CAUSE_MEMORY)
    return n


cdef bint http2_over(Conn *conn) noexcept nogil:
    return not nghttp2_session_want_read(conn.session) and not nghttp2_session_want_write(conn.session)


cdef size_t http2_farewell(Conn *conn, uint8_t *out) noexcept nogil:
    # Written by hand: after a failed callback nghttp2 must not be asked for anything.
    cdef uint32_t last = <uint32_t> nghttp2_session_get_last_proc_stream_id(conn.session)
    cdef uint32_t code = NGHTTP2_NO_ERROR
    cdef int i
    if conn.cause in (CAUSE_RESETS, CAUSE_FAULTS, CAUSE_FLOOD):
        code = NGHTTP2_ENHANCE_YOUR_CALM
    elif conn.cause == CAUSE_PROTOCOL:
        code = NGHTTP2_PROTOCOL_ERROR
    elif conn.cause == CAUSE_MEMORY:
        code = NGHTTP2_INTERNAL_ERROR
    conn.door.stats.goaways[conn.cause] += 1
    memset(out, 0, 9)
    out[2], out[3] = 8, 7
    for i in range(4):
        out[9 + i] = <uint8_t> (last >> (24 - 8 * i))
        out[13 + i] = <uint8_t> (code >> (24 - 8 * i))
    return 17


cdef void http2_drain(Conn *conn, int cause) noexcept nogil:
    if conn.draining:
        return
    conn.draining = 1
    conn.drain_cause = cause
    conn.drained_ns = conn.door.now_ns
    # What the peer sent before it heard of the end is still answered; its ping reply says that it has heard.
    if nghttp2_submit_shutdown_notice(conn.session) or nghttp2_submit_ping(
        conn.session, NGHTTP2_FLAG_NONE, PING_DRAIN
    ):
        _end(conn, CAUSE_MEMORY)


cdef void http2_drain_last(Conn *conn) noexcept nogil:
    cdef Stream *stream = conn.first
    if conn.draining == 2:
        return
    conn.draining = 2
    while stream != NULL:
        # A stream of several messages would go on for ever.
        if stream.ticket != NULL and stream.answered and stream.code < 0:
            http2_push(conn, stream, NULL, 0, CODE_UNAVAILABLE)
        if stream.talk != NULL:
            stream.talk.leaving = 1
            http2_wants(conn, stream)
        stream = stream.next
    if nghttp2_submit_goaway(
        conn.session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(conn.session), NGHTTP2_NO_ERROR,
        NULL, 0
    ):
        _end(conn, CAUSE_MEMORY)


cdef void _tick_slow(Conn *conn, Stream *stream) noexcept nogil:
    """A call in the slow lane: its first answer is due by its deadline or ours, the end of its stream by its own."""
    cdef int64_t timeout = stream.timeout_ns
    if timeout < 0:
        timeout = conn.door.limits.watch_ns if stream.answered else conn.door.limits.deadline_ns
    timeout = min(timeout, conn.door.limits.watch_ns)
    if conn.door.now_ns - stream.opened_ns < timeout or stream.code >= 0:
        return
    if stream.answered:
        http2_push(conn, stream, NULL, 0, CODE_DEADLINE_EXCEEDED)
    else:
        conn.door.stats.refused += 1
        http2_refuse(conn, stream, CODE_DEADLINE_EXCEEDED, text_of(b"late"))
        stream.code = CODE_DEADLINE_EXCEEDED


cdef void http2_tick(Conn *conn) noexcept nogil:
    cdef int64_t now = conn.door.now_ns
    cdef Stream *stream = conn.first
    # They stand in the order of opening: behind one that has time left only those with clocks of their own have none.
    while stream != NULL and (conn.lasting or now - stream.opened_ns > conn.door.limits.stream_ns):
        if stream.ticket != NULL and stream.code < 0:
            _tick_slow(conn, stream)
        elif stream.talk != NULL and stream.talk.begun:
            _tick_talk(conn, stream)
        elif now - stream.opened_ns > conn.door.limits.stream_ns and stream.queued == 0:
            _reset(conn, stream.id, NGHTTP2_CANCEL)
        stream = stream.next
    if not conn.pinged and now - conn.heard_ns > conn.door.limits.keepalive_ns:
        conn.pinged, conn.pinged_ns = 1, now
        if nghttp2_submit_ping(conn.session, NGHTTP2_FLAG_NONE, PING_ALIVE):
            _end(conn, CAUSE_MEMORY)


cdef uint32_t http2_shed(Conn *conn, uint32_t most) noexcept nogil:
    cdef uint32_t freed = 0
    while freed < most and conn.first != NULL:
        _free(conn, conn.first)
        freed += 1
    return freed


cdef void http2_close(Conn *conn) noexcept nogil:
    while conn.first != NULL:
        _free(conn, conn.first)
    block_give(&conn.door.reserve, conn.dropped)
    conn.dropped = NULL
    if conn.session != NULL:
        nghttp2_session_del(conn.session)
        conn.session = NULL
        # What this connection lacked is not the fault of the next.
        reserve_was_short(&conn.door.reserve)
