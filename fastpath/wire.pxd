"""Protobuf in and out, without a Python object: a bounded, total reader and a writer into memory the caller owns."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, strlen


cdef struct Text:        # borrowed bytes
    const char *p
    uint32_t n


cdef inline Text text_of(const char *literal) noexcept nogil:
    """A NUL-terminated literal; static memory."""
    cdef Text t
    t.p = literal
    t.n = <uint32_t> strlen(literal)
    return t


cdef inline bint text_is(Text t, const char *literal) noexcept nogil:
    cdef size_t n = strlen(literal)
    return t.n == n and memcmp(t.p, literal, n) == 0


cdef inline bint text_equal(Text a, Text b) noexcept nogil:
    return a.n == b.n and (a.n == 0 or memcmp(a.p, b.p, a.n) == 0)


cdef extern from * nogil:
    """
    enum { TEXT_HIGH = 1, TEXT_CONTROL = 2, TEXT_TAB = 4, TEXT_BANG = 8 };
    typedef uint8_t remit_block __attribute__((vector_size(16)));
    typedef int8_t remit_signed __attribute__((vector_size(16)));

    /* What text_marks looks for, and nothing else: below 0x20, above 0x7E, or an exclamation mark. */
    static inline remit_block remit_marked(remit_block b) {
        return (remit_block) ((remit_signed) b < 0x20) | (remit_block) (b == 0x7F) | (remit_block) (b == '!');
    }

    static inline int remit_any(remit_block b) {
        uint64_t w[2];
        memcpy(w, &b, 16);
        return (w[0] | w[1]) != 0;
    }

    /* Up to 15 bytes as a block in which some stand more than once. */
    static inline remit_block remit_few(const uint8_t *p, size_t n) {
        uint64_t w[2];
        uint32_t low, high;
        remit_block b;
        if (n >= 8) {
            memcpy(&w[0], p, 8);
            memcpy(&w[1], p + n - 8, 8);
        } else if (n >= 4) {
            memcpy(&low, p, 4);
            memcpy(&high, p + n - 4, 4);
            w[0] = w[1] = low | (uint64_t) high << 32;
        } else {
            w[0] = w[1] = p[0] * 0x0101010101010000u | (uint64_t) p[n / 2] << 8 | p[n - 1];
        }
        memcpy(&b, w, 16);
        return b;
    }

    static unsigned remit_marks(const uint8_t *p, size_t n) {
        unsigned marks = 0;
        for (size_t i = 0; i < n; i++)
            marks |= p[i] > 0x7F ? TEXT_HIGH : p[i] == 9 ? TEXT_TAB : p[i] == '!' ? TEXT_BANG
                : p[i] < 0x20 || p[i] == 0x7F ? TEXT_CONTROL : 0;
        return marks;
    }

    /* Whether a byte is above 0x7F: 16 bytes at a time, of which the last overlap those before. */
    static inline int text_high(const char *text, size_t n) {
        const uint8_t *p = (const uint8_t *) text;
        remit_block b, seen = {0};
        if (n == 0) return 0;
        if (n < 16) {
            seen = remit_few(p, n);
        } else {
            for (size_t i = 0; i < n - 16; i += 16) {
                memcpy(&b, p + i, 16);
                seen |= b;
            }
            memcpy(&b, p + n - 16, 16);
            seen |= b;
        }
        return remit_any(seen & 0x80);
    }

    /* Most texts have no marks: 16 bytes at a time tell, of which the last overlap those before. */
    static inline unsigned text_marks(const char *text, size_t n) {
        const uint8_t *p = (const uint8_t *) text;
        remit_block b, seen = {0};
        size_t i;
        if (n == 0) return 0;
        if (n < 16) {
            seen = remit_marked(remit_few(p, n));
        } else {
            for (i = 0; i < n - 16; i += 16) {
                memcpy(&b, p + i, 16);
                seen |= remit_marked(b);
            }
            memcpy(&b, p + n - 16, 16);
            seen |= remit_marked(b);
        }
        return remit_any(seen) ? remit_marks(p, n) : 0;
    }
    """
    enum:
        TEXT_HIGH            # a byte above 0x7F: not ASCII
        TEXT_CONTROL         # a byte below 0x20 but tab, or 0x7F
        TEXT_TAB
        TEXT_BANG            # `!`
    unsigned text_marks(const char *text, size_t n)   # which of these stand in n bytes
    bint text_high(const char *text, size_t n)        # TEXT_HIGH alone


# Order of the bytes: negative, 0 or positive.
cdef int text_compare(Text a, Text b) noexcept nogil
# The length of the longest part from the start that is UTF-8; n when all is.
cdef size_t utf8_prefix(const char *p, size_t n) noexcept nogil


cdef inline bint utf8_valid(const char *p, size_t n) noexcept nogil:
    """Whether n bytes are UTF-8 (RFC 3629: no surrogates, nothing overlong, nothing above U+10FFFF)."""
    return not text_high(p, n) or utf8_prefix(p, n) == n


# ---------------------------------------------------------------- reader


cpdef enum WireType:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_BYTES = 2           # string, bytes or message
    WIRE_GROUP = 3
    WIRE_GROUP_END = 4
    WIRE_FIXED32 = 5


cpdef enum WireError:
    WIRE_OK = 0
    WIRE_BAD_VARINT = 1      # more than 10 bytes, or no last byte
    WIRE_BAD_TAG = 2         # field 0, wire type 6 or 7, or more than 32 bits
    WIRE_TRUNCATED = 3       # a length or fixed value that leads past the end
    WIRE_BAD_GROUP = 4       # a group end that ends no group, or another one
    WIRE_TOO_DEEP = 5        # messages and groups below the root nested more than WIRE_DEPTH_MAX deep
    WIRE_BAD_UTF8 = 6        # in a string field


cdef enum:
    WIRE_DEPTH_MAX = 100     # as protobuf's own readers
    SHAPE_FIELDS_MAX = 16    # field numbers that a Shape can name: 1 to 15
    TYPE_BITS = 3            # of a tag
    FIELD_ONE = 8            # least tag: field number 1


cdef struct Reader:          # a position in one message
    const uint8_t *p
    const uint8_t *end
    int depth                # how many messages and groups may still be nested below this message
    int error                # WireError; once set nothing more is read
    uint32_t groups          # skipped so far


cdef struct WireField:       # one field as it stands on the wire
    uint32_t number
    uint32_t type            # WIRE_VARINT, WIRE_FIXED64, WIRE_BYTES or WIRE_FIXED32
    uint64_t v               # of a varint (its low 64 bits) or a fixed value
    Text bytes               # of WIRE_BYTES, borrowed


cdef enum ShapeKind:
    SHAPE_SCALAR = 0         # nothing to check beyond the wire; also a number that the message type does not have
    SHAPE_STRING = 1         # must be UTF-8
    SHAPE_MESSAGE = 2
    SHAPE_BYTES = 3          # nothing to check; named where it is to be kept
    SHAPE_NUMBER = 4         # the same, of a varint


cdef enum:
    UNKEPT = 0xFFFF          # a member that nobody keeps


# Read a nested message that may hold `depth` levels of messages, itself included, into `into`: a WireError.
ctypedef int (*WireRead)(Text message, int depth, void *into) noexcept nogil


cdef struct Member:          # one field of a message type
    uint8_t kind             # ShapeKind
    uint16_t at              # where `into` has its Text (SHAPE_NUMBER: its int64_t), or UNKEPT
    const Shape *message     # of SHAPE_MESSAGE
    WireRead read            # or NULL; reads it instead when something is kept, and checks all that `message` does


cdef struct Shape:           # a message type, as much of it as decides whether bytes are one
    Member members[SHAPE_FIELDS_MAX]     # by field number


cdef inline void reader_open(Reader *r, Text message) noexcept nogil:
    """Read `message` as a root."""
    r.p = <const uint8_t *> message.p
    r.end = r.p + message.n
    r.depth = WIRE_DEPTH_MAX
    r.error = WIRE_OK
    r.groups = 0


# The next field when it is not a usual one.
cdef bint reader_any(Reader *r, WireField *f) noexcept nogil


cdef inline uint32_t usual_field(const uint8_t **at, const uint8_t *end, Text *bytes) noexcept nogil:
    """The number of the field at `at`, which then stands behind it, and its bytes; 0 when it is not as nearly all are.

    They are of bytes, and their tag has one byte, their length one or two.
    """
    cdef const uint8_t *p = at[0]
    cdef uint32_t tag, n
    if end - p < 2 or (p[0] & 0x87) != WIRE_BYTES or p[0] < FIELD_ONE:
        return 0
    tag, n = p[0], p[1]
    p += 2
    if n > 0x7F:
        if p == end or p[0] > 0x7F:
            return 0
        n = (n & 0x7F) | <uint32_t> p[0] << 7
        p += 1
    if end - p < <ssize_t> n:
        return 0
    bytes.p, bytes.n = <const char *> p, n
    at[0] = p + n
    return tag >> TYPE_BITS


cdef inline bint reader_next(Reader *r, WireField *f) noexcept nogil:
    """Read the next field into `f`; groups are skipped. False at the end or on an error (`r.error`)."""
    cdef uint32_t number = usual_field(&r.p, r.end, &f.bytes)
    if number == 0:
        return r.p < r.end and reader_any(r, f)
    f.number, f.type = number, WIRE_BYTES
    return True


# Whether n bytes are a message of this shape, all nested messages included: a WireError. The verdict is upb's. After
# WIRE_OK `reader_next` cannot fail on the message and on those in it.
cdef int wire_check(const void *p, size_t n, const Shape *shape) noexcept nogil
# The same, and keep in `into` what the shape says is kept: the last of a field that stands more than once, while fields
# of messages merge. After an error `into` holds some of it.
cdef int wire_keep(const void *p, size_t n, const Shape *shape, void *into) noexcept nogil
# The same for a nested message, of which `depth` levels may be entered; for a WireRead.
cdef int wire_nested(Text message, const Shape *shape, int depth, void *into) noexcept nogil
# Set one field of a shape that is being built (at import); keep its text or number at `at` of what is read into; have
# its message read by a function.
cdef void shape_field(Shape *shape, int number, int kind, const Shape *message) noexcept nogil
cdef void shape_keep(Shape *shape, int number, int kind, size_t at) noexcept nogil
cdef void shape_read(Shape *shape, int number, WireRead read) noexcept nogil
# Shape of google.protobuf.Struct.
cdef const Shape *shape_struct() noexcept nogil


# ---------------------------------------------------------------- writer

cdef extern from * nogil:
    """
    /* As memcpy; most texts are short, and are copied by two loads that may overlap. */
    static inline void remit_copy(void *to, const void *from, size_t n) {
        uint8_t *t = (uint8_t *) to;
        const uint8_t *f = (const uint8_t *) from;
        remit_block a, b, c, d;
        uint64_t v, w;
        uint32_t x, y;
        if (n > 64) {
            memcpy(t, f, n);
        } else if (n > 32) {
            memcpy(&a, f, 16);
            memcpy(&b, f + 16, 16);
            memcpy(&c, f + n - 32, 16);
            memcpy(&d, f + n - 16, 16);
            memcpy(t, &a, 16);
            memcpy(t + 16, &b, 16);
            memcpy(t + n - 32, &c, 16);
            memcpy(t + n - 16, &d, 16);
        } else if (n >= 16) {
            memcpy(&a, f, 16);
            memcpy(&b, f + n - 16, 16);
            memcpy(t, &a, 16);
            memcpy(t + n - 16, &b, 16);
        } else if (n >= 8) {
            memcpy(&v, f, 8);
            memcpy(&w, f + n - 8, 8);
            memcpy(t, &v, 8);
            memcpy(t + n - 8, &w, 8);
        } else if (n >= 4) {
            memcpy(&x, f, 4);
            memcpy(&y, f + n - 4, 4);
            memcpy(t, &x, 4);
            memcpy(t + n - 4, &y, 4);
        } else if (n) {
            uint8_t first = f[0], middle = f[n / 2], last = f[n - 1];
            t[0] = first;
            t[n / 2] = middle;
            t[n - 1] = last;
        }
    }

    /* As remit_copy, of n > 0 bytes; whether one of them is above 0x7F. */
    static inline int remit_copy_judged(void *to, const void *from, size_t n) {
        uint8_t *t = (uint8_t *) to;
        const uint8_t *f = (const uint8_t *) from;
        remit_block b, seen = {0};
        uint64_t v, w;
        uint32_t x, y;
        size_t i;
        if (n >= 16) {
            for (i = 0; i < n - 16; i += 16) {
                memcpy(&b, f + i, 16);
                memcpy(t + i, &b, 16);
                seen |= b;
            }
            memcpy(&b, f + n - 16, 16);
            memcpy(t + n - 16, &b, 16);
            return remit_any((seen | b) & 0x80);
        }
        if (n >= 8) {
            memcpy(&v, f, 8);
            memcpy(&w, f + n - 8, 8);
            memcpy(t, &v, 8);
            memcpy(t + n - 8, &w, 8);
            return ((v | w) & 0x8080808080808080u) != 0;
        }
        if (n >= 4) {
            memcpy(&x, f, 4);
            memcpy(&y, f + n - 4, 4);
            memcpy(t, &x, 4);
            memcpy(t + n - 4, &y, 4);
            return ((x | y) & 0x80808080u) != 0;
        }
        x = f[0], y = f[n / 2], i = f[n - 1];
        t[0] = (uint8_t) x;
        t[n / 2] = (uint8_t) y;
        t[n - 1] = (uint8_t) i;
        return ((x | y | i) & 0x80) != 0;
    }
    """
    void remit_copy(void *to, const void *source, size_t n)   # the two do not overlap
    bint remit_copy_judged(void *to, const void *source, size_t n)


cdef enum:
    HEAD_BYTES_MAX = 20      # of two varints: a tag, and a length or a value


cdef struct Out:
    uint8_t *p
    size_t n
    size_t cap
    int failed           # set once something did not fit; nothing after it is written


cdef inline void out_raw(Out *o, const void *p, size_t n) noexcept nogil:
    if o.failed or n > o.cap - o.n:
        o.failed = 1
        return
    remit_copy(o.p + o.n, p, n)
    o.n += n


cdef inline void out_few(Out *o, const void *p, size_t n) noexcept nogil:
    """As `out_raw`, from a small array: gcc would warn of the long copies that its length rules out."""
    if o.failed or n > o.cap - o.n:
        o.failed = 1
        return
    memcpy(o.p + o.n, p, n)
    o.n += n


cdef inline size_t put_varint(uint8_t *to, uint64_t v) noexcept nogil:
    """Bytes written, 10 at most."""
    cdef size_t n = 0
    if v < 0x80:
        to[0] = <uint8_t> v
        return 1
    if v < 0x4000:
        to[0] = <uint8_t> (v | 0x80)
        to[1] = <uint8_t> (v >> 7)
        return 2
    while v >= 0x80:
        to[n] = <uint8_t> (v | 0x80)
        v >>= 7
        n += 1
    to[n] = <uint8_t> v
    return n + 1


cdef inline void out_varint(Out *o, uint64_t v) noexcept nogil:
    cdef uint8_t room[10]
    if o.cap - o.n >= 10 and not o.failed:
        o.n += put_varint(o.p + o.n, v)
    else:
        out_few(o, room, put_varint(room, v))


cdef inline void out_uint(Out *o, uint32_t field, uint64_t v) noexcept nogil:
    """A varint field; written even when 0."""
    cdef uint8_t *to = o.p + o.n
    if o.failed or o.cap - o.n < HEAD_BYTES_MAX:
        out_varint(o, <uint64_t> field << 3)
        out_varint(o, v)
        return
    to += put_varint(to, <uint64_t> field << 3)
    to += put_varint(to, v)
    o.n = <size_t> (to - o.p)


cdef inline uint32_t field_bytes(uint32_t n) noexcept nogil:
    """What a string, bytes or message of n bytes takes as a field whose number is 15 or less."""
    if n < 0x80:
        return 2 + n
    return 3 + n + (n > 0x3FFF) + (n > 0x1FFFFF) + (n > 0xFFFFFFF)


cdef inline uint8_t *put_head(uint8_t *to, uint32_t field, uint32_t n) noexcept nogil:
    """Begin a string, bytes or message field of n bytes; where they go."""
    to += put_varint(to, (<uint64_t> field << 3) | 2)
    return to + put_varint(to, n)


cdef inline uint8_t *put_bytes(uint8_t *to, uint32_t field, const char *p, uint32_t n) noexcept nogil:
    to = put_head(to, field, n)
    remit_copy(to, p, n)
    return to + n


cdef inline uint8_t *out_take(Out *o, size_t n) noexcept nogil:
    """Where the next n bytes go, all of which the caller writes; NULL when they do not fit."""
    cdef uint8_t *to = o.p + o.n
    if o.failed or n > o.cap - o.n:
        o.failed = 1
        return NULL
    o.n += n
    return to


# A string, bytes or message field where room may be short.
cdef void out_tight(Out *o, uint32_t field, const void *p, size_t n) noexcept nogil


cdef inline void out_bytes(Out *o, uint32_t field, const void *p, size_t n) noexcept nogil:
    """A string, bytes or message field; written even when empty."""
    cdef uint8_t *to = o.p + o.n
    if o.failed or n > o.cap or o.cap - o.n < n + HEAD_BYTES_MAX:
        out_tight(o, field, p, n)
        return
    to += put_varint(to, (<uint64_t> field << 3) | 2)
    to += put_varint(to, n)
    remit_copy(to, p, n)
    o.n = <size_t> (to - o.p) + n


cdef inline uint32_t tag_of(uint32_t field) noexcept nogil:
    """The tag of a string, bytes or message field of number 1 to 2,047 as it is encoded: two bytes, and their count."""
    if field < 16:
        return field << 3 | 2 | 1 << 16
    return (field << 3 & 0x7F) | 0x82 | field >> 4 << 8 | 2 << 16


cdef inline bint out_ascii(Out *o, uint32_t tag, const char *p, uint32_t n) noexcept nogil:
    """As `out_bytes` with a `tag_of`; false, and nothing written, unless all is ASCII, not empty and fits with ease.

    The text is looked at as it is copied.
    """
    cdef uint8_t *to = o.p + o.n
    cdef uint16_t head = <uint16_t> tag
    if o.failed or n == 0 or o.cap - o.n < <size_t> n + HEAD_BYTES_MAX:
        return False
    memcpy(to, &head, 2)
    to += tag >> 16
    to += put_varint(to, n)
    if remit_copy_judged(to, p, n):
        return False
    o.n = <size_t> (to - o.p) + n
    return True


cdef inline void out_text(Out *o, uint32_t field, Text t) noexcept nogil:
    """A string field, left out when empty (proto3 default)."""
    if t.n:
        out_bytes(o, field, t.p, t.n)


cdef inline void out_fixed64(Out *o, uint32_t field, uint64_t v) noexcept nogil:
    cdef uint8_t *to = o.p + o.n
    if o.failed or o.cap - o.n < HEAD_BYTES_MAX:
        out_varint(o, (<uint64_t> field << 3) | 1)
        out_few(o, &v, 8)
        return
    to += put_varint(to, (<uint64_t> field << 3) | 1)
    memcpy(to, &v, 8)
    o.n = <size_t> (to - o.p) + 8


cdef inline size_t out_open(Out *o, uint32_t field) noexcept nogil:
    """Begin a nested message; give the result to `out_close`. A byte of room is left for its length."""
    if o.cap - o.n >= 12 and not o.failed:
        o.n += put_varint(o.p + o.n, (<uint64_t> field << 3) | 2) + 1
        return o.n
    out_varint(o, (<uint64_t> field << 3) | 2)
    if o.failed or o.n == o.cap:
        o.failed = 1
    else:
        o.n += 1
    return o.n


cdef inline size_t out_open_long(Out *o, uint32_t field) noexcept nogil:
    """As `out_open`, for `out_close_long`: two bytes are left, as a message of 128 to 16,383 bytes takes."""
    if o.failed or o.cap - o.n < HEAD_BYTES_MAX:
        out_open(o, field)
        out_take(o, 1)
        return o.n
    o.n += put_varint(o.p + o.n, (<uint64_t> field << 3) | 2) + 2
    return o.n


# Write the length of the nested message begun at `start`, before which `left` bytes were left for it; the message moves
# when its length takes more or fewer.
cdef void out_length(Out *o, size_t start, size_t left) noexcept nogil


cdef inline void out_close(Out *o, size_t start) noexcept nogil:
    """End the nested message begun at `start`; one of more than 127 bytes moves up to make room for its length."""
    if not o.failed and o.n - start < 0x80:
        o.p[start - 1] = <uint8_t> (o.n - start)
    else:
        out_length(o, start, 1)


cdef inline void out_close_long(Out *o, size_t start) noexcept nogil:
    cdef size_t n = o.n - start
    if not o.failed and 0x80 <= n < 0x4000:
        put_varint(o.p + start - 2, n)
    else:
        out_length(o, start, 2)
