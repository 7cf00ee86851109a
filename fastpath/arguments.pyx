"""A call's arguments as `context.input`: JSON trees to cells."""
from fastpath.c.openssl cimport SHA256
from fastpath.extension cimport datetime_parse, decimal_parse, duration_parse, ip_parse, long_mul
from fastpath.image cimport InputShape
from fastpath.rows cimport table_at
from fastpath.json_tree cimport (
    JSON_ROOM, TREE_ARRAY, TREE_BOOL, TREE_INTEGER, TREE_NULL, TREE_NUMBER, TREE_OBJECT, TREE_STRING,
    json_has_variant, json_member, json_parse, json_text,
)
from fastpath.plain cimport cell_plain
from fastpath.value cimport (
    KIND_DATETIME, KIND_DECIMAL, KIND_DURATION, KIND_IP, KIND_RECORD, KIND_SET, Field, Ip, arena_take,
    cell_at, cell_bool, cell_long, cell_point, cell_string, record_get, set_normalise,
)
from fastpath.wire cimport text_is

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastpath.json_tree import JsonError

cdef enum:
    KEY_BYTES_MAX = 256          # longest attribute name that a shape can declare
    DECIMAL_ONE = 10_000

cdef struct Path:                # where in the arguments we are
    const Path *up
    Text name

cdef struct Typing:
    Arena *arena
    InputFault *fault


# ---------------------------------------------------------------- faults


cdef Text dotted(const Path *path, Arena *arena) noexcept nogil:
    """The names from the top down, joined by dots; empty when the arena is full."""
    cdef const Path *at = path
    cdef Text name
    cdef size_t n = 0
    cdef char *p
    name.p, name.n = NULL, 0
    while at is not NULL:
        n += at.name.n + 1
        at = at.up
    if n == 0:
        return name
    p = <char *> arena_take(arena, n)
    if p is NULL:
        return name
    name.p, name.n = p, <uint32_t> (n - 1)
    at = path
    while at is not NULL:
        n -= at.name.n + 1
        memcpy(p + n, at.name.p, at.name.n)
        p[n + at.name.n] = c'.'
        at = at.up
    return name


cdef int refuse(Typing *t, const Path *path, int error) noexcept nogil:
    t.fault.error = error
    t.fault.name = dotted(path, t.arena)
    return error


# ---------------------------------------------------------------- values without a declared type


cdef inline void extension(Cell *out, int kind, int64_t v) noexcept nogil:
    memset(out, 0, sizeof(Cell))
    out.kind = kind
    out.v = v


cdef inline int room_for(Cell *out, int kind, size_t n, size_t each, Typing *t) noexcept nogil:
    cdef void *p = arena_take(t.arena, n * each)
    memset(out, 0, sizeof(Cell))
    if p is NULL:
        return refuse(t, NULL, INPUT_ROOM)
    out.kind = kind
    cell_point(out, p)
    return INPUT_OK


cdef int set_cell(const Json *json, Text inner, Typing *t, const Path *path, Cell *out) noexcept nogil:
    """An array as a set; `inner` is the declared type of its members, or empty: then null members are left out."""
    cdef Cell *members
    cdef uint32_t i
    cdef uint32_t n = 0
    cdef int error = room_for(out, KIND_SET, json.n, sizeof(Cell), t)
    if error:
        return error
    members = <Cell *> cell_at(out)
    for i in range(json.n):
        if inner.n:
            error = declared(json.items + i, inner, t, path, members + n)
        elif json.items[i].kind == TREE_NULL:
            continue
        else:
            error = by_nature(json.items + i, t, path, members + n)
        if error:
            return error
        n += 1
    out.n = set_normalise(members, n)
    return INPUT_OK


cdef int by_nature(const Json *json, Typing *t, const Path *path, Cell *out) noexcept nogil:
    """Recursion is bounded by the depth of the tree. Null does not come here."""
    cdef int64_t number = 0
    cdef Text any_
    any_.p, any_.n = NULL, 0
    if json.kind == TREE_BOOL:
        cell_bool(out, json.integer != 0)
    elif json.kind == TREE_INTEGER:
        cell_long(out, json.integer)
    elif json.kind == TREE_NUMBER and decimal_parse(json.text.p, json.text.n, &number) == 0:
        extension(out, KIND_DECIMAL, number)
    elif json.kind == TREE_NUMBER or json.kind == TREE_STRING:
        cell_string(out, json.text.p, json.text.n)
    elif json.kind == TREE_ARRAY:
        return set_cell(json, any_, t, path, out)
    else:
        return record_cell(json, NULL, t, path, out)
    return INPUT_OK


