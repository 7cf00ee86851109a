"""The image: laid out as the table reads it, no policy hidden by its filing, equal bytes for equal content (PO-02)."""

import itertools
import os
import random
import struct
import subprocess
import sys

import pytest

from fastpath import table
from fastpath.evaluator import Evaluator
from fastpath.table import Generation
from sidecar.policy import image, rows
from sidecar.policy.code import Constants
from sidecar.policy.compile import compile_image
from sidecar.policy.image import Assembly
from sidecar.policy.lexer import PolicyText
from sidecar.policy.program import EMPTY
from sidecar.policy.rows import Scope
from sidecar.policy.source_rows import PolicyRow, ScopeRow
from tests.fix_policy import ANYTHING, evaluate
from tests.fix_rules import policy_lists

POLICIES = [
    '@id("one") permit (principal == A::"x", action, resource) when { context.task.present };',
    '@id("two") forbid (principal in G::"g", action in [Action::"b", Action::"a"], resource is R);',
    '@id("three") permit (principal is A in G::"g", action == Action::"a", resource in G::"h");',
    '@id("four") permit (principal, action, resource) when { [3, 1, 2].contains(context.n) && "k" == context.s };',
    '@id("t") permit (principal == ?principal, action, resource in ?resource) when { principal.level > 3 };',
]
ENTITIES = [
    {"uid": {"type": "A", "id": "x"}, "attrs": {"level": 4, "s": ["b", "a"]}, "parents": [{"type": "G", "id": "g"}]},
    {"uid": {"type": "G", "id": "g"}, "attrs": {}, "parents": [{"type": "G", "id": "h"}], "tags": {"t": {"a": 1}}},
]
LINKS = [
    {"id": f"link{i}", "template": "t", "slots": {
        "?principal": {"type": "A", "id": str(i)}, "?resource": {"type": "G", "id": "h"}}}
    for i in range(3)
]  # fmt: skip


def test_structures_have_the_sizes_that_the_table_reads():
    """image.pxd is the contract; table.pyx states its layout, and the writer's must be the same."""
    assert struct.calcsize(table.LAYOUT["Header"]) == image._HEADER.size == table.SIZES["Header"]
    assert table.SIZES["Node"] == rows.NODE_BYTES
    assert table.SIZES["Type"] == rows.TYPE_BYTES
    assert table.SIZES["Policy"] == rows.POLICY_BYTES == rows._POLICY.size
    assert table.SIZES["Note"] == rows.NOTE_BYTES
    assert table.SIZES["Slot"] == rows.SLOT_BYTES
    assert table.SIZES["InputShape"] == image._SHAPE.size


def test_equal_content_gives_equal_bytes_whatever_the_order():
    """PO-02: policies, files, entities and links in any order make the same image."""
    wanted = compile_image("\n".join(POLICIES), entities=ENTITIES, links=LINKS).image
    shuffle = random.Random(1)
    for _ in range(20):
        policies, entities, links = POLICIES[:], ENTITIES[:], LINKS[:]
        for items in (policies, entities, links):
            shuffle.shuffle(items)
        sources = [PolicyText(f"{shuffle.random()}.cedar", text) for text in policies]
        assert compile_image(sources, entities=entities, links=links).image == wanted


def test_equal_content_gives_equal_bytes_whatever_the_hash_seed():
    """PO-02: Python's seed for hashes leaves no trace."""
    program = (
        "from tests.unit.test_policy_image import *;"
        "print(compile_image('\\n'.join(POLICIES), entities=ENTITIES, links=LINKS).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (0, 1, 2, 3)
    }
    assert digests == {compile_image("\n".join(POLICIES), entities=ENTITIES, links=LINKS).digest + "\n"}


