"""Annotations: reserved ones have meaning, lookalikes refuse the publish."""

import pytest

from sidecar.errors import PolicyError
from sidecar.policy import annotations
from sidecar.policy.image import PolicyFlag
from tests.fix_policy import ANYTHING, evaluate, refusal


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [("shadow", "shadow", 0), ("shdow", "shadow", 1), ("hsadow", "shadow", 1), ("shade", "shadow", 2), ("", "id", 2)],
)
def test_distance_counts_edits_and_swaps(a, b, edits):
    """Either way round: a letter more, less or other, or two neighbours swapped, is one edit."""
    assert annotations.distance(a, b) == edits
    assert annotations.distance(b, a) == edits


@pytest.mark.parametrize(
    ("name", "meant"),
    [("shdow", "shadow"), ("Shadow", "shadow"), ("reasons", "reason"), ("nevr", "never"), ("di", "id"),
     ("effect_hnit", "effect_hint"), ("obligations", "obligation"), ("sever", "never")],
)  # fmt: skip
def test_a_lookalike_refuses_the_publish_and_names_both(name, meant):
    """An annotation that nearly is a reserved one would silently mean nothing."""
    message = refusal(f'@id("a") @{name}("x") {ANYTHING};')
    assert f"policy `a` (policies:1:1) has the annotation `@{name}`, which looks like `@{meant}`" in message


@pytest.mark.parametrize("name", ["ticket", "jira", "a", "ab", "team_name", *annotations.RESERVED])
def test_other_annotations_and_the_reserved_ones_pass(name):
    """Only what is almost a reserved name is a mistake; names of the operator's own are free."""
    assert annotations.lookalike(name) is None


def test_obligations_are_checked():
    """A misspelt obligation would make a forbid that an approval lifts one that nothing lifts."""
    assert "has the obligation `aproval`; known ones are approval, notify, step-up" in refusal(
        f'@id("a") @obligation("aproval") {ANYTHING};'
    )


@pytest.mark.parametrize(
    ("written", "forbid", "flags"),
    [
        ({"obligation": "approval"}, True, PolicyFlag.CURABLE),
        ({"obligation": "step-up"}, True, PolicyFlag.CURABLE),
        ({"obligation": "notify"}, True, 0),
        ({"obligation": "approval"}, False, 0),
        ({"never": ""}, True, PolicyFlag.NEVER),
        ({"shadow": "", "never": ""}, False, PolicyFlag.SHADOW | PolicyFlag.NEVER),
    ],
)
def test_flags(written, forbid, flags):
    """What annotations say of a policy becomes its row's flags, which evaluation reads."""
    assert annotations.flags(written, forbid=forbid) == flags


def test_positional_sets_give_annotations_no_meaning():
    """Cedar ignores annotations; so does a set that is compiled as Cedar itself would take it."""
    answer = evaluate(f'@shdow("") @obligation("x") {ANYTHING}; @shadow("") {ANYTHING};')
    assert answer.reasons == ["policy0", "policy1"]


def test_a_curable_forbid_steps_up_and_a_shadow_does_not_decide():
    """STEP_UP needs a permit beside it; in shadow the same forbid is listed and nothing more."""
    text = f'@id("p") {ANYTHING}; @id("f") @obligation("approval") @reason("ask") forbid (principal, action, resource);'
    answer = evaluate(text, positional_ids=False)
    assert (answer.outcome, answer.reason, answer.obligation) == ("STEP_UP", "ask", "approval")
    answer = evaluate(text.replace("@obligation", '@shadow("") @obligation'), positional_ids=False)
    assert (answer.outcome, answer.shadows) == ("ALLOW", [("f", "")])


def test_json_is_sorted_and_keeps_unicode():
    """Equal annotations give equal bytes, so equal content keeps its digest."""
    assert annotations.as_json({"b": "é", "a": '"'}) == '{"a":"\\"","b":"é"}'


def test_check_names_no_policy():
    """Whoever calls it knows the policy and puts its name before the message."""
    with pytest.raises(PolicyError, match=r"^has the annotation"):
        annotations.check({"ide": "x"})
