"""Authority in force: no task, no owner or a revocation, and no policy's ALLOW stands; what is allowed is paid for."""

import itertools
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.errors import ProtocolError
from fastpath.journal import Journal
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from tests.fix_journal import held
from tests.fix_live import (
    AGENT,
    BOOT,
    CHILD,
    HOUR,
    NOW,
    OWNER,
    SECOND,
    STRANGER,
    ask,
    make_live,
    make_pdp,
    outcome,
    peer,
    scope,
    task,
)

PROBE = "spiffe://example.org/agent/probe"
ORPHAN = "spiffe://example.org/agent/orphan"
ALLOW = ("ALLOW", "ok")


def approval(live: Live, evaluation: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """The change that grants what the STEP_UP `evaluation` asked for."""
    asked = live.step_up(evaluation)
    assert asked is not None
    digest = asked["class_digest"] if more.get("scope") == "class" else asked["digest"]
    return "approval", {
        "id": "a1", "digest": digest, "task": asked["task"], "agent": asked["agent"], "scope": "exact", "uses": 1,
        "state": "granted", "expires_unix_ns": NOW + HOUR, "decided_unix_ns": NOW,
        "data_level": asked["data_level"], "data_labels": asked["data_labels"], "cost": asked["cost"], **more,
    }  # fmt: skip


# ------------------------------------------------------------ tasks


def test_a_call_needs_a_task_that_stands() -> None:
    """Without authority the policy alone decides; with it nothing is allowed that no open task covers."""
    assert outcome(ask(make_pdp(None))) == ALLOW
    pdp = make_pdp(make_live())
    assert outcome(ask(pdp)) == ("DENY", "task.none")
    pdp.put_authority(make_live(task()))
    assert outcome(ask(pdp)) == ALLOW


def test_a_policy_may_exempt_a_class_from_tasks() -> None:
    """`@task("none")` on the permit that decides; the owner is asked for all the same."""
    pdp = make_pdp(make_live())
    assert outcome(ask(pdp, agent=PROBE)) == ALLOW
    pdp.put_authority(make_live(("owner", {"id": OWNER, "active": False})))
    assert outcome(ask(pdp, agent=PROBE)) == ("DENY", "owner.inactive")


def test_a_named_task_must_be_the_callers_own() -> None:
    """Nobody learns whether the task of another exists."""
    pdp = make_pdp(make_live(task("t1"), task("t2", agent=CHILD)))
    assert outcome(ask(pdp, task="t1")) == ALLOW
    assert outcome(ask(pdp, task="t2")) == outcome(ask(pdp, task="nowhere")) == ("DENY", "task.unknown")


def test_of_several_open_tasks_one_must_be_named() -> None:
    live = make_live(task("t1"), task("t2"))
    pdp = make_pdp(live)
    assert outcome(ask(pdp)) == ("DENY", "task.unnamed")
    assert outcome(ask(pdp, task="t2")) == ALLOW
    live.apply([("state", {"id": "t2", "state": "completed"})], 2)
    assert outcome(ask(pdp)) == ALLOW


@pytest.mark.parametrize("state", ["suspended", "completed", "cancelled", "expired", "revoked"])
def test_a_task_that_is_not_open_allows_nothing(state: str) -> None:
    pdp = make_pdp(make_live(task(state=state)))
    assert outcome(ask(pdp, task="t1")) == ("DENY", f"task.{state}")


def test_a_task_ends_by_whichever_clock_says_so_first() -> None:
    """RT-01: a wall clock set back extends nothing, a machine that slept has aged, and what was late stays late."""
    live = make_live(task(expires_unix_ns=NOW + 10 * SECOND))
    pdp = make_pdp(live)
    live.put_clock(boot_ns=BOOT + 11 * SECOND, unix_ns=NOW - HOUR)
    assert outcome(ask(pdp, task="t1")) == ("DENY", "task.expired")
    live.put_clock(boot_ns=BOOT + SECOND, unix_ns=NOW + 11 * SECOND)
    assert outcome(ask(pdp, task="t1")) == ("DENY", "task.expired")
    live.put_clock(boot_ns=BOOT + SECOND, unix_ns=NOW)
    assert outcome(ask(pdp, task="t1")) == ("DENY", "task.expired")


SCOPES = [
    ({"any_tool": False, "tools": ["files/open"]}, {}, "ok"),
    ({"any_tool": False, "tools": ["files/*"]}, {}, "ok"),
    ({"any_tool": False, "tools": ["file/*", "files/ope", "files"]}, {}, "task.scope.tool"),
    ({"any_tool": False, "tool_groups": ["docs"]}, {}, "ok"),
    ({"any_tool": False, "tool_groups": ["other"]}, {}, "task.scope.tool"),
    ({"any_tool": False}, {}, "task.scope.tool"),
    ({"any_action": False, "actions": ["read"]}, {}, "ok"),
    ({"any_action": False, "actions": ["observe"]}, {}, "ok"),
    ({"any_action": False, "actions": ["write"]}, {}, "task.scope.action"),
    ({"any_action": False}, {}, "task.scope.action"),
    ({"any_dest": False, "destinations": ["db.internal"]}, {"destination": "db.internal"}, "ok"),
    ({"any_dest": False, "zones": ["internal"]}, {"destination": "db.internal"}, "ok"),
    ({"any_dest": False, "destinations": ["*.internal"]}, {"destination": "db.internal"}, "ok"),
    ({"any_dest": False, "destinations": ["*.internal"]}, {"destination": "internal"}, "task.scope.destination"),
    ({"any_dest": False, "destinations": ["*.nternal"]}, {"destination": "db.internal"}, "task.scope.destination"),
    ({"any_dest": False, "zones": ["internal"]}, {"destination": "example.com"}, "task.scope.destination"),
    ({"any_dest": False, "zones": ["internal"]}, {}, "task.scope.destination"),
    ({"max_level": 1}, {"data_level": 1}, "ok"),
    ({"max_level": 1}, {"data_level": 2}, "task.scope.data"),
    ({"label_allow": ["pii"]}, {"data_labels": ["pii"]}, "ok"),
    ({"label_allow": ["pii"]}, {"data_labels": ["phi"]}, "task.scope.data"),
    ({"label_deny": ["pii"]}, {"data_labels": ["pii"]}, "task.scope.data"),
    ({"methods": []}, {}, "task.scope.action"),
]


@pytest.mark.parametrize(("limits", "call", "reason"), SCOPES)
def test_a_task_covers_what_its_scope_names(limits: dict[str, Any], call: dict[str, Any], reason: str) -> None:
    """Each axis alone; an empty list covers nothing."""
    assert ask(make_pdp(make_live(task(scope=scope(**limits)))), **call).reason == reason


RULES = [
    ("eq", ["a"], "a", True),
    ("eq", ["a"], "A", False),
    ("eq", [5], 5, True),
    ("eq", [1], True, False),
    ("in", ["a", "b"], "b", True),
    ("in", ["a", "b"], "c", False),
    ("range", [1, 5], 5, True),
    ("range", [1, 5], 6, False),
    ("range", [1, 5], "3", False),
    ("prefix", ["/tmp/"], "/tmp/x", True),
    ("prefix", ["/tmp/"], "/etc", False),
    ("host_suffix", ["example.com"], "https://a.example.com/x", True),
    ("host_suffix", ["example.com"], "EXAMPLE.com", True),
    ("host_suffix", ["example.com"], "https://badexample.com", False),
    ("host_suffix", ["example.com"], "https://example.com@evil.org/", False),
    ("host_suffix", ["example.com"], "https://evil.org\\.example.com", False),
    ("host_suffix", ["example.com"], "https://evil.org#.example.com", False),
    ("host_suffix", ["example.com"], "https://evil.org%2f.example.com", False),
    ("cidr", ["10.0.0.0/8"], "10.1.2.3", True),
    ("cidr", ["10.0.0.0/8"], "11.1.2.3", False),
    ("cidr", ["10.0.0.0/8"], "ten", False),
    ("in", ["a", "b"], ["a", "b"], True),
    ("in", ["a", "b"], ["a", "c"], False),
    ("in", ["a", "b"], [], False),
]


@pytest.mark.parametrize(("op", "values", "given", "fits"), RULES)
def test_an_argument_must_be_what_the_task_says(op: str, values: list[Any], given: Any, fits: bool) -> None:
    """Of a list every member must; a parser's trick in a URL names no host."""
    rule = {"tool": "files/*", "path": "to.what", "op": op, "values": values}
    pdp = make_pdp(make_live(task(scope=scope(arg_rules=[rule]))))
    assert (outcome(ask(pdp, arguments={"to": {"what": given}})) == ALLOW) is fits
    assert ask(pdp, arguments={"to": "what"}).reason == "task.scope.tool"
    assert ask(pdp).reason == "task.scope.tool"


# ------------------------------------------------------------ delegation


def family(**child: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        task("root", scope=scope(any_action=False, actions=["read", "write"])),
        task("mid", parent="root", depth=1, attenuated=True, agent=CHILD, **child),
    ]


def test_a_child_may_only_what_its_whole_chain_may() -> None:
    pdp = make_pdp(make_live(*family()))
    assert outcome(ask(pdp, agent=CHILD)) == ALLOW
    assert outcome(ask(pdp, "send", agent=CHILD)) == ("DENY", "task.scope.action")


@pytest.mark.parametrize("state", ["suspended", "completed", "revoked"])
def test_a_child_ends_with_its_parent(state: str) -> None:
    live = make_live(*family())
    pdp = make_pdp(live)
    live.apply([("state", {"id": "root", "state": state})], 2)
    assert outcome(ask(pdp, agent=CHILD)) == ("DENY", f"task.{state}")


def test_a_chain_without_its_root_is_none() -> None:
    """Also one that leads in a circle, or is longer than the cap."""
    live = make_live(*family())
    pdp = make_pdp(live)
    live.apply([("forget", {"id": "root"})], 2)
    assert outcome(ask(pdp, agent=CHILD)) == ("DENY", "task.chain")
    live.apply([task("root", parent="mid")], 3)
    assert outcome(ask(pdp, agent=CHILD)) == ("DENY", "task.chain")


def test_the_record_names_the_chain_and_the_owner(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    pdp = make_pdp(make_live(*family(owner="bob")), journal)
    ask(pdp, agent=CHILD)
    record = last(tmp_path)
    assert list(record.chain) == [AGENT, CHILD]
    assert (record.task, record.owner) == ("mid", "bob")
    assert [(e.kind, e.key, e.value) for e in record.effects] == [(1, b"mid", 1)]


def last(folder: Path) -> decisions_pb2.Decision:
    return last_record(folder).decision


def last_event(folder: Path) -> decisions_pb2.Event:
    return last_record(folder).event


def last_record(folder: Path) -> decisions_pb2.Record:
    found: decisions_pb2.Record = decisions_pb2.Record.FromString(held(folder)[-1][1])
    return found


# ------------------------------------------------------------ owners


def test_no_active_owner_no_allow() -> None:
    """Of the agent in the entity store, of the task, and as people are switched off."""
    assert outcome(ask(make_pdp(make_live(task()), active=False))) == ("DENY", "owner.inactive")
    orphaned = make_live(task(agent=ORPHAN))
    assert outcome(ask(make_pdp(orphaned), agent=ORPHAN)) == ("DENY", "owner.missing")
    assert outcome(ask(make_pdp(make_live(task(owner="nobody"))))) == ("DENY", "owner.inactive")
    live = make_live(task(owner="bob"))
    pdp = make_pdp(live)
    assert outcome(ask(pdp)) == ALLOW
    live.apply([("owner", {"id": "bob", "active": False})], 2)
    assert outcome(ask(pdp)) == ("DENY", "owner.inactive")
    live.apply([("owner", {"id": "bob", "active": True})], 3)
    assert outcome(ask(pdp)) == ALLOW


# ------------------------------------------------------------ revocations

TARGETS = {
    "agent": AGENT,
    "class": "worker",
    "task": "t1",
    "tool": "files/open",
    "server": "files",
    "destination": "db.internal",
    "credential": "01",
    "owner": OWNER,
    "trust_domain": "example.org",
}


def revoke(kind: str, key: str, mode: str = "deny", **more: Any) -> tuple[str, dict[str, Any]]:
    return "revoke", {"kind": kind, "key": key, "mode": mode, "reason": "leaked", "expires_unix_ns": 0, **more}


@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_revoked_is_denied_at_the_next_call(kind: str, tmp_path: Path) -> None:
    """Each kind of target; the answer names the epoch, the record the cause; lifted, the call is allowed again."""
    live = make_live(task())
    pdp = make_pdp(live, Journal(str(tmp_path)))
    call = {"destination": "db.internal"}
    assert outcome(ask(pdp, **call)) == ALLOW
    live.apply([revoke(kind, TARGETS[kind])], 7)
    answer = ask(pdp, **call)
    assert outcome(answer) == ("DENY", f"revoked.{kind}")
    assert answer.revocation_epoch == 7
    assert last(tmp_path).remediation == "leaked"
    live.apply([("lift", {"kind": kind, "key": TARGETS[kind], "mode": "deny"})], 8)
    assert outcome(ask(pdp, **call)) == ALLOW
    live.apply([revoke(kind, TARGETS[kind] + "x")], 9)
    assert outcome(ask(pdp, **call)) == ALLOW


def test_read_only_leaves_reading() -> None:
    live = make_live(task(), revoke("agent", AGENT, "read_only"))
    pdp = make_pdp(live)
    assert outcome(ask(pdp, "read")) == outcome(ask(pdp, "list")) == ALLOW
    assert outcome(ask(pdp, "write")) == ("DENY", "revoked.read_only")


def test_modes_of_one_target_add_up_and_end_alone() -> None:
    live = make_live(task(), revoke("agent", AGENT, "read_only"), revoke("agent", AGENT, expires_unix_ns=NOW + SECOND))
    pdp = make_pdp(live)
    assert outcome(ask(pdp)) == ("DENY", "revoked.agent")
    live.put_clock(boot_ns=BOOT + SECOND, unix_ns=NOW + SECOND)
    assert outcome(ask(pdp)) == ALLOW
    assert outcome(ask(pdp, "write")) == ("DENY", "revoked.read_only")


def test_a_revoked_parent_takes_its_subtree_with_it() -> None:
    live = make_live(*family(), revoke("task", "root"))
    assert outcome(ask(make_pdp(live), agent=CHILD)) == ("DENY", "revoked.task")


def test_a_revoked_agent_takes_those_it_delegated_to_with_it() -> None:
    live = make_live(*family(), revoke("agent", AGENT))
    assert outcome(ask(make_pdp(live), agent=CHILD)) == ("DENY", "revoked.agent")


def test_a_repeated_request_is_decided_again_after_a_revocation() -> None:
    """A remembered ALLOW is one of its epoch."""
    live = make_live(task())
    pdp = make_pdp(live)
    assert outcome(ask(pdp, request_id="r1")) == ALLOW
    assert live.task("t1")["spent_calls"] == 1  # type: ignore[index]
    assert outcome(ask(pdp, request_id="r1")) == ALLOW
    assert live.task("t1")["spent_calls"] == 1  # type: ignore[index]
    live.apply([revoke("agent", AGENT)], 2)
    assert outcome(ask(pdp, request_id="r1")) == ("DENY", "revoked.agent")


def test_many_revocations_are_kept_apart() -> None:
    """RT-04 in small: put, replaced and lifted in any order, each target answers for itself."""
    live = make_live(task())
    pdp = make_pdp(live)
    live.apply([revoke("agent", f"{STRANGER}{i}") for i in range(5000)], 2)
    live.apply([revoke("tool", f"files/open{i}") for i in range(5000)], 3)
    for i in range(0, 5000, 2):
        live.apply([("lift", {"kind": "agent", "key": f"{STRANGER}{i}", "mode": "deny"})], 4)
    assert live.counts()["revocations"] == 7500
    assert outcome(ask(pdp)) == ALLOW
    assert outcome(ask(pdp, tool="files/open4999")) == ("DENY", "revoked.tool")
    live.apply([revoke("agent", AGENT)], 5)
    assert outcome(ask(pdp)) == ("DENY", "revoked.agent")


def test_revocations_that_come_and_go_are_found_while_they_are_there() -> None:
    """RT-04: put and lifted at random, so that what is left moves to fill the holes: each is found, and no other."""
    rng = random.Random(5)
    live = make_live(task())
    pdp = make_pdp(live)
    revoked: set[int] = set()
    for epoch in range(2, 2002):
        number = rng.randrange(200)
        if number in revoked:
            revoked.remove(number)
            live.apply([("lift", {"kind": "tool", "key": f"files/x{number}", "mode": "deny"})], epoch)
        else:
            revoked.add(number)
            live.apply([revoke("tool", f"files/x{number}")], epoch)
        if epoch % 100 == 0:
            denied = {n for n in range(200) if outcome(ask(pdp, tool=f"files/x{n}")) == ("DENY", "revoked.tool")}
            assert denied == revoked


def test_no_call_that_starts_after_the_change_is_allowed() -> None:
    """RT-03: callers hammer while an agent is revoked and lifted; the epoch of each ALLOW is one that allowed."""
    live = make_live(task())
    pdp = make_pdp(live)
    wrong: list[tuple[int, str]] = []
    stop = threading.Event()
    acknowledged = 1

    def caller() -> None:
        while not stop.is_set():
            started = acknowledged
            answer = ask(pdp)
            if answer.outcome == authz_pb2.OUTCOME_ERROR:
                continue  # a busy machine decides too late: nothing was allowed
            # Odd epochs allow, even ones deny: the answer must be of an epoch no older than the last acknowledged.
            fits = (answer.revocation_epoch % 2 == 1) == (answer.reason == "ok")
            if answer.revocation_epoch < started or not fits:
                wrong.append((answer.revocation_epoch, answer.reason))

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for epoch in range(2, 602):
        change = revoke("agent", AGENT) if epoch % 2 == 0 else ("lift", {"kind": "agent", "key": AGENT, "mode": "deny"})
        live.apply([change], epoch)
        acknowledged = epoch
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_state_that_follows_another_and_is_stale_decides_nothing() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.put_fresh(BOOT + SECOND)
    assert outcome(ask(pdp)) == ALLOW
    live.put_clock(boot_ns=BOOT + 2 * SECOND, unix_ns=NOW)
    assert outcome(ask(pdp)) == ("ERROR", "not_ready.authority_stale")


# ------------------------------------------------------------ budgets


def test_allowed_calls_spend_and_denied_ones_do_not() -> None:
    live = make_live(task(calls=2, cost=10))
    pdp = make_pdp(live)
    assert outcome(ask(pdp, tool="files/frozen"))[0] == "DENY"
    assert outcome(ask(pdp, cost=11)) == ("DENY", "task.budget")
    assert outcome(ask(pdp, dry_run=True)) == ALLOW
    assert outcome(ask(pdp, cost=10)) == ALLOW
    assert outcome(ask(pdp)) == ALLOW
    assert outcome(ask(pdp)) == ("DENY", "task.budget")
    left = live.task("t1")
    assert left is not None
    assert (left["calls"], left["cost"], left["spent_calls"]) == (0, 0, 2)


def test_a_cost_below_nothing_is_refused() -> None:
    assert outcome(ask(make_pdp(make_live(task())), cost=-1)) == ("DENY", "cost.malformed")


def test_parallel_calls_cannot_overspend() -> None:
    live = make_live(task(calls=500))
    pdp = make_pdp(live)
    allowed = itertools.count()

    def caller() -> None:
        for _ in range(200):
            if ask(pdp).reason == "ok":
                next(allowed)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert next(allowed) == 500


def report(pdp: Pdp, evaluation: str, *, agent: str = AGENT, **what: Any) -> int:
    """The result of one Report."""
    request = authz_pb2.ReportRequest(evaluation_id=evaluation, **what)
    code, reply = pdp.report(request.SerializeToString(), peer(agent))
    assert code == 0, reply
    result: int = authz_pb2.ReportResponse.FromString(reply).result
    return result


SETTLED, UNKNOWN = authz_pb2.REPORT_RESULT_SETTLED, authz_pb2.REPORT_RESULT_UNKNOWN


def test_a_report_settles_what_a_call_took(tmp_path: Path) -> None:
    """Not executed: all of it comes back. Executed: what it really cost. The journal has it before it counts."""
    live = make_live(task(calls=5, cost=10, bytes=100))
    pdp = make_pdp(live, Journal(str(tmp_path)))
    one, two = (ask(pdp, cost=4).evaluation_id for _ in range(2))
    assert report(pdp, one, executed=False) == SETTLED
    assert [(e.kind, e.value) for e in last_event(tmp_path).effects] == [(1, -1), (2, -4)]
    assert last_event(tmp_path).evaluation_id == one
    assert report(pdp, two, executed=True, cost=6, bytes_out=30) == SETTLED
    left = live.task("t1")
    assert left is not None
    assert (left["calls"], left["cost"], left["bytes"]) == (4, 4, 70)


def test_a_call_is_settled_once_in_time_and_by_who_made_it() -> None:
    """What cannot be settled counts as spent."""
    live = make_live(task(calls=5), task("t2", agent=CHILD))
    pdp = make_pdp(live)
    one, two = (ask(pdp).evaluation_id for _ in range(2))
    assert report(pdp, one, executed=False, agent=CHILD) == UNKNOWN
    assert report(pdp, one, executed=False) == SETTLED
    assert report(pdp, one, executed=False) == UNKNOWN
    live.put_clock(boot_ns=BOOT + 301 * SECOND, unix_ns=NOW)
    assert report(pdp, two, executed=False) == UNKNOWN
    for nonsense in ("", "0" * 32, "z" * 32, two.upper() + "0"):
        assert report(pdp, nonsense, executed=False) == UNKNOWN
    left = live.task("t1")
    assert left is not None
    assert left["calls"] == 4


@pytest.mark.parametrize("wrong", [{"cost": -1}, {"bytes_out": 1 << 63}])
def test_a_report_below_nothing_is_refused(wrong: dict[str, int]) -> None:
    pdp = make_pdp(make_live(task(calls=5)))
    request = authz_pb2.ReportRequest(evaluation_id=ask(pdp).evaluation_id, executed=True, **wrong)
    assert pdp.report(request.SerializeToString(), peer())[0] == 3


def test_a_report_that_the_journal_did_not_take_can_be_made_again(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), segment_bytes=64 << 10, cap_bytes=128 << 10, on_full="deny")
    live = make_live(task(calls=100_000))
    pdp = make_pdp(live, journal)
    allowed = ""
    while (answer := ask(pdp)).reason == "ok":
        allowed = answer.evaluation_id
    left = live.task("t1")
    code, _ = pdp.report(authz_pb2.ReportRequest(evaluation_id=allowed, executed=False).SerializeToString(), peer())
    if code:
        assert code == 14
        assert live.task("t1") == left
    else:
        assert live.task("t1")["calls"] == left["calls"] + 1  # type: ignore[index]


def test_what_the_journal_did_not_take_costs_nothing(tmp_path: Path) -> None:
    live = make_live(task(calls=1000))
    pdp = make_pdp(live, Journal(str(tmp_path), segment_bytes=64 << 10, cap_bytes=128 << 10, on_full="deny"))
    answers = [ask(pdp) for _ in range(900)]
    allowed = sum(answer.reason == "ok" for answer in answers)
    assert 0 < allowed < 900
    assert live.task("t1")["spent_calls"] == allowed  # type: ignore[index]


def test_redo_gives_back_what_a_crash_took(tmp_path: Path) -> None:
    """Snapshot, and then the effects of the records after it."""
    live = make_live(task(calls=10))
    pdp = make_pdp(live, Journal(str(tmp_path)))
    ask(pdp)
    spent, _ = live.snapshot()
    ask(pdp)
    record = last(tmp_path)
    again = make_live(task(calls=9, spent_calls=spent[0][1]))
    again.redo([(effect.kind, effect.key.decode(), effect.value) for effect in record.effects])
    left = again.task("t1")
    assert left is not None
    assert (left["calls"], left["spent_calls"]) == (8, 2)


def test_a_task_put_again_keeps_what_calls_spent() -> None:
    """Narrowing happens while calls go on; and no put moves a task's end away."""
    live = make_live(task(calls=10))
    pdp = make_pdp(live)
    ask(pdp)
    live.apply([task(calls=10, expires_unix_ns=NOW + 2 * HOUR), ("budget", {"id": "t1", "calls": -4})], 2)
    left = live.task("t1")
    assert left is not None
    assert (left["calls"], left["spent_calls"], left["ttl_ns"]) == (5, 1, HOUR)


# ------------------------------------------------------------ approvals


def test_an_approval_is_for_one_action_and_one_use() -> None:
    """Asked for by the STEP_UP's evaluation id; other arguments, tools and agents stay where they were."""
    live = make_live(task())
    pdp = make_pdp(live)
    answer = ask(pdp, "delete", arguments={"path": "a"})
    assert outcome(answer) == ("STEP_UP", "approval.required")
    asked = live.step_up(answer.evaluation_id)
    assert asked is not None
    assert (asked["agent"], asked["action"], asked["resource"]) == (AGENT, "delete", "files/open")
    assert (asked["task"], asked["chain"], asked["reason"]) == ("t1", [AGENT], "approval.required")
    live.apply([approval(live, answer.evaluation_id)], 2)
    assert outcome(ask(pdp, "delete", arguments={"path": "b"}))[0] == "STEP_UP"
    assert outcome(ask(pdp, "delete", "files/remove", arguments={"path": "a"}))[0] == "STEP_UP"
    assert outcome(ask(pdp, "delete", arguments={"path": "a"}, dry_run=True)) == ALLOW
    assert outcome(ask(pdp, "delete", arguments={"path": "a"})) == ALLOW
    assert outcome(ask(pdp, "delete", arguments={"path": "a"}))[0] == "STEP_UP"


def test_an_approval_of_a_class_holds_for_its_uses() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.apply([approval(live, ask(pdp, "delete").evaluation_id, scope="class", uses=2)], 2)
    assert [outcome(ask(pdp, "delete", arguments={"n": n}))[0] for n in range(3)] == ["ALLOW", "ALLOW", "STEP_UP"]


@pytest.mark.parametrize(
    "less",
    [{"expires_unix_ns": NOW}, {"uses": 0}, {"self_approved": True}, {"task": "other"}],
)
def test_an_approval_that_does_not_hold_lifts_nothing(less: dict[str, Any]) -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.apply([approval(live, ask(pdp, "delete").evaluation_id, **less)], 2)
    assert outcome(ask(pdp, "delete"))[0] == "STEP_UP"


def test_a_withdrawn_approval_lifts_nothing() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.apply([approval(live, ask(pdp, "delete").evaluation_id)], 2)
    live.apply([("approval", {"id": "a1", "state": "cancelled"})], 3)
    assert outcome(ask(pdp, "delete"))[0] == "STEP_UP"
    assert live.counts()["approvals"] == 0


def test_two_callers_cannot_use_one_approval_twice() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    for turn in range(50):
        evaluation = ask(pdp, "delete").evaluation_id
        live.apply([approval(live, evaluation, id=f"a{turn}")], 2 + turn)
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(outcome(ask(pdp, "delete"))[0]))  # noqa: B023
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found.count("ALLOW") == 1


