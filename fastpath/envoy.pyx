"""A CheckRequest of Envoy (or of gRPC's own ext_authz) decoded into an HttpCall.

Sources: envoy/service/auth/v3/{external_auth,attribute_context}.proto, envoy/config/core/v3/{base,address}.proto,
gRFC A92. One pass over the bytes judges them, as protobuf's own reader would, and keeps what is read of them, in the
order of the wire, so that a later field replaces an earlier one and messages merge by themselves (SCHEMA below).

EX-13, text that the proxy altered. In the raw form (`header_map`) bytes that are not UTF-8 are seen: each becomes
`!`, as Envoy's own map has it, and the line is marked sanitised. In the map form Envoy has replaced them already and
nothing tells its `!` from the client's, so every value with a `!` is marked. The mark refuses nothing by itself, or a
user agent with a `!` would be locked out: it makes a value that equals no policy constant, and a value that names an
identity, a task, a method or a tool is refused by whoever reads it.
"""
from fastpath.canonical cimport canonical_call
from fastpath.envoy_mcp cimport Mcp, mcp_namespace, mcp_subject
from fastpath.lines cimport (
    Lines, lines_add, lines_last_wins, lines_lower, lines_sanitise, lines_sort, remit_head, remit_is_plain
)
from fastpath.value cimport arena_take
from fastpath.wire cimport (
    SHAPE_BYTES, SHAPE_MESSAGE, SHAPE_NUMBER, SHAPE_STRING, TEXT_BANG, TEXT_CONTROL, TEXT_HIGH, WIRE_BAD_UTF8,
    WIRE_BYTES, WIRE_OK, WIRE_TOO_DEEP, Reader, Shape, WireField, reader_next, reader_open,
    shape_field, shape_keep, shape_read, shape_struct, text_compare, text_equal, text_high, text_is, text_marks,
    text_of, usual_field, utf8_prefix, utf8_valid, wire_check, wire_keep, wire_nested
)
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memset

from fastpath.wire import WireError

cdef enum:
    SHAPES_MAX = 32
    SECONDS_MAX = 9000000000  # year 2255; beyond, the time counts as unknown
    LENGTH_DIGITS_MAX = 18


# ---------------------------------------------------------------- what is collected on the way


cdef struct Decoding:
    HttpCall *call
    Arena *arena
    Lines map_lines          # `headers`
    Lines raw_lines          # `header_map`
    Lines extensions
    Mcp mcp_filter           # namespace envoy.filters.http.mcp
    Mcp mcp_proxy            # namespace mcp_proxy, the name of older filters
    uint32_t address_case    # member of source.address in force
    Text source_principal
    Text source_certificate
    Text source_address
    Text destination_principal
    Text sni
    uint64_t seconds
    uint64_t nanos
    uint8_t has_http
    Text http_id
    Text method
    Text path
    Text host
    Text scheme
    Text query
    Text fragment
    uint64_t size
    Text protocol
    Text body
    Text raw_body
    Text pseudo_path         # from `header_map`, for callers that leave the typed fields empty
    Text pseudo_authority


cdef struct RawLine:         # a HeaderValue
    Text key
    Text value
    Text raw


# ---------------------------------------------------------------- messages with rules of their own

# Each checks all that its shape does and returns a WireError, as wire_nested would.


cdef inline void open_nested(Reader *r, Text message, int depth) noexcept nogil:
    reader_open(r, message)
    r.depth = depth - 1


cdef inline bint usual_entry(Text entry, Text *key, Text *value) noexcept nogil:
    """Whether an entry is its key and then its value, as nearly all are."""
    cdef const uint8_t *at = <const uint8_t *> entry.p
    cdef const uint8_t *end = at + entry.n
    return usual_field(&at, end, key) == 1 and usual_field(&at, end, value) == 2 and at == end


