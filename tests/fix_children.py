"""Which processes a process has started."""

import contextlib
import os
import pathlib


def children(pid: int | None = None) -> list[int]:
    """Processes that this one, or the one of that id, started and that have not been waited for."""
    found: list[int] = []
    for task in pathlib.Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found
