"""Walks the posting lists of a call. The cost follows the policies that can match, not those there are.

INVARIANT (filed once): a policy stands in the lists of its principal, or of its resource, or in the list of those filed
under nothing, once; or under its actions, under each of a list of them (structure.pyx). So no candidate is missed, and
the only one that can be met twice is one with a list of actions.
"""
from fastpath.image cimport (
    FILED_ACTION_EQ,
    FILED_ACTION_IN,
    FILED_PRINCIPAL_EQ,
    FILED_PRINCIPAL_IN,
    FILED_PRINCIPAL_IS,
    FILED_RESOURCE_EQ,
    FILED_RESOURCE_IN,
    FILED_RESOURCE_IS,
    GUARD_ROWS,
    GUARD_SHIFT,
    INHERITED,
    NODE_DEEP,
    NODE_INHERITS,
    NODE_PARENT,
    SCOPE_ANY,
    SCOPE_EQ,
    SCOPE_IN,
    SCOPE_IN_LIST,
    SCOPE_IS,
    Entries,
    Entry,
    Node,
    Type,
)
from fastpath.rows cimport (
    base_node,
    base_type,
    deep_parent,
    delta_node,
    delta_type,
    entries,
    inherits,
    leads_on,
    list_rows,
    node_list,
    prefetch,
    table_at,
    table_node,
    table_policy,
    under_flag,
)
from fastpath.table cimport list_has, node_is_in, table_is_in
from fastpath.value cimport UID_UNKNOWN, Uid
from libc.stdint cimport uint64_t

cdef enum:
    PARENTS_AHEAD = 8        # of a node are fetched before their lists are looked at
    FULL = 1                 # ends a walk that does not visit


# ---------------------------------------------------------------- scope


