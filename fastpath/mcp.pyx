"""What an MCP call is: headers, metadata and body read, compared and looked up in one table of methods."""
from fastpath.c.openssl cimport EVP_DecodeBlock
from fastpath.envoy cimport HeaderLine, envoy_decode, header_lines
from fastpath.json_tree cimport (
    JSON_DEEP, JSON_DUPLICATE, JSON_ROOM, TREE_ARRAY, TREE_INTEGER, TREE_OBJECT, TREE_STRING, json_get,
    json_has_variant, json_parse, json_text,
)
from fastpath.request cimport INPUT_BODY, INPUT_HEADERS, INPUT_METADATA
from fastpath.value cimport arena_take
from fastpath.wire cimport text_equal, text_is, text_of, utf8_valid

from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memset

cdef enum:
    NAME_BYTES_MAX = 512         # of a tool, prompt or task; a uri may have URI_BYTES_MAX
    URI_BYTES_MAX = 2048
    ID_BYTES_MAX = 256           # a longer JSON-RPC id is refused: it is echoed in denials
    ROWS = 20

cdef struct Row:
    const char *method
    const char *action           # class action; NULL: the tool's own
    int target                   # McpTarget

# Requests and notifications from client to server. What is not listed is refused. An update of a paused task is client
# input into a call that was decided earlier; until that call is known it is taken for the worst.
cdef Row[ROWS] METHODS = [
    Row(b"initialize", b"list", MCP_SERVER),
    Row(b"server/discover", b"list", MCP_SERVER),
    Row(b"ping", b"list", MCP_SERVER),
    Row(b"tools/list", b"list", MCP_SERVER),
    Row(b"resources/list", b"list", MCP_SERVER),
    Row(b"resources/templates/list", b"list", MCP_SERVER),
    Row(b"prompts/list", b"list", MCP_SERVER),
    Row(b"tools/call", NULL, MCP_TOOL),
    Row(b"resources/read", b"read", MCP_URI),
    Row(b"resources/subscribe", b"read", MCP_URI),
    Row(b"resources/unsubscribe", b"read", MCP_URI),
    Row(b"subscriptions/listen", b"read", MCP_SERVER),
    Row(b"prompts/get", b"read", MCP_PROMPT),
    Row(b"completion/complete", b"read", MCP_REFERENCE),
    Row(b"logging/setLevel", b"admin", MCP_SERVER),
    Row(b"tasks/get", b"read", MCP_TASK),
    Row(b"tasks/result", b"read", MCP_TASK),
    Row(b"tasks/list", b"read", MCP_SERVER),
    Row(b"tasks/update", b"execute", MCP_TASK),
    Row(b"tasks/cancel", b"write", MCP_TASK),
]
cdef Row NOTIFICATION = Row(b"notifications/", b"list", MCP_SERVER)

cdef const char *ENVELOPE_NAMES[4]
ENVELOPE_NAMES[:] = [b"jsonrpc", b"id", b"method", b"params"]
cdef const char *PARAMS_NAMES[6]
PARAMS_NAMES[:] = [b"name", b"uri", b"taskId", b"ref", b"arguments", b"_meta"]
cdef const char *REFERENCE_NAMES[3]
REFERENCE_NAMES[:] = [b"type", b"name", b"uri"]

cdef struct Said:                # what one source says of the call
    Text method
    Text name


cdef inline Text nothing() noexcept nogil:
    cdef Text t
    t.p, t.n = NULL, 0
    return t


cdef inline void refuse(McpCall *out, const char *reason) noexcept nogil:
    if out.refusal.n == 0:
        out.refusal = text_of(reason)


cdef inline bint starts_with(Text t, const char *prefix) noexcept nogil:
    cdef Text wanted = text_of(prefix)
    return t.n >= wanted.n and memcmp(t.p, wanted.p, wanted.n) == 0


cdef const Row *find_row(Text method) noexcept nogil:
    cdef int i
    for i in range(ROWS):
        if text_is(method, METHODS[i].method):
            return &METHODS[i]
    return &NOTIFICATION if starts_with(method, b"notifications/") else NULL


cdef bint mcp_is_method(Text method) noexcept nogil:
    return find_row(method) is not NULL


