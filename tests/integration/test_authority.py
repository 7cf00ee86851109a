"""The authority services of a whole sidecar, asked over its sockets, and what its doors then decide."""

import copy
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from sidecar._proto.remit.authority.v1 import (
    agents_pb2,
    approvals_pb2,
    owners_pb2,
    revocations_pb2,
    state_pb2,
    tasks_pb2,
)
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.decisions.tail import tail_directory
from sidecar.demo.processes import wait_for
from tests.fix_serve import AGENT, OTHER, Served, check, made_sidecar, outcome, question
from tests.fix_store import ENTITIES, POLICY, Stubs, as_caller, everything, opening, with_authority

AGENT_KIND = revocations_pb2.REVOCATION_KIND_AGENT
TIMEOUT_S = 30
FREE = "forbid (principal, action, resource)\nwhen { context.task.present }\nunless"


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """One sidecar for all tests that leave nothing behind."""
    with made_sidecar() as made:
        with_authority(made)
        made.start_ready()
        yield made


@pytest.fixture
def own() -> Iterator[Served]:
    """A sidecar of the test's own, not started yet."""
    with made_sidecar() as made:
        yield with_authority(made)


@pytest.fixture
def served(shared: Served) -> Iterator[Served]:
    yield shared
    with as_caller(shared) as alice:
        for task in alice.tasks.List(tasks_pb2.ListTasksRequest()).tasks:
            if not task.parent:
                alice.tasks.Cancel(tasks_pb2.ChangeTaskRequest(id=task.id))
        for row in alice.revocations.List(revocations_pb2.ListRevocationsRequest()).revocations:
            alice.revocations.Lift(revocations_pb2.LiftRequest(kind=row.kind, key=row.key, mode=row.mode))
        for owner in alice.owners.List(owners_pb2.ListOwnersRequest()).owners:
            if not owner.active:
                with as_caller(shared, "carol") as carol:
                    carol.owners.Enable(owners_pb2.ChangeOwnerRequest(id=owner.id))


