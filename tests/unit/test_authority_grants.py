"""RT-07: what was given holds for one agent of one trust domain, one destination, under the policies of the moment."""

import json

import pytest

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.spending import EffectKind
from fastpath.table import Generation
from sidecar.policy.compile import compile_image
from tests.fix_live import AGENT, HOUR, NOW, POLICIES, ask, entities, make_live, make_pdp, outcome, task
from tests.fix_mapping import mapping_of
from tests.unit.test_authority import ALLOW, approval, revoke

TWIN = "spiffe://example.net/agent/writer"
"""The same path in another trust domain."""
BOTH = mapping_of({"trust_domains": ["example.org", "example.net"]})


def put_rules(pdp: Pdp, policies: str, generation: int) -> None:
    """Policies for both trust domains; the twin has the same owner and class."""
    rows = json.loads(entities())
    rows += [{**row, "uid": {"type": "Agent", "id": TWIN}} for row in rows if row["uid"]["id"] == AGENT]
    image = compile_image(policies, entities=json.dumps(rows)).image
    pdp.put_rules(Generation.from_bytes(image, generation=generation), BOTH)


@pytest.fixture
def world() -> tuple[Live, Pdp]:
    live = make_live(task())
    pdp = make_pdp(live)
    put_rules(pdp, POLICIES, 2)
    return live, pdp


def test_a_task_is_no_task_of_the_same_name_in_another_trust_domain(world: tuple[Live, Pdp]) -> None:
    _, pdp = world
    assert outcome(ask(pdp)) == ALLOW
    assert outcome(ask(pdp, agent=TWIN))[0] == "DENY"
    assert outcome(ask(pdp, agent=TWIN, task="t1"))[0] == "DENY"


@pytest.mark.parametrize("bound", [True, False])
def test_an_approval_holds_for_the_agent_that_it_was_asked_for(world: tuple[Live, Pdp], bound: bool) -> None:
    """Not for another one with a task of its own; and one for calls of no task is for none of a task."""
    live, pdp = world
    live.apply([task("t2", agent=TWIN)], 2)
    asked = ask(pdp, "delete")
    live.apply([approval(live, asked.evaluation_id, **({} if bound else {"task": ""}))], 3)
    assert outcome(ask(pdp, "delete", agent=TWIN))[0] == "STEP_UP"
    assert live.uses("a1") == 1
    assert outcome(ask(pdp, "delete"))[0] == ("ALLOW" if bound else "STEP_UP")


def test_an_approval_holds_for_the_destination_that_it_was_asked_for(world: tuple[Live, Pdp]) -> None:
    live, pdp = world
    asked = ask(pdp, "delete", destination="db.internal")
    live.apply([approval(live, asked.evaluation_id)], 2)
    assert outcome(ask(pdp, "delete", destination="other.internal"))[0] == "STEP_UP"
    assert outcome(ask(pdp, "delete"))[0] == "STEP_UP"
    assert outcome(ask(pdp, "delete", destination="db.internal")) == ALLOW


def test_an_approval_gives_nothing_that_the_policies_of_now_do_not(world: tuple[Live, Pdp]) -> None:
    """A grant lifts what a policy lets it lift; another generation is another policy."""
    live, pdp = world
    asked = ask(pdp, "delete")
    live.apply([approval(live, asked.evaluation_id)], 2)
    put_rules(
        pdp, POLICIES + '@id("now") @reason("now.closed") forbid (principal, action == Action::"delete", resource);', 3
    )
    assert outcome(ask(pdp, "delete")) == ("DENY", "now.closed")
    assert live.uses("a1") == 1
    put_rules(pdp, POLICIES, 4)
    assert outcome(ask(pdp, "delete")) == ALLOW


def test_an_approval_satisfies_no_rule_that_came_after_it(world: tuple[Live, Pdp]) -> None:
    """Bound to the generation that asked: what a later one asks for nobody has looked at."""
    live, pdp = world
    asked = ask(pdp, "delete")
    generation = (live.step_up(asked.evaluation_id) or {})["generation"]
    assert generation == 2
    live.apply([approval(live, asked.evaluation_id, generation=generation)], 2)
    later = (
        '@id("later") @reason("later.rule") @obligation("approval") forbid (principal, action == Action::"delete",'
        ' resource) unless { context.approval.state == "granted" };'
    )
    put_rules(pdp, POLICIES + later, 3)
    assert outcome(ask(pdp, "delete"))[0] == "STEP_UP"
    assert live.uses("a1") == 1
    put_rules(pdp, POLICIES, 2)
    assert outcome(ask(pdp, "delete")) == ALLOW


