"""One HTTP/2 connection of a native door: streams, unary gRPC framing, and what a peer may cost us (RFC 9113).

Callbacks of nghttp2 only take notes: a request that is complete joins `Conn.ready`, and the loop answers it after the
bytes have been parsed. Nothing here calls Python or blocks.
"""
from fastpath.bells cimport Room
from fastpath.c.nghttp2 cimport nghttp2_session
from fastpath.decide cimport Peer
from fastpath.framing cimport Framing
from fastpath.lane cimport LaneTable, Ticket
from fastpath.line cimport Place
from fastpath.reserve cimport Reserve
from fastpath.talk cimport Talk
from fastpath.wire cimport Text
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef enum Method:            # what a request's :path names
    METHOD_NONE = 0          # nothing that this door serves
    METHOD_EXT_AUTHZ = 1
    METHOD_CHECK = 2
    METHOD_BATCH = 3
    METHOD_HEALTH = 4        # grpc.health.v1.Health/Check
    METHOD_WATCH = 5         # grpc.health.v1.Health/Watch, answered through the slow lane
    METHOD_REPORT = 6
    METHOD_STREAM = 7        # CheckStream: as many questions as its caller likes


cdef enum Cause:             # why a connection ended
    CAUSE_NONE = 0           # it has not
    CAUSE_PEER = 1           # the peer closed it, or the socket failed
    CAUSE_PROTOCOL = 2       # HTTP/2 error that ends a connection (RFC 9113 section 5.4.1)
    CAUSE_RESETS = 3         # the peer reset streams faster than allowed (rapid reset)
    CAUSE_FAULTS = 4         # the peer made us reset streams faster than allowed (MadeYouReset, bad headers)
    CAUSE_FLOOD = 5          # frames that carry no request, faster than allowed; or replies nobody reads
    CAUSE_HANDSHAKE = 6      # no preface and SETTINGS in time, or TLS failed
    CAUSE_SETTINGS = 7       # our SETTINGS were not acknowledged in time
    CAUSE_IDLE = 8
    CAUSE_STALL = 9          # it took no bytes of ours for too long, or did not answer a ping
    CAUSE_AGE = 10
    CAUSE_DRAIN = 11         # the door closed
    CAUSE_MEMORY = 12
    CAUSE_CREDENTIALS = 13   # a Unix peer that may not enter, or a chain that does not verify
    CAUSE_FULL = 14          # too many connections
    CAUSE_CROWD = 15         # too many connections of this peer
    CAUSE_DIED = 16          # the process behind a Unix connection is gone
    CAUSES = 17


cdef enum:
    STATUSES = 17            # gRPC status codes
    FRAME_ROOM = 16448       # a frame of ours with its header: one DATA frame of 16 KiB at most
    MESSAGE_PREFIX = 5       # flag and length before a gRPC message


cdef struct Limits:          # bounds of one door; times in ns
    uint32_t message_bytes   # of one gRPC message
    uint32_t streams         # open at once per connection
    uint32_t headers         # lines of one request
    uint32_t header_bytes    # names and values of one request, and 32 for each (RFC 9113 section 6.5.2)
    uint32_t connections     # of the door, all its loops
    uint32_t handshakes      # of one loop: connections in the TLS handshake
    uint32_t handshakes_per_address
    int64_t held             # bytes of requests and replies that one connection may make us hold
    int64_t door_held        # and all connections of the door
    int64_t keepalive_ns     # of silence before a ping
    int64_t ping_ns          # within which it must be answered
    int64_t handshake_ns
    int64_t settings_ns
    int64_t stream_ns        # a request must have arrived, and its answer been taken, within this
    int64_t deadline_ns      # of a request that names none
    uint32_t tickets         # of one peer in the slow lane
    int64_t watch_ns         # a health Watch ends after this at the latest
    uint32_t talks           # CheckStreams of one peer
    uint32_t talk_waiting    # answers of one that wait, before nothing more of it is read
    uint32_t talk_bytes      # the same in bytes
    int64_t first_request_ns  # after the handshake
    int64_t idle_ns
    int64_t age_ns
    int64_t grace_ns


