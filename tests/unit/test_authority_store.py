"""The authority store: durable and in force before it answers, and what a restart finds."""

import contextlib
import functools
import itertools
import pathlib
import re
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from fastpath.journal import Journal, gap_record, list_segments
from fastpath.spending import EffectKind
from sidecar._proto.remit.authority.v1 import revocations_pb2, tasks_pb2
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.authority import tasks
from sidecar.authority.answers import Repeat
from sidecar.authority.approvals import DecideApproval, RequestApproval, decide_approval, request_approval
from sidecar.authority.backup import restore, trust_clock
from sidecar.authority.clock import Clock
from sidecar.authority.commands import Ticket
from sidecar.authority.database import READ_S, Database
from sidecar.authority.draft import SECOND_NS, Draft, Limits
from sidecar.authority.errors import (
    ExhaustedError,
    InvalidError,
    RepeatedError,
    StateError,
    StoreError,
)
from sidecar.authority.held import FILE as HELD
from sidecar.authority.load import JournalTail, journal_epoch
from sidecar.authority.manifest import sync_file
from sidecar.authority.owners import ChangeOwner, disable_owner, enable_owner, scan_owners
from sidecar.authority.revocations import Kind, Lift, Revoke, lift, matching, revoke, scan_revocations
from sidecar.authority.rows import Budgets, Mode, Owner, Revocation, TaskState, decode
from sidecar.authority.scope import Scope
from sidecar.authority.store import AuthorityStore
from sidecar.authority.tasks import ChangeTask, DelegateTask, get_task
from sidecar.decisions.events import event_record
from sidecar.demo.processes import wait_for
from sidecar.services.authority_calls import page_of
from sidecar.services.revocations import WATCH as REVOCATIONS_WATCH
from tests.fix_faults import LONG
from tests.fix_live import AGENT, ask, make_pdp, outcome
from tests.fix_store import (
    AGENT_A,
    AGENT_B,
    ALICE,
    ALL,
    BOB,
    BY_A,
    BY_B,
    MAP_BYTES,
    Hands,
    Kept,
    denial,
    kept,
    task_of,
)

ROWS = 100_000 if LONG else 2_000
DEADLINE_S = 30


# ---------------------------------------------------------------- in force and kept


def test_what_was_answered_is_in_force_and_found_again(tmp_path: pathlib.Path) -> None:
    """Every kind of row is in the native view when the call returns, and after a restart."""
    with kept(tmp_path / "s") as one:
        task = one.open(budgets=Budgets(10, 100, -1))
        child = one.run(
            tasks.delegate_task,
            DelegateTask(parent=task.id, agent=AGENT_B, scope=ALL, budgets=Budgets(4, 10, 50)),
            BY_A,
        )
        one.run(tasks.suspend_task, ChangeTask(id=child.id), ALICE)
        closed = one.open()
        one.run(tasks.cancel_task, ChangeTask(id=closed.id), ALICE)
        one.run(revoke, Revoke(kind=Kind.TOOL, key="mail/send"), ALICE)
        one.run(disable_owner, ChangeOwner(id="mallory"), BOB)
        asked = one.run(request_approval, RequestApproval(denial=denial(task)), BY_A)
        one.run(decide_approval, DecideApproval(id=asked.id, approve=True, uses=3), BOB)
        epoch = one.store.epoch
        assert epoch == one.live.epoch == 9
        before = (one.live.task(task.id), one.live.task(child.id), one.live.uses(asked.id))
        assert [epoch for _, _, epoch in one.noted] == sorted(epoch for _, _, epoch in one.noted)
        assert one.noted[0][0] == "task.opened"
        assert "by=alice" in one.noted[0][1]
    with kept(tmp_path / "s") as two:
        assert two.store.epoch == two.live.epoch == epoch
        after = (two.live.task(task.id), two.live.task(child.id), two.live.uses(asked.id))
        assert [{**row, "ttl_ns": 0} if isinstance(row, dict) else row for row in after] == [
            {**row, "ttl_ns": 0} if isinstance(row, dict) else row for row in before
        ]
        assert two.live.task(closed.id) is None
        assert two.live.counts() == {"tasks": 2, "revocations": 1, "owners": 1, "approvals": 1}
        two.run(lift, Lift(kind=Kind.TOOL, key="mail/send"), ALICE)
        assert two.store.epoch == epoch + 1


def test_many_callers_share_a_commit_and_each_gets_its_own_answer(tmp_path: pathlib.Path) -> None:
    """Group commit: far fewer commits than calls, and nobody is answered with another's task."""
    commits = 0
    real = Database.write

    def counted(self: Database) -> Any:
        nonlocal commits
        commits += 1
        return real(self)

    with kept(tmp_path / "s") as one:
        answers: dict[int, str] = {}

        def work(n: int) -> None:
            for i in range(4):
                task = one.open(f"spiffe://corp.example/agents/{n}", purpose=f"{n} {i}")
                assert task.purpose == f"{n} {i}"
                answers[n * 4 + i] = task.id

        Database.write = counted  # type: ignore[method-assign]
        try:
            threads = [threading.Thread(target=work, args=(n,)) for n in range(32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            Database.write = real  # type: ignore[method-assign]
        assert len(set(answers.values())) == 128
        assert one.store.epoch == 128
        assert commits < 128


def test_one_caller_alone_waits_for_no_other_thread(tmp_path: pathlib.Path) -> None:
    """Who finds nobody writing runs the command and the commit itself; what queued meanwhile is another's to write."""
    ran: list[threading.Thread] = []
    begun, go = threading.Event(), threading.Event()

    def note(_: Draft) -> None:
        ran.append(threading.current_thread())

    def hold(draft: Draft) -> None:
        note(draft)
        begun.set()
        assert go.wait(DEADLINE_S)

    with kept(tmp_path / "s") as one:
        wait_for("the writer at rest", lambda: one.store._next_due > 1)
        one.store.call(note)
        assert ran == [threading.current_thread()]
        epoch = one.store.epoch
        first = threading.Thread(target=one.store.call, args=(hold,))
        first.start()
        assert begun.wait(DEADLINE_S)
        others = [threading.Thread(target=one.store.call, args=(note,)) for _ in range(5)]
        for other in others:
            other.start()
        wait_for("the others to queue", lambda: len(one.store._queue) == 5)
        go.set()
        for thread in (first, *others):
            thread.join(DEADLINE_S)
        assert one.store.epoch == epoch + 6
    assert ran[1] is first
    assert len(set(ran[2:])) == 1  # one thread wrote all of them
    assert ran[2] not in others


def test_a_writer_that_is_ended_leaves_nobody_waiting(tmp_path: pathlib.Path) -> None:
    """Whatever breaks off the one who writes: who waits is refused, and so is everybody after."""
    begun, go = threading.Event(), threading.Event()
    ends: list[str] = []

    def end(_: Draft) -> None:
        begun.set()
        assert go.wait(DEADLINE_S)
        raise SystemExit

    def ask(command: Callable[[Draft], object]) -> None:
        try:
            one.store.call(command)
        except (StoreError, SystemExit) as error:
            ends.append(type(error).__name__)

    with kept(tmp_path / "s") as one:
        wait_for("the writer at rest", lambda: one.store._next_due > 1)
        first = threading.Thread(target=ask, args=(end,))
        first.start()
        assert begun.wait(DEADLINE_S)
        other = threading.Thread(target=ask, args=(lambda _: None,))
        other.start()
        wait_for("the other to queue", lambda: len(one.store._queue) == 1)
        go.set()
        first.join(DEADLINE_S)
        other.join(DEADLINE_S)
        assert sorted(ends) == ["StoreError", "SystemExit"]
        assert "restart the sidecar" in one.store.problem
        with pytest.raises(StoreError, match="restart the sidecar"):
            one.open()


def test_a_refused_command_leaves_the_others_of_its_commit_alone(tmp_path: pathlib.Path) -> None:
    with kept(tmp_path / "s") as one:
        parent = one.open(budgets=Budgets(calls=5))
        outcomes: list[str] = []

        def work() -> None:
            asked = DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=1))
            try:
                one.run(tasks.delegate_task, asked, BY_A)
                outcomes.append("opened")
            except StateError:
                outcomes.append("refused")

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (outcomes.count("opened"), outcomes.count("refused")) == (5, 15)
        left = one.live.task(parent.id)
        assert left is not None
        assert left["calls"] == 0


