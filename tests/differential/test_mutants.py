"""The differential test has the power to notice a wrong evaluator."""

from __future__ import annotations

import pytest

from tests.differential.mutants import MUTANTS, Mutant, caught, changed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_the_source_as_it_is(mutant: Mutant) -> None:
    """A mutant whose text has moved would be skipped in silence; `make test-differential` runs them all."""
    assert changed(mutant) != mutant.old


@pytest.mark.parametrize("name", ["and-right-unchecked", "scope-in-as-eq"])
def test_a_wrong_compiler_is_noticed(name: str) -> None:
    """A skipped type check and a scope `in` read as `==` are found within the seeded run."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    noticed, said = caught(mutant)
    assert noticed, said
