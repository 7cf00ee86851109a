"""The buffer that the instructions of fastpath/program.pxd are written into."""

from fastpath.program import Op
from sidecar.policy.cells import STRING, Value

# How each instruction changes the number of values on the stack. All others leave it as it is, except SET and RECORD,
# which depend on their count.
_PUSH = (
    Op.OP_CONST,
    Op.OP_PRINCIPAL,
    Op.OP_ACTION,
    Op.OP_RESOURCE,
    Op.OP_CONTEXT,
    Op.OP_COLUMN,
    Op.OP_HAS_COLUMN,
    Op.OP_COLUMN_GROUP,
    Op.OP_EXTRA,
    Op.OP_HAS_EXTRA,
    Op.OP_DUP,
    Op.OP_RAISE,
)
_POP = (
    Op.OP_RETURN,
    Op.OP_AND,
    Op.OP_OR,
    Op.OP_BRANCH,
    Op.OP_ADD,
    Op.OP_SUB,
    Op.OP_MUL,
    Op.OP_EQ,
    Op.OP_NE,
    Op.OP_LT,
    Op.OP_LE,
    Op.OP_GT,
    Op.OP_GE,
    Op.OP_IN,
    Op.OP_CONTAINS,
    Op.OP_CONTAINS_ALL,
    Op.OP_CONTAINS_ANY,
    Op.OP_GET_TAG,
    Op.OP_HAS_TAG,
    Op.OP_DECIMAL_LT,
    Op.OP_DECIMAL_LE,
    Op.OP_DECIMAL_GT,
    Op.OP_DECIMAL_GE,
    Op.OP_IS_IN_RANGE,
    Op.OP_OFFSET,
    Op.OP_DURATION_SINCE,
)
_EFFECT = dict.fromkeys(_PUSH, 1) | dict.fromkeys(_POP, -1)
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


TARGETS = frozenset((Op.OP_AND, Op.OP_OR, Op.OP_BRANCH, Op.OP_JUMP))
"""Instructions whose second word is a place in the code, not a constant."""


class Code:
    """The words of one program while it is written. Jumps are labels until `place` fixes them."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.words: list[int] = []
        self.depth = 0
        self.depth_max = 0
        self.uses: list[int] = []
        """Where words are numbers of constants."""

    def op(self, op: Op, operand: int = 0) -> None:
        """Append an instruction without `+k`."""
        self.words.append(int(op) | operand << 8)
        self._move(1 - operand if op == Op.OP_SET else _EFFECT.get(op, 0))

    def op_k(self, op: Op, k: int, operand: int = 0) -> None:
        """Append an instruction that is followed by the word `k`."""
        self.words += (int(op) | operand << 8, k)
        if op not in TARGETS:
            self.uses.append(len(self.words) - 1)
        self._move(1 - operand if op == Op.OP_RECORD else _EFFECT.get(op, 0))

    def constant(self, value: Value) -> None:
        self.op_k(Op.OP_CONST, self.constants.index(value))

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
