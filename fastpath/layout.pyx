"""See layout.pxd."""
from cpython cimport array
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memchr, memcpy, memmove, memset

from fastpath.filing cimport Rule, Rules
from fastpath.image cimport (
    FILED_ACTION_IN,
    FILED_ANY,
    FILED_NODES,
    FILED_PRINCIPAL_IN,
    FILED_RESOURCE_IN,
    GUARD_ROWS,
    GUARD_SHIFT,
    NODE_ABOVE,
    NODE_DEEP,
    NODE_INHERITS,
    NODE_LIST,
    NODE_LISTS,
    NODE_PARENT,
    NODE_PRESENT,
    NODE_ROOM,
    NODE_UNDER_PRINCIPAL_IN,
    NODE_UNDER_RESOURCE_IN,
    NONE32,
    Entries,
    Entry,
    List,
    Node,
    Policy,
    Slot,
)
from fastpath.names cimport Names
from fastpath.rows cimport under_flag
from fastpath.value cimport Uid, uid_hash

from fastpath.names import inverse

cdef enum:
    UNIT = 8                 # bytes that one step of an `at` stands for
    INHERITED_MAX = NODE_ROOM // 8


cdef inline uint64_t padded(uint64_t size) noexcept nogil:
    return (size + UNIT - 1) & ~<uint64_t> (UNIT - 1)


cdef int by_number(const void *a, const void *b) noexcept nogil:
    cdef uint32_t x = (<const uint32_t *> a)[0]
    cdef uint32_t y = (<const uint32_t *> b)[0]
    return (x > y) - (x < y)


cdef int within(uint64_t size, uint64_t at, uint64_t wanted) except -1:
    if at > size or wanted > size - at:
        raise IndexError(at)
    return 0


cdef inline const uint32_t *words(array.array numbers) noexcept:
    return <const uint32_t *> numbers.data.as_uints


cdef class _Sources:
    def __init__(self, array.array rows not None, array.array attrs not None, array.array tags not None,
                 array.array parent_starts not None, array.array parents not None, array.array values not None,
                 array.array closure_rows not None, array.array closure_starts not None, array.array closures not None):
        self.rows, self.attrs, self.tags = rows, attrs, tags
        self.parent_starts, self.parents = parent_starts, parents
        self.values = values
        self.closure_rows, self.closure_starts, self.closures = closure_rows, closure_starts, closures


cdef inline bint fits(uint64_t key_size) noexcept nogil:
    """Whether the Uid of a key (with its NUL) stands in its node's row."""
    return key_size - 1 <= NODE_ROOM - sizeof(Uid)


cdef inline uint32_t type_length(const char *key, uint64_t size) except? 0xFFFFFFFF:
    cdef const void *nul = memchr(key, 0, size)
    if nul is NULL:
        raise ValueError("a uid without its type")
    return <uint32_t> (<const char *> nul - key)


def add_types(Names uids not None, Names types not None):
    cdef uint64_t size = 0
    cdef uint32_t number
    cdef const char *key
    for number in range(uids.count):
        key = uids.at(number, &size)
        types.put(key, type_length(key, size))


