"""One canonicaliser for method, host, path and query (RFC 3986 sections 2, 3.2.2, 5.2.4, 6.2).

A call has one reading or none. What another reader could take differently is refused, whatever `strict_path` says: an
encoded slash or backslash, a backslash, an invalid escape, bytes that are not UTF-8 or not NFC, control bytes, a
fragment, a dot segment that hides behind path parameters (`/..;/`), a list or userinfo in the host. `strict_path`
also refuses what has a canonical form but is not in it: doubled slashes, dot segments, escapes of unreserved
characters, path parameters, and text that would be an escape if it were decoded again. Without it the canonical form
goes on and parameters stay part of the text.

The canonical path is decoded exactly once: `%3F` is a `?` in a segment, and only the first raw `?` begins the query.
Nothing here reads X-Forwarded-*, X-Original-*, x-envoy-original-path or a method override.
"""
from fastpath.c.inet cimport AF_INET, AF_INET6, inet_ntop, inet_pton
from fastpath.c.utf8proc cimport UTF8PROC_COMPOSE, UTF8PROC_STABLE, utf8proc_decompose, utf8proc_reencode
from fastpath.envoy cimport CanonicalRules, HttpCall, Pair, call_refuse, header_bit
from fastpath.value cimport Arena, arena_take
from fastpath.wire cimport Text, text_equal, text_is, text_of, utf8_valid
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memmove

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *a, const char *b, size_t n)

cdef enum:
    METHOD_BYTES_MAX = 64
    HOST_BYTES_MAX = 253     # RFC 1035 section 2.3.4, as text
    LABEL_BYTES_MAX = 63
    ADDRESS_BYTES_MAX = 46   # INET6_ADDRSTRLEN
    MAPPED_BYTES = 12
    QUERY_PAIRS_MAX = 256
    CODE_POINTS_PER_BYTE = 2  # decomposed text of n bytes has fewer code points than 2n


cdef inline Text piece(const char *p, size_t n) noexcept nogil:
    cdef Text t
    t.p = p
    t.n = <uint32_t> n
    return t


cdef inline bint is_alnum(uint8_t b) noexcept nogil:
    return (b >= c"a" and b <= c"z") or (b >= c"A" and b <= c"Z") or (b >= c"0" and b <= c"9")


cdef inline bint is_unreserved(uint8_t b) noexcept nogil:
    return is_alnum(b) or b == c"-" or b == c"." or b == c"_" or b == c"~"


cdef inline bint is_control(uint8_t b) noexcept nogil:
    return b < 0x20 or b == 0x7F


cdef inline int hex_digit(uint8_t b) noexcept nogil:
    if b >= c"0" and b <= c"9":
        return b - c"0"
    b |= 0x20
    return b - c"a" + 10 if b >= c"a" and b <= c"f" else -1


cdef inline int escaped_byte(const char *p, uint32_t left) noexcept nogil:
    """The byte that `%XX` at p stands for, -1 when the `left` bytes there do not begin with an escape."""
    cdef int high, low
    if left < 3 or p[0] != c"%":
        return -1
    high = hex_digit(p[1])
    low = hex_digit(p[2])
    return -1 if high < 0 or low < 0 else high * 16 + low


cdef uint8_t HOST_BYTES[256]     # a byte of a host's name in lower case, 0 when it has no place there
cdef uint8_t PATH_BYTES[256]     # whether a byte of a path means itself to every reader


cdef void build_bytes() noexcept nogil:
    cdef int i
    for i in range(256):
        if is_alnum(<uint8_t> i) or i == c"-" or i == c"_" or i == c".":
            HOST_BYTES[i] = <uint8_t> (i + 32 if c"A" <= i <= c"Z" else i)
        PATH_BYTES[i] = is_unreserved(<uint8_t> i) or (0 < i < 128 and memchr(b"/!$&'()*+,:=@", i, 13) is not NULL)


build_bytes()


# ---------------------------------------------------------------- method


cdef const char *method_problem(Text method) noexcept nogil:
    """The token stays as sent: methods are case-sensitive (RFC 9110 section 9.1)."""
    cdef uint32_t i
    if method.n == 0 or method.n > METHOD_BYTES_MAX:
        return "method.bad"
    for i in range(method.n):
        if not is_alnum(method.p[i]) and (method.p[i] == 0 or memchr("!#$%&'*+-.^_`|~", method.p[i], 15) is NULL):
            return "method.bad"
    return NULL


