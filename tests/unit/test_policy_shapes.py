"""Policies that differ in literals alone are parsed, validated and compiled once, and nothing of them is lost by it."""

import itertools

import cedarpy
import pytest

from sidecar.policy import lexer
from sidecar.policy import parse as parsing
from sidecar.policy.compile import compile_image
from sidecar.policy.lexer import PolicyText, split
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.literals import MARK
from sidecar.policy.parse import parse, split_all
from sidecar.policy.shapes import Shapes
from tests.fix_policy import ANYTHING, refusal

SCHEMA = """
entity A { level: Long, name: String, owner?: A };
entity Color enum ["red", "blue"];
action x, y appliesTo { principal: A, resource: [A, Color], context: { s: String, color: Color } };
"""
CONDITIONS = [
    "principal == A::{0}",
    "context.s == {0}",
    "{0} == {1}",
    '{0} == "a"',
    "A::{0} == A::{1}",
    "if A::{0} == A::{1} then context.s == {0} else context.nothing",
    "if {0} == {1} then true else context.nothing",
    '[A::{0}, A::{1}, A::"a"].contains(principal)',
    "context has {0}",
    "context[{0}] == {1}",
    "context.s like {0}",
    "ip({0}).isIpv4()",
    "{{k: A::{0}}} == {{k: A::{1}}}",
    "{{{0}: 1}} == {{{1}: 1}}",
    "context.color == Color::{0}",
    "action == Action::{0}",
    "principal.name == {0} && context.s == {1}",
    'context.s == " == " && context.s like {0}',
    '"a == " == {0} || " :: " like {1}',
    "A::{0} in [A::{1}]",
    "principal.owner == A::{0}",
]
SCOPES = [
    "principal, action, resource",
    "principal == A::{0}, action, resource",
    "principal == A::{0}, action == Action::{1}, resource",
    "principal in A::{0}, action in [Action::{1}], resource == Color::{0}",
    "principal is A in A::{1},\n action,\n resource",
]
IDS = ['"a"', '"b"', '"red"', '"x"', '"s"', '"127.0.0.1"', '"\\u{61}"', '"a\\"; // "']


def sets():
    """Policies of few shapes with many literals, each with its own `@id`."""
    made = []
    for number, (condition, scope, pair) in enumerate(
        itertools.product(CONDITIONS, SCOPES, itertools.pairwise([*IDS, *IDS[:2], IDS[0], IDS[0]]))
    ):
        head = f'@id("p{number}") permit ({scope.format(*pair)})'
        made.append(f"{head} when {{ {condition.format(*pair)} }};")
    return made


def valid_alone(text, schema):
    try:
        return cedarpy.validate_policies(text, schema).validation_passed
    except ValueError:
        return False


def parses_alone(text):
    try:
        cedarpy.policies_to_json_str(text)
    except ValueError:
        return False
    return True


def test_each_policy_reads_as_cedar_reads_it_alone():
    """The JSON form of a policy is the same whether its shape was parsed with it or with another."""
    texts = [text for text in sets() if parses_alone(text)]
    assert len(texts) > 500
    parsed = parse(split_all([PolicyText("p", "\n".join(texts))], PolicyLimits()))
    assert len({id(one.shape) for one in parsed}) < len(texts)
    for one, text in zip(parsed, texts, strict=True):
        assert one.est == parsing._est(cedarpy.policies_to_json_str(text).encode())["staticPolicies"]["policy0"]


def test_one_of_each_shape_speaks_for_all_before_the_validator():
    """Whatever literals policies of one shape have, the validator accepts all of them or none."""
    schema = cedarpy.Schema.from_str(SCHEMA)
    texts = [text for text in sets() if parses_alone(text)]
    verdicts: dict[int, set[bool]] = {}
    for piece in split_all([PolicyText("p", "\n".join(texts))], PolicyLimits(), ["Color"]):
        if piece.shape is not None:
            verdicts.setdefault(id(piece.shape), set()).add(valid_alone(piece.text, schema))
    assert all(len(found) == 1 for found in verdicts.values())
    assert {True} in verdicts.values()
    assert {False} in verdicts.values()


