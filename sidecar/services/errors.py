"""Counts what went wrong by cause. Causes are constants of our code, never text of a request."""

import collections
import threading


class ErrorCounts:
    """A thread-safe counter by cause; read by the metrics."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, cause: str) -> None:
        with self._lock:
            self._counts[cause] += 1

    def read(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
