"""Checks of flat memory from outside: every offset inside, every value in the form that evaluation relies on."""
from fastpath.image cimport Type
from fastpath.rows cimport node_uid, table_at, table_node, table_type
from fastpath.value cimport (
    CELL_SANITISED,
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
    VALUE_DEPTH_MAX,
    Field,
    Ip,
    Uid,
    cell_at,
    cell_compare,
    uid_equal,
    uid_hash,
    uid_type,
)
from fastpath.wire cimport utf8_valid
from libc.string cimport memcmp


cdef inline bint refuse(View *view, const char *cause) noexcept nogil:
    view.cause = cause
    return False


cdef bint view_has(View *view, uint64_t off, uint64_t n, uint32_t width, uint32_t align) noexcept nogil:
    if off % align:
        return refuse(view, b"offset is not aligned")
    if off > view.size or n > (view.size - off) // width:
        return refuse(view, b"offset or count points outside")
    return True


cdef bint view_reaches(View *view, uint32_t at, uint64_t n, uint32_t width) noexcept nogil:
    cdef const Table *t = view.table
    cdef uint64_t off = 8 * <uint64_t> at
    cdef uint64_t size = t.header.size
    if at >= t.base_at:
        off = 8 * <uint64_t> (at - t.base_at)
        size = t.delta.size if t.delta is not NULL else 0
    if off > size or n > (size - off) // width:
        return refuse(view, b"offset or count points outside")
    return True


cdef bint view_text(View *view, const Span *span) noexcept nogil:
    if not view_reaches(view, span.at, span.n, 1):
        return False
    if not utf8_valid(<const char *> table_at(view.table, span.at), span.n):
        return refuse(view, b"text is not UTF-8")
    return True


# ---------------------------------------------------------------- uids


cdef bint uid_sound(View *view, const Uid *uid) noexcept nogil:
    """Whether a uid that is inside, with its text, carries its hash and names a node and its own type."""
    cdef const Type *type_
    cdef const Table *t = view.table
    if uid.hash != uid_hash(uid_type(uid), uid.type_len, uid.id_len):
        return refuse(view, b"hash of a uid is wrong")
    if t is NULL:
        if uid.index != UID_UNKNOWN or uid.type_index != UID_UNKNOWN:
            return refuse(view, b"uid is resolved")
        return True
    if uid.index >= t.totals.node_count:
        return refuse(view, b"uid names another node")
    if uid.type_index >= t.totals.type_count:
        return refuse(view, b"uid names no type")
    type_ = table_type(t, uid.type_index)
    if type_.name.n != uid.type_len or not view_reaches(view, type_.name.at, type_.name.n, 1):
        return refuse(view, b"uid names another type")
    if memcmp(table_at(t, type_.name.at), uid_type(uid), uid.type_len):
        return refuse(view, b"uid names another type")
    return True


cdef bint view_node_uid(View *view, uint32_t index) noexcept nogil:
    cdef uint32_t at = table_node(view.table, index).uid
    cdef const Uid *uid
    if not view_reaches(view, at, 1, sizeof(Uid)):
        return False
    uid = <const Uid *> table_at(view.table, at)
    if not view_reaches(view, at + sizeof(Uid) // 8, <uint64_t> uid.type_len + uid.id_len, 1):
        return False
    if uid.index != index:
        return refuse(view, b"uid names another node")
    return uid_sound(view, uid)


cdef bint view_uid(View *view, uint64_t off) noexcept nogil:
    """INVARIANT (trusted index): a uid inside an image names its own node, so evaluation needs no lookup for it."""
    cdef const Uid *uid
    if not view_has(view, off, 1, sizeof(Uid), 8):
        return False
    uid = <const Uid *> (view.base + off)
    if not view_has(view, off + sizeof(Uid), <uint64_t> uid.type_len + uid.id_len, 1, 1) or not uid_sound(view, uid):
        return False
    if view.table is NULL or node_uid(view.table, uid.index) is uid:
        return True
    # The node's own uid is checked by itself; here it only has to be there and the same.
    if not view_node_uid(view, uid.index) or not uid_equal(uid, node_uid(view.table, uid.index)):
        return refuse(view, b"uid names another node")
    return True


# ---------------------------------------------------------------- cells


cdef bint view_ip(View *view, uint64_t off) noexcept nogil:
    cdef const Ip *ip
    cdef int i
    if not view_has(view, off, 1, sizeof(Ip), 8):
        return False
    ip = <const Ip *> (view.base + off)
    if ip.v6 > 1 or ip.prefix > (128 if ip.v6 else 32):
        return refuse(view, b"ip has an impossible prefix")
    if not ip.v6:
        for i in range(12):
            if ip.addr[i]:
                return refuse(view, b"ip of version 4 has more than four bytes")
    return True


cdef bint view_set(View *view, const Cell *cells, uint32_t n, uint32_t depth) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if not view_cell(view, cells + i, depth + 1):
            return False
        if i and cell_compare(cells + i - 1, cells + i) >= 0:
            return refuse(view, b"set is not in order")
    return True


cdef bint view_record(View *view, const Field *fields, uint32_t n, uint32_t depth) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if fields[i].key.kind != KIND_STRING or fields[i].key.flags:
            return refuse(view, b"key of a record is not plain text")
        if not view_cell(view, &fields[i].key, depth + 1) or not view_cell(view, &fields[i].value, depth + 1):
            return False
        if i and cell_compare(&fields[i - 1].key, &fields[i].key) >= 0:
            return refuse(view, b"record is not in order")
    return True


cdef bint view_cell(View *view, const Cell *cell, uint32_t depth) noexcept nogil:
    # Offsets wrap in unsigned arithmetic: a target before the view becomes one far behind it.
    cdef uint64_t off = <uint64_t> (<const uint8_t *> cell - view.base) + <uint64_t> cell.v
    if view.budget == 0 or depth > VALUE_DEPTH_MAX:
        return refuse(view, b"value is too large or too deep")
    view.budget -= 1
    if cell.flags and (view.table is not NULL or cell.kind != KIND_STRING or cell.flags != CELL_SANITISED):
        return refuse(view, b"value has an impossible flag")
    if cell.kind == KIND_STRING:
        return view_has(view, off, cell.n, 1, 1)
    if cell.kind == KIND_BOOL:
        return cell.v == 0 or cell.v == 1 or refuse(view, b"bool is neither true nor false")
    if cell.kind in (KIND_LONG, KIND_DECIMAL, KIND_DATETIME, KIND_DURATION):
        return True
    if cell.kind == KIND_ENTITY:
        return view_uid(view, off)
    if cell.kind == KIND_IP:
        return view_ip(view, off)
    if cell.kind == KIND_SET:
        return view_has(view, off, cell.n, sizeof(Cell), 8) and view_set(view, <Cell *> cell_at(cell), cell.n, depth)
    if cell.kind == KIND_RECORD:
        return view_has(view, off, cell.n, sizeof(Field), 8) and view_record(
            view, <Field *> cell_at(cell), cell.n, depth
        )
    return refuse(view, b"value is of an unknown kind")