def test_budgets_that_calls_spend_meanwhile_are_never_given_twice(tmp_path: pathlib.Path) -> None:
    """A draw races calls: what the child got and what calls spent is never more than was granted."""
    with kept(tmp_path / "s") as one:
        for _ in range(20):
            parent = one.open(budgets=Budgets(calls=100))
            stop = threading.Event()

            def spend(id_: str = parent.id, until: threading.Event = stop) -> None:
                while not until.is_set():
                    row = one.live.task(id_)
                    assert row is not None
                    if row["calls"] == 0:
                        return
                    one.live.redo([(EffectKind.EFFECT_CALLS, id_, 1)])

            thread = threading.Thread(target=spend)
            thread.start()
            given = 0
            for _ in range(5):
                asked = DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=30))
                try:
                    one.run(tasks.delegate_task, asked, BY_A)
                    given += 30
                except StateError:
                    break
            stop.set()
            thread.join()
            row = one.live.task(parent.id)
            assert row is not None
            assert row["spent_calls"] + given + row["calls"] <= 101  # the spender looks and takes in two steps


def test_what_the_native_view_could_not_take_is_refused_before_it_is_durable(tmp_path: pathlib.Path) -> None:
    """A row that no start could load would keep the sidecar from deciding for ever."""
    with kept(tmp_path / "s") as one:

        def poison(draft: Draft) -> None:
            draft.put("tasks", b"x", get_task(draft, task.id))
            draft.tell("task", {**tasks.live_task(task, Budgets(1, 1, 1)), "id": "x" * 65})

        task = one.open()
        with pytest.raises(InvalidError, match="`id`"):
            one.store.call(poison)
        assert one.store.epoch == 1
        assert one.store.count("tasks") == 1


def test_a_command_that_fails_in_an_unforeseen_way_harms_only_its_caller(tmp_path: pathlib.Path) -> None:
    with kept(tmp_path / "s") as one:

        def broken(draft: Draft) -> None:
            draft.put("owners", b"x", tasks.Budgets())
            raise ZeroDivisionError

        with pytest.raises(StoreError, match="internal error; nothing was changed"):
            one.store.call(broken)
        assert one.open().state is TaskState.OPEN
        assert one.store.count("owners") == 0


# ---------------------------------------------------------------- many callers


