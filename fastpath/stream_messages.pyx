"""Messages of CheckStream (stream_messages.pxd); what they hold is read and written as for Check."""
from fastpath.decide cimport OUTCOME_ERROR
from fastpath.wire cimport (
    TEXT_CONTROL, TEXT_TAB, WIRE_BYTES, WIRE_OK, Reader, Shape, WireField, out_text, out_uint, reader_next, reader_open,
    text_marks, text_of, utf8_valid, wire_check,
)
from libc.string cimport memset

cdef enum Field:             # authz.proto
    REQUEST_CHECK = 1
    CHECK_REQUEST_ID = 1
    CHECK_OUTCOME = 3
    CHECK_REASON = 4
    CHECK_NEXT = 13

cdef enum:
    REQUEST_ID_BYTES_MAX = 128   # as reply.pyx shows it

# The CheckRequest is read by those who map it: here it is bytes.
cdef Shape STREAM_REQUEST
memset(&STREAM_REQUEST, 0, sizeof(Shape))


cdef bint question_of(Text message, Text *question) noexcept nogil:
    cdef Reader reader
    cdef WireField f
    cdef int found = 0
    if wire_check(message.p, message.n, &STREAM_REQUEST) != WIRE_OK:
        return False
    reader_open(&reader, message)
    while reader_next(&reader, &f):
        if f.number == REQUEST_CHECK:
            # Protobuf would merge two of them, and take a number for a field that it does not know.
            if f.type != WIRE_BYTES:
                return False
            question[0] = f.bytes
            found += 1
    return found == 1 and reader.error == WIRE_OK


cdef bint _may_be_shown(Text t) noexcept nogil:
    """As every answer repeats it: short, UTF-8, no control characters."""
    return t.n <= REQUEST_ID_BYTES_MAX and not text_marks(t.p, t.n) & (TEXT_CONTROL | TEXT_TAB) and utf8_valid(t.p, t.n)


cdef void write_error(Out *out, Text request_id, const char *reason) noexcept nogil:
    out.n = out.failed = 0
    if _may_be_shown(request_id):
        out_text(out, CHECK_REQUEST_ID, request_id)
    out_uint(out, CHECK_OUTCOME, OUTCOME_ERROR)
    out_text(out, CHECK_REASON, text_of(reason))
    out_text(out, CHECK_NEXT, text_of(b"retry"))
