"""What does a decision cost, from 1 to 1,000,000 policies, and how much faster than cedarpy is it?

Both sides answer the same requests in the same process, over policies and entities parsed beforehand. Each gets a
request in its own canonical form: cedarpy a dict whose context is already JSON text (the form it documents as its
fastest; called one by one and as a batch, of which the faster counts), we the uids and the context as cells, as a door
leaves them, and we make the decision natively, as a door has it. `remit_python` makes Python objects of each decision;
`remit_from_json` also encodes the context from JSON at every call, which no door does. `call` is a whole call without
its transport: bytes of a CheckRequest in, bytes of the reply out. The floor is a plain hash lookup (a dict in C) for
each key of the request, among as many keys as the table has entities. `nothing` asks about uids that no policy and no
entity names: what entering, three lookups and leaving cost; the rest of a decision is rows it reads and conditions.
`flatness` compares the largest size with 100 in rounds in which both take their turn.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import cedarpy
import click
from rich.console import Console
from rich.table import Table as Printed

from bench.measure import Samples, digest, interleaved, machine, ratio
from bench.tables import Table, anonymous_mib, compile_table, prepare, uids
from bench.workloads import CALLS, KINDS, SAME_SCOPE, Workload, workload
from fastpath.call import Pdp
from fastpath.decide import Outcome
from fastpath.evaluator import Evaluator
from fastpath.mapping import Mapping
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.config_mapping import mapping_config
from sidecar.policy.cells import encode_context

Answers = list[dict[str, Any]]
PEERS = ("cedarpy", "cedarpy_batch")
AGENT_KIND = 1  # fastpath/peer.pxd
WIDTH = 110
"""Columns that the table needs."""
CALL_BUDGET_MS = 60_000
"""A thread can lose its core for longer than a door allows; that is not the question here."""
PEER_WORK = 200_000
"""Policies times requests that cedarpy evaluates per round at most; it gets the first requests."""
SAME_SCOPE_WORK = 10_000_000
"""Policies times requests of a round where every request meets every policy."""


class Disagreement(Exception):
    """The two sides answered differently, so their times mean nothing."""


class Peer:
    """cedarpy with handles, links written out as policies."""

    def __init__(self, work: Workload) -> None:
        expanded = list(work.expanded())
        self.ids = [id_ for id_, _ in expanded]
        self.policies = cedarpy.PolicySet.from_str("\n".join(text for _, text in expanded))
        self.entities = cedarpy.Entities.from_json_str(json.dumps(work.entities))
        asked = work.requests[: max(4, PEER_WORK // max(1, len(expanded)))]
        self.requests = [request | {"context": json.dumps(request["context"])} for request in asked]

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
                "reasons": sorted(self._id(name) for name in result.diagnostics.reasons),
                "errors": sorted(self._id(text.split("`")[1]) for text in result.diagnostics.errors),
            }
            for result in results
        ]

    def _id(self, name: str) -> str:
        return self.ids[int(name.removeprefix("policy"))]


class Ours:
    """Our evaluator with requests prepared, as a door leaves them, and unprepared."""

    def __init__(self, work: Workload, generation: Generation) -> None:
        self.evaluator = Evaluator(generation)
        self.requests = work.requests
        self.prepared = prepare(self.evaluator, work.requests)
        self.some = self.prepared[:256]
        self.unknown = prepare(self.evaluator, [self._unknown(number) for number in range(len(work.requests))])

    def _unknown(self, number: int) -> dict[str, Any]:
        nobody = {"type": "Nobody", "id": str(number)}
        return {"principal": nobody, "action": nobody, "resource": nobody, "context": {}}

    def nothing(self) -> int:
        self.evaluator.outcomes(self.unknown)
        return len(self.unknown)

    def native_calls(self) -> int:
        self.evaluator.outcomes(self.prepared)
        return len(self.prepared)

    def python_calls(self) -> int:
        for prepared in self.some:
            self.evaluator.evaluate_prepared(prepared)
        return len(self.some)

    def from_json(self) -> int:
        asked = self.requests[: len(self.some)]
        for request in asked:
            self.evaluator.evaluate(*uids(request), encode_context(request["context"]))
        return len(asked)

    def answers(self, count: int) -> Answers:
        found = [self.evaluator.evaluate_prepared(prepared) for prepared in self.prepared[:count]]
        return [
            {
                "decision": evaluation.outcome.lower(),
                "reasons": sorted(evaluation.reasons),
                "errors": sorted(name for name, _ in evaluation.errors),
            }
            for evaluation in found
        ]


class Calls:
    """Whole calls at the agents' door, as its handler makes them, each by the agent that the request names."""

    def __init__(self, work: Workload, generation: Generation) -> None:
        self.pdp = Pdp(None, budget_ms=CALL_BUDGET_MS)
        self.pdp.put_rules(generation, Mapping(mapping_config({"trust_domains": ["corp.example"]})))
        self.pdp.put_state(epoch=0, bundle_generation=0, not_ready="")
        self.calls = [(self._message(request), self._peer(request)) for request in work.requests]

    def _message(self, request: dict[str, Any]) -> bytes:
        resource = authz_pb2.EntityUid(**request["resource"])
        level = request["context"]["call"]["data_level"]
        message = authz_pb2.CheckRequest(action=request["action"]["id"], resource=resource, data_level=level)
        return bytes(message.SerializeToString())

    def _peer(self, request: dict[str, Any]) -> VerifiedPeer:
        return VerifiedPeer(AGENT_KIND, request["principal"]["id"], "corp.example")

    def all(self) -> int:
        check = self.pdp.check
        for message, peer in self.calls:
            check(message, peer)
        return len(self.calls)

    def outcomes(self) -> bytes:
        """Of every call; Disagreement when one was not decided."""
        found = bytearray()
        for message, peer in self.calls:
            code, reply = self.pdp.check(message, peer)
            outcome = authz_pb2.CheckResponse.FromString(reply).outcome if code == 0 else 0
            if outcome not in (authz_pb2.OUTCOME_ALLOW, authz_pb2.OUTCOME_DENY):
                raise Disagreement(f"a call ended with status {code} and outcome {outcome}")
            found.append(outcome)
        return bytes(found)


