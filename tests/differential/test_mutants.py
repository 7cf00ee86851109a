"""The differential test has the power to notice a wrong evaluator."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.differential.mutants import MUTANTS, Mutant, caught, changed, report


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


def test_verdicts_are_readable_on_a_narrow_terminal() -> None:
    """At 80 columns names, verdicts and times stand whole; only the disagreement is cut."""
    table = report()
    for mutant in MUTANTS:
        table.add_row(mutant.name, "yes", "123", "disagreement " * 20)
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for mutant in MUTANTS:
        (line,) = [line for line in lines if f" {mutant.name} " in line]
        assert [cell.strip() for cell in line.split("│")[1:4]] == [mutant.name, "yes", "123"]
