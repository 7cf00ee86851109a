"""Journals, records, collectors and shippers for tests."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from fastpath.frames import Frames
from fastpath.journal import Journal
from fastpath.record import encode
from sidecar.decisions.reader import directory_reader
from sidecar.decisions.shipper import Shipper, ShipperLimits

SEGMENT_BYTES = 64 * 1024
CAP_BYTES = 64 * SEGMENT_BYTES
DEADLINE_S = 30.0
FAST = ShipperLimits(batch_records=64, linger_s=0.005, ack_timeout_s=5.0)


def wait_for(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return once `condition` holds; AssertionError naming `what` when the deadline passes first."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about in {deadline_s:g} s"
        pause.wait(0.005)


def decision_payload(number: int = 1, **request: object) -> bytes:
    """An encoded decision that has all mandatory fields; `number` makes it distinct."""
    fields: dict[str, object] = {
        "principal": ("Agent", "spiffe://demo.test/agent/a"),
        "action": ("Action", "files/read"),
        "resource": ("Resource", f"doc-{number}"),
        "door": 1,
        "started_unix_ns": 1_700_000_000_000_000_000 + number,
        **request,
    }
    decision = {"evaluation_id": f"{number:032x}", "outcome": 1, "reason": "ok", "policies": ["p1"], "generation": 7}
    return encode(fields, decision, peer=(1, "spiffe://demo.test/agent/a", "unix:1000"))


def fill(journal: Journal, count: int, payload_bytes: int = 400) -> list[int]:
    """Append `count` decisions padded to about `payload_bytes`; their sequences (0 where refused)."""
    given = []
    for number in range(count):
        payload = decision_payload(number, path="/" + "x" * max(0, payload_bytes - 250))
        given.append(journal.append_bytes(payload))
        if number % 16 == 0:
            journal.maintain()
    return given


def open_journal(directory: Path, **options: object) -> Journal:
    """A journal with small segments and without its thread: the test decides when upkeep happens."""
    chosen: dict[str, object] = {"segment_bytes": SEGMENT_BYTES, "cap_bytes": CAP_BYTES, "helper": False}
    return Journal(directory, **{**chosen, **options})  # type: ignore[arg-type]


def held(directory: Path, after: int = 0) -> list[tuple[int, bytes]]:
    """All records behind `after` that a reader gets from a journal directory."""
    reader = directory_reader(directory, after)
    try:
        return list(itertools.chain.from_iterable(iter(lambda: reader.read(512, 1 << 20), [])))
    finally:
        reader.close()


def offsets(path: Path) -> list[tuple[int, int]]:
    """(sequence, offset) of each frame of a segment."""
    frames = Frames(path)
    found = []
    at = frames.offset
    for sequence, _ in frames:
        found.append((sequence, at))
        at = frames.offset
    frames.close()
    return found


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def lines(path: Path) -> list[dict[str, object]]:
    """The lines of a collected log, read as any reader would."""
    return [json.loads(text) for text in path.read_bytes().split(b"\n") if text]


class CollectorProcess:
    """`remit collect` as a process of its own, so that it can be killed and frozen."""

    PROGRAM = """
import sys, threading
from pathlib import Path
from sidecar.decisions.collector import Collector, serve
collector = Collector(Path(sys.argv[1]))
server, _ = serve(collector, "unix:" + sys.argv[2])
print("ready", flush=True)
threading.Event().wait()
"""

    def __init__(self, directory: Path, socket: Path) -> None:
        self.directory = directory
        self.socket = socket
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(directory), str(socket)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("s")


@contextlib.contextmanager
def shipping(journal: Journal, socket: Path, limits: ShipperLimits = FAST) -> Iterator[Shipper]:
    """A started shipper to a collector on a Unix socket, that tries again at once."""
    pause = 0.01
    shipper = Shipper(
        journal,
        lambda: grpc.insecure_channel(f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)]),
        sidecar="test",
        limits=limits,
        backoff=lambda _: pause,
    )
    shipper.start()
    try:
        yield shipper
    finally:
        shipper.stop(flush_s=0.0)
