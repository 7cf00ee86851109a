"""Another sidecar's tasks, revocations and owners, in force here: three streams, each a snapshot and then changes.

What a stream says is in force as soon as it came. A beat says that nothing older is still to come, so the oldest beat
of the three streams is how old our picture can be: past `stale_s` calls get ERROR. A stream that ends is opened again
from its last beat or snapshot; a snapshot replaces what we had. An authority whose epoch is lower than one that was
followed before was rolled back, and one with another store never had what we know: nothing of them is believed. The
clocks of both machines must agree within `stale_s`.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from fastpath.authority import Live
from sidecar._proto.remit.authority.v1 import (
    owners_pb2,
    owners_pb2_grpc,
    revocations_pb2,
    revocations_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
)
from sidecar.authority.errors import StoreError
from sidecar.authority.followed import FILE, NOTHING, Followed
from sidecar.authority.load import JournalTail
from sidecar.authority.messages import budgets_of, mode_of, revocation_kind, scope_of, task_state
from sidecar.authority.revocations import row_key
from sidecar.authority.rows import LIVING, UNLIMITED, Spent
from sidecar.authority.scope import as_live
from sidecar.authority.spending import Change, with_spent
from sidecar.authority.tasks import AXES
from sidecar.config_authority import Follow
from sidecar.errors import SidecarError
from sidecar.logs import event

log = logging.getLogger("remit.authority")

SECOND_NS = 1_000_000_000
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
BATCH = 1000
STOP_S = 5.0
SNAPSHOT_S = 5.0


class Stream(ABC):
    """One of the streams, and what we hold of it: `held` names its rows and how each is taken out again.

    What `take` gave is put in force later, or never, when the stream breaks before: `applied` says that it was.
    """

    name = ""

    def __init__(self) -> None:
        self.epoch = 0
        """All up to here was applied; 0 until the first snapshot is whole."""
        self.store = ""
        """Id of the store that it is an epoch of."""
        self.beat_ns = 0
        """When the last beat came, on CLOCK_BOOTTIME; 0: none yet."""
        self.held: dict[object, Change] = {}
        self._dropped: dict[object, Change] = {}
        """Of `held`, taken out by changes that are not in force yet."""
        self._fresh: set[object] | None = None

    @abstractmethod
    def open(self, channel: grpc.Channel) -> Any:
        """The stream behind what we have."""

    @abstractmethod
    def changes(self, message: Any) -> Iterator[Change]:
        """What a message changes in the native view. InvalidError when it cannot be read."""

    def take(self, message: Any) -> list[Change]:
        """All that is to be applied for one message."""
        if message.snapshot == tasks_pb2.SNAPSHOT_MARK_BEGIN:
            self._fresh = set()
            return []
        if message.snapshot == tasks_pb2.SNAPSHOT_MARK_END:
            gone = self.held.keys() - (self._fresh or set())
            self._fresh = None
            return [undo for key in gone if (undo := self.drop(key)) is not None]
        return list(self.changes(message))

    def hold(self, key: object, undo: Change) -> None:
        self.held[key] = undo
        if self._fresh is not None:
            self._fresh.add(key)

    def drop(self, key: object) -> Change | None:
        """Hold a row no longer; how it is taken out, if it was held."""
        undo = self.held.pop(key, None)
        if undo is not None:
            self._dropped[key] = undo
        return undo

    def applied(self) -> None:
        """All that was taken is in force."""
        self._dropped.clear()

    @property
    def whole(self) -> bool:
        """Whether no snapshot is under way."""
        return self._fresh is None

    def begin(self) -> None:
        """The stream is opened again: of a snapshot that broke off nothing more comes, and what was to be taken out and
        still is in force may be in no message of the next one."""
        self._fresh = None
        self.held = self._dropped | self.held
        self._dropped = {}


Before = Callable[[str, int], Spent | None]
"""What calls spent of a task (id, opened_unix_ns) before this start; None: nobody knows."""


class TaskStream(Stream):
    """Tasks. Budgets are counted here: what another sidecar spends of the same task is not known."""

    name = "tasks"

    def __init__(self, before: Before = lambda id_, opened_ns: NOTHING) -> None:  # noqa: ARG005
        super().__init__()
        self._before = before
        self._budgets: dict[str, dict[str, int]] = {}
        """What was left there of each task, as far as it is in force here."""
        self._told: dict[str, dict[str, int] | None] = {}
        """The same as told since; None: of a task that is no more."""

    def open(self, channel: grpc.Channel) -> Any:
        return tasks_pb2_grpc.TasksStub(channel).Watch(
            tasks_pb2.WatchTasksRequest(from_epoch=self.epoch, store=self.store)
        )

    def changes(self, message: tasks_pb2.TasksChange) -> Iterator[Change]:
        if message.HasField("put"):
            yield from self._put(message.put)
        elif message.forget:
            yield self._forget(message.forget)

    def _forget(self, id_: str) -> Change:
        self.drop(id_)
        return "forget", {"id": id_}

    def drop(self, key: object) -> Change | None:
        self._told[str(key)] = None
        return super().drop(key)

    def applied(self) -> None:
        super().applied()
        for id_, now in self._told.items():
            if now is None:
                self._budgets.pop(id_, None)
            else:
                self._budgets[id_] = now
        self._told.clear()

    def begin(self) -> None:
        super().begin()
        self._told.clear()

    def _put(self, task: tasks_pb2.Task) -> Iterator[Change]:
        if task_state(task.state) not in LIVING:
            yield self._forget(task.id)
            return
        self.hold(task.id, ("forget", {"id": task.id}))
        left = budgets_of(task.left)
        now = {axis: getattr(left, axis) for axis in AXES}
        before = self._told.get(task.id, self._budgets.get(task.id))
        spent = self._before(task.id, task.opened_unix_ns)
        # Of a task that is known here already the native view keeps what is left and what was spent.
        has = {axis: None if n == UNLIMITED else n for axis, n in now.items()}
        yield (
            "task",
            {**live_task(task), **with_spent(has, spent or Spent(**{axis: n or 0 for axis, n in has.items()}))},
        )
        self._told[task.id] = now
        if before is not None:
            # Calls spend here what the other side does not see; what was drawn or refunded there is added to that.
            moved = {axis: now[axis] - before[axis] if now[axis] != UNLIMITED else 0 for axis in AXES}
            yield "budget", {"id": task.id, **moved}


class RevocationStream(Stream):
    name = "revocations"

    def open(self, channel: grpc.Channel) -> Any:
        request = revocations_pb2.WatchRevocationsRequest(from_epoch=self.epoch, store=self.store)
        return revocations_pb2_grpc.RevocationsStub(channel).Watch(request)

    def changes(self, message: revocations_pb2.RevocationsChange) -> Iterator[Change]:
        if not (message.HasField("put") or message.HasField("lifted")):
            return
        row = message.put if message.HasField("put") else message.lifted
        kind, mode = revocation_kind(row.kind), mode_of(row.mode)
        named = {"kind": str(kind), "key": row.key, "mode": str(mode)}
        key = row_key(kind, row.key, mode)
        if message.HasField("lifted"):
            self.drop(key)
            yield "lift", named
            return
        self.hold(key, ("lift", named))
        # It is what stands there now, even where it is shorter than what was heard of last.
        yield "lift", named
        # Until we hear of its end: what the authority's clocks say counts there, and none of ours ends it.
        yield "revoke", {**named, "reason": row.reason, "expires_unix_ns": 0}


class OwnerStream(Stream):
    name = "owners"

    def open(self, channel: grpc.Channel) -> Any:
        request = owners_pb2.WatchOwnersRequest(from_epoch=self.epoch, store=self.store)
        return owners_pb2_grpc.OwnersStub(channel).Watch(request)

    def changes(self, message: owners_pb2.OwnersChange) -> Iterator[Change]:
        if message.HasField("put"):
            self.hold(message.put.id, ("owner", {"id": message.put.id, "active": True}))
            yield "owner", {"id": message.put.id, "active": message.put.active}


class Follower:
    """Owns one thread per stream from `start` to `stop`. Thread-safe."""

    def __init__(
        self,
        section: Follow,
        live: Live,
        kept: Followed,
        channel: Callable[[], grpc.Channel],
        note: Callable[[str, str], None],
        changed: Callable[[], None],
    ) -> None:
        """`note` puts an event into the journal; `changed` is called when `problem` may have changed."""
        self._stale_ns = section.stale_s * SECOND_NS
        self._where = section.address or section.socket
        self._live = live
        self._kept = kept
        self._channel = channel
        self._note = note
        self._changed = changed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._tasks = TaskStream(kept.spent)
        self._streams = (self._tasks, RevocationStream(), OwnerStream())
        self._calls: dict[str, Any] = {}
        self._late = False
        self._threads = [
            threading.Thread(target=self._follow, args=(stream,), name=f"follow-{stream.name}", daemon=True)
            for stream in self._streams
        ]
        self._threads.append(threading.Thread(target=self._keep, name="follow-keep", daemon=True))
        self.problem = f"nothing came yet from the authority at `{self._where}`"
        """Why nothing may be decided; empty once every stream gave its first snapshot."""

    def start(self, journal: JournalTail | None = None) -> None:
        """`journal` says what calls spent since the last snapshot. StoreError leaves `problem`: nothing is followed."""
        self._live.put_fresh(1)  # a moment long gone: stale until we know
        try:
            self._kept.open(journal)
        except StoreError as error:
            self.problem = str(error)
            raise
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the streams. May be called again."""
        self._stop.set()
        with self._lock:
            for call in self._calls.values():
                call.cancel()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STOP_S)
        with self._lock:
            self._snapshot()
            self._kept.close()

    @property
    def epoch(self) -> int:
        """All streams have applied everything up to here."""
        return min(stream.epoch for stream in self._streams)

    def _keep(self) -> None:
        while not self._stop.wait(SNAPSHOT_S):
            with self._lock:
                self._snapshot()

    def _snapshot(self) -> None:
        if self._tasks.epoch:
            self._kept.snapshot(self._live)

    def _follow(self, stream: Stream) -> None:
        failures = 0
        while not self._stop.is_set():
            before = stream.beat_ns
            try:
                self._read(stream)
            except grpc.RpcError as error:
                self._lost(stream, f"{error.code().name.lower()}: {error.details()}")
            except SidecarError as error:
                # Something that we cannot read may be what ends an agent's authority, so we begin again and grow stale.
                stream.epoch = 0
                self._lost(stream, str(error))
            failures = 0 if stream.beat_ns != before else failures + 1
            self._stop.wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    def _lost(self, stream: Stream, cause: str) -> None:
        if not self._stop.is_set():
            event(log, "follow.lost", logging.WARNING, stream=stream.name, at=self._where, cause=cause)

    def _read(self, stream: Stream) -> None:
        with self._channel() as channel:
            with self._lock:
                # Whatever is said from here on was said after this epoch had come.
                least = self._kept.epoch
            stream.begin()
            call = stream.open(channel)
            with self._lock:
                self._calls[stream.name] = call
            if self._stop.is_set():
                call.cancel()
            waiting: list[Change] = []
            for number, message in enumerate(call):
                if number == 0:
                    self._refuse_other(stream, message.store)
                if message.snapshot or message.HasField("beat"):
                    self._refuse_older(message.epoch, least)
                    least = message.epoch
                waiting += stream.take(message)
                if message.HasField("beat") or message.snapshot == tasks_pb2.SNAPSHOT_MARK_END or len(waiting) >= BATCH:
                    self._apply(stream, waiting, message)
                    waiting = []
        raise StoreError("the stream ended")

    def _refuse_other(self, stream: Stream, store: str) -> None:
        """Before anything of a stream is taken. However far its epoch is, another store does not know what we know."""
        with self._lock:
            known = self._kept.adopt(store)
        if store != known:
            raise StoreError(
                f"its store `{store}` is another one than was followed, `{known}`: what was revoked in that may be"
                f" missing; restore a backup of it, or stop this sidecar and remove `{FILE}` from its `authority.store`"
            )
        stream.store = store

    def _refuse_older(self, epoch: int, least: int) -> None:
        if epoch < least:
            raise StoreError(
                f"it is at epoch {epoch} and was at {least}: it was rolled back, and what it revoked in between may be"
                f" missing; restore it, or stop this sidecar and remove `{FILE}` from its `authority.store`"
            )

    def _apply(self, stream: Stream, changes: list[Change], message: Any) -> None:
        with self._lock:
            # Of an epoch that has not come whole the rest is asked for again when the stream breaks here.
            come = stream.whole and (message.snapshot or message.HasField("beat"))
            reached = message.epoch if come else stream.epoch
            others = (one.epoch for one in self._streams if one is not stream)
            self._live.apply(changes, max(self._live.epoch, min(reached, *others)))
            stream.applied()
            # Last, for `epoch` is read without the lock.
            stream.epoch = reached
            if not message.HasField("beat") or not stream.whole:
                return
            self._kept.reach(message.epoch)
            self._live.put_floor(message.beat.time_unix_ns)
            # What was held up on its way is as old as it says; a clock that is ahead of ours makes nothing younger.
            age_ns = max(0, time.time_ns() - message.beat.time_unix_ns)
            stream.beat_ns = max(1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - age_ns)
            self._warn_of_age(stream, age_ns)
            oldest = min(one.beat_ns for one in self._streams)
            if not oldest:
                return
            self._live.put_fresh(oldest + self._stale_ns)
            begun = bool(self.problem)
            self.problem = ""
        if begun:
            self._note("authority.followed", f"at={self._where} epoch={self.epoch}")
            self._changed()

    def _warn_of_age(self, stream: Stream, age_ns: int) -> None:
        """Say once that what comes is too old to be of use: the clocks differ, or the way is too long."""
        late = age_ns > self._stale_ns
        if late and not self._late:
            event(log, "follow.late", logging.WARNING, stream=stream.name, at=self._where, seconds=age_ns // SECOND_NS)
        self._late = late


def live_task(task: tasks_pb2.Task) -> dict[str, object]:
    """A followed task as the native view takes it, but for its budgets."""
    return {
        "id": task.id,
        "agent": task.agent,
        "owner": task.owner,
        "purpose": task.purpose,
        "state": str(task_state(task.state)),
        "parent": task.parent,
        "depth": task.depth,
        "max_depth": task.max_depth,
        "expires_unix_ns": task.expires_unix_ns,
        "rev": task.rev,
        "attenuated": task.attenuated,
        "origin": task.origin,
        "on_behalf": bool(task.on_behalf),
        "scope": as_live(scope_of(task.scope)),
    }
