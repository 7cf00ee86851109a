"""The evaluator: runs compiled conditions with Cedar's semantics (Cedar reference: operators, extension types).

INVARIANT (verified program): codecheck.pyx has proved that every operand is in range, every jump goes forward to an
instruction, and the stack stays between 0 and `policy.stack`. So nothing here checks bounds, and every program ends.
"""
from fastpath.columns cimport ColumnGroup, column_group, column_groups
from fastpath.extension cimport (
    datetime_date,
    datetime_parse,
    datetime_time,
    decimal_parse,
    duration_parse,
    ip_in_range,
    ip_is_loopback,
    ip_is_multicast,
    ip_parse,
    long_add,
    long_mul,
    long_sub,
)
from fastpath.image cimport IMAGE_COLUMNS, NODE_PRESENT
from fastpath.rows cimport node_attrs, node_tags, policy_code, policy_constants, table_has, table_node
from fastpath.table cimport node_is_in, table_find
from fastpath.value cimport (
    CELL_SANITISED,
    KIND_ABSENT,
    KIND_BOOL,
    KIND_DATETIME,
    KIND_DECIMAL,
    KIND_DURATION,
    KIND_ENTITY,
    KIND_IP,
    KIND_LONG,
    KIND_RECORD,
    KIND_SET,
    KIND_STRING,
    UID_UNKNOWN,
    Field,
    Ip,
    arena_take,
    cell_at,
    cell_bool,
    cell_compare,
    cell_copy,
    cell_entity,
    cell_long,
    cell_point,
    cell_string,
    record_get,
    set_normalise,
    text_compare,
    uid_equal,
    uid_type,
)
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp

cdef extern from "string.h" nogil:
    void *memmem(const void *haystack, size_t haystack_n, const void *needle, size_t needle_n)

cdef enum:
    WILDCARD = 0xFF      # of a coded pattern: no byte of UTF-8

cdef uint64_t WITH_OPERAND = (
    (<uint64_t> 1 << OP_CONST) | (<uint64_t> 1 << OP_COLUMN_GROUP) | (<uint64_t> 1 << OP_EXTRA)
    | (<uint64_t> 1 << OP_HAS_EXTRA) | (<uint64_t> 1 << OP_ATTR) | (<uint64_t> 1 << OP_HAS) | (<uint64_t> 1 << OP_AND)
    | (<uint64_t> 1 << OP_OR) | (<uint64_t> 1 << OP_BRANCH) | (<uint64_t> 1 << OP_JUMP) | (<uint64_t> 1 << OP_IS)
    | (<uint64_t> 1 << OP_LIKE) | (<uint64_t> 1 << OP_RECORD)
)

cdef struct Machine:
    const Table *t
    EvalContext *context
    Arena *arena
    const Cell *constants
    Cell *stack
    uint32_t top             # values on the stack


cdef inline Cell *peek(Machine *m, uint32_t down) noexcept nogil:
    """The value `down` places below the top; 0 is the top."""
    return m.stack + m.top - 1 - down


cdef inline Cell *push(Machine *m) noexcept nogil:
    m.top += 1
    return m.stack + m.top - 1


cdef inline void scalar(Cell *c, int kind, int64_t v) noexcept nogil:
    cell_long(c, v)
    c.kind = kind


cdef inline const Uid *entity_of(const Cell *c) noexcept nogil:
    return <const Uid *> cell_at(c)


# ---------------------------------------------------------------- entities


cdef uint32_t index_of(const Table *t, const EvalContext *context, const Uid *uid) noexcept nogil:
    """The node of any uid that a program can hold.

    INVARIANT (trusted index): only uids inside this image and the request's own three, which decide resolved, carry an
    index that means this table; a uid from live state may have met another generation.
    """
    if table_has(t, uid):
        return uid.index
    if uid is context.principal or uid is context.action or uid is context.resource:
        return uid.index
    return table_find(t, uid)


cdef bint is_below(const Table *t, uint32_t index, uint32_t group) noexcept nogil:
    return index != UID_UNKNOWN and group != UID_UNKNOWN and node_is_in(t, table_node(t, index), group)


