"""The checks of single rows, for structure.pyx (a base) and delta_check.pyx (what a delta adds)."""
from fastpath.bounds cimport view_cell, view_node_uid, view_reaches, view_text
from fastpath.codecheck cimport code_check
from fastpath.image cimport (
    EFFECT_FORBID,
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
    INHERITED,
    NODE_ABOVE,
    NODE_DEEP,
    NODE_INHERITS,
    NODE_LIST,
    NODE_PARENT,
    NODE_PRESENT,
    NODE_SAME,
    NODE_UNDER_PRINCIPAL_IN,
    NODE_UNDER_RESOURCE_IN,
    NONE32,
    POLICY_CURABLE,
    POLICY_NEVER,
    POLICY_OBLIGES,
    POLICY_SHADOW,
    POLICY_TASKLESS,
    SCOPE_EQ,
    SCOPE_IN,
    SCOPE_IN_LIST,
    SCOPE_IS,
    SCOPE_IS_IN,
    Entry,
    List,
)
from fastpath.rows cimport (
    base_node,
    bits_in,
    entries,
    list_rows,
    node_list,
    table_at,
    table_node,
    table_note,
    table_policy,
    under_flag,
)
from fastpath.table cimport node_is_in
from fastpath.value cimport KIND_RECORD, Cell
from libc.stdlib cimport calloc, free, malloc

cdef enum:
    BY_ACTION = 1        # filed under its actions, each of them
    BY_OTHER = 2         # filed once, under its principal, its resource or nothing


cdef int refuse(Check *check, const char *section, uint64_t row, const char *cause) noexcept nogil:
    check.fault.section = section
    check.fault.row = row
    check.fault.cause = cause if cause is not NULL else check.view.cause
    return 1


cdef inline bint wrong(Check *check, const char *cause) noexcept nogil:
    check.view.cause = cause
    return False


cdef int check_begin(Check *check, uint64_t words_max) noexcept nogil:
    check.filed = <uint32_t *> calloc(check.policy_rows + 1, 4)
    check.filed_by = <uint8_t *> calloc(check.policy_rows + 1, 1)
    check.depths = <int32_t *> malloc(4 * words_max + 4)
    check.marks = <uint32_t *> calloc(<uint64_t> check.table.totals.node_count + 1, 4)
    check.done = <uint8_t *> calloc(check.code_words + 1, 1)
    check.done_words = <uint32_t *> malloc(4 * <uint64_t> check.code_words + 4)
    check.done_stack = <uint32_t *> malloc(4 * <uint64_t> check.code_words + 4)
    if (
        check.filed is NULL or check.filed_by is NULL or check.depths is NULL or check.marks is NULL
        or check.done is NULL or check.done_words is NULL or check.done_stack is NULL
    ):
        return refuse(check, b"header", 0, b"no memory to check it")
    return 0


cdef void check_end(Check *check) noexcept nogil:
    free(check.filed)
    free(check.filed_by)
    free(check.depths)
    free(check.marks)
    free(check.done)
    free(check.done_words)
    free(check.done_stack)


# ---------------------------------------------------------------- slots


cdef bint slots_fit(uint32_t slots, uint32_t count) noexcept nogil:
    return slots > 0 and slots & (slots - 1) == 0 and slots // 2 >= count


cdef bint slots_sound(Check *check, const Slot *slots, uint32_t n, uint32_t first, uint32_t count) noexcept nogil:
    cdef uint32_t used = 0
    cdef uint32_t i
    for i in range(n):
        if slots[i].row == NONE32:
            continue
        used += 1
        if slots[i].row < first or slots[i].row - first >= count:
            return wrong(check, b"slot names no row")
    return used == count or wrong(check, b"another number of rows than slots in use")


# ---------------------------------------------------------------- lists


cdef bint entries_fit(Check *check, const Entries *list_) noexcept nogil:
    """Whether a list is in order and names none but the policies that are checked, each with a guard that fits."""
    cdef const Entry *found
    cdef uint32_t i
    if list_.n == 0:
        return True
    if not view_reaches(&check.view, list_.at, list_.n, sizeof(Entry)):
        return False
    found = entries(&check.table, list_)
    for i in range(list_.n):
        if found[i].policy < check.first_policy or found[i].policy - check.first_policy >= check.policy_rows:
            return wrong(check, b"list is not in order or names no row")
        if i and found[i].policy <= found[i - 1].policy:
            return wrong(check, b"list is not in order or names no row")
        if not guard_fits(found[i].guard, table_policy(&check.table, found[i].policy)):
            return wrong(check, b"guard is no constraint of its policy")
    return True


