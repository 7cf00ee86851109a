"""HTTP/2 sessions of the native doors on nghttp2, and what comes in on them, with accounting of our own.

nghttp2 1.52 counts neither headers nor what a peer makes us reset, and drops headers with illegal values silently, so
all of that is counted and refused here (RFC 9113 sections 8.2.1, 8.3, 10.5).
"""
from fastpath.accounts cimport (
    FAULTS_BURST, FRAMES_BURST, FRAMES_PER_REQUEST, RESETS_BURST, RESETS_PER_S, account_door_held, account_fault,
    account_hold, account_toll, bucket_refill, stop_parsing,
)
from fastpath.c.nghttp2 cimport (
    NGHTTP2_DATA, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_ERR_CALLBACK_FAILURE, NGHTTP2_ERR_CANCEL, NGHTTP2_ERR_FLOODED,
    NGHTTP2_ERR_NOMEM, NGHTTP2_ERR_REFUSED_STREAM, NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_FLAG_ACK,
    NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE, NGHTTP2_GOAWAY, NGHTTP2_HCAT_REQUEST, NGHTTP2_HEADERS,
    NGHTTP2_NO_ERROR, NGHTTP2_PING, NGHTTP2_PRIORITY, NGHTTP2_PROTOCOL_ERROR, NGHTTP2_REFUSED_STREAM,
    NGHTTP2_RST_STREAM, NGHTTP2_SETTINGS, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS,
    NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, nghttp2_frame, nghttp2_frame_hd,
    nghttp2_mem, nghttp2_option, nghttp2_option_new, nghttp2_option_set_max_outbound_ack,
    nghttp2_option_set_no_auto_window_update, nghttp2_option_set_no_closed_streams,
    nghttp2_option_set_user_recv_extension_type, nghttp2_session, nghttp2_session_callbacks,
    nghttp2_session_callbacks_new, nghttp2_session_callbacks_set_on_begin_frame_callback,
    nghttp2_session_callbacks_set_on_begin_headers_callback,
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback, nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_callbacks_set_on_frame_send_callback, nghttp2_session_callbacks_set_on_header_callback,
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback,
    nghttp2_session_callbacks_set_on_invalid_header_callback, nghttp2_session_callbacks_set_on_stream_close_callback,
    nghttp2_session_callbacks_set_unpack_extension_callback, nghttp2_session_consume_connection,
    nghttp2_session_consume_stream, nghttp2_session_del, nghttp2_session_get_outbound_queue_size,
    nghttp2_session_mem_recv, nghttp2_session_server_new3, nghttp2_session_set_local_window_size,
    nghttp2_session_set_stream_user_data, nghttp2_settings_entry, nghttp2_submit_settings,
)
from fastpath.call_headers cimport header_field, header_pseudo, headers_end
from fastpath.framing cimport FRAME_PREFACE, framing_feed
from fastpath.grpc_text cimport CODE_INTERNAL, CODE_RESOURCE_EXHAUSTED, CODE_UNIMPLEMENTED
from fastpath.http2_out cimport http2_on_pong, http2_on_sent, http2_reset
from fastpath.open_streams cimport (
    stream_drop, stream_free, stream_is_dropped, stream_note, stream_of, stream_open, stream_queue, stream_unqueue,
    stream_wants, streams_advance,
)
from fastpath.reserve cimport block_give, block_grow, block_take, reserve_mem, reserve_was_short
from fastpath.talk cimport CUT_MESSAGE, CUT_PART, Talk, talk_cut, talk_done, talk_take, talk_whole, talk_would_take
from fastpath.wire cimport Text
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

cdef enum:
    BODY_FIRST = 256         # least allocation for a message; it grows with what really arrives
    WINDOW = 1 << 20         # bytes that a connection may send before we take them
    TAKEN = 1 << 16          # bytes of a connection for which new window is given at once
    EAGER = 16384            # bytes of a stream for which no new window is given: most end before
    QUEUE_MAX = 1000         # frames of ours that wait
    FAULT_CALLS = 16         # answered calls that give a fault back; each gives a reset back
    EARLY_MAX = 4096         # streams over the limit that a peer may open before our SETTINGS can have reached it
    PRIORITY_TOKENS = 16     # of a frame that means nothing here (RFC 9113 section 5.3.2): more than a request gives
    TYPES_KNOWN = 10         # frame types of RFC 9113

