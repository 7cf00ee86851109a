"""Family 10: one compiled table under many requests from threads, and its successor compiled meanwhile."""

from __future__ import annotations

from random import Random

from tests.differential.case import Case, Json
from tests.differential.families import policy_sets
from tests.differential.world import NAMES, make_world, random_type, value


def make(rng: Random, *, typed: bool, columns: bool) -> Case:
    """A policy set and what it is after an update of some policies and entities; each has its own requests."""
    before = policy_sets.make(rng, typed=typed, columns=columns)
    kept = [policy for policy in before.policies if rng.random() < 0.8]
    rng.shuffle(kept)
    entities = tuple(_updated(rng, entity) for entity in before.entities if rng.random() < 0.9)
    keys = {policy.key for policy in kept}
    links = tuple(link for link in before.links if link.template in keys and rng.random() < 0.8)
    # The successor answers the same requests: a stale cache would answer them from the old table.
    after = before.with_(
        family="state", policies=tuple(kept), entities=entities if not typed else before.entities, links=links
    )
    return before.with_(family="state", after=after)


def _updated(rng: Random, entity: Json) -> Json:
    """The entity with an attribute more, or a parent less."""
    roll = rng.random()
    if roll < 0.2:
        world = make_world(rng, typed=False, types=2)
        return dict(entity, attrs=entity["attrs"] | {rng.choice(NAMES): value(world, random_type(world, 1))})
    if roll < 0.4:
        return dict(entity, parents=entity["parents"][1:])
    return entity
