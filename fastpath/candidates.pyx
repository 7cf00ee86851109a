"""Walks the posting lists of a call. The cost follows the policies that can match, not those there are.

INVARIANT (filed once): a policy stands in the lists of its principal, or of its resource, or in the list of those filed
under nothing, once; or under its actions, under each of a list of them (structure.pyx). So no candidate is missed, and
the only one that can be met twice is one with a list of actions.
"""
from fastpath.image cimport (
    SCOPE_ANY,
    SCOPE_EQ,
    SCOPE_IN,
    SCOPE_IN_LIST,
    SCOPE_IS,
    Node,
    Posting,
    Type,
)
from fastpath.table cimport node_is_in, table_is_in, table_node, table_policy
from fastpath.value cimport UID_UNKNOWN, Uid
from libc.stdint cimport uint64_t

cdef struct Walk:
    const Table *t
    const EvalContext *context
    Visit visit
    void *state
    uint32_t action          # node whose lists of actions are walked, else UID_UNKNOWN


# ---------------------------------------------------------------- scope


cdef inline const uint32_t *rows_at(const Table *t, uint64_t off) noexcept nogil:
    return <const uint32_t *> (t.image + off)


cdef uint32_t first_action(const Table *t, const EvalContext *context, const Policy *policy) noexcept nogil:
    """The first of the policy's actions that the call's action is in, or UID_UNKNOWN."""
    cdef const uint32_t *actions = rows_at(t, policy.off_action_list)
    cdef uint32_t i
    for i in range(policy.action_count):
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


# ---------------------------------------------------------------- walk


cdef int walk_rows(Walk *walk, uint64_t off, uint32_t n) noexcept nogil:
    cdef const uint32_t *rows = rows_at(walk.t, off)
    cdef const Policy *policy
    cdef uint32_t i
    cdef int stop
    for i in range(n):
        if walk.action != UID_UNKNOWN:
            policy = table_policy(walk.t, rows[i])
            # Of a list of actions only the first that matches brings the policy, so that it is met once.
            if policy.action_op == SCOPE_IN_LIST and first_action(walk.t, walk.context, policy) != walk.action:
                continue
        stop = walk.visit(walk.state, rows[i])
        if stop:
            return stop
    return 0


cdef inline int walk_posting(Walk *walk, const Posting *posting) noexcept nogil:
    return walk_rows(walk, posting.off, posting.n) if posting.n else 0


cdef int walk_principal(Walk *walk) noexcept nogil:
    cdef const Uid *uid = walk.context.principal
    cdef const Node *node = table_node(walk.t, uid.index)
    cdef const uint32_t *ancestors
    cdef uint32_t i
    cdef int stop = 0
    if node is not NULL:
        stop = walk_posting(walk, &node.principal_eq) or walk_posting(walk, &node.principal_in)
        ancestors = rows_at(walk.t, node.off_ancestors)
        for i in range(node.ancestor_count):
            stop = stop or walk_posting(walk, &table_node(walk.t, ancestors[i]).principal_in)
    if uid.type_index != UID_UNKNOWN:
        stop = stop or walk_posting(walk, &type_at(walk.t, uid.type_index).principal_is)
    return stop


cdef inline const Type *type_at(const Table *t, uint32_t index) noexcept nogil:
    return <const Type *> (t.image + t.header.off_types) + index


cdef int walk_action(Walk *walk) noexcept nogil:
    cdef const Node *node = table_node(walk.t, walk.context.action.index)
    cdef const uint32_t *ancestors
    cdef uint32_t i
    cdef int stop
    if node is NULL:
        return 0
    walk.action = walk.context.action.index
    stop = walk_posting(walk, &node.action_eq) or walk_posting(walk, &node.action_in)
    ancestors = rows_at(walk.t, node.off_ancestors)
    for i in range(node.ancestor_count):
        walk.action = ancestors[i]
        stop = stop or walk_posting(walk, &table_node(walk.t, ancestors[i]).action_in)
    walk.action = UID_UNKNOWN
    return stop


cdef int walk_groups(Walk *walk, const Node *node, const Node *seen) noexcept nogil:
    """Policies over the ancestors of a resource, without those that are `seen` or its ancestors."""
    cdef const uint32_t *ancestors = rows_at(walk.t, node.off_ancestors)
    cdef uint32_t i
    cdef int stop = 0
    for i in range(node.ancestor_count):
        if seen is NULL or not node_is_in(walk.t, seen, ancestors[i]):
            stop = stop or walk_posting(walk, &table_node(walk.t, ancestors[i]).resource_in)
    return stop


cdef int walk_resource(Walk *walk) noexcept nogil:
    cdef const Uid *uid = walk.context.resource
    cdef const Uid *parent = walk.context.resource_parent
    cdef const Node *node = table_node(walk.t, uid.index)
    cdef const Node *group
    cdef int stop = 0
    if node is not NULL:
        stop = (
            walk_posting(walk, &node.resource_eq)
            or walk_posting(walk, &node.resource_in)
            or walk_groups(walk, node, NULL)
        )
    if parent is not NULL and parent.index != UID_UNKNOWN:
        group = table_node(walk.t, parent.index)
        if node is NULL or not node_is_in(walk.t, node, parent.index):
            stop = stop or walk_posting(walk, &group.resource_in)
        stop = stop or walk_groups(walk, group, node)
    if uid.type_index != UID_UNKNOWN:
        stop = stop or walk_posting(walk, &type_at(walk.t, uid.type_index).resource_is)
    return stop


cdef int candidates_walk(const Table *t, const EvalContext *context, Visit visit, void *state) noexcept nogil:
    cdef Walk walk
    walk.t = t
    walk.context = context
    walk.visit = visit
    walk.state = state
    walk.action = UID_UNKNOWN
    return (
        walk_principal(&walk)
        or walk_action(&walk)
        or walk_resource(&walk)
        or walk_rows(&walk, t.header.any_policies.off, t.header.any_policies.n)
    )
