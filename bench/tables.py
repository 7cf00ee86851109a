"""Compiled tables for the benches: made by the compiler's own process, opened from the file as a sidecar opens them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.workloads import Workload
from fastpath.evaluator import Evaluator, Prepared
from fastpath.table import Generation
from sidecar.policy.cells import encode_context
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.rows import VERSION
from sidecar.policy.source import SourceTexts
from sidecar.policy.worker import compile_in_child

LIMITS = PolicyLimits(text_bytes_max=1 << 30, entities_bytes_max=1 << 30)
COMPILE_S = 3600
ARENA_BYTES = 16 << 10
WATCH_S = 0.05
"""How often the compiler's memory is looked at."""


@dataclass(frozen=True)
class Table:
    """A compiled file, what its manifest would say of it, and what it took."""

    path: Path
    digest: str
    size: int
    """Of the image, in bytes."""
    file_size: int
    file_digest: str
    compile_s: float
    peak_mib: float
    """Largest resident set of the compiler, mapped files included."""

    def open(self) -> Generation:
        return Generation.open(
            self.path,
            generation=1,
            digest=self.digest,
            size=self.size,
            file_digest=self.file_digest,
            file_size=self.file_size,
            strict=False,
        )


def texts_of(work: Workload, schema: str | None = None) -> SourceTexts:
    return SourceTexts(
        [PolicyText("bench.cedar", work.text())],
        schema,
        PolicyText("entities.json", json.dumps(work.entities)),
        PolicyText("links.jsonl", work.links_text()) if work.links else None,
        LIMITS,
    )


def compile_table(work: Workload, path: Path) -> Table:
    """Compile into the file at `path`, unless an earlier run left it there with a note of what it is."""
    texts = texts_of(work)
    note = path.with_suffix(".json")
    made_of = {"image": VERSION, "texts": list(texts.digests().values())}
    if path.exists() and note.exists():
        known = json.loads(note.read_text())
        if known.pop("made_of") == made_of:
            return Table(path, **known)
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    with _watching() as peaks:
        made = compile_in_child(texts, output=str(path), compile_s=COMPILE_S, allow_empty=True)
    took = time.perf_counter() - started
    table = Table(path, made.digest, made.size, made.file_size, made.file_digest, took, max(peaks))
    facts = {name: value for name, value in asdict(table).items() if name != "path"}
    note.write_text(json.dumps(facts | {"made_of": made_of}))
    return table


@contextlib.contextmanager
def _watching() -> Iterator[list[float]]:
    """Largest resident sets of this process's children meanwhile, in MiB. What they were before `exec` is not in them,
    as it is in what the system counts for ended children.
    """
    peaks, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_S):
            peaks.extend(_peak_mib(pid) for pid in _children())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            yield from (task / "children").read_text().split()


def _peak_mib(pid: str) -> float:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def uids(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(request[part]["type"], request[part]["id"]) for part in ("principal", "action", "resource")]


def prepare(evaluator: Evaluator, requests: list[dict[str, Any]]) -> list[Prepared]:
    """Requests as a door leaves them: uids and context as cells."""
    return [
        evaluator.prepare(*uids(request), encode_context(request["context"]), arena_bytes=ARENA_BYTES)
        for request in requests
    ]


# ---------------------------------------------------------------- what a serving process holds


def anonymous_mib(table: Table, requests: list[dict[str, Any]]) -> float:
    """Anonymous memory of a process of its own that has opened `table` and answered `requests`, in MiB."""
    asked = table.path.with_suffix(".requests")
    asked.write_bytes(pickle.dumps((table, requests)))
    done = subprocess.run(
        [sys.executable, "-m", "bench.tables", str(asked)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )
    return float(done.stdout)


def _serve(asked: Path) -> None:
    table, requests = pickle.loads(asked.read_bytes())
    with table.open() as generation:
        evaluator = Evaluator(generation)
        for start in range(0, len(requests), 100):
            evaluator.outcomes(prepare(evaluator, requests[start : start + 100]))
        found = re.search(r"^Anonymous:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    if found is None:
        raise SystemExit("/proc/self/smaps_rollup has no line `Anonymous`")
    print(int(found[1]) / 1024)


if __name__ == "__main__":
    from bench.tables import Table

    _serve(Path(sys.argv[1]))
