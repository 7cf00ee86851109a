"""The client of agents and orchestrators against a whole sidecar: tasks as blocks, approvals waited for, reports."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from sidecar._proto.remit.authority.v1 import approvals_pb2, tasks_pb2
from sidecar.client import (
    ApprovalNeeded,
    AsyncClient,
    Client,
    Denied,
    Refused,
    TaskNeeded,
    Unavailable,
    budgets,
    scope,
)
from sidecar.demo.processes import wait_for
from tests.fix_serve import AGENT, OTHER, Served, made_sidecar
from tests.fix_store import Stubs, as_caller, with_authority

EVERYTHING = scope(tools=["*"], actions=["*"], destinations=["*"], max_level=4)
WORK = {"owner": "alice", "purpose": "a test", "scope": EVERYTHING, "ttl_s": 600}
TIMEOUT_S = 20.0
WAIT_S = 60.0


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with made_sidecar() as made:
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


def _addresses(served: Served, door: str, authority: str) -> dict[str, str]:
    return {"door": f"unix:{served.folder}/{door}/sock", "authority": f"unix:{served.folder}/{authority}/sock"}


def orchestrator(served: Served) -> Client:
    """Opens tasks for agents; asks nothing itself."""
    return Client(**_addresses(served, "agent", "orchestrator"), timeout_s=TIMEOUT_S)


def agent(served: Served, task: str = "") -> Client:
    return Client(**_addresses(served, "agent", "asks-a"), task=task, timeout_s=TIMEOUT_S)


def other_agent(served: Served, task: str = "") -> Client:
    return Client(**_addresses(served, "other", "asks-b"), task=task, timeout_s=TIMEOUT_S)


class Approver(threading.Thread):
    """bob, who decides the first question that waits for somebody."""

    def __init__(self, served: Served, *, approve: bool, comment: str = "") -> None:
        super().__init__()
        self._served, self._approve, self._comment = served, approve, comment
        self.seen: approvals_pb2.Approval | None = None

    def run(self) -> None:
        with as_caller(self._served, "bob") as bob:
            wait_for("a question", lambda: bool(_waiting(bob)))
            self.seen = _waiting(bob)[0]
            bob.approvals.Decide(
                approvals_pb2.DecideApprovalRequest(
                    id=self.seen.id, approve=self._approve, comment=self._comment, expected_digest=self.seen.digest
                )
            )

    def __enter__(self) -> "Approver":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()


def _waiting(bob: Stubs) -> list[approvals_pb2.Approval]:
    rows = bob.approvals.List(approvals_pb2.ListApprovalsRequest(approver="alice")).approvals
    return [row for row in rows if row.state == approvals_pb2.APPROVAL_STATE_PENDING]


# ---------------------------------------------------------------- tasks


def test_a_task_stands_for_as_long_as_its_block(served: Served) -> None:
    """Completed at the end, cancelled when the block fails; before and after it the agent may do nothing."""
    with orchestrator(served) as boss, agent(served) as client:
        with pytest.raises(TaskNeeded) as none:
            client.require("read", "docs/search")
        assert none.value.next == "open_task"
        with boss.task(agent=AGENT, **WORK) as task:
            assert client.require("read", "docs/search").allowed
        assert _state(served, task.id) == tasks_pb2.TASK_STATE_COMPLETED
        with pytest.raises(TaskNeeded):
            client.require("read", "docs/search")
        with pytest.raises(RuntimeError), boss.task(agent=AGENT, **WORK) as failed:
            raise RuntimeError
        assert _state(served, failed.id) == tasks_pb2.TASK_STATE_CANCELLED
        with pytest.raises(Denied):
            client.require("read", "docs/search", task=failed.id)


def _state(served: Served, id_: str) -> int:
    with as_caller(served) as alice:
        return int(alice.tasks.Get(tasks_pb2.GetTaskRequest(id=id_)).state)


def test_an_agent_opens_nothing_for_itself(served: Served) -> None:
    with agent(served) as client, pytest.raises(Refused, match="permission denied"), client.task(agent=AGENT, **WORK):
        pass


def test_an_agent_hands_on_less_than_it_has(served: Served) -> None:
    """`task(parent=...)` is a child of the agent's own task; it ends with its block, or with its parent."""
    less = scope(tools=["docs/search"], actions=["read"], destinations=["*"], max_level=1)
    with orchestrator(served) as boss, agent(served) as client, other_agent(served) as helper:
        with boss.task(agent=AGENT, **WORK, max_depth=2, budgets=budgets(calls=10)) as task:
            with client.task(parent=task.id, agent=OTHER, scope=less, budgets=budgets(calls=4)) as child:
                assert list(child.chain) == [AGENT, OTHER]
                assert helper.check("read", "docs/search").allowed
                with pytest.raises(Denied, match=r"task\.scope"):
                    helper.require("write", "docs/search")
            assert not helper.check("read", "docs/search").allowed
            second = client.delegate_task(task.id, agent=OTHER, scope=less, budgets=budgets(calls=4))
            assert helper.check("read", "docs/search").allowed
            with pytest.raises(Refused, match="not as much left"):
                client.delegate_task(task.id, agent=OTHER, scope=less, budgets=budgets(calls=100))
        assert not helper.check("read", "docs/search", task=second.id).allowed


# ---------------------------------------------------------------- approvals