cdef int read_map_entry(Text entry, int depth, Lines *lines, Arena *arena) noexcept nogil:
    """An entry of a map<string, string>; one that holds anything else is left out, as upb leaves it out."""
    cdef Reader r
    cdef WireField f
    cdef Text key = text_of(b""), value = text_of(b"")
    cdef bint foreign = False
    if depth == 0:
        return WIRE_TOO_DEEP
    open_nested(&r, entry, depth)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES or f.number > 2:
            foreign = True
            continue
        if not utf8_valid(f.bytes.p, f.bytes.n):
            return WIRE_BAD_UTF8
        if f.number == 1:
            key = f.bytes
        else:
            value = f.bytes
    if r.error == WIRE_OK and not foreign and r.groups == 0:
        lines_add(
            lines, key, value, text_marks(value.p, value.n), 1, remit_is_plain(key.p, key.n), arena)
    return r.error


cdef inline int read_usual_entry(Text entry, int depth, Lines *lines, bint pseudo, Arena *arena) noexcept nogil:
    """As read_map_entry, which it asks about unusual ones; `pseudo`: names with a colon in front are left out."""
    cdef Text key, value
    cdef unsigned marks
    if depth and usual_entry(entry, &key, &value):
        marks = text_marks(value.p, value.n)
        if not marks & TEXT_HIGH and remit_is_plain(key.p, key.n):
            lines_add(lines, key, value, marks, 1, 1, arena)
            return WIRE_OK
        if not marks & TEXT_HIGH and pseudo and key.n and key.p[0] == c":" and not text_high(key.p, key.n):
            lines.pseudo = 1
            return WIRE_OK
    return read_map_entry(entry, depth, lines, arena)


cdef int read_header(Text entry, int depth, void *into) noexcept nogil:
    cdef Decoding *d = <Decoding *> into
    return read_usual_entry(entry, depth, &d.map_lines, True, d.arena)


cdef int read_extension(Text entry, int depth, void *into) noexcept nogil:
    cdef Decoding *d = <Decoding *> into
    return read_usual_entry(entry, depth, &d.extensions, False, d.arena)


cdef int read_header_value(Text message, int depth, void *into) noexcept nogil:
    """One line of `header_map`. Envoy fills raw_value; `value` is text that Envoy may have altered, like the map's."""
    cdef Decoding *d = <Decoding *> into
    cdef RawLine line
    cdef Lines *lines = &d.raw_lines
    cdef unsigned marks
    cdef int error
    line.key = line.value = line.raw = text_of(b"")
    error = wire_nested(message, HEADER_VALUE, depth, &line)
    if error:
        return error
    if line.raw.n and line.value.n and not text_equal(line.raw, line.value):
        call_refuse(d.call, "headers.two_forms")
    if line.raw.n:
        line.value = line.raw
    marks = text_marks(line.value.p, line.value.n)
    lines_add(lines, line.key, line.value, marks, 0, remit_is_plain(line.key.p, line.key.n), d.arena)
    if line.raw.n == 0 and marks & TEXT_BANG and not lines.overflow and not d.arena.failed:
        lines.p[lines.n - 1].sanitised = 1
    return WIRE_OK


cdef int read_address(Text message, int depth, void *into) noexcept nogil:
    """source.address: its socket_address has an address; a pipe or an internal address in its place leaves none."""
    cdef Decoding *d = <Decoding *> into
    cdef Reader r
    cdef WireField f
    cdef int error
    if depth == 0:
        return WIRE_TOO_DEEP
    open_nested(&r, message, depth)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES or f.number > 3:
            continue
        if f.number != d.address_case:
            d.address_case = f.number
            d.source_address = text_of(b"")
        error = wire_nested(f.bytes, ADDRESSES[f.number], depth - 1, d if f.number == 1 else NULL)
        if error:
            return error
    return r.error


cdef int read_http(Text message, int depth, void *into) noexcept nogil:
    (<Decoding *> into).has_http = 1
    return wire_nested(message, HTTP, depth, into)


