"""What a followed stream changes: a snapshot replaces what was held, and budgets move by what was drawn there."""

import contextlib
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc
import pytest

from fastpath.authority import Live
from fastpath.journal import Journal
from fastpath.spending import EffectKind
from sidecar._proto.remit.authority.v1 import owners_pb2, revocations_pb2, tasks_pb2
from sidecar.authority.errors import InvalidError
from sidecar.authority.follow import BATCH, Follower, OwnerStream, RevocationStream, Stream, TaskStream
from sidecar.authority.followed import Followed
from sidecar.authority.load import JournalTail
from sidecar.authority.messages import task_message
from sidecar.authority.rows import Budgets, Spent, Task, TaskState
from sidecar.config_authority import Follow
from sidecar.demo.processes import wait_for
from tests.fix_live import AGENT, BOOT, NOW, SECOND, ask, make_pdp, outcome
from tests.fix_store import AGENT_A, ALL, MAP_BYTES
from tests.unit.test_authority_store import decision

BEGIN, END = tasks_pb2.SNAPSHOT_MARK_BEGIN, tasks_pb2.SNAPSHOT_MARK_END
UNLIMITED = Budgets()
FAR_NS = 4_000_000_000 * 10**9


def task(
    id_: str = "t", left: Budgets = UNLIMITED, state: TaskState = TaskState.OPEN, expires_ns: int = FAR_NS
) -> tasks_pb2.TasksChange:
    row = Task(
        id=id_, agent=AGENT_A, owner="alice", purpose="p", state=state, scope=ALL, opened_ns=1, expires_ns=expires_ns,
        opened_by="alice", granted=Budgets(100, -1, -1),
    )  # fmt: skip
    return tasks_pb2.TasksChange(epoch=1, put=task_message(row, left))


def live_row(id_: str) -> dict[str, Any]:
    """A task for the native view."""
    row = {"id": id_, "agent": AGENT_A, "owner": "alice", "purpose": "p", "state": "open", "scope": {"any_tool": True}}
    return {**row, "depth": 0, "max_depth": 0, "expires_unix_ns": FAR_NS, "calls": 5, "cost": -1, "bytes": -1}


def revocation(key: str, **more: Any) -> revocations_pb2.Revocation:
    return revocations_pb2.Revocation(kind=revocations_pb2.REVOCATION_KIND_TOOL, key=key, **more)


def feed(stream: Stream, live: Live, *messages: Any) -> None:
    for message in messages:
        live.apply(stream.take(message), 1)
        stream.applied()


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


def test_a_followed_revocation_ends_when_the_authority_says_so() -> None:
    """Not by a clock of ours, which may have been set; without the authority nothing is decided for long."""
    live, revocations = Live(), RevocationStream()
    live.put_clock(boot_ns=BOOT, unix_ns=NOW)
    change = revocations_pb2.RevocationsChange
    row = revocations_pb2.Revocation(
        kind=revocations_pb2.REVOCATION_KIND_AGENT, key=AGENT, expires_unix_ns=NOW + SECOND
    )
    feed(revocations, live, change(put=row))
    live.put_clock(boot_ns=BOOT + 2 * SECOND, unix_ns=NOW + 2 * SECOND)
    pdp = make_pdp(live)
    assert outcome(ask(pdp)) == ("DENY", "revoked.agent")
    feed(revocations, live, change(lifted=row))
    assert outcome(ask(pdp)) == ("DENY", "task.none")


def ttl_s(live: Live, id_: str) -> int:
    row = live.task(id_)
    assert row is not None
    return int(row["ttl_ns"]) // SECOND


