"""Compiled conditions: instructions of a stack machine over cells.

A program is uint32_t words. The low 8 bits of a word are the Op, the high 24 bits its operand `a`; an Op marked `+k`
is followed by one word, the operand `k`. Constants are indexes into the image's constants. Jump operands are absolute
word indexes within the program (k). All the `when` and `unless` of a policy are one program that ends by RETURN with
one Bool on the stack: `when {A} unless {B}` is `A && !B` with Cedar's type check of each clause, left to right.

Shapes (image.pxd InputShape): a record cell in which each field's value is a string cell naming the declared kind of
the attribute of context.input: "String", "Long", "Bool", "decimal", "datetime", "duration", "ipaddr", "Set<..>",
"Entity<type>"; a set of records is "Set<Record>", without their shape; a nested record cell for a record type; a
trailing "?" on the field's key marks it optional.
"""
from fastpath.image cimport Policy
from fastpath.rows cimport Table
from fastpath.value cimport Arena, Cell, Uid
from fastpath.wire cimport Text
from libc.stdint cimport uint32_t


cpdef enum Op:
    OP_RETURN = 0
    OP_CONST = 1          # +k: push constant k
    OP_PRINCIPAL = 2
    OP_ACTION = 3
    OP_RESOURCE = 4
    OP_CONTEXT = 5        # push the whole context as a record (columns and extras)
    OP_COLUMN = 6         # a: Column; push its value; ATTRIBUTE error when absent
    OP_HAS_COLUMN = 7     # a: Column; push whether it is set
    OP_COLUMN_GROUP = 8   # +k: constant string "task", "session", ..; push the record of that group's columns
    OP_EXTRA = 9          # +k: constant string; push context.<name> that is not a column; UNSENT when it was not sent
    OP_HAS_EXTRA = 10     # +k
    OP_ATTR = 11          # +k: constant string; pop entity or record, push attribute
    OP_HAS = 12           # +k
    OP_AND = 13           # +k: pop Bool (else TYPE); false: push false and jump to k
    OP_OR = 14            # +k: pop Bool; true: push true and jump to k
    OP_BOOL = 15          # top must be a Bool (the right side of && and ||, a clause), else TYPE
    OP_BRANCH = 16        # +k: pop Bool; false: jump to k
    OP_JUMP = 17          # +k
    OP_NOT = 18
    OP_NEG = 19
    OP_ADD = 20
    OP_SUB = 21
    OP_MUL = 22
    OP_EQ = 23
    OP_NE = 24
    OP_LT = 25            # Long, datetime, duration
    OP_LE = 26
    OP_GT = 27
    OP_GE = 28
    OP_IN = 29            # pop right (entity or set of entities), pop left entity
    OP_IS = 30            # +k: constant string, the full type name; pop entity
    OP_LIKE = 31          # +k: constant string, the coded pattern (see below); pop String
    OP_CONTAINS = 32
    OP_CONTAINS_ALL = 33
    OP_CONTAINS_ANY = 34
    OP_IS_EMPTY = 35
    OP_GET_TAG = 36       # pop String, pop entity
    OP_HAS_TAG = 37
    OP_SET = 38           # a: count; pop a values, push the set
    OP_RECORD = 39        # a: count, +k: constant set of the keys; values were pushed in the order of the set
    OP_DUP = 40
    OP_RAISE = 41         # a: EvalError; a construct that always errs when reached (wrong arity)
    OP_IP = 42            # pop String, push ip (EXTENSION error)
    OP_DECIMAL = 43
    OP_DATETIME = 44
    OP_DURATION = 45
    OP_DECIMAL_LT = 46
    OP_DECIMAL_LE = 47
    OP_DECIMAL_GT = 48
    OP_DECIMAL_GE = 49
    OP_IS_IPV4 = 50
    OP_IS_IPV6 = 51
    OP_IS_LOOPBACK = 52
    OP_IS_MULTICAST = 53
    OP_IS_IN_RANGE = 54
    OP_OFFSET = 55
    OP_DURATION_SINCE = 56
    OP_TO_DATE = 57
    OP_TO_TIME = 58
    OP_TO_MILLISECONDS = 59
    OP_TO_SECONDS = 60
    OP_TO_MINUTES = 61
    OP_TO_HOURS = 62
    OP_TO_DAYS = 63
    OP_COUNT = 64


# `e is T in x` is compiled as: e, DUP, IS T, BRANCH no, x, IN, JUMP end, no: IS "" (pops e, which is an entity, and
# pushes false: no type has the empty name), end. Every path leaves one value, and e is evaluated once. OP_RAISE
# counts as pushing one value, so that a walk over the words in order sees the same stack on every path. Pattern
# coding of OP_LIKE's constant: the pattern's text with byte 0xFF for each wildcard (0xFF never occurs in UTF-8).


cpdef enum EvalError:
    EVAL_OK = 0
    EVAL_TYPE = 1          # operand of the wrong kind
    EVAL_ATTRIBUTE = 2     # attribute not there
    EVAL_TAG = 3           # tag not there
    EVAL_ENTITY = 4        # entity not in the store
    EVAL_OVERFLOW = 5      # i64 arithmetic
    EVAL_EXTENSION = 6     # text that an extension constructor refuses, or its result out of range
    EVAL_ARITY = 7         # wrong number of arguments to an extension function
    EVAL_UNSENT = 8        # not a Cedar error: reads an input that the caller did not send; ends the whole decision
    EVAL_LIMIT = 9         # not a Cedar error: arena or step limit; ends the whole decision in ERROR


cdef struct EvalContext:     # what programs read of a call; all borrowed
    const Uid *principal     # resolved by table_resolve
    const Uid *action
    const Uid *resource
    const Uid *resource_parent   # resolved; only when the store does not have the resource, else NULL
    const Cell *columns      # COLUMN_COUNT cells
    const Cell *extras       # KIND_RECORD
    const Text *unsent
    uint32_t unsent_count
    Text missing             # set with EVAL_UNSENT: the name that was read


# Whether `uid` is `group` or below it, as `in` has it.
cdef bint context_is_in(const Table *t, const EvalContext *context, const Uid *uid, const Uid *group) noexcept nogil
# Run the conditions of a policy of a verified table. EVAL_OK with `satisfied` set, or why they could not be evaluated.
# What it builds is in the arena, which is as before when it returns.
cdef int program_run(
    const Table *t, const Policy *policy, EvalContext *context, Arena *arena, bint *satisfied
) noexcept nogil