cdef int read_metadata(Text message, int depth, void *into) noexcept nogil:
    """metadata_context: namespaces of dynamic metadata."""
    cdef Reader r
    cdef WireField f
    cdef int error = wire_nested(message, METADATA, depth, NULL)
    if error:
        return error
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.number == 1 and f.type == WIRE_BYTES:
            mcp_namespace(f.bytes, &(<Decoding *> into).mcp_filter, &(<Decoding *> into).mcp_proxy)
    return WIRE_OK


# ---------------------------------------------------------------- shapes


# What of each message type decides whether bytes are one: its strings and its messages. Struct is shared with wire.
SCHEMA = {
    "CheckRequest": {1: "AttributeContext"},
    "AttributeContext": {
        1: "Peer", 2: "Peer", 4: "Request", 10: "TextEntry", 11: "Metadata", 12: "TLSSession", 13: "Metadata",
    },
    "Peer": {1: "Address", 2: "string", 3: "TextEntry", 4: "string", 5: "string"},
    "Address": {1: "SocketAddress", 2: "Pipe", 3: "EnvoyInternalAddress"},
    "SocketAddress": {2: "string", 4: "string", 5: "string", 7: "string"},
    "Pipe": {1: "string"},
    "EnvoyInternalAddress": {1: "string", 2: "string"},
    "Request": {1: "Timestamp", 2: "HttpRequest"},
    "Timestamp": {},
    "HttpRequest": {
        1: "string", 2: "string", 3: "TextEntry", 4: "string", 5: "string", 6: "string", 7: "string", 8: "string",
        10: "string", 11: "string", 13: "HeaderMap",
    },
    "HeaderMap": {1: "HeaderValue"},
    "HeaderValue": {1: "string", 2: "string"},
    "TextEntry": {1: "string", 2: "string"},
    "Metadata": {1: "StructEntry", 2: "AnyEntry"},
    "StructEntry": {1: "string", 2: "Struct"},
    "AnyEntry": {1: "string", 2: "Any"},
    "Any": {1: "string"},
    "TLSSession": {1: "string"},
}
# Types of which one place is kept and another is not.
COPIES = {"SourcePeer": "Peer", "DestinationPeer": "Peer", "SourceSocket": "SocketAddress"}
NAMES = [*SCHEMA, *COPIES]


cdef Shape SHAPES[SHAPES_MAX]    # in the order of NAMES; CheckRequest is the first
cdef const Shape *ADDRESSES[4]   # of source.address, by the number of its member
cdef const Shape *HTTP
cdef const Shape *METADATA
cdef const Shape *HEADER_VALUE


cdef Shape *shape_of(str name) except NULL:
    return &SHAPES[<int> NAMES.index(name)]


cdef int build_shapes() except -1:
    global HTTP, METADATA, HEADER_VALUE
    cdef const Shape *message
    memset(SHAPES, 0, sizeof(SHAPES))
    for name, members in SCHEMA.items():
        for number, kind in members.items():
            if kind == "string":
                shape_field(shape_of(name), number, SHAPE_STRING, NULL)
                continue
            message = shape_struct() if kind == "Struct" else shape_of(kind)
            shape_field(shape_of(name), number, SHAPE_MESSAGE, message)
    for name, original in COPIES.items():
        memcpy(shape_of(name), shape_of(original), sizeof(Shape))
    for number, name in enumerate(("SourcePeer", "DestinationPeer"), 1):
        shape_field(shape_of("AttributeContext"), number, SHAPE_MESSAGE, shape_of(name))
    for number, name in enumerate(("SourceSocket", "Pipe", "EnvoyInternalAddress"), 1):
        ADDRESSES[<int> number] = shape_of(name)
    HTTP, METADATA, HEADER_VALUE = shape_of("HttpRequest"), shape_of("Metadata"), shape_of("HeaderValue")
    return 0


