"""Family 2: entity graphs with diamonds, gaps and absent ends; `in` in scopes and conditions."""

from __future__ import annotations

from random import Random

from tests.differential.case import Case, Expr, Json, Policy, ex
from tests.differential.expr import random_scope
from tests.differential.families.common import REQUESTS, effects
from tests.differential.text import uid_text
from tests.differential.world import World, make_world, schema_text, value

NON_ENTITIES = ("1", '"a"', "true", "{}", "[]", 'ip("1.2.3.4")')


def make(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=typed, columns=columns, types=rng.choice((2, 3, 5)), ids=5)
    for at, name in enumerate(sorted(world.uids)):
        # A type may be above any type named after it, itself included.
        world.member_of[name] = tuple(sorted(world.uids)[: at + 1])
        world.attributes[name] = ()
    world.tags.clear()
    levels = _levels(world, rng.randrange(7))
    entities = _entities(world, levels)
    pool = [uid for level in levels for uid in level]
    kinds = effects(rng)
    policies = tuple(_policy(world, pool, kinds) for _ in range(rng.choice((5, 15, 30))))
    actions = [{"type": world.action_type, "id": name} for name in [*world.actions, *world.groups]]
    requests = tuple(
        {
            "principal": _end(rng, pool, world.principal),
            "action": rng.choice(actions[: len(world.actions)] if typed else actions),
            "resource": _end(rng, pool, world.resource),
            "context": value(world, world.context),
        }
        for _ in range(REQUESTS)
    )
    if rng.random() < 0.5:
        present = [entity["uid"] for entity in entities]
        requests = tuple(_below(rng, request, pool, present) for request in requests)
    schema = schema_text(world) if typed else ""
    return Case("hierarchy", policies, tuple(entities), requests, schema=schema, typed=typed, columns=columns)


def _levels(world: World, depth: int) -> list[list[Json]]:
    rng = world.rng
    return [[world.uid() for _ in range(rng.randrange(1, 4))] for _ in range(depth + 1)]


def _entities(world: World, levels: list[list[Json]]) -> list[Json]:
    """Entities whose parents stand in a later level; some levels keep only their names."""
    rng = world.rng
    rank = {uid_text(uid): at for at, level in enumerate(levels) for uid in level}
    made: dict[str, Json] = {}
    for at, level in enumerate(levels):
        above = [uid for later in levels[at + 1 :] for uid in later if rank[uid_text(uid)] > at]
        for uid in level:
            if rank[uid_text(uid)] != at or rng.random() < 0.15:
                continue
            allowed = [p for p in above if not world.typed or p["type"] in world.member_of[uid["type"]]]
            parents = rng.sample(allowed, min(len(allowed), rng.randrange(4)))
            made[uid_text(uid)] = {"uid": uid, "attrs": {}, "parents": parents}
    if made and not world.typed and rng.random() < 0.06:
        # A cycle, or a self-parent: both sides must refuse, or both must live with it.
        first, second = rng.choice(sorted(made)), rng.choice(sorted(made))
        made[first]["parents"].append(made[second]["uid"])
        made[second]["parents"].append(made[first]["uid"])
    entities = list(made.values())
    for name in [*world.actions, *world.groups]:
        parents = [{"type": world.action_type, "id": parent} for parent in world.action_parents.get(name, [])]
        if world.typed or rng.random() < 0.9:
            entities.append({"uid": {"type": world.action_type, "id": name}, "attrs": {}, "parents": parents})
    rng.shuffle(entities)
    return entities


def _end(rng: Random, pool: list[Json], type_: str) -> Json:
    own = [uid for uid in pool if uid["type"] == type_]
    return rng.choice(own) if own and rng.random() < 0.75 else {"type": type_, "id": "stranger"}


def _below(rng: Random, request: Json, pool: list[Json], present: list[Json]) -> Json:
    """The request with a parent for its resource, which counts when the store does not have the resource.

    Not for a resource that others are below: cedarpy would put them below the parent as well.
    """
    uid = request["resource"]
    if uid == request["principal"] or (uid["id"] != "stranger" and uid not in present) or rng.random() < 0.3:
        return request
    return request | {"resourceParent": rng.choice((*pool, {"type": "Group", "id": "unheard"}))}


def _policy(world: World, pool: list[Json], kinds: list[str]) -> Policy:
    rng = world.rng
    principal = rng.choice(("principal", "principal", f"principal in {_root(world, pool, world.principal)}"))
    resource = rng.choice(("resource", "resource", f"resource in {_root(world, pool, world.resource)}"))
    if rng.random() < 0.2:
        name = world.principal if world.typed else rng.choice(pool)["type"]
        principal = f"principal is {name} in {_root(world, pool, name)}"
    action = random_scope(world, "action")
    clauses = () if rng.random() < 0.3 else (("when", _condition(world, pool)),)
    return Policy(rng.choice(kinds), principal, action, resource, clauses)


def _root(world: World, pool: list[Json], name: str) -> str:
    """A uid that an entity of type `name` may be in; of any type in ill-typed cases."""
    fitting = [uid for uid in pool if uid["type"] in world.above(name)]
    return uid_text(world.rng.choice(fitting if world.typed and fitting else pool))


def _condition(world: World, pool: list[Json]) -> Expr:
    rng = world.rng
    left = ex(rng.choice(("principal", "resource", "action", uid_text(rng.choice(pool)))))
    form = rng.randrange(4)
    if form == 0:
        return ex(left, " in ", ex(rng.choice(("principal", "resource", uid_text(rng.choice(pool))))))
    if form == 1:
        return ex(left, f" is {rng.choice(pool)['type']} in ", ex(uid_text(rng.choice(pool))))
    # The validator wants sets of one entity type.
    name = rng.choice(pool)["type"]
    fitting = [uid for uid in pool if uid["type"] == name] if world.typed else pool
    members = [uid_text(rng.choice(fitting)) for _ in range(rng.choice((0, 1, 2, 3) if not world.typed else (1, 2, 3)))]
    if members and rng.random() < 0.3:
        members.append(members[0])
    if not world.typed and rng.random() < 0.25:
        members.insert(rng.randrange(len(members) + 1), rng.choice(NON_ENTITIES))
    right = ex("[" + ", ".join(members) + "]")
    if not world.typed and rng.random() < 0.05:
        right = ex(rng.choice(NON_ENTITIES))
    return ex(left, " in ", right)