def refused(call: Callable[[], object]) -> tuple[str, str]:
    """(status, text) of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


def records(served: Served) -> list[decisions_pb2.Record]:
    """What stands in the journal so far."""
    found = tail_directory(served.folder / "journal", from_start=True, follow=False, stop=threading.Event())
    return [decisions_pb2.Record.FromString(payload) for _, payload in found]


def events(served: Served) -> list[tuple[str, str]]:
    """(name, detail) of the events in the journal so far."""
    return [(record.event.name, record.event.detail) for record in records(served) if record.HasField("event")]


# ---------------------------------------------------------------- what a call needs


def test_an_agent_may_do_what_its_open_task_covers_and_nothing_after(served: Served) -> None:
    """Row 7: no task, no allow; after Complete no call is allowed."""
    with as_caller(served) as alice, served.agent_socket() as agent, served.agent_socket("other") as other:
        assert outcome(agent, question())[0] == "DENY"
        scope = tasks_pb2.Scope(tools=["docs/search"], actions=["read"], any_destination=True, max_level=1)
        task = alice.tasks.Open(opening(scope=scope))
        assert outcome(agent, question()) == ("ALLOW", "ok")
        assert outcome(agent, question(action="write"))[0] == "DENY"
        assert outcome(other, question())[0] == "DENY"
        assert outcome(other, question(task=task.id))[0] == "DENY"
        alice.tasks.Suspend(tasks_pb2.ChangeTaskRequest(id=task.id))
        assert outcome(agent, question(task=task.id))[0] == "DENY"
        alice.tasks.Resume(tasks_pb2.ChangeTaskRequest(id=task.id))
        assert outcome(agent, question(task=task.id))[0] == "ALLOW"
        closed = alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id, reason="done"))
        assert (list(closed.closed), closed.task.close_reason) == ([task.id], "done")
        assert outcome(agent, question(task=task.id))[0] == "DENY"


def test_a_child_may_do_what_every_task_of_its_chain_covers(served: Served) -> None:
    """Row 12: delegated by the agent itself, with budgets drawn from its own and given back."""
    with (
        as_caller(served) as alice,
        as_caller(served, "asks-a") as agent,
        as_caller(served, "asks-b") as child_agent,
        served.agent_socket("other") as door,
    ):
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=10)))
        asked = tasks_pb2.DelegateTaskRequest(
            parent=task.id, agent=OTHER, scope=everything(), budgets=tasks_pb2.Budgets(calls=4)
        )
        assert refused(lambda: child_agent.tasks.Delegate(asked))[0] == "PERMISSION_DENIED"
        child = agent.tasks.Delegate(asked)
        assert (child.depth, list(child.chain), child.owner) == (1, [AGENT, OTHER], "alice")
        assert outcome(door, question()) == ("ALLOW", "ok")
        assert alice.tasks.Get(tasks_pb2.GetTaskRequest(id=child.id)).left.calls == 3
        assert alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left.calls == 6
        alice.tasks.Suspend(tasks_pb2.ChangeTaskRequest(id=task.id))
        assert outcome(door, question())[0] == "DENY"
        alice.tasks.Resume(tasks_pb2.ChangeTaskRequest(id=task.id))
        closed = child_agent.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=child.id))
        assert closed.refunded.calls == 3
        assert alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left.calls == 9
        wider = tasks_pb2.DelegateTaskRequest(parent=task.id, agent=OTHER, scope=everything())
        assert refused(lambda: agent.tasks.Delegate(wider))[0] == "INVALID_ARGUMENT"


def test_a_budget_is_spent_call_by_call(served: Served) -> None:
    with as_caller(served) as alice, served.agent_socket() as agent:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=2)))
        answers = [outcome(agent, question())[0] for _ in range(3)]
        assert answers == ["ALLOW", "ALLOW", "DENY"]
        shown = alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id))
        assert (shown.left.calls, shown.granted.calls, shown.left.HasField("cost")) == (0, 2, False)
        narrowed = alice.tasks.Narrow(tasks_pb2.NarrowTaskRequest(id=task.id, ttl_s=5))
        assert narrowed.expires_unix_ns < task.expires_unix_ns


def test_a_revocation_is_in_force_when_it_is_answered(served: Served) -> None:
    """Row 8: deny, read-only and step-up; from the next call on."""
    with as_caller(served, "carol") as carol, as_caller(served) as alice, served.agent_socket() as agent:
        alice.tasks.Open(opening())
        assert outcome(agent, question())[0] == "ALLOW"
        done = carol.revocations.Revoke(
            revocations_pb2.RevokeRequest(kind=AGENT_KIND, key=AGENT, reason="odd transfers")
        )
        assert outcome(agent, question()) == ("DENY", "revoked.agent")
        (row,) = alice.revocations.List(revocations_pb2.ListRevocationsRequest()).revocations
        assert (row.key, row.reason, row.revoked_by, row.epoch) == (AGENT, "odd transfers", "carol", done.epoch)
        assert alice.agents.Show(agents_pb2.ShowAgentRequest(agent=AGENT)).verdict == "agent is revoked"
        carol.revocations.Lift(revocations_pb2.LiftRequest(kind=AGENT_KIND, key=AGENT))
        assert outcome(agent, question())[0] == "ALLOW"
        step_up = revocations_pb2.RevokeRequest(
            kind=revocations_pb2.REVOCATION_KIND_TOOL, key="docs/search", mode=revocations_pb2.REVOCATION_MODE_STEP_UP
        )
        carol.revocations.Revoke(step_up)
        assert outcome(agent, question())[0] == "STEP_UP"
        assert served.status().revocation_epoch == done.epoch + 2
        text = served.http("/metrics")[1]
        assert "remit_revocation_effect_seconds_count" in text


def test_no_call_that_starts_after_a_revocation_was_answered_is_allowed(served: Served) -> None:
    """RT-03: of a history of calls and revocations, no call within a revocation's time in force was allowed."""
    with as_caller(served) as alice:
        alice.tasks.Open(opening())
        stop = threading.Event()
        allowed: list[tuple[int, int]] = []
        denied: list[tuple[int, int]] = []

        def ask() -> None:
            with served.agent_socket() as agent:
                while not stop.is_set():
                    began = time.monotonic_ns()
                    answer = outcome(agent, question())[0]
                    (allowed if answer == "ALLOW" else denied).append((began, time.monotonic_ns()))

        callers = [threading.Thread(target=ask) for _ in range(3)]
        for caller in callers:
            caller.start()
        in_force: list[tuple[int, int]] = []
        for _ in range(20):
            calls = len(allowed)
            wait_for("calls", lambda calls=calls: len(allowed) > calls)
            alice.revocations.Revoke(revocations_pb2.RevokeRequest(kind=AGENT_KIND, key=AGENT))
            acknowledged, calls = time.monotonic_ns(), len(denied)
            wait_for("denials", lambda calls=calls: len(denied) > calls + 3)
            in_force.append((acknowledged, time.monotonic_ns()))
            alice.revocations.Lift(revocations_pb2.LiftRequest(kind=AGENT_KIND, key=AGENT))
        stop.set()
        for caller in callers:
            caller.join()
        assert not [call for call in allowed for begin, end in in_force if begin <= call[0] and call[1] <= end]


def test_a_disabled_owner_stops_every_agent_they_answer_for(served: Served) -> None:
    """Row 21."""
    with as_caller(served) as alice, as_caller(served, "carol") as carol, served.agent_socket() as agent:
        alice.tasks.Open(opening())
        assert outcome(agent, question())[0] == "ALLOW"
        assert not carol.owners.Disable(owners_pb2.ChangeOwnerRequest(id="alice", reason="left")).active
        assert outcome(agent, question())[0] == "DENY"
        assert refused(lambda: alice.tasks.Open(opening()))[0] == "FAILED_PRECONDITION"
        assert alice.agents.Show(agents_pb2.ShowAgentRequest(agent=AGENT)).verdict == "the agent's owner is disabled"
        assert refused(lambda: alice.owners.Enable(owners_pb2.ChangeOwnerRequest(id="alice")))[0] == "PERMISSION_DENIED"
        carol.owners.Enable(owners_pb2.ChangeOwnerRequest(id="alice"))
        assert outcome(agent, question())[0] == "ALLOW"


