"""What is done to an authority store beside its sidecar: `remit authority backup`, `restore` and `trust-clock`."""

import hashlib
import os
import shutil
from pathlib import Path

import lmdb
import msgspec

from sidecar.authority.database import EPOCH, Database
from sidecar.authority.draft import META
from sidecar.authority.errors import StateError, StoreError
from sidecar.authority.load import verify_rows
from sidecar.authority.manifest import (
    Manifest,
    lock_folder,
    new_manifest,
    read_manifest,
    sync_file,
    sync_folder,
    write_manifest,
)

CHUNK = 1 << 20
EPOCHS_AHEAD = 1 << 20
"""How far an older copy that is taken by force goes on ahead of all that was decided by."""


def write_backup(database: Database, manifest: Manifest, folder: Path, now_ns: int) -> tuple[int, int]:
    """Write a copy of one moment to `folder`; (epoch, bytes). StateError when it is there, StoreError when it fails.

    The folder appears whole, by a rename.
    """
    if not folder.is_absolute() or os.path.lexists(folder):
        raise StateError(f"`{folder}` exists, or is not absolute; name a new folder by its whole path")
    temporary = folder.with_name(f".new-{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        file = temporary / "state-0000000001.mdb"
        database.copy(file)
        sync_file(file)
        epoch = _epoch_of(file)
        copy = msgspec.structs.replace(manifest, number=1, epoch=epoch, unix_ns=now_ns, file_digest=_digest(file))
        write_manifest(temporary, copy)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
        return epoch, (folder / copy.file).stat().st_size
    except (OSError, lmdb.Error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"the backup to `{folder}` failed: {str(error).lower()}") from None


def restore(backup: Path, store: Path, *, decided_by: int = 0, force: bool = False, map_bytes_max: int) -> int:
    """Put a copy in the place of the store of a sidecar that is stopped; the epoch that it is at.

    `decided_by` is the highest epoch that the sidecar's journal knows. StateError for a copy that is older than what
    was decided by, unless forced: then its epoch goes on ahead of everything. StoreError for a damaged copy.
    """
    manifest = read_manifest(backup)
    if manifest is None:
        raise StoreError(f"`{backup}` holds no backup; name a folder that `remit authority backup` wrote")
    if _digest(backup / manifest.file) != manifest.file_digest:
        raise StoreError(f"`{backup / manifest.file}` is damaged: it is not what its manifest says")
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_folder(store)
        try:
            return _replace(backup, store, manifest, decided_by, force, map_bytes_max)
        finally:
            os.close(lock)
    except (OSError, lmdb.Error) as error:
        raise StoreError(f"the restore to `{store}` failed: {str(error).lower()}") from None


def _replace(backup: Path, store: Path, copy: Manifest, decided_by: int, force: bool, map_bytes_max: int) -> int:
    now = _manifest_or_new(store)
    known = max(now.epoch, decided_by)
    if copy.epoch < known and not force:
        raise StateError(
            f"the backup is at epoch {copy.epoch}, the sidecar has decided by {known}: what was revoked in between"
            " would come back; take a newer backup, or --force and revoke again"
        )
    number = max([now.number, *(int(path.stem.partition("-")[2]) for path in store.glob("state-*.mdb"))]) + 1
    placed = msgspec.structs.replace(copy, number=number, file_digest="")
    path = store / placed.file
    shutil.copyfile(backup / copy.file, path)
    os.chmod(path, 0o600)
    epoch = copy.epoch if copy.epoch >= known else known + EPOCHS_AHEAD
    database = Database(path, map_bytes_max)
    try:
        with database.read() as rows:
            verify_rows(rows)
        if epoch != copy.epoch:
            with database.write() as rows:
                rows.put(META, EPOCH, epoch.to_bytes(8, "big"))
    finally:
        database.close()
    sync_file(path)
    unix_ns = max(now.unix_ns, copy.unix_ns)
    write_manifest(store, msgspec.structs.replace(placed, epoch=epoch, unix_ns=unix_ns))
    return epoch


def trust_clock(store: Path) -> None:
    """Let the next start believe the wall clock, as the first one on a boot does; the sidecar must be stopped.

    StateError when there is no store, StoreError when it is in use or cannot be written.
    """
    if not store.is_dir():
        raise StateError(f"`{store}` holds no store; there is nothing whose clock could be wrong")
    try:
        lock = lock_folder(store)
        try:
            manifest = read_manifest(store)
            if manifest is None:
                raise StateError(f"`{store}` holds no store; there is nothing whose clock could be wrong")
            write_manifest(store, msgspec.structs.replace(manifest, boot_id="", began_ns=0))
        finally:
            os.close(lock)
    except OSError as error:
        raise StoreError(f"`{store}` cannot be written: {(error.strerror or str(error)).lower()}") from None


def _manifest_or_new(store: Path) -> Manifest:
    """A damaged manifest is what a restore mends."""
    try:
        return read_manifest(store) or new_manifest()
    except StoreError:
        return new_manifest()


def _epoch_of(file: Path) -> int:
    database = Database(file, 0)
    try:
        with database.read() as rows:
            return rows.epoch
    finally:
        database.close()
        Path(f"{file}-lock").unlink(missing_ok=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise StoreError(f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}") from None
    return "sha256:" + digest.hexdigest()
