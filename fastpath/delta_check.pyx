"""Verifies a delta: the rows that it appends or puts in place of others, and that each new policy is filed, once.

What it does not touch was verified with the base. A policy that is gone may still stand in lists of the base: its row
there is one that matches nothing, so no list needs to be written anew.
"""
from fastpath.bounds cimport view_cell, view_has, view_text
from fastpath.image cimport (
    IMAGE_VERSION,
    NODE_ABOVE,
    NODE_PARENT,
    NODE_PRESENT,
    NODE_SAME,
    NONE32,
    POLICY_GONE,
    SCOPE_IN_LIST,
    DeltaHeader,
    List,
    Node,
    Note,
    Policy,
    Slot,
    Span,
    Type,
)
from fastpath.rowcheck cimport (
    Check,
    check_begin,
    check_end,
    list_filed,
    lists_of,
    node_fits,
    note_fits,
    policy_filed,
    policy_fits,
    program_fits,
    refuse,
    slots_fit,
    slots_sound,
    type_fits,
)
from fastpath.rows cimport (
    delta_node,
    delta_row,
    index_hash,
    list_rows,
    node_uid,
    table_at,
    table_delta,
    table_type,
)
from fastpath.table cimport table_find, table_find_type
from fastpath.value cimport Cell, Uid, uid_equal
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memset

cdef struct Added:           # rows beyond the base's, and those in place of a row of the base
    uint32_t nodes
    uint32_t types
    uint32_t policies
    uint32_t nodes_replaced
    uint32_t types_replaced


# ---------------------------------------------------------------- header


cdef int check_header(Check *check, const Table *base, const uint8_t *base_digest, const DeltaHeader *h) noexcept nogil:
    cdef const char *where = b"delta header"
    if check.view.size < sizeof(DeltaHeader) or memcmp(h.magic, b"REMITDLT", 8):
        return refuse(check, where, 0, b"not a delta")
    if h.version != IMAGE_VERSION:
        return refuse(check, where, 0, b"written by another version of the compiler")
    if h.size != check.view.size or h.size % 8 or h.size // 8 >= <uint32_t> NONE32 - base.base_at:
        return refuse(check, where, 0, b"another size than the header says")
    if h.base_size != base.header.size or memcmp(h.base_digest, base_digest, 32):
        return refuse(check, where, 0, b"made for another base")
    if h.flags != base.header.flags:
        return refuse(check, where, 0, b"other flags than the base has")
    if base.header.code_words + h.code_words >= <uint32_t> NONE32:
        return refuse(check, where, 0, b"too much code")
    return 0


cdef bint count_added(const Table *base, const DeltaHeader *h, Added *added) noexcept nogil:
    """How many rows are new; whether the totals and the numbers of rows agree about it."""
    cdef uint32_t nodes = base.header.totals.node_count
    cdef uint32_t types = base.header.totals.type_count
    cdef uint32_t policies = base.header.totals.policy_rows
    if h.totals.node_count < nodes or h.totals.type_count < types or h.totals.policy_rows < policies:
        return False
    added.nodes = h.totals.node_count - nodes
    added.types = h.totals.type_count - types
    added.policies = h.totals.policy_rows - policies
    if added.nodes > h.node_rows or added.types > h.type_rows or h.policy_rows - 1 != added.policies:
        return False
    added.nodes_replaced = h.node_rows - added.nodes
    added.types_replaced = h.type_rows - added.types
    return True


cdef int check_totals(Check *check, const Table *base, const DeltaHeader *h, Added *added) noexcept nogil:
    cdef const char *where = b"delta header"
    if not count_added(base, h, added):
        return refuse(check, where, 0, b"another number of rows than the totals say")
    if (
        base.header.totals.columns_read[0] & ~h.totals.columns_read[0]
        or base.header.totals.columns_read[1] & ~h.totals.columns_read[1]
        or base.header.totals.stack_max > h.totals.stack_max
    ):
        return refuse(check, where, 0, b"less than what the base's policies read")
    if (
        not slots_fit(h.uid_slots, added.nodes)
        or not slots_fit(h.type_slots, added.types)
        or not slots_fit(h.node_slots, added.nodes_replaced)
        or not slots_fit(h.type_row_slots, added.types_replaced)
        or not slots_fit(h.policy_slots, 0)
    ):
        return refuse(check, where, 0, b"number of slots")
    return 0


