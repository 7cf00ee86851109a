"""What does a call cost beside HTTP/2 itself, beside grpcio and beside Cerbos?

Every server is a process of its own on one core, the load client runs on another, the sides take turns. A server's
CPU is what its threads ran, over calls answered. Every answer is judged: grpc-status and outcome, not HTTP 200; a
sample with one wrong answer ends the bench.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import stages
from bench.facts import facts
from bench.latency import spread
from bench.load import Load, Questions
from bench.questions import ALLOWED, ASKED, CERBOS, MARK, OK_RESPONSE, cerbos, check_request, ext_authz, posts
from bench.runs import Wrong, checked
from bench.servers import LOAD_CORE, Pki, Server, Side, cerbos_binary, nghttpd, pin, remit, spins
from bench.servers import cerbos as cerbos_server

CONNECTIONS = 8
OUTSTANDING = (1, 16, 100)
CURVE = (1, 2, 4, 8, 16, 32, 64, 100)
CURVE_SIDES = ("nghttpd", "native", "grpcio", "cerbos")
LATENCY_SIDES = ("nghttpd", "native", "native_tls", "native_uds")
PROFILED = ("nghttpd", "native", "native_tls", "constant")
PROFILE_S = 1.0
MIDDLE = 1000  # policies, where only one number is asked for
PROBE = 100  # calls that tell how many make a sample
NO_CERBOS = "cerbos is left out: bench/peers has no node_modules; `npm ci --prefix bench/peers` installs it"
PARTS = ("ceilings", "latency", "curve", "stages", "memory")
Samples = dict[str, dict[str, list[dict[str, float]]]]


# ---------------------------------------------------------------- the sides


class Sides:
    """All servers of a run, by the name of each side; use as a context manager."""

    def __init__(self, policies: list[int]) -> None:
        self._policies = policies
        self._stack = contextlib.ExitStack()
        self.by_name: dict[str, Side] = {}
        self.notes: list[str] = []

    def __enter__(self) -> Sides:
        with contextlib.ExitStack() as stack:
            self.pki = Pki(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench"))))
            self._ours(stack)
            self._peers(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _add(self, name: str, server: Server, door: str, **how: Any) -> None:
        where = server.ports[door]
        address = where if isinstance(where, str) else ("127.0.0.1", where)
        how.setdefault("pki", self.pki if door == "mtls" else None)
        self.by_name[name] = Side(name, server, address, **{"ask": ext_authz, **how})

    def _ours(self, stack: contextlib.ExitStack) -> None:
        for count in self._policies:
            doors = "plain,mtls,uds" if count == self.middle else "plain"
            server = stack.enter_context(remit(f"native_{count}", doors, count, self.pki))
            self._add("native" if count == self.middle else f"native_{count}", server, "plain")
            if count == self.middle:
                self._add("native_tls", server, "mtls")
                self._add("native_uds", server, "uds")
        constant = stack.enter_context(remit("constant", "plain", self.middle, self.pki, "--constant"))
        self._add("constant", constant, "plain", ask=allowed_only)
        self._add("grpcio", stack.enter_context(remit("grpcio", "grpcio", self.middle, self.pki)), "grpcio")

    def _peers(self, stack: contextlib.ExitStack) -> None:
        length = self._answer_bytes()
        self._add("nghttpd", stack.enter_context(nghttpd(length)), "plain", ask=lambda: posts(length))
        tls = stack.enter_context(nghttpd(length, self.pki))
        self._add("nghttpd_tls", tls, "mtls", ask=lambda: posts(length))
        if not cerbos_binary():
            self.notes.append(NO_CERBOS)
            return
        for logged in (False, True):
            server = stack.enter_context(cerbos_server(self.middle, logged=logged))
            self._add(server.name, server, "plain", ask=cerbos, path=CERBOS)

    def _answer_bytes(self) -> int:
        """The mean length of our answers, for the file that nghttpd sends."""
        door, calls = self.by_name["native"], len(ASKED) * 8
        before = door.server.tell()["doors"][0]
        with contextlib.closing(door.connect(1)) as load:
            checked(load.closed(ext_authz(), calls, 1), "native")
        after = door.server.tell()["doors"][0]
        # 60 bytes of frames and headers are not the message's; a few more or less change nothing.
        return int((after["bytes_out"] - before["bytes_out"]) / calls) - 60

    @property
    def middle(self) -> int:
        """The number of policies where only one is measured."""
        return MIDDLE if MIDDLE in self._policies else self._policies[0]


def allowed_only() -> Questions:
    """For the constant door, which allows everything."""
    return Questions([(check_request(ALLOWED), 0, OK_RESPONSE)], mark=MARK.encode())


@contextlib.contextmanager
def connected(side: Side, connections: int = CONNECTIONS) -> Iterator[Load]:
    """A load client of one side; connections are new for each sample, and made before its clock starts."""
    with contextlib.closing(side.connect(connections)) as load:
        yield load


# ---------------------------------------------------------------- closed loop


def sample(side: Side, calls: int, outstanding: int) -> dict[str, float]:
    """One run: the server's CPU per call, calls per second by the clock and of its CPU time, how busy it was."""
    cpu, run = _run(side, calls, outstanding)
    rates = {"calls_per_s": calls / run["seconds"], "calls_per_cpu_s": calls / cpu, "busy": cpu / run["seconds"]}
    return {"cpu_us": cpu / calls * 1e6, **rates, "calls": calls}


