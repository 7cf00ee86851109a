"""What the call is. The order of work: principal, canonical form, what the proxy says, route or protocol, data level.

The default mapping
- principal: `Agent::"<SPIFFE ID>"` from source.principal alone; the ID must be valid, have a path and be of an allowed
  trust domain. XFCC and other headers never name it.
- MCP (declared by the extension `protocol` or `server`, by a server of the configuration, or by metadata of Envoy's MCP
  filter): a tool is `Tool::"server/tool"` and `Action::"server/tool"`, or its class where the schema lacks that action;
  a prompt `Tool::"server/prompts/name"`, a resource `Endpoint::"server/uri"`, a task `Endpoint::"server/tasks/id"`, all
  else `Endpoint::"server"`. What looks like MCP and is not declared is refused: headers and bodies are the client's own
  words, and would make any POST look like a harmless `list`.
- gRPC: class by the method's verb, `execute` when it says nothing; HTTP: class by the method; `Endpoint::"host/path"`.
- `context.http` {host, method, path, scheme} for every HTTP call, `context.input` for arguments and for JSON bodies.
- no `http` at all (network filter): `send` to the destination.
"""
from fastpath.canonical cimport canonical_call, is_grpc_type
from fastpath.columns cimport (
    COL_CALL_BODY_COMPLETE, COL_CALL_BYTES, COL_CALL_HEADER_MISMATCH, COL_CRED_BOUND, COL_CRED_KIND, COLUMN_COUNT,
    columns_absent,
)
from fastpath.envoy cimport CanonicalRules, HeaderLine, envoy_decode, envoy_extension, envoy_header
from fastpath.json_tree cimport Json, TREE_ARRAY, TREE_OBJECT, TREE_STRING, json_get, json_parse
from fastpath.mapping_rules cimport (
    EXTENSION_DEST, EXTENSION_DRY_RUN, EXTENSION_PROTOCOL, EXTENSION_ROUTE, EXTENSION_SERVER, MappingRules, Room,
    RouteRule, ServerRule, Template, compile_rules, host_fits,
)
from fastpath.mcp cimport (
    MCP_PROMPT, MCP_TASK, MCP_TOOL, MCP_URI, McpCall, McpTrust, header_single, mcp_is_method, mcp_read,
    names_other_charset,
)
from fastpath.plain cimport cell_plain, uid_plain
from fastpath.question cimport map_question
from fastpath.request cimport INPUT_BODY, INPUT_HEADERS, Content, request_init, request_refuse
from fastpath.routes cimport Matched, route_attribute, route_entity, route_find, route_named
from fastpath.spiffe_id cimport SPIFFE_SCHEME_LEN, spiffe_id_check
from fastpath.table cimport Generation, table_resolve
from fastpath.target cimport (
    Mapper, add_extra, add_unsent, column, entity, is_printable, joined, mapper_close, mapper_open, refuse,
    set_action, set_class, set_data, set_destination, set_destination_argument, set_destination_id,
    set_destination_text, set_input, set_parent, set_protocol, set_resource, set_tool,
)
from fastpath.value cimport (
    KIND_RECORD, Cell, Field, Uid, arena_take, cell_bool, cell_compare, cell_long, cell_point, cell_string,
    uid_id,
)
from fastpath.verbs cimport grpc_class, http_class
from fastpath.wire cimport text_equal, text_is, text_of

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memset

from fastpath.columns import COLUMNS

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *a, const char *b, size_t n)

cdef enum:
    REQUEST_ID_BYTES_MAX = 128
    TASK_BYTES_MAX = 128
    SERVER_NAME_MAX = 128
    TRACEPARENT_BYTES = 55
    LENGTH_DIGITS_MAX = 18
    HEADERS_MAX = 1024           # of an explained call; a served one has the configuration's
    PATH_BYTES_MAX = 8192

cdef enum Protocol:
    PROTOCOL_NONE = 0            # refused
    PROTOCOL_HTTP = 1
    PROTOCOL_GRPC = 2
    PROTOCOL_MCP = 3

cdef struct Place:               # what is known of the server behind a call
    int protocol
    Text server                  # its name; empty: none
    uint8_t headers_alone


cdef inline Text nothing() noexcept nogil:
    cdef Text t
    t.p, t.n = NULL, 0
    return t


cdef class Mapping:
    """The section `mapping` in force. Calls read it without Python; it never changes."""

    def __cinit__(self, config):
        cdef Room room = Room()
        self.rules = compile_rules(config, room)
        self._room = room


