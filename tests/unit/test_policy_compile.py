"""The compiler as a whole: what it refuses names what and where (PO-14, bad input), what it makes it reports."""

import gzip
import json
import os

import pytest

from fastpath.evaluator import Evaluator
from fastpath.table import Generation
from sidecar.policy import parse as parsing
from sidecar.policy.cells import encode_context
from sidecar.policy.compile import compile_image
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from tests.fix_policy import ANYTHING, example_texts, refusal

SCHEMA = """
entity A { level: Long }; entity R;
action top; action a in [top] appliesTo { principal: A, resource: R, context: { input?: { amount: Long } } };
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{ANYTHING};", 'policy at policies:1:1 has no `@id`; give it a unique one: @id("..")'),
        (f'@id("") {ANYTHING};', "policy `` (policies:1:1) has no `@id`"),
        (f"@id {ANYTHING};", "has no `@id`"),
        (f'@id("a") {ANYTHING};\n@id("a") {ANYTHING};',
         "policy `a` (policies:2:1) has an id that policy `a` (policies:1:1) has already"),
        (f'@id("a") @id("b") {ANYTHING};', "policy `a` (policies:1:1) cannot be parsed: duplicate annotation: @id"),
        (f'@id("a") {ANYTHING};\n\n @id("b") permit (principal, action);',
         "policy `b` (policies:3:2) cannot be parsed: "),
        (f'@id("a") {ANYTHING} when {{ 1 + }};', "policy `a` (policies:1:1) cannot be parsed: unexpected token `}`"),
        (f'@id("a") {ANYTHING} when {{ "x', "policy `a` (policies:1:1) is not complete"),
        (f'@id("a") {ANYTHING} when {{ foo(1) }};', "cannot be parsed: `foo` is not a valid function"),
        (f'@id("a") {ANYTHING} when {{ 9223372036854775808 == 1 }};', "is too large"),
        ('@id("a") permit (principal == ?resource, action, resource);', "cannot be parsed: "),
        (";", "cannot be parsed: "),
        ("not cedar at all", "policy at policies:1:1 is not complete"),
    ],
)  # fmt: skip
def test_a_bad_policy_names_itself_its_place_and_the_cause(text, problem):
    """Who wrote it finds it by its id or number, file, line and column."""
    assert problem in refusal(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('@id("x") permit (principal is B, action, resource);',
         "policy `x` (policies:1:1) unrecognized entity type `B`"),
        (f'@id("x") {ANYTHING} when {{ principal.nothing == 1 }};', "policy `x` (policies:1:1) attribute `nothing`"),
        ('@id("x") permit (principal, action == Action::"none", resource);',
         'policy `x` (policies:1:1) unrecognized action `Action::"none"`'),
        (f'@id("ok") {ANYTHING};\n@id("x") {ANYTHING} when {{ principal.level == "a" }};',
         "policy `x` (policies:2:1) "),
    ],
)  # fmt: skip
def test_a_policy_against_the_schema_names_itself(text, problem):
    """PO-14: schema mismatch and unknown actions refuse the publish."""
    assert problem in refusal(text, schema=SCHEMA)


def test_errors_name_the_file_among_several():
    """Ids are unique over all files; both places of one that is not are named."""
    sources = [PolicyText("one.cedar", f'@id("a") {ANYTHING};'), PolicyText("two.cedar", f'\n@id("a") {ANYTHING};')]
    assert refusal(sources) == "policy `a` (two.cedar:2:1) has an id that policy `a` (one.cedar:1:1) has already"


def test_caps_hold_for_all_files_together():
    """Many small files cannot pass what one large file cannot."""
    sources = [PolicyText(f"{i}.cedar", f'@id("{i}") {ANYTHING};') for i in range(3)]
    assert refusal(sources, limits=PolicyLimits(policies_max=2)) == "there are 3 policies; at most 2 are compiled"
    message = refusal(sources, limits=PolicyLimits(text_bytes_max=100))
    assert message == "policies up to `2.cedar` have more than 100 bytes together"


def test_the_policy_at_fault_is_found_in_any_chunk(monkeypatch):
    """Large texts are parsed chunk by chunk; ids, places and errors stay those of the whole text."""
    monkeypatch.setattr(parsing, "CHUNK_POLICIES", 7)
    text = "".join(f'@id("p{i:03d}") {ANYTHING} when {{ context.n == {i} }};\n' for i in range(50))
    assert compile_image(text).report.policies == 50
    assert "policy `p033` (policies:34:1)" in refusal(text.replace("context.n == 33", "context.n == "))
    bad = text.replace("context.n == 44", "principal.x == 44").replace("context.n", "1")
    assert "policy `p044` (policies:45:1) attribute `x`" in refusal(bad, schema=SCHEMA)
    compiled = compile_image(text, positional_ids=True)
    with Generation.from_bytes(compiled.image) as generation:
        answer = Evaluator(generation).evaluate(("A", "a"), ("Action", "a"), ("R", "r"), encode_context({"n": 41}))
    assert answer.reasons == ["policy41"]


def test_a_schema_brings_its_action_entities():
    """`action in [top]` of the schema decides without an action entity in the entities' file."""
    compiled = compile_image('@id("x") permit (principal, action in Action::"top", resource);', schema=SCHEMA)
    assert compiled.report.entities == 2
    with Generation.from_bytes(compiled.image) as generation:
        evaluator = Evaluator(generation)
        assert evaluator.evaluate(("A", "p"), ("Action", "a"), ("R", "r")).outcome == "ALLOW"
        assert evaluator.evaluate(("A", "p"), ("Action", "b"), ("R", "r")).outcome == "DENY"


