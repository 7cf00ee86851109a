"""Messages of remit.authz.v1 CheckStream around those of Check."""
from fastpath.wire cimport Out, Text


# The CheckRequest of a CheckStreamRequest, as its bytes; false when there is not exactly one, or it is no message.
cdef bint question_of(Text message, Text *question) noexcept nogil
# A CheckResponse of OUTCOME_ERROR about a question that was not decided, in the place of what `out` holds.
cdef void write_error(Out *out, Text request_id, const char *reason) noexcept nogil