cdef bint context_is_in(const Table *t, const EvalContext *context, const Uid *uid, const Uid *group) noexcept nogil:
    cdef uint32_t row = index_of(t, context, group)
    cdef uint32_t index = index_of(t, context, uid)
    if uid_equal(uid, group) or is_below(t, index, row):
        return True
    if context.resource_parent is NULL:
        return False
    if not uid_equal(uid, context.resource) and not is_below(t, index, context.resource.index):
        return False
    return uid_equal(context.resource_parent, group) or is_below(t, context.resource_parent.index, row)


cdef uint32_t entity_index(Machine *m, const Cell *c) noexcept nogil:
    """The entity's node when the store has it, else UID_UNKNOWN."""
    cdef uint32_t index = index_of(m.t, m.context, entity_of(c))
    return index if index != UID_UNKNOWN and table_node(m.t, index).flags & NODE_PRESENT else UID_UNKNOWN


cdef int op_in(Machine *m) noexcept nogil:
    """Every member of a set must be an entity, whatever the others are (Cedar evaluates all of them first)."""
    cdef const Cell *right = peek(m, 0)
    cdef Cell *left = peek(m, 1)
    cdef const Cell *members
    cdef const Uid *uid = entity_of(left)
    cdef uint32_t i
    cdef bint found = False
    if left.kind != KIND_ENTITY:
        return EVAL_TYPE
    if right.kind == KIND_ENTITY:
        found = context_is_in(m.t, m.context, uid, entity_of(right))
    elif right.kind == KIND_SET:
        members = <const Cell *> cell_at(right)
        for i in range(right.n):
            if members[i].kind != KIND_ENTITY:
                return EVAL_TYPE
        for i in range(right.n):
            if context_is_in(m.t, m.context, uid, entity_of(members + i)):
                found = True
                break
    else:
        return EVAL_TYPE
    m.top -= 1
    cell_bool(left, found)
    return EVAL_OK


cdef int op_is(Machine *m, const Cell *name) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    cdef const Uid *uid = entity_of(top)
    if top.kind != KIND_ENTITY:
        return EVAL_TYPE
    cell_bool(top, uid.type_len == name.n and memcmp(uid_type(uid), cell_at(name), name.n) == 0)
    return EVAL_OK


# ---------------------------------------------------------------- attributes and tags


cdef const Cell *text_get(const Cell *record, const Cell *key) noexcept nogil:
    return record_get(record, <const char *> cell_at(key), key.n)


cdef int op_attr(Machine *m, const Cell *key, bint has) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    cdef const Cell *record = top
    cdef const Cell *value = NULL
    cdef uint32_t index
    if top.kind == KIND_ENTITY:
        index = entity_index(m, top)
        if index == UID_UNKNOWN and not has:
            return EVAL_ENTITY
        record = node_attrs(m.t, index)
    elif top.kind != KIND_RECORD:
        return EVAL_TYPE
    if record is not NULL:
        value = text_get(record, key)
    if has:
        cell_bool(top, value is not NULL)
    elif value is NULL:
        return EVAL_ATTRIBUTE
    else:
        cell_copy(top, value)
    return EVAL_OK


cdef int op_tag(Machine *m, bint has) noexcept nogil:
    cdef const Cell *key = peek(m, 0)
    cdef Cell *entity = peek(m, 1)
    cdef const Cell *value = NULL
    cdef uint32_t index
    if entity.kind != KIND_ENTITY or key.kind != KIND_STRING:
        return EVAL_TYPE
    index = entity_index(m, entity)
    if index == UID_UNKNOWN and not has:
        return EVAL_ENTITY
    # INVARIANT (sanitised text): altered text is no key of ours.
    if index != UID_UNKNOWN and not key.flags & CELL_SANITISED:
        value = text_get(node_tags(m.t, index), key)
    m.top -= 1
    if has:
        cell_bool(entity, value is not NULL)
    elif value is NULL:
        return EVAL_TAG
    else:
        cell_copy(entity, value)
    return EVAL_OK


# ---------------------------------------------------------------- context


