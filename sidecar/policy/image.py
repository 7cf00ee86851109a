"""Writes the image of fastpath/image.pxd: policies, entities and constants as one flat, position-independent block.

Everything that has an order is sorted by bytes (uids by type then id, types by name, policies by id), so equal content
gives equal bytes whatever the order of files or the seed of Python's hashes.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fastpath.value import text_hash, uid_hash
from sidecar.policy import cells
from sidecar.policy.cells import EMPTY_RECORD, Uid, Value
from sidecar.policy.code import Constants
from sidecar.policy.program import Program
from sidecar.policy.rows import (
    ACTION_EQ,
    ACTION_IN,
    IMAGE_COLUMNS,
    NODE_BYTES,
    NODE_KEYS,
    NONE32,
    NOTE_BYTES,
    POLICY_BYTES,
    PRINCIPAL_EQ,
    PRINCIPAL_IN,
    PRINCIPAL_IS,
    RESOURCE_EQ,
    RESOURCE_IN,
    RESOURCE_IS,
    TYPE_BYTES,
    VERSION,
    NodeFlag,
    NodeRow,
    PolicyCells,
    PolicyFlag,
    RowWriter,
    Scope,
    slots,
)


@dataclass(frozen=True, slots=True)
class ScopeRow:
    """One constraint: the uid of `==` and `in`, the type of `is`, the uids of an action list."""

    op: Scope = Scope.ANY
    uid: Uid | None = None
    type: str | None = None
    uids: tuple[Uid, ...] = ()

    def named(self) -> Iterable[Uid]:
        return self.uids if self.uid is None else (self.uid,)


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One policy or one link, ready to be filed."""

    id: str
    forbid: bool
    flags: int
    principal: ScopeRow
    action: ScopeRow
    resource: ScopeRow
    program: Program
    template: str = ""
    reason: str = ""
    obligation: str = ""
    annotations: str = "{}"


@dataclass(frozen=True, slots=True)
class EntityRow:
    """One entity of the store with its own parents; what those are in follows from their rows."""

    uid: Uid
    attrs: Value = EMPTY_RECORD
    tags: Value = EMPTY_RECORD
    parents: frozenset[Uid] = frozenset()


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


def file_policies(policies: Sequence[PolicyRow]) -> tuple[dict[Key, list[int]], list[int]]:
    """Where each policy (by index) is filed: under its rarest constraint, or in the list that every request walks.

    A policy whose action list is empty can match nothing and is filed nowhere.
    """
    ways = [filings_of(policy) for policy in policies]
    count = Counter(key for filings in ways for way in filings for key in way)
    filed: dict[Key, list[int]] = {}
    anywhere: list[int] = []
    for i, filings in enumerate(ways):
        if policies[i].action.op is Scope.IN_LIST and not policies[i].action.uids:
            continue
        if not filings:
            anywhere.append(i)
            continue
        best = min(filings, key=lambda way: (sum(count[key] for key in way), RANK[way[0][0]]))
        for key in best:
            filed.setdefault(key, []).append(i)
    return filed, anywhere


def closures(parents: Mapping[Uid, Iterable[Uid]]) -> dict[Uid, frozenset[Uid]]:
    """All ancestors of every uid that is a parent, from the parents of each entity, which form no cycle."""
    closed: dict[Uid, frozenset[Uid]] = {}
    path = [uid for above in parents.values() for uid in above]
    while path:
        above = parents.get(path[-1], ())
        waiting = [uid for uid in above if uid not in closed] if path[-1] not in closed else []
        if waiting:
            path += waiting
            continue
        uid = path.pop()
        if uid not in closed:
            closed[uid] = frozenset(above).union(*(closed[one] for one in above))
    return closed


