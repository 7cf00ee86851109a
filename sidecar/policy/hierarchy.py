"""The parents of entities, judged before cedarpy closes them transitively, which takes it quadratic time."""

from collections.abc import Mapping, Sequence

from sidecar.errors import PolicyError
from sidecar.policy.cells import Uid


def check_parents(parents: Mapping[Uid, Sequence[Uid]], depth_max: int) -> None:
    """Refuse cycles and chains of more than `depth_max` parents; PolicyError names the entities.

    Walks without recursion, each edge once.
    """
    depth: dict[Uid, int] = {}  # of what is done; 0 marks what is on the way
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
                    raise PolicyError(f"`{title(at)}` has a chain of more than {depth_max} parents")
            elif parent in depth:
                raise PolicyError(_ring([uid for uid, _ in path], parent))
            else:
                depth[parent] = 0
                path.append((parent, iter(parents[parent])))


def _ring(path: list[Uid], back: Uid) -> str:
    ring = [*path[path.index(back) :], back]
    shown = ring if len(ring) <= 8 else [*ring[:4], *ring[-3:]]
    return "parents form a cycle: " + " in ".join(f"`{title(uid)}`" for uid in shown)


def title(uid: Uid) -> str:
    """An entity uid as Cedar text."""
    escaped = uid[1].replace("\\", "\\\\").replace('"', '\\"')
    return f'{uid[0]}::"{escaped}"'
