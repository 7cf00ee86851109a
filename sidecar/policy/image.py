"""Writes the image of fastpath/image.pxd: policies, entities and constants as one flat, position-independent block.

Everything that has an order is sorted by bytes (uids by type then id, types by name, policies by id), so equal content
gives equal bytes whatever the order of files or the seed of Python's hashes.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from fastpath.value import text_hash, uid_hash
from sidecar.policy import cells
from sidecar.policy.cells import EMPTY_RECORD, CellWriter, Uid, Value
from sidecar.policy.code import Constants
from sidecar.policy.program import Program

VERSION = 1
NONE32 = 0xFFFFFFFF
IMAGE_COLUMNS = 1


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
    TASKLESS = 8


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
    """One entity of the store. `ancestors` is transitively closed and does not hold the entity itself."""

    uid: Uid
    attrs: Value = EMPTY_RECORD
    tags: Value = EMPTY_RECORD
    ancestors: frozenset[Uid] = frozenset()


@dataclass(frozen=True, slots=True)
class Source:
    """All that one image is made of."""

    policies: Sequence[PolicyRow]
    entities: Sequence[EntityRow]
    constants: Constants
    shapes: dict[Uid, Value] = field(default_factory=dict)
    """Per action: the record that describes its `context.input` (fastpath/program.pxd "shapes")."""
    columns: bool = True


_HEADER = struct.Struct("<8sIIQQQ8I9Q" + "QII" * 3)
_NODE = struct.Struct("<QIIQ")
_SPAN = struct.Struct("<QII")
_POLICY = struct.Struct("<8B6IQIIQ")
_SHAPE = struct.Struct("<IIQ")
_NODE_BYTES = 152
_TYPE_BYTES = 48
_POLICY_BYTES = 136

# Keys under which a policy can be filed, most specific first: ties between equally rare ones go to the earlier.
_PRINCIPAL_EQ, _PRINCIPAL_IN, _ACTION_EQ, _ACTION_IN, _RESOURCE_EQ, _RESOURCE_IN, _PRINCIPAL_IS, _RESOURCE_IS = range(8)
_PREFERENCE = (
    _PRINCIPAL_EQ, _RESOURCE_EQ, _PRINCIPAL_IN, _RESOURCE_IN, _ACTION_EQ, _ACTION_IN, _PRINCIPAL_IS, _RESOURCE_IS,
)  # fmt: skip
_RANK = {kind: rank for rank, kind in enumerate(_PREFERENCE)}
Key = tuple[int, Uid | str]


def _uid_key(uid: Uid) -> tuple[bytes, bytes]:
    return uid[0].encode(), uid[1].encode()


def _scope_keys(row: ScopeRow, eq: int, in_: int, is_: int) -> list[Key]:
    if row.op is Scope.EQ and row.uid is not None:
        return [(eq, row.uid)]
    if row.op in (Scope.IN, Scope.IS_IN) and row.uid is not None:
        return [(in_, row.uid)]
    if row.op is Scope.IS and row.type is not None:
        return [(is_, row.type)]
    return []


def _filings(policy: PolicyRow) -> list[list[Key]]:
    """The ways to file a policy; each is a list of keys under all of which it must stand."""
    ways = [
        _scope_keys(policy.principal, _PRINCIPAL_EQ, _PRINCIPAL_IN, _PRINCIPAL_IS),
        _scope_keys(policy.action, _ACTION_EQ, _ACTION_IN, _ACTION_IN),
        _scope_keys(policy.resource, _RESOURCE_EQ, _RESOURCE_IN, _RESOURCE_IS),
    ]
    if policy.action.op is Scope.IN_LIST:
        ways.append([(_ACTION_IN, uid) for uid in sorted(set(policy.action.uids), key=_uid_key)])
    return [way for way in ways if way]


def file_policies(policies: Sequence[PolicyRow]) -> tuple[dict[Key, list[int]], list[int]]:
    """Where each policy (by index) is filed: under its rarest constraint, or in the list that every request walks.

    A policy whose action list is empty can match nothing and is filed nowhere.
    """
    ways = [_filings(policy) for policy in policies]
    count = Counter(key for filings in ways for way in filings for key in way)
    filed: dict[Key, list[int]] = {}
    anywhere: list[int] = []
    for i, filings in enumerate(ways):
        if policies[i].action.op is Scope.IN_LIST and not policies[i].action.uids:
            continue
        if not filings:
            anywhere.append(i)
            continue
        best = min(filings, key=lambda way: (sum(count[key] for key in way), _RANK[way[0][0]]))
        for key in best:
            filed.setdefault(key, []).append(i)
    return filed, anywhere


def _power_of_two(least: int) -> int:
    return 1 << max(1, (least - 1).bit_length())


def _slots(hashes: Iterable[int], count: int) -> bytes:
    """An open-addressed table of row numbers, probed linearly from `hash & (slots - 1)`."""
    size = _power_of_two(2 * count)
    rows = [NONE32] * size
    for row, value in enumerate(hashes):
        at = value & (size - 1)
        while rows[at] != NONE32:
            at = (at + 1) & (size - 1)
        rows[at] = row
    return struct.pack(f"<{size}I", *rows)


class _Writer:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.policies = sorted(source.policies, key=lambda policy: policy.id.encode())
        self.entities = {entity.uid: entity for entity in source.entities}
        self.shapes = {uid: source.constants.index(source.shapes[uid]) for uid in sorted(source.shapes, key=_uid_key)}
        self._name_rows()
        self.out = bytearray(_HEADER.size)
        self.cells = CellWriter(self.out)
        self.lists: dict[tuple[Uid, ...], tuple[int, int, int]] = {}

    def _name_rows(self) -> None:
        """Give every uid and every type that the image names its row."""
        uids: set[Uid] = set(self.entities) | set(self.shapes)
        types: set[str] = set()
        for entity in self.source.entities:
            uids |= entity.ancestors
            uids.update(cells.uids_in(entity.attrs), cells.uids_in(entity.tags))
        for value in self.source.constants.values:
            uids.update(cells.uids_in(value))
        for policy in self.policies:
            for scope in (policy.principal, policy.action, policy.resource):
                uids.update(scope.named())
                if scope.type is not None:
                    types.add(scope.type)
        self.uids = sorted(uids, key=_uid_key)
        self.node = {uid: i for i, uid in enumerate(self.uids)}
        types.update(type_ for type_, _ in self.uids)
        self.types = sorted(types, key=str.encode)
        self.type = {name: i for i, name in enumerate(self.types)}

    def image(self) -> bytes:
        nodes = self._room(_NODE_BYTES * len(self.uids))
        types = self._room(_TYPE_BYTES * len(self.types))
        policies = self._room(_POLICY_BYTES * len(self.policies))
        constants = self.cells.room(len(self.source.constants.values))
        filed, anywhere = file_policies(self.policies)
        for row, (type_, id_) in enumerate(self.uids):
            self.cells.uid(type_, id_, row, self.type[type_])
        self._put_nodes(nodes, filed)
        self._put_types(types, filed)
        code, words = self._put_policies(policies)
        for i, value in enumerate(self.source.constants.values):
            self.cells.put(constants + 16 * i, value)
        uid_slots = _slots((uid_hash(type_, id_) for type_, id_ in self.uids), len(self.uids))
        type_slots = _slots(map(text_hash, self.types), len(self.types))
        sections = (nodes, self._block(uid_slots), types, self._block(type_slots), policies, code, words, constants)
        spans = (*self._array(anywhere), *self._extras(), *self._put_shapes())
        self._put_header(sections, spans, len(uid_slots) // 4, len(type_slots) // 4)
        return bytes(self.out)

    # ------------------------------------------------------------ pieces

    def _room(self, size: int) -> int:
        at = self.cells.align()
        self.out.extend(bytes(size))
        return at

    def _block(self, raw: bytes) -> int:
        at = self.cells.align()
        self.out += raw
        return at

    def _array(self, rows: Sequence[int]) -> tuple[int, int, int]:
        """The Span or Posting of uint32_t `rows`; nothing is written for an empty one."""
        if not rows:
            return 0, 0, 0
        return self._block(struct.pack(f"<{len(rows)}I", *rows)), len(rows), 0

    def _text(self, text: str) -> tuple[int, int, int]:
        raw = text.encode()
        return (self.cells.text(raw), len(raw), 0) if raw else (0, 0, 0)

    def _put_nodes(self, base: int, filed: dict[Key, list[int]]) -> None:
        for row, uid in enumerate(self.uids):
            at = base + _NODE_BYTES * row
            entity = self.entities.get(uid)
            ancestors = sorted(self.node[parent] for parent in entity.ancestors) if entity else []
            off_ancestors, count, _ = self._array(ancestors)
            _NODE.pack_into(self.out, at, self.cells.uids[uid], entity is not None, count, off_ancestors)
            self.cells.put(at + 24, entity.attrs if entity else EMPTY_RECORD)
            self.cells.put(at + 40, entity.tags if entity else EMPTY_RECORD)
            for kind in range(_RESOURCE_IN + 1):
                _SPAN.pack_into(self.out, at + 56 + 16 * kind, *self._array(filed.get((kind, uid), ())))

    def _put_types(self, base: int, filed: dict[Key, list[int]]) -> None:
        for row, name in enumerate(self.types):
            at = base + _TYPE_BYTES * row
            _SPAN.pack_into(self.out, at, *self._text(name))
            _SPAN.pack_into(self.out, at + 16, *self._array(filed.get((_PRINCIPAL_IS, name), ())))
            _SPAN.pack_into(self.out, at + 32, *self._array(filed.get((_RESOURCE_IS, name), ())))

    def _put_policies(self, base: int) -> tuple[int, int]:
        """Write policies and the code section; returns its offset and its words. Equal programs stand there once."""
        words: list[int] = []
        starts: dict[tuple[int, ...], int] = {}
        for row, policy in enumerate(self.policies):
            program = policy.program.words
            if program not in starts:
                starts[program] = len(words) if program else 0
                words += program
            self._put_policy(base + _POLICY_BYTES * row, policy, starts[program])
        return self._block(struct.pack(f"<{len(words)}I", *words)), len(words)

    def _put_policy(self, at: int, policy: PolicyRow, code: int) -> None:
        principal, action, resource = policy.principal, policy.action, policy.resource
        off_list, count, _ = self._actions(action.uids)
        _POLICY.pack_into(
            self.out, at, policy.forbid, policy.flags, principal.op, action.op, resource.op, 0, 0, 0,
            self._node(principal), self._type(principal), self._node(action), self._node(resource),
            self._type(resource), len(policy.program.words), off_list, count, policy.program.stack, code,
        )  # fmt: skip
        texts = (policy.id, policy.template, policy.reason, policy.obligation, policy.annotations)
        for i, text in enumerate(texts):
            _SPAN.pack_into(self.out, at + 56 + 16 * i, *self._text(text))

    def _actions(self, uids: tuple[Uid, ...]) -> tuple[int, int, int]:
        """The Span of a list of actions. Equal lists stand there once: links share theirs, and a call finds it warm."""
        found = self.lists.get(uids)
        if found is None:
            found = self.lists[uids] = self._array(sorted({self.node[uid] for uid in uids}))
        return found

    def _node(self, scope: ScopeRow) -> int:
        return NONE32 if scope.uid is None else self.node[scope.uid]

    def _type(self, scope: ScopeRow) -> int:
        return NONE32 if scope.type is None else self.type[scope.type]

    def _extras(self) -> tuple[int, int, int]:
        return self._text("\0".join(sorted(extras_read(self.policies), key=str.encode)))

    def _put_shapes(self) -> tuple[int, int, int]:
        # Sorted by uid is sorted by node, since nodes are sorted by uid.
        raw = b"".join(_SHAPE.pack(self.node[uid], 0, constant) for uid, constant in self.shapes.items())
        return (self._block(raw), len(self.shapes), 0) if raw else (0, 0, 0)

    def _put_header(self, sections: tuple[int, ...], spans: tuple[int, ...], uid_slots: int, type_slots: int) -> None:
        nodes, off_uid_slots, types, off_type_slots, policies, code, words, constants = sections
        columns = columns_read(self.policies)
        size = self.cells.align()
        _HEADER.pack_into(
            self.out, 0, b"REMITGEN", VERSION, IMAGE_COLUMNS if self.source.columns else 0, size,
            columns & 0xFFFFFFFFFFFFFFFF, columns >> 64,
            len(self.uids), len(self.types), len(self.policies), len(self.entities),
            max((len(entity.ancestors) for entity in self.entities.values()), default=0),
            max((policy.program.stack for policy in self.policies), default=0), uid_slots, type_slots,
            nodes, off_uid_slots, types, off_type_slots, policies, code, words, constants,
            len(self.source.constants.values), *spans,
        )  # fmt: skip


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
