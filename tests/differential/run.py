"""Runs seeded batches on one or more processes and reports the disagreements."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tests.differential.case import Case, Record
from tests.differential.compare import Difference, MakeSubject, differences, expectations
from tests.differential.families import make_case
from tests.differential.oracle import Answer
from tests.differential.ours import Ours, in_threads
from tests.differential.shrink import shrink

# Batches in one unit of work: enough to hide the cost of passing it, few enough for a lively progress line.
CHUNK = 8
SHRINK_SECONDS = 20.0


@dataclass
class Tally:
    """What a run covered, and what it found."""

    cases: int = 0
    families: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.families.update(other.families)
        self.answers.update(other.answers)
        self.failures += other.failures


def run_batch(
    seed: int, batch: int, only: str | None, make: MakeSubject, save: Path | None, seconds: float = SHRINK_SECONDS
) -> Tally:
    """Compare one batch; a disagreement is shrunk for at most `seconds` and saved."""
    case = make_case(seed, batch, only)
    name = f"seed-{seed}-batch-{batch}-{case.family}"
    tally = Tally()
    for part in [case, *([case.after] if case.after else [])]:
        record = part.render(name)
        found = differences(record, make, tally.answers)
        tally.cases += len(record["requests"])
        tally.families[case.family] += len(record["requests"])
        if found:
            tally.failures.append(_report(part, name, found, make, save, seconds))
            return tally
    if case.after:
        found = in_threads([case.render(name), case.after.render(name)], seed=batch)
        if found:
            tally.failures.append(_saved(name, [case.render(name), case.after.render(name)], found, save))
    return tally


def _report(
    case: Case, name: str, found: list[Difference], make: MakeSubject, save: Path | None, seconds: float
) -> str:
    """Shrink the case to what shows its first difference, save it, and say so."""
    narrowed = case.with_(requests=(case.requests[found[0].request],))
    if not differences(narrowed.render(name), make):
        narrowed = case
    small = shrink(narrowed, lambda candidate: bool(differences(candidate.render(name), make)), seconds=seconds)
    record = small.render(name)
    return _saved(name, [record], differences(record, make), save)


def _saved(name: str, records: list[Record], found: list[Difference], save: Path | None) -> str:
    lines = [f"{name}: {len(found)} difference(s)", *(f"  {difference}" for difference in found[:4])]
    lines += ["  " + line for line in records[0]["policies"].splitlines()[:12]]
    if save is None:
        return "\n".join(lines)
    save.mkdir(parents=True, exist_ok=True)
    path = save / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(with_expectations(record)) + "\n")
    return "\n".join([*lines, f"  saved {path}", f"  replay with: python -m tests.differential --replay {path}"])


def with_expectations(record: Record) -> Record:
    """The record with cedarpy's answers, in the corpus format; refused requests say `refused`."""
    letter, _ = expectations(record)
    requests = []
    for request, answer in zip(record["requests"], letter, strict=True):
        if isinstance(answer, Answer):
            said = {"decision": answer.decision, "reason": sorted(answer.reasons), "errors": sorted(answer.errors)}
        else:
            said = {"decision": "refused", "reason": [], "errors": [], "why": answer.why}
        requests.append(request | said)
    return record | {"requests": requests}


def run_chunk(seed: int, batches: list[int], only: str | None, save: Path | None, seconds: float) -> Tally:
    """One unit of work of a worker process."""
    tally = Tally()
    for batch in batches:
        tally.add(run_batch(seed, batch, only, Ours, save, seconds))
    return tally


def run(
    seed: int,
    cases: int,
    *,
    only: str | None = None,
    jobs: int = 1,
    save: Path | None = None,
    failures_max: int = 10,
    shrink_seconds: float = SHRINK_SECONDS,
    progress: Callable[[Tally, float], None] = lambda _tally, _seconds: None,
) -> Tally:
    """Run batches 0, 1, .. of `seed` until `cases` requests were compared or too many disagreed."""
    total, started = Tally(), time.monotonic()
    for tally in _chunks(
        seed, only, jobs, save, shrink_seconds, lambda: total.cases < cases and len(total.failures) < failures_max
    ):
        total.add(tally)
        progress(total, time.monotonic() - started)
    return total


def _chunks(
    seed: int, only: str | None, jobs: int, save: Path | None, seconds: float, more: Callable[[], bool]
) -> Iterator[Tally]:
    starts = iter(range(0, 10**9, CHUNK))
    if jobs == 1:
        while more():
            start = next(starts)
            yield run_chunk(seed, list(range(start, start + CHUNK)), only, save, seconds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        flying = {}
        while more():
            while len(flying) < jobs + 1:
                batches = list(range(start := next(starts), start + CHUNK))
                flying[pool.submit(run_chunk, seed, batches, only, save, seconds)] = batches
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                batches = flying.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    dead = sorted(b for group in [batches, *flying.values()] for b in group)
                    yield Tally(
                        failures=[f"a worker process died in one of the batches {dead}; run each with --batch"] * 10
                    )
                    return
