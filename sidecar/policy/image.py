"""Writes the image of fastpath/image.pxd: policies, entities and constants as one flat, position-independent block.

Everything that has an order is sorted by bytes (uids by type then id, types by name, policies by id), so equal content
gives equal bytes whatever the order of files or the seed of Python's hashes. What there are millions of stands in flat
tables until it is written (fastpath/filing.pxd, fastpath/layout.pxd, entity_table.py, link_table.py).
"""

from __future__ import annotations

import marshal
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from fastpath.filing import Rules
from fastpath.layout import Layout, add_types
from fastpath.names import Names
from fastpath.value import text_hash
from sidecar.policy import cells
from sidecar.policy.cells import EMPTY_RECORD, CellWriter, Uid, Value
from sidecar.policy.code import Constants
from sidecar.policy.entities import chunk_of, key_of
from sidecar.policy.entity_table import Closures, EntityTable
from sidecar.policy.link_table import OfTemplate
from sidecar.policy.rows import (
    ACTION_EQ,
    ACTION_IN,
    IMAGE_COLUMNS,
    NODE_BYTES,
    NONE32,
    NOTE_BYTES,
    POLICY_BYTES,
    PRINCIPAL_EQ,
    PRINCIPAL_IN,
    PRINCIPAL_IS,
    RESOURCE_EQ,
    RESOURCE_IN,
    RESOURCE_IS,
    SLOT_BYTES,
    TYPE_BYTES,
    VERSION,
    PolicyFlag,
    RowWriter,
    Scope,
    power_of_two,
    slots,
)
from sidecar.policy.source_rows import EntityRow, PolicyRow, ScopeRow


@dataclass(frozen=True, slots=True)
class Source:
    """All that one image is made of."""

    policies: Sequence[PolicyRow]
    entities: Sequence[EntityRow]
    constants: Constants
    shapes: dict[Uid, Value] = field(default_factory=dict)
    """Per action: the record that describes its `context.input` (fastpath/program.pxd "shapes")."""
    columns: bool = True


_TOTALS = "QQ6III"
_HEADER = struct.Struct("<8sIIQ" + _TOTALS + "II11Q" + "II" * 3)
_SHAPE = struct.Struct("<II")
_NOTE = struct.Struct("<8I")

# Most specific first: ties between equally rare ones go to the earlier.
_PREFERENCE = (
    PRINCIPAL_EQ, RESOURCE_EQ, PRINCIPAL_IN, RESOURCE_IN, ACTION_EQ, ACTION_IN, PRINCIPAL_IS, RESOURCE_IS,
)  # fmt: skip
RANK = {kind: rank for rank, kind in enumerate(_PREFERENCE)}
Key = tuple[int, Uid | str]


def uid_key(uid: Uid) -> tuple[bytes, bytes]:
    return uid[0].encode(), uid[1].encode()


def _scope_keys(row: ScopeRow, eq: int, in_: int, is_: int) -> list[Key]:
    if row.op is Scope.EQ and row.uid is not None:
        return [(eq, row.uid)]
    if row.op in (Scope.IN, Scope.IS_IN) and row.uid is not None:
        return [(in_, row.uid)]
    if row.op is Scope.IS and row.type is not None:
        return [(is_, row.type)]
    return []


def filings_of(policy: PolicyRow) -> list[list[Key]]:
    """The ways to file a policy; each is a list of keys under all of which it must stand."""
    ways = [
        _scope_keys(policy.principal, PRINCIPAL_EQ, PRINCIPAL_IN, PRINCIPAL_IS),
        _scope_keys(policy.action, ACTION_EQ, ACTION_IN, ACTION_IN),
        _scope_keys(policy.resource, RESOURCE_EQ, RESOURCE_IN, RESOURCE_IS),
    ]
    if policy.action.op is Scope.IN_LIST:
        ways.append([(ACTION_IN, uid) for uid in sorted(set(policy.action.uids), key=uid_key)])
    return [way for way in ways if way]


