"""The decision journal: records appended to memory-mapped fronts, and copied from there to segments."""

from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from typing_extensions import disjoint_base

from fastpath.frames import gap_record as gap_record
from fastpath.frames import read_frames as read_frames
from fastpath.spool import Segment
from fastpath.spool import list_segments as list_segments

SEGMENT_BYTES: Final[int]
CAP_BYTES: Final[int]
SEGMENT_BYTES_MIN: Final[int]
RETRY_MS: Final[int]
IDLE_MS: Final[int]

class JournalState(IntEnum):
    JOURNAL_OK = 0
    JOURNAL_FULL = 1
    JOURNAL_FAILED = 2

@disjoint_base
class Journal:
    """Appends records; thread-safe. `kill -9` loses nothing appended; `sync` says what a power cut may lose."""

    def __init__(
        self,
        directory: str | Path,
        *,
        segment_bytes: int = ...,
        cap_bytes: int = ...,
        on_full: Literal["deny", "drop_oldest"] = "deny",
        sync: Literal["none", "interval", "each"] = "none",
        sync_ms: int = 100,
        helper: bool = True,
        deferred: bool = False,
    ) -> None:
        """Open or make the journal in `directory` (mode 0700) and repair what the last run left.

        `deferred`: nothing is opened, and appends are refused, until `open`. `helper` False leaves calling maintain()
        to the caller. ValueError for arguments that do not fit together;
        BlockingIOError when another process has the directory; PermissionError when others may enter it; OSError when
        the first segment cannot be allocated.
        """
    def open(self, lock: int = -1) -> None:
        """Open what was `deferred`, with the errors of the constructor. `lock`: what `give` returned to the process
        that wrote before us; ours from now on."""
    def give(self) -> int:
        """Close as `close` does, and return a descriptor of the directory's lock for the process that writes next."""
    state: int
    """A JournalState."""
    next_sequence: int
    """Of the next record."""
    synced: int
    """Sequence of the last record that is known to be on disk."""
    resting: int
    """1 while the helper sleeps until something is appended: for long nothing came."""
    at_cap: int
    """1 while the cap allows fewer spare segments than are wanted, though at least one."""
    @property
    def id(self) -> str:
        """32 hex digits, made with the directory."""
    @property
    def directory(self) -> Path: ...
    @property
    def problem(self) -> str:
        """Why it takes nothing or its upkeep fails, for operators; empty while neither is so."""
    def append_bytes(self, payload: bytes) -> int:
        """Append one record; its sequence number, or 0 when refused (see `state`; also when empty or too long)."""
    def maintain(self) -> None:
        """Copy fronts to segments, sync what is due, name full segments, allocate spares. OSError as it comes."""
    def writable(self) -> bool:
        """Whether the next records have room: readiness."""
    def segments(self) -> list[Segment]:
        """Segments that hold records, in order."""
    def acknowledged(self) -> tuple[int, bytes]:
        """(last sequence upstream holds, chain value there); zeros in a new journal."""
    def acknowledge(self, sequence: int, digest: bytes) -> None:
        """Upstream holds all up to `sequence`: durable at return; segments wholly below are removed."""
    def mend(self, first_sequence: int) -> None:
        """Rewrite the damaged segment that starts there: good frames stay, Gap records replace the others."""
    def counters(self) -> dict[str, int]:
        """next_sequence, acknowledged, bytes (in use), oversized, dropped_segments, mended_segments."""
    def close(self) -> None:
        """Sync, and give the directory back; later appends are refused. May be called again."""
    def __enter__(self) -> Journal: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
