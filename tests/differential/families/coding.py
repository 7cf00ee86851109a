"""Family 9: how values are written in JSON: escapes, look-alikes of escapes, limits of integers, depth."""

from __future__ import annotations

from random import Random

from tests.differential.case import Case, Expr, Json, ex
from tests.differential.families.common import REQUESTS, as_policies
from tests.differential.text import quoted, uid_text
from tests.differential.world import IDS, TYPES, World, literal, make_world, random_type, value

ODD_KEYS = (
    "type",
    "id",
    "fn",
    "arg",
    "args",
    "",
    "a",
    "é",
    "\0",
    '"',
    "__x",
    "e\u0301",
    "uid",
    "principal",
    "a.b",
    "a b",
)
# Escapes and their limits, on which both sides must agree.
ESCAPES: tuple[Json, ...] = (
    {"__entity": {"type": "not a type", "id": "a"}}, {"__entity": {"type": "", "id": "a"}},
    {"__entity": {"type": "NS::User", "id": ""}}, {"__entity": {"type": "NS::", "id": ""}},
    {"__entity": {"type": "in", "id": ""}}, {"__entity": {"type": " User", "id": ""}},
    {"__entity": {"type": "NS::__cedar", "id": ""}}, {"__extn": {"fn": "nothing", "arg": "1"}},
    {"__extn": {"fn": "ip", "arg": 1}}, {"__extn": {"fn": "decimal", "arg": "1.00000"}},
    {"__extn": {"fn": "decimal", "args": ["1.0"]}}, {"__extn": {"fn": "isIpv4", "arg": "1.2.3.4"}},
    {"__extn": {"fn": "offset", "args": [{"__extn": {"fn": "datetime", "arg": "1970-01-01"}}, "1h"]}},
    {"__expr": "1 + 1"}, {"type": "User", "id": "a"}, {"type": "User"}, {"fn": "ip", "arg": "1.2.3.4"}, [None],
    [1.0, 1],
    2**63, -(2**63) - 1, 2**64, 2**63 - 1, -(2**63), None, 1.5, 1.0,
)  # fmt: skip
# What cedarpy takes for an ordinary record, or computes, and we refuse: a value that looks like an escape and is none
# is ambiguous, and ambiguity denies.
STRICTER: tuple[Json, ...] = (
    {"__entity": {"type": "User", "id": "a"}, "more": 1}, {"__entity": {"type": "User"}}, {"__entity": "User"},
    {"__entity": {"type": "User", "id": "a", "more": 1}}, {"__entity": {"type": "User", "id": 1}},
    {"__extn": {"fn": "ip", "arg": "1.2.3.4"}, "more": 1}, {"__extn": {"fn": "ip"}},
    {"__extn": {"fn": "ip", "arg": "1.2.3.4", "more": 1}},
    {"__extn": {"fn": "lessThan", "args": [{"__extn": {"fn": "decimal", "arg": "1.0"}}] * 2}},
    {"__extn": {"fn": "toMilliseconds", "args": [{"__extn": {"fn": "duration", "arg": "1h"}}]}},
    {"__extn": {"fn": "toDate", "args": [{"__extn": {"fn": "datetime", "arg": "2024-02-29T11:00:00Z"}}]}},
)  # fmt: skip


def make(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=False, columns=columns, types=3, ids=4)
    world.typed = typed
    entities = [_entity(rng, uid) for uid in [{"type": t, "id": i} for t in sorted(world.uids) for i in world.uids[t]]]
    if rng.random() < 0.1:
        entities = _spoiled(rng, entities)
    values = [_value(rng, world) for _ in range(8)]
    conditions = [_condition(rng, values) for _ in range(25)]
    requests = tuple(
        {
            "principal": _uid(rng),
            "action": world.action(),
            "resource": _uid(rng),
            "context": _context(rng, values, columns),
        }
        for _ in range(REQUESTS)
    )
    # The values follow no schema, so the schema is only there to be carried along.
    return Case("coding", as_policies(rng, conditions), tuple(entities), requests, columns=columns)


def _uid(rng: Random) -> Json:
    return {"type": rng.choice(TYPES), "id": rng.choice(IDS)}


def _value(rng: Random, world: World) -> Json:
    roll = rng.random()
    if roll < 0.1:
        return deep(rng, rng.choice((5, 20, 40)))
    if roll < 0.4:
        return {key: rng.choice((1, "a", True, [], {})) for key in rng.sample(ODD_KEYS, rng.randrange(4))}
    return value(world, random_type(world, 2))


def deep(rng: Random, depth: int) -> Json:
    """A record or set nested `depth` times."""
    made: Json = 1
    for _ in range(depth):
        made = {"a": made} if rng.random() < 0.5 else [made]
    return made


def _entity(rng: Random, uid: Json) -> Json:
    attrs = {key: rng.choice((1, "a", True)) for key in rng.sample(ODD_KEYS, rng.randrange(4))}
    escaped = {"__entity": uid} if rng.random() < 0.3 else uid
    return {"uid": escaped, "attrs": attrs, "parents": []}


def _spoiled(rng: Random, entities: list[Json]) -> list[Json]:
    """A store that may be refused: an odd value, a missing field, the same uid twice."""
    victim = dict(entities[0])
    form = rng.randrange(7)
    if form < 3:
        victim["attrs"] = {"a": rng.choice(ESCAPES)}
    elif form == 3:
        return [*entities, dict(victim, attrs={"other": 1})]
    elif form == 4:
        return [*entities, victim]
    elif form == 5:
        group = {"type": "Group", "id": "g"}
        victim["parents"] = [rng.choice(({"__entity": group}, {"type": "Group"}, "Group", {"type": "1x", "id": "g"}))]
    else:
        victim["tags"] = {"t": rng.choice(ESCAPES)}
    return [victim, *entities[1:]]


def _context(rng: Random, values: list[Json], columns: bool) -> Json:
    made = {name: rng.choice(values) for name in ("x", "y")}
    roll = rng.random()
    if roll < 0.25:
        made["z"] = rng.choice(ESCAPES)
    elif roll < 0.35:
        made[rng.choice(ODD_KEYS)] = rng.choice(values)
    elif roll < 0.4 and not columns:
        return rng.choice(ESCAPES[-3:])
    return made


def _condition(rng: Random, values: list[Json]) -> Expr:
    form = rng.randrange(5)
    name = rng.choice(("x", "y", "z"))
    if form == 0:
        return ex(f"(context.{name} == ", ex(literal(rng.choice(values), rng)), ")")
    if form == 1:
        return ex(f"(context has {quoted(rng.choice(ODD_KEYS), rng)})")
    if form == 2:
        return ex(
            "(", ex(rng.choice(("principal", "context.x", "resource"))), f" has {quoted(rng.choice(ODD_KEYS), rng)})"
        )
    if form == 3:
        uid = {"type": rng.choice(TYPES), "id": rng.choice(IDS)}
        return ex(f"({rng.choice(('principal', 'resource', 'context.z'))} == {uid_text(uid)})")
    return ex(f"(context.{name} == context.{rng.choice(('x', 'y', 'z'))})")