cdef uint32_t first_action(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil:
    """The first of the policy's actions that the call's action is in, or UID_UNKNOWN."""
    cdef const uint32_t *actions = list_rows(t, &policy.actions)
    cdef uint32_t i
    for i in range(policy.actions.n):
        if table_is_in(t, context.action, actions[i]):
            return actions[i]
    return UID_UNKNOWN


cdef bint action_matches(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil:
    if policy.action_op == SCOPE_ANY:
        return True
    if policy.action_op == SCOPE_EQ:
        return context.action.index == policy.action_uid
    if policy.action_op == SCOPE_IN:
        return table_is_in(t, context.action, policy.action_uid)
    return first_action(t, context, policy) != UID_UNKNOWN


cdef bint resource_is_in(const Table *t, const EvalContext *context, uint32_t group) noexcept nogil:
    if table_is_in(t, context.resource, group):
        return True
    return context.resource_parent is not NULL and table_is_in(t, context.resource_parent, group)


cdef bint principal_matches(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil:
    cdef const Uid *uid = context.principal
    if policy.principal_op == SCOPE_ANY:
        return True
    if policy.principal_op == SCOPE_EQ:
        return uid.index == policy.principal_uid
    if policy.principal_op != SCOPE_IN and uid.type_index != policy.principal_type:
        return False
    return policy.principal_op == SCOPE_IS or table_is_in(t, uid, policy.principal_uid)


cdef bint resource_matches(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil:
    cdef const Uid *uid = context.resource
    if policy.resource_op == SCOPE_ANY:
        return True
    if policy.resource_op == SCOPE_EQ:
        return uid.index == policy.resource_uid
    if policy.resource_op != SCOPE_IN and uid.type_index != policy.resource_type:
        return False
    return policy.resource_op == SCOPE_IS or resource_is_in(t, context, policy.resource_uid)


cdef bint scope_matches(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil:
    return (
        action_matches(t, context, policy)
        and principal_matches(t, context, policy)
        and resource_matches(t, context, policy)
    )


# ---------------------------------------------------------------- guards


cdef bint guard_holds(const Table *t, const EvalContext *context, uint32_t guard) noexcept nogil:
    """Whether a call may be in the scope of a policy with this guard. INVARIANT (guards): rowcheck.pyx has proved that
    a guard is a constraint of the policy that it stands beside.
    """
    cdef uint32_t kind = guard >> GUARD_SHIFT
    cdef uint32_t row = guard & <uint32_t> (GUARD_ROWS - 1)
    if kind == FILED_PRINCIPAL_EQ:
        return context.principal.index == row
    if kind == FILED_RESOURCE_EQ:
        return context.resource.index == row
    if kind == FILED_ACTION_EQ:
        return context.action.index == row
    if kind == FILED_PRINCIPAL_IN:
        return table_is_in(t, context.principal, row)
    if kind == FILED_RESOURCE_IN:
        return resource_is_in(t, context, row)
    if kind == FILED_ACTION_IN:
        return table_is_in(t, context.action, row)
    if kind == FILED_PRINCIPAL_IS:
        return context.principal.type_index == row
    if kind == FILED_RESOURCE_IS:
        return context.resource.type_index == row
    return True


# ---------------------------------------------------------------- fetching

# What a walk will read is asked for before any of it is waited for: in a large table none of it is in a cache.


cdef inline void fetch_list(const Table *t, const Node *node, int kind) noexcept nogil:
    """A list of policies that does not stand in its node's row, which is there."""
    cdef const Entries *list_ = node_list(t, node, kind)
    cdef const Entry *found
    if list_ is NULL:
        return
    found = entries(t, list_)
    if <uint64_t> (<const char *> found - <const char *> node) >= sizeof(Node):
        prefetch(found)


cdef void fetch_node(const Table *t, uint32_t index, int under) noexcept nogil:
    """The attributes of a node, its lists, and the rows of its parents."""
    cdef const Node *node = base_node(t, index)
    cdef const uint32_t *parents
    cdef const char *attrs
    cdef uint32_t i
    if node is NULL:
        return
    attrs = <const char *> table_at(t, node.attrs)
    prefetch(attrs)
    prefetch(attrs + 64)
    fetch_list(t, node, under)
    fetch_list(t, node, under + 1)
    if node.flags & NODE_INHERITS or not node.flags & (under_flag(under + 1) | NODE_DEEP):
        return
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n if node.parents.n < PARENTS_AHEAD else PARENTS_AHEAD):
        # The line of its lists, and the one where short lists stand.
        prefetch(t.nodes + parents[i])
        prefetch(<const char *> (t.nodes + parents[i]) + 64)


cdef void fetch_above(const Table *t, uint32_t index, int under) noexcept nogil:
    """The lists of a node's parents, whose rows are on their way."""
    cdef const Node *node = base_node(t, index)
    cdef const uint32_t *parents
    cdef uint32_t i
    if node is NULL or node.flags & NODE_INHERITS or not node.flags & under_flag(under):
        return
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n if node.parents.n < PARENTS_AHEAD else PARENTS_AHEAD):
        if parents[i] < t.header.totals.node_count:
            fetch_list(t, t.nodes + parents[i], under)


# ---------------------------------------------------------------- walk


cdef int walk_policy(Walk *walk, const Candidate *one) noexcept nogil:
    cdef const Policy *policy
    if one.action != UID_UNKNOWN:
        policy = table_policy(walk.t, one.policy)
        # Of a list of actions only the first that matches brings the policy, so that it is met once.
        if policy.action_op == SCOPE_IN_LIST and first_action(walk.t, walk.context, policy) != one.action:
            return 0
    return walk.visit(walk.state, one.policy)


cdef int walk_met(Walk *walk) noexcept nogil:
    """Visit what was met since the last time, in the order in which it was."""
    cdef uint32_t n = walk.n
    cdef uint32_t i
    cdef int stop
    walk.n = 0
    for i in range(n):
        stop = walk_policy(walk, walk.met + i)
        if stop:
            return stop
    return 0


cdef int walk_list(Walk *walk, const Entries *list_) noexcept nogil:
    """Meet the policies of a list whose guards let the call through."""
    cdef const Entry *found = entries(walk.t, list_)
    cdef uint32_t i
    cdef int stop
    for i in range(list_.n):
        if not guard_holds(walk.t, walk.context, found[i].guard):
            continue
        if walk.n == MET_MAX:
            stop = walk_met(walk) if walk.visit is not NULL else FULL
            if stop:
                return stop
        prefetch(walk.t.policies + found[i].policy)
        walk.met[walk.n].policy, walk.met[walk.n].action = found[i].policy, walk.action
        walk.n += 1
    return 0


cdef int walk_filed(Walk *walk, uint32_t index, int under) noexcept nogil:
    """The policies that are filed under a node: the base's, then those that the delta adds."""
    cdef const Node *node = base_node(walk.t, index)
    cdef const Entries *list_ = node_list(walk.t, node, under) if node is not NULL else NULL
    cdef int stop = 0
    if list_ is not NULL:
        stop = walk_list(walk, list_)
    if walk.t.delta is not NULL:
        node = delta_node(walk.t, index)
        list_ = node_list(walk.t, node, under) if node is not NULL else NULL
        if list_ is not NULL:
            stop = stop or walk_list(walk, list_)
    return stop


cdef bint seen_above(Walk *walk, const Node *node, uint32_t n, uint32_t index) noexcept nogil:
    """Whether `index` is one of the first `n` parents of a node or above one of them."""
    cdef const uint32_t *parents = list_rows(walk.t, &node.parents)
    cdef const Node *parent
    cdef uint32_t i
    for i in range(n):
        if parents[i] == index:
            return True
        parent = deep_parent(walk.t, node, parents[i])
        if parent is not NULL and list_has(walk.t, &parent.closure, index):
            return True
    return False


cdef int walk_ancestor(Walk *walk, uint32_t index, int under, const Node *seen) noexcept nogil:
    if seen is not NULL and node_is_in(walk.t, seen, index):
        return 0
    if under == FILED_ACTION_IN:
        walk.action = index
    return walk_filed(walk, index, under)


cdef int walk_above(Walk *walk, uint32_t index, int under, const Node *seen) noexcept nogil:
    """Policies over the ancestors of a node, each ancestor once; without those of `seen`."""
    cdef const Node *node = table_node(walk.t, index)
    cdef const uint32_t *parents = list_rows(walk.t, &node.parents)
    cdef const uint32_t *above
    cdef const Node *parent
    cdef uint32_t i, j
    cdef int stop = 0
    if walk.t.delta is NULL and not node.flags & under_flag(under):
        return 0
    if seen is NULL and inherits(walk.t, node, under):
        return walk_list(walk, node_list(walk.t, node, INHERITED))
    if node.flags & NODE_PARENT:
        above = list_rows(walk.t, &node.closure)
        for i in range(node.closure.n):
            stop = stop or walk_ancestor(walk, above[i], under, seen)
        return stop
    for i in range(node.parents.n):
        if not leads_on(walk.t, node, parents[i], under):
            continue
        # Two parents may share an ancestor, and one may be above the other.
        if not seen_above(walk, node, i, parents[i]):
            stop = stop or walk_ancestor(walk, parents[i], under, seen)
        parent = deep_parent(walk.t, node, parents[i])
        if parent is NULL:
            continue
        above = list_rows(walk.t, &parent.closure)
        for j in range(parent.closure.n):
            if not seen_above(walk, node, i, above[j]):
                stop = stop or walk_ancestor(walk, above[j], under, seen)
    return stop


cdef int walk_type(Walk *walk, uint32_t index, bint principal) noexcept nogil:
    """The policies that are filed under a type, as walk_filed."""
    cdef const Type *type_ = base_type(walk.t, index)
    cdef int stop = 0
    if type_ is not NULL:
        stop = walk_list(walk, &type_.principal_is if principal else &type_.resource_is)
    type_ = delta_type(walk.t, index)
    if type_ is not NULL:
        stop = stop or walk_list(walk, &type_.principal_is if principal else &type_.resource_is)
    return stop


cdef int walk_principal(Walk *walk) noexcept nogil:
    cdef const Uid *uid = walk.context.principal
    cdef int stop = 0
    if uid.index != UID_UNKNOWN:
        stop = (
            walk_filed(walk, uid.index, FILED_PRINCIPAL_EQ)
            or walk_filed(walk, uid.index, FILED_PRINCIPAL_IN)
            or walk_above(walk, uid.index, FILED_PRINCIPAL_IN, NULL)
        )
    if uid.type_index != UID_UNKNOWN:
        stop = stop or walk_type(walk, uid.type_index, True)
    return stop


cdef int walk_action(Walk *walk) noexcept nogil:
    cdef uint32_t index = walk.context.action.index
    cdef int stop
    if index == UID_UNKNOWN:
        return 0
    walk.action = index
    stop = (
        walk_filed(walk, index, FILED_ACTION_EQ)
        or walk_filed(walk, index, FILED_ACTION_IN)
        or walk_above(walk, index, FILED_ACTION_IN, NULL)
    )
    walk.action = UID_UNKNOWN
    return stop


cdef int walk_resource(Walk *walk) noexcept nogil:
    cdef const Uid *uid = walk.context.resource
    cdef const Uid *parent = walk.context.resource_parent
    cdef const Node *node = table_node(walk.t, uid.index)
    cdef int stop = 0
    if node is not NULL:
        stop = (
            walk_filed(walk, uid.index, FILED_RESOURCE_EQ)
            or walk_filed(walk, uid.index, FILED_RESOURCE_IN)
            or walk_above(walk, uid.index, FILED_RESOURCE_IN, NULL)
        )
    if parent is not NULL and parent.index != UID_UNKNOWN:
        # What the store says of the resource was met above.
        stop = stop or walk_ancestor(walk, parent.index, FILED_RESOURCE_IN, node)
        stop = stop or walk_above(walk, parent.index, FILED_RESOURCE_IN, node)
    if uid.type_index != UID_UNKNOWN:
        stop = stop or walk_type(walk, uid.type_index, False)
    return stop


cdef int walk_all(Walk *walk) noexcept nogil:
    cdef int stop
    walk.action = UID_UNKNOWN
    walk.n = 0
    stop = (
        walk_principal(walk)
        or walk_action(walk)
        or walk_resource(walk)
        or walk_list(walk, &walk.t.header.any_policies)
    )
    if walk.t.delta is not NULL:
        stop = stop or walk_list(walk, &walk.t.delta.any_policies)
    return stop


cdef void candidates_meet(Walk *walk, const Table *t, const EvalContext *context) noexcept nogil:
    walk.t = t
    walk.context = context
    walk.visit = NULL
    fetch_node(t, context.principal.index, FILED_PRINCIPAL_EQ)
    fetch_node(t, context.resource.index, FILED_RESOURCE_EQ)
    fetch_above(t, context.principal.index, FILED_PRINCIPAL_IN)
    fetch_above(t, context.resource.index, FILED_RESOURCE_IN)
    walk.met_all = walk_all(walk) == 0


cdef int candidates_visit(Walk *walk, Visit visit, void *state) noexcept nogil:
    cdef int stop
    walk.visit = visit
    walk.state = state
    if not walk.met_all:
        # Too many to remember: from the start, in batches.
        stop = walk_all(walk)
        if stop:
            return stop
    return walk_met(walk)