def test_a_call_that_was_not_executed_gives_its_approval_back() -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    live.apply([approval(live, ask(pdp, "delete").evaluation_id)], 2)
    used = ask(pdp, "delete").evaluation_id
    assert live.uses("a1") == 0
    assert report(pdp, used, executed=False) == SETTLED
    assert live.uses("a1") == 1
    assert outcome(ask(pdp, "delete")) == ALLOW


def test_break_glass_crosses_what_is_not_never() -> None:
    """An emergency goes past a hard forbid and asks for a review; past `@never` it does not."""
    live = make_live(task())
    pdp = make_pdp(live)
    for number, (tool, after) in enumerate([("frozen", "ALLOW"), ("sealed", "DENY")]):
        answer = ask(pdp, tool=f"files/{tool}")
        assert outcome(answer)[0] == "DENY"
        asked = live.step_up(answer.evaluation_id)
        assert asked is not None
        assert asked["emergency_only"]
        live.apply([approval(live, answer.evaluation_id, id=f"a{number}", break_glass=True)], 2 + number)
        answer = ask(pdp, tool=f"files/{tool}")
        assert (outcome(answer)[0], answer.obligation) == (after, "review" if after == "ALLOW" else "")


def test_a_caller_under_step_up_needs_an_approval_for_everything() -> None:
    live = make_live(task(), revoke("agent", AGENT, "step_up"))
    pdp = make_pdp(live)
    answer = ask(pdp)
    assert (outcome(answer), answer.obligation) == (("STEP_UP", "revoked.step_up"), "approval")
    live.apply([approval(live, answer.evaluation_id)], 2)
    assert outcome(ask(pdp)) == ALLOW


