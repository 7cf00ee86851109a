"""A database that failed, written anew: all that was acknowledged in a fresh file, durable and read back.

Rows DB-03 and DB-04.
"""

from pathlib import Path

from sidecar.authority.database import Database
from sidecar.authority.errors import StoreError
from sidecar.authority.load import verify_rows
from sidecar.authority.manifest import sync_file


def rewritten(before: Path, path: Path, map_bytes_max: int, epoch: int) -> Database:
    """What `before`, which nobody has open, holds at `epoch`, as a database at `path`. lmdb.Error, OSError and
    SidecarError when it cannot be trusted.
    """
    again = Database(before, map_bytes_max)
    try:
        again.copy(path)
    finally:
        again.close()
    sync_file(path)
    fresh = Database(path, map_bytes_max)
    try:
        _verify(fresh, epoch)
    except BaseException:
        fresh.close()
        raise
    return fresh


def _verify(database: Database, epoch: int) -> None:
    """Every row is what was written, and none that was acknowledged is missing."""
    with database.read() as rows:
        reached = rows.epoch
        verify_rows(rows)
    if reached < epoch:
        raise StoreError(f"the copy is at epoch {reached}, not {epoch}")
