"""What a run of the load client saw, and that it counts only when every answer was right."""

from __future__ import annotations

from array import array
from typing import TypedDict


class Run(TypedDict):
    """One run. `latency_ns` counts from when a call was to start, so that what a stall holds up is in it.

    `served_ns`, of a client that stamps: from a call's bytes given to the socket until the answer came to the client's
    socket, by the kernel's stamp. How long the client waited for a core of its own is not in it.
    """

    calls: int
    good: int
    wrong: dict[str, int]
    first_wrong: str
    seconds: float
    latency_ns: array[int]
    late_ns: array[int]
    served_ns: array[int]


class Wrong(Exception):
    """Some call was not answered as it should be, so its time means nothing."""


def checked(run: Run, name: str) -> Run:
    """The run, when every answer was right; else Wrong, which says what came instead."""
    if run["good"] != run["calls"]:
        raise Wrong(f"{name}: {run['calls'] - run['good']} of {run['calls']} answers are wrong: {run['first_wrong']}")
    return run
