"""Policy tests and explanations run through the evaluator that decides; the example set passes its own tests."""

import io
import pathlib
import xml.etree.ElementTree as ET

import pytest
import rich.console

from fastpath.evaluator import Evaluator
from fastpath.table import Generation
from sidecar.errors import PolicyError
from sidecar.policy.child import compile_texts
from sidecar.policy.clauses import split_clauses
from sidecar.policy.compile import compile_image
from sidecar.policy.explain import Explainer
from sidecar.policy.question import Question, parse_uid
from sidecar.policy.results import as_junit, as_table
from sidecar.policy.source import PolicySource, SourceFiles
from sidecar.policy.testing import PolicyTest, load_tests, run_tests
from tests.fix_policy import ANYTHING

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "agents"


@pytest.fixture(scope="module")
def example():
    texts = PolicySource(SourceFiles.in_folder(EXAMPLE)).read()
    with Generation.from_bytes(compile_texts(texts, allow_empty=False).image) as generation:
        yield texts, generation


def test_the_example_set_passes_its_own_tests(example):
    """The first policy set for agents: every test as written, and together they name every policy."""
    _, generation = example
    outcomes = run_tests(Evaluator(generation), load_tests(EXAMPLE / "tests.yaml"))
    assert [(outcome.test.name, outcome.problems) for outcome in outcomes if not outcome.passed] == []
    seen = {id_ for outcome in outcomes for id_ in outcome.answer.reasons}
    assert seen == set(generation.policy_ids) - {"retired-payments"}


def test_the_example_needs_arguments_and_warns_of_nothing(example):
    """What the README starts from is an example in this as well."""
    texts, _ = example
    report = compile_texts(texts, allow_empty=False).report
    assert report.extras == ("input",)
    assert report.warnings == ()


QUESTION = {"principal": 'A::"p"', "action": 'Action::"a"', "resource": 'R::"r"'}


def run(text, **test):
    with Generation.from_bytes(compile_image(text).image) as generation:
        (outcome,) = run_tests(Evaluator(generation), [PolicyTest(**QUESTION, name="n", **test)], "f.yaml")
    return outcome


@pytest.mark.parametrize(
    ("test", "problems"),
    [
        ({"expect": "ALLOW"}, ()),
        ({"expect": "ALLOW", "reason": "ok", "policies": ["b", "a"], "errors": [], "obligation": ""}, ()),
        ({"expect": "DENY"}, ("outcome: expected `DENY`, got `ALLOW`",)),
        ({"expect": "ALLOW", "policies": ["a"]}, ("policies: expected [a], got [a, b]",)),
        ({"expect": "ALLOW", "errors": ["x"]}, ("errors: expected [x], got []",)),
        ({"expect": "ALLOW", "reason": "x"}, ("reason: expected `x`, got `ok`",)),
        ({"expect": "ALLOW", "context": {"x": 1.5}}, ("context.x is float, which is no Cedar value",)),
    ],
)
def test_what_is_given_is_compared(test, problems):
    """A test that leaves reasons or obligations out says nothing about them."""
    assert run(f'@id("a") {ANYTHING}; @id("b") {ANYTHING};', **test).problems == problems


def test_a_malformed_question_fails_its_test():
    """It is told with that test, and the other tests go on."""
    bad = {**QUESTION, "principal": "Agent"}
    with Generation.from_bytes(compile_image(f'@id("a") {ANYTHING};').image) as generation:
        (outcome,) = run_tests(Evaluator(generation), [PolicyTest(**bad, name="n", expect="ALLOW")])
    assert outcome.problems == ('principal is `Agent`; an entity like Agent::"a" is expected',)


@pytest.mark.parametrize(
    ("text", "uid"),
    [
        ('A::"x"', ("A", "x")),
        (' A::B::"x\\"y\\u{e9}" ', ("A::B", 'x"yé')),
        ('A::""', ("A", "")),
        ('A::"a::\\"b\\""', ("A", 'a::"b"')),
    ],
)
def test_uids_are_written_as_in_cedar(text, uid):
    """Namespaces and escapes included."""
    assert parse_uid(text) == uid


@pytest.mark.parametrize("text", ["", "A", 'A:"x"', '::"x"', 'A::"x" ,', "A::'x'", 'A::"x'])
def test_other_text_is_no_uid(text):
    """Nothing is guessed: a uid that was meant otherwise would ask another question."""
    with pytest.raises(PolicyError, match="an entity like"):
        parse_uid(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tests: [", "is not YAML that can be used"),
        ("tests:\n- {name: a, name: b}", "duplicate key `name`"),
        ("{}", "object missing required field `tests`"),
        ("tests: [{name: a}]", "missing required field"),
        ("tests: [{name: a, principal: x, action: x, resource: x, expect: PERMIT}]", "invalid enum value 'PERMIT'"),
        (
            "tests: [{name: a, principal: x, action: x, resource: x, expect: DENY, expected: 1}]",
            "unknown field `expected`",
        ),
        ("!!python/object/apply:os.system [id]", "is not YAML that can be used"),
    ],
)
def test_a_bad_test_file_is_named(tmp_path, text, problem):
    """With the cause: a field that is unknown or twice there would be a test that tests nothing."""
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_tests(path)
    assert str(caught.value).startswith(f"`{path}`")
    assert problem in str(caught.value)


