"""Every corpus request gets Cedar's own decision, determining policies and erring policies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.run import read_records, run_corpus
from tests.differential.oracle import Oracle
from tests.differential.ours import Ours, validates

OWN = Path(__file__).parent / "cases.jsonl"


def check(path: Path) -> None:
    score = run_corpus(read_records(path), Ours, validates)
    assert not score.wrong, "\n".join([score.line(), *score.wrong[:5]])
    assert score.requests > 0
    assert score.decision == score.reason == score.errors == score.requests


@pytest.mark.parametrize("record", list(read_records(OWN)), ids=lambda record: record["name"])
def test_own_cases_state_cedars_answers(record: dict) -> None:
    """Each case written here by hand says what cedarpy says, so a failure below is ours."""
    for request, answer in zip(record["requests"], Oracle(record).ask(record["requests"]), strict=True):
        assert (answer.decision, sorted(answer.reasons), sorted(answer.errors)) == (
            request["decision"],
            sorted(request["reason"]),
            sorted(request["errors"]),
        )


def test_own_cases() -> None:
    """Our own cases cover what the shared corpus lacks: sets of policies, links, short circuits and boundaries."""
    check(OWN)


def test_shared_corpus() -> None:
    """Every request of the Cedar integration corpus named by REMIT_CORPUS gets Cedar's answer."""
    path = os.environ.get("REMIT_CORPUS")
    if not path:
        pytest.skip("REMIT_CORPUS names no corpus (cedar-corpus.jsonl.gz)")
    check(Path(path))
