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
    FILED_RESOURCE_EQ,
    FILED_RESOURCE_IN,
    NODE_DEEP,
    NODE_INHERITS,
    NODE_PARENT,
    SCOPE_ANY,
    SCOPE_EQ,
    SCOPE_IN,
    SCOPE_IN_LIST,
    SCOPE_IS,
    List,
    Node,
    Type,
)
from fastpath.rows cimport (
    base_node,
    base_type,
    deep_parent,
    delta_node,
    delta_type,
    inherits,
    leads_on,
    list_rows,
    prefetch,
    table_node,
    table_policy,
    under_flag,
)
from fastpath.table cimport list_has, node_is_in, table_is_in
from fastpath.value cimport UID_UNKNOWN, Uid, cell_at
from libc.stdint cimport uint64_t

cdef enum:
    AHEAD = 8                # rows of policies that are fetched before they are looked at

cdef struct Walk:
    const Table *t
    const EvalContext *context
    Visit visit
    void *state
    uint32_t action          # node whose lists of actions are walked, else UID_UNKNOWN


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


# ---------------------------------------------------------------- fetching

# What a walk will read is asked for before any of it is waited for: in a large table none of it is in a cache.


cdef inline void fetch_policies(const Table *t, const List *list_) noexcept nogil:
    cdef const uint32_t *rows = list_rows(t, list_)
    cdef uint32_t i
    for i in range(list_.n if list_.n < AHEAD else AHEAD):
        prefetch(t.policies + rows[i])


cdef inline void fetch_list(const Table *t, const Node *node, const List *list_) noexcept nogil:
    """The policies of a list that stands in its node's row, which is there; else the list."""
    cdef const void *rows = list_rows(t, list_)
    if list_.n == 0:
        return
    if <uint64_t> (<const char *> rows - <const char *> node) < sizeof(Node):
        fetch_policies(t, list_)
    else:
        prefetch(rows)


cdef void fetch_node(const Table *t, uint32_t index, int under) noexcept nogil:
    """The policies under a node, its attributes, and the rows of its parents."""
    cdef const Node *node = base_node(t, index)
    cdef const uint32_t *parents
    cdef uint32_t i
    if node is NULL:
        return
    fetch_list(t, node, &node.filed[under])
    fetch_list(t, node, &node.filed[under + 1])
    if node.attrs.n:
        prefetch(cell_at(&node.attrs))
        prefetch(<const char *> cell_at(&node.attrs) + 64)
    if node.flags & NODE_INHERITS and node.flags & under_flag(under + 1):
        fetch_list(t, node, &node.closure)
    elif not node.flags & (under_flag(under + 1) | NODE_DEEP):
        return
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n if node.parents.n < AHEAD else AHEAD):
        # The line of its lists, and the one where short lists stand.
        prefetch(t.nodes + parents[i])
        prefetch(<const char *> (t.nodes + parents[i]) + 128)


cdef void fetch_above(const Table *t, uint32_t index, int under) noexcept nogil:
    """The policies under a node's parents, whose rows are on their way."""
    cdef const Node *node = base_node(t, index)
    cdef const uint32_t *parents
    cdef uint32_t i
    if node is NULL or node.flags & NODE_INHERITS or not node.flags & under_flag(under):
        return
    parents = list_rows(t, &node.parents)
    for i in range(node.parents.n if node.parents.n < AHEAD else AHEAD):
        if parents[i] < t.header.totals.node_count:
            fetch_policies(t, &t.nodes[parents[i]].filed[under])


# ---------------------------------------------------------------- walk


cdef int walk_list(Walk *walk, const List *list_) noexcept nogil:
    cdef const uint32_t *rows = list_rows(walk.t, list_)
    cdef const Policy *policy
    cdef uint32_t i
    cdef int stop
    fetch_policies(walk.t, list_)
    for i in range(list_.n):
        if i + AHEAD < list_.n:
            prefetch(walk.t.policies + rows[i + AHEAD])
        if walk.action != UID_UNKNOWN:
            policy = table_policy(walk.t, rows[i])
            # Of a list of actions only the first that matches brings the policy, so that it is met once.
            if policy.action_op == SCOPE_IN_LIST and first_action(walk.t, walk.context, policy) != walk.action:
                continue
        stop = walk.visit(walk.state, rows[i])
        if stop:
            return stop
    return 0


cdef int walk_filed(Walk *walk, uint32_t index, int under) noexcept nogil:
    """The policies that are filed under a node: the base's, then those that the delta adds."""
    cdef const Node *node = base_node(walk.t, index)
    cdef int stop = 0
    if node is not NULL and node.filed[under].n:
        stop = walk_list(walk, &node.filed[under])
    if walk.t.delta is not NULL:
        node = delta_node(walk.t, index)
        if node is not NULL and node.filed[under].n:
            stop = stop or walk_list(walk, &node.filed[under])
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
        return walk_list(walk, &node.closure)
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


cdef void candidates_fetch(const Table *t, const Uid *principal, const Uid *resource) noexcept nogil:
    fetch_node(t, principal.index, FILED_PRINCIPAL_EQ)
    fetch_node(t, resource.index, FILED_RESOURCE_EQ)


cdef int candidates_walk(const Table *t, const EvalContext *context, Visit visit, void *state) noexcept nogil:
    cdef Walk walk
    cdef int stop
    walk.t = t
    walk.context = context
    walk.visit = visit
    walk.state = state
    walk.action = UID_UNKNOWN
    fetch_above(t, context.principal.index, FILED_PRINCIPAL_IN)
    fetch_above(t, context.resource.index, FILED_RESOURCE_IN)
    stop = (
        walk_principal(&walk)
        or walk_action(&walk)
        or walk_resource(&walk)
        or walk_list(&walk, &t.header.any_policies)
    )
    if t.delta is not NULL:
        stop = stop or walk_list(&walk, &t.delta.any_policies)
    return stop
