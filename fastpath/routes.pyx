"""Routes of the configuration. Paths are matched in their canonical form, segment by segment, without backtracking."""
from fastpath.envoy cimport HeaderLine, envoy_header
from fastpath.mapping_rules cimport (
    ATTRIBUTE_BOOL, ATTRIBUTE_LONG, ATTRIBUTE_SET, PIECE_CAPTURE, PIECE_HEADER, PIECE_HOST, PIECE_LITERAL, PIECE_METHOD,
    PIECE_PATH, SEGMENT_CAPTURE, SEGMENT_LITERAL, SEGMENT_TAIL, SOURCE_CAPTURE, SOURCE_CONSTANT, SOURCE_HEADER, Piece,
    Segment, host_fits,
)
from fastpath.mcp cimport header_single
from fastpath.request cimport reason_named
from fastpath.value cimport (
    CELL_SANITISED, KIND_SET, arena_take, cell_at, cell_bool, cell_long, cell_point, cell_string, set_normalise,
    uid_make,
)
from fastpath.wire cimport text_equal, text_is

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    ID_BYTES_MAX = 2048          # of an entity made by a template
    VALUES_MAX = 256             # members of a set attribute
    INT64_DIGITS = 19


# ---------------------------------------------------------------- matching


cdef bint method_fits(const RouteRule *route, Text method) noexcept nogil:
    cdef uint32_t i
    for i in range(route.method_count):
        if text_equal(route.methods[i], method):
            return True
    return route.method_count == 0


cdef bint segment_fits(const Segment *segment, Text text) noexcept nogil:
    return text_equal(segment.text, text) if segment.kind == SEGMENT_LITERAL else text.n > 0


cdef bint path_fits(const RouteRule *route, Text path, Text *captures) noexcept nogil:
    """A path has as many segments as slashes: `/a/` is `a` and an empty one, which only a literal end or `**` fits."""
    cdef const Segment *segment
    cdef uint32_t i
    cdef uint32_t at = 1, kept = 0
    cdef Text text
    if path.n == 0 or path.p[0] != c'/':
        return False
    for i in range(route.segment_count):
        segment = &route.segments[i]
        if segment.kind == SEGMENT_TAIL:
            return True
        if at > path.n:
            return False
        text.p, text.n = path.p + at, 0
        while at < path.n and path.p[at] != c'/':
            at += 1
            text.n += 1
        at += 1
        if not segment_fits(segment, text):
            return False
        if segment.kind == SEGMENT_CAPTURE:
            captures[kept] = text
            kept += 1
    return at > path.n


cdef bint fits(const RouteRule *route, const HttpCall *call, Matched *out) noexcept nogil:
    memset(out, 0, sizeof(Matched))
    if not method_fits(route, call.method) or not host_fits(&route.at, call.host, call.port, call.scheme):
        return False
    if not path_fits(route, call.path, out.captures):
        return False
    out.route = route
    return True


cdef void route_find(const MappingRules *rules, const HttpCall *call, Matched *out) noexcept nogil:
    cdef uint32_t i
    memset(out, 0, sizeof(Matched))
    for i in range(rules.route_count):
        if fits(&rules.routes[i], call, out):
            return


cdef int route_named(const MappingRules *rules, const HttpCall *call, Text name, Matched *out) noexcept nogil:
    cdef uint32_t i
    memset(out, 0, sizeof(Matched))
    for i in range(rules.route_count):
        if text_equal(rules.routes[i].name, name):
            return 0 if fits(&rules.routes[i], call, out) else 2
    return 1


# ---------------------------------------------------------------- single values


cdef int query_single(const HttpCall *call, Text name, Text *value) noexcept nogil:
    """0 when absent, 1 with its only value, -1 when it stands twice."""
    cdef uint32_t i
    cdef int found = 0
    for i in range(call.query_count):
        if text_equal(call.query_pairs[i].name, name):
            found += 1
            value[0] = call.query_pairs[i].value
    return found if found < 2 else -1


