"""Conditions to programs: what is compiled behaves as Cedar says, error for error."""

import pytest

from fastpath.columns import COLUMNS
from fastpath.program import Op
from sidecar.errors import PolicyError
from sidecar.policy import deepjson
from sidecar.policy.code import Constants
from sidecar.policy.compile import compile_image
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.parse import parse, split_all
from sidecar.policy.program import compile_conditions
from tests.fix_policy import ANYTHING, condition, evaluate, refusal


def program(text, *, columns=False):
    limits = PolicyLimits()
    (parsed,) = parse(split_all([PolicyText("p", f"{ANYTHING} {text};")], limits))
    return compile_conditions(parsed.est["conditions"], Constants(), columns=columns)


def test_chains_of_ten_thousand_compile_without_recursion():
    """PO-03: 10,000 operators in a row cost no Python stack; their meaning stays."""
    for text, wanted in (
        (" && ".join(["context.t"] * 10_000), True),
        (" || ".join(["context.f"] * 9_999 + ["context.t"]), True),
        (" + ".join(["context.one"] * 9_999) + " == 9999", True),
    ):
        assert condition(text, {"t": True, "f": False, "one": 1}) is wanted


def test_deep_json_is_read_without_recursion():
    """The parser's JSON nests as deep as a policy's condition; Python's own reader would end at its stack's depth."""
    text = '{"a":[1,-2.5,"x,]}",{"b":null,"":[]}],"c":{"d":true,"e":"\\u0041\\""}}'
    assert deepjson.loads(text) == {"a": [1, -2.5, "x,]}", {"b": None, "": []}], "c": {"d": True, "e": 'A"'}}
    deep = deepjson.loads('{"a":' * 50_000 + "1" + "}" * 50_000)
    for _ in range(50_000):
        deep = deep["a"]
    assert deep == 1


@pytest.mark.parametrize("text", ["", "[1", "[]]", "[1][2]", '{"a":1', "nul"])
def test_deep_json_refuses_what_is_no_document(text):
    """What breaks off, goes on after its end or lacks a part is an error, never half a value."""
    with pytest.raises(ValueError):
        deepjson.loads(text)


def test_what_python_cannot_nest_is_refused_by_name():
    """With the caps lifted an expression too deep for the compiler is a refusal, not a crash."""
    text = f'@id("deep") {ANYTHING} when {{ {"if true then " * 400 + "true" + " else true" * 400} }};'
    message = refusal(text, limits=PolicyLimits(depth_max=10_000))
    assert message == "policy `deep` (policies:1:1) is nested too deeply to be compiled"


def test_literals_are_folded_into_constants():
    """A literal set of constants, extension calls on good text included, is one instruction."""
    made = program('when { [1, -2, ip("1.2.3.4"), {a: [decimal("1.0")]}, A::"x"].contains(context.x) }')
    assert [word & 0xFF for word in (made.words[0], made.words[2], made.words[4], made.words[5])] == [
        Op.OP_CONST,
        Op.OP_EXTRA,
        Op.OP_CONTAINS,
        Op.OP_RETURN,
    ]


@pytest.mark.parametrize("call", ['ip("x")', 'decimal("1")', 'datetime("x")', 'duration("")'])
def test_a_bad_literal_errs_when_reached_and_not_before(call):
    """Folding keeps errors: Cedar evaluates the call where it stands."""
    assert condition(f"{call} == 1") == "extension"
    assert condition(f"false && {call} == 1") is False
    assert condition(f"if true then true else [{call}].isEmpty()") is True
    assert condition(f"[1, {call}].contains(1)") == "extension"


def test_wrong_arity_errs_when_reached():
    """The text parses; the call errs at run time (Cedar extension functions)."""
    assert condition('ip("1.2.3.4", "1") == 1') == "arity"
    assert condition('ip("1.2.3.4").isIpv4(1)') == "arity"
    assert condition("true || ip() == 1") is True


def test_negation_folds_only_what_does_not_overflow():
    """The smallest number has no opposite: that errs at evaluation, as in Cedar."""
    assert condition("-(-9223372036854775808) == 0") == "overflow"
    assert condition("-(-9223372036854775807) == 9223372036854775807") is True


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("when { true } unless { false }", True),
        ("when { true } unless { true }", False),
        ("when { 1 }", "type"),
        ("unless { 1 }", "type"),
        ("when { false } unless { 1 }", False),
        ("unless { true } when { 1 }", False),
        ("when { true } when { 1 }", "type"),
        ("when { context.nothing } when { false }", "attribute"),
        ("when { true && 1 }", "type"),
        ("when { false && 1 }", False),
        ("when { false || 1 }", "type"),
        ("when { (true || 1) && (false || true) }", True),
        ("when { 1 && true }", "type"),
    ],
)
def test_clauses_are_a_conjunction_with_type_checks(text, wanted):
    """`when {A} unless {B}` is `A && !B`: the left decides, what is reached must be a Bool."""
    answer = evaluate(f"{ANYTHING} {text};")
    assert (answer.errors[0][1] if answer.errors else answer.outcome == "ALLOW") == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('context.e is A in G::"g"', True),
        ('context.e is B in G::"g"', False),
        ("context.e is B in 1", False),
        ("context.e is A in 1", "type"),
        ('context.n is A in G::"g"', "type"),
        ('context.e is A in [G::"none", G::"g"]', True),
        ('(if context.e is A in G::"g" then context.e else resource) is A in G::"g"', True),
    ],
)
def test_is_in_evaluates_its_left_side_once(text, wanted):
    """`is .. in` errs where its left side errs, and is false, without the right side, for another type."""
    store = [
        {"uid": {"type": "A", "id": "x"}, "attrs": {}, "parents": [{"type": "G", "id": "g"}]},
    ]
    context = {"e": {"__entity": {"type": "A", "id": "x"}}, "n": 1}
    assert condition(text, context, entities=store) == wanted