# ------------------------------------------------------------ what uses a grant up

FAR = """
@id("far") @reason("far.approval") @obligation("approval") forbid (principal, action == Action::"write", resource)
when { context has dest && context.dest == Destination::"db.internal" } unless { context.approval.state == "granted" };
"""


def test_a_call_that_needs_no_approval_uses_none_up(world: tuple[Live, Pdp]) -> None:
    """A class is approved: calls of it that are allowed anyway leave it to the one that is not, and say so."""
    live, pdp = world
    put_rules(pdp, POLICIES + FAR, 2)
    asked = ask(pdp, "write", destination="db.internal")
    assert outcome(asked) == ("STEP_UP", "far.approval")
    live.apply([approval(live, asked.evaluation_id, scope="class")], 2)
    for _ in range(3):
        assert outcome(ask(pdp, "write", destination="elsewhere")) == ALLOW
    assert live.uses("a1") == 1
    assert outcome(ask(pdp, "write", destination="db.internal")) == ALLOW
    assert live.uses("a1") == 0
    assert outcome(ask(pdp, "write", destination="db.internal")) == ("STEP_UP", "far.approval")


def test_a_step_up_revocation_uses_a_grant_up_also_where_policies_need_none(world: tuple[Live, Pdp]) -> None:
    live, pdp = world
    live.apply([revoke("agent", AGENT, "step_up")], 2)
    asked = ask(pdp, "write")
    assert outcome(asked) == ("STEP_UP", "revoked.step_up")
    live.apply([approval(live, asked.evaluation_id)], 3)
    assert outcome(ask(pdp, "write")) == ALLOW
    assert live.uses("a1") == 0


def test_a_refusal_in_spite_of_an_approval_lists_what_it_does_not_lift(world: tuple[Live, Pdp]) -> None:
    """Nothing is left of the look that was taken without it."""
    live, pdp = world
    closed = '@id("closed") @reason("now.closed") forbid (principal, action == Action::"write", resource);'
    put_rules(pdp, POLICIES + FAR, 2)
    asked = ask(pdp, "write", destination="db.internal")
    put_rules(pdp, POLICIES + FAR + closed, 3)
    before = ask(pdp, "write", destination="db.internal")
    assert (outcome(before), list(before.policy_ids)) == (("DENY", "now.closed"), ["closed", "far"])
    live.apply([approval(live, asked.evaluation_id, scope="class")], 2)
    after = ask(pdp, "write", destination="db.internal")
    assert (outcome(after), list(after.policy_ids)) == (("DENY", "now.closed"), ["closed"])
    assert live.uses("a1") == 1


# ------------------------------------------------------------ looked up by its id


def test_an_approval_is_found_by_its_id_however_many_there_are(world: tuple[Live, Pdp]) -> None:
    """What is given back or counted again names the approval: nobody looks at all of them under the lock."""
    live, _ = world
    row = {
        "task": "t1", "agent": AGENT, "scope": "exact", "uses": 3, "state": "granted", "expires_unix_ns": NOW + HOUR,
        "decided_unix_ns": NOW, "data_level": 0, "data_labels": [], "cost": 0,
    }  # fmt: skip
    live.apply([("approval", {**row, "id": f"a{n}", "digest": n.to_bytes(32, "big")}) for n in range(3000)], 2)
    before = live.work()["steps"]
    live.redo([(EffectKind.EFFECT_APPROVAL, "a2999", 2), (EffectKind.EFFECT_APPROVAL, "none", 2)])
    assert live.work()["steps"] - before <= 2
    assert (live.uses("a2999"), live.uses("a2998")) == (1, 3)
    live.apply([("approval", {**row, "id": "a2999", "digest": bytes(32), "state": "cancelled"})], 3)
    live.redo([(EffectKind.EFFECT_APPROVAL, "a2999", 1)])
    assert live.uses("a2999") is None