# ---------------------------------------------------------------- headers


cdef int header_found(const HttpCall *call, Text name, Text *value) noexcept nogil:
    cdef HeaderLine line
    cdef uint32_t n = header_lines(call, name, &line)
    if n == 0:
        return 0
    # The map form joins the lines of a name by commas, so a comma may hide a second value.
    if n > 1 or line.sanitised or (line.joined and memchr(line.value.p, c',', line.value.n) is not NULL):
        return -1
    value[0] = line.value
    return 1


cdef bint is_base64(Text t) noexcept nogil:
    """Whole groups of four, padding only at the end (RFC 4648 section 4)."""
    cdef uint32_t i
    cdef uint32_t body = t.n
    if t.n == 0 or t.n % 4:
        return False
    while body > t.n - 2 and t.p[body - 1] == c'=':
        body -= 1
    for i in range(body):
        if t.p[i] == 0 or memchr(
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", t.p[i], 64
        ) is NULL:
            return False
    return True


cdef bint decode_name(Text *name, Arena *arena) noexcept nogil:
    """Decode `=?base64?..?=` (MCP 2026-07-28, header values); false when it is not that and not plain either."""
    cdef Text coded = name[0]
    cdef unsigned char *room
    cdef int n
    if not starts_with(coded, b"=?base64?"):
        return True
    if coded.n < 11 or coded.p[coded.n - 2] != c'?' or coded.p[coded.n - 1] != c'=':
        return False
    coded.p += 9
    coded.n -= 11
    room = <unsigned char *> arena_take(arena, coded.n + 3)
    if room is NULL or not is_base64(coded):
        return False
    n = EVP_DecodeBlock(room, <const unsigned char *> coded.p, <int> coded.n)
    if n < 0:
        return False
    n -= (coded.p[coded.n - 1] == c'=') + (coded.p[coded.n - 2] == c'=')
    name.p, name.n = <const char *> room, <uint32_t> n
    return utf8_valid(name.p, name.n)


cdef void read_headers(const HttpCall *call, Arena *arena, McpCall *out, Said *said) noexcept nogil:
    if header_single(call, b"mcp-method", &said.method) < 0:
        refuse(out, b"request.ambiguous.mcp-method")
    if header_single(call, b"mcp-name", &said.name) < 0:
        refuse(out, b"request.ambiguous.mcp-name")
    if not decode_name(&said.name, arena):
        refuse(out, b"mcp.name.invalid")


cdef bint headers_suffice(const HttpCall *call, const McpTrust *trust, McpCall *out) noexcept nogil:
    cdef Text version
    cdef uint32_t i
    if not trust.headers_alone:
        return False
    if header_single(call, b"mcp-protocol-version", &version) < 0:
        refuse(out, b"request.ambiguous.mcp-protocol-version")
        return False
    for i in range(trust.version_count):
        if text_equal(version, trust.versions[i]):
            return True
    return False


# ---------------------------------------------------------------- body


cdef inline char lower(char c) noexcept nogil:
    return c + 32 if c'A' <= c <= c'Z' else c


cdef bint same_caseless(Text t, const char *lowered) noexcept nogil:
    cdef Text wanted = text_of(lowered)
    cdef uint32_t i
    if t.n != wanted.n:
        return False
    for i in range(t.n):
        if lower(t.p[i]) != wanted.p[i]:
            return False
    return True


cdef inline Text trimmed(const char *p, size_t n) noexcept nogil:
    cdef Text t
    while n and (p[0] == c' ' or p[0] == c'\t'):
        p += 1
        n -= 1
    while n and (p[n - 1] == c' ' or p[n - 1] == c'\t'):
        n -= 1
    t.p, t.n = p, <uint32_t> n
    return t


cdef bint names_other_charset(Text parameters) noexcept nogil:
    cdef const char *end
    cdef Text one
    while parameters.n:
        end = <const char *> memchr(parameters.p, c';', parameters.n)
        one = trimmed(parameters.p, parameters.n if end is NULL else end - parameters.p)
        if one.n >= 7 and same_caseless(Text(one.p, 7), b"charset"):
            if not (same_caseless(one, b"charset=utf-8") or same_caseless(one, b'charset="utf-8"')):
                return True
        if end is NULL:
            break
        parameters.n -= <uint32_t> (end + 1 - parameters.p)
        parameters.p = end + 1
    return False


