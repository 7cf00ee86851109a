"""The scope of a task: built from what the authority store holds, asked per call."""
cimport cython

from fastpath.columns cimport COL_CALL_DATA_LABELS, COL_CALL_DATA_LEVEL, COL_DEST
from fastpath.extension cimport ip_in_range, ip_parse
from fastpath.image cimport Node
from fastpath.json_tree cimport same_folded
from fastpath.rows cimport table_node
from fastpath.table cimport node_is_in, table_find
from fastpath.value cimport (
    KIND_BOOL,
    KIND_ENTITY,
    KIND_IP,
    KIND_LONG,
    KIND_RECORD,
    KIND_SET,
    KIND_STRING,
    UID_UNKNOWN,
    Cell,
    Field,
    cell_at,
    record_get,
    uid_equal,
    uid_hash,
    uid_id,
)
from fastpath.wire cimport text_equal
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp

from fastpath.errors import ProtocolError

ARG_OPS = {
    "eq": ARG_EQ, "in": ARG_IN, "range": ARG_RANGE, "prefix": ARG_PREFIX, "host_suffix": ARG_HOST_SUFFIX,
    "cidr": ARG_CIDR,
}

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *a, const char *b, size_t n)


# ---------------------------------------------------------------- names


cdef inline bint starts_with(Text text, const char *p, uint32_t n) noexcept nogil:
    return text.n >= n and memcmp(text.p, p, n) == 0


cdef bint tool_named(Text name, Text id_) noexcept nogil:
    """`server/*` names everything of a server, and nothing of another whose name begins alike."""
    if name.n >= 2 and name.p[name.n - 1] == c'*' and name.p[name.n - 2] == c'/':
        return id_.n > name.n - 1 and starts_with(id_, name.p, name.n - 1)
    return text_equal(name, id_)


cdef bint host_below(Text host, Text suffix) noexcept nogil:
    """Whether `host` is `suffix` or a name below it; letters of both cases are one (RFC 4343)."""
    if host.n < suffix.n or suffix.n == 0:
        return False
    if strncasecmp(host.p + host.n - suffix.n, suffix.p, suffix.n):
        return False
    return host.n == suffix.n or host.p[host.n - suffix.n - 1] == c'.'


cdef bint destination_named(Text name, Text id_) noexcept nogil:
    cdef Text suffix
    if name.n > 2 and name.p[0] == c'*' and name.p[1] == c'.':
        suffix.p, suffix.n = name.p + 2, name.n - 2
        return id_.n > suffix.n and host_below(id_, suffix)
    return text_equal(name, id_)


cdef bint listed(const Names *names, Text text) noexcept nogil:
    cdef uint32_t i
    for i in range(names.count):
        if text_equal(names.items[i], text):
            return True
    return False


cdef bint row_in_any(const Uids *groups, uint32_t row, const Table *t) noexcept nogil:
    """Whether the table says that the uid of this row is one of the groups or in one."""
    cdef const Node *node = table_node(t, row)
    cdef uint32_t group
    cdef uint32_t i
    if node == NULL:
        return False
    for i in range(groups.count):
        if groups.items[i].index == row:
            return True
    for i in range(groups.count):
        group = groups.items[i].index
        if group != <uint32_t> UID_UNKNOWN and node_is_in(t, node, group):
            return True
    return False


cdef bint uid_in_any(const Uids *groups, const Uid *uid, const Table *t) noexcept nogil:
    """The same of a uid that the table may not know: it is then in nothing, and equals what is written alike."""
    cdef uint32_t i
    if uid.index != <uint32_t> UID_UNKNOWN:
        return row_in_any(groups, uid.index, t)
    for i in range(groups.count):
        if uid_equal(groups.items[i], uid):
            return True
    return False


# ---------------------------------------------------------------- arguments


cdef bint has_variant(const Cell *record, const char *name, uint32_t n) noexcept nogil:
    """Whether a member is named so but for the case of letters: a server that ignores case may read that one."""
    cdef const Field *fields = <const Field *> cell_at(record)
    cdef Text wanted, key
    cdef uint32_t i
    wanted.p, wanted.n = name, n
    for i in range(record.n):
        key.p, key.n = <const char *> cell_at(&fields[i].key), fields[i].key.n
        if same_folded(key, wanted) and not text_equal(key, wanted):
            return True
    return False


