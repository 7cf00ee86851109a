"""An agent's own question. Whatever it claims can raise what the sidecar finds, never lower it."""
from fastpath.columns cimport COL_CALL_BODY_COMPLETE, COL_CALL_BYTES
from fastpath.json_tree cimport JSON_DEEP, JSON_DUPLICATE, JSON_ROOM, Json, json_struct
from fastpath.mapping_rules cimport HOST_EXACT, ServerRule
from fastpath.request cimport INPUT_DIRECT
from fastpath.target cimport (
    column, is_printable, joined, refuse, set_class, set_data, set_destination, set_destination_argument,
    set_destination_id, set_destination_text, set_input, set_parent, set_protocol, set_resource, set_tool,
)
from fastpath.value cimport Cell, arena_take, cell_bool, cell_long, cell_string
from fastpath.wire cimport (
    SHAPE_MESSAGE, SHAPE_STRING, WIRE_BYTES, WIRE_VARINT, Reader, Shape, Text, WireField, reader_next, reader_open,
    shape_field, shape_struct, text_equal, text_of, wire_check,
)

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memset

cdef enum:
    TEXT_IDS_MAX = 128           # request_id and task, in bytes
    TYPE_BYTES_MAX = 256         # of an entity type
    ID_BYTES_MAX = 2048          # of a resource
    ACTION_BYTES_MAX = 1024
    LABELS_MAX = 64
    LABEL_BYTES_MAX = 128
    LEVEL_MAX = 4

cdef struct Question:            # the message as it stands
    Text request_id
    Text action
    uint32_t resource_count      # how often the field stands there
    Text resource_type
    Text resource_id
    Text destination
    uint32_t arguments_count
    Text arguments
    uint64_t data_level
    Text labels[LABELS_MAX]
    uint32_t label_count
    Text task
    Text trace_id
    Text span_id
    uint64_t dry_run
    uint64_t cost

cdef Shape CHECK_REQUEST, ENTITY_UID


cdef int build_shapes() except -1:
    memset(&CHECK_REQUEST, 0, sizeof(Shape))
    memset(&ENTITY_UID, 0, sizeof(Shape))
    for number in (1, 2):
        shape_field(&ENTITY_UID, number, SHAPE_STRING, NULL)
    for number in (1, 2, 4, 7, 8, 9, 10):
        shape_field(&CHECK_REQUEST, number, SHAPE_STRING, NULL)
    shape_field(&CHECK_REQUEST, 3, SHAPE_MESSAGE, &ENTITY_UID)
    shape_field(&CHECK_REQUEST, 5, SHAPE_MESSAGE, shape_struct())
    return 0


build_shapes()


# ---------------------------------------------------------------- the message


cdef void read_uid(Text message, Question *q) noexcept nogil:
    cdef Reader r
    cdef WireField f
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type != WIRE_BYTES:
            continue
        if f.number == 1:
            q.resource_type = f.bytes
        elif f.number == 2:
            q.resource_id = f.bytes


cdef void read_bytes(const WireField *f, Question *q) noexcept nogil:
    if f.number == 1:
        q.request_id = f.bytes
    elif f.number == 2:
        q.action = f.bytes
    elif f.number == 3:
        q.resource_count += 1
        read_uid(f.bytes, q)
    elif f.number == 4:
        q.destination = f.bytes
    elif f.number == 5:
        q.arguments_count += 1
        q.arguments = f.bytes
    elif f.number == 7:
        if q.label_count < LABELS_MAX:
            q.labels[q.label_count] = f.bytes
        q.label_count += 1
    elif f.number == 8:
        q.task = f.bytes
    elif f.number == 9:
        q.trace_id = f.bytes
    elif f.number == 10:
        q.span_id = f.bytes


cdef void read_question(const unsigned char *p, size_t n, Question *q) noexcept nogil:
    cdef Reader r
    cdef WireField f
    cdef Text message
    memset(q, 0, sizeof(Question))
    message.p, message.n = <const char *> p, <uint32_t> n
    reader_open(&r, message)
    while reader_next(&r, &f):
        if f.type == WIRE_BYTES:
            read_bytes(&f, q)
        elif f.type == WIRE_VARINT and f.number == 6:
            q.data_level = f.v
        elif f.type == WIRE_VARINT and f.number == 11:
            q.dry_run = f.v
        elif f.type == WIRE_VARINT and f.number == 13:
            q.cost = f.v


