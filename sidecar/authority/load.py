"""What a start puts into the native view: the store's rows, the last snapshot of what calls spent, the journal."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from fastpath.frames import read_frames
from fastpath.front_files import SUFFIX
from fastpath.journal import Journal
from fastpath.spool import list_segments
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.authority.approvals import live_approval
from sidecar.authority.clock import Clock
from sidecar.authority.database import SPENT, USED, Database, DatabaseRows
from sidecar.authority.draft import APPROVALS, KINDS, META, OWNERS, REVOCATIONS, TASKS
from sidecar.authority.owners import live_owner
from sidecar.authority.revocations import live_revocation
from sidecar.authority.rows import (
    LIVING,
    Approval,
    ApprovalState,
    Owner,
    Revocation,
    Spent,
    Task,
    decode,
    encode,
)
from sidecar.authority.spending import Change, LiveView, with_spent
from sidecar.authority.tasks import AXES, balance, live_task, undrawn
from sidecar.decisions.reader import SpoolReader

BATCH = 5000
READ_RECORDS, READ_BYTES = 1000, 1 << 20
SEQUENCE, SETTLED, UNIX = b"spent_sequence", b"spent_settled", b"unix_ns"
NOTHING = Spent(0, 0, 0)


class JournalTail:
    """The journal as the store needs it: what calls did after a snapshot."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def last_sequence(self) -> int:
        """Of the newest record. What a record says was taken was taken before it was written."""
        return self._journal.next_sequence - 1

    def behind(self, sequence: int) -> Iterator[tuple[int, decisions_pb2.Record]]:
        """(number, record) after `sequence` that there are now, in order; a Gap where some are not kept any more."""
        reader = SpoolReader(self._journal.segments, sequence)
        try:
            while entries := reader.read(READ_RECORDS, READ_BYTES):
                for number, payload in entries:
                    yield number, decisions_pb2.Record.FromString(payload)
        finally:
            reader.close()


def journal_epoch(directory: Path) -> int:
    """The highest epoch that the last records of a journal were decided by; 0 when there are none."""
    held = list_segments(directory) if directory.is_dir() else []
    # Fronts hold the newest, but maybe few.
    segments = [one for one in held if one.path.suffix != SUFFIX]
    fronts = [one for one in held if one.path.suffix == SUFFIX]
    epoch = 0
    for segment in segments[-2:] + fronts:
        with closing(read_frames(segment.path)) as frames:
            for _, payload in frames:
                record = decisions_pb2.Record.FromString(payload)
                epoch = max(epoch, record.decision.revocation_epoch, record.event.revocation_epoch)
    return epoch


def load_live(rows: DatabaseRows, live: LiveView, clock: Clock, journal: JournalTail | None) -> int:
    """Put all that is stored into `live`; the highest epoch that the journal's records were decided by.

    What time has ended meanwhile is not put. DamagedRow when a row is not what was written.
    """
    spent = {key.decode(): decode(value, Spent) for key, value in rows.scan(SPENT)}
    used = {key.decode(): int.from_bytes(value, "big") for key, value in rows.scan(USED)}
    batch: list[Change] = []
    for change in _changes(rows, spent, used, clock):
        batch.append(change)
        if len(batch) == BATCH:
            live.apply(batch, rows.epoch)
            batch = []
    live.apply(batch, rows.epoch)
    if journal is None:
        return 0
    return _redo(live, journal, rows)


def _changes(rows: DatabaseRows, spent: dict[str, Spent], used: dict[str, int], clock: Clock) -> Iterator[Change]:
    now_ns, sure_ns = clock.now(), clock.sure()
    for _, value in rows.scan(REVOCATIONS):
        revocation = decode(value, Revocation)
        if not revocation.expires_ns or revocation.expires_ns > sure_ns:
            yield "revoke", loaded_revocation(revocation, sure_ns)
    for _, value in rows.scan(OWNERS):
        owner = decode(value, Owner)
        if not owner.active:
            yield "owner", live_owner(owner)
    for _, value in rows.scan(TASKS):
        task = decode(value, Task)
        if task.state in LIVING and task.expires_ns > now_ns:
            yield "task", _spent_task(task, spent.get(task.id, NOTHING))
    for _, value in rows.scan(APPROVALS):
        approval = decode(value, Approval)
        if approval.state is ApprovalState.GRANTED and approval.expires_ns > now_ns:
            row = live_approval(approval)
            yield "approval", {**row, "uses": used.get(approval.id, approval.uses)}