# ---------------------------------------------------------------- principal


cdef bint is_allowed(const MappingRules *rules, Text trust_domain) noexcept nogil:
    cdef uint32_t i
    for i in range(rules.trust_domain_count):
        if text_equal(rules.trust_domains[i], trust_domain):
            return True
    return False


cdef void set_credential(Request *request) noexcept nogil:
    """A SPIFFE ID that reaches us was proven by an X509-SVID over mTLS, at the proxy or here."""
    cdef Text kind = text_of(b"x509-svid")
    cell_string(column(request, COL_CRED_KIND), kind.p, kind.n)
    cell_bool(column(request, COL_CRED_BOUND), True)


cdef void map_principal(Mapper *m, Text spiffe_id) noexcept nogil:
    cdef Text trust_domain
    cdef Uid *uid
    trust_domain.p, trust_domain.n = spiffe_id.p + SPIFFE_SCHEME_LEN, 0
    if spiffe_id.n == 0:
        refuse(m, b"identity.missing")
        return
    # An ID without a path is a trust domain's, never a workload's (SPIFFE X.509-SVID section 5.2).
    if spiffe_id_check(spiffe_id.p, spiffe_id.n, &trust_domain.n) or (
        spiffe_id.n == SPIFFE_SCHEME_LEN + trust_domain.n
    ):
        refuse(m, b"identity.not_spiffe")
        return
    uid = entity(m, m.rules.agent_type, spiffe_id)
    if uid is not NULL:
        m.request.principal = uid
    if is_allowed(m.rules, trust_domain):
        set_credential(m.request)
    else:
        refuse(m, b"identity.trust_domain")


cdef void mapping_principal(
    const void *rules, Text spiffe_id, const Table *table, Arena *arena, Request *request
) noexcept nogil:
    cdef Mapper m
    if not mapper_open(&m, rules, table, arena, request):
        map_principal(&m, spiffe_id)


# ---------------------------------------------------------------- what every HTTP call tells


cdef bint is_hex_id(const char *p, uint32_t n) noexcept nogil:
    """Lower-case hex, not all zero (W3C Trace Context, 3.2.2)."""
    cdef uint32_t i
    cdef uint8_t c, foreign = 0, any_ = 0
    for i in range(n):
        c = p[i]
        foreign |= (<uint8_t> (c - c'0') > 9) & (<uint8_t> (c - c'a') > 5)
        any_ |= c ^ c'0'
    return not foreign and any_


cdef void read_trace(const HttpCall *call, Request *request) noexcept nogil:
    """traceparent, version 00; anything else starts no trace and refuses nothing."""
    cdef Text value
    if header_single(call, b"traceparent", &value) != 1 or value.n != TRACEPARENT_BYTES:
        return
    if memcmp(value.p, b"00-", 3) != 0 or not is_hex_id(value.p + 3, 32) or not is_hex_id(value.p + 36, 16):
        return
    request.trace_id.p, request.trace_id.n = value.p + 3, 32
    request.span_id.p, request.span_id.n = value.p + 36, 16


cdef void read_task(Mapper *m, const HttpCall *call) noexcept nogil:
    """The task that the call names: `x-agent-task`, or `remit-task` as gRPC metadata is called. One of them, once."""
    cdef Text value, other
    cdef int found = header_single(call, b"x-agent-task", &value)
    cdef int also = header_single(call, b"remit-task", &other)
    if found < 0 or (found and also and not text_equal(value, other)):
        refuse(m, b"request.ambiguous.x-agent-task")
        return
    if also < 0:
        refuse(m, b"request.ambiguous.remit-task")
        return
    if not found:
        value, found = other, also
    if found and not is_printable(value, TASK_BYTES_MAX):
        refuse(m, b"task.malformed")
    elif found:
        m.request.task = value


cdef int64_t digits(Text t) noexcept nogil:
    cdef int64_t v = 0
    cdef uint32_t i
    if t.n == 0 or t.n > LENGTH_DIGITS_MAX:
        return -1
    for i in range(t.n):
        if not c'0' <= t.p[i] <= c'9':
            return -1
        v = v * 10 + (t.p[i] - c'0')
    return v


