"""What does live authority cost a decision, and does that depend on how much of it there is?

The peer of `columns_ratio` is the same decision with its live columns given as constants: what a policy engine costs
that is told everything. The other ratios hold the same calls against themselves: with 100,000 open tasks over ten, with
1,000,000 revocations over none.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.durable import History, Opens, durable_opens, revocation_history
from bench.measure import Samples, digest, interleaved, machine, ratio
from fastpath.authority import Live
from fastpath.evaluator import Evaluator, Prepared
from fastpath.table import Generation
from sidecar.policy.cells import encode_context
from sidecar.policy.compile import compile_image
from sidecar.policy.vocabulary import vocabulary

ARENA_BYTES = 16 << 10
BATCH = 10_000
HOUR_NS = 3600 * 10**9
CALLERS = 10
POLICIES = """
@id("base") permit (principal, action, resource)
when { principal.status == "active" && context.task.present && context.task.state == "open" };
@id("scope") @reason("task.scope") forbid (principal, action, resource)
unless { context.task.covers_tool && context.task.covers_action && context.task.covers_dest && context.task.ttl_s > 0 };
@id("level") @reason("data.level") forbid (principal, action, resource is Tool)
when { resource.level > principal.clearance || resource.level > context.task.max_level };
@id("destination") @reason("dest.level") forbid (principal, action in Action::"egress", resource)
when { context.call.data_level > context.dest.max_level || context.session.level_seen > context.dest.max_level };
@id("approval") @reason("approval.required") @obligation("approval")
forbid (principal, action in [Action::"delete", Action::"admin"], resource is Tool)
when { !resource.reversible } unless { context.approval.state == "granted" && context.approval.matches };
@id("owner") @reason("owner.missing") forbid (principal, action, resource)
unless { principal has owner && principal.owner.active && context.task has owner && context.task.owner.active };
"""


def _entity(type_: str, id_: str, attrs: dict[str, Any], *parents: tuple[str, str]) -> dict[str, Any]:
    return {
        "uid": {"type": type_, "id": id_},
        "attrs": attrs,
        "parents": [{"type": kind, "id": name} for kind, name in parents],
    }


def _agent(number: int) -> str:
    return f"spiffe://corp.example/agent/{number}"


def _task(number: int, now: int) -> tuple[str, dict[str, Any]]:
    groups = [f"g{number % 20}", f"g{(number + 7) % 20}"]
    scope = {"tool_groups": groups, "actions": ["observe", "write"], "zones": ["internal"], "max_level": 3}
    return "task", {
        "id": f"task-{number:032x}", "agent": _agent(number), "owner": f"p{number % 50}", "purpose": "a bench",
        "state": "open", "parent": None, "depth": 0, "max_depth": 2, "expires_unix_ns": now + HOUR_NS,
        "calls": -1, "cost": -1, "bytes": -1, "scope": scope,
    }  # fmt: skip


class World:
    """A thousand agents, tools and destinations under the agents' vocabulary, and the calls that they make."""

    def __init__(self, agents: int, requests: int, seed: int) -> None:
        rng = Random(f"bench authority {seed}")
        self.agents = agents
        self.generation = Generation.from_bytes(
            compile_image(POLICIES, entities=json.dumps(self._entities(rng)), schema=vocabulary()).image, generation=1
        )
        self.calls = [self._call(rng) for _ in range(requests)]

    def _entities(self, rng: Random) -> list[dict[str, Any]]:
        def uid(type_: str, id_: str) -> dict[str, Any]:
            return {"__entity": {"type": type_, "id": id_}}

        rows = [_entity("Person", f"p{n}", {"active": True, "risk": 0}) for n in range(50)]
        rows += [_entity("Zone", "internal", {}), _entity("AgentClass", "worker", {})]
        rows += [_entity("ToolGroup", f"g{n}", {}) for n in range(20)]
        for number in range(self.agents):
            attrs = {"status": "active", "clearance": 3, "owner": uid("Person", f"p{number % 50}")}
            rows.append(_entity("Agent", _agent(number), attrs, ("AgentClass", "worker")))
        for number in range(1000):
            attrs = {"level": rng.randrange(4), "labels": [], "untrusted_output": False, "reversible": True}
            rows.append(
                _entity("Tool", f"files/x{number}", {**attrs, "pinned": True}, ("ToolGroup", f"g{number % 20}"))
            )
            host = {"max_level": rng.randrange(4)}
            rows.append(_entity("Destination", f"h{number}.internal", host, ("Zone", "internal")))
        return rows

    def _call(self, rng: Random) -> tuple[Any, ...]:
        agent = rng.randrange(CALLERS)
        tool = f"files/x{rng.randrange(50) * 20 + (agent if rng.random() < 0.8 else rng.randrange(20))}"
        dest = {"__entity": {"type": "Destination", "id": f"h{rng.randrange(1000)}.internal"}}
        level = rng.randrange(4)
        return agent, rng.choice(("read", "list", "write", "delete")), tool, dest, level

    def prepare(self, evaluator: Evaluator, constants: list[dict[str, Any]] | None = None) -> list[Prepared]:
        """The calls as a door leaves them; with `constants`, their live columns filled in beforehand."""
        made = []
        for number, (agent, action, tool, dest, level) in enumerate(self.calls):
            context: dict[str, Any] = {"dest": dest, "call": {"data_level": level}}
            if constants is not None:
                context["task"] = constants[number]
            uids = (("Agent", _agent(agent)), ("Action", action), ("Tool", tool))
            made.append(evaluator.prepare(*uids, encode_context(context), arena_bytes=ARENA_BYTES))
        return made

    def constants(self) -> list[dict[str, Any]]:
        """What live authority would say of each call's task, worked out here."""
        found = []
        for agent, action, tool, _, _ in self.calls:
            group = int(tool.removeprefix("files/x")) % 20
            found.append({
                "present": True, "state": "open", "covers_tool": group in (agent % 20, (agent + 7) % 20),
                "covers_action": action in ("read", "list", "write"), "covers_dest": True, "covers_data": True,
                "ttl_s": 3599, "max_level": 3,
                "owner": {"__entity": {"type": "Person", "id": f"p{agent % 50}"}},
            })  # fmt: skip
        return found


