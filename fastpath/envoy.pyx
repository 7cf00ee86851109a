"""A CheckRequest of Envoy (or of gRPC's own ext_authz) decoded into an HttpCall.

Sources: envoy/service/auth/v3/{external_auth,attribute_context}.proto, envoy/config/core/v3/{base,address}.proto,
gRFC A92. First `wire_check` judges the bytes whole, as protobuf's own reader would; the functions below then only
pick fields, in the order of the wire, so that a later field replaces an earlier one and messages merge by themselves.

EX-13, text that the proxy altered. In the raw form (`header_map`) bytes that are not UTF-8 are seen: each becomes
`!`, as Envoy's own map has it, and the line is marked sanitised. In the map form Envoy has replaced them already and
nothing tells its `!` from the client's, so every value with a `!` is marked. The mark refuses nothing by itself, or a
user agent with a `!` would be locked out: it makes a value that equals no policy constant, and a value that names an
identity, a task, a method or a tool is refused by whoever reads it.
"""
from fastpath.canonical cimport canonical_call
from fastpath.value cimport arena_take
from fastpath.wire cimport (
    SHAPE_MESSAGE, SHAPE_STRING, WIRE_BYTES, WIRE_FIXED64, WIRE_VARINT, Reader, Shape, WireField, reader_next,
    reader_open, shape_field, shape_struct, text_compare, text_equal, text_is, utf8_prefix, wire_check
)
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memchr, memcpy, memset

from fastpath.wire import WireError

cdef enum:
    LINES_MAX = 4096         # header lines and context extensions each; more refuse the call
    SHAPES_MAX = 32
    SECONDS_MAX = 9000000000  # year 2255; beyond, the time counts as unknown
    LENGTH_DIGITS_MAX = 18


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


cdef Shape SHAPES[SHAPES_MAX]    # in the order of SCHEMA; CheckRequest is the first


cdef int build_shapes() except -1:
    cdef const Shape *message
    memset(SHAPES, 0, sizeof(SHAPES))
    place = {name: i for i, name in enumerate(SCHEMA)}
    for name, members in SCHEMA.items():
        for number, kind in members.items():
            if kind == "string":
                shape_field(&SHAPES[<int> place[name]], number, SHAPE_STRING, NULL)
                continue
            message = shape_struct() if kind == "Struct" else &SHAPES[<int> place[kind]]
            shape_field(&SHAPES[<int> place[name]], number, SHAPE_MESSAGE, message)
    return 0


build_shapes()


# ---------------------------------------------------------------- what is collected on the way


cdef struct Lines:
    HeaderLine *p
    uint32_t n
    uint32_t room
    int overflow


cdef struct Mcp:             # what one namespace of dynamic metadata says of the MCP call
    uint8_t present
    Text method
    Text name                # params.name
    Text uri                 # params.uri


cdef struct Decoding:
    HttpCall *call
    Arena *arena
    Lines map_lines          # `headers`
    Lines raw_lines          # `header_map`
    Lines extensions
    Mcp mcp_filter           # namespace envoy.filters.http.mcp
    Mcp mcp_proxy            # namespace mcp_proxy, the name of older filters
    uint32_t address_case    # member of source.address in force
    int64_t seconds
    int32_t nanos
    Text body
    Text raw_body
    Text query
    Text fragment
    Text pseudo_path         # from `header_map`, for callers that leave the typed fields empty
    Text pseudo_authority


cdef inline Text no_text() noexcept nogil:
    cdef Text t
    t.p = ""
    t.n = 0
    return t


cdef int lines_open(Lines *lines, size_t message_bytes, Arena *arena) noexcept nogil:
    """Room for as many entries as `message_bytes` can hold (two bytes each at least), at most LINES_MAX."""
    lines.n = 0
    lines.overflow = 0
    lines.room = LINES_MAX if message_bytes // 2 > LINES_MAX else <uint32_t> (message_bytes // 2)
    lines.p = <HeaderLine *> arena_take(arena, lines.room * sizeof(HeaderLine))
    return 1 if lines.p is NULL else 0


