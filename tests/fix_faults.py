"""Faults from outside: system calls at which a publish dies or fails (strace), and power cuts (a mounted ext4).

A run of the default suite plays a seeded slice of them; `make test-faults` plays all (REMIT_FAULTS=long).
"""

import contextlib
import ctypes
import fcntl
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest

from sidecar.policy.lexer import PolicyText
from sidecar.policy.publish import Change, GenerationStore, Manifest, PolicySource, SourceFiles, Work
from tests.fix_policy import ANYTHING

LONG = os.environ.get("REMIT_FAULTS") == "long"
SEED = 20261123
DEADLINE_S = 120
ROOT = pathlib.Path(__file__).parents[1]

# What a publish does to files and memory. `?`: not every architecture has the call.
CALLS = (
    "openat,write,pwrite64,writev,fdatasync,fsync,?rename,renameat,renameat2,?unlink,unlinkat,ftruncate,mmap,flock,"
    "fchmod,?fork,?vfork,clone,clone3,prlimit64"
)
BEGIN, END = "/proc/self/remit-begin", "/proc/self/remit-end"
PUBLISHER = f"""
import os, sys
from sidecar.errors import SidecarError
from sidecar.policy.lexer import PolicyText
from sidecar.policy.publish import Change, GenerationStore, PolicySource, SourceFiles, Work
sys.executable = sys.argv[3]
store, source = GenerationStore(sys.argv[1]), PolicySource(SourceFiles([sys.argv[2]]))
try:
    os.open({BEGIN!r}, os.O_RDONLY)
except FileNotFoundError:
    pass
try:
    if len(sys.argv) > 4:
        change = Change(policies=[PolicyText("edit", sys.argv[4])], removed=sys.argv[5:])
        said = f"published {{store.edit(change, source, Work()).manifest.generation}}"
    else:
        said = f"published {{store.publish(source).generation}}"
except SidecarError as error:
    said = f"refused {{error}}"
try:
    os.open({END!r}, os.O_RDONLY)
except FileNotFoundError:
    pass
print(said, flush=True)
"""

T = TypeVar("T")


def some(points: Sequence[T], count: int) -> list[T]:
    """All of them in a long run, else a seeded sample in order."""
    if LONG or len(points) <= count:
        return list(points)
    return [points[i] for i in sorted(random.Random(SEED).sample(range(len(points)), count))]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "Publishing":
    """One for all tests: each leaves it with a generation in force and nothing lying about."""
    return Publishing(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def edited(tmp_path_factory: pytest.TempPathFactory) -> "Editing":
    """The same with a delta over its base."""
    return Editing(tmp_path_factory.mktemp("edited"))


def _without_strace() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True)
    return "" if probe.returncode == 0 else f"strace cannot trace here: {probe.stderr.strip()[:80]}"


WITHOUT_STRACE = _without_strace()
needs_strace = pytest.mark.skipif(bool(WITHOUT_STRACE), reason=WITHOUT_STRACE)


@dataclass(frozen=True)
class Point:
    """The `n`th `call` that a process makes."""

    call: str
    n: int


@dataclass(frozen=True)
class Ended:
    """How a publisher ended: "published N", "refused CAUSE" or nothing, its status, and what it wrote to stderr."""

    said: str
    status: int
    stderr: str

    @property
    def published(self) -> int | None:
        return int(self.said.split()[1]) if self.said.startswith("published ") else None


class Publishing:
    """A store in which something was published, and publishers as processes of their own."""

    def __init__(self, root: pathlib.Path, store: pathlib.Path | None = None) -> None:
        self.root = root
        self.folder = root / "policies"
        self.folder.mkdir()
        self.store_path = store or root / "store"
        self.log = root / "strace.log"
        self.count = 0
        self._points: dict[str, list[Point]] = {}
        # Three files stay on disk, so that later on a publish has one to remove.
        for _ in range(4 if LONG else 1):
            self.publish()

    # ------------------------------------------------------------ in this process

    def write(self) -> str:
        """Give the source a content that it never had; the id of its one policy."""
        self.count += 1
        (self.folder / "a.cedar").write_text(f'@id("p{self.count}") {ANYTHING};\n')
        return f"p{self.count}"

    def publish(self, text: str = "") -> Manifest:
        """Put a content that never was, or `text`, in force."""
        self.write()
        if text:
            (self.folder / "a.cedar").write_text(text)
        return GenerationStore(self.store_path).publish(PolicySource(SourceFiles([str(self.folder)])))

    def in_force(self) -> tuple[Manifest, list[str]]:
        """The manifest and the ids of the policies that a process started now would decide by."""
        store = GenerationStore(self.store_path)
        manifest = store.current()
        assert manifest is not None
        with store.open_current() as generation:
            assert (generation.generation, generation.digest) == (manifest.generation, manifest.digest_in_force)
            return manifest, generation.policy_ids

    def arguments(self) -> list[str]:
        """What else a publisher is told."""
        return []

    # ------------------------------------------------------------ traced processes

    def points(self, who: str) -> list[Point]:
        """Every system call of a publish, in its order, by the "publisher" or by its "compiler"."""
        if who in self._points:
            return self._points[who]
        self.write()
        assert self.run(who).published
        count: dict[str, int] = {}
        found: list[Point] = []
        begun = False
        for line in self.log.read_text().splitlines():
            call = re.match(r"\w+(?=\()", line)
            if call is None:
                continue
            count[call[0]] = count.get(call[0], 0) + 1
            if BEGIN in line or "RLIMIT_AS" in line:
                begun = True
            elif END in line:
                break
            elif begun and call[0] != "prlimit64":
                found.append(Point(call[0], count[call[0]]))
        self._points[who] = found
        return found

    def run(self, who: str, inject: str = "") -> Ended:
        """Publish what the source holds, with `inject` (strace(1), -e inject=) in one of the two processes."""
        self.log.write_text("")
        strace = ["strace", "-qq", "-o", str(self.log), "-e", f"trace={CALLS}", "-e", "signal=none"]
        strace += ["-e", f"inject={inject}", "--"] if inject else ["--"]
        compiler = self.root / "compiler"
        compiler.write_text(f'#!/bin/sh\nexec {" ".join(strace) if who == "compiler" else ""} {sys.executable} "$@"\n')
        compiler.chmod(0o700)
        publisher = [sys.executable, "-c", PUBLISHER, str(self.store_path), str(self.folder), str(compiler)]
        publisher += self.arguments()
        return ended([*strace, *publisher] if who == "publisher" else publisher)


