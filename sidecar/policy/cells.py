"""Cedar values as cells (fastpath/value.pxd): explicit Cedar JSON in, position-independent bytes out.

A value stands here as a tuple that begins with its Kind. Python orders and compares these tuples exactly as the native
`cell_compare` orders and compares cells, so sets are sorted and deduplicated by it. Bool is 0 or 1, never True, which
Python would take for equal to 1.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NoReturn

from fastpath.extension import parse
from fastpath.value import Kind, uid_hash
from sidecar.errors import PolicyError

Value = tuple[Any, ...]
Uid = tuple[str, str]

BOOL = int(Kind.KIND_BOOL)
LONG = int(Kind.KIND_LONG)
STRING = int(Kind.KIND_STRING)
ENTITY = int(Kind.KIND_ENTITY)
SET = int(Kind.KIND_SET)
RECORD = int(Kind.KIND_RECORD)
DECIMAL = int(Kind.KIND_DECIMAL)
IP = int(Kind.KIND_IP)
DATETIME = int(Kind.KIND_DATETIME)
DURATION = int(Kind.KIND_DURATION)

LONG_MIN = -(1 << 63)
LONG_MAX = (1 << 63) - 1
DEPTH_MAX = 64
UID_UNKNOWN = 0xFFFFFFFF

# Cedar grammar, IDENT: what no part of a type's name may be.
_KEYWORDS = frozenset({"true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar"})
_NAME = re.compile(r"[_a-zA-Z][_a-zA-Z0-9]*(::[_a-zA-Z][_a-zA-Z0-9]*)*", re.ASCII)

_CELL = struct.Struct("<BBHIq")
_UID = struct.Struct("<QIIII")
_SCALARS = frozenset((BOOL, LONG, DECIMAL, DATETIME, DURATION))


# ---------------------------------------------------------------- making values


def of_bool(value: bool) -> Value:
    return (BOOL, int(value))


def of_string(text: str) -> Value:
    return (STRING, text.encode())


def of_entity(type_: str, id_: str) -> Value:
    return (ENTITY, type_.encode(), id_.encode())


def of_set(members: Iterable[Value]) -> Value:
    unique = sorted(set(members))
    return (SET, len(unique), tuple(unique))


def of_record(fields: dict[str, Value]) -> Value:
    rows = sorted((key.encode(), value) for key, value in fields.items())
    return (RECORD, len(rows), tuple(rows))


EMPTY_RECORD = of_record({})
CONSTRUCTORS = {"ip": IP, "decimal": DECIMAL, "datetime": DATETIME, "duration": DURATION}


def of_extension(function: str, text: str) -> Value:
    """The value of `function(text)` for ip, decimal, datetime, duration; ValueError when Cedar refuses the text."""
    parsed = parse(function, text)
    if isinstance(parsed, tuple):
        v6, prefix, address = parsed
        return (IP, int(v6), prefix, address)
    return (CONSTRUCTORS[function], parsed)


# ---------------------------------------------------------------- from Cedar JSON


def _refuse(where: str, cause: str) -> NoReturn:
    raise PolicyError(f"{where} {cause}")


def of_json(value: object, where: str = "value", depth: int = 0) -> Value:
    """The value that explicit Cedar JSON stands for (Cedar JSON entity format: `__entity`, `__extn`).

    `where` names the value in errors. Raises PolicyError for what is no Cedar value: null, floats, integers beyond i64,
    unknown functions, text that an extension refuses, more than 64 levels.
    """
    if depth > DEPTH_MAX:
        _refuse(where, f"is nested deeper than {DEPTH_MAX} levels")
    try:
        if isinstance(value, bool):
            return of_bool(value)
        if isinstance(value, int):
            if not LONG_MIN <= value <= LONG_MAX:
                _refuse(where, f"is `{value}`, which does not fit into 64 bits")
            return (LONG, value)
        if isinstance(value, str):
            return of_string(value)
        if isinstance(value, list):
            return of_set([of_json(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)])
        if isinstance(value, dict):
            return _of_object(value, where, depth)
    except UnicodeEncodeError:
        _refuse(where, "is not valid Unicode")
    return _refuse(where, f"is {'null' if value is None else type(value).__name__}, which is no Cedar value")


def _of_object(value: dict[str, Any], where: str, depth: int) -> Value:
    if "__entity" in value:
        if len(value) != 1:
            _refuse(where, "mixes `__entity` with other keys")
        return of_entity(*uid_of_json(value["__entity"], where))
    if "__extn" in value:
        if len(value) != 1:
            _refuse(where, "mixes `__extn` with other keys")
        return _of_call(value["__extn"], where, depth)
    if "__expr" in value:
        _refuse(where, "uses `__expr`, which Cedar no longer reads")
    return of_record({key: of_json(item, f"{where}.{key}", depth + 1) for key, item in value.items()})


@lru_cache(maxsize=4096)
def is_type_name(text: str) -> bool:
    """Whether `text` is the name of an entity type, with its namespace (Cedar grammar, PATH)."""
    return _NAME.fullmatch(text) is not None and _KEYWORDS.isdisjoint(text.split("::"))


def uid_of_json(value: object, where: str) -> Uid:
    """(type, id) of `{"type": .., "id": ..}`; PolicyError when it is not one."""
    if (
        isinstance(value, dict)
        and value.keys() == {"type", "id"}
        and isinstance(value["type"], str)
        and isinstance(value["id"], str)
    ):
        if not is_type_name(value["type"]):
            _refuse(where, f"names the type `{value['type']}`, which is no type name")
        return value["type"], value["id"]
    return _refuse(where, 'is not an entity uid: {"type": .., "id": ..} is expected')


def _of_call(call: object, where: str, depth: int) -> Value:
    if not isinstance(call, dict) or call.keys() not in ({"fn", "arg"}, {"fn", "args"}):
        _refuse(where, 'has an `__extn` that is not {"fn": .., "arg": ..}')
    function = call["fn"]
    arguments = call["args"] if "args" in call else [call["arg"]]
    if function == "offset":
        return _offset(arguments, where, depth)
    if function not in CONSTRUCTORS:
        _refuse(where, f"calls the extension function `{function}`, which makes no value here")
    if not isinstance(arguments, list) or len(arguments) != 1 or not isinstance(arguments[0], str):
        _refuse(where, f"calls `{function}` with something other than one text")
    try:
        return of_extension(function, arguments[0])
    except ValueError:
        _refuse(where, f"is `{arguments[0]}`, which is no {function}")


def _offset(arguments: object, where: str, depth: int) -> Value:
    if not isinstance(arguments, list) or len(arguments) != 2:
        _refuse(where, "calls `offset` with something other than a datetime and a duration")
    start = of_json(arguments[0], where, depth + 1)
    shift = of_json(arguments[1], where, depth + 1)
    if start[0] != DATETIME or shift[0] != DURATION:
        _refuse(where, "calls `offset` with something other than a datetime and a duration")
    total = start[1] + shift[1]
    if not LONG_MIN <= total <= LONG_MAX:
        _refuse(where, "calls `offset` with a result out of range")
    return (DATETIME, total)


def uids_in(value: Value) -> Iterator[Uid]:
    """Every entity that `value` names, as (type, id)."""
    stack = [value]
    while stack:
        at = stack.pop()
        if at[0] == ENTITY:
            yield at[1].decode(), at[2].decode()
        elif at[0] == SET:
            stack.extend(at[2])
        elif at[0] == RECORD:
            stack.extend(item for _, item in at[2])


# ---------------------------------------------------------------- writing cells


class CellWriter:
    """Appends cells to `out`. Texts and uids that occur again are written once."""

    def __init__(self, out: bytearray) -> None:
        self.out = out
        self._texts: dict[bytes, int] = {}
        self.uids: dict[Uid, int] = {}

    def align(self) -> int:
        """Pad to a multiple of 8 and return the offset there."""
        self.out.extend(bytes(-len(self.out) % 8))
        return len(self.out)

    def text(self, raw: bytes) -> int:
        """Offset of `raw` in the output."""
        at = self._texts.get(raw)
        if at is None:
            at = self._texts[raw] = self.align()
            self.out += raw
        return at

    def uid(self, type_: str, id_: str, index: int = UID_UNKNOWN, type_index: int = UID_UNKNOWN) -> int:
        """Offset of the Uid of (type, id); rows are given by whoever writes it first."""
        at = self.uids.get((type_, id_))
        if at is None:
            at = self.uids[type_, id_] = self.align()
            type_raw, id_raw = type_.encode(), id_.encode()
            self.out += _UID.pack(uid_hash(type_, id_), index, type_index, len(type_raw), len(id_raw))
            self.out += type_raw + id_raw
            self.align()
        return at

    def cell(self, value: Value) -> int:
        """Append a cell with all that it points to and return its offset."""
        at = self.room(1)
        self.put(at, value)
        return at

    def room(self, cells: int) -> int:
        """Offset of `cells` zeroed cells at the end of the output."""
        at = self.align()
        self.out.extend(bytes(16 * cells))
        return at

    def put(self, at: int, value: Value) -> None:
        """Write `value` into the cell at offset `at`, and what it points to behind the output's end."""
        kind = value[0]
        if kind in _SCALARS:
            _CELL.pack_into(self.out, at, kind, 0, 0, 0, value[1])
            return
        count = 0
        if kind == STRING:
            count = len(value[1])
            target = self.text(value[1])
        elif kind == ENTITY:
            target = self.uid(value[1].decode(), value[2].decode())
        elif kind == IP:
            target = self.align()
            self.out += bytes((value[1], value[2], 0, 0, 0, 0, 0, 0)) + value[3]
        else:
            count = value[1]
            target = self.members(value)
        _CELL.pack_into(self.out, at, kind, 0, 0, count, target - at)

    def members(self, value: Value) -> int:
        """Write what a set or a record holds; its offset."""
        if value[0] == SET:
            at = self.room(value[1])
            for i, member in enumerate(value[2]):
                self.put(at + 16 * i, member)
            return at
        at = self.room(2 * value[1])
        for i, (key, member) in enumerate(value[2]):
            self.put(at + 32 * i, (STRING, key))
            self.put(at + 32 * i + 16, member)
        return at


def encode(value: Value) -> bytes:
    """One cell at offset 0 with everything it points to behind it."""
    out = bytearray()
    writer = CellWriter(out)
    writer.cell(value)
    writer.align()
    return bytes(out)


def encode_value(json_value: object) -> bytes:
    """Cells of one explicit Cedar JSON value: the value's cell at offset 0. PolicyError when it is none."""
    return encode(of_json(json_value))


def encode_context(json_record: dict[str, Any]) -> bytes:
    """Cells of a request's context: a record cell at offset 0. PolicyError when it is no record."""
    value = of_json(json_record, "context")
    if value[0] != RECORD:
        raise PolicyError("context is not a record")
    return encode(value)
