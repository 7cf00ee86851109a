"""JSON values in the arena: jansson parses, we keep what it parsed in one canonical form."""
from fastpath.c.jansson cimport *
from fastpath.value cimport VALUE_DEPTH_MAX, arena_take
from fastpath.wire cimport (
    WIRE_BYTES, WIRE_FIXED64, WIRE_VARINT, Out, Reader, WireField, out_few, out_raw, reader_next, reader_open,
    shape_struct, text_compare, text_of, wire_check,
)

from libc.float cimport DBL_MIN
from libc.math cimport fabs, floor, isfinite
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, qsort, strtod
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    NUMBER_TEXT_MAX = 320        # digits of the largest double, its sign and the end
    INTEGER_EXACT_MAX = 9007199254740992   # 2^53: every integer up to it is a double


# ---------------------------------------------------------------- numbers and memory


cdef inline int keep_text(Text *to, const char *p, size_t n, Arena *arena) noexcept nogil:
    cdef char *room = <char *> arena_take(arena, n)
    if room is NULL:
        return JSON_ROOM
    memcpy(room, p, n)
    to.p = room
    to.n = <uint32_t> n
    return JSON_OK


cdef int number_text(Json *out, double v, Arena *arena) noexcept nogil:
    """The shortest text that reads back as v; an integer beyond 2^53 in full."""
    cdef char room[NUMBER_TEXT_MAX]
    cdef int digits
    cdef int n = 0
    out.kind = TREE_NUMBER
    if floor(v) == v:
        n = snprintf(room, sizeof(room), b"%.0f", v)
        return keep_text(&out.text, room, n, arena)
    # 15 digits tell any two shorter decimals apart, except below the smallest normal double.
    for digits in range(15 if fabs(v) >= DBL_MIN else 1, 18):
        n = snprintf(room, sizeof(room), b"%.*g", digits, v)
        if strtod(room, NULL) == v:
            break
    return keep_text(&out.text, room, n, arena)


cdef int take_double(Json *out, double v, Arena *arena) noexcept nogil:
    if not isfinite(v):
        return JSON_MALFORMED
    if floor(v) == v and fabs(v) <= <double> INTEGER_EXACT_MAX:
        out.kind = TREE_INTEGER
        out.integer = <int64_t> v
        return JSON_OK
    return number_text(out, v, arena)


cdef int take_integer(Json *out, int64_t v, Arena *arena) noexcept nogil:
    cdef char room[32]
    cdef int n
    if -<int64_t> INTEGER_EXACT_MAX <= v <= <int64_t> INTEGER_EXACT_MAX:
        out.kind = TREE_INTEGER
        out.integer = v
        return JSON_OK
    out.kind = TREE_NUMBER
    n = snprintf(room, sizeof(room), b"%lld", <long long> v)
    return keep_text(&out.text, room, n, arena)


cdef inline int take_items(Json *out, int kind, size_t n, Arena *arena) noexcept nogil:
    out.kind = kind
    out.n = <uint32_t> n
    out.items = <Json *> arena_take(arena, n * sizeof(Json))
    if out.items is NULL:
        return JSON_ROOM
    memset(out.items, 0, n * sizeof(Json))
    return JSON_OK


cdef int by_key(const void *a, const void *b) noexcept nogil:
    return text_compare((<const Json *> a).key, (<const Json *> b).key)


cdef int sort_members(Json *object) noexcept nogil:
    cdef uint32_t i
    qsort(object.items, object.n, sizeof(Json), by_key)
    for i in range(1, object.n):
        if by_key(object.items + i - 1, object.items + i) == 0:
            return JSON_DUPLICATE
    return JSON_OK


# ---------------------------------------------------------------- text


cdef bint too_deep(const char *p, size_t n) noexcept nogil:
    """Whether brackets outside strings nest too deep; jansson's own limit of 2048 would cost us stack."""
    cdef size_t i = 0
    cdef int depth = 0
    cdef bint text = False
    while i < n:
        if text:
            if p[i] == c'\\':
                i += 1
            elif p[i] == c'"':
                text = False
        elif p[i] == c'"':
            text = True
        elif p[i] == c'{' or p[i] == c'[':
            depth += 1
            if depth > VALUE_DEPTH_MAX:
                return True
        elif p[i] == c'}' or p[i] == c']':
            depth -= 1
        i += 1
    return False