cdef bint is_framed_bodiless(const HttpCall *call) noexcept nogil:
    """Whether its framing says that the call carries no body (RFC 9112 section 6.3); HTTP/2 may leave that open."""
    cdef HeaderLine line
    cdef Text value
    if call.body_present:
        return False
    if header_single(call, b"content-length", &value) != 0:
        return digits(value) == 0
    if envoy_header(call, b"transfer-encoding", &line):
        return False
    return call.protocol.n >= 6 and memcmp(call.protocol.p, b"HTTP/1", 6) == 0


cdef bint has_no_body(const HttpCall *call) noexcept nogil:
    """Whether the call carries no body, by its framing or, where that says nothing, by its method's custom."""
    cdef HeaderLine line
    cdef Text value
    if is_framed_bodiless(call):
        return True
    if call.body_present or header_single(call, b"content-length", &value) != 0:
        return False
    if envoy_header(call, b"transfer-encoding", &line):
        return False
    return text_is(call.method, b"GET") or text_is(call.method, b"HEAD") or text_is(call.method, b"OPTIONS")


cdef int64_t body_bytes(const HttpCall *call) noexcept nogil:
    """Length of the body as far as it is known; -1: unknown."""
    cdef Text value
    if call.body_complete:
        return call.body.n
    if header_single(call, b"content-length", &value) == 1:
        return digits(value)
    # `size` is what Envoy has received so far, a beginning of what is to come. Custom does not bind who pays by bytes:
    # over HTTP/2 a GET can carry any number of them.
    return max(call.size, 0) if is_framed_bodiless(call) else -1


cdef Text without_query(Text path) noexcept nogil:
    cdef const char *mark = <const char *> memchr(path.p, c'?', path.n) if path.n else NULL
    if mark is not NULL:
        path.n = <uint32_t> (mark - path.p)
    return path


cdef bint looks_like_grpc(Mapper *m, const HttpCall *call) noexcept nogil:
    cdef Text value
    if not m.rules.grpc_by_content_type or not text_is(call.method, b"POST"):
        return False
    return header_single(call, b"content-type", &value) == 1 and is_grpc_type(value)


cdef void note_call(Mapper *m, const HttpCall *call) noexcept nogil:
    """What the record names, also of a call that is refused. A path that has no canonical form stands there as sent."""
    cdef Request *request = m.request
    request.method = call.method
    # A caller that speaks gRPC reads a refusal as such, too.
    request.protocol = text_of(b"grpc" if looks_like_grpc(m, call) else b"http")
    request.body_present = call.body_present
    request.input_mode = INPUT_HEADERS
    if is_printable(call.http_id, REQUEST_ID_BYTES_MAX):
        request.request_id = call.http_id
    request.sanitised |= call.sanitised
    request.path = without_query(call.raw_path) if call.refusal.n else call.path
    if call.refusal.n == 0:
        request.host = call.host
    read_trace(call, request)
    read_task(m, call)


cdef void add_http(Mapper *m, const HttpCall *call) noexcept nogil:
    """context.http: {host, method, path, scheme}, canonical."""
    cdef Field *fields = <Field *> arena_take(m.arena, 4 * sizeof(Field))
    cdef Cell record
    if fields is NULL:
        return
    cell_string(&fields[0].key, b"host", 4)
    cell_string(&fields[0].value, call.host.p, call.host.n)
    cell_string(&fields[1].key, b"method", 6)
    cell_string(&fields[1].value, call.method.p, call.method.n)
    cell_string(&fields[2].key, b"path", 4)
    cell_string(&fields[2].value, call.path.p, call.path.n)
    cell_string(&fields[3].key, b"scheme", 6)
    cell_string(&fields[3].value, call.scheme.p, call.scheme.n)
    memset(&record, 0, sizeof(Cell))
    record.kind, record.n = KIND_RECORD, 4
    cell_point(&record, fields)
    add_extra(m, text_of(b"http"), &record)


# ---------------------------------------------------------------- what the proxy's configuration says


cdef Text extension(Mapper *m, const HttpCall *call, int flag, const char *name) noexcept nogil:
    """A key of context_extensions, when the configuration reads it; everything else there stays unread (EX-21)."""
    if not m.rules.extensions & flag:
        return nothing()
    return envoy_extension(call, name)


cdef void read_dry_run(Mapper *m, const HttpCall *call) noexcept nogil:
    cdef Text value = extension(m, call, EXTENSION_DRY_RUN, b"dry_run")
    if text_is(value, b"true"):
        m.request.dry_run = 1
    elif value.n and not text_is(value, b"false"):
        refuse(m, b"extension.dry_run")