def test_the_view_of_an_agent_counts_who_answers_for_the_agent_itself(own: Served) -> None:
    """Its tasks may be somebody else's: no active owner on agent and task, no allow."""
    entities = copy.deepcopy(ENTITIES)
    next(one for one in entities if one["uid"]["id"] == AGENT)["attrs"]["owner"]["__entity"]["id"] = "dora"
    (own.folder / "entities.json").write_text(json.dumps(entities))
    own.start_ready()
    with as_caller(own) as alice, as_caller(own, "carol") as carol, own.agent_socket() as agent:
        alice.tasks.Open(opening(owner="alice"))

        def shown() -> tuple[str, str]:
            found = alice.agents.Show(agents_pb2.ShowAgentRequest(agent=AGENT))
            assert bool(found.verdict) == (outcome(agent, question())[0] != "ALLOW")
            return found.owner, found.verdict

        assert shown() == ("dora", "")
        carol.owners.Disable(owners_pb2.ChangeOwnerRequest(id="dora"))
        assert shown() == ("dora", "the agent's owner is disabled")
        carol.owners.Enable(owners_pb2.ChangeOwnerRequest(id="dora"))
        carol.revocations.Revoke(revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_OWNER, key="dora"))
        assert shown() == ("dora", "the agent's owner is revoked")
        carol.revocations.Lift(revocations_pb2.LiftRequest(kind=revocations_pb2.REVOCATION_KIND_OWNER, key="dora"))
        (own.folder / "entities.json").write_text(json.dumps([one for one in entities if one["uid"]["id"] != "dora"]))
        own.reload()
        assert shown() == ("dora", "the agent's owner is disabled")
        (own.folder / "entities.json").write_text(json.dumps([one for one in entities if one["uid"]["id"] != AGENT]))
        own.reload()
        assert shown() == ("", "nobody answers for the agent")


# ---------------------------------------------------------------- approvals


def ask_for(agent: Stubs, evaluation_id: str, **more: object) -> approvals_pb2.Approval:
    return agent.approvals.Request(
        approvals_pb2.RequestApprovalRequest(evaluation_id=evaluation_id, justification="please", **more)
    )


def test_an_approval_lets_exactly_one_call_through(served: Served) -> None:
    """Rows 17 to 19: STEP_UP, a question from its evaluation id, an independent decision, single use."""
    with (
        as_caller(served) as alice,
        as_caller(served, "bob") as bob,
        as_caller(served, "dora") as dora,
        as_caller(served, "asks-a") as agent,
        as_caller(served, "asks-b") as stranger,
        served.agent_socket() as door,
    ):
        alice.tasks.Open(opening())
        answer = check(door, question(action="delete"))
        assert answer.reason == "approval.required"
        assert refused(lambda: ask_for(stranger, answer.evaluation_id))[0] == "PERMISSION_DENIED"
        row = ask_for(agent, answer.evaluation_id)
        assert ask_for(agent, answer.evaluation_id).id == row.id
        assert (row.action, row.resource, row.owner, row.approver) == ("delete", "Tool::docs/search", "alice", "alice")
        (waiting,) = bob.approvals.List(approvals_pb2.ListApprovalsRequest(approver="alice")).approvals
        assert waiting.id == row.id
        decide = approvals_pb2.DecideApprovalRequest(id=row.id, approve=True, expected_digest=row.digest)
        assert refused(lambda: agent.approvals.Decide(decide))[0] == "PERMISSION_DENIED"
        assert refused(lambda: dora.approvals.Decide(decide))[0] == "PERMISSION_DENIED"
        granted = bob.approvals.Decide(decide)
        assert (granted.state, granted.decided_by) == (approvals_pb2.APPROVAL_STATE_GRANTED, "bob")
        assert agent.approvals.Get(approvals_pb2.GetApprovalRequest(id=row.id)).uses_left == 1
        assert outcome(door, question(action="delete", arguments={"a": 1}))[0] == "STEP_UP"
        assert outcome(door, question(action="delete"))[0] == "ALLOW"
        assert outcome(door, question(action="delete"))[0] == "STEP_UP"
        assert agent.approvals.Get(approvals_pb2.GetApprovalRequest(id=row.id)).uses_left == 0
        unknown = refused(lambda: ask_for(agent, "0" * 32))
        assert unknown[0] == "NOT_FOUND"
        assert "make the call again" in unknown[1]


def test_an_approval_ends_with_its_task(served: Served) -> None:
    with as_caller(served) as alice, as_caller(served, "bob") as bob, served.agent_socket() as door:
        task = alice.tasks.Open(opening())
        answer = check(door, question(action="delete"))
        row = ask_for(alice, answer.evaluation_id)
        bob.approvals.Decide(approvals_pb2.DecideApprovalRequest(id=row.id, approve=True, uses=5))
        closed = alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id))
        assert list(closed.undone_approvals) == [row.id]
        alice.tasks.Open(opening())
        assert outcome(door, question(action="delete"))[0] == "STEP_UP"


