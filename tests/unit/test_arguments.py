"""Tool arguments become `context.input`: typed by the declared shape, by their nature without one, never rounded."""

import json
from typing import Any

import pytest

from fastpath.arguments import InputError, typed
from sidecar.policy import cells


def shape(declared: dict[str, Any]) -> bytes:
    """An encoded shape (fastpath/program.pxd "shapes") from nested dicts of type names."""

    def value(one: Any) -> cells.Value:
        if isinstance(one, str):
            return cells.of_string(one)
        return cells.of_record({key: value(inner) for key, inner in one.items()})

    return cells.encode(value(declared))


def extn(function: str, text: str) -> dict[str, Any]:
    return {"__extn": {"fn": function, "arg": text}}


BY_NATURE = [
    ({"a": True, "b": False}, {"a": True, "b": False}),
    ({"n": 5, "z": -3}, {"n": 5, "z": -3}),
    ({"n": 5.0}, {"n": 5}),
    ({"n": 0.5}, {"n": extn("decimal", "0.5000")}),
    ({"n": -12.3456}, {"n": extn("decimal", "-12.3456")}),
    ({"n": 0.00001}, {"n": "1e-05"}),
    ({"n": 2**53}, {"n": 2**53}),
    ({"n": 2**53 + 1}, {"n": "9007199254740993"}),
    ({"n": 1e20}, {"n": "100000000000000000000"}),
    ({"s": "x", "o": {"b": 1, "a": [2, 1, 2]}}, {"s": "x", "o": {"a": [1, 2], "b": 1}}),
    ({"gone": None, "kept": [None, 1]}, {"kept": [1]}),
    ({}, {}),
]


@pytest.mark.parametrize(("given", "expected"), BY_NATURE)
def test_without_a_shape_values_keep_their_nature(given: dict, expected: dict) -> None:
    """Integers are Long, exact fractions decimal, everything that would lose digits is text, null is absent."""
    assert typed(json.dumps(given).encode()) == (InputError.INPUT_OK, "", expected)


DECLARED = [
    ("String", "x", "x"),
    ("Long", 5, 5),
    ("Long", 5.0, 5),
    ("Bool", True, True),
    ("decimal", 5, extn("decimal", "5.0000")),
    ("decimal", 5.25, extn("decimal", "5.2500")),
    ("datetime", "2026-11-23T10:00:00Z", extn("datetime", "2026-11-23T10:00:00.000Z")),
    ("duration", "1h30m", extn("duration", "5400000ms")),
    ("ipaddr", "10.0.0.0/8", extn("ip", "10.0.0.0/8")),
    ("Set<Long>", [3, 1, 3], [1, 3]),
    ("Set<decimal>", [1, 0.5], [extn("decimal", "0.5000"), extn("decimal", "1.0000")]),
    ("Set<Set<String>>", [["b", "a"]], [["a", "b"]]),
    ("Set<Record>", [{"a": 1}], [{"a": 1}]),
    ({"inner": "Long", "more?": "String"}, {"inner": 1}, {"inner": 1}),
]


@pytest.mark.parametrize("optional", ["", "?"])
@pytest.mark.parametrize(("type_", "value", "expected"), DECLARED)
def test_a_declared_member_gets_its_declared_type(type_: Any, value: Any, expected: Any, optional: str) -> None:
    """Each type that a generated schema can declare, required and optional."""
    data = json.dumps({"x": value}).encode()
    assert typed(data, shape({"x" + optional: type_})) == (InputError.INPUT_OK, "", {"x": expected})


MISFITS = [
    ("String", 5),
    ("Long", "5"),
    ("Long", 5.5),
    ("Long", 2**53 + 1),
    ("Long", True),
    ("Bool", 1),
    ("decimal", "5.0"),
    ("decimal", 0.00001),
    ("decimal", 2**53),
    ("datetime", "yesterday"),
    ("duration", "1x"),
    ("ipaddr", "10.0.0.0/99"),
    ("ipaddr", 10),
    ("Set<Long>", [1, "2"]),
    ("Set<Long>", [1, None]),
    ("Set<Long>", 1),
    ("Set<Record>", [1]),
    ("Entity<Person>", "p"),
    ({"inner": "Long"}, 5),
]


@pytest.mark.parametrize(("type_", "value"), MISFITS)
def test_a_member_that_does_not_fit_is_refused_by_name(type_: Any, value: Any) -> None:
    """A policy that was validated against the schema never sees a value of another type."""
    assert typed(json.dumps({"x": value}).encode(), shape({"x": type_})) == (InputError.INPUT_TYPE, "x", None)


def test_nested_faults_have_dotted_names() -> None:
    """The name says where; it comes from the declared schema, so it says nothing that an attacker chose."""
    declared = shape({"a": {"b": {"c": "Long"}}})
    assert typed(b'{"a":{"b":{"c":"x"}}}', declared) == (InputError.INPUT_TYPE, "a.b.c", None)
    assert typed(b'{"a":{"b":{}}}', declared) == (InputError.INPUT_MISSING, "a.b.c", None)


@pytest.mark.parametrize("data", [b"{}", b'{"x":null}'])
def test_a_required_member_must_be_there(data: bytes) -> None:
    """Required and absent or null: refused. Optional and absent: simply not there."""
    assert typed(data, shape({"x": "Long"})) == (InputError.INPUT_MISSING, "x", None)
    assert typed(data, shape({"x?": "Long"})) == (InputError.INPUT_OK, "", {})


def test_members_that_the_shape_does_not_name_keep_their_nature() -> None:
    """Additional properties do not hide: they stay, untyped."""
    assert typed(b'{"x":1,"y":[true]}', shape({"x": "Long"}))[2] == {"x": 1, "y": [True]}


def test_arguments_are_an_object() -> None:
    """A tool's arguments are named; a list of them is refused."""
    assert typed(b"[1]") == (InputError.INPUT_TYPE, "", None)


def test_a_full_arena_is_an_error() -> None:
    """More arguments than working memory: refused, not truncated."""
    data = json.dumps({f"k{i}": i for i in range(500)}).encode()
    assert typed(data, arena_bytes=8192)[0] == InputError.INPUT_ROOM
    assert typed(data, arena_bytes=60_000)[0] in (InputError.INPUT_ROOM, InputError.INPUT_OK)