cdef bint is_below(Text path, Text root) noexcept nogil:
    """Whether `path` is `root` or stands below it, by whole segments."""
    if root.n and root.p[root.n - 1] == c'/':
        root.n -= 1
    if path.n < root.n or (root.n and memcmp(path.p, root.p, root.n) != 0):
        return False
    return path.n == root.n or path.p[root.n] == c'/'


cdef const ServerRule *find_server(Mapper *m, const HttpCall *call) noexcept nogil:
    cdef const ServerRule *rule
    cdef uint32_t i
    for i in range(m.rules.server_count):
        rule = &m.rules.servers[i]
        if host_fits(&rule.at, call.host, call.port, call.scheme) and is_below(call.path, rule.path):
            return rule
    return NULL


cdef const ServerRule *server_named(Mapper *m, Text name) noexcept nogil:
    cdef uint32_t i
    for i in range(m.rules.server_count):
        if text_equal(m.rules.servers[i].name, name):
            return &m.rules.servers[i]
    return NULL


cdef int stated_protocol(Mapper *m, const HttpCall *call) noexcept nogil:
    """What the extension says; PROTOCOL_NONE when it is silent (or refused)."""
    cdef Text value = extension(m, call, EXTENSION_PROTOCOL, b"protocol")
    if value.n == 0:
        return PROTOCOL_NONE
    if text_is(value, b"http"):
        return PROTOCOL_HTTP
    if text_is(value, b"grpc"):
        return PROTOCOL_GRPC
    if text_is(value, b"mcp"):
        return PROTOCOL_MCP
    refuse(m, b"extension.protocol")
    return PROTOCOL_NONE


cdef int detected_protocol(Mapper *m, const HttpCall *call) noexcept nogil:
    cdef Text value
    if call.mcp_metadata and call.mcp_method.n:
        return PROTOCOL_MCP
    if not m.rules.grpc_by_content_type or not text_is(call.method, b"POST"):
        return PROTOCOL_HTTP
    if header_single(call, b"content-type", &value) < 0:
        refuse(m, b"request.ambiguous.content-type")
    return PROTOCOL_GRPC if looks_like_grpc(m, call) else PROTOCOL_HTTP


cdef void find_place(Mapper *m, const HttpCall *call, Place *place) noexcept nogil:
    """Which server the call goes to and which protocol it speaks: as stated, else as configured, else as it looks."""
    cdef const ServerRule *rule = find_server(m, call)
    memset(place, 0, sizeof(Place))
    place.server = extension(m, call, EXTENSION_SERVER, b"server")
    place.protocol = stated_protocol(m, call)
    if place.server.n:
        if not is_printable(place.server, SERVER_NAME_MAX) or memchr(place.server.p, c'/', place.server.n) is not NULL:
            refuse(m, b"extension.server")
        rule = server_named(m, place.server)
    elif rule is not NULL:
        place.server = rule.name
    if rule is not NULL:
        place.headers_alone = rule.headers_alone
    if place.protocol == PROTOCOL_NONE and place.server.n:
        place.protocol = PROTOCOL_MCP
    if place.protocol == PROTOCOL_NONE:
        place.protocol = detected_protocol(m, call)
    if place.server.n == 0 and place.protocol == PROTOCOL_MCP:
        place.server = call.host


cdef void map_destination(Mapper *m, const HttpCall *call) noexcept nogil:
    cdef Text stated = extension(m, call, EXTENSION_DEST, b"dest")
    set_destination(m, call.host, call.port, call.scheme)
    if stated.n:
        set_destination_id(m, stated)


# ---------------------------------------------------------------- what an exact approval is bound to


cdef bint overrides_method(const HttpCall *call) noexcept nogil:
    """Whether a header asks some servers for another method than the one that is shown."""
    cdef HeaderLine line
    return (
        envoy_header(call, b"x-http-method-override", &line) or envoy_header(call, b"x-http-method", &line)
        or envoy_header(call, b"x-method-override", &line)
    )


cdef void note_content(Mapper *m, const HttpCall *call) noexcept nogil:
    """The whole call as it was sent. A body that we did not get, or not unaltered, could be any."""
    cdef Content *content = &m.request.content
    content.method, content.target = call.method, call.raw_path
    content.seen = is_framed_bodiless(call)
    if call.body_complete and call.body_raw:
        content.body, content.seen = call.body, 1
    if header_single(call, b"content-type", &content.media) > 1:
        content.seen = 0
    if header_single(call, b"content-encoding", &content.coding) > 1 or overrides_method(call):
        content.seen = 0