@pytest.mark.parametrize("grant_scope", ["exact", "class"])
def test_what_was_approved_before_a_step_up_is_asked_again(grant_scope: str) -> None:
    """Whoever approved it did not know of what the revocation is about. Made longer, it asks again, too."""
    live = make_live(task())
    pdp = make_pdp(live)
    asked = ask(pdp, "delete").evaluation_id
    for number, mode in enumerate(("step_up", "deny", "step_up")):
        at_ns = NOW + 2 * number
        more = {"uses": 9, "scope": grant_scope, "id": f"a{number}"}
        live.apply([approval(live, asked, **more, decided_unix_ns=at_ns)], 2 + number)
        assert outcome(ask(pdp, "delete")) == ALLOW
        live.apply([revoke("agent", AGENT, mode, revoked_unix_ns=at_ns + 1)], 3 + number)
        if mode == "deny":
            live.apply([("lift", {"kind": "agent", "key": AGENT, "mode": mode})], 4 + number)
            assert outcome(ask(pdp, "delete")) == ALLOW
        else:
            assert outcome(ask(pdp, "delete")) == ("STEP_UP", "approval.required")
            assert outcome(ask(pdp)) == ("STEP_UP", "revoked.step_up")


# ------------------------------------------------------------ what the control plane gives


@pytest.mark.parametrize(
    "change",
    [
        ("tusk", {}),
        task("x" * 65),
        task(scope=scope(arg_rules=[{"path": "a", "op": "like", "values": ["b"]}])),
        task(scope=scope(arg_rules=[{"path": "a", "op": "cidr", "values": ["10.0.0.0/33"]}])),
        task(scope=scope(arg_rules=[{"path": "a", "op": "range", "values": [1]}])),
    ],
)
def test_a_change_that_cannot_be_read_changes_nothing(change: tuple[str, dict[str, Any]]) -> None:
    live = make_live()
    with pytest.raises(Exception, match=r".") as error:
        live.apply([task(), revoke("agent", AGENT), ("owner", {"id": OWNER, "active": False}), change], 9)
    assert type(error.value).__name__ == "ProtocolError"
    assert live.epoch == 1
    assert live.counts() == {"tasks": 0, "revocations": 0, "owners": 0, "approvals": 0}