def test_what_waits_together_is_made_durable_together(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit for all who wait; after it a caller who comes alone is served as before."""
    commits: list[int] = []
    real = AuthorityStore._transact

    def counted(self: AuthorityStore, batch: list[Any]) -> Any:
        commits.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(AuthorityStore, "_transact", counted)
    with kept(tmp_path / "s", snapshot_s=1000.0) as one:
        threads = [threading.Thread(target=one.open) for _ in range(40)]
        with one.store._turn:
            for thread in threads:
                thread.start()
            wait_for("all to queue", lambda: len(one.store._queue) == len(threads))
        one.open()
        for thread in threads:
            thread.join()
        assert sum(commits) == len(threads) + 1
        assert max(commits) >= len(threads)
        for _ in range(3):
            one.open()
        assert commits[-3:] == [1, 1, 1]
        assert one.store.count("tasks") == len(threads) + 4


# ---------------------------------------------------------------- idempotency


def test_a_repeated_key_gets_the_same_answer_even_after_a_restart(tmp_path: pathlib.Path) -> None:
    """RT-08: the same request once, another request refused, and each caller has keys of their own."""
    hands = Hands()

    def ask(one: Kept, key: str, request: bytes, by: Any = ALICE) -> bytes:
        return one.store.call(
            lambda draft: tasks.open_task(draft, task_of(), by).id.encode(),
            repeat=Repeat(by, "Open", key, request),
            pack=lambda answer: answer,
            unpack=lambda answer: answer,
        )

    with kept(tmp_path / "s", clock=hands.clock(), limits=Limits(answer_s=100)) as one:
        first = ask(one, "k", b"a")
        assert ask(one, "k", b"a") == first
        assert ask(one, "k", b"a", BOB) != first
        with pytest.raises(RepeatedError, match="idempotency key `k` came with another request"):
            ask(one, "k", b"b")
        assert one.store.count("tasks") == 2
    with kept(tmp_path / "s", clock=hands.clock(), limits=Limits(answer_s=100)) as two:
        assert ask(two, "k", b"a") == first
        hands.pass_s(100)
        assert ask(two, "k", b"a") != first


def test_an_answer_that_is_not_true_any_more_is_none(tmp_path: pathlib.Path) -> None:
    """Who is told that somebody is revoked relies on it: after a lift the same request revokes again."""
    with kept(tmp_path / "s") as one:

        def ask() -> int:
            asked = Revoke(kind=Kind.AGENT, key=AGENT_A)
            return one.store.call(
                lambda draft: revoke(draft, asked, ALICE).revocation.epoch,
                repeat=Repeat(ALICE, "Revoke", "k", b"a"),
                pack=lambda epoch: epoch.to_bytes(8, "big"),
                unpack=lambda answer: int.from_bytes(answer, "big"),
                stands=lambda draft, epoch: any(row.epoch == epoch for row in matching(draft, Kind.AGENT, AGENT_A)),
            )

        first = ask()
        assert ask() == first
        one.run(lift, Lift(kind=Kind.AGENT, key=AGENT_A), BOB)
        again = ask()
        assert again > first
        assert ask() == again
        assert one.live.counts()["revocations"] == 1


# ---------------------------------------------------------------- time


def test_a_clock_set_forward_ends_no_revocation(tmp_path: pathlib.Path) -> None:
    """It ends when both clocks say so, and then it does: a jump neither shortens nor keeps it for good."""
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock()) as one:
        one.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A, ttl_s=600), ALICE)
        hands.wall_ns += 7200 * SECOND_NS
        one.open()
        hands.wall_ns -= 7200 * SECOND_NS
        hands.pass_s(599)
        one.open()
    with kept(tmp_path / "s", clock=hands.clock()) as two:
        assert two.live.counts()["revocations"] == 1
        hands.pass_s(2)
        wait_for("the end", lambda: (two.open(), two.store.totals["revocation.expired"])[1])
        assert two.live.counts()["revocations"] == 0


def test_time_ends_tasks_questions_and_revocations_by_itself(tmp_path: pathlib.Path) -> None:
    """Row 7: an absolute end; nobody has to call for it."""
    with kept(tmp_path / "s") as one:
        task = one.open(ttl_s=1)
        one.run(revoke, Revoke(kind=Kind.TOOL, key="a/b", ttl_s=1), ALICE)
        asked = one.run(request_approval, RequestApproval(denial=denial(task)), BY_A)
        wait_for("the end", lambda: one.store.totals["task.expired"] and one.store.totals["revocation.expired"])
        with one.store.read() as draft:
            assert get_task(draft, task.id).state is TaskState.EXPIRED
        assert (one.live.task(task.id) or {})["state"] == "expired"
        assert one.live.counts()["revocations"] == 0
        assert one.store.totals["approval.revoked"] + one.store.totals["approval.expired"] == 1, asked


def test_a_clock_set_back_extends_nothing(tmp_path: pathlib.Path) -> None:
    """RT-01: not within a process, where time passed all the same, and not over a restart."""
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock()) as one:
        short, long = one.open(ttl_s=60), one.open(ttl_s=10_000)
        hands.pass_s(61)
        hands.wall_ns -= 3600 * SECOND_NS
        with pytest.raises(StateError, match="expired"):
            one.run(tasks.complete_task, ChangeTask(id=short.id), ALICE)
        hands.pass_s(5000)
        one.open()
    hands.wall_ns -= 7200 * SECOND_NS
    with kept(tmp_path / "s", clock=hands.clock()) as two:
        assert two.live.task(short.id) is None
        row = two.live.task(long.id)
        assert row is not None
        assert row["ttl_ns"] <= (10_000 - 5061) * SECOND_NS
        hands.pass_s(5000)
        with pytest.raises(StateError, match="expired"):
            two.run(tasks.complete_task, ChangeTask(id=long.id), ALICE)


def test_after_a_clock_that_was_set_forward_and_back_time_goes_on(tmp_path: pathlib.Path) -> None:
    """Tasks end in the store as well as for calls, and what is opened after a restart ends no later than it says."""
    hands = Hands()

    def tell(one: Kept) -> None:
        one.live.put_clock(boot_ns=hands.passed_ns, unix_ns=hands.wall_ns)

    with kept(tmp_path / "s", clock=hands.clock()) as one:
        for jump in (86_400, -86_400):
            hands.wall_ns += jump * SECOND_NS
            tell(one)
            short = one.open(ttl_s=60)
        hands.pass_s(61)
        tell(one)
        with pytest.raises(StateError, match="expired"):
            one.run(tasks.complete_task, ChangeTask(id=short.id), ALICE)
    two = Kept(tmp_path / "s", clock=hands.clock())
    tell(two)
    two.store.open()
    hands.pass_s(3600)
    tell(two)
    later = two.open(ttl_s=60)
    assert (two.live.task(later.id) or {})["ttl_ns"] == 60 * SECOND_NS
    two.store.close()


def test_a_revocation_after_a_clock_that_was_set_forward_and_back_lasts_as_long_as_was_asked(
    tmp_path: pathlib.Path,
) -> None:
    """Not shorter, and not longer by the jump: both clocks are right again, whatever was seen before."""
    hands = Hands()
    asked = Revoke(kind=Kind.AGENT, key=AGENT, ttl_s=60)
    with kept(tmp_path / "s", clock=hands.clock()) as one:
        pdp = make_pdp(one.live)

        def denied() -> bool:
            one.live.put_clock(boot_ns=hands.passed_ns, unix_ns=hands.wall_ns)
            one.run(lambda _: None)
            return outcome(ask(pdp)) == ("DENY", "revoked.agent")

        hands.wall_ns += 86_400 * SECOND_NS
        assert not denied()
        hands.wall_ns -= 86_400 * SECOND_NS
        assert not denied()
        one.run(revoke, asked, ALICE)
        hands.pass_s(59)
        assert denied()
        # No jump makes it shorter either.
        hands.wall_ns += 7200 * SECOND_NS
        assert denied()
        hands.wall_ns -= 7200 * SECOND_NS
        hands.pass_s(2)
        assert not denied()
        wait_for("its end in the store", lambda: one.store.totals["revocation.expired"])


def test_the_clock_never_goes_back_and_reaches_an_end_by_whichever_clock_comes_first() -> None:
    """RT-01: the wall clock, or what passed since the start."""
    wall, passed = 1000, 10
    clock = Clock(lambda: wall, lambda: passed)
    assert clock.now() == 1000
    wall, passed = 500, 30
    assert clock.now() == 1020
    wall = 5000
    assert clock.now() == 5000
    wall = 1100
    assert clock.now() == 5000
    passed += 5
    assert clock.now() == 5005
    assert not clock.start_at(4000)
    assert clock.start_at(1100 + 3 * SECOND_NS)
    passed += 7
    assert clock.now() == 1107 + 3 * SECOND_NS


@pytest.mark.parametrize("boot", ["same", "another", "trusted", "held"])
def test_a_clock_that_stands_forward_at_a_restart_ends_no_revocation_while_the_machine_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    """RT-01: the clock that nobody sets says what has passed; after a boot, or by an operator's word, the other one."""
    hands = Hands()
    said: list[str] = []
    monkeypatch.setattr("sidecar.authority.store.event", lambda _log, name, *_, **__: said.append(name))
    monkeypatch.setattr("sidecar.authority.store.boot_id", lambda: "b1")
    asked = Revoke(kind=Kind.AGENT, key=AGENT, ttl_s=3600)
    with kept(tmp_path / "s", clock=hands.clock()) as one:
        if boot == "held":
            mend = commit_fails(monkeypatch, lmdb.DiskError(FULL))
            refused_as_full(one, revoke, asked)
            mend()
        else:
            one.run(revoke, asked, ALICE)
    hands.wall_ns += 7200 * SECOND_NS
    hands.passed_ns += 60 * SECOND_NS
    if boot == "another":
        monkeypatch.setattr("sidecar.authority.store.boot_id", lambda: "b2")
    if boot == "trusted":
        trust_clock(tmp_path / "s")
    two = Kept(tmp_path / "s", clock=hands.clock())
    two.live.put_clock(boot_ns=hands.passed_ns, unix_ns=hands.wall_ns)
    two.store.open()
    stands = boot in ("same", "held")
    assert ("authority.clock_forward" in said) == stands
    assert two.live.counts()["revocations"] == stands
    pdp = make_pdp(two.live)
    denied = ("DENY", "revoked.agent")
    assert (outcome(ask(pdp)) == denied) == stands
    two.live.put_clock(boot_ns=hands.passed_ns + 3500 * SECOND_NS, unix_ns=hands.wall_ns)
    assert (outcome(ask(pdp)) == denied) == stands
    hands.pass_s(3600)
    two.live.put_clock(boot_ns=hands.passed_ns, unix_ns=hands.wall_ns)
    assert outcome(ask(pdp)) != denied
    two.run(lambda _: None)
    wait_for("its end", lambda: two.live.counts()["revocations"] == 0)
    two.store.close()


def test_the_clock_of_a_store_that_is_in_use_or_not_there_is_not_trusted(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StateError, match="holds no store"):
        trust_clock(tmp_path / "s")
    with kept(tmp_path / "s"), pytest.raises(StoreError, match="another process has the authority store"):
        trust_clock(tmp_path / "s")


# ---------------------------------------------------------------- what calls spent


def decision(journal: Journal, epoch: int, *effects: tuple[int, str, int]) -> None:
    """A record of a call that changed live state."""
    made = decisions_pb2.Decision(
        evaluation_id="e",
        outcome=authz_pb2.OUTCOME_ALLOW,
        revocation_epoch=epoch,
        effects=[decisions_pb2.Effect(kind=kind, key=key.encode(), value=value) for kind, key, value in effects],
    )
    assert journal.append_bytes(decisions_pb2.Record(decision=made).SerializeToString())


def test_a_restart_counts_what_the_journal_says_was_spent(tmp_path: pathlib.Path) -> None:
    """The last snapshot and the records behind it: nothing that was answered is forgotten."""
    calls, uses = int(EffectKind.EFFECT_CALLS), int(EffectKind.EFFECT_APPROVAL)
    with Journal(tmp_path / "journal", helper=False) as journal:
        first = Kept(tmp_path / "s", snapshot_s=0.0)
        first.store.open(JournalTail(journal))
        task = first.open(budgets=Budgets(calls=10))
        asked = first.run(request_approval, RequestApproval(denial=denial(task)), BY_A)
        first.run(decide_approval, DecideApproval(id=asked.id, approve=True, uses=3), BOB)
        first.live.redo([(calls, task.id, 2), (uses, asked.id, 1)])
        decision(journal, first.store.epoch, (calls, task.id, 2), (uses, asked.id, 1))
        first.open()  # wakes the writer, which takes a snapshot
        first.store.close()
        # As a killed process leaves it: journaled, and in no snapshot.
        decision(journal, first.store.epoch, (calls, task.id, 3), (uses, asked.id, 1))
        decision(journal, first.store.epoch, (calls, task.id, -1))
        second = Kept(tmp_path / "s")
        second.store.open(JournalTail(journal))
        row = second.live.task(task.id)
        assert row is not None
        assert (row["calls"], row["spent_calls"], second.live.uses(asked.id)) == (6, 4, 1)
        second.store.close()


def test_what_is_given_back_beside_a_snapshot_comes_back_once(tmp_path: pathlib.Path) -> None:
    """A report between two looks of the snapshot: neither calls nor uses are ever more than were granted."""
    calls, uses = int(EffectKind.EFFECT_CALLS), int(EffectKind.EFFECT_APPROVAL)
    with Journal(tmp_path / "journal", helper=False) as journal:
        first = Kept(tmp_path / "s", snapshot_s=3600.0)
        first.store.open(JournalTail(journal))
        task = first.open(budgets=Budgets(calls=10))
        asked = first.run(request_approval, RequestApproval(denial=denial(task)), BY_A)
        first.run(decide_approval, DecideApproval(id=asked.id, approve=True, uses=1), BOB)

        class Racing:
            """A native view in which a report comes just before it is copied."""

            def snapshot(self) -> Any:
                spend(-1)
                return first.live.snapshot()

        def spend(count: int) -> None:
            first.live.redo([(calls, task.id, count), (uses, asked.id, count)])
            decision(journal, first.store.epoch, (calls, task.id, count), (uses, asked.id, count))

        spend(1)
        database = first.store._database
        assert database is not None
        first.store._snapshots.take(database, Racing(), first.store._sequence, 1)  # type: ignore[arg-type]
        first.store._finish = lambda: None  # type: ignore[method-assign]  # killed
        first.store.close()
        second = Kept(tmp_path / "s")
        second.store.open(JournalTail(journal))
        row = second.live.task(task.id) or {}
        assert (row["calls"], second.live.uses(asked.id)) == (10, 1)
        second.store.close()


def test_what_a_child_overspent_is_charged_to_its_parent_durably_or_not_at_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same commit as the child's end; debts of every size are debts after a restart as well."""
    cost = int(EffectKind.EFFECT_COST)
    with kept(tmp_path / "s") as one:
        parent = one.open(budgets=Budgets(cost=11))
        asked = DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL, budgets=Budgets(cost=1))
        children = [one.run(tasks.delegate_task, asked, BY_A) for _ in range(3)]
        for child, over, owed in zip(children, (5, 4, 1), ((3, 0), (0, 1), (0, 2)), strict=True):
            one.live.redo([(cost, child.id, 1 + over)])
            before = {**(one.live.task(parent.id) or {}), "ttl_ns": 0}
            mend = commit_fails(monkeypatch, lmdb.DiskError("mdb_txn_commit: No space left on device"))
            with pytest.raises(ExhaustedError):
                one.run(tasks.complete_task, ChangeTask(id=child.id), BY_A)
            mend()
            assert before == {**(one.live.task(parent.id) or {}), "ttl_ns": 0}
            one.run(tasks.complete_task, ChangeTask(id=child.id), BY_A)
            row = one.live.task(parent.id) or {}
            assert (row["cost"], row["over_cost"]) == owed
    with kept(tmp_path / "s") as again:
        row = again.live.task(parent.id) or {}
        assert (row["cost"], row["over_cost"]) == (0, 2)


