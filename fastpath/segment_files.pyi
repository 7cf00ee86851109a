"""The segment files of a journal: those that have a name, those that are written to, those that serve again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, final

from fastpath.spool import Segment
from fastpath.spool_folder import SpoolFolder

CAUSE_DROPPED: Final[str]

@final
class Opened:
    """A segment that is written to, or will be."""

    id: int
    file: int
    """Its descriptor, until it is released."""

@final
class SegmentFiles:
    """Not thread-safe: the journal calls it under its own lock. OSError as it comes, with the file's path."""

    dropped_segments: int

    def __init__(self, folder: SpoolFolder, header: bytes, segment_bytes: int, cap_bytes: int, durable: bool) -> None:
        """`header`: the first bytes of each segment. `durable`: segments must survive a power cut."""
    def put_held(self, segments: Iterable[Segment]) -> None:
        """The segments that a start found, in their order."""
    def put_size(self, path: Path, size: int) -> None:
        """A segment was rewritten."""
    def create(self) -> Opened:
        """A new empty segment whose blocks exist, so that writing cannot fail for want of space."""
    def name(self, number: int, first: int) -> None:
        """Give the segment that the writer has entered its name, by the sequence of its first frame."""
    def release(self, number: int, end: int = ...) -> None:
        """Close a segment's file and cut it at `end`, if that is given; an empty one is removed."""
    def let_go_of_all(self, clean: bool) -> None:
        """Close what still is open; with `clean`, remove the files that hold nothing."""
    def bytes_held(self) -> int:
        """Bytes of segments and spares."""
    def has_room(self) -> bool:
        """Whether one more fits under the cap."""
    def look_again(self) -> bool:
        """Whether somebody has removed segments by hand; they are no longer counted."""
    def keep_for_reuse(self, count: int) -> None:
        """Keep at most so many files that served."""
    def drop_oldest(self, acknowledged: int) -> bool:
        """Replace the oldest segments, if possible one segment's size, by one Gap; False when that frees nothing.

        What upstream has `acknowledged` is not part of the gap.
        """
    def discard_below(self, sequence: int) -> None:
        """Take segments out of the journal that hold nothing above `sequence`."""