def test_breaking_the_glass_needs_the_role_and_leaves_a_review(served: Served) -> None:
    """Row 29."""
    with (
        as_caller(served) as alice,
        as_caller(served, "carol") as carol,
        as_caller(served, "asks-a") as agent,
        served.agent_socket() as door,
    ):
        alice.tasks.Open(opening())
        answer = check(door, question(action="delete"))
        for other in (alice, agent):
            assert refused(lambda who=other: ask_for(who, answer.evaluation_id, emergency=True))[0] == (
                "PERMISSION_DENIED"
            )
        row = ask_for(carol, answer.evaluation_id, emergency=True)
        assert row.break_glass
        assert outcome(door, question(action="delete"))[0] == "ALLOW"
        due = approvals_pb2.ListApprovalsRequest(review_due=True)
        assert [one.id for one in alice.approvals.List(due).approvals] == [row.id]
        alice.approvals.Review(approvals_pb2.ReviewApprovalRequest(id=row.id, comment="as said"))
        assert not alice.approvals.List(due).approvals


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        ("control", {"open", "delegate", "revoke", "disable", "backup"}),
        ("bob", set()),
        ("carol", {"revoke", "disable"}),
        ("dora", set()),
        ("asks-a", {"delegate"}),
        ("asks-b", set()),
        ("orchestrator", {"open", "delegate"}),
    ],
)
def test_each_caller_may_do_what_the_policies_say(
    served: Served, tmp_path: pathlib.Path, who: str, allowed: set[str]
) -> None:
    """Row 17: the matrix of callers and operations; a refusal is PERMISSION_DENIED and says which policy decided."""
    with as_caller(served) as alice, as_caller(served, who) as caller:
        task = alice.tasks.Open(opening())
        tries: dict[str, Callable[[], object]] = {
            "open": lambda: caller.tasks.Open(opening()),
            "delegate": lambda: caller.tasks.Delegate(
                tasks_pb2.DelegateTaskRequest(parent=task.id, agent=OTHER, scope=everything())
            ),
            "resume": lambda: caller.tasks.Resume(tasks_pb2.ChangeTaskRequest(id=task.id)),
            "revoke": lambda: caller.revocations.Revoke(
                revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_TOOL, key="mail/send")
            ),
            "disable": lambda: caller.owners.Disable(owners_pb2.ChangeOwnerRequest(id="dora")),
            "backup": lambda: caller.state.Backup(state_pb2.BackupRequest(directory=str(tmp_path / "copy"))),
        }
        done: set[str] = set()
        codes: set[tuple[str, str]] = set()
        for name, attempt in tries.items():
            try:
                attempt()
                done.add(name)
            except grpc.RpcError as error:
                codes.add((name, error.code().name))
        assert done == allowed
        # The task is open: whoever may resume it is told so.
        state = {("resume", "FAILED_PRECONDITION")} if who == "control" else {("resume", "PERMISSION_DENIED")}
        assert codes == state | {(name, "PERMISSION_DENIED") for name in tries.keys() - allowed - {"resume"}}


def test_an_agent_opens_nothing_for_itself_whatever_the_policies_say(own: Served) -> None:
    """Row 17: no policy can give it."""
    (own.folder / "open.cedar").write_text('@id("all") permit (principal, action, resource);')
    own.settings["authority"]["policies"] = ["open.cedar"]
    own.start_ready()
    with as_caller(own, "asks-a") as agent, as_caller(own, "asks-b") as other:
        wait_for("the policies", lambda: _answers(lambda: other.tasks.List(tasks_pb2.ListTasksRequest())))
        code, text = refused(lambda: agent.tasks.Open(opening()))
        assert code == "PERMISSION_DENIED"
        assert "cannot open a task for itself" in text
        task = other.tasks.Open(opening())
        other.tasks.Suspend(tasks_pb2.ChangeTaskRequest(id=task.id))
        assert refused(lambda: agent.tasks.Resume(tasks_pb2.ChangeTaskRequest(id=task.id)))[0] == "PERMISSION_DENIED"


def test_nobody_lifts_the_revocation_of_a_class_that_they_are_in_whatever_the_policies_say(own: Served) -> None:
    """The entities in force say who is in it, also through other classes."""
    (own.folder / "lift.cedar").write_text('@id("all") permit (principal, action, resource);')
    own.settings["authority"]["policies"] = ["lift.cedar"]
    rows = copy.deepcopy(ENTITIES)
    rows += [
        {"uid": {"type": "AgentClass", "id": "workers"}, "attrs": {}, "parents": []},
        {
            "uid": {"type": "AgentClass", "id": "clerks"},
            "attrs": {},
            "parents": [{"type": "AgentClass", "id": "workers"}],
        },
    ]
    next(row for row in rows if row["uid"]["id"] == AGENT)["parents"] = [{"type": "AgentClass", "id": "clerks"}]
    (own.folder / "entities.json").write_text(json.dumps(rows))
    own.start_ready()
    kind = revocations_pb2.REVOCATION_KIND_CLASS
    with as_caller(own, "asks-a") as agent, as_caller(own, "asks-b") as other:
        wait_for("the policies", lambda: _answers(lambda: other.tasks.List(tasks_pb2.ListTasksRequest())))
        for name in ("clerks", "workers", "others"):
            agent.revocations.Revoke(revocations_pb2.RevokeRequest(kind=kind, key=name))
        for name in ("clerks", "workers"):
            code, text = refused(
                lambda key=name: agent.revocations.Lift(revocations_pb2.LiftRequest(kind=kind, key=key))
            )
            assert (code, "of themselves" in text) == ("PERMISSION_DENIED", True)
            other.revocations.Lift(revocations_pb2.LiftRequest(kind=kind, key=name))
        agent.revocations.Lift(revocations_pb2.LiftRequest(kind=kind, key="others"))