def test_links_share_their_templates_code():
    """A link is a row: the section of code is as long with three links as with one."""
    one = compile_image(POLICIES[4], links=LINKS[:1]).image
    many = compile_image(POLICIES[4], links=LINKS).image
    words = struct.Struct(table.LAYOUT["Header"]).unpack_from(many)
    assert struct.Struct(table.LAYOUT["Header"]).unpack_from(one)[24] == words[24]


def test_equal_lists_of_actions_stand_in_the_image_once():
    """A link costs its own row, not a copy of what its template names."""
    text = '@id("t") permit (principal == ?principal, action in [Action::"a", Action::"b", Action::"c"], resource);'
    links = [{"id": f"l{i}", "template": "t", "slots": {"?principal": {"type": "A", "id": "x"}}} for i in range(9)]
    policy = struct.Struct(table.LAYOUT["Policy"])
    image = compile_image(text, links=links).image
    start = struct.Struct(table.LAYOUT["Header"]).unpack_from(image)[20]
    offsets = {policy.unpack_from(image, start + i * policy.size)[11:13] for i in range(9)}
    assert len(offsets) == 1


ANY = ScopeRow()


def row(id_, principal=ANY, action=ANY):
    return PolicyRow(id_, False, 0, principal, action, ANY, EMPTY)


def test_policies_are_filed_under_their_rarest_constraint():
    """A request walks the policies that can match: a shared action is a worse key than an own principal."""
    shared = ScopeRow(Scope.EQ, ("Action", "a"))
    rows = [row(str(i), ScopeRow(Scope.EQ, ("A", str(i % 3))), shared) for i in range(9)]
    rows.append(row("any"))
    rows.append(row("never", ScopeRow(Scope.EQ, ("A", "0")), ScopeRow(Scope.IN_LIST)))
    made = Assembly(Constants())
    for one in rows:
        made.add(one)
    made.rules.file(len(made.uids), 0)
    assert list(made.rules.anywhere_ranks()) == [9]
    filed = {
        (kind, made.uids[number]): list(made.rules.under(kind, number))
        for kind in range(6)
        for number in range(len(made.uids))
    }
    assert {key for key, ranks in filed.items() if ranks} == {(0, b"A\x000"), (0, b"A\x001"), (0, b"A\x002")}
    assert filed[0, b"A\x001"] == [1, 4, 7]


def entries_of(raw, node, kind):
    """(policy, guard's kind, guard's row) of each entry of a list of policies of a node."""
    nodes = struct.Struct(table.LAYOUT["Header"]).unpack_from(raw)[16]
    at, n = struct.unpack_from("<II", raw, policy_lists(raw, nodes + node * rows.NODE_BYTES)[kind])
    pairs = struct.iter_unpack("<II", raw[8 * at : 8 * (at + n)])
    return [(policy, guard >> 28, guard & (1 << 28) - 1) for policy, guard in pairs]


def test_a_guard_is_the_rarest_of_the_other_constraints():
    """What most calls do not meet is asked before a policy is read; one of several actions, alone, guards nothing."""
    first, second, act = (ScopeRow(Scope.EQ, uid) for uid in [("A", "0"), ("A", "1"), ("Action", "a")])
    several = ScopeRow(Scope.IN_LIST, uids=(("Action", "a"), ("Action", "b")))
    folders = [ScopeRow(Scope.IN, ("F", str(number))) for number in range(2)]
    made = [PolicyRow(str(i), False, 0, first, act, folder, EMPTY) for i, folder in enumerate(folders)]
    made += [row("2", first), row("3", second, several)]
    raw = image.write_image(image.Source(made, [], Constants()))
    nodes = {"first": 0, "second": 1, "act": 2, "folders": (4, 5)}
    assert [entries_of(raw, node, rows.RESOURCE_IN) for node in nodes["folders"]] == [
        [(policy, rows.ACTION_EQ, nodes["act"])] for policy in (0, 1)
    ]
    assert entries_of(raw, nodes["first"], rows.PRINCIPAL_EQ) == [(2, rows.FILED_ANY, 0)]
    assert entries_of(raw, nodes["second"], rows.PRINCIPAL_EQ) == [(3, rows.FILED_ANY, 0)]