cdef bint is_unsent(Machine *m, const Cell *name) noexcept nogil:
    cdef const Text *unsent
    cdef uint32_t i
    for i in range(m.context.unsent_count):
        unsent = m.context.unsent + i
        if text_compare(unsent.p, unsent.n, <const char *> cell_at(name), name.n) == 0:
            m.context.missing = unsent[0]
            return True
    return False


cdef int op_extra(Machine *m, const Cell *name, bint has) noexcept nogil:
    cdef const Cell *value
    # Asked first: an input that arrived in part is not the input.
    if is_unsent(m, name):
        return EVAL_UNSENT
    value = text_get(m.context.extras, name)
    if has:
        cell_bool(push(m), value is not NULL)
    elif value is NULL:
        return EVAL_ATTRIBUTE
    else:
        cell_copy(push(m), value)
    return EVAL_OK


cdef int op_column(Machine *m, uint32_t column, bint has) noexcept nogil:
    cdef const Cell *value = m.context.columns + column
    if has:
        cell_bool(push(m), value.kind != KIND_ABSENT)
    elif value.kind == KIND_ABSENT:
        return EVAL_ATTRIBUTE
    else:
        cell_copy(push(m), value)
    return EVAL_OK


cdef Field *take_fields(Machine *m, uint64_t n) noexcept nogil:
    """Room for `n` fields, never NULL for none."""
    return <Field *> arena_take(m.arena, (n + 1) * sizeof(Field))


cdef void record_cell(Cell *c, const Field *fields, uint32_t n) noexcept nogil:
    scalar(c, KIND_RECORD, 0)
    c.n = n
    cell_point(c, fields)


cdef int group_value(Machine *m, const ColumnGroup *group, Cell *out) noexcept nogil:
    """The record of a group's columns, without those that are absent; or the column that the group is."""
    cdef const Cell *value
    cdef Field *fields
    cdef uint32_t i
    cdef uint32_t n = 0
    if group.whole:
        value = m.context.columns + group.members[0].column
        cell_copy(out, value)
        return EVAL_OK if value.kind != KIND_ABSENT else EVAL_ATTRIBUTE
    fields = take_fields(m, group.count)
    if fields is NULL:
        return EVAL_LIMIT
    for i in range(group.count):
        value = m.context.columns + group.members[i].column
        if value.kind != KIND_ABSENT:
            cell_string(&fields[n].key, group.members[i].key.p, group.members[i].key.n)
            cell_copy(&fields[n].value, value)
            n += 1
    record_cell(out, fields, n)
    return EVAL_OK


cdef int context_merge(Machine *m, Field *fields, uint32_t *count) noexcept nogil:
    """Groups and extras, both in the order of their names; a name that the sidecar sets is taken from the columns."""
    cdef const Field *extras = <const Field *> cell_at(m.context.extras)
    cdef uint32_t extra = 0
    cdef uint32_t at = 0
    cdef uint32_t groups_n, i
    cdef const ColumnGroup *groups = column_groups(&groups_n)
    cdef const Cell *key
    cdef int order
    if not m.t.header.flags & IMAGE_COLUMNS:
        groups_n = 0
    for i in range(groups_n + 1):
        while extra < m.context.extras.n:
            key = &extras[extra].key
            order = -1
            if i < groups_n:
                order = text_compare(<const char *> cell_at(key), key.n, groups[i].name.p, groups[i].name.n)
            if order > 0:
                break
            if order < 0:
                cell_copy(&fields[at].key, key)
                cell_copy(&fields[at].value, &extras[extra].value)
                at += 1
            extra += 1
        if i < groups_n:
            cell_string(&fields[at].key, groups[i].name.p, groups[i].name.n)
            order = group_value(m, groups + i, &fields[at].value)
            if order == EVAL_LIMIT:
                return EVAL_LIMIT
            at += order == EVAL_OK
    count[0] = at
    return EVAL_OK


cdef int op_context(Machine *m) noexcept nogil:
    cdef uint32_t groups_n
    cdef uint32_t n = 0
    cdef Field *fields
    cdef int error
    # The whole context cannot be told apart from one with another input.
    if m.context.unsent_count:
        m.context.missing = m.context.unsent[0]
        return EVAL_UNSENT
    column_groups(&groups_n)
    fields = take_fields(m, <uint64_t> groups_n + m.context.extras.n)
    if fields is NULL:
        return EVAL_LIMIT
    error = context_merge(m, fields, &n)
    record_cell(push(m), fields, n)
    return error


