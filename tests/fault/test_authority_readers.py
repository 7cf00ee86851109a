"""Other processes that read the store's file and die or stand still: nobody should, and the store outlives it."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from sidecar.authority.errors import ExhaustedError
from tests.fix_faults import LONG, ROOT
from tests.fix_store import Kept, kept

READERS = 40
"""Transactions that a foreign process holds."""
READER = f"""
import pathlib, sys, threading
import lmdb
from sidecar.authority.database import READERS
env = lmdb.open(sys.argv[1], subdir=False, max_readers=READERS, map_size=1 << 26)
held = threading.Barrier({READERS} + 1)
def hold():
    with env.begin():
        held.wait()
        threading.Event().wait()
for _ in range({READERS}):
    threading.Thread(target=hold, daemon=True).start()
held.wait()
print("reading", flush=True)
sys.stdin.read()
"""


def reader(one: Kept) -> "subprocess.Popen[str]":
    """A process that reads the store's file, with its transactions open."""
    (file,) = one.store.folder.glob("state-*.mdb")
    made = subprocess.Popen(
        [sys.executable, "-c", READER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "reading\n"
    return made


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def open_tasks(one: Kept, number: int) -> None:
    for _ in range(number):
        one.open()


def free_slots(one: Kept) -> None:
    """What the writer does with every snapshot."""
    assert one.store._database is not None
    with one.store._turn:
        one.store._database.check_readers()


def test_readers_that_were_killed_give_their_slots_back(tmp_path: pathlib.Path) -> None:
    """DB-09: dead readers would fill the table (256 slots) and pin every page that was freed since."""
    with kept(tmp_path / "s", snapshot_s=1000.0) as one:
        for _ in range(20 if LONG else 7):
            end(reader(one))
            free_slots(one)
        assert one.open().epoch == 1
        with one.store.read() as draft:
            assert draft.rows.get("meta", b"epoch") is not None


def test_a_reader_that_stands_still_costs_room_up_to_the_bound_and_no_longer_than_it_lives(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DB-10: the file grows to `authority.map_bytes`; then commands are refused, and work again when it is gone."""
    monkeypatch.setattr("sidecar.authority.database.MAP_BYTES", 256 * 1024)
    with kept(tmp_path / "s", map_bytes_max=1 << 20, snapshot_s=1000.0) as one:
        one.open()
        stuck = reader(one)
        os.kill(stuck.pid, signal.SIGSTOP)
        (file,) = one.store.folder.glob("state-*.mdb")
        with pytest.raises(ExhaustedError, match=r"`authority\.map_bytes`"):
            open_tasks(one, 1000)
        assert file.stat().st_size <= 1 << 20
        assert one.store.epoch == one.live.epoch
        before = one.store.epoch
        end(stuck)
        free_slots(one)
        open_tasks(one, 20)
        assert one.store.epoch == before + 20
        assert file.stat().st_size <= 1 << 20
