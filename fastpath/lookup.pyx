"""What a base holds, by name, for whoever edits it. Not for the way of a call."""
from fastpath.image cimport NODE_PRESENT, Span
from fastpath.rows cimport Table, span_text, table_node, table_note
from fastpath.table cimport Generation, table_find
from fastpath.value cimport Arena, Uid, text_compare, uid_make
from fastpath.wire cimport Text
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from fastpath.errors import RuleTableError

cdef enum:
    UID_ROOM = 64            # bytes of a Uid beside its text, with what aligning it takes


cdef const Table *base_of(Generation generation) except NULL:
    if generation.table.header is NULL:
        raise RuleTableError("the generation is closed")
    if generation.table.delta is not NULL:
        raise RuleTableError("a base is looked at, not what lies over it")
    return &generation.table


def value_of(Generation generation, bytes key):
    """What the LMDB file of a generation holds under `key`, copied; None when there is nothing."""
    base_of(generation)
    if generation._file is None:
        return None
    found = generation._file.txn.get(key)
    return None if found is None else bytes(found)


def template_of(Generation generation, str policy_id):
    """The template that a policy was made from: "" for one that is no link, None when there is none of the id."""
    cdef const Table *t = base_of(generation)
    cdef bytes wanted = policy_id.encode()
    cdef const char *raw = wanted
    cdef uint32_t n = <uint32_t> len(wanted)
    cdef uint32_t low = 0
    cdef uint32_t high = t.header.totals.policy_rows
    cdef uint32_t middle
    cdef int order
    cdef Text id_
    while low < high:
        middle = low + (high - low) // 2
        id_ = span_text(t, &t.policies[middle].id)
        order = text_compare(id_.p, id_.n, raw, n)
        if order == 0:
            return text_of(t, &table_note(t, &t.policies[middle]).template)
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return None


cdef str text_of(const Table *t, const Span *span):
    cdef Text text = span_text(t, span)
    return text.p[:text.n].decode()


def links_of(Generation generation, str template, uint32_t most):
    """Ids of at most `most` links of a template, the smallest ones in order. Looks at every policy."""
    cdef const Table *t = base_of(generation)
    cdef bytes wanted = template.encode()
    cdef const char *raw = wanted
    cdef uint32_t n = <uint32_t> len(wanted)
    cdef uint32_t i
    cdef Text name
    found = []
    for i in range(t.header.totals.policy_rows):
        if len(found) == most:
            break
        name = span_text(t, &table_note(t, &t.policies[i]).template)
        if name.n == n and text_compare(name.p, name.n, raw, n) == 0:
            found.append(text_of(t, &t.policies[i].id))
    return found


def has_entity(Generation generation, str type_, str id_):
    """Whether the store has the entity, not only names it."""
    cdef const Table *t = base_of(generation)
    cdef bytes kind = type_.encode()
    cdef bytes name = id_.encode()
    cdef Arena arena
    cdef Uid *uid
    cdef uint32_t row
    arena.used, arena.failed = 0, 0
    arena.cap = UID_ROOM + len(kind) + len(name)
    arena.base = <uint8_t *> malloc(arena.cap)
    if arena.base is NULL:
        raise MemoryError
    try:
        uid = uid_make(&arena, kind, <uint32_t> len(kind), name, <uint32_t> len(name))
        if uid is NULL:
            raise MemoryError
        row = table_find(t, uid)
    finally:
        free(arena.base)
    node = table_node(t, row)
    return node is not NULL and bool(node.flags & NODE_PRESENT)