cdef int op_group(Machine *m, const Cell *name) noexcept nogil:
    return group_value(m, column_group(<const char *> cell_at(name), name.n), push(m))


# ---------------------------------------------------------------- numbers and order


cdef int op_arithmetic(Machine *m, uint32_t op) noexcept nogil:
    cdef const Cell *right = peek(m, 0)
    cdef Cell *left = peek(m, 1)
    cdef int64_t value
    cdef int overflow
    if left.kind != KIND_LONG or right.kind != KIND_LONG:
        return EVAL_TYPE
    if op == OP_ADD:
        overflow = long_add(left.v, right.v, &value)
    elif op == OP_SUB:
        overflow = long_sub(left.v, right.v, &value)
    else:
        overflow = long_mul(left.v, right.v, &value)
    m.top -= 1
    cell_long(left, value)
    return EVAL_OVERFLOW if overflow else EVAL_OK


cdef int op_negate(Machine *m) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    cdef int64_t value
    if top.kind != KIND_LONG:
        return EVAL_TYPE
    if long_sub(0, top.v, &value):
        return EVAL_OVERFLOW
    cell_long(top, value)
    return EVAL_OK


cdef inline bint ordered(uint32_t op, int64_t a, int64_t b) noexcept nogil:
    if op == OP_LT or op == OP_DECIMAL_LT:
        return a < b
    if op == OP_LE or op == OP_DECIMAL_LE:
        return a <= b
    if op == OP_GT or op == OP_DECIMAL_GT:
        return a > b
    return a >= b


cdef int op_order(Machine *m, uint32_t op) noexcept nogil:
    cdef const Cell *right = peek(m, 0)
    cdef Cell *left = peek(m, 1)
    cdef bint comparable = left.kind == KIND_LONG or left.kind == KIND_DATETIME or left.kind == KIND_DURATION
    if op >= OP_DECIMAL_LT:
        comparable = left.kind == KIND_DECIMAL
    if not comparable or left.kind != right.kind:
        return EVAL_TYPE
    m.top -= 1
    cell_bool(left, ordered(op, left.v, right.v))
    return EVAL_OK


cdef int op_equal(Machine *m, bint wanted) noexcept nogil:
    """Values of different kinds are unequal, never an error."""
    cdef Cell *left = peek(m, 1)
    cdef bint equal = cell_compare(left, peek(m, 0)) == 0
    m.top -= 1
    cell_bool(left, equal == wanted)
    return EVAL_OK


cdef int op_not(Machine *m) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    if top.kind != KIND_BOOL:
        return EVAL_TYPE
    cell_bool(top, not top.v)
    return EVAL_OK


# ---------------------------------------------------------------- text


cdef bint like(const char *text, size_t n, const char *pattern, size_t pattern_n) noexcept nogil:
    """Each part between wildcards at its first place, the last one at the end: no other choice matches if not this.

    Linear in the text, since memmem is.
    """
    cdef const char *end = text + n
    cdef const char *pattern_end = pattern + pattern_n
    cdef const char *star = <const char *> memchr(pattern, WILDCARD, pattern_n)
    cdef size_t part = pattern_n if star is NULL else star - pattern
    if n < part or memcmp(text, pattern, part):
        return False
    if star is NULL:
        return n == part
    text += part
    while True:
        pattern = star + 1
        star = <const char *> memchr(pattern, WILDCARD, pattern_end - pattern)
        if star is NULL:
            part = pattern_end - pattern
            return <size_t> (end - text) >= part and memcmp(end - part, pattern, part) == 0
        part = star - pattern
        text = <const char *> memmem(text, end - text, pattern, part)
        if text is NULL:
            return False
        text += part


cdef int op_like(Machine *m, const Cell *pattern) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    cdef const char *text = <const char *> cell_at(top)
    cdef const char *coded = <const char *> cell_at(pattern)
    if top.kind != KIND_STRING:
        return EVAL_TYPE
    # INVARIANT (sanitised text): altered text matches nothing, not even `*`.
    cell_bool(top, not top.flags & CELL_SANITISED and like(text, top.n, coded, pattern.n))
    return EVAL_OK


