"""Every corpus request gets Cedar's own decision, determining policies and erring policies."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conformance.__main__ import main
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


def test_the_command_counts_what_agrees_and_fails_on_a_difference(tmp_path: Path) -> None:
    """One wrong expectation of a gzipped corpus costs one in its column, is shown, and makes the exit status 1."""
    records = [json.loads(line) for line in OWN.read_text(encoding="utf-8").splitlines()[:3]]
    path = tmp_path / "corpus.jsonl.gz"

    def run() -> tuple[int, str]:
        path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
        done = CliRunner().invoke(main, [str(path)])
        return done.exit_code, done.output

    count = sum(len(record["requests"]) for record in records)
    assert run() == (0, f"requests {count} decision {count} reason {count} errors {count}\n")
    records[0]["requests"][0]["errors"] = ["policy9"]
    code, output = run()
    assert code == 1
    assert output.startswith(
        f"requests {count} decision {count} reason {count} errors {count - 1}\n{records[0]['name']}"
    )