def make_live(tasks: int, revocations: int) -> Live:
    """Live state with so many open tasks, the callers' among them, and so many revocations that touch none of them."""
    live = Live()
    now = time.time_ns()
    for start in range(0, tasks, BATCH):
        live.apply([_task(number, now) for number in range(start, min(tasks, start + BATCH))], 1)
    kinds = ("agent", "class", "task", "tool", "server", "destination", "credential", "owner")
    for start in range(0, revocations, BATCH):
        rows = range(start, min(revocations, start + BATCH))
        live.apply([_revocation(kinds[n % len(kinds)], f"revoked-{n}") for n in rows], 2 + start)
    return live


def _revocation(kind: str, key: str) -> tuple[str, dict[str, Any]]:
    return "revoke", {"kind": kind, "key": key, "mode": "deny", "reason": "bench", "expires_unix_ns": 0}


def _evaluators(world: World, lives: Iterable[Live | None]) -> list[Evaluator]:
    made = []
    for live in lives:
        evaluator = Evaluator(world.generation)
        evaluator.put_authority(live)
        made.append(evaluator)
    return made


def compare(world: World, tasks: int, revocations: int, rounds: int, progress: Progress) -> tuple[Samples, str]:
    """Nanoseconds per decision of each side, and a hash of the answers, which all sides must share."""
    step = progress.add_task("tasks and revocations", total=4)
    lives: list[Live | None] = [None]
    for count, revoked in ((CALLERS, 0), (tasks, 0), (CALLERS, revocations)):
        lives.append(make_live(count, revoked))
        progress.advance(step)
    names = ("constants", "live", "tasks", "revocations")
    evaluators = dict(zip(names, _evaluators(world, lives), strict=True))
    constants = world.constants()
    prepared = {
        name: world.prepare(evaluator, constants if name == "constants" else None)
        for name, evaluator in evaluators.items()
    }
    answers = {name: evaluators[name].outcomes(prepared[name]) for name in names}
    for name in names:
        if answers[name] != answers["constants"]:
            raise click.ClickException(f"`{name}` answers otherwise than `constants`; the bench or authority is wrong")
    progress.advance(step)

    def side(name: str) -> Callable[[], int]:
        return lambda: len(evaluators[name].outcomes(prepared[name]))

    return interleaved({name: side(name) for name in names}, rounds=rounds), digest(list(answers["constants"]))


