"""Cells as Python objects (Cedar JSON entity format: values, `__entity`, `__extn`)."""
from fastpath.image cimport NODE_PARENT, NODE_PRESENT, List, Node
from fastpath.rows cimport Table, list_rows, node_attrs, node_uid, table_node
from fastpath.table cimport Generation, table_resolve
from fastpath.value cimport (
    KIND_BOOL, KIND_DATETIME, KIND_DECIMAL, KIND_DURATION, KIND_ENTITY, KIND_IP, KIND_LONG, KIND_RECORD, KIND_SET,
    KIND_STRING, Arena, Cell, Field, Ip, Uid, cell_at, uid_id, uid_make, uid_type,
)

from libc.stdint cimport int64_t, uint8_t, uint32_t

from fastpath.errors import RuleTableError

import datetime
import ipaddress

cdef enum:
    DECIMAL_ONE = 10_000
    UID_ROOM = 64            # bytes of a Uid beside its text, with what aligning it takes

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


cdef object uid_plain(const Uid *uid):
    if uid is NULL:
        return None
    return {"type": uid_type(uid)[:uid.type_len].decode(), "id": uid_id(uid)[:uid.id_len].decode("utf-8", "replace")}


cdef object record_plain(const Cell *c):
    cdef const Field *fields = <const Field *> cell_at(c)
    cdef uint32_t i
    out = {}
    for i in range(c.n):
        out[(<const char *> cell_at(&fields[i].key))[:fields[i].key.n].decode()] = cell_plain(&fields[i].value)
    return out


cdef object set_plain(const Cell *c):
    cdef const Cell *members = <const Cell *> cell_at(c)
    cdef uint32_t i
    return [cell_plain(members + i) for i in range(c.n)]


cdef object ip_plain(const Ip *ip):
    address = ipaddress.IPv6Address(ip.addr[:16]) if ip.v6 else ipaddress.IPv4Address(ip.addr[12:16])
    full = 128 if ip.v6 else 32
    return f"{address}" if ip.prefix == full else f"{address}/{ip.prefix}"


cdef object datetime_plain(int64_t ms):
    try:
        return (EPOCH + datetime.timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except OverflowError:
        return f"{ms}ms since 1970-01-01"


cdef object decimal_plain(int64_t v):
    sign = "-" if v < 0 else ""
    whole, part = divmod(abs(int(v)), DECIMAL_ONE)
    return f"{sign}{whole}.{part:04}"


cdef object extension_plain(str function, object text):
    return {"__extn": {"fn": function, "arg": text}}


cdef object cell_plain(const Cell *c):
    """Recursion is bounded by VALUE_DEPTH_MAX."""
    if c.kind == KIND_BOOL:
        return c.v != 0
    if c.kind == KIND_LONG:
        return c.v
    if c.kind == KIND_STRING:
        return (<const char *> cell_at(c))[:c.n].decode("utf-8", "replace")
    if c.kind == KIND_ENTITY:
        return {"__entity": uid_plain(<const Uid *> cell_at(c))}
    if c.kind == KIND_SET:
        return set_plain(c)
    if c.kind == KIND_RECORD:
        return record_plain(c)
    if c.kind == KIND_DECIMAL:
        return extension_plain("decimal", decimal_plain(c.v))
    if c.kind == KIND_IP:
        return extension_plain("ip", ip_plain(<const Ip *> cell_at(c)))
    if c.kind == KIND_DATETIME:
        return extension_plain("datetime", datetime_plain(c.v))
    if c.kind == KIND_DURATION:
        return extension_plain("duration", f"{c.v}ms")
    return None


cdef class _Named:
    """A uid by its type and id, resolved against a generation's table; it lives as long as this object."""
    cdef bytearray room
    cdef Uid *uid

    def __cinit__(self, Generation generation not None, str type_, str id_):
        cdef bytes kind = type_.encode()
        cdef bytes name = id_.encode()
        cdef Arena arena
        if generation.table.header is NULL:
            raise RuleTableError("the generation is closed")
        self.room = bytearray(UID_ROOM + len(kind) + len(name))
        arena.base, arena.cap, arena.used, arena.failed = <uint8_t *> <char *> self.room, len(self.room), 0, 0
        self.uid = uid_make(&arena, kind, <uint32_t> len(kind), name, <uint32_t> len(name))
        if self.uid is NULL:
            raise MemoryError
        table_resolve(&generation.table, self.uid)


def attributes_of(Generation generation not None, str type_, str id_):
    """The entity's attributes as calls see them, with a delta; None when the store does not have it."""
    cdef _Named named = _Named(generation, type_, id_)
    cdef const Table *t = &generation.table
    cdef const Node *node = table_node(t, named.uid.index)
    if node is NULL or not node.flags & NODE_PRESENT:
        return None
    return cell_plain(node_attrs(t, named.uid.index))


cdef void add_ids(set found, const Table *t, const List *rows, bytes type_):
    cdef const uint32_t *row = list_rows(t, rows)
    cdef const Uid *uid
    cdef uint32_t i
    for i in range(rows.n):
        uid = node_uid(t, row[i])
        if uid_type(uid)[:uid.type_len] == type_:
            found.add(uid_id(uid)[:uid.id_len].decode("utf-8", "replace"))


def groups_of(Generation generation not None, str type_, str id_, str group_type):
    """Ids of all that the entity is in, by whatever way, as calls see it, of one type; in order."""
    cdef _Named named = _Named(generation, type_, id_)
    cdef const Table *t = &generation.table
    cdef const Node *node = table_node(t, named.uid.index)
    cdef const uint32_t *parents
    cdef bytes kind = group_type.encode()
    cdef set found = set()
    cdef uint32_t i
    if node is NULL:
        return []
    if node.flags & NODE_PARENT:
        add_ids(found, t, &node.closure, kind)
        return sorted(found)
    add_ids(found, t, &node.parents, kind)
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n):
        add_ids(found, t, &table_node(t, parents[i]).closure, kind)
    return sorted(found)
