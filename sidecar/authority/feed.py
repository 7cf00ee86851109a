"""What changed, for those who watch: the last changes in memory, in order of their epoch."""

import threading
import time
from collections import deque
from typing import NamedTuple

import msgspec

from sidecar.authority.draft import Change

KEEP = 20_000


class Fed(msgspec.Struct, frozen=True, gc=False):
    epoch: int
    change: Change


class Taken(NamedTuple):
    """Changes, complete up to `epoch` as it was at `unix_ns`."""

    epoch: int
    changes: list[Fed]
    unix_ns: int


class Feed:
    """One writer puts, any number of watchers take. A watcher that falls behind is told so, and begins again."""

    def __init__(self, keep: int = KEEP) -> None:
        self._recent: deque[Fed] = deque(maxlen=keep)
        self._first = 1
        """Number of the oldest change that is kept; numbers count changes, not epochs."""
        self._complete_from = 0
        """All changes behind this epoch are kept."""
        self._epoch = 0
        self._closed = False
        self._changed = threading.Condition()

    def start(self, epoch: int) -> None:
        """Nothing before `epoch` can be given."""
        with self._changed:
            self._recent.clear()
            self._epoch = self._complete_from = epoch
            self._changed.notify_all()

    def put(self, epoch: int, changes: list[Fed]) -> None:
        """All changes up to `epoch`, in order."""
        with self._changed:
            for one in changes:
                if len(self._recent) == self._recent.maxlen:
                    self._complete_from = max(self._complete_from, self._recent[0].epoch)
                    self._first += 1
                self._recent.append(one)
            self._epoch = epoch
            self._changed.notify_all()

    def tell(self, changes: list[Change]) -> None:
        """Changes that have no epoch of their own. Whoever begins again after them needs a snapshot."""
        with self._changed:
            self.put(self._epoch, [Fed(self._epoch, one) for one in changes])
            self._complete_from = self._epoch + 1

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def position(self) -> tuple[int, int]:
        """(epoch now, number of the next change): where a watcher who reads the rows now goes on."""
        with self._changed:
            return self._epoch, self._first + len(self._recent)

    def behind(self, epoch: int) -> int | None:
        """Number of the first change behind `epoch`; None when it is not kept any more, or lies ahead of us."""
        with self._changed:
            if not self._complete_from <= epoch <= self._epoch:
                return None
            return next(
                (self._first + i for i, one in enumerate(self._recent) if one.epoch > epoch),
                self._first + len(self._recent),
            )

    def take(self, number: int, wait_s: float) -> Taken | None:
        """All from `number` on, after at most `wait_s` without any; None: fell behind, or closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._first + len(self._recent) > number, wait_s)
            if self._closed or number < self._first:
                return None
            skip = number - self._first
            return Taken(self._epoch, [one for i, one in enumerate(self._recent) if i >= skip], time.time_ns())