def _run(side: Side, calls: int, outstanding: int) -> tuple[float, dict[str, Any]]:
    """Seconds of the server's CPU, and what the client saw."""
    with connected(side) as load:
        cpu = side.server.cpu_s()
        # A client that sleeps must be woken by the server's send, which would be billed to the server.
        run = checked(load.closed(side.ask(), calls, outstanding, spin=spins()), side.name)
        return side.server.cpu_s() - cpu, run


def calls_for(side: Side, outstanding: int, seconds: float) -> int:
    """How many calls make a sample of that length. By the clock: so few take too little CPU to be seen."""
    calls = PROBE
    for part in (seconds / 4, seconds):
        _, run = _run(side, calls, outstanding)
        calls = max(PROBE, int(calls / run["seconds"] * part))
    return calls


def ceilings(sides: Sides, rounds: int, seconds: float, bar: Progress) -> Samples:
    """Raw samples by side and by outstanding calls per connection; the sides take turns within a round."""
    names = list(sides.by_name)
    counts = {
        (name, m): calls_for(sides.by_name[name], m, seconds)
        for name in bar.track(names, description="calibrate")
        for m in OUTSTANDING
    }
    samples: Samples = {name: {f"m{m}": [] for m in OUTSTANDING} for name in names}
    for number in bar.track(range(rounds), description="closed loop"):
        for m in OUTSTANDING:
            for name in names if number % 2 == 0 else reversed(names):
                samples[name][f"m{m}"].append(sample(sides.by_name[name], counts[name, m], m))
    return samples


def curve(sides: Sides, seconds: float, bar: Progress) -> dict[str, dict[str, float]]:
    """Calls per second of some sides over the calls outstanding on each connection."""
    made: dict[str, dict[str, float]] = {name: {} for name in CURVE_SIDES if name in sides.by_name}
    for m in bar.track(CURVE, description="throughput over concurrency"):
        for name, points in made.items():
            side = sides.by_name[name]
            calls = calls_for(side, m, seconds / 2)
            points[str(m)] = median(sample(side, calls, m)["calls_per_s"] for _ in range(3))
    return made


# ---------------------------------------------------------------- open loop


def latencies(
    sides: Sides, rate: float, rounds: int, seconds: float, bar: Progress
) -> dict[str, list[dict[str, float]]]:
    """Quantiles of each round at one rate for all; "late" tells how far the load client itself fell behind."""
    made: dict[str, list[dict[str, float]]] = {name: [] for name in LATENCY_SIDES}
    calls = max(PROBE, int(rate * seconds))
    for number in bar.track(range(rounds), description="open loop"):
        for name in LATENCY_SIDES if number % 2 == 0 else reversed(LATENCY_SIDES):
            side = sides.by_name[name]
            with connected(side) as load:
                run = checked(load.open(side.ask(), calls, rate, spin=spins()), name)
            made[name].append({**spread(run["latency_ns"]), "late_p99": spread(run["late_ns"])["0.99"]})
    return made


# ---------------------------------------------------------------- stages and memory


def profiles(sides: Sides, cpu_us: dict[str, float], seconds: float) -> dict[str, dict[str, Any]]:
    """Of each profiled side and load: microseconds per stage and per function, and instructions per call."""
    made: dict[str, dict[str, Any]] = {}
    for name in PROFILED:
        for m in (1, 100):
            work = partial(_work, sides.by_name[name], calls_for(sides.by_name[name], m, seconds), m)
            pid = sides.by_name[name].server.process.pid
            found, counted = stages.shares(pid, work), stages.instructions(pid, work)
            us = cpu_us[f"{name}_cpu_us_m{m}"]
            made[f"{name}_m{m}"] = {
                "stages_us": stages.by_stage(found, us),
                "functions_us": stages.hottest(found, us),
                "instructions": counted,
            }
    return made


