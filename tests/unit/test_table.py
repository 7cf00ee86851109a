"""Generations: opened once, verified whole, closed safely; damage is refused with its section and cause."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest

from fastpath.evaluator import Evaluator
from fastpath.program import Op
from fastpath.table import IMAGE_KEY, LAYOUT, SIZES, Generation
from fastpath.value import uid_hash
from sidecar.errors import RuleTableError
from sidecar.policy.code import Constants
from sidecar.policy.image import PolicyRow, ScopeRow, Source, write_image
from sidecar.policy.program import Program
from sidecar.policy.rows import NodeFlag, slots
from tests.fix_rules import ALICE, DOC, READ, ask, entity, image, locked_bytes, locks_memory, policy_lists

POLICIES = """
@id("a") permit(principal == User::"alice", action in [Action::"read", Action::"list"], resource)
  when { context.input.n > 1 && [1, 2].contains(context.input.n) && {"k": 1} == {"k": 1} };
@id("b") forbid(principal in Group::"g", action, resource is Doc) when { context.task.present };
@id("c") permit(principal, action == Action::"read", resource in Folder::"f");
@id("d") @reason("tool.unpinned") forbid(principal is User, action, resource) unless { principal.name like "a*" };
@id("e") permit(principal, action, resource);
"""
ENTITIES = [
    entity(
        ALICE,
        {"name": "alice", "roles": ["x", "y"], "net": {"__extn": {"fn": "ip", "arg": "10.0.0.0/8"}}},
        [("Group", "g")],
    ),
    entity(("Group", "g")),
    entity(DOC, {}, [("Folder", "f")], label="pii"),
    entity(("Folder", "f")),
]
IMAGE = image(POLICIES, ENTITIES, named=True, columns=True)
HEADER_FIELDS = [
    "magic", "version", "flags", "size", "columns_0", "columns_1", "node_count", "type_count", "policy_rows",
    "policy_count", "entity_count", "stack_max", "extras_at", "extras_n", "uid_slots", "type_slots", "off_nodes",
    "off_uid_slots", "off_types", "off_type_slots", "off_policies", "off_notes", "note_count", "off_code", "code_words",
    "off_constants", "constant_count", "any_at", "any_n", "parents_at", "parents_n", "inputs_at", "inputs_n",
]  # fmt: skip
HEADER = dict(zip(HEADER_FIELDS, struct.unpack_from(LAYOUT["Header"], IMAGE), strict=True))
_CODES = re.sub(r"(\d+)([A-Z])", lambda code: code[2] * int(code[1]), LAYOUT["Header"].removeprefix("<8s"))
FORMS = dict(zip(HEADER_FIELDS[1:], _CODES, strict=True))
OFFSETS = {name: struct.calcsize("<8s" + "".join(list(FORMS.values())[:i])) for i, name in enumerate(FORMS)}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into("<" + form, changed, at, *values)
    return bytes(changed)


def stored(path: Path, data: bytes, key: bytes = IMAGE_KEY) -> Path:
    """An LMDB file with one value."""
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(key, data)
    return path


def opened(path: Path, data: bytes = IMAGE, **other: Any) -> Generation:
    """The table in the file at `path`, which a manifest describes as it is unless `other` says so."""
    found = path.read_bytes() if path.is_file() else b""
    named = {"generation": 7, "digest": digest(data), "size": len(data)}
    file = {"file_digest": digest(found), "file_size": len(found)}
    return Generation.open(path, **{**named, **file, **other})


# ---------------------------------------------------------------- what a table says of itself


def test_a_table_says_what_it_holds():
    """Counts, ids in the table's order, and which inputs its policies read."""
    table = Generation.from_bytes(IMAGE, generation=7, digest=digest(IMAGE))
    assert (table.generation, table.policy_count, table.entity_count, table.strict) == (7, 5, 4, True)
    assert table.policy_ids == ["a", "b", "c", "d", "e"]
    assert table.columns_read == ["task.present"]
    assert table.extras_read == ["input"]
    assert table.digest == digest(IMAGE)