def test_outcomes_become_a_table_and_junit_xml():
    """Both count alike and say why a test failed; brackets in names are no markup."""
    outcomes = [run(f'@id("a") {ANYTHING};', expect="ALLOW"), run(f'@id("[b]") {ANYTHING};', expect="DENY")]
    out = io.StringIO()
    rich.console.Console(file=out, width=200).print(as_table(outcomes))
    text = out.getvalue()
    assert "2 tests, 1 failed" in text
    assert "[b]" in text
    assert "outcome: expected `DENY`, got `ALLOW`" in text
    suite = ET.fromstring(as_junit(outcomes)).find("testsuite")
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("f.yaml", "2", "1")
    failures = suite.findall("testcase/failure")
    assert [failure.get("message") for failure in failures] == ["outcome: expected `DENY`, got `ALLOW`"]


def test_junit_carries_names_that_xml_cannot():
    """A character that XML has no way to write is replaced, so that the report can be read."""
    outcome = run(f'@id("a") {ANYTHING};', expect="ALLOW")
    object.__setattr__(outcome, "file", "f\0.yaml")
    assert ET.fromstring(as_junit([outcome])).find("testsuite").get("name") == "f\ufffd.yaml"


# ---------------------------------------------------------------- explain


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("", []),
        ("when { a && b } unless { c }", [("when", ("a", "b")), ("unless", ("c",))]),
        ("when { (a && b) && c }", [("when", ("(a && b)", "c"))]),
        ("when { a && b || c }", [("when", ("a && b || c",))]),
        ("when { if a then b && c else d }", [("when", ("if a then b && c else d",))]),
        ('when { a == "&& }" && b // && c\n && {x: 1} == d }', [("when", ('a == "&& }"', "b", "{x: 1} == d"))]),
    ],
)
def test_clauses_are_split_as_they_were_written(text, clauses):
    """Each `when` and `unless` by its conjuncts, text as in the file: that is what Explain shows."""
    found = split_clauses(f'@when("&&") permit (principal, action, resource) {text};')
    assert [(clause.kind, clause.conjuncts) for clause in found] == clauses


def explained(example, **question):
    texts, generation = example
    return Explainer(texts, generation).explain(Question(**question))


CLERK = 'Agent::"spiffe://example.org/agents/clerk"'


def test_an_explanation_says_what_each_conjunct_is(example):
    """Which policies match, which parts hold, which were reached, and where the policy stands."""
    found = explained(
        example,
        principal=CLERK,
        action='Action::"bank/send_money"',
        resource='Tool::"bank/send_money"',
        context={
            "dest": {"__entity": {"type": "Destination", "id": "bank.example.com"}},
            "input": {"to": "x", "amount": 60_000, "currency": "EUR"},
        },
    )
    assert found.decision.outcome == "STEP_UP"
    assert found.missing == ()
    policies = {policy.id: policy for policy in found.policies}
    assert {id_ for id_, policy in policies.items() if policy.satisfied} == {"clerk-payments", "transfer-approval"}
    assert policies["clerk-payments"].template == "change-granted"
    assert "observe-active" not in policies
    approval = policies["transfer-approval"]
    assert approval.where.endswith("tools.cedar:32:1")
    when, unless = approval.clauses
    assert [(part.text, part.value, part.reached) for part in when.conjuncts] == [
        ("context.input.amount > 50000", "true", True),
        ("context.input.amount <= 500000", "true", True),
    ]
    assert [(part.value, part.reached) for part in unless.conjuncts] == [
        ("false", True), ("false", False), ("true", False)
    ]  # fmt: skip


def test_an_explanation_names_inputs_that_were_not_sent(example):
    """A rule that reads what was not sent says which input it is."""
    found = explained(
        example,
        principal=CLERK,
        action='Action::"bank/send_money"',
        resource='Tool::"bank/send_money"',
        unsent=["input"],
    )
    assert found.decision.reason == "input.missing.input"
    assert found.missing == ("input",)
    limit = next(policy for policy in found.policies if policy.id == "transfer-limit")
    assert (limit.satisfied, limit.cause) == (None, "unsent")
    assert limit.clauses[0].conjuncts[0].cause == "unsent"


def test_an_explanation_shows_errors_and_stops_at_them(tmp_path):
    """Cedar evaluates no further; what would have been behind the error is shown as not reached."""
    (tmp_path / "a.cedar").write_text(
        '@id("a") permit (principal, action, resource)'
        " when { context.none == 1 && true } unless { false } when { principal.x == 1 };"
    )
    texts = PolicySource(SourceFiles.in_folder(tmp_path)).read()
    with Generation.from_bytes(compile_texts(texts, allow_empty=False).image) as generation:
        (policy,) = explained((texts, generation), **QUESTION).policies
    assert (policy.satisfied, policy.cause) == (None, "attribute")
    parts = [(part.value, part.cause, part.reached) for clause in policy.clauses for part in clause.conjuncts]
    assert parts == [
        ("error", "attribute", True), ("true", "", False), ("false", "", False), ("error", "entity", False)
    ]  # fmt: skip


def test_every_example_question_is_explained_as_it_is_decided(example):
    """A policy is satisfied exactly when all its `when` hold and each `unless` has a part that does not."""
    texts, generation = example
    explainer = Explainer(texts, generation)
    for test in load_tests(EXAMPLE / "tests.yaml"):
        for policy in explainer.explain(test).policies:
            values = [
                all(part.value == "true" for part in clause.conjuncts) == (clause.kind == "when")
                for clause in policy.clauses
            ]
            if policy.satisfied is not None:
                assert policy.satisfied is all(values)
