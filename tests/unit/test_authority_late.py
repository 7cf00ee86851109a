"""What comes after the fact: costs reported late, what a dry run hears, how long a STEP_UP is remembered."""

from pathlib import Path
from typing import Any

import pytest

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.journal import Journal
from sidecar._proto.remit.authz.v1 import authz_pb2
from tests.fix_live import (
    AGENT,
    BOOT,
    CHILD,
    LEAD,
    NOW,
    SECOND,
    ask,
    make_live,
    make_pdp,
    outcome,
    peer,
    task,
)
from tests.unit.test_authority import ALLOW, SETTLED, approval, last_event, report

ENDED = ("completed", "cancelled", "expired", "revoked", "forgotten")


def end(live: Live, id_: str, state: str, refund: tuple[str, int] | None = None) -> None:
    """The task is over; `refund`: what its parent gets back of the cost."""
    live.apply([("state", {"id": id_, "state": "completed" if state == "forgotten" else state})], 2)
    if refund:
        live.apply([("budget", {"id": refund[0], "cost": refund[1]})], 2)
    if state == "forgotten":
        live.apply([("forget", {"id": id_})], 2)


def family() -> tuple[Live, dict[str, Any]]:
    """root, below it middle, below it leaf; each with a budget of its own."""
    rows = {"root": {"cost": 100, "calls": 50}, "middle": {"cost": 20, "calls": 10}, "leaf": {"cost": 5, "calls": 3}}
    changes = [
        task("root", agent=LEAD, **rows["root"]),
        task("middle", agent=AGENT, parent="root", depth=1, **rows["middle"]),
        task("leaf", agent=CHILD, parent="middle", depth=2, **rows["leaf"]),
    ]
    return make_live(*changes), rows


def cost(live: Live, id_: str) -> tuple[int, int]:
    """(left, spent) of the cost."""
    found = live.task(id_)
    assert found is not None
    return found["cost"], found["spent_cost"]


def report_cost(pdp: Pdp, evaluation: str, amount: int, agent: str = CHILD) -> int:
    """The status of a Report of what the call cost."""
    request = authz_pb2.ReportRequest(evaluation_id=evaluation, executed=True, cost=amount)
    code: int = pdp.report(request.SerializeToString(), peer(agent))[0]
    return code


def fill(journal: Journal) -> None:
    """Write until not even a report fits."""
    pdp = make_pdp(make_live(task()), journal)
    allowed = []
    while (answer := ask(pdp)).reason == "ok":
        allowed.append(answer.evaluation_id)
    while report_cost(pdp, allowed.pop(), 1, AGENT) == 0:
        pass


# ------------------------------------------------------------ a cost after the end of its task


@pytest.mark.parametrize("state", ENDED)
def test_a_cost_after_its_tasks_end_is_charged_to_the_one_above(state: str, tmp_path: Path) -> None:
    """The parent got back what was left, so it pays what the call cost beyond that; the record says who paid."""
    live, _ = family()
    pdp = make_pdp(live, Journal(str(tmp_path)))
    call = ask(pdp, agent=CHILD, cost=2)
    assert outcome(call) == ALLOW
    end(live, "leaf", state, refund=("middle", 3))
    assert report(pdp, call.evaluation_id, agent=CHILD, executed=True, cost=6) == SETTLED
    assert cost(live, "middle") == (20 + 3 - 4, 4)
    assert cost(live, "root") == (100, 0)
    assert [(e.kind, e.key, e.value) for e in last_event(tmp_path).effects] == [(2, b"middle", 4)]


def test_what_comes_back_after_a_tasks_end_goes_where_its_budget_came_from() -> None:
    live, _ = family()
    pdp = make_pdp(live)
    call = ask(pdp, agent=CHILD, cost=2)
    end(live, "leaf", "completed", refund=("middle", 3))
    assert report(pdp, call.evaluation_id, agent=CHILD, executed=False) == SETTLED
    assert cost(live, "middle") == (25, -2)


def test_the_nearest_task_that_stands_pays() -> None:
    """A suspended one does: it has its budget still. When the root is over, there is nobody left to charge."""
    live, _ = family()
    pdp = make_pdp(live)
    one, two, three = (ask(pdp, agent=CHILD, cost=1).evaluation_id for _ in range(3))
    end(live, "leaf", "completed")
    live.apply([("state", {"id": "middle", "state": "suspended"})], 2)
    assert report(pdp, one, agent=CHILD, executed=True, cost=2) == SETTLED
    assert cost(live, "middle") == (19, 1)
    end(live, "middle", "forgotten")
    assert report(pdp, two, agent=CHILD, executed=True, cost=8) == SETTLED
    assert cost(live, "root") == (93, 7)
    end(live, "root", "cancelled")
    assert report(pdp, three, agent=CHILD, executed=True, cost=8) == SETTLED
    assert cost(live, "root") == (93, 7)