cdef int keep(json_t *parsed, Arena *arena, Json *out) noexcept nogil:
    """Copy a parsed value into the arena. Recursion is bounded by `too_deep`."""
    cdef json_type kind = json_typeof(parsed)
    if kind == JSON_OBJECT:
        return keep_object(parsed, arena, out)
    if kind == JSON_ARRAY:
        return keep_array(parsed, arena, out)
    if kind == JSON_STRING:
        out.kind = TREE_STRING
        return keep_text(&out.text, json_string_value(parsed), json_string_length(parsed), arena)
    if kind == JSON_INTEGER:
        return take_integer(out, json_integer_value(parsed), arena)
    if kind == JSON_REAL:
        return take_double(out, json_real_value(parsed), arena)
    if kind != JSON_NULL:
        out.kind = TREE_BOOL
        out.integer = kind == JSON_TRUE
    return JSON_OK


cdef int keep_object(json_t *parsed, Arena *arena, Json *out) noexcept nogil:
    cdef void *at = json_object_iter(parsed)
    cdef Json *member
    cdef int error = take_items(out, TREE_OBJECT, json_object_size(parsed), arena)
    if error:
        return error
    member = out.items
    while at is not NULL:
        error = keep_text(&member.key, json_object_iter_key(at), json_object_iter_key_len(at), arena)
        if not error:
            error = keep(json_object_iter_value(at), arena, member)
        if error:
            return error
        member += 1
        at = json_object_iter_next(parsed, at)
    return sort_members(out)


cdef int keep_array(json_t *parsed, Arena *arena, Json *out) noexcept nogil:
    cdef size_t n = json_array_size(parsed)
    cdef size_t i
    cdef int error = take_items(out, TREE_ARRAY, n, arena)
    for i in range(n):
        if not error:
            error = keep(json_array_get(parsed, i), arena, out.items + i)
    return error


cdef int json_parse(const char *p, size_t n, Arena *arena, Json *out) noexcept nogil:
    cdef json_error_t failure
    cdef json_error_code code
    cdef json_t *parsed
    cdef int error
    memset(out, 0, sizeof(Json))
    if too_deep(p, n):
        return JSON_DEEP
    parsed = json_loadb(p, n, JSON_REJECT_DUPLICATES, &failure)
    if parsed is NULL:
        code = get_error(&failure)
        if code == json_error_out_of_memory:
            return JSON_ROOM
        return JSON_DUPLICATE if code == json_error_duplicate_key else JSON_MALFORMED
    error = keep(parsed, arena, out)
    json_decref(parsed)
    return error


# ---------------------------------------------------------------- google.protobuf.Struct


cdef uint32_t count_fields(Text message, uint32_t number) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef uint32_t n = 0
    reader_open(&r, message)
    while reader_next(&r, &f):
        n += f.number == number and f.type == WIRE_BYTES
    return n


cdef int read_value(Text message, int depth, Arena *arena, Json *out) noexcept nogil:
    """google.protobuf.Value. Two members of its oneof are two values where one is expected: refused."""
    cdef Reader r
    cdef WireField f
    cdef int found = 0
    cdef int error = JSON_OK
    reader_open(&r, message)
    while not error and reader_next(&r, &f):
        if not is_member(&f):
            continue
        found += 1
        if found > 1:
            return JSON_MALFORMED
        error = read_member(&f, depth, arena, out)
    return error


cdef inline bint is_member(const WireField *f) noexcept nogil:
    if f.number == 1 or f.number == 4:
        return f.type == WIRE_VARINT
    if f.number == 2:
        return f.type == WIRE_FIXED64
    return f.type == WIRE_BYTES and (f.number == 3 or f.number == 5 or f.number == 6)


