"""A table's rows by their index, base and delta as one: what evaluation reads, without a check.

INVARIANT (verified rows): structure.pyx and delta_check.pyx have proved every index and every `at` that an image holds.
Without a delta each of these costs one branch that is always predicted.
"""
from fastpath.image cimport (
    NODE_DEEP,
    NODE_INHERITS,
    NODE_LIST,
    NODE_SAME,
    NODE_UNDER_PRINCIPAL_IN,
    NONE32,
    DeltaHeader,
    Entries,
    Entry,
    Header,
    List,
    Node,
    Note,
    Policy,
    Slot,
    Span,
    Totals,
    Type,
)
from fastpath.value cimport UID_UNKNOWN, Cell, Uid
from fastpath.wire cimport Text
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct Table:               # what decide reads; borrowed from a Generation, valid while that object lives
    const uint8_t *image
    const Header *header
    const Totals *totals         # of the image, or of base and delta together
    const Node *nodes            # the base's rows
    const Policy *policies
    const uint8_t *delta_image   # NULL: no delta
    const DeltaHeader *delta
    uint32_t base_at             # size of the base / 8: from here on an `at` is the delta's
    uint64_t generation          # number from the manifest, monotonic; 0 only for images loaded by tests
    uint64_t serial              # of this table in this process, from 1: no two share one, whatever they hold
    Text digest                  # SHA-256, 32 bytes, of the image, or of what base and delta are together
    int strict                   # an error in a forbid whose scope matches denies


