"""Random chains of delegation in a live state: a child's call is allowed only where its parent's would be.

Calls are judged as any other: tasks, revocations of every kind and mode, owners and clocks decide, and no policy but a
permit. Budgets are unlimited, since a child's part of them is its parent's no more.
"""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.authority.scope import Scope, as_live
from sidecar.policy.compile import compile_image
from tests import fix_scopes
from tests.fix_live import BOOT, HOUR, NOW, SECOND, UNHURRIED_MS
from tests.fix_mapping import mapping_of

BATCH = 250
CALLS = 2  # about each chain
DEPTHS = (1, 1, 2, 2, 3, 4, 5, 7, 8)  # below the root; one more than 7 is no chain
PEOPLE = ("ann", "bob", "cyd", "dan")
CLASSES = {"clerk": "worker", "worker": "", "probe": ""}
AGENTS = {
    f"spiffe://{domain}/agents/{n}": (PEOPLE[n % 4], tuple(CLASSES)[n % 3])
    for domain in ("example.org", "partner.example")
    for n in range(6)
}
MODES = ("deny", "deny", "read_only", "step_up")
TARGETS = {
    "agent": tuple(AGENTS), "class": tuple(CLASSES), "tool": fix_scopes.TOOLS, "server": fix_scopes.SERVERS,
    "destination": fix_scopes.HOSTS, "owner": PEOPLE, "trust_domain": ("example.org", "partner.example"),
}  # fmt: skip
Change = tuple[str, dict[str, Any]]


class Hop(NamedTuple):
    task: str
    agent: str


class Checked(NamedTuple):
    """How many chains were asked about, and how many calls of a child were allowed."""

    chains: int
    allowed: int


def entities() -> str:
    def row(type_: str, id_: str, attrs: dict[str, Any], *parents: tuple[str, str]) -> dict[str, Any]:
        above = [{"type": kind, "id": name} for kind, name in parents]
        return {"uid": {"type": type_, "id": id_}, "attrs": attrs, "parents": above}

    rows = [row("Person", name, {"active": True}) for name in PEOPLE]
    rows += [row("AgentClass", name, {}, *([("AgentClass", up)] if up else [])) for name, up in CLASSES.items()]
    for agent, (owner, kind) in AGENTS.items():
        rows.append(row("Agent", agent, {"owner": {"__entity": {"type": "Person", "id": owner}}}, ("AgentClass", kind)))
    rows += [row("Server", name, {}) for name in fix_scopes.SERVERS]
    for tool, groups in fix_scopes.GROUPS.items():
        rows.append(row("Tool", tool, {}, ("Server", tool.split("/")[0]), *(("ToolGroup", one) for one in groups)))
    rows += [row("Action", name, {}, *(("Action", up) for up in ups)) for name, ups in fix_scopes.CLASSES.items()]
    rows += [row("Destination", name, {}, *(("Zone", one) for one in of)) for name, of in fix_scopes.ZONES.items()]
    return json.dumps(rows)


def check_chains(seed: int, chains: int) -> Checked:
    """AssertionError where a child's call is allowed and its parent's is not; the same seed gives the same chains."""
    image = compile_image('@id("all") permit (principal, action, resource);', entities=entities()).image
    generation = Generation.from_bytes(image, generation=1)
    total = Checked(0, 0)
    for start in range(0, chains, BATCH):
        pdp = Pdp(journal=None, budget_ms=UNHURRIED_MS)
        pdp.put_rules(generation, mapping_of({"trust_domains": ["example.org", "partner.example"]}))
        pdp.put_state(epoch=0, bundle_generation=1, not_ready="")
        done = _batch(pdp, random.Random(f"chains {seed} {start}"), min(BATCH, chains - start))
        total = Checked(total.chains + done.chains, total.allowed + done.allowed)
    return total