cdef int read_member(const WireField *f, int depth, Arena *arena, Json *out) noexcept nogil:
    cdef double number
    if f.number == 2:
        memcpy(&number, &f.v, sizeof(number))
        return take_double(out, number, arena)
    if f.number == 3:
        out.kind = TREE_STRING
        out.text = f.bytes
    elif f.number == 4:
        out.kind = TREE_BOOL
        out.integer = f.v != 0
    elif f.number == 5:
        return read_struct(f.bytes, depth - 1, arena, out)
    elif f.number == 6:
        return read_list(f.bytes, depth - 1, arena, out)
    return JSON_OK


cdef int read_list(Text message, int depth, Arena *arena, Json *out) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef uint32_t i = 0
    cdef int error = JSON_DEEP if depth < 1 else take_items(out, TREE_ARRAY, count_fields(message, 1), arena)
    reader_open(&r, message)
    while not error and reader_next(&r, &f):
        if f.number == 1 and f.type == WIRE_BYTES:
            error = read_value(f.bytes, depth, arena, out.items + i)
            i += 1
    return error


cdef int read_entry(Text message, int depth, Arena *arena, Json *out) noexcept nogil:
    """One entry of the map `fields`. A key or a value that stands twice is refused, as in JSON text."""
    cdef Reader r
    cdef WireField f
    cdef int values = 0
    cdef int keys = 0
    cdef int error = JSON_OK
    # An entry without a key has the empty one, in memory that C may copy from.
    out.key = text_of(b"")
    reader_open(&r, message)
    while not error and reader_next(&r, &f):
        if f.type != WIRE_BYTES:
            continue
        if f.number == 1:
            keys += 1
            out.key = f.bytes
        elif f.number == 2:
            values += 1
            error = JSON_MALFORMED if values > 1 else read_value(f.bytes, depth, arena, out)
    return JSON_MALFORMED if keys > 1 else error


cdef int read_struct(Text message, int depth, Arena *arena, Json *out) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef uint32_t i = 0
    cdef int error = JSON_DEEP if depth < 1 else take_items(out, TREE_OBJECT, count_fields(message, 1), arena)
    reader_open(&r, message)
    while not error and reader_next(&r, &f):
        if f.number == 1 and f.type == WIRE_BYTES:
            error = read_entry(f.bytes, depth, arena, out.items + i)
            i += 1
    return error if error else sort_members(out)


cdef int json_struct(Text message, Arena *arena, Json *out) noexcept nogil:
    memset(out, 0, sizeof(Json))
    return read_struct(message, VALUE_DEPTH_MAX, arena, out)


# ---------------------------------------------------------------- reading and writing a tree


cdef const Json *json_member(const Json *object, Text key) noexcept nogil:
    cdef uint32_t low = 0, middle
    cdef uint32_t high
    cdef int order
    if object is NULL or object.kind != TREE_OBJECT:
        return NULL
    high = object.n
    while low < high:
        middle = low + (high - low) // 2
        order = text_compare(object.items[middle].key, key)
        if order == 0:
            return object.items + middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return NULL


cdef inline char lower(char c) noexcept nogil:
    return c + 32 if c'A' <= c <= c'Z' else c


cdef uint32_t folded(Text name, uint32_t at, char *out) noexcept nogil:
    """The folded character at `at`, or its byte when it is none of ASCII's; how many bytes it takes."""
    out[0] = lower(name.p[at])
    if name.n - at >= 2 and memcmp(name.p + at, b"\xC5\xBF", 2) == 0:
        out[0] = c's'
        return 2
    if name.n - at >= 3 and memcmp(name.p + at, b"\xE2\x84\xAA", 3) == 0:
        out[0] = c'k'
        return 3
    return 1


cdef bint same_folded(Text name, Text key) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t i
    cdef char c = 0
    if not key.n <= name.n <= 3 * key.n:
        return False
    for i in range(key.n):
        if at >= name.n:
            return False
        at += folded(name, at, &c)
        if c != lower(key.p[i]):
            return False
    return at == name.n


cdef bint json_has_variant(const Json *object, Text key) noexcept nogil:
    cdef uint32_t i
    if object is NULL or object.kind != TREE_OBJECT:
        return False
    for i in range(object.n):
        if same_folded(object.items[i].key, key) and text_compare(object.items[i].key, key) != 0:
            return True
    return False