cdef nghttp2_session_callbacks *_callbacks = NULL
cdef nghttp2_option *_option = NULL


# ---------------------------------------------------------------- callbacks: received

cdef int _on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef int tokens
    conn.door.stats.frames_in += 1
    if hd.type == NGHTTP2_HEADERS and hd.stream_id > conn.last_id:
        streams_advance(conn, hd.stream_id)
        return 0
    if hd.type == NGHTTP2_HEADERS and stream_of(conn, hd.stream_id) == NULL and (
        not stream_is_dropped(conn, hd.stream_id)
    ):
        # An id that was used or passed over (RFC 9113 section 5.1.1); nghttp2 would ignore it.
        return stop_parsing(conn, CAUSE_PROTOCOL)
    if hd.type == NGHTTP2_PRIORITY and hd.stream_id == 0:
        # RFC 9113 section 6.3; since priorities are off, nghttp2 does not look.
        return stop_parsing(conn, CAUSE_PROTOCOL)
    tokens = 1
    if hd.type == NGHTTP2_PRIORITY:
        tokens = PRIORITY_TOKENS
    elif hd.type == NGHTTP2_HEADERS and stream_of(conn, hd.stream_id) == NULL:
        # Decoded for the sake of the table alone.
        tokens = FRAMES_PER_REQUEST
    return 0 if account_toll(conn, tokens) else NGHTTP2_ERR_CALLBACK_FAILURE


cdef int _on_unknown(nghttp2_session *session, void **payload, const nghttp2_frame_hd *hd, void *user) noexcept nogil:
    """A frame of a type that we do not know is ignored (RFC 9113 section 4.1); _on_begin_frame has counted it."""
    return NGHTTP2_ERR_CANCEL


cdef int _one_too_many(Conn *conn) noexcept nogil:
    """A stream was refused for the limit of streams, which the peer may not have heard of yet (RFC 9113 section 5.1.2).

    Counted here and not when the reset is sent: until then much more could be parsed.
    """
    if conn.settled or conn.early >= EARLY_MAX:
        return account_fault(conn)
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
        http2_reset(conn, frame.hd.stream_id, NGHTTP2_REFUSED_STREAM)
        return _one_too_many(conn) or NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    stream = stream_open(conn, frame.hd.stream_id)
    if stream == NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    nghttp2_session_set_stream_user_data(session, stream.id, stream)
    return 0


cdef int _on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
                    const uint8_t *value, size_t value_n, uint8_t flags, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream = stream_of(conn, frame.hd.stream_id)
    conn.door.stats.headers_in += 1
    if stream == NULL:
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    stream.headers += 1
    stream.header_bytes += <uint32_t> (name_n + value_n + 32)
    if stream.headers > conn.door.limits.headers or stream.header_bytes > conn.door.limits.header_bytes:
        http2_reset(conn, stream.id, NGHTTP2_ENHANCE_YOUR_CALM)
        # Counted here and not when it is sent: until then much more could be parsed.
        return account_fault(conn) or NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if name_n and name[0] == c":":
        header_pseudo(conn.door, stream, name, name_n, value, value_n)
    else:
        header_field(stream, name, name_n, value, value_n)
    return 0


cdef int _on_invalid_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
                            const uint8_t *value, size_t value_n, uint8_t flags, void *user) noexcept nogil:
    # Left out silently, a header that a rule looks for would be absent: the stream ends instead.
    cdef Conn *conn = <Conn *> user
    conn.door.stats.headers_in += 1
    http2_reset(conn, frame.hd.stream_id, NGHTTP2_PROTOCOL_ERROR)
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
        account_door_held(conn.door) > conn.door.limits.door_held
    ):
        return 1
    moved = <uint8_t *> block_grow(&conn.door.reserve, stream.body, stream.body_n, cap)
    if moved == NULL:
        return 1
    account_hold(conn, <int64_t> cap - stream.body_cap)
    stream.body, stream.body_cap = moved, <uint32_t> cap
    return 0


