"""A process killed at any moment loses no record that it had answered."""

import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from fastpath.frames import FrameLayout, gap_range
from sidecar.decisions.reader import SpoolReader
from tests.fix_faults import Ended, Point, ended, needs_strace, some
from tests.fix_journal import DEADLINE_S, SEGMENT_BYTES, held, open_journal

ROUNDS = 10
SEED = 20261123
LARGE_BYTES = 1 << 20  # more than is given to the disk at once

# Four threads append and say so on standard output, each sequence with its own content, until they are killed. With
# `reuse` what they wrote is acknowledged all the time, so that they soon write over files that held records.
WRITER = """
import os, sys, threading
from fastpath.journal import Journal
journal = Journal(sys.argv[1], segment_bytes=int(sys.argv[4]), cap_bytes=1 << 30, sync=sys.argv[2], sync_ms=1)
turn = threading.Lock()
def acknowledge(sequence):
    with turn:
        journal.acknowledge(max(journal.acknowledged()[0], sequence), bytes(32))
def work(thread):
    n = 0
    while True:
        n += 1
        text = f"{thread}:{n}:".encode() + b"x" * (n * 131 % 900)
        sequence = journal.append_bytes(text)
        if sequence:
            os.write(1, f"{sequence} {thread}:{n}\\n".encode())
        if sys.argv[3] == "reuse" and n % 100 == 0:
            acknowledge(sequence - 200)
for thread in range(4):
    threading.Thread(target=work, args=(thread,)).start()
"""


