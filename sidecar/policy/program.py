"""Cedar conditions (EST JSON) to programs of fastpath/program.pxd.

The Cedar JSON policy format ("EST") names every construct by the one key of an object. Chains of one kind (`a && b`,
`a + b + c`, `a.b.c`) lean to the left and are walked in a loop, so their length costs no Python stack; what is left of
nesting is bracket depth, which the lexer caps.

Folding keeps Cedar's errors: only what cannot err becomes a constant, so `ip("x")` stays a call that errs when reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastpath.columns import COLUMNS, RESERVED
from fastpath.program import EvalError, Op
from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.cells import Value
from sidecar.policy.code import COUNT_MAX, Code, Constants

Expr = dict[str, Any]

COLUMN_BY_PATH = {path: i for i, (path, _, _) in enumerate(COLUMNS)}
GROUPS: dict[str, tuple[int, ...]] = {
    name: tuple(i for path, i in COLUMN_BY_PATH.items() if path.startswith(name + "."))
    for name in RESERVED
    if name not in COLUMN_BY_PATH
}
ALL_COLUMNS = (1 << len(COLUMNS)) - 1
WHOLE_CONTEXT = "*"
"""Stands in `extras` for a policy that reads `context` as one record."""

_VARS = {"principal": Op.OP_PRINCIPAL, "action": Op.OP_ACTION, "resource": Op.OP_RESOURCE}
_ARITHMETIC = {"+": Op.OP_ADD, "-": Op.OP_SUB, "*": Op.OP_MUL}
_BINARY = {
    "==": Op.OP_EQ,
    "!=": Op.OP_NE,
    "<": Op.OP_LT,
    "<=": Op.OP_LE,
    ">": Op.OP_GT,
    ">=": Op.OP_GE,
    "in": Op.OP_IN,
    "contains": Op.OP_CONTAINS,
    "containsAll": Op.OP_CONTAINS_ALL,
    "containsAny": Op.OP_CONTAINS_ANY,
    "getTag": Op.OP_GET_TAG,
    "hasTag": Op.OP_HAS_TAG,
}
_LOGIC = {"&&": Op.OP_AND, "||": Op.OP_OR}
_UNARY = {"!": Op.OP_NOT, "neg": Op.OP_NEG, "isEmpty": Op.OP_IS_EMPTY}
# Extension functions: instruction and number of arguments.
_CALLS = {
    "ip": (Op.OP_IP, 1),
    "decimal": (Op.OP_DECIMAL, 1),
    "datetime": (Op.OP_DATETIME, 1),
    "duration": (Op.OP_DURATION, 1),
    "lessThan": (Op.OP_DECIMAL_LT, 2),
    "lessThanOrEqual": (Op.OP_DECIMAL_LE, 2),
    "greaterThan": (Op.OP_DECIMAL_GT, 2),
    "greaterThanOrEqual": (Op.OP_DECIMAL_GE, 2),
    "isIpv4": (Op.OP_IS_IPV4, 1),
    "isIpv6": (Op.OP_IS_IPV6, 1),
    "isLoopback": (Op.OP_IS_LOOPBACK, 1),
    "isMulticast": (Op.OP_IS_MULTICAST, 1),
    "isInRange": (Op.OP_IS_IN_RANGE, 2),
    "offset": (Op.OP_OFFSET, 2),
    "durationSince": (Op.OP_DURATION_SINCE, 2),
    "toDate": (Op.OP_TO_DATE, 1),
    "toTime": (Op.OP_TO_TIME, 1),
    "toMilliseconds": (Op.OP_TO_MILLISECONDS, 1),
    "toSeconds": (Op.OP_TO_SECONDS, 1),
    "toMinutes": (Op.OP_TO_MINUTES, 1),
    "toHours": (Op.OP_TO_HOURS, 1),
    "toDays": (Op.OP_TO_DAYS, 1),
}
# Constructs whose value, when they have one, is a Bool: no check is needed after them.
_BOOLEAN = frozenset(_LOGIC) | {
    "==", "!=", "<", "<=", ">", ">=", "in", "is", "like", "has", "!", "isEmpty", "contains", "containsAll",
    "containsAny", "hasTag", "lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual", "isIpv4", "isIpv6",
    "isLoopback", "isMulticast", "isInRange",
}  # fmt: skip
WILDCARD = b"\xff"


@dataclass(frozen=True, slots=True)
class Program:
    """One compiled condition and what it reads."""

    words: tuple[int, ...]
    stack: int
    """Deepest value stack, in cells."""
    columns: int
    """Bit i: reads Column i."""
    extras: frozenset[str]
    """Names under `context` that are no columns; `*` when the context is read as a whole."""
    uses: tuple[int, ...] = ()
    """Which words are numbers of constants."""

    def linked(self, rows: Sequence[int]) -> "Program":
        """The program with each constant's number replaced by the row that stands for it."""
        words = list(self.words)
        for at in self.uses:
            words[at] = rows[words[at]]
        return Program(tuple(words), self.stack, self.columns, self.extras, self.uses)


EMPTY = Program((), 0, 0, frozenset())


