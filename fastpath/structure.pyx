"""Verifies an image section by section; what a later section relies on has been checked before it."""
from fastpath.bounds cimport View, view_cell, view_has, view_uid
from fastpath.codecheck cimport code_check
from fastpath.columns cimport COLUMN_COUNT
from fastpath.image cimport (
    EFFECT_FORBID,
    IMAGE_COLUMNS,
    IMAGE_VERSION,
    NONE32,
    POLICY_CURABLE,
    POLICY_NEVER,
    POLICY_SHADOW,
    POLICY_TASKLESS,
    SCOPE_EQ,
    SCOPE_IN,
    SCOPE_IN_LIST,
    SCOPE_IS,
    SCOPE_IS_IN,
    Header,
    InputShape,
    Node,
    Policy,
    Span,
    Type,
)
from fastpath.value cimport KIND_RECORD, Cell, Uid, type_hash
from fastpath.wire cimport utf8_valid
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp

cdef enum Filing:        # the index a posting belongs to
    FILED_PRINCIPAL_EQ
    FILED_PRINCIPAL_IN
    FILED_PRINCIPAL_IS
    FILED_ACTION_EQ
    FILED_ACTION_IN
    FILED_RESOURCE_EQ
    FILED_RESOURCE_IN
    FILED_RESOURCE_IS
    FILED_ANY

cdef enum:
    BY_ACTION = 1        # filed under its actions, each of them
    BY_OTHER = 2         # filed once, under its principal, its resource or nothing

cdef struct Check:
    View view
    const Header *header
    const Policy *policies
    Fault *fault
    uint32_t *filed          # per policy: postings that name it
    uint8_t *filed_by        # per policy: BY_ACTION or BY_OTHER, 0 before the first
    int32_t *depths          # scratch of code_check
    uint8_t *done            # per word of code: 1 where a program with checked code starts
    uint32_t *done_words     # .. its length
    uint32_t *done_stack     # .. and the smallest stack it was checked with


cdef int refuse(Check *check, const char *section, uint64_t row, const char *cause) noexcept nogil:
    check.fault.section = section
    check.fault.row = row
    check.fault.cause = cause if cause is not NULL else check.view.cause
    return 1


# ---------------------------------------------------------------- header


cdef bint section_fits(Check *check, uint64_t off, uint64_t n, uint32_t width) noexcept nogil:
    return (n == 0 or off >= sizeof(Header)) and view_has(&check.view, off, n, width, 8)


cdef bint text_fits(Check *check, const Span *span) noexcept nogil:
    """Text inside the image that replies and records may carry: protobuf strings are UTF-8."""
    if not view_has(&check.view, span.off, span.n, 1, 1):
        return False
    check.view.cause = b"text is not UTF-8"
    return utf8_valid(<const char *> check.view.base + span.off, span.n)


cdef bint slots_fit(uint32_t slots, uint32_t count) noexcept nogil:
    return slots > 0 and slots & (slots - 1) == 0 and slots // 2 >= count


cdef int check_header(Check *check) noexcept nogil:
    cdef const Header *h = check.header
    cdef const char *where = b"header"
    if check.view.size < sizeof(Header) or memcmp(h.magic, b"REMITGEN", 8):
        return refuse(check, where, 0, b"not a generation")
    if h.version != IMAGE_VERSION:
        return refuse(check, where, 0, b"written by another version of the compiler")
    if h.size != check.view.size:
        return refuse(check, where, 0, b"another size than the header says")
    if h.flags & ~(<uint32_t> IMAGE_COLUMNS):
        return refuse(check, where, 0, b"unknown flags")
    if h.columns_read[1] >> (COLUMN_COUNT - 64):
        return refuse(check, where, 0, b"unknown columns")
    if not slots_fit(h.uid_slots, h.node_count) or not slots_fit(h.type_slots, h.type_count):
        return refuse(check, where, 0, b"number of slots")
    return 0