def test_the_layout_that_writers_use_is_the_compilers():
    """Formats and sizes of every structure agree."""
    assert {name: struct.calcsize(form) for name, form in LAYOUT.items()} == SIZES


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize("size", ["inside a page", "on pages of its own"])
def test_an_image_is_read_from_its_file(tmp_path: Path, size: str):
    """LMDB keeps small values at odd addresses inside a page; they are read as well as large ones."""
    data = IMAGE
    if size == "inside a page":
        data = image("permit(principal, action, resource);")
        assert len(data) < 1500
    path = stored(tmp_path / "7.mdb", data)
    with opened(path, data) as table:
        assert table.generation == 7
        assert ask(Evaluator(table)).outcome in ("ALLOW", "DENY")
    assert table.closed


@locks_memory
def test_an_open_table_is_locked_into_memory(tmp_path: Path):
    """From when it is verified until the last call lets go of it no call can wait for the disk."""
    path = stored(tmp_path / "1.mdb", IMAGE)
    before = locked_bytes()
    table = opened(path)
    assert table.unlocked == ""
    assert locked_bytes() - before >= len(IMAGE)
    table.close()
    assert locked_bytes() == before


def test_a_file_can_be_opened_again_after_it_was_closed(tmp_path: Path):
    """close() lets go of environment and transaction, also when it is called twice."""
    path = stored(tmp_path / "7.mdb", IMAGE)
    for _ in range(3):
        table = opened(path)
        table.close()
        table.close()
        assert table.closed
        with pytest.raises(RuleTableError, match="closed"):
            Evaluator(table).prepare(ALICE, READ, DOC)


def test_the_same_file_serves_several_tables(tmp_path: Path):
    """A reload that finds the same generation, or one in the other mode: each table closes for itself."""
    path = stored(tmp_path / "7.mdb", IMAGE)
    first = opened(path)
    second = opened(path, strict=False)
    first.close()
    assert (first.closed, second.strict) == (True, False)
    assert ask(Evaluator(second)).outcome == "ALLOW"
    stored(tmp_path / "new.mdb", image("permit(principal, action, resource);")).rename(path)
    with pytest.raises(RuleTableError, match="the manifest says"):
        opened(path)
    assert ask(Evaluator(second)).outcome == "ALLOW"


def test_a_table_that_is_dropped_lets_go_of_its_file(tmp_path: Path):
    """Without close(): the last reference takes environment and transaction with it."""
    path = stored(tmp_path / "7.mdb", IMAGE)
    for _ in range(3):
        opened(path)


def test_db_15_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path):
    """DB-15: missing, not LMDB, empty, without an image, of another size or digest: each with its cause."""

    def refused(path: Path, match: str, data: bytes = IMAGE, **other: Any) -> None:
        with pytest.raises(RuleTableError, match=match):
            opened(path, data, **other)

    refused(tmp_path / "none.mdb", "cannot read")
    os.mkfifo(tmp_path / "pipe.mdb")
    refused(tmp_path / "pipe.mdb", "cannot read .*: .*not a regular file")
    (tmp_path / "junk.mdb").write_bytes(os.urandom(8192))
    refused(tmp_path / "junk.mdb", "it is no LMDB file")
    (tmp_path / "empty.mdb").write_bytes(b"")
    refused(tmp_path / "empty.mdb", "it is no LMDB file")
    refused(stored(tmp_path / "other.mdb", IMAGE, b"something"), "holds no image")
    path = stored(tmp_path / "7.mdb", IMAGE)
    refused(path, "the manifest says", size=len(IMAGE) + 8)
    refused(path, "digest of the image", put(IMAGE, 200, "B", IMAGE[200] ^ 1))
    refused(path, "the file has .* bytes, the manifest says", file_size=5)
    refused(path, "digest of the file", file_digest=digest(b""))
    refused(path, "names no digest", digest="")
    refused(path, "names no digest", file_digest="")


def test_an_image_that_is_in_use_is_freed_by_its_last_user():
    """close() while a request is prepared: asking afterwards is a typed error, not a read of freed memory."""
    table = Generation.from_bytes(IMAGE)
    asked = Evaluator(table)
    prepared = asked.prepare(ALICE, READ, DOC)
    table.close()
    with pytest.raises(RuleTableError, match="closed"):
        asked.evaluate_prepared(prepared)


