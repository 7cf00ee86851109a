"""The authority store: commands one after the other, many in one durable commit, answered once calls are decided by it.

    caller ─► queue ─► whose turn it is: run each on the transaction ─► commit (fdatasync) ─► Live.put ─► answer
                       what time brings ─┘                               └─ fails: nothing changed, the caller is told

One thread at a time has the turn: a caller who finds it free takes it, so that one caller alone waits for no other
thread; the writer thread takes it for what queued meanwhile, for a crowd, for what time brings and for repairs.

A commit that fails in the disk's hardware latches the store: what needs it is refused, and calls get ERROR, until all
that was acknowledged stands in a fresh file (the kernel forgets a page that it could not write, so a later success
proves nothing). On a full disk only that commit fails; a revocation in it is in force all the same, and stands in a
file whose room was taken before (held.py) until there is room in the store.
"""

import contextlib
import functools
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec

from sidecar.authority.answers import Repeat, recall, remember
from sidecar.authority.backup import write_backup
from sidecar.authority.clock import BACK_NS, Clock, boot_id
from sidecar.authority.commands import Place, Ran, Ticket, still
from sidecar.authority.database import EPOCH, READ_S, Database, DatabaseRows, remove
from sidecar.authority.draft import DUE, META, OWNERS, REVOCATIONS, SECOND_NS, SURE_DUE, Draft, Limits, read_due
from sidecar.authority.due import sweep
from sidecar.authority.errors import AuthorityError, ExhaustedError, InvalidError, StoreError
from sidecar.authority.feed import Fed, Feed
from sidecar.authority.folder import prepare_folder, read_or_make
from sidecar.authority.held import drop_ended, keep_held
from sidecar.authority.ids import Ids
from sidecar.authority.load import UNIX, JournalTail, Snapshots, load_live
from sidecar.authority.manifest import Manifest, lock_folder, new_manifest, write_manifest
from sidecar.authority.rewrite import rewritten
from sidecar.authority.rows import DamagedRow
from sidecar.authority.spending import LiveSpending, LiveView
from sidecar.authority.task_index import follow
from sidecar.authority.undurable import Undurable
from sidecar.errors import ProtocolError, SidecarError
from sidecar.logs import event

log = logging.getLogger("remit.authority")

BATCH = 256
CROWD = 8  # commands in a batch
GATHER_S = 0.0001
RETRY_S = 2.0
IDLE_S = 5.0
MANIFEST_EVERY = 1000  # epochs
INDEX_EVERY = 1000  # commands
COUNT_MAX = 10_000
CLOCK_EVERY_NS = 60 * SECOND_NS
LOOK = 1
"""A date in the past: what is due next is to be looked up."""
Result = TypeVar("Result")
Drafts = Callable[..., Draft]
Note = Callable[[str, str, int], None]
"""Given (name, detail, epoch) of every event, for the journal; called in the order of the epochs."""


