"""Deltas: what they change and what not, that none leads outside, and that nothing of the base is verified again."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb
import pytest

from fastpath.evaluator import Evaluator
from fastpath.rowview import Rows
from fastpath.table import DELTA_KEY, IMAGE_KEY, LAYOUT, Generation
from fastpath.value import uid_hash
from sidecar.errors import PolicyError, RuleTableError
from sidecar.policy.cells import of_bool, of_entity, of_record, of_string
from sidecar.policy.code import Constants
from sidecar.policy.delta import DeltaEdits, DeltaTooLarge, write_delta
from sidecar.policy.program import EMPTY, Program
from sidecar.policy.rows import Scope
from sidecar.policy.source_rows import EntityRow, PolicyRow, ScopeRow
from tests.fix_rules import ALICE, DOC, READ, ask, entity, image, policy_lists

POLICIES = """
@id("b") permit(principal == User::"alice", action == Action::"read", resource);
@id("d") permit(principal in Group::"top", action, resource) when { principal.name == "alice" };
@id("f") forbid(principal, action, resource is Doc) when { resource.locked };
@id("h") permit(principal is User, action, resource in Folder::"f");
"""
ENTITIES = [
    entity(ALICE, {"name": "alice"}, [("Group", "g")]),
    entity(("Group", "g"), {}, [("Group", "top")]),
    entity(("Group", "top")),
    entity(DOC, {"locked": False}, [("Folder", "f")]),
]
IMAGE = image(POLICIES, ENTITIES, named=True)
ANY = ScopeRow()


def base() -> Generation:
    return Generation.from_bytes(IMAGE)


def put(id_: str, principal: ScopeRow = ANY, action: ScopeRow = ANY, resource: ScopeRow = ANY) -> PolicyRow:
    return PolicyRow(id_, False, 0, principal, action, resource, EMPTY)


def over(edits: DeltaEdits) -> Generation:
    return Generation.from_bytes(IMAGE, delta=write_delta(base(), edits))


def many() -> DeltaEdits:
    """An edit of each kind, with values and programs of its own."""
    constants = Constants()
    true = constants.index(of_bool(True))
    constants.index(of_record({"who": of_entity("User", "new"), "text": of_string("t")}))
    program = Program((1, true, 0), 1, 0, frozenset())
    uids = (("Action", "read"), ("Action", "new"))
    rows = [
        replace(put("a", resource=ScopeRow(Scope.IS, type="Page")), program=program),
        put("b", principal=ScopeRow(Scope.EQ, ("User", "new")), resource=ScopeRow(Scope.EQ, DOC)),
        replace(put("c", action=ScopeRow(Scope.IN_LIST, uids=uids)), program=program, reason="why", template="t"),
        put("z"),
    ]
    entities = [
        EntityRow(("User", "new"), of_record({"boss": of_entity(*ALICE)}), of_record({}), frozenset({("Group", "g")})),
        EntityRow(("Group", "g"), of_record({}), of_record({}), frozenset({("Group", "x"), ("Group", "top")})),
    ]
    return DeltaEdits(rows, ["d"], entities, [("Group", "top")], constants)


# ---------------------------------------------------------------- what changes


def test_base_and_delta_are_one_table():
    """Counts and ids are those of the edited set, in the order of the ids."""
    with over(many()) as table:
        assert table.policy_ids == ["a", "b", "c", "f", "h", "z"]
        assert (table.policy_count, table.entity_count) == (6, 4)
        assert ask(Evaluator(table)).reasons == ["c", "h", "z"]
        assert [id_ for id_, *_ in Evaluator(table).trace(ALICE, READ, DOC, every=True)] == table.policy_ids


def test_an_empty_delta_changes_nothing():
    with over(DeltaEdits()) as table, base() as plain:
        assert table.policy_ids == plain.policy_ids
        assert ask(Evaluator(table)).reasons == ask(Evaluator(plain)).reasons


def test_a_parent_that_moves_takes_all_below_it_along():
    """An edit of a group reaches those that are in it by others, and an entity that is removed stays a parent."""
    moved = DeltaEdits(entities_put=[EntityRow(("Group", "g"))])
    assert ask(Evaluator(base())).reasons == ["b", "d", "h"]
    assert ask(Evaluator(over(moved))).reasons == ["b", "h"]
    assert ask(Evaluator(over(DeltaEdits(entities_removed=[("Group", "top")])))).reasons == ["b", "d", "h"]
    assert ask(Evaluator(over(DeltaEdits(entities_removed=[("Group", "g")])))).reasons == ["b", "h"]


def test_parents_that_would_form_a_cycle_are_refused():
    """Over the base and among new entities alike; the error names one of them."""
    top = EntityRow(("Group", "top"), parents=frozenset({("Group", "g")}))
    with pytest.raises(PolicyError, match='parents form a cycle: `Group::"'):
        write_delta(base(), DeltaEdits(entities_put=[top]))
    ring = [EntityRow(("G", str(i)), parents=frozenset({("G", str((i + 1) % 3))})) for i in range(3)]
    with pytest.raises(PolicyError, match='parents form a cycle: `G::"'):
        write_delta(base(), DeltaEdits(entities_put=ring))


def test_edits_that_change_too_many_rows_are_to_be_compiled():
    with pytest.raises(DeltaTooLarge, match="more than 3 rows"):
        write_delta(base(), many(), rows_max=3)


def test_equal_edits_give_equal_bytes_whatever_their_order():
    edits = many()
    turned = replace(edits, policies_put=edits.policies_put[::-1], entities_put=edits.entities_put[::-1])
    assert write_delta(base(), edits) == write_delta(base(), turned)


# ---------------------------------------------------------------- damage


def test_a_delta_for_another_base_is_refused():
    """Its offsets and indexes begin where its base ends."""
    delta = write_delta(base(), many())
    other = image(POLICIES, ENTITIES[1:], named=True)
    with pytest.raises(RuleTableError, match="made for another base"):
        Generation.from_bytes(other, delta=delta)
    for broken, cause in ((delta[:-8], "another size"), (b"REMITGEN" + delta[8:], "not a delta"), (b"", "not a delta")):
        with pytest.raises(RuleTableError, match=cause):
            Generation.from_bytes(IMAGE, delta=broken)


def test_no_flipped_byte_of_a_delta_makes_the_evaluator_leave_it():
    """Each byte changed in three ways, without a digest that would catch it: refused, or harmless."""
    delta = write_delta(base(), many())
    refused = 0
    for at in range(len(delta)):
        for flip in (0x01, 0x10, 0xFF):
            changed = bytearray(delta)
            changed[at] ^= flip
            try:
                table = Generation.from_bytes(IMAGE, delta=bytes(changed))
            except RuleTableError:
                refused += 1
                continue
            Evaluator(table).trace(ALICE, READ, DOC, every=True)
            ask(Evaluator(table), principal=("User", "new"))
            assert len(table.policy_ids) == table.policy_count
    assert refused > len(delta)


def test_a_policy_that_a_delta_does_not_file_is_refused():
    """Each list of policies emptied in turn: a policy that no request would find is no policy."""
    delta = write_delta(base(), many())
    header = struct.unpack_from(LAYOUT["DeltaHeader"], delta)
    nodes, node_rows = header[28], header[16]
    starts = [nodes + row * struct.calcsize(LAYOUT["Node"]) for row in range(node_rows)]
    lists = [at for start in starts for at in policy_lists(delta, start, len(IMAGE) // 8).values()]
    lists.append(struct.calcsize(LAYOUT["DeltaHeader"]) - 8)
    used = [at for at in lists if struct.unpack_from("<I", delta, at + 4)[0]]
    assert len(used) >= 4
    for at in used:
        changed = bytearray(delta)
        struct.pack_into("<I", changed, at + 4, 0)
        with pytest.raises(RuleTableError, match="not in the index"):
            Generation.from_bytes(IMAGE, delta=bytes(changed))


def test_a_delta_that_leaves_what_is_below_a_moved_parent_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Who is two groups below the one that moved would be in what it was in."""

    class Forgetful(Rows):
        def parents_below(self, moved: set[int]) -> list[int]:
            return super().parents_below(moved)[:0]

    low = ("Group", "low")
    entities = [*ENTITIES, entity(low, {}, [("Group", "g")]), entity(("User", "u"), {}, [low])]
    data = image(POLICIES, entities, named=True)
    with Generation.from_bytes(data) as table:
        moved = DeltaEdits(entities_put=[EntityRow(("Group", "g"))])
        assert Generation.from_bytes(data, delta=write_delta(table, moved)).policy_count == 4
        monkeypatch.setattr("sidecar.policy.delta.Rows", Forgetful)
        with pytest.raises(RuleTableError, match=r"nodes\[.*ancestors that the delta changes"):
            Generation.from_bytes(data, delta=write_delta(table, moved))