cdef bint section_fits(Check *check, uint64_t off, uint64_t n, uint32_t width) noexcept nogil:
    return (n == 0 or off >= sizeof(DeltaHeader)) and view_has(&check.view, off, n, width, 8)


cdef int check_sections(Check *check, const DeltaHeader *h) noexcept nogil:
    if not (
        section_fits(check, h.off_nodes, h.node_rows, sizeof(Node))
        and section_fits(check, h.off_types, h.type_rows, sizeof(Type))
        and section_fits(check, h.off_policies, h.policy_rows, sizeof(Policy))
        and section_fits(check, h.off_notes, h.note_count, sizeof(Note))
        and section_fits(check, h.off_uid_slots, h.uid_slots, sizeof(Slot))
        and section_fits(check, h.off_type_slots, h.type_slots, sizeof(Slot))
        and section_fits(check, h.off_node_slots, h.node_slots, sizeof(Slot))
        and section_fits(check, h.off_type_row_slots, h.type_row_slots, sizeof(Slot))
        and section_fits(check, h.off_policy_slots, h.policy_slots, sizeof(Slot))
        and section_fits(check, h.off_code, h.code_words, 4)
        and section_fits(check, h.off_constants, h.constant_count, sizeof(Cell))
    ):
        return refuse(check, b"delta header", 0, b"section points outside")
    return 0


# ---------------------------------------------------------------- slots


cdef bint replaced_sound(
    Check *check, uint64_t off, uint32_t n, uint32_t first, uint32_t count, uint32_t base_rows
) noexcept nogil:
    """Whether `count` rows of the base lead to rows of the delta from `first` on, each found from its index."""
    cdef const Slot *slots = <const Slot *> (check.view.base + off)
    cdef uint32_t i
    if not slots_sound(check, slots, n, first, count):
        return False
    for i in range(n):
        if slots[i].row == <uint32_t> NONE32:
            continue
        if slots[i].tag >= base_rows or delta_row(&check.table, off, n, slots[i].tag) != slots[i].row:
            check.view.cause = b"row of the base is not found under its index"
            return False
    return True


