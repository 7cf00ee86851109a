"""What one agent can make of the authority store and of those who wait for it is bounded; nothing inside is told."""

import logging
import pathlib
import shutil
import time
from typing import Any

import grpc
import lmdb
import pytest

from sidecar.authority import approvals, tasks
from sidecar.authority.approvals import CancelApproval, RequestApproval
from sidecar.authority.draft import SECOND_NS, Caller
from sidecar.authority.due import sweep
from sidecar.authority.errors import ExhaustedError, MissingError
from sidecar.authority.manifest import read_manifest
from sidecar.authority.rows import Budgets
from sidecar.authority.tasks import ChangeTask, DelegateTask
from sidecar.services.authority_calls import answered, streamed
from tests.fix_store import AGENT_A, AGENT_B, ALICE, ALL, BY_A, BY_B, Book, Hands, denial, kept

DEADLINE_S = 30


def test_a_tree_of_tasks_has_a_bound_that_closing_does_not_move() -> None:
    """Whoever ends a root waits for all that was ever delegated below it, closed or not."""
    book = Book(tree_max=3)
    root = book.open(AGENT_A)
    child = book.run(tasks.delegate_task, DelegateTask(parent=root.id, agent=AGENT_B, scope=ALL), BY_A)
    book.run(tasks.delegate_task, DelegateTask(parent=child.id, agent=AGENT_B, scope=ALL), BY_B)
    book.run(tasks.complete_task, ChangeTask(id=child.id), BY_B)
    again = book.run(tasks.delegate_task, DelegateTask(parent=root.id, agent=AGENT_B, scope=ALL), BY_A)
    for parent, by in ((root, BY_A), (again, BY_B)):
        with pytest.raises(ExhaustedError, match="tree_max"):
            book.run(tasks.delegate_task, DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL), by)
    assert book.open(AGENT_A).below == 0


def test_a_wide_tree_gives_back_what_each_task_of_it_had_left(tmp_path: pathlib.Path) -> None:
    with kept(tmp_path / "s") as one:
        root = one.open(budgets=Budgets(10_000, -1, -1))
        wide = [one.run(tasks.delegate_task, _part(root.id, 5), BY_A) for _ in range(300)]
        for task in wide[:20]:
            one.run(tasks.delegate_task, _part(task.id, 2), BY_B)
        closed = one.run(tasks.complete_task, ChangeTask(id=wide[0].id), BY_B)
        assert closed.refunded.calls == 5
        whole = one.run(tasks.complete_task, ChangeTask(id=root.id), ALICE)
        assert len(whole.closed) == 1 + 299 + 19
        assert whole.task.final == Budgets(10_000, -1, -1)


def _part(parent: str, calls: int) -> DelegateTask:
    return DelegateTask(parent=parent, agent=AGENT_B, scope=ALL, budgets=Budgets(calls, -1, -1))


def test_a_question_that_nobody_decided_is_kept_for_minutes() -> None:
    """An agent can ask and take back as often as it likes; what that leaves behind goes soon."""
    book = Book()
    task = book.open(AGENT_A)
    row = book.run(approvals.request_approval, RequestApproval(denial=denial(task)), BY_A)
    book.run(approvals.cancel_approval, CancelApproval(id=row.id), BY_A)
    book.pass_s(approvals.UNDECIDED_S - 1)
    book.run(sweep)
    assert approvals.get_approval(book.draft(), row.id).state == "cancelled"
    book.pass_s(2)
    book.run(sweep)
    with pytest.raises(MissingError):
        approvals.get_approval(book.draft(), row.id)


def test_a_clock_set_back_extends_nothing_while_nothing_changes(tmp_path: pathlib.Path) -> None:
    """RT-01 over `kill -9`: also of a store that had nothing to write for hours the time is known."""
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock(), snapshot_s=0.01) as one:
        task = one.open(ttl_s=10_000)
        start_ns = hands.wall_ns
        hands.pass_s(5000)
        deadline = time.monotonic() + DEADLINE_S
        while (found := read_manifest(tmp_path / "s")) is None or found.unix_ns < start_ns + 5000 * SECOND_NS:
            assert time.monotonic() < deadline
        shutil.copytree(tmp_path / "s", tmp_path / "killed", ignore=shutil.ignore_patterns("*lock*"))
    hands.wall_ns = start_ns
    with kept(tmp_path / "killed", clock=hands.clock()) as two:
        row = two.live.task(task.id)
        assert row is not None
        assert row["ttl_ns"] <= 5000 * SECOND_NS


class _Context:
    def __init__(self) -> None:
        self.told: tuple[grpc.StatusCode, str] | None = None

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        """Like grpcio's, it does not return."""
        self.told = code, text
        raise RuntimeError

    def is_active(self) -> bool:
        return True


class _Failing:
    def resolve(self, _: Any) -> Caller:
        return ALICE

    def watching(self, stream: Any) -> Any:
        return stream

    @answered
    def Get(self, *_: Any) -> Any:
        raise lmdb.ReadersFullError("mdb_txn_begin: MDB_READERS_FULL: /var/lib/remit")

    @streamed
    def Watch(self, *_: Any) -> Any:
        raise lmdb.ReadersFullError("mdb_txn_begin: MDB_READERS_FULL: /var/lib/remit")
        yield


@pytest.mark.parametrize("method", ["Get", "Watch"])
def test_what_fails_inside_is_logged_and_not_told(method: str, caplog: pytest.LogCaptureFixture) -> None:
    context = _Context()
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError):
        list(getattr(_Failing(), method)(None, context) or ())
    assert context.told == (grpc.StatusCode.INTERNAL, "internal error")
    assert "authority.call_failed" in caplog.text


def test_open_tasks_of_one_agent_are_bounded() -> None:
    """Opened or delegated, by one owner or many; what ends makes room."""
    book = Book(agent_tasks_max=3)
    opened = [book.open(max_depth=1) for _ in range(3)]
    with pytest.raises(ExhaustedError, match=rf"agent `{AGENT_A}` has 3 open tasks.*authority.agent_tasks_max"):
        book.open()
    with pytest.raises(ExhaustedError, match="agent_tasks_max"):
        book.run(tasks.delegate_task, DelegateTask(parent=opened[0].id, agent=AGENT_A, scope=ALL), BY_A)
    assert book.run(tasks.delegate_task, DelegateTask(parent=opened[0].id, agent=AGENT_B, scope=ALL), BY_A).depth == 1
    book.run(tasks.complete_task, ChangeTask(id=opened[1].id), ALICE)
    assert book.open().state == "open"