def _work(side: Side, calls: int, outstanding: int) -> int:
    return int(sample(side, calls, outstanding)["calls"])


def memory(pki: Pki, policies: int, counts: list[int], bar: Progress) -> dict[str, dict[str, int]]:
    """Resident KiB of a server by door and by connections that are open and have asked once."""
    made: dict[str, dict[str, int]] = {}
    for door in ("plain", "mtls"):
        points: dict[str, int] = {}
        for count in bar.track(counts, description=f"memory, {door}"):
            with remit("memory", door, policies, pki, "--connections", str(2 * max(counts))) as server:
                side = Side(
                    door, server, ("127.0.0.1", server.ports[door]), ext_authz, pki=pki if door == "mtls" else None
                )
                with connected(side, 1) as load:
                    checked(load.closed(ext_authz(), PROBE, 1), door)
                with connected(side, count) as load:
                    checked(load.closed(ext_authz(), count, 1), door)
                    points[str(count)] = server.memory_kib()
        made[door] = points
    return made


# ---------------------------------------------------------------- results


def results(samples: Samples) -> dict[str, float]:
    """Medians per side, and the ratios that the claims are about: medians of ratios within a round."""
    made: dict[str, float] = {}
    for side, by_load in samples.items():
        for load, taken in by_load.items():
            for figure in ("cpu_us", "calls_per_s", "busy"):
                made[f"{side}_{figure}_{load}"] = round(median(one[figure] for one in taken), 3)

    def ratio(figure: str, of: str, to: str, load: str) -> float:
        pairs = zip(samples[of][load], samples[to][load], strict=True)
        return round(median(a[figure] / b[figure] for a, b in pairs), 3)

    for load in ("m1", "m100"):
        made[f"cpu_ratio_{load}"] = ratio("cpu_us", "native", "nghttpd", load)
        made[f"cpu_ratio_constant_{load}"] = ratio("cpu_us", "constant", "nghttpd", load)
        made[f"cpu_ratio_tls_{load}"] = ratio("cpu_us", "native_tls", "nghttpd_tls", load)
    # Calls per second of one core: of its CPU time, since a machine that does other things too takes turns with us. A
    # server that is busy all the time has the same ratio by the clock, which is `_wall`.
    for peer in ("grpcio", "cerbos", "cerbos_logged"):
        if peer in samples:
            key = f"ratio_to_{peer}"
            made[key] = ratio("calls_per_cpu_s", "native", peer, "m16")
            made[f"{key}_wall"] = ratio("calls_per_s", "native", peer, "m16")
    return made


GOALS = {
    "cpu_ratio_m1": ("at most", 1.3),
    "cpu_ratio_m100": ("at most", 2.0),
    "cpu_ratio_tls_m100": ("at most", 1.6),
    "ratio_to_cerbos": ("at least", 25),
    "p99_ratio_half": ("at most", 3),
}


class Bench:
    """The parts of a run, and what they found so far. `ceilings` comes first."""

    def __init__(self, sides: Sides, rounds: int, seconds: float, bar: Progress) -> None:
        self._sides, self._rounds, self._seconds, self._bar = sides, rounds, seconds, bar
        self._found: dict[str, Any] = {}
        self._raw: dict[str, Any] = {"samples": {}}

    def ceilings(self) -> None:
        samples = ceilings(self._sides, self._rounds, self._seconds, self._bar)
        self._found |= results(samples)
        counts = {str(self._sides.middle): "native"}
        counts |= {name.removeprefix("native_"): name for name in samples if name.removeprefix("native_").isdigit()}
        by_policies = {count: self._found[f"{counts[count]}_cpu_us_m100"] for count in sorted(counts, key=int)}
        self._raw |= {"samples": samples, "by_policies": by_policies}

    def latency(self) -> None:
        rate = max(self._found[f"native_calls_per_s_m{m}"] for m in OUTSTANDING) / 2
        spreads = latencies(self._sides, rate, self._rounds, self._seconds * 2, self._bar)
        pairs = zip(spreads["native"], spreads["nghttpd"], strict=True)
        self._found["half_of_capacity_calls_per_s"] = round(rate)
        self._found["p99_ratio_half"] = round(median(a["0.99"] / b["0.99"] for a, b in pairs), 3)
        for name, taken in spreads.items():
            self._found[f"{name}_p50_us_half"] = round(median(one["0.5"] for one in taken), 1)
            self._found[f"{name}_p99_us_half"] = round(median(one["0.99"] for one in taken), 1)
        self._raw["latency_us"] = spreads

    def curve(self) -> None:
        self._raw["curve"] = curve(self._sides, self._seconds, self._bar)

    def stages(self) -> None:
        made = profiles(self._sides, self._found, max(PROFILE_S, self._seconds))
        self._raw["profiles"] = made
        if shutil.which("perf") is None:
            self._sides.notes.append(stages.NO_PERF)
        elif all(one["instructions"] is None for one in made.values()):
            self._sides.notes.append(stages.NO_COUNTER)

    def memory(self, connections: list[int]) -> None:
        self._found["memory_kib"] = memory(self._sides.pki, self._sides.middle, connections, self._bar)

    def report(self) -> dict[str, Any]:
        return {
            "question": "check",
            "results": self._found,
            "goals": GOALS,
            **self._raw,
            "servers": {name: side.server.command for name, side in self._sides.by_name.items()},
            "notes": self._sides.notes,
            "machine": facts(),
        }


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