def test_what_is_prepared_is_in_force_once_put_and_not_before() -> None:
    """What one command grants, another of the same commit may take out again; all of it comes with one epoch."""
    live = make_live(task())
    pdp = make_pdp(live)
    answer = ask(pdp, "delete")
    granted = approval(live, answer.evaluation_id)
    changes = [
        live.prepare([granted]),
        live.prepare([revoke("tool", "files/frozen"), ("owner", {"id": OWNER, "active": False})]),
        live.prepare([("approval", {**granted[1], "state": "revoked"}), task("t2")]),
    ]
    assert live.counts() == {"tasks": 1, "revocations": 0, "owners": 0, "approvals": 0}
    live.put(changes, 7)
    assert live.epoch == 7
    assert live.counts() == {"tasks": 2, "revocations": 1, "owners": 1, "approvals": 0}
    assert live.uses(granted[1]["id"]) is None


@pytest.mark.parametrize("wrong", ["again", "other", "granted twice"])
def test_changes_are_put_once_into_the_view_that_they_were_prepared_for(wrong: str) -> None:
    live = make_live(task())
    pdp = make_pdp(live)
    granted = approval(live, ask(pdp, "delete").evaluation_id)
    changes = [live.prepare([granted])]
    if wrong == "again":
        live.put(changes, 2)
    elif wrong == "other":
        live = make_live()
    else:
        changes.append(live.prepare([granted]))
    before = live.counts()
    with pytest.raises(ProtocolError):
        live.put(changes, 3)
    assert (live.counts(), live.epoch) == (before, 2 if wrong == "again" else 1)


def test_changes_that_are_never_put_leave_nothing() -> None:
    live = make_live(task())
    for _ in range(100):
        live.prepare([task("t2"), revoke("class", "worker"), ("owner", {"id": OWNER, "active": False})])
    assert live.counts() == {"tasks": 1, "revocations": 0, "owners": 0, "approvals": 0}
    assert outcome(ask(make_pdp(live))) == ALLOW