def test_a_late_cost_is_counted_once_after_a_restart(tmp_path: Path) -> None:
    """The journal names who paid, so what a start finds is what there was: the leaf is not loaded any more."""
    live, rows = family()
    pdp = make_pdp(live, Journal(str(tmp_path)))
    early, late = (ask(pdp, agent=CHILD, cost=1).evaluation_id for _ in range(2))
    report(pdp, early, agent=CHILD, executed=True, cost=3)
    effects = [last_event(tmp_path).effects]
    end(live, "leaf", "completed", refund=("middle", 1))
    report(pdp, late, agent=CHILD, executed=True, cost=9)
    effects.append(last_event(tmp_path).effects)
    again = make_live(
        task("root", agent=LEAD, **rows["root"]),
        task("middle", agent=AGENT, parent="root", depth=1, **{**rows["middle"], "cost": 21}),
    )
    for some in effects:
        again.redo([(effect.kind, effect.key.decode(), effect.value) for effect in some])
    assert [again.task(id_) for id_ in ("root", "middle")] == [live.task(id_) for id_ in ("root", "middle")]


@pytest.mark.parametrize("end_leaf", [False, True])
def test_a_cost_that_the_journal_did_not_take_is_not_charged(end_leaf: bool, tmp_path: Path) -> None:
    """It is charged before it is written, so that no snapshot has too little; and given back when it is not written."""
    journal = Journal(str(tmp_path), segment_bytes=64 << 10, cap_bytes=128 << 10, on_full="deny")
    live, _ = family()
    pdp = make_pdp(live, journal)
    call = ask(pdp, agent=CHILD, cost=2).evaluation_id
    if end_leaf:
        end(live, "leaf", "completed")
    fill(journal)
    before = [live.task(id_) for id_ in ("root", "middle", "leaf")]
    assert [report_cost(pdp, call, amount) for amount in (5, 6)] == [14, 14]
    assert [live.task(id_) for id_ in ("root", "middle", "leaf")] == before


# ------------------------------------------------------------ dry runs


def test_a_dry_run_hears_what_a_call_would_get_and_takes_nothing() -> None:
    live = make_live(task(calls=1, cost=10))
    pdp = make_pdp(live)
    before = live.task("t1")
    assert outcome(ask(pdp, dry_run=True, cost=11)) == ("DENY", "task.budget")
    assert outcome(ask(pdp, dry_run=True, cost=10)) == ALLOW
    assert live.task("t1") == before
    assert outcome(ask(pdp)) == ALLOW
    assert outcome(ask(pdp, dry_run=True)) == ("DENY", "task.budget")
    assert outcome(ask(pdp)) == ("DENY", "task.budget")


def test_a_dry_run_leaves_an_approval_unused() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.apply([approval(live, ask(pdp, "delete").evaluation_id)], 2)
    for _ in range(3):
        assert outcome(ask(pdp, "delete", dry_run=True)) == ALLOW
    assert live.uses("a1") == 1
    assert outcome(ask(pdp, "delete")) == ALLOW
    assert outcome(ask(pdp, "delete", dry_run=True))[0] == "STEP_UP"


# ------------------------------------------------------------ remembered STEP_UPs


def test_no_agent_takes_the_remembered_step_ups_of_another() -> None:
    """One that provokes answer after answer loses its own oldest, and keeps its newest."""
    live = make_live(task("t1"), task("t2", agent=CHILD))
    pdp = make_pdp(live)
    victims = [ask(pdp, "delete", agent=CHILD).evaluation_id for _ in range(5)]
    flood = [ask(pdp, "delete").evaluation_id for _ in range(1200)]
    later = ask(pdp, "delete", agent=CHILD).evaluation_id
    assert all(live.step_up(evaluation) for evaluation in [*victims, later])
    kept = [evaluation for evaluation in flood if live.step_up(evaluation)]
    assert kept == flood[-506:]


def test_agents_that_flood_share_what_is_remembered() -> None:
    """With two at it, each keeps a half."""
    live = make_live(task("t1"), task("t2", agent=CHILD))
    pdp = make_pdp(live)
    asked = [(agent, ask(pdp, "delete", agent=agent).evaluation_id) for _ in range(600) for agent in (AGENT, CHILD)]
    kept = [agent for agent, evaluation in asked if live.step_up(evaluation)]
    assert (kept.count(AGENT), kept.count(CHILD)) == (256, 256)


def test_a_remembered_step_up_says_when_it_was_asked_for() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.put_clock(boot_ns=BOOT + SECOND, unix_ns=NOW + SECOND)
    asked = live.step_up(ask(pdp, "delete").evaluation_id)
    assert asked is not None
    assert (asked["unix_ns"], asked["agent"], asked["chain"]) == (NOW + SECOND, AGENT, [AGENT])