cdef int keep_fields() except -1:
    """Where each field that is kept stands in a Decoding, or in a RawLine."""
    cdef Shape *http = shape_of("HttpRequest")
    cdef Shape *time = shape_of("Timestamp")
    cdef Shape *header = shape_of("HeaderValue")
    cdef Decoding d
    cdef RawLine line
    cdef const char *base = <const char *> &d
    shape_keep(shape_of("SourcePeer"), 4, SHAPE_STRING, <const char *> &d.source_principal - base)
    shape_keep(shape_of("SourcePeer"), 5, SHAPE_STRING, <const char *> &d.source_certificate - base)
    shape_keep(shape_of("SourceSocket"), 2, SHAPE_STRING, <const char *> &d.source_address - base)
    shape_keep(shape_of("DestinationPeer"), 4, SHAPE_STRING, <const char *> &d.destination_principal - base)
    shape_keep(shape_of("TLSSession"), 1, SHAPE_STRING, <const char *> &d.sni - base)
    shape_keep(time, 1, SHAPE_NUMBER, <const char *> &d.seconds - base)
    shape_keep(time, 2, SHAPE_NUMBER, <const char *> &d.nanos - base)
    shape_keep(http, 1, SHAPE_STRING, <const char *> &d.http_id - base)
    shape_keep(http, 2, SHAPE_STRING, <const char *> &d.method - base)
    shape_keep(http, 4, SHAPE_STRING, <const char *> &d.path - base)
    shape_keep(http, 5, SHAPE_STRING, <const char *> &d.host - base)
    shape_keep(http, 6, SHAPE_STRING, <const char *> &d.scheme - base)
    shape_keep(http, 7, SHAPE_STRING, <const char *> &d.query - base)
    shape_keep(http, 8, SHAPE_STRING, <const char *> &d.fragment - base)
    shape_keep(http, 9, SHAPE_NUMBER, <const char *> &d.size - base)
    shape_keep(http, 10, SHAPE_STRING, <const char *> &d.protocol - base)
    shape_keep(http, 11, SHAPE_STRING, <const char *> &d.body - base)
    shape_keep(http, 12, SHAPE_BYTES, <const char *> &d.raw_body - base)
    base = <const char *> &line
    shape_keep(header, 1, SHAPE_STRING, <const char *> &line.key - base)
    shape_keep(header, 2, SHAPE_STRING, <const char *> &line.value - base)
    shape_keep(header, 3, SHAPE_BYTES, <const char *> &line.raw - base)
    return 0


cdef int read_messages() except -1:
    shape_read(shape_of("SourcePeer"), 1, read_address)
    shape_read(shape_of("Request"), 2, read_http)
    shape_read(shape_of("HttpRequest"), 3, read_header)
    shape_read(shape_of("HeaderMap"), 1, read_header_value)
    shape_read(shape_of("AttributeContext"), 10, read_extension)
    shape_read(shape_of("AttributeContext"), 11, read_metadata)
    return 0


build_shapes()
keep_fields()
read_messages()


# ---------------------------------------------------------------- headers
cdef void take_pseudo(Decoding *d, const HeaderLine *line, Text *into) noexcept nogil:
    if into.n or utf8_prefix(line.value.p, line.value.n) != line.value.n:
        call_refuse(d.call, "headers.pseudo")
    else:
        into[0] = line.value


cdef void drop_pseudo(Decoding *d, Lines *lines) noexcept nogil:
    """Take `:path`, `:authority` and their like out of the list: policies see the typed fields (EX-12).

    gRPC's own ext_authz may leave the typed fields empty, so the raw form's are kept aside; the map's never count.
    """
    cdef uint32_t i, n = 0
    cdef HeaderLine *line
    for i in range(lines.n):
        line = &lines.p[i]
        if line.name.n == 0 or line.name.p[0] != c":":
            if n != i:
                lines.p[n] = line[0]
            n += 1
        elif not line.joined and text_is(line.name, ":path"):
            take_pseudo(d, line, &d.pseudo_path)
        elif not line.joined and text_is(line.name, ":authority"):
            take_pseudo(d, line, &d.pseudo_authority)
    lines.n = n