cdef bint nodes_fit(Check *check, const List *list_) noexcept nogil:
    cdef const uint32_t *rows
    cdef uint32_t i
    if list_.n > 1 and not view_reaches(&check.view, list_.at, list_.n, 4):
        return False
    rows = list_rows(&check.table, list_)
    for i in range(list_.n):
        if rows[i] >= check.table.totals.node_count or (i and rows[i] <= rows[i - 1]):
            return wrong(check, b"list is not in order or names no row")
    return True


cdef bint actions_hold(Check *check, const Policy *policy, uint32_t node) noexcept nogil:
    cdef const uint32_t *actions = list_rows(&check.table, &policy.actions)
    cdef uint32_t i
    for i in range(policy.actions.n):
        if actions[i] == node:
            return True
    return False


cdef bint filing_fits(Check *check, int under, const Policy *policy, uint32_t row) noexcept nogil:
    """Whether the policy's scope is what the index says: one filed elsewhere would hide from its requests."""
    if under == FILED_ACTION_IN and policy.action_op == SCOPE_IN_LIST:
        return actions_hold(check, policy, row)
    return under == FILED_ANY or constrains(under, policy, row)


cdef bint constrains(int under, const Policy *policy, uint32_t row) noexcept nogil:
    """Whether no call is in the policy's scope that does not meet one constraint, by FiledUnder and row."""
    if under == FILED_PRINCIPAL_EQ:
        return policy.principal_op == SCOPE_EQ and policy.principal_uid == row
    if under == FILED_PRINCIPAL_IN:
        return policy.principal_op in (SCOPE_IN, SCOPE_IS_IN) and policy.principal_uid == row
    if under == FILED_PRINCIPAL_IS:
        return policy.principal_op in (SCOPE_IS, SCOPE_IS_IN) and policy.principal_type == row
    if under == FILED_RESOURCE_EQ:
        return policy.resource_op == SCOPE_EQ and policy.resource_uid == row
    if under == FILED_RESOURCE_IN:
        return policy.resource_op in (SCOPE_IN, SCOPE_IS_IN) and policy.resource_uid == row
    if under == FILED_RESOURCE_IS:
        return policy.resource_op in (SCOPE_IS, SCOPE_IS_IN) and policy.resource_type == row
    if under == FILED_ACTION_EQ:
        return policy.action_op == SCOPE_EQ and policy.action_uid == row
    return under == FILED_ACTION_IN and policy.action_op == SCOPE_IN and policy.action_uid == row


cdef bint guard_fits(uint32_t guard, const Policy *policy) noexcept nogil:
    """INVARIANT (guards): who does not meet a guard is not in the scope, so the policy need not be looked at."""
    if guard == <uint32_t> FILED_ANY << GUARD_SHIFT:
        return True
    return constrains(guard >> GUARD_SHIFT, policy, guard & <uint32_t> (GUARD_ROWS - 1))


cdef bint posting_fits(Check *check, const Entries *list_, int under, uint32_t row) noexcept nogil:
    """A list of policies. A delta's lists add to the base's, so they name none but the delta's policies."""
    cdef const Entry *found = entries(&check.table, list_)
    cdef uint8_t by = BY_ACTION if under == FILED_ACTION_EQ or under == FILED_ACTION_IN else BY_OTHER
    cdef uint32_t i, at
    if not entries_fit(check, list_):
        return False
    for i in range(list_.n):
        at = found[i].policy - check.first_policy
        if not filing_fits(check, under, table_policy(&check.table, found[i].policy), row):
            return wrong(check, b"list names a policy of another scope")
        if check.filed_by[at] not in (0, by):
            return wrong(check, b"list names a policy that is filed elsewhere")
        check.filed[at] += 1
        check.filed_by[at] = by
    return True


cdef bint list_filed(Check *check, const Entries *list_) noexcept nogil:
    return posting_fits(check, list_, FILED_ANY, 0)


cdef bint policy_filed(Check *check, uint32_t index) noexcept nogil:
    cdef const Policy *policy = table_policy(&check.table, index)
    cdef uint32_t at = index - check.first_policy
    cdef uint32_t wanted = 1
    if policy.action_op == SCOPE_IN_LIST:
        # `action in []` matches nothing, so it may stand nowhere.
        if check.filed_by[at] == BY_ACTION or (check.filed_by[at] == 0 and policy.actions.n == 0):
            wanted = policy.actions.n
    return check.filed[at] == wanted or wrong(check, b"policy is not in the index, or twice")


