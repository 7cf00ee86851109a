"""The authority store killed, failed and cut off at any system call: what was answered is there, no half of it."""

import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from sidecar.authority.revocations import scan_revocations
from sidecar.authority.rows import Task, decode
from sidecar.authority.tasks import get_task
from tests.fix_faults import LONG, ROOT, SEED, Ended, Point, ended, mounted_disk, needs_strace, some
from tests.fix_store import Kept, kept

# What a commit does to its file.
CALLS = "pwrite64,writev,pwritev,fdatasync,fsync,msync"
BEGIN = "/proc/self/remit-begin"
WORKER = f"""
import os, pathlib, sys
from tests.fix_store import ALICE, AGENT_A, AGENT_B, ALL, BY_A, Kept
from sidecar.authority import tasks
from sidecar.authority.revocations import Kind, Revoke, revoke
from sidecar.authority.rows import Budgets
from sidecar.authority.tasks import ChangeTask, DelegateTask
from sidecar.errors import SidecarError
made = Kept(pathlib.Path(sys.argv[1]), snapshot_s=1000.0)
made.store.open()
try:
    os.open({BEGIN!r}, os.O_RDONLY)
except FileNotFoundError:
    pass
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
for n in range(int(sys.argv[2])):
    try:
        task = made.open(budgets=Budgets(calls=10))
        say("task", task.id, "open", 10)
        asked = DelegateTask(parent=task.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=4))
        child = made.run(tasks.delegate_task, asked, BY_A)
        say("task", child.id, "open", 4)
        if n % 2:
            made.run(tasks.complete_task, ChangeTask(id=task.id), ALICE)
            say("task", task.id, "completed", 10)
        made.run(revoke, Revoke(kind=Kind.TOOL, key=f"tool/{{n}}"), ALICE)
        say("revoked", f"tool/{{n}}")
    except SidecarError as error:
        say("refused", error)
say("in-force", made.live.counts()["revocations"])
os._exit(0)
"""


def worker(folder: pathlib.Path, rounds: int) -> list[str]:
    return [sys.executable, "-c", WORKER, str(folder), str(rounds)]


def lines(said: str) -> list[list[str]]:
    """What a worker was answered; a last line that was cut is none."""
    return [line.split() for line in said.split("\n")[:-1] if line]


def assert_all_there(folder: pathlib.Path, said: list[list[str]]) -> None:
    """Everything that was answered is found, nothing is half there, and the next command works."""
    with kept(folder) as one:
        with one.store.read() as draft:
            for row in said:
                if row[0] == "task":
                    task = get_task(draft, row[1])
                    assert task.granted.calls == int(row[3])
            last = {row[1]: row[2] for row in said if row[0] == "task"}
            for id_, state in last.items():
                task = get_task(draft, id_)
                parent = get_task(draft, task.parent) if task.parent else None
                # A parent that was completed took its child along.
                expected = {"open", "completed"} if parent is None else {"open", "cancelled"}
                assert str(task.state) == state or (state == "open" and str(task.state) in expected)
                if parent is not None:
                    assert (str(parent.state) == "completed") == (str(task.state) == "cancelled")
            revoked = {row[1] for row in said if row[0] == "revoked"}
            # A revocation that the disk refused is in force after the restart all the same.
            stored = {value for _, value in scan_revocations(draft, b"", b"")}
            assert len(stored) >= len(revoked)
            # Sums: what parents gave and what children have.
            for _, value in draft.rows.scan("tasks"):
                task = decode(value, Task)
                if not task.parent:
                    below = [get_task(draft, name) for name in draft.names("children", task.id.encode())]
                    held = sum(child.granted.calls for child in below if str(child.state) == "open")
                    assert task.drawn.calls == held or str(task.state) == "completed"
        assert one.live.counts()["revocations"] == len(stored)
        assert one.open().epoch == one.store.epoch


def test_sigkill_at_random_moments_loses_nothing_that_was_answered(tmp_path: pathlib.Path) -> None:
    """DB-01, RT-02, RT-10: answered is at most recovered, over many kills of one store."""
    rng = random.Random(SEED)
    said: list[list[str]] = []
    for _ in range(40 if LONG else 5):
        process = subprocess.Popen(
            worker(tmp_path / "s", 10_000), stdout=subprocess.PIPE, text=True, cwd=ROOT, env=None
        )
        assert process.stdout is not None
        got = [process.stdout.readline() for _ in range(rng.randrange(1, 60))]
        time.sleep(rng.random() * 0.005)  # where in a commit it dies is chance
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        said += [row for row in lines("".join(got) + rest) if row[0] in ("task", "revoked")]
        assert_all_there(tmp_path / "s", said)
    assert len(said) > 20