class Assembly:
    """An image while it is made: policies, links and entities arrive in any number, then it is written at once."""

    def __init__(self, constants: Constants, *, columns: bool = True, name: str = "entities") -> None:
        """`constants` may still grow; `name` stands before errors about entities."""
        self.constants = constants
        self.uids = Names()
        self.ids = Names()
        self.rules = Rules(self.ids)
        self.entities = EntityTable(self.uids, name)
        self.shapes: dict[Uid, Value] = {}
        """Per action: the record that describes its `context.input` (fastpath/program.pxd "shapes")."""
        self.columns_read = 0
        self.extras_read: set[str] = set()
        self.columns = columns
        self.types = Names()
        self.notes = Names()
        self.words = array("I")
        self._starts: dict[tuple[int, ...], int] = {(): 0}
        self.actions: dict[tuple[int, ...], int] = {}
        self.stack_max = 0

    def add(self, policy: PolicyRow) -> int:
        """Add a policy whose id nothing else has; its row. Notes and code stand in the order of their coming."""
        self.columns_read |= policy.program.columns
        self.extras_read |= policy.program.extras
        self.stack_max = max(self.stack_max, policy.program.stack)
        program, action = policy.program, policy.action
        return self.rules.add(
            self.ids.add(policy.id.encode()),
            policy.forbid,
            policy.flags | PolicyFlag.OBLIGES * bool(policy.obligation),
            (policy.principal.op, action.op, policy.resource.op),
            self._scope(policy.principal),
            (self._node(action), self._list(action)),
            self._scope(policy.resource),
            (self._code(program.words), len(program.words), program.stack),
            self.notes.add(marshal.dumps(note_of(policy), 2)),
        )

    def add_links(self, like: PolicyRow, links: OfTemplate) -> None:
        """Add a policy as `like`, which is none itself, for each link of its template."""
        row = self.add(like)
        self.rules.add_links(row, links.ids, links.principals, links.resources)
        self.rules.forget(row)

    def image(self) -> bytearray:
        """The image, little-endian, a multiple of 8 bytes long. Add nothing afterwards."""
        return _Writing(self).image()

    # ------------------------------------------------------------ names

    def _node(self, scope: ScopeRow) -> int:
        return NONE32 if scope.uid is None else self.uids.add(key_of(scope.uid))

    def _scope(self, scope: ScopeRow) -> tuple[int, int]:
        return self._node(scope), NONE32 if scope.type is None else self.types.add(scope.type.encode())

    def _list(self, scope: ScopeRow) -> int:
        """The row of a list of actions. Links share their template's, and equal ones are one."""
        if scope.op is not Scope.IN_LIST:
            return NONE32
        uids = tuple(dict.fromkeys(self.uids.add(key_of(uid)) for uid in scope.uids))
        if uids not in self.actions:
            self.actions[uids] = self.rules.actions(array("I", uids))
        return self.actions[uids]

    def _code(self, words: tuple[int, ...]) -> int:
        """Where a program begins. Equal programs stand there once."""
        at = self._starts.get(words)
        if at is None:
            at = self._starts[words] = len(self.words)
            self.words.extend(words)
        return at


class _Cells(CellWriter):
    """Cells whose entities are nodes of the image."""

    def __init__(self, out: bytearray, uids: Names, layout: Layout) -> None:
        super().__init__(out)
        self._uids = uids
        self._layout = layout

    def uid(self, type_: str, id_: str, *_rows: int) -> int:
        number = self._uids.find(key_of((type_, id_)))
        if number < 0:
            raise KeyError(type_, id_)
        return self._layout.uid_offset(self._layout.ranks[number])