def test_db_13_a_forked_child_cannot_read_the_parents_table(tmp_path: Path):
    """DB-13: the child's handles are poisoned, the parent's go on working."""
    path = stored(tmp_path / "7.mdb", IMAGE)
    script = f"""
import os
from fastpath.table import Generation
from fastpath.evaluator import Evaluator
from sidecar.errors import RuleTableError
table = Generation.open({str(path)!r}, generation=7, digest={digest(IMAGE)!r}, size={len(IMAGE)},
                        file_digest={digest(path.read_bytes())!r}, file_size={path.stat().st_size})
asked = Evaluator(table)
prepared = asked.prepare(("User", "alice"), ("Action", "read"), ("Doc", "d1"))
child = os.fork()
if child == 0:
    try:
        asked.evaluate_prepared(prepared)
    except RuleTableError:
        os._exit(41 if table.closed else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 41
assert asked.evaluate_prepared(prepared).outcome
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("field", "value", "section"),
    [
        ("version", 99, "header"),
        ("flags", 0xFF, "header"),
        ("size", len(IMAGE) - 8, "header"),
        ("columns_1", 1 << 40, "header"),
        ("node_count", 1 << 30, "header"),
        ("uid_slots", 3, "header"),
        ("uid_slots", 0, "header"),
        ("type_slots", 1, "header"),
        ("policy_rows", 1 << 28, "header"),
        ("policy_count", 4, "header"),
        ("entity_count", 3, "nodes"),
        ("parents_n", 1, "parents"),
        ("parents_at", len(IMAGE) // 8, "parents"),
        ("stack_max", 0, "code"),
        ("off_nodes", 3, "nodes"),
        ("off_nodes", 1 << 62, "nodes"),
        ("off_nodes", 0, "nodes"),
        ("note_count", 0, "policies"),
        ("off_notes", len(IMAGE), "notes"),
        ("off_uid_slots", len(IMAGE), "uid slots"),
        ("off_types", len(IMAGE) - 8, "types"),
        ("off_type_slots", 1 << 63, "type slots"),
        ("off_policies", 1, "policies"),
        ("off_code", len(IMAGE) - 4, "code"),
        ("code_words", 0, "policies"),
        ("constant_count", 0, "code"),
        ("off_constants", 2**64 - 16, "constants"),
    ],
)
def test_a_header_that_lies_is_refused(field: str, value: int, section: str):
    """Every count and offset of the header is held against the image; the error names the section."""
    with pytest.raises(RuleTableError, match=rf"generation 0: {section}"):
        Generation.from_bytes(put(IMAGE, OFFSETS[field], FORMS[field], value))


@pytest.mark.parametrize("n", [0, 7, 8, 191, 192, 200, len(IMAGE) // 16 * 8, len(IMAGE) - 8, len(IMAGE) - 1])
def test_a_truncated_image_is_refused(n: int):
    """Cut anywhere: the size in the header no longer agrees."""
    with pytest.raises(RuleTableError, match=r"header\[0\]"):
        Generation.from_bytes(IMAGE[:n])


def test_a_longer_image_is_refused():
    with pytest.raises(RuleTableError, match="another size"):
        Generation.from_bytes(IMAGE + bytes(8))


def test_db_15_no_flipped_byte_makes_the_evaluator_leave_the_image():
    """DB-15: each byte of an image changed in three ways, without a digest that would catch it.

    It is refused, or it answers: texts and numbers may change, offsets and counts may not lead outside.
    """
    refused = 0
    for at in range(len(IMAGE)):
        for flip in (0x01, 0x10, 0xFF):
            try:
                table = Generation.from_bytes(put(IMAGE, at, "B", IMAGE[at] ^ flip))
            except RuleTableError:
                refused += 1
                continue
            Evaluator(table).trace(ALICE, READ, DOC, every=True)
            ask(Evaluator(table))
    assert refused > len(IMAGE)


PRINCIPAL_EQ, INHERITED, NO_GUARD = 0, 6, 8 << 28


def node_row(uid: tuple[str, str]) -> int:
    """Offset of a node."""
    names = sorted({tuple(row["uid"].values()) for row in ENTITIES} | {("Action", "list"), READ})
    return HEADER["off_nodes"] + names.index(uid) * SIZES["Node"]


def filed_lists() -> list[int]:
    """Offset of the Entries of each list of what is filed under a node, a type or nothing."""
    starts = [HEADER["off_nodes"] + node * SIZES["Node"] for node in range(HEADER["node_count"])]
    lists = [at for start in starts for kind, at in policy_lists(IMAGE, start).items() if kind != INHERITED]
    lists += [
        HEADER["off_types"] + type_ * SIZES["Type"] + 8 * i for type_ in range(HEADER["type_count"]) for i in (1, 2)
    ]
    lists.append(OFFSETS["any_at"])
    return [at for at in lists if struct.unpack_from("<I", IMAGE, at + 4)[0]]


def test_a_policy_that_the_index_hides_is_refused():
    """Each posting list of the image emptied in turn: a policy that no request would find is no policy."""
    assert len(filed_lists()) >= 4
    for at in filed_lists():
        with pytest.raises(RuleTableError, match="not in the index"):
            Generation.from_bytes(put(IMAGE, at + 4, "I", 0))


def test_a_policy_filed_under_another_name_is_refused():
    """A posting moved to a node that its policy's scope does not name."""
    at, other = policy_lists(IMAGE, node_row(ALICE))[PRINCIPAL_EQ], node_row(READ)
    moved = put(IMAGE, other + 24, "II", *struct.unpack_from("<II", IMAGE, at))
    moved = put(put(moved, at + 4, "I", 0), other + 4, "I", NodeFlag.LIST)
    with pytest.raises(RuleTableError, match="another scope"):
        Generation.from_bytes(moved)