def key_of(expr: Expr) -> str:
    """The construct of an EST expression."""
    (key,) = expr
    return key


def fold(expr: Expr) -> Value | None:
    """The value of an expression that is constant and cannot err, else None."""
    key = key_of(expr)
    body = expr[key]
    if key == "Value":
        return cells.of_json(body)
    if key == "Set":
        members = [fold(item) for item in body]
        return None if None in members else cells.of_set([m for m in members if m is not None])
    if key == "Record":
        fields = {name: fold(item) for name, item in body.items()}
        return None if None in fields.values() else cells.of_record({n: v for n, v in fields.items() if v is not None})
    if key == "neg":
        return _fold_neg(fold(body["arg"]))
    if key in cells.CONSTRUCTORS and len(body) == 1:
        return _fold_constructor(key, body[0])
    return None


def _fold_neg(value: Value | None) -> Value | None:
    if value is None or value[0] != cells.LONG or value[1] == cells.LONG_MIN:
        return None
    return (cells.LONG, -value[1])


def _fold_constructor(function: str, argument: Expr) -> Value | None:
    text = argument.get("Value")
    if not isinstance(text, str):
        return None
    try:
        return cells.of_extension(function, text)
    except ValueError:
        return None  # refused text errs when the call is reached, not here


def context_path(expr: Expr) -> list[str] | None:
    """["task", "present"] of `context.task.present`, [] of `context`; None when the path begins elsewhere."""
    names: list[str] = []
    while "." in expr:
        names.append(expr["."]["attr"])
        expr = expr["."]["left"]
    if expr.get("Var") != "context":
        return None
    names.reverse()
    return names