cdef void note_message(Mapper *m, const McpCall *mcp) noexcept nogil:
    """An MCP message that was read is what it asks for: its id is another one when it is sent again."""
    cdef Content *content = &m.request.content
    if mcp.body_read and content.seen:
        content.body, content.params = nothing(), mcp.params


# ---------------------------------------------------------------- bodies of plain HTTP


cdef bint is_json_type(const HttpCall *call) noexcept nogil:
    """application/json and +json in UTF-8, without a content encoding."""
    cdef Text value, coding, parameters
    cdef const char *mark
    if header_single(call, b"content-type", &value) != 1 or header_single(call, b"content-encoding", &coding) != 0:
        return False
    mark = <const char *> memchr(value.p, c';', value.n) if value.n else NULL
    if mark is not NULL:
        parameters.p, parameters.n = mark + 1, <uint32_t> (value.p + value.n - mark - 1)
        if names_other_charset(parameters):
            return False
        value.n = <uint32_t> (mark - value.p)
    while value.n and value.p[value.n - 1] == c' ':
        value.n -= 1
    if value.n > 5 and strncasecmp(value.p + value.n - 5, b"+json", 5) == 0:
        return True
    return value.n == 16 and begins_caseless(value, b"application/json")


cdef bint looks_like_mcp(const Json *body) noexcept nogil:
    """A message, or a batch that holds one."""
    cdef const Json *method = json_get(body, b"method")
    cdef uint32_t i
    if body.kind == TREE_ARRAY:
        for i in range(body.n):
            if body.items[i].kind == TREE_OBJECT and looks_like_mcp(body.items + i):
                return True
        return False
    if json_get(body, b"jsonrpc") is NULL or method is NULL or method.kind != TREE_STRING:
        return False
    return mcp_is_method(method.text)


cdef void map_http_body(Mapper *m, const HttpCall *call, bint may_be_mcp) noexcept nogil:
    """A JSON object becomes context.input. What is there and cannot be read is unsent: reading it denies (EX-15)."""
    cdef Json *body
    cdef size_t used
    cdef int failed = m.arena.failed
    cdef bint whole = call.body_complete
    if has_no_body(call):
        cell_bool(column(m.request, COL_CALL_BODY_COMPLETE), True)
        return
    if whole and is_json_type(call):
        body = <Json *> arena_take(m.arena, sizeof(Json))
        used = m.arena.used
        if body is NULL:
            return
        if json_parse(call.body.p, call.body.n, m.arena, body) == 0:
            cell_bool(column(m.request, COL_CALL_BODY_COMPLETE), True)
            if may_be_mcp and looks_like_mcp(body):
                refuse(m, b"mcp.server.unknown")
            if body.kind == TREE_OBJECT:
                m.request.input_mode = INPUT_BODY
                set_input(m, body)
                return
        else:
            # A body that the arena cannot hold counts as unreadable; its memory is given back.
            m.arena.used = used
            m.arena.failed = failed
            whole = False
    cell_bool(column(m.request, COL_CALL_BODY_COMPLETE), whole)
    add_unsent(m, b"input")


# ---------------------------------------------------------------- routes


cdef void map_entity(
    Mapper *m, const Template *template, const HttpCall *call, const Matched *matched, Uid **into
) noexcept nogil:
    cdef Text refusal = nothing()
    cdef Uid *uid
    if template.type.n == 0:
        return
    uid = route_entity(template, call, matched, m.arena, &refusal)
    if refusal.n:
        request_refuse(m.request, refusal)
    if uid is not NULL:
        if m.table is not NULL:
            table_resolve(m.table, uid)
        into[0] = uid


cdef void map_attributes(Mapper *m, const HttpCall *call, const Matched *matched) noexcept nogil:
    cdef const RouteRule *route = matched.route
    cdef Text refusal
    cdef Cell cell
    cdef uint32_t i
    cdef int found
    for i in range(route.attribute_count):
        refusal = nothing()
        found = route_attribute(&route.attributes[i], call, matched, m.arena, &cell, &refusal)
        if found > 0:
            add_extra(m, route.attributes[i].name, &cell)
        elif refusal.n:
            request_refuse(m.request, refusal)