def test_a_guard_that_hides_a_policy_is_refused():
    """Who does not meet a guard does not hear of the policy, so it must be one of the policy's constraints."""
    entries = [8 * struct.unpack_from("<I", IMAGE, at)[0] for at in filed_lists()]
    guards = [struct.unpack_from("<I", IMAGE, at + 4)[0] for at in entries]
    assert {guard >> 28 for guard in guards} >= {4, 7, 8}
    for at, guard in zip(entries, guards, strict=True):
        # A name that it does not have, a kind that there is not, a list of actions as if it were one of them.
        for wrong in {guard ^ 1, 9 << 28, 5 << 28 | 1, 8 << 28 | 1} - {guard}:
            with pytest.raises(RuleTableError, match="guard is no constraint"):
                Generation.from_bytes(put(IMAGE, at + 4, "I", wrong))
        assert ask(Evaluator(Generation.from_bytes(put(IMAGE, at + 4, "I", NO_GUARD)))) == ask(
            Evaluator(Generation.from_bytes(IMAGE))
        )


def parents_list(uid: tuple[str, str]) -> int:
    """Offset of the list of a node's own parents."""
    return node_row(uid) + 8


@pytest.mark.parametrize(
    ("at", "n", "cause"),
    [
        (parents_list(ALICE), 1 << 20, "points outside"),
        (parents_list(READ) + 8, 1, "ancestors of what is no parent"),
        (parents_list(("Folder", "f")), 1, "not among the ancestors|ancestors of its own"),
    ],
)
def test_a_hierarchy_that_does_not_add_up_is_refused(at: int, n: int, cause: str):
    """Parents name rows that know it; a parent's ancestors are those of its own parents."""
    with pytest.raises(RuleTableError, match=rf"nodes\[.*{cause}"):
        Generation.from_bytes(put(IMAGE, at + 4, "I", n))


@pytest.mark.parametrize(
    ("uid", "ancestor", "cause"),
    [
        (("Group", "g"), ("Folder", "f"), "no ancestor of its parents"),
        (("Group", "g"), ALICE, "no ancestor of its parents"),
        (("Group", "g"), ("Group", "g"), "in itself"),
    ],
)
def test_an_ancestor_that_no_parent_leads_to_is_refused(uid: tuple[str, str], ancestor: tuple[str, str], cause: str):
    """Who is in a group would be in what the group is not in; in a ring policies would be met twice."""
    row = (node_row(ancestor) - HEADER["off_nodes"]) // SIZES["Node"]
    with pytest.raises(RuleTableError, match=rf"nodes\[.*{cause}"):
        Generation.from_bytes(put(IMAGE, parents_list(uid) + 8, "II", row, 1))


def renamed(data: bytes, node: int, uid: tuple[str, str]) -> bytes:
    """The row at offset `node` with the text of another uid of the same lengths, and its hash."""
    at = 8 * struct.unpack_from("<I", data, node)[0]
    text = "".join(uid).encode()
    return put(data, at, "Q", uid_hash(*uid))[: at + 24] + text + data[at + 24 + len(text) :]