def _answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True


def test_a_user_of_the_machine_who_is_nobody_is_refused_by_name_of_the_field(own: Served) -> None:
    """The control socket tells its callers apart by the kernel's word."""
    own.settings["authority"]["people"][0]["uids"] = [60_000]
    own.start_ready()
    with as_caller(own) as caller:
        code, text = refused(lambda: caller.tasks.List(tasks_pb2.ListTasksRequest()))
    assert code == "PERMISSION_DENIED"
    assert "is nobody in `authority.people`" in text
    assert own.status().ready  # the operator's own services are not concerned


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (opening(agent="clerk"), "INVALID_ARGUMENT", "`agent`"),
        (opening(ttl_s=0), "INVALID_ARGUMENT", "`ttl_s`"),
        (opening(budgets=tasks_pb2.Budgets(calls=-1)), "INVALID_ARGUMENT", "`budgets.calls`"),
        (
            opening(scope=tasks_pb2.Scope(arg_rules=[tasks_pb2.ArgRule(tool="t", path="p", values=["1"])])),
            "INVALID_ARGUMENT",
            "`scope.arg_rules[0].op`",
        ),
        (
            opening(
                scope=tasks_pb2.Scope(
                    arg_rules=[tasks_pb2.ArgRule(tool="t", path="p", op=tasks_pb2.ARG_OP_RANGE, values=["1", "x"])]
                )
            ),
            "INVALID_ARGUMENT",
            "`scope.arg_rules[0].values`",
        ),
        (opening(idempotency_key="x" * 200), "INVALID_ARGUMENT", "`idempotency_key`"),
    ],
)
def test_a_refusal_names_the_field(served: Served, request_: tasks_pb2.OpenTaskRequest, code: str, text: str) -> None:
    with as_caller(served) as alice:
        status, said = refused(lambda: alice.tasks.Open(request_))
    assert status == code
    assert text in said


def test_a_scope_comes_back_as_it_was_sent(served: Served) -> None:
    """Every axis, with values of every type."""
    scope = tasks_pb2.Scope(
        tools=["bank/*"],
        tool_groups=["money"],
        actions=["send"],
        destinations=["*.example.org"],
        zones=["internal"],
        max_level=2,
        label_allow=tasks_pb2.Names(names=["pii"]),
        label_deny=["secret"],
        methods=tasks_pb2.Names(),
        arg_rules=[
            tasks_pb2.ArgRule(tool="bank/pay", path="amount", op=tasks_pb2.ARG_OP_RANGE, values=["0", ""]),
            tasks_pb2.ArgRule(path="to", op=tasks_pb2.ARG_OP_IN, values=['"5"', "5", "true", '"x y"']),
            tasks_pb2.ArgRule(path="url", op=tasks_pb2.ARG_OP_HOST_SUFFIX, values=["example.org"]),
            tasks_pb2.ArgRule(path="ip", op=tasks_pb2.ARG_OP_CIDR, values=["10.0.0.0/8"]),
        ],
    )
    with as_caller(served) as alice:
        task = alice.tasks.Open(opening(scope=scope))
        assert alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).scope == scope


def test_a_repeated_key_is_answered_again_and_a_stale_rev_is_refused(served: Served) -> None:
    """RT-08."""
    with as_caller(served) as alice:
        task = alice.tasks.Open(opening(idempotency_key="k1"))
        assert alice.tasks.Open(opening(idempotency_key="k1")) == task
        assert refused(lambda: alice.tasks.Open(opening(idempotency_key="k1", ttl_s=5)))[0] == "ALREADY_EXISTS"
        change = tasks_pb2.ChangeTaskRequest(id=task.id, expected_rev=7)
        assert refused(lambda: alice.tasks.Suspend(change))[0] == "ABORTED"
        assert refused(lambda: alice.tasks.Resume(tasks_pb2.ChangeTaskRequest(id=task.id)))[0] == "FAILED_PRECONDITION"