cdef bint find_route(Mapper *m, const HttpCall *call, Matched *matched) noexcept nogil:
    cdef Text named = extension(m, call, EXTENSION_ROUTE, b"route")
    if named.n == 0:
        route_find(m.rules, call, matched)
    elif route_named(m.rules, call, named, matched):
        # The proxy sends here what the named route does not describe: one of the two configurations is wrong.
        refuse(m, b"extension.route")
    return matched.route is not NULL


cdef void map_route(Mapper *m, const HttpCall *call, const Matched *matched, const Place *place) noexcept nogil:
    cdef const RouteRule *route = matched.route
    set_protocol(m, b"grpc" if place.protocol == PROTOCOL_GRPC else b"http", call.method)
    map_endpoint(m, call, place)
    if route.principal_type.n and m.request.principal is not NULL:
        map_principal_type(m, route.principal_type)
    if route.action_type.n:
        set_action(m, route.action_type, route.action_id)
    elif place.protocol == PROTOCOL_GRPC:
        set_class(m, grpc_class(last_segment(call.path)))
    else:
        set_class(m, http_class(call.method, call.path))
    if route.resource.type.n:
        m.request.resource_parent = NULL
    map_entity(m, &route.resource, call, matched, &m.request.resource)
    map_entity(m, &route.parent, call, matched, &m.request.resource_parent)
    if route.destination.n:
        set_destination_id(m, route.destination)
    map_attributes(m, call, matched)
    map_http_body(m, call, False)


cdef void map_principal_type(Mapper *m, Text type_) noexcept nogil:
    cdef Text id_
    cdef Uid *uid
    id_.p, id_.n = uid_id(m.request.principal), m.request.principal.id_len
    uid = entity(m, type_, id_)
    if uid is not NULL:
        m.request.principal = uid


# ---------------------------------------------------------------- plain HTTP, gRPC, network


cdef void map_endpoint(Mapper *m, const HttpCall *call, const Place *place) noexcept nogil:
    set_resource(m, m.rules.endpoint_type, joined(m, call.host, b"", call.path))
    set_parent(m, place.server if place.server.n else call.host)


cdef Text last_segment(Text path) noexcept nogil:
    cdef uint32_t at = path.n
    while at > 0 and path.p[at - 1] != c'/':
        at -= 1
    path.p += at
    path.n -= at
    return path


cdef void map_http(Mapper *m, const HttpCall *call, const Place *place, bint stated) noexcept nogil:
    cdef HeaderLine line
    set_protocol(m, b"http", call.method)
    set_class(m, http_class(call.method, call.path))
    map_endpoint(m, call, place)
    if not stated and envoy_header(call, b"mcp-method", &line):
        refuse(m, b"mcp.server.unknown")
    map_http_body(m, call, not stated)


cdef void map_grpc(Mapper *m, const HttpCall *call, const Place *place) noexcept nogil:
    """`/package.Service/Method`; the message is not decoded, so a rule that reads `input` denies."""
    cdef Text method = last_segment(call.path)
    set_protocol(m, b"grpc", call.path)
    if method.n == 0 or call.path.n - method.n < 3:
        refuse(m, b"path.not_grpc")
    set_class(m, grpc_class(method))
    map_endpoint(m, call, place)
    cell_bool(column(m.request, COL_CALL_BODY_COMPLETE), call.body_complete)
    add_unsent(m, b"input")


cdef void map_network(Mapper *m, const HttpCall *call) noexcept nogil:
    """Envoy's network filter: a connection is opened, nothing more is known of it."""
    cdef Text target = call.destination_principal if call.destination_principal.n else call.sni
    cdef Text stated = extension(m, call, EXTENSION_DEST, b"dest")
    set_protocol(m, b"network", nothing())
    set_class(m, text_of(b"send"))
    if stated.n:
        target = stated
    if target.n == 0:
        target = text_of(b"unknown")
    # A SPIFFE ID names a workload; read as a URL it would be the host that is called like its trust domain.
    if stated.n or call.destination_principal.n or not set_destination_text(m, target):
        set_destination_id(m, target)
        m.request.destination = target
    set_resource(m, m.rules.endpoint_type, target)
    set_parent(m, target)
    set_data(m, 0, NULL, 0)


# ---------------------------------------------------------------- MCP


