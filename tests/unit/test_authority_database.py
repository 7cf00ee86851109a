"""The LMDB file of the authority store: within a transaction everybody reads what was written, LMDB has it or not."""

import errno
import itertools
import pathlib
import random
from collections.abc import Iterator

import lmdb
import pytest

from sidecar.authority.database import Database, DatabaseRows
from sidecar.authority.draft import DUE, OWNERS, TASKS

MAP_BYTES = 64 << 20
TABLES = (TASKS, OWNERS, DUE)


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Iterator[Database]:
    made = Database(tmp_path / "x.mdb", MAP_BYTES)
    yield made
    made.close()


def everything(rows: DatabaseRows) -> dict[tuple[str, bytes], bytes]:
    return {(table, key): value for table in TABLES for key, value in rows.scan(table)}


@pytest.mark.parametrize("seed", range(10))
def test_a_transaction_reads_what_it_wrote(database: Database, seed: int) -> None:
    """Puts, removals, reads and scans in any order give what a dict gives, and so does the next transaction."""
    rng = random.Random(f"rows {seed}")
    model: dict[tuple[str, bytes], bytes] = {}
    for _ in range(10):
        with database.write() as rows:
            for _ in range(40):
                table, key = rng.choice(TABLES), bytes([rng.randrange(12)])
                match rng.randrange(4):
                    case 0:
                        value = b"w%d" % rng.randrange(99)
                        rows.write({(OWNERS, b"\1"): None, (table, key): value})
                        model.pop((OWNERS, b"\1"), None)
                        model[table, key] = value
                    case 1:
                        rows.put(table, key, b"p")
                        model[table, key] = b"p"
                    case 2:
                        rows.delete(table, key)
                        model.pop((table, key), None)
                    case _:
                        assert rows.get(table, key) == model.get((table, key))
                if rng.random() < 0.1:
                    assert everything(rows) == model
        with database.read() as rows:
            assert everything(rows) == model


def fail(database: Database) -> None:
    with database.write() as rows:
        rows.put(TASKS, b"scanned", b"2")
        assert [key for key, _ in rows.scan(TASKS)] == [b"before", b"scanned"]
        rows.write({(TASKS, b"before"): None, (TASKS, b"after"): b"3"})
        raise ZeroDivisionError


def test_what_fails_leaves_nothing(database: Database) -> None:
    """Neither what LMDB has already nor what it has not."""
    with database.write() as rows:
        rows.put(TASKS, b"before", b"1")
    with pytest.raises(ZeroDivisionError):
        fail(database)
    with database.read() as rows:
        assert everything(rows) == {(TASKS, b"before"): b"1"}


def test_room_is_written_ahead_of_what_is_used(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """No commit makes the file longer, but where there is no room to be had: then it does, and holds all the same."""
    grown = 0

    def put(first: int, count: int) -> None:
        nonlocal grown
        for number in range(first, first + count):
            before = database.path.stat().st_size
            with database.write() as rows:
                rows.put(TASKS, number.to_bytes(8, "big"), bytes(600))
            grown += database.path.stat().st_size > before

    put(0, 2000)
    assert grown <= 4
    monkeypatch.setattr("os.pwrite", refuse)
    put(2000, 4000)
    assert grown > 100
    with database.read() as rows:
        assert rows.count(TASKS, 10_000) == 6000
        assert all(value == bytes(600) for _, value in rows.scan(TASKS))


def filled(path: pathlib.Path, most: int) -> int:
    """Opens a file and writes until it may be no longer; how many bytes it has then."""
    database = Database(path, most)
    try:
        for number in itertools.count():
            try:
                with database.write() as rows:
                    rows.put(TASKS, b"%d %d" % (path.stat().st_size, number), bytes(1 << 20))
            except lmdb.MapFullError:
                if not database.grow():
                    return path.stat().st_size
    finally:
        database.close()
    raise AssertionError("it is never full")


def test_a_file_that_is_opened_again_may_be_no_longer_than_before(tmp_path: pathlib.Path) -> None:
    """Nor does it stand in the way where the bound was made less."""
    most = 70 << 20
    assert 60 << 20 < filled(tmp_path / "x.mdb", most) <= most
    assert filled(tmp_path / "x.mdb", most) <= most
    assert filled(tmp_path / "x.mdb", 1 << 20) <= most


def refuse(*_: object) -> int:
    raise OSError(errno.ENOSPC, "no space left on device")