def test_a_key_that_was_used_for_one_change_does_not_answer_another(served: Served) -> None:
    """Requests that suspend, resume and end a task look alike; so do those that disable and enable an owner."""
    with as_caller(served) as alice, as_caller(served, "carol") as carol:
        change = tasks_pb2.ChangeTaskRequest(id=alice.tasks.Open(opening()).id, idempotency_key="once")
        alice.tasks.Suspend(change)
        assert alice.tasks.Resume(change).state == tasks_pb2.TASK_STATE_OPEN
        assert list(alice.tasks.Cancel(change).closed) == [change.id]
        owner = owners_pb2.ChangeOwnerRequest(id="bob", idempotency_key="once")
        assert not carol.owners.Disable(owner).active
        assert carol.owners.Enable(owner).active


def test_a_page_token_that_is_none_is_refused_by_its_field(served: Served) -> None:
    with as_caller(served) as alice:
        for token in ("!", "é", "A" * 4, "A" * 800, "QQ"):
            request = tasks_pb2.ListTasksRequest(agent=AGENT, page_token=token)
            code, text = refused(lambda asked=request: alice.tasks.List(asked))
            assert (code, "page_token" in text) == ("INVALID_ARGUMENT", True), token
        whole = tasks_pb2.ListTasksRequest(page_token="A" * 800)
        assert refused(lambda: alice.tasks.List(whole))[0] == "INVALID_ARGUMENT"


def test_lists_come_in_pages_and_by_agent_owner_parent_and_state(served: Served) -> None:
    with as_caller(served) as alice:
        made = [alice.tasks.Open(opening(AGENT if n % 2 else OTHER)).id for n in range(7)]
        child = alice.tasks.Delegate(tasks_pb2.DelegateTaskRequest(parent=made[0], agent=AGENT, scope=everything()))
        alice.tasks.Cancel(tasks_pb2.ChangeTaskRequest(id=made[6]))
        seen: list[str] = []
        token = ""
        pages = 0
        while True:
            page = alice.tasks.List(tasks_pb2.ListTasksRequest(page_size=3, page_token=token))
            seen += [task.id for task in page.tasks]
            assert len(page.tasks) <= 3
            token, pages = page.next_page_token, pages + 1
            if not token:
                break
        assert sorted(seen) == sorted([*made[:6], child.id])
        assert pages >= 3

        def ids(**asked: object) -> set[str]:
            return {task.id for task in alice.tasks.List(tasks_pb2.ListTasksRequest(**asked)).tasks}

        assert ids(agent=AGENT) == {*made[1:6:2], child.id}
        assert ids(parent=made[0]) == {child.id}
        assert ids(owner="nobody") == set()
        assert ids(owner="alice", agent=OTHER) == set(made[0:6:2])
        assert made[6] in ids(state=tasks_pb2.TASK_STATE_CANCELLED)
        bad = tasks_pb2.ListTasksRequest(page_token="nonsense!")
        assert refused(lambda: alice.tasks.List(bad))[0] == "INVALID_ARGUMENT"
        assert refused(lambda: alice.tasks.List(tasks_pb2.ListTasksRequest(page_size=5000)))[0] == "INVALID_ARGUMENT"


# ---------------------------------------------------------------- watching


def test_a_watch_begins_with_what_is_and_goes_on_with_what_changes(served: Served) -> None:
    """A snapshot between its marks, then changes with their epoch, and beats that say how far."""
    with as_caller(served) as alice:
        task = alice.tasks.Open(opening())
        stream = alice.tasks.Watch(tasks_pb2.WatchTasksRequest(), timeout=TIMEOUT_S)
        assert next(stream).snapshot == tasks_pb2.SNAPSHOT_MARK_BEGIN
        assert next(stream).put.id == task.id
        end = next(stream)
        assert end.snapshot == tasks_pb2.SNAPSHOT_MARK_END
        alice.tasks.Suspend(tasks_pb2.ChangeTaskRequest(id=task.id))
        changes = [change for change in _until_beat(stream, end.epoch + 1) if change.HasField("put")]
        assert [(c.epoch, c.put.state) for c in changes] == [(end.epoch + 1, tasks_pb2.TASK_STATE_SUSPENDED)]
        stream.cancel()
        # Going on from an epoch that is still kept, there is no snapshot, but first whose epoch it is.
        again = alice.tasks.Watch(tasks_pb2.WatchTasksRequest(from_epoch=end.epoch), timeout=TIMEOUT_S)
        first = next(again)
        assert (first.epoch, len(first.store), first.WhichOneof("change")) == (end.epoch, 32, None)
        assert next(again).put.state == tasks_pb2.TASK_STATE_SUSPENDED
        again.cancel()


def _until_beat(stream: Iterator[tasks_pb2.TasksChange], epoch: int) -> Iterator[tasks_pb2.TasksChange]:
    for change in stream:
        if change.HasField("beat") and change.epoch >= epoch:
            assert change.beat.interval_ms == 100
            return
        yield change