# ---------------------------------------------------------------- host


cdef bint is_numeric_label(Text label) noexcept nogil:
    """Whether some reader would take a host that ends in this label for an IPv4 address (WHATWG URL, 3.5)."""
    cdef uint32_t i
    if label.n >= 2 and label.p[0] == c"0" and (label.p[1] | 0x20) == c"x":
        return True
    for i in range(label.n):
        if label.p[i] < c"0" or label.p[i] > c"9":
            return False
    return True


cdef bint copy_labels(Text name, char *out) noexcept nogil:
    """Copy a name in lower case; false when one of its labels is empty, too long or holds what no label holds."""
    cdef uint32_t i, start = 0
    cdef uint8_t b
    for i in range(name.n):
        b = HOST_BYTES[<uint8_t> name.p[i]]
        if b == 0:
            return False
        if b == c".":
            if i == start or i - start > LABEL_BYTES_MAX:
                return False
            start = i + 1
        out[i] = <char> b
    return start < name.n <= start + LABEL_BYTES_MAX


cdef bint ends_in_number(Text name) noexcept nogil:
    cdef uint32_t at = name.n
    while at > 0 and name.p[at - 1] != c".":
        at -= 1
    return is_numeric_label(piece(name.p + at, name.n - at))


cdef const char *name_problem(HttpCall *call, Text name, Arena *arena) noexcept nogil:
    """A DNS name or an IPv4 address; lower case, without its trailing dot. Names in Unicode must come as IDNA."""
    cdef char *copy
    cdef uint8_t address[16]
    if name.n and name.p[name.n - 1] == c".":
        name.n -= 1
    if name.n == 0 or name.n > HOST_BYTES_MAX:
        return "host.bad"
    copy = <char *> arena_take(arena, name.n + 1)
    if copy is NULL or not copy_labels(name, copy):
        return "host.bad"
    copy[name.n] = 0
    if ends_in_number(name) and inet_pton(AF_INET, copy, address) != 1:
        return "host.bad"
    call.host = piece(copy, name.n)
    return NULL


cdef const char *MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"   # before an IPv4 address (RFC 4291, section 2.5.5.2)


cdef const char *address_problem(HttpCall *call, Text inside, Arena *arena) noexcept nogil:
    """An IPv6 address between brackets; canonical text by RFC 5952. One that maps an IPv4 address is that address."""
    cdef char text[ADDRESS_BYTES_MAX]
    cdef uint8_t address[16]
    cdef char *copy
    cdef size_t n = 0
    if inside.n == 0 or inside.n >= ADDRESS_BYTES_MAX:
        return "host.bad"
    memcpy(text, inside.p, inside.n)
    text[inside.n] = 0
    if memchr(text, 0, inside.n) is not NULL or inet_pton(AF_INET6, text, address) != 1:
        return "host.bad"
    copy = <char *> arena_take(arena, ADDRESS_BYTES_MAX + 2)
    if copy is not NULL and memcmp(address, MAPPED, MAPPED_BYTES) == 0:
        if inet_ntop(AF_INET, address + MAPPED_BYTES, copy, ADDRESS_BYTES_MAX) is NULL:
            return "host.bad"
        while copy[n]:
            n += 1
        call.host = piece(copy, n)
        return NULL
    if copy is NULL or inet_ntop(AF_INET6, address, copy + 1, ADDRESS_BYTES_MAX) is NULL:
        return "host.bad"
    while copy[1 + n]:
        n += 1
    copy[0] = c"["
    copy[n + 1] = c"]"
    call.host = piece(copy, n + 2)
    return NULL


cdef const char *port_problem(HttpCall *call, Text digits) noexcept nogil:
    cdef uint32_t i, port = 0
    if digits.n == 0 or digits.n > 5:
        return "host.bad"
    for i in range(digits.n):
        if digits.p[i] < c"0" or digits.p[i] > c"9":
            return "host.bad"
        port = port * 10 + <uint32_t> (digits.p[i] - c"0")
    if port == 0 or port > 65535:
        return "host.bad"
    if (port == 80 and text_is(call.scheme, "http")) or (port == 443 and text_is(call.scheme, "https")):
        port = 0
    call.port = port
    return NULL


