"""Writes the rows of fastpath/image.pxd, with their texts and lists, into one buffer."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from fastpath.value import uid_hash
from sidecar.errors import PolicyError
from sidecar.policy.cells import EMPTY_RECORD, CellWriter, Uid, Value

VERSION = 4
NONE32 = 0xFFFFFFFF
IMAGE_COLUMNS = 1
NODE_BYTES = 128
TYPE_BYTES = 24
POLICY_BYTES = 64
NOTE_BYTES = 32
SLOT_BYTES = 8
UNIT = 8
"""Bytes that one step of an `at` stands for."""

_UID = struct.Struct("<QIIII")
_PAIR = struct.Struct("<II")
_SLOT = struct.Struct("<II")
_POLICY = struct.Struct("<8B6I" + "II" * 4)
_NODE = struct.Struct("<10I")
_ROWS_ALIGNED_AT, _LINES = 112, 128
_GUARD_SHIFT = 28


class Scope(IntEnum):
    """How a policy constrains one of principal, action, resource, as in fastpath/image.pxd."""

    ANY = 0
    EQ = 1
    IN = 2
    IS = 3
    IS_IN = 4
    IN_LIST = 5


class PolicyFlag(IntEnum):
    CURABLE = 1
    NEVER = 2
    SHADOW = 4
    OBLIGES = 8
    GONE = 16
    TASKLESS = 32


class NodeFlag(IntEnum):
    PRESENT = 1
    PARENT = 2
    SAME = 4
    UNDER_PRINCIPAL_IN = 8
    UNDER_RESOURCE_IN = 16
    UNDER_ACTION_IN = 32
    DEEP = 64
    ABOVE = 120
    LIST = 256
    INHERITS = 16384


# Keys under which a policy can be filed.
PRINCIPAL_EQ, PRINCIPAL_IN, RESOURCE_EQ, RESOURCE_IN, ACTION_EQ, ACTION_IN, PRINCIPAL_IS, RESOURCE_IS = range(8)
UNDER = {
    PRINCIPAL_IN: NodeFlag.UNDER_PRINCIPAL_IN,
    RESOURCE_IN: NodeFlag.UNDER_RESOURCE_IN,
    ACTION_IN: NodeFlag.UNDER_ACTION_IN,
}
NODE_KEYS = 6
"""The first of them are filed under a uid, in the order of a Node's lists; the others under a type."""
FILED_ANY = 8
"""A policy's without such a key."""

Ref = tuple[int, int]
"""A Span, List or Entries: (at, n)."""
EMPTY: Ref = (0, 0)
Entry = tuple[int, int]
"""A policy and its guard, as in fastpath/image.pxd."""


@dataclass(slots=True)
class NodeRow:
    """One Node: indexes of nodes, and entries of policies, each list ascending."""

    uid: Uid
    index: int
    type_index: int
    flags: int
    parents: Sequence[int]
    closure: Sequence[int]
    filed: Sequence[Sequence[Entry]]
    """By key, PRINCIPAL_EQ to ACTION_IN."""
    attrs: Value = EMPTY_RECORD
    tags: Value = EMPTY_RECORD


@dataclass(slots=True)
class PolicyCells:
    """One Policy as it stands in the table."""

    effect: int
    flags: int
    ops: tuple[int, int, int]
    uids: tuple[int, int, int, int, int]
    """principal's uid and type, action's uid, resource's uid and type; NONE32 for none."""
    stack: int
    actions: Sequence[int]
    code: int
    code_words: int
    id: str
    note: int
    rank: int = 0


