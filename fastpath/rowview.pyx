"""What a base holds, by number and by name: for those who edit it or write a delta over it, not for calls."""
from fastpath.image cimport FILED_NODES, NODE_PARENT, NODE_PRESENT, Entries, Header, List, Node, Span
from fastpath.rows cimport (
    Table,
    base_type,
    list_rows,
    node_list,
    node_uid,
    span_text,
    table_base,
    table_node,
    table_note,
)
from fastpath.table cimport Generation, table_find, table_find_type
from fastpath.value cimport UID_UNKNOWN, Arena, Uid, text_compare, uid_id, uid_make, uid_type
from fastpath.wire cimport Text
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastpath.errors import RuleTableError

cdef enum:
    UID_ROOM = 64            # bytes of a Uid beside its text, with what aligning it takes


cdef class Rows:
    """The base of a generation, whatever lies over it. Holds the generation; RuleTableError once that is closed."""
    cdef Generation generation
    cdef Table table

    def __cinit__(self, Generation generation not None):
        if generation.table.header is NULL:
            raise RuleTableError("the generation is closed")
        self.generation = generation
        table_base(&self.table, generation.table.image)

    cdef const Table *_table(self) except NULL:
        if self.generation.table.header is NULL:
            raise RuleTableError("the generation is closed")
        return &self.table

    @property
    def totals(self):
        """(nodes, types, policy rows, entities, stack_max, columns_read)"""
        cdef const Header *h = self._table().header
        columns = h.totals.columns_read[0] | <object> h.totals.columns_read[1] << 64
        return (
            h.totals.node_count, h.totals.type_count, h.totals.policy_rows, h.totals.entity_count, h.totals.stack_max,
            columns,
        )

    @property
    def sections(self):
        """(size, flags, code words, notes)"""
        cdef const Header *h = self._table().header
        return h.size, h.flags, h.code_words, h.note_count

    @property
    def extras(self):
        return self._text(&self._table().header.totals.extras_read)

    def node_of(self, str type_, str id_):
        """Index of a uid's node, or None."""
        cdef uint32_t index = self._find(type_, id_)
        return None if index == <uint32_t> UID_UNKNOWN else index

    def has_entity(self, str type_, str id_):
        """Whether the store has the entity, not only names it."""
        cdef const Node *node = table_node(self._table(), self._find(type_, id_))
        return node is not NULL and bool(node.flags & NODE_PRESENT)

    cdef uint32_t _find(self, str type_, str id_) except? 0xFFFFFFFE:
        cdef const Table *t = self._table()
        cdef bytes kind = type_.encode()
        cdef bytes name = id_.encode()
        cdef Arena arena
        cdef Uid *uid
        cdef uint32_t index = UID_UNKNOWN
        arena.used, arena.failed = 0, 0
        arena.cap = UID_ROOM + len(kind) + len(name)
        arena.base = <uint8_t *> malloc(arena.cap)
        if arena.base is NULL:
            raise MemoryError
        uid = uid_make(&arena, kind, <uint32_t> len(kind), name, <uint32_t> len(name))
        if uid is not NULL:
            index = table_find(t, uid)
        free(arena.base)
        return index

    def type_of(self, str name):
        """Index of a type, or None."""
        cdef bytes raw = name.encode()
        cdef uint32_t index = table_find_type(self._table(), raw, <uint32_t> len(raw))
        return None if index == <uint32_t> UID_UNKNOWN else index

    def uid(self, uint32_t index):
        """((type, id), the type's index) of a node."""
        cdef const Uid *uid = node_uid(self._table(), self._node(index))
        return (
            (uid_type(uid)[:uid.type_len].decode(), uid_id(uid)[:uid.id_len].decode()),
            uid.type_index,
        )

    def policy_of(self, str id_):
        """(how many policies have a smaller id, whether there is one of this id)"""
        cdef const Table *t = self._table()
        cdef bytes raw = id_.encode()
        cdef const char *wanted = raw
        cdef uint32_t n = <uint32_t> len(raw)
        cdef uint32_t low = 0
        cdef uint32_t high = t.header.totals.policy_rows
        cdef uint32_t middle
        cdef int order
        cdef Text found
        while low < high:
            middle = low + (high - low) // 2
            found = span_text(t, &t.policies[middle].id)
            order = text_compare(found.p, found.n, wanted, n)
            if order == 0:
                return middle, True
            if order < 0:
                low = middle + 1
            else:
                high = middle
        return low, False

    def template_of(self, str policy_id):
        """The template that a policy was made from: "" for one that is no link, None when there is none of the id."""
        cdef const Table *t = self._table()
        row, there = self.policy_of(policy_id)
        return self._text(&table_note(t, &t.policies[<uint32_t> row]).template) if there else None

    def links_of(self, str template, uint32_t most):
        """Ids of at most `most` links of a template, the smallest ones in order. Looks at every policy."""
        cdef const Table *t = self._table()
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
                found.append(self._text(&t.policies[i].id))
        return found

    def value_of(self, bytes key):
        """What the LMDB file of the base holds under `key`, copied; None when there is nothing."""
        self._table()
        if self.generation._file is None:
            return None
        found = self.generation._file.txn.get(key)
        return None if found is None else bytes(found)

    def node(self, uint32_t index):
        """(flags, parents, closure) of a node."""
        cdef const Node *node = self._table().nodes + self._node(index)
        return node.flags, self._list(&node.parents), self._list(&node.closure) if node.flags & NODE_PARENT else []

    def filed(self, uint32_t index, int under):
        """How many policies are filed under a node (FiledUnder, image.pxd)."""
        cdef const Node *node = self._table().nodes + self._node(index)
        cdef const Entries *found
        if not 0 <= under < <int> FILED_NODES:
            raise ValueError(f"no list of a node has the number {under}")
        found = node_list(&self.table, node, under)
        return 0 if found is NULL else found.n

    def filed_by_type(self, uint32_t index):
        """How many policies are filed under a type as the principal's, and as the resource's."""
        if index >= self._table().header.totals.type_count:
            raise IndexError(f"there is no type {index}")
        return base_type(&self.table, index).principal_is.n, base_type(&self.table, index).resource_is.n

    def parents_below(self, set moved):
        """Parents that have some of the nodes `moved` among their ancestors. Looks at the ancestors of all parents."""
        cdef const Table *t = self._table()
        cdef const Header *h = t.header
        cdef const uint32_t *parents = list_rows(t, &h.parents)
        cdef const uint32_t *above
        cdef const List *closure
        cdef uint8_t *wanted = <uint8_t *> malloc(h.totals.node_count + 1)
        cdef uint32_t i, j
        if wanted is NULL:
            raise MemoryError
        memset(wanted, 0, h.totals.node_count + 1)
        for index in moved:
            if index < h.totals.node_count:
                wanted[<uint32_t> index] = 1
        found = []
        for i in range(h.parents.n):
            closure = &t.nodes[parents[i]].closure
            above = list_rows(t, closure)
            for j in range(closure.n):
                if wanted[above[j]]:
                    found.append(parents[i])
                    break
        free(wanted)
        return found

    cdef uint32_t _node(self, uint32_t index) except? 0xFFFFFFFF:
        if index >= self._table().header.totals.node_count:
            raise IndexError(f"there is no node {index}")
        return index

    cdef str _text(self, const Span *span):
        cdef Text text = span_text(&self.table, span)
        return text.p[:text.n].decode()

    cdef list _list(self, const List *list_):
        cdef const uint32_t *rows = list_rows(&self.table, list_)
        cdef uint32_t i
        return [rows[i] for i in range(list_.n)]
