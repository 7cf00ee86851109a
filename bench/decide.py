"""How much faster than cedarpy is a decision, at 1, 100 and 1,000 policies?

Both sides answer the same requests in the same process, over policies and entities parsed beforehand. Each gets a
request in its own canonical form: cedarpy a dict whose context is already JSON text (the form it documents as its
fastest; called one by one and as a batch, of which the faster counts), we the uids and the context as cells, as a door
leaves them. `speedup_from_json` makes us encode the context from JSON in Python at every call, which no door does. The
floor is a plain dict lookup for each key of the request: what any index must pay.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import cedarpy
import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.agents import Workload, workload
from bench.measure import Samples, digest, interleaved, machine, ratio
from fastpath.decide import Evaluator
from fastpath.table import Generation
from sidecar.policy.cells import encode_context
from sidecar.policy.compile import compile_image

Answers = list[dict[str, Any]]
PEERS = ("cedarpy", "cedarpy_batch")


class Disagreement(Exception):
    """The two sides answered differently, so their times mean nothing."""


class Peer:
    """cedarpy with handles."""

    def __init__(self, work: Workload) -> None:
        self.policies = cedarpy.PolicySet.from_str(work.policies)
        self.entities = cedarpy.Entities.from_json_str(json.dumps(work.entities))
        self.requests = [request | {"context": json.dumps(request["context"])} for request in work.requests]

    def one_by_one(self) -> int:
        for request in self.requests:
            cedarpy.is_authorized(request, self.policies, self.entities)
        return len(self.requests)

    def batch(self) -> int:
        cedarpy.is_authorized_batch(self.requests, self.policies, self.entities)
        return len(self.requests)

    def answers(self) -> Answers:
        results = cedarpy.is_authorized_batch(self.requests, self.policies, self.entities)
        return [
            {
                "decision": result.decision.value.lower(),
                "reasons": sorted(result.diagnostics.reasons),
                "errors": sorted(text.split("`")[1] for text in result.diagnostics.errors),
            }
            for result in results
        ]


class Ours:
    """Our evaluator with requests prepared, as a door leaves them, and unprepared."""

    def __init__(self, work: Workload) -> None:
        compiled = compile_image(work.policies, entities=work.entities, positional_ids=True, columns=False)
        self.evaluator = Evaluator(Generation.from_bytes(compiled.image, strict=False))
        self.requests = work.requests
        self.prepared = [
            self.evaluator.prepare(*_uids(request), encode_context(request["context"])) for request in work.requests
        ]

    def prepared_calls(self) -> int:
        for prepared in self.prepared:
            self.evaluator.evaluate_prepared(prepared)
        return len(self.prepared)

    def from_json(self) -> int:
        for request in self.requests:
            self.evaluator.evaluate(*_uids(request), encode_context(request["context"]))
        return len(self.requests)

    def answers(self) -> Answers:
        found = [self.evaluator.evaluate_prepared(prepared) for prepared in self.prepared]
        return [
            {
                "decision": evaluation.outcome.lower(),
                "reasons": sorted(evaluation.reasons),
                "errors": sorted(name for name, _ in evaluation.errors),
            }
            for evaluation in found
        ]


def _uids(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(request[part]["type"], request[part]["id"]) for part in ("principal", "action", "resource")]


def floor(work: Workload) -> Callable[[], int]:
    """As many dict lookups as each request has keys: its three uids and the names in its context."""
    keys = [[*(f"{t}::{i}" for t, i in _uids(request)), *request["context"]] for request in work.requests]
    known = {key: None for request_keys in keys for key in request_keys}

    def look_up() -> int:
        for request_keys in keys:
            for key in request_keys:
                known[key]
        return len(keys)

    return look_up


def measure_size(policies: int, requests: int, rounds: int) -> tuple[Samples, Answers]:
    """Raw samples of all sides at one number of policies, and the answers, on which they agree."""
    work = workload(policies, requests)
    peer, ours = Peer(work), Ours(work)
    expected, got = peer.answers(), ours.answers()
    for request, want, have in zip(work.requests, expected, got, strict=True):
        if want != have:
            raise Disagreement(f"{policies} policies: {request}: cedarpy says {want}, we say {have}")
    sides = {
        "cedarpy": peer.one_by_one,
        "cedarpy_batch": peer.batch,
        "remit": ours.prepared_calls,
        "remit_from_json": ours.from_json,
        "floor": floor(work),
    }
    return interleaved(sides, rounds=rounds), got


def results(samples: dict[str, Samples]) -> dict[str, dict[str, float]]:
    """Ratios by number of policies; `speedup` is over whichever way of calling cedarpy was faster."""
    found: dict[str, dict[str, float]] = {"speedup": {}, "speedup_from_json": {}, "times_floor": {}, "microseconds": {}}
    for size, by_side in samples.items():
        peer = min(PEERS, key=lambda name: median(by_side[name]))
        found["speedup"][size] = ratio(by_side, peer, "remit")
        found["speedup_from_json"][size] = ratio(by_side, peer, "remit_from_json")
        found["times_floor"][size] = ratio(by_side, "remit", "floor")
        found["microseconds"][size] = median(by_side["remit"]) / 1000
    return found


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write results and raw samples.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw microseconds per decision (PNG).")
@click.option("--sizes", default="1,100,1000", show_default=True, help="Numbers of policies.")
@click.option("--requests", default=64, show_default=True, help="Distinct requests; each round asks them all once.")
@click.option("--rounds", default=60, show_default=True, help="Samples of each side.")
def decide(out: Path | None, plot: Path | None, sizes: str, requests: int, rounds: int) -> None:
    """How much faster than cedarpy is a decision, at 1, 100 and 1,000 policies?

    Prints microseconds per decision and the speedup over cedarpy with pre-parsed policies and entities, on the same
    requests in the same process; exits 1 when any answer differs. `from json` makes us encode the context at each call.
    """
    samples, answers = {}, {}
    with Progress(transient=True) as bar:
        for size in bar.track([int(size) for size in sizes.split(",")], description="policies"):
            try:
                samples[str(size)], answers[str(size)] = measure_size(size, requests, rounds)
            except Disagreement as error:
                raise click.ClickException(f"answers differ at {error}") from None
    found = results(samples)
    _print(samples, found)
    hashed = digest(answers)
    click.echo(f"answers {sum(map(len, answers.values()))} equal, sha256 {hashed}")
    if out:
        report = {"results": found | {"answers_sha256": hashed}, "samples": samples, "machine": machine()}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")
    if plot:
        draw(samples, plot)
        click.echo(f"wrote {plot}")


def _print(samples: dict[str, Samples], found: dict[str, dict[str, float]]) -> None:
    table = Table(title="microseconds per decision (median)")
    table.add_column("policies", justify="right")
    for heading in ("cedarpy", "cedarpy batch", "remit", "remit from json", "floor", "speedup", "from json"):
        table.add_column(heading, justify="right")
    for size, by_side in samples.items():
        cells = [f"{median(times) / 1000:.2f}" for times in by_side.values()]
        table.add_row(size, *cells, f"{found['speedup'][size]:.1f}x", f"{found['speedup_from_json'][size]:.1f}x")
    Console().print(table)


def draw(samples: dict[str, Samples], path: Path) -> None:
    """Microseconds per decision over the number of policies, every side, with its middle half of samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    sizes = [int(size) for size in samples]
    for side in next(iter(samples.values())):
        spread = [
            quantiles(by_side[side], n=4) if len(by_side[side]) > 1 else by_side[side] * 3
            for by_side in samples.values()
        ]
        axes.plot(sizes, [middle / 1000 for _, middle, _ in spread], marker="o", label=side.replace("_", " "))
        axes.fill_between(
            sizes, [low / 1000 for low, _, _ in spread], [high / 1000 for _, _, high in spread], alpha=0.2
        )
    axes.set(xscale="log", yscale="log", xlabel="policies", ylabel="microseconds per decision", title="One decision")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
