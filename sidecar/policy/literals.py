"""Literals that were lifted out of a policy (shapes.py), and their way back into what was made of its shape."""

from typing import Any

from sidecar.policy.cells import ENTITY, RECORD, SET, STRING, Value, of_set

MARK = "\ue000"
"""Private-use character around the number of a lifted literal. A text that holds it is not lifted."""


def mark(number: int) -> str:
    """What stands in a shape for the literal of this number."""
    return f"{MARK}{number}{MARK}"


def fill_text(text: str, values: tuple[str, ...]) -> str:
    """`text`, or the literal whose marker it is."""
    return values[int(text[1:-1])] if text.startswith(MARK) else text


def fill_est(est: Any, values: tuple[str, ...]) -> Any:
    """The JSON form with the literals of one policy."""
    if isinstance(est, str):
        return fill_text(est, values)
    if isinstance(est, dict):
        return {name: fill_est(item, values) for name, item in est.items()}
    return [fill_est(item, values) for item in est] if isinstance(est, list) else est


_MARK_BYTES = MARK.encode()


def _fill_bytes(raw: bytes, values: tuple[str, ...]) -> bytes:
    return fill_text(raw.decode(), values).encode() if raw.startswith(_MARK_BYTES) else raw


def fill_value(value: Value, values: tuple[str, ...]) -> Value:
    """A constant with the literals of one policy; sets are sorted anew."""
    kind = value[0]
    if kind == STRING:
        return (STRING, _fill_bytes(value[1], values))
    if kind == ENTITY:
        return (ENTITY, value[1], _fill_bytes(value[2], values))
    if kind == SET:
        return of_set(fill_value(member, values) for member in value[2])
    if kind == RECORD:
        return (RECORD, value[1], tuple((name, fill_value(member, values)) for name, member in value[2]))
    return value


def is_marked(value: Value) -> bool:
    """Whether a constant holds a lifted literal."""
    kind = value[0]
    if kind in (STRING, ENTITY):
        return value[-1].startswith(_MARK_BYTES)
    if kind == SET:
        return any(map(is_marked, value[2]))
    return kind == RECORD and any(is_marked(member) for _, member in value[2])
