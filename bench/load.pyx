"""One epoll loop that asks, reads and judges. Closed loop for ceilings, open loop with scheduled starts for latency."""
from bench.c.nghttp2_client cimport (
    NGHTTP2_SETTINGS_ENABLE_PUSH, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
    nghttp2_session_client_new2, nghttp2_session_get_remote_settings, nghttp2_submit_request,
)
from bench.c.openssl_client cimport (
    SSL_CTX_load_verify_locations, SSL_CTX_set_alpn_protos, SSL_CTX_use_PrivateKey_file,
    SSL_CTX_use_certificate_chain_file, SSL_FILETYPE_PEM, SSL_get_cipher_name, SSL_set_connect_state, TLS1_3_VERSION,
    TLS_client_method,
)
from fastpath.c.linux cimport (
    EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, MSG_NOSIGNAL, SOL_SOCKET, epoll_create1, epoll_ctl,
    epoll_event, recv, send, setsockopt,
)
from fastpath.c.nghttp2 cimport (
    NGHTTP2_DATA_FLAG_EOF, NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_NONE, NGHTTP2_GOAWAY, NGHTTP2_NV_FLAG_NO_COPY_NAME,
    NGHTTP2_NV_FLAG_NO_COPY_VALUE, NGHTTP2_SETTINGS, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, nghttp2_data_provider,
    nghttp2_data_source, nghttp2_frame, nghttp2_session, nghttp2_session_callbacks_del, nghttp2_session_callbacks_new,
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback, nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_callbacks_set_on_header_callback, nghttp2_session_callbacks_set_on_stream_close_callback,
    nghttp2_session_del, nghttp2_session_get_stream_user_data, nghttp2_session_mem_recv, nghttp2_session_mem_send,
    nghttp2_session_set_local_window_size, nghttp2_session_want_read, nghttp2_session_want_write,
    nghttp2_settings_entry, nghttp2_submit_settings,
)
from fastpath.c.openssl_ssl cimport (
    SSL_CTX_free, SSL_CTX_new, SSL_CTX_set_min_proto_version, SSL_CTX_set_mode, SSL_CTX_set_verify,
    SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_ENABLE_PARTIAL_WRITE,
    SSL_VERIFY_PEER, SSL_do_handshake, SSL_free, SSL_get_error, SSL_has_pending, SSL_new, SSL_read, SSL_set_fd,
    SSL_write,
)
from fastpath.wire cimport Reader, Text, WIRE_BYTES, WIRE_VARINT, WireField, reader_next, reader_open
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport atoi, calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close

import array
import os
import socket
import time

cdef extern from "<sys/epoll.h>" nogil:
    int epoll_pwait2(int epoll, epoll_event *events, int n, const timespec *timeout, const void *signals)

cdef extern from * nogil:
    """
    #include <sys/socket.h>
    #include <time.h>
    /* As recv. `*at_ns` is when the last of these bytes came to the socket, by the real time clock; else unchanged. */
    static ssize_t load_receive_stamped(int fd, void *buf, size_t n, int64_t *at_ns) {
        union { char room[CMSG_SPACE(sizeof(struct timespec))]; struct cmsghdr align; } control;
        struct iovec part = {buf, n};
        struct msghdr message = {0};
        struct cmsghdr *at;
        message.msg_iov = &part, message.msg_iovlen = 1;
        message.msg_control = control.room, message.msg_controllen = sizeof(control.room);
        ssize_t got = recvmsg(fd, &message, 0);
        for (at = got > 0 ? CMSG_FIRSTHDR(&message) : NULL; at; at = CMSG_NXTHDR(&message, at)) {
            if (at->cmsg_level == SOL_SOCKET && at->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec t;
                memcpy(&t, CMSG_DATA(at), sizeof(t));
                *at_ns = (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
            }
        }
        return got;
    }
    """
    ssize_t load_receive_stamped(int fd, void *buf, size_t n, int64_t *at_ns)
    int SO_TIMESTAMPNS

