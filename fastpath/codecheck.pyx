"""Checks of compiled conditions, done once per generation so that evaluation runs without bounds checks.

A program is walked once in the order of its words with the depth of its value stack; since jumps only go forward, the
depth at a jump's target is known before the walk arrives there, and must be the same on every way in.
"""
from fastpath.columns cimport COLUMN_COUNT, column_group
from fastpath.image cimport IMAGE_COLUMNS
from fastpath.program cimport (
    EVAL_ARITY,
    EVAL_OK,
    OP_ACTION,
    OP_ADD,
    OP_AND,
    OP_ATTR,
    OP_BRANCH,
    OP_COLUMN,
    OP_COLUMN_GROUP,
    OP_CONST,
    OP_CONTEXT,
    OP_CONTAINS,
    OP_CONTAINS_ALL,
    OP_CONTAINS_ANY,
    OP_COUNT,
    OP_DECIMAL_GE,
    OP_DECIMAL_GT,
    OP_DECIMAL_LE,
    OP_DECIMAL_LT,
    OP_DUP,
    OP_DURATION_SINCE,
    OP_EQ,
    OP_EXTRA,
    OP_GE,
    OP_GET_TAG,
    OP_GT,
    OP_HAS,
    OP_HAS_COLUMN,
    OP_HAS_EXTRA,
    OP_HAS_TAG,
    OP_IN,
    OP_IS,
    OP_IS_IN_RANGE,
    OP_JUMP,
    OP_LE,
    OP_LIKE,
    OP_LT,
    OP_MUL,
    OP_NE,
    OP_OFFSET,
    OP_OR,
    OP_PRINCIPAL,
    OP_RAISE,
    OP_RECORD,
    OP_RESOURCE,
    OP_RETURN,
    OP_SET,
    OP_SUB,
)
from fastpath.rows cimport Table, policy_code, policy_constants
from fastpath.value cimport KIND_SET, KIND_STRING, Cell, cell_at
from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef struct Walk:
    const uint32_t *code
    uint32_t n
    const Cell *constants
    uint64_t constant_count
    int32_t *depths      # per word: the stack's depth when a jump arrives there, or -1
    int32_t depth        # before the current instruction; -1: nothing arrives here
    int32_t stack        # as the policy declares it


cdef inline uint64_t bit(int op) noexcept nogil:
    return <uint64_t> 1 << op


# Sets of instructions, one bit each. What stands in none of the first three takes one value and leaves one.
cdef uint64_t TAKES_NONE = (
    bit(OP_CONST) | bit(OP_PRINCIPAL) | bit(OP_ACTION) | bit(OP_RESOURCE) | bit(OP_CONTEXT) | bit(OP_COLUMN)
    | bit(OP_HAS_COLUMN) | bit(OP_COLUMN_GROUP) | bit(OP_EXTRA) | bit(OP_HAS_EXTRA) | bit(OP_RAISE) | bit(OP_JUMP)
)
cdef uint64_t TAKES_TWO = (
    bit(OP_ADD) | bit(OP_SUB) | bit(OP_MUL) | bit(OP_EQ) | bit(OP_NE) | bit(OP_LT) | bit(OP_LE) | bit(OP_GT)
    | bit(OP_GE) | bit(OP_IN)
    | bit(OP_CONTAINS) | bit(OP_CONTAINS_ALL) | bit(OP_CONTAINS_ANY) | bit(OP_GET_TAG) | bit(OP_HAS_TAG)
    | bit(OP_DECIMAL_LT) | bit(OP_DECIMAL_LE) | bit(OP_DECIMAL_GT) | bit(OP_DECIMAL_GE) | bit(OP_IS_IN_RANGE)
    | bit(OP_OFFSET) | bit(OP_DURATION_SINCE)
)
cdef uint64_t LEAVES_NONE = bit(OP_RETURN) | bit(OP_AND) | bit(OP_OR) | bit(OP_BRANCH) | bit(OP_JUMP)
cdef uint64_t WITH_TARGET = bit(OP_AND) | bit(OP_OR) | bit(OP_BRANCH) | bit(OP_JUMP)
cdef uint64_t WITH_TEXT = (
    bit(OP_COLUMN_GROUP) | bit(OP_EXTRA) | bit(OP_HAS_EXTRA) | bit(OP_ATTR) | bit(OP_HAS) | bit(OP_IS) | bit(OP_LIKE)
)
cdef uint64_t WITH_CONSTANT = WITH_TEXT | bit(OP_CONST) | bit(OP_RECORD)
cdef uint64_t WITH_OPERAND = WITH_CONSTANT | WITH_TARGET


cdef inline int32_t taken(uint32_t op, uint32_t a) noexcept nogil:
    if op == OP_SET or op == OP_RECORD:
        return <int32_t> a
    if (TAKES_NONE >> op) & 1:
        return 0
    return 2 if (TAKES_TWO >> op) & 1 else 1


cdef inline int32_t left(uint32_t op) noexcept nogil:
    if (LEAVES_NONE >> op) & 1:
        return 0
    return 2 if op == OP_DUP else 1


cdef inline bint refuse(View *view, const char *cause) noexcept nogil:
    view.cause = cause
    return False


# ---------------------------------------------------------------- operands


