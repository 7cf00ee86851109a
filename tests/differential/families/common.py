"""What the families share: policies from conditions."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from tests.differential.case import Case, Expr, Json, Policy
from tests.differential.world import World, make_request, schema_text

REQUESTS = 10


def effects(rng: Random) -> list[str]:
    """Effects to draw from. Sets of one effect show every policy in the reasons; mixed ones show the precedence."""
    return rng.choice(
        (["permit"], ["permit"], ["permit"], ["forbid"], ["permit", "forbid"], ["permit", "permit", "forbid"])
    )


def as_policies(rng: Random, conditions: Iterable[Expr]) -> tuple[Policy, ...]:
    """One policy over everything per condition."""
    pool = effects(rng)
    return tuple(
        Policy(effect=rng.choice(pool), clauses=((rng.choice(("when", "when", "when", "unless")), body),))
        for body in conditions
    )


def over_world(
    family: str, world: World, entities: tuple[Json, ...], policies: tuple[Policy, ...], *, wild: bool = False
) -> Case:
    """A case with requests of the world."""
    return Case(
        family=family,
        policies=policies,
        entities=entities,
        requests=tuple(make_request(world, wild=wild) for _ in range(REQUESTS)),
        schema=schema_text(world) if world.typed else "",
        typed=world.typed,
        columns=world.columns,
    )