# ---------------------------------------------------------------- the report


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _results(samples: Samples, opens: Opens, history: History) -> dict[str, Any]:
    def durable(callers: int) -> float:
        pairs = zip(opens.rates["remit", callers], opens.rates["lmdb", callers], strict=True)
        return median(ours / raw for ours, raw in pairs)

    single, many = (median(opens.rates["remit", callers]) for callers in (1, 64))
    return {
        "columns_ratio": ratio(samples, "live", "constants"),
        "tasks_flatness": ratio(samples, "tasks", "live"),
        "revocations_flatness": ratio(samples, "revocations", "live"),
        "allows_after_ack": history.allows_after_ack,
        "revocations": history.revocations,
        "calls_checked": history.calls,
        "calls_allowed": history.allowed,
        "revoke_to_effect_ms": {
            name: _percentile(history.effect_ms, share) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
        "opens_per_s": {"1": single, "64": many},
        "opens_ratio": {"1": durable(1), "64": durable(64)},
        "opens_64_over_1": many / single,
    }


def _print(results: dict[str, Any]) -> None:
    table = Table(title="authority")
    for heading in ("what", "measured", "goal"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    effect, opens = results["revoke_to_effect_ms"], results["opens_per_s"]
    rows = [
        ("decision with live authority / columns as constants", f"{results['columns_ratio']:.2f}", "1.5"),
        ("many open tasks / ten", f"{results['tasks_flatness']:.2f}", "1.3"),
        ("many revocations / none", f"{results['revocations_flatness']:.2f}", "1.3"),
        (
            f"ALLOWs after the ack of {results['revocations']} revocations, {results['calls_checked']} calls",
            str(results["allows_after_ack"]),
            "0",
        ),
        ("revoke to effect, ms: p50 / p99", f"{effect['p50']:.2f} / {effect['p99']:.2f}", ""),
        ("durable task opens per s: 1 / 64 callers", f"{opens['1']:.0f} / {opens['64']:.0f}", ""),
        ("opens / raw LMDB commits, 1 caller", f"{results['opens_ratio']['1']:.2f}", "0.7"),
        ("opens / raw LMDB commits, 64 callers", f"{results['opens_ratio']['64']:.2f}", "0.7"),
        ("64 callers / one", f"{results['opens_64_over_1']:.1f}", "5"),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write results and raw samples.")
@click.option("--tasks", default=100_000, show_default=True, help="Open tasks of the large side.")
@click.option("--revocations", default=1_000_000, show_default=True, help="Revocations of the large side.")
@click.option("--revoked", default=1_000, show_default=True, help="Agents revoked under load.")
@click.option("--rounds", default=15, show_default=True, help="Rounds of the decisions.")
@click.option("--opens", default=2_000, show_default=True, help="Durable opens of each side and round.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where stores are made; on a disk.",
)
def authority(
    out: Path | None, tasks: int, revocations: int, revoked: int, rounds: int, opens: int, folder: Path | None
) -> None:
    """What does live authority cost a decision, and a change of it a disk?"""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="remit-bench-", dir=folder) as name, Progress(transient=True) as progress:
        samples, answers = compare(World(1000, 2000, 1), tasks, revocations, rounds, progress)
        step = progress.add_task("durable opens", total=3 * 4)
        made = durable_opens(Path(name), 3, opens, lambda: progress.advance(step))
        step = progress.add_task("revocations under load", total=revoked)
        history = revocation_history(Path(name), revoked, 2, lambda: progress.advance(step))
    results = _results(samples, made, history)
    _print(results)
    if history.allows_after_ack:
        raise click.ClickException(f"{history.allows_after_ack} calls were allowed after their revocation was in force")
    if out:
        raw = {"ns_per_decision": samples, "opens_per_s": {f"{a} {b}": v for (a, b), v in made.rates.items()}}
        raw["revoke_to_effect_ms"] = {"all": history.effect_ms}
        report = {
            "results": results,
            "samples": raw,
            "answers": answers,
            "seconds": time.perf_counter() - started,
            "machine": machine(),
        }
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")