cdef enum:
    INBOX = 65536
    OUTBOX = 131072
    FRAME_MAX = 16384 + 9    # the most that nghttp2 gives at once
    EVENTS = 64
    PREFIX = 5               # flag and length of a gRPC message
    DIGITS = 16
    WINDOW = 1 << 24
    PUMP_EVERY = 64          # connections opened between two looks at those that are open
    WAIT_NS = 100000000
    SETTLE_S = 20

cdef int64_t SECOND_NS = 1000000000

WRONG_NAMES = ("reset", "http status", "grpc-status", "message", "answer", "connection gone", "missing")


cdef int64_t _read_clock(int which) noexcept nogil:
    cdef timespec t
    clock_gettime(which, &t)
    return <int64_t> t.tv_sec * 1000000000 + t.tv_nsec


cdef int64_t _clock() noexcept nogil:
    return _read_clock(CLOCK_MONOTONIC)


# ---------------------------------------------------------------- judging

cdef bint _field(Text message, uint32_t number, WireField *found) noexcept nogil:
    """The last field of that number; false when there is none or the message is broken."""
    cdef Reader reader
    cdef WireField field
    cdef bint there = False
    reader_open(&reader, message)
    while reader_next(&reader, &field):
        if field.number == number:
            found[0] = field
            there = True
    return there and reader.error == 0


cdef int64_t _value(Text message, const Form *form) noexcept nogil:
    """The varint at the end of the path; 0 when it is not there, as proto3 has it."""
    cdef WireField field
    cdef uint32_t i
    for i in range(form.depth):
        if not _field(message, form.path[i], &field):
            return 0
        if i + 1 < form.depth:
            if field.type != WIRE_BYTES:
                return -1
            message = field.bytes
    return <int64_t> field.v if field.type == WIRE_VARINT else -1


cdef int _judge(const Form *form, const Slot *slot) noexcept nogil:
    """A Wrong, or -1."""
    cdef Text message
    cdef WireField field
    if slot.http_status != form.http_status:
        return WRONG_HTTP
    if not form.grpc:
        return WRONG_MESSAGE if form.length >= 0 and slot.reply_n != form.length else -1
    if slot.grpc_status != 0:
        return WRONG_GRPC
    if slot.reply_n < PREFIX or slot.reply_n > REPLY_MAX or slot.reply[0]:
        return WRONG_MESSAGE
    message.p, message.n = <const char *> slot.reply + PREFIX, slot.reply_n - PREFIX
    if ((<uint32_t> slot.reply[1] << 24) | (<uint32_t> slot.reply[2] << 16) | (slot.reply[3] << 8)
            | slot.reply[4]) != message.n:
        return WRONG_MESSAGE
    if slot.question.present and not _field(message, slot.question.present, &field):
        return WRONG_ANSWER
    return -1 if _value(message, form) == slot.question.value else WRONG_ANSWER


cdef void _count(LoadState *state, const Slot *slot, int wrong) noexcept nogil:
    state.latency_ns[state.done] = state.now_ns - slot.due_ns
    state.late_ns[state.done] = slot.start_ns - slot.due_ns
    state.served_ns[state.done] = state.arrived_ns - slot.sent_ns
    state.done += 1
    state.last_ns = state.now_ns
    if wrong < 0:
        state.good += 1
        return
    state.wrong[wrong] += 1
    if state.first_wrong < 0:
        state.first_wrong = wrong
        state.first = slot[0]


# ---------------------------------------------------------------- callbacks of nghttp2

cdef int _on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_n,
                    const uint8_t *value, size_t value_n, uint8_t flags, void *data) noexcept nogil:
    cdef Slot *slot = <Slot *> nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    # nghttp2 ends names and values with a NUL.
    if slot != NULL and name_n == 7 and memcmp(name, b":status", 7) == 0:
        slot.http_status = atoi(<const char *> value)
    elif slot != NULL and name_n == 11 and memcmp(name, b"grpc-status", 11) == 0:
        slot.grpc_status = atoi(<const char *> value)
    return 0