class _Compiler:
    def __init__(self, constants: Constants, with_columns: bool) -> None:
        self.code = Code(constants)
        self.with_columns = with_columns
        self.columns = 0
        self.extras: set[str] = set()

    def conditions(self, clauses: list[Expr]) -> Program:
        """All `when` and `unless` of a policy: a conjunction that checks each clause's type, left to right."""
        if not clauses:
            return EMPTY
        jumps = []
        for i, clause in enumerate(clauses):
            last = i == len(clauses) - 1
            self.expr(clause["body"])
            if clause["kind"] == "unless":
                self.code.op(Op.OP_NOT)
            elif last:
                self._check_bool(clause["body"])
            if not last:
                jumps.append(self.code.jump(Op.OP_AND))
        for jump in jumps:
            self.code.place(jump)
        self.code.op(Op.OP_RETURN)
        code = self.code
        return Program(tuple(code.words), code.depth_max, self.columns, frozenset(self.extras), tuple(code.uses))

    def expr(self, expr: Expr) -> None:
        value = fold(expr)
        if value is not None:
            self.code.constant(value)
            return
        key = key_of(expr)
        body = expr[key]
        if key in _CALLS:
            self._call(key, body)
        elif key in _LOGIC:
            self._logic(key, expr)
        elif key in _ARITHMETIC:
            self._arithmetic(expr)
        elif key in _BINARY:
            self.expr(body["left"])
            self.expr(body["right"])
            self.code.op(_BINARY[key])
        elif key in _UNARY:
            self.expr(body["arg"])
            self.code.op(_UNARY[key])
        else:
            self._special(key, body, expr)

    def _special(self, key: str, body: Any, expr: Expr) -> None:
        if key == "Var":
            self._var(body)
        elif key == ".":
            self._attribute(expr)
        elif key == "has":
            self._has(body["left"], body["attr"])
        elif key == "if-then-else":
            self._if(body)
        elif key == "is":
            self._is(body)
        elif key == "like":
            self.expr(body["left"])
            self.code.op_k(Op.OP_LIKE, self.code.constants.index((cells.STRING, pattern_bytes(body["pattern"]))))
        elif key == "Set":
            for item in body:
                self.expr(item)
            self.code.op(Op.OP_SET, _counted(len(body)))
        elif key == "Record":
            self._record(body)
        else:
            raise PolicyError(f"uses `{key}`, which cannot be evaluated; remove it")

    def _check_bool(self, expr: Expr) -> None:
        if key_of(expr) not in _BOOLEAN and not isinstance(expr.get("Value"), bool):
            self.code.op(Op.OP_BOOL)

    def _var(self, name: str) -> None:
        if name == "context":
            self.code.op(Op.OP_CONTEXT)
            self.extras |= {WHOLE_CONTEXT, "input", "http"}
            if self.with_columns:
                self.columns = ALL_COLUMNS
        else:
            self.code.op(_VARS[name])

    def _logic(self, key: str, expr: Expr) -> None:
        # (a && b) && c is a && (b && c) with the same checks in the same order, so one jump leaves the whole chain.
        parts = []
        while key in expr:
            parts.append(expr[key]["right"])
            expr = expr[key]["left"]
        parts.append(expr)
        parts.reverse()
        jumps = []
        for part in parts[:-1]:
            self.expr(part)
            jumps.append(self.code.jump(_LOGIC[key]))
        self.expr(parts[-1])
        self._check_bool(parts[-1])
        for jump in jumps:
            self.code.place(jump)

    def _arithmetic(self, expr: Expr) -> None:
        parts = []
        while (key := key_of(expr)) in _ARITHMETIC:
            parts.append((_ARITHMETIC[key], expr[key]["right"]))
            expr = expr[key]["left"]
        self.expr(expr)
        for op, right in reversed(parts):
            self.expr(right)
            self.code.op(op)

    def _call(self, function: str, arguments: list[Expr]) -> None:
        op, arity = _CALLS[function]
        if len(arguments) != arity:
            self.code.op(Op.OP_RAISE, EvalError.EVAL_ARITY)
            return
        for argument in arguments:
            self.expr(argument)
        self.code.op(op)

    def _if(self, body: Expr) -> None:
        self.expr(body["if"])
        no = self.code.jump(Op.OP_BRANCH)
        self.expr(body["then"])
        end = self.code.jump(Op.OP_JUMP)
        self.code.place(no)
        self.code.depth -= 1  # the other branch starts without the value of the first
        self.expr(body["else"])
        self.code.place(end)

    def _is(self, body: Expr) -> None:
        self.expr(body["left"])
        if "in" not in body:
            self.code.named(Op.OP_IS, body["entity_type"])
            return
        self.code.op(Op.OP_DUP)
        self.code.named(Op.OP_IS, body["entity_type"])
        no = self.code.jump(Op.OP_BRANCH)
        self.expr(body["in"])
        self.code.op(Op.OP_IN)
        end = self.code.jump(Op.OP_JUMP)
        self.code.place(no)
        # No type has the empty name: this turns the entity that is left on the stack into false.
        self.code.named(Op.OP_IS, "")
        self.code.place(end)

    def _record(self, body: dict[str, Expr]) -> None:
        fields = sorted((name.encode(), item) for name, item in body.items())
        for _, item in fields:
            self.expr(item)
        keys = cells.of_set([(cells.STRING, name) for name, _ in fields])
        self.code.op_k(Op.OP_RECORD, self.code.constants.index(keys), _counted(len(fields)))

    def _attribute(self, expr: Expr) -> None:
        path = context_path(expr)
        rest: list[str] = []
        if path is not None:
            rest = self._context_root(path)
        else:
            while "." in expr:
                rest.append(expr["."]["attr"])
                expr = expr["."]["left"]
            rest.reverse()
            self.expr(expr)
        for name in rest:
            self.code.named(Op.OP_ATTR, name)

    def _context_root(self, path: list[str]) -> list[str]:
        """Push what the path's first segments name in the context; returns the segments left."""
        first, rest = path[0], path[1:]
        if not self.with_columns or first not in RESERVED:
            self.extras.add(first)
            self.code.named(Op.OP_EXTRA, first)
            return rest
        if first in COLUMN_BY_PATH:
            self._column(Op.OP_COLUMN, COLUMN_BY_PATH[first])
            return rest
        if not rest:
            for i in GROUPS[first]:
                self.columns |= 1 << i
            self.code.named(Op.OP_COLUMN_GROUP, first)
            return rest
        column = COLUMN_BY_PATH.get(f"{first}.{rest[0]}")
        if column is None:
            self.code.op(Op.OP_RAISE, EvalError.EVAL_ATTRIBUTE)
            return []
        self._column(Op.OP_COLUMN, column)
        return rest[1:]

    def _column(self, op: Op, column: int) -> None:
        self.columns |= 1 << column
        self.code.op(op, column)

    def _has(self, left: Expr, name: str) -> None:
        path = context_path(left)
        if path == []:
            self._context_has(name)
        elif self.with_columns and path is not None and len(path) == 1 and path[0] in GROUPS:
            column = COLUMN_BY_PATH.get(f"{path[0]}.{name}")
            if column is None:
                self.code.constant(cells.of_bool(False))
            else:
                self._column(Op.OP_HAS_COLUMN, column)
        else:
            self.expr(left)
            self.code.named(Op.OP_HAS, name)

    def _context_has(self, name: str) -> None:
        if self.with_columns and name in RESERVED:
            self.code.constant(cells.of_bool(True))
        else:
            self.extras.add(name)
            self.code.named(Op.OP_HAS_EXTRA, name)


def _counted(count: int) -> int:
    if count > COUNT_MAX:
        raise PolicyError(f"has a literal of {count} members; at most {COUNT_MAX} are compiled")
    return count


def pattern_bytes(pattern: list[Any]) -> bytes:
    """The coded pattern of OP_LIKE: UTF-8 with byte 0xFF for each wildcard."""
    return b"".join(WILDCARD if part == "Wildcard" else part["Literal"].encode() for part in pattern)


def compile_conditions(clauses: list[Expr], constants: Constants, *, columns: bool) -> Program:
    """The program of a policy's `conditions` (EST). Constants are added to `constants`.

    Raises PolicyError (without the policy's name, which the caller adds) for what cannot be evaluated.
    """
    try:
        return _Compiler(constants, columns).conditions(clauses)
    except RecursionError:
        raise PolicyError("is nested too deeply to be compiled") from None
