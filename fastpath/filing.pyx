"""See filing.pxd."""
from cpython cimport array
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

import array

from fastpath.image cimport (
    FILED_ACTION_EQ,
    FILED_ACTION_IN,
    FILED_ANY,
    FILED_NODES,
    FILED_PRINCIPAL_EQ,
    FILED_PRINCIPAL_IN,
    FILED_PRINCIPAL_IS,
    FILED_RESOURCE_EQ,
    FILED_RESOURCE_IN,
    FILED_RESOURCE_IS,
    GUARD_ROWS,
    GUARD_SHIFT,
    NONE32,
    SCOPE_EQ,
    SCOPE_IN,
    SCOPE_IN_LIST,
    SCOPE_IS,
    SCOPE_IS_IN,
)
from fastpath.names cimport Names

cdef array.array NUMBERS = array.array("I")
# Of equally rare ways a policy is filed in the most specific: principal ==, resource ==, principal in, resource in,
# action ==, action in, principal is, resource is. By FiledUnder.
cdef uint8_t[8] PREFERENCE
PREFERENCE[:] = [0, 2, 1, 3, 4, 5, 6, 7]
cdef enum:
    WAYS_MAX = 3
    NO_WAY = 0xFF
    NOWHERE = 0xFE


cdef array.array numbers_of(const uint32_t *members, uint32_t n):
    cdef array.array found = array.clone(NUMBERS, n, False)
    cdef uint32_t i
    for i in range(n):
        found.data.as_uints[i] = members[i]
    return found