class _Writing:
    """Writes an assembly. Everything stands in an order of its own content, not of its coming."""

    def __init__(self, made: Assembly) -> None:
        self.made = made
        self.shapes = {uid: made.constants.index(made.shapes[uid]) for uid in sorted(made.shapes, key=uid_key)}
        for uid in (*made.shapes, *(uid for value in made.constants.values for uid in cells.uids_in(value))):
            made.uids.add(key_of(uid))
        made.entities.widen()
        add_types(made.uids, made.types)
        made.rules.file(len(made.uids), len(made.types))
        self.layout = Layout(made.uids, made.types, made.rules)
        self.out = bytearray(_HEADER.size)
        self.rows = RowWriter(self.out)
        self.rows.cells = _Cells(self.out, made.uids, self.layout)

    def image(self) -> bytearray:
        made, rows = self.made, self.rows
        nodes = rows.rows_room(NODE_BYTES * len(made.uids))
        policies = rows.rows_room(POLICY_BYTES * len(made.rules))
        types = rows.room(TYPE_BYTES * len(made.types))
        notes = rows.room(NOTE_BYTES * len(made.notes))
        constants = rows.cells.room(len(made.constants.values))
        slot_count = power_of_two(2 * len(made.uids))
        uid_slots = rows.room(SLOT_BYTES * slot_count)
        long_bytes = self.layout.place(nodes)
        self.layout.put_long_uids(self.out, rows.room(long_bytes))
        type_slots = self._put_types(types)
        for row in range(len(made.notes)):
            self._put_note(notes + NOTE_BYTES * row, marshal.loads(made.notes[row]))
        for row, value in enumerate(made.constants.values):
            rows.cells.put(constants + 16 * row, value)
        code = rows.block(made.words.tobytes())
        closures = made.entities.closures(self.layout.ranks)
        anywhere = rows.entries(self.layout.entries(made.rules.anywhere_ranks()))
        refs = (*anywhere, *rows.list(self._parents(closures[0])), *self._put_shapes())
        actions = array("I", (part for ranks in self._action_ranks() for part in rows.list(ranks)))
        values = self._put_values()
        extras = rows.text("\0".join(sorted(made.extras_read, key=str.encode)))
        self._put_nodes(nodes, values, closures)
        self.layout.uid_slots(self.out, uid_slots, slot_count)
        self.layout.policies(self.out, policies, rows.room(self.layout.ids_bytes()), actions)
        sections = (
            slot_count, type_slots[1], nodes, uid_slots, types, type_slots[0], policies, notes, len(made.notes),
            code, len(made.words), constants, len(made.constants.values),
        )  # fmt: skip
        self._put_header(extras, sections, refs)
        return self.out

    # ------------------------------------------------------------ pieces

    def _put_types(self, base: int) -> tuple[int, int]:
        """Write types; offset and number of their slots."""
        made, hashes = self.made, []
        for row, number in enumerate(self.layout.type_order):
            name = made.types[number].decode()
            hashes.append(text_hash(name))
            lists = [made.rules.under(kind, number) for kind in (PRINCIPAL_IS, RESOURCE_IS)]
            self.rows.type(base + TYPE_BYTES * row, name, *map(self.layout.entries, lists))
        raw = slots(((hash_, hash_ >> 32, row) for row, hash_ in enumerate(hashes)), len(hashes))
        return self.rows.block(raw), len(raw) // SLOT_BYTES

    def _put_note(self, at: int, texts: Sequence[str]) -> None:
        *shared, annotations = texts
        # Annotations hold the id, so hardly any are equal: to look for those would keep a million texts.
        raw = annotations.encode()
        refs = (*(self.rows.text(text) for text in shared), (self.rows.at(self.rows.block(raw)), len(raw)))
        _NOTE.pack_into(self.out, at, *(part for ref in refs for part in ref))

    def _parents(self, closure_rows: array[int]) -> list[int]:
        """Nodes that are parents, ascending."""
        return sorted(self.layout.ranks[number] for number, row in enumerate(closure_rows) if row != NONE32)

    def _action_ranks(self) -> Iterable[list[int]]:
        return (sorted(self.layout.ranks[number] for number in uids) for uids in self.made.actions)

    def _put_values(self) -> array[int]:
        """Write the records that entities have; their `at`. Equal ones stand there once, in the order of the nodes that
        have them first.
        """
        entities, cells_ = self.made.entities, self.rows.cells
        found = array("I", repeat(0, len(entities.values)))
        found[0] = self.rows.at(cells_.cell(EMPTY_RECORD))
        left = len(entities.values) - 1
        for number in self.layout.order:
            row = entities.rows[number]
            if not left:
                break
            for value in (entities.attrs[row], entities.tags[row]) if row != NONE32 else ():
                if not found[value]:
                    found[value] = self.rows.at(cells_.cell(marshal.loads(entities.values[value])))
                    left -= 1
        return found

    def _put_nodes(self, base: int, values: array[int], closures: Closures) -> None:
        entities = self.made.entities
        lists = self.rows.cells.align()
        rows = (entities.rows, entities.attrs, entities.tags, entities.starts, entities.parents)
        self.layout.nodes(self.out, base, lists, rows, values, closures)
        self.rows.room(self.layout.lists_bytes())
        self.layout.put_lists(self.out, lists)

    def _put_shapes(self) -> tuple[int, int]:
        # Sorted by uid is sorted by node, since nodes are sorted by uid.
        nodes = {uid: self.layout.ranks[self.made.uids.find(key_of(uid))] for uid in self.shapes}
        raw = b"".join(_SHAPE.pack(nodes[uid], constant) for uid, constant in self.shapes.items())
        return (self.rows.at(self.rows.block(raw)), len(self.shapes)) if raw else (0, 0)

    def _put_header(self, extras: tuple[int, int], sections: tuple[int, ...], refs: tuple[int, ...]) -> None:
        made = self.made
        size = self.rows.cells.align()
        self.rows.at(size)  # PolicyError when it is too large
        _HEADER.pack_into(
            self.out, 0, b"REMITGEN", VERSION, IMAGE_COLUMNS if made.columns else 0, size,
            made.columns_read & 0xFFFFFFFFFFFFFFFF, made.columns_read >> 64, len(made.uids), len(made.types),
            len(made.rules), len(made.rules), len(made.entities), made.stack_max, *extras, *sections, *refs,
        )  # fmt: skip


def note_of(policy: PolicyRow) -> tuple[str, ...]:
    """The texts of a policy's Note."""
    return policy.template, policy.reason, policy.obligation, policy.annotations


def columns_read(policies: Iterable[PolicyRow]) -> int:
    """Bit i: some policy reads Column i."""
    bits = 0
    for policy in policies:
        bits |= policy.program.columns
    return bits


def extras_read(policies: Iterable[PolicyRow]) -> set[str]:
    """Names under `context` that are no columns and that some policy reads; `*` when one reads all of it."""
    names: set[str] = set()
    for policy in policies:
        names |= policy.program.extras
    return names


def write_image(source: Source) -> bytes:
    """The image of a set that fits into memory well. Policy ids and uids must be unique."""
    made = Assembly(source.constants, columns=source.columns)
    made.shapes = source.shapes
    for policy in sorted(source.policies, key=lambda policy: policy.id.encode()):
        made.add(policy)
    made.entities.add(chunk_of(source.entities))
    return bytes(made.image())