class Editing(Publishing):
    """The same, whose publishers put one policy and remove the one before, as one change over a base."""

    def __init__(self, root: pathlib.Path, store: pathlib.Path | None = None) -> None:
        self.editing = False
        self.change: list[str] = []
        super().__init__(root, store)
        self.editing = True
        self.publish()

    def write(self) -> str:
        if not self.editing:
            return super().write()
        _, ids = self.in_force()
        self.count += 1
        self.change = [f'@id("p{self.count}") {ANYTHING};', *ids]
        return f"p{self.count}"

    def publish(self, text: str = "") -> Manifest:
        if not self.editing:
            return super().publish(text)
        self.write()
        change = Change(policies=[PolicyText("edit", self.change[0])], removed=self.change[1:])
        return GenerationStore(self.store_path).edit(change, self.source, Work()).manifest

    def rebase(self) -> None:
        """Put another base in force, and an edit over it."""
        self.editing = False
        GenerationStore(self.store_path).publish_files(self.source, Work(), drop_edits=True)
        self.publish()
        self.editing = True
        self.publish()

    @property
    def source(self) -> PolicySource:
        return PolicySource(SourceFiles([str(self.folder)]))

    def in_force(self) -> tuple[Manifest, list[str]]:
        """As always; and the edits that stand are those that the generation holds, both or neither."""
        manifest, ids = super().in_force()
        put = [edit.id for edit in GenerationStore(self.store_path).edits() if not edit.removed]
        assert put in ([], ids)
        assert bool(put) == (manifest.delta is not None)
        return manifest, ids

    def arguments(self) -> list[str]:
        return self.change


def ended(command: list[str]) -> Ended:
    """Run `command` to its end, and every process that it leaves behind."""
    # The same hash seed makes the same system calls in every run.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    with _reaping():
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        with process:
            try:
                said, stderr = process.communicate(timeout=DEADLINE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        while True:
            try:
                os.waitpid(-process.pid, 0)
            except ChildProcessError:
                break
    return Ended(said.strip(), process.returncode, stderr)


@contextlib.contextmanager
def _reaping() -> Iterator[None]:
    """Orphans of our children become children of this process, which can wait for them (prctl(2))."""
    set_child_subreaper = 36
    libc = ctypes.CDLL(None)
    libc.prctl(set_child_subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(set_child_subreaper, 0, 0, 0, 0)


def survives(world: Publishing, who: str, inject: str, cut: Callable[[], None] | None = None) -> Ended:
    """How a publish ended at a fault and, when given, the power `cut` after it.

    The store opens with the old generation or the new one, nothing is left over, and the next publish works.
    """
    before, old_ids = world.in_force()
    new_ids = [world.write()]
    done = world.run(who, inject)
    if cut is not None:
        cut()
    manifest, ids = world.in_force()
    assert (manifest.generation, ids) in ((before.generation, old_ids), (before.generation + 1, new_ids)), done
    if done.published:
        assert manifest.generation == done.published
    assert_clean(world, manifest)
    after = world.publish()
    assert after.generation > manifest.generation
    assert world.in_force() == (after, [f"p{world.count}"])
    assert_clean(world, after)
    return done


def assert_clean(world: Publishing, manifest: Manifest) -> None:
    kept = {*manifest.files(), "lock", "manifest.json"}
    assert set(os.listdir(world.store_path)) == kept


# ---------------------------------------------------------------- power cuts


EXT4_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSH = 2
DISK_BYTES = 64 << 20


class Disk:
    """An ext4 in a file, mounted; `cut` takes its power away and brings it back."""

    def __init__(self, root: pathlib.Path) -> None:
        self.image = root / "disk.img"
        self.at = root / "disk"
        self.at.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(DISK_BYTES)
        _run("mkfs.ext4", "-q", str(self.image))

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.at))

    def unmount(self) -> None:
        _run("umount", str(self.at))

    def cut(self) -> None:
        """What was not synchronised is gone, as by a power cut."""
        descriptor = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(descriptor)
        self.unmount()
        self.mount()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted_disk(root: pathlib.Path) -> Iterator[Disk]:
    """A disk whose power can be cut; the test is skipped where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    try:
        disk = Disk(root)
        disk.mount()
    except OSError as error:
        pytest.skip(f"no ext4 can be mounted here: {error}")
    try:
        yield disk
    finally:
        disk.unmount()
