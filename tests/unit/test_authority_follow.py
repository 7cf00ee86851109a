"""What a followed stream changes: a snapshot replaces what was held, and budgets move by what was drawn there."""

from typing import Any

import pytest

from fastpath.authority import Live
from fastpath.spending import EffectKind
from sidecar._proto.remit.authority.v1 import owners_pb2, revocations_pb2, tasks_pb2
from sidecar.authority.errors import InvalidError
from sidecar.authority.follow import OwnerStream, RevocationStream, Stream, TaskStream
from sidecar.authority.messages import task_message
from sidecar.authority.rows import Budgets, Task, TaskState
from tests.fix_store import AGENT_A, ALL

BEGIN, END = tasks_pb2.SNAPSHOT_MARK_BEGIN, tasks_pb2.SNAPSHOT_MARK_END
UNLIMITED = Budgets()
FAR_NS = 4_000_000_000 * 10**9


def task(id_: str = "t", left: Budgets = UNLIMITED, state: TaskState = TaskState.OPEN) -> tasks_pb2.TasksChange:
    row = Task(
        id=id_, agent=AGENT_A, owner="alice", purpose="p", state=state, scope=ALL, opened_ns=1, expires_ns=FAR_NS,
        opened_by="alice", granted=Budgets(100, -1, -1),
    )  # fmt: skip
    return tasks_pb2.TasksChange(epoch=1, put=task_message(row, left))


def revocation(key: str, **more: Any) -> revocations_pb2.Revocation:
    return revocations_pb2.Revocation(kind=revocations_pb2.REVOCATION_KIND_TOOL, key=key, **more)


def feed(stream: Stream, live: Live, *messages: Any) -> None:
    for message in messages:
        live.apply(stream.take(message), 1)


def test_a_snapshot_takes_out_what_it_does_not_hold() -> None:
    """After a gap nobody knows what was lifted or ended meanwhile; what comes again is all there is."""
    live, tasks, revocations, owners = Live(), TaskStream(), RevocationStream(), OwnerStream()
    put = revocations_pb2.RevocationsChange
    for _ in range(2):
        feed(
            tasks,
            live,
            tasks_pb2.TasksChange(snapshot=BEGIN),
            task("a"),
            task("b"),
            tasks_pb2.TasksChange(snapshot=END),
        )
        feed(
            revocations,
            live,
            put(snapshot=BEGIN),
            put(put=revocation("x/1")),
            put(put=revocation("x/2")),
            put(snapshot=END),
        )
        feed(owners, live, owners_pb2.OwnersChange(put=owners_pb2.Owner(id="alice", active=False)))
        assert live.counts() == {"tasks": 2, "revocations": 2, "owners": 1, "approvals": 0}
    feed(tasks, live, tasks_pb2.TasksChange(snapshot=BEGIN), task("b"), tasks_pb2.TasksChange(snapshot=END))
    feed(revocations, live, put(snapshot=BEGIN), put(put=revocation("x/2")), put(snapshot=END))
    feed(owners, live, owners_pb2.OwnersChange(snapshot=BEGIN), owners_pb2.OwnersChange(snapshot=END))
    assert live.counts() == {"tasks": 1, "revocations": 1, "owners": 0, "approvals": 0}
    assert live.task("a") is None


def test_what_changes_there_changes_here() -> None:
    live, tasks, revocations, owners = Live(), TaskStream(), RevocationStream(), OwnerStream()
    feed(tasks, live, task("a"), task("b"), task("a", state=TaskState.SUSPENDED), task("b", state=TaskState.REVOKED))
    assert (live.task("a") or {})["state"] == "suspended"
    assert live.task("b") is None
    feed(tasks, live, tasks_pb2.TasksChange(forget="a"))
    assert live.task("a") is None
    change = revocations_pb2.RevocationsChange
    feed(revocations, live, change(put=revocation("x/1")), change(lifted=revocation("x/1")))
    feed(owners, live, *(owners_pb2.OwnersChange(put=owners_pb2.Owner(id="a", active=on)) for on in (False, True)))
    assert live.counts() == {"tasks": 0, "revocations": 0, "owners": 0, "approvals": 0}


def test_a_budget_moves_by_what_was_drawn_there_and_not_by_what_was_spent_here() -> None:
    live, tasks = Live(), TaskStream()
    feed(tasks, live, task("a", Budgets(100, -1, -1)))
    live.redo([(EffectKind.EFFECT_CALLS, "a", 30)])
    feed(tasks, live, task("a", Budgets(60, -1, -1)))
    row = live.task("a")
    assert row is not None
    assert (row["calls"], row["spent_calls"], row["cost"]) == (30, 30, -1)
    feed(tasks, live, task("a", Budgets(90, -1, -1)))
    assert (live.task("a") or {})["calls"] == 60


def test_what_cannot_be_read_is_refused() -> None:
    """It may be what ends an agent's authority, so nothing is guessed."""
    unknown = revocations_pb2.Revocation(kind=77, key="x")  # type: ignore[arg-type]
    with pytest.raises(InvalidError):
        RevocationStream().take(revocations_pb2.RevocationsChange(put=unknown))
    with pytest.raises(InvalidError):
        TaskStream().take(tasks_pb2.TasksChange(put=tasks_pb2.Task(id="a")))