class RowWriter:
    """Appends rows to `out`, whose first byte is `first_at` steps into the table's memory. Equal texts and equal lists
    stand there once."""

    def __init__(self, out: bytearray, first_at: int = 0) -> None:
        self.out = out
        self.first_at = first_at
        self.cells = CellWriter(out)
        self._lists: dict[bytes, int] = {}
        self._records: dict[Value, int] = {}

    def room(self, size: int) -> int:
        """Offset of `size` zeroed bytes at the end."""
        at = self.cells.align()
        self.out.extend(bytes(size))
        return at

    def rows_room(self, size: int) -> int:
        """As `room`, where rows begin with pairs of the processor's cache lines."""
        self.out.extend(bytes((_ROWS_ALIGNED_AT - len(self.out)) % _LINES))
        return self.room(size)

    def block(self, raw: bytes) -> int:
        at = self.cells.align()
        self.out += raw
        return at

    def at(self, offset: int) -> int:
        """The `at` of an offset in `out`; PolicyError when the table would be larger than 32 GiB."""
        at = self.first_at + offset // UNIT
        if at >= NONE32:
            raise PolicyError("the rule table would be larger than 32 GiB; split the policy set")
        return at

    def text(self, text: str) -> Ref:
        raw = text.encode()
        return (self.at(self.cells.text(raw)), len(raw)) if raw else EMPTY

    def list(self, members: Sequence[int]) -> Ref:
        """The List of ascending `members`; nothing is written for none or one."""
        if len(members) < 2:
            return (members[0], 1) if members else EMPTY
        return self.standing(struct.pack(f"<{len(members)}I", *members)), len(members)

    def entries(self, raw: bytes) -> Ref:
        """The Entries of packed ones."""
        return (self.standing(raw), len(raw) // _PAIR.size) if raw else EMPTY

    def standing(self, raw: bytes) -> int:
        """The `at` of a list's bytes."""
        at = self._lists.get(raw)
        if at is None:
            at = self._lists[raw] = self.at(self.block(raw))
        return at

    def node(self, at: int, row: NodeRow) -> None:
        """Write `row` at offset `at`. Its uid and what fits of its lists stand in the row itself."""
        room = _Room(self, self._uid(at, row), at + NODE_BYTES)
        parents, closure = room.list(row.parents), room.list(row.closure)
        flags, lists = row.flags, []
        for key, filed in enumerate(row.filed):
            if filed:
                flags |= NodeFlag.LIST << key
                lists.append((room.put(pack_entries(filed)), len(filed)))
        if len(lists) > 1:
            lists = [(room.put(pack_entries(lists)), len(lists))]
        uid = self.at(self.cells.uids[row.uid])
        refs = (*parents, *closure, *(lists[0] if lists else EMPTY))
        _NODE.pack_into(self.out, at, uid, flags, *refs, self.record(row.attrs), self.record(row.tags))

    def record(self, value: Value) -> int:
        """`at` of a record's cell."""
        at = self._records.get(value)
        if at is None:
            at = self._records[value] = self.at(self.cells.cell(value))
        return at

    def _uid(self, at: int, row: NodeRow) -> int:
        """Write the row's uid unless it stands elsewhere already; the offset of what is free of the row's room."""
        start = at + _NODE.size
        # Written ahead (`uids`): here, or elsewhere when it does not fit.
        if self.cells.uids.get(row.uid, start) != start:
            return start
        type_, id_ = (part.encode() for part in row.uid)
        if not uid_fits(row.uid):
            self.cells.uid(*row.uid, row.index, row.type_index)
            return start
        self.cells.uids[row.uid] = start
        _UID.pack_into(self.out, start, uid_hash(*row.uid), row.index, row.type_index, len(type_), len(id_))
        text = type_ + id_
        self.out[start + _UID.size : start + _UID.size + len(text)] = text
        return start + _UID.size + -(-len(text) // UNIT) * UNIT

    def uids(self, at: int, rows: Iterable[tuple[Uid, int, int]]) -> None:
        """Fix where the uids of the nodes (uid, index, type's index) from offset `at` stand, for cells to name them."""
        for number, (uid, index, type_index) in enumerate(rows):
            if uid_fits(uid):
                self.cells.uids[uid] = at + NODE_BYTES * number + _NODE.size
            else:
                self.cells.uid(*uid, index, type_index)

    def type(self, at: int, name: str, principal_is: bytes, resource_is: bytes) -> None:
        """Write a Type whose lists of policies are packed entries."""
        for i, ref in enumerate((self.text(name), self.entries(principal_is), self.entries(resource_is))):
            _PAIR.pack_into(self.out, at + 8 * i, *ref)

    def policy(self, at: int, row: PolicyCells) -> None:
        _POLICY.pack_into(
            self.out, at, row.effect, row.flags, *row.ops, 0, 0, 0, *row.uids, row.stack, *self.list(row.actions),
            row.code, row.code_words, *self.text(row.id), row.note, row.rank,
        )  # fmt: skip

    def note(self, at: int, texts: Sequence[str]) -> None:
        """template, reason, obligation, annotations"""
        for i, text in enumerate(texts):
            _PAIR.pack_into(self.out, at + 8 * i, *self.text(text))


class _Room:
    """What is free of a node's row."""

    def __init__(self, rows: RowWriter, free: int, end: int) -> None:
        self._rows = rows
        self._free = free
        self._end = end

    def list(self, members: Sequence[int]) -> Ref:
        """As RowWriter.list, in the row when it fits."""
        if len(members) < 2:
            return self._rows.list(members)
        return self.put(struct.pack(f"<{len(members)}I", *members)), len(members)

    def put(self, raw: bytes) -> int:
        """The `at` of a list that stands in the row when it fits."""
        start = self._free
        if len(raw) > self._end - start:
            return self._rows.standing(raw)
        self._rows.out[start : start + len(raw)] = raw
        self._free += -(-len(raw) // UNIT) * UNIT
        return self._rows.at(start)


def pack_entries(pairs: Iterable[Entry]) -> bytes:
    return b"".join(_PAIR.pack(*pair) for pair in pairs)


def guard_of(kind: int, row: int = 0) -> int:
    """The guard of an Entry: a constraint by the key it could be filed under, FILED_ANY for none; none as well when the
    row is one that a guard cannot name.
    """
    return kind << _GUARD_SHIFT | row if row < 1 << _GUARD_SHIFT else FILED_ANY << _GUARD_SHIFT


def uid_fits(uid: Uid) -> bool:
    """Whether a node's uid stands in its own row."""
    return len(uid[0].encode()) + len(uid[1].encode()) <= NODE_BYTES - _NODE.size - _UID.size


def power_of_two(least: int) -> int:
    return 1 << max(1, (least - 1).bit_length())


def slots(rows: Iterable[tuple[int, int, int]], count: int) -> bytes:
    """An open-addressed table of Slots, at least half of them free, from (where its probe starts, tag, row) each."""
    size = power_of_two(2 * count)
    found: list[Ref | None] = [None] * size
    for hash_, tag, row in rows:
        at = hash_ & (size - 1)
        while found[at] is not None:
            at = (at + 1) & (size - 1)
        found[at] = (tag, row)
    return b"".join(_SLOT.pack(*(slot or (0, NONE32))) for slot in found)