def test_a_list_of_actions_is_filed_under_each_and_answers_once():
    """A request that reaches a policy by two of its actions hears of it once."""
    text = 'permit (principal, action in [Action::"g", Action::"h", Action::"g"], resource);'
    actions = [
        {"uid": {"type": "Action", "id": "a"}, "attrs": {}, "parents": [
            {"type": "Action", "id": "g"}, {"type": "Action", "id": "h"}]},
    ]  # fmt: skip
    assert evaluate(text, entities=actions).reasons == ["policy0"]
    assert evaluate(text, action=("Action", "h")).reasons == ["policy0"]
    assert evaluate(text, action=("Action", "b")).reasons == []


SCOPES = ["", ' == U::"x"', ' in U::"g"', " is U", ' is U in U::"g"']
STORE = [
    {"uid": {"type": type_, "id": "x"}, "attrs": {}, "parents": [{"type": type_, "id": "g"}]}
    for type_ in ("U", "Action")
]
ACTIONS = ["", ' == Action::"x"', ' in Action::"g"', ' in [Action::"g", Action::"x"]', " in []"]


@pytest.mark.parametrize("action", ACTIONS)
def test_every_scope_is_found(action):
    """No combination of constraints hides a policy from a request that it matches, whatever stands beside it."""
    text = "".join(
        f"permit (principal{p}, action{action}, resource{r});\n" for p, r in itertools.product(SCOPES, repeat=2)
    )
    compiled = compile_image(text, positional_ids=True, entities=STORE)
    with Generation.from_bytes(compiled.image) as generation:
        evaluator = Evaluator(generation)
        others, actions = [("U", "x"), ("U", "y"), ("V", "x"), ("U", "g")], [("Action", id_) for id_ in "xyg"]
        for uids in itertools.product(others, actions, others):
            answer = evaluator.evaluate(*uids)
            wanted = [
                i for i, scopes in enumerate(itertools.product(SCOPES, repeat=2)) if matches(scopes, action, uids)
            ]
            assert answer.reasons == sorted(f"policy{i}" for i in wanted)


def matches(scopes, action, uids):
    principal, act, resource = uids
    return matches_one(scopes[0], principal) and matches_one(scopes[1], resource) and matches_one(action, act)


def matches_one(scope, uid):
    within = uid in [(type_, id_) for type_ in ("U", "Action") for id_ in "xg"]
    return {
        "": True,
        ' == U::"x"': uid == ("U", "x"),
        ' == Action::"x"': uid == ("Action", "x"),
        " is U": uid[0] == "U",
        " in []": False,
    }.get(scope, within)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("A::B", "x"), ("A", "B::x")),
        (("A", ""), ("A", "\0")),
        (("A", "é"), ("A", "e\u0301")),
        (("A", '"'), ("A", '\\"')),
        (("A", "x" * 65_536), ("A", "x" * 65_535)),
    ],
)
def test_uids_that_look_alike_are_different(left, right):
    """PO-07: namespaces, NUL, normal forms, quotes and long ids each make their own key."""
    store = [
        {"uid": {"type": type_, "id": id_}, "attrs": {"n": n}, "parents": []}
        for n, (type_, id_) in enumerate((left, right))
    ]
    for n, uid in enumerate((left, right)):
        text = f"{ANYTHING} when {{ principal.n == {n} }};"
        assert evaluate(text, principal=uid, entities=store).outcome == "ALLOW"


def test_a_bit_flip_in_an_image_is_refused_by_its_digest():
    """Before anything of it is read."""
    compiled = compile_image("\n".join(POLICIES), entities=ENTITIES)
    broken = bytearray(compiled.image)
    broken[len(broken) // 2] ^= 1
    with pytest.raises(Exception, match="digest"):
        Generation.from_bytes(bytes(broken), digest=compiled.digest)