cdef int piece_text(const Piece *piece, const HttpCall *call, const Matched *m, Text *out) noexcept nogil:
    """0 when the call lacks it, 1 with `out` set, -1 when it has several."""
    if piece.kind == PIECE_HEADER:
        return header_single(call, piece.text.p, out)
    if piece.kind == PIECE_LITERAL:
        out[0] = piece.text
    elif piece.kind == PIECE_CAPTURE:
        out[0] = m.captures[piece.capture]
    elif piece.kind == PIECE_HOST:
        out[0] = call.host
    elif piece.kind == PIECE_METHOD:
        out[0] = call.method
    elif piece.kind == PIECE_PATH:
        out[0] = call.path
    else:
        return query_single(call, piece.text, out)
    return 1


cdef Uid *route_entity(
    const Template *t, const HttpCall *call, const Matched *m, Arena *arena, Text *refusal
) noexcept nogil:
    cdef char room[ID_BYTES_MAX]
    cdef uint32_t n = 0
    cdef uint32_t i
    cdef int found
    cdef Text text
    for i in range(t.piece_count):
        text.p, text.n = NULL, 0
        found = piece_text(&t.pieces[i], call, m, &text)
        if found < 0:
            refusal[0] = reason_named(b"request.ambiguous.", t.pieces[i].text, arena)
            return NULL
        if found == 0 or (text.n == 0 and t.pieces[i].kind != PIECE_LITERAL):
            refusal[0] = reason_named(b"input.missing.", t.pieces[i].text, arena)
            return NULL
        if text.n > ID_BYTES_MAX - n:
            refusal[0] = reason_named(b"request.too_long.", m.route.name, arena)
            return NULL
        memcpy(room + n, text.p, text.n)
        n += text.n
    return uid_make(arena, t.type.p, t.type.n, room, n)


# ---------------------------------------------------------------- context attributes


cdef bint parse_long(Text text, int64_t *out) noexcept nogil:
    """An i64 in decimal, without a plus sign or leading zeros."""
    cdef bint negative = text.n > 0 and text.p[0] == c'-'
    cdef uint32_t i = negative
    cdef uint64_t v = 0
    cdef uint64_t limit = <uint64_t> 0x7FFFFFFFFFFFFFFF + negative
    if text.n == i or text.n - i > INT64_DIGITS or (text.p[i] == c'0' and text.n > i + 1):
        return False
    while i < text.n:
        if not c'0' <= text.p[i] <= c'9':
            return False
        v = v * 10 + <uint64_t> (text.p[i] - c'0')
        i += 1
    if v > limit:
        return False
    out[0] = <int64_t> (0 - v) if negative else <int64_t> v
    return True


cdef int text_cell(const Attribute *a, Text text, Arena *arena, Cell *out, Text *refusal) noexcept nogil:
    cdef int64_t number = 0
    if a.kind == ATTRIBUTE_LONG:
        if not parse_long(text, &number):
            refusal[0] = reason_named(b"input.type.", a.name, arena)
            return -1
        cell_long(out, number)
    elif a.kind == ATTRIBUTE_BOOL:
        if not text_is(text, b"true") and not text_is(text, b"false"):
            refusal[0] = reason_named(b"input.type.", a.name, arena)
            return -1
        cell_bool(out, text_is(text, b"true"))
    else:
        cell_string(out, text.p, text.n)
    return 1


cdef uint32_t add_members(Cell *members, uint32_t n, const HeaderLine *line) noexcept nogil:
    """Add the comma-separated values of one line; both forms of Envoy's headers give the same set (RFC 9110 5.3)."""
    cdef uint32_t i
    cdef uint32_t start = 0, end
    for i in range(line.value.n + 1):
        if i < line.value.n and line.value.p[i] != c',':
            continue
        end = i
        while start < end and (line.value.p[start] == c' ' or line.value.p[start] == c'\t'):
            start += 1
        while end > start and (line.value.p[end - 1] == c' ' or line.value.p[end - 1] == c'\t'):
            end -= 1
        if n < VALUES_MAX and end > start:
            cell_string(&members[n], line.value.p + start, end - start)
            members[n].flags = CELL_SANITISED if line.sanitised else 0
        n += end > start
        start = i + 1
    return n