def test_the_image_is_that_of_policies_compiled_without_shapes(monkeypatch):
    """Sharing leaves no trace in the bytes: constants, code and rows come as they would one by one."""
    texts = [text for text in sets() if parses_alone(text)]
    shared = compile_image("\n".join(texts), columns=False).image
    monkeypatch.setattr(lexer._Splitter, "_plain", lambda *_: 0)
    assert compile_image("\n".join(texts), columns=False).image == shared


def test_a_policy_that_no_other_speaks_for_is_refused():
    """An unknown action or id of an enumerated type is refused behind policies of nearly the same text."""
    text = "".join(f'@id("{id_}") permit (principal, action, resource == Color::"{id_}");\n' for id_ in ("red", "blue"))
    assert compile_image(text, schema=SCHEMA).report.policies == 2
    assert "policy `pink` (policies:3:1)" in refusal(text + text.split("\n")[0].replace("red", "pink"), schema=SCHEMA)
    actions = "".join(f'@id("{id_}") permit (principal, action == Action::"{id_}", resource);\n' for id_ in "xyz")
    assert "policy `z` (policies:3:1)" in refusal(actions, schema=SCHEMA)


def test_places_and_ids_are_those_of_the_text():
    """Pieces of a known shape know their line and column, behind comments and over several lines."""
    text = '// one\n@id("a")\npermit (principal == A::"x", action, resource)\nwhen { true };\n // two\n  '
    pieces = split(PolicyText("p", text + text.replace('"a"', '"b"') + text.replace('"a"', '"c"')))
    assert [(piece.id, piece.line, piece.column) for piece in pieces] == [("a", 2, 1), ("b", 7, 1), ("c", 12, 1)]
    assert pieces[0].shape is pieces[2].shape
    assert pieces[1].values == ("b", "x")


def test_a_policy_behind_a_carriage_return_in_a_comment_is_not_lost():
    """Cedar ends a comment at a carriage return as well, so a forbid may stand behind it."""
    text = '// note\r@id("no") forbid (principal, action, resource);\n@id("yes") permit (principal, action, resource);'
    assert [piece.id for piece in split(PolicyText("p", text))] == ["no", "yes"]
    assert compile_image(text).report.policies == 2
    inside = f'@id("a") {ANYTHING} // note\rwhen {{ false }};'
    assert "false" in split(PolicyText("p", inside))[0].text


@pytest.mark.parametrize("end", ["", ";"])
def test_text_that_holds_the_marker_is_read_as_it_is(end):
    """A literal that looks like a marker stays what it is."""
    text = f'@id("a") {ANYTHING} when {{ context.s == "{MARK}1{MARK}{end}" }};\n@id("b") {ANYTHING};'
    parsed = parse(split(PolicyText("p", text)))
    assert parsed[0].est["conditions"][0]["body"]["=="]["right"] == {"Value": f"{MARK}1{MARK}{end}"}
    assert all(piece.shape is None for piece in split(PolicyText("p", text)))


def test_caps_hold_for_policies_of_a_known_shape():
    """The size of each policy counts, and what the first of a shape may not have none may."""
    small, large = (f'@id("{id_}") {ANYTHING} when {{ context.s == "{id_ * 90}" }};' for id_ in ("a", "b" * 9))
    limits = PolicyLimits(policy_bytes_max=600)
    assert "policy `bbbbbbbbb` (policies:2:1) is larger than 600 bytes" in refusal(f"{small}\n{large}", limits=limits)
    deep = f'@id("d") {ANYTHING} when {{ {"(" * 70}true{")" * 70} }};'
    assert "nested deeper than 64 levels" in refusal(f"{deep}\n{deep}")


def test_equal_literals_make_a_shape_of_their_own():
    """`A::"x" == A::"x"` is true for the validator, whatever x is; with two ids it is not."""
    shapes = Shapes()
    pairs = [(f'permit (principal == A::"{a}", action, resource)', f'when {{ principal == A::"{b}" }};')
             for a, b in ("xy", "xx", "yz", "zz")]  # fmt: skip
    assert [shapes.lift(*pair, lambda: False) for pair in pairs] == [None] * 4
    found = [shapes.lift(*pair, lambda: True) for pair in pairs]
    one, two, three, four = (id(pair[0]) for pair in found if pair)
    assert (one, two) == (three, four)
    assert one != two
