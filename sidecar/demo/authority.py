"""The scenes of authority: what was allowed a moment ago is not any more, or is now, because people decided so."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from sidecar._proto.remit.authority.v1 import (
    approvals_pb2,
    approvals_pb2_grpc,
    owners_pb2,
    owners_pb2_grpc,
    revocations_pb2,
    revocations_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
)
from sidecar.client import budgets, scope
from sidecar.demo.calls import Answer, Caller
from sidecar.demo.processes import wait_for
from sidecar.demo.stage import AGENT_A, AGENT_B, OWNER, SECURITY, Stage

TIMEOUT_S = 15
LOAD_CALLERS = 2
CALLS_BETWEEN = 10
REVOCATIONS = 10
AGENT_KIND = revocations_pb2.REVOCATION_KIND_AGENT
EVERYTHING = scope(tools=["*"], actions=["*"], destinations=["*"], max_level=4)


class Desk:
    """The authority services as one person, or one agent, reaches them: by a socket that is theirs."""

    def __init__(self, stage: Stage, who: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{stage.authority_socket(who)}")
        self.tasks: Any = tasks_pb2_grpc.TasksStub(self._channel)
        self.approvals: Any = approvals_pb2_grpc.ApprovalsStub(self._channel)
        self.revocations: Any = revocations_pb2_grpc.RevocationsStub(self._channel)
        self.owners: Any = owners_pb2_grpc.OwnersStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def open(self, agent: str, purpose: str, **more: Any) -> tasks_pb2.Task:
        """Open a task for an agent, of everything unless said otherwise."""
        fields = {"owner": OWNER, "scope": EVERYTHING, "ttl_s": 3600, "max_depth": 2, **more}
        task: tasks_pb2.Task = self.tasks.Open(
            tasks_pb2.OpenTaskRequest(agent=agent, purpose=purpose, **fields), timeout=TIMEOUT_S
        )
        return task

    def complete(self, task: tasks_pb2.Task) -> None:
        self.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id, reason="the scene is over"), timeout=TIMEOUT_S)


@contextlib.contextmanager
def desk(stage: Stage, who: str) -> Iterator[Desk]:
    made = Desk(stage, who)
    try:
        yield made
    finally:
        made.close()


def open_standing_tasks(stage: Stage) -> None:
    """The work that alice and bob are at while the other scenes play."""
    with desk(stage, OWNER) as owner:
        for agent in (AGENT_A, AGENT_B):
            owner.open(agent, "what the demo shows")


def _named(task: tasks_pb2.Task) -> dict[str, str]:
    return {"x-agent-task": task.id}


def _balance(stage: Stage, who: str, task: tasks_pb2.Task | None = None) -> Answer:
    return Caller(stage, who).tool("get_balance", {"account": who}, headers=_named(task) if task else {})


# ------------------------------------------------------------ tasks


def task_ends(stage: Stage) -> str:
    """A task of its own, named in the call; completing it is one write."""
    with desk(stage, OWNER) as owner:
        task = owner.open(AGENT_A, "one balance")
        before = _balance(stage, "alice", task)
        owner.complete(task)
        return f"{before}, completed, {_balance(stage, 'alice', task)}"


def outside_scope(stage: Stage) -> str:
    """The policy allows both calls; the task covers only one."""
    with desk(stage, OWNER) as owner:
        limits = scope(tools=["bank/get_balance"], actions=["observe"], destinations=["bank"], max_level=2)
        task = owner.open(AGENT_A, "balances only", scope=limits)
        inside = _balance(stage, "alice", task)
        outside = Caller(stage, "alice").tool("send_money", {"recipient": "carol", "amount": 5}, headers=_named(task))
        owner.complete(task)
        return f"{inside}, {outside}"


def budget(stage: Stage) -> str:
    with desk(stage, OWNER) as owner:
        task = owner.open(AGENT_A, "three balances", budgets=budgets(calls=3))
        answers = [str(_balance(stage, "alice", task)) for _ in range(4)]
        owner.complete(task)
        return ", ".join(answers)


def delegation(stage: Stage) -> str:
    """Alice hands bob less than she has; what is taken from her is taken from him."""
    with desk(stage, OWNER) as owner, desk(stage, "alice") as alice:
        task = owner.open(AGENT_A, "balances, with help")
        less = scope(tools=["bank/get_balance"], actions=["observe"], destinations=["bank"], max_level=1)
        child = alice.tasks.Delegate(
            tasks_pb2.DelegateTaskRequest(parent=task.id, agent=AGENT_B, scope=less), timeout=TIMEOUT_S
        )
        before = _balance(stage, "bob", child)
        owner.tasks.Suspend(tasks_pb2.ChangeTaskRequest(id=task.id), timeout=TIMEOUT_S)
        after = _balance(stage, "bob", child)
        owner.tasks.Cancel(tasks_pb2.ChangeTaskRequest(id=task.id), timeout=TIMEOUT_S)
        record = next(one for one in reversed(stage.wait_collected()) if one.get("task") == child.id)
        hops = " > ".join(agent.rpartition("/")[2] for agent in record["chain"])
        return f"{before}, chain {hops}, parent suspended, {after}"


# ------------------------------------------------------------ approvals


def approval(stage: Stage) -> str:
    """The denial says what to do; the agent asks, somebody outside its chain decides, and the grant is for one call."""

    def delete() -> Answer:
        return Caller(stage, "alice").tool("delete_account", {"account": "a"})

    denied = delete()
    said = denied.json()["error"]["data"]
    with desk(stage, "alice") as alice, desk(stage, SECURITY) as security:
        asked = alice.approvals.Request(
            approvals_pb2.RequestApprovalRequest(
                evaluation_id=said["evaluation_id"], justification="the customer left", approver=SECURITY
            ),
            timeout=TIMEOUT_S,
        )
        own = _refused(lambda: alice.approvals.Decide(_decision(asked), timeout=TIMEOUT_S))
        security.approvals.Decide(_decision(asked), timeout=TIMEOUT_S)
        return f"{said['next']}, own approval {own}, approved, {delete()}, {delete()}"


def _decision(asked: approvals_pb2.Approval) -> approvals_pb2.DecideApprovalRequest:
    return approvals_pb2.DecideApprovalRequest(id=asked.id, approve=True, expected_digest=asked.digest)


def _refused(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "taken"


# ------------------------------------------------------------ revocation and owners


def revocation_under_load(stage: Stage) -> str:
    """Ten times revoked and lifted while callers hammer: no call that starts after an acknowledgement is allowed."""
    stop = threading.Event()
    seen: list[tuple[float, float, bool]] = []

    def load() -> None:
        while not stop.is_set():
            started = time.monotonic()
            allowed = _balance(stage, "alice").status == 200
            seen.append((started, time.monotonic(), allowed))

    threads = [threading.Thread(target=load) for _ in range(LOAD_CALLERS)]

    def more() -> None:
        wanted = len(seen) + CALLS_BETWEEN
        wait_for("calls under load", lambda: len(seen) >= wanted)

    revoked: list[tuple[float, float]] = []
    for thread in threads:
        thread.start()
    try:
        with desk(stage, SECURITY) as security:
            for _ in range(REVOCATIONS):
                security.revocations.Revoke(
                    revocations_pb2.RevokeRequest(kind=AGENT_KIND, key=AGENT_A, reason="drill"), timeout=TIMEOUT_S
                )
                acknowledged = time.monotonic()
                more()
                revoked.append((acknowledged, time.monotonic()))
                security.revocations.Lift(revocations_pb2.LiftRequest(kind=AGENT_KIND, key=AGENT_A), timeout=TIMEOUT_S)
                more()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # A call that was still on its way when the revocation was lifted may be decided after that.
    late = sum(allowed and any(a < start and end < b for a, b in revoked) for start, end, allowed in seen)
    return f"{late} allowed after {REVOCATIONS} acknowledgements, lifted, {_balance(stage, 'alice')}"


def owner_disabled(stage: Stage) -> str:
    with desk(stage, SECURITY) as security:
        change = owners_pb2.ChangeOwnerRequest(id=OWNER, reason="on leave")
        security.owners.Disable(change, timeout=TIMEOUT_S)
        during = _balance(stage, "alice")
        security.owners.Enable(change, timeout=TIMEOUT_S)
        return f"{during}, {_balance(stage, 'alice')}"