cdef int check_slots(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    cdef const Table *t = &check.table
    cdef const Slot *slots = <const Slot *> (check.view.base + h.off_uid_slots)
    if not slots_sound(check, slots, h.uid_slots, t.header.totals.node_count, added.nodes):
        return refuse(check, b"delta uid slots", 0, NULL)
    slots = <const Slot *> (check.view.base + h.off_type_slots)
    if not slots_sound(check, slots, h.type_slots, t.header.totals.type_count, added.types):
        return refuse(check, b"delta type slots", 0, NULL)
    if not replaced_sound(
        check, h.off_node_slots, h.node_slots, added.nodes, added.nodes_replaced, t.header.totals.node_count
    ):
        return refuse(check, b"delta node slots", 0, NULL)
    if not replaced_sound(
        check, h.off_type_row_slots, h.type_row_slots, added.types, added.types_replaced, t.header.totals.type_count
    ):
        return refuse(check, b"delta type row slots", 0, NULL)
    return 0


cdef bint is_first(const Slot *slots, uint32_t n, uint32_t at) noexcept nogil:
    """Whether the search for a slot's row of the base ends at this slot: a row that is gone twice is counted twice."""
    cdef uint32_t i = index_hash(slots[at].tag) & (n - 1)
    while slots[i].row != <uint32_t> NONE32 and slots[i].tag != slots[at].tag:
        i = (i + 1) & (n - 1)
    return i == at


cdef int check_gone(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    """The policies of the base that are gone all lead to one row, which no call is in the scope of."""
    cdef const Table *t = &check.table
    cdef const Slot *slots = <const Slot *> (check.view.base + h.off_policy_slots)
    cdef const Policy *row = <const Policy *> (check.view.base + h.off_policies) + added.policies
    cdef uint32_t gone = 0
    cdef uint32_t i
    if row.flags != POLICY_GONE or row.action_op != SCOPE_IN_LIST or row.actions.n or row.code_words:
        return refuse(check, b"delta policies", added.policies, b"row of what is gone matches something")
    for i in range(h.policy_slots):
        gone += slots[i].row != <uint32_t> NONE32
    # Before the first probe, which ends at a free slot.
    if not slots_fit(h.policy_slots, gone):
        return refuse(check, b"delta policy slots", 0, b"number of slots")
    for i in range(h.policy_slots):
        if slots[i].row == <uint32_t> NONE32:
            continue
        if (
            slots[i].row != added.policies
            or slots[i].tag >= t.header.totals.policy_rows
            or not is_first(slots, h.policy_slots, i)
        ):
            return refuse(check, b"delta policy slots", i, b"slot names no row")
    if h.totals.policy_count != t.header.totals.policy_rows - gone + added.policies:
        return refuse(check, b"delta header", 0, b"another number of policies than rows")
    return 0


# ---------------------------------------------------------------- types, nodes


cdef int check_found(Check *check, const Added *added) noexcept nogil:
    """What is appended is found as calls look for it: what the base has is found there, and half of it hidden."""
    cdef const Table *t = &check.table
    cdef uint32_t nodes = t.header.totals.node_count
    cdef uint32_t types = t.header.totals.type_count
    cdef const Span *name
    cdef uint32_t i
    for i in range(added.nodes):
        if table_find(t, node_uid(t, nodes + i)) != nodes + i:
            return refuse(check, b"delta nodes", i, b"row is not found under its uid")
    for i in range(added.types):
        name = &table_type(t, types + i).name
        if table_find_type(t, <const char *> table_at(t, name.at), name.n) != types + i:
            return refuse(check, b"delta types", i, b"row is not found under its name")
    return 0


cdef int check_types(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    cdef const Type *types = <const Type *> (check.view.base + h.off_types)
    cdef const Slot *slots = <const Slot *> (check.view.base + h.off_type_row_slots)
    cdef uint32_t first = check.table.header.totals.type_count
    cdef uint32_t i
    for i in range(added.types):
        if not type_fits(check, types + i, first + i):
            return refuse(check, b"delta types", i, NULL)
    for i in range(h.type_row_slots):
        if slots[i].row != <uint32_t> NONE32 and not type_fits(check, types + slots[i].row, slots[i].tag):
            return refuse(check, b"delta types", slots[i].row, NULL)
    return 0


cdef int check_nodes(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    cdef const Table *t = &check.table
    cdef const Node *nodes = <const Node *> (check.view.base + h.off_nodes)
    cdef const Slot *slots = <const Slot *> (check.view.base + h.off_node_slots)
    cdef uint32_t first = t.header.totals.node_count
    cdef uint64_t entities = t.header.totals.entity_count
    cdef const Node *was
    cdef uint32_t i
    for i in range(added.nodes):
        if not node_fits(check, nodes + i, first + i, NODE_PRESENT | NODE_PARENT):
            return refuse(check, b"delta nodes", i, NULL)
        entities += nodes[i].flags & NODE_PRESENT
    for i in range(h.node_rows):
        if ~nodes[i].flags & <uint32_t> NODE_ABOVE:
            return refuse(check, b"delta nodes", i, b"flags deny what may be above it")
        if lists_of(nodes + i) & ~h.lists:
            return refuse(check, b"delta nodes", i, b"has policies that the header denies")
    for i in range(h.node_slots):
        if slots[i].row == <uint32_t> NONE32:
            continue
        was = t.nodes + slots[i].tag
        if not node_fits(check, nodes + slots[i].row, slots[i].tag, NODE_PRESENT | NODE_PARENT | NODE_SAME):
            return refuse(check, b"delta nodes", slots[i].row, NULL)
        if not uid_equal(node_uid(t, slots[i].tag), <const Uid *> table_at(t, was.uid)):
            return refuse(check, b"delta nodes", slots[i].row, b"row of another uid than the base's")
        if was.flags & NODE_PARENT and not nodes[slots[i].row].flags & NODE_PARENT:
            return refuse(check, b"delta nodes", slots[i].row, b"a parent has no ancestors of its own")
        entities += nodes[slots[i].row].flags & NODE_PRESENT
        entities -= was.flags & NODE_PRESENT
    if entities != h.totals.entity_count:
        return refuse(check, b"delta nodes", 0, b"another number of entities than the header says")
    return 0


cdef bint same_nodes(const Table *t, const List *left, const List *right) noexcept nogil:
    return left.n == right.n and memcmp(list_rows(t, left), list_rows(t, right), 4 * <size_t> left.n) == 0


cdef uint32_t mark_moved(Check *check, const DeltaHeader *h) noexcept nogil:
    """Mark the base's parents whose ancestors the delta changes; how many."""
    cdef const Table *t = &check.table
    cdef const Node *nodes = <const Node *> (check.view.base + h.off_nodes)
    cdef const Slot *slots = <const Slot *> (check.view.base + h.off_node_slots)
    cdef const Node *was
    cdef uint32_t moved = 0
    cdef uint32_t i
    for i in range(h.node_slots):
        if slots[i].row == <uint32_t> NONE32:
            continue
        was = t.nodes + slots[i].tag
        if was.flags & NODE_PARENT and not same_nodes(t, &was.closure, &nodes[slots[i].row].closure):
            check.marks[slots[i].tag] = NONE32
            moved += 1
    return moved


cdef int check_below(Check *check, const DeltaHeader *h) noexcept nogil:
    """Parents that have a moved one among their ancestors have rows of the delta, which were held against it."""
    cdef const Table *t = &check.table
    cdef const uint32_t *parents = list_rows(t, &t.header.parents)
    cdef const uint32_t *above
    cdef uint32_t i, j
    if mark_moved(check, h) == 0:
        return 0
    for i in range(t.header.parents.n):
        if delta_node(t, parents[i]) is not NULL:
            continue
        above = list_rows(t, &t.nodes[parents[i]].closure)
        for j in range(t.nodes[parents[i]].closure.n):
            if check.marks[above[j]] == <uint32_t> NONE32:
                return refuse(check, b"nodes", parents[i], b"has ancestors that the delta changes")
    return 0


# ---------------------------------------------------------------- policies


cdef int check_policies(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    cdef const Note *notes = <const Note *> (check.view.base + h.off_notes)
    cdef const Policy *policies = <const Policy *> (check.view.base + h.off_policies)
    cdef uint32_t i
    for i in range(h.note_count):
        if not note_fits(check, notes + i):
            return refuse(check, b"delta notes", i, NULL)
    for i in range(added.policies):
        if not policy_fits(check, policies + i):
            return refuse(check, b"delta policies", i, NULL)
    return check_gone(check, h, added)


cdef int check_filing(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    cdef uint32_t i
    if not list_filed(check, &h.any_policies):
        return refuse(check, b"delta any policies", 0, NULL)
    for i in range(added.policies):
        if not policy_filed(check, check.first_policy + i):
            return refuse(check, b"delta policies", i, NULL)
    return 0


cdef int check_code(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    cdef const Policy *policies = <const Policy *> (check.view.base + h.off_policies)
    cdef const Cell *constants = <const Cell *> (check.view.base + h.off_constants)
    cdef uint32_t i
    for i in range(h.constant_count):
        if not view_cell(&check.view, constants + i, 0):
            return refuse(check, b"delta constants", i, NULL)
    for i in range(added.policies):
        if not program_fits(check, policies + i):
            return refuse(check, b"delta code", i, NULL)
    if not view_text(&check.view, &h.totals.extras_read):
        return refuse(check, b"delta extras", 0, NULL)
    return 0


cdef int check_rows(Check *check, const DeltaHeader *h, const Added *added) noexcept nogil:
    return (
        check_slots(check, h, added)
        or check_policies(check, h, added)
        or check_types(check, h, added)
        or check_nodes(check, h, added)
        or check_found(check, added)
        or check_below(check, h)
        or check_filing(check, h, added)
        or check_code(check, h, added)
    )


cdef int delta_check(
    const Table *base, const uint8_t *base_digest, const uint8_t *delta, uint64_t size, Fault *fault
) noexcept nogil:
    cdef const DeltaHeader *header = <const DeltaHeader *> delta
    cdef Check check
    cdef Added added
    cdef uint64_t words = base.header.code_words
    cdef int bad
    memset(&check, 0, sizeof(Check))
    memset(&added, 0, sizeof(Added))
    check.fault = fault
    check.view.base = delta
    check.view.size = size
    # As for a base (structure.pyx).
    check.view.budget = 16 * size + 1000000
    check.view.cause = b""
    if check_header(&check, base, base_digest, header) or check_totals(&check, base, header, &added):
        return 1
    if check_sections(&check, header):
        return 1
    check.table = base[0]
    table_delta(&check.table, delta)
    check.view.table = &check.table
    check.first_policy = base.header.totals.policy_rows
    check.policy_rows = added.policies
    check.first_code = <uint32_t> base.header.code_words
    check.code_words = header.code_words
    bad = check_begin(&check, words if words > header.code_words else header.code_words)
    bad = bad or check_rows(&check, header, &added)
    check_end(&check)
    return bad