cdef class Layout:

    def __init__(self, Names uids not None, Names types not None, Rules rules not None):
        self.uids, self.types, self.rules = uids, types, rules
        self.order = uids.order()
        self.ranks = inverse(self.order)
        self.type_order = types.order()
        self.type_ranks = inverse(self.type_order)
        self.lists = Names()
        self.uid_at = <uint64_t *> malloc(sizeof(uint64_t) * (<uint64_t> uids.count + 1))
        self.up = <uint8_t *> calloc(<uint64_t> uids.count + 1, 1)
        if self.uid_at is NULL or self.up is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.uid_at)
        free(self.up)
        free(self.scratch)

    def place(self, uint64_t nodes):
        cdef uint64_t size = 0
        cdef uint64_t long_bytes = 0
        cdef uint32_t rank
        for rank in range(self.uids.count):
            self.uids.at(words(self.order)[rank], &size)
            self.uid_at[rank] = nodes + sizeof(Node) * <uint64_t> rank + (sizeof(Node) - NODE_ROOM)
            if not fits(size):
                self.uid_at[rank] = 0
                long_bytes += sizeof(Uid) + padded(size - 1)
        return long_bytes

    def put_long_uids(self, uint8_t[::1] out not None, uint64_t at):
        self._long_uids(&out[0], len(out), at)

    def uid_offset(self, uint32_t rank):
        if rank >= self.uids.count:
            raise IndexError(rank)
        return self.uid_at[rank]

    def nodes(self, uint8_t[::1] out not None, uint64_t at, uint64_t lists_at, entities, values, closures):
        cdef uint32_t rank
        within(len(out), at, sizeof(Node) * <uint64_t> self.uids.count)
        self.lists_at = lists_at
        cdef _Sources sources = _Sources(*entities, values, *closures)
        self._ups(sources)
        for rank in range(self.uids.count):
            self._uid(&out[0], rank)
            self._node(&out[0], at + sizeof(Node) * <uint64_t> rank, rank, sources)

    def entries(self, array.array policies not None):
        cdef uint32_t n = <uint32_t> len(policies)
        cdef uint32_t i
        for i in range(n):
            within(self.rules.count, policies.data.as_uints[i], 1)
        return (<const char *> self._entries(policies.data.as_uints, n))[:sizeof(Entry) * <uint64_t> n]

    def lists_bytes(self):
        return self.lists.text_used

    def put_lists(self, uint8_t[::1] out not None, uint64_t at):
        within(len(out), at, self.lists.text_used)
        if at != self.lists_at:
            raise IndexError(at)
        if self.lists.text_used:
            memcpy(&out[at], self.lists.text, self.lists.text_used)

    def ids_bytes(self):
        cdef uint64_t size = 0
        cdef uint64_t total = 0
        cdef uint32_t rank
        for rank in range(self.rules.count):
            self.rules.ids.at(self.rules.rows[self.rules.ranked[rank]].id, &size)
            total += padded(size)
        return total

    def policies(self, uint8_t[::1] out not None, uint64_t at, uint64_t ids_at, array.array actions not None):
        cdef uint64_t size = 0
        cdef uint32_t rank
        cdef const char *id_
        within(len(out), at, sizeof(Policy) * <uint64_t> self.rules.count)
        for rank in range(self.rules.count):
            id_ = self.rules.ids.at(self.rules.rows[self.rules.ranked[rank]].id, &size)
            within(len(out), ids_at, padded(size))
            memcpy(&out[0] + ids_at, id_, size)
            self._policy(<Policy *> (&out[0] + at + sizeof(Policy) * <uint64_t> rank), rank, actions)
            (<Policy *> (&out[0] + at + sizeof(Policy) * <uint64_t> rank)).id.at = <uint32_t> (ids_at // UNIT)
            (<Policy *> (&out[0] + at + sizeof(Policy) * <uint64_t> rank)).id.n = <uint32_t> size
            ids_at += padded(size)

    def uid_slots(self, uint8_t[::1] out not None, uint64_t at, uint32_t count):
        cdef Slot *slots
        cdef uint64_t hash_
        cdef uint32_t rank, slot
        within(len(out), at, sizeof(Slot) * <uint64_t> count)
        if count & (count - 1) or count < 2 * <uint64_t> self.uids.count:
            raise IndexError(count)
        slots = <Slot *> (&out[0] + at)
        for slot in range(count):
            slots[slot].tag, slots[slot].row = 0, NONE32
        for rank in range(self.uids.count):
            hash_ = (<const Uid *> (&out[0] + self.uid_at[rank])).hash
            slot = <uint32_t> hash_ & (count - 1)
            while slots[slot].row != NONE32:
                slot = (slot + 1) & (count - 1)
            slots[slot].tag, slots[slot].row = <uint32_t> (hash_ >> 32), rank

    # ------------------------------------------------------------ native

    cdef int _long_uids(self, uint8_t *out, uint64_t out_size, uint64_t at) except -1:
        cdef uint64_t size = 0
        cdef uint32_t rank
        for rank in range(self.uids.count):
            if self.uid_at[rank] == 0:
                self.uids.at(words(self.order)[rank], &size)
                within(out_size, at, sizeof(Uid) + padded(size - 1))
                self.uid_at[rank] = at
                at += sizeof(Uid) + padded(size - 1)
        return 0

    cdef int _uid(self, uint8_t *out, uint32_t rank) except -1:
        """Write a node's Uid with its text."""
        cdef uint64_t size = 0
        cdef const char *key = self.uids.at(words(self.order)[rank], &size)
        cdef uint32_t type_len = type_length(key, size)
        cdef Uid *uid = <Uid *> (out + self.uid_at[rank])
        cdef char *text = <char *> (uid + 1)
        memcpy(text, key, type_len)
        memcpy(text + type_len, key + type_len + 1, size - type_len - 1)
        uid.type_len, uid.id_len, uid.index = type_len, <uint32_t> (size - type_len - 1), rank
        uid.type_index = self._type(key, type_len)
        uid.hash = uid_hash(text, uid.type_len, uid.id_len)
        return 0

    cdef uint32_t _type(self, const char *name, uint32_t size) except? 0xFFFFFFFF:
        cdef uint32_t before = self.types.count
        cdef uint32_t number = self.types.put(name, size)
        if self.types.count != before:
            raise IndexError(number)
        return words(self.type_ranks)[number]

    cdef uint8_t _lists(self, uint32_t number) noexcept:
        """The flags of a uid's lists for what is in it."""
        cdef uint32_t n = 0
        cdef uint8_t found = 0
        cdef int key
        for key in range(FILED_PRINCIPAL_IN, FILED_ACTION_IN + 1, 2):
            self.rules.filed(key, number, &n)
            if n:
                found |= <uint8_t> under_flag(key)
        return found

    cdef int _ups(self, _Sources from_) except -1:
        cdef const uint32_t *starts = words(from_.closure_starts)
        cdef const uint32_t *closures = words(from_.closures)
        cdef uint32_t number, row, i
        for number in range(self.uids.count):
            self.up[number] = self._lists(number)
        # What an ancestor has by now of its own ancestors is above this one as well, so the order does not matter.
        for number in range(self.uids.count):
            row = words(from_.closure_rows)[number]
            if row == NONE32 or starts[row] == starts[row + 1]:
                continue
            self.up[number] |= NODE_DEEP
            for i in range(starts[row], starts[row + 1]):
                self.up[number] |= self.up[words(self.order)[closures[i]]]
        return 0

    cdef int _node(self, uint8_t *out, uint64_t at, uint32_t rank, _Sources from_) except -1:
        cdef Node *node = <Node *> (out + at)
        cdef uint32_t[INHERITED_MAX] inherited
        cdef uint32_t number = words(self.order)[rank]
        cdef uint32_t row = words(from_.rows)[number]
        cdef uint32_t closure = words(from_.closure_rows)[number]
        cdef uint32_t n = 0
        cdef uint32_t i
        cdef const uint32_t *members
        cdef Free free_
        free_.at, free_.end = at + sizeof(Node) - NODE_ROOM, at + sizeof(Node)
        if self.uid_at[rank] == free_.at:
            free_.at += sizeof(Uid) + padded((<Uid *> (out + free_.at)).type_len + (<Uid *> (out + free_.at)).id_len)
        node.uid = <uint32_t> (self.uid_at[rank] // UNIT)
        node.flags = 0
        if row != NONE32:
            node.flags |= NODE_PRESENT
            members = words(from_.parents) + words(from_.parent_starts)[row]
            n = words(from_.parent_starts)[row + 1] - words(from_.parent_starts)[row]
            for i in range(n):
                node.flags |= self.up[members[i]]
            members = self._ranked(members, n, &n)
            self._list(out, &node.parents, members, n, &free_)
        if closure != NONE32:
            node.flags |= NODE_PARENT
            members = words(from_.closures) + words(from_.closure_starts)[closure]
            n = words(from_.closure_starts)[closure + 1] - words(from_.closure_starts)[closure]
            self._list(out, &node.closure, members, n, &free_)
        n = self._inherit(node, row, from_, inherited) if closure == NONE32 and row != NONE32 else 0
        self._policies(out, node, number, inherited, n, &free_)
        node.attrs = words(from_.values)[0 if row == NONE32 else words(from_.attrs)[row]]
        node.tags = words(from_.values)[0 if row == NONE32 else words(from_.tags)[row]]
        return 0

    cdef int _policies(self, uint8_t *out, Node *node, uint32_t number, const uint32_t *inherited, uint32_t n,
                       Free *free_) except -1:
        """Write a node's lists of policies, the one of its ancestors' policies only when it fits the row."""
        cdef Entries[NODE_LISTS] lists
        cdef const uint32_t *members
        cdef uint32_t kept = n != 0
        cdef uint32_t count = 0
        cdef uint32_t k = 0
        cdef uint32_t key
        cdef uint64_t heads
        for key in range(FILED_NODES):
            self.rules.filed(key, number, &count)
            kept += count != 0
        # Where a call looks for one of several lists is to be in the row, whatever else is.
        heads = sizeof(Entries) * <uint64_t> kept if kept > 1 else 0
        if heads > free_.end - free_.at:
            heads = 0
        free_.end -= heads
        for key in range(FILED_NODES):
            members = self.rules.filed(key, number, &count)
            if count:
                node.flags |= <uint32_t> NODE_LIST << key
                lists[k].n = count
                lists[k].at = self._stand(out, self._entries(members, count), sizeof(Entry) * <uint64_t> count, free_)
                k += 1
        if n and sizeof(Entry) * n <= free_.end - free_.at:
            node.flags |= NODE_INHERITS
            lists[k].n = n
            lists[k].at = self._stand(out, self._entries(inherited, n), sizeof(Entry) * n, free_)
            k += 1
        free_.end += heads
        if k == 1:
            node.lists = lists[0]
        elif k:
            node.lists.n = k
            node.lists.at = self._stand(out, lists, sizeof(Entries) * k, free_)
        return 0

    cdef uint32_t _inherit(self, const Node *node, uint32_t row, _Sources from_, uint32_t *found) noexcept:
        """The policies of its ancestors for a node that is no parent, when they are of one kind; how many."""
        cdef uint32_t under = node.flags & <uint32_t> (NODE_ABOVE & ~NODE_DEEP)
        if under == NODE_UNDER_PRINCIPAL_IN:
            return self._inherited(FILED_PRINCIPAL_IN, row, from_, found)
        if under == NODE_UNDER_RESOURCE_IN:
            return self._inherited(FILED_RESOURCE_IN, row, from_, found)
        return 0

    cdef uint32_t _inherited(self, int kind, uint32_t row, _Sources from_, uint32_t *found) noexcept:
        """The policies of a kind under the ancestors of an entity, each once; 0 when there are too many."""
        cdef const uint32_t *starts = words(from_.parent_starts)
        cdef const uint32_t *above = words(from_.closure_starts)
        cdef uint32_t n = 0
        cdef uint32_t i, j, parent, closure
        for i in range(starts[row], starts[row + 1]):
            parent = words(from_.parents)[i]
            closure = words(from_.closure_rows)[parent]
            if not self._gather(kind, parent, found, &n):
                return 0
            for j in range(above[closure], above[closure + 1]):
                if not self._gather(kind, words(self.order)[words(from_.closures)[j]], found, &n):
                    return 0
        return n

    cdef bint _gather(self, int kind, uint32_t number, uint32_t *found, uint32_t *n) noexcept:
        """Add the policies under one uid to those found so far, which are ascending; false when there is no room."""
        cdef uint32_t count = 0
        cdef const uint32_t *members = self.rules.filed(kind, number, &count)
        cdef uint32_t i, at
        for i in range(count):
            at = 0
            while at < n[0] and found[at] < members[i]:
                at += 1
            if at < n[0] and found[at] == members[i]:
                continue
            if n[0] == INHERITED_MAX:
                return False
            memmove(found + at + 1, found + at, (n[0] - at) * sizeof(uint32_t))
            found[at] = members[i]
            n[0] += 1
        return True

    cdef int _scratch(self, uint64_t size) except -1:
        cdef void *grown
        if size > self.scratch_room or self.scratch is NULL:
            grown = realloc(self.scratch, size + 256)
            if grown is NULL:
                raise MemoryError
            self.scratch, self.scratch_room = grown, size + 256
        return 0

    cdef const uint32_t *_ranked(self, const uint32_t *numbers, uint32_t n, uint32_t *kept) except NULL:
        """Ranks of uids, ascending, each once."""
        cdef uint32_t *ranked
        cdef uint32_t found = 0
        cdef uint32_t i
        self._scratch(sizeof(uint32_t) * <uint64_t> n)
        ranked = <uint32_t *> self.scratch
        for i in range(n):
            ranked[i] = words(self.ranks)[numbers[i]]
        qsort(ranked, n, sizeof(uint32_t), by_number)
        for i in range(n):
            if found == 0 or ranked[found - 1] != ranked[i]:
                ranked[found] = ranked[i]
                found += 1
        kept[0] = found
        return ranked

    cdef const Entry *_entries(self, const uint32_t *policies, uint32_t n) except NULL:
        cdef Entry *made
        cdef uint32_t i
        self._scratch(sizeof(Entry) * <uint64_t> n)
        made = <Entry *> self.scratch
        for i in range(n):
            made[i].policy, made[i].guard = policies[i], self._guard(policies[i])
        return made

    cdef uint32_t _guard(self, uint32_t policy) except? 0xFFFFFFFF:
        """The guard of a policy, with the row instead of the number of what it names."""
        cdef uint32_t kind = self.rules.guards[policy] >> GUARD_SHIFT
        cdef uint32_t number = self.rules.guards[policy] & <uint32_t> (GUARD_ROWS - 1)
        cdef uint32_t row
        if kind == FILED_ANY:
            return self.rules.guards[policy]
        row = self._rank(number) if kind < FILED_NODES else self._type_rank(number)
        return kind << GUARD_SHIFT | row if row < GUARD_ROWS else <uint32_t> FILED_ANY << GUARD_SHIFT

    cdef int _list(self, uint8_t *out, List *into, const uint32_t *members, uint32_t n, Free *free_) except -1:
        into.n = n
        if n < 2:
            into.at = members[0] if n else 0
        else:
            into.at = self._stand(out, members, sizeof(uint32_t) * <uint64_t> n, free_)
        return 0

    cdef uint32_t _stand(self, uint8_t *out, const void *raw, uint64_t size, Free *free_) except? 0xFFFFFFFF:
        """Write a list into what is free of its row, or leave it in `lists`; its `at`."""
        cdef uint64_t at = free_.at
        if size <= free_.end - free_.at:
            memcpy(out + at, raw, size)
            free_.at += padded(size)
        else:
            at = self._overflow(raw, size)
        if at // UNIT >= NONE32:
            raise OverflowError
        return <uint32_t> (at // UNIT)

    cdef uint64_t _overflow(self, const void *raw, uint64_t size) except? 0xFFFFFFFFFFFFFFFF:
        """Where a list among `lists` will stand. What fills it up to 8 bytes is 0, which no list of two ascending
        members ends with.
        """
        cdef uint8_t *copy = <uint8_t *> calloc(padded(size), 1)
        cdef uint32_t number
        if copy is NULL:
            raise MemoryError
        memcpy(copy, raw, size)
        try:
            number = self.lists.put(<const char *> copy, padded(size))
        finally:
            free(copy)
        return self.lists_at + (self.lists.ends[number - 1] if number else 0)

    cdef int _policy(self, Policy *policy, uint32_t rank, array.array actions) except -1:
        cdef const Rule *rule = self.rules.rows + self.rules.ranked[rank]
        memset(policy, 0, sizeof(Policy))
        policy.effect, policy.flags = rule.effect, rule.flags
        policy.principal_op, policy.action_op, policy.resource_op = rule.principal_op, rule.action_op, rule.resource_op
        policy.principal_uid = self._rank(rule.principal)
        policy.action_uid = self._rank(rule.action)
        policy.resource_uid = self._rank(rule.resource)
        policy.principal_type = self._type_rank(rule.principal_type)
        policy.resource_type = self._type_rank(rule.resource_type)
        policy.stack, policy.code, policy.code_words = rule.stack, rule.code, rule.code_words
        policy.note = rule.note
        if rule.actions != NONE32:
            within(len(actions), 2 * <uint64_t> rule.actions, 2)
            policy.actions.at = words(actions)[2 * rule.actions]
            policy.actions.n = words(actions)[2 * rule.actions + 1]
        return 0

    cdef uint32_t _rank(self, uint32_t number) except? 0xFFFFFFFF:
        if number == NONE32:
            return NONE32
        within(self.uids.count, number, 1)
        return words(self.ranks)[number]

    cdef uint32_t _type_rank(self, uint32_t number) except? 0xFFFFFFFF:
        if number == NONE32:
            return NONE32
        within(self.types.count, number, 1)
        return words(self.type_ranks)[number]