class _Writer:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.policies = sorted(source.policies, key=lambda policy: policy.id.encode())
        self.entities = {entity.uid: entity for entity in source.entities}
        self.closed = closures({entity.uid: entity.parents for entity in source.entities})
        self.shapes = {uid: source.constants.index(source.shapes[uid]) for uid in sorted(source.shapes, key=uid_key)}
        self._name_rows()
        self.out = bytearray(_HEADER.size)
        self.rows = RowWriter(self.out)
        self.notes: dict[tuple[str, ...], int] = {}

    def _name_rows(self) -> None:
        """Give every uid and every type that the image names its row."""
        uids: set[Uid] = set(self.entities) | set(self.shapes)
        types: set[str] = set()
        for entity in self.source.entities:
            uids |= entity.parents
            uids.update(cells.uids_in(entity.attrs), cells.uids_in(entity.tags))
        for value in self.source.constants.values:
            uids.update(cells.uids_in(value))
        for policy in self.policies:
            for scope in (policy.principal, policy.action, policy.resource):
                uids.update(scope.named())
                if scope.type is not None:
                    types.add(scope.type)
        self.uids = sorted(uids, key=uid_key)
        self.node = {uid: i for i, uid in enumerate(self.uids)}
        types.update(type_ for type_, _ in self.uids)
        self.types = sorted(types, key=str.encode)
        self.type = {name: i for i, name in enumerate(self.types)}

    def image(self) -> bytes:
        self.notes = {note: row for row, note in enumerate(dict.fromkeys(map(note_of, self.policies)))}
        nodes = self.rows.rows_room(NODE_BYTES * len(self.uids))
        policies = self.rows.rows_room(POLICY_BYTES * len(self.policies))
        types = self.rows.room(TYPE_BYTES * len(self.types))
        notes = self.rows.room(NOTE_BYTES * len(self.notes))
        constants = self.rows.cells.room(len(self.source.constants.values))
        uid_slots, type_slots = self._slots()
        filed, anywhere = file_policies(self.policies)
        self._put_nodes(nodes, filed)
        for row, name in enumerate(self.types):
            self.rows.type(
                types + TYPE_BYTES * row, name, filed.get((PRINCIPAL_IS, name), ()), filed.get((RESOURCE_IS, name), ())
            )
        for note, row in self.notes.items():
            self.rows.note(notes + NOTE_BYTES * row, note)
        code, words = self._put_policies(policies)
        for i, value in enumerate(self.source.constants.values):
            self.rows.cells.put(constants + 16 * i, value)
        sections = (
            nodes, self.rows.block(uid_slots), types, self.rows.block(type_slots), policies, notes, len(self.notes),
            code, words, constants, len(self.source.constants.values),
        )  # fmt: skip
        parents = [row for row, uid in enumerate(self.uids) if uid in self.closed]
        refs = (*self.rows.list(anywhere), *self.rows.list(parents), *self._put_shapes())
        self._put_header((len(uid_slots) // 8, len(type_slots) // 8, *sections), refs)
        return bytes(self.out)

    # ------------------------------------------------------------ pieces

    def _slots(self) -> tuple[bytes, bytes]:
        uids = ((hash_, hash_ >> 32, row) for row, hash_ in enumerate(uid_hash(*uid) for uid in self.uids))
        types = ((hash_, hash_ >> 32, row) for row, hash_ in enumerate(map(text_hash, self.types)))
        return slots(uids, len(self.uids)), slots(types, len(self.types))

    def _put_nodes(self, base: int, filed: dict[Key, list[int]]) -> None:
        self.rows.uids(base, ((uid, row, self.type[uid[0]]) for row, uid in enumerate(self.uids)))
        for row, uid in enumerate(self.uids):
            entity = self.entities.get(uid, EntityRow(uid))
            flags = NodeFlag.PRESENT * (uid in self.entities) | NodeFlag.PARENT * (uid in self.closed)
            self.rows.node(
                base + NODE_BYTES * row,
                NodeRow(
                    uid, row, self.type[uid[0]], flags, self._nodes(entity.parents),
                    self._nodes(self.closed.get(uid, ())), [filed.get((kind, uid), ()) for kind in range(NODE_KEYS)],
                    entity.attrs, entity.tags,
                ),
            )  # fmt: skip

    def _nodes(self, uids: Iterable[Uid]) -> list[int]:
        return sorted(self.node[uid] for uid in uids)

    def _put_policies(self, base: int) -> tuple[int, int]:
        """Write policies and the code section; returns its offset and its words. Equal programs stand there once."""
        words: list[int] = []
        starts: dict[tuple[int, ...], int] = {}
        for row, policy in enumerate(self.policies):
            program = policy.program.words
            if program not in starts:
                starts[program] = len(words) if program else 0
                words += program
            self.rows.policy(base + POLICY_BYTES * row, self._policy(policy, starts[program]))
        return self.rows.block(struct.pack(f"<{len(words)}I", *words)), len(words)

    def _policy(self, policy: PolicyRow, code: int) -> PolicyCells:
        principal, action, resource = policy.principal, policy.action, policy.resource
        return PolicyCells(
            policy.forbid,
            policy.flags | PolicyFlag.OBLIGES * bool(policy.obligation),
            (principal.op, action.op, resource.op),
            (
                self._node(principal),
                self._type(principal),
                self._node(action),
                self._node(resource),
                self._type(resource),
            ),
            policy.program.stack,
            self._nodes(set(action.uids)),
            code,
            len(policy.program.words),
            policy.id,
            self.notes[note_of(policy)],
        )

    def _node(self, scope: ScopeRow) -> int:
        return NONE32 if scope.uid is None else self.node[scope.uid]

    def _type(self, scope: ScopeRow) -> int:
        return NONE32 if scope.type is None else self.type[scope.type]

    def _put_shapes(self) -> tuple[int, int]:
        # Sorted by uid is sorted by node, since nodes are sorted by uid.
        raw = b"".join(_SHAPE.pack(self.node[uid], constant) for uid, constant in self.shapes.items())
        return (self.rows.at(self.rows.block(raw)), len(self.shapes)) if raw else (0, 0)

    def _put_header(self, sections: tuple[int, ...], refs: tuple[int, ...]) -> None:
        columns = columns_read(self.policies)
        extras = self.rows.text("\0".join(sorted(extras_read(self.policies), key=str.encode)))
        size = self.rows.cells.align()
        _HEADER.pack_into(
            self.out, 0, b"REMITGEN", VERSION, IMAGE_COLUMNS if self.source.columns else 0, size,
            columns & 0xFFFFFFFFFFFFFFFF, columns >> 64, len(self.uids), len(self.types), len(self.policies),
            len(self.policies), len(self.entities), max((policy.program.stack for policy in self.policies), default=0),
            *extras, *sections, *refs,
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
    """The image of `source`, little-endian, a multiple of 8 bytes long. Policy ids and uids must be unique."""
    return _Writer(source).image()