cdef bint same_host(Text a, Text b) noexcept nogil:
    cdef uint32_t i
    cdef uint8_t x, y
    if a.n != b.n:
        return False
    for i in range(a.n):
        x, y = a.p[i], b.p[i]
        if x != y and ((x | 32) != (y | 32) or (x | 32) < c"a" or (x | 32) > c"z"):
            return False
    return True


cdef void mend_lines(Decoding *d, Lines *lines) noexcept nogil:
    """Lower-case names, harmless values, no pseudo headers; sorted."""
    cdef HttpCall *call = d.call
    cdef HeaderLine *line
    cdef uint32_t i
    cdef int status, changed = 0
    drop_pseudo(d, lines)
    lines.bits = 0
    for i in range(lines.n):
        line = &lines.p[i]
        status = 0 if line.plain else lines_lower(&line.name, d.arena)
        if status > 0:
            changed = 1
            line.head = remit_head(line.name.p, line.name.n)
        elif status < 0:
            call_refuse(call, "headers.name")
        if line.marks & TEXT_CONTROL:
            call_refuse(call, "headers.control")
        if line.marks & TEXT_HIGH and not line.joined:
            lines_sanitise(line, d.arena)
        call.sanitised |= line.sanitised
        if line.name.n:
            lines.bits |= header_bit(line.name.p, line.name.n)
    if changed:
        lines_sort(lines)


cdef void finish_headers(Decoding *d) noexcept nogil:
    cdef Lines *lines = &d.raw_lines if d.raw_lines.n else &d.map_lines
    cdef HttpCall *call = d.call
    cdef HeaderLine line
    cdef uint32_t i, at, count
    if (d.map_lines.n or d.map_lines.pseudo) and d.raw_lines.n:
        call_refuse(call, "headers.two_forms")
    if d.map_lines.overflow or d.raw_lines.overflow or d.extensions.overflow:
        call_refuse(call, "headers.too_many")
    lines_sort(lines)
    if lines is &d.map_lines:
        lines_last_wins(lines)
    if lines.odd or lines.marks & (TEXT_CONTROL | TEXT_HIGH | TEXT_BANG):
        mend_lines(d, lines)
    call.headers = lines.p
    call.header_count = lines.n
    call.header_bits = lines.bits
    if call.raw_path.n == 0:
        call.raw_path = d.pseudo_path
    if call.raw_host.n == 0:
        call.raw_host = d.pseudo_authority
    count = envoy_header(call, "host", &line)
    at = first_line(call, text_of("host")) if count else 0
    for i in range(count):
        if not same_host(call.headers[at + i].value, call.raw_host):
            call_refuse(call, "host.conflict")


cdef void finish_extensions(Decoding *d) noexcept nogil:
    cdef uint32_t i
    cdef Pair *pairs
    lines_sort(&d.extensions)
    lines_last_wins(&d.extensions)
    pairs = <Pair *> arena_take(d.arena, d.extensions.n * sizeof(Pair))
    if pairs is NULL:
        return
    for i in range(d.extensions.n):
        pairs[i].name = d.extensions.p[i].name
        pairs[i].value = d.extensions.p[i].value
    d.call.extensions = pairs
    d.call.extension_count = d.extensions.n


# ---------------------------------------------------------------- the rest


cdef int64_t length_value(Text t) noexcept nogil:
    """The number in a content-length, -1 when it is none."""
    cdef int64_t n = 0
    cdef uint32_t i
    if t.n == 0 or t.n > LENGTH_DIGITS_MAX:
        return -1
    for i in range(t.n):
        if t.p[i] < c"0" or t.p[i] > c"9":
            return -1
        n = n * 10 + (t.p[i] - c"0")
    return n