cdef class Rules:

    def __init__(self, Names ids not None):
        self.ids = ids
        self.lists = []

    def __dealloc__(self):
        free(self.rows)
        free(self.ranked)
        free(self.starts)
        free(self.members)
        free(self.guards)
        free(self.anywhere)

    def __len__(self):
        return self.count

    def actions(self, array.array uids not None):
        self.lists.append(uids)
        return len(self.lists) - 1

    def add(self, uint32_t id_, uint8_t effect, uint8_t flags, ops, principal, action, resource, program,
            uint32_t note):
        cdef Rule *rule
        if self.count == self.room:
            self._grow()
        rule = self.rows + self.count
        memset(rule, 0, sizeof(Rule))
        rule.id, rule.effect, rule.flags, rule.note = id_, effect, flags, note
        rule.principal_op, rule.action_op, rule.resource_op = ops
        rule.principal, rule.principal_type = principal
        rule.action, rule.actions = action
        rule.resource, rule.resource_type = resource
        rule.code, rule.code_words, rule.stack = program
        if rule.actions != NONE32 and rule.actions >= <uint32_t> len(self.lists):
            raise IndexError(rule.actions)
        self.count += 1
        return self.count - 1

    def add_links(self, uint32_t like, array.array ids not None, array.array principals not None,
                  array.array resources not None):
        cdef Py_ssize_t i
        cdef Rule *rule
        if like >= self.count or not len(ids) == len(principals) == len(resources):
            raise IndexError(like)
        for i in range(len(ids)):
            if self.count == self.room:
                self._grow()
            rule = self.rows + self.count
            rule[0] = self.rows[like]
            rule.id = ids.data.as_uints[i]
            if principals.data.as_uints[i] != NONE32:
                rule.principal = principals.data.as_uints[i]
            if resources.data.as_uints[i] != NONE32:
                rule.resource = resources.data.as_uints[i]
            self.count += 1

    def forget(self, uint32_t row):
        if row >= self.count:
            raise IndexError(row)
        self.rows[row].id = NONE32

    def file(self, uint32_t uid_count, uint32_t type_count):
        cdef uint64_t keys = <uint64_t> FILED_NODES * uid_count + 2 * <uint64_t> type_count
        cdef uint32_t *counts
        cdef uint8_t *chosen
        self.uid_count, self.type_count = uid_count, type_count
        self._rank()
        self.starts = <uint32_t *> calloc(keys + 2, sizeof(uint32_t))
        self.guards = <uint32_t *> malloc((<uint64_t> self.count + 1) * sizeof(uint32_t))
        counts = <uint32_t *> calloc(keys + 1, sizeof(uint32_t))
        chosen = <uint8_t *> malloc(self.count + 1)
        try:
            if self.starts is NULL or self.guards is NULL or counts is NULL or chosen is NULL:
                raise MemoryError
            self._count(counts)
            self._choose(counts, chosen)
            self._fill(chosen, keys)
        finally:
            free(counts)
            free(chosen)

    def under(self, uint32_t kind, uint32_t number):
        cdef uint32_t n = 0
        cdef const uint32_t *found
        if kind > FILED_RESOURCE_IS or number >= (self.uid_count if kind < FILED_NODES else self.type_count):
            raise IndexError(number)
        found = self.filed(kind, number, &n)
        return numbers_of(found, n)

    def anywhere_ranks(self):
        return numbers_of(self.anywhere, self.anywhere_count)

    # ------------------------------------------------------------ native

    cdef int _grow(self) except -1:
        cdef uint64_t wanted = self.room + self.room // 2 + 64
        cdef void *grown = realloc(self.rows, wanted * sizeof(Rule))
        if grown is NULL or wanted >= NONE32:
            raise MemoryError
        self.rows = <Rule *> grown
        self.room = <uint32_t> wanted
        return 0

    cdef int _rank(self) except -1:
        """Order rules by id, and leave out what was forgotten."""
        cdef array.array order = self.ids.order()
        cdef uint32_t *rule_of = <uint32_t *> malloc(sizeof(uint32_t) * (len(order) + 1))
        cdef uint32_t i, row, kept = 0
        self.ranked = <uint32_t *> malloc(sizeof(uint32_t) * (<uint64_t> self.count + 1))
        if rule_of is NULL or self.ranked is NULL:
            free(rule_of)
            raise MemoryError
        memset(rule_of, 0xFF, sizeof(uint32_t) * (len(order) + 1))
        for i in range(self.count):
            if self.rows[i].id < <uint32_t> len(order):
                rule_of[self.rows[i].id] = i
        for i in range(<uint32_t> len(order)):
            row = rule_of[order.data.as_uints[i]]
            if row != NONE32:
                self.ranked[kept] = row
                kept += 1
        free(rule_of)
        self.count = kept
        return 0

    cdef uint64_t _key(self, uint32_t kind, uint32_t number) noexcept nogil:
        if kind < FILED_NODES:
            return <uint64_t> kind * self.uid_count + number
        return <uint64_t> FILED_NODES * self.uid_count + <uint64_t> (kind - FILED_NODES) * self.type_count + number

    cdef uint32_t _ways(self, const Rule *rule, Way *ways) except? 0xFFFFFFFF:
        """The ways to file a rule; NOWHERE for one that can match nothing. Raises IndexError."""
        cdef array.array actions
        cdef uint32_t n = 0
        n += _way(rule.principal_op, FILED_PRINCIPAL_EQ, FILED_PRINCIPAL_IN, FILED_PRINCIPAL_IS, &rule.principal,
                  &rule.principal_type, ways + n)
        if rule.action_op == SCOPE_IN_LIST and rule.actions != NONE32:
            actions = self.lists[rule.actions]
            if len(actions) == 0:
                return NOWHERE
            ways[n].kind, ways[n].n, ways[n].any_of = FILED_ACTION_IN, <uint32_t> len(actions), True
            ways[n].members = <uint32_t *> actions.data.as_uints
            n += 1
        else:
            n += _way(rule.action_op, FILED_ACTION_EQ, FILED_ACTION_IN, FILED_ACTION_IN, &rule.action, &rule.action,
                      ways + n)
        n += _way(rule.resource_op, FILED_RESOURCE_EQ, FILED_RESOURCE_IN, FILED_RESOURCE_IS, &rule.resource,
                  &rule.resource_type, ways + n)
        return n

    cdef int _count(self, uint32_t *counts) except -1:
        """How many rules could be filed under each key."""
        cdef Way[WAYS_MAX] ways
        cdef uint32_t i, j, k, n
        for i in range(self.count):
            n = self._ways(self.rows + self.ranked[i], ways)
            if n == NOWHERE:
                continue
            for j in range(n):
                for k in range(ways[j].n):
                    if ways[j].members[k] >= (self.uid_count if ways[j].kind < FILED_NODES else self.type_count):
                        raise IndexError(ways[j].members[k])
                    counts[self._key(ways[j].kind, ways[j].members[k])] += 1
        return 0

    cdef uint32_t _guard(self, const Way *ways, uint32_t n, uint32_t filed, const uint32_t *counts) noexcept nogil:
        """The rarest constraint beside the way that a rule is filed in, since it lets the fewest calls through."""
        cdef uint32_t guard = <uint32_t> FILED_ANY << GUARD_SHIFT
        cdef uint64_t least = 0xFFFFFFFFFFFFFFFF
        cdef uint64_t cost
        cdef uint32_t i, number
        for i in range(n):
            # One of several actions is no constraint that a guard can name.
            if i == filed or ways[i].any_of:
                continue
            number = ways[i].members[0]
            cost = <uint64_t> counts[self._key(ways[i].kind, number)] << 3 | PREFERENCE[ways[i].kind]
            if number < GUARD_ROWS and cost < least:
                least, guard = cost, ways[i].kind << GUARD_SHIFT | number
        return guard

    cdef int _choose(self, const uint32_t *counts, uint8_t *chosen) except -1:
        """Which of its ways each rule is filed in, by rank, with its guard; and how many stand under each key, in
        starts[key + 2].
        """
        cdef Way[WAYS_MAX] ways
        cdef uint32_t i, j, k, n
        cdef uint64_t cost, least
        for i in range(self.count):
            n = self._ways(self.rows + self.ranked[i], ways)
            chosen[i] = NOWHERE if n == NOWHERE else NO_WAY
            if n == NOWHERE:
                continue
            least = 0
            for j in range(n):
                cost = 0
                for k in range(ways[j].n):
                    cost += counts[self._key(ways[j].kind, ways[j].members[k])]
                # Rarer first, then by preference: one number compares both.
                cost = cost << 3 | PREFERENCE[ways[j].kind]
                if chosen[i] == NO_WAY or cost < least:
                    least, chosen[i] = cost, <uint8_t> j
            self.guards[i] = self._guard(ways, n, chosen[i], counts)
            if chosen[i] == NO_WAY:
                self.anywhere_count += 1
                continue
            for k in range(ways[chosen[i]].n):
                self.starts[self._key(ways[chosen[i]].kind, ways[chosen[i]].members[k]) + 2] += 1
        return 0

    cdef int _fill(self, const uint8_t *chosen, uint64_t keys) except -1:
        """Write ranks under their keys, ascending since they come so."""
        cdef Way[WAYS_MAX] ways
        cdef uint64_t at, total = 0
        cdef uint32_t i, k, found = 0
        for at in range(2, keys + 2):
            total += self.starts[at]
            if total >= NONE32:
                raise MemoryError
            self.starts[at] = <uint32_t> total
        self.members = <uint32_t *> malloc(sizeof(uint32_t) * (total + 1))
        self.anywhere = <uint32_t *> malloc(sizeof(uint32_t) * (<uint64_t> self.anywhere_count + 1))
        if self.members is NULL or self.anywhere is NULL:
            raise MemoryError
        for i in range(self.count):
            if chosen[i] == NOWHERE:
                continue
            if chosen[i] == NO_WAY:
                self.anywhere[found] = i
                found += 1
                continue
            self._ways(self.rows + self.ranked[i], ways)
            for k in range(ways[chosen[i]].n):
                # starts[key + 1] runs from the key's start to its end, which is the next one's start.
                at = self._key(ways[chosen[i]].kind, ways[chosen[i]].members[k]) + 1
                self.members[self.starts[at]] = i
                self.starts[at] += 1
        return 0

    cdef const uint32_t *filed(self, uint32_t kind, uint32_t number, uint32_t *n) noexcept nogil:
        cdef uint64_t at = self._key(kind, number)
        n[0] = self.starts[at + 1] - self.starts[at]
        return self.members + self.starts[at]


cdef inline uint32_t _way(uint8_t op, uint32_t eq, uint32_t in_, uint32_t is_, const uint32_t *uid,
                          const uint32_t *type_, Way *way) noexcept nogil:
    """The way that one constraint gives, if any: 0 or 1."""
    way.n, way.members, way.any_of = 1, uid, False
    if op == SCOPE_EQ and uid[0] != NONE32:
        way.kind = eq
    elif op in (SCOPE_IN, SCOPE_IS_IN) and uid[0] != NONE32:
        way.kind = in_
    elif op == SCOPE_IS and type_[0] != NONE32:
        way.kind, way.members = is_, type_
    else:
        return 0
    return 1
