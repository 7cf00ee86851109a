"""What an edit of entities changes in the hierarchy of a base: rows of the entities, and of parents below them."""

from collections.abc import Mapping, Sequence

from fastpath.rowview import Rows
from sidecar.errors import PolicyError
from sidecar.policy.cells import Uid
from sidecar.policy.hierarchy import title
from sidecar.policy.rows import NodeFlag
from sidecar.policy.source_rows import EntityRow


class Hierarchy:
    """The nodes that differ from the base's, by index, and what they are now."""

    def __init__(self, base: Rows, node: Mapping[Uid, int], put: Sequence[EntityRow], removed: Sequence[Uid]) -> None:
        """`node` gives the index of every uid that the edits name. PolicyError when parents form a cycle."""
        self.base = base
        self.nodes = base.totals[0]
        self.put = {node[entity.uid]: entity for entity in put}
        self.own = {*self.put, *(node[uid] for uid in removed)}
        """Entities that are put or removed: their rows say all anew."""
        self._uids = {row: uid for uid, row in node.items()}
        self._above = {row: sorted(node[uid] for uid in entity.parents) for row, entity in self.put.items()}
        self.entities_added = sum(self._is_present(row) - self._was_present(row) for row in self.own)
        fresh = {one for above in self._above.values() for one in above if not self._was(one)[0] & NodeFlag.PARENT}
        moved = {row for row in self.own if self._parents(row) != self._was(row)[1]}
        below = base.parents_below(moved) if moved else []
        self._closed = self._close(fresh | {row for row in (*moved, *below) if self._is_parent(row, fresh)})
        self.changed = self.own | self._closed.keys()
        """Indexes of all rows that differ."""

    def row(self, index: int) -> tuple[int, list[int], list[int]]:
        """(flags, parents, closure) of a node as they are now."""
        was = self._was(index)
        flags = NodeFlag.PRESENT * self._is_present(index)
        closure = self._closed.get(index, was[2])
        if was[0] & NodeFlag.PARENT or index in self._closed:
            flags |= NodeFlag.PARENT
        return flags, self._parents(index), closure

    def _was(self, index: int) -> tuple[int, list[int], list[int]]:
        return self.base.node(index) if index < self.nodes else (0, [], [])

    def _was_present(self, index: int) -> bool:
        return bool(self._was(index)[0] & NodeFlag.PRESENT)

    def _is_present(self, index: int) -> bool:
        return index in self.put if index in self.own else self._was_present(index)

    def _is_parent(self, index: int, fresh: set[int]) -> bool:
        return index in fresh or bool(self._was(index)[0] & NodeFlag.PARENT)

    def _parents(self, index: int) -> list[int]:
        return self._above.get(index, []) if index in self.own else self._was(index)[1]

    def _close(self, wanted: set[int]) -> dict[int, list[int]]:
        """The ancestors of each node of `wanted`, which holds all whose ancestors differ from the base's."""
        closed: dict[int, list[int]] = {}
        for start in sorted(wanted):
            path = [start]
            while path:
                at = path[-1]
                above = self._parents(at)
                waiting = next((one for one in above if one in wanted and one not in closed), None)
                if at in closed or waiting is None:
                    path.pop()
                    if at not in closed:
                        closed[at] = self._union(above, closed)
                elif waiting in path:
                    raise PolicyError(f"parents form a cycle: `{title(self._uid(waiting))}` would be in itself")
                else:
                    path.append(waiting)
        return closed

    def _union(self, above: Sequence[int], closed: Mapping[int, Sequence[int]]) -> list[int]:
        found = set(above)
        for one in above:
            found.update(closed[one] if one in closed else self._was(one)[2])
        return sorted(found)

    def _uid(self, index: int) -> Uid:
        return self._uids[index] if index in self._uids else self.base.uid(index)[0]