cdef inline void table_base(Table *t, const uint8_t *image) noexcept nogil:
    """Point a zeroed table into an image whose header and sections are sound."""
    t.image = image
    t.header = <const Header *> image
    t.totals = &t.header.totals
    t.nodes = <const Node *> (image + t.header.off_nodes)
    t.policies = <const Policy *> (image + t.header.off_policies)
    t.base_at = <uint32_t> (t.header.size // 8)


cdef inline void table_delta(Table *t, const uint8_t *delta) noexcept nogil:
    """Lay a delta whose header and sections are sound over a table without one."""
    t.delta_image = delta
    t.delta = <const DeltaHeader *> delta
    t.totals = &t.delta.totals


cdef inline const void *table_at(const Table *t, uint32_t at) noexcept nogil:
    """What stands at an `at` of a row."""
    if at >= t.base_at:
        return t.delta_image + 8 * <uint64_t> (at - t.base_at)
    return t.image + 8 * <uint64_t> at


cdef inline const uint32_t *list_rows(const Table *t, const List *list_) noexcept nogil:
    """The members of a list; not to be read when there are none."""
    return &list_.at if list_.n == 1 else <const uint32_t *> table_at(t, list_.at)


cdef inline const Entry *entries(const Table *t, const Entries *list_) noexcept nogil:
    return <const Entry *> table_at(t, list_.at)


cdef inline Text span_text(const Table *t, const Span *span) noexcept nogil:
    cdef Text text
    text.p = <const char *> table_at(t, span.at)
    text.n = span.n
    return text


cdef extern from *:
    void prefetch "__builtin_prefetch" (const void *p) nogil
    int bits_in "__builtin_popcount" (unsigned int bits) nogil


# ---------------------------------------------------------------- rows of a delta


cdef inline uint32_t index_hash(uint32_t index) noexcept nogil:
    """Where the search for a replaced row begins. Python: sidecar/policy/delta.py."""
    return (index * <uint32_t> 0x9E3779B1) >> 8


cdef inline uint32_t delta_row(const Table *t, uint64_t off_slots, uint32_t slots, uint32_t index) noexcept nogil:
    """The delta's row in place of the base's row `index`, or NONE32."""
    cdef const Slot *found = <const Slot *> (t.delta_image + off_slots)
    cdef uint32_t at = index_hash(index) & (slots - 1)
    # INVARIANT (free slots): at least half of the slots are free, so every probe ends.
    while found[at].row != <uint32_t> NONE32 and found[at].tag != index:
        at = (at + 1) & (slots - 1)
    return found[at].row


cdef inline const Node *delta_node(const Table *t, uint32_t index) noexcept nogil:
    """The delta's row of a node, whose lists of policies add to the base's; NULL when there is none."""
    cdef uint32_t row
    if t.delta is NULL:
        return NULL
    if index >= t.header.totals.node_count:
        row = index - t.header.totals.node_count
    else:
        row = delta_row(t, t.delta.off_node_slots, t.delta.node_slots, index)
    if row == <uint32_t> NONE32:
        return NULL
    return <const Node *> (t.delta_image + t.delta.off_nodes) + row


cdef inline const Type *delta_type(const Table *t, uint32_t index) noexcept nogil:
    cdef uint32_t row
    if t.delta is NULL:
        return NULL
    if index >= t.header.totals.type_count:
        row = index - t.header.totals.type_count
    else:
        row = delta_row(t, t.delta.off_type_row_slots, t.delta.type_row_slots, index)
    if row == <uint32_t> NONE32:
        return NULL
    return <const Type *> (t.delta_image + t.delta.off_types) + row


cdef inline const Policy *delta_policy(const Table *t, uint32_t index) noexcept nogil:
    cdef uint32_t row
    if index >= t.header.totals.policy_rows:
        row = index - t.header.totals.policy_rows
    else:
        row = delta_row(t, t.delta.off_policy_slots, t.delta.policy_slots, index)
    if row == <uint32_t> NONE32:
        return NULL
    return <const Policy *> (t.delta_image + t.delta.off_policies) + row


# ---------------------------------------------------------------- rows


cdef inline const Node *base_node(const Table *t, uint32_t index) noexcept nogil:
    """The base's row of a node, with the base's lists of policies; NULL for one that the delta appends."""
    if index >= t.header.totals.node_count:
        return NULL
    return t.nodes + index


cdef inline const Entries *node_list(const Table *t, const Node *node, int kind) noexcept nogil:
    """The policies of a row by FiledUnder, or INHERITED; NULL when it has none."""
    cdef uint32_t lists = node.flags // NODE_LIST
    cdef uint32_t bit = <uint32_t> 1 << kind
    if not lists & bit:
        return NULL
    if lists == bit:
        return &node.lists
    return <const Entries *> table_at(t, node.lists.at) + bits_in(lists & (bit - 1))


cdef inline uint32_t under_flag(int filed) noexcept nogil:
    """The flag of nodes whose ancestors have policies by FILED_PRINCIPAL_IN, FILED_RESOURCE_IN or FILED_ACTION_IN."""
    return <uint32_t> NODE_UNDER_PRINCIPAL_IN << (filed >> 1)


cdef inline const Node *deep_parent(const Table *t, const Node *node, uint32_t parent) noexcept nogil:
    """The row of a parent of `node` if it may have ancestors; NULL: it has none, and its row need not be read.

    INVARIANT (nothing above): a row of the base has the flags of what there is above it (rowcheck.pyx), and a delta
    has a row of each parent whose ancestors or lists it changes; so of other parents the base's flags are true.
    """
    cdef const Node *changed = delta_node(t, parent)
    if changed is not NULL or not node.flags & NODE_DEEP:
        return changed
    return t.nodes + parent


cdef inline bint leads_on(const Table *t, const Node *node, uint32_t parent, int filed) noexcept nogil:
    """Whether policies may be filed under a parent of `node`, or above that. INVARIANT (nothing above)."""
    if node.flags & under_flag(filed):
        return True
    if t.delta is NULL:
        return False
    return delta_node(t, parent) is not NULL or (node.flags & NODE_DEEP and t.delta.lists & under_flag(filed))


cdef inline bint inherits(const Table *t, const Node *node, int filed) noexcept nogil:
    """Whether a node's own list of what is filed under its ancestors is all there is. INVARIANT (nothing above)."""
    cdef const uint32_t *parents
    cdef uint32_t i
    if not node.flags & NODE_INHERITS or not node.flags & under_flag(filed):
        return False
    if t.delta is NULL:
        return True
    if node.flags & NODE_DEEP and t.delta.lists & under_flag(filed):
        return False
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n):
        if delta_node(t, parents[i]) is not NULL:
            return False
    return True