cdef int check_sections(Check *check) noexcept nogil:
    cdef const Header *h = check.header
    if not section_fits(check, h.off_nodes, h.node_count, sizeof(Node)):
        return refuse(check, b"nodes", 0, b"section points outside")
    if not section_fits(check, h.off_uid_slots, h.uid_slots, 4):
        return refuse(check, b"uid slots", 0, b"section points outside")
    if not section_fits(check, h.off_types, h.type_count, sizeof(Type)):
        return refuse(check, b"types", 0, b"section points outside")
    if not section_fits(check, h.off_type_slots, h.type_slots, 4):
        return refuse(check, b"type slots", 0, b"section points outside")
    if not section_fits(check, h.off_policies, h.policy_count, sizeof(Policy)):
        return refuse(check, b"policies", 0, b"section points outside")
    if not section_fits(check, h.off_code, h.code_words, 4):
        return refuse(check, b"code", 0, b"section points outside")
    if not section_fits(check, h.off_constants, h.constant_count, sizeof(Cell)):
        return refuse(check, b"constants", 0, b"section points outside")
    if not text_fits(check, &h.extras_read):
        return refuse(check, b"extras", 0, NULL)
    return 0


# ---------------------------------------------------------------- postings


cdef bint filing_fits(int filing, const Policy *policy, uint32_t row, const uint32_t *actions) noexcept nogil:
    """Whether the policy's scope is what the index says: one filed elsewhere would hide from its requests."""
    cdef uint32_t i
    if filing == FILED_PRINCIPAL_EQ:
        return policy.principal_op == SCOPE_EQ and policy.principal_uid == row
    if filing == FILED_PRINCIPAL_IN:
        return policy.principal_op in (SCOPE_IN, SCOPE_IS_IN) and policy.principal_uid == row
    if filing == FILED_PRINCIPAL_IS:
        return policy.principal_op in (SCOPE_IS, SCOPE_IS_IN) and policy.principal_type == row
    if filing == FILED_RESOURCE_EQ:
        return policy.resource_op == SCOPE_EQ and policy.resource_uid == row
    if filing == FILED_RESOURCE_IN:
        return policy.resource_op in (SCOPE_IN, SCOPE_IS_IN) and policy.resource_uid == row
    if filing == FILED_RESOURCE_IS:
        return policy.resource_op in (SCOPE_IS, SCOPE_IS_IN) and policy.resource_type == row
    if filing == FILED_ACTION_EQ:
        return policy.action_op == SCOPE_EQ and policy.action_uid == row
    if filing == FILED_ACTION_IN and policy.action_op == SCOPE_IN_LIST:
        for i in range(policy.action_count):
            if actions[i] == row:
                return True
        return False
    if filing == FILED_ACTION_IN:
        return policy.action_op == SCOPE_IN and policy.action_uid == row
    return filing == FILED_ANY


cdef bint posting_fits(Check *check, uint64_t off, uint32_t n, int filing, uint32_t row) noexcept nogil:
    cdef const uint32_t *rows
    cdef const Policy *policy
    cdef uint8_t by = BY_ACTION if filing == FILED_ACTION_EQ or filing == FILED_ACTION_IN else BY_OTHER
    cdef uint32_t i
    if not view_has(&check.view, off, n, 4, 4):
        return False
    rows = <const uint32_t *> (check.view.base + off)
    check.view.cause = b"posting is not in order or names no policy"
    for i in range(n):
        if rows[i] >= check.header.policy_count or (i and rows[i] <= rows[i - 1]):
            return False
        policy = check.policies + rows[i]
        if not filing_fits(filing, policy, row, <const uint32_t *> (check.view.base + policy.off_action_list)):
            check.view.cause = b"posting names a policy of another scope"
            return False
        if check.filed_by[rows[i]] not in (0, by):
            check.view.cause = b"posting names a policy that is filed elsewhere"
            return False
        check.filed[rows[i]] += 1
        check.filed_by[rows[i]] = by
    return True


