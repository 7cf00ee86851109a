"""Policies and links while they are compiled: a flat row each, ranked by id, and filed under the rarest constraint."""

from array import array

from typing_extensions import disjoint_base

from fastpath.names import Names

@disjoint_base
class Rules:
    """Policies and links. Every id has at most one."""

    ids: Names

    def __init__(self, ids: Names) -> None: ...
    def __len__(self) -> int: ...
    def actions(self, uids: array[int]) -> int:
        """The row of a list of actions (numbers of uids, each once) for `add`."""

    def add(
        self,
        id_: int,
        effect: int,
        flags: int,
        ops: tuple[int, int, int],
        principal: tuple[int, int],
        action: tuple[int, int],
        resource: tuple[int, int],
        program: tuple[int, int, int],
        note: int,
    ) -> int:
        """Add a policy; its row. Ops are Scopes; principal and resource (uid, type), action (uid, row of its list),
        NONE32 for none; program (first word, words, stack).
        """

    def add_links(self, like: int, ids: array[int], principals: array[int], resources: array[int]) -> None:
        """Add a policy as the row `like` for each id, with its own uids; NONE32 leaves those of `like`."""

    def forget(self, row: int) -> None:
        """Leave out a row that was only there for links to be like."""

    def file(self, uid_count: int, type_count: int) -> None:
        """Rank policies by id and file each. Add nothing afterwards. IndexError for numbers beyond the counts."""

    def under(self, kind: int, number: int) -> array[int]:
        """Ranks of the policies filed under a uid or a type, ascending. `kind` is a FiledUnder (image.pxd)."""

    def anywhere_ranks(self) -> array[int]:
        """Ranks of the policies that are filed under nothing."""