cdef void lines_add(Lines *lines, Text name, Text value, uint8_t joined) noexcept nogil:
    cdef HeaderLine *line
    if lines.n == lines.room:
        lines.overflow = 1
        return
    line = &lines.p[lines.n]
    line.name = name
    line.value = value
    line.joined = joined
    line.sanitised = joined and value.n and memchr(value.p, c"!", value.n) is not NULL
    line.order = lines.n
    lines.n += 1


cdef int by_name(const void *a, const void *b) noexcept nogil:
    cdef const HeaderLine *x = <const HeaderLine *> a
    cdef const HeaderLine *y = <const HeaderLine *> b
    cdef int order = text_compare(x.name, y.name)
    return order if order else (x.order > y.order) - (x.order < y.order)


cdef void lines_sort(Lines *lines) noexcept nogil:
    if lines.n > 1:
        qsort(lines.p, lines.n, sizeof(HeaderLine), by_name)


cdef void lines_last_wins(Lines *lines) noexcept nogil:
    """Of sorted entries of a protobuf map keep the last under each key. The order of a map means nothing: it goes."""
    cdef uint32_t i, n = 0
    for i in range(lines.n):
        if i + 1 < lines.n and text_equal(lines.p[i].name, lines.p[i + 1].name):
            continue
        lines.p[n] = lines.p[i]
        lines.p[n].order = n
        n += 1
    lines.n = n


# ---------------------------------------------------------------- picking fields


cdef bint read_entry(Text entry, Text *key, Text *value) noexcept nogil:
    """Key and last value of an entry of a map from strings to strings or messages.

    False when it holds anything else: upb then leaves the whole entry out of the map.
    """
    cdef Reader r
    cdef WireField f
    key[0] = value[0] = no_text()
    reader_open(&r, entry)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES or f.number > 2:
            return False
        if f.number == 1:
            key[0] = f.bytes
        else:
            value[0] = f.bytes
    return r.groups == 0


cdef void read_text_entry(Text entry, Lines *lines) noexcept nogil:
    """An entry of a map<string, string>."""
    cdef Text key, value
    if read_entry(entry, &key, &value):
        lines_add(lines, key, value, 1)


cdef inline bint key_is(Text entry, const char *key) noexcept nogil:
    """Whether a map has this entry under `key`."""
    cdef Text found, value
    return read_entry(entry, &found, &value) and text_is(found, key)


cdef inline bint is_value_member(const WireField *f) noexcept nogil:
    """Whether the field sets the oneof of google.protobuf.Value."""
    if f.type == WIRE_VARINT:
        return f.number == 1 or f.number == 4
    if f.type == WIRE_FIXED64:
        return f.number == 2
    return f.type == WIRE_BYTES and (f.number == 3 or f.number == 5 or f.number == 6)


cdef Text entry_text(Text entry) noexcept nogil:
    """The string in the Value of a Struct's entry; empty when the value is anything else."""
    cdef Reader outer, r
    cdef WireField f, member
    cdef Text found = no_text()
    reader_open(&outer, entry)
    while reader_next(&outer, &f):
        if f.number != 2 or f.type != WIRE_BYTES:
            continue
        reader_open(&r, f.bytes)
        while reader_next(&r, &member):
            if is_value_member(&member):
                found = member.bytes if member.number == 3 else no_text()
    return found


cdef void read_mcp_params(Text params, Mcp *mcp) noexcept nogil:
    """Add a Struct to what is known of `params`."""
    cdef Reader r
    cdef WireField f
    reader_open(&r, params)
    while reader_next(&r, &f):
        if f.number != 1 or f.type != WIRE_BYTES:
            continue
        if key_is(f.bytes, "name"):
            mcp.name = entry_text(f.bytes)
        elif key_is(f.bytes, "uri"):
            mcp.uri = entry_text(f.bytes)


