"""The `mapping` section made flat: what the checked configuration says, in memory that calls read without Python."""
from fastpath.wire cimport text_compare, text_equal, text_is

from libc.string cimport memcmp

from fastpath.patterns import action_uid, path_segments, qualified, template_pieces

SEGMENTS = {"literal": SEGMENT_LITERAL, "star": SEGMENT_STAR, "capture": SEGMENT_CAPTURE, "tail": SEGMENT_TAIL}
PIECES = {
    "literal": PIECE_LITERAL, "capture": PIECE_CAPTURE, "host": PIECE_HOST, "method": PIECE_METHOD, "path": PIECE_PATH,
    "header": PIECE_HEADER, "query": PIECE_QUERY,
}
KINDS = {"string": ATTRIBUTE_STRING, "long": ATTRIBUTE_LONG, "bool": ATTRIBUTE_BOOL, "set": ATTRIBUTE_SET}
EXTENSIONS = {
    "protocol": EXTENSION_PROTOCOL, "dest": EXTENSION_DEST, "server": EXTENSION_SERVER, "route": EXTENSION_ROUTE,
    "dry_run": EXTENSION_DRY_RUN,
}


cdef class Room:
    def __cinit__(self):
        self._kept = []

    cdef void *take(self, size_t n) except NULL:
        """Zeroed memory, at least one byte."""
        cdef bytearray room = bytearray(n + 1)
        self._kept.append(room)
        return <void *> <char *> room

    cdef Text text(self, str value):
        cdef bytes data = value.encode()
        cdef Text t
        self._kept.append(data)
        t.p, t.n = data, <uint32_t> len(data)
        return t


cdef Text *take_texts(object values, Room room) except NULL:
    cdef Text *texts = <Text *> room.take(len(values) * sizeof(Text))
    for i, value in enumerate(values):
        texts[i] = room.text(value)
    return texts


cdef int compile_host(HostRule *rule, str host, object port, Room room) except -1:
    rule.port = port
    if host == "*":
        rule.kind = HOST_ANY
    elif host.startswith("*."):
        rule.kind = HOST_BELOW
        rule.text = room.text(host[1:])
    else:
        rule.kind = HOST_EXACT
        rule.text = room.text(host)
    return 0


cdef int compile_tools(MappingRules *rules, object config, Room room) except -1:
    names = sorted({*config.tools, *config.destination_from}, key=str.encode)
    rules.tools = <ToolRule *> room.take(len(names) * sizeof(ToolRule))
    rules.tool_count = <uint32_t> len(names)
    for i, name in enumerate(names):
        rules.tools[i].name = room.text(name)
        rules.tools[i].action = room.text(config.tools.get(name, ""))
        rules.tools[i].destination_from = room.text(config.destination_from.get(name, ""))
    rules.tool_action = room.text(config.tool_class)
    rules.tool_level = config.tool_level
    return 0


cdef int compile_places(MappingRules *rules, object config, Room room) except -1:
    rules.server_count = <uint32_t> len(config.servers)
    rules.servers = <ServerRule *> room.take(rules.server_count * sizeof(ServerRule))
    for i, server in enumerate(config.servers):
        compile_host(&rules.servers[i].at, server.host, server.port, room)
        rules.servers[i].path = room.text(server.path)
        rules.servers[i].name = room.text(server.name)
        rules.servers[i].headers_alone = server.headers_alone
    rules.destination_count = <uint32_t> len(config.destinations)
    rules.destinations = <DestinationRule *> room.take(rules.destination_count * sizeof(DestinationRule))
    for i, destination in enumerate(config.destinations):
        compile_host(&rules.destinations[i].at, destination.host, destination.port, room)
        rules.destinations[i].id = room.text(destination.id)
    return 0


cdef int compile_template(Template *out, object template, list captures, str namespace, Room room) except -1:
    if template is None:
        return 0
    pieces = template_pieces(template.id)
    out.type = room.text(qualified(template.type, namespace))
    out.pieces = <Piece *> room.take(len(pieces) * sizeof(Piece))
    out.piece_count = <uint32_t> len(pieces)
    for i, (kind, text) in enumerate(pieces):
        out.pieces[i].kind = PIECES[kind]
        out.pieces[i].text = room.text(text)
        if kind == "capture":
            out.pieces[i].capture = captures.index(text)
    return 0


