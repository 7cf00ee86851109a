"""Reads a journal's records in order, across segments, while its writer goes on."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

from fastpath.frames import Frames, gap_range, gap_record
from fastpath.front_files import SUFFIX
from fastpath.spool import Segment, list_segments

CAUSE_MISSING = "missing: not held by the sidecar any more"
OPENING_TRIES = 8  # a segment changes its name once, but another may go meanwhile

Entry = tuple[int, bytes]
"""(sequence, payload)"""


class SpoolReader:
    """Gives every record behind `after` once, in order. Where records are missing it gives a Gap in their place.

    `listing` gives the segments in order; `mend` is asked to repair the segment that starts at a sequence when frames
    in it are damaged (a reader in another process has none and gives a Gap instead). Not thread-safe.
    """

    def __init__(
        self, listing: Callable[[], list[Segment]], after: int, *, mend: Callable[[int], None] | None = None
    ) -> None:
        self.expected = after + 1
        self._listing = listing
        self._mend = mend
        self._frames: Frames | None = None
        self._first = 0  # of the segment being read
        self._front: Path | None = None  # being read instead; it is used again once a segment holds what it does
        self._without = 0  # no front had the record of this sequence, so a segment has it, or it is missing
        self._left = 0  # first sequence of the last segment behind whose end records are missing
        self._tries = 0  # at this segment, to get what seems to be missing
        self._ready: deque[Entry] = deque()

    def read(self, records_max: int, bytes_max: int) -> list[Entry]:
        """At most so many records, none further once they have `bytes_max` bytes; empty when nothing is new."""
        given: list[Entry] = []
        size = 0
        while len(given) < records_max and size < bytes_max:
            entry = self._next()
            if entry is None:
                break
            given.append(entry)
            size += len(entry[1])
        return given

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = None

    def _next(self) -> Entry | None:
        while not self._ready:
            if self._frames is None and not self._enter():
                return None
            if not self._step() and not self._leave():
                return None
        return self._ready.popleft()

    def _held(self) -> list[Segment]:
        """Where the expected record may be, and what is behind it."""
        fronts = self._without != self.expected
        return [
            segment
            for segment in self._listing()
            if (fronts if _is_front(segment.path) else segment.first_sequence > self._left)
        ]

    def _enter(self) -> bool:
        """Open the front that holds the expected record, or the segment, or else the first segment behind it."""
        for _ in range(OPENING_TRIES):
            held = self._held()
            reached = self._reached(held)
            segments = [segment for segment in held if not _is_front(segment.path)]
            if not reached and not segments:
                self._without = 0
                return False
            chosen = reached[-1] if reached else segments[0]
            try:
                self._frames = Frames(chosen.path)
            except FileNotFoundError:
                continue  # named or removed meanwhile; the next listing knows
            self._front = chosen.path if _is_front(chosen.path) else None
            if chosen.first_sequence != self._first:
                self._first, self._tries = chosen.first_sequence, 0
            return True
        return False

    def _reached(self, held: list[Segment]) -> list[Segment]:
        """Those of `held` that begin at the expected record or before; a front comes last, as it may hold more."""
        reached = [segment for segment in held if segment.first_sequence <= self.expected]
        return sorted(reached, key=lambda segment: _is_front(segment.path))

    def _step(self) -> bool:
        """Take one record of the open segment; False at its end."""
        assert self._frames is not None
        for sequence, payload in self._frames:
            if sequence < self.expected:
                continue
            covered = gap_range(payload)
            if sequence > self.expected and not (covered and covered[0] <= self.expected and covered[1] == sequence):
                if self._front:
                    return False
                self._ready.append((sequence - 1, gap_record(self.expected, sequence - 1, CAUSE_MISSING)))
            self._ready.append((sequence, payload))
            self.expected = sequence + 1
            self._tries = 0
            return True
        return False

    def _leave(self) -> bool:
        """Go on behind the end of the open segment; False when that is the end of what is written."""
        assert self._frames is not None
        held = self._held()
        reached = self._reached(held)
        front = reached[-1].path if reached and _is_front(reached[-1].path) else None
        if self._front:
            if front == self._front and reached[-1].first_sequence == self._first:
                return self._step()
            if front is None or reached[-1].first_sequence <= self._first:
                # It was used again since it was listed, and a segment has what it held.
                self._without = self.expected
            self.close()
            return True
        behind = next((segment for segment in held if segment.first_sequence > self._first), None)
        if front or (behind and self.expected >= behind.first_sequence):
            self.close()
            return True
        if (behind or self._frames.damage) and self._retry():
            return True
        if not behind and self._without == self.expected:
            # No front had it when we looked; one may have it by now.
            self._without = 0
            self.close()
            return False
        if not behind or _is_front(behind.path):
            # What was listed may have grown by that.
            return self._step()
        self._left = self._first
        self.close()
        return True

    def _retry(self) -> bool:
        """Read the segment again: the writer may have added to it before it left, or it was replaced; then mended."""
        assert self._frames is not None
        if self._tries >= 2:
            return False
        self._tries += 1
        if self._tries == 2:
            if self._mend is None or not (self._frames.damage or self._frames.resync()):
                return False
            self._mend(self._first)
        self.close()
        return True


def _is_front(path: Path) -> bool:
    return path.suffix == SUFFIX


def directory_reader(directory: Path, after: int) -> SpoolReader:
    """A reader of a journal that another process may be writing."""
    return SpoolReader(lambda: list_segments(directory), after)


def first_sequence(directory: Path) -> int:
    """Sequence of the oldest record still in the directory: what upstream has is not missing. OSError as it comes."""
    held = list_segments(directory)
    return held[0].first_sequence if held else 1


def last_sequence(directory: Path) -> int:
    """Sequence of the newest record in the directory; 0 when there is none. OSError when it cannot be read."""
    held = list_segments(directory)
    if not held:
        return 0
    frames = Frames(held[-1].path)
    try:
        last = held[-1].first_sequence - 1
        for last, _ in frames:  # noqa: B007 - the last one is what is asked for
            pass
        return last
    finally:
        frames.close()
