"""What a native door answers to one complete request."""
from fastpath.http2 cimport Conn, Stream
from fastpath.loop cimport Loop


# Who calls, as of now: the chain again when the bundles changed, the kind by the list of PEPs.
cdef void identify(Loop self, Conn *conn) noexcept nogil
# Decide, refuse, or leave to Python: afterwards the stream has its answer, or a ticket for it.
cdef void answer_call(Loop self, Conn *conn, Stream *stream) noexcept nogil