cdef void read_mcp_params_entry(Text entry, Mcp *mcp) noexcept nogil:
    """Take `params` from a Struct's entry, in place of an earlier one."""
    cdef Reader outer, r
    cdef WireField f, member
    mcp.name = mcp.uri = no_text()
    reader_open(&outer, entry)
    while reader_next(&outer, &f):
        if f.number != 2 or f.type != WIRE_BYTES:
            continue
        reader_open(&r, f.bytes)
        while reader_next(&r, &member):
            if member.number == 5 and member.type == WIRE_BYTES:
                read_mcp_params(member.bytes, mcp)
            elif is_value_member(&member):
                mcp.name = mcp.uri = no_text()


cdef void read_mcp_struct(Text message, Mcp *mcp) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.number != 1 or f.type != WIRE_BYTES:
            continue
        if key_is(f.bytes, "method"):
            mcp.method = entry_text(f.bytes)
        elif key_is(f.bytes, "params"):
            read_mcp_params_entry(f.bytes, mcp)


cdef void read_metadata_entry(Text entry, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef Mcp *mcp
    if key_is(entry, "envoy.filters.http.mcp"):
        mcp = &d.mcp_filter
    elif key_is(entry, "mcp_proxy"):
        mcp = &d.mcp_proxy
    else:
        return
    mcp.present = 1
    mcp.method = mcp.name = mcp.uri = no_text()
    reader_open(&r, entry)
    while reader_next(&r, &f):
        if f.number == 2 and f.type == WIRE_BYTES:
            read_mcp_struct(f.bytes, mcp)


cdef void read_metadata(Text message, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.number == 1 and f.type == WIRE_BYTES:
            read_metadata_entry(f.bytes, d)


cdef void read_address(Text message, Decoding *d) noexcept nogil:
    """The address of source.address.socket_address; a pipe or an internal address leaves none."""
    cdef Reader r, inner
    cdef WireField f, member
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES or f.number > 3:
            continue
        if f.number != d.address_case:
            d.address_case = f.number
            d.call.source_address = no_text()
        if f.number != 1:
            continue
        reader_open(&inner, f.bytes)
        while reader_next(&inner, &member):
            if member.number == 2 and member.type == WIRE_BYTES:
                d.call.source_address = member.bytes


cdef void read_source(Text message, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES:
            continue
        if f.number == 1:
            read_address(f.bytes, d)
        elif f.number == 4:
            d.call.source_principal = f.bytes


cdef Text last_text(Text message, uint32_t number, Text before) noexcept nogil:
    """String field `number` of a message, `before` when it is not there."""
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.number == number and f.type == WIRE_BYTES:
            before = f.bytes
    return before


cdef void read_time(Text message, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type != WIRE_VARINT:
            continue
        if f.number == 1:
            d.seconds = <int64_t> f.v
        elif f.number == 2:
            d.nanos = <int32_t> f.v


cdef void read_header_value(Text message, Decoding *d) noexcept nogil:
    """One line of `header_map`. Envoy fills raw_value; `value` is text that Envoy may have altered, like the map's."""
    cdef Reader r
    cdef WireField f
    cdef Text key = no_text(), value = no_text(), raw = no_text()
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES:
            continue
        if f.number == 1:
            key = f.bytes
        elif f.number == 2:
            value = f.bytes
        elif f.number == 3:
            raw = f.bytes
    if raw.n and value.n and not text_equal(raw, value):
        call_refuse(d.call, "headers.two_forms")
    lines_add(&d.raw_lines, key, raw if raw.n else value, 0)
    if raw.n == 0 and value.n and memchr(value.p, c"!", value.n) is not NULL and not d.raw_lines.overflow:
        d.raw_lines.p[d.raw_lines.n - 1].sanitised = 1


cdef void read_header_map(Text message, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.number == 1 and f.type == WIRE_BYTES:
            read_header_value(f.bytes, d)


cdef Text *http_text(Decoding *d, uint32_t number) noexcept nogil:
    """Where string field `number` of HttpRequest goes, or NULL."""
    cdef HttpCall *call = d.call
    if number == 1:
        return &call.http_id
    if number == 2:
        return &call.method
    if number == 4:
        return &call.raw_path
    if number == 5:
        return &call.raw_host
    if number == 6:
        return &call.scheme
    if number == 7:
        return &d.query
    if number == 8:
        return &d.fragment
    if number == 10:
        return &call.protocol
    if number == 11:
        return &d.body
    return &d.raw_body if number == 12 else NULL


cdef void read_http(Text message, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef Text *text
    if not d.call.has_http:
        d.call.has_http = 1
        d.call.size = 0
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.number == 9 and f.type == WIRE_VARINT:
            d.call.size = <int64_t> f.v
        if f.type != WIRE_BYTES:
            continue
        text = http_text(d, f.number)
        if text is not NULL:
            text[0] = f.bytes
        elif f.number == 3:
            read_text_entry(f.bytes, &d.map_lines)
        elif f.number == 13:
            read_header_map(f.bytes, d)


cdef void read_request(Text message, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES:
            continue
        if f.number == 1:
            read_time(f.bytes, d)
        elif f.number == 2:
            read_http(f.bytes, d)


cdef void read_attributes(Text message, Decoding *d) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef HttpCall *call = d.call
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES:
            continue
        if f.number == 1:
            read_source(f.bytes, d)
        elif f.number == 2:
            call.destination_principal = last_text(f.bytes, 4, call.destination_principal)
        elif f.number == 4:
            read_request(f.bytes, d)
        elif f.number == 10:
            read_text_entry(f.bytes, &d.extensions)
        elif f.number == 11:
            read_metadata(f.bytes, d)
        elif f.number == 12:
            call.sni = last_text(f.bytes, 1, call.sni)


# ---------------------------------------------------------------- headers


cdef inline bint is_token_byte(uint8_t b) noexcept nogil:
    """tchar of RFC 9110 section 5.6.2."""
    if (b >= c"a" and b <= c"z") or (b >= c"A" and b <= c"Z") or (b >= c"0" and b <= c"9"):
        return True
    return b != 0 and memchr("!#$%&'*+-.^_`|~", b, 15) is not NULL


cdef int lower_name(Text *name, Arena *arena) noexcept nogil:
    """Make a header name lower case: 0 when it was, 1 when it is now a copy, -1 when it is no name or memory is out."""
    cdef uint32_t i, upper = 0
    cdef uint8_t b
    cdef char *copy
    for i in range(name.n):
        b = name.p[i]
        if not is_token_byte(b):
            return -1
        upper += b >= c"A" and b <= c"Z"
    if name.n == 0:
        return -1
    if upper == 0:
        return 0
    copy = <char *> arena_take(arena, name.n)
    if copy is NULL:
        return -1
    for i in range(name.n):
        b = name.p[i]
        copy[i] = b + 32 if b >= c"A" and b <= c"Z" else b
    name.p = copy
    return 1


cdef bint has_control(Text t) noexcept nogil:
    """Whether a header's value holds what RFC 9110 section 5.5 forbids."""
    cdef uint32_t i
    cdef uint8_t b
    for i in range(t.n):
        b = t.p[i]
        if (b < 0x20 and b != c"\t") or b == 0x7F:
            return True
    return False


cdef void sanitise(HeaderLine *line, Arena *arena) noexcept nogil:
    """Replace each byte that is not UTF-8 by `!`, in a copy."""
    cdef size_t at = utf8_prefix(line.value.p, line.value.n)
    cdef char *copy
    if at == line.value.n:
        return
    line.sanitised = 1
    copy = <char *> arena_take(arena, line.value.n)
    if copy is NULL:
        return
    memcpy(copy, line.value.p, line.value.n)
    while at < line.value.n:
        copy[at] = c"!"
        at += 1 + utf8_prefix(copy + at + 1, line.value.n - at - 1)
    line.value.p = copy


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


cdef void finish_lines(Decoding *d, Lines *lines) noexcept nogil:
    """Lower-case names, harmless values, no pseudo headers; sorted."""
    cdef uint32_t i
    cdef int status, changed = 0
    drop_pseudo(d, lines)
    for i in range(lines.n):
        status = lower_name(&lines.p[i].name, d.arena)
        changed |= status == 1
        if status < 0:
            call_refuse(d.call, "headers.name")
        if has_control(lines.p[i].value):
            call_refuse(d.call, "headers.control")
        sanitise(&lines.p[i], d.arena)
    if changed:
        lines_sort(lines)


cdef void finish_headers(Decoding *d) noexcept nogil:
    cdef Lines *lines = &d.raw_lines if d.raw_lines.n else &d.map_lines
    cdef HttpCall *call = d.call
    cdef HeaderLine line
    cdef uint32_t i, at
    if d.map_lines.n and d.raw_lines.n:
        call_refuse(call, "headers.two_forms")
    if d.map_lines.overflow or d.raw_lines.overflow or d.extensions.overflow:
        call_refuse(call, "headers.too_many")
    lines_sort(lines)
    if lines is &d.map_lines:
        lines_last_wins(lines)
    finish_lines(d, lines)
    call.headers = lines.p
    call.header_count = lines.n
    if call.raw_path.n == 0:
        call.raw_path = d.pseudo_path
    if call.raw_host.n == 0:
        call.raw_host = d.pseudo_authority
    at = first_line(call, text_of("host"))
    for i in range(envoy_header(call, "host", &line)):
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


cdef inline Text mcp_subject(const Mcp *mcp) noexcept nogil:
    """What an MCP call names: a resource by its uri, all else by its name."""
    if mcp.method.n > 10 and text_equal(Text(mcp.method.p, 10), text_of("resources/")):
        return mcp.uri
    return mcp.name


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


cdef void finish_time(Decoding *d) noexcept nogil:
    if d.seconds >= 0 and d.seconds < <int64_t> SECONDS_MAX:
        d.call.time_unix_ns = d.seconds * 1000000000 + d.nanos


cdef int envoy_decode(const uint8_t *p, size_t n, Arena *arena, HttpCall *call) noexcept nogil:
    cdef Decoding d
    cdef Reader r
    cdef WireField f
    memset(call, 0, sizeof(HttpCall))
    memset(&d, 0, sizeof(Decoding))
    call.size = -1
    if wire_check(p, n, &SHAPES[0]) != 0:
        return 1
    d.call = call
    d.arena = arena
    if lines_open(&d.map_lines, n, arena) or lines_open(&d.raw_lines, n, arena) or lines_open(&d.extensions, n, arena):
        return 0             # arena.failed is set: the call ends in ERROR
    reader_open(&r, Text(<const char *> p, <uint32_t> n))
    while reader_next(&r, &f):
        if f.number == 1 and f.type == WIRE_BYTES:
            read_attributes(f.bytes, &d)
    finish_extensions(&d)
    finish_headers(&d)
    finish_body(&d)
    finish_query(&d)
    finish_mcp(&d)
    finish_time(&d)
    return 0


# ---------------------------------------------------------------- lookups


cdef uint32_t first_line(const HttpCall *call, Text name) noexcept nogil:
    """Index of the first header that is not before `name`."""
    cdef uint32_t low = 0, high = call.header_count, middle
    while low < high:
        middle = (low + high) // 2
        if text_compare(call.headers[middle].name, name) < 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef uint32_t envoy_header(const HttpCall *call, const char *name, HeaderLine *line) noexcept nogil:
    cdef Text wanted = text_of(name)
    cdef uint32_t at = first_line(call, wanted), n = 0
    while at + n < call.header_count and text_equal(call.headers[at + n].name, wanted):
        n += 1
    if n:
        line[0] = call.headers[at]
    return n


cdef Text envoy_extension(const HttpCall *call, const char *name) noexcept nogil:
    cdef Text wanted = text_of(name)
    cdef uint32_t low = 0, high = call.extension_count, middle
    while low < high:
        middle = (low + high) // 2
        if text_compare(call.extensions[middle].name, wanted) < 0:
            low = middle + 1
        else:
            high = middle
    if low < call.extension_count and text_equal(call.extensions[low].name, wanted):
        return call.extensions[low].value
    return no_text()


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