def floor(work: Workload) -> Callable[[], int]:
    """As many dict lookups as each request has keys: its three uids and the names in its context."""
    keys = [[*(f"{t}::{i}" for t, i in uids(request)), *request["context"]] for request in work.requests]
    known: dict[str, None] = {f"{one['uid']['type']}::{one['uid']['id']}": None for one in work.entities}
    known |= {key: None for request_keys in keys for key in request_keys}
    look = [itemgetter(*request_keys) for request_keys in keys]

    def look_up() -> int:
        for get in look:
            get(known)
        return len(look)

    return look_up


@dataclass
class Measured:
    """One workload at one size."""

    samples: Samples
    answers: Answers
    compared: int
    """Requests on which cedarpy gave the same decision, reasons and errors."""
    facts: dict[str, float] = field(default_factory=dict)


def _compare(work: Workload, peer: Peer, ours: Ours) -> Answers:
    expected = peer.answers()
    got = ours.answers(len(expected))
    for request, want, have in zip(work.requests, expected, got, strict=False):
        if want != have:
            raise Disagreement(f"{request}: cedarpy says {want}, we say {have}")
    return got


def asked(kind: str, size: int, requests: int) -> int:
    """How many requests are made of a workload: fewer where each of them meets every policy."""
    return min(requests, max(20, SAME_SCOPE_WORK // size)) if kind == SAME_SCOPE else requests


def measure(
    kind: str, size: int, requests: int, rounds: int, peer_to: int, folder: Path, beside: int | None = None
) -> Measured:
    """Raw samples of all sides on one workload, and the answers, on which they agree.

    `beside` is a smaller size of the same kind that takes turns with this one, as `remit_small`.
    """
    work = workload(kind, size, asked(kind, size, requests))
    table = compile_table(work, folder / f"{kind}-{size}.mdb")
    with contextlib.ExitStack() as stack:
        generation = stack.enter_context(table.open())
        ours = Ours(work, generation)
        sides: dict[str, Callable[[], int]] = {
            "remit": ours.native_calls,
            "nothing": ours.nothing,
            "floor": floor(work),
        }
        if beside is not None:
            less = workload(kind, beside, asked(kind, beside, requests))
            small = stack.enter_context(compile_table(less, folder / f"{kind}-{beside}.mdb").open())
            sides["remit_small"] = Ours(less, small).native_calls
        answers: Answers = [{"outcomes": ours.evaluator.outcomes(ours.prepared).hex()}]
        compared = 0
        if size <= peer_to:
            peer = Peer(work)
            answers = _compare(work, peer, ours)
            compared = len(answers)
            sides |= {"remit_python": ours.python_calls, "remit_from_json": ours.from_json}
            sides |= {"cedarpy": peer.one_by_one, "cedarpy_batch": peer.batch}
        if kind == CALLS:
            calls = Calls(work, generation)
            answers.append({"calls": calls.outcomes().hex()})
            sides["call"] = calls.all
        samples = interleaved(sides, rounds=rounds)
        found = Measured(samples, answers, compared, _facts(work, table, generation, ours))
    found.facts["anon_mib"] = anonymous_mib(table, work.requests)
    return found


def _facts(work: Workload, table: Table, generation: Generation, ours: Ours) -> dict[str, float]:
    outcomes = ours.evaluator.outcomes(ours.prepared)
    return {
        "requests": len(work.requests),
        "compile_s": table.compile_s,
        "compile_peak_mib": table.peak_mib,
        "image_bytes": table.size,
        "rows": generation.policy_count,
        "entities": len(work.entities),
        "allowed": outcomes.count(int(Outcome.OUTCOME_ALLOW)) / len(outcomes),
    }


# ---------------------------------------------------------------- results


def results(measured: dict[str, dict[str, Measured]], bytes_each: dict[str, float]) -> dict[str, Any]:
    """Ratios by workload and size. `speedup` is the worst of the workloads whose scopes differ, at each size."""
    apart = {kind: sizes for kind, sizes in measured.items() if kind != SAME_SCOPE}
    by_kind = {kind: {size: _ratios(one) for size, one in sizes.items()} for kind, sizes in measured.items()}
    found: dict[str, Any] = {"workloads": by_kind, **bytes_each}
    for key in ("speedup", "speedup_python", "speedup_from_json"):
        found[key] = _worst(min, {kind: by_kind[kind] for kind in apart or measured}, key)
    for key in ("speedup_call", "call_microseconds"):
        found[key] = _worst(max, {kind: by_kind[kind] for kind in by_kind if kind == CALLS}, key)
    for key in ("floor_ratio", "floor_ratio_of_nothing"):
        found[key] = _worst(max, {kind: by_kind[kind] for kind in apart or measured}, key)
    flat = {kind: _growth(sizes) for kind, sizes in apart.items() if "remit_small" in _largest(sizes).samples}
    found["flatness_by_workload"] = flat
    found["flatness"] = max(flat.values(), default=None)
    found["anon_growth_mib"] = max((_anon(sizes) for sizes in measured.values()), default=None)
    if SAME_SCOPE in measured:
        largest = max(measured[SAME_SCOPE], key=int)
        one = measured[SAME_SCOPE][largest]
        found["ns_per_matching_policy"] = median(one.samples["remit"]) / one.facts["rows"]
    found["compile_peak_mib"] = max(
        one.facts["compile_peak_mib"] for sizes in measured.values() for one in sizes.values()
    )
    return found


def _ratios(one: Measured) -> dict[str, float]:
    by_side = one.samples
    found = {
        "microseconds": median(by_side["remit"]) / 1000,
        "floor_ratio": ratio(by_side, "remit", "floor"),
        "floor_ratio_of_nothing": ratio(by_side, "nothing", "floor"),
        "answers_compared": one.compared,
        **one.facts,
    }
    if "call" in by_side:
        found["call_microseconds"] = median(by_side["call"]) / 1000
    if one.compared:
        peer = min(PEERS, key=lambda name: median(by_side[name]))
        found["speedup"] = ratio(by_side, peer, "remit")
        found["speedup_python"] = ratio(by_side, peer, "remit_python")
        found["speedup_from_json"] = ratio(by_side, peer, "remit_from_json")
        if "call" in by_side:
            found["speedup_call"] = ratio(by_side, peer, "call")
    return found


def _worst(
    pick: Callable[[Sequence[float]], float], by_kind: dict[str, dict[str, dict[str, float]]], key: str
) -> dict[str, float]:
    sizes = sorted({size for of_kind in by_kind.values() for size in of_kind}, key=int)
    found = {
        size: [of_kind[size][key] for of_kind in by_kind.values() if key in of_kind.get(size, {})] for size in sizes
    }
    return {size: pick(values) for size, values in found.items() if values}


def _ends(sizes: dict[str, Measured]) -> tuple[Measured, Measured]:
    """At 100, or the smallest size, and at the largest."""
    order = sorted(sizes, key=int)
    return sizes["100" if "100" in sizes else order[0]], sizes[order[-1]]


def _largest(sizes: dict[str, Measured]) -> Measured:
    return _ends(sizes)[1]


def _growth(sizes: dict[str, Measured]) -> float:
    """How many times longer a decision takes at the largest size, by rounds in which both took their turn."""
    return ratio(_largest(sizes).samples, "remit", "remit_small")


def _anon(sizes: dict[str, Measured]) -> float:
    small, large = _ends(sizes)
    return large.facts["anon_mib"] - small.facts["anon_mib"]


def bytes_per_row(folder: Path, rows: int = 2000) -> dict[str, float]:
    """What one more policy (`abac`) and one more link (`sharing`) add to the image, entities left out."""
    found = {}
    for name, kind in (("bytes_per_policy", "abac"), ("bytes_per_link", "sharing")):
        work = workload(kind, rows, 1)
        full = compile_table(work, folder / f"{kind}-full.mdb").size
        work.policies, work.links = work.policies[:1], work.links[:1]
        found[name] = (full - compile_table(work, folder / f"{kind}-one.mdb").size) / (rows - 1)
    return found


# ---------------------------------------------------------------- command


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write results and raw samples.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw microseconds per decision (PNG).")
@click.option("--sizes", default="1,100,1000", show_default=True, help="Policies or links; up to 1000000.")
@click.option("--workloads", "kinds", default=",".join(KINDS), show_default=True, help="Which policy sets.")
@click.option("--requests", default=10_000, show_default=True, help="Distinct requests; each round asks them all once.")
@click.option("--rounds", default=20, show_default=True, help="Samples of each side.")
@click.option("--peer-to", default=10_000, show_default=True, help="Largest size at which cedarpy is run beside us.")
@click.option(
    "--tables",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep compiled tables here, and take those that are here already.",
)
def decide(
    out: Path | None,
    plot: Path | None,
    sizes: str,
    kinds: str,
    requests: int,
    rounds: int,
    peer_to: int,
    tables: Path | None,
) -> None:
    """What does a decision cost, from 1 to 1,000,000 policies, and how much faster than cedarpy is it?

    Prints microseconds per decision and the speedup over cedarpy with pre-parsed policies and entities, on the same
    requests in the same process; exits 1 when any answer differs. The full run is
    `python -m bench decide --sizes 1,100,1000,10000,100000,1000000 --json FILE`; it needs about 6 GiB and half an hour,
    and writes what it has after every table.
    """
    wanted = [(kind, int(size)) for kind in kinds.split(",") for size in sizes.split(",")]
    unknown = sorted({kind for kind, _ in wanted} - KINDS.keys())
    if unknown:
        raise click.BadParameter(f"`{unknown[0]}` is none of {', '.join(KINDS)}", param_hint="--workloads")
    every = sorted({size for _, size in wanted})
    small = 100 if 100 in every else every[0]
    measured: dict[str, dict[str, Measured]] = {}
    with contextlib.ExitStack() as stack:
        folder = tables or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        bytes_each = bytes_per_row(folder)
        for kind, size in wanted:
            try:
                beside = small if size == every[-1] > small and kind != SAME_SCOPE else None
                one = measure(kind, size, requests, rounds, peer_to, folder, beside)
            except Disagreement as error:
                raise click.ClickException(f"answers differ in {kind} at {size} policies: {error}") from None
            measured.setdefault(kind, {})[str(size)] = one
            click.echo(f"{kind} {size}: {_said(one)}", err=True)
            found, answers = _report(measured, bytes_each, out)
    _print(measured, found)
    click.echo(answers)
    if out:
        click.echo(f"wrote {out}")
    if plot:
        draw(measured, plot)
        click.echo(f"wrote {plot}")


def _said(one: Measured) -> str:
    facts = one.facts
    return (
        f"{median(one.samples['remit']) / 1000:.2f} us, compiled in {facts['compile_s']:.1f} s with"
        f" {facts['compile_peak_mib']:.0f} MiB, {one.compared} answers compared"
    )


def _report(
    measured: dict[str, dict[str, Measured]], bytes_each: dict[str, float], out: Path | None
) -> tuple[dict[str, Any], str]:
    """The results so far, written to `out`, and what is said of the answers."""
    found = results(measured, bytes_each)
    answers = {kind: {size: one.answers for size, one in by_size.items()} for kind, by_size in measured.items()}
    hashed = digest(answers)
    compared = sum(one.compared for by_size in measured.values() for one in by_size.values())
    if out:
        samples = {kind: {size: one.samples for size, one in by_size.items()} for kind, by_size in measured.items()}
        report = {"results": found | {"answers_sha256": hashed}, "samples": samples, "machine": machine()}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return found, f"answers {compared} equal, sha256 {hashed}"


def _print(measured: dict[str, dict[str, Measured]], found: dict[str, Any]) -> None:
    table = Printed(title="microseconds per decision (median)")
    headings = (
        "workload",
        "size",
        "remit",
        "nothing",
        "floor",
        "python",
        "json",
        "call",
        "cedarpy",
        "batch",
        "speedup",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for kind, by_size in measured.items():
        for size, one in by_size.items():
            cells = [
                f"{median(one.samples[side]) / 1000:.2f}" if side in one.samples else "-"
                for side in ("remit", "nothing", "floor", "remit_python", "remit_from_json", "call", *PEERS)
            ]
            speedup = found["workloads"][kind][size].get("speedup")
            table.add_row(kind, size, *cells, f"{speedup:.0f}x" if speedup else "-")
    Console(width=max(Console().width, WIDTH)).print(table)
    keys = ("flatness", "anon_growth_mib", "ns_per_matching_policy", "bytes_per_policy", "bytes_per_link")
    for key in (*keys, "compile_peak_mib"):
        if found.get(key) is not None:
            click.echo(f"{key} {found[key]:.2f}")


def draw(measured: dict[str, dict[str, Measured]], path: Path) -> None:
    """Microseconds per decision over the number of policies: each workload, and cedarpy, with the middle half."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, by_size in measured.items():
        for side, style in (("remit", "-"), ("cedarpy_batch", ":")):
            at = [size for size, one in by_size.items() if side in one.samples]
            spread = [_middle(by_size[size].samples[side]) for size in at]
            line = axes.plot(
                [int(size) for size in at], [mid for _, mid, _ in spread], style, marker="o", label=f"{kind} {side}"
            )
            axes.fill_between(
                [int(size) for size in at],
                [low for low, _, _ in spread],
                [high for _, _, high in spread],
                alpha=0.2,
                color=line[0].get_color(),
            )
    axes.set(xscale="log", yscale="log", xlabel="policies", ylabel="microseconds per decision", title="One decision")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _middle(times: list[float]) -> tuple[float, float, float]:
    low, middle, high = quantiles(times, n=4) if len(times) > 1 else times * 3
    return low / 1000, middle / 1000, high / 1000