cdef bint reads_column(View *view, uint32_t column) noexcept nogil:
    """A decision counts as free of live state by the header's bits alone, so a program may read no column besides."""
    return (view.table.totals.columns_read[column >> 6] >> (column & 63)) & 1


cdef bint column_fits(View *view, uint32_t column) noexcept nogil:
    if not view.table.header.flags & IMAGE_COLUMNS or column >= COLUMN_COUNT or not reads_column(view, column):
        return refuse(view, b"program reads a column that the header does not name")
    return True


cdef bint group_fits(View *view, const Cell *name) noexcept nogil:
    cdef const void *group = column_group(<const char *> cell_at(name), name.n)
    return group is not NULL or refuse(view, b"program reads an unknown group of columns")


cdef bint keys_fit(View *view, const Cell *keys, uint32_t count) noexcept nogil:
    """A set of `count` texts: in the order of a record's keys, without duplicates, as every set."""
    cdef const Cell *members = <const Cell *> cell_at(keys)
    cdef uint32_t i
    if keys.kind != KIND_SET or keys.n != count:
        return refuse(view, b"record has another number of keys")
    for i in range(count):
        if members[i].kind != KIND_STRING:
            return refuse(view, b"key of a record is not text")
    return True


cdef bint operand_fits(View *view, const Walk *walk, uint32_t op, uint32_t a, uint32_t k) noexcept nogil:
    cdef const Cell *constant
    if op == OP_COLUMN or op == OP_HAS_COLUMN:
        return column_fits(view, a)
    if op == OP_RAISE:
        return (EVAL_OK < a <= EVAL_ARITY) or refuse(view, b"program raises an unknown error")
    if not (WITH_CONSTANT >> op) & 1:
        return True
    if k >= walk.constant_count:
        return refuse(view, b"program names no constant")
    constant = walk.constants + k
    if (WITH_TEXT >> op) & 1 and constant.kind != KIND_STRING:
        return refuse(view, b"program names a constant that is not text")
    if op == OP_COLUMN_GROUP:
        return group_fits(view, constant)
    if op == OP_RECORD:
        return keys_fit(view, constant, a)
    return True


# ---------------------------------------------------------------- the walk


cdef bint walk_jump(View *view, Walk *walk, uint32_t at, uint32_t op, uint32_t k) noexcept nogil:
    # AND and OR leave the Bool that decided on the stack when they jump.
    cdef int32_t arriving = walk.depth + (1 if op == OP_AND or op == OP_OR else 0)
    if k <= at + 1 or k >= walk.n:
        return refuse(view, b"jump leaves the program or goes back")
    if walk.depth < 0:
        return True
    if walk.depths[k] >= 0 and walk.depths[k] != arriving:
        return refuse(view, b"stack differs between two ways to an instruction")
    walk.depths[k] = arriving
    return True


cdef bint walk_step(View *view, Walk *walk, uint32_t at, uint32_t op, uint32_t a) noexcept nogil:
    """Move the depth over one instruction."""
    cdef int32_t pops = taken(op, a)
    if walk.depths[at] >= 0:
        if walk.depth >= 0 and walk.depth != walk.depths[at]:
            return refuse(view, b"stack differs between two ways to an instruction")
        walk.depth = walk.depths[at]
    if walk.depth < 0:
        return True
    if walk.depth < pops:
        return refuse(view, b"program takes more values than it has")
    if op == OP_RETURN and walk.depth != 1:
        return refuse(view, b"program returns other than one value")
    walk.depth += left(op) - pops
    # AND and OR hold the value that they took until they have jumped.
    if walk.depth > walk.stack:
        return refuse(view, b"program needs more stack than declared")
    return True


cdef bint walk_all(View *view, Walk *walk) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t start, op, a, k
    while at < walk.n:
        start = at
        op = walk.code[at] & 0xFF
        a = walk.code[at] >> 8
        k = 0
        at += 1
        if op >= OP_COUNT:
            return refuse(view, b"program has an unknown instruction")
        if (WITH_OPERAND >> op) & 1:
            if at == walk.n or walk.depths[at] >= 0:
                return refuse(view, b"instruction and operand are torn apart")
            k = walk.code[at]
            at += 1
        if not operand_fits(view, walk, op, a, k) or not walk_step(view, walk, start, op, a):
            return False
        if (WITH_TARGET >> op) & 1 and not walk_jump(view, walk, start, op, k):
            return False
        if op == OP_RETURN or op == OP_JUMP:
            walk.depth = -1
    return walk.depth < 0 or refuse(view, b"program ends without a return")


cdef bint code_check(View *view, const Policy *policy, int32_t *depths) noexcept nogil:
    cdef const Table *t = view.table
    cdef Walk walk
    cdef uint32_t i
    # A stack deeper than the program is long cannot be: it would only ask for memory.
    if policy.stack > policy.code_words or policy.stack > t.totals.stack_max:
        return refuse(view, b"declared stack is impossible")
    walk.code = policy_code(t, policy)
    walk.constants = policy_constants(t, policy)
    walk.constant_count = t.header.constant_count
    if policy.code >= t.header.code_words:
        walk.constant_count = t.delta.constant_count
    walk.n = policy.code_words
    walk.depths = depths
    walk.depth = 0
    walk.stack = <int32_t> policy.stack
    for i in range(walk.n):
        depths[i] = -1
    return walk_all(view, &walk)