cdef void _prefix(const Door *door, Stream *stream) noexcept nogil:
    """Length-Prefixed-Message (PROTOCOL-HTTP2.md): a flag, four bytes of length. Judged before room is made for it."""
    cdef const uint8_t *p = stream.body
    cdef uint32_t length
    if stream.body_want or stream.body_n < MESSAGE_PREFIX:
        return
    length = (<uint32_t> p[1] << 24) | (<uint32_t> p[2] << 16) | (<uint32_t> p[3] << 8) | p[4]
    if p[0] == 1:
        stream_note(stream, CODE_UNIMPLEMENTED, b"request.compressed", b"200")
    elif p[0] != 0:
        stream_note(stream, CODE_INTERNAL, b"request.framing", b"200")
    elif length > door.limits.message_bytes:
        stream_note(stream, CODE_RESOURCE_EXHAUSTED, b"request.too_large", b"200")
    else:
        stream.body_want = MESSAGE_PREFIX + length


cdef void _more_window(Conn *conn, int32_t id, size_t n) noexcept nogil:
    if nghttp2_session_consume_stream(conn.session, id, n) == NGHTTP2_ERR_NOMEM:
        stop_parsing(conn, CAUSE_MEMORY)


cdef void _more_of_all(Conn *conn) noexcept nogil:
    """What came is taken in, whatever became of its stream."""
    if nghttp2_session_consume_connection(conn.session, conn.taken) == NGHTTP2_ERR_NOMEM:
        stop_parsing(conn, CAUSE_MEMORY)
    conn.taken = 0


cdef int _on_talk(Conn *conn, Stream *stream, const uint8_t *p, size_t n) noexcept nogil:
    """Bytes of a CheckStream."""
    cdef Talk *talk = stream.talk
    cdef int64_t more = talk_would_take(talk, n)
    if stream.code >= 0:
        return 0
    if conn.held + more > conn.door.limits.held or account_door_held(conn.door) > conn.door.limits.door_held:
        more = -1
    else:
        more = talk_take(&conn.door.reserve, talk, p, n)
    if more < 0:
        stream_note(stream, CODE_RESOURCE_EXHAUSTED, b"request.memory", b"200")
        stream_wants(conn, stream)
        return 0
    account_hold(conn, more)
    # Each question may come in as many frames as a call.
    conn.frames.tokens = min(<int64_t> FRAMES_BURST, conn.frames.tokens + FRAMES_PER_REQUEST * talk_whole(talk))
    talk.owed += <uint32_t> n
    if not http2_stalled(conn, talk):
        http2_go_on(conn, stream)
    return 0


cdef int _on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *p, size_t n,
                  void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream = stream_of(conn, id)
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
        stream_note(stream, CODE_INTERNAL, b"request.framing", b"200")
    elif _grow(conn, stream, n):
        stream_note(stream, CODE_RESOURCE_EXHAUSTED, b"request.memory", b"200")
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
        http2_on_pong(conn, frame.ping.opaque_data)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        conn.left = 1
    elif frame.hd.type == NGHTTP2_HEADERS or frame.hd.type == NGHTTP2_DATA:
        stream = stream_of(conn, frame.hd.stream_id)
        if stream != NULL:
            _on_request_frame(conn, stream, frame)
    return 0


cdef void _new_talk(Conn *conn, Stream *stream) noexcept nogil:
    stream.talk = <Talk *> block_take(&conn.door.reserve, sizeof(Talk))
    if stream.talk == NULL:
        stream_note(stream, CODE_RESOURCE_EXHAUSTED, b"request.memory", b"200")
        return
    memset(stream.talk, 0, sizeof(Talk))
    stream.talk.conn, stream.talk.stream = conn, stream
    conn.lasting = 1


cdef void _on_request_frame(Conn *conn, Stream *stream, const nghttp2_frame *frame) noexcept nogil:
    if frame.hd.type == NGHTTP2_HEADERS:
        if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            headers_end(stream)
            if stream.method == METHOD_STREAM and stream.refusal == 0:
                _new_talk(conn, stream)
        else:
            stream_note(stream, CODE_INTERNAL, b"request.trailers", b"200")
    if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream.ended = 1
    if stream.talk != NULL:
        if frame.hd.type == NGHTTP2_HEADERS or stream.ended:
            stream_wants(conn, stream)
        return
    if stream.answered or stream.queued:
        return
    if stream.ended:
        conn.frames.tokens = min(<int64_t> FRAMES_BURST, conn.frames.tokens + FRAMES_PER_REQUEST)
        stream_queue(conn, stream)
    elif stream.refusal:
        # Known to be none of ours: say so now and read no more of it.
        stream_queue(conn, stream)


