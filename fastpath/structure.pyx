"""Verifies an image section by section; what a later section relies on has been checked before it."""
from fastpath.bounds cimport view_cell, view_has, view_reaches, view_text
from fastpath.columns cimport COLUMN_COUNT
from fastpath.image cimport (
    IMAGE_COLUMNS,
    IMAGE_VERSION,
    NODE_INHERITS,
    NODE_PARENT,
    NODE_PRESENT,
    NONE32,
    Header,
    InputShape,
    Node,
    Note,
    Policy,
    Slot,
    Type,
)
from fastpath.rowcheck cimport (
    Check,
    check_begin,
    check_end,
    inherited_fits,
    list_filed,
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
from fastpath.rows cimport list_rows, node_uid, span_text, table_at, table_base
from fastpath.table cimport table_find, table_find_type
from fastpath.value cimport KIND_RECORD, Cell, text_compare
from fastpath.wire cimport Text
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memset


# ---------------------------------------------------------------- header


cdef int check_header(Check *check, const Header *h) noexcept nogil:
    cdef const char *where = b"header"
    if check.view.size < sizeof(Header) or memcmp(h.magic, b"REMITGEN", 8):
        return refuse(check, where, 0, b"not a generation")
    if h.version != IMAGE_VERSION:
        return refuse(check, where, 0, b"written by another version of the compiler")
    if h.size != check.view.size or h.size % 8 or h.size // 8 >= <uint32_t> NONE32:
        return refuse(check, where, 0, b"another size than the header says")
    if h.flags & ~(<uint32_t> IMAGE_COLUMNS):
        return refuse(check, where, 0, b"unknown flags")
    if h.totals.columns_read[1] >> (COLUMN_COUNT - 64):
        return refuse(check, where, 0, b"unknown columns")
    if h.totals.policy_count != h.totals.policy_rows:
        return refuse(check, where, 0, b"another number of policies than rows")
    if not slots_fit(h.uid_slots, h.totals.node_count) or not slots_fit(h.type_slots, h.totals.type_count):
        return refuse(check, where, 0, b"number of slots")
    return 0


cdef bint section_fits(Check *check, uint64_t off, uint64_t n, uint32_t width) noexcept nogil:
    return (n == 0 or off >= sizeof(Header)) and view_has(&check.view, off, n, width, 8)


cdef int check_sections(Check *check, const Header *h) noexcept nogil:
    cdef const char *cause = b"section points outside"
    if not section_fits(check, h.off_nodes, h.totals.node_count, sizeof(Node)):
        return refuse(check, b"nodes", 0, cause)
    if not section_fits(check, h.off_uid_slots, h.uid_slots, sizeof(Slot)):
        return refuse(check, b"uid slots", 0, cause)
    if not section_fits(check, h.off_types, h.totals.type_count, sizeof(Type)):
        return refuse(check, b"types", 0, cause)
    if not section_fits(check, h.off_type_slots, h.type_slots, sizeof(Slot)):
        return refuse(check, b"type slots", 0, cause)
    if not section_fits(check, h.off_policies, h.totals.policy_rows, sizeof(Policy)):
        return refuse(check, b"policies", 0, cause)
    if not section_fits(check, h.off_notes, h.note_count, sizeof(Note)):
        return refuse(check, b"notes", 0, cause)
    if not section_fits(check, h.off_code, h.code_words, 4) or h.code_words >= <uint32_t> NONE32:
        return refuse(check, b"code", 0, cause)
    if not section_fits(check, h.off_constants, h.constant_count, sizeof(Cell)):
        return refuse(check, b"constants", 0, cause)
    return 0


# ---------------------------------------------------------------- types, nodes


cdef int check_types(Check *check, const Header *h) noexcept nogil:
    cdef const Type *types = <const Type *> (check.view.base + h.off_types)
    cdef const Slot *slots = <const Slot *> (check.view.base + h.off_type_slots)
    cdef const char *name
    cdef uint32_t i
    if not slots_sound(check, slots, h.type_slots, 0, h.totals.type_count):
        return refuse(check, b"type slots", 0, NULL)
    for i in range(h.totals.type_count):
        if not type_fits(check, types + i, i):
            return refuse(check, b"types", i, NULL)
    # As calls look: of two rows for one name the second would not be found, nor what is filed under it.
    for i in range(h.totals.type_count):
        name = <const char *> table_at(&check.table, types[i].name.at)
        if table_find_type(&check.table, name, types[i].name.n) != i:
            return refuse(check, b"types", i, b"row is not found under its name")
    return 0


cdef int check_nodes(Check *check, const Header *h) noexcept nogil:
    cdef const Slot *slots = <const Slot *> (check.view.base + h.off_uid_slots)
    cdef uint32_t present = 0
    cdef uint32_t i
    if not slots_sound(check, slots, h.uid_slots, 0, h.totals.node_count):
        return refuse(check, b"uid slots", 0, NULL)
    for i in range(h.totals.node_count):
        if not node_fits(check, check.table.nodes + i, i, NODE_PRESENT | NODE_PARENT | NODE_INHERITS):
            return refuse(check, b"nodes", i, NULL)
        present += check.table.nodes[i].flags & NODE_PRESENT
    for i in range(h.totals.node_count):
        if table_find(&check.table, node_uid(&check.table, i)) != i:
            return refuse(check, b"nodes", i, b"row is not found under its uid")
    if present != h.totals.entity_count:
        return refuse(check, b"nodes", 0, b"another number of entities than the header says")
    return 0


cdef int check_parents(Check *check, const Header *h) noexcept nogil:
    """The list of all parents: where a delta looks for those whose ancestors an edit changes."""
    cdef const uint32_t *rows = list_rows(&check.table, &h.parents)
    cdef uint32_t parents = 0
    cdef uint32_t i
    if h.parents.n > 1 and not view_reaches(&check.view, h.parents.at, h.parents.n, 4):
        return refuse(check, b"parents", 0, NULL)
    for i in range(h.parents.n):
        if rows[i] >= h.totals.node_count or (i and rows[i] <= rows[i - 1]):
            return refuse(check, b"parents", i, b"list is not in order or names no row")
        if not check.table.nodes[rows[i]].flags & NODE_PARENT:
            return refuse(check, b"parents", i, b"node is no parent")
    for i in range(h.totals.node_count):
        parents += (check.table.nodes[i].flags & NODE_PARENT) != 0
    if parents != h.parents.n:
        return refuse(check, b"parents", 0, b"another number of parents than nodes say")
    return 0


# ---------------------------------------------------------------- policies


cdef int check_policies(Check *check, const Header *h) noexcept nogil:
    cdef const Note *notes = <const Note *> (check.view.base + h.off_notes)
    cdef Text id_, before
    cdef uint64_t i
    for i in range(h.note_count):
        if not note_fits(check, notes + i):
            return refuse(check, b"notes", i, NULL)
    for i in range(h.totals.policy_rows):
        if not policy_fits(check, check.table.policies + i):
            return refuse(check, b"policies", i, NULL)
        id_ = span_text(&check.table, &check.table.policies[i].id)
        # Edits find the policy that they change or remove by it (rowview.pyx).
        if i and text_compare(before.p, before.n, id_.p, id_.n) >= 0:
            return refuse(check, b"policies", i, b"ids are not in order")
        before = id_
    return 0


cdef int check_filing(Check *check, const Header *h) noexcept nogil:
    cdef uint32_t i
    if not list_filed(check, &h.any_policies):
        return refuse(check, b"any policies", 0, NULL)
    for i in range(h.totals.policy_rows):
        if not policy_filed(check, i):
            return refuse(check, b"policies", i, NULL)
    return 0


cdef int check_inherited(Check *check, const Header *h) noexcept nogil:
    cdef uint32_t i
    for i in range(h.totals.node_count):
        if not inherited_fits(check, check.table.nodes + i):
            return refuse(check, b"nodes", i, NULL)
    return 0


cdef int check_code(Check *check, const Header *h) noexcept nogil:
    cdef const Cell *constants = <const Cell *> (check.view.base + h.off_constants)
    cdef uint64_t i
    for i in range(h.constant_count):
        if not view_cell(&check.view, constants + i, 0):
            return refuse(check, b"constants", i, NULL)
    for i in range(h.totals.policy_rows):
        if not program_fits(check, check.table.policies + i):
            return refuse(check, b"code", i, NULL)
    return 0


# ---------------------------------------------------------------- the rest


cdef int check_inputs(Check *check, const Header *h) noexcept nogil:
    cdef const InputShape *shapes = <const InputShape *> table_at(&check.table, h.input_actions.at)
    cdef const Cell *constants = <const Cell *> (check.view.base + h.off_constants)
    cdef uint32_t i
    if not view_reaches(&check.view, h.input_actions.at, h.input_actions.n, sizeof(InputShape)):
        return refuse(check, b"input shapes", 0, NULL)
    for i in range(h.input_actions.n):
        if shapes[i].action >= h.totals.node_count or (i and shapes[i].action <= shapes[i - 1].action):
            return refuse(check, b"input shapes", i, b"list of nodes is not in order or names no node")
        if shapes[i].shape >= h.constant_count or constants[shapes[i].shape].kind != KIND_RECORD:
            return refuse(check, b"input shapes", i, b"shape is not a record")
    if not view_text(&check.view, &h.totals.extras_read):
        return refuse(check, b"extras", 0, NULL)
    return 0


cdef int check_all(Check *check, const Header *h) noexcept nogil:
    # Rows first whose kind decides what others may name: a node's flags, a policy's scope.
    return (
        check_policies(check, h)
        or check_types(check, h)
        or check_nodes(check, h)
        or check_parents(check, h)
        or check_filing(check, h)
        or check_inherited(check, h)
        or check_code(check, h)
        or check_inputs(check, h)
    )


cdef int structure_check(const uint8_t *image, uint64_t size, Fault *fault) noexcept nogil:
    cdef const Header *header = <const Header *> image
    cdef Check check
    cdef int bad
    memset(&check, 0, sizeof(Check))
    check.fault = fault
    check.view.base = image
    check.view.size = size
    # Values may be shared between entities; beyond this an image costs more to check than to write anew.
    check.view.budget = 16 * size + 1000000
    check.view.cause = b""
    if check_header(&check, header) or check_sections(&check, header):
        return 1
    table_base(&check.table, image)
    check.view.table = &check.table
    check.policy_rows = header.totals.policy_rows
    check.code_words = <uint32_t> header.code_words
    bad = check_begin(&check, header.code_words) or check_all(&check, header)
    check_end(&check)
    return bad