cdef int _on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *p, size_t n,
                  void *data) noexcept nogil:
    cdef Slot *slot = <Slot *> nghttp2_session_get_stream_user_data(session, stream_id)
    if slot != NULL:
        if slot.reply_n < REPLY_MAX:
            memcpy(slot.reply + slot.reply_n, p, min(n, <size_t> REPLY_MAX - slot.reply_n))
        slot.reply_n += <uint32_t> n
    return 0


cdef int _on_close(nghttp2_session *session, int32_t stream_id, uint32_t error, void *data) noexcept nogil:
    cdef Conn *conn = <Conn *> data
    cdef LoadState *state = <LoadState *> conn.load
    cdef Slot *slot = <Slot *> nghttp2_session_get_stream_user_data(session, stream_id)
    if slot != NULL:
        _count(state, slot, <int> WRONG_RESET if error else _judge(&state.form, slot))
        slot.next_free = conn.free_slots
        conn.free_slots = slot
        conn.in_flight -= 1
    return 0


cdef int _on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *data) noexcept nogil:
    cdef Conn *conn = <Conn *> data
    if frame.hd.type == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK:
        conn.settled = 1
    elif frame.hd.type == NGHTTP2_GOAWAY:
        conn.leaving = 1
    return 0


cdef ssize_t _body(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t room, uint32_t *flags,
                   nghttp2_data_source *source, void *data) noexcept nogil:
    cdef Slot *slot = <Slot *> source.ptr
    cdef size_t n = min(room, <size_t> (slot.question.n - slot.body_at))
    memcpy(buf, slot.body + slot.body_at, n)
    slot.body_at += <uint32_t> n
    if slot.body_at == slot.question.n:
        flags[0] = NGHTTP2_DATA_FLAG_EOF
        # What is made is sent at once.
        slot.sent_ns = _clock()
    return n


# ---------------------------------------------------------------- asking

cdef void _mark(uint8_t *at, uint64_t number) noexcept nogil:
    cdef const char *digits = "0123456789abcdef"
    cdef int i
    for i in range(DIGITS):
        at[DIGITS - 1 - i] = digits[number & 15]
        number >>= 4


cdef void _submit(Load self, Conn *conn, int64_t due_ns) noexcept nogil:
    """Start one call; there is a free slot."""
    cdef LoadState *state = &self.state
    cdef const Question *question = &state.questions[state.started % state.question_count]
    cdef Slot *slot = conn.free_slots
    cdef nghttp2_data_provider body
    cdef uint32_t i
    conn.free_slots = slot.next_free
    slot.question = question
    slot.due_ns, slot.start_ns, slot.sent_ns = due_ns, state.now_ns, state.now_ns
    slot.http_status = slot.grpc_status = -1
    slot.body_at = slot.reply_n = 0
    memcpy(slot.body, question.p, question.n)
    for i in range(question.marks):
        _mark(slot.body + question.mark[i], state.mark)
    state.mark += 1
    body.source.ptr = slot
    body.read_callback = _body
    state.started += 1
    conn.in_flight += 1
    conn.dirty = 1
    if nghttp2_submit_request(
        conn.session, NULL, self.headers, self.header_count, &body if question.n else NULL, slot
    ) < 0:
        conn.over = 1