def loaded_revocation(row: Revocation, sure_ns: int) -> dict[str, object]:
    """A stored revocation as the native view takes it: what is left of it is what is surely left."""
    live = live_revocation(row)
    return {**live, "left_ns": max(0, row.expires_ns - sure_ns)} if row.expires_ns else live


def _spent_task(task: Task, spent: Spent) -> dict[str, Any]:
    """A stored task with what is left of its budgets."""
    row = live_task(task, undrawn(task))
    return {**row, **with_spent(balance(task)._asdict(), spent)}


class Redo:
    """The effects of what calls did behind a snapshot, record by record; then `epoch` and `gap` say more of them.

    The snapshot is of some moment between two records. What was taken between them is counted again, what was given
    back between them is not: a budget is never more than was granted.
    """

    def __init__(self, journal: JournalTail, sequence: int, settled: int) -> None:
        """Records up to `sequence` are part of the snapshot, those behind `settled` are not."""
        self._journal, self._sequence, self._settled = journal, sequence, settled
        self.epoch = 0
        """The highest that a record was decided by."""
        self.gap = False
        """Records behind the snapshot are not kept any more."""

    def __iter__(self) -> Iterator[list[tuple[int, str, int]]]:
        for number, record in self._journal.behind(self._sequence):
            if record.HasField("gap"):
                self.gap = self.gap or self._sequence > 0
                continue
            at = record.decision if record.HasField("decision") else record.event
            self.epoch = max(self.epoch, at.revocation_epoch)
            effects = [(one.kind, one.key.decode(), one.value) for one in at.effects]
            yield [one for one in effects if one[2] > 0 or number > self._settled]


def _redo(live: LiveView, journal: JournalTail, rows: DatabaseRows) -> int:
    sequence, settled = (int.from_bytes(rows.get(META, key) or b"", "big") for key in (SEQUENCE, SETTLED))
    redo = Redo(journal, sequence, settled)
    for effects in redo:
        live.redo(effects)
    if redo.gap:
        # What was spent there is not known any more, so nothing that is limited has anything left.
        _exhaust(live, rows)
    return redo.epoch


def _exhaust(live: LiveView, rows: DatabaseRows) -> None:
    for _, value in rows.scan(TASKS):
        task = decode(value, Task)
        left = live.task(task.id)
        if left is not None:
            taken = {axis: -max(0, left[axis]) for axis in AXES}
            live.apply([("budget", {"id": task.id, **taken})], rows.epoch)


def verify_rows(rows: DatabaseRows) -> None:
    """Raise DamagedRow unless every row is what was written."""
    for table, kind in KINDS.items():
        for _, value in rows.scan(table):
            decode(value, kind)
    for _, value in rows.scan(SPENT):
        decode(value, Spent)


class Snapshots:
    """Writes what has changed since the last snapshot. For the store's writer."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[int, int, int]] | None = None
        self._used: dict[str, int] = {}
        self._sequence = -1

    def take(self, database: Database, live: LiveView, last: Callable[[], int], now_ns: int) -> None:
        """Keep what calls have spent; `last` is the number of the newest record. lmdb.Error as it comes.

        Calls go on meanwhile, so it is kept between which records that was: see Redo.
        """
        sequence = last()
        if sequence == self._sequence:
            return
        spent_now, used_now = live.snapshot()
        settled = last()
        spent = {id_: (calls, cost, size) for id_, calls, cost, size in spent_now}
        used = dict(used_now)
        with database.write() as rows:
            known = self._spent
            if known is None:
                known = {key.decode(): () for key, _ in rows.scan(SPENT)}  # type: ignore[misc]  # unlike any row
                self._used = {key.decode(): -1 for key, _ in rows.scan(USED)}
            for id_, row in spent.items():
                if known.get(id_, (0, 0, 0)) != row:
                    rows.put(SPENT, id_.encode(), encode(Spent(*row)))
            for id_, left in used.items():
                if self._used.get(id_) != left:
                    rows.put(USED, id_.encode(), left.to_bytes(8, "big"))
            for table, gone in ((SPENT, known.keys() - spent.keys()), (USED, self._used.keys() - used.keys())):
                for id_ in gone:
                    rows.delete(table, id_.encode())
            rows.put(META, SEQUENCE, sequence.to_bytes(8, "big"))
            rows.put(META, SETTLED, settled.to_bytes(8, "big"))
            rows.put(META, UNIX, now_ns.to_bytes(8, "big"))
        self._spent, self._used, self._sequence = spent, used, sequence
