"""What a call acts on: action, resource, destination, arguments and data level of a Request."""
from fastpath.arguments cimport (
    INPUT_MISSING, INPUT_ROOM, INPUT_VARIANT, InputFault, input_cell, input_digest, input_shape,
)
from fastpath.canonical cimport canonical_call
from fastpath.columns cimport (
    COL_CALL_DATA_LABELS, COL_CALL_DATA_LEVEL, COL_CALL_METHOD, COL_CALL_PROTOCOL, COL_DEST,
)
from fastpath.envoy cimport CanonicalRules, HttpCall
from fastpath.image cimport NODE_PRESENT, Node
from fastpath.rows cimport node_attrs, table_node
from fastpath.json_tree cimport TREE_ARRAY, TREE_OBJECT, TREE_STRING, json_has_variant, json_member
from fastpath.mapping_rules cimport ToolRule, find_tool, host_fits
from fastpath.request cimport EXTRAS_MAX, reason_named, request_refuse
from fastpath.table cimport table_resolve
from fastpath.value cimport (
    KIND_LONG, KIND_RECORD, KIND_SET, UID_UNKNOWN, arena_take, cell_at, cell_copy, cell_entity, cell_long,
    cell_point, cell_string, record_get, record_normalise, set_normalise, uid_make,
)
from fastpath.wire cimport TEXT_CONTROL, TEXT_HIGH, TEXT_TAB, text_equal, text_marks, text_of

from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memset

cdef enum:
    PORT_TEXT_MAX = 8
    HOST_TEXT_MAX = 512          # longest text that is looked at as a host


cdef int mapper_open(Mapper *m, const void *rules, const Table *table, Arena *arena, Request *request) noexcept nogil:
    m.rules = <const MappingRules *> rules
    m.table, m.arena, m.request = table, arena, request
    m.extras = <Field *> arena_take(arena, EXTRAS_MAX * sizeof(Field))
    m.extra_count = 0
    return m.extras is NULL


cdef void mapper_close(Mapper *m) noexcept nogil:
    m.request.extras.kind = KIND_RECORD
    m.request.extras.n = m.extra_count
    cell_point(&m.request.extras, m.extras)
    if record_normalise(m.extras, m.extra_count):
        refuse(m, b"request.duplicate")


cdef void refuse(Mapper *m, const char *reason) noexcept nogil:
    request_refuse(m.request, text_of(reason))


cdef void refuse_named(Mapper *m, const char *reason, Text name) noexcept nogil:
    request_refuse(m.request, reason_named(reason, name, m.arena))


cdef Text joined(Mapper *m, Text a, const char *separator, Text b) noexcept nogil:
    cdef Text between = text_of(separator)
    cdef Text out
    cdef char *room = <char *> arena_take(m.arena, <size_t> a.n + between.n + b.n)
    out.p, out.n = room, 0
    if room is NULL:
        return out
    memcpy(room, a.p, a.n)
    memcpy(room + a.n, between.p, between.n)
    if b.n:
        memcpy(room + a.n + between.n, b.p, b.n)
    out.n = a.n + between.n + b.n
    return out


cdef bint is_printable(Text text, uint32_t n) noexcept nogil:
    return 0 < text.n <= n and not text_marks(text.p, text.n) & (TEXT_HIGH | TEXT_CONTROL | TEXT_TAB)


# ---------------------------------------------------------------- action and resource


cdef Uid *entity(Mapper *m, Text type_, Text id_) noexcept nogil:
    # An id may be empty; its pointer then stands in for none.
    cdef Uid *uid = uid_make(m.arena, type_.p, type_.n, id_.p if id_.n else type_.p, id_.n)
    if uid is not NULL and m.table is not NULL:
        table_resolve(m.table, uid)
    return uid


cdef void set_action(Mapper *m, Text type_, Text id_) noexcept nogil:
    cdef Uid *uid = entity(m, type_, id_)
    if uid is not NULL:
        m.request.action = uid


cdef void set_class(Mapper *m, Text class_) noexcept nogil:
    set_action(m, m.rules.action_type, class_)


cdef void set_resource(Mapper *m, Text type_, Text id_) noexcept nogil:
    cdef Uid *uid = entity(m, type_, id_)
    if uid is not NULL:
        m.request.resource = uid


cdef void set_parent(Mapper *m, Text server) noexcept nogil:
    if server.n:
        m.request.resource_parent = entity(m, m.rules.server_type, server)


cdef bint is_declared(Mapper *m, const Uid *action) noexcept nogil:
    """Whether the table has the action as an entity. A mere mention in a policy does not count: such an action is in no
    class, so a forbid on the class would miss it."""
    cdef const Node *node
    if m.table is NULL or action is NULL or action.index == UID_UNKNOWN:
        return False
    node = table_node(m.table, action.index)
    return node.flags & NODE_PRESENT or node.parents.n != 0


cdef void set_tool_action(Mapper *m, Text name) noexcept nogil:
    cdef Uid *action = entity(m, m.rules.action_type, name)
    cdef const ToolRule *rule
    if is_declared(m, action):
        m.request.action = action
        return
    rule = find_tool(m.rules, name)
    set_class(m, rule.action if rule is not NULL and rule.action.n else m.rules.tool_action)