cdef bint _has_room(Load self, Conn *conn) noexcept nogil:
    return not conn.over and not conn.leaving and conn.in_flight < self.state.outstanding and (
        conn.in_flight < nghttp2_session_get_remote_settings(conn.session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
    )


cdef void _refill(Load self, Conn *conn) noexcept nogil:
    """Closed loop: as many calls as may be outstanding."""
    while self.state.started < self.state.total and _has_room(self, conn):
        _submit(self, conn, self.state.now_ns)


cdef void _start_due(Load self) noexcept nogil:
    """Open loop: all calls whose time has come, on the connections in turn; what finds no room waits, and is late."""
    cdef LoadState *state = &self.state
    cdef int64_t due
    cdef Conn *conn
    cdef uint32_t tried = 0
    while state.started < state.total and tried < self.connections:
        due = state.began_ns + <int64_t> state.started * state.interval_ns
        if due > state.now_ns:
            break
        conn = &self.conns[self.turn]
        self.turn = (self.turn + 1) % self.connections
        tried += 1
        if _has_room(self, conn):
            _submit(self, conn, due)
            tried = 0


# ---------------------------------------------------------------- one connection

cdef void _lose(Load self, Conn *conn) noexcept nogil:
    """The connection is over: what was in flight on it has no answer."""
    conn.over = 1
    self.state.wrong[<int> WRONG_GONE] += conn.in_flight
    self.state.done += conn.in_flight
    if conn.in_flight and self.state.first_wrong < 0:
        self.state.first_wrong = WRONG_GONE
    conn.in_flight = 0
    close(conn.fd)
    conn.fd = -1


cdef ssize_t _ssl_result(Conn *conn, int n) noexcept nogil:
    cdef int error
    if n > 0:
        return n
    error = SSL_get_error(conn.tls, n)
    return 0 if error == SSL_ERROR_WANT_READ or error == SSL_ERROR_WANT_WRITE else -1


cdef ssize_t _send(Conn *conn, const uint8_t *p, size_t n) noexcept nogil:
    """Bytes that the socket took; 0 when it takes none now, -1 when it is over."""
    cdef ssize_t done
    if conn.tls != NULL:
        return _ssl_result(conn, SSL_write(conn.tls, p, <int> n))
    done = send(conn.fd, p, n, MSG_NOSIGNAL)
    if done < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -1
    return done


cdef size_t _pull(Conn *conn, uint8_t *out) noexcept nogil:
    """Frames of the session, into `out` as many as fit."""
    cdef const uint8_t *p
    cdef size_t n = 0
    cdef ssize_t got
    while n + FRAME_MAX <= OUTBOX:
        got = nghttp2_session_mem_send(conn.session, &p)
        if got <= 0:
            conn.over |= got < 0
            break
        memcpy(out + n, p, got)
        n += got
    return n


cdef bint _send_rest(Load self, Conn *conn) noexcept nogil:
    cdef ssize_t done
    while conn.rest_at < conn.rest_n:
        done = _send(conn, conn.rest + conn.rest_at, conn.rest_n - conn.rest_at)
        if done <= 0:
            conn.over |= done < 0
            return False
        conn.rest_at += done
    free(conn.rest)
    conn.rest = NULL
    conn.rest_n = conn.rest_at = 0
    return True


cdef void _keep(Conn *conn, const uint8_t *p, size_t n) noexcept nogil:
    conn.rest = <uint8_t *> malloc(n)
    conn.over |= conn.rest == NULL
    if conn.rest != NULL:
        memcpy(conn.rest, p, n)
        conn.rest_n, conn.rest_at = n, 0


cdef void _flush(Load self, Conn *conn) noexcept nogil:
    cdef uint8_t *out = self.box + INBOX
    cdef epoll_event event
    cdef size_t n
    cdef ssize_t done
    conn.dirty = 0
    while not conn.over and _send_rest(self, conn):
        n = _pull(conn, out)
        if n == 0:
            break
        done = _send(conn, out, n)
        conn.over |= done < 0
        if done >= 0 and <size_t> done < n:
            _keep(conn, out + done, n - done)
    if conn.writing != (conn.rest != NULL):
        conn.writing = conn.rest != NULL
        event.events = EPOLLIN | (EPOLLOUT if conn.writing else 0)
        event.data.ptr = conn
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, conn.fd, &event)


