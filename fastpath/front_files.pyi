"""Fronts: small files whose memory calls write their records to, in turns and for as long as the journal is open."""

from typing import Final, final

from fastpath.spool_folder import SpoolFolder

SUFFIX: Final[str]

@final
class FrontFiles:
    def __init__(self, folder: SpoolFolder, header: bytes, size: int) -> None:
        """`header`: the first bytes of each, as of a segment; `size`: bytes of each."""
    def close(self, empty: bool) -> None:
        """Unmap all; with `empty` they hold nothing that the segments lack, and are removed."""