def test_revocations_approvals_and_owners_are_watched_as_well(served: Served) -> None:
    with as_caller(served) as alice:
        streams = (
            alice.revocations.Watch(revocations_pb2.WatchRevocationsRequest(), timeout=TIMEOUT_S),
            alice.owners.Watch(owners_pb2.WatchOwnersRequest(), timeout=TIMEOUT_S),
            alice.approvals.Watch(approvals_pb2.WatchApprovalsRequest(), timeout=TIMEOUT_S),
        )
        for stream in streams:
            assert next(stream).snapshot == tasks_pb2.SNAPSHOT_MARK_BEGIN
        revoked = alice.revocations.Revoke(revocations_pb2.RevokeRequest(kind=AGENT_KIND, key=AGENT))
        alice.revocations.Lift(revocations_pb2.LiftRequest(kind=AGENT_KIND, key=AGENT))
        alice.owners.Disable(owners_pb2.ChangeOwnerRequest(id="dora"))
        found = [next(c for c in streams[0] if c.HasField("put") and c.put.key == AGENT)]
        found.append(next(c for c in streams[0] if c.HasField("lifted")))
        assert [c.epoch for c in found] == [revoked.epoch, revoked.epoch + 1]
        assert next(c for c in streams[1] if c.HasField("put") and c.epoch > revoked.epoch).put.id == "dora"
        assert next(c for c in streams[2] if c.HasField("beat")).epoch >= revoked.epoch
        for stream in streams:
            stream.cancel()


# ---------------------------------------------------------------- records and restarts


def test_who_did_what_stands_in_the_journal(served: Served) -> None:
    """Row 20: tasks, revocations, refusals and looks are events in the sequence of the decisions."""
    with as_caller(served) as alice, as_caller(served, "dora") as dora:
        task = alice.tasks.Open(opening())
        refused(lambda: dora.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)))
        alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id))
        alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id, reason="done"))
    found = events(served)
    opened = next(detail for name, detail in found if name == "task.opened" and task.id in detail)
    assert "by=alice" in opened
    assert AGENT in opened
    assert any(name == "authority.denied" and "by=dora" in detail for name, detail in found)
    assert any(name == "authority.looked" and "by=alice" in detail for name, detail in found)
    assert any(name == "task.completed" and "reason=done" in detail for name, detail in found)


def test_a_record_names_the_revision_of_the_task_that_it_was_decided_by(own: Served) -> None:
    """Row 20: a decision from before a task was narrowed, or handed on, is told from one after."""
    own.start_ready()
    with as_caller(own) as alice, own.agent_socket() as agent:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=20)))
        revs = []

        def call() -> None:
            assert outcome(agent, question(task=task.id))[0] == "ALLOW"
            revs.append(alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).rev)

        call()
        alice.tasks.Narrow(tasks_pb2.NarrowTaskRequest(id=task.id, ttl_s=60))
        call()
        asked = tasks_pb2.DelegateTaskRequest(
            parent=task.id, agent=OTHER, scope=everything(), budgets=tasks_pb2.Budgets(calls=2)
        )
        child = alice.tasks.Delegate(asked)
        call()
        alice.tasks.Cancel(tasks_pb2.ChangeTaskRequest(id=child.id))
        call()
        for change in (alice.tasks.Suspend, alice.tasks.Resume):
            change(tasks_pb2.ChangeTaskRequest(id=task.id))
        call()
    own.stop()
    assert revs == sorted(set(revs))
    assert [record.decision.task_rev for record in records(own) if record.decision.task == task.id] == revs


def test_an_approval_is_asked_for_a_call_that_needs_no_task(own: Served) -> None:
    """A class that a policy exempts has nobody's task to ask about: who answers for the agent decides."""
    free = '@id("free") @task("none") permit (principal, action == Action::"delete", resource);'
    own.policy.write_text(POLICY.replace("forbid (principal, action, resource)\nunless", FREE) + free)
    own.start_ready()
    with as_caller(own) as alice, as_caller(own, "asks-a") as asker, own.agent_socket() as agent:
        stepped = check(agent, question(action="delete"))
        assert authz_pb2.Outcome.Name(stepped.outcome) == "OUTCOME_STEP_UP"
        row = ask_for(asker, stepped.evaluation_id)
        assert (row.task, row.owner, row.approver) == ("", "alice", "alice")
        alice.approvals.Decide(approvals_pb2.DecideApprovalRequest(id=row.id, approve=True))
        assert outcome(agent, question(action="delete"))[0] == "ALLOW"
        assert outcome(agent, question(action="delete"))[0] == "STEP_UP"


def test_a_restart_finds_tasks_revocations_and_what_was_spent(own: Served) -> None:
    """RT-02, RT-10: after SIGKILL as after a stop."""
    process = own.start_ready()
    with as_caller(own) as alice, own.agent_socket() as agent:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=5)))
        assert [outcome(agent, question())[0] for _ in range(3)] == ["ALLOW"] * 3
        alice.revocations.Revoke(
            revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_TOOL, key="mail/send")
        )
    process.kill()
    own.start_ready()
    with as_caller(own) as alice, own.agent_socket() as agent:
        left = alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left.calls
        assert left == 2
        assert len(alice.revocations.List(revocations_pb2.ListRevocationsRequest()).revocations) == 1
        assert [outcome(agent, question())[0] for _ in range(3)] == ["ALLOW", "ALLOW", "DENY"]