cdef const char *scheme_problem(HttpCall *call, Arena *arena) noexcept nogil:
    """Schemes are the same in any case (RFC 3986 section 3.1), and rules compare them: lower case."""
    cdef char *copy = <char *> arena_take(arena, call.scheme.n)
    cdef uint32_t i
    cdef uint8_t b
    if copy is NULL:
        return "scheme.bad"
    for i in range(call.scheme.n):
        b = call.scheme.p[i]
        if not is_alnum(b) and b != c"+" and b != c"-" and b != c".":
            return "scheme.bad"
        copy[i] = b + 32 if b >= c"A" and b <= c"Z" else b
    call.scheme = piece(copy, call.scheme.n)
    return NULL


cdef const char *host_problem(HttpCall *call, Arena *arena) noexcept nogil:
    cdef Text raw = call.raw_host
    cdef const char *mark
    cdef const char *problem
    cdef size_t n
    if raw.n == 0:
        return "host.missing"
    if memchr(raw.p, c",", raw.n) is not NULL:
        return "host.list"
    if memchr(raw.p, c"@", raw.n) is not NULL:
        return "host.userinfo"
    if raw.p[0] == c"[":
        mark = <const char *> memchr(raw.p, c"]", raw.n)
        if mark is NULL:
            return "host.bad"
        n = mark + 1 - raw.p
        problem = address_problem(call, piece(raw.p + 1, n - 2), arena)
    else:
        mark = <const char *> memchr(raw.p, c":", raw.n)
        n = raw.n if mark is NULL else mark - raw.p
        problem = name_problem(call, piece(raw.p, n), arena)
    if problem is not NULL or n == raw.n:
        return problem
    if raw.p[n] != c":":
        return "host.bad"
    return port_problem(call, piece(raw.p + n + 1, raw.n - n - 1))


# ---------------------------------------------------------------- path


cdef const char *raw_problem(Text raw) noexcept nogil:
    """What no URI holds, in path or query."""
    cdef uint32_t i
    cdef uint8_t b
    for i in range(raw.n):
        b = raw.p[i]
        if b == c" " or is_control(b):
            return "path.control"
        if b >= 0x80:
            return "path.not_ascii"
        if b == c"#":
            return "path.fragment"
    return NULL


cdef const char *decode_path(Text raw, char *out, uint32_t *out_n, bint *altered) noexcept nogil:
    """Decode the escapes once. `altered`: an escape stood where RFC 3986 section 6.2.2.2 wants none."""
    cdef uint32_t i = 0, n = 0
    cdef int b
    while i < raw.n:
        b = <uint8_t> raw.p[i]
        if b == c"\\":
            return "path.backslash"
        if b == c"%":
            b = escaped_byte(raw.p + i, raw.n - i)
            if b < 0:
                return "path.bad_escape"
            if b == c"/" or b == c"\\":
                return "path.encoded_slash"
            if is_control(<uint8_t> b):
                return "path.control"
            altered[0] |= is_unreserved(<uint8_t> b)
            i += 2
        out[n] = <char> b
        n += 1
        i += 1
    out_n[0] = n
    return NULL


cdef const char *text_problem(const char *p, uint32_t n, Arena *arena) noexcept nogil:
    """Decoded text must be UTF-8, without C1 controls, in normalisation form C."""
    cdef size_t used = arena.used
    cdef ssize_t room = CODE_POINTS_PER_BYTE * <ssize_t> n, count
    cdef int32_t *points
    cdef uint32_t i, high = 0
    cdef const char *problem = NULL
    for i in range(n):
        high |= <uint8_t> p[i]
    if high < 0x80:
        return NULL
    if not utf8_valid(p, n):
        return "path.bad_utf8"
    for i in range(n - 1):
        if <uint8_t> p[i] == 0xC2 and <uint8_t> p[i + 1] < 0xA0:
            return "path.control"
    points = <int32_t *> arena_take(arena, (room + 1) * sizeof(int32_t))
    if points is NULL:
        return "path.not_nfc"
    count = utf8proc_decompose(<const uint8_t *> p, n, points, room, UTF8PROC_STABLE | UTF8PROC_COMPOSE)
    if count < 0 or count > room:
        problem = "path.not_nfc"
    else:
        count = utf8proc_reencode(points, count, UTF8PROC_STABLE | UTF8PROC_COMPOSE)
        if count != n or memcmp(points, p, n) != 0:
            problem = "path.not_nfc"
    arena.used = used
    return problem