cdef bint body_is_whole(HttpCall *call) noexcept nogil:
    """EX-15: not marked partial, and as long as the one content-length says when there is one.

    Two marks are Envoy's and the client's own, who would have its body judged by less than what is there: refused.
    """
    cdef HeaderLine line
    cdef uint32_t i = envoy_header(call, "x-envoy-auth-partial-body", &line)
    if i > 1 or (i and not text_is(line.value, "true") and not text_is(line.value, "false")):
        call_refuse(call, "request.ambiguous.x-envoy-auth-partial-body")
        return False
    if i and text_is(line.value, "true"):
        return False
    i = envoy_header(call, "content-length", &line)
    return i == 0 or (i == 1 and length_value(line.value) == call.body.n)


cdef void finish_body(Decoding *d) noexcept nogil:
    cdef HttpCall *call = d.call
    if d.body.n and d.raw_body.n:
        call_refuse(call, "body.two_forms")
    call.body = d.raw_body if d.raw_body.n else d.body
    call.body_present = call.body.n > 0
    call.body_raw = d.raw_body.n > 0
    call.body_complete = call.body_present and body_is_whole(call)


cdef void finish_query(Decoding *d) noexcept nogil:
    """Envoy leaves `query` and `fragment` empty; a caller that fills them must not contradict the path."""
    cdef HttpCall *call = d.call
    cdef const char *mark
    cdef uint32_t n
    if d.fragment.n:
        call_refuse(call, "path.fragment")
    if d.query.n == 0:
        return
    mark = <const char *> memchr(call.raw_path.p, c"?", call.raw_path.n) if call.raw_path.n else NULL
    if mark is NULL:
        call_refuse(call, "query.conflict")
        return
    n = call.raw_path.n - <uint32_t> (mark + 1 - call.raw_path.p)
    if n != d.query.n or not text_equal(d.query, Text(mark + 1, n)):
        call_refuse(call, "query.conflict")


cdef void finish_mcp(Decoding *d) noexcept nogil:
    cdef const Mcp *mcp = &d.mcp_filter if d.mcp_filter.present else &d.mcp_proxy
    cdef HttpCall *call = d.call
    call.mcp_metadata = mcp.present
    call.mcp_method = mcp.method
    call.mcp_name = mcp_subject(mcp)
    if not d.mcp_filter.present or not d.mcp_proxy.present:
        return
    if not text_equal(mcp.method, d.mcp_proxy.method) or not text_equal(call.mcp_name, mcp_subject(&d.mcp_proxy)):
        call_refuse(call, "mcp.metadata_conflict")


cdef void finish_fields(Decoding *d) noexcept nogil:
    """What is taken as it stands."""
    cdef HttpCall *call = d.call
    cdef int64_t seconds = <int64_t> d.seconds
    call.source_principal, call.source_address = d.source_principal, d.source_address
    call.source_certificate = d.source_certificate
    call.destination_principal, call.sni = d.destination_principal, d.sni
    call.has_http, call.http_id, call.protocol = d.has_http, d.http_id, d.protocol
    call.method, call.raw_path, call.raw_host, call.scheme = d.method, d.path, d.host, d.scheme
    call.size = <int64_t> d.size if d.has_http else -1
    if 0 <= seconds < <int64_t> SECONDS_MAX:
        call.time_unix_ns = seconds * 1000000000 + <int32_t> d.nanos


cdef int envoy_decode(const uint8_t *p, size_t n, Arena *arena, HttpCall *call) noexcept nogil:
    cdef Decoding d
    memset(call, 0, sizeof(HttpCall))
    memset(&d, 0, sizeof(Decoding))
    d.call = call
    d.arena = arena
    if wire_keep(p, n, &SHAPES[0], &d) != WIRE_OK:
        return 1
    if arena.failed:
        return 0             # the call ends in ERROR
    finish_fields(&d)
    finish_extensions(&d)
    finish_headers(&d)
    finish_body(&d)
    finish_query(&d)
    finish_mcp(&d)
    return 0


# ---------------------------------------------------------------- lookups