cdef struct Stats:           # work done; written by the loop's thread alone
    uint64_t accepted
    uint64_t events          # that epoll told of: sockets, processes, other threads
    uint64_t closed[CAUSES]
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t records_in      # of TLS, after the handshake
    uint64_t frames_in
    uint64_t headers_in
    uint64_t streams         # requests begun
    uint64_t calls           # requests that were decided
    uint64_t health
    uint64_t refused         # requests answered with a status of our own, undecided
    uint64_t resets_in
    uint64_t resets_out
    uint64_t cancelled       # complete requests that were gone before they were decided
    uint64_t buffered_max    # most bytes of requests and replies that one connection held
    uint64_t internal        # answers that the data plane left empty
    uint64_t verified        # chains verified
    uint64_t slow            # calls that went to Python
    uint64_t slow_full       # calls refused since the slow lane was full
    uint64_t talks           # CheckStreams begun
    uint64_t notices         # told on them
    uint64_t goaways[CAUSES]  # final GOAWAY frames sent
    uint64_t statuses[STATUSES]  # calls answered with a gRPC status alone, by the status


cdef struct Door:            # one loop of a listening socket; shared by its connections
    Limits limits
    Stats stats
    LaneTable *lane
    int loop                 # its number
    int serves_envoy         # ext_authz, else Check and BatchCheck
    int64_t now_ns           # the loop's clock
    Reserve reserve          # of nghttp2's memory
    int64_t held             # bytes of requests and replies on this loop's connections; atomic
    Room room                # where notices wake it
    Talk *talks              # open CheckStreams of its connections
    Door **beside            # all loops of the listening socket, this one too
    int loops


cdef struct Bucket:          # tokens that come back with time
    int64_t tokens
    int64_t at_ns


cdef struct Stream:
    Stream *prev
    Stream *next             # in the order of opening
    Stream *next_ready
    int32_t id
    int method               # Method
    int queued               # in Conn.ready
    int ended                # the peer has sent all of it
    int answered
    int refusal              # gRPC code of a request that is not one we decide, else 0
    const char *why          # its message, static
    const char *http_status  # its :status, static; "200" unless the request is not gRPC at all
    uint32_t headers
    uint32_t header_bytes
    uint32_t seen            # bits of the headers that may come once
    int32_t authority_n      # length of :authority, or -1
    int64_t opened_ns
    int64_t timeout_ns
    uint8_t *body            # owned; prefix and message as they arrive
    uint32_t body_n
    uint32_t body_cap
    uint32_t body_want       # prefix and message; 0 until the prefix is there
    uint8_t *reply           # owned; prefix and message as they leave
    uint32_t reply_n
    uint32_t reply_at
    Ticket *ticket           # of a call in the slow lane, or NULL
    uint8_t *after           # owned; message that follows `reply` on a stream of several, newest only
    uint32_t after_n
    int code                 # gRPC status that ends a stream of several messages; -1: not yet
    int deferred             # such a stream has nothing to send now
    Talk *talk               # owned, of a CheckStream; NULL: it is none
    char authority[256]      # bytes of :authority, as far as they fit, to compare with `host`; not cleared


