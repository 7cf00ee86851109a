"""Programs before they are linked: what the processes that parse policies hand to the one that writes the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.errors import PolicyError
from sidecar.policy.cells import Value
from sidecar.policy.code import Constants
from sidecar.policy.literals import fill_value, is_marked
from sidecar.policy.program import Program, compile_conditions


@dataclass(slots=True)
class Draft:
    """A program whose constants are numbered by themselves, in the order of their first use."""

    program: Program
    values: Sequence[Value]
    refusal: str = ""
    """Why the conditions cannot be compiled; then there is no program."""
    marked: bool = False
    """Whether some constant is a lifted literal."""
    last: tuple[Constants, Program] | None = None
    """Where nothing is lifted: the program as it was linked before."""

    def linked(self, literals: tuple[str, ...], constants: Constants) -> Program:
        """The program of a policy with these literals. PolicyError, without the policy's name, when there is none."""
        if self.refusal:
            raise PolicyError(self.refusal)
        if self.last is not None and self.last[0] is constants:
            return self.last[1]
        rows = [constants.index(fill_value(value, literals) if self.marked else value) for value in self.values]
        program = self.program.linked(rows)
        if not self.marked:
            self.last = (constants, program)
        return program

    def packed(self) -> tuple[Any, ...]:
        """The draft as plain tuples, for another process."""
        one = self.program
        return (one.words, one.stack, one.columns, tuple(one.extras), one.uses), tuple(self.values), self.refusal

    @classmethod
    def unpacked(cls, packed: tuple[Any, ...]) -> "Draft":
        (words, stack, columns, extras, uses), values, refusal = packed
        program = Program(words, stack, columns, frozenset(extras), uses)
        return cls(program, values, refusal, any(map(is_marked, values)))


def draft_of(conditions: list[dict[str, Any]], *, columns: bool) -> Draft:
    """The draft of a shape's `conditions` (EST)."""
    own = Constants()
    try:
        program = compile_conditions(conditions, own, columns=columns)
    except PolicyError as error:
        return Draft(Program((), 0, 0, frozenset()), (), str(error))
    return Draft(program, own.values, marked=any(map(is_marked, own.values)))
