"""CheckStream at a native door: questions are decided one by one, and notices told."""
from fastpath.http2 cimport Conn, Stream
from fastpath.loop cimport Loop


# Do what is next on a CheckStream: begin it, tell it what changed, decide one question, or end it.
cdef void answer_talk(Loop self, Conn *conn, Stream *stream) noexcept nogil
# Have those told whose bells rang.
cdef void tell_talks(Loop self) noexcept nogil
# End those of a connection whose caller may not ask any more.
cdef void verify_talks(Loop self, Conn *conn) noexcept nogil
