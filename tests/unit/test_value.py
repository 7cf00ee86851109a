"""Values in flat memory: equality, order, hashes, and what is refused before it is read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.evaluator import Evaluator
from fastpath.table import Generation
from fastpath.value import Kind, text_hash, uid_hash
from sidecar.errors import ProtocolError
from sidecar.policy.cells import encode_context, of_json
from tests.fix_rules import ALICE, DOC, READ, ask, evaluator, image

LEAVES = st.one_of(
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(["", "1", "a", "ab", "é", "\0"]),
    st.sampled_from(["0.0.0.0", "1.2.3.4/32", "1.2.3.4", "::", "::1/64"]).map(
        lambda text: {"__extn": {"fn": "ip", "arg": text}}
    ),
    st.sampled_from(["1.0", "1.0000", "-0.1"]).map(lambda text: {"__extn": {"fn": "decimal", "arg": text}}),
    st.sampled_from([("A", "BC"), ("AB", "C"), ("A", "")]).map(
        lambda uid: {"__entity": {"type": uid[0], "id": uid[1]}}
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
EQUAL = evaluator("permit(principal, action, resource) when { context.a == context.b };")
MEMBER = evaluator("permit(principal, action, resource) when { context.a.contains(context.b) };")


def test_text_hash_is_xxh3_64_with_seed_0():
    """The reference value of xxHash 0.8 for no bytes."""
    assert text_hash("") == 0x2D06800538D394C2


def test_po_07_type_and_id_are_told_apart_by_the_hash():
    """PO-07: `A::"BC"` and `AB::"C"` have the same text and different hashes."""
    assert uid_hash("A", "BC") != uid_hash("AB", "C")


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_values_are_equal_as_cedar_has_it(a: object, b: object):
    """Equal when kind and content are: sets without order or duplicates, records without order, `1` never `true`."""
    assert (ask(EQUAL, context={"a": a, "b": b}).outcome == "ALLOW") == (of_json(a) == of_json(b))


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=8), VALUES)
def test_a_set_finds_each_of_its_members(members: list[object], other: object):
    """Binary search over the native order finds what Python's order put there, and nothing else."""
    made = {of_json(member) for member in members}
    for value in [*members, other]:
        assert (ask(MEMBER, context={"a": members, "b": value}).outcome == "ALLOW") == (of_json(value) in made)


def test_sets_built_while_evaluating_are_sorted_and_free_of_duplicates():
    """A large set in any order equals the same set of constants: the heap sort is a sort."""
    numbers = [(i * 7919) % 1009 for i in range(1009)]
    literal = ", ".join(f"principal.n + {n}" for n in numbers + numbers[:50])
    asked = evaluator(
        f"permit(principal, action, resource) when {{ [{literal}] == context.all }};",
        [{"uid": {"type": "User", "id": "alice"}, "attrs": {"n": 0}, "parents": []}],
    )
    assert ask(asked, context={"all": list(range(1009))}).outcome == "ALLOW"


# ---------------------------------------------------------------- altered text


def altered(context: dict, text: str) -> bytes:
    """The context with the string `text` marked as altered by a peer."""
    blob = bytearray(encode_context(context))
    for at in range(0, len(blob) - 15, 16):
        kind, flags, reserved, n, v = struct.unpack_from("<BBHIq", blob, at)
        inside = kind == Kind.KIND_STRING and reserved == 0 and 0 <= at + v <= len(blob) - n
        if inside and blob[at + v : at + v + n] == text.encode():
            struct.pack_into("<BBHIq", blob, at, kind, flags | 1, 0, n, v)
    return bytes(blob)


@pytest.mark.parametrize(
    "expression",
    [
        'context.t == "secret"',
        'context.t like "*"',
        'context.t like "sec*"',
        '["secret"].contains(context.t)',
        '[context.t].contains("secret")',
        '["secret"].containsAny([context.t])',
        '{"t": context.t} == {"t": "secret"}',
        "principal.hasTag(context.t)",
    ],
)
def test_altered_text_equals_no_constant_and_matches_nothing(expression: str):
    """Text that a proxy had to repair is not what its sender wrote, so no rule may take it for a name it knows."""
    asked = evaluator(
        f"permit(principal, action, resource) when {{ {expression} }};",
        [{"uid": {"type": "User", "id": "alice"}, "attrs": {}, "parents": [], "tags": {"secret": True}}],
    )
    assert asked.evaluate(ALICE, READ, DOC, encode_context({"t": "secret"})).outcome == "ALLOW"
    assert asked.evaluate(ALICE, READ, DOC, altered({"t": "secret"}, "secret")).outcome == "DENY"


def test_altered_text_is_no_extension_value():
    """`ip(text)` of an altered text errs, whatever its bytes say."""
    asked = evaluator("permit(principal, action, resource) when { ip(context.t).isLoopback() };")
    got = asked.evaluate(ALICE, READ, DOC, altered({"t": "127.0.0.1"}, "127.0.0.1"))
    assert got.errors == [("policy0", "extension")]


# ---------------------------------------------------------------- values from outside


def test_a_context_nested_too_deep_is_refused():
    """VALUE_DEPTH_MAX levels below the context are read, one more is not."""
    asked = Evaluator(Generation.from_bytes(image("permit(principal, action, resource);")))

    def nested(levels: int) -> bytes:
        blob = b"\x06\0\0\0" + struct.pack("<Iq", 0, 0)
        for _ in range(levels):
            key = struct.pack("<BBHIq", Kind.KIND_STRING, 0, 0, 0, 0)
            head = struct.pack("<BBHIq", Kind.KIND_RECORD, 0, 0, 1, 16)
            blob = head + key + blob
        return blob

    assert asked.evaluate(ALICE, READ, DOC, nested(64)).outcome == "ALLOW"
    with pytest.raises(ProtocolError, match="too deep"):
        asked.evaluate(ALICE, READ, DOC, nested(65))


def test_a_damaged_context_is_refused_or_read_within_its_bounds():
    """Any byte changed: a typed error or an answer, never a crash or memory from elsewhere."""
    context = {"a": [1, "x", {"k": True}], "b": {"__entity": {"type": "T", "id": "i"}}, "c": "text"}
    context["d"] = {"__extn": {"fn": "ip", "arg": "1.2.3.4/8"}}
    blob = encode_context(context)
    asked = evaluator(
        'permit(principal, action, resource) when { context == {"a": 1} || context.a.contains(context.c) };'
    )
    refused = 0
    for at in range(len(blob)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(blob)
            damaged[at] ^= flip
            try:
                asked.evaluate(ALICE, READ, DOC, bytes(damaged))
            except ProtocolError:
                refused += 1
    assert refused > len(blob)
    for n in range(len(blob)):
        with pytest.raises(ProtocolError):
            asked.evaluate(ALICE, READ, DOC, blob[:n] or b"\0")
