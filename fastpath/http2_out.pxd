"""What leaves on the session of a connection: answers, trailers, resets and the end."""
from fastpath.c.nghttp2 cimport nghttp2_frame, nghttp2_session
from fastpath.http2 cimport Conn, Stream
from fastpath.wire cimport Text
from libc.stdint cimport int32_t, uint8_t, uint32_t


# Answer with one message (copied), or with a status alone.
cdef void http2_reply(Conn *conn, Stream *stream, const uint8_t *p, size_t n) noexcept nogil
cdef void http2_refuse(Conn *conn, Stream *stream, int code, Text why) noexcept nogil
# Send a message (copied; NULL: none) on a stream of several, and with a `code` of 0 or more end it with that status.
cdef void http2_push(Conn *conn, Stream *stream, const uint8_t *p, size_t n, int code) noexcept nogil
# Begin to answer a CheckStream, queue a message on it (copied), and end it with a status behind what is queued.
cdef void http2_talk(Conn *conn, Stream *stream) noexcept nogil
cdef void http2_say(Conn *conn, Stream *stream, const uint8_t *p, size_t n) noexcept nogil
cdef void http2_finish(Conn *conn, Stream *stream, int code, Text why) noexcept nogil
# End one stream by RST_STREAM; when memory is short for even that, the connection.
cdef void http2_reset(Conn *conn, int32_t id, uint32_t code) noexcept nogil
# Bytes to send, into `out` as far as they fit; how many. When more than FRAME_ROOM is left the session has no more.
cdef size_t http2_pull(Conn *conn, uint8_t *out, size_t cap) noexcept nogil
# Whether the session has nothing more to read and nothing to write.
cdef bint http2_over(Conn *conn) noexcept nogil
# The frame that tells the peer that and why the connection ends; bytes written (17).
cdef size_t http2_farewell(Conn *conn, uint8_t *out) noexcept nogil
# Announce the end (RFC 9113 section 6.8), then, once the peer answered or time is over, refuse new streams.
cdef void http2_drain(Conn *conn, int cause) noexcept nogil
cdef void http2_drain_last(Conn *conn) noexcept nogil
# Ask a silent peer whether it is there; and what came back on such a question, or on that of a drain.
cdef void http2_ping(Conn *conn) noexcept nogil
cdef void http2_on_pong(Conn *conn, const uint8_t *which) noexcept nogil
# nghttp2_on_frame_send_callback of all sessions.
cdef int http2_on_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil
