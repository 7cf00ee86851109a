"""The numbers of fastpath/program.pxd and the buffer that instructions are written into."""

from enum import IntEnum

from sidecar.policy.cells import STRING, Value


class Op(IntEnum):
    """Instructions of a compiled condition, as in fastpath/program.pxd."""

    RETURN = 0
    CONST = 1
    PRINCIPAL = 2
    ACTION = 3
    RESOURCE = 4
    CONTEXT = 5
    COLUMN = 6
    HAS_COLUMN = 7
    COLUMN_GROUP = 8
    EXTRA = 9
    HAS_EXTRA = 10
    ATTR = 11
    HAS = 12
    AND = 13
    OR = 14
    BOOL = 15
    BRANCH = 16
    JUMP = 17
    NOT = 18
    NEG = 19
    ADD = 20
    SUB = 21
    MUL = 22
    EQ = 23
    NE = 24
    LT = 25
    LE = 26
    GT = 27
    GE = 28
    IN = 29
    IS = 30
    LIKE = 31
    CONTAINS = 32
    CONTAINS_ALL = 33
    CONTAINS_ANY = 34
    IS_EMPTY = 35
    GET_TAG = 36
    HAS_TAG = 37
    SET = 38
    RECORD = 39
    DUP = 40
    RAISE = 41
    IP = 42
    DECIMAL = 43
    DATETIME = 44
    DURATION = 45
    DECIMAL_LT = 46
    DECIMAL_LE = 47
    DECIMAL_GT = 48
    DECIMAL_GE = 49
    IS_IPV4 = 50
    IS_IPV6 = 51
    IS_LOOPBACK = 52
    IS_MULTICAST = 53
    IS_IN_RANGE = 54
    OFFSET = 55
    DURATION_SINCE = 56
    TO_DATE = 57
    TO_TIME = 58
    TO_MILLISECONDS = 59
    TO_SECONDS = 60
    TO_MINUTES = 61
    TO_HOURS = 62
    TO_DAYS = 63


ERROR_ATTRIBUTE = 2
ERROR_ARITY = 7

# How each instruction changes the number of values on the stack; SET and RECORD depend on their count.
_PUSH = (
    Op.CONST,
    Op.PRINCIPAL,
    Op.ACTION,
    Op.RESOURCE,
    Op.CONTEXT,
    Op.COLUMN,
    Op.HAS_COLUMN,
    Op.COLUMN_GROUP,
    Op.EXTRA,
    Op.HAS_EXTRA,
    Op.DUP,
    Op.RAISE,
)
_POP = (
    Op.RETURN,
    Op.AND,
    Op.OR,
    Op.BRANCH,
    Op.ADD,
    Op.SUB,
    Op.MUL,
    Op.EQ,
    Op.NE,
    Op.LT,
    Op.LE,
    Op.GT,
    Op.GE,
    Op.IN,
    Op.CONTAINS,
    Op.CONTAINS_ALL,
    Op.CONTAINS_ANY,
    Op.GET_TAG,
    Op.HAS_TAG,
    Op.DECIMAL_LT,
    Op.DECIMAL_LE,
    Op.DECIMAL_GT,
    Op.DECIMAL_GE,
    Op.IS_IN_RANGE,
    Op.OFFSET,
    Op.DURATION_SINCE,
)
_EFFECT = dict.fromkeys(Op, 0) | dict.fromkeys(_PUSH, 1) | dict.fromkeys(_POP, -1)
COUNT_MAX = (1 << 24) - 1


class Constants:
    """The constants of one image, in the order of their first use."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self._index: dict[Value, int] = {}

    def index(self, value: Value) -> int:
        """Row of `value`, which is added when it is new."""
        at = self._index.get(value)
        if at is None:
            at = self._index[value] = len(self.values)
            self.values.append(value)
        return at

    def text(self, text: str) -> int:
        return self.index((STRING, text.encode()))


class Code:
    """The words of one program while it is written. Jumps are labels until `place` fixes them."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.words: list[int] = []
        self.depth = 0
        self.depth_max = 0

    def op(self, op: Op, operand: int = 0) -> None:
        """Append an instruction without `+k`."""
        self.words.append(int(op) | operand << 8)
        self._move(_EFFECT[op] if op is not Op.SET else 1 - operand)

    def op_k(self, op: Op, k: int, operand: int = 0) -> None:
        """Append an instruction that is followed by the word `k`."""
        self.words += (int(op) | operand << 8, k)
        self._move(_EFFECT[op] if op is not Op.RECORD else 1 - operand)

    def constant(self, value: Value) -> None:
        self.op_k(Op.CONST, self.constants.index(value))

    def named(self, op: Op, name: str) -> None:
        """Append an instruction whose `k` is the constant string `name`."""
        self.op_k(op, self.constants.text(name))

    def jump(self, op: Op) -> int:
        """Append AND, OR, BRANCH or JUMP without a target; give the result to `place`."""
        self.op_k(op, 0)
        return len(self.words) - 1

    def place(self, jump: int) -> None:
        """Let `jump` lead to the next instruction."""
        self.words[jump] = len(self.words)

    def _move(self, effect: int) -> None:
        self.depth += effect
        self.depth_max = max(self.depth_max, self.depth)