# ---------------------------------------------------------------- sets and records


cdef bint set_has(const Cell *set_, const Cell *value) noexcept nogil:
    cdef const Cell *members = <const Cell *> cell_at(set_)
    cdef uint32_t low = 0
    cdef uint32_t high = set_.n
    cdef uint32_t middle
    cdef int order
    while low < high:
        middle = low + (high - low) // 2
        order = cell_compare(members + middle, value)
        if order == 0:
            return True
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return False


cdef bint set_has_each(const Cell *set_, const Cell *others, bint stop_at) noexcept nogil:
    """containsAll (stop at the first that is not there) or containsAny (stop at the first that is)."""
    cdef const Cell *members = <const Cell *> cell_at(others)
    cdef uint32_t i
    for i in range(others.n):
        if set_has(set_, members + i) == stop_at:
            return stop_at
    return not stop_at


cdef int op_contains(Machine *m, uint32_t op) noexcept nogil:
    cdef const Cell *right = peek(m, 0)
    cdef Cell *left = peek(m, 1)
    if left.kind != KIND_SET or (op != OP_CONTAINS and right.kind != KIND_SET):
        return EVAL_TYPE
    m.top -= 1
    if op == OP_CONTAINS:
        cell_bool(left, set_has(left, right))
    else:
        cell_bool(left, set_has_each(left, right, op == OP_CONTAINS_ANY))
    return EVAL_OK


cdef int op_is_empty(Machine *m) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    if top.kind != KIND_SET:
        return EVAL_TYPE
    cell_bool(top, top.n == 0)
    return EVAL_OK


cdef int op_set(Machine *m, uint32_t n) noexcept nogil:
    cdef Cell *members = <Cell *> arena_take(m.arena, (<uint64_t> n + 1) * sizeof(Cell))
    cdef Cell *made
    cdef uint32_t i
    if members is NULL:
        return EVAL_LIMIT
    m.top -= n
    for i in range(n):
        cell_copy(members + i, m.stack + m.top + i)
    made = push(m)
    scalar(made, KIND_SET, 0)
    made.n = set_normalise(members, n)
    cell_point(made, members)
    return EVAL_OK


cdef int op_record(Machine *m, const Cell *keys, uint32_t n) noexcept nogil:
    cdef Field *fields = take_fields(m, n)
    cdef uint32_t i
    if fields is NULL:
        return EVAL_LIMIT
    m.top -= n
    for i in range(n):
        cell_copy(&fields[i].key, <const Cell *> cell_at(keys) + i)
        cell_copy(&fields[i].value, m.stack + m.top + i)
    record_cell(push(m), fields, n)
    return EVAL_OK


# ---------------------------------------------------------------- extension types


cdef int op_construct(Machine *m, uint32_t op) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    cdef const char *text = <const char *> cell_at(top)
    cdef int64_t value = 0
    cdef Ip *ip
    if top.kind != KIND_STRING:
        return EVAL_TYPE
    if top.flags & CELL_SANITISED:
        return EVAL_EXTENSION
    if op == OP_IP:
        ip = <Ip *> arena_take(m.arena, sizeof(Ip))
        if ip is NULL:
            return EVAL_LIMIT
        if ip_parse(text, top.n, ip):
            return EVAL_EXTENSION
        scalar(top, KIND_IP, 0)
        cell_point(top, ip)
        return EVAL_OK
    if op == OP_DECIMAL:
        if decimal_parse(text, top.n, &value):
            return EVAL_EXTENSION
        scalar(top, KIND_DECIMAL, value)
    elif op == OP_DATETIME:
        if datetime_parse(text, top.n, &value):
            return EVAL_EXTENSION
        scalar(top, KIND_DATETIME, value)
    else:
        if duration_parse(text, top.n, &value):
            return EVAL_EXTENSION
        scalar(top, KIND_DURATION, value)
    return EVAL_OK


