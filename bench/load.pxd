"""A load client that checks every answer: HTTP/2 on nghttp2, TLS on OpenSSL, one thread without the GIL."""
from fastpath.c.nghttp2 cimport nghttp2_nv, nghttp2_session, nghttp2_session_callbacks
from fastpath.c.openssl_ssl cimport SSL, SSL_CTX
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    MARKS_MAX = 4            # places in a body that are different in each call
    REPLY_MAX = 4096         # bytes of an answer that are looked at
    DEPTH_MAX = 4            # fields to the value that is judged
    HEADERS_MAX = 24


cdef enum Wrong:             # why an answer does not count
    WRONG_RESET = 0
    WRONG_HTTP = 1           # another :status
    WRONG_GRPC = 2           # another grpc-status than 0, or none
    WRONG_MESSAGE = 3        # not one whole message, or a body of another length
    WRONG_ANSWER = 4         # a message that says something else
    WRONG_GONE = 5           # the connection ended first
    WRONG_MISSING = 6        # no answer when time was up
    WRONGS = 7


cdef struct Question:
    const uint8_t *p         # the body, with its gRPC prefix; borrowed from Questions
    uint32_t n
    uint32_t marks
    uint32_t mark[MARKS_MAX]     # where 16 hexadecimal digits are put, other ones in each call
    int64_t value            # what must stand at the end of the path
    uint32_t present         # a field that the answer must have; 0: any


cdef struct Form:            # how all answers of a run are judged
    int grpc
    int http_status
    int64_t length           # of the body when it is not gRPC; -1: any
    uint32_t path[DEPTH_MAX]     # field numbers that lead to the value
    uint32_t depth


cdef struct Slot:            # one call in flight
    Slot *next_free
    const Question *question
    int64_t due_ns           # when it was to start
    int64_t start_ns
    int64_t sent_ns          # its last bytes were given to the socket
    int http_status
    int grpc_status          # -1: none came
    uint8_t *body            # its own copy, since digits are put into it
    uint32_t body_at
    uint32_t reply_n         # bytes received, also those beyond REPLY_MAX
    uint8_t reply[REPLY_MAX]


cdef struct Conn:
    void *load               # LoadState *
    nghttp2_session *session
    SSL *tls
    int fd
    int over                 # nothing more comes
    int leaving              # the peer sent GOAWAY
    int settled              # the peer's SETTINGS arrived
    int writing              # epoll waits for room to write
    int dirty                # a call was submitted and is not flushed
    uint32_t in_flight
    Slot *slots
    uint8_t *bodies
    Slot *free_slots
    uint8_t *rest            # owned; bytes that the socket did not take yet
    size_t rest_n
    size_t rest_at


cdef struct LoadState:       # one run
    const Question *questions
    uint32_t question_count
    Form form
    uint64_t total
    uint64_t started
    uint64_t done            # answered or lost
    uint64_t good
    uint64_t wrong[WRONGS]
    int first_wrong          # a Wrong, or -1
    Slot first               # the call of the first wrong answer
    uint32_t outstanding     # closed loop: calls per connection; open loop: most that may wait
    int64_t interval_ns      # open loop: between two starts; 0: closed loop
    int64_t began_ns
    int64_t now_ns
    int64_t end_ns           # give up
    int64_t last_ns          # last answer
    uint64_t mark            # digits of the next call
    int64_t *latency_ns      # by order of answers
    int64_t *late_ns         # how late each call started
    int64_t *served_ns       # from sent to arrived, when the kernel stamps what arrives
    int64_t arrived_ns       # the bytes that are being parsed


cdef class Questions:
    cdef Form form
    cdef Question *questions
    cdef readonly uint32_t count
    cdef readonly uint32_t bytes_max
    cdef list _bodies

    cdef int _fill(self, Question *question, bytes body, bytes mark) except -1


cdef class Load:
    cdef LoadState state
    cdef Conn *conns
    cdef readonly uint32_t connections
    cdef uint32_t turn           # the connection that the next call of an open loop tries first
    cdef int epoll
    cdef int spin
    cdef int stamps
    cdef uint8_t *box            # INBOX + OUTBOX bytes
    cdef SSL_CTX *ctx
    cdef nghttp2_session_callbacks *callbacks
    cdef nghttp2_nv headers[HEADERS_MAX]
    cdef size_t header_count
    cdef list _texts             # keeps the headers' bytes

    cdef int _header(self, bytes name, bytes value) except -1
    cdef int _open(self, Conn *conn) except -1
    cdef int _settle(self, Conn *conn) except -1
    cdef object _run(self, Questions questions, uint64_t calls, double timeout_s)