def test_records_that_are_gone_leave_nothing_to_spend(tmp_path: pathlib.Path) -> None:
    """What was spent there is not known any more, and a budget is never more than was granted."""
    folder = tmp_path / "journal"
    with Journal(folder, helper=False, segment_bytes=64 * 1024, cap_bytes=1 << 24) as journal:
        first = Kept(tmp_path / "s", snapshot_s=0.0)
        journal.append_bytes(event_record("x"))
        first.store.open(JournalTail(journal))
        limited, free = first.open(budgets=Budgets(calls=10)), first.open(budgets=Budgets())
        first.store.close()
        for _ in range(2000):
            journal.append_bytes(event_record("filler", "x" * 200))
        journal.maintain()
        journal.acknowledge(1500, b"\1" * 32)
        second = Kept(tmp_path / "s")
        second.store.open(JournalTail(journal))
        assert (second.live.task(limited.id) or {})["calls"] == 0
        assert (second.live.task(free.id) or {})["calls"] == -1
        second.store.close()


# ---------------------------------------------------------------- the disk


def test_the_file_grows_until_its_cap_and_says_so_then(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DB-06: MAP_FULL grows the map; at the cap the caller is told, reading and ending tasks go on (RT-02)."""
    monkeypatch.setattr("sidecar.authority.database.MAP_BYTES", 256 * 1024)
    with kept(tmp_path / "s", map_bytes_max=1 << 20) as one:
        opened = until_refused(
            r"`authority\.map_bytes`; nothing was changed", lambda _: one.open(purpose="x" * 900), 5000
        )
        assert opened > 200
        assert one.store.epoch == one.live.epoch == opened
        # A revocation is refused loudly, and in force all the same.
        until_refused(
            "and after a restart, but not yet in the store",
            lambda n: one.run(revoke, Revoke(kind=Kind.TOOL, key=f"a/{n}", reason="x" * 900), ALICE),
            50,
        )
        known = one.live.counts()["revocations"]
        with one.store.read() as draft:
            stored = sum(1 for _ in draft.rows.scan("revocations"))
        assert known == stored + 1
        assert [name for name, _, _ in one.noted].count("authority.not_durable") == 1
        assert one.store.problem == ""


def test_a_full_disk_fails_the_commit_and_not_the_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DB-05, RT-02: nothing of the commit is there, revocations are in force in memory, the next commit works."""
    with kept(tmp_path / "s") as one:
        parent = one.open(budgets=Budgets(calls=5))
        mend = commit_fails(monkeypatch, lmdb.DiskError("mdb_txn_commit: No space left on device"))
        with pytest.raises(ExhaustedError, match=r"disk of the authority store is full.*nothing was changed"):
            one.open()
        asked = DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=5))
        with pytest.raises(ExhaustedError):
            one.run(tasks.delegate_task, asked, BY_A)
        with pytest.raises(ExhaustedError):
            one.run(tasks.cancel_task, ChangeTask(id=parent.id), ALICE)
        row = one.live.task(parent.id)
        assert row is not None
        assert (row["calls"], row["state"]) == (5, "open")
        with pytest.raises(ExhaustedError, match="and after a restart, but not yet in the store"):
            one.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A), ALICE)
        with pytest.raises(ExhaustedError, match="not yet in the store"):
            one.run(disable_owner, ChangeOwner(id="alice"), BOB)
        assert one.live.counts()["revocations"] == one.live.counts()["owners"] == 1
        assert one.store.epoch == one.live.epoch == 1
        assert one.store.problem == ""
        mend()
        assert one.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A), ALICE).revocation.epoch == 2


