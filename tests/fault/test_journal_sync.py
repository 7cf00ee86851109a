"""What `sync: interval` and `each` say is on disk was given to the kernel to write, byte by byte."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastpath.journal import Journal, JournalState
from fastpath.spool_folder import read_checked
from tests.fix_faults import ROOT, needs_strace

SEGMENT_BYTES = 8 << 20  # more than is written out at once
PIECE_BYTES = 1 << 20

# Appends records of random sizes; after each upkeep tells where the frames of each segment end.
WRITER = """
import json, os, random, sys
from pathlib import Path
from fastpath.frames import Frames
from fastpath.journal import Journal
folder, sync, size, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(20261129)
journal = Journal(str(folder), segment_bytes=size, cap_bytes=1 << 28, sync=sync, helper=False)
for _ in range(rounds):
    for _ in range(rng.choice((1, 3, 200, 8000))):
        journal.append_bytes(rng.randbytes(rng.randrange(1, 900)))
    journal.maintain()
    ends = {}
    for segment in journal.segments():
        frames = Frames(segment.path)
        for _ in frames:
            pass
        ends[segment.path.name] = frames.offset
        frames.close()
    os.write(1, json.dumps(ends).encode() + b"\\n")
os._exit(0)
"""
NAMED = re.compile(r'rename\("[^"]*/(\d+\.spare)", "[^"]*/(\d+\.seg)"\) = 0$')
WRITTEN = re.compile(r"pwrite(?:v|64)\(\d+<[^>]*/(\d+\.(?:spare|seg))>, .*, (\d+)\) = (\d+)$")
SYNCED = re.compile(r"f(?:data)?sync\(\d+<[^>]*/(\d+\.(?:spare|seg))>\) += 0$")
GIVEN = re.compile(r"sync_file_range\(\d+<[^>]*>, \d+, (\d+), SYNC_FILE_RANGE_WRITE\) += 0$")
TOLD = re.compile(r'write\(1<[^>]*>, "(\{.*\})\\n"')
CALLS = ("rename", "pwrite64", "pwritev", "fsync", "fdatasync", "sync_file_range", "write")


class Disk:
    """What of each segment was written, and whether all of that is on the disk."""

    def __init__(self) -> None:
        self.given: list[int] = []  # bytes that were begun to be written to the disk, without a wait
        self._ends: dict[str, int] = {}
        self._waiting: set[str] = set()

    def named(self, spare: str, segment: str) -> None:
        if spare in self._ends:
            self._ends[segment] = self._ends.pop(spare)
        if spare in self._waiting:
            self._waiting.remove(spare)
            self._waiting.add(segment)

    def written(self, name: str, at: int, size: int) -> None:
        self._ends[name] = max(self._ends.get(name, 0), at + size)
        self._waiting.add(name)

    def synced(self, name: str) -> None:
        self._waiting.discard(name)

    def check(self, ends: dict[str, int]) -> None:
        """All frames have been written, and nothing that was written waits for the disk."""
        assert {name: end for name, end in ends.items() if end > self._ends[name]} == {}
        assert not self._waiting & set(ends)


def followed(folder: Path, sync: str, rounds: int) -> Disk:
    """Run the writer, and hold every time that it tells to what it asked of the kernel."""
    log = folder / "strace.log"
    worker = [sys.executable, "-c", WRITER, str(folder / "journal"), sync, str(SEGMENT_BYTES), str(rounds)]
    strace = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-s",
        "4096",
        "-o",
        str(log),
        "-e",
        f"trace={','.join(CALLS)}",
        "-e",
        "signal=none",
    ]
    subprocess.run([*strace, "--", *worker], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    disk, told = Disk(), 0
    for line in log.read_text().splitlines():
        if found := NAMED.search(line):
            disk.named(found[1], found[2])
        elif found := WRITTEN.search(line):
            disk.written(found[1], int(found[2]), int(found[3]))
        elif found := SYNCED.search(line):
            disk.synced(found[1])
        elif found := GIVEN.search(line):
            disk.given.append(int(found[1]))
        elif found := TOLD.search(line):
            disk.check(json.loads(found[1].replace("\\", "")))
            told += 1
    assert told == rounds
    return disk


@needs_strace
def test_interval_writes_out_all_that_was_written_since(tmp_path: Path) -> None:
    """LG-04: after each upkeep every frame is in a segment and was synced.

    Before, it was begun in pieces: a sync of a whole segment is milliseconds of the kernel's work, in which calls wait.
    """
    disk = followed(tmp_path, "interval", 40)
    assert len(disk.given) > 20
    assert max(disk.given) <= 2 * PIECE_BYTES


@needs_strace
def test_each_writes_out_all_that_was_written_since(tmp_path: Path) -> None:
    """LG-04: the same where each record is on disk before it is answered."""
    assert not followed(tmp_path, "each", 6).given


def stopped_in_order(folder: Path) -> bool:
    """What the next start will read of this stop."""
    return bool((read_checked(folder / "journal") or {})["clean"])


# Several threads append until the journal takes nothing more; tells what each was answered last and what an operator
# then sees. The journal is closed as at an orderly stop.
REFUSED = """
import json, sys, threading, time
from fastpath.journal import Journal, JournalState
folder, sync = sys.argv[1:]
given, end = [], time.monotonic() + 60
def write():
    while journal.state != JournalState.JOURNAL_FAILED and time.monotonic() < end:
        given.append(journal.append_bytes(b"a record"))
        time.sleep(0.001)   # slow enough to leave room: who fills the journal is refused for another reason
