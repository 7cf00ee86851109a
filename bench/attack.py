"""What do others notice while a hostile peer attacks the native door?

For each attack of the H2 rows a fresh server answers a steady load of calls, with the attack and without it in turns;
the load's p99 is compared, and the server's memory is watched. Every answer to the load must be right, attack or not.

The server has a core, the load client and the attacker share another. So that the client's waits for that core are not
taken for the server's doing, the client runs in real time where it may, and a call counts from when its bytes are given
to the socket until the kernel stamps the answer's arrival. Calls start by a schedule, so a server that stalls is asked
on; what counting from the schedule would give is reported beside it (`due_p99_ratio`), and is all there is of an attack
over TLS, where no stamp reaches the client (`clock`). `busy` is how much of its core the server needed: an attack that
leaves it idle is bounded by the attacker, not by us.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.attacker import QUIET
from bench.attacks import ATTACKS
from bench.facts import facts
from bench.latency import spread
from bench.questions import ext_authz
from bench.runs import Run, Wrong, checked
from bench.servers import LOAD_CORE, Pki, Server, Side, pin, real_time, remit
from sidecar.demo.processes import wait_for

CONNECTIONS = 4
POLICIES = 1000
WATCH_S = 0.05
KIB = 1024
GOALS = {"worst_p99_ratio": ("at most", 2), "worst_growth_mib": ("at most", 64)}


@contextlib.contextmanager
def attacker(name: str, port: int, pki: Pki) -> Iterator[dict[str, int]]:
    """The attack runs inside the block; afterwards the yielded dict says what it came to."""
    command = [sys.executable, "-m", "bench.attacker", "--name", name, "--port", str(port)]
    command += ["--pki", str(pki.folder)]
    told: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "a pipe"
        process.stdout.readline()
        yield told
        out, _ = process.communicate()
        told.update(json.loads(out))


@contextlib.contextmanager
def watched(server: Server) -> Iterator[list[int]]:
    """Resident KiB of the server, as often as it is looked at inside the block."""
    seen = [server.memory_kib()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(WATCH_S):
            seen.append(server.memory_kib())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


class Samples:
    """What each round of one attack saw, quiet and attacked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.served: dict[str, list[dict[str, float]]] = {QUIET: [], name: []}
        self.due: dict[str, list[dict[str, float]]] = {QUIET: [], name: []}
        self.busy: dict[str, list[float]] = {QUIET: [], name: []}

    def add(self, kind: str, run: Run, cpu_s: float) -> None:
        # What came by TLS has no stamp: then the client's own clock counts, and its waits with it.
        self.served[kind].append(spread(run["served_ns"] or run["latency_ns"]))
        self.due[kind].append(spread(run["latency_ns"]))
        self.busy[kind].append(round(cpu_s / run["seconds"], 3))

    def results(self) -> dict[str, Any]:
        served, due = self.served, self.due
        return {
            "p99_ratio": self._ratio(served),
            "p99_us": _p99(served[self._name]),
            "quiet_p99_us": _p99(served[QUIET]),
            "due_p99_ratio": self._ratio(due),
            "due_p99_us": _p99(due[self._name]),
            "quiet_due_p99_us": _p99(due[QUIET]),
            "busy": median(self.busy[self._name]),
            "samples": {"served": served, "due": due, "busy": self.busy},
        }

    def _ratio(self, spreads: dict[str, list[dict[str, float]]]) -> float:
        pairs = zip(spreads[self._name], spreads[QUIET], strict=True)
        return round(median(hit["0.99"] / quiet["0.99"] for hit, quiet in pairs), 3)


def _p99(spreads: list[dict[str, float]]) -> float:
    return round(median(one["0.99"] for one in spreads), 1)