cdef ssize_t _receive(Load self, Conn *conn) noexcept nogil:
    """Bytes into the inbox; 0 when there are none now, -1 when the connection is over."""
    cdef int64_t at_ns = 0
    cdef ssize_t got
    if conn.tls != NULL:
        return _ssl_result(conn, SSL_read(conn.tls, self.box, INBOX))
    if self.stamps:
        got = load_receive_stamped(conn.fd, self.box, INBOX, &at_ns)
        self.state.arrived_ns = _clock()
        if at_ns:
            # Real time can be set meanwhile, so only the moment since the stamp is measured by it.
            self.state.arrived_ns -= _read_clock(CLOCK_REALTIME) - at_ns
    else:
        got = recv(conn.fd, self.box, INBOX, 0)
    if got < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -1
    return got if got else -1


cdef void _serve(Load self, Conn *conn) noexcept nogil:
    """Read what is there, judge it, ask anew."""
    cdef ssize_t got
    while not conn.over:
        got = _receive(self, conn)
        if got <= 0:
            conn.over |= got < 0
            break
        self.state.now_ns = _clock()
        if nghttp2_session_mem_recv(conn.session, self.box, got) < 0:
            conn.over = 1
        if not (got == INBOX or (conn.tls != NULL and SSL_has_pending(conn.tls))):
            break
    if not conn.over:
        if self.state.interval_ns == 0:
            _refill(self, conn)
        _flush(self, conn)
        conn.over |= not nghttp2_session_want_read(conn.session) and not nghttp2_session_want_write(conn.session)
    if conn.over and conn.fd >= 0:
        _lose(self, conn)


# ---------------------------------------------------------------- the loop

cdef int64_t _patience(Load self) noexcept nogil:
    """How long to wait for answers, ns."""
    cdef LoadState *state = &self.state
    if self.spin:
        return 0
    if state.interval_ns == 0 or state.started >= state.total:
        return WAIT_NS
    return max(<int64_t> 0, min(
        <int64_t> WAIT_NS, state.began_ns + <int64_t> state.started * state.interval_ns - state.now_ns))


cdef void _once(Load self, int64_t wait_ns) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef timespec wait
    cdef int n, i
    cdef Conn *conn
    wait.tv_sec, wait.tv_nsec = wait_ns // SECOND_NS, wait_ns % SECOND_NS
    n = epoll_pwait2(self.epoll, events, EVENTS, &wait, NULL)
    for i in range(n):
        conn = <Conn *> events[i].data.ptr
        if conn.fd >= 0:
            _serve(self, conn)


cdef bint _alive(Load self) noexcept nogil:
    cdef uint32_t i
    for i in range(self.connections):
        if self.conns[i].fd >= 0 and not (self.conns[i].leaving and self.conns[i].in_flight == 0):
            return True
    return False


cdef void _loop(Load self) noexcept nogil:
    cdef LoadState *state = &self.state
    cdef uint32_t i
    while state.done < state.total:
        state.now_ns = _clock()
        if state.now_ns > state.end_ns or not _alive(self):
            break
        if state.interval_ns:
            _start_due(self)
        for i in range(self.connections):
            if state.interval_ns == 0 and state.started < state.total and self.conns[i].in_flight == 0:
                _refill(self, &self.conns[i])
            if self.conns[i].dirty:
                _flush(self, &self.conns[i])
        _once(self, _patience(self))
    state.wrong[<int> WRONG_MISSING] += state.total - state.done
    if state.done < state.total and state.first_wrong < 0:
        state.first_wrong = WRONG_MISSING


# ---------------------------------------------------------------- slots

