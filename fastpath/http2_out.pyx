"""What leaves on the sessions of the native doors (http2_out.pxd): answers, trailers, resets and the end."""
from fastpath.accounts cimport account_fault, account_hold, stop_parsing
from fastpath.c.nghttp2 cimport (
    NGHTTP2_CANCEL, NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_END_STREAM, NGHTTP2_ENHANCE_YOUR_CALM,
    NGHTTP2_ERR_DEFERRED, NGHTTP2_ERR_NOMEM, NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_FLAG_END_STREAM,
    NGHTTP2_FLAG_NONE, NGHTTP2_FLOW_CONTROL_ERROR, NGHTTP2_GOAWAY, NGHTTP2_HEADERS, NGHTTP2_INTERNAL_ERROR,
    NGHTTP2_NO_ERROR, NGHTTP2_NV_FLAG_NO_COPY_NAME, NGHTTP2_NV_FLAG_NO_COPY_VALUE, NGHTTP2_PROTOCOL_ERROR,
    NGHTTP2_REFUSED_STREAM, NGHTTP2_RST_STREAM, nghttp2_data_provider, nghttp2_data_source,
    nghttp2_data_source_read_callback, nghttp2_frame, nghttp2_nv, nghttp2_session,
    nghttp2_session_get_last_proc_stream_id, nghttp2_session_mem_send, nghttp2_session_resume_data,
    nghttp2_session_want_read, nghttp2_session_want_write, nghttp2_submit_goaway, nghttp2_submit_ping,
    nghttp2_submit_response, nghttp2_submit_rst_stream, nghttp2_session_terminate_session,
    nghttp2_submit_shutdown_notice, nghttp2_submit_trailer,
)
from fastpath.grpc_text cimport CODE_UNAVAILABLE, CODE_UNIMPLEMENTED, grpc_message
from fastpath.http2 cimport (
    CAUSE_FAULTS, CAUSE_FLOOD, CAUSE_MEMORY, CAUSE_PROTOCOL, CAUSE_RESETS, Conn, FRAME_ROOM, MESSAGE_PREFIX,
    STATUSES, Stream,
)
from fastpath.open_streams cimport stream_drop, stream_is_dropped, stream_of, stream_wants
from fastpath.reserve cimport block_give, block_take, reserve_was_short
from fastpath.talk cimport Talk, WHY_MAX, talk_idle, talk_say, talk_send
from fastpath.wire cimport Text, text_of
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset, strlen

cdef enum:
    SHOWN_MAX = 1024         # bytes of a grpc-message
    PING_BYTES = 8           # that a PING carries (RFC 9113 section 6.7)

cdef const uint8_t *PING_ALIVE = <const uint8_t *> b"alive   "
cdef const uint8_t *PING_DRAIN = <const uint8_t *> b"draining"


# ---------------------------------------------------------------- callbacks: sent

cdef bint _is_fault(uint32_t code) noexcept nogil:
    """Whether a reset of ours that nothing told of before counts when it is sent.

    NO_ERROR follows an answer, CANCEL a stream that came to its time, as many may at once; others were counted before.
    """
    return code != <uint32_t> NGHTTP2_NO_ERROR and code != <uint32_t> NGHTTP2_ENHANCE_YOUR_CALM and (
        code != <uint32_t> NGHTTP2_REFUSED_STREAM and code != <uint32_t> NGHTTP2_CANCEL
    )


cdef int http2_on_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef Conn *conn = <Conn *> user
    cdef Stream *stream
    cdef bint counted
    if frame.hd.type == NGHTTP2_RST_STREAM:
        conn.door.stats.resets_out += 1
        counted = stream_is_dropped(conn, frame.hd.stream_id)
        stream_drop(conn, frame.hd.stream_id)
        if frame.rst_stream.error_code == <uint32_t> NGHTTP2_FLOW_CONTROL_ERROR:
            # A window past 2^31-1 ends the connection (RFC 9113 sections 6.9.1 and 6.9.2); nghttp2 resets the stream.
            nghttp2_session_terminate_session(session, NGHTTP2_FLOW_CONTROL_ERROR)
        if not counted and _is_fault(frame.rst_stream.error_code):
            return account_fault(conn)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        conn.told = conn.draining != 1
        if conn.told:
            conn.door.stats.goaways[conn.drain_cause if conn.draining else <int> CAUSE_PROTOCOL] += 1
    elif frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream = stream_of(conn, frame.hd.stream_id)
        if stream != NULL and not stream.ended:
            # Answered before the request ended: what is left of it is not wanted (RFC 9113 section 8.1).
            http2_reset(conn, stream.id, NGHTTP2_NO_ERROR)
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