cdef inline const Node *table_node(const Table *t, uint32_t index) noexcept nogil:
    """The row of a node as it is now; its lists of policies are all there are only without a delta. NULL: unknown."""
    cdef const Node *node
    if index == UID_UNKNOWN:
        return NULL
    if t.delta is not NULL:
        node = delta_node(t, index)
        if node is not NULL:
            return node
    return t.nodes + index


cdef inline const Policy *table_policy(const Table *t, uint32_t index) noexcept nogil:
    cdef const Policy *policy
    if t.delta is not NULL:
        policy = delta_policy(t, index)
        if policy is not NULL:
            return policy
    return t.policies + index


cdef inline const Type *base_type(const Table *t, uint32_t index) noexcept nogil:
    """The base's row of a type; NULL for one that the delta appends."""
    if index >= t.header.totals.type_count:
        return NULL
    return <const Type *> (t.image + t.header.off_types) + index


cdef inline const Type *table_type(const Table *t, uint32_t index) noexcept nogil:
    """The row that names a type; its lists of policies are all there are only without a delta."""
    cdef const Type *found = base_type(t, index)
    return found if found is not NULL else delta_type(t, index)


cdef inline const Cell *node_attrs(const Table *t, uint32_t index) noexcept nogil:
    """The record of an entity's attributes: empty for what is no entity, NULL for UID_UNKNOWN."""
    cdef const Node *node = table_node(t, index)
    if node is not NULL and node.flags & NODE_SAME:
        node = t.nodes + index
    if node is NULL:
        return NULL
    return <const Cell *> table_at(t, node.attrs)


cdef inline const Cell *node_tags(const Table *t, uint32_t index) noexcept nogil:
    """The record of an entity's tags, as node_attrs."""
    cdef const Node *node = table_node(t, index)
    if node is not NULL and node.flags & NODE_SAME:
        node = t.nodes + index
    if node is NULL:
        return NULL
    return <const Cell *> table_at(t, node.tags)


cdef inline const Uid *node_uid(const Table *t, uint32_t index) noexcept nogil:
    return <const Uid *> table_at(t, table_node(t, index).uid)


cdef inline const Note *table_note(const Table *t, const Policy *policy) noexcept nogil:
    if policy.note >= t.header.note_count:
        return <const Note *> (t.delta_image + t.delta.off_notes) + (policy.note - t.header.note_count)
    return <const Note *> (t.image + t.header.off_notes) + policy.note


cdef inline const uint32_t *policy_code(const Table *t, const Policy *policy) noexcept nogil:
    if policy.code >= t.header.code_words:
        return <const uint32_t *> (t.delta_image + t.delta.off_code) + (policy.code - t.header.code_words)
    return <const uint32_t *> (t.image + t.header.off_code) + policy.code


cdef inline const Cell *policy_constants(const Table *t, const Policy *policy) noexcept nogil:
    """The constants that its program names: those of the delta are its programs' own."""
    if policy.code >= t.header.code_words:
        return <const Cell *> (t.delta_image + t.delta.off_constants)
    return <const Cell *> (t.image + t.header.off_constants)


cdef inline bint table_has(const Table *t, const void *p) noexcept nogil:
    """Whether `p` points into the base or the delta."""
    if <uint64_t> (<const uint8_t *> p - t.image) < t.header.size:
        return True
    return t.delta is not NULL and <uint64_t> (<const uint8_t *> p - t.delta_image) < t.delta.size


cdef inline uint64_t policy_order(const Table *t, uint32_t index) noexcept nogil:
    """Where a policy stands among all by its id: one that the delta appends goes before the base's of its rank."""
    if index >= t.header.totals.policy_rows:
        return (<uint64_t> table_policy(t, index).rank << 32) | (index - t.header.totals.policy_rows)
    return (<uint64_t> index << 32) | <uint32_t> NONE32
