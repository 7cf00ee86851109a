"""The LMDB file of the authority store: one write at a time, many short reads, a map that grows.

Default flags only: every commit is durable when it returns. Nothing else opens the file or its lock file while a
Database is open in this process (the locks of LMDB belong to process and inode).
"""

import contextlib
import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import lmdb

from sidecar.authority.draft import ANSWERS_BY, META, SURE_DUE, TABLES
from sidecar.authority.errors import StoreError

MIB = 1 << 20
MAP_BYTES = 64 * MIB
READERS = 256
AHEAD_BYTES = MIB
WRITE_BYTES = MIB // 4
"""What LMDB writes at once at most, with pages of 4 KiB."""
LOOK_ROWS = 64
SPENT, USED = "spent", "used"
READ_S = 1.0
EPOCH = b"epoch"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# All tables stand in one tree, each behind a byte of its own: a commit writes fewer pages than with a tree for each.
_BYTES = {name: bytes((number,)) for number, name in enumerate((*TABLES, SPENT, USED, ANSWERS_BY, SURE_DUE), 1)}


class OldReader(StoreError):
    """A snapshot was read for too long."""

    def __init__(self) -> None:
        super().__init__(f"reading the authority store took more than {READ_S:g} s; ask again, or for a smaller page")


class DatabaseRows:
    """Rows of one transaction, which a `with` block ends: committed, or nothing of it at an exception."""

    def __init__(
        self, txn: lmdb.Transaction, until: float = math.inf, committed: Callable[[int], None] = lambda _: None
    ) -> None:
        """`until`, on time.monotonic: a reader that is older may not read on. `committed` is told how many rows were
        written."""
        self._txn = txn
        self._until = until
        self._committed = committed
        self._written: dict[bytes, bytes | None] = {}
        """What `write` was given and LMDB was not yet; None: to be removed."""
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._txn.commit()
                self._committed(self._count)
        finally:
            # Does nothing to what was committed.
            self._txn.abort()

    def _check_age(self) -> None:
        if self._until < math.inf and time.monotonic() > self._until:
            raise OldReader

    def get(self, table: str, key: bytes) -> bytes | None:
        self._check_age()
        place = _BYTES[table] + key
        if place in self._written:
            return self._written[place]
        found: bytes | None = self._txn.get(place)  # type: ignore[assignment]  # no buffers
        return found

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._written[_BYTES[table] + key] = value

    def write(self, changes: Mapping[tuple[str, bytes], bytes | None]) -> None:
        """Put every row that has a value, remove every other one. LMDB gets it at the end, with all that is written
        until then, or before a scan."""
        for (table, key), value in changes.items():
            self._written[_BYTES[table] + key] = value

    def delete(self, table: str, key: bytes) -> None:
        self._written[_BYTES[table] + key] = None

    def _flush(self) -> None:
        """Give LMDB what was written, in the order of the file: each page is come to once."""
        if not self._written:
            return
        self._count += len(self._written)
        rows = sorted(self._written.items())
        self._written.clear()
        with self._txn.cursor() as cursor:
            cursor.putmulti([(place, value) for place, value in rows if value is not None])
        for place, value in rows:
            if value is None:
                self._txn.delete(place)

    def count(self, table: str, most: int) -> int:
        """How many rows the table has; not further than `most`."""
        return sum(1 for _ in zip(range(most), self.scan(table), strict=False))

    def scan(self, table: str, prefix: bytes = b"", after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        self._flush()
        own = _BYTES[table]
        whole, last = own + prefix, own + after
        with self._txn.cursor() as cursor:
            found = cursor.set_range(max(whole, last))
            while found:
                self._check_age()
                key = bytes(cursor.key())
                if not key.startswith(whole):
                    return
                if key != last or not after:
                    yield key[1:], bytes(cursor.value())
                found = cursor.next()

    @property
    def epoch(self) -> int:
        return int.from_bytes(self.get(META, EPOCH) or b"", "big")


class Database:
    """Owns the environment. `write` and `grow` belong to one thread; `read` to all."""

    def __init__(self, path: Path, map_bytes_max: int) -> None:
        """Open or make the file (mode 0600). lmdb.Error as it comes."""
        self.path = path
        self._most = map_bytes_max
        self._gate = threading.Condition()
        self._readers = 0
        self.old_readers = 0
        """How many read for too long and were refused the rest."""
        self._shut = False
        size = path.stat().st_size if path.exists() else 0
        self._map = max(MAP_BYTES, size, min(2 * size, map_bytes_max))
        self._env = lmdb.open(str(path), subdir=False, map_size=self._map, max_readers=READERS, mode=0o600)
        self._page = self._env.stat()["psize"]
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        """Open as long as LMDB has it open."""
        self._unlooked = LOOK_ROWS
        """Rows that were written since the room ahead was looked at."""

    @contextlib.contextmanager
    def read(self, age_s: float = math.inf) -> Iterator[DatabaseRows]:
        """A snapshot. What is written beside it makes the file grow: after `age_s` reading is OldReader (DB-07)."""
        with self._gate:
            if self._shut:
                raise StoreError("the authority store is closed")
            self._readers += 1
        try:
            with DatabaseRows(self._env.begin(), time.monotonic() + age_s) as rows:
                yield rows
        except OldReader:
            self.old_readers += 1
            raise
        finally:
            with self._gate:
                self._readers -= 1
                self._gate.notify_all()

    def write(self) -> DatabaseRows:
        """One transaction: durable when its block ends, or nothing of it at an exception."""
        return DatabaseRows(self._env.begin(write=True), committed=self._look_ahead)

    def _look_ahead(self, rows: int) -> None:
        """Keep room written behind what LMDB uses: a commit that makes the file longer waits for the file system's own
        journal as well. Where there is none to be had it does."""
        self._unlooked += rows
        if self._unlooked < LOOK_ROWS:
            return
        self._unlooked = 0
        used = (self._env.info()["last_pgno"] + 1) * self._page
        size = max(used, os.fstat(self._file).st_size)
        room = min(AHEAD_BYTES, self._most - size)
        if room > 0 and size < used + AHEAD_BYTES // 2:
            with contextlib.suppress(OSError):
                # Durable with the next commit; nobody counts on it.
                os.pwrite(self._file, bytes(room), size)

    def ran_full(self, error: Exception) -> bool:
        """As `is_full`, of an error of this database that has just come.

        LMDB calls a write that ended where the room did an input/output error. Nothing is lost by it: the kernel has
        all that it took, and there is no room for more.
        """
        if is_full(error):
            return True
        if os.strerror(errno.EIO) not in str(error):
            return False
        try:
            # The kernel says to each descriptor once what it could not write.
            os.fdatasync(self._file)
        except OSError:
            return False
        try:
            return os.pwrite(self._file, bytes(WRITE_BYTES), os.fstat(self._file).st_size) < WRITE_BYTES
        except OSError as refusal:
            return is_full(refusal)

    def grow(self) -> bool:
        """Double the map, with no transaction open; False when it has reached its cap."""
        if self._map >= self._most:
            return False
        with self._alone():
            self._map = min(2 * self._map, self._most)
            self._env.set_mapsize(self._map)
        return True

    def copy(self, path: Path) -> None:
        """A compact copy at `path`, of one moment; not yet synchronised. lmdb.Error as it comes."""
        # py-lmdb writes it like any file: through the page cache.
        self._env.copy(str(path), compact=True)

    def check_readers(self) -> None:
        """Give back slots of readers that died."""
        self._env.reader_check()

    def close(self) -> None:
        """Once no reader is left. May be called again."""
        with self._alone():
            if self._shut:
                return
            self._shut = True
            self._env.close()
            os.close(self._file)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._gate:
            self._gate.wait_for(lambda: self._readers == 0)
            yield


def remove(path: Path) -> None:
    """Remove a file that no Database has open, with its lock file."""
    for one in (path, Path(f"{path}-lock")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(one)


def is_full(error: Exception) -> bool:
    """Whether the disk, and not the store, is what failed: the next commit may work (row DB-05)."""
    if isinstance(error, OSError):
        return error.errno in FULL
    text = str(error)
    return any(os.strerror(code) in text for code in FULL)
