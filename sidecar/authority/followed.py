"""What a sidecar that follows another one keeps itself: what its calls spent, and how far the other one had come.

Tasks, revocations and owners come anew with every start. What calls spent here is known here alone: snapshots of it
stand in a file beside the journal's records behind the last one, as in a store. The highest epoch that was followed is
durable before the next one comes, and so is the id of its store, so an authority that was rolled back, emptied or
replaced is told from the one we knew.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import lmdb

from sidecar.authority.database import EPOCH, SPENT, Database
from sidecar.authority.draft import META
from sidecar.authority.errors import StoreError
from sidecar.authority.load import SEQUENCE, SETTLED, JournalTail, Redo, Snapshots
from sidecar.authority.manifest import lock_folder
from sidecar.authority.rows import DamagedRow, Spent, decode
from sidecar.authority.spending import LiveView
from sidecar.authority.tasks import AXES
from sidecar.logs import event

log = logging.getLogger("remit.authority")

FILE = "followed.mdb"
STORE = b"store"
NOTHING = Spent(0, 0, 0)


class Followed:
    """Owns the file from `open` to `close`. For one thread at a time."""

    def __init__(self, folder: Path, map_bytes_max: int) -> None:
        self._folder = folder
        self._map_bytes_max = map_bytes_max
        self._database: Database | None = None
        self._lock = -1
        self._snapshots = Snapshots()
        self._sequence: Callable[[], int] = lambda: 0
        self._spent: dict[str, Spent] = {}
        self._lost_before_ns = 0
        self.epoch = 0
        """The highest that was followed."""
        self.store = ""
        """Id of the store that was followed; empty: of none yet."""

    def open(self, journal: JournalTail | None) -> None:
        """Read what was kept, and what the journal says was spent since. StoreError when that cannot be."""
        path = self._folder / FILE
        try:
            self._lock = lock_folder(self._folder)
            self._database = Database(path, self._map_bytes_max)
            with self._database.read() as rows:
                self.epoch = rows.epoch
                self.store = (rows.get(META, STORE) or b"").decode()
                self._spent = {key.decode(): decode(value, Spent) for key, value in rows.scan(SPENT)}
                sequence = int.from_bytes(rows.get(META, SEQUENCE) or b"", "big")
                settled = int.from_bytes(rows.get(META, SETTLED) or b"", "big")
        except (OSError, lmdb.Error, DamagedRow) as error:
            raise StoreError(
                f"what was kept of the followed authority in `{path}` cannot be read: {str(error).lower()};"
                " remove the file when its authority is the right one"
            ) from None
        if journal is not None:
            self._sequence = journal.last_sequence
            self._redo(Redo(journal, sequence, settled))

    def _redo(self, redo: Redo) -> None:
        for effects in redo:
            for kind, key, value in effects:
                if kind <= len(AXES):
                    before = self._spent.get(key, NOTHING)
                    axis = AXES[kind - 1]
                    amounts = {name: getattr(before, name) + (value if name == axis else 0) for name in AXES}
                    self._spent[key] = Spent(**amounts)
        if self.epoch:
            # Without one of its own the file is new, and what the journal names may be another authority's.
            self.epoch = max(self.epoch, redo.epoch)
        if redo.gap:
            # What was spent there is not known any more, so nothing of what was there has anything left.
            self._lost_before_ns = time.time_ns()

    def close(self) -> None:
        """Give the file back. May be called again."""
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def spent(self, task: str, opened_ns: int) -> Spent | None:
        """What calls spent of a task before this start; None: nobody knows any more."""
        return None if opened_ns <= self._lost_before_ns else self._spent.get(task, NOTHING)

    def adopt(self, store: str) -> str:
        """The id of the store that is followed: from now on `store`, if it is the first."""
        if store and not self.store:
            self.store = store
            self._write(lambda database: _put(database, STORE, store.encode()))
        return self.store

    def reach(self, epoch: int) -> None:
        """Keep that this epoch was followed."""
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        self._write(lambda database: _put(database, EPOCH, epoch.to_bytes(8, "big")))

    def snapshot(self, live: LiveView) -> None:
        """Keep what calls have spent. Only once all tasks are there: what is missing is not kept."""
        self._write(lambda database: self._snapshots.take(database, live, self._sequence, time.time_ns()))

    def _write(self, work: Callable[[Database], None]) -> None:
        """Do `work`; what the disk refuses stands in the journal as well, and is tried again with the next."""
        database = self._database
        try:
            while database is not None:
                try:
                    work(database)
                    return
                except lmdb.MapFullError:
                    if not database.grow():
                        raise
        except (lmdb.Error, OSError) as error:
            event(log, "follow.not_kept", logging.WARNING, cause=str(error).lower())


def _put(database: Database, key: bytes, value: bytes) -> None:
    with database.write() as rows:
        rows.put(META, key, value)
