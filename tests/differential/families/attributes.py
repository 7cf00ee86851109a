"""Family 6: `has`, attribute access and tags on entities and records that may not be there."""

from __future__ import annotations

from random import Random

from tests.differential.case import Case, Expr, ex
from tests.differential.expr import Generator, attribute, has
from tests.differential.families.common import as_policies, over_world
from tests.differential.text import is_plain, quoted, uid_text
from tests.differential.world import NAMES, STRINGS, World, literal, make_entities, make_world, random_type, value

STEPS = tuple(name for name in NAMES if is_plain(name))


def make(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=typed, columns=columns, types=3, ids=3)
    if not typed:
        for name in world.uids:
            world.tags.setdefault(name, random_type(world, 1))
    if typed:
        generator = Generator(world)
        conditions = [_typed(world, generator) for _ in range(25)]
    else:
        conditions = [_access(world) for _ in range(40)]
    return over_world("attributes", world, make_entities(world), as_policies(rng, conditions))


def _typed(world: World, generator: Generator) -> Expr:
    """Guarded access: what the validator lets pass."""
    rng = world.rng
    tagged = sorted(set(world.tags) & {world.principal, world.resource})
    if tagged and rng.random() < 0.4:
        name = rng.choice(tagged)
        base, key, type_ = ex("principal" if name == world.principal else "resource"), _key(rng), world.tags[name]
        return ex("(", base, f".hasTag({key}) && ", base, f".getTag({key}) == {literal(value(world, type_))})")
    return generator.expr("bool", 3)


def _key(rng: Random) -> str:
    return quoted(rng.choice(STRINGS), rng)


def _base(world: World, depth: int = 0) -> Expr:
    rng = world.rng
    roll = rng.random()
    if roll < 0.6:
        base = ex(rng.choice(("principal", "resource", "context", "principal", "resource", "context", "action")))
    elif roll < 0.8:
        base = ex(uid_text(world.uid()))
    elif roll < 0.9:
        base = ex(literal(value(world, world.context if not world.columns else ("record", ()))))
    else:
        base = ex(rng.choice(("1", '"a"', "[]", "true", 'ip("::1")', "{}")))
    for _ in range(rng.choice((0, 0, 1, 2)) if depth == 0 else 0):
        base = attribute(base, rng.choice(NAMES))
    return base


def _access(world: World) -> Expr:
    rng = world.rng
    base, name = _base(world), rng.choice(NAMES)
    form = rng.randrange(8)
    if form == 0:
        return has(base, name)
    if form == 1:
        return ex("(", base, " has ", ".".join(rng.choice(STEPS) for _ in range(rng.randrange(2, 4))), ")")
    if form == 2:
        return ex("(", has(base, name), " && ", attribute(base, name), " == ", attribute(base, name), ")")
    if form == 3:
        return ex("(", attribute(base, name), " == ", ex(literal(value(world, random_type(world, 1)))), ")")
    if form == 4:
        return attribute(base, name)
    key = _computed(world)
    if form == 5:
        return ex(base, ".hasTag(", key, ")")
    if form == 6:
        return ex("(", base, ".getTag(", key, ") == ", ex(literal(value(world, random_type(world, 1)))), ")")
    return ex("(", base, ".hasTag(", key, ") && ", base, ".getTag(", key, ") == ", base, ".getTag(", key, "))")


def _computed(world: World) -> Expr:
    rng = world.rng
    roll = rng.random()
    if roll < 0.6:
        return ex(_key(rng))
    if roll < 0.8:
        return ex("(if ", has(ex("context"), "s"), f" then {_key(rng)} else {_key(rng)})")
    if roll < 0.9:
        return attribute(ex("context"), rng.choice(NAMES))
    return ex(rng.choice(("1", "principal", '["a"]')))