@needs_strace
def test_a_kill_at_every_system_call_of_a_commit_leaves_all_of_it_or_nothing(tmp_path: pathlib.Path) -> None:
    """DB-01: SIGKILL at the Nth write or sync."""
    points = commit_points(tmp_path)
    assert {"fdatasync"} <= {point.call for point in points}
    for number, point in enumerate(some(points, 6)):
        inject = f"{point.call}:signal=SIGKILL:when={point.n}"
        folder, done = hit(tmp_path, f"kill-{number}", inject, lambda done: done.status != 0)
        assert_all_there(folder, lines(done.said + "\n"))


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_at_any_call_is_told_and_nothing_answered_is_lost(tmp_path: pathlib.Path, error: str) -> None:
    """DB-03, DB-04, DB-05: a write or a sync fails once; the caller hears of it, and a restart finds the rest."""
    points = commit_points(tmp_path)
    for number, point in enumerate(some(points, 5)):
        if error == "ENOSPC" and point.call == "fdatasync":
            continue
        inject = f"{point.call}:error={error}:when={point.n}"
        folder, done = hit(tmp_path, f"{error}-{number}", inject, lambda done: "refused" in done.said)
        said = lines(done.said + "\n")
        assert done.status == 0, done
        refusals = [" ".join(row) for row in said if row[0] == "refused"]
        assert refusals, point
        expected = "is full" if error == "ENOSPC" else "failed"
        assert expected in refusals[0], (point, refusals)
        # After its meta page could not be written LMDB takes nothing more, and the store is latched.
        assert all(expected in text or "failed" in text for text in refusals), (point, refusals)
        assert_all_there(folder, [row for row in said if row[0] in ("task", "revoked")])


@needs_strace
def test_a_power_cut_after_an_answer_loses_nothing_of_it(tmp_path: pathlib.Path) -> None:
    """DB-02: what was answered was synchronised."""
    with mounted_disk(tmp_path) as disk:
        folder = disk.at / "s"
        said: list[list[str]] = []
        for _ in range(10 if LONG else 2):
            done = ended(worker(folder, 3))
            said += [row for row in lines(done.said + "\n") if row[0] in ("task", "revoked")]
            disk.cut()
            assert_all_there(folder, said)
        assert said


# ---------------------------------------------------------------- strace


def traced(root: pathlib.Path, folder: pathlib.Path, inject: str) -> Ended:
    log = root / "strace.log"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CALLS},openat", "-e", "signal=none"]
    if inject:
        strace += ["-e", f"inject={inject}"]
    with kept(folder):
        pass  # the folder is made before, so that a worker's calls are those of its commits
    return ended([*strace, "--", *worker(folder, 2)])


def hit(root: pathlib.Path, name: str, inject: str, was_hit: Callable[[Ended], bool]) -> tuple[pathlib.Path, Ended]:
    """A run in which the call that `inject` names was made, and its folder.

    strace counts calls by thread, and a command that comes while the writer thread has the turn is committed there.
    """
    for attempt in range(10):
        folder = root / f"{name}-{attempt}"
        done = traced(root, folder, inject)
        if was_hit(done):
            return folder, done
    raise AssertionError(f"no run came to {inject}")


def commit_points(root: pathlib.Path) -> list[Point]:
    """Every write and sync of a worker's commits, counted as strace counts them: by thread."""
    done = traced(root, root / "points", "")
    assert done.status == 0, done
    count: dict[tuple[str, str], int] = {}
    found: list[Point] = []
    begun = False
    writer = ""
    for line in (root / "strace.log").read_text().splitlines():
        match = re.match(r"(\d+)\s+(\w+)\(", line)
        if match is None:
            continue
        thread, call = match[1], match[2]
        count[thread, call] = count.get((thread, call), 0) + 1
        if BEGIN in line:
            begun = True
        elif begun and call != "openat":
            writer = writer or thread
            if thread == writer:
                found.append(Point(call, count[thread, call]))
    return found


def test_the_store_needs_nothing_of_the_process_that_had_it(tmp_path: pathlib.Path) -> None:
    """The lock ends with its process: a killed one is in nobody's way."""
    process = subprocess.Popen(worker(tmp_path / "s", 10_000), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    again = Kept(tmp_path / "s")
    again.store.open()
    again.store.close()
