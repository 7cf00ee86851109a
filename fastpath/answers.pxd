"""What a native door answers to one complete request."""
from fastpath.call cimport Call
from fastpath.http2 cimport Conn, Stream
from fastpath.loop cimport Loop
from fastpath.wire cimport Text
from libc.stdint cimport int64_t


# Who calls, as of now: the chain again when the bundles changed, the kind by the list of PEPs.
cdef void identify(Loop self, Conn *conn) noexcept nogil
# Whether the time that the caller gave is over, or ours when it gave none.
cdef bint is_late(const Stream *stream, int64_t now, int64_t deadline_ns) noexcept nogil
# Decide a message at a door (fastpath.request Door) for who calls as of now; the answer is in memory of the loop.
cdef void decide_message(Loop self, Conn *conn, int door, Text message, Call *call) noexcept nogil
# Decide, refuse, or leave to Python: afterwards the stream has its answer, or a ticket for it.
cdef void answer_call(Loop self, Conn *conn, Stream *stream) noexcept nogil
