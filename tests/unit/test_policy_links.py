"""Template links: they make policies of templates, and a bad one refuses the publish with its line (PO-08)."""

import pytest

from sidecar.errors import PolicyError
from sidecar.policy.compile import compile_image
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.links import parse_links
from tests.fix_policy import ANYTHING, evaluate, refusal

TEMPLATES = """
@id("both") permit (principal == ?principal, action, resource in ?resource) when { context.n == 1 };
@id("typed") @reason("r") forbid (principal is A in ?principal, action, resource);
@id("plain") permit (principal == A::"never", action, resource);
"""
STORE = [
    {"uid": {"type": "A", "id": "p"}, "attrs": {}, "parents": [{"type": "G", "id": "g"}]},
    {"uid": {"type": "R", "id": "r"}, "attrs": {}, "parents": [{"type": "G", "id": "h"}]},
]


def link(id_="one", template="both", **slots):
    uids = {f"?{slot}": {"type": type_, "id": name} for slot, (type_, name) in slots.items()}
    return {"id": id_, "template": template, "slots": uids}


BOTH = link(principal=("A", "p"), resource=("G", "h"))


def test_links_are_policies_under_their_own_id():
    """Slots stand in `==`, `in` and `is .. in`; the link's id is what answers name."""
    answer = evaluate(TEMPLATES, {"n": 1}, positional_ids=False, links=[BOTH], entities=STORE)
    assert (answer.outcome, answer.reasons) == ("ALLOW", ["one"])
    links = [BOTH, link("two", "typed", principal=("G", "g"))]
    answer = evaluate(TEMPLATES, {"n": 1}, positional_ids=False, links=links, entities=STORE)
    assert (answer.outcome, answer.reasons, answer.reason) == ("DENY", ["two"], "r")
    assert evaluate(TEMPLATES, {"n": 2}, positional_ids=False, links=[BOTH], entities=STORE).reasons == []


def test_positional_sets_know_templates_by_place_and_by_id():
    """As cedarpy does: `policy0` or the template's `@id`."""
    for template in ("policy0", "both"):
        link_ = {**BOTH, "template": template}
        assert evaluate(TEMPLATES, {"n": 1}, links=[link_], entities=STORE).reasons == ["one"]


def test_templates_without_links_decide_nothing_and_are_warned_about():
    """As in Cedar; a template that nobody linked is probably a link that was forgotten."""
    report = compile_image(TEMPLATES).report
    assert (report.policies, report.templates, report.links) == (1, 2, 0)
    assert report.warnings == (
        "policy `both` (policies:2:1) is a template without links: it decides nothing",
        "policy `typed` (policies:3:1) is a template without links: it decides nothing",
    )


def test_a_template_without_links_must_compile_all_the_same():
    """A link that comes later must not be what finds the mistake."""
    assert "uses `unknown`" in refusal(
        '@id("t") permit (principal == ?principal, action, resource) when { unknown("x") == 1 };'
    )


@pytest.mark.parametrize(
    ("links", "problem"),
    [
        ([link(principal=("A", "p"))], "link 1: link `one` does not fill the slot `?resource` of `both`"),
        ([link("x", "typed", principal=("A", "p"), resource=("G", "h"))],
         "link 1: link `x` fills the slot `?resource` of `typed`, which the template does not have"),
        ([link("x", "none")], "link 1: link `x` names the template `none`, which does not exist"),
        ([link("x", "plain")], "link 1: link `x` names the template `plain`, which is a policy without slots"),
        ([BOTH, BOTH], "link 2: link id `one` is taken by the link at link 1"),
        ([{**BOTH, "id": "plain"}], "link 1: link id `plain` is taken by policy `plain` (policies:4:1)"),
        ([{**BOTH, "id": "both"}], "link 1: link id `both` is taken by policy `both` (policies:2:1)"),
        ([{**BOTH, "id": ""}], "link 1: link has an empty id"),
        ([link(principal=("A B", "p"), resource=("G", "h"))],
         "link 1: link `one` has the type `A B` in `?principal`, which is no type name"),
        ([{"id": "x"}], "link 1: cannot be read: object missing required field `template`"),
    ],
)  # fmt: skip
def test_a_bad_link_refuses_the_publish(links, problem):
    """PO-08: missing slot, unknown template, same id twice, id of a policy."""
    assert problem in refusal(TEMPLATES, links=links)


def test_a_link_to_a_type_that_the_schema_does_not_know_is_refused():
    """Slots are held to the schema as uids in policies are."""
    schema = "entity A; action a appliesTo { principal: A, resource: A, context: {} };"
    text = '@id("t") permit (principal == ?principal, action, resource);'
    assert compile_image(text, schema=schema, links=[link("x", "t", principal=("A", "p"))]).report.policies == 1
    message = refusal(text, schema=schema, links=[link("x", "t", principal=("B", "p"))])
    assert message == "link 1: link `x` has the type `B` in `?principal`, which the schema does not know"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\n{", "l.jsonl:2: link cannot be read: input data was truncated"),
        ('{"id": 1}', "l.jsonl:1: link cannot be read: expected `str`, got `int` - at `$.id`"),
        ('{"id": "a", "template": "t", "slots": {}, "more": 1}', "object contains unknown field `more`"),
        ('{"id": "a", "template": "t", "slots": {"?principal": {"type": "A"}}}', "missing required field `id`"),
        ('{"id": "a", "template": "t", "slots": {}}\n\n[]', "l.jsonl:3: link cannot be read"),
        ('{"id": "\ud800"}', "l.jsonl:1: link cannot be read"),
    ],
)
def test_a_bad_line_names_file_and_line(text, problem):
    """A file of a million links is mended by its line."""
    with pytest.raises(PolicyError) as caught:
        parse_links(text, "l.jsonl")
    assert problem in str(caught.value)


def test_links_are_counted():
    """The bound holds while the file is read, not after it."""
    line = '{"id": "a", "template": "t", "slots": {}}\n'
    with pytest.raises(PolicyError, match="l:3: more than 2 links"):
        parse_links(line * 3, "l", PolicyLimits(links_max=2))


def test_a_policy_that_is_no_template_keeps_working_beside_links():
    """A set with links decides by both."""
    text = f'{TEMPLATES} @id("all") {ANYTHING};'
    assert evaluate(text, {"n": 1}, positional_ids=False, links=[BOTH], entities=STORE).reasons == ["all", "one"]