def test_a_missing_approval_is_asked_for_and_waited_for(served: Served) -> None:
    """`require(wait_s=...)`: somebody else decides meanwhile, and the call that was asked about is allowed, once."""
    with orchestrator(served) as boss, boss.task(agent=AGENT, **WORK) as task, agent(served, task.id) as client:
        with Approver(served, approve=True) as bob:
            done = client.require("delete", "docs/search", justification="the customer left", wait_s=WAIT_S)
        assert done.allowed
        assert bob.seen is not None
        assert (bob.seen.justification, bob.seen.task) == ("the customer left", task.id)
        with pytest.raises(ApprovalNeeded) as again:
            client.require("delete", "docs/search")
        assert again.value.next == "request_approval"


def test_a_stream_asks_for_a_missing_approval_and_waits_for_it(served: Served) -> None:
    """As the client's own `require`, for threads and for asyncio; without `wait_s` nobody is asked."""

    async def await_it(task: str) -> None:
        addresses = _addresses(served, "agent", "asks-a")
        async with AsyncClient(**addresses, task=task, timeout_s=TIMEOUT_S) as client, client.stream() as stream:
            done = await stream.require("delete", "docs/search", justification="the customer left", wait_s=WAIT_S)
            assert done.allowed
            with pytest.raises(ApprovalNeeded):
                await stream.require("delete", "docs/search")

    with orchestrator(served) as boss, boss.task(agent=AGENT, **WORK) as task:
        with agent(served, task.id) as client, client.stream() as stream:
            with pytest.raises(ApprovalNeeded):
                stream.require("delete", "docs/search")
            with Approver(served, approve=True) as bob:
                assert stream.require("delete", "docs/search", justification="he asked", wait_s=WAIT_S).allowed
            assert bob.seen is not None
            assert bob.seen.justification == "he asked"
        with Approver(served, approve=True):
            asyncio.run(await_it(task.id))


def test_a_refused_approval_says_who_said_what(served: Served) -> None:
    with (
        orchestrator(served) as boss,
        boss.task(agent=AGENT, **WORK),
        agent(served) as client,
        Approver(served, approve=False, comment="not today"),
        pytest.raises(ApprovalNeeded, match="was denied: not today"),
    ):
        client.require("delete", "docs/search", wait_s=WAIT_S)


def test_nobody_decides_in_time(served: Served) -> None:
    """The wait ends, and what was asked is not allowed."""
    with orchestrator(served) as boss, boss.task(agent=AGENT, **WORK), agent(served) as client:
        with pytest.raises(ApprovalNeeded, match=r"nobody decided within 0\.1 s.*; ask again") as caught:
            client.require("delete", "docs/search", wait_s=0.1)
        assert caught.value.next == "retry"
        assert not client.check("delete", "docs/search").allowed


# ---------------------------------------------------------------- reports


def test_a_report_settles_what_a_call_took(served: Served) -> None:
    """Not executed gives it back; executed counts as it was; the second report of a call changes nothing."""
    with orchestrator(served) as boss, boss.task(agent=AGENT, **WORK, budgets=budgets(calls=5, cost=50)) as task:
        with agent(served, task.id) as client:
            first, second = (client.require("read", "docs/search", cost=10) for _ in range(2))
            assert _left(served, task.id) == (3, 30)
            assert client.report(first, executed=False)
            assert _left(served, task.id) == (4, 40)
            assert client.report(second, executed=True, cost=3)
            assert _left(served, task.id) == (4, 47)
            assert not client.report(second, executed=False)
            assert _left(served, task.id) == (4, 47)
        with other_agent(served) as stranger:
            assert not stranger.report(first, executed=False)


def _left(served: Served, id_: str) -> tuple[int, int]:
    with as_caller(served) as alice:
        left = alice.tasks.Get(tasks_pb2.GetTaskRequest(id=id_)).left
        return left.calls, left.cost


# ---------------------------------------------------------------- asyncio


def test_asyncio_does_the_same(served: Served) -> None:
    """Task, delegation, approval and report, awaited."""

    async def play() -> None:
        async with (
            AsyncClient(**_addresses(served, "agent", "orchestrator"), timeout_s=TIMEOUT_S) as boss,
            AsyncClient(**_addresses(served, "agent", "asks-a"), timeout_s=TIMEOUT_S) as client,
            AsyncClient(**_addresses(served, "other", "asks-b"), timeout_s=TIMEOUT_S) as helper,
        ):
            async with boss.task(agent=AGENT, **WORK, max_depth=1, budgets=budgets(calls=9)) as task:
                less = scope(tools=["docs/search"], actions=["read"], destinations=["*"], max_level=1)
                async with client.task(parent=task.id, agent=OTHER, scope=less, budgets=budgets(calls=1)):
                    assert (await helper.check("read", "docs/search")).allowed
                    assert not (await helper.check("read", "docs/search")).allowed
                with Approver(served, approve=True):
                    done = await client.require("delete", "docs/search", wait_s=WAIT_S)
                assert await client.report(done, executed=True)
            with pytest.raises(TaskNeeded):
                await client.require("read", "docs/search")

    asyncio.run(play())


# ---------------------------------------------------------------- a sidecar that goes


def test_a_client_outlives_its_sidecar(served: Served) -> None:
    """While nobody is there nothing is allowed; the next sidecar answers the same client, under the same task."""
    with orchestrator(served) as boss:
        task = boss.open_task(agent=AGENT, **WORK)
        with agent(served, task.id) as client:
            assert client.check("read", "docs/search").allowed
            served.stop()
            with pytest.raises(Unavailable):
                Client(**_addresses(served, "agent", "asks-a"), timeout_s=0.2).require("read", "docs/search")
            served.start_ready()
            assert client.require("read", "docs/search").allowed