def test_two_rows_for_one_uid_are_refused():
    """A call finds one of them, so what is filed under the other would be hidden."""
    data = image("", [entity(("User", "aa"), {}), entity(("User", "ab"), {})])
    nodes, at = (struct.unpack_from("<Q", data, OFFSETS[name])[0] for name in ("off_nodes", "off_uid_slots"))
    twice = renamed(data, nodes + SIZES["Node"], ("User", "aa"))
    found = uid_hash("User", "aa")
    table = slots([(found, found >> 32, row) for row in (0, 1)], 2)
    with pytest.raises(RuleTableError, match=r"nodes\[1\]: row is not found under its uid"):
        Generation.from_bytes(twice[:at] + table + twice[at + len(table) :])


def test_policies_out_of_order_are_refused():
    """An edit finds the policy that it changes or removes by the order of the ids."""
    ids = [8 * struct.unpack_from("<I", IMAGE, HEADER["off_policies"] + 64 * row + 48)[0] for row in range(5)]
    assert bytes(IMAGE[at] for at in ids) == b"abcde"
    for wrong in (b"b", b"z"):
        with pytest.raises(RuleTableError, match=r"policies\[1\]: ids are not in order"):
            Generation.from_bytes(put(IMAGE, ids[0], "B", wrong[0]))


@pytest.mark.parametrize(
    ("uid", "flags", "cause"),
    [
        (ALICE, NodeFlag.PRESENT, "flags deny what is above it"),
        (ALICE, NodeFlag.PRESENT | NodeFlag.INHERITS, "flags deny what is above it"),
        (ALICE, NodeFlag.PRESENT | NodeFlag.UNDER_PRINCIPAL_IN | NodeFlag.LIST * 7, "another number of lists"),
        (ALICE, NodeFlag.PRESENT | NodeFlag.LIST | NodeFlag.INHERITS | NodeFlag.ABOVE, "several kinds"),
        (DOC, NodeFlag.PRESENT | NodeFlag.UNDER_PRINCIPAL_IN | NodeFlag.INHERITS, "flags deny what is above it"),
        (("Group", "g"), NodeFlag.PRESENT | NodeFlag.PARENT | NodeFlag.INHERITS, "a parent inherits policies"),
    ],
)
def test_flags_that_hide_what_is_above_a_node_are_refused(uid: tuple[str, str], flags: int, cause: str):
    """A call reads no row of a parent that the flags say nothing of, so they are held against the parents' rows."""
    with pytest.raises(RuleTableError, match=rf"nodes\[.*{cause}"):
        Generation.from_bytes(put(IMAGE, parents_list(uid) - 4, "I", flags))


@pytest.mark.parametrize(("number", "n"), [(1, 0), (2, 1), (0, 1), (5, 1)])
def test_a_node_that_inherits_other_policies_is_refused(number: int, n: int):
    """Alice's list of what is filed under her group: emptied, or of a policy that is filed elsewhere or nowhere."""
    at = policy_lists(IMAGE, node_row(ALICE))[INHERITED]
    entry, found = struct.unpack_from("<II", IMAGE, at)
    assert (found, struct.unpack_from("<I", IMAGE, 8 * entry)[0]) == (1, 1)
    with pytest.raises(RuleTableError, match=r"nodes\[.*(other policies|in order)"):
        Generation.from_bytes(put(put(IMAGE, 8 * entry, "II", number, NO_GUARD), at + 4, "I", n))


# ---------------------------------------------------------------- programs


def program_image(words: list[int], stack: int, constants: Constants, *, columns: int = 0) -> bytes:
    """An image with one policy that runs `words`."""
    row = PolicyRow(
        "p", False, 0, ScopeRow(), ScopeRow(), ScopeRow(), Program(tuple(words), stack, columns, frozenset())
    )
    return write_image(Source([row], [], constants))


def words_of(*parts: tuple) -> list[int]:
    """(op, a) or (op, a, k) as words."""
    words: list[int] = []
    for op, a, *k in parts:
        words += [op | a << 8, *k]
    return words