def run_and_kill(
    folder: Path,
    sync: str,
    answers_before_kill: int,
    delay_s: float,
    how: str = "keep",
    segment_bytes: int = SEGMENT_BYTES,
) -> list[tuple[int, str]]:
    """(sequence, content) of all that a writer had answered when it was killed."""
    command = [sys.executable, "-c", WRITER, str(folder), sync, how, str(segment_bytes)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    answered: list[bytes] = []
    for line in writer.stdout:
        answered.append(line)
        if len(answered) == answers_before_kill:
            # The moment is random in the writer's code: its answers go on while the timer runs.
            threading.Timer(delay_s, writer.kill).start()
    writer.wait(DEADLINE_S)
    writer.stdout.close()
    whole = [line.decode().split() for line in answered if line.endswith(b"\n")]
    return [(int(sequence), content) for sequence, content in whole]


@pytest.mark.parametrize(
    ("sync", "segment_bytes"),
    [("none", SEGMENT_BYTES), ("each", SEGMENT_BYTES), ("interval", SEGMENT_BYTES), ("interval", LARGE_BYTES)],
)
def test_sigkill_under_load_loses_no_answered_record(tmp_path: Path, sync: str, segment_bytes: int) -> None:
    """LG-04: what was answered is in the journal under its sequence; numbers are unique over restarts; no gap.

    With `interval` what was written goes to the segments, and to the disk, every millisecond.
    """
    rng = random.Random(SEED)
    folder = tmp_path / "journal"
    answered: dict[int, str] = {}
    for _ in range(2 if sync == "each" else ROUNDS):
        count = rng.randrange(1, 60 if sync == "each" else 3000)
        delay_s = rng.random() * 0.02
        for sequence, content in run_and_kill(folder, sync, count, delay_s, segment_bytes=segment_bytes):
            assert sequence not in answered
            answered[sequence] = content
        open_journal(folder, segment_bytes=segment_bytes, cap_bytes=1 << 30).close()
        records = dict(held(folder))
        assert list(records) == list(range(1, len(records) + 1))
        assert not any(gap_range(payload) for payload in records.values())
        lost = [n for n, content in answered.items() if not records[n].startswith(content.encode() + b":")]
        assert lost == []
    assert len(answered) > 100


def held_records(spare: bytes) -> bool:
    """Whether a segment that nobody has entered is made of one that held records."""
    header, end = int(FrameLayout.SEGMENT_HEADER), int(FrameLayout.END_BYTES)
    return not any(spare[header : header + end]) and any(spare[header + end :])


def test_sigkill_while_files_serve_again_loses_nothing_that_upstream_lacks(tmp_path: Path) -> None:
    """LG-04: the same where each segment is written over one that upstream has: no old record comes back either."""
    rng = random.Random(SEED)
    folder = tmp_path / "journal"
    answered: dict[int, str] = {}
    reused = 0
    for _ in range(ROUNDS):
        answered.update(run_and_kill(folder, "none", rng.randrange(4000, 9000), rng.random() * 0.02, "reuse"))
        reused += sum(held_records(path.read_bytes()) for path in folder.glob("*.spare"))
        with open_journal(folder, cap_bytes=1 << 30) as journal:
            behind, end = journal.acknowledged()[0], journal.next_sequence
        records = dict(held(folder, behind))
        assert behind < max(answered) < end
        assert list(records) == list(range(behind + 1, end))
        assert not any(gap_range(payload) for payload in records.values())
        known = {n: content for n, content in answered.items() if n in records}
        assert [n for n, content in known.items() if not records[n].startswith(content.encode() + b":")] == []
    assert reused


# Each upkeep copies to segments, syncs, names and closes them; what upstream has, or is dropped, serves again.
KEPT = """
import os, sys
from fastpath.journal import Journal
folder, on_full = sys.argv[1:]
journal = Journal(folder, segment_bytes=4096, cap_bytes=5 * 4096, on_full=on_full, sync="interval", helper=False)
os.write(1, b"begun\\n")
for n in range(1, 81):
    sequence = journal.append_bytes(str(n).encode() * 100)
    os.write(1, f"{sequence}\\n".encode())
    journal.maintain()
    if n % 20 == 0 and on_full == "deny":
        journal.acknowledge(n - 15, bytes(32))
journal.close()
os.write(1, b"whole\\n")
"""
OF_FILES = "openat,rename,unlink,link,ftruncate,fallocate,pwrite64,pwritev,fsync,fdatasync,mmap,fcntl"


def upkeep(folder: Path, on_full: str, log: Path, inject: str = "") -> Ended:
    strace = ["strace", "-qq", "-y", "-o", str(log), "-e", f"trace={OF_FILES},write", "-e", "signal=none"]
    strace += ["-e", f"inject={inject}"] if inject else []
    return ended([*strace, "--", sys.executable, "-c", KEPT, str(folder), on_full])


def upkeep_points(root: Path, on_full: str) -> list[Point]:
    """Every call of upkeep that has to do with the folder, counted as strace counts."""
    folder, log = root / "points", root / "points.log"
    assert upkeep(folder, on_full, log).said.endswith("whole")
    count: Counter[str] = Counter()
    found = []
    begun = False
    for line in log.read_text().splitlines():
        call = line.split("(")[0]
        count[call] += 1
        begun = begun or "begun" in line
        if begun and str(folder) in line:
            found.append(Point(call, count[call]))
    return found


@needs_strace
@pytest.mark.parametrize("on_full", ["deny", "drop_oldest"])
def test_sigkill_during_upkeep_leaves_a_directory_that_opens(tmp_path: Path, on_full: str) -> None:
    """LG-04: killed before each call of upkeep that changes a file: nothing is lost, and every gap says so."""
    points = upkeep_points(tmp_path, on_full)
    expected = {"openat", "rename", "fallocate", "pwrite64", "pwritev", "fsync", "fdatasync", "fcntl"}
    assert expected <= {at.call for at in points}
    for point in some(points, 30):
        folder = tmp_path / f"{point.call}-{point.n}"
        killed = upkeep(folder, on_full, tmp_path / "kill.log", f"{point.call}:signal=KILL:when={point.n}")
        answered = killed.said.split()[1:]
        assert "whole" not in answered, point
        last = int(answered[-1]) if answered else 0
        with open_journal(folder, segment_bytes=4096, cap_bytes=5 * 4096) as journal:
            assert journal.next_sequence == last + 1, point
            acknowledged = journal.acknowledged()[0]
        records = dict(held(folder, acknowledged))
        gone = {n for payload in records.values() if (gap := gap_range(payload)) for n in range(gap[0], gap[1] + 1)}
        assert on_full == "drop_oldest" or not gone, point
        wrong = [n for n in range(acknowledged + 1, last + 1) if n not in gone and records[n] != str(n).encode() * 100]
        assert not wrong, point


@pytest.mark.parametrize("on_full", ["deny", "drop_oldest"])
def test_under_load_every_sequence_is_read_or_named(tmp_path: Path, on_full: str) -> None:
    """LG-13: writers faster than upstream: a reader gets each accepted record, or a Gap in its place, in order."""
    folder = tmp_path / "journal"
    seen: list[tuple[int, bytes]] = []
    with open_journal(folder, cap_bytes=6 * 65536, on_full=on_full, helper=True) as journal:
        accepted: list[list[int]] = [[] for _ in range(4)]

        def write(into: list[int]) -> None:
            into.extend(journal.append_bytes(b"x" * 300) for _ in range(4000))

        threads = [threading.Thread(target=write, args=(into,)) for into in accepted]
        for thread in threads:
            thread.start()
        reader = SpoolReader(journal.segments, 0, mend=journal.mend)
        while any(thread.is_alive() for thread in threads):
            if entries := reader.read(100, 1 << 20):
                seen.extend(entries)
                journal.acknowledge(entries[-1][0], bytes(32))
        seen.extend(rest(reader))
        reader.close()
        written = {n for into in accepted for n in into if n}
    covered = 0
    for sequence, payload in seen:
        gap = gap_range(payload)
        assert (gap[0] if gap else sequence) <= covered + 1 <= sequence
        covered = sequence
    assert written - {sequence for sequence, _ in seen} <= set(gap_sequences(seen))
    assert covered == max(written)
    if on_full == "deny":
        assert not gap_sequences(seen)


def rest(reader: SpoolReader) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while entries := reader.read(100, 1 << 20):
        found.extend(entries)
    return found


def gap_sequences(entries: list[tuple[int, bytes]]) -> set[int]:
    ranges = [found for _, payload in entries if (found := gap_range(payload))]
    return {sequence for first, last in ranges for sequence in range(first, last + 1)}