cdef uint32_t first_line(const HttpCall *call, Text name) noexcept nogil:
    """Index of the first header that is not before `name`."""
    cdef uint64_t head = remit_head(name.p, name.n)
    cdef uint32_t low = 0, high = call.header_count, middle
    cdef const HeaderLine *line
    while low < high:
        middle = (low + high) // 2
        line = &call.headers[middle]
        if line.head < head or (line.head == head and text_compare(line.name, name) < 0):
            low = middle + 1
        else:
            high = middle
    return low


cdef uint32_t header_lines(const HttpCall *call, Text wanted, HeaderLine *line) noexcept nogil:
    cdef uint32_t at = first_line(call, wanted), n = 0
    while at + n < call.header_count and text_equal(call.headers[at + n].name, wanted):
        n += 1
    if n:
        line[0] = call.headers[at]
    return n


cdef Text extension_value(const HttpCall *call, Text wanted) noexcept nogil:
    cdef uint32_t low = 0, high = call.extension_count, middle
    while low < high:
        middle = (low + high) // 2
        if text_compare(call.extensions[middle].name, wanted) < 0:
            low = middle + 1
        else:
            high = middle
    if low < call.extension_count and text_equal(call.extensions[low].name, wanted):
        return call.extensions[low].value
    return text_of(b"")


# ---------------------------------------------------------------- Python face


cdef str text_str(Text t):
    return t.p[:t.n].decode() if t.n else ""


cdef dict call_dict(const HttpCall *c):
    cdef uint32_t i
    return {
        "source_principal": text_str(c.source_principal),
        "source_address": text_str(c.source_address),
        "destination_principal": text_str(c.destination_principal),
        "sni": text_str(c.sni),
        "has_http": bool(c.has_http),
        "http_id": text_str(c.http_id),
        "method": text_str(c.method),
        "raw_path": text_str(c.raw_path),
        "raw_host": text_str(c.raw_host),
        "scheme": text_str(c.scheme),
        "protocol": text_str(c.protocol),
        "size": c.size,
        "headers": [(text_str(c.headers[i].name), text_str(c.headers[i].value)) for i in range(c.header_count)],
        "joined": bool(c.header_count and c.headers[0].joined),
        "sanitised": [text_str(c.headers[i].name) for i in range(c.header_count) if c.headers[i].sanitised],
        "body": c.body.p[:c.body.n] if c.body.n else b"",
        "body_present": bool(c.body_present),
        "body_complete": bool(c.body_complete),
        "extensions": {
            text_str(c.extensions[i].name): text_str(c.extensions[i].value) for i in range(c.extension_count)
        },
        "mcp_method": text_str(c.mcp_method),
        "mcp_name": text_str(c.mcp_name),
        "mcp_metadata": bool(c.mcp_metadata),
        "time_unix_ns": c.time_unix_ns,
        "host": text_str(c.host),
        "port": c.port,
        "path": text_str(c.path),
        "query": text_str(c.query),
        "query_pairs": [
            (text_str(c.query_pairs[i].name), text_str(c.query_pairs[i].value)) for i in range(c.query_count)
        ],
        "refusal": text_str(c.refusal),
    }


def decode(bytes request, *, bint strict_path=True, uint32_t headers_max=1024, uint32_t path_bytes_max=8192,
           size_t arena_bytes=1 << 20):
    cdef CanonicalRules rules = CanonicalRules(strict_path, headers_max, path_bytes_max)
    cdef Arena arena
    cdef HttpCall call
    cdef const uint8_t *p = request
    cdef size_t n = len(request)
    cdef int status
    arena.used = arena.failed = 0
    arena.cap = arena_bytes
    arena.base = <uint8_t *> malloc(arena_bytes)
    if arena.base is NULL:
        raise MemoryError
    try:
        with nogil:
            status = envoy_decode(p, n, &arena, &call)
            if status == 0 and not arena.failed:
                canonical_call(&call, &rules, &arena)
        if arena.failed:
            raise MemoryError
        return None if status else call_dict(&call)
    finally:
        free(arena.base)


def verdict(bytes request):
    return WireError(wire_check(<const char *> request, len(request), &SHAPES[0]))