def test_a_clock_that_went_forward_and_back_ends_no_followed_task_for_good() -> None:
    """Neither one that was there nor one that came meanwhile; as long as the clock is ahead both are over."""
    live, tasks = Live(followed=True), TaskStream()

    def at(seconds: int, wall_s: int) -> None:
        live.put_clock(boot_ns=BOOT + seconds * SECOND, unix_ns=NOW + wall_s * SECOND)
        live.put_floor(NOW + seconds * SECOND)

    at(0, 0)
    feed(tasks, live, task("a", expires_ns=NOW + 100 * SECOND))
    at(1, 7200)
    feed(tasks, live, task("b", expires_ns=NOW + 100 * SECOND))
    assert (ttl_s(live, "a") <= 0, ttl_s(live, "b") <= 0) == (True, True)
    at(2, 2)
    assert (ttl_s(live, "a"), ttl_s(live, "b")) == (98, 98)
    feed(tasks, live, task("a", expires_ns=NOW + 50 * SECOND))
    assert (ttl_s(live, "a"), ttl_s(live, "b")) == (48, 98)


def test_a_clock_that_was_set_back_extends_no_followed_task() -> None:
    """Time goes on from what the authority said last, also while nothing comes from there."""
    live, tasks = Live(followed=True), TaskStream()
    live.put_clock(boot_ns=BOOT, unix_ns=NOW - 7200 * SECOND)
    feed(tasks, live, task("a", expires_ns=NOW + 100 * SECOND))
    live.put_floor(NOW)
    assert ttl_s(live, "a") == 100
    live.put_clock(boot_ns=BOOT + 60 * SECOND, unix_ns=NOW - 9000 * SECOND)
    assert ttl_s(live, "a") == 40