cdef int compile_attribute(Attribute *out, str name, object source, list captures, Room room) except -1:
    out.name = room.text(name)
    out.kind = KINDS[source.kind]
    out.required = source.required
    if source.capture:
        out.source = SOURCE_CAPTURE
        out.capture = captures.index(source.capture)
    elif source.header:
        out.source = SOURCE_HEADER
        out.text = room.text(source.header)
    elif source.query:
        out.source = SOURCE_QUERY
        out.text = room.text(source.query)
    else:
        out.source = SOURCE_CONSTANT
        if isinstance(source.constant, str):
            out.text = room.text(source.constant)
        else:
            out.number = source.constant
    return 0


cdef int compile_route(RouteRule *out, object route, str namespace, Room room) except -1:
    segments = path_segments(route.path)
    captures = [text for kind, text in segments if kind == "capture"]
    out.name = room.text(route.name)
    compile_host(&out.at, route.host, route.port, room)
    out.methods = take_texts(route.methods, room)
    out.method_count = <uint32_t> len(route.methods)
    out.segments = <Segment *> room.take(len(segments) * sizeof(Segment))
    out.segment_count = <uint32_t> len(segments)
    for i, (kind, text) in enumerate(segments):
        out.segments[i].kind = SEGMENTS[kind]
        out.segments[i].text = room.text(text)
    if route.principal_type:
        out.principal_type = room.text(qualified(route.principal_type, namespace))
    if route.action:
        type_, id_ = action_uid(route.action, namespace)
        out.action_type, out.action_id = room.text(type_), room.text(id_)
    compile_template(&out.resource, route.resource, captures, namespace, room)
    compile_template(&out.parent, route.parent, captures, namespace, room)
    out.destination = room.text(route.destination)
    out.attributes = <Attribute *> room.take(len(route.context) * sizeof(Attribute))
    out.attribute_count = <uint32_t> len(route.context)
    for i, (name, source) in enumerate(route.context.items()):
        compile_attribute(&out.attributes[i], name, source, captures, room)
    return 0


cdef MappingRules *compile_rules(object config, Room room) except NULL:
    cdef MappingRules *rules = <MappingRules *> room.take(sizeof(MappingRules))
    namespace = config.namespace
    rules.trust_domains = take_texts(config.trust_domains, room)
    rules.trust_domain_count = <uint32_t> len(config.trust_domains)
    rules.namespace = room.text(namespace)
    rules.agent_type = room.text(qualified(config.agent_type, namespace))
    rules.action_type = room.text(qualified("Action", namespace))
    rules.tool_type = room.text(qualified("Tool", namespace))
    rules.endpoint_type = room.text(qualified("Endpoint", namespace))
    rules.server_type = room.text(qualified("Server", namespace))
    rules.destination_type = room.text(qualified("Destination", namespace))
    compile_tools(rules, config, room)
    compile_places(rules, config, room)
    rules.route_count = <uint32_t> len(config.routes)
    rules.routes = <RouteRule *> room.take(rules.route_count * sizeof(RouteRule))
    for i, route in enumerate(config.routes):
        compile_route(&rules.routes[i], route, namespace, room)
    for key in config.context_extensions:
        rules.extensions |= EXTENSIONS[key]
    rules.grpc_by_content_type = config.grpc_by_content_type
    rules.mcp.versions = take_texts(config.header_only_versions, room)
    rules.mcp.version_count = <uint32_t> len(config.header_only_versions)
    return rules


# ---------------------------------------------------------------- lookups


cdef inline uint32_t default_port(Text scheme) noexcept nogil:
    if text_is(scheme, b"https"):
        return 443
    return 80 if text_is(scheme, b"http") else 0


cdef bint host_fits(const HostRule *rule, Text host, uint32_t port, Text scheme) noexcept nogil:
    cdef uint32_t tail
    if rule.port and rule.port != (port if port else default_port(scheme)):
        return False
    if rule.kind == HOST_ANY:
        return True
    if rule.kind == HOST_EXACT:
        return text_equal(rule.text, host)
    if host.n <= rule.text.n:
        return False
    tail = host.n - rule.text.n
    return memcmp(host.p + tail, rule.text.p, rule.text.n) == 0


cdef const ToolRule *find_tool(const MappingRules *rules, Text name) noexcept nogil:
    cdef uint32_t low = 0, middle
    cdef uint32_t high = rules.tool_count
    cdef int order
    while low < high:
        middle = low + (high - low) // 2
        order = text_compare(rules.tools[middle].name, name)
        if order == 0:
            return &rules.tools[middle]
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return NULL
