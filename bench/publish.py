"""What does a full publish cost, over what cedarpy takes to parse and validate the same text?

The peer is `PolicySet.from_str` plus `validate_policies`, in a process of its own. Ours is all of `remit policy
publish`: read, cap, split, parse, validate, compile in the child, write, sync, verify, commit. Two texts under the
agents' vocabulary: `alike`, whose policies differ in ids and literals as generated policies do, and `distinct`, no two
of which have the same conditions, so that nothing can be shared between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.changes import measure_changes
from bench.measure import machine
from bench.tables import COMPILE_S, LIMITS
from sidecar.policy.publish import GenerationStore, PolicySource, SourceFiles
from sidecar.policy.vocabulary import vocabulary

TEXTS = ("alike", "distinct")
_PEER = """
import sys, time, cedarpy
text, schema = (open(path, encoding="utf-8").read() for path in sys.argv[1:])
known = cedarpy.Schema.from_str(schema)
started = time.perf_counter()
cedarpy.PolicySet.from_str(text)
assert cedarpy.validate_policies(text, known).validation_passed
print(time.perf_counter() - started)
"""
_OURS = """
import json, resource, sys, time
from bench.publish import publish_once
started = time.perf_counter()
publish_once(*sys.argv[1:])
took = time.perf_counter() - started
peak = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([took, *peak]))
"""


def policies(kind: str, count: int, seed: int = 1) -> str:
    """`count` policies with `@id`, valid under the agents' vocabulary."""
    rng = Random(f"publish {kind} {seed} {count}")
    return "\n".join(_policy(rng, number, kind == "distinct") for number in range(count))


def _policy(rng: Random, number: int, distinct: bool) -> str:
    own = f" && context.call.bytes != {number}" if distinct else ""
    head = f'@id("p{number:07}") @owner("team-{rng.randrange(40)}")'
    tool = f'resource in ToolGroup::"g{rng.randrange(5000)}"'
    who = f'principal == Agent::"spiffe://corp.example/agents/a{rng.randrange(20_000)}"'
    form = rng.randrange(4)
    if form == 0:
        body = f"context.task.present && context.call.data_level <= principal.clearance{own}"
        return f'{head} permit({who}, action == Action::"read", {tool}) when {{ {body} }};'
    if form == 1:
        body = f"context.session.untrusted_seen && context.session.level_seen > {rng.randrange(4)}{own}"
        scope = f'principal in AgentClass::"c{rng.randrange(500)}", action in [Action::"send", Action::"write"], {tool}'
        return f'{head} @reason("flow") forbid({scope}) when {{ {body} }};'
    if form == 2:
        body = f'context.task.purpose == "case-{rng.randrange(1000)}" && resource.level < 3{own}'
        return f'{head} permit({who}, action, resource == Tool::"t{rng.randrange(50_000)}") when {{ {body} }};'
    body = f'resource.labels.contains("secret") || !(principal.status == "active"){own}'
    return f'{head} permit({who}, action == Action::"list", {tool}) unless {{ {body} }};'


def publish_once(text: str, schema: str, store: str) -> None:
    """What `remit policy publish` does, into a new store."""
    source = SourceFiles([text], schema=schema, limits=LIMITS)
    GenerationStore(store).publish(PolicySource(source), compile_s=COMPILE_S)


def _run(program: str, *arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"a side of the bench failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def measure(kind: str, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of both sides, taking turns, and the peak memory of ours in MiB."""
    text, schema = folder / f"{kind}.cedar", folder / "agents.cedarschema"
    text.write_text(policies(kind, count), encoding="utf-8")
    schema.write_text(vocabulary(), encoding="utf-8")
    peer, ours, peaks = [], [], []
    size = 0
    for number in range(rounds):
        store = folder / f"{kind}-{number}"
        peer.append(float(_run(_PEER, str(text), str(schema))))
        took, parent, child = _run(_OURS, str(text), str(schema), str(store))
        ours.append(took)
        peaks.append((parent, child))
        manifest = json.loads((store / "manifest.json").read_text())
        size = manifest["size"]
        if manifest["report"]["policies"] != count:
            raise click.ClickException(f"{manifest['report']['policies']} of {count} policies were published")
    return {
        "peer_s": peer,
        "remit_s": ours,
        "publish_ratio": median(a / b for a, b in zip(ours, peer, strict=True)),
        "microseconds_per_policy": median(ours) / count * 1e6,
        "publisher_peak_mib": max(parent for parent, _ in peaks),
        "compiler_peak_mib": max(child for _, child in peaks),
        "text_bytes": text.stat().st_size,
        "image_bytes": size,
    }


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write results and raw samples.")
@click.option("--policies", "count", default=100_000, show_default=True, help="Policies of each text.")
@click.option("--rounds", default=3, show_default=True, help="Publishes of each side and text.")
@click.option("--among", default=1_000_000, show_default=True, help="Policies among which one is changed.")
@click.option("--changes", default=10, show_default=True, help="Rounds of changes: policy, link, entity.")
def publish(out: Path | None, count: int, rounds: int, among: int, changes: int) -> None:
    """What does a full publish cost, over what cedarpy takes to parse and validate the same text? And one change?

    Every round starts both sides anew, each in a process of its own; `publish_ratio` is the worse of the two texts.
    `delta_in_force_ms` is the time from the call that changes one policy to the first decision under it, the worst
    kind of change; `delta_share` is that over a full publish of the same set.
    """
    found: dict[str, dict[str, Any]] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="remit-bench-") as folder, Progress(transient=True) as bar:
        for kind in bar.track(TEXTS, description="texts"):
            found[kind] = measure(kind, count, rounds, Path(folder))
        delta = measure_changes(among, changes, Path(folder))
    table = Table(title=f"seconds to publish {count} policies (median)")
    for heading in ("text", "cedarpy", "remit", "ratio", "us per policy", "peak of compiler, MiB"):
        table.add_column(heading, justify="left" if heading == "text" else "right")
    for kind, one in found.items():
        cells = (f"{median(one['peer_s']):.2f}", f"{median(one['remit_s']):.2f}", f"{one['publish_ratio']:.2f}")
        table.add_row(kind, *cells, f"{one['microseconds_per_policy']:.0f}", f"{one['compiler_peak_mib']:.0f}")
    Console().print(table)
    click.echo(
        f"one change among {among}: {delta['delta_in_force_ms']:.0f} ms until it decides, "
        f"{delta['delta_share']:.5f} of a full publish ({delta['full_publish_s']:.1f} s)"
    )
    if out:
        results = {
            "publish_ratio": max(one["publish_ratio"] for one in found.values()),
            "publish_ratio_by_text": {kind: one["publish_ratio"] for kind, one in found.items()},
            "compiler_peak_mib": max(one["compiler_peak_mib"] for one in found.values()),
            "delta_in_force_ms": delta["delta_in_force_ms"],
            "delta_share": delta["delta_share"],
            "policies": count,
            "texts": found,
            "changes": delta,
        }
        report = {"results": results, "seconds": time.perf_counter() - started, "machine": machine()}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")