cdef struct Conn:
    Conn *prev
    Conn *next
    Door *door
    void *guest              # Guest * of the peer, in the TLS handshake of its address, once it is counted
    nghttp2_session *session
    int fd                   # -1: closed, to be freed after the events at hand
    int pidfd                # of the process behind a Unix connection; -1: the kernel has none
    void *tls                # SSL *, or NULL
    void *verified           # Verified *, owned, of a TLS peer; or NULL
    int secured              # the TLS handshake is done
    uint32_t records         # of TLS, in the turn under way
    int over                 # TLS has ended; what came before the end may still be in the inbox
    int refusal              # Refusal of the peer's chain
    Peer peer                # who calls, as verified; its texts are in `verified`, `credential` and the listener
    char credential[64]
    uint64_t listed_at       # puts of the list of PEPs, and 1, that peer.kind was judged by; 0: by none
    uint64_t trusted_at      # puts of the bundles, and 1, that the chain was last looked at by; 0: by none
    Stream *recent           # the last one that a frame named, or NULL
    Stream *first
    Stream *last
    Stream *ready            # complete and undecided, oldest first
    Stream *ready_last
    int32_t last_id          # highest stream that the peer opened
    uint32_t stream_count
    int64_t held             # bytes of requests and replies on all streams
    int cause                # Cause once it is to end
    int cut                  # Cause for which nothing more is read; it ends with the answers to what came before
    int began                # preface and SETTINGS arrived
    int settled              # our SETTINGS were acknowledged
    int left                 # the peer sent GOAWAY
    int told                 # the session sent a final GOAWAY of its own
    int draining             # 1: GOAWAY announced, 2: final GOAWAY sent
    int drain_cause          # Cause of that
    int pinged               # a keepalive ping is unanswered
    int writing              # epoll waits for room to write
    Place turn               # among those that wait for theirs (fastpath/turns.pxd)
    int heavy                # its last turn was a long one, or it had none yet
    uint32_t row             # bytes of its turns since it last had nothing more to do, as far as BUSY_BYTES
    int64_t busy_ns          # when that were last so many that it is busy; 0: never
    int lasting              # it had a stream in the slow lane, or of several messages
    int released             # closed, and all that it held is given back
    uint32_t piece           # bytes that its next turn may read
    Place shaking            # among those in the TLS handshake; peer.credential is then its address
    uint8_t *dropped         # owned; a bit per stream of the last DROPPED_MAX that we reset; NULL: there was none
    uint32_t early           # streams refused before the peer could know our limit
    int64_t opened_ns
    int64_t began_ns
    int64_t active_ns        # last time a stream began or ended
    int64_t heard_ns         # last bytes from the peer
    int64_t part_ns          # when the frame or header block began that has not ended; 0: there is none
    Framing framing
    int64_t out_ns           # when `out` began to wait
    int64_t pinged_ns
    int64_t drained_ns       # when draining began
    int64_t lingers_ns       # since when only the peer's close is waited for; 0: not yet
    int unheard              # a CheckStream ended before its peer did, which may be sending still
    uint64_t answered        # calls
    uint32_t tickets         # in the slow lane, of a peer that is not counted
    uint32_t talks           # open CheckStreams, of such a peer
    uint32_t taken           # bytes of DATA since the peer was given new window for them
    Bucket resets
    Bucket faults
    Bucket frames
    uint8_t *out             # owned; bytes that the socket did not take yet
    size_t out_n
    size_t out_at


# Library state of all connections. 0, or 1 when memory is short.
cdef int http2_setup() noexcept nogil
# Begin HTTP/2 on a connection whose door, fd and peer are set. 0, or 1 when memory is short.
cdef int http2_open(Conn *conn) noexcept nogil
# Parse received bytes; sets conn.cause when the connection must end.
cdef void http2_feed(Conn *conn, const uint8_t *p, size_t n) noexcept nogil
# The oldest complete request that nobody answered, or NULL.
cdef Stream *http2_next(Conn *conn) noexcept nogil
# The message of a complete request; false with refusal and why set when it is none.
cdef bint http2_message(Stream *stream, Text *message) noexcept nogil
# Whether this connection, or the door, holds as much as it may: then nothing more is decided for it.
cdef bint http2_full(const Conn *conn) noexcept nogil
# The message at the front of a CheckStream is answered; or the peer may go on sending, now that answers do not wait.
cdef void http2_heard(Conn *conn, Stream *stream, Text message) noexcept nogil
cdef void http2_go_on(Conn *conn, Stream *stream) noexcept nogil
# Whether so many answers of it wait that no more is asked.
cdef bint http2_stalled(const Conn *conn, const Talk *talk) noexcept nogil
# Of a connection that has none to come back to: free the first streams, at most so many; how many they were.
cdef uint32_t http2_shed(Conn *conn, uint32_t most) noexcept nogil
# Free everything but the socket.
cdef void http2_close(Conn *conn) noexcept nogil