# ---------------------------------------------------------------- nodes, types


cdef bint record_fits(Check *check, uint32_t at) noexcept nogil:
    cdef const Cell *cell
    if not view_reaches(&check.view, at, 1, sizeof(Cell)):
        return False
    cell = <const Cell *> table_at(&check.table, at)
    if cell.kind != KIND_RECORD:
        return wrong(check, b"attributes or tags are not a record")
    return view_cell(&check.view, cell, 0)


cdef bint marked(Check *check, const List *above, uint32_t mark, uint32_t *met) noexcept nogil:
    """Whether all of `above` bear the mark of a closure's members; counts those that are met first."""
    cdef const uint32_t *rows = list_rows(&check.table, above)
    cdef uint32_t i
    if not nodes_fit(check, above):
        return False
    for i in range(above.n):
        if check.marks[rows[i]] == mark:
            check.marks[rows[i]] = mark + 1
            met[0] += 1
        elif check.marks[rows[i]] != mark + 1:
            return wrong(check, b"an ancestor is not among the ancestors")
    return True


cdef bint closure_fits(Check *check, const Node *node, uint32_t index) noexcept nogil:
    """Whether a parent's ancestors are its own parents and their ancestors, no other: so what is in a ring would be in
    itself. The parents have been checked, but for their closures.
    """
    cdef const uint32_t *above = list_rows(&check.table, &node.closure)
    cdef const uint32_t *parents = list_rows(&check.table, &node.parents)
    # Of this row alone: there are at most GUARD_ROWS of them.
    cdef uint32_t mark = 2 * (index + 1)
    cdef uint32_t met = 0
    cdef uint32_t i
    if not nodes_fit(check, &node.closure):
        return False
    for i in range(node.closure.n):
        check.marks[above[i]] = mark
        if above[i] == index:
            return wrong(check, b"a parent is in itself")
    if not marked(check, &node.parents, mark, &met):
        return False
    for i in range(node.parents.n):
        if not marked(check, &table_node(&check.table, parents[i]).closure, mark, &met):
            return False
    return met == node.closure.n or wrong(check, b"an ancestor is no ancestor of its parents")


cdef uint32_t lists_of(const Node *node) noexcept nogil:
    """The NODE_UNDER flags of those that are in a node with such lists of policies."""
    cdef uint32_t found = 0
    cdef int under
    for under in range(<int> FILED_PRINCIPAL_IN, <int> FILED_ACTION_IN + 1, 2):
        if node.flags & <uint32_t> NODE_LIST << under:
            found |= under_flag(under)
    return found


cdef bint above_fits(Check *check, const Node *node) noexcept nogil:
    """Whether the flags name all that is above a node: what they do not name, no call looks for."""
    cdef const uint32_t *parents = list_rows(&check.table, &node.parents)
    cdef const uint32_t *closure = list_rows(&check.table, &node.closure)
    cdef const Node *parent
    cdef uint32_t found = 0
    cdef uint32_t i
    for i in range(node.parents.n):
        parent = table_node(&check.table, parents[i])
        # What is above the parent was, or will be, checked with the parent's own row.
        found |= lists_of(parent) | (parent.flags & <uint32_t> NODE_ABOVE)
        if parent.closure.n:
            found |= NODE_DEEP
    for i in range(node.closure.n if node.flags & NODE_PARENT else 0):
        found |= lists_of(table_node(&check.table, closure[i]))
    return found & ~node.flags == 0 or wrong(check, b"flags deny what is above it")


cdef bint parents_fit(Check *check, const Node *node, uint32_t index) noexcept nogil:
    """Each parent knows that it is one, and what it is in is in the closure of those that have children in turn."""
    cdef const uint32_t *rows = list_rows(&check.table, &node.parents)
    cdef uint32_t i
    if not nodes_fit(check, &node.parents):
        return False
    for i in range(node.parents.n):
        if not table_node(&check.table, rows[i]).flags & NODE_PARENT:
            return wrong(check, b"a parent has no ancestors of its own")
    if not node.flags & NODE_PARENT:
        return node.closure.n == 0 or wrong(check, b"ancestors of what is no parent")
    if node.flags & NODE_INHERITS:
        return wrong(check, b"a parent inherits policies")
    return closure_fits(check, node, index)


