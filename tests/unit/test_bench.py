"""A bench measures only what it has checked: answers are compared, samples are kept, the report has its keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import bench.decide as question
from bench.__main__ import main
from bench.agents import workload
from bench.measure import digest, interleaved, ratio

TINY = ["decide", "--sizes", "1,12", "--requests", "5", "--rounds", "2"]


def test_decide_writes_ratios_samples_and_machine(tmp_path: Path) -> None:
    """The report names the speedup per number of policies and keeps every sample it was made from."""
    report, plot = tmp_path / "decide.json", tmp_path / "decide.png"
    done = CliRunner().invoke(main, [*TINY, "--json", str(report), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    written = json.loads(report.read_text())
    assert set(written) == {"results", "samples", "machine"}
    assert set(written["results"]["speedup"]) == {"1", "12"}
    for by_side in written["samples"].values():
        assert set(by_side) == {"cedarpy", "cedarpy_batch", "remit", "remit_from_json", "floor"}
        assert all(len(times) == 2 for times in by_side.values())
    assert written["machine"]["cedarpy"]
    assert written["results"]["answers_sha256"] in done.output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_decide_refuses_to_time_different_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """When one answer differs there is no speedup to speak of."""
    honest = question.Ours.answers

    def lying(self: question.Ours) -> question.Answers:
        first, *rest = honest(self)
        return [first | {"decision": "allow" if first["decision"] == "deny" else "deny"}, *rest]

    monkeypatch.setattr(question.Ours, "answers", lying)
    done = CliRunner().invoke(main, TINY)
    assert done.exit_code == 1
    assert "answers differ at 1 policies" in done.output


def test_the_same_seed_gives_the_same_answers() -> None:
    """Hashes of answers can be compared between machines."""
    first, second = (question.Ours(workload(12, 5)).answers() for _ in range(2))
    assert digest(first) == digest(second)
    assert workload(12, 5, seed=2) != workload(12, 5)


def test_the_workload_allows_and_denies() -> None:
    """A bench over requests that all end alike would measure one path."""
    decisions = {answer["decision"] for answer in question.Peer(workload(100, 64)).answers()}
    assert decisions == {"allow", "deny"}


def test_sides_take_turns_and_are_compared_within_a_round() -> None:
    """Drift of the machine meets both sides alike: the order turns round every other round."""
    calls: list[str] = []

    def side(name: str, count: int) -> int:
        calls.append(name)
        return count

    samples = interleaved({"a": lambda: side("a", 1), "b": lambda: side("b", 2)}, rounds=2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(times) for name, times in samples.items()} == {"a": 2, "b": 2}
    assert ratio({"a": [4.0, 6.0], "b": [2.0, 2.0]}, "a", "b") == 2.5


@pytest.mark.skipif(
    not (shutil.which("nghttpd") and shutil.which("h2load")), reason="nghttpd and h2load (Debian nghttp2-*) are missing"
)
def test_check_counts_every_answer(tmp_path: Path) -> None:
    """The report has the cost of each server and their ratios; a sample whose calls were not all ALLOW has no time."""
    report = tmp_path / "check.json"
    arguments = ["check", "--policies", "3", "--rounds", "1", "--calls", "2000", "--json", str(report)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    written = json.loads(report.read_text())
    assert {"cpu_ratio_m1", "cpu_ratio_m100", "rate_ratio_to_grpcio_m100"} <= set(written["results"])
    assert set(written["samples"]) == {"nghttpd", "native", "grpcio"}
    assert set(written["commands"]) == {"m1", "m100"}