cdef inline uint32_t dots_of(const char *p, uint32_t n) noexcept nogil:
    """1 for `.`, 2 for `..`, 0 for any other segment."""
    if n == 1 and p[0] == c".":
        return 1
    return 2 if n == 2 and p[0] == c"." and p[1] == c"." else 0


cdef bint hides_dots(const char *p, uint32_t n) noexcept nogil:
    """Whether a segment is `.` or `..` for a reader that cuts parameters off (`..;x`)."""
    cdef const char *mark = <const char *> memchr(p, c";", n)
    return mark is not NULL and dots_of(p, <uint32_t> (mark - p)) != 0


cdef const char *resolve_segments(char *path, uint32_t *n, bint *altered) noexcept nogil:
    """Collapse doubled slashes and resolve dot segments in place (RFC 3986 section 5.2.4). `path` starts with `/`."""
    cdef uint32_t at = 1, to = 1, end, length, dots
    while at < n[0]:
        end = at
        while end < n[0] and path[end] != c"/":
            end += 1
        length = end - at
        dots = dots_of(path + at, length)
        if hides_dots(path + at, length):
            return "path.dot_params"
        if length == 0 or dots:
            altered[0] = True
        if dots == 2 and to > 1:
            to -= 1
            while path[to - 1] != c"/":
                to -= 1
        elif length and not dots:
            memmove(path + to, path + at, length)
            to += length
            if end < n[0]:
                path[to] = c"/"
                to += 1
        at = end + 1
    n[0] = to
    return NULL


