"""The parents of entities, judged before cedarpy closes them transitively, which takes it quadratic time."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from sidecar.errors import PolicyError
from sidecar.policy.cells import Uid

N = TypeVar("N", bound=Hashable)


def title(uid: Uid) -> str:
    """An entity uid as Cedar text."""
    escaped = uid[1].replace("\\", "\\\\").replace('"', '\\"')
    return f'{uid[0]}::"{escaped}"'


def check_parents(parents: Mapping[N, Sequence[N]], depth_max: int, title_of: Callable[[N], str]) -> dict[N, int]:
    """How many there are in the longest chain from each one up, itself included.

    Refuses cycles and chains of more than `depth_max`; PolicyError names them by `title_of`. Walks without recursion,
    each edge once.
    """
    depth: dict[N, int] = {}  # of what is done; 0 marks what is on the way
    for start in parents:
        if start in depth:
            continue
        depth[start] = 0
        path = [(start, iter(parents[start]))]
        while path:
            at, rest = path[-1]
            parent = next((one for one in rest if one in parents and not depth.get(one)), None)
            if parent is None:
                path.pop()
                depth[at] = 1 + max((depth.get(one, 1) for one in parents[at]), default=0)
                if depth[at] > depth_max:
                    raise PolicyError(f"`{title_of(at)}` has a chain of more than {depth_max} parents")
            elif parent in depth:
                raise PolicyError(_ring([title_of(one) for one, _ in path[[one for one, _ in path].index(parent) :]]))
            else:
                depth[parent] = 0
                path.append((parent, iter(parents[parent])))
    return depth


def _ring(path: list[str]) -> str:
    ring = [*path, path[0]]
    shown = ring if len(ring) <= 8 else [*ring[:4], *ring[-3:]]
    return "parents form a cycle: " + " in ".join(f"`{one}`" for one in shown)