def test_a_follower_takes_the_time_from_the_beats(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted()
    ends_ns = time.time_ns() + 100 * SECOND

    def tasks(_: int) -> Iterator[Any]:
        yield tasks_pb2.TasksChange(epoch=7, snapshot=BEGIN)
        yield task("t", expires_ns=ends_ns)
        yield tasks_pb2.TasksChange(epoch=7, snapshot=END)
        yield from beats(tasks_pb2.TasksChange, 7)

    script.scripts["tasks"] = [tasks]
    with following(tmp_path / "s", script, monkeypatch) as (follower, live):
        live.put_clock(unix_ns=time.time_ns() - 7200 * SECOND)
        wait_for("the first beats", lambda: not follower.problem)
        assert 0 < ttl_s(live, "t") <= 100


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


# ---------------------------------------------------------------- a stream that breaks, an authority that is another


class Scripted:
    """What the streams of one authority say, connection by connection; each then goes on beating or breaks."""

    def __init__(self) -> None:
        self.asked: dict[str, list[int]] = {"tasks": [], "revocations": [], "owners": []}
        self.scripts: dict[str, list[Callable[[int], Iterator[Any]]]] = {}

    def opened(self, stream: Stream, kind: Any) -> Any:
        """Stands in for Stream.open."""
        self.asked[stream.name].append(stream.epoch)
        script = self.scripts.get(stream.name)
        if script:
            return Call(script.pop(0)(stream.epoch))
        return Call(steady(kind, 7))


class Broken(grpc.RpcError):
    """The other side is gone."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "gone"


class Call:
    """A stream of gRPC, as far as a follower knows it."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self._messages = messages
        self._ended = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        for message in self._messages:
            if self._ended.is_set():
                return
            yield message

    def cancel(self) -> None:
        self._ended.set()


def beat(kind: Any, epoch: int) -> Any:
    return kind(epoch=epoch, beat=tasks_pb2.Beat(time_unix_ns=time.time_ns(), interval_ms=100))


def beats(kind: Any, epoch: int) -> Iterator[Any]:
    """Until somebody ends the stream, at the pace of a leader in a hurry."""
    while True:
        yield beat(kind, epoch)
        time.sleep(0.01)


def steady(kind: Any, epoch: int, store: str = "") -> Iterator[Any]:
    """An empty snapshot, and beats until somebody ends the stream."""
    yield kind(epoch=epoch, store=store, snapshot=BEGIN)
    yield kind(epoch=epoch, snapshot=END)
    yield from beats(kind, epoch)


@contextlib.contextmanager
def following(
    folder: pathlib.Path, script: Scripted, monkeypatch: pytest.MonkeyPatch, journal: JournalTail | None = None
) -> Iterator[tuple[Follower, Live]]:
    for kind, message in (
        (TaskStream, tasks_pb2.TasksChange),
        (RevocationStream, revocations_pb2.RevocationsChange),
        (OwnerStream, owners_pb2.OwnersChange),
    ):
        monkeypatch.setattr(kind, "open", lambda self, _, message=message: script.opened(self, message))
    folder.mkdir(mode=0o700, exist_ok=True)
    live = Live(followed=True)
    kept = Followed(folder, MAP_BYTES)
    channel = cast("grpc.Channel", contextlib.nullcontext())
    follower = Follower(Follow(socket="s"), live, kept, lambda: channel, lambda _, __: None, lambda: None)
    follower.start(journal)
    try:
        yield follower, live
    finally:
        follower.stop()


def test_an_epoch_that_broke_off_in_the_middle_comes_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More changes than one batch: what was not sent must be asked for, or tasks that ended stay open here for good."""
    ids = [f"t{i}" for i in range(BATCH + 2)]

    def breaks(_: int) -> Iterator[Any]:
        yield tasks_pb2.TasksChange(epoch=6, snapshot=BEGIN)
        for id_ in ids:
            yield task(id_)
        yield tasks_pb2.TasksChange(epoch=6, snapshot=END)
        yield beat(tasks_pb2.TasksChange, 6)
        for id_ in ids[: BATCH + 1]:
            yield tasks_pb2.TasksChange(epoch=7, forget=id_)
        raise Broken

    def goes_on(epoch: int) -> Iterator[Any]:
        if epoch < 7:
            for id_ in ids:
                yield tasks_pb2.TasksChange(epoch=7, forget=id_)
        yield from beats(tasks_pb2.TasksChange, 7)

    script = Scripted()
    script.scripts["tasks"] = [breaks, goes_on]
    with following(tmp_path / "s", script, monkeypatch) as (follower, live):
        wait_for("the epoch", lambda: follower.epoch == 7)
        assert script.asked["tasks"] == [0, 6]
        assert live.counts()["tasks"] == 0


def test_what_ended_before_a_break_ends_by_the_snapshot_that_follows_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority that is restarted has nothing but a snapshot, and ended tasks and lifted revocations are in none.

    What was told of them before the break was read and not yet in force.
    """
    change = revocations_pb2.RevocationsChange

    def breaks(kind: Any, put: Any, end: Any) -> Iterator[Any]:
        yield kind(epoch=6, snapshot=BEGIN)
        yield put
        yield kind(epoch=6, snapshot=END)
        yield beat(kind, 6)
        yield end
        raise Broken

    script = Scripted()
    script.scripts["tasks"] = [
        lambda _: breaks(tasks_pb2.TasksChange, task("a"), task("a", state=TaskState.COMPLETED)),
        lambda _: steady(tasks_pb2.TasksChange, 7),
    ]
    script.scripts["revocations"] = [
        lambda _: breaks(change, change(put=revocation("x/1")), change(lifted=revocation("x/1"))),
        lambda _: steady(change, 7),
    ]
    with following(tmp_path / "s", script, monkeypatch) as (follower, live):
        wait_for("the epoch", lambda: follower.epoch == 7)
        assert live.counts() == {"tasks": 0, "revocations": 0, "owners": 0, "approvals": 0}


def test_a_draw_that_was_told_before_a_break_is_taken_when_it_is_told_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a child was given is not left to its parent as well."""

    def breaks(_: int) -> Iterator[Any]:
        yield tasks_pb2.TasksChange(epoch=6, snapshot=BEGIN)
        yield task("a", Budgets(100, -1, -1))
        yield tasks_pb2.TasksChange(epoch=6, snapshot=END)
        yield beat(tasks_pb2.TasksChange, 6)
        yield task("a", Budgets(40, -1, -1))
        raise Broken

    def goes_on(_: int) -> Iterator[Any]:
        yield task("a", Budgets(40, -1, -1))
        yield from beats(tasks_pb2.TasksChange, 7)

    script = Scripted()
    script.scripts["tasks"] = [breaks, goes_on]
    with following(tmp_path / "s", script, monkeypatch) as (follower, live):
        wait_for("the epoch", lambda: follower.epoch == 7)
        assert (live.task("a") or {})["calls"] == 40


def test_a_snapshot_that_broke_off_keeps_nothing_from_being_fresh(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next connection may go on with changes alone."""

    def breaks(_: int) -> Iterator[Any]:
        yield tasks_pb2.TasksChange(epoch=7, snapshot=BEGIN)

    script = Scripted()
    script.scripts["tasks"] = [breaks, lambda _: (beat(tasks_pb2.TasksChange, 7) for _ in iter(int, 1))]
    with following(tmp_path / "s", script, monkeypatch) as (follower, _):
        wait_for("the epoch", lambda: follower.epoch == 7)


@pytest.mark.parametrize("restart", [False, True])
def test_an_authority_that_was_rolled_back_is_not_believed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    """DB-18 at a follower: what was revoked in between would come back. Also after a restart of the follower."""
    change = revocations_pb2.RevocationsChange

    def first(_: int) -> Iterator[Any]:
        yield change(epoch=7, snapshot=BEGIN)
        yield change(epoch=7, put=revocation("x/1"))
        yield change(epoch=7, snapshot=END)
        yield beat(change, 9)

    asked = threading.Event()

    def older(_: int) -> Iterator[Any]:
        yield from (change(epoch=8, snapshot=BEGIN), change(epoch=8, snapshot=END))
        asked.set()  # never: the first of these ends the stream
        yield beat(change, 8)

    script = Scripted()
    script.scripts["revocations"] = [first]
    if not restart:
        script.scripts["revocations"] += [older, older]
    with following(tmp_path / "s", script, monkeypatch) as (follower, live):
        wait_for("the epoch", lambda: follower._kept.epoch == 9)
        if not restart:
            wait_for("another try", lambda: len(script.asked["revocations"]) >= 3)
            assert live.counts()["revocations"] == 1
    if restart:
        script.scripts["revocations"] = [older, older]
        with following(tmp_path / "s", script, monkeypatch) as (follower, live):
            wait_for("another try", lambda: len(script.asked["revocations"]) >= 4)
            assert follower.problem
    assert not asked.is_set()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("snapshot", [False, True])
def test_an_authority_with_another_store_is_not_believed_however_far_it_is(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, restart: bool, snapshot: bool
) -> None:
    """It overtook the epoch while the follower was cut off: what was revoked in the store before is not in it."""
    change = revocations_pb2.RevocationsChange

    def first(_: int) -> Iterator[Any]:
        yield change(epoch=7, store="one", snapshot=BEGIN)
        yield change(epoch=7, put=revocation("x/1"))
        yield change(epoch=7, snapshot=END)
        yield beat(change, 7)

    believed = threading.Event()

    def other(_: int) -> Iterator[Any]:
        yield change(epoch=9, store="two", **({"snapshot": BEGIN} if snapshot else {}))
        believed.set()  # never: the first of these ends the stream
        yield change(epoch=9, lifted=revocation("x/1"))
        if snapshot:
            yield change(epoch=9, snapshot=END)
        yield beat(change, 9)

    script = Scripted()
    script.scripts["revocations"] = [first] if restart else [first, other, other]
    with following(tmp_path / "s", script, monkeypatch) as (follower, live):
        wait_for("the store", lambda: follower._kept.store == "one")
        if not restart:
            wait_for("another try", lambda: len(script.asked["revocations"]) >= 3)
            assert live.counts()["revocations"] == 1
    if restart:
        tries = len(script.asked["revocations"])
        script.scripts["revocations"] = [other, other]
        with following(tmp_path / "s", script, monkeypatch) as (follower, _):
            wait_for("another try", lambda: len(script.asked["revocations"]) >= tries + 2)
            assert follower.problem
    assert not believed.is_set()


def test_a_new_file_takes_no_epoch_from_its_journal(tmp_path: pathlib.Path) -> None:
    """Who removed the file takes the authority as it is; a journal may name another one's epochs."""
    with Journal(tmp_path / "journal", helper=False) as journal:
        tail = JournalTail(journal)
        decision(journal, 70)
        kept = Followed(tmp_path, MAP_BYTES)
        kept.open(tail)
        assert kept.epoch == 0
        kept.reach(3)
        kept.close()
        again = Followed(tmp_path, MAP_BYTES)
        again.open(tail)
        assert again.epoch == 70
        again.close()


def test_what_is_kept_of_an_authority_grows_with_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full map is doubled while the sidecar runs, up to its cap; what is beyond that is said and not kept."""
    monkeypatch.setattr("sidecar.authority.database.MAP_BYTES", 64 * 1024)
    said: list[str] = []
    monkeypatch.setattr("sidecar.authority.followed.event", lambda _log, name, *_, **__: said.append(name))
    live = Live()
    calls = int(EffectKind.EFFECT_CALLS)
    with Journal(tmp_path / "journal", helper=False) as journal:
        kept = Followed(tmp_path, 1 << 20)
        kept.open(JournalTail(journal))
        for first, most, complaints in ((0, 2_000, []), (2_000, 50_000, ["follow.not_kept"])):
            ids = [f"{number:032x}" for number in range(first, most)]
            live.apply([("task", live_row(id_)) for id_ in ids], 1)
            live.redo([(calls, id_, 1) for id_ in ids])
            decision(journal, 1)
            kept.snapshot(live)
            assert said == complaints
        kept.close()
        again = Followed(tmp_path, 1 << 20)
        again.open(None)
        assert again.spent(f"{1_999:032x}", 1) == Spent(1, 0, 0)
        again.close()


def test_what_was_spent_here_is_kept_over_a_restart(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last snapshot, and what the journal holds behind it; a budget is not filled again by a restart."""
    calls = int(EffectKind.EFFECT_CALLS)

    def tasks(_: int) -> Iterator[Any]:
        yield tasks_pb2.TasksChange(epoch=7, snapshot=BEGIN)
        yield task("a", Budgets(10, -1, -1))
        yield tasks_pb2.TasksChange(epoch=7, snapshot=END)
        yield from beats(tasks_pb2.TasksChange, 7)

    script = Scripted()
    with Journal(tmp_path / "journal", helper=False) as journal:
        tail = JournalTail(journal)
        for spent, left in ((2, 10), (3, 8), (10, 5), (0, 0)):
            script.scripts["tasks"] = [tasks]
            with following(tmp_path / "s", script, monkeypatch, tail) as (follower, live):
                wait_for("ready", lambda at=follower: not at.problem)
                assert (live.task("a") or {})["calls"] == left
                live.redo([(calls, "a", spent)])
                decision(journal, 7, (calls, "a", spent))
                if spent == 3:  # as a killed process leaves it: journaled, and in no snapshot
                    monkeypatch.setattr(follower, "_snapshot", lambda: None)
        assert (live.task("a") or {})["over_calls"] == 5
        kept = Followed(tmp_path / "s", MAP_BYTES)
        kept.open(tail)
        assert kept.spent("a", 1) == Spent(15, 0, 0)
        kept.close()


def test_where_records_are_gone_nothing_is_left_of_what_was_there() -> None:
    live, tasks = Live(), TaskStream(lambda _, opened_ns: None if opened_ns < 5 else Spent(0, 0, 0))
    feed(tasks, live, task("a", Budgets(10, -1, -1)))
    row = live.task("a") or {}
    assert (row["calls"], row["cost"]) == (0, -1)