cdef bint has_escape(const char *p, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if escaped_byte(p + i, n - i) >= 0:
            return True
    return False


cdef bint is_plain_path(Text raw) noexcept nogil:
    """Whether a request target is a path that all that follows would leave as it is: as nearly all are."""
    cdef uint32_t i
    cdef uint8_t b, before = c"/"
    if raw.n == 0 or raw.p[0] != c"/":
        return False
    for i in range(1, raw.n):
        b = raw.p[i]
        # After a slash a dot may begin a dot segment, and a slash ends an empty one.
        if not PATH_BYTES[b] or (before == c"/" and (b == c"/" or b == c".")):
            return False
        before = b
    return True


cdef const char *path_problem(HttpCall *call, Text raw, bint strict, Arena *arena) noexcept nogil:
    cdef char *out
    cdef uint32_t n = 0
    cdef bint altered = False
    cdef const char *problem
    if (raw.n == 0 and text_is(call.method, "CONNECT")) or (text_is(raw, "*") and text_is(call.method, "OPTIONS")):
        call.path = raw
        return NULL
    if raw.n == 0 or raw.p[0] != c"/":
        return "path.relative"
    out = <char *> arena_take(arena, raw.n)
    if out is NULL:
        return "path.too_long"
    problem = decode_path(raw, out, &n, &altered)
    if problem is NULL:
        problem = text_problem(out, n, arena)
    if problem is NULL:
        problem = resolve_segments(out, &n, &altered)
    if problem is not NULL:
        return problem
    if strict and altered:
        return "path.not_canonical"
    if strict and memchr(raw.p, c";", raw.n) is not NULL:
        return "path.params"
    if strict and has_escape(out, n):
        return "path.double_escape"
    call.path = piece(out, n)
    return NULL


# ---------------------------------------------------------------- gRPC


cdef bint is_grpc_type(Text value) noexcept nogil:
    cdef Text kind = text_of("application/grpc")
    return value.n >= kind.n and strncasecmp(value.p, kind.p, kind.n) == 0


cdef bint is_grpc(const HttpCall *call) noexcept nogil:
    """Whether some content-type says gRPC."""
    cdef Text name = text_of("content-type")
    cdef uint32_t i
    if not call.header_bits & header_bit(name.p, name.n):
        return False
    for i in range(call.header_count):
        if text_equal(call.headers[i].name, name) and is_grpc_type(call.headers[i].value):
            return True
    return False


cdef const char *grpc_problem(Text raw) noexcept nogil:
    """A gRPC path is `/service/method` in plain text, nothing more (H2-20): servers route by the raw bytes."""
    cdef uint32_t i, slashes = 0
    for i in range(raw.n):
        if raw.p[i] == c"%" or raw.p[i] == c"?" or raw.p[i] == c";" or raw.p[i] == c"*":
            return "path.not_grpc"
        slashes += raw.p[i] == c"/"
    if slashes < 2 or raw.p[raw.n - 1] == c"/":
        return "path.not_grpc"
    return NULL


# ---------------------------------------------------------------- query


cdef const char *decode_query(Text raw, char *out, uint32_t *n) noexcept nogil:
    """Decode one name or value (WHATWG URL 5.1: `+` is a space) at out[n[0]]."""
    cdef uint32_t i = 0
    cdef int b
    while i < raw.n:
        b = <uint8_t> raw.p[i]
        if b == c"+":
            b = c" "
        elif b == c"%":
            b = escaped_byte(raw.p + i, raw.n - i)
            if b < 0:
                return "query.bad_escape"
            if b == 0:
                return "query.control"
            i += 2
        out[n[0]] = <char> b
        n[0] += 1
        i += 1
    return NULL


cdef const char *decode_pair(Text raw, char *out, uint32_t *n, Pair *pair) noexcept nogil:
    cdef const char *mark = <const char *> memchr(raw.p, c"=", raw.n)
    cdef size_t name_n = raw.n if mark is NULL else mark - raw.p
    cdef uint32_t start = n[0]
    cdef const char *problem = decode_query(piece(raw.p, name_n), out, n)
    pair.name = piece(out + start, n[0] - start)
    start = n[0]
    if problem is NULL and mark is not NULL:
        problem = decode_query(piece(mark + 1, raw.n - name_n - 1), out, n)
    pair.value = piece(out + start, n[0] - start)
    if problem is NULL and not (utf8_valid(pair.name.p, pair.name.n) and utf8_valid(pair.value.p, pair.value.n)):
        problem = "query.bad_utf8"
    return problem


cdef const char *query_problem(HttpCall *call, Arena *arena) noexcept nogil:
    """Names and values in the order sent. Only `&` separates: `;` is data."""
    cdef Text raw = call.query
    cdef uint32_t i, start = 0, pairs = 1, n = 0
    cdef char *out
    cdef const char *problem
    if raw.n == 0:
        return NULL
    for i in range(raw.n):
        pairs += raw.p[i] == c"&"
    if pairs > QUERY_PAIRS_MAX:
        return "query.too_many"
    out = <char *> arena_take(arena, raw.n)
    call.query_pairs = <Pair *> arena_take(arena, pairs * sizeof(Pair))
    if out is NULL or call.query_pairs is NULL:
        return "query.too_many"
    for i in range(raw.n + 1):
        if i < raw.n and raw.p[i] != c"&":
            continue
        if i > start:
            problem = decode_pair(piece(raw.p + start, i - start), out, &n, &call.query_pairs[call.query_count])
            if problem is not NULL:
                return problem
            call.query_count += 1
        start = i + 1
    return NULL


# ---------------------------------------------------------------- the whole call


cdef const char *target_problem(HttpCall *call, const CanonicalRules *rules, Arena *arena) noexcept nogil:
    """Path and query of the request target."""
    cdef Text raw = call.raw_path
    cdef const char *mark
    cdef const char *problem
    if raw.n > rules.path_bytes_max:
        return "path.too_long"
    if is_plain_path(raw):
        call.path = raw
        return grpc_problem(raw) if is_grpc(call) else NULL
    problem = raw_problem(raw)
    if problem is not NULL:
        return problem
    mark = <const char *> memchr(raw.p, c"?", raw.n) if raw.n else NULL
    if mark is not NULL:
        call.query = piece(mark + 1, raw.p + raw.n - mark - 1)
        raw.n = <uint32_t> (mark - raw.p)
    problem = path_problem(call, raw, rules.strict_path, arena)
    if problem is NULL and is_grpc(call):
        problem = grpc_problem(call.raw_path)
    return problem if problem is not NULL else query_problem(call, arena)


cdef void canonical_call(HttpCall *call, const CanonicalRules *rules, Arena *arena) noexcept nogil:
    cdef const char *problem = NULL
    if not call.has_http:
        return
    if call.header_count > rules.headers_max:
        problem = "headers.too_many"
    if problem is NULL:
        problem = method_problem(call.method)
    if problem is NULL:
        problem = scheme_problem(call, arena)
    if problem is NULL:
        problem = host_problem(call, arena)
    if problem is NULL:
        problem = target_problem(call, rules, arena)
    if problem is not NULL:
        call_refuse(call, problem)