cdef const Json *json_get(const Json *object, const char *key) noexcept nogil:
    return json_member(object, text_of(key))


cdef inline void write_literal(Out *out, const char *literal) noexcept nogil:
    cdef Text t = text_of(literal)
    out_raw(out, t.p, t.n)


cdef void write_escape(Out *out, char c) noexcept nogil:
    """RFC 8259 section 7: the two-character escapes, else \\u00xx."""
    cdef char room[8]
    cdef int n = 2
    room[0] = c'\\'
    if c == c'"' or c == c'\\':
        room[1] = c
    elif c == c'\b':
        room[1] = c'b'
    elif c == c'\f':
        room[1] = c'f'
    elif c == c'\n':
        room[1] = c'n'
    elif c == c'\r':
        room[1] = c'r'
    elif c == c'\t':
        room[1] = c't'
    else:
        n = snprintf(room, sizeof(room), b"\\u%04x", <unsigned int> c)
    out_few(out, room, n)


cdef void write_string(Out *out, Text t) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t start = 0
    out_raw(out, b'"', 1)
    for i in range(t.n):
        if <uint8_t> t.p[i] < 0x20 or t.p[i] == c'"' or t.p[i] == c'\\':
            out_raw(out, t.p + start, i - start)
            write_escape(out, t.p[i])
            start = i + 1
    out_raw(out, t.p + start, t.n - start)
    out_raw(out, b'"', 1)


cdef void write(Out *out, const Json *json) noexcept nogil:
    """Recursion is bounded by the depth at which trees are built."""
    cdef char room[32]
    cdef uint32_t i
    if json.kind == TREE_NULL:
        write_literal(out, b"null")
    elif json.kind == TREE_BOOL:
        write_literal(out, b"true" if json.integer else b"false")
    elif json.kind == TREE_INTEGER:
        i = snprintf(room, sizeof(room), b"%lld", <long long> json.integer)
        out_few(out, room, i)
    elif json.kind == TREE_NUMBER:
        out_raw(out, json.text.p, json.text.n)
    elif json.kind == TREE_STRING:
        write_string(out, json.text)
    else:
        out_raw(out, b"{" if json.kind == TREE_OBJECT else b"[", 1)
        for i in range(json.n):
            if i:
                out_raw(out, b",", 1)
            if json.kind == TREE_OBJECT:
                write_string(out, json.items[i].key)
                out_raw(out, b":", 1)
            write(out, json.items + i)
        out_raw(out, b"}" if json.kind == TREE_OBJECT else b"]", 1)


cdef Text json_text(const Json *json, Arena *arena) noexcept nogil:
    cdef Out out
    cdef Text text
    out.p = arena.base + arena.used
    out.n = 0
    out.cap = arena.cap - arena.used
    out.failed = 0
    write(&out, json)
    text.p = <const char *> out.p
    text.n = <uint32_t> out.n
    if out.failed:
        arena.failed = 1
        text.n = 0
    else:
        arena.used += out.n
    return text


# jansson would seed its hash tables at the first object, from a file; done here it is not done within a call.
json_object_seed(0)


# ---------------------------------------------------------------- Python face


def canonical(bytes data, *, bint struct_=False, size_t arena_bytes=1 << 22):
    """(error, canonical text or None): the test partner of json_parse and json_struct."""
    cdef Arena arena = Arena(<uint8_t *> malloc(arena_bytes), 0, arena_bytes, 0)
    cdef Json json
    cdef Text text
    cdef int error
    if arena.base is NULL:
        raise MemoryError(f"no room for an arena of {arena_bytes} bytes")
    try:
        if not struct_:
            error = json_parse(data, len(data), &arena, &json)
        elif wire_check(<const char *> data, len(data), shape_struct()):
            error = JSON_MALFORMED
        else:
            text.p, text.n = data, len(data)
            error = json_struct(text, &arena, &json)
        if error:
            return JsonError(error), None
        text = json_text(&json, &arena)
        return JsonError(JSON_ROOM if arena.failed else JSON_OK), text.p[:text.n]
    finally:
        free(arena.base)