cdef bint node_postings_fit(Check *check, const Node *node, uint32_t row) noexcept nogil:
    return (
        posting_fits(check, node.principal_eq.off, node.principal_eq.n, FILED_PRINCIPAL_EQ, row)
        and posting_fits(check, node.principal_in.off, node.principal_in.n, FILED_PRINCIPAL_IN, row)
        and posting_fits(check, node.action_eq.off, node.action_eq.n, FILED_ACTION_EQ, row)
        and posting_fits(check, node.action_in.off, node.action_in.n, FILED_ACTION_IN, row)
        and posting_fits(check, node.resource_eq.off, node.resource_eq.n, FILED_RESOURCE_EQ, row)
        and posting_fits(check, node.resource_in.off, node.resource_in.n, FILED_RESOURCE_IN, row)
    )


cdef int check_filing(Check *check) noexcept nogil:
    """Every policy is in the index, under all of its actions when it is filed by a list of them."""
    cdef uint32_t i, wanted
    for i in range(check.header.policy_count):
        wanted = 1
        if check.policies[i].action_op == SCOPE_IN_LIST:
            # `action in []` matches nothing, so it may stand nowhere.
            if check.filed_by[i] == BY_ACTION or (check.filed_by[i] == 0 and check.policies[i].action_count == 0):
                wanted = check.policies[i].action_count
        if check.filed[i] != wanted:
            return refuse(check, b"policies", i, b"policy is not in the index, or twice")
    return 0


# ---------------------------------------------------------------- types, nodes


cdef int check_types(Check *check) noexcept nogil:
    cdef const Header *h = check.header
    cdef const Type *types = <const Type *> (check.view.base + h.off_types)
    cdef const uint32_t *slots = <const uint32_t *> (check.view.base + h.off_type_slots)
    cdef uint32_t used = 0
    cdef uint32_t i, slot
    for i in range(h.type_slots):
        if slots[i] != NONE32:
            used += 1
            if slots[i] >= h.type_count:
                return refuse(check, b"type slots", i, b"slot names no type")
    if used != h.type_count:
        return refuse(check, b"type slots", 0, b"another number of types than slots in use")
    for i in range(h.type_count):
        if not text_fits(check, &types[i].name):
            return refuse(check, b"types", i, NULL)
        slot = <uint32_t> type_hash(<const char *> check.view.base + types[i].name.off, types[i].name.n)
        slot &= h.type_slots - 1
        # At least half of the slots are free, so every probe ends.
        while slots[slot] != i and slots[slot] != NONE32:
            slot = (slot + 1) & (h.type_slots - 1)
        if slots[slot] != i:
            return refuse(check, b"types", i, b"type is not found under its hash")
        if not posting_fits(check, types[i].principal_is.off, types[i].principal_is.n, FILED_PRINCIPAL_IS, i):
            return refuse(check, b"types", i, NULL)
        if not posting_fits(check, types[i].resource_is.off, types[i].resource_is.n, FILED_RESOURCE_IS, i):
            return refuse(check, b"types", i, NULL)
    return 0


cdef int check_uids(Check *check, const Node *nodes) noexcept nogil:
    cdef const Header *h = check.header
    cdef const uint32_t *slots = <const uint32_t *> (check.view.base + h.off_uid_slots)
    cdef uint32_t used = 0
    cdef uint32_t i, slot
    for i in range(h.uid_slots):
        if slots[i] != NONE32:
            used += 1
            if slots[i] >= h.node_count:
                return refuse(check, b"uid slots", i, b"slot names no node")
    if used != h.node_count:
        return refuse(check, b"uid slots", 0, b"another number of nodes than slots in use")
    for i in range(h.node_count):
        if not view_uid(&check.view, nodes[i].off_uid, i):
            return refuse(check, b"nodes", i, NULL)
        slot = <uint32_t> (<const Uid *> (check.view.base + nodes[i].off_uid)).hash & (h.uid_slots - 1)
        while slots[slot] != i and slots[slot] != NONE32:
            slot = (slot + 1) & (h.uid_slots - 1)
        if slots[slot] != i:
            return refuse(check, b"nodes", i, b"uid is not found under its hash")
    return 0