cdef void set_tool(Mapper *m, Text server, Text name) noexcept nogil:
    set_tool_action(m, name)
    set_resource(m, m.rules.tool_type, name)
    set_parent(m, server)


# ---------------------------------------------------------------- destination


cdef void set_destination_id(Mapper *m, Text id_) noexcept nogil:
    cdef Uid *uid = entity(m, m.rules.destination_type, id_)
    if uid is not NULL:
        cell_entity(column(m.request, COL_DEST), uid)


cdef Text authority(Mapper *m, Text host, uint32_t port) noexcept nogil:
    cdef char room[PORT_TEXT_MAX]
    cdef Text digits
    if port == 0:
        return host
    digits.n = <uint32_t> snprintf(room, sizeof(room), b"%u", <unsigned int> port)
    digits.p = room
    return joined(m, host, b":", digits)


cdef void set_destination(Mapper *m, Text host, uint32_t port, Text scheme) noexcept nogil:
    cdef uint32_t i
    m.request.destination = authority(m, host, port)
    for i in range(m.rules.destination_count):
        if host_fits(&m.rules.destinations[i].at, host, port, scheme):
            set_destination_id(m, m.rules.destinations[i].id)
            return
    set_destination_id(m, m.request.destination)


cdef inline Text after(Text text, const char *at) noexcept nogil:
    cdef Text out
    out.p = at
    out.n = <uint32_t> (text.p + text.n - at)
    return out


cdef uint32_t scheme_length(Text text) noexcept nogil:
    """Bytes of the scheme when the text begins with one and `://` (RFC 3986 section 3.1), else 0.

    A `://` further back is data: a tool that needs no scheme goes to what stands before it.
    """
    cdef uint32_t i = 0
    while i < text.n and (c'a' <= text.p[i] | 0x20 <= c'z' or (i and (
        c'0' <= text.p[i] <= c'9' or text.p[i] == c'+' or text.p[i] == c'-' or text.p[i] == c'.'
    ))):
        i += 1
    return i if text.n - i >= 3 and memcmp(text.p + i, b"://", 3) == 0 else 0


cdef uint32_t authority_length(Text text) noexcept nogil:
    """Bytes before the path, query or fragment."""
    cdef uint32_t i
    for i in range(text.n):
        if text.p[i] == c'/' or text.p[i] == c'?' or text.p[i] == c'#':
            return i
    return text.n


cdef void split_url(Text text, HttpCall *call) noexcept nogil:
    """Scheme and authority of a URL (RFC 3986 section 3); a text without `://` is an authority or a mail address."""
    cdef const char *at = <const char *> memchr(text.p, c'@', text.n)
    cdef bint mailbox
    call.scheme.p, call.scheme.n = text.p, scheme_length(text)
    call.raw_host = after(text, text.p + (call.scheme.n + 3 if call.scheme.n else 0))
    if call.scheme.n == 0 and at is not NULL:
        # With a path as well it is a host to one reader and a mailbox to another: then it is neither.
        mailbox = authority_length(text) == text.n and memchr(text.p, c'\\', text.n) is NULL
        call.raw_host = after(text, at + 1 if mailbox else text.p + text.n)
    call.raw_host.n = authority_length(call.raw_host)


cdef bint canonical_host(Mapper *m, Text text, HttpCall *call) noexcept nogil:
    """Read the text as a call to `/` would be read: the same canonicaliser as for Envoy's calls."""
    cdef CanonicalRules rules = CanonicalRules(1, 1, 16)
    memset(call, 0, sizeof(HttpCall))
    if text.n == 0 or text.n > HOST_TEXT_MAX:
        return False
    split_url(text, call)
    call.has_http = 1
    call.method, call.raw_path = text_of(b"GET"), text_of(b"/")
    canonical_call(call, &rules, m.arena)
    return call.refusal.n == 0


cdef bint set_destination_text(Mapper *m, Text text) noexcept nogil:
    cdef HttpCall call
    if not canonical_host(m, text, &call):
        return False
    set_destination(m, call.host, call.port, call.scheme)
    return True


cdef void set_destination_list(Mapper *m, const Json *values) noexcept nogil:
    """Several receivers are fine when they are one destination."""
    cdef HttpCall first, other
    cdef uint32_t i
    memset(&first, 0, sizeof(HttpCall))
    for i in range(values.n):
        if values.items[i].kind != TREE_STRING or not canonical_host(m, values.items[i].text, &other):
            return
        if i == 0:
            first = other
        elif not text_equal(first.host, other.host) or first.port != other.port:
            refuse(m, b"destination.ambiguous")
            return
    if values.n:
        set_destination(m, first.host, first.port, first.scheme)