cdef const Cell *argument(const Request *request, Text path) noexcept nogil:
    """The one value under the dotted path of context.input; NULL when there is none, or which one is open."""
    cdef const Cell *at = record_get(&request.extras, b"input", 5)
    cdef const char *p = path.p
    cdef const char *end = path.p + path.n
    cdef const char *dot
    cdef uint32_t n
    while at != NULL and at.kind == KIND_RECORD:
        dot = <const char *> memchr(p, c'.', end - p)
        n = <uint32_t> ((dot if dot != NULL else end) - p)
        if has_variant(at, p, n):
            return NULL
        at = record_get(at, p, n)
        if dot == NULL:
            return at
        p = dot + 1
    return NULL


cdef Text nowhere() noexcept nogil:
    cdef Text none
    none.p, none.n = NULL, 0
    return none


cdef inline bint is_letter(char c) noexcept nogil:
    return c'a' <= c <= c'z' or c'A' <= c <= c'Z'


cdef inline bint is_digit(char c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef bint is_doubtful(Text url) noexcept nogil:
    """Whether some byte is one that some reader strips or unfolds, or takes for the end of the host."""
    cdef uint32_t i
    for i in range(url.n):
        if (
            <unsigned char> url.p[i] <= 32 or url.p[i] == c'\\' or url.p[i] == c'@' or url.p[i] == c'%'
            or url.p[i] == 0x7F
        ):
            return True
    return False


cdef Text authority_of(Text url) noexcept nogil:
    """What stands between the scheme, if there is one, and path, query or fragment (RFC 3986 section 3)."""
    cdef Text rest = url
    cdef uint32_t i = 0
    while i < url.n and (
        is_letter(url.p[i]) or (i and (is_digit(url.p[i]) or url.p[i] == c'+' or url.p[i] == c'-' or url.p[i] == c'.'))
    ):
        i += 1
    if i and url.n - i >= 3 and memcmp(url.p + i, b"://", 3) == 0:
        rest.p, rest.n = url.p + i + 3, url.n - i - 3
    for i in range(rest.n):
        if rest.p[i] == c'/' or rest.p[i] == c'?' or rest.p[i] == c'#':
            rest.n = i
            break
    return rest


cdef bint is_name(Text host) noexcept nogil:
    """Labels of letters, digits, `-` and `_`, none of them empty: what a scope can name."""
    cdef uint32_t label = 0
    cdef uint32_t i
    for i in range(host.n):
        if host.p[i] == c'.':
            if label == 0:
                return False
            label = 0
        elif is_letter(host.p[i]) or is_digit(host.p[i]) or host.p[i] == c'-' or host.p[i] == c'_':
            label += 1
        else:
            return False
    return label > 0


cdef Text url_host(Text url) noexcept nogil:
    """The host of a URL, or of `host[:port]`; empty when it is no name, or a reader could take it for another one."""
    cdef Text host = authority_of(url)
    cdef uint32_t n
    if is_doubtful(url):
        return nowhere()
    n = host.n
    while n and is_digit(host.p[n - 1]):
        n -= 1
    if 0 < n < host.n and host.p[n - 1] == c':':
        host.n = n - 1
    if host.n and host.p[host.n - 1] == c'.':
        host.n -= 1
    return host if is_name(host) else nowhere()


cdef bint value_equals(const ArgValue *value, const Cell *cell, Text text) noexcept nogil:
    if value.kind == KIND_STRING:
        return cell.kind == KIND_STRING and text_equal(value.text, text)
    return cell.kind == value.kind and cell.v == value.number


cdef bint value_fits(const ArgRule *rule, const ArgValue *value, const Cell *cell) noexcept nogil:
    cdef Text text
    cdef Ip ip
    text.p, text.n = NULL, 0
    if cell.kind == KIND_STRING:
        # Text that a proxy altered equals nothing that a person wrote down.
        if cell.flags:
            return False
        text.p, text.n = <const char *> cell_at(cell), cell.n
    if rule.op == ARG_EQ or rule.op == ARG_IN:
        return value_equals(value, cell, text)
    if rule.op == ARG_CIDR:
        if cell.kind == KIND_IP:
            return ip_in_range(<const Ip *> cell_at(cell), &value.ip)
        # A range is no address, whatever it lies in.
        if text.n == 0 or memchr(text.p, c'/', text.n) != NULL:
            return False
        return ip_parse(text.p, text.n, &ip) == 0 and ip_in_range(&ip, &value.ip)
    if cell.kind != KIND_STRING:
        return False
    if rule.op == ARG_PREFIX:
        return starts_with(text, value.text.p, value.text.n)
    return host_below(url_host(text), value.text)


cdef bint cell_fits(const ArgRule *rule, const Cell *cell) noexcept nogil:
    """Whether the value is what the rule wants; of a set, whether every member is."""
    cdef const Cell *members
    cdef uint32_t i
    if cell.kind == KIND_SET:
        members = <const Cell *> cell_at(cell)
        for i in range(cell.n):
            if members[i].kind == KIND_SET or not cell_fits(rule, members + i):
                return False
        return cell.n > 0
    if rule.op == ARG_RANGE:
        return cell.kind == KIND_LONG and rule.values[0].number <= cell.v <= rule.values[1].number
    for i in range(rule.count):
        if value_fits(rule, &rule.values[i], cell):
            return True
    return False


cdef bint arguments_fit(const Scope *scope, const Request *request, Text id_) noexcept nogil:
    cdef const Cell *cell
    cdef uint32_t i
    for i in range(scope.rule_count):
        if scope.rules[i].tool.n and not tool_named(scope.rules[i].tool, id_):
            continue
        cell = argument(request, scope.rules[i].path)
        if cell == NULL or not cell_fits(&scope.rules[i], cell):
            return False
    return True


# ---------------------------------------------------------------- the four axes


cdef bint covers_tool(const Scope *scope, const Request *request, const Table *t) noexcept nogil:
    cdef Text id_
    cdef uint32_t i
    cdef bint found = scope.tools.any
    id_.p, id_.n = uid_id(request.resource), request.resource.id_len
    for i in range(scope.tools.count):
        if found:
            break
        found = tool_named(scope.tools.items[i], id_)
    if not found:
        found = uid_in_any(&scope.tool_groups, request.resource, t)
    return found and arguments_fit(scope, request, id_)


cdef bint covers_action(const Scope *scope, const Request *request, const Table *t) noexcept nogil:
    if not scope.any_action and not uid_in_any(&scope.actions, request.action, t):
        return False
    return scope.methods.any or listed(&scope.methods, request.method)


cdef bint covers_dest(const Scope *scope, const Request *request, const Table *t, uint32_t row) noexcept nogil:
    cdef const Cell *cell = request.columns + <int> COL_DEST
    cdef const Uid *dest
    cdef Text id_
    cdef uint32_t i
    if scope.destinations.any:
        return True
    if cell.kind != KIND_ENTITY:
        return False
    dest = <const Uid *> cell_at(cell)
    id_.p, id_.n = uid_id(dest), dest.id_len
    for i in range(scope.destinations.count):
        if destination_named(scope.destinations.items[i], id_):
            return True
    return row_in_any(&scope.zones, row, t)


cdef bint covers_data(const Scope *scope, const Request *request) noexcept nogil:
    cdef const Cell *level = request.columns + <int> COL_CALL_DATA_LEVEL
    cdef const Cell *labels = request.columns + <int> COL_CALL_DATA_LABELS
    cdef const Cell *label
    cdef Text text
    cdef uint32_t i
    if level.kind != KIND_LONG or level.v > scope.max_level or labels.kind != KIND_SET:
        return False
    for i in range(labels.n):
        label = <const Cell *> cell_at(labels) + i
        if label.kind != KIND_STRING:
            return False
        text.p, text.n = <const char *> cell_at(label), label.n
        if listed(&scope.labels_denied, text):
            return False
        if not scope.labels_allowed.any and not listed(&scope.labels_allowed, text):
            return False
    return True


cdef void resolve_uids(Uids *uids, const Table *t) noexcept nogil:
    cdef uint32_t i
    for i in range(uids.count):
        uids.items[i].index = table_find(t, uids.items[i])


cdef void resolve(Scope *scope, const Table *t) noexcept nogil:
    """Find the rows of the scope's uids once per table: they are the same for every call."""
    if scope.table == t.serial:
        return
    resolve_uids(&scope.tool_groups, t)
    resolve_uids(&scope.actions, t)
    resolve_uids(&scope.zones, t)
    scope.table = t.serial


cdef void scope_narrow(
    Scope *scope, const Request *request, const Table *t, uint32_t dest, Covers *out
) noexcept nogil:
    resolve(scope, t)
    out.tool &= covers_tool(scope, request, t)
    out.action &= covers_action(scope, request, t)
    out.dest &= covers_dest(scope, request, t, dest)
    out.data &= covers_data(scope, request)


# ---------------------------------------------------------------- building one


@cython.no_gc
cdef class ScopeRow:

    def __cinit__(self, written, str namespace):
        """`written`: a mapping as fastpath.authority.Live documents it. ProtocolError names what is wrong in it."""
        cdef dict scope = written if type(written) is dict else dict(written)
        self._building = []
        prefix = f"{namespace}::" if namespace else ""
        self._names(&self.scope.tools, scope.get("tools", ()), scope.get("any_tool", False))
        self._uids(&self.scope.tool_groups, scope.get("tool_groups", ()), prefix, "ToolGroup")
        self._uids(&self.scope.actions, scope.get("actions", ()), prefix, "Action")
        self.scope.any_action = scope.get("any_action", False)
        self._names(&self.scope.methods, scope.get("methods") or (), scope.get("methods") is None)
        self._names(&self.scope.destinations, scope.get("destinations", ()), scope.get("any_dest", False))
        self._uids(&self.scope.zones, scope.get("zones", ()), prefix, "Zone")
        self.scope.max_level = scope.get("max_level", 0)
        allowed = scope.get("label_allow")
        self._names(&self.scope.labels_allowed, allowed or (), allowed is None)
        self._names(&self.scope.labels_denied, scope.get("label_deny", ()), False)
        rules = scope.get("arg_rules") or ()
        if rules:
            self.scope.rules = <ArgRule *> self._take(len(rules) * sizeof(ArgRule))
        for rule in rules:
            self._rule(&self.scope.rules[self.scope.rule_count], rule)
            self.scope.rule_count += 1
        self._kept, self._building = tuple(self._building), None

    def __dealloc__(self):
        cdef Block *block = self._blocks
        cdef Block *next_
        while block != NULL:
            next_ = block.next
            free(block)
            block = next_

    cdef void *_take(self, size_t n) except NULL:
        """Zeroed memory that goes with the row."""
        cdef Block *made = <Block *> calloc(1, sizeof(Block) + n)
        if made == NULL:
            raise MemoryError
        made.next = self._blocks
        self._blocks = made
        return made + 1

    cdef Text _text(self, str text):
        cdef Py_ssize_t n
        cdef Text made
        made.p = PyUnicode_AsUTF8AndSize(text, &n)
        made.n = <uint32_t> n
        self._building.append(text)
        return made

    cdef int _names(self, Names *out, object names, bint any_) except -1:
        out.any = any_
        if not names:
            return 0
        out.items = <Text *> self._take(len(names) * sizeof(Text))
        for name in names:
            out.items[out.count] = self._text(name)
            out.count += 1
        return 0

    cdef int _uids(self, Uids *out, object names, str prefix, str type_) except -1:
        cdef bytes head, id_
        cdef bytearray room
        cdef Uid *uid
        if not names:
            return 0
        head = f"{prefix}{type_}".encode()
        out.items = <Uid **> self._take(len(names) * sizeof(Uid *))
        for name in names:
            id_ = name.encode()
            room = bytearray(sizeof(Uid)) + head + id_
            self._building.append(room)
            uid = <Uid *> <char *> room
            uid.hash = uid_hash(<const char *> uid + sizeof(Uid), <uint32_t> len(head), <uint32_t> len(id_))
            uid.index = uid.type_index = UID_UNKNOWN
            uid.type_len, uid.id_len = <uint32_t> len(head), <uint32_t> len(id_)
            out.items[out.count] = uid
            out.count += 1
        return 0

    cdef int _rule(self, ArgRule *out, object rule) except -1:
        if rule["op"] not in ARG_OPS:
            raise ProtocolError(f"arg_rules: `op`: `{rule['op']}` is not one of {', '.join(ARG_OPS)}")
        out.op = ARG_OPS[rule["op"]]
        out.tool = self._text(rule.get("tool", ""))
        out.path = self._text(rule["path"])
        values = rule["values"]
        if not values or (out.op == ARG_RANGE and (len(values) != 2 or not all(type(v) is int for v in values))):
            raise ProtocolError(
                f"arg_rules: `values` of `{rule['path']}`: give at least one; a range takes two integers"
            )
        out.values = <ArgValue *> self._take(len(values) * sizeof(ArgValue))
        for value in values:
            self._value(&out.values[out.count], value, out.op)
            out.count += 1
        return 0

    cdef int _value(self, ArgValue *out, object value, int op) except -1:
        if type(value) is bool:
            out.kind, out.number = KIND_BOOL, value
        elif type(value) is int:
            out.kind, out.number = KIND_LONG, value
        elif type(value) is str:
            out.kind, out.text = KIND_STRING, self._text(value)
        else:
            raise ProtocolError(f"arg_rules: `values`: {value!r} is neither text, integer nor boolean")
        if op in (ARG_PREFIX, ARG_HOST_SUFFIX, ARG_CIDR) and out.kind != KIND_STRING:
            raise ProtocolError(f"arg_rules: `values`: {value!r} is not text")
        if op == ARG_CIDR:
            out.kind = KIND_IP
            if ip_parse(out.text.p, out.text.n, &out.ip):
                raise ProtocolError(f"arg_rules: `values`: `{value}` is not an address range")
        return 0