# ---------------------------------------------------------------- values with a declared type


cdef int decimal_cell(const Json *json, Cell *out) noexcept nogil:
    cdef int64_t v = 0
    if json.kind == TREE_INTEGER and long_mul(json.integer, DECIMAL_ONE, &v) == 0:
        extension(out, KIND_DECIMAL, v)
        return INPUT_OK
    if json.kind == TREE_NUMBER and decimal_parse(json.text.p, json.text.n, &v) == 0:
        extension(out, KIND_DECIMAL, v)
        return INPUT_OK
    return INPUT_TYPE


cdef int ip_cell(const Json *json, Typing *t, Cell *out) noexcept nogil:
    cdef int error = room_for(out, KIND_IP, 1, sizeof(Ip), t)
    if error:
        return error
    return INPUT_TYPE if ip_parse(json.text.p, json.text.n, <Ip *> cell_at(out)) else INPUT_OK


cdef int text_cell(const Json *json, Text type_, Typing *t, Cell *out) noexcept nogil:
    """The types that JSON writes as a string."""
    cdef int64_t v = 0
    if json.kind != TREE_STRING:
        return INPUT_TYPE
    if text_is(type_, b"String"):
        cell_string(out, json.text.p, json.text.n)
        return INPUT_OK
    if text_is(type_, b"ipaddr"):
        return ip_cell(json, t, out)
    if text_is(type_, b"datetime") and datetime_parse(json.text.p, json.text.n, &v) == 0:
        extension(out, KIND_DATETIME, v)
        return INPUT_OK
    if text_is(type_, b"duration") and duration_parse(json.text.p, json.text.n, &v) == 0:
        extension(out, KIND_DURATION, v)
        return INPUT_OK
    return INPUT_TYPE


cdef inline bint set_member_type(Text type_, Text *inner) noexcept nogil:
    """Whether the type is `Set<inner>`."""
    if type_.n < 6 or type_.p[0] != c'S' or type_.p[3] != c'<' or type_.p[type_.n - 1] != c'>':
        return False
    inner.p, inner.n = type_.p + 4, type_.n - 5
    return True


cdef int scalar(const Json *json, Text type_, Typing *t, const Path *path, Cell *out) noexcept nogil:
    """INPUT_TYPE also for a declared type that no JSON becomes, such as an entity."""
    if text_is(type_, b"Long") and json.kind == TREE_INTEGER:
        cell_long(out, json.integer)
        return INPUT_OK
    if text_is(type_, b"Bool") and json.kind == TREE_BOOL:
        cell_bool(out, json.integer != 0)
        return INPUT_OK
    if text_is(type_, b"decimal"):
        return decimal_cell(json, out)
    if text_is(type_, b"Record") and json.kind == TREE_OBJECT:
        return record_cell(json, NULL, t, path, out)
    return text_cell(json, type_, t, out)


cdef int declared(const Json *json, Text type_, Typing *t, const Path *path, Cell *out) noexcept nogil:
    cdef Text inner
    cdef int error
    if set_member_type(type_, &inner):
        return set_cell(json, inner, t, path, out) if json.kind == TREE_ARRAY else refuse(t, path, INPUT_TYPE)
    error = scalar(json, type_, t, path, out)
    return refuse(t, path, INPUT_TYPE) if error == INPUT_TYPE and t.fault.error == INPUT_OK else error


cdef int by_shape(const Json *json, const Cell *shape, Typing *t, const Path *path, Cell *out) noexcept nogil:
    cdef Text type_
    if shape is NULL:
        return by_nature(json, t, path, out)
    if shape.kind == KIND_RECORD:
        return record_cell(json, shape, t, path, out) if json.kind == TREE_OBJECT else refuse(t, path, INPUT_TYPE)
    type_.p, type_.n = <const char *> cell_at(shape), shape.n
    return declared(json, type_, t, path, out)


cdef const Cell *shape_of(const Cell *shape, Text name) noexcept nogil:
    """The declared type of member `name`: under its own name when required, under `name?` when optional; else NULL."""
    cdef char key[KEY_BYTES_MAX + 1]
    cdef const Cell *found
    if shape is NULL or name.n > KEY_BYTES_MAX:
        return NULL
    found = record_get(shape, name.p, name.n)
    if found is not NULL:
        return found
    memcpy(key, name.p, name.n)
    key[name.n] = c'?'
    return record_get(shape, key, name.n + 1)