cdef int op_ip(Machine *m, uint32_t op) noexcept nogil:
    cdef Cell *top = peek(m, 0)
    cdef const Ip *ip = <const Ip *> cell_at(top)
    if top.kind != KIND_IP:
        return EVAL_TYPE
    if op == OP_IS_IPV4:
        cell_bool(top, not ip.v6)
    elif op == OP_IS_IPV6:
        cell_bool(top, ip.v6)
    elif op == OP_IS_LOOPBACK:
        cell_bool(top, ip_is_loopback(ip))
    else:
        cell_bool(top, ip_is_multicast(ip))
    return EVAL_OK


cdef int op_in_range(Machine *m) noexcept nogil:
    cdef const Cell *right = peek(m, 0)
    cdef Cell *left = peek(m, 1)
    if left.kind != KIND_IP or right.kind != KIND_IP:
        return EVAL_TYPE
    m.top -= 1
    cell_bool(left, ip_in_range(<const Ip *> cell_at(left), <const Ip *> cell_at(right)))
    return EVAL_OK


cdef int op_instant(Machine *m, uint32_t op) noexcept nogil:
    """datetime.offset(duration) and datetime.durationSince(datetime)."""
    cdef const Cell *right = peek(m, 0)
    cdef Cell *left = peek(m, 1)
    cdef int64_t value
    if left.kind != KIND_DATETIME or right.kind != (KIND_DURATION if op == OP_OFFSET else KIND_DATETIME):
        return EVAL_TYPE
    if long_add(left.v, right.v, &value) if op == OP_OFFSET else long_sub(left.v, right.v, &value):
        return EVAL_EXTENSION
    m.top -= 1
    scalar(left, KIND_DATETIME if op == OP_OFFSET else KIND_DURATION, value)
    return EVAL_OK


cdef int op_day(Machine *m, bint date) noexcept nogil:
    """toDate and toTime: days begin at midnight also before 1970, so both round down."""
    cdef Cell *top = peek(m, 0)
    cdef int64_t value
    if top.kind != KIND_DATETIME:
        return EVAL_TYPE
    if not date:
        scalar(top, KIND_DURATION, datetime_time(top.v))
        return EVAL_OK
    if datetime_date(top.v, &value):
        return EVAL_EXTENSION
    scalar(top, KIND_DATETIME, value)
    return EVAL_OK