cdef bint is_json_utf8(Text content_type) noexcept nogil:
    """application/json, alone or with a charset that is UTF-8: another one would give the server another text."""
    cdef const char *mark = <const char *> memchr(content_type.p, c';', content_type.n) if content_type.n else NULL
    cdef Text kind = content_type
    cdef Text parameter
    if mark is NULL:
        return same_caseless(trimmed(kind.p, kind.n), b"application/json")
    kind = trimmed(content_type.p, mark - content_type.p)
    parameter = trimmed(mark + 1, content_type.p + content_type.n - mark - 1)
    if not same_caseless(kind, b"application/json"):
        return False
    return same_caseless(parameter, b"charset=utf-8") or same_caseless(parameter, b'charset="utf-8"')


cdef const char *framing_problem(const HttpCall *call) noexcept nogil:
    """Why the bytes of the body may not be what the server reads."""
    cdef Text value
    cdef int n = header_single(call, b"content-encoding", &value)
    if n < 0 or (n and not same_caseless(value, b"identity")):
        return b"body.encoding"
    n = header_single(call, b"content-type", &value)
    if n < 0:
        return b"request.ambiguous.content-type"
    if n and is_json_utf8(value):
        return NULL
    return b"mcp.content_type"


cdef const char *parse_problem(int error) noexcept nogil:
    if error == JSON_DUPLICATE:
        return b"mcp.body.duplicate_key"
    if error == JSON_DEEP:
        return b"mcp.body.depth"
    return b"mcp.body.too_large" if error == JSON_ROOM else b"mcp.body.malformed"


cdef const char *read_id(const Json *message, Arena *arena, McpCall *out) noexcept nogil:
    """Keep the id as JSON text; JSON-RPC in MCP allows a string or an integer, never null."""
    cdef const Json *id_ = json_get(message, b"id")
    if id_ is NULL:
        return NULL
    if id_.kind != TREE_STRING and id_.kind != TREE_INTEGER:
        return b"mcp.body.malformed"
    if id_.kind == TREE_STRING and id_.text.n > ID_BYTES_MAX:
        return b"mcp.id.too_long"
    out.id = json_text(id_, arena)
    return NULL


