"""Writes the many rows of an image, nodes and policies, from flat arrays (filing.pyi) into a buffer."""

from array import array

from typing_extensions import disjoint_base

from fastpath.filing import Rules
from fastpath.names import Names

def add_types(uids: Names, types: Names) -> None:
    """Add the types of all uids; ValueError for a uid without one."""

@disjoint_base
class Layout:
    """Where nodes and policies of one image stand. Call in this order: place, nodes, put_lists, policies."""

    order: array[int]
    """Numbers of uids, sorted: the node of a rank."""
    ranks: array[int]
    type_order: array[int]
    type_ranks: array[int]
    lists: Names

    def __init__(self, uids: Names, types: Names, rules: Rules) -> None:
        """A uid is its type, a NUL and its id; all types are in `types`, `rules` are filed."""

    def place(self, nodes: int) -> int:
        """Fix where the uids of nodes from offset `nodes` stand; how many bytes those need that do not fit a row."""

    def put_long_uids(self, out: bytearray, at: int) -> None:
        """Reserve offsets from `at` on for the uids that do not fit into their rows."""

    def uid_offset(self, rank: int) -> int:
        """Where the uid of a node stands."""

    def nodes(
        self,
        out: bytearray,
        at: int,
        lists_at: int,
        entities: tuple[array[int], array[int], array[int], array[int], array[int]],
        values: array[int],
        closures: tuple[array[int], array[int], array[int]],
    ) -> None:
        """Write all nodes. `entities`: row by uid (or NONE32); by row the values of attributes and tags, and where its
        parents begin among (last) all parents. `values`: `at` of their cells. `closures`: row by uid (NONE32: no
        parent), where it begins among (last) ranks. Lists without room go to `lists`, which will stand at `lists_at`.
        """

    def put_lists(self, out: bytearray, at: int) -> None:
        """Write what `nodes` left in `lists`; `at` is its `lists_at`."""

    def entries(self, policies: array[int]) -> bytes:
        """The Entry of each policy (by rank)."""

    def lists_bytes(self) -> int: ...
    def ids_bytes(self) -> int:
        """What the ids of all policies need."""

    def policies(self, out: bytearray, at: int, ids_at: int, actions: array[int]) -> None:
        """Write all policies from `at` and their ids from `ids_at`. `actions`: (at, n) of each list of actions."""

    def uid_slots(self, out: bytearray, at: int, count: int) -> None:
        """Write the Slots of the nodes; `count` is a power of two, at least twice the nodes."""