def test_a_row_in_place_of_another_uid_is_refused():
    """Who is in the base under its name would not be found under it."""
    delta = write_delta(base(), DeltaEdits(entities_put=[EntityRow(ALICE)]))
    row = struct.unpack_from(LAYOUT["DeltaHeader"], delta)[28]
    uid = 8 * (struct.unpack_from("<I", delta, row)[0] - len(IMAGE) // 8)
    assert delta[uid + 24 : uid + 33] == b"Useralice"
    other = bytearray(delta)
    struct.pack_into("<Q", other, uid, uid_hash("User", "alicf"))
    other[uid + 24 : uid + 33] = b"Useralicf"
    with pytest.raises(RuleTableError, match=r"delta nodes\[0\]: row of another uid"):
        Generation.from_bytes(IMAGE, delta=bytes(other))


# ---------------------------------------------------------------- files


@dataclass
class Named:
    """A file as a manifest describes it."""

    path: str
    digest: str
    size: int
    file_digest: str
    file_size: int


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def stored(path: Path, key: bytes, data: bytes) -> Named:
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(key, data)
    raw = path.read_bytes()
    return Named(str(path), digest(data), len(data), digest(raw), len(raw))


def opened(of: Named, delta: Named | None) -> Generation:
    named = {name: value for name, value in vars(of).items() if name != "path"}
    return Generation.open(of.path, generation=7, delta=delta, **named)


def test_a_delta_is_read_from_its_file(tmp_path: Path):
    """Its file is held against the manifest as the base's is; both together have a digest of their own."""
    first = stored(tmp_path / "7.mdb", IMAGE_KEY, IMAGE)
    second = stored(tmp_path / "8.mdb", DELTA_KEY, write_delta(base(), many()))
    with opened(first, second) as table, opened(first, None) as plain:
        assert table.policy_ids == ["a", "b", "c", "f", "h", "z"]
        assert plain.policy_ids == ["b", "d", "f", "h"]
        assert (table.base_digest, plain.digest) == (plain.digest, digest(IMAGE))
        assert table.digest not in (plain.digest, second.digest)
    with pytest.raises(RuleTableError, match="digest of the delta"):
        opened(first, replace(second, digest=digest(b"")))
    with pytest.raises(RuleTableError, match="holds no delta"):
        opened(first, first)
    with pytest.raises(RuleTableError, match="digest of the file"):
        opened(first, replace(second, file_digest=first.file_digest))


def test_a_base_that_is_open_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A delta costs the delta: the base's file is hashed once, and once more when it was written since."""
    hashed = []
    monkeypatch.setattr("fastpath.lmdb_file.hashlib.file_digest", lambda file, _: hashed.append(file) or Sha(file))
    first = stored(tmp_path / "7.mdb", IMAGE_KEY, IMAGE)
    second = stored(tmp_path / "8.mdb", DELTA_KEY, write_delta(base(), many()))
    with opened(first, None):
        assert len(hashed) == 1
        opened(first, second).close()
        assert len(hashed) == 2
        os.utime(first.path)
        opened(first, None).close()
        assert len(hashed) == 3


class Sha:
    """What hashlib.file_digest gives."""

    def __init__(self, file) -> None:
        file.seek(0)
        self._hash = hashlib.sha256(file.read())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