def measure(name: str, pki: Pki, rate: float, rounds: int, seconds: float) -> dict[str, Any]:
    """One attack: quantiles of the load in each round, growth of the server, what the attack came to."""
    calls = max(100, int(rate * seconds))
    samples = Samples(name)
    growth, attacks = 0, []
    door = "mtls" if ATTACKS[name].key_updates else "plain"
    with remit("attacked", door, POLICIES, pki) as server:
        port = server.ports[door]
        side = Side("attacked", server, ("127.0.0.1", port), ext_authz, pki=pki if door == "mtls" else None)
        with contextlib.closing(side.connect(CONNECTIONS, stamps=side.pki is None)) as load:
            checked(load.closed(ext_authz(), calls, 16), QUIET)
            for _ in range(rounds):
                for kind in (QUIET, name):
                    with attacker(kind, port, pki) as told, watched(server) as seen:
                        cpu = server.cpu_s()
                        with real_time():
                            run = checked(load.open(ext_authz(), calls, rate, spin=False), name)
                        samples.add(kind, run, server.cpu_s() - cpu)
                    if kind == name:
                        growth = max(growth, max(seen) - seen[0])
                        attacks.append(told)
            # An end that the attacker has seen may not be counted yet.
            wait_for("the attacker's connections end", lambda: server.tell()["doors"][0]["open"] == CONNECTIONS)
            closed = server.tell()["doors"][0]["closed"]
    return {
        "row": ATTACKS[name].row,
        "clock": "kernel" if side.pki is None else "client",
        **samples.results(),
        "growth_mib": round(growth / KIB, 2),
        "attack": attacks,
        "closed": closed,
    }


def results(attacks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    worst = {key: max(attacks, key=lambda name: attacks[name][key]) for key in ("p99_ratio", "growth_mib")}
    made: dict[str, Any] = {f"worst_{key}": attacks[name][key] for key, name in worst.items()}
    made |= {f"worst_{key}_attack": name for key, name in worst.items()}
    for key in ("p99_ratio", "due_p99_ratio"):
        made[f"median_{key}"] = round(median(one[key] for one in attacks.values()), 3)
    made["worst_due_p99_ratio"] = max(one["due_p99_ratio"] for one in attacks.values())
    return made


@click.command()
@click.option("--json", "report", type=click.Path(dir_okay=False), help="Write results and raw samples here.")
@click.option("--attacks", "names", default=",".join(ATTACKS), help="Which, with commas; all of them otherwise.")
@click.option("--rate", default=2000.0, show_default=True, help="Calls per second of the others.")
@click.option("--rounds", default=3, show_default=True, help="Quiet and attacked in turns.")
@click.option("--seconds", default=1.5, show_default=True, help="Length of each.")
def attack(report: str | None, names: str, rate: float, rounds: int, seconds: float) -> None:
    """What do others notice while a hostile peer attacks the native door?

    One hostile peer attacks without a pause; others ask at a steady rate on 4 connections, open loop, and every answer
    to them must be right. Their p99 over its quiet value and the server's growth are reported for each attack. A call
    takes from when it was sent until its answer came to the client's socket: waiting for the core that the client
    shares with the attacker is not the server's doing.
    """
    wanted = names.split(",")
    unknown = [name for name in wanted if name not in ATTACKS]
    if unknown:
        raise click.BadParameter(f"`{unknown[0]}` is none of {', '.join(ATTACKS)}", param_hint="--attacks")
    cores = os.sched_getaffinity(0)
    pin(LOAD_CORE)
    try:
        with tempfile.TemporaryDirectory(prefix="bench") as folder, Progress(transient=True) as bar:
            pki = Pki(Path(folder))
            attacks = {name: measure(name, pki, rate, rounds, seconds) for name in bar.track(wanted)}
    except (Wrong, OSError) as wrong:
        raise click.ClickException(str(wrong)) from None
    finally:
        os.sched_setaffinity(0, cores)
    found = results(attacks)
    _print(attacks, found)
    if report:
        made = {"question": "attack", "results": found, "goals": GOALS, "attacks": attacks, "rate": rate}
        Path(report).write_text(json.dumps({**made, "notes": [], "machine": facts()}, indent=1) + "\n")
        click.echo(f"wrote {report}")


def _print(attacks: dict[str, dict[str, Any]], found: dict[str, Any]) -> None:
    columns = ("row", "attack", "p99, us", "quiet, us", "ratio", "by schedule", "busy", "growth, MiB")
    table = Table(*columns, "connections", "MiB sent", "ended")
    for name, one in attacks.items():
        connections = sum(told["connections"] for told in one["attack"])
        sent = sum(told["bytes"] for told in one["attack"]) / KIB**2
        causes = ", ".join(f"{cause} {count}" for cause, count in one["closed"].items())
        figures = [f"{one[key]:,.2f}" for key in ("p99_us", "quiet_p99_us", "p99_ratio", "due_p99_ratio", "busy")]
        figures.append(f"{one['growth_mib']:,.1f}")
        table.add_row(one["row"], name, *figures, f"{connections:,}", f"{sent:,.0f}", causes)
    console = Console(width=170)
    console.print(table)
    for key, (how, goal) in GOALS.items():
        console.print(f"{key} {found[key]} by {found[key + '_attack']} (goal: {how} {goal})", highlight=False)