# ---------------------------------------------------------------- ids


cdef bint is_hex(Text t, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(t.n):
        if not (c'0' <= t.p[i] <= c'9' or c'a' <= t.p[i] <= c'f'):
            return False
    return t.n == n


cdef void map_ids(Mapper *m, const Question *q) noexcept nogil:
    """Ids go into answers and records, so they are short plain text; a trace id that is none is left out."""
    m.request.dry_run = q.dry_run != 0
    # A cost below nothing would give a task more than it has.
    if <int64_t> q.cost < 0:
        refuse(m, b"cost.malformed")
    else:
        m.request.cost = <int64_t> q.cost
    if q.request_id.n and not is_printable(q.request_id, TEXT_IDS_MAX):
        refuse(m, b"request_id.malformed")
    else:
        m.request.request_id = q.request_id
    if q.task.n and not is_printable(q.task, TEXT_IDS_MAX):
        refuse(m, b"task.malformed")
    else:
        m.request.task = q.task
    if is_hex(q.trace_id, 32):
        m.request.trace_id = q.trace_id
        if is_hex(q.span_id, 16):
            m.request.span_id = q.span_id


# ---------------------------------------------------------------- action and resource


cdef bint has_control(Text t) noexcept nogil:
    cdef uint32_t i
    for i in range(t.n):
        if <unsigned char> t.p[i] < 0x20 or t.p[i] == 0x7F:
            return True
    return False


cdef Text before_slash(Text t) noexcept nogil:
    """The server in "server/tool"; empty when there is no slash, or nothing on one side of it."""
    cdef const char *mark = <const char *> memchr(t.p, c'/', t.n) if t.n else NULL
    if mark is NULL or mark + 1 == t.p + t.n:
        t.n = 0
        return t
    t.n = <uint32_t> (mark - t.p)
    return t


cdef Text qualified(Mapper *m, Text type_) noexcept nogil:
    """The type with the configured namespace before it, unless it has one."""
    if m.rules.namespace.n == 0 or memchr(type_.p, c':', type_.n) is not NULL:
        return type_
    return joined(m, m.rules.namespace, b"::", type_)


cdef bint is_type(Text t) noexcept nogil:
    cdef uint32_t i
    for i in range(t.n):
        if not (c'a' <= t.p[i] <= c'z' or c'A' <= t.p[i] <= c'Z' or c'0' <= t.p[i] <= c'9' or t.p[i] == c'_'
                or t.p[i] == c':'):
            return False
    return 0 < t.n <= TYPE_BYTES_MAX


cdef void map_named_resource(Mapper *m, const Question *q) noexcept nogil:
    cdef Text type_
    if q.resource_count == 0:
        refuse(m, b"resource.missing")
        return
    if not is_type(q.resource_type) or q.resource_id.n > ID_BYTES_MAX or has_control(q.resource_id):
        refuse(m, b"resource.malformed")
        return
    type_ = qualified(m, q.resource_type)
    set_resource(m, type_, q.resource_id)
    if text_equal(type_, m.rules.tool_type):
        set_parent(m, before_slash(q.resource_id))


cdef void map_action(Mapper *m, const Question *q, Text server) noexcept nogil:
    """A tool's action is its own resource; any other action needs one named."""
    if q.action.n == 0:
        refuse(m, b"action.missing")
    elif q.action.n > ACTION_BYTES_MAX or has_control(q.action):
        refuse(m, b"action.malformed")
    elif server.n:
        set_tool(m, server, q.action)
        if q.resource_count and not (
            text_equal(qualified(m, q.resource_type), m.rules.tool_type) and text_equal(q.resource_id, q.action)
        ):
            refuse(m, b"resource.mismatch")
    elif memchr(q.action.p, c'/', q.action.n) is not NULL:
        refuse(m, b"action.malformed")
    else:
        set_class(m, q.action)
        map_named_resource(m, q)


# ---------------------------------------------------------------- arguments, destination, data


cdef void refuse_arguments(Mapper *m, int error) noexcept nogil:
    if error == JSON_DUPLICATE:
        refuse(m, b"input.duplicate_key")
    elif error == JSON_DEEP:
        refuse(m, b"input.depth")
    elif error == JSON_ROOM:
        m.arena.failed = 0       # more than the arena holds is the caller's doing: a denial, not our failure
        refuse(m, b"input.too_large")
    else:
        refuse(m, b"input.malformed")


cdef const Json *map_arguments(Mapper *m, const Question *q, bint tool) noexcept nogil:
    """The arguments as a tree, and as context.input; NULL when there are none."""
    cdef Json *arguments
    cdef size_t used
    cdef int error
    if q.arguments_count > 1:
        refuse(m, b"input.duplicate_key")
        return NULL
    if q.arguments_count == 0:
        if tool:
            set_input(m, NULL)
        return NULL
    arguments = <Json *> arena_take(m.arena, sizeof(Json))
    if arguments is NULL:
        return NULL
    used = m.arena.used
    error = json_struct(q.arguments, m.arena, arguments)
    if error:
        m.arena.used = used
        refuse_arguments(m, error)
        return NULL
    set_input(m, arguments)
    return arguments


cdef void map_server_destination(Mapper *m, Text server) noexcept nogil:
    """Where the tool's server is, by the configuration: what the same call through Envoy names as its host."""
    cdef const ServerRule *rule
    cdef uint32_t i, port
    for i in range(m.rules.server_count):
        rule = &m.rules.servers[i]
        if text_equal(rule.name, server) and rule.at.kind == HOST_EXACT:
            port = 0 if rule.at.port == 443 or rule.at.port == 80 else rule.at.port
            set_destination(m, rule.at.text, port, text_of(b""))
            return


cdef void map_destination(Mapper *m, const Question *q, Text server, const Json *arguments) noexcept nogil:
    cdef Text stated
    set_destination_id(m, text_of(b"unknown"))
    if q.destination.n:
        if not set_destination_text(m, q.destination):
            refuse(m, b"destination.malformed")
    elif server.n:
        map_server_destination(m, server)
    if server.n == 0:
        return
    stated = m.request.destination
    set_destination_argument(m, q.action, arguments)
    if q.destination.n and not text_equal(stated, m.request.destination):
        refuse(m, b"destination.ambiguous")


cdef void map_data(Mapper *m, const Question *q) noexcept nogil:
    cdef uint32_t count = q.label_count if q.label_count < LABELS_MAX else LABELS_MAX
    cdef Cell *labels = <Cell *> arena_take(m.arena, LABELS_MAX * sizeof(Cell))
    cdef uint32_t i
    if labels is NULL:
        return
    if q.data_level > LEVEL_MAX:
        refuse(m, b"data_level.range")
    if q.label_count > LABELS_MAX:
        refuse(m, b"data_labels.range")
    for i in range(count):
        if q.labels[i].n == 0 or q.labels[i].n > LABEL_BYTES_MAX:
            refuse(m, b"data_labels.range")
        cell_string(labels + i, q.labels[i].p, q.labels[i].n)
    set_data(m, <int64_t> (q.data_level if q.data_level <= LEVEL_MAX else LEVEL_MAX), labels, count)


cdef int map_question(Mapper *m, const unsigned char *p, size_t n) noexcept nogil:
    cdef Question q
    cdef Text server
    cdef const Json *arguments
    if wire_check(p, n, &CHECK_REQUEST):
        return 1
    read_question(p, n, &q)
    server = before_slash(q.action)
    m.request.input_mode = INPUT_DIRECT
    m.request.body_present = q.arguments_count > 0
    m.request.content.seen = 1
    set_protocol(m, b"check", q.action)
    cell_bool(column(m.request, COL_CALL_BODY_COMPLETE), True)
    cell_long(column(m.request, COL_CALL_BYTES), q.arguments.n)
    map_ids(m, &q)
    map_action(m, &q, server)
    arguments = map_arguments(m, &q, server.n > 0)
    map_destination(m, &q, server, arguments)
    map_data(m, &q)
    return 0
