"""Annotations that the compiler understands, and those that only look like it."""

import json
from collections.abc import Mapping
from functools import lru_cache

from sidecar.errors import PolicyError
from sidecar.policy.image import PolicyFlag

RESERVED = (
    "id",
    "reason",
    "obligation",
    "template",
    "effect_hint",
    "never",
    "severity",
    "owner",
    "shadow",
    "advice",
    "description",
    "task",
)
OBLIGATIONS = ("approval", "notify", "step-up")
CURES = ("approval", "step-up")
TASKLESS = "none"
DISTANCE_MAX = 2
_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def distance(a: str, b: str) -> int:
    """Edits between two names: insert, delete, replace, swap of neighbours (Damerau, optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


@lru_cache(maxsize=1024)
def lookalike(name: str) -> str | None:
    """The reserved annotation that `name` nearly is, else None.

    For the two letters of `id` one edit counts, since two make it any short name.
    """
    if name in RESERVED:
        return None
    near = [(distance(name, known), known) for known in RESERVED]
    close = [pair for pair in near if pair[0] <= min(DISTANCE_MAX, len(pair[1]) - 1)]
    return min(close)[1] if close else None


def check(annotations: Mapping[str, str]) -> None:
    """Refuse what would silently not mean what its author meant; PolicyError without the policy's name."""
    for name in sorted(annotations):
        meant = lookalike(name)
        if meant is not None:
            raise PolicyError(f"has the annotation `@{name}`, which looks like `@{meant}`; correct or rename it")
    obligation = annotations.get("obligation")
    if obligation is not None and obligation not in OBLIGATIONS:
        raise PolicyError(f"has the obligation `{obligation}`; known ones are {', '.join(OBLIGATIONS)}")
    task = annotations.get("task")
    if task is not None and task != TASKLESS:
        raise PolicyError(f'has `@task("{task}")`; the only one is `@task("{TASKLESS}")`: the permit needs no task')


def flags(annotations: Mapping[str, str], *, forbid: bool) -> int:
    """PolicyFlag bits of a policy's annotations."""
    bits = 0
    if forbid and annotations.get("obligation") in CURES:
        bits |= PolicyFlag.CURABLE
    if "never" in annotations:
        bits |= PolicyFlag.NEVER
    if "shadow" in annotations:
        bits |= PolicyFlag.SHADOW
    if not forbid and annotations.get("task") == TASKLESS:
        bits |= PolicyFlag.TASKLESS
    return bits


def as_json(annotations: Mapping[str, str]) -> str:
    """All annotations as one JSON object with sorted keys."""
    return _JSON.encode(dict(annotations))
