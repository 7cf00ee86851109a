"""The folder of a journal: files that are replaced as a whole, and the small ones beside the segments."""

from pathlib import Path

from typing_extensions import disjoint_base

def read_checked(path: Path) -> dict[str, object] | None:
    """A small JSON file that carries its own CRC32C; None when it is missing or fails its check."""

@disjoint_base
class SpoolFolder:
    """Of the process that writes to it. OSError as it comes."""

    def __init__(self, directory: Path) -> None: ...
    @property
    def floor(self) -> int:
        """First sequence of the newest segment that has a name; 0 when it was never written, or fails its check."""
    def write(self, name: str, fields: dict[str, object]) -> None:
        """Replace a small JSON file; it is on disk when this returns."""
    def write_over(self, path: Path, data: bytes) -> None:
        """Replace a file of the folder as a whole; it is on disk when this returns."""
    def close(self) -> None: ...