cdef void map_mcp_subject(Mapper *m, const McpCall *mcp, Text server) noexcept nogil:
    """Action and resource by the table of methods (facts: the MCP table)."""
    if mcp.target == MCP_TOOL and mcp.name.n:
        set_tool(m, server, joined(m, server, b"/", mcp.name))
        return
    if mcp.action.n:
        set_class(m, mcp.action)
    if mcp.target == MCP_PROMPT and mcp.name.n:
        set_resource(m, m.rules.tool_type, joined(m, server, b"/prompts/", mcp.name))
    elif mcp.target == MCP_URI and mcp.name.n:
        set_resource(m, m.rules.endpoint_type, joined(m, server, b"/", mcp.name))
    elif mcp.target == MCP_TASK and mcp.name.n:
        set_resource(m, m.rules.endpoint_type, joined(m, server, b"/tasks/", mcp.name))
    else:
        set_resource(m, m.rules.endpoint_type, server)
    set_parent(m, server)


cdef void map_arguments(Mapper *m, const McpCall *mcp, Text server) noexcept nogil:
    cdef const Json *arguments = json_get(mcp.params, b"arguments")
    set_destination_argument(m, joined(m, server, b"/", mcp.name), arguments)
    if mcp.body_read:
        set_input(m, arguments)
    else:
        add_unsent(m, b"input")


cdef bint begins_caseless(Text text, const char *prefix) noexcept nogil:
    cdef Text wanted = text_of(prefix)
    return text.n >= wanted.n and strncasecmp(text.p, wanted.p, wanted.n) == 0


cdef void map_uri_destination(Mapper *m, Text uri) noexcept nogil:
    """A resource on the web is at its own host; every other uri names something inside the server."""
    if begins_caseless(uri, b"https://") or begins_caseless(uri, b"http://"):
        if not set_destination_text(m, uri):
            set_destination_id(m, text_of(b"unknown"))


cdef void map_mcp(Mapper *m, const HttpCall *call, const Place *place) noexcept nogil:
    cdef McpTrust trust = m.rules.mcp
    cdef McpCall mcp
    cdef bint whole
    trust.headers_alone = place.headers_alone
    mcp_read(call, &trust, m.arena, &mcp)
    set_protocol(m, b"mcp", mcp.method)
    m.request.denial_id = mcp.id
    note_message(m, &mcp)
    m.request.input_mode = mcp.input_mode
    cell_bool(column(m.request, COL_CALL_HEADER_MISMATCH), mcp.header_mismatch)
    # A POST without a body is a body that we were not sent.
    whole = mcp.body_read or (not text_is(call.method, b"POST") and has_no_body(call))
    cell_bool(column(m.request, COL_CALL_BODY_COMPLETE), whole)
    map_mcp_subject(m, &mcp, place.server)
    if mcp.refusal.n:
        request_refuse(m.request, mcp.refusal)
    elif mcp.target == MCP_TOOL:
        map_arguments(m, &mcp, place.server)
    elif mcp.target == MCP_URI:
        map_uri_destination(m, mcp.name)


# ---------------------------------------------------------------- a call through Envoy


cdef void map_call(Mapper *m, const HttpCall *call) noexcept nogil:
    cdef Place place
    cdef Matched matched
    memset(&matched, 0, sizeof(Matched))
    read_dry_run(m, call)
    note_content(m, call)
    map_destination(m, call)
    find_place(m, call, &place)
    cell_long(column(m.request, COL_CALL_BYTES), body_bytes(call))
    add_http(m, call)
    if find_route(m, call, &matched):
        map_route(m, call, &matched, &place)
    elif place.protocol == PROTOCOL_MCP:
        map_mcp(m, call, &place)
    elif place.protocol == PROTOCOL_GRPC:
        map_grpc(m, call, &place)
    else:
        map_http(m, call, &place, stated_protocol(m, call) == PROTOCOL_HTTP)
    set_data(m, 0, NULL, 0)


cdef void mapping_apply(
    const void *rules, const HttpCall *call, const Table *table, Arena *arena, Request *request
) noexcept nogil:
    cdef Mapper m
    if mapper_open(&m, rules, table, arena, request):
        return
    map_principal(&m, call.source_principal)
    request.certificate = call.source_certificate
    if not call.has_http:
        read_dry_run(&m, call)
        map_network(&m, call)
    else:
        note_call(&m, call)
        if call.refusal.n:
            request_refuse(request, call.refusal)
        else:
            map_call(&m, call)
    mapper_close(&m)