cdef int op_units(Machine *m, uint32_t op) noexcept nogil:
    """toMilliseconds .. toDays: whole units, towards zero as C divides."""
    cdef Cell *top = peek(m, 0)
    cdef int64_t unit = 1
    if top.kind != KIND_DURATION:
        return EVAL_TYPE
    if op == OP_TO_SECONDS:
        unit = 1000
    elif op == OP_TO_MINUTES:
        unit = 60000
    elif op == OP_TO_HOURS:
        unit = 3600000
    elif op == OP_TO_DAYS:
        unit = 86400000
    cell_long(top, top.v // unit)
    return EVAL_OK


cdef int extension_step(Machine *m, uint32_t op) noexcept nogil:
    if op <= OP_DURATION:
        return op_construct(m, op)
    if op <= OP_DECIMAL_GE:
        return op_order(m, op)
    if op <= OP_IS_MULTICAST:
        return op_ip(m, op)
    if op == OP_IS_IN_RANGE:
        return op_in_range(m)
    if op <= OP_DURATION_SINCE:
        return op_instant(m, op)
    if op <= OP_TO_TIME:
        return op_day(m, op == OP_TO_DATE)
    return op_units(m, op)


# ---------------------------------------------------------------- the machine


cdef int op_dup(Machine *m) noexcept nogil:
    cdef const Cell *top = peek(m, 0)
    cell_copy(push(m), top)
    return EVAL_OK


cdef int load_step(Machine *m, uint32_t op, uint32_t a, const Cell *k) noexcept nogil:
    if op == OP_CONST:
        cell_copy(push(m), k)
    elif op == OP_PRINCIPAL:
        cell_entity(push(m), m.context.principal)
    elif op == OP_ACTION:
        cell_entity(push(m), m.context.action)
    elif op == OP_RESOURCE:
        cell_entity(push(m), m.context.resource)
    elif op == OP_CONTEXT:
        return op_context(m)
    elif op == OP_COLUMN or op == OP_HAS_COLUMN:
        return op_column(m, a, op == OP_HAS_COLUMN)
    elif op == OP_COLUMN_GROUP:
        return op_group(m, k)
    else:
        return op_extra(m, k, op == OP_HAS_EXTRA)
    return EVAL_OK


cdef int value_step(Machine *m, uint32_t op, uint32_t a, const Cell *k) noexcept nogil:
    if op == OP_ATTR or op == OP_HAS:
        return op_attr(m, k, op == OP_HAS)
    if op == OP_NOT:
        return op_not(m)
    if op == OP_NEG:
        return op_negate(m)
    if op == OP_ADD or op == OP_SUB or op == OP_MUL:
        return op_arithmetic(m, op)
    if op == OP_EQ or op == OP_NE:
        return op_equal(m, op == OP_EQ)
    if op == OP_LT or op == OP_LE or op == OP_GT or op == OP_GE:
        return op_order(m, op)
    if op == OP_IN:
        return op_in(m)
    if op == OP_IS:
        return op_is(m, k)
    if op == OP_LIKE:
        return op_like(m, k)
    if op == OP_CONTAINS or op == OP_CONTAINS_ALL or op == OP_CONTAINS_ANY:
        return op_contains(m, op)
    if op == OP_IS_EMPTY:
        return op_is_empty(m)
    if op == OP_GET_TAG or op == OP_HAS_TAG:
        return op_tag(m, op == OP_HAS_TAG)
    if op == OP_SET:
        return op_set(m, a)
    if op == OP_RECORD:
        return op_record(m, k, a)
    if op == OP_DUP:
        return op_dup(m)
    return <int> a      # OP_RAISE


cdef int branch_step(Machine *m, uint32_t op, bint *jump) noexcept nogil:
    """AND, OR, BOOL, BRANCH and JUMP; AND and OR leave on the stack the Bool that decided."""
    cdef const Cell *top
    jump[0] = op == OP_JUMP
    if op == OP_JUMP:
        return EVAL_OK
    top = peek(m, 0)
    if top.kind != KIND_BOOL:
        return EVAL_TYPE
    if op != OP_BOOL:
        jump[0] = top.v != 0 if op == OP_OR else top.v == 0
        if op == OP_BRANCH or not jump[0]:
            m.top -= 1
    return EVAL_OK


cdef int machine_run(Machine *m, const uint32_t *code) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t word, op, k
    cdef bint jump
    cdef int error
    while True:
        word = code[at]
        op = word & 0xFF
        at += 1
        k = 0
        if (WITH_OPERAND >> op) & 1:
            k = code[at]
            at += 1
        if op == OP_RETURN:
            return EVAL_OK if peek(m, 0).kind == KIND_BOOL else EVAL_TYPE
        if OP_AND <= op <= OP_JUMP:
            error = branch_step(m, op, &jump)
            if jump and error == EVAL_OK:
                at = k
        elif op < OP_ATTR:
            error = load_step(m, op, word >> 8, m.constants + k)
        elif op < OP_IP:
            error = value_step(m, op, word >> 8, m.constants + k)
        else:
            error = extension_step(m, op)
        if error != EVAL_OK:
            return error


cdef int program_run(
    const Table *t, const Policy *policy, EvalContext *context, Arena *arena, bint *satisfied
) noexcept nogil:
    cdef Machine m
    cdef size_t mark = arena.used
    cdef int failed = arena.failed
    cdef int error = EVAL_LIMIT
    satisfied[0] = policy.code_words == 0
    if policy.code_words == 0:
        return EVAL_OK
    m.t = t
    m.context = context
    m.arena = arena
    m.constants = policy_constants(t, policy)
    m.top = 0
    m.stack = <Cell *> arena_take(arena, (<size_t> policy.stack + 1) * sizeof(Cell))
    if m.stack is not NULL:
        error = machine_run(&m, policy_code(t, policy))
        if error == EVAL_OK:
            satisfied[0] = m.stack[0].v != 0
    arena.used = mark
    arena.failed = failed
    return error
