"""The report of the benches: one page that needs nothing beside itself and tells what was met and what was not."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from bench.__main__ import main
from bench.latency import quantile, spread
from bench.report import flat, met, page
from bench.stages import by_stage, hottest, modules_of, parse_report, stage_of
from fastpath import wire

SPREAD = {"0.5": 10.0, "0.9": 20.0, "0.99": 40.0, "0.999": 90.0, "1.0": 99.0, "late_p99": 1.0}
SIDES = ("nghttpd", "native")
CHECK = {
    "question": "check",
    "results": {f"{side}_cpu_us_{m}": 5.0 for side in SIDES for m in ("m1", "m100")}
    | {"a": 1.5, "b": 9, "deep": {"x": 1}},
    "goals": {"a": ["at most", 2], "b": ["at most", 3], "c": ["at least", 1]},
    "samples": {side: {} for side in SIDES},
    "latency_us": {side: [SPREAD, SPREAD] for side in SIDES},
    "curve": {side: {"1": 10.0, "8": 20.0} for side in SIDES},
    "profiles": {"native_m1": {"stages_us": {"kernel": 2.0}, "functions_us": {"kernel: send": 1.0}}},
    "by_policies": {"10": 5.0, "1000": 6.0},
    "servers": {"native": ["python", "-m", "a b"]},
    "notes": ["<left out>"],
    "machine": {"cpu": "a CPU", "command": "python -m bench check"},
}
ENVOY = {
    "question": "envoy",
    "results": {"ratio_to_constant": 0.9},
    "goals": {"ratio_to_constant": ["at least", 0.95]},
    "samples": {"alone": [{"calls_per_s": 9.0}], "native": [{"calls_per_s": 5.0}]},
    "latency_us": {"alone": [SPREAD]},
}
ATTACK = {
    "question": "attack",
    "results": {"worst_p99_ratio": 1.5},
    "goals": {"worst_p99_ratio": ["at most", 2]},
    "attacks": {"rapid_reset": {"p99_ratio": 1.5}},
}


def test_the_page_has_verdicts_pictures_and_commands_and_needs_nothing_else(tmp_path: Path) -> None:
    """Every picture is in the page; there is no script and no address to load from."""
    files = []
    for number, made in enumerate((CHECK, ENVOY, ATTACK, {"results": {"speedup": {"1": 3.0}}})):
        files.append(tmp_path / f"bench-{number}.json")
        files[-1].write_text(json.dumps(made))
    out = tmp_path / "bench.html"
    done = CliRunner().invoke(main, ["report", "--html", str(out), *map(str, files)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert text.count('<img alt="" src="data:image/svg+xml;base64,') == 5 + 2 + 1
    assert not re.findall(r'<script|(?:src|href)="(?!data:)', text)
    assert text.count('class="met"') == 2
    assert text.count('class="missed"') == 2
    assert "not measured" in text
    assert "python -m &#x27;a b&#x27;" in text
    assert "&lt;left out&gt;" in text
    assert "<td>speedup.1</td>" in text


def test_what_was_not_measured_is_left_out() -> None:
    """A bench without stages, curve or latencies still has its page."""
    few = {key: CHECK[key] for key in ("question", "results", "goals", "samples")}
    assert page({"check": few}).count("<img") == 1


def test_a_goal_is_met_at_its_bound() -> None:
    assert [met(2, "at most", 2), met(2.1, "at most", 2), met(2, "at least", 2), met(1.9, "at least", 2)] == [
        True,
        False,
        True,
        False,
    ]
    assert flat({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}


def test_quantiles_are_values_that_occurred() -> None:
    """The smallest value that the share of all does not exceed; the last is the maximum."""
    assert [quantile(range(1, 101), share) for share in (0.01, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert quantile([7], 0.01) == 7
    assert spread([3000, 1000, 2000])["0.5"] == 2.0


def test_samples_are_counted_by_stage() -> None:
    """perf names a shared object and a function; the shares add up to the CPU time of a call.

    The data plane is one library, whose symbols say which module a function is of.
    """
    text = """# Overhead|Shared Object|Symbol
 50.00% |[kernel.kallsyms]                       |[k] tcp_sendmsg
 30.00% |_native.cpython-311-x86_64-linux-gnu.so |[.] __pyx_f_8fastpath_4wire_wire_check
 10.00% |libnghttp2.so.14.24.1                   |[.] nghttp2_session_mem_recv
 10.00% |something.so                            |[.] f
"""
    found = parse_report(text, modules_of(Path(wire.__file__)))
    assert by_stage(found, 10.0) == {"kernel": 5.0, "nghttp2": 1.0, "decode": 3.0, "other": 1.0}
    assert list(hottest(found, 10.0, 1).items()) == [("kernel: tcp_sendmsg", 5.0)]
    assert parse_report("", {}) == {}
    assert stage_of("/usr/lib/libcrypto.so.3", "f", {}) == "TLS"
