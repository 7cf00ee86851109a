"""What does it cost to change authority durably, and does every change hold from its acknowledgement on?

The peer of durable task opens is LMDB itself: one synchronous commit per caller and change, of as many bytes. The
history of a thousand revocations under full load is checked call by call: none that started after the acknowledgement
of its agent's revocation may have been allowed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import lmdb

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.journal import Journal
from fastpath.mapping import Mapping
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.authority.draft import Caller, Limits
from sidecar.authority.revocations import Revoke, revoke
from sidecar.authority.rows import Kind
from sidecar.authority.scope import Scope
from sidecar.authority.store import AuthorityStore
from sidecar.authority.tasks import OpenTask, open_task
from sidecar.config_mapping import MappingConfig
from sidecar.policy.compile import compile_image

TRUST_DOMAIN = "corp.example"
MAP_BYTES = 1 << 30
ROW_BYTES = 600  # what one opened task writes
PERSON = Caller("person", "ann")
SCOPE = Scope(any_tool=True, any_action=True, any_dest=True, max_level=4)
POLICY = '@id("base") permit (principal, action, resource) when { context.task.present };'
BUNDLES = 1


def _agent(number: int) -> str:
    return f"spiffe://{TRUST_DOMAIN}/agent/{number}"


def _nothing(*_: object) -> None:
    """Events go nowhere here: the journal of decisions has its own bench."""


def open_store(folder: Path, live: Live) -> AuthorityStore:
    store = AuthorityStore(folder, live, limits=Limits(), map_bytes_max=MAP_BYTES, note=_nothing)
    store.open()
    return store


def _open(store: AuthorityStore, number: int) -> None:
    asked = OpenTask(agent=_agent(number), owner="ann", purpose="a bench", scope=SCOPE, ttl_s=3600)
    store.call(lambda draft: open_task(draft, asked, PERSON))


# ---------------------------------------------------------------- durable opens


def _together(callers: int, each: int, make: Callable[[int], object]) -> float:
    """Changes per second of `callers` threads that make `each` changes one after the other."""
    gate = threading.Barrier(callers + 1)

    def run(caller: int) -> None:
        gate.wait()
        for number in range(each):
            make(caller * each + number)

    threads = [threading.Thread(target=run, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return callers * each / (time.perf_counter() - started)


def _raw(folder: Path) -> tuple[Callable[[int], object], Callable[[], object]]:
    """One synchronous commit per change, with LMDB's defaults: what a store without group commit does."""
    env = lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=1)

    def make(number: int) -> None:
        with env.begin(write=True) as txn:
            txn.put(number.to_bytes(8, "big"), bytes(ROW_BYTES))

    return make, env.close


class Opens(NamedTuple):
    """Changes per second, one sample per round, by (side, callers)."""

    rates: dict[tuple[str, int], list[float]]


def durable_opens(folder: Path, rounds: int, each: int, tell: Callable[[], object]) -> Opens:
    """Task opens and raw commits, by one caller and by 64, taking turns."""
    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        store = open_store(folder / f"store-{number}", Live())
        make, close = _raw(folder / f"raw-{number}")
        for callers in (1, 64):
            share = max(1, each // callers) if callers > 1 else max(1, each // 8)
            sides: dict[str, Callable[[int], object]] = {"remit": lambda n: _open(store, n), "lmdb": make}  # noqa: B023
            for side in sorted(sides, reverse=bool(number % 2)):
                rates.setdefault((side, callers), []).append(_together(callers, share, sides[side]))
                tell()
        store.close()
        close()
    return Opens(rates)


# ---------------------------------------------------------------- the history of revocations


class Seen(NamedTuple):
    """One call: when it started, whose it was, whether it was allowed."""

    started_ns: int
    agent: int
    allowed: bool


class History(NamedTuple):
    calls: int
    revocations: int
    allows_after_ack: int
    allowed: int
    effect_ms: list[float]
    """From the request of each revocation to its acknowledgement, when it is in force."""


def _entities(agents: int) -> str:
    owner = {"__entity": {"type": "Person", "id": "ann"}}
    rows: list[dict[str, Any]] = [{"uid": {"type": "Person", "id": "ann"}, "attrs": {"active": True}, "parents": []}]
    rows += [
        {"uid": {"type": "Agent", "id": _agent(number)}, "attrs": {"owner": owner}, "parents": []}
        for number in range(agents)
    ]
    return json.dumps(rows)


def _pdp(agents: int, live: Live, journal: Journal) -> Pdp:
    pdp = Pdp(journal=journal)
    image = compile_image(POLICY, entities=_entities(agents)).image
    mapping = Mapping(MappingConfig(trust_domains=[TRUST_DOMAIN]))
    pdp.put_rules(Generation.from_bytes(image, generation=1), mapping)
    pdp.put_state(epoch=0, bundle_generation=BUNDLES, not_ready="")
    pdp.put_authority(live)
    return pdp


class _Load(threading.Thread):
    """Asks for agents that are about to be revoked and that were, as fast as it can; at the end once for each."""

    def __init__(self, pdp: Pdp, agents: int, seed: int, at: list[int]) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self.under_way = threading.Event()
        self._pdp, self._agents, self._at = pdp, agents, at
        self._random = Random(f"bench history {seed}")
        self._question = authz_pb2.CheckRequest(
            action="read", resource=authz_pb2.EntityUid(type="Tool", id="files/open")
        ).SerializeToString()
        self._peers = [
            VerifiedPeer(PeerKind.PEER_AGENT, _agent(n), "x509-svid:01", bundle_generation=BUNDLES)
            for n in range(agents)
        ]

    def run(self) -> None:
        while self._at[0] < self._agents:
            self._ask(min(self._agents - 1, max(0, self._at[0] + self._random.randrange(-4, 3))))
            self.under_way.set()
        for agent in range(self._agents):
            self._ask(agent)

    def _ask(self, agent: int) -> None:
        started = time.monotonic_ns()
        code, reply = self._pdp.check(self._question, self._peers[agent])
        allowed = code == 0 and authz_pb2.CheckResponse.FromString(reply).outcome == authz_pb2.OUTCOME_ALLOW
        self.seen.append(Seen(started, agent, allowed))


def revocation_history(folder: Path, agents: int, callers: int, tell: Callable[[], object]) -> History:
    """Revoke one agent after the other while `callers` threads ask for them, and hold every answer against it."""
    live = Live()
    store = open_store(folder / "history", live)
    journal = Journal(str(folder / "journal"))
    pdp = _pdp(agents, live, journal)
    for number in range(agents):
        _open(store, number)
    at = [0]
    loads = [_Load(pdp, agents, seed, at) for seed in range(callers)]
    for load in loads:
        load.start()
    for load in loads:
        load.under_way.wait()
    acknowledged: list[int] = []
    effect: list[float] = []
    for number in range(agents):
        started = time.monotonic_ns()
        asked = Revoke(kind=Kind.AGENT, key=_agent(number), reason="bench")
        store.call(lambda draft: revoke(draft, asked, PERSON))  # noqa: B023
        acknowledged.append(time.monotonic_ns())
        effect.append((acknowledged[-1] - started) / 1e6)
        at[0] = number + 1
        tell()
    for load in loads:
        load.join()
    store.close()
    journal.close()
    seen = [call for load in loads for call in load.seen]
    late = sum(call.allowed and call.started_ns > acknowledged[call.agent] for call in seen)
    return History(len(seen), agents, late, sum(call.allowed for call in seen), effect)
