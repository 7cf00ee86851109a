"""A bench measures only what it has checked: answers are compared, samples are kept, the report has its keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import bench.authority as cost
import bench.decide as question
from bench import durable
from bench.__main__ import main
from bench.measure import interleaved, ratio
from bench.publish import policies
from bench.tables import compile_table
from bench.workloads import KINDS, workload

TINY = ["decide", "--sizes", "1,12", "--requests", "20", "--rounds", "2"]
SIDES = {"remit", "nothing", "floor", "remit_python", "remit_from_json", "cedarpy", "cedarpy_batch"}


def test_decide_writes_ratios_samples_and_machine(tmp_path: Path) -> None:
    """The report has the keys that are promised, per workload and size, and every sample it was made from."""
    report, plot = tmp_path / "decide.json", tmp_path / "decide.png"
    done = CliRunner().invoke(main, [*TINY, "--json", str(report), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    written = json.loads(report.read_text())
    assert set(written) == {"results", "samples", "machine"}
    found = written["results"]
    assert set(found["speedup"]) == set(found["floor_ratio"]) == {"1", "12"}
    assert set(found["workloads"]) == set(written["samples"]) == set(KINDS)
    assert found["flatness"] == max(found["flatness_by_workload"].values())
    assert "one_scope" not in found["flatness_by_workload"]
    for key in ("anon_growth_mib", "ns_per_matching_policy", "bytes_per_policy", "bytes_per_link", "compile_peak_mib"):
        assert isinstance(found[key], float)
    assert set(found["call_microseconds"]) == set(found["speedup_call"]) == {"1", "12"}
    for kind, by_size in written["samples"].items():
        for size, by_side in by_size.items():
            beside = {"remit_small"} if size == "12" and kind != "one_scope" else set()
            assert set(by_side) == SIDES | beside | ({"call"} if kind == "agents" else set())
            assert all(len(times) == 2 for times in by_side.values())
    assert written["machine"]["cedarpy"]
    assert found["answers_sha256"] in done.output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_beyond_the_peers_reach_we_are_measured_alone(tmp_path: Path) -> None:
    """No speedup is claimed where cedarpy was not run."""
    report = tmp_path / "decide.json"
    arguments = ["--peer-to", "1", "--workloads", "sharing", "--json", str(report)]
    done = CliRunner().invoke(main, [*TINY, *arguments])
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())["results"]
    assert set(found["speedup"]) == {"1"}
    assert found["workloads"]["sharing"]["12"]["answers_compared"] == 0


def test_tables_are_compiled_once_and_not_taken_for_others(tmp_path: Path) -> None:
    """A run finds what an earlier one compiled, unless it was made of something else."""
    made = compile_table(workload("rbac", 5, 1), tmp_path / "t.mdb")
    again = compile_table(workload("rbac", 5, 1), tmp_path / "t.mdb")
    assert again == made
    assert made.peak_mib > 0
    other = compile_table(workload("rbac", 6, 1), tmp_path / "t.mdb")
    assert other.digest != made.digest
    with other.open() as generation:
        assert generation.policy_count == 6


def test_decide_refuses_to_time_different_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """When one answer differs there is no speedup to speak of."""
    honest = question.Ours.answers

    def lying(self: question.Ours, count: int) -> question.Answers:
        first, *rest = honest(self, count)
        return [first | {"decision": "allow" if first["decision"] == "deny" else "deny"}, *rest]

    monkeypatch.setattr(question.Ours, "answers", lying)
    done = CliRunner().invoke(main, TINY)
    assert done.exit_code == 1
    assert "answers differ in rbac at 1 policies" in done.output


def test_an_unknown_workload_is_named() -> None:
    done = CliRunner().invoke(main, ["decide", "--workloads", "rbac,nothing"])
    assert done.exit_code == 2
    assert "`nothing` is none of rbac, sharing, abac, agents, one_scope" in done.output


@pytest.mark.parametrize("kind", KINDS)
def test_workloads_allow_and_deny_and_repeat(kind: str) -> None:
    """A bench over requests that all end alike would measure one path; the same seed gives the same work."""
    work = workload(kind, 40, 400)
    assert work == workload(kind, 40, 400)
    assert work.policies != workload(kind, 40, 400, seed=2).policies or work.links
    decisions = {answer["decision"] for answer in question.Peer(work).answers()}
    assert decisions == {"allow", "deny"}
    assert len({id_ for id_, _ in work.expanded()}) == len(work.policies) + len(work.links)


PUBLISH = ["publish", "--policies", "20", "--rounds", "1", "--among", "20", "--changes", "2"]


def test_publish_measures_both_sides(tmp_path: Path) -> None:
    """The ratio is of publishes that happened, of texts that cedarpy accepts, and the worse text counts."""
    report = tmp_path / "publish.json"
    done = CliRunner().invoke(main, [*PUBLISH, "--json", str(report)])
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())["results"]
    assert found["publish_ratio"] == max(found["publish_ratio_by_text"].values()) > 0
    assert found["compiler_peak_mib"] > 0
    assert found["delta_in_force_ms"] == max(found["changes"]["delta_in_force_ms_by_kind"].values())
    assert found["delta_share"] > 0


def test_distinct_policies_share_no_conditions() -> None:
    """What is measured as unshared work is: no two policies have the same conditions."""
    bodies = [line.split("{", 1)[1] for line in policies("distinct", 200).split("\n")]
    assert len(set(bodies)) == 200
    assert len({line.split("{", 1)[1] for line in policies("alike", 200).split("\n")}) < 200


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


# ---------------------------------------------------------------- authority

TINY_AUTHORITY = [
    "authority",
    "--tasks",
    "20",
    "--revocations",
    "20",
    "--revoked",
    "8",
    "--rounds",
    "2",
    "--opens",
    "64",
]


def test_authority_writes_what_live_state_and_durability_cost(tmp_path: Path) -> None:
    """The report has the keys that are promised and every sample they were made from; no ALLOW came late."""
    report = tmp_path / "authority.json"
    done = CliRunner().invoke(main, [*TINY_AUTHORITY, "--folder", str(tmp_path), "--json", str(report)])
    assert done.exit_code == 0, done.output
    written = json.loads(report.read_text())
    found = written["results"]
    for key in ("columns_ratio", "tasks_flatness", "revocations_flatness", "opens_64_over_1"):
        assert found[key] > 0
    assert found["allows_after_ack"] == 0
    assert found["revocations"] == len(written["samples"]["revoke_to_effect_ms"]["all"]) == 8
    assert 0 < found["calls_allowed"] < found["calls_checked"]
    assert set(found["opens_per_s"]) == set(found["opens_ratio"]) == {"1", "64"}
    assert set(written["samples"]["opens_per_s"]) == {f"{side} {n}" for side in ("remit", "lmdb") for n in (1, 64)}
    assert set(written["samples"]["ns_per_decision"]) == {"constants", "live", "tasks", "revocations"}
    assert len(written["answers"]) == 64
    assert list(tmp_path.iterdir()) == [report]


def test_authority_refuses_to_time_different_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns as constants and live state must say the same of every call."""
    monkeypatch.setattr(cost.World, "constants", lambda self: [{"present": False}] * len(self.calls))
    done = CliRunner().invoke(main, TINY_AUTHORITY)
    assert done.exit_code == 1
    assert "answers otherwise than `constants`" in done.output


def test_the_history_notices_an_allow_that_came_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A revocation that is acknowledged and changes nothing is found out."""
    monkeypatch.setattr(durable, "revoke", lambda *_: None)
    found = durable.revocation_history(tmp_path, 8, 2, lambda: None)
    assert found.allows_after_ack >= 2 * 8