def test_record_keys_may_hold_any_character():
    """PO-07: NUL, quotes and empty keys are keys like others."""
    text = r'{"a\0b": context.x, "": context.y, "\"": 3, "a": 4} == context.r'
    record = {"a\0b": 1, "": 2, '"': 3, "a": 4}
    assert condition(text, {"x": 1, "y": 2, "r": record}) is True


def test_a_literal_star_in_a_pattern_is_no_wildcard():
    """An escaped star stands for itself."""
    assert condition(r'context.s like "a\**"', {"s": "a*b"}) is True
    assert condition(r'context.s like "a\**"', {"s": "ab"}) is False


def test_unknown_is_refused():
    """`unknown` belongs to partial evaluation, which decides nothing."""
    assert "policy `u` (policies:1:1) uses `unknown`" in refusal(f'@id("u") {ANYTHING} when {{ unknown("x") == 1 }};')


# ---------------------------------------------------------------- columns

LIVE = {"task": {"present": True, "id": "t"}, "dest": {"__entity": {"type": "Destination", "id": "d"}}}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("context.task.present", True),
        ('context.task.id == "t"', True),
        ('context["task"]["id"] == "t"', True),
        ('context.task.state == "none"', True),
        ("context.task.unknown == 1", "attribute"),
        ("context has task", True),
        ("context has task.present", True),
        ("context has task.unknown", False),
        ("context.task has owner", False),
        ("context.task.owner == context.dest", "attribute"),
        ('context.dest == Destination::"d"', True),
        ("context.dest has max_level", False),
        ("context.approval == context.task", False),
        ("context.approval == context.approval", True),
        ("{a: context.risk}.a.agent == 0", True),
        ("context has other", False),
        ("context.other == 1", "attribute"),
        ("context.input.amount == 5", True),
        ("context has input.amount", True),
        ("context.input has missing", False),
        ("context == context", True),
        ("{c: context}.c.task.present", True),
        ("{c: context}.c has input", True),
    ],
)
def test_columns_and_extras_are_what_the_context_would_be(text, wanted):
    """A path into live state is a column; a column has its absent value; what is no column is the caller's input."""
    assert condition(text, {**LIVE, "input": {"amount": 5}}) == wanted


def test_without_columns_the_context_is_a_plain_record():
    """`evaluation: cedar` of the conformance corpus knows no columns of ours."""
    assert condition("context.task.any == 1", {"task": {"any": 1}}, columns=False) is True
    assert condition("context has task", {}, columns=False) is False


def test_an_input_that_was_not_sent_ends_the_decision():
    """It is unknown and not absent, so a rule that reads it denies and says what is missing."""
    answer = evaluate(f"{ANYTHING} when {{ context.input.amount > 1 }};", {}, unsent=["input"])
    assert (answer.outcome, answer.reason, answer.input_missing) == ("DENY", "input.missing.input", "input")


def test_the_report_names_what_policies_read():
    """The envoy config buffers bodies only where `input` is read; the whole context reads everything."""
    report = compile_image(
        f'@id("a") {ANYTHING} when {{ context.task.present && context.input.amount > 1 && context has extra }};'
        f'@id("b") {ANYTHING} when {{ context.risk == {{}} }};'
    ).report
    assert report.columns == ("task.present", "risk.agent", "risk.user", "risk.source_age_s")
    assert report.extras == ("extra", "input")
    whole = compile_image(f'@id("a") {ANYTHING} when {{ context == {{}} }};').report
    assert whole.columns == tuple(path for path, _, _ in COLUMNS)
    assert whole.extras == ("*", "http", "input")
    assert whole.warnings == ("policy `a` reads `context` as a whole: every call builds it, and bodies are buffered",)


def test_conditions_that_cannot_be_printed_stay_nameless():
    """compile_conditions leaves the policy's name to its caller."""
    with pytest.raises(PolicyError, match=r"^uses `unknown`"):
        program('when { unknown("x") }')