def test_what_is_revoked_in_memory_alone_is_lifted_there_and_heard_of(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: nobody is locked out until a restart, and followers know what is in force here."""

    def watched() -> list[tuple[str, str]]:
        """What a watcher who begins from the epoch that it knows is sent."""
        seen = []
        asked = revocations_pb2.WatchRevocationsRequest(from_epoch=one.store.epoch)
        for message in REVOCATIONS_WATCH.stream(section, asked, lambda: True):  # type: ignore[arg-type]
            if message.HasField("beat"):
                return seen
            seen += [(message.WhichOneof("change"), message.put.key)]
        raise AssertionError

    with kept(tmp_path / "s") as one:
        section = SimpleNamespace(store=one.store, section=SimpleNamespace(beat_ms=1))
        one.run(revoke, Revoke(kind=Kind.TOOL, key="a/b", ttl_s=60), ALICE)
        number = one.store.feed.position()[1]
        mend = commit_fails(monkeypatch, lmdb.DiskError("mdb_txn_commit: No space left on device"))
        for asked in (Revoke(kind=Kind.AGENT, key=AGENT_A), Revoke(kind=Kind.TOOL, key="a/b")):
            with pytest.raises(ExhaustedError, match="in force"):
                one.run(revoke, asked, ALICE)
        with pytest.raises(ExhaustedError, match="in force"):
            one.run(disable_owner, ChangeOwner(id="alice"), BOB)
        taken = one.store.feed.take(number, 0)
        assert taken is not None
        assert [fed.change.table for fed in taken.changes] == ["revocations", "revocations", "owners"]
        held = [("put", "a/b"), ("put", AGENT_A), ("put", "a/b"), ("snapshot", "")]
        assert watched() == [("snapshot", ""), *held]
        assert one.run(lift, Lift(kind=Kind.AGENT, key=AGENT_A), BOB).key == AGENT_A
        assert one.run(enable_owner, ChangeOwner(id="alice"), BOB).active
        assert (one.live.counts()["revocations"], one.live.counts()["owners"]) == (1, 0)
        with pytest.raises(ExhaustedError, match="nothing was changed"):
            one.run(lift, Lift(kind=Kind.TOOL, key="a/b"), BOB)  # some of it is durable
        mend()
        one.run(revoke, Revoke(kind=Kind.TOOL, key="a/b", ttl_s=1), ALICE)
        (row,) = one.run(lambda draft: matching(draft, Kind.TOOL, "a/b"))
        assert (row.expires_ns, one.store.unwritten) == (0, {})
        one.run(lift, Lift(kind=Kind.TOOL, key="a/b"), BOB)
        assert one.live.counts()["revocations"] == 0


def test_a_snapshot_misses_nothing_that_becomes_durable_while_it_is_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower takes out what its snapshot does not hold, so it would allow for a moment what is revoked."""
    asked = Revoke(kind=Kind.AGENT, key=AGENT_A)
    with kept(tmp_path / "s") as one:
        mend = commit_fails(monkeypatch, lmdb.DiskError("mdb_txn_commit: No space left on device"))
        with pytest.raises(ExhaustedError, match="in force"):
            one.run(revoke, asked, ALICE)

        @contextlib.contextmanager
        def read() -> Iterator[Draft]:
            with one.store.read() as draft:
                yield draft
            mend()
            one.run(revoke, asked, ALICE)
            assert not one.store.unwritten

        store = SimpleNamespace(feed=one.store.feed, id="s", read=read, unwritten=one.store.unwritten)
        section = SimpleNamespace(store=store, section=SimpleNamespace(beat_ms=1))
        stream = REVOCATIONS_WATCH.stream(section, revocations_pb2.WatchRevocationsRequest(), lambda: True)  # type: ignore[arg-type]
        whole = itertools.takewhile(lambda message: message.snapshot != tasks_pb2.SNAPSHOT_MARK_END, stream)
        assert [message.put.key for message in whole if message.HasField("put")] == [AGENT_A]


def test_what_is_revoked_for_longer_in_memory_alone_does_not_end_by_its_durable_date(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there is room again the sweep of the shorter one makes the longer one durable."""
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock()) as one:
        one.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A, ttl_s=60), ALICE)
        mend = commit_fails(monkeypatch, lmdb.DiskError("mdb_txn_commit: No space left on device"))
        with pytest.raises(ExhaustedError, match="in force"):
            one.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A), ALICE)
        mend()
        hands.pass_s(61)
        wait_for("it to be durable", lambda: not one.store.unwritten)
        (row,) = one.run(lambda draft: matching(draft, Kind.AGENT, AGENT_A))
        assert row.expires_ns == 0
        assert one.live.counts()["revocations"] == 1


FULL = "mdb_txn_commit: No space left on device"


def refused_as_full(one: Kept, command: Any, asked: Any, by: Any = ALICE, match: str = "not yet in the store") -> None:
    with pytest.raises(ExhaustedError, match=match):
        one.run(command, asked, by)


def listed(one: Kept, size: int = 2) -> list[str]:
    """The keys of all revocations, page by page."""
    found, token = [], ""
    while True:
        with one.store.read() as draft:
            scan = functools.partial(scan_revocations, draft, b"")
            page = page_of(scan, b"", size, token, lambda _, __: True)
        found += [decode(value, Revocation).key for _, value in page.rows]
        token = page.token
        if not token:
            return found


def test_what_a_full_disk_refused_is_in_force_after_a_restart_and_durable_once_there_is_room(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was told that it is in force, and followers, are right over a restart too; nobody asks again in vain."""
    with kept(tmp_path / "s") as one:
        one.run(revoke, Revoke(kind=Kind.TOOL, key="a/b"), ALICE)
        mend = commit_fails(monkeypatch, lmdb.DiskError(FULL))
        for n in range(5):
            refused_as_full(one, revoke, Revoke(kind=Kind.AGENT, key=f"{AGENT_A}/{n}"))
        refused_as_full(one, disable_owner, ChangeOwner(id="mallory"), BOB)
        one.run(lift, Lift(kind=Kind.AGENT, key=f"{AGENT_A}/4"), BOB)
        assert sorted(listed(one)) == sorted(["a/b", *(f"{AGENT_A}/{n}" for n in range(4))])
        with one.store.read() as draft:
            assert [decode(value, Owner).id for _, value in scan_owners(draft, b"")] == ["mallory"]
        with pytest.raises(StateError, match="is disabled"):
            one.open(owner="mallory")
    monkeypatch.setattr("sidecar.authority.store.IDLE_S", 0.01)
    monkeypatch.setattr("sidecar.authority.undurable.AGAIN_S", 0.01)
    with kept(tmp_path / "s") as two:
        assert (two.live.counts()["revocations"], two.live.counts()["owners"]) == (5, 1)
        assert sorted(listed(two)) == sorted(["a/b", *(f"{AGENT_A}/{n}" for n in range(4))])
        two.run(lift, Lift(kind=Kind.AGENT, key=f"{AGENT_A}/3"), BOB)
        mend()
        wait_for("it to be durable", lambda: not two.store.unwritten)
        with two.store.read() as draft:
            assert sum(1 for _ in draft.rows.scan("revocations")) == 4
            assert sum(1 for _ in draft.rows.scan("owners")) == 1
        assert two.store.totals["revocation.kept"] == 3
    with kept(tmp_path / "s") as three:
        assert (three.live.counts()["revocations"], three.live.counts()["owners"]) == (4, 1)
        assert three.store.unwritten == {}


def test_what_a_full_disk_refused_ends_in_its_time_without_any_room(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = Hands()
    monkeypatch.setattr("sidecar.authority.store.IDLE_S", 0.01)
    monkeypatch.setattr("sidecar.authority.undurable.AGAIN_S", 0.01)
    with kept(tmp_path / "s", clock=hands.clock()) as one:
        commit_fails(monkeypatch, lmdb.DiskError(FULL))
        refused_as_full(one, revoke, Revoke(kind=Kind.AGENT, key=AGENT_A, ttl_s=60))
        refused_as_full(one, revoke, Revoke(kind=Kind.AGENT, key=AGENT_B))
        hands.pass_s(61)
        wait_for("its end", lambda: one.live.counts()["revocations"] == 1)
        assert listed(one) == [AGENT_B]


def test_where_the_room_is_missing_too_the_caller_hears_that_a_restart_forgets(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then followers must not keep it alone, where nobody could lift it: after a restart they begin with a snapshot."""
    with kept(tmp_path / "s") as one:
        commit_fails(monkeypatch, lmdb.DiskError(FULL))
        monkeypatch.setattr("sidecar.authority.held._write_at", lambda *_: fail_sync())
        refused_as_full(
            one, revoke, Revoke(kind=Kind.AGENT, key=AGENT_A), match="until a restart but it is not durable"
        )
        assert one.live.counts()["revocations"] == 1
        epoch = one.store.epoch
    with kept(tmp_path / "s") as two:
        assert two.live.counts()["revocations"] == 0
        assert (two.store.epoch, two.store.feed.behind(epoch)) == (epoch, None)


def test_a_write_of_what_is_held_that_breaks_off_leaves_the_one_before(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept(tmp_path / "s") as one:
        commit_fails(monkeypatch, lmdb.DiskError(FULL))
        refused_as_full(one, revoke, Revoke(kind=Kind.AGENT, key=AGENT_A))
        refused_as_full(one, revoke, Revoke(kind=Kind.AGENT, key=AGENT_B))
    path = tmp_path / "s" / HELD
    whole = path.read_bytes()
    # The second write went to the first place.
    path.write_bytes(whole[:40] + b"\xff" + whole[41:])
    with kept(tmp_path / "s") as two:
        assert listed(two) == [AGENT_A]
    path.write_bytes(b"\xff" * len(whole))
    with pytest.raises(StoreError, match=r"held\.bin` is damaged.*revoke again"), kept(tmp_path / "s"):
        pass


def test_a_command_that_breaks_on_a_full_disk_breaks_nothing_else(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run again to see what only takes away; a mistake of ours in it is that command's own."""

    def broken(_: Draft) -> None:
        raise KeyError("ours")

    with kept(tmp_path / "s") as one:
        mend = commit_fails(monkeypatch, lmdb.DiskError(FULL))
        refused_as_full(one, revoke, Revoke(kind=Kind.AGENT, key=AGENT_A))
        with pytest.raises(StoreError, match="internal error; nothing was changed"):
            one.store.call(broken)
        assert one.store.problem == ""
        mend()
        with pytest.raises(StoreError, match="internal error; nothing was changed"):
            one.store.call(broken)
        assert one.open().epoch


def test_the_first_answer_to_a_command_counts() -> None:
    """Also when its caller has not read it yet as the store breaks off."""
    ticket: Ticket[str] = Ticket(lambda _: "")
    ticket.answer("done")
    assert ticket._done.acquire(blocking=False)  # as its caller does, who is about to read
    ticket.answer(error=StoreError("stopped"))
    ticket._done.release()
    assert ticket.wait() == "done"


def test_commands_of_one_commit_open_no_more_tasks_than_an_agent_may_have(
    tmp_path: pathlib.Path,
) -> None:
    """What the commands before will open counts, and what they did not open after all does not."""
    with kept(tmp_path / "s", limits=Limits(agent_tasks_max=3)) as one:
        suspended = one.open()
        one.run(tasks.suspend_task, ChangeTask(id=suspended.id), ALICE)
        asked = [
            Ticket(lambda draft: tasks.open_task(draft, task_of(), ALICE)),
            Ticket(lambda draft: tasks.open_task(draft, task_of(ttl_s=0), ALICE)),
            Ticket(lambda draft: tasks.open_task(draft, task_of(), ALICE)),
            Ticket(lambda draft: tasks.resume_task(draft, ChangeTask(id=suspended.id), BOB)),
            Ticket(lambda draft: tasks.open_task(draft, task_of(), ALICE)),
        ]
        with one.store._turn:
            one.store._commit(list(asked))
        errors = [type(ticket.error) for ticket in asked]
        assert errors == [type(None), InvalidError, type(None), type(None), ExhaustedError]
        assert one.live.open_tasks(AGENT_A) == 3


@contextlib.contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Writes end there, as on a disk that is full: in the middle of what was to be written, then EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def until_full(ask: Callable[[int], object]) -> tuple[int, str]:
    """How often it was done, and what was said then."""
    for number in range(10_000):
        try:
            ask(number)
        except ExhaustedError as error:
            return number, str(error)
    raise AssertionError("the disk is never full")


def test_a_write_that_ends_where_the_room_does_is_a_full_disk(tmp_path: pathlib.Path) -> None:
    """LMDB calls it an input/output error; the store is not latched, and what takes authority away is in force."""
    with kept(tmp_path / "s") as one:
        for _ in range(50):
            one.open()
        file = next((tmp_path / "s").glob("state-*.mdb"))
        with files_no_longer_than(file.stat().st_size + 2048):
            opened, said = until_full(lambda _: one.open(purpose="p" * 400))
            assert "is full" in said
            assert "nothing was changed" in said
            tools = [Revoke(kind=Kind.TOOL, key=f"mail/{number}") for number in range(10_000)]
            revoked, said = until_full(lambda number: one.run(revoke, tools[number], ALICE))
            assert "in force all the same, and after a restart" in said
            assert one.live.counts()["revocations"] == revoked + 1
        assert one.store.problem == ""
        one.open()
        assert one.store.count("tasks") == 50 + opened + 1
    with kept(tmp_path / "s") as one:
        assert one.live.counts()["revocations"] == revoked + 1


def test_what_a_commit_delegates_and_ends_goes_back_whole(tmp_path: pathlib.Path) -> None:
    """The task above that of a task that is delegated by one command and ends by the next of the same commit gets all
    of it back, and nothing for what was delegated by a command that failed."""
    with kept(tmp_path / "s") as one:
        root = one.open(budgets=Budgets(20, 200, -1))
        ask = DelegateTask(parent=root.id, agent=AGENT_B, scope=ALL, budgets=Budgets(9, 90, 50))
        middle = one.run(tasks.delegate_task, ask, BY_A)
        below = DelegateTask(parent=middle.id, agent=AGENT_B, scope=ALL, budgets=Budgets(5, 50, 20))

        def fails(draft: Draft) -> None:
            tasks.delegate_task(draft, below, BY_B)
            raise StateError("not now")

        asked: list[Ticket[Any]] = [
            Ticket(fails),
            Ticket(lambda draft: tasks.delegate_task(draft, below, BY_B)),
            Ticket(lambda draft: tasks.complete_task(draft, ChangeTask(id=middle.id), ALICE)),
        ]
        with one.store._turn:
            one.store._commit(list(asked))
        assert type(asked[0].error) is StateError
        assert asked[2].wait().refunded == Budgets(9, 90, 0)
        child = one.live.task(asked[1].wait().id)
        assert child is not None
        assert child["state"] == "cancelled"
        left = one.live.task(root.id)
        assert left is not None
        assert (left["calls"], left["cost"], left["bytes"]) == (20, 200, -1)


def test_an_approval_answers_for_no_step_up_that_the_same_commit_revoked_after_it(tmp_path: pathlib.Path) -> None:
    """The commands of a commit have one moment; who decided before cannot have known of what comes behind."""
    with kept(tmp_path / "s") as one:
        pdp = make_pdp(one.live)
        task = one.open(AGENT, owner="ann")
        step_up = Revoke(kind=Kind.AGENT, key=AGENT, mode=Mode.STEP_UP)
        one.run(revoke, step_up, ALICE)
        said = one.live.step_up(ask(pdp, "write").evaluation_id)
        assert said is not None
        about = {key: said[key] for key in ("digest", "class_digest", "generation", "data_level", "cost")}
        asked = one.run(request_approval, RequestApproval(denial=denial(task, **about)), BY_A)
        granted = DecideApproval(id=asked.id, approve=True)
        tickets: list[Ticket[Any]] = [
            Ticket(lambda draft: decide_approval(draft, granted, BOB)),
            Ticket(lambda draft: revoke(draft, step_up, ALICE)),
        ]
        with one.store._turn:
            one.store._commit(list(tickets))
        assert [ticket.error for ticket in tickets] == [None, None]
        assert one.live.uses(asked.id) == 1
        assert outcome(ask(pdp, "write")) == ("STEP_UP", "revoked.step_up")
        asked = one.run(request_approval, RequestApproval(denial=denial(task, **about)), BY_A)
        one.run(decide_approval, DecideApproval(id=asked.id, approve=True), BOB)
        assert outcome(ask(pdp, "write")) == ("ALLOW", "ok")


def test_a_sweep_that_fails_is_tried_again_after_a_while(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no reason to try without pause; what time has ended is not allowed meanwhile all the same."""
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock()) as one:
        task = one.open(ttl_s=10)
        mend = commit_fails(monkeypatch, lmdb.DiskError("No space left on device"))
        tries: list[float] = []
        real = one.store._failed
        monkeypatch.setattr(one.store, "_failed", lambda *given: (tries.append(time.monotonic()), real(*given)))
        hands.pass_s(11)
        with pytest.raises(StateError, match="has expired"):
            one.run(tasks.complete_task, ChangeTask(id=task.id), ALICE)
        wait_for("a try", lambda: len(tries) > 1)
        with pytest.raises(ExhaustedError):
            one.open()
        assert len(tries) <= 4
        mend()
        hands.pass_s(10)
        one.open()
        wait_for("the end", lambda: one.store.totals["task.expired"])


def test_a_disk_that_fails_latches_the_store_until_all_of_it_stands_in_a_fresh_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DB-03, RT-05: after EIO nothing is written and nothing that needs the state is allowed, until a copy verifies."""
    monkeypatch.setattr("sidecar.authority.store.RETRY_S", 0.05)
    changes: list[str] = []
    made: list[Kept] = []
    with kept(tmp_path / "s", changed=lambda: changes.append(made[0].store.problem if made else "")) as one:
        made.append(one)
        task = one.open()
        before = sorted(path.name for path in (tmp_path / "s").glob("state-*.mdb"))
        mend = commit_fails(monkeypatch, lmdb.Error("mdb_txn_commit: Input/output error"))
        healing = threading.Event()
        monkeypatch.setattr(
            "sidecar.authority.rewrite.sync_file", lambda path: sync_file(path) if healing.is_set() else fail_sync()
        )
        with pytest.raises(StoreError, match="disk of the authority store failed"):
            one.open()
        assert one.store.problem
        assert changes[-1]
        with pytest.raises(StoreError, match="disk of the authority store failed"):
            one.open()
        mend()
        with pytest.raises(StoreError, match="failed"):
            one.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A), ALICE)
        healing.set()
        wait_for("healed", lambda: not one.store.problem)
        assert changes[-1] == ""
        after = sorted(path.name for path in (tmp_path / "s").glob("state-*.mdb"))
        assert len(after) == 1
        assert after != before
        assert one.run(tasks.complete_task, ChangeTask(id=task.id), ALICE).task.state is TaskState.COMPLETED
        epoch = one.store.epoch
    with kept(tmp_path / "s") as two:
        assert two.store.epoch == epoch


def fail_sync() -> None:
    raise OSError(5, "Input/output error")


def commit_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Callable[[], None]:
    """Every commit fails from now on; what is returned makes the disk whole again."""
    real = Database.write

    @contextlib.contextmanager
    def write(self: Database) -> Any:
        with contextlib.suppress(_Abort), real(self) as rows:
            yield rows
            raise _Abort
        raise error

    monkeypatch.setattr(Database, "write", write)
    monkeypatch.setattr("sidecar.authority.store.AuthorityStore._snapshot", lambda *_: None)
    return lambda: monkeypatch.setattr(Database, "write", real)


def until_refused(match: str, attempt: Callable[[int], object], most: int) -> int:
    """How often `attempt` worked before it was refused."""
    for n in range(most):
        try:
            attempt(n)
        except ExhaustedError as error:
            assert re.search(match, str(error))  # noqa: PT017  how often is what is asked
            return n
    raise AssertionError(f"{most} times and never refused")


class _Abort(Exception):
    """Makes LMDB forget a transaction."""


def test_default_durability_is_never_weakened() -> None:
    """DB-02: sync and metasync stay on, the map is never writable, locks are never off."""
    for path in pathlib.Path(__file__).parents[2].joinpath("sidecar", "authority").glob("*.py"):
        text = path.read_text()
        for word in ("sync=False", "metasync", "writemap", "lock=False", "map_async"):
            assert word not in text, path


def test_readers_are_short_and_the_file_can_grow_beside_them(tmp_path: pathlib.Path) -> None:
    """DB-07, DB-08: a reader keeps the map from growing only while it reads, and gives its slot back."""
    database = Database(tmp_path / "x.mdb", MAP_BYTES)
    for _ in range(600):  # more than there are slots
        with database.read() as rows:
            assert rows.epoch == 0
    reading, grown = threading.Event(), threading.Event()

    def grow() -> None:
        reading.wait()
        database.grow()
        grown.set()

    thread = threading.Thread(target=grow)
    thread.start()
    with database.read() as rows:
        reading.set()
        assert not grown.wait(0.05)
        assert rows.count("tasks", 1) == 0
    thread.join()
    assert grown.is_set()
    database.close()
    with pytest.raises(StoreError, match="is closed"), database.read():
        pass


def test_a_reader_that_takes_too_long_reads_no_further(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DB-07, DB-10: also one that was stopped in between. It is counted."""
    now_s = 100.0
    monkeypatch.setattr("sidecar.authority.database.time", SimpleNamespace(monotonic=lambda: now_s))
    with kept(tmp_path / "s") as one:
        for _ in range(3):
            one.open()
        with one.store.read() as draft:
            rows = draft.rows.scan("tasks")
            next(rows)
            now_s += READ_S / 2
            next(rows)
        for attempt in (lambda draft: next(draft.rows.scan("tasks")), lambda draft: draft.rows.get("tasks", b"x")):

            def late(attempt: Callable[[Draft], object] = attempt) -> None:
                nonlocal now_s
                with one.store.read() as draft:
                    now_s += 2 * READ_S
                    attempt(draft)

            with pytest.raises(StoreError, match="took more than 1 s"):
                late()
        assert one.store.old_readers == 2


# ---------------------------------------------------------------- old copies and damage


def test_an_old_copy_of_the_file_is_noticed_by_its_manifest(tmp_path: pathlib.Path) -> None:
    """DB-18, RT-09: what was revoked meanwhile must not come back unseen."""
    folder = tmp_path / "s"
    with kept(folder) as one:
        one.open()
    (copy,) = folder.glob("state-*.mdb")
    shutil.copy(copy, tmp_path / "yesterday")
    with kept(folder) as one:
        one.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A), ALICE)
    shutil.copy(tmp_path / "yesterday", copy)
    with pytest.raises(StoreError, match=r"is older \(epoch 1\) than what this sidecar has decided by \(epoch 2\)"):
        Kept(folder).store.open()


def test_an_old_copy_of_the_whole_folder_is_noticed_by_the_journal(tmp_path: pathlib.Path) -> None:
    """DB-18: the epoch stands in every record as well."""
    with Journal(tmp_path / "journal", helper=False) as journal:
        with kept(tmp_path / "s") as one:
            one.open()
        shutil.copytree(tmp_path / "s", tmp_path / "yesterday")
        journal.append_bytes(event_record("revoked", epoch=2))
        again = Kept(tmp_path / "yesterday")
        with pytest.raises(StoreError, match=r"older \(epoch 1\).*\(epoch 2\)"):
            again.store.open(JournalTail(journal))
        again.store.close()
        assert journal_epoch(tmp_path / "journal") == 2
        journal.maintain()
        # What a killed process leaves beside it may be of no epoch.
        while len(list_segments(tmp_path / "journal")) < 4:
            assert journal.append_bytes(gap_record(1, 2, "x" * 200))
        assert journal_epoch(tmp_path / "journal") == 2


def test_a_backup_is_restored_unless_it_is_older_than_what_was_decided_by(tmp_path: pathlib.Path) -> None:
    """RT-09: by force it is, and its epoch then goes on ahead of everything that was."""
    with kept(tmp_path / "s") as one:
        task = one.open()
        epoch, size = one.store.backup(tmp_path / "copy")
        assert (epoch, size > 0) == (1, True)
        with pytest.raises(StateError, match="exists"):
            one.store.backup(tmp_path / "copy")
        with pytest.raises(StoreError, match="another process has the authority store"):
            restore(tmp_path / "copy", tmp_path / "s", map_bytes_max=MAP_BYTES)
        one.open()
    with pytest.raises(StateError, match="the backup is at epoch 1, the sidecar has decided by 2"):
        restore(tmp_path / "copy", tmp_path / "s", map_bytes_max=MAP_BYTES)
    with pytest.raises(StateError, match="decided by 7"):
        restore(tmp_path / "copy", tmp_path / "new", decided_by=7, map_bytes_max=MAP_BYTES)
    assert restore(tmp_path / "copy", tmp_path / "new", decided_by=1, map_bytes_max=MAP_BYTES) == 1
    forced = restore(tmp_path / "copy", tmp_path / "s", decided_by=7, force=True, map_bytes_max=MAP_BYTES)
    assert forced > 7
    for folder, at in (("new", 1), ("s", forced)):
        with kept(tmp_path / folder) as two:
            assert two.store.epoch == at
            assert two.live.counts()["tasks"] == 1
            assert two.live.task(task.id) is not None
            assert two.open().epoch == at + 1


@pytest.mark.parametrize("what", ["manifest", "file", "lost", "missing"])
def test_a_damaged_backup_is_refused(tmp_path: pathlib.Path, what: str) -> None:
    with kept(tmp_path / "s") as one:
        one.open()
        one.store.backup(tmp_path / "copy")
    (file,) = (tmp_path / "copy").glob("state-*.mdb")
    manifest = tmp_path / "copy" / "manifest.json"
    if what == "manifest":
        manifest.write_text(manifest.read_text().replace('"epoch": 1', '"epoch": 9'))
    elif what == "file":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif what == "lost":
        file.unlink()
    else:
        manifest.unlink()
    with pytest.raises(StoreError):
        restore(tmp_path / "copy", tmp_path / "new", map_bytes_max=MAP_BYTES)
    assert not list((tmp_path / "new").glob("state-*")) if (tmp_path / "new").exists() else True


@pytest.mark.parametrize("what", ["row", "manifest", "no manifest", "no file"])
def test_a_damaged_store_is_not_opened(tmp_path: pathlib.Path, what: str) -> None:
    """RT-05: what cannot be read is not guessed; the text says what to do."""
    folder = tmp_path / "s"
    with kept(folder) as one:
        one.open(purpose="a purpose to be found")
    (file,) = folder.glob("state-*.mdb")
    if what == "row":
        file.write_bytes(file.read_bytes().replace(b"a purpose to be found", b"a purpose to be FOUND"))
    elif what == "manifest":
        (folder / "manifest.json").write_text("{}")
    elif what == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        file.unlink()
    broken = Kept(folder)
    with pytest.raises(StoreError, match="restore a"):
        broken.store.open()
    with pytest.raises(StoreError):
        broken.open()
    broken.store.close()


def test_one_process_has_a_store(tmp_path: pathlib.Path) -> None:
    with kept(tmp_path / "s"):
        second = Kept(tmp_path / "s")
        with pytest.raises(StoreError, match="another process has the authority store"):
            second.store.open()
        second.store.close()


def test_a_folder_that_others_may_enter_or_change_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DB-17: neither other users, nor another machine."""
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(StoreError, match="others may enter"):
        Kept(tmp_path / "open").store.open()
    monkeypatch.setattr("sidecar.authority.folder.filesystem_magic", lambda _: 0x6969)
    with pytest.raises(StoreError, match=r"remote file system \(nfs\)"):
        Kept(tmp_path / "s").store.open()


def test_a_child_and_its_parent_that_end_in_one_commit_give_back_all_that_is_left(tmp_path: pathlib.Path) -> None:
    """What a child gives back is its parent's at once, for whatever comes behind it in the same commit."""
    with kept(tmp_path / "s") as one:
        root = one.open(budgets=Budgets(calls=20))
        at = root
        for calls in (12, 6):
            asked = DelegateTask(parent=at.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=calls))
            at = one.run(tasks.delegate_task, asked, BY_A)

        def both(draft: Draft) -> None:
            tasks.complete_task(draft, ChangeTask(id=at.id), ALICE)
            tasks.complete_task(draft, ChangeTask(id=at.parent), ALICE)

        one.store.call(both)
        row = one.live.task(root.id)
        assert row is not None
        assert row["calls"] == 20


# ---------------------------------------------------------------- size


def test_a_large_store_is_loaded_in_batches(tmp_path: pathlib.Path) -> None:
    """RT-04: tasks and revocations by the hundred thousand; a long run plays the sizes that are promised."""
    reads = Scope(tools=("docs/search",), actions=("read",), any_dest=True, max_level=1)

    def fill(draft: Draft, first: int) -> None:
        for n in range(first, first + 500):
            revoke(draft, Revoke(kind=Kind.CREDENTIAL, key=f"{n:x}"), ALICE)
            if n % 10 == 0:
                tasks.open_task(draft, task_of(f"spiffe://corp.example/agents/{n}", scope=reads), ALICE)

    with kept(tmp_path / "s") as one:
        for first in range(0, 10 * ROWS, 500):
            one.run(fill, first)
        assert one.live.counts() == {"tasks": ROWS, "revocations": 10 * ROWS, "owners": 0, "approvals": 0}
    applied: list[int] = []
    two = Kept(tmp_path / "s")
    view = _Counting(two.live, applied)
    two.store.live = view  # type: ignore[assignment]
    two.store.open()
    assert two.live.counts() == {"tasks": ROWS, "revocations": 10 * ROWS, "owners": 0, "approvals": 0}
    assert max(applied) <= 5000
    two.store.close()


class _Counting:
    """A native view that says how much it was given at once."""

    def __init__(self, live: Any, applied: list[int]) -> None:
        self._live, self._applied = live, applied

    def apply(self, changes: Any, epoch: int) -> None:
        self._applied.append(len(changes))
        self._live.apply(changes, epoch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live, name)


def test_a_closed_store_says_so(tmp_path: pathlib.Path) -> None:
    with kept(tmp_path / "s") as one:
        task = one.open()
    for attempt in (one.open, lambda: one.run(tasks.complete_task, ChangeTask(id=task.id), ALICE)):
        with pytest.raises(StoreError):
            attempt()
    with pytest.raises(StoreError), one.store.read():
        pass
    with pytest.raises(StoreError):
        one.store.backup(tmp_path / "copy")