cdef bint lists_policy(const Table *t, const Node *node, int kind, uint32_t policy) noexcept nogil:
    """Whether a list that has been checked, or that a row does not have, holds a policy."""
    cdef const Entries *list_ = node_list(t, node, kind)
    cdef const Entry *found = entries(t, list_) if list_ is not NULL else NULL
    cdef uint32_t low = 0
    cdef uint32_t high = list_.n if list_ is not NULL else 0
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if found[middle].policy == policy:
            return True
        if found[middle].policy < policy:
            low = middle + 1
        else:
            high = middle
    return False


cdef bint hands_down(const Table *t, const Node *ancestor, int under, const Node *node) noexcept nogil:
    """Whether all that is filed under an ancestor is in a node's list of it."""
    cdef const Entries *list_ = node_list(t, ancestor, under)
    cdef const Entry *found
    cdef uint32_t i
    if list_ is NULL:
        return True
    found = entries(t, list_)
    for i in range(list_.n):
        if not lists_policy(t, node, INHERITED, found[i].policy):
            return False
    return True


cdef bint inherits_all(const Table *t, const Node *node, int under) noexcept nogil:
    cdef const uint32_t *parents = list_rows(t, &node.parents)
    cdef const uint32_t *above
    cdef const Node *parent
    cdef uint32_t i, j
    for i in range(node.parents.n):
        parent = table_node(t, parents[i])
        above = list_rows(t, &parent.closure)
        if not hands_down(t, parent, under, node):
            return False
        for j in range(parent.closure.n):
            if not hands_down(t, table_node(t, above[j]), under, node):
                return False
    return True


cdef bint inherits_no_other(const Table *t, const Node *node, int under) noexcept nogil:
    cdef const Entries *list_ = node_list(t, node, INHERITED)
    cdef const Entry *found = entries(t, list_)
    cdef const Policy *policy
    cdef uint32_t i, group
    for i in range(list_.n):
        policy = table_policy(t, found[i].policy)
        group = policy.principal_uid if under == FILED_PRINCIPAL_IN else policy.resource_uid
        if group == NONE32 or not node_is_in(t, node, group):
            return False
        if not lists_policy(t, table_node(t, group), under, found[i].policy):
            return False
    return True


cdef bint inherited_fits(Check *check, const Node *node) noexcept nogil:
    """Whether a node's list of what is filed under its ancestors has all of that, and nothing else that a call would
    meet twice. All nodes have been checked.
    """
    cdef uint32_t kind = node.flags & <uint32_t> (NODE_ABOVE & ~NODE_DEEP)
    cdef int under = FILED_PRINCIPAL_IN if kind == NODE_UNDER_PRINCIPAL_IN else FILED_RESOURCE_IN
    if not node.flags & NODE_INHERITS:
        return True
    if kind not in (NODE_UNDER_PRINCIPAL_IN, NODE_UNDER_RESOURCE_IN):
        return wrong(check, b"policies of several kinds in one list")
    return (inherits_all(&check.table, node, under) and inherits_no_other(&check.table, node, under)) or wrong(
        check, b"other policies than those of its ancestors"
    )


cdef bint filed_fit(Check *check, const Node *node, uint32_t index) noexcept nogil:
    """Whether the lists of policies that a row's flags name are inside; the inherited one is judged later."""
    cdef uint32_t lists = node.flags // NODE_LIST
    cdef const Entries *list_
    cdef int under
    # One list is the row's own, so only of several there is more to read.
    if lists & (lists - 1):
        if node.lists.n != <uint32_t> bits_in(lists):
            return wrong(check, b"another number of lists than the flags say")
        if not view_reaches(&check.view, node.lists.at, node.lists.n, sizeof(Entries)):
            return False
    for under in range(<int> FILED_NODES):
        list_ = node_list(&check.table, node, under)
        if list_ is not NULL and not posting_fits(check, list_, under, index):
            return False
    list_ = node_list(&check.table, node, INHERITED)
    return list_ is NULL or entries_fit(check, list_)