cdef bint ascending_fits(Check *check, uint64_t off, uint32_t n) noexcept nogil:
    """An ascending list of nodes."""
    cdef const uint32_t *rows
    cdef uint32_t i
    if not view_has(&check.view, off, n, 4, 4):
        return False
    rows = <const uint32_t *> (check.view.base + off)
    for i in range(n):
        if rows[i] >= check.header.node_count or (i and rows[i] <= rows[i - 1]):
            check.view.cause = b"list of nodes is not in order or names no node"
            return False
    return True


cdef bint record_fits(Check *check, const Cell *cell) noexcept nogil:
    if cell.kind != KIND_RECORD:
        check.view.cause = b"attributes or tags are not a record"
        return False
    return view_cell(&check.view, cell, 0)


cdef int check_nodes(Check *check) noexcept nogil:
    cdef const Header *h = check.header
    cdef const Node *nodes = <const Node *> (check.view.base + h.off_nodes)
    cdef const Node *node
    cdef uint32_t present = 0
    cdef uint32_t i
    if check_uids(check, nodes):
        return 1
    for i in range(h.node_count):
        node = nodes + i
        if node.present > 1 or node.ancestor_count > h.ancestors_max:
            return refuse(check, b"nodes", i, b"impossible count")
        if not ascending_fits(check, node.off_ancestors, node.ancestor_count):
            return refuse(check, b"nodes", i, NULL)
        if not record_fits(check, &node.attrs) or not record_fits(check, &node.tags):
            return refuse(check, b"nodes", i, NULL)
        if not node_postings_fit(check, node, i):
            return refuse(check, b"nodes", i, NULL)
        present += node.present
    if present != h.entity_count:
        return refuse(check, b"nodes", 0, b"another number of entities than the header says")
    return 0


# ---------------------------------------------------------------- policies


cdef bint scope_fits(const Header *h, int op, uint32_t uid, uint32_t type_) noexcept nogil:
    cdef bint with_uid = op in (SCOPE_EQ, SCOPE_IN, SCOPE_IS_IN)
    cdef bint with_type = op in (SCOPE_IS, SCOPE_IS_IN)
    if op > SCOPE_IS_IN:
        return False
    if type_ != NONE32 if not with_type else type_ >= h.type_count:
        return False
    return uid < h.node_count if with_uid else uid == NONE32


cdef bint actions_fit(Check *check, const Policy *policy) noexcept nogil:
    check.view.cause = b"scope names no node or type"
    if not ascending_fits(check, policy.off_action_list, policy.action_count):
        return False
    if policy.action_op == SCOPE_IN_LIST:
        return policy.action_uid == NONE32
    return policy.action_count == 0 and policy.action_op <= SCOPE_IN and scope_fits(
        check.header, policy.action_op, policy.action_uid, NONE32
    )


cdef bint texts_fit(Check *check, const Policy *policy) noexcept nogil:
    return (
        text_fits(check, &policy.id)
        and text_fits(check, &policy.template)
        and text_fits(check, &policy.reason)
        and text_fits(check, &policy.obligation)
        and text_fits(check, &policy.annotations)
    )


cdef int check_policies(Check *check) noexcept nogil:
    """Scopes and texts; programs follow once the constants are known to be sound."""
    cdef const Header *h = check.header
    cdef const Policy *policy
    cdef uint32_t i
    for i in range(h.policy_count):
        policy = check.policies + i
        if policy.effect > EFFECT_FORBID or policy.flags > (
            POLICY_CURABLE | POLICY_NEVER | POLICY_SHADOW | POLICY_TASKLESS
        ):
            return refuse(check, b"policies", i, b"unknown effect or flags")
        if not scope_fits(h, policy.principal_op, policy.principal_uid, policy.principal_type) or not scope_fits(
            h, policy.resource_op, policy.resource_uid, policy.resource_type
        ):
            return refuse(check, b"policies", i, b"scope names no node or type")
        if not actions_fit(check, policy) or not texts_fit(check, policy):
            return refuse(check, b"policies", i, NULL)
        if policy.code > h.code_words or policy.code_words > h.code_words - policy.code:
            return refuse(check, b"policies", i, b"program points outside")
    return 0