class AuthorityStore:
    """Owns the folder from `open` to `close`. All other methods are thread-safe."""

    def __init__(
        self,
        folder: Path,
        live: LiveView,
        *,
        limits: Limits,
        map_bytes_max: int,
        note: Note,
        changed: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
        snapshot_s: float = IDLE_S,
    ) -> None:
        """`changed` is called when `problem` changes."""
        self.folder = folder
        self.live = live
        self.limits = limits
        self.feed = Feed()
        self.clock = clock or Clock()
        self.problem = "the authority store is not loaded yet"
        """Why the store cannot be used; empty: it can."""
        self._undurable = Undurable(folder, live, self.feed, note)
        self.unwritten = self._undurable.rows
        """Revocations and disabled owners that are in force and not in the store: the disk was full."""
        self.effect = Counter[int]()
        self.totals: Counter[str] = Counter()
        self._map_bytes_max = map_bytes_max
        self._note = note
        self._changed = changed
        self._snapshot_s = snapshot_s
        self._spending = LiveSpending(live)
        self._ids = Ids()
        self._manifest: Manifest = new_manifest()
        self._database: Database | None = None
        self._snapshots = Snapshots()
        self._lock = -1
        self._epoch = 0
        self._queue: deque[Ticket[Any]] = deque()
        self._batch: list[Ticket[Any]] = []
        self._crowd = False
        """Whether the last batch was one of many callers: then the next one is worth a moment's wait."""
        self._gate = threading.Lock()
        """Guards the queue, and whether anything may join it."""
        self._wake = threading.Condition(self._gate)
        self._turn = threading.Lock()
        """Whoever holds it writes; the queue is looked at again after it was given back."""
        self._next_due = self._next_sure_due = LOOK
        self._snapshot_due = 0.0
        self._young = 1
        """Commands since the tasks were indexed, more or less; 0: all are."""
        self._sequence: Callable[[], int] = lambda: 0
        self._stopping = False
        self._broken = False
        self._latched = False
        self._attempts = 0
        self._writer = threading.Thread(target=self._write_all, name="authority", daemon=True)

    @property
    def id(self) -> str:
        """Of this store and its backups, and of no other."""
        return self._manifest.id

    @property
    def epoch(self) -> int:
        """Of the last command that is durable and in force."""
        return self._epoch

    # ------------------------------------------------------------ open and close

    def open(self, journal: JournalTail | None = None) -> None:
        """Load everything into the native view and begin to take commands.

        `journal` says what calls spent since the last snapshot. StoreError when the folder cannot be used, is damaged,
        or is older than what was decided by (DB-18); nothing is in force then.
        """
        try:
            prepare_folder(self.folder)
            self._lock = lock_folder(self.folder)
            self._manifest = read_or_make(self.folder)
            database = Database(self.folder / self._manifest.file, self._map_bytes_max)
        except (OSError, lmdb.Error) as error:
            raise StoreError(f"the authority store `{self.folder}` cannot be opened: {_cause(error)}") from None
        self._database = database
        with database.read() as rows:
            self._epoch = rows.epoch
            high_water = int.from_bytes(rows.get(META, UNIX) or b"", "big")
        self._refuse_older(self._manifest.epoch)
        self._start_clock(max(high_water, self._manifest.unix_ns))
        self.live.put_floor(self.clock.now())
        try:
            with database.read() as rows:
                seen = load_live(rows, self.live, self.clock, journal)
            self._undurable.open(self.clock.sure(), self._epoch)
        except (OSError, DamagedRow) as error:
            raise StoreError(f"`{self.folder}`: {_cause(error)}") from None
        self._refuse_older(seen)
        if journal is not None:
            self._sequence = journal.last_sequence
        self.feed.start(self._epoch)
        # What was in force in memory alone is not known here any more: followers begin with a snapshot.
        self.feed.tell([])
        self._snapshot_due = time.monotonic() + self._snapshot_s
        self.problem = ""
        self._writer.start()
        self._changed()

    def close(self) -> None:
        """Finish what is queued, note how far we came, and give the folder back. May be called again."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._writer.is_alive():
            self._writer.join()
        self.feed.close()
        if self._database is not None:
            self._database.close()
            self._database = None
        self._undurable.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _start_clock(self, high_water_ns: int) -> None:
        """Go on from the time that was reached, and note by which clock that was."""
        boot = boot_id()
        same = bool(boot) and boot == self._manifest.boot_id
        if self.clock.start_at(high_water_ns, self._manifest.began_ns if same else None):
            event(log, "authority.clock_back", logging.WARNING, detail="the clock was set back; nothing is extended")
        ahead_ns = self.clock.ahead()
        if ahead_ns > BACK_NS:
            detail = (
                "the clock was set forward while this machine ran; no revocation ends by that. If it is right now,"
                " stop the sidecar and run remit authority trust-clock"
            )
            event(log, "authority.clock_forward", logging.WARNING, seconds=ahead_ns // SECOND_NS, detail=detail)
        self._manifest = msgspec.structs.replace(self._manifest, boot_id=boot, began_ns=self.clock.began)
        # Now, since nobody knows whether there is a later.
        self._note_progress()

    def _refuse_older(self, seen: int) -> None:
        """Row DB-18: revocations that were in force may be missing in an old copy."""
        if self._epoch < seen:
            raise StoreError(
                f"`{self.folder}` is older (epoch {self._epoch}) than what this sidecar has decided by (epoch {seen});"
                " restore a backup with `remit authority restore` (--force: an older one); without any, start with"
                " a new `authority.store` and a new `journal.dir`, and revoke again what was revoked"
            )

    # ------------------------------------------------------------ commands

    def call(
        self,
        command: Callable[[Draft], Result],
        *,
        repeat: Repeat | None = None,
        pack: Callable[[Result], bytes] | None = None,
        unpack: Callable[[bytes], Result] | None = None,
        stands: Callable[[Draft, Result], bool] = still,
    ) -> Result:
        """Run `command`; when this returns, its changes are durable and every call that starts is decided by them.

        With `repeat`, the same key and request get the answer that was given, through `pack` and `unpack`, while it
        `stands`. Raises AuthorityError: nothing has changed, or the text says what has.
        """
        ticket: Ticket[Result] = Ticket(command, repeat if repeat and repeat.key else None, pack, unpack, stands)
        with self._gate:
            if self.problem or self._stopping:
                raise StoreError(self.problem or "the sidecar stops")
            self._queue.append(ticket)
        self._take_turn()
        return ticket.wait()

    def _take_turn(self) -> None:
        """Serve the queue here when nobody does. Whoever has the turn looks at the queue again after it.

        Among many callers the writer thread does it: the first that comes back from the last batch would take a whole
        commit for itself.
        """
        if self._latched or (self._crowd and not self._turn.locked()):
            self._rouse()
        elif self._turn.acquire(blocking=False):
            due, sure_due = self._next_due, self._next_sure_due
            try:
                if not self._latched:
                    self._commit(self._waiting())
            except BaseException:
                self._break_off()
                raise
            finally:
                self._turn.release()
            if (
                self._queue
                or self._latched
                or self._next_due < due
                or self._young >= INDEX_EVERY
                or self._next_sure_due < sure_due
            ):
                self._rouse()

    def _rouse(self) -> None:
        """Have the writer thread look."""
        with self._wake:
            self._wake.notify_all()

    @contextlib.contextmanager
    def read(self) -> Iterator[Draft]:
        """A draft to look with, for less than a second; its changes go nowhere. StoreError when there is no store."""
        database = self._database
        if database is None or (self.problem and not self._latched):
            raise StoreError(self.problem or "the authority store is closed")
        # First: what is made durable meanwhile is in one of both.
        unwritten = dict(self.unwritten)
        with database.read(READ_S) as rows:
            yield self._drafts(rows, unwritten)(epoch=self._epoch)

    def _drafts(self, rows: DatabaseRows, unwritten: Mapping[Place, msgspec.Struct]) -> Drafts:
        """Makes drafts of this moment, given the epoch of each."""
        now_ns = self.clock.now()
        return functools.partial(
            Draft,
            rows,
            self._spending,
            self.limits,
            now_ns=now_ns,
            sure_ns=self.clock.sure(),
            present_ns=self.clock.present(),
            new_id=functools.partial(self._ids.make, now_ns),
            unwritten=unwritten,
        )

    # ------------------------------------------------------------ the writer

    def _write_all(self) -> None:
        try:
            self._serve()
        finally:
            self._break_off()

    def _break_off(self) -> None:
        """Nothing is written any more; whatever ended it, nobody waits in vain."""
        with self._wake:
            self._broken = True
            self.problem = self.problem or "the authority store has stopped; restart the sidecar"
            left = [*self._batch, *self._queue]
            self._queue.clear()
        for ticket in left:
            ticket.answer(error=StoreError(self.problem))
        self._changed()

    def _serve(self) -> None:
        while True:
            self._rest()
            self._gather()
            with self._turn:
                if self._broken:
                    return
                stop = self._stopping
                batch = self._waiting()
                if self._latched:
                    self._refuse(batch)
                    if not stop:
                        self._heal()
                else:
                    self._commit(batch)
                    self._time_passes()
                if stop and not self._queue:
                    self._finish()
                    return

    def _rest(self) -> None:
        """Until somebody waits, or something else is to be done."""
        with self._wake:
            if not self._queue and not self._stopping:
                self._wake.wait(self._patience())

    def _gather(self) -> None:
        """Among many callers wait for as long as more of them come: a commit costs one what it costs all of them."""
        seen = -1
        while self._crowd and seen < len(self._queue) < BATCH:
            seen = len(self._queue)
            time.sleep(GATHER_S)

    def _waiting(self) -> list[Ticket[Any]]:
        """What is queued, as the batch of whoever has the turn."""
        with self._gate:
            self._batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        self._crowd = len(self._batch) >= CROWD
        return self._batch.copy()

    def _patience(self) -> float:
        """Seconds until time brings something. The clock may jump, so it is looked at again and again."""
        if self._latched:
            return RETRY_S
        until = min(self._next_due - self.clock.now(), self._next_sure_due - self.clock.sure()) / SECOND_NS
        return max(0.0, min(until, IDLE_S, self._snapshot_due - time.monotonic()))

    def _commit(self, batch: list[Ticket[Any]]) -> None:
        while batch:
            try:
                ran = self._transact(batch)
            except lmdb.MapFullError:
                self._spending.undo()
                if self._grow():
                    continue
                self._failed(batch, ExhaustedError("the authority store has reached `authority.map_bytes`"))
            except (lmdb.Error, OSError, DamagedRow) as error:
                self._spending.undo()
                self._failed_by(error, batch)
            else:
                self._in_force(ran)
            return

    def _transact(self, batch: list[Ticket[Any]]) -> list[Ran]:
        """Run the commands on one transaction and commit it. What they refuse is answered at once."""
        assert self._database is not None
        ran: list[Ran] = []
        refused: list[tuple[Ticket[Any], SidecarError]] = []
        with self._database.write() as rows:
            drafts = self._drafts(rows, self.unwritten)
            for ticket in batch:
                mark = self._spending.mark()
                try:
                    done = self._run(drafts(epoch=self._epoch + len(ran) + 1), ticket)
                except AuthorityError as error:
                    self._spending.undo(mark)
                    refused.append((ticket, error))
                    continue
                rows.write(done.draft.writes)
                if self.unwritten:
                    done.places = done.draft.places(REVOCATIONS, OWNERS)
                done.draft.let_go()
                ran.append(done)
            if ran:
                rows.put(META, EPOCH, (self._epoch + len(ran)).to_bytes(8, "big"))
                rows.put(META, UNIX, ran[-1].draft.now_ns.to_bytes(8, "big"))
        for ticket, refusal in refused:
            ticket.answer(error=refusal)
            batch.remove(ticket)
        return ran

    def _run(self, draft: Draft, ticket: Ticket[Any]) -> Ran:
        """The command on the transaction, with nothing written. AuthorityError when it is refused."""
        try:
            return self._run_command(draft, ticket)
        except (AuthorityError, lmdb.Error, OSError, DamagedRow):
            raise
        except Exception:
            # The boundary of a command: its caller gets a refusal, the others go on.
            log.error("authority.command_failed", exc_info=True)
            raise StoreError("internal error; nothing was changed") from None

    def _run_command(self, draft: Draft, ticket: Ticket[Any]) -> Ran:
        repeat = ticket.repeat
        if repeat is None:
            result = ticket.command(draft)
            return Ran(ticket, draft, result, self._prepared(draft))
        given = recall(draft, repeat)
        before = None if given is None else ticket.unpack(given)
        if before is not None and ticket.stands(draft, before):
            return Ran(ticket, draft, before, self._prepared(draft))
        result = ticket.command(draft)
        prepared = self._prepared(draft)
        remember(draft, repeat, ticket.pack(result))
        return Ran(ticket, draft, result, prepared)

    def _prepared(self, draft: Draft) -> Any:
        """Refuse what the native view could not take, before it is durable and can be refused no more."""
        try:
            return self.live.prepare(draft.live)
        except ProtocolError as error:
            raise InvalidError(str(error)) from None

    def _in_force(self, ran: list[Ran]) -> None:
        """The commit is durable: calls are decided by it from here on, and then the callers are told."""
        if not ran:
            return
        self._spending.keep()
        epoch = self._epoch + len(ran)
        try:
            self.live.put([one.prepared for one in ran], epoch)
        except (MemoryError, SidecarError) as error:
            # What is durable and what is in force differ: nothing may be allowed by it.
            self._latch(f"the live state is incomplete: {error}; restart the sidecar")
            for one in ran:
                one.ticket.answer(error=StoreError(self.problem))
            return
        self._epoch = epoch
        self._young += len(ran)
        fed: list[Fed] = []
        for one in ran:
            draft = one.draft
            for name, detail in draft.events:
                self._note(name, detail, draft.epoch)
                self.totals[name] += 1
            fed.extend([Fed(draft.epoch, change) for change in draft.changed])
            if one.places:
                self._undurable.drop(one.places)
            self._next_due = min(self._next_due, draft.first_due_ns)
            self._next_sure_due = min(self._next_sure_due, draft.first_sure_due_ns)
        self.feed.put(epoch, fed)
        for one in ran:
            one.ticket.epoch = one.draft.epoch
            one.ticket.answer(one.result)
        if epoch - self._manifest.epoch >= MANIFEST_EVERY:
            self._note_progress()

    # ------------------------------------------------------------ when the disk fails

    def _failed_by(self, error: Exception, batch: list[Ticket[Any]]) -> None:
        if self._database is not None and self._database.ran_full(error):
            self._failed(batch, ExhaustedError(f"the disk of the authority store is full: {_cause(error)}"))
            return
        self._latch(f"the disk of the authority store failed: {_cause(error)}")
        self._failed(batch, StoreError(self.problem))

    def _failed(self, batch: list[Ticket[Any]], error: AuthorityError) -> None:
        """Nothing is in the store. What only takes authority away is in force all the same (RT-02)."""
        event(log, "authority.commit_failed", logging.ERROR, cause=str(error), commands=len(batch))
        for ticket in batch:
            self._without_store(ticket, error, "nothing was changed; make room and try again", "make room")

    def _without_store(self, ticket: Ticket[Any], error: AuthorityError, undone: str, more: str) -> None:
        """Answer a command that cannot be made durable, after what can be done of it."""
        try:
            ran = self._alone(ticket)
        except AuthorityError as refusal:
            ticket.answer(error=error if self._latched else refusal)
            return
        if ran is not None and self._undurable.let_go(ran, self._stores):
            ticket.answer(ran.result)
            return
        taken = self._undurable.take_away(ran) if ran is not None else ""
        said = [str(error), *([taken, more] if taken else [undone])]
        ticket.answer(error=type(error)("; ".join(text for text in said if text)))

    def _alone(self, ticket: Ticket[Any]) -> Ran | None:
        """What the command would do; None when the store cannot be read. AuthorityError when it is refused."""
        if self._database is None:
            return None
        try:
            with self._database.read() as rows:
                return self._run(self._drafts(rows, self.unwritten)(epoch=self._epoch), ticket)
        except (lmdb.Error, OSError, DamagedRow):
            return None
        finally:
            self._spending.undo()

    def _stores(self, places: list[Place]) -> bool:
        """Whether the store has any of these rows, or cannot say."""
        assert self._database is not None
        try:
            with self._database.read() as rows:
                return any(rows.get(*place) is not None for place in places)
        except (lmdb.Error, SidecarError):
            return True

    def _latch(self, problem: str) -> None:
        self._latched = True
        self.problem = problem
        event(log, "authority.quarantined", logging.ERROR, cause=problem)
        self._changed()

    def _refuse(self, batch: list[Ticket[Any]]) -> None:
        for ticket in batch:
            self._without_store(ticket, StoreError(self.problem), "", "")

    def _heal(self) -> None:
        """Write all that was acknowledged into a fresh file, read it back, and go on with that (DB-03, DB-04)."""
        if self._epoch != self.live.epoch:
            return  # only a restart makes the live state whole again
        # A name of its own for each attempt: a manifest that was written but not synchronised may name the last one.
        self._attempts += 1
        number = self._manifest.number + self._attempts
        manifest = msgspec.structs.replace(self._manifest, number=number, epoch=self._epoch, unix_ns=self.clock.now())
        fresh: Database | None = None
        try:
            if self._database is not None:
                self._database.close()
                self._database = None
            before, path = self.folder / self._manifest.file, self.folder / manifest.file
            fresh = rewritten(before, path, self._map_bytes_max, self._epoch)
            write_manifest(self.folder, manifest)
        except (lmdb.Error, OSError, SidecarError) as error:
            event(log, "authority.not_healed", logging.WARNING, cause=_cause(error))
            if fresh is not None:
                fresh.close()
            return
        remove(self.folder / self._manifest.file)
        self._manifest, self._database = manifest, fresh
        self._latched, self.problem, self._attempts = False, "", 0
        event(log, "authority.healed", epoch=self._epoch)
        self._changed()

    def _grow(self) -> bool:
        assert self._database is not None
        try:
            grown = self._database.grow()
        except (lmdb.Error, OSError) as error:
            event(log, "authority.not_grown", logging.ERROR, cause=_cause(error))
            return False
        return grown

    # ------------------------------------------------------------ what time brings

    def _time_passes(self) -> None:
        assert self._database is not None
        now = self.clock.now()
        sure = self.clock.sure()
        if self._next_due <= now or self._next_sure_due <= sure:
            with self._database.read() as rows:
                first, surely = _first_due(rows, DUE, now), _first_due(rows, SURE_DUE, sure)
            self._next_due, self._next_sure_due = first, surely
            if self._next_due <= now or self._next_sure_due <= sure:
                swept: Ticket[int] = Ticket(sweep)
                self._commit([swept])
                # What could not be done is tried again, but not at once: the disk may be full.
                done = swept.error is None
                self._next_due = LOOK if done else now + int(IDLE_S * SECOND_NS)
                self._next_sure_due = LOOK if done else sure + int(IDLE_S * SECOND_NS)
        if self._undurable.is_due():
            self._keep_held()
        if self._young >= INDEX_EVERY or (self._young and time.monotonic() >= self._snapshot_due):
            self._aside(self._index)
        if not self._latched and time.monotonic() >= self._snapshot_due:
            self._snapshot_due = time.monotonic() + self._snapshot_s
            self._aside(self._snapshot)
            # Also when nothing happens: a clock that is set back while we are down goes on from here.
            if self._epoch > self._manifest.epoch or now - self._manifest.unix_ns >= CLOCK_EVERY_NS:
                self._note_progress()

    def _keep_held(self) -> None:
        """Make durable what a full disk refused, now that there may be room; what has ended meanwhile is dropped."""
        self._without_store(Ticket(drop_ended), StoreError("nothing has ended"), "", "")
        if self.unwritten:
            self._aside(lambda _: self._in_force(self._transact([Ticket(keep_held)])))

    def _aside(self, work: Callable[[Database], None]) -> None:
        """Write something that nobody waits for; when the disk is full it is done another time."""
        assert self._database is not None
        if self._latched:
            return
        try:
            work(self._database)
        except lmdb.MapFullError:
            self._grow()
        except (lmdb.Error, DamagedRow) as error:
            if isinstance(error, DamagedRow) or not self._database.ran_full(error):
                self._latch(f"the disk of the authority store failed: {_cause(error)}")

    def _snapshot(self, database: Database) -> None:
        """Keep what calls have spent, so that a start need not read the whole journal."""
        self._snapshots.take(database, self.live, self._sequence, self.clock.now())
        database.check_readers()

    def _index(self, database: Database) -> None:
        """Let the index of tasks follow what was opened."""
        self._young = 1
        if follow(database, self.clock.now()):
            self._young = 0

    def _note_progress(self) -> None:
        fresh = msgspec.structs.replace(self._manifest, epoch=self._epoch, unix_ns=self.clock.now())
        try:
            write_manifest(self.folder, fresh)
            self._manifest = fresh
        except OSError as error:
            event(log, "authority.manifest_failed", logging.WARNING, cause=_cause(error))

    def _finish(self) -> None:
        if not self._latched:
            self._aside(self._snapshot)
            self._note_progress()

    # ------------------------------------------------------------ for operators

    def backup(self, folder: Path) -> tuple[int, int]:
        """Write a copy of one moment to `folder`, which must not exist; (epoch, bytes). StoreError when it fails."""
        database = self._database
        if database is None or self.problem:
            raise StoreError(self.problem or "the authority store is closed")
        return write_backup(database, self._manifest, folder, self.clock.now())

    @property
    def old_readers(self) -> int:
        """How many read for too long and were refused the rest, since the file was opened."""
        return self._database.old_readers if self._database is not None else 0

    def count(self, table: str, most: int = COUNT_MAX) -> int:
        """How many rows a table has, not further than `most`. StoreError when there is no store."""
        database = self._database
        if database is None:
            raise StoreError(self.problem or "the authority store is closed")
        with database.read(READ_S) as rows:
            return rows.count(table, most)


def _first_due(rows: DatabaseRows, table: str, now_ns: int) -> int:
    """When the first of a table is due; in a while when there is none."""
    first = next(rows.scan(table), None)
    return read_due(first[0]).at_ns if first else now_ns + int(IDLE_S * SECOND_NS)


def _cause(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