cdef int _on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int code, void *user) noexcept nogil:
    # The stream is reset, or its connection ends. Counted here and not when the reset is sent, as in _on_header.
    if frame.hd.stream_id:
        stream_drop(<Conn *> user, frame.hd.stream_id)
    # nghttp2 itself refuses streams over a limit that was not acknowledged.
    return _one_too_many(<Conn *> user) if code == NGHTTP2_ERR_REFUSED_STREAM else account_fault(<Conn *> user)


cdef void _work_done(Conn *conn) noexcept nogil:
    """A call that was answered in order excuses another that was not: an Envoy resets what its clients gave up."""
    conn.resets.tokens = min(<int64_t> RESETS_BURST, conn.resets.tokens + 1)
    conn.answered += 1
    if conn.answered % FAULT_CALLS == 0:
        conn.faults.tokens = min(<int64_t> FAULTS_BURST, conn.faults.tokens + 1)


cdef int _on_close(nghttp2_session *session, int32_t id, uint32_t code, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream = stream_of(conn, id)
    if stream != NULL:
        conn.door.stats.cancelled += stream.queued
        if stream.answered and not stream.refusal and code == <uint32_t> NGHTTP2_NO_ERROR:
            _work_done(conn)
        stream_free(conn, stream)
    return 0


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
    nghttp2_session_callbacks_set_on_frame_send_callback(_callbacks, http2_on_sent)
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
    bucket_refill(&conn.resets, conn.door.now_ns, RESETS_BURST, RESETS_PER_S)
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
        stop_parsing(conn, CAUSE_MEMORY)
    if got >= 0:
        if nghttp2_session_get_outbound_queue_size(conn.session) > QUEUE_MAX + conn.door.limits.streams:
            stop_parsing(conn, CAUSE_FLOOD)
        return
    if got == NGHTTP2_ERR_NOMEM:
        stop_parsing(conn, CAUSE_MEMORY)
    elif got == NGHTTP2_ERR_FLOODED:
        stop_parsing(conn, CAUSE_FLOOD)
    else:
        stop_parsing(conn, CAUSE_PROTOCOL)


cdef Stream *http2_next(Conn *conn) noexcept nogil:
    cdef Stream *stream = conn.ready
    if stream != NULL:
        stream_unqueue(conn, stream)
    return stream


cdef bint http2_message(Stream *stream, Text *message) noexcept nogil:
    if stream.refusal == 0 and (stream.body_want == 0 or stream.body_n != stream.body_want):
        stream_note(stream, CODE_INTERNAL, b"request.framing", b"200")
    if stream.refusal:
        return False
    message.p, message.n = <const char *> stream.body + MESSAGE_PREFIX, stream.body_want - MESSAGE_PREFIX
    return True


cdef bint http2_full(const Conn *conn) noexcept nogil:
    return conn.held > conn.door.limits.held or account_door_held(conn.door) > conn.door.limits.door_held


cdef bint http2_stalled(const Conn *conn, const Talk *talk) noexcept nogil:
    return talk.waiting >= conn.door.limits.talk_waiting or (
        talk.out_n - talk.out_at >= conn.door.limits.talk_bytes
    )


cdef void http2_heard(Conn *conn, Stream *stream, Text message) noexcept nogil:
    account_hold(conn, -talk_done(&conn.door.reserve, stream.talk, message))
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
        stream_wants(conn, stream)


cdef uint32_t http2_shed(Conn *conn, uint32_t most) noexcept nogil:
    cdef uint32_t freed = 0
    while freed < most and conn.first != NULL:
        stream_free(conn, conn.first)
        freed += 1
    return freed


cdef void http2_close(Conn *conn) noexcept nogil:
    while conn.first != NULL:
        stream_free(conn, conn.first)
    block_give(&conn.door.reserve, conn.dropped)
    conn.dropped = NULL
    if conn.session != NULL:
        nghttp2_session_del(conn.session)
        conn.session = NULL
        # What this connection lacked is not the fault of the next.
        reserve_was_short(&conn.door.reserve)
