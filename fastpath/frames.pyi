"""Frames of the decision journal, written and read."""

import os
from collections.abc import Iterator
from enum import IntEnum

from typing_extensions import disjoint_base

class FrameLayout(IntEnum):
    SEGMENT_VERSION = 2
    UNSEEDED_VERSION = 1
    SEGMENT_HEADER = 32
    FRAME_HEADER = 16
    END_BYTES = 8
    PAYLOAD_BYTES_MAX = 65536

@disjoint_base
class Frames(Iterator[tuple[int, bytes]]):
    """Frames in order as (sequence, payload). At the end iteration stops; it resumes when the file has grown."""

    offset: int
    """Of the next frame."""
    sequence: int
    """Of the last frame given; `after` before the first."""
    damage: str
    """Why reading stopped before the end ("length", "checksum", "cut short", "order"), else empty."""
    def __init__(self, source: str | os.PathLike[str] | bytes, from_offset: int = 32, after: int = 0) -> None:
        """A frame whose sequence is not above that of the one before, or `after`, is none ("order")."""
    def __iter__(self) -> Frames: ...
    def __next__(self) -> tuple[int, bytes]: ...
    def close(self) -> None: ...
    def resync(self) -> bool:
        """Go to the next whole frame behind damage; False when there is none (then `offset` stays)."""

def read_frames(source: str | os.PathLike[str] | bytes, from_offset: int = 32) -> Frames:
    """Frames of one segment (path, or its bytes); safe while a writer goes on. OSError when it cannot be opened."""

def frame(header: bytes, sequence: int, payload: bytes) -> bytes:
    """One encoded frame of a segment with this header. ValueError when that has not SEGMENT_HEADER bytes, or the
    payload is empty or longer than PAYLOAD_BYTES_MAX.
    """

def crc32c(data: bytes, *, portable: bool = False) -> int:
    """CRC32C (RFC 3720 appendix B.4); `portable` uses the table even where the processor has the instruction."""

def gap_record(first_sequence: int, last_sequence: int, cause: str) -> bytes:
    """An encoded remit.decisions.v1.Record that says which records are missing and why; `cause` is cut at 512 bytes."""

def gap_range(payload: bytes) -> tuple[int, int] | None:
    """(first, last) sequence that a Gap record, as gap_record writes it, stands for; None for other records."""
