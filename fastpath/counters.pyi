"""Decision counts and latency by door."""

BOUNDS_NS: tuple[int, ...]
"""Upper bounds of the latency buckets in nanoseconds; the last bucket has none."""
