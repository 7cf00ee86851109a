"""Protobuf reader: bounded and total over any bytes, with the verdict of upb (protobuf's own C reader).

What upb does and this therefore does too: a varint has at most 10 bytes and bits above 64 are dropped; a tag and a
length have at most 5 bytes; a known field with another wire type counts as unknown; the last of a repeated singular
field wins, messages merge; groups exist only to be skipped, and within them a field number 0 passes. Source:
protobuf.dev/programming-guides/encoding.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

cdef enum:
    VARINT_BYTES_MAX = 10
    TAG_BYTES_MAX = 5
    LENGTH_MAX = 0x7FFFFFFF


# ---------------------------------------------------------------- text


cdef int text_compare(Text a, Text b) noexcept nogil:
    cdef uint32_t n = a.n if a.n < b.n else b.n
    cdef int order = memcmp(a.p, b.p, n) if n else 0
    if order:
        return order
    return (a.n > b.n) - (a.n < b.n)


cdef inline bint continues(uint8_t b) noexcept nogil:
    return (b & 0xC0) == 0x80


cdef inline size_t sequence_length(const uint8_t *p, size_t n) noexcept nogil:
    """Bytes of the UTF-8 sequence that starts at p, of n > 0 bytes; 0 when there is none. RFC 3629 section 4."""
    cdef uint8_t b = p[0]
    if b < 0x80:
        return 1
    if b < 0xC2 or b > 0xF4:
        return 0
    if b < 0xE0:
        return 2 if n >= 2 and continues(p[1]) else 0
    if b < 0xF0:
        if n < 3 or not continues(p[1]) or not continues(p[2]):
            return 0
        return 0 if (b == 0xE0 and p[1] < 0xA0) or (b == 0xED and p[1] > 0x9F) else 3
    if n < 4 or not continues(p[1]) or not continues(p[2]) or not continues(p[3]):
        return 0
    return 0 if (b == 0xF0 and p[1] < 0x90) or (b == 0xF4 and p[1] > 0x8F) else 4


cdef size_t utf8_prefix(const char *p, size_t n) noexcept nogil:
    cdef const uint8_t *at = <const uint8_t *> p
    cdef size_t i = 0, step
    cdef uint64_t eight
    while i < n:
        if n - i >= 8:
            memcpy(&eight, at + i, 8)
            if (eight & 0x8080808080808080ULL) == 0:
                i += 8
                continue
        step = sequence_length(at + i, n - i)
        if step == 0:
            return i
        i += step
    return n


# ---------------------------------------------------------------- reader


cdef inline bint fail(Reader *r, int error) noexcept nogil:
    r.error = error
    r.p = r.end
    return False


cdef inline bint read_varint(Reader *r, uint64_t *out, int bytes_max) noexcept nogil:
    cdef const uint8_t *p = r.p
    cdef ssize_t most = r.end - p
    cdef uint64_t v = 0
    cdef int i
    for i in range(bytes_max if most > bytes_max else <int> most):
        v |= <uint64_t> (p[i] & 0x7F) << (7 * i)
        if p[i] < 0x80:
            out[0] = v
            r.p = p + i + 1
            return True
    return fail(r, WIRE_BAD_VARINT)


cdef inline bint read_tag(Reader *r, WireField *f) noexcept nogil:
    cdef uint64_t tag = 0
    if not read_varint(r, &tag, TAG_BYTES_MAX):
        return False
    if tag >> 32:
        return fail(r, WIRE_BAD_TAG)
    f.number = <uint32_t> (tag >> TYPE_BITS)
    f.type = tag & 7
    return True


cdef inline bint read_fixed(Reader *r, WireField *f, size_t n) noexcept nogil:
    if <size_t> (r.end - r.p) < n:
        return fail(r, WIRE_TRUNCATED)
    f.v = 0
    memcpy(&f.v, r.p, n)
    r.p += n
    return True


cdef inline bint read_bytes(Reader *r, WireField *f) noexcept nogil:
    cdef uint64_t n = 0
    if not read_varint(r, &n, TAG_BYTES_MAX):
        return False
    if n > LENGTH_MAX or n > <uint64_t> (r.end - r.p):
        return fail(r, WIRE_TRUNCATED)
    f.bytes.p = <const char *> r.p
    f.bytes.n = <uint32_t> n
    r.p += n
    return True


cdef bint read_value(Reader *r, WireField *f) noexcept nogil:
    """The value behind a tag; a group is skipped and leaves nothing in `f`."""
    if f.type == WIRE_BYTES:
        return read_bytes(r, f)
    if f.type == WIRE_VARINT:
        return read_varint(r, &f.v, VARINT_BYTES_MAX)
    if f.type == WIRE_FIXED64:
        return read_fixed(r, f, 8)
    if f.type == WIRE_FIXED32:
        return read_fixed(r, f, 4)
    if f.type == WIRE_GROUP:
        return skip_group(r, f.number)
    return fail(r, WIRE_BAD_GROUP if f.type == WIRE_GROUP_END else WIRE_BAD_TAG)


cdef bint skip_group(Reader *r, uint32_t number) noexcept nogil:
    """Go past the end of group `number`, whose start was just read. Recursion is bounded by r.depth."""
    cdef WireField f
    if r.depth == 0:
        return fail(r, WIRE_TOO_DEEP)
    r.depth -= 1
    while r.p < r.end:
        if not read_tag(r, &f):
            return False
        if f.type == WIRE_GROUP_END:
            r.depth += 1
            return True if f.number == number else fail(r, WIRE_BAD_GROUP)
        if not read_value(r, &f):
            return False
    return fail(r, WIRE_TRUNCATED)


cdef bint reader_any(Reader *r, WireField *f) noexcept nogil:
    while r.p < r.end:
        if not read_tag(r, f):
            return False
        if f.number == 0:
            return fail(r, WIRE_BAD_TAG)
        if not read_value(r, f):
            return False
        if f.type != WIRE_GROUP:
            return True
        r.groups += 1
    return False


# ---------------------------------------------------------------- shapes


cdef inline int take_bytes(Text found, const Member *member, int depth, void *into) noexcept nogil:
    if member.kind == SHAPE_SCALAR or member.kind == SHAPE_NUMBER:
        return WIRE_OK
    if member.kind == SHAPE_MESSAGE:
        if into is not NULL and member.read is not NULL:
            return member.read(found, depth, into)
        return wire_nested(found, member.message, depth, into)
    if member.kind == SHAPE_STRING and not utf8_valid(found.p, found.n):
        return WIRE_BAD_UTF8
    if into is not NULL and member.at != UNKEPT:
        (<Text *> (<char *> into + member.at))[0] = found
    return WIRE_OK


cdef uint32_t other_field(
    Reader *r, const uint8_t **at, const Shape *shape, void *into, Text *bytes
) noexcept nogil:
    """Read past a field that is not a usual one. Its number when it holds bytes that the shape may know, else 0."""
    cdef WireField f
    cdef const Member *member
    r.p = at[0]
    if not reader_any(r, &f):
        f.number = SHAPE_FIELDS_MAX
    at[0] = r.p
    if f.number >= SHAPE_FIELDS_MAX:
        return 0
    if f.type == WIRE_BYTES:
        bytes[0] = f.bytes
        return f.number
    member = &shape.members[f.number]
    if f.type == WIRE_VARINT and member.kind == SHAPE_NUMBER and into is not NULL and member.at != UNKEPT:
        (<uint64_t *> (<char *> into + member.at))[0] = f.v
    return 0


cdef int wire_nested(Text message, const Shape *shape, int depth, void *into) noexcept nogil:
    """Recursion is bounded by `depth`, the messages that may still be entered."""
    cdef Reader r
    cdef Text found
    cdef const uint8_t *at = <const uint8_t *> message.p
    cdef uint32_t number
    cdef int error
    if depth == 0:
        return WIRE_TOO_DEEP
    reader_open(&r, message)
    r.depth = depth - 1
    while at < r.end:
        number = usual_field(&at, r.end, &found)
        if number == 0:
            number = other_field(&r, &at, shape, into, &found)
        if number:
            error = take_bytes(found, &shape.members[number], depth - 1, into)
            if error:
                return error
    return r.error


cdef int wire_keep(const void *p, size_t n, const Shape *shape, void *into) noexcept nogil:
    cdef Text message
    if n > LENGTH_MAX:
        return WIRE_TRUNCATED
    message.p = <const char *> p
    message.n = <uint32_t> n
    return wire_nested(message, shape, WIRE_DEPTH_MAX + 1, into)


cdef int wire_check(const void *p, size_t n, const Shape *shape) noexcept nogil:
    return wire_keep(p, n, shape, NULL)


cdef void shape_field(Shape *shape, int number, int kind, const Shape *message) noexcept nogil:
    shape.members[number].kind = kind
    shape.members[number].at = UNKEPT
    shape.members[number].message = message


cdef void shape_keep(Shape *shape, int number, int kind, size_t at) noexcept nogil:
    shape.members[number].kind = kind
    shape.members[number].at = <uint16_t> at


cdef void shape_read(Shape *shape, int number, WireRead read) noexcept nogil:
    shape.members[number].read = read


cdef Shape STRUCT, STRUCT_ENTRY, VALUE, LIST_VALUE  # google/protobuf/struct.proto


cdef void build_struct_shapes() noexcept nogil:
    memset(&STRUCT, 0, sizeof(Shape))
    memset(&STRUCT_ENTRY, 0, sizeof(Shape))
    memset(&VALUE, 0, sizeof(Shape))
    memset(&LIST_VALUE, 0, sizeof(Shape))
    shape_field(&STRUCT, 1, SHAPE_MESSAGE, &STRUCT_ENTRY)
    shape_field(&STRUCT_ENTRY, 1, SHAPE_STRING, NULL)
    shape_field(&STRUCT_ENTRY, 2, SHAPE_MESSAGE, &VALUE)
    shape_field(&VALUE, 3, SHAPE_STRING, NULL)
    shape_field(&VALUE, 5, SHAPE_MESSAGE, &STRUCT)
    shape_field(&VALUE, 6, SHAPE_MESSAGE, &LIST_VALUE)
    shape_field(&LIST_VALUE, 1, SHAPE_MESSAGE, &VALUE)


build_struct_shapes()


cdef const Shape *shape_struct() noexcept nogil:
    return &STRUCT


# ---------------------------------------------------------------- writer


cdef void out_tight(Out *o, uint32_t field, const void *p, size_t n) noexcept nogil:
    out_varint(o, (<uint64_t> field << 3) | 2)
    out_varint(o, n)
    out_raw(o, p, n)


cdef void out_length(Out *o, size_t start, size_t left) noexcept nogil:
    cdef uint8_t length[10]
    cdef size_t n = o.n - start, size
    if o.failed:
        return
    size = put_varint(length, n)
    if size > left and size - left > o.cap - o.n:
        o.failed = 1
        return
    memmove(o.p + start - left + size, o.p + start, n)
    memcpy(o.p + start - left, length, size)
    o.n = start - left + size + n


# ---------------------------------------------------------------- Python face


def is_utf8(bytes data):
    return utf8_valid(data, len(data))


def fields(bytes data):
    cdef Reader r
    cdef WireField f
    cdef Text message
    found = []
    message.p = data
    message.n = len(data)
    reader_open(&r, message)
    while reader_next(&r, &f):
        value = f.bytes.p[:f.bytes.n] if f.type == WIRE_BYTES else f.v
        found.append((f.number, f.type, value))
    return WireError(r.error), found


def check_struct(bytes data):
    return WireError(wire_check(<const char *> data, len(data), shape_struct()))


def write(list values):
    """Encode with the writer: the reader's test partner."""
    cdef bytearray room = bytearray(1 << 16)
    cdef Out out = Out(room, 0, len(room), 0)
    for number, value in values:
        write_value(&out, number, value)
    return None if out.failed else bytes(room[:out.n])


cdef int write_value(Out *out, uint32_t number, object value) except -1:
    cdef size_t start
    cdef bytes data
    if isinstance(value, int):
        out_uint(out, number, value)
    elif isinstance(value, bytes):
        data = value
        out_bytes(out, number, <const char *> data, len(data))
    else:
        start = out_open(out, number)
        for inner, item in value:
            write_value(out, inner, item)
        out_close(out, start)
    return 0
