"""Compiled tables for the benches: made by the compiler's own process, opened from the file as a sidecar opens them."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.workloads import Workload
from fastpath.decide import Evaluator, Prepared
from fastpath.table import Generation
from sidecar.policy.cells import encode_context
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.source import SourceTexts
from sidecar.policy.worker import compile_in_child

LIMITS = PolicyLimits(text_bytes_max=1 << 30, entities_bytes_max=1 << 30)
COMPILE_S = 3600
ARENA_BYTES = 16 << 10


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
    """Largest resident set of any compiler so far: run the largest last."""

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
    """Compile into a new file at `path`."""
    texts = texts_of(work)
    started = time.perf_counter()
    made = compile_in_child(texts, output=str(path), compile_s=COMPILE_S, allow_empty=True)
    took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return Table(path, made.digest, made.size, made.file_size, made.file_digest, took, peak)


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