def _batch(pdp: Pdp, rng: random.Random, count: int) -> Checked:
    live = Live()
    live.put_clock(boot_ns=BOOT, unix_ns=NOW)
    chains: list[list[Hop]] = []
    changes: list[Change] = []
    for number in range(count):
        hops, made = _chain(rng, number)
        chains.append(hops)
        changes += made
    changes += _taken_away(rng, [hop.task for hops in chains for hop in hops])
    live.apply(changes, 1)
    live.put_clock(boot_ns=BOOT + SECOND, unix_ns=NOW + SECOND)
    pdp.put_authority(live)
    peers = {agent: VerifiedPeer(PeerKind.PEER_AGENT, agent, "x509-svid:01", bundle_generation=1) for agent in AGENTS}
    allowed = 0
    for hops in chains:
        for question in _questions(rng):
            answers = [_ask(pdp, peers[hop.agent], question, hop) for hop in hops]
            for (parent, up), (child, down) in itertools.pairwise(zip(answers, hops, strict=True)):
                assert parent or not child, (up, down, question)
            allowed += sum(answers[1:])
    return Checked(count, allowed)


def _chain(rng: random.Random, number: int) -> tuple[list[Hop], list[Change]]:
    """A root and what was delegated below it, one below the other; not every one as narrow as it should be."""
    hops: list[Hop] = []
    changes: list[Change] = []
    scope = _wide(rng)
    for depth in range(1 + rng.choice(DEPTHS)):
        hop = Hop(f"{number}-{depth}", rng.choice(tuple(AGENTS)))
        changes.append(("task", _task(rng, hop, hops[-1].task if hops else "", depth, scope)))
        hops.append(hop)
        if rng.random() < 0.4:
            scope = msgspec.structs.replace(fix_scopes.near(rng, scope), methods=None)
    if rng.random() < 0.03:
        # A parent that is not there.
        del changes[rng.randrange(len(changes))]
    rng.shuffle(changes)
    return hops, changes


def _task(rng: random.Random, hop: Hop, parent: str, depth: int, scope: Scope) -> dict[str, Any]:
    return {
        "id": hop.task, "agent": hop.agent, "owner": rng.choice(PEOPLE), "purpose": "p", "parent": parent,
        "state": "open" if rng.random() < 0.97 else rng.choice(("suspended", "completed", "revoked")),
        "depth": depth, "max_depth": 8, "expires_unix_ns": NOW + (HOUR if rng.random() < 0.98 else SECOND),
        "calls": -1, "cost": -1, "bytes": -1, "scope": as_live(scope),
    }  # fmt: skip


def _wide(rng: random.Random) -> Scope:
    """A scope that covers most calls, so that chains of several are allowed anything."""
    wide = {"any_tool": True, "any_action": True, "any_dest": True, "label_allow": None, "arg_rules": ()}
    kept = {name: value for name, value in wide.items() if rng.random() < 0.85}
    return msgspec.structs.replace(fix_scopes.scope(rng), **kept, methods=None, max_level=4)


def _taken_away(rng: random.Random, tasks: list[str]) -> list[Change]:
    """Revocations of some of everything, and disabled owners."""
    targets = [(kind, key) for kind, keys in TARGETS.items() for key in keys if rng.random() < 0.04]
    targets += [("task", id_) for id_ in tasks if rng.random() < 0.02]
    changes: list[Change] = [
        ("revoke", {"kind": kind, "key": key, "mode": rng.choice(MODES), "reason": "", "expires_unix_ns": 0})
        for kind, key in targets
    ]
    return changes + [("owner", {"id": name, "active": False}) for name in PEOPLE if rng.random() < 0.05]


def _questions(rng: random.Random) -> Iterator[authz_pb2.CheckRequest]:
    for _ in range(CALLS):
        call = fix_scopes.call(rng)
        question = authz_pb2.CheckRequest(
            action=call.tool if "/" in call.action else call.action,
            resource=authz_pb2.EntityUid(type="Tool", id=call.tool),
            destination=call.destination,
            data_level=call.level,
            data_labels=sorted(call.labels),
        )
        question.arguments.update(call.arguments)
        yield question


def _ask(pdp: Pdp, peer: VerifiedPeer, question: authz_pb2.CheckRequest, hop: Hop) -> bool:
    question.task = hop.task
    code, reply = pdp.check(question.SerializeToString(), peer)
    assert code == 0, reply
    return authz_pb2.CheckResponse.FromString(reply).outcome == authz_pb2.OUTCOME_ALLOW