cdef uint32_t header_members(const Attribute *a, const HttpCall *call, Cell *members) noexcept nogil:
    cdef HeaderLine line
    cdef uint32_t i
    cdef uint32_t n = 0
    if envoy_header(call, a.text.p, &line) == 0:
        return 0
    for i in range(call.header_count):
        if text_equal(call.headers[i].name, a.text):
            n = add_members(members, n, &call.headers[i])
    return n


cdef uint32_t query_members(const Attribute *a, const HttpCall *call, Cell *members) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t n = 0
    for i in range(call.query_count):
        if text_equal(call.query_pairs[i].name, a.text):
            if n < VALUES_MAX:
                cell_string(&members[n], call.query_pairs[i].value.p, call.query_pairs[i].value.n)
            n += 1
    return n


cdef int set_attribute(
    const Attribute *a, const HttpCall *call, const Matched *m, Arena *arena, Cell *out, Text *refusal
) noexcept nogil:
    """All values as a set of strings; also an empty one, so that a policy need not ask whether it is there."""
    cdef Cell *members = <Cell *> arena_take(arena, VALUES_MAX * sizeof(Cell))
    cdef uint32_t n = 1
    if members is NULL:
        return -1
    if a.source == SOURCE_CAPTURE:
        cell_string(members, m.captures[a.capture].p, m.captures[a.capture].n)
    elif a.source == SOURCE_HEADER:
        n = header_members(a, call, members)
    else:
        n = query_members(a, call, members)
    if n > VALUES_MAX:
        refusal[0] = reason_named(b"request.too_long.", a.name, arena)
        return -1
    memset(out, 0, sizeof(Cell))
    out.kind = KIND_SET
    cell_point(out, members)
    out.n = set_normalise(<Cell *> cell_at(out), n)
    return 1 if n or not a.required else 0


cdef int header_attribute(
    const Attribute *a, const HttpCall *call, Arena *arena, Cell *out, Text *refusal
) noexcept nogil:
    cdef HeaderLine line
    cdef Text text
    cdef int found
    # One altered line is a value that equals nothing (EX-13), not an ambiguity.
    if envoy_header(call, a.text.p, &line) == 1 and line.sanitised:
        found = text_cell(a, line.value, arena, out, refusal)
        out.flags = CELL_SANITISED if found == 1 else 0
        return found
    found = header_single(call, a.text.p, &text)
    if found < 0:
        refusal[0] = reason_named(b"request.ambiguous.", a.text, arena)
    return text_cell(a, text, arena, out, refusal) if found == 1 else found


cdef void constant_cell(const Attribute *a, Cell *out) noexcept nogil:
    if a.kind == ATTRIBUTE_LONG:
        cell_long(out, a.number)
    elif a.kind == ATTRIBUTE_BOOL:
        cell_bool(out, a.number != 0)
    else:
        cell_string(out, a.text.p, a.text.n)


cdef int single_attribute(
    const Attribute *a, const HttpCall *call, const Matched *m, Arena *arena, Cell *out, Text *refusal
) noexcept nogil:
    cdef Text text
    cdef int found
    if a.source == SOURCE_CONSTANT:
        constant_cell(a, out)
        return 1
    if a.source == SOURCE_HEADER:
        return header_attribute(a, call, arena, out, refusal)
    if a.source == SOURCE_CAPTURE:
        return text_cell(a, m.captures[a.capture], arena, out, refusal)
    found = query_single(call, a.text, &text)
    if found < 0:
        refusal[0] = reason_named(b"request.ambiguous.", a.text, arena)
    return text_cell(a, text, arena, out, refusal) if found == 1 else found


cdef int route_attribute(
    const Attribute *a, const HttpCall *call, const Matched *m, Arena *arena, Cell *out, Text *refusal
) noexcept nogil:
    cdef int found
    if a.kind == ATTRIBUTE_SET:
        found = set_attribute(a, call, m, arena, out, refusal)
    else:
        found = single_attribute(a, call, m, arena, out, refusal)
    if found == 0 and a.required:
        refusal[0] = reason_named(b"input.missing.", a.name, arena)
        return -1
    return found