cdef int _slots(Load self, uint32_t bytes_max) noexcept nogil:
    """Room for the calls of a run. 0, or 1 when memory is short."""
    cdef Conn *conn
    cdef uint32_t i, k
    for i in range(self.connections):
        conn = &self.conns[i]
        conn.slots = <Slot *> calloc(self.state.outstanding, sizeof(Slot))
        conn.bodies = <uint8_t *> malloc(<size_t> self.state.outstanding * bytes_max + 1)
        conn.free_slots = NULL
        conn.in_flight = 0
        if conn.slots == NULL or conn.bodies == NULL:
            return 1
        for k in range(self.state.outstanding):
            conn.slots[k].body = conn.bodies + <size_t> k * bytes_max
            conn.slots[k].next_free = conn.free_slots
            conn.free_slots = &conn.slots[k]
    return 0


cdef void _no_slots(Load self) noexcept nogil:
    cdef uint32_t i
    for i in range(self.connections):
        free(self.conns[i].slots)
        free(self.conns[i].bodies)
        self.conns[i].slots = self.conns[i].free_slots = NULL
        self.conns[i].bodies = NULL
    free(self.state.latency_ns)
    free(self.state.late_ns)
    free(self.state.served_ns)
    self.state.latency_ns = self.state.late_ns = self.state.served_ns = NULL


# ---------------------------------------------------------------- the Python face

cdef class Questions:

    def __init__(self, bodies, *, grpc=True, http_status=200, length=-1, path=(1, 1), bytes mark=b""):
        cdef uint32_t i
        if not bodies or not 0 < len(path) <= DEPTH_MAX or (mark and len(mark) != DIGITS):
            raise ValueError(f"at least one body, 1 to {DEPTH_MAX} fields in `path`, {DIGITS} bytes in `mark`")
        self._bodies = [(b"\0" + len(raw).to_bytes(4, "big") if grpc else b"") + raw for raw, _, _ in bodies]
        self.form.grpc, self.form.http_status, self.form.length = bool(grpc), http_status, length
        self.form.depth = <uint32_t> len(path)
        for i, number in enumerate(path):
            self.form.path[i] = number
        self.count = <uint32_t> len(bodies)
        self.bytes_max = max(len(raw) for raw in self._bodies)
        self.questions = <Question *> calloc(self.count, sizeof(Question))
        if self.questions == NULL:
            raise MemoryError
        for i in range(self.count):
            self._fill(&self.questions[i], self._bodies[i], mark)
            self.questions[i].value, self.questions[i].present = bodies[i][1], bodies[i][2]

    cdef int _fill(self, Question *question, bytes body, bytes mark) except -1:
        cdef Py_ssize_t at = body.find(mark) if mark else -1
        question.p, question.n = body, <uint32_t> len(body)
        while at >= 0:
            if question.marks == MARKS_MAX:
                raise ValueError(f"the mark stands more than {MARKS_MAX} times in a body")
            question.mark[question.marks] = <uint32_t> at
            question.marks += 1
            at = body.find(mark, at + DIGITS)
        return 0

    def __dealloc__(self):
        free(self.questions)


cdef SSL_CTX *_context(str chain, str key, str roots) except NULL:
    cdef SSL_CTX *ctx = SSL_CTX_new(TLS_client_method())
    if ctx == NULL:
        raise MemoryError
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION)
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL)
    if SSL_CTX_use_certificate_chain_file(ctx, chain.encode()) != 1 or (
        SSL_CTX_use_PrivateKey_file(ctx, key.encode(), SSL_FILETYPE_PEM) != 1
        or SSL_CTX_load_verify_locations(ctx, roots.encode(), NULL) != 1
        or SSL_CTX_set_alpn_protos(ctx, b"\x02h2", 3) != 0
    ):
        SSL_CTX_free(ctx)
        raise ValueError(f"`{chain}`, `{key}` and `{roots}` are not a certificate, its key and roots")
    return ctx


def _dial(address):
    """A connected socket's descriptor."""
    made = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    try:
        made.settimeout(SETTLE_S)
        made.connect(address)
        if not isinstance(address, str):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(True)
    except OSError:
        made.close()
        raise
    return made.detach()