def test_an_empty_list_of_actions_is_warned_about():
    """Cedar takes it; a forbid that matches nothing is hardly what was meant."""
    report = compile_image('@id("x") permit (principal, action in [], resource);').report
    assert report.warnings == ("policy `x` has an empty list of actions: it matches nothing",)


def test_a_policy_set_may_be_empty_where_that_is_asked_for():
    """No policy is no error of the compiler's; whether a publish may be empty is its caller's choice."""
    report = compile_image("// nothing\n").report
    assert (report.policies, report.entities) == (0, 0)


def test_ten_thousand_members_and_policies_compile():
    """PO-03: wide literals and many policies are work, not danger."""
    wide = f'@id("w") {ANYTHING} when {{ [{",".join(map(str, range(10_000)))}].contains(context.n) }};'
    compiled = compile_image(wide)
    with Generation.from_bytes(compiled.image) as generation:
        ask = Evaluator(generation).evaluate
        assert ask(("A", "a"), ("Action", "a"), ("R", "r"), encode_context({"n": 9_999})).outcome == "ALLOW"
        assert ask(("A", "a"), ("Action", "a"), ("R", "r"), encode_context({"n": 10_000})).outcome == "DENY"
    many = "".join(f'@id("p{i}") permit (principal == A::"{i}", action, resource);\n' for i in range(2_000))
    assert compile_image(many).report.policies == 2_000


def test_the_shared_example_compiles_whole():
    """All nine policies and the base of the shared example for agents, validated against its schema."""
    policies, schema = example_texts()
    report = compile_image(policies, schema=schema).report
    assert report.policies == 10
    assert "task.covers_tool" in report.columns
    assert report.extras == ()
    assert report.warnings == ()


def test_the_corpus_compiles_and_verifies():
    """PO-01: every twentieth case of the corpus, with its schema; the conformance suite decides all of them."""
    path = os.environ.get("REMIT_CORPUS")
    if not path:
        pytest.skip("REMIT_CORPUS does not name cedar-corpus.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number % 20:
                continue
            case = json.loads(line)
            if not case["shouldValidate"]:
                assert refusal(case["policies"], schema=case["schema"], positional_ids=True)
                continue
            compiled = compile_image(
                case["policies"], schema=case["schema"], entities=case["entities"], positional_ids=True, columns=False
            )
            Generation.from_bytes(compiled.image).close()
