"""The small tokenizer: it splits texts as Cedar does, and its caps hold before cedarpy sees anything (PO-03)."""

import cedarpy
import pytest

from sidecar.errors import PolicyError
from sidecar.policy.lexer import PolicyText, split
from sidecar.policy.limits import PolicyLimits
from tests.fix_policy import ANYTHING


def pieces(text, **limits):
    return split(PolicyText("a.cedar", text), PolicyLimits(**limits))


def body(text):
    return f"{ANYTHING} when {{ {text} }};"


def test_text_is_split_at_the_ends_of_policies_alone():
    """A `;` in a string or a comment ends no policy; neither does a bracket there open one."""
    text = (
        f'@id("a;") {ANYTHING}; // ; ( {{ "\n@id("b") {body(chr(34) + ";({//" + chr(92) + chr(34) + chr(34) + " == 1")}'
    )
    found = pieces(text)
    assert [piece.id for piece in found] == ["a;", "b"]
    assert cedarpy.policies_to_json_str("".join(piece.text for piece in found))


def test_pieces_know_their_id_line_and_column():
    """A piece begins at its first annotation; lines inside strings count."""
    text = (
        f'// first\n\n  @id("one")\n{ANYTHING};\n{body(chr(34) + "x" + chr(10) + "y" + chr(34) + " == 1")}\n{ANYTHING};'
    )
    found = pieces(text)
    assert [(piece.line, piece.column, piece.id) for piece in found] == [(3, 3, "one"), (5, 1, None), (7, 1, None)]
    assert found[0].title == "policy `one` (a.cedar:3:3)"


def test_only_the_annotation_id_names_a_policy():
    """Other annotations, also those that almost are it, name nothing."""
    found = pieces(f'@reason("no") @id("yes") @ide("no") {ANYTHING};')
    assert found[0].id == "yes"


@pytest.mark.parametrize("depth", [64, 65])
@pytest.mark.parametrize(
    "nest",
    [
        # Two of the levels are the clause's own bracket and what surrounds the number.
        lambda n: "(" * (n - 1) + "1" + ")" * (n - 1) + " == 1",
        lambda n: "[" * (n - 1) + "1" + "]" * (n - 1) + " == 1",
        lambda n: "if true then " * (n - 1) + "1" + " else 2" * (n - 1) + " == 1",
        lambda n: "if true then true else " * (n - 1) + "true",
    ],
    ids=["brackets", "sets", "if", "else if"],
)
def test_nesting_is_capped_at_64_levels(nest, depth):
    """PO-03: brackets and `if` count alike; the clause's own bracket is one level."""
    if depth == 64:
        assert len(pieces(body(nest(depth)))) == 1
    else:
        with pytest.raises(PolicyError, match=r"policy at a\.cedar:1:1 is nested deeper than 64 levels \(line 1\)"):
            pieces(body(nest(depth)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" && ".join(["true"] * 10_002), "more than 10000 operators in a row"),
        ("+".join(["1"] * 10_002) + " == 1", "more than 10000 operators in a row"),
        ("principal" + ".a" * 65, "more than 64 member accesses in a row"),
        ("principal" + '["a"]' * 65, "more than 64 member accesses in a row"),
        ("principal has " + ".".join("a" * 66), "more than 64 member accesses in a row"),
    ],
)
def test_chains_are_capped(text, problem):
    """PO-03: a chain nests the parser as brackets do."""
    with pytest.raises(PolicyError, match=problem):
        pieces(body(text))


def test_ten_thousand_operators_and_short_members_pass():
    """PO-03: 10,000 `&&`, many short member chains and wide literals stay inside the caps."""
    assert pieces(body(" && ".join(["principal.a.b"] * 10_001)))
    assert pieces(body("[" + ",".join(["principal.a.b.c"] * 10_000) + "].isEmpty()"))
    assert pieces(body("[" + ",".join(["if true then 1 else 2"] * 100) + "].isEmpty()"))


def test_if_branches_beside_each_other_do_not_nest():
    """`then` closes no `if`, `else` closes the inner ones."""
    one = "if a then (if b then 1 else 2) else 3"
    assert pieces(body(" == 1 && ".join(f"({one})" for _ in range(100)) + " == 1"))


@pytest.mark.parametrize(
    ("text", "limits", "problem"),
    [
        (f"{ANYTHING}", {}, "policy at a.cedar:1:1 is not complete"),
        (f"{ANYTHING});", {}, "has `)` without its opening bracket"),
        ("permit (principal;", {}, "has `;` where `)` is expected"),
        ("permit (principal];", {}, "has `]` without its opening bracket"),
        (f"{ANYTHING};", {"policy_bytes_max": 10}, "is larger than 10 bytes"),
        (f"{ANYTHING};", {"text_bytes_max": 10}, "at most 10 are compiled"),
        (f"{ANYTHING};" * 3, {"policies_max": 2}, "`a.cedar` has 3 policies; at most 2 are compiled"),
        ("\ud800", {}, "`a.cedar` is not valid Unicode"),
    ],
)
def test_what_is_refused_says_where(text, limits, problem):
    """Brackets that do not fit, a policy without an end, and caps: with the file, and the place where there is one."""
    with pytest.raises(PolicyError) as caught:
        pieces(text, **limits)
    assert problem in str(caught.value)


def test_a_policy_may_be_one_mebibyte():
    """PO-03: the cap counts bytes, not characters."""
    frame = len(body('"" == ""'))
    assert pieces(body(f'"{"é" * ((1 << 20) // 2 - frame)}" == ""'))
    with pytest.raises(PolicyError, match="larger than 1048576 bytes"):
        pieces(body(f'"{"é" * ((1 << 20) // 2)}" == ""'))
