"""Writes a delta of fastpath/image.pxd: what a few edits change of a large base, so that publishing costs the edits.

A policy that is put is appended and filed; one that is changed or removed leaves a row in place of its own that matches
nothing, so no list of the base is written anew. An entity's row takes the place of the base's, and so do the rows of
parents whose ancestors change with it. Equal edits over an equal base give equal bytes, in whatever order they come.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fastpath.rowview import Rows
from fastpath.table import DELTA_KEY as DELTA_KEY
from fastpath.table import Generation
from fastpath.value import text_hash, uid_hash
from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.cells import EMPTY_RECORD, Uid, Value
from sidecar.policy.code import Constants
from sidecar.policy.delta_entities import Hierarchy
from sidecar.policy.image import RANK, Key, columns_read, extras_read, filings_of, note_of, uid_key
from sidecar.policy.rows import (
    ACTION_IN,
    FILED_ANY,
    NODE_BYTES,
    NODE_KEYS,
    NONE32,
    NOTE_BYTES,
    POLICY_BYTES,
    PRINCIPAL_IS,
    RESOURCE_IS,
    TYPE_BYTES,
    UNDER,
    VERSION,
    Entry,
    NodeFlag,
    NodeRow,
    PolicyCells,
    PolicyFlag,
    RowWriter,
    Scope,
    guard_of,
    pack_entries,
    slots,
)
from sidecar.policy.source_rows import EntityRow, PolicyRow, ScopeRow

ROWS_MAX = 65_536
"""Rows that a delta holds at most: beyond them a call would notice it, and compiling anew is as fast."""

_HEADER = struct.Struct("<8sIIQQ32s" + "QQ6III" + "12I" + "11Q" + "II")


class DeltaTooLarge(PolicyError):
    """The edits change more rows than a delta may hold: the set is to be compiled."""


@dataclass(frozen=True, slots=True)
class DeltaEdits:
    """All that differs from the base, policies and entities by what they are to be. Each stands there once."""

    policies_put: Sequence[PolicyRow] = ()
    policies_removed: Sequence[str] = ()
    entities_put: Sequence[EntityRow] = ()
    entities_removed: Sequence[Uid] = ()
    constants: Constants = field(default_factory=Constants)
    """Those that the programs of `policies_put` name."""


def write_delta(base: Generation, edits: DeltaEdits, *, rows_max: int = ROWS_MAX) -> bytes:
    """The delta that makes of the base of `base` what `edits` say; what lies over it by now does not count.

    Raises DeltaTooLarge when more than `rows_max` rows would change, PolicyError for parents that form a cycle.
    """
    return _Delta(base, edits, rows_max).written()


class _Delta:
    def __init__(self, base: Generation, edits: DeltaEdits, rows_max: int) -> None:
        self.base = Rows(base)
        self.base_digest = bytes.fromhex(base.base_digest.removeprefix("sha256:"))
        self.edits = edits
        self.rows_max = rows_max
        self._limit(len(edits.policies_put) + len(edits.entities_put) + len(edits.entities_removed))
        self.nodes, self.types, self.policies, self.entities, self.stack_max, self.columns = self.base.totals
        self.size, self.flags, self.code_words, self.notes = self.base.sections
        self.put = sorted(edits.policies_put, key=lambda policy: policy.id.encode())
        self.gone = self._gone()
        self._name_rows()
        self.hierarchy = Hierarchy(self.base, self.node, edits.entities_put, edits.entities_removed)
        self.filed = self._file()

    def _limit(self, rows: int) -> None:
        if rows > self.rows_max:
            raise DeltaTooLarge(f"more than {self.rows_max} rows of the table change; the set is compiled")

    def _gone(self) -> list[int]:
        names = {*self.edits.policies_removed, *(policy.id for policy in self.put)}
        found = (self.base.policy_of(name) for name in names)
        return sorted(row for row, there in found if there)

    # ------------------------------------------------------------ names

    def _name_rows(self) -> None:
        """Give every uid and type that the delta names its row: the base's, or one that is appended."""
        named: set[Uid] = {entity.uid for entity in self.edits.entities_put} | set(self.edits.entities_removed)
        types: set[str] = set()
        for entity in self.edits.entities_put:
            named |= entity.parents
        for policy in self.put:
            for scope in (policy.principal, policy.action, policy.resource):
                named.update(scope.named())
                if scope.type is not None:
                    types.add(scope.type)
        self.in_values = self._in_values()
        found = {uid: self.base.node_of(*uid) for uid in named | self.in_values}
        self.appended = sorted((uid for uid, row in found.items() if row is None), key=uid_key)
        added = {uid: self.nodes + number for number, uid in enumerate(self.appended)}
        self.node: dict[Uid, int] = {uid: added[uid] if row is None else row for uid, row in found.items()}
        types.update(uid[0] for uid in found)
        rows = {name: self.base.type_of(name) for name in types}
        self.types_appended = sorted((name for name, row in rows.items() if row is None), key=str.encode)
        added_types = {name: self.types + number for number, name in enumerate(self.types_appended)}
        self.type: dict[str, int] = {name: added_types[name] if row is None else row for name, row in rows.items()}

    def _in_values(self) -> set[Uid]:
        found: set[Uid] = set()
        for entity in self.edits.entities_put:
            found.update(cells.uids_in(entity.attrs), cells.uids_in(entity.tags))
        for value in self.edits.constants.values:
            found.update(cells.uids_in(value))
        return found

    # ------------------------------------------------------------ filing

    def _file(self) -> dict[Key | None, list[Entry]]:
        """Where each policy is filed: under its rarest constraint, or under None for every request."""
        ways = [filings_of(policy) for policy in self.put]
        added = Counter(key for filings in ways for way in filings for key in way)
        filed: dict[Key | None, list[Entry]] = {}
        for number, filings in enumerate(ways):
            if self.put[number].action.op is Scope.IN_LIST and not self.put[number].action.uids:
                continue
            rarest = sorted(filings, key=lambda way: (self._cost(way, added), RANK[way[0][0]]))
            entry = (self.policies + number, self._guard(self.put[number], rarest[1:]))
            for key in rarest[0] if rarest else (None,):
                filed.setdefault(key, []).append(entry)
        return filed

    def _cost(self, way: Sequence[Key], added: Counter[Key]) -> int:
        return sum(self._count(key) + added[key] for key in way)

    def _guard(self, policy: PolicyRow, others: Iterable[Sequence[Key]]) -> int:
        """The rarest constraint that is not one of several actions."""
        for way in others:
            under, name = way[0]
            if under != ACTION_IN or policy.action.op is not Scope.IN_LIST:
                return guard_of(under, self.type[name] if isinstance(name, str) else self.node[name])
        return guard_of(FILED_ANY)

    def _count(self, key: Key) -> int:
        """How many policies of the base are filed under a key."""
        under, name = key
        if isinstance(name, str):
            row = self.type[name]
            return 0 if row >= self.types else self.base.filed_by_type(row)[under - PRINCIPAL_IS]
        node = self.node[name]
        return 0 if node >= self.nodes else self.base.filed(node, under)

    # ------------------------------------------------------------ writing

    def written(self) -> bytes:
        filed_nodes = {self.node[key[1]] for key in self.filed if key is not None and not isinstance(key[1], str)}
        changed = {row for row in filed_nodes | self.hierarchy.changed if row < self.nodes}
        types = {self.type[key[1]] for key in self.filed if key is not None and isinstance(key[1], str)}
        self.replaced = sorted(changed)
        self.types_replaced = sorted(row for row in types if row < self.types)
        self._limit(len(self.appended) + len(self.replaced) + len(self.put) + len(self.gone))
        self.out = bytearray(_HEADER.size)
        self.rows = RowWriter(self.out, self.size // 8)
        nodes = self.rows.rows_room(NODE_BYTES * (len(self.appended) + len(self.replaced)))
        policies = self.rows.rows_room(POLICY_BYTES * (len(self.put) + 1))
        type_rows = self.rows.room(TYPE_BYTES * (len(self.types_appended) + len(self.types_replaced)))
        notes = {note: row for row, note in enumerate(dict.fromkeys(map(note_of, self.put)))}
        note_rows = self.rows.room(NOTE_BYTES * len(notes))
        constants = self.rows.cells.room(len(self.edits.constants.values))
        self._put_nodes(nodes)
        self._put_types(type_rows)
        for note, row in notes.items():
            self.rows.note(note_rows + NOTE_BYTES * row, note)
        words = self._put_policies(policies, notes)
        for i, value in enumerate(self.edits.constants.values):
            self.rows.cells.put(constants + 16 * i, value)
        code = self.rows.block(struct.pack(f"<{len(words)}I", *words))
        tables = self._slots()
        constant_count = len(self.edits.constants.values)
        self._put_header(
            [len(notes), *(len(raw) // 8 for raw in tables), len(words), constant_count, self._lists()],
            [nodes, type_rows, policies, note_rows, *(self.rows.block(raw) for raw in tables), code, constants],
        )
        return bytes(self.out)

    def _lists(self) -> int:
        """Flags of the kinds of lists that some node has for what is in it."""
        kinds = {key[0] for key in self.filed if key is not None}
        return sum(flag for kind, flag in UNDER.items() if kind in kinds)

    def _node_rows(self) -> list[tuple[Uid, int, int]]:
        appended = [(uid, self.node[uid], self.type[uid[0]]) for uid in self.appended]
        return [*appended, *((uid, row, type_) for row in self.replaced for uid, type_ in [self.base.uid(row)])]

    def _put_nodes(self, base: int) -> None:
        rows = self._node_rows()
        self.rows.uids(base, rows)
        standing = {row for _, row, _ in rows}
        for uid in sorted(self.in_values, key=uid_key):
            if self.node[uid] not in standing:
                self.rows.cells.uid(*uid, self.node[uid], self.type[uid[0]])
        for number, (uid, row, type_) in enumerate(rows):
            flags, parents, closure = self.hierarchy.row(row)
            attrs, tags = self._values(row)
            flags |= NodeFlag.ABOVE | NodeFlag.SAME * (row < self.nodes and row not in self.hierarchy.own)
            filed = [self.filed.get((key, uid), ()) for key in range(NODE_KEYS)]
            made = NodeRow(uid, row, type_, flags, parents, closure, filed, attrs, tags)
            self.rows.node(base + NODE_BYTES * number, made)

    def _values(self, row: int) -> tuple[Value, Value]:
        """Attributes and tags of a row of ours; those of a row that keeps the base's are not read."""
        entity = self.hierarchy.put.get(row)
        return (EMPTY_RECORD, EMPTY_RECORD) if entity is None else (entity.attrs, entity.tags)

    def _put_types(self, base: int) -> None:
        by_row = {row: name for name, row in self.type.items()}
        names = [*self.types_appended, *(by_row[row] for row in self.types_replaced)]
        for number, name in enumerate(names):
            lists = [pack_entries(self.filed.get((key, name), ())) for key in (PRINCIPAL_IS, RESOURCE_IS)]
            self.rows.type(base + TYPE_BYTES * number, name, *lists)

    def _put_policies(self, base: int, notes: dict[tuple[str, ...], int]) -> list[int]:
        """Write the policies, and after them the row of those that are gone; returns the words of their programs."""
        words: list[int] = []
        starts: dict[tuple[int, ...], int] = {(): 0}
        for number, policy in enumerate(self.put):
            program = policy.program.words
            if program not in starts:
                starts[program] = self.code_words + len(words)
                words += program
            row = self._policy(policy, starts[program], self.notes + notes[note_of(policy)])
            self.rows.policy(base + POLICY_BYTES * number, row)
        nothing = (NONE32, NONE32, NONE32, NONE32, NONE32)
        gone = PolicyCells(0, PolicyFlag.GONE, (0, Scope.IN_LIST, 0), nothing, 0, (), 0, 0, "", 0)
        self.rows.policy(base + POLICY_BYTES * len(self.put), gone)
        return words

    def _policy(self, policy: PolicyRow, code: int, note: int) -> PolicyCells:
        principal, action, resource = policy.principal, policy.action, policy.resource
        return PolicyCells(
            policy.forbid,
            policy.flags | PolicyFlag.OBLIGES * bool(policy.obligation),
            (principal.op, action.op, resource.op),
            (self._uid(principal), self._type(principal), self._uid(action), self._uid(resource), self._type(resource)),
            policy.program.stack,
            sorted({self.node[uid] for uid in action.uids}),
            code,
            len(policy.program.words),
            policy.id,
            note,
            self.base.policy_of(policy.id)[0],
        )

    def _uid(self, scope: ScopeRow) -> int:
        return NONE32 if scope.uid is None else self.node[scope.uid]

    def _type(self, scope: ScopeRow) -> int:
        return NONE32 if scope.type is None else self.type[scope.type]

    def _slots(self) -> list[bytes]:
        """Appended uids and types by hash; replaced nodes and types, and policies that are gone, by index."""
        uids = ((hash_, hash_ >> 32, row) for hash_, row in ((uid_hash(*u), self.node[u]) for u in self.appended))
        names = self.types_appended
        types = ((hash_, hash_ >> 32, row) for hash_, row in ((text_hash(n), self.type[n]) for n in names))
        return [
            slots(uids, len(self.appended)),
            slots(types, len(names)),
            _by_index(self.replaced, range(len(self.appended), NONE32)),
            _by_index(self.types_replaced, range(len(names), NONE32)),
            _by_index(self.gone, [len(self.put)] * len(self.gone)),
        ]

    def _put_header(self, counts: Sequence[int], offsets: Sequence[int]) -> None:
        columns = self.columns | columns_read(self.put)
        names = {name for name in self.base.extras.split("\0") if name} | extras_read(self.put)
        extras = self.rows.text("\0".join(sorted(names, key=str.encode)))
        anywhere = self.rows.entries(pack_entries(self.filed.get(None, ())))
        size = self.rows.cells.align()
        _HEADER.pack_into(
            self.out, 0, b"REMITDLT", VERSION, self.flags, size, self.size, self.base_digest,
            columns & 0xFFFFFFFFFFFFFFFF, columns >> 64, self.nodes + len(self.appended),
            self.types + len(self.types_appended), self.policies + len(self.put),
            self.policies + len(self.put) - len(self.gone), self.entities + self.hierarchy.entities_added,
            max([self.stack_max, *(policy.program.stack for policy in self.put)]),
            *extras, len(self.appended) + len(self.replaced), len(self.types_appended) + len(self.types_replaced),
            len(self.put) + 1, *counts, *offsets, *anywhere,
        )  # fmt: skip


def index_hash(index: int) -> int:
    """Where the search for a row of the base begins (fastpath/rows.pxd)."""
    return (index * 0x9E3779B1 & 0xFFFFFFFF) >> 8


def _by_index(indexes: Sequence[int], rows: Iterable[int]) -> bytes:
    return slots(((index_hash(i), i, row) for i, row in zip(indexes, rows, strict=False)), len(indexes))