@click.command()
@click.option("--json", "report", type=click.Path(dir_okay=False), help="Write results and raw samples here.")
@click.option("--policies", default="10,1000,100000", show_default=True, help="How many are in force, each a server.")
@click.option("--rounds", default=9, show_default=True, help="Samples of each side.")
@click.option("--seconds", default=0.5, show_default=True, help="Length of a sample.")
@click.option("--parts", default=",".join(PARTS), show_default=True, help="What to measure.")
@click.option("--connections", default="1,100,10000", show_default=True, help="Where memory is measured.")
def check(report: str | None, policies: str, rounds: int, seconds: float, parts: str, connections: str) -> None:
    """What does an ext_authz call cost beside HTTP/2 itself?

    nghttpd answering the same 900-byte POST with a file is the floor; beside us run grpcio around the same decision
    and, when bench/peers is installed, Cerbos with equal policies. 8 connections, journal on, server and load on
    different cores. Needs nghttpd (Debian: nghttp2-server). Exits 1 when one answer is wrong.
    """
    if shutil.which("nghttpd") is None:
        raise click.ClickException("`nghttpd` is missing; apt-get install nghttp2-server")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    cores = os.sched_getaffinity(0)
    pin(LOAD_CORE)
    try:
        with Sides(numbers(policies)) as sides, Progress(transient=True) as bar:
            bench = Bench(sides, rounds, seconds, bar)
            for part in PARTS:
                if part in parts.split(","):
                    getattr(bench, part)(*([numbers(connections)] if part == "memory" else []))
            made = bench.report()
    except (Wrong, OSError) as wrong:
        raise click.ClickException(str(wrong)) from None
    finally:
        os.sched_setaffinity(0, cores)
    _print(made)
    if report:
        Path(report).write_text(json.dumps(made, indent=1) + "\n")
        click.echo(f"wrote {report}")


def _print(made: dict[str, Any]) -> None:
    found = made["results"]
    table = Table("server", *(f"{what}, {m} outstanding" for m in OUTSTANDING for what in ("CPU us", "calls/s")))
    for side in made["samples"]:
        cells = [found[f"{side}_{figure}_m{m}"] for m in OUTSTANDING for figure in ("cpu_us", "calls_per_s")]
        table.add_row(side, *(f"{cell:,.1f}" for cell in cells))
    console = Console(width=150)
    console.print(table)
    for key, (how, goal) in made["goals"].items():
        console.print(f"{key} {found.get(key, 'not measured')} (goal: {how} {goal})", highlight=False)
    for key in ("ratio_to_grpcio", "ratio_to_grpcio_wall", "ratio_to_cerbos_wall", "ratio_to_cerbos_logged"):
        console.print(f"{key} {found.get(key, 'not measured')}", highlight=False)
    for key, profile in made.get("profiles", {}).items():
        told = ", ".join(f"{stage} {us:.2f}" for stage, us in profile["stages_us"].items() if us >= 0.05)
        if told:
            console.print(f"{key}, us of CPU per call: {told}", highlight=False)
    for door, points in found.get("memory_kib", {}).items():
        told = ", ".join(f"{count} connections {kib / 1024:.1f} MiB" for count, kib in points.items())
        console.print(f"memory, {door}: {told}", highlight=False)
    for note in made["notes"]:
        console.print(note, highlight=False)
