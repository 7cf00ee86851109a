"""The authority store's folder: which file is the store, and how far it had come.

    lock                   held (flock) by the one sidecar that may write
    manifest.json          the file in use, and the epoch and the time that it had reached at least
    state-0000000001.mdb   LMDB; its lock file stands beside it

The epoch stands in two places so that an old copy of one is noticed (DB-18). A rename of the manifest is what puts
another file in use.
"""

import fcntl
import hashlib
import os
import secrets
from pathlib import Path

import msgspec

from sidecar.authority.errors import StoreError
from sidecar.files import UnusableFile, read_text

MANIFEST, LOCK = "manifest.json", "lock"
BYTES_MAX = 1 << 20


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    """Of this store; a backup has the same."""
    number: int
    """Of the file in use."""
    epoch: int
    """The store has reached it at least."""
    unix_ns: int
    """The clock has reached it at least."""
    boot_id: str = ""
    """Of the boot of the machine that `began_ns` is about; empty: the next start believes the wall clock."""
    began_ns: int = 0
    """Clock.began."""
    file_digest: str = ""
    """SHA-256 of the file; of a backup only."""
    digest: str = ""
    """SHA-256 of this manifest with an empty `digest`."""

    @property
    def file(self) -> str:
        return f"state-{self.number:010d}.mdb"

    def sealed(self) -> "Manifest":
        bare = msgspec.json.encode(msgspec.structs.replace(self, digest=""))
        return msgspec.structs.replace(self, digest="sha256:" + hashlib.sha256(bare).hexdigest())


def new_manifest() -> Manifest:
    """Of a store that holds nothing yet."""
    return Manifest(id=secrets.token_hex(16), number=1, epoch=0, unix_ns=0)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, or None when it holds none. StoreError when it is damaged."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    try:
        found = msgspec.json.decode(read_text(str(path), BYTES_MAX), type=Manifest)
    except UnusableFile as error:
        raise StoreError(f"`{path}` {error}; restore a backup") from None
    except msgspec.DecodeError as error:
        raise StoreError(f"`{path}` is damaged: {str(error).lower()}; restore a backup") from None
    if found.sealed() != found:
        raise StoreError(f"`{path}` is damaged: it is not what its digest says; restore a backup")
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put `manifest` in force: durable at return. OSError when nothing has changed."""
    temporary = folder / f".new-{MANIFEST}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest.sealed())))
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, folder / MANIFEST)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """Be the one process that uses the store; the lock ends with the descriptor. StoreError when another one does."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"another process has the authority store `{folder}`; stop it first") from None
    return descriptor