with Journal(folder, sync=sync, sync_ms=5) as journal:
    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    journal.maintain()
    told = [int(journal.state), journal.problem, journal.append_bytes(b"another"), journal.synced, given]
    print(json.dumps(told))
"""


@needs_strace
@pytest.mark.parametrize("sync", ["interval", "each"])
def test_a_disk_that_does_not_take_a_sync_ends_the_journal_and_is_said(tmp_path: Path, sync: str) -> None:
    """What is not on disk is not answered for. The kernel tells once: who waited meanwhile must not ask it again."""
    told_once = "inject=fdatasync:error=EIO:delay_enter=200000:when=2"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", told_once, "-e", "signal=none", "--"]
    worker = [sys.executable, "-c", REFUSED, str(tmp_path / "journal"), sync]
    done = subprocess.run([*strace, *worker], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    state, problem, another, synced, given = json.loads(done.stdout)
    assert (JournalState(state), another) == (JournalState.JOURNAL_FAILED, 0)
    assert problem == "syncing the journal failed; the disk does not take writes"
    if sync == "interval":
        assert synced < max(given)
    else:
        assert synced == max(given)
        assert sorted(filter(None, given)) == list(range(1, synced + 1))
    assert not stopped_in_order(tmp_path / "journal")


# Ends with a segment that is full and one that is not, of which nothing was synced before.
LEFT = """
import sys
from fastpath.journal import Journal
with Journal(sys.argv[1], segment_bytes=4096, cap_bytes=1 << 20, sync="interval", helper=False) as journal:
    for _ in range(10):
        assert journal.append_bytes(b"x" * 500)
print(journal.problem)
"""


@needs_strace
@pytest.mark.parametrize("which", [1, 2])
def test_a_last_sync_that_fails_is_no_orderly_stop(tmp_path: Path, which: int) -> None:
    """Of the full segment, and of the other one."""
    with Journal(str(tmp_path / "good")) as journal:
        assert journal.append_bytes(b"one")
    assert stopped_in_order(tmp_path / "good")
    strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"inject=fdatasync:error=EIO:when={which}",
        "-e",
        "signal=none",
    ]
    worker = [sys.executable, "-c", LEFT, str(tmp_path / "journal")]
    done = subprocess.run([*strace, "--", *worker], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert "does not take writes" in done.stdout
    assert not stopped_in_order(tmp_path / "journal")


# Ends with records that no segment has room for.
NO_ROOM = """
import sys
from fastpath.journal import Journal
with Journal(sys.argv[1], segment_bytes=200000, cap_bytes=2 * 200000, sync="interval", helper=False) as journal:
    while journal.append_bytes(b"x" * 43600):   # three fit into a front, and four into a segment
        pass
"""


@needs_strace
@pytest.mark.parametrize("how", ["retval=0", "error=EIO"])
def test_a_stop_has_on_disk_what_stays_in_the_fronts(tmp_path: Path, how: str) -> None:
    """It is as orderly as another: after a power cut nobody would ask what is missing."""
    log = tmp_path / "strace.log"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"inject=msync:{how}", "-e", "signal=none"]
    worker = [sys.executable, "-c", NO_ROOM, str(tmp_path / "journal")]
    subprocess.run([*strace, "--", *worker], cwd=ROOT, check=True)
    assert "MS_SYNC" in log.read_text()
    assert stopped_in_order(tmp_path / "journal") == (how == "retval=0")