def constants() -> Constants:
    made = Constants()
    assert [made.index((1, 1)), made.text("name"), made.index((5, 1, ((3, b"k"),)))] == [0, 1, 2]
    return made


RETURN, TRUE = (Op.OP_RETURN, 0), (Op.OP_CONST, 0, 0)
BAD_PROGRAMS = {
    "unknown instruction": ([(99, 0), RETURN], 1),
    "ends without a return": ([TRUE, (Op.OP_NOT, 0)], 1),
    "torn apart": ([TRUE, (Op.OP_BRANCH, 0, 5), TRUE, RETURN], 1),
    "takes more values": ([(Op.OP_NOT, 0), RETURN], 1),
    "returns other than one": ([TRUE, TRUE, RETURN], 2),
    "more stack": ([TRUE, TRUE, (Op.OP_EQ, 0), RETURN], 1),
    "impossible": ([TRUE, RETURN], 9),
    "goes back": ([TRUE, (Op.OP_BRANCH, 0, 2), TRUE, RETURN], 1),
    "leaves the program or goes back": ([TRUE, (Op.OP_JUMP, 0, 900), TRUE, RETURN], 1),
    "differs between two ways": ([TRUE, (Op.OP_BRANCH, 0, 6), TRUE, TRUE, RETURN], 2),
    "names no constant": ([(Op.OP_CONST, 0, 7), RETURN], 1),
    "not text": ([(Op.OP_PRINCIPAL, 0), (Op.OP_ATTR, 0, 0), RETURN], 1),
    "does not name": ([(Op.OP_COLUMN, 1), RETURN], 1),
    "header does not name": ([(Op.OP_HAS_COLUMN, 200), RETURN], 1),
    "unknown group": ([(Op.OP_COLUMN_GROUP, 0, 1), RETURN], 1),
    "unknown error": ([(Op.OP_RAISE, 8), RETURN], 1),
    "number of keys": ([TRUE, TRUE, (Op.OP_RECORD, 2, 2), RETURN], 2),
}


@pytest.mark.parametrize("cause", BAD_PROGRAMS)
def test_a_program_that_could_leave_its_bounds_is_refused(cause: str):
    """Instructions, operands, jumps and stack are proved before anything runs; the error names the policy's row."""
    parts, stack = BAD_PROGRAMS[cause]
    with pytest.raises(RuleTableError, match=rf"code\[0\]: .*{cause}"):
        Generation.from_bytes(program_image(words_of(*parts), stack, constants()))


@pytest.mark.parametrize(
    ("parts", "stack"),
    [
        ([TRUE, RETURN], 1),
        ([TRUE, (Op.OP_AND, 0, 7), TRUE, (Op.OP_BOOL, 0), RETURN], 1),
        ([TRUE, (Op.OP_BRANCH, 0, 8), TRUE, (Op.OP_JUMP, 0, 10), TRUE, RETURN], 1),
        ([TRUE, (Op.OP_RECORD, 1, 2), TRUE, (Op.OP_EQ, 0), RETURN], 2),
        ([(Op.OP_SET, 0), (Op.OP_IS_EMPTY, 0), RETURN], 1),
    ],
)
def test_a_sound_program_is_taken(parts: list[tuple], stack: int):
    """The same forms with everything in its place."""
    table = Generation.from_bytes(program_image(words_of(*parts), stack, constants()))
    assert ask(Evaluator(table)).errors == []


def test_links_that_declare_less_stack_than_their_shared_code_needs_are_refused():
    """A program is checked once per template, but not with a larger stack than each of its links declares."""
    row = PolicyRow(
        "p", False, 0, ScopeRow(), ScopeRow(), ScopeRow(),
        Program(tuple(words_of(TRUE, TRUE, (Op.OP_EQ, 0), RETURN)), 2, 0, frozenset()),
    )  # fmt: skip
    rows = [row, replace(row, id="q")]
    data = write_image(Source(rows, [], constants()))
    assert Generation.from_bytes(data).policy_count == 2
    policies = struct.unpack_from("<Q", data, OFFSETS["off_policies"])[0]
    second = policies + SIZES["Policy"] + 28
    assert struct.unpack_from("<I", data, second)[0] == 2
    with pytest.raises(RuleTableError, match=r"code\[1\]: .*more stack"):
        Generation.from_bytes(put(data, second, "I", 1))