cdef int check_constants(Check *check) noexcept nogil:
    cdef const Cell *constants = <const Cell *> (check.view.base + check.header.off_constants)
    cdef uint64_t i
    for i in range(check.header.constant_count):
        if not view_cell(&check.view, constants + i, 0):
            return refuse(check, b"constants", i, NULL)
    return 0


cdef bint code_known(Check *check, const Policy *policy) noexcept nogil:
    """Whether the same program was checked for another link of its template."""
    cdef uint64_t at = policy.code
    return check.done[at] and check.done_words[at] == policy.code_words and check.done_stack[at] <= policy.stack


cdef int check_code(Check *check) noexcept nogil:
    cdef const Policy *policy
    cdef uint32_t i
    for i in range(check.header.policy_count):
        policy = check.policies + i
        if policy.code_words == 0 or code_known(check, policy):
            continue
        if not code_check(&check.view, policy, check.depths):
            return refuse(check, b"code", i, NULL)
        check.done[policy.code] = 1
        check.done_words[policy.code] = policy.code_words
        check.done_stack[policy.code] = policy.stack
    return 0


# ---------------------------------------------------------------- the rest


cdef int check_any(Check *check) noexcept nogil:
    if not posting_fits(check, check.header.any_policies.off, check.header.any_policies.n, FILED_ANY, 0):
        return refuse(check, b"any policies", 0, NULL)
    return 0


cdef int check_inputs(Check *check) noexcept nogil:
    cdef const Span *span = &check.header.input_actions
    cdef const InputShape *shapes
    cdef const Cell *constants = <const Cell *> (check.view.base + check.header.off_constants)
    cdef uint32_t i
    if not view_has(&check.view, span.off, span.n, sizeof(InputShape), 8):
        return refuse(check, b"input shapes", 0, NULL)
    shapes = <const InputShape *> (check.view.base + span.off)
    for i in range(span.n):
        if shapes[i].action >= check.header.node_count or (i and shapes[i].action <= shapes[i - 1].action):
            return refuse(check, b"input shapes", i, b"list of nodes is not in order or names no node")
        if shapes[i].shape >= check.header.constant_count or constants[shapes[i].shape].kind != KIND_RECORD:
            return refuse(check, b"input shapes", i, b"shape is not a record")
    return 0


cdef int check_all(Check *check) noexcept nogil:
    if check_policies(check) or check_types(check) or check_nodes(check) or check_any(check) or check_filing(check):
        return 1
    return check_constants(check) or check_code(check) or check_inputs(check)


cdef int structure_check(const uint8_t *image, uint64_t size, Fault *fault) noexcept nogil:
    cdef Check check
    cdef int bad
    check.header = <const Header *> image
    check.fault = fault
    check.view.base = image
    check.view.size = size
    check.view.header = check.header
    # Values may be shared between entities; beyond this an image costs more to check than to write anew.
    check.view.budget = 16 * size + 1000000
    check.view.cause = b""
    if check_header(&check) or check_sections(&check):
        return 1
    check.policies = <const Policy *> (image + check.header.off_policies)
    check.filed = <uint32_t *> calloc(check.header.policy_count + 1, 4)
    check.filed_by = <uint8_t *> calloc(check.header.policy_count + 1, 1)
    check.depths = <int32_t *> malloc(4 * check.header.code_words + 4)
    check.done = <uint8_t *> calloc(check.header.code_words + 1, 1)
    check.done_words = <uint32_t *> malloc(4 * check.header.code_words + 4)
    check.done_stack = <uint32_t *> malloc(4 * check.header.code_words + 4)
    if (
        check.filed is NULL or check.filed_by is NULL or check.depths is NULL
        or check.done is NULL or check.done_words is NULL or check.done_stack is NULL
    ):
        bad = refuse(&check, b"header", 0, b"no memory to check it")
    else:
        bad = check_all(&check)
    free(check.filed)
    free(check.filed_by)
    free(check.depths)
    free(check.done)
    free(check.done_words)
    free(check.done_stack)
    return bad
