"""Byte strings that a compiler meets millions of times: each is kept once, and numbered in the order of its arrival."""

from array import array
from collections.abc import Iterable

from typing_extensions import disjoint_base

@disjoint_base
class Names:
    """Byte strings without duplicates."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> bytes:
        """The string of a number; IndexError when there is none."""

    def add(self, raw: bytes) -> int:
        """The number of `raw`, which is the next one when it is new. MemoryError beyond 2**31 strings."""

    def add_all(self, raws: Iterable[bytes]) -> array[int]:
        """The number of each, as uint32."""

    def find(self, raw: bytes) -> int:
        """The number of `raw`, or -1."""

    def order(self) -> array[int]:
        """All numbers (uint32), sorted by the bytes of their strings."""

def inverse(order: array[int]) -> array[int]:
    """Where each number stands in `order`, a permutation: the rank of each string of Names.order."""
