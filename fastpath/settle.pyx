"""What became of an allowed call: remit.authz.v1.ReportRequest in, ReportResponse out."""
from fastpath.wire cimport (
    SHAPE_STRING,
    WIRE_BYTES,
    WIRE_OK,
    WIRE_VARINT,
    Reader,
    Shape,
    WireField,
    out_uint,
    reader_next,
    reader_open,
    shape_field,
    wire_check,
)
from libc.string cimport memset

cdef Shape REPORT_REQUEST


cdef int build_shape() except -1:
    memset(&REPORT_REQUEST, 0, sizeof(Shape))
    for number in (1, 7):
        shape_field(&REPORT_REQUEST, number, SHAPE_STRING, NULL)
    return 0


build_shape()


cdef void take_number(const WireField *f, Report *out) noexcept nogil:
    if f.number == 2:
        out.executed = f.v != 0
    elif f.number == 3:
        out.status = <uint32_t> f.v
    elif f.number == 4:
        out.size = <int64_t> f.v
        out.malformed |= out.size < 0
    elif f.number == 6:
        # Nothing costs less than nothing: such a number would give a task more than it had.
        out.cost = <int64_t> f.v
        out.malformed |= out.cost < 0


cdef int report_read(Text message, Report *out) noexcept nogil:
    cdef Reader reader
    cdef WireField f
    memset(out, 0, sizeof(Report))
    out.cost = out.size = -1
    if wire_check(message.p, message.n, &REPORT_REQUEST) != WIRE_OK:
        return 1
    reader_open(&reader, message)
    while reader_next(&reader, &f):
        if f.type == WIRE_VARINT:
            take_number(&f, out)
        elif f.type == WIRE_BYTES and f.number == 1:
            out.evaluation = f.bytes
    return reader.error != WIRE_OK or out.malformed


cdef void report_reply(Out *out, int result) noexcept nogil:
    out_uint(out, 1, result)