cdef bint node_fits(Check *check, const Node *node, uint32_t index, uint32_t flags_known) noexcept nogil:
    cdef const Node *base = base_node(&check.table, index)
    if node.flags & ~(flags_known | NODE_ABOVE | (NODE_INHERITS - NODE_LIST)):
        return wrong(check, b"unknown flags")
    if node.flags & NODE_SAME and (base is NULL or (base.flags ^ node.flags) & NODE_PRESENT):
        return wrong(check, b"attributes of another row")
    return (
        view_node_uid(&check.view, index)
        and parents_fit(check, node, index)
        and above_fits(check, node)
        and record_fits(check, node.attrs)
        and record_fits(check, node.tags)
        and filed_fit(check, node, index)
    )


cdef bint type_fits(Check *check, const Type *type_, uint32_t index) noexcept nogil:
    return (
        view_text(&check.view, &type_.name)
        and posting_fits(check, &type_.principal_is, FILED_PRINCIPAL_IS, index)
        and posting_fits(check, &type_.resource_is, FILED_RESOURCE_IS, index)
    )


# ---------------------------------------------------------------- policies


cdef bint scope_fits(Check *check, int op, uint32_t uid, uint32_t type_) noexcept nogil:
    cdef bint with_uid = op in (SCOPE_EQ, SCOPE_IN, SCOPE_IS_IN)
    cdef bint with_type = op in (SCOPE_IS, SCOPE_IS_IN)
    if op > SCOPE_IS_IN:
        return False
    if type_ != NONE32 if not with_type else type_ >= check.table.totals.type_count:
        return False
    return uid < check.table.totals.node_count if with_uid else uid == NONE32


cdef bint actions_fit(Check *check, const Policy *policy) noexcept nogil:
    if policy.action_op == SCOPE_IN_LIST:
        return policy.action_uid == NONE32 and nodes_fit(check, &policy.actions)
    return policy.actions.n == 0 and policy.action_op <= SCOPE_IN and scope_fits(
        check, policy.action_op, policy.action_uid, NONE32
    )


cdef bint code_inside(Check *check, const Policy *policy) noexcept nogil:
    cdef uint64_t first = 0
    cdef uint64_t words = check.table.header.code_words
    if policy.code >= words and check.table.delta is not NULL:
        first = words
        words = check.table.delta.code_words
    return policy.code - first <= words and policy.code_words <= words - (policy.code - first)


cdef bint policy_fits(Check *check, const Policy *policy) noexcept nogil:
    """Scope and texts; programs follow once the constants are known to be sound."""
    cdef uint64_t notes = check.table.header.note_count
    if check.table.delta is not NULL:
        notes += check.table.delta.note_count
    if policy.effect > EFFECT_FORBID:
        return wrong(check, b"unknown effect or flags")
    if policy.flags & ~(POLICY_CURABLE | POLICY_NEVER | POLICY_SHADOW | POLICY_OBLIGES | POLICY_TASKLESS):
        return wrong(check, b"unknown effect or flags")
    check.view.cause = b"scope names no node or type"
    if not (
        scope_fits(check, policy.principal_op, policy.principal_uid, policy.principal_type)
        and scope_fits(check, policy.resource_op, policy.resource_uid, policy.resource_type)
        and actions_fit(check, policy)
    ):
        return False
    if not view_text(&check.view, &policy.id):
        return False
    if policy.note >= notes:
        return wrong(check, b"policy names no note")
    if (policy.flags & POLICY_OBLIGES != 0) != (table_note(&check.table, policy).obligation.n != 0):
        return wrong(check, b"obligation is not what the flags say")
    if policy.rank > check.table.header.totals.policy_rows or (policy.rank and check.table.delta is NULL):
        return wrong(check, b"impossible rank")
    return code_inside(check, policy) or wrong(check, b"program points outside")


cdef bint note_fits(Check *check, const Note *note) noexcept nogil:
    return (
        view_text(&check.view, &note.template)
        and view_text(&check.view, &note.reason)
        and view_text(&check.view, &note.obligation)
        and view_text(&check.view, &note.annotations)
    )


cdef bint program_fits(Check *check, const Policy *policy) noexcept nogil:
    cdef uint32_t at = policy.code - check.first_code
    cdef bint known = policy.code >= check.first_code
    if policy.code_words == 0:
        return True
    # The same program may have been checked for another link of its template.
    if known and check.done[at] and check.done_words[at] == policy.code_words and check.done_stack[at] <= policy.stack:
        return True
    if not code_check(&check.view, policy, check.depths):
        return False
    if known:
        check.done[at] = 1
        check.done_words[at] = policy.code_words
        check.done_stack[at] = policy.stack
    return True
