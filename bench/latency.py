"""Latencies as few numbers: quantiles on one grid for all, so that distributions can be laid over each other."""

from __future__ import annotations

from collections.abc import Sequence

GRID = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0)


def quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of all do not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def spread(latency_ns: Sequence[int]) -> dict[str, float]:
    """Microseconds at each point of the grid."""
    ordered = sorted(latency_ns)
    return {str(share): quantile(ordered, share) / 1000 for share in GRID}