def test_a_store_that_cannot_be_used_keeps_the_sidecar_from_deciding(own: Served) -> None:
    """RT-05: an error, not a denial and never an allow; and the status says why."""
    store = own.folder / "authority"
    store.mkdir(mode=0o700)
    (store / "manifest.json").write_text("{}")
    own.give_svid()
    own.start()
    wait_for("the reason", lambda: own.status().not_ready == "not_ready.authority")
    with own.agent_socket() as agent, as_caller(own) as alice:
        assert outcome(agent, question()) == ("UNAVAILABLE", "not_ready.authority")
        assert refused(lambda: alice.tasks.List(tasks_pb2.ListTasksRequest()))[0] == "UNAVAILABLE"
    assert any(line["event"] == "authority.not_loaded" for line in own.log())


def test_without_the_section_everything_is_as_it_was(own: Served) -> None:
    del own.settings["authority"]
    own.policy.write_text('@id("all") permit (principal, action, resource);')
    own.start_ready()
    with own.agent_socket() as agent, as_caller(own) as nobody:
        assert outcome(agent, question())[0] == "ALLOW"
        assert refused(lambda: nobody.tasks.List(tasks_pb2.ListTasksRequest()))[0] == "UNIMPLEMENTED"
    assert own.status().revocation_epoch == 0


# ---------------------------------------------------------------- the commands


def test_the_commands_work_and_say_what_is_wrong(own: Served) -> None:
    """What the README shows: open, look, narrow, delegate, revoke, approve, own, back up and restore."""
    own.start_ready()

    def run(*arguments: str, code: int = 0) -> str:
        done = own.remit(*arguments)
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stderr

    whole = ("--tool", "*", "--action", "*", "--dest", "*", "--level", "4")
    opened = run(
        "task", "open", "--agent", AGENT, "--owner", "alice", "--purpose", "tidy up", "--ttl", "10m", *whole,
        "--calls", "9", "--depth", "1", "--arg", "bank/pay amount range 0,5000",
    )  # fmt: skip
    task, state = opened.split()
    assert state == "open"
    child = run("task", "delegate", task, "--agent", OTHER, *whole, "--calls", "2", "--arg", "* amount range 0,50")
    shown = json.loads(run("task", "show", task, "--json"))
    assert (shown["left"]["calls"], shown["purpose"]) == ("7", "tidy up")
    text = run("task", "show", task)
    assert "bank/pay: amount range 0, 5000" in text
    assert "7/9 calls" in text
    assert "narrow" not in run("task", "narrow", task, "--calls", "3")
    assert {json.loads(line)["id"] for line in run("task", "list", "--json").splitlines()} == {task, child.split()[0]}
    run("task", "suspend", task)
    assert "suspended" in run("task", "list")
    run("task", "resume", task)
    assert "deny at epoch" in run("revoke", "agent", OTHER, "--reason", "odd")
    assert json.loads(run("revoke", "list", "--json"))["key"] == OTHER
    assert "agent is revoked" in run("agent", "show", OTHER)
    assert "tidy up" in run("agent", "show", AGENT)
    assert "lifted at epoch" in run("lift", "agent", OTHER)
    with own.agent_socket() as agent, as_caller(own, "asks-a") as asks:
        first = ask_for(asks, check(agent, question(action="delete")).evaluation_id)
        second = ask_for(asks, check(agent, question(action="delete", level=1)).evaluation_id)
        assert first.id in run("pending", "--json")
        assert "granted" in run("approve", first.id, "--uses", "2")
        assert outcome(agent, question(action="delete"))[0] == "ALLOW"
        if second.id != first.id:
            assert "denied" in run("deny", second.id, "--comment", "no")
    assert json.loads(run("agent", "show", AGENT, "--json"))["approvals"][0]["uses_left"] == 1
    assert "cancelled" in run("deny", first.id, "--granted", "--comment", "forged")
    assert json.loads(run("agent", "show", AGENT, "--json")).get("approvals", []) == []
    assert "disabled at epoch" in run("owner", "disable", "dora")
    assert json.loads(run("owner", "list", "--json"))["id"] == "dora"
    assert "active at epoch" in run("owner", "enable", "dora")
    assert "its parent got back 2/2 calls" in run("task", "complete", child.split()[0])
    assert "cancelled" in run("task", "cancel", task)
    copy = own.folder / "copy"
    assert "holds epoch" in run("authority", "backup", str(copy))
    assert "the sidecar is running" in run("authority", "restore", str(copy), code=3)
    assert "the sidecar is running" in run("authority", "trust-clock", code=3)
    assert "does not exist" in run("task", "show", "nope", code=1)
    assert "is nobody" not in run(
        "task", "open", "--agent", "x", "--owner", "a", "--purpose", "p", "--ttl", "1s", code=1
    )
    assert "is no duration" in run("task", "narrow", task, "--ttl", "soon", code=2)
    assert "write 'TOOL PATH OP VALUE" in run("task", "narrow", task, "--arg", "nonsense", code=2)
    own.stop()
    assert "does not answer" in run("task", "list", code=4)
    assert "is at epoch" in run("authority", "restore", str(copy))
    assert "goes by the clock" in run("authority", "trust-clock")
