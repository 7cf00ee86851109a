"""All entities of an image, a few numbers each: what a million of them cost while the image is compiled."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TypeAlias

from fastpath.names import Names
from sidecar.errors import PolicyError
from sidecar.policy.cells import EMPTY_RECORD
from sidecar.policy.entities import Chunk, packed, uid_of_key
from sidecar.policy.hierarchy import check_parents, title

NONE32 = 0xFFFFFFFF
Closures: TypeAlias = "tuple[array[int], array[int], array[int]]"
"""All ancestors of each uid that is a parent: its row by uid (or NONE32), where a row begins, and ranks."""


class EntityTable:
    """Entities in the order in which they came. Uids and values are numbers of Names."""

    def __init__(self, uids: Names, name: str = "entities") -> None:
        """`name` stands before errors. Value 0 is the empty record."""
        self.uids = uids
        self.name = name
        self.values = Names()
        self.values.add(packed(EMPTY_RECORD))
        self.rows = array("I")
        """Row of each uid, NONE32 for what is no entity; as long as is needed for the entities."""
        self.of = array("I")
        self.attrs = array("I")
        self.tags = array("I")
        self.starts = array("I", [0])
        """Where the parents of a row begin; one more at the end."""
        self.parents = array("I")

    def __len__(self) -> int:
        return len(self.of)

    def add(self, chunk: Chunk) -> None:
        """Add a chunk; PolicyError for an entity that is there already with other content."""
        numbers = self.uids.add_all(chunk.uids)
        self.uids.add_all(chunk.named)
        parents = self.uids.add_all(chunk.parents)
        attrs, tags = self.values.add_all(chunk.attrs), self.values.add_all(chunk.tags)
        self.widen()
        if len(set(numbers)) == len(numbers) and all(self.rows[number] == NONE32 for number in numbers):
            self._append(numbers, attrs, tags, chunk.counts, parents)
            return
        at = 0
        for number, attr, tag, count in zip(numbers, attrs, tags, chunk.counts, strict=True):
            own = parents[at : at + count]
            at += count
            if self.rows[number] == NONE32:
                self._append(array("I", [number]), array("I", [attr]), array("I", [tag]), [count], own)
            elif not self._is(self.rows[number], attr, tag, own):
                raise PolicyError(f"{self.name}: duplicate entity entry `{self.title(number)}`")

    def widen(self) -> None:
        """Let `rows` know all uids that there are."""
        self.rows.extend(repeat(NONE32, len(self.uids) - len(self.rows)))

    def _append(
        self, numbers: array[int], attrs: array[int], tags: array[int], counts: Sequence[int], parents: array[int]
    ) -> None:
        row = len(self.of)
        for number in numbers:
            self.rows[number] = row
            row += 1
        self.of += numbers
        self.attrs += attrs
        self.tags += tags
        end = self.starts[-1]
        for count in counts:
            end += count
            self.starts.append(end)
        self.parents += parents

    def _is(self, row: int, attrs: int, tags: int, parents: array[int]) -> bool:
        return self.attrs[row] == attrs and self.tags[row] == tags and set(self.above(row)) == set(parents)

    def above(self, row: int) -> array[int]:
        """The uids of a row's own parents."""
        return self.parents[self.starts[row] : self.starts[row + 1]]

    def title(self, number: int) -> str:
        return title(uid_of_key(self.uids[number]))

    # ------------------------------------------------------------ what parents make

    def _inner(self) -> dict[int, array[int]]:
        """The parents of each entity that is a parent itself, in the order of the document."""
        named = set(self.parents)
        return {number: self.above(row) for row, number in enumerate(self.of) if number in named}

    def check(self, parents_max: int) -> None:
        """Refuse cycles and chains of more than `parents_max` parents; PolicyError names the entities."""
        self.widen()
        if not self.parents:
            return
        try:
            # Whoever is nobody's parent closes no cycle, and is one longer than the longest above it.
            depths = check_parents(self._inner(), parents_max, self.title)
            if max(depths.values(), default=1) < parents_max:
                return
            for row, number in enumerate(self.of):
                above = () if number in depths else self.above(row)
                if max((depths.get(one, 1) for one in above), default=0) >= parents_max:
                    raise PolicyError(f"`{self.title(number)}` has a chain of more than {parents_max} parents")
        except PolicyError as error:
            raise PolicyError(f"{self.name}: {error}") from None

    def closures(self, ranks: array[int]) -> Closures:
        """The closures of all parents, given the rank of each uid. `check` must have passed."""
        inner = {number: above for number, above in self._inner().items() if above}
        closed: dict[int, frozenset[int]] = {}
        for number in _parents_first(inner):
            above = inner[number]
            closed[number] = frozenset(above).union(*(closed[one] for one in above if one in closed))
        rows = array("I", repeat(NONE32, len(self.uids)))
        starts, members = array("I"), array("I")
        for number in sorted(set(self.parents), key=ranks.__getitem__):
            rows[number] = len(starts)
            starts.append(len(members))
            members.extend(sorted(ranks[one] for one in closed.get(number, ())))
        starts.append(len(members))
        return rows, starts, members


def _parents_first(inner: dict[int, array[int]]) -> Iterator[int]:
    """The keys, each behind those of its parents that are keys. They form no cycle."""
    done: set[int] = set()
    for start in inner:
        path = [start]
        while path:
            waiting = [one for one in inner[path[-1]] if one in inner and one not in done]
            if waiting and path[-1] not in done:
                path += waiting
                continue
            number = path.pop()
            if number not in done:
                done.add(number)
                yield number
