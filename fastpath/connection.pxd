"""One connection on its loop: bytes from the socket to the session and back, its turn, its end."""
from fastpath.http2 cimport Conn
from fastpath.loop cimport Loop
from fastpath.wire cimport Text
from libc.stdint cimport uint32_t


cdef enum:
    PROCESS = 1              # added to a Conn * in epoll: the process behind it, not its socket


# One turn: what is left to write, then a piece of what it sent. It may be closed afterwards.
cdef void conn_serve(Loop self, Conn *conn) noexcept nogil
# Write what there is; what the socket does not take is kept.
cdef void conn_flush(Loop self, Conn *conn) noexcept nogil
# All is said on both sides: sets the cause of the end, unless the peer may not have heard so yet.
cdef void conn_part(Loop self, Conn *conn) noexcept nogil
# Count it for this peer: CAUSE_NONE, or CAUSE_CROWD when the peer has all the connections that it may have.
cdef int conn_count(Loop self, Conn *conn, Text name) noexcept nogil
# End it for its cause. Who is in events at hand is known by its fd of -1 until conn_bury.
cdef void conn_close(Loop self, Conn *conn) noexcept nogil
# Free closed connections, as far as so many streams go.
cdef void conn_bury(Loop self, uint32_t most) noexcept nogil
