"""Family 1: policy sets over a small pool of uids, so that scopes collide; templates and links; merged corpus cases."""

from __future__ import annotations

import gzip
import json
import os
from functools import cache
from random import Random

from tests.differential.case import Case, Expr, Link, Policy, Record, ex
from tests.differential.expr import Generator, random_scope
from tests.differential.families.common import effects, over_world
from tests.differential.world import World, make_entities, make_world

RAISING = (
    "9223372036854775807 + 1 == 0",
    "-(-9223372036854775807 - 1) == 0",
    'decimal("9.99999").lessThan(decimal("1.0"))',
    'ip("no").isIpv4()',
    "principal.absent == 1",
    "context.absent",
    "true && (1 == 1 && 5 + true == 6)",
)
RAISING_TYPED = RAISING[:2]


def make(rng: Random, *, typed: bool, columns: bool) -> Case:
    corpus = os.environ.get("REMIT_CORPUS")
    if corpus and not typed and not columns and rng.random() < 0.2:
        return merged(rng, corpus)
    world = make_world(rng, typed=typed, columns=columns, types=rng.choice((2, 3, 4)), ids=rng.choice((2, 3, 5)))
    entities = make_entities(world)
    count = rng.choice((1, 2, 3, 5, 8, 12, 20, 40, 80, 200))
    kinds = effects(rng)
    policies = [random_policy(world, kinds, slots=rng.random() < 0.15) for _ in range(count)]
    links = make_links(world, policies)
    case = over_world("policy_sets", world, entities, tuple(policies))
    return case.with_(links=links)


def random_policy(world: World, kinds: list[str], *, slots: bool) -> Policy:
    """A policy with random scopes; about one in ten raises, half have no condition."""
    rng = world.rng
    scopes = {var: random_scope(world, var) for var in ("principal", "action", "resource")}
    if slots:
        for var in rng.choice((["principal"], ["resource"], ["principal", "resource"])):
            scopes[var] = random_scope(world, var, slot=True)
    roll = rng.random()
    clauses: tuple[tuple[str, Expr], ...] = ()
    if roll < 0.1:
        clauses = (("when", ex(rng.choice(RAISING_TYPED if world.typed else RAISING))),)
    elif roll < 0.4:
        generator = Generator(world, ill=0.0 if world.typed else 0.04, unsafe=not world.typed)
        clauses = tuple(
            (rng.choice(("when", "when", "unless")), generator.expr("bool", 2)) for _ in range(rng.choice((1, 1, 2)))
        )
    note = rng.choice(("", "", "", '@id("same") ', '@note("x") ', "@empty "))
    return Policy(effect=rng.choice(kinds), clauses=clauses, annotations=note, **scopes)


def make_links(world: World, policies: list[Policy]) -> tuple[Link, ...]:
    """Links of most templates; some templates stay without any."""
    rng, made = world.rng, []
    for at, policy in enumerate(policies):
        slots = [slot for slot in ("?principal", "?resource") if slot in policy.principal + policy.resource]
        if not slots:
            continue
        for n in range(rng.choice((0, 1, 1, 2, 5))):
            uids = {slot: world.uid(world.principal if slot == "?principal" else world.resource) for slot in slots}
            if rng.random() < 0.5:
                uids = {slot: world.uid() for slot in slots}
            made.append(Link(f"link-{at}-{n}", policy.key, uids))
    rng.shuffle(made)
    return tuple(made)


# ---------------------------------------------------------------- merged corpus cases


@cache
def corpus_records(path: str) -> list[Record]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = (json.loads(line) for line in lines)
        return [record for record in records if record["name"].startswith("corpus-tests/")]


def merged(rng: Random, path: str) -> Case:
    """Several corpus cases as one: policies shuffled, entities joined unless they contradict, requests of all."""
    records = rng.sample(corpus_records(path), rng.choice((2, 5, 20, 60)))
    entities: dict[str, object] = {}
    taken = []
    for record in records:
        own = {json.dumps(entity["uid"], sort_keys=True): entity for entity in record["entities"]}
        if all(uid not in entities or same(entities[uid], entity) for uid, entity in own.items()):
            entities |= own
            taken.append(record)
    policies = [Policy(raw=record["policies"]) for record in taken]
    rng.shuffle(policies)
    pool = [request for record in taken for request in record["requests"]]
    picked = rng.sample(pool, min(10, len(pool)))
    requests = tuple({k: r[k] for k in ("principal", "action", "resource", "context")} for r in picked)
    return Case("policy_sets", tuple(policies), tuple(entities.values()), requests)


def same(a: object, b: object) -> bool:
    """Equality of JSON values; Python's own takes `true` for 1."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
