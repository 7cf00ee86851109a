"""The live-state columns: their paths in the context, kinds and absent values (facts: Cedar vocabulary 2.2)."""
from fastpath.value cimport (
    KIND_ABSENT,
    KIND_SET,
    UID_UNKNOWN,
    Cell,
    Uid,
    cell_bool,
    cell_entity,
    cell_long,
    cell_string,
    uid_hash,
)
from fastpath.value cimport text_compare
from fastpath.wire cimport Text
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

# path, kind, absent value. `None` means that the attribute itself is absent.
COLUMNS = (
    ("dest", "entity", ("Destination", "unknown")),
    ("task.present", "bool", False),
    ("task.id", "string", ""),
    ("task.state", "string", "none"),
    ("task.purpose", "string", ""),
    ("task.covers_tool", "bool", False),
    ("task.covers_action", "bool", False),
    ("task.covers_dest", "bool", False),
    ("task.covers_data", "bool", False),
    ("task.max_level", "long", 0),
    ("task.ttl_s", "long", 0),
    ("task.calls_left", "long", 0),
    ("task.cost_left", "long", 0),
    ("task.depth", "long", 0),
    ("task.max_depth", "long", 0),
    ("task.attenuated", "bool", False),
    ("task.owner", "entity", None),
    ("session.id", "string", ""),
    ("session.age_s", "long", 0),
    ("session.level_seen", "long", 0),
    ("session.labels_seen", "set", ()),
    ("session.untrusted_seen", "bool", False),
    ("session.untrusted_calls_ago", "long", -1),
    ("session.private_seen", "bool", False),
    ("session.two_of_three", "long", 0),
    ("session.suspicious", "bool", False),
    ("behavior.calls_1m", "long", 0),
    ("behavior.calls_1h", "long", 0),
    ("behavior.rate_x100", "long", 0),
    ("behavior.denials_5m", "long", 0),
    ("behavior.denials_row", "long", 0),
    ("behavior.new_tool", "bool", False),
    ("behavior.new_dest", "bool", False),
    ("behavior.new_pair", "bool", False),
    ("behavior.tools_1h", "long", 0),
    ("behavior.dests_1h", "long", 0),
    ("behavior.agents_1h", "long", 0),
    ("behavior.bytes_out_1h", "long", 0),
    ("behavior.cost_1h", "long", 0),
    ("behavior.drift", "long", 0),
    ("behavior.peers_10m", "long", 0),
    ("behavior.overlap", "bool", False),
    ("delegation.depth", "long", 0),
    ("delegation.origin", "string", "agent"),
    ("delegation.chain_ok", "bool", False),
    ("delegation.on_behalf", "bool", False),
    ("approval.state", "string", "none"),
    ("approval.matches", "bool", False),
    ("approval.self_approved", "bool", False),
    ("approval.age_s", "long", 0),
    ("approval.break_glass", "bool", False),
    ("risk.agent", "long", 0),
    ("risk.user", "long", 0),
    ("risk.source_age_s", "long", -1),
    ("cred.kind", "string", "none"),
    ("cred.age_s", "long", 0),
    ("cred.ttl_s", "long", 0),
    ("cred.bound", "bool", False),
    ("call.protocol", "string", ""),
    ("call.method", "string", ""),
    ("call.data_level", "long", 0),
    ("call.data_labels", "set", ()),
    ("call.bytes", "long", -1),
    ("call.header_mismatch", "bool", False),
    ("call.body_complete", "bool", False),
)

# The first path segment of every column: names that a request's own context cannot use.
RESERVED = frozenset(path.split(".")[0] for path, _, _ in COLUMNS)

if len(COLUMNS) != COLUMN_COUNT:
    raise ImportError("columns.pyx and columns.pxd disagree")

# INVARIANT (static columns): text and uid behind absent values live for the life of the process.
cdef Cell absent[COLUMN_COUNT]
cdef uint8_t pointing[COLUMN_COUNT]  # the columns whose absent cell points to something
cdef int pointing_count = 0
cdef ColumnGroup groups[GROUP_MAX]
cdef uint32_t group_count = 0
cdef list _keep = []


cdef int _absent_fill() except -1:
    global pointing_count
    cdef Uid *uid
    cdef bytearray room
    cdef bytes text
    for i, (_, kind, value) in enumerate(COLUMNS):
        memset(&absent[i], 0, sizeof(Cell))
        if value is None:
            absent[i].kind = KIND_ABSENT
        elif kind == "bool":
            cell_bool(&absent[i], value)
        elif kind == "long":
            cell_long(&absent[i], value)
        elif kind == "string":
            text = value.encode()
            _keep.append(text)
            cell_string(&absent[i], <const char *> text, len(text))
        elif kind == "set":
            absent[i].kind = KIND_SET
        else:
            type_, id_ = value[0].encode(), value[1].encode()
            room = bytearray(sizeof(Uid) + len(type_) + len(id_))
            _keep.append(room)
            room[sizeof(Uid):] = type_ + id_
            uid = <Uid *> <char *> room
            uid.hash = uid_hash(<const char *> uid + sizeof(Uid), len(type_), len(id_))
            uid.index = uid.type_index = UID_UNKNOWN
            uid.type_len, uid.id_len = len(type_), len(id_)
            cell_entity(&absent[i], uid)
        if kind in ("string", "entity") and value is not None:
            pointing[pointing_count] = i
            pointing_count += 1
    return 0


cdef Text _static_text(str text):
    cdef bytes data = text.encode()
    cdef Text kept
    _keep.append(data)
    kept.p = data
    kept.n = <uint32_t> len(data)
    return kept


cdef int _groups_fill() except -1:
    """Order both levels by bytes once, so that records built from columns need no sorting per call."""
    global group_count
    cdef ColumnGroup *group
    for name in sorted(RESERVED):
        paths = [(row[0].partition("."), i) for i, row in enumerate(COLUMNS)]
        members = sorted((path[2] or path[0], i) for path, i in paths if path[0] == name)
        if group_count == GROUP_MAX or len(members) > GROUP_MAX:
            raise ImportError("columns.pxd: GROUP_MAX is too small")
        group = &groups[group_count]
        group.name = _static_text(name)
        group.whole = members[0][0] == name
        group.count = <uint32_t> len(members)
        for at, (key, column) in enumerate(members):
            group.members[at].key = _static_text(key)
            group.members[at].column = column
        group_count += 1
    return 0


cdef const ColumnGroup *column_groups(uint32_t *count) noexcept nogil:
    count[0] = group_count
    return groups


cdef const ColumnGroup *column_group(const char *name, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(group_count):
        if text_compare(groups[i].name.p, groups[i].name.n, name, n) == 0:
            return &groups[i]
    return NULL


cdef void columns_absent(Cell *columns) noexcept nogil:
    cdef int i
    cdef int64_t shift = <const char *> absent - <const char *> columns
    memcpy(columns, absent, sizeof(absent))
    # Text and uids are found relative to the cell, so a moved cell needs its offset moved as well.
    for i in range(pointing_count):
        columns[pointing[i]].v += shift


_absent_fill()
_groups_fill()