cdef int require(const Json *json, const Cell *shape, Typing *t, const Path *path) noexcept nogil:
    """Every member that the shape does not mark optional is there and is not null; none has a name like it."""
    cdef const Field *fields = <const Field *> cell_at(shape)
    cdef const Json *member
    cdef Path here
    cdef bint optional
    cdef uint32_t i
    for i in range(shape.n):
        here.up = path
        here.name.p = <const char *> cell_at(&fields[i].key)
        here.name.n = fields[i].key.n
        optional = here.name.n and here.name.p[here.name.n - 1] == c'?'
        here.name.n -= optional
        # A tool that ignores the case of names would act on a value that no policy sees.
        if json_has_variant(json, here.name):
            return refuse(t, &here, INPUT_VARIANT)
        member = json_member(json, here.name)
        if not optional and (member is NULL or member.kind == TREE_NULL):
            return refuse(t, &here, INPUT_MISSING)
    return INPUT_OK


cdef int record_cell(const Json *json, const Cell *shape, Typing *t, const Path *path, Cell *out) noexcept nogil:
    """An object as a record. A member that the shape does not name keeps its own type; no validated policy reads it."""
    cdef Field *fields
    cdef Path here
    cdef uint32_t i
    cdef int error = room_for(out, KIND_RECORD, json.n, sizeof(Field), t)
    if not error and shape is not NULL:
        error = require(json, shape, t, path)
    if error:
        return error
    fields = <Field *> cell_at(out)
    # Members are sorted by key and unique, as the fields of a record must be.
    for i in range(json.n):
        if json.items[i].kind == TREE_NULL:
            continue
        here.up, here.name = path, json.items[i].key
        cell_string(&fields[out.n].key, here.name.p, here.name.n)
        error = by_shape(json.items + i, shape_of(shape, here.name), t, &here, &fields[out.n].value)
        if error:
            return error
        out.n += 1
    return INPUT_OK


cdef int input_cell(const Json *json, const Cell *shape, Arena *arena, Cell *out, InputFault *fault) noexcept nogil:
    cdef Typing t
    memset(fault, 0, sizeof(InputFault))
    t.arena, t.fault = arena, fault
    if json.kind != TREE_OBJECT:
        return refuse(&t, NULL, INPUT_TYPE)
    return record_cell(json, shape, &t, NULL, out)


# ---------------------------------------------------------------- shapes and digests


cdef const Cell *input_shape(const Table *table, uint32_t index) noexcept nogil:
    cdef const Header *header = table.header
    cdef const InputShape *shapes = <const InputShape *> table_at(table, header.input_actions.at)
    cdef uint32_t low = 0, middle
    cdef uint32_t high = header.input_actions.n
    while low < high:
        middle = low + (high - low) // 2
        if shapes[middle].action == index:
            return <const Cell *> (table.image + header.off_constants) + shapes[middle].shape
        if shapes[middle].action < index:
            low = middle + 1
        else:
            high = middle
    return NULL


cdef int input_digest(const Json *json, Arena *arena, uint8_t *out) noexcept nogil:
    cdef size_t used = arena.used
    cdef Text text = json_text(json, arena)
    if text.n == 0:
        return 1
    SHA256(<const unsigned char *> text.p, text.n, out)
    arena.used = used
    return 0


# ---------------------------------------------------------------- Python face


def typed(bytes data, bytes shape=None, *, size_t arena_bytes=1 << 22):
    """(error, dotted name, record): the test partner of input_cell."""
    cdef Arena arena = Arena(<uint8_t *> malloc(arena_bytes), 0, arena_bytes, 0)
    cdef Json json
    cdef Cell out
    cdef InputFault fault
    cdef const Cell *declared_shape = NULL
    cdef int error
    if arena.base is NULL:
        raise MemoryError(f"no room for an arena of {arena_bytes} bytes")
    if shape is not None:
        declared_shape = <const Cell *> PyBytes_AS_STRING(shape)
    try:
        error = json_parse(data, len(data), &arena, &json)
        if error:
            if error == JSON_ROOM:
                return InputError.INPUT_ROOM, "", None
            raise ValueError(f"not JSON: {JsonError(error).name}")
        error = input_cell(&json, declared_shape, &arena, &out, &fault)
        if error:
            return InputError(error), fault.name.p[:fault.name.n].decode(), None
        return InputError.INPUT_OK, "", cell_plain(&out)
    finally:
        free(arena.base)