cdef class Load:

    def __cinit__(self):
        self.epoll = -1

    def __init__(self, address, headers, *, connections=8, str chain="", str key="", str roots="", stamps=False):
        cdef uint32_t i
        cdef int on = 1
        if stamps and (isinstance(address, str) or chain):
            raise ValueError("only what arrives by TCP without TLS is stamped")
        self.stamps = bool(stamps)
        if not 0 < len(headers) <= HEADERS_MAX or connections < 1:
            raise ValueError(f"1 to {HEADERS_MAX} headers and at least one connection")
        self.box = <uint8_t *> malloc(INBOX + OUTBOX)
        self.conns = <Conn *> calloc(connections, sizeof(Conn))
        if self.box == NULL or self.conns == NULL or nghttp2_session_callbacks_new(&self.callbacks):
            raise MemoryError
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        nghttp2_session_callbacks_set_on_header_callback(self.callbacks, _on_header)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(self.callbacks, _on_data)
        nghttp2_session_callbacks_set_on_stream_close_callback(self.callbacks, _on_close)
        nghttp2_session_callbacks_set_on_frame_recv_callback(self.callbacks, _on_frame)
        self._texts = []
        for name, value in headers:
            self._header(name.encode(), value.encode())
        if chain:
            self.ctx = _context(chain, key, roots)
        for i in range(connections):
            self.conns[i].fd = _dial(address)
            self.connections = i + 1
            if self.stamps and setsockopt(self.conns[i].fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(int)):
                raise OSError(errno, "the kernel stamps nothing that arrives")
            self._open(&self.conns[i])
            if i % PUMP_EVERY == 0:
                self.pump(0)

    cdef int _header(self, bytes name, bytes value) except -1:
        cdef nghttp2_nv *nv = &self.headers[self.header_count]
        self._texts += [name, value]
        nv.name, nv.namelen = name, len(name)
        nv.value, nv.valuelen = value, len(value)
        nv.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
        self.header_count += 1
        return 0

    cdef int _open(self, Conn *conn) except -1:
        """Handshakes of one connection, until its server's SETTINGS are there and acknowledged."""
        cdef nghttp2_settings_entry settings[2]
        cdef epoll_event event
        cdef int done = 1
        conn.load = &self.state
        if self.ctx != NULL:
            conn.tls = SSL_new(self.ctx)
            SSL_set_fd(conn.tls, conn.fd)
            SSL_set_connect_state(conn.tls)
            with nogil:
                done = SSL_do_handshake(conn.tls)
            if done != 1:
                raise ConnectionError("the TLS handshake failed")
        if nghttp2_session_client_new2(&conn.session, self.callbacks, conn, NULL):
            raise MemoryError
        settings[0].settings_id, settings[0].value = NGHTTP2_SETTINGS_ENABLE_PUSH, 0
        settings[1].settings_id, settings[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW
        nghttp2_submit_settings(conn.session, NGHTTP2_FLAG_NONE, settings, 2)
        nghttp2_session_set_local_window_size(conn.session, NGHTTP2_FLAG_NONE, 0, WINDOW)
        os.set_blocking(conn.fd, False)
        event.events = EPOLLIN
        event.data.ptr = conn
        epoll_ctl(self.epoll, EPOLL_CTL_ADD, conn.fd, &event)
        _flush(self, conn)
        self._settle(conn)
        return 0

    cdef int _settle(self, Conn *conn) except -1:
        cdef int64_t end = _clock() + <int64_t> SETTLE_S * SECOND_NS
        with nogil:
            while not conn.settled and not conn.over and _clock() < end:
                _once(self, WAIT_NS)
        if not conn.settled or conn.over:
            raise ConnectionError("the server closed, or sent no SETTINGS")
        return 0

    cdef object _run(self, Questions questions, uint64_t calls, double timeout_s):
        cdef LoadState *state = &self.state
        state.questions, state.question_count, state.form = questions.questions, questions.count, questions.form
        state.total, state.started, state.done, state.good = calls, 0, 0, 0
        memset(state.wrong, 0, sizeof(state.wrong))
        state.first_wrong = -1
        state.mark = time.time_ns()
        state.latency_ns = <int64_t *> calloc(calls, sizeof(int64_t))
        state.late_ns = <int64_t *> calloc(calls, sizeof(int64_t))
        state.served_ns = <int64_t *> calloc(calls, sizeof(int64_t))
        if state.latency_ns == NULL or state.late_ns == NULL or state.served_ns == NULL or (
            _slots(self, questions.bytes_max)
        ):
            _no_slots(self)
            raise MemoryError
        with nogil:
            state.began_ns = state.last_ns = _clock()
            state.end_ns = state.began_ns + <int64_t> (timeout_s * SECOND_NS)
            _loop(self)
        try:
            return self._result()
        finally:
            if state.done < state.total:
                # Answers that come later would find no slot.
                self.close()
            _no_slots(self)

    def _result(self):
        cdef LoadState *state = &self.state
        latency, late, served = array.array("q"), array.array("q"), array.array("q")
        latency.frombytes((<const char *> state.latency_ns)[: state.done * sizeof(int64_t)])
        late.frombytes((<const char *> state.late_ns)[: state.done * sizeof(int64_t)])
        if self.stamps:
            served.frombytes((<const char *> state.served_ns)[: state.done * sizeof(int64_t)])
        return {
            "calls": state.total, "good": state.good,
            "wrong": {name: state.wrong[<int> i] for i, name in enumerate(WRONG_NAMES) if state.wrong[<int> i]},
            "first_wrong": self._first_wrong(),
            "seconds": (state.last_ns - state.began_ns) / 1e9, "latency_ns": latency, "late_ns": late,
            "served_ns": served,
        }

    def _first_wrong(self):
        cdef const Slot *slot = &self.state.first
        if self.state.first_wrong < 0:
            return ""
        name = WRONG_NAMES[self.state.first_wrong]
        if self.state.first_wrong >= WRONG_GONE:
            return name
        reply = (<const char *> slot.reply)[: min(slot.reply_n, <uint32_t> REPLY_MAX)]
        return f"{name}: http {slot.http_status}, grpc-status {slot.grpc_status}, {slot.reply_n} bytes {reply!r}"

    def closed(self, Questions questions not None, uint64_t calls, uint32_t outstanding, *, spin=False,
               double timeout_s=60.0):
        self.state.outstanding, self.state.interval_ns = outstanding, 0
        self.spin = bool(spin)
        return self._run(questions, calls, timeout_s)

    def open(self, Questions questions not None, uint64_t calls, double rate, *, spin=True, uint32_t in_flight=256,
             double timeout_s=60.0):
        self.state.outstanding = in_flight
        self.state.interval_ns = max(<int64_t> 1, <int64_t> (SECOND_NS / rate))
        self.spin = bool(spin)
        return self._run(questions, calls, timeout_s)

    def pump(self, ms):
        cdef int64_t end = _clock() + <int64_t> ms * 1000000
        with nogil:
            while True:
                _once(self, max(<int64_t> 0, end - _clock()))
                if _clock() >= end:
                    break

    def cipher(self):
        return SSL_get_cipher_name(self.conns[0].tls).decode() if self.ctx != NULL else ""

    def close(self):
        cdef uint32_t i
        for i in range(self.connections):
            if self.conns[i].fd >= 0:
                close(self.conns[i].fd)
            self.conns[i].fd = -1
            self.conns[i].over = 1

    def __dealloc__(self):
        cdef uint32_t i
        self.close()
        _no_slots(self)
        for i in range(self.connections):
            nghttp2_session_del(self.conns[i].session)
            SSL_free(self.conns[i].tls)
            free(self.conns[i].rest)
        free(self.conns)
        free(self.box)
        SSL_CTX_free(self.ctx)
        nghttp2_session_callbacks_del(self.callbacks)
        if self.epoll >= 0:
            close(self.epoll)