cdef int mapping_check(
    const void *rules, const unsigned char *p, size_t n, const Table *table, Arena *arena, Request *request
) noexcept nogil:
    cdef Mapper m
    cdef int error
    if mapper_open(&m, rules, table, arena, request):
        return 0
    error = map_question(&m, p, n)
    mapper_close(&m)
    return error


# ---------------------------------------------------------------- Python face


cdef object _text(Text t):
    return t.p[:t.n].decode("utf-8", "replace") if t.n else ""


cdef dict _columns(Request *request):
    """Columns that differ from what they are without state, by path."""
    cdef Cell absent[COLUMN_COUNT]
    cdef int i
    columns_absent(absent)
    out = {}
    for i, (path, _, _) in enumerate(COLUMNS):
        if cell_compare(absent + i, request.columns + i) != 0:
            out[path] = cell_plain(request.columns + i)
    return out


cdef dict _plain(Request *request):
    cdef uint32_t i
    return {
        "principal": uid_plain(request.principal), "action": uid_plain(request.action),
        "resource": uid_plain(request.resource), "resource_parent": uid_plain(request.resource_parent),
        "columns": _columns(request), "context": cell_plain(&request.extras),
        "unsent": [_text(request.unsent[i]) for i in range(request.unsent_count)],
        "refusal": _text(request.refusal), "destination": _text(request.destination),
        "protocol": _text(request.protocol), "method": _text(request.method), "host": _text(request.host),
        "path": _text(request.path), "request_id": _text(request.request_id), "trace_id": _text(request.trace_id),
        "span_id": _text(request.span_id), "task": _text(request.task), "denial_id": _text(request.denial_id),
        "args_digest": request.args_digest[:32].hex() if request.has_args_digest else "",
        "content_seen": bool(request.content.seen),
        "dry_run": bool(request.dry_run), "input_mode": int(request.input_mode),
        "body_present": bool(request.body_present), "sanitised": bool(request.sanitised),
    }


cdef class _Scratch:
    """Memory of one explained call."""
    cdef Arena arena
    cdef Request request

    def __cinit__(self, size_t arena_bytes):
        memset(&self.arena, 0, sizeof(Arena))
        self.arena.base = <uint8_t *> malloc(arena_bytes)
        self.arena.cap = arena_bytes
        if self.arena.base is NULL:
            raise MemoryError(f"no room for an arena of {arena_bytes} bytes")
        request_init(&self.request)

    def __dealloc__(self):
        free(self.arena.base)


cdef const Table *_table(Generation generation) except? NULL:
    if generation is None:
        return NULL
    if generation.closed:
        raise ValueError("the generation is closed")
    return &generation.table


def explain_call(
    Mapping mapping not None, bytes check_request not None, Generation generation=None, *, bint strict_path=True,
    size_t arena_bytes=4 << 20,
):
    cdef _Scratch scratch = _Scratch(arena_bytes)
    cdef CanonicalRules rules = CanonicalRules(strict_path, HEADERS_MAX, PATH_BYTES_MAX)
    cdef HttpCall call
    cdef const Table *table = _table(generation)
    if envoy_decode(check_request, len(check_request), &scratch.arena, &call):
        raise ValueError("the bytes are not an envoy.service.auth.v3.CheckRequest")
    canonical_call(&call, &rules, &scratch.arena)
    mapping_apply(mapping.rules, &call, table, &scratch.arena, &scratch.request)
    if scratch.arena.failed:
        raise MemoryError(f"the call needs more than {arena_bytes} bytes")
    return _plain(&scratch.request)


def explain_check(
    Mapping mapping not None, bytes check_request not None, str spiffe_id not None, Generation generation=None, *,
    size_t arena_bytes=4 << 20,
):
    cdef _Scratch scratch = _Scratch(arena_bytes)
    cdef bytes peer = spiffe_id.encode()
    cdef const Table *table = _table(generation)
    cdef Text who
    who.p, who.n = peer, <uint32_t> len(peer)
    mapping_principal(mapping.rules, who, table, &scratch.arena, &scratch.request)
    if mapping_check(mapping.rules, check_request, len(check_request), table, &scratch.arena, &scratch.request):
        raise ValueError("the bytes are not a remit.authz.v1.CheckRequest")
    if scratch.arena.failed:
        raise MemoryError(f"the call needs more than {arena_bytes} bytes")
    return _plain(&scratch.request)
