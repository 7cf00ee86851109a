"""The store's clock: Unix nanoseconds that never go back, not within a process and not over a restart."""

import time
from collections.abc import Callable
from pathlib import Path

BACK_NS = 2_000_000_000
"""A wall clock that is further behind what was seen than this was set back; less is drift."""


class Clock:
    """`now` is the wall clock, or the latest that was ever seen and what has passed since: whichever is later.

    So an expiry is reached by whichever clock reaches it first, and a clock set back extends nothing (RT-01). `sure` is
    the wall clock or what has passed since the first start on this boot of the machine, whichever is earlier: a clock
    set forward ends nothing by it, also not where it still stands so at a restart.
    """

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        passing: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        """`passing` counts on while the machine sleeps, and nobody sets it."""
        self._wall = wall
        self._passing = passing
        self._ahead = self.began = wall() - passing()
        """What the wall clock said when the one that nobody sets began, as far as we have believed it."""

    def now(self) -> int:
        wall = self._wall()
        # Read behind the wall clock: a pause between both must not put it ahead.
        passing = self._passing()
        self._ahead = max(self._ahead, wall - passing)
        return passing + self._ahead

    def sure(self) -> int:
        """For what takes authority away. The first start on a boot believes the wall clock: nothing else tells the
        time then."""
        return min(self._wall(), self._passing() + self.began)

    def present(self) -> int:
        """What the clocks say at this moment, whatever they said before: the later of both, lest it be too early."""
        return max(self._wall(), self._passing() + self.began)

    def ahead(self) -> int:
        """How far the wall clock is ahead of what is sure."""
        return self._wall() - self.sure()

    def start_at(self, high_water_ns: int, began_ns: int | None = None) -> bool:
        """Go on from what was seen before a restart; True when the wall clock was set back meanwhile.

        `began_ns` is the `began` of a process before this one on the same boot of the machine, if there was one.
        """
        wall = self._wall()
        if began_ns is not None:
            self.began = min(self.began, began_ns)
        if high_water_ns > wall:
            self._ahead = max(self._ahead, high_water_ns - self._passing())
        return high_water_ns - wall > BACK_NS


def boot_id() -> str:
    """Of this boot of the machine, as long as which the clock that nobody sets counts on; empty: not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