cdef void set_destination_argument(Mapper *m, Text name, const Json *arguments) noexcept nogil:
    cdef const ToolRule *rule = find_tool(m.rules, name)
    cdef const Json *value
    if rule is NULL or rule.destination_from.n == 0:
        return
    # Where the argument says nothing that we can read, the destination is unknown, never the server's own.
    m.request.destination.n = 0
    set_destination_id(m, text_of(b"unknown"))
    value = json_member(arguments, rule.destination_from)
    if json_has_variant(arguments, rule.destination_from):
        refuse(m, b"destination.ambiguous")
    if value is NULL:
        return
    if value.kind == TREE_STRING:
        set_destination_text(m, value.text)
    elif value.kind == TREE_ARRAY:
        set_destination_list(m, value)


# ---------------------------------------------------------------- context


cdef void add_extra(Mapper *m, Text name, const Cell *cell) noexcept nogil:
    if m.extra_count == EXTRAS_MAX:
        refuse(m, b"request.too_many")
        return
    cell_string(&m.extras[m.extra_count].key, name.p, name.n)
    cell_copy(&m.extras[m.extra_count].value, cell)
    m.extra_count += 1


cdef void add_unsent(Mapper *m, const char *name) noexcept nogil:
    if m.request.unsent_count < EXTRAS_MAX:
        m.request.unsent[m.request.unsent_count] = text_of(name)
        m.request.unsent_count += 1


cdef void refuse_input(Mapper *m, const InputFault *fault) noexcept nogil:
    if fault.error == INPUT_ROOM:
        # More than the arena holds is the caller's doing: a denial, not our failure. Nothing of it is used.
        m.arena.failed = 0
        refuse(m, b"input.too_large")
    elif fault.error == INPUT_MISSING:
        refuse_named(m, b"input.missing.", fault.name)
    elif fault.error == INPUT_VARIANT:
        refuse_named(m, b"input.ambiguous.", fault.name)
    else:
        refuse_named(m, b"input.type.", fault.name if fault.name.n else text_of(b"arguments"))


cdef void set_input(Mapper *m, const Json *arguments) noexcept nogil:
    cdef Json empty
    cdef InputFault fault
    cdef const Cell *shape = NULL
    cdef Cell cell
    cdef size_t used = m.arena.used
    memset(&empty, 0, sizeof(Json))
    empty.kind = TREE_OBJECT
    if arguments is NULL:
        arguments = &empty
    if m.table is not NULL and m.request.action is not NULL and m.request.action.index != UID_UNKNOWN:
        shape = input_shape(m.table, m.request.action.index)
    input_cell(arguments, shape, m.arena, &cell, &fault)
    if not fault.error and input_digest(arguments, m.arena, m.request.args_digest):
        fault.error = INPUT_ROOM
    if fault.error:
        if fault.error == INPUT_ROOM:
            m.arena.used = used
        refuse_input(m, &fault)
        return
    m.request.has_args_digest = 1
    add_extra(m, text_of(b"input"), &cell)


cdef const Cell *resource_attribute(Mapper *m, const char *name) noexcept nogil:
    cdef Text key = text_of(name)
    if m.table is NULL or m.request.resource is NULL or m.request.resource.index == UID_UNKNOWN:
        return NULL
    return record_get(node_attrs(m.table, m.request.resource.index), key.p, key.n)


cdef bint is_tool(Mapper *m) noexcept nogil:
    cdef Text type_
    if m.request.resource is NULL:
        return False
    type_.p, type_.n = <const char *> m.request.resource + sizeof(Uid), m.request.resource.type_len
    return text_equal(type_, m.rules.tool_type)


cdef void set_labels(Mapper *m, const Cell *labels, uint32_t label_count) noexcept nogil:
    cdef const Cell *known = resource_attribute(m, b"labels")
    cdef uint32_t n = 0
    cdef uint32_t i
    cdef Cell *members
    cdef Cell *cell = column(m.request, COL_CALL_DATA_LABELS)
    if known is not NULL and known.kind == KIND_SET:
        n = known.n
    if n + label_count == 0:
        return
    members = <Cell *> arena_take(m.arena, (<size_t> n + label_count) * sizeof(Cell))
    if members is NULL:
        return
    for i in range(n):
        cell_copy(members + i, <const Cell *> cell_at(known) + i)
    for i in range(label_count):
        cell_copy(members + n + i, labels + i)
    memset(cell, 0, sizeof(Cell))
    cell.kind = KIND_SET
    cell_point(cell, members)
    cell.n = set_normalise(members, n + label_count)


cdef void set_data(Mapper *m, int64_t declared, const Cell *labels, uint32_t label_count) noexcept nogil:
    cdef const Cell *known = resource_attribute(m, b"level")
    cdef int64_t level = m.rules.tool_level if is_tool(m) else 0
    if known is not NULL and known.kind == KIND_LONG:
        level = known.v
    cell_long(column(m.request, COL_CALL_DATA_LEVEL), declared if declared > level else level)
    set_labels(m, labels, label_count)


cdef void set_protocol(Mapper *m, const char *protocol, Text method) noexcept nogil:
    m.request.protocol, m.request.method = text_of(protocol), method
    cell_string(column(m.request, COL_CALL_PROTOCOL), m.request.protocol.p, m.request.protocol.n)
    cell_string(column(m.request, COL_CALL_METHOD), method.p, method.n)
