"""The ten families of generators and their weights."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.differential.case import Case
from tests.differential.families import (
    attributes,
    coding,
    extensions,
    hierarchy,
    lattice,
    policy_sets,
    scalars,
    state,
)

Family = Callable[..., Case]
# Weight in percent of batches.
FAMILIES: dict[str, tuple[float, Family]] = {
    "policy_sets": (35, policy_sets.make),
    "hierarchy": (15, hierarchy.make),
    "lattice": (15, lattice.make),
    "integers": (20 / 6, scalars.integers),
    "equality": (20 / 6, scalars.equality),
    "attributes": (20 / 6, attributes.make),
    "like": (20 / 6, scalars.like),
    "extensions": (15, extensions.make),
    "coding": (20 / 6, coding.make),
    "state": (20 / 6, state.make),
}


def make_case(seed: int, batch: int, only: str | None = None) -> Case:
    """The case of one batch: a function of seed, batch and family alone."""
    # Seeding by text goes through SHA-512, so the cases do not depend on the hash seed of the process.
    rng = Random(f"remit {seed} {batch} {only or ''}")
    name = only or rng.choices(list(FAMILIES), [weight for weight, _ in FAMILIES.values()])[0]
    typed, columns = rng.random() < 0.5, rng.random() < 0.25
    return FAMILIES[name][1](rng, typed=typed, columns=columns)