cdef ssize_t _end_talk(nghttp2_session *session, int32_t id, int code, Talk *talk,
                       uint32_t *flags) noexcept nogil:
    """The same of a CheckStream, which says why."""
    # `talk` is not const: the temporary that Cython reads its text into would not be either.
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
        account_hold(<Conn *> user, -<int64_t> stream.reply_n)
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
    account_hold(conn, -freed)
    if not talk_idle(talk):
        return <ssize_t> n
    if stream.code >= 0:
        if _end_talk(session, id, stream.code, talk, flags):
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        return <ssize_t> n
    if talk.came_n or talk.news or talk.leaving or stream.ended or stream.refusal:
        stream_wants(conn, stream)
    if n == 0:
        stream.deferred = 1
        return NGHTTP2_ERR_DEFERRED
    return <ssize_t> n


# ---------------------------------------------------------------- answers

cdef uint8_t *_framed(Conn *conn, const uint8_t *p, size_t n) noexcept nogil:
    """A message with its prefix, owned by the caller; NULL when memory is short."""
    cdef uint8_t *made = <uint8_t *> block_take(&conn.door.reserve, MESSAGE_PREFIX + n)
    if made != NULL:
        made[0] = 0
        made[1], made[2], made[3], made[4] = <uint8_t> (n >> 24), <uint8_t> (n >> 16), <uint8_t> (n >> 8), <uint8_t> n
        memcpy(made + MESSAGE_PREFIX, p, n)
    return made


cdef void _respond(Conn *conn, Stream *stream, nghttp2_data_source_read_callback read) noexcept nogil:
    cdef nghttp2_nv headers[2]
    cdef nghttp2_data_provider body
    _constant(&headers[0], b":status", b"200")
    _constant(&headers[1], b"content-type", b"application/grpc")
    body.source.ptr = stream
    body.read_callback = read
    if nghttp2_submit_response(conn.session, stream.id, headers, 2, &body):
        stop_parsing(conn, CAUSE_MEMORY)


cdef void http2_reset(Conn *conn, int32_t id, uint32_t code) noexcept nogil:
    """End one stream; when memory is short for even that, the connection."""
    stream_drop(conn, id)
    if nghttp2_submit_rst_stream(conn.session, NGHTTP2_FLAG_NONE, id, code):
        stop_parsing(conn, CAUSE_MEMORY)


cdef void http2_reply(Conn *conn, Stream *stream, const uint8_t *p, size_t n) noexcept nogil:
    stream.answered = 1
    stream.reply = _framed(conn, p, n)
    if stream.reply == NULL:
        http2_reset(conn, stream.id, NGHTTP2_INTERNAL_ERROR)
        return
    stream.reply_n = <uint32_t> (MESSAGE_PREFIX + n)
    account_hold(conn, stream.reply_n)
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
            http2_reset(conn, stream.id, NGHTTP2_INTERNAL_ERROR)
            return
        account_hold(conn, <int64_t> (MESSAGE_PREFIX + n) - stream.after_n)
        block_give(&conn.door.reserve, stream.after)
        stream.after, stream.after_n = made, <uint32_t> (MESSAGE_PREFIX + n)
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
            stop_parsing(conn, CAUSE_MEMORY)


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
        stop_parsing(conn, CAUSE_MEMORY)


# ---------------------------------------------------------------- CheckStream

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
        http2_reset(conn, stream.id, NGHTTP2_INTERNAL_ERROR)
        return
    account_hold(conn, more)
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


# ---------------------------------------------------------------- bytes, and the end of a connection

cdef size_t http2_pull(Conn *conn, uint8_t *out, size_t cap) noexcept nogil:
    cdef const uint8_t *p
    cdef size_t n = 0
    cdef ssize_t got
    while cap - n > FRAME_ROOM:
        got = nghttp2_session_mem_send(conn.session, &p)
        if got < 0:
            stop_parsing(conn, CAUSE_MEMORY if got == NGHTTP2_ERR_NOMEM else CAUSE_PROTOCOL)
            break
        if got == 0:
            break
        if <size_t> got > cap - n:
            stop_parsing(conn, CAUSE_MEMORY)
            break
        memcpy(out + n, p, got)
        n += got
    if reserve_was_short(&conn.door.reserve):
        stop_parsing(conn, CAUSE_MEMORY)
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
        stop_parsing(conn, CAUSE_MEMORY)


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
            stream_wants(conn, stream)
        stream = stream.next
    if nghttp2_submit_goaway(
        conn.session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(conn.session), NGHTTP2_NO_ERROR,
        NULL, 0
    ):
        stop_parsing(conn, CAUSE_MEMORY)


cdef void http2_ping(Conn *conn) noexcept nogil:
    if nghttp2_submit_ping(conn.session, NGHTTP2_FLAG_NONE, PING_ALIVE):
        stop_parsing(conn, CAUSE_MEMORY)


cdef void http2_on_pong(Conn *conn, const uint8_t *which) noexcept nogil:
    """A ping of ours came back; what answers another one says nothing about this one."""
    if memcmp(which, PING_ALIVE, PING_BYTES) == 0:
        conn.pinged = 0
    elif conn.draining == 1 and memcmp(which, PING_DRAIN, PING_BYTES) == 0:
        http2_drain_last(conn)
