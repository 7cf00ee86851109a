"""Races at the real doors, native and grpcio: what is taken away is gone for calls on every door, what is one is one.

Callers ask over two doors at once: the agent's Unix socket and TCP with mutual TLS.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import grpc
import pytest

from sidecar._proto.remit.authority.v1 import approvals_pb2, revocations_pb2, tasks_pb2
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo.processes import wait_for
from tests.fix_serve import AGENT, Served, check, made_sidecar, outcome, question
from tests.fix_store import Stubs, as_caller, opening, with_authority

AGENT_KIND = revocations_pb2.REVOCATION_KIND_AGENT
CALLERS = 3  # at each of the two doors
REVOCATIONS = 20
BUDGET = 60


@pytest.fixture(scope="module", params=["native", "grpcio"])
def shared(request: pytest.FixtureRequest) -> Iterator[Served]:
    with made_sidecar(request.param) as made:
        with_authority(made)
        made.start_ready()
        yield made


@pytest.fixture
def served(shared: Served) -> Iterator[Served]:
    """No task is open before a test."""
    yield shared
    with as_caller(shared) as alice:
        for task in alice.tasks.List(tasks_pb2.ListTasksRequest()).tasks:
            alice.tasks.Cancel(tasks_pb2.ChangeTaskRequest(id=task.id))


class Call(NamedTuple):
    """One call of the history: when it started and ended (monotonic ns), and what it was answered."""

    began: int
    ended: int
    answer: str
    reason: str


class Callers:
    """Threads that ask the same question over both doors: all the time, or each so many times, started together."""

    def __init__(self, served: Served, request: authz_pb2.CheckRequest, each: int = 0) -> None:
        self.calls: list[Call] = []
        self._request, self._each = request, each
        self._stop = threading.Event()
        svid = served.authority.issue(AGENT)
        doors = [
            door
            for _ in range(CALLERS)
            for door in (served.agent_socket(), served.tls("listeners.check_address", svid))
        ]
        self._gate = threading.Barrier(len(doors))
        self._threads = [threading.Thread(target=self._run, args=(door,)) for door in doors]

    def _run(self, door: AbstractContextManager[grpc.Channel]) -> None:
        with door as channel:
            grpc.channel_ready_future(channel).result(30)
            self._gate.wait(30)
            left = self._each
            while not self._stop.is_set() and (left or not self._each):
                left -= 1
                began = time.monotonic_ns()
                answer, reason = outcome(channel, self._request)
                self.calls.append(Call(began, time.monotonic_ns(), answer, reason))

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 5, answer: str = "") -> None:
        """Wait for so many further calls that were answered so."""
        start = len(self.calls)
        wait_for(
            f"{count} calls {answer}", lambda: sum(answer in (one.answer, "") for one in self.calls[start:]) >= count
        )

    def answered(self, answer: str) -> list[Call]:
        return [one for one in self.calls if one.answer == answer]


def test_no_call_is_allowed_between_acknowledgement_and_lift(served: Served) -> None:
    """Row 8 as a history: of calls under load over both doors, none lies within a revocation and is allowed."""
    in_force: list[tuple[int, int]] = []
    with as_caller(served) as alice:
        alice.tasks.Open(opening())
        with Callers(served, question()) as load:
            for _ in range(REVOCATIONS):
                load.more(answer="ALLOW")
                alice.revocations.Revoke(revocations_pb2.RevokeRequest(kind=AGENT_KIND, key=AGENT))
                acknowledged = time.monotonic_ns()
                load.more(answer="DENY")
                in_force.append((acknowledged, time.monotonic_ns()))
                alice.revocations.Lift(revocations_pb2.LiftRequest(kind=AGENT_KIND, key=AGENT))
    within = [one for one in load.calls for begin, end in in_force if begin <= one.began and one.ended <= end]
    assert {one.answer for one in within} == {"DENY"}
    assert {one.answer for one in load.calls} == {"ALLOW", "DENY"}


def test_a_budget_is_not_spent_twice(served: Served) -> None:
    """Rows 7 and 20: more callers than budget, over two doors at once; exactly as many calls as it has are allowed."""
    with as_caller(served) as alice:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=BUDGET)))
        with Callers(served, question(task=task.id), each=BUDGET // CALLERS) as load:
            load.join()
        assert len(load.calls) == 2 * BUDGET
        assert len(load.answered("ALLOW")) == len(load.answered("DENY")) == BUDGET
        assert alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left.calls == 0


def test_a_cost_is_not_spent_twice(served: Served) -> None:
    """Calls of cost 7 under a budget of 100: fourteen, and what is left is what no call can take."""
    with as_caller(served) as alice:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(cost=100)))
        with Callers(served, question(task=task.id, cost=7), each=10) as load:
            load.join()
        assert len(load.answered("ALLOW")) == 14
        assert alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left.cost == 2


def test_an_approval_of_one_use_is_used_once(served: Served) -> None:
    """Row 18: several calls that it fits, over two doors at once; one is allowed. Three times over."""
    request = question(action="delete")
    for _ in range(3):
        with (
            as_caller(served) as alice,
            as_caller(served, "bob") as bob,
            as_caller(served, "asks-a") as agent,
            served.agent_socket() as door,
        ):
            task = alice.tasks.Open(opening())
            row = _approved(agent, bob, check(door, request).evaluation_id)
            with Callers(served, request, each=2) as load:
                load.join()
            assert len(load.answered("ALLOW")) == 1
            # Who was judged by it while another used it up is denied; who came later may ask for one.
            late = [one for one in load.answered("DENY") if one.reason == "approval.used"]
            assert len(load.answered("STEP_UP")) + len(late) == 4 * CALLERS - 1
            assert agent.approvals.Get(approvals_pb2.GetApprovalRequest(id=row.id)).uses_left == 0
            alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id))


def _approved(agent: Stubs, approver: Stubs, evaluation_id: str) -> approvals_pb2.Approval:
    row = agent.approvals.Request(approvals_pb2.RequestApprovalRequest(evaluation_id=evaluation_id))
    decide = approvals_pb2.DecideApprovalRequest(id=row.id, approve=True, expected_digest=row.digest)
    granted: approvals_pb2.Approval = approver.approvals.Decide(decide)
    return granted


def test_a_completed_task_allows_nobody(served: Served) -> None:
    """Row 7: callers of a task over both doors; no call that starts after Complete was answered is allowed."""
    for _ in range(3):
        with as_caller(served) as alice:
            task = alice.tasks.Open(opening())
            with Callers(served, question(task=task.id)) as load:
                load.more(answer="ALLOW")
                alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id))
                acknowledged = time.monotonic_ns()
                load.more(20, answer="DENY")
            assert {one.answer for one in load.calls if one.began >= acknowledged} == {"DENY"}
