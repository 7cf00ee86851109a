"""Runs a corpus of records against our evaluator in Cedar mode and counts what agrees."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.differential.case import Record
from tests.differential.compare import Subject
from tests.differential.oracle import Answer, Refused


@dataclass
class Score:
    """How many requests agree on each part; `wrong` describes each difference."""

    records: int = 0
    requests: int = 0
    decision: int = 0
    reason: int = 0
    errors: int = 0
    validated: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        return f"requests {self.requests} decision {self.decision} reason {self.reason} errors {self.errors}"


def read_records(path: Path) -> Iterator[Record]:
    """The records of a corpus, in a form that needs no schema to be read."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield explicit(json.loads(line))


def explicit(record: Record) -> Record:
    """The record with explicit entities and contexts in place of those that a schema would have to direct."""
    requests = [
        request | {"context": request.get("contextExplicit", request["context"])} for request in record["requests"]
    ]
    return record | {"entities": record.get("entitiesExplicit", record["entities"]), "requests": requests}


def run_corpus(
    records: Iterable[Record],
    make: Callable[[Record], Subject],
    validates: Callable[[Record], bool],
    progress: Callable[[Score], None] = lambda _: None,
) -> Score:
    """Score every record; a subject that refuses a record or request agrees on nothing of it."""
    score = Score()
    for record in records:
        score.records += 1
        answers = make(record).ask(record["requests"], strict=False)
        for at, (request, got) in enumerate(zip(record["requests"], answers, strict=True)):
            _score_request(score, record, at, request, got)
        if "shouldValidate" in record:
            agrees = validates(record) == record["shouldValidate"]
            score.validated += agrees
            if not agrees:
                score.wrong.append(f"{record['name']}: strict validation should be {record['shouldValidate']}")
        progress(score)
    return score


def _score_request(score: Score, record: Record, at: int, request: Record, got: Answer | Refused) -> None:
    score.requests += 1
    want = Answer(request["decision"], frozenset(request["reason"]), frozenset(request["errors"]))
    if isinstance(got, Answer):
        score.decision += got.decision == want.decision
        score.reason += got.reasons == want.reasons
        score.errors += got.errors == want.errors
    if got != want:
        policies = "\n    ".join(record["policies"].strip().splitlines()[:8])
        score.wrong.append(f"{record['name']} request {at}\n  expected {want}\n  got      {got}\n    {policies}")