cdef bint has_variants(const Json *object, const char **names, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        if json_has_variant(object, text_of(names[i])):
            return True
    return False


cdef const char *variant_problem(const Json *message) noexcept nogil:
    """Names that a server which ignores case would read in place of those that we read."""
    cdef const Json *params = json_get(message, b"params")
    if has_variants(message, ENVELOPE_NAMES, 4) or has_variants(params, PARAMS_NAMES, 6) or has_variants(
        json_get(params, b"ref"), REFERENCE_NAMES, 3
    ):
        return b"mcp.body.ambiguous_key"
    return NULL


cdef const char *envelope_problem(const Json *message, Arena *arena, McpCall *out, Said *said) noexcept nogil:
    """JSON-RPC 2.0 sections 4 and 5: a request or a notification, and nothing else."""
    cdef const Json *version = json_get(message, b"jsonrpc")
    cdef const Json *method = json_get(message, b"method")
    cdef const char *problem
    if message.kind == TREE_ARRAY:
        return b"mcp.batch"
    problem = variant_problem(message)
    if problem is NULL:
        problem = read_id(message, arena, out)
    if problem is not NULL:
        return problem
    if version is NULL or version.kind != TREE_STRING or not text_is(version.text, b"2.0"):
        return b"mcp.body.malformed"
    if method is NULL:
        # Answers of the client to the server's own requests (sampling, elicitation) carry input into a paused call.
        return b"mcp.response"
    out.params = json_get(message, b"params")
    if method.kind != TREE_STRING or (out.params is not NULL and out.params.kind != TREE_OBJECT):
        return b"mcp.body.malformed"
    said.method = method.text
    if starts_with(said.method, b"notifications/") and out.id.n:
        return b"mcp.notification.id"
    return NULL


cdef const char *read_body(const HttpCall *call, Arena *arena, McpCall *out, Said *said) noexcept nogil:
    cdef const char *problem = framing_problem(call)
    cdef size_t used
    cdef int error
    cdef int failed = arena.failed
    cdef Json *message = <Json *> arena_take(arena, sizeof(Json))
    if problem is not NULL or message is NULL:
        return problem
    used = arena.used
    error = json_parse(call.body.p, call.body.n, arena, message)
    if error:
        # A body too large for the arena is the caller's doing: a denial, not our failure.
        arena.used = used
        arena.failed = failed
        return parse_problem(error)
    problem = envelope_problem(message, arena, out, said)
    out.body_read = problem is NULL
    return problem


# ---------------------------------------------------------------- what it means


cdef const char *text_of_member(const Json *object, const char *key, Text *out) noexcept nogil:
    """The string under `key`; empty when there is none."""
    cdef const Json *member = json_get(object, key)
    out[0] = nothing()
    if member is NULL:
        return NULL
    if member.kind != TREE_STRING:
        return b"mcp.name.invalid"
    out[0] = member.text
    return NULL


cdef const char *read_reference(const Json *params, int *target, Text *out) noexcept nogil:
    """params.ref of completion/complete: {"type": "ref/prompt", "name"} or {"type": "ref/resource", "uri"}."""
    cdef const Json *ref = json_get(params, b"ref")
    cdef Text type_
    cdef const char *problem = text_of_member(ref, b"type", &type_)
    if problem is NULL and text_is(type_, b"ref/prompt"):
        target[0] = MCP_PROMPT
        return text_of_member(ref, b"name", out)
    if problem is NULL and text_is(type_, b"ref/resource"):
        target[0] = MCP_URI
        return text_of_member(ref, b"uri", out)
    return b"mcp.name.invalid"


cdef const char *read_subject(const Json *params, int *target, Text *out) noexcept nogil:
    """What the body's method acts on, by its target."""
    if target[0] == MCP_TOOL or target[0] == MCP_PROMPT:
        return text_of_member(params, b"name", out)
    if target[0] == MCP_URI:
        return text_of_member(params, b"uri", out)
    if target[0] == MCP_TASK:
        return text_of_member(params, b"taskId", out)
    if target[0] == MCP_REFERENCE:
        return read_reference(params, target, out)
    out[0] = nothing()
    return NULL


cdef const char *subject_problem(int target, Text name) noexcept nogil:
    """Why the subject cannot name an entity."""
    cdef uint32_t i
    if target == MCP_SERVER:
        return NULL
    if name.n == 0:
        return b"mcp.name.missing"
    if name.n > <uint32_t> (URI_BYTES_MAX if target == MCP_URI else NAME_BYTES_MAX):
        return b"mcp.name.invalid"
    for i in range(name.n):
        # No URI holds a space (RFC 3986 section 2), and readers that strip one would see another URI.
        if <unsigned char> name.p[i] < 0x20 + (target == MCP_URI) or name.p[i] == 0x7F:
            return b"mcp.name.invalid"
    return NULL


cdef inline bint disagree(Text a, Text b) noexcept nogil:
    """Both say something, and not the same."""
    return a.n != 0 and b.n != 0 and not text_equal(a, b)


cdef void compare(McpCall *out, const Said *a, const Said *b) noexcept nogil:
    # A name for a method that has none is a difference too: another reader may act on it.
    if disagree(a.method, b.method) or disagree(a.name, b.name) or (a.name.n and out.target == MCP_SERVER):
        out.header_mismatch = 1
        refuse(out, b"mcp.header_mismatch")


cdef bint same_version(const HttpCall *call, const Json *params) noexcept nogil:
    """The protocol version of the header and of `params._meta` (2026-07-28) are one when both are there."""
    cdef Text header, stated
    if header_single(call, b"mcp-protocol-version", &header) < 0:
        return False
    text_of_member(json_get(params, b"_meta"), b"io.modelcontextprotocol/protocolVersion", &stated)
    return not disagree(header, stated)


cdef void settle(McpCall *out, const Said *chosen) noexcept nogil:
    """Look the method up and take over what `chosen` says."""
    cdef const Row *row = find_row(chosen.method)
    cdef const char *problem = NULL
    cdef int target
    out.method = chosen.method
    if row is NULL:
        refuse(out, b"mcp.method.unknown")
        return
    target = row.target
    out.name = chosen.name
    if out.body_read:
        problem = read_subject(out.params, &target, &out.name)
    elif target == MCP_REFERENCE:
        problem = b"input.missing.body"      # a header cannot tell a prompt's name from a resource's uri
    if row.action is not NULL:
        out.action = text_of(row.action)
    out.target = <uint8_t> target
    if problem is NULL:
        problem = subject_problem(target, out.name)
    if problem is not NULL:
        refuse(out, problem)


cdef void read_post(const HttpCall *call, const McpTrust *trust, Arena *arena, McpCall *out) noexcept nogil:
    cdef Said header, metadata, body
    cdef const char *problem = NULL
    memset(&header, 0, sizeof(Said))
    memset(&body, 0, sizeof(Said))
    metadata.method, metadata.name = call.mcp_method, call.mcp_name
    read_headers(call, arena, out, &header)
    if call.body_present and call.body_complete:
        problem = read_body(call, arena, out, &body)
    if problem is not NULL:
        refuse(out, problem)
        return
    if out.body_read:
        out.input_mode = INPUT_BODY
        settle(out, &body)
        body.name = out.name
        if not same_version(call, out.params):
            out.header_mismatch = 1
            refuse(out, b"mcp.header_mismatch")
    elif call.mcp_metadata and metadata.method.n:
        out.input_mode = INPUT_METADATA
        settle(out, &metadata)
    elif header.method.n and headers_suffice(call, trust, out):
        out.input_mode = INPUT_HEADERS
        settle(out, &header)
    else:
        refuse(out, b"input.missing.body")
        return
    compare(out, &header, &body if out.body_read else &metadata)
    if out.body_read and call.mcp_metadata:
        compare(out, &metadata, &body)


cdef void read_bodiless(const HttpCall *call, const char *action, McpCall *out) noexcept nogil:
    cdef Text stated
    out.input_mode = INPUT_HEADERS
    out.target = MCP_SERVER
    out.action = text_of(action)
    out.method = call.method
    if call.body_present or header_single(call, b"mcp-method", &stated) != 0:
        refuse(out, b"mcp.method.unknown")


cdef void mcp_read(const HttpCall *call, const McpTrust *trust, Arena *arena, McpCall *out) noexcept nogil:
    memset(out, 0, sizeof(McpCall))
    if text_is(call.method, b"POST"):
        read_post(call, trust, arena, out)
    elif text_is(call.method, b"GET"):
        read_bodiless(call, b"list", out)
    elif text_is(call.method, b"DELETE"):
        read_bodiless(call, b"write", out)
    else:
        refuse(out, b"mcp.method.unknown")


# ---------------------------------------------------------------- Python face


cdef object _str(Text t):
    return t.p[:t.n].decode() if t.n else ""


def read(bytes check_request, *, bint headers_alone=False, versions=("2026-07-28",), size_t arena_bytes=1 << 22):
    cdef Arena arena = Arena(<uint8_t *> malloc(arena_bytes), 0, arena_bytes, 0)
    cdef HttpCall call
    cdef McpCall out
    cdef McpTrust trust
    cdef Text version
    cdef list kept = [v.encode() for v in versions]
    if arena.base is NULL:
        raise MemoryError(f"no room for an arena of {arena_bytes} bytes")
    try:
        if envoy_decode(check_request, len(check_request), &arena, &call):
            raise ValueError("not a CheckRequest")
        trust.headers_alone = headers_alone
        trust.version_count = <uint32_t> len(kept)
        trust.versions = <const Text *> arena_take(&arena, len(kept) * sizeof(Text))
        for i, one in enumerate(kept):
            version.p, version.n = <bytes> one, len(one)
            (<Text *> trust.versions)[i] = version
        mcp_read(&call, &trust, &arena, &out)
        return {
            "refusal": _str(out.refusal), "action": _str(out.action), "target": McpTarget(out.target),
            "input_mode": int(out.input_mode), "body_read": bool(out.body_read),
            "header_mismatch": bool(out.header_mismatch), "method": _str(out.method), "name": _str(out.name),
            "id": _str(out.id), "arena_failed": bool(arena.failed),
        }
    finally:
        free(arena.base)
