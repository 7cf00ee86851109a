"""The authority store's folder, before anything in it is opened."""

import logging
from pathlib import Path

from sidecar.authority.database import remove
from sidecar.authority.errors import StoreError
from sidecar.authority.manifest import Manifest, new_manifest, read_manifest, write_manifest
from sidecar.logs import event
from sidecar.policy.filesystem import REMOTE, VOLATILE, filesystem_magic

log = logging.getLogger("remit.authority")


def prepare_folder(folder: Path) -> None:
    """Make the folder. StoreError when others may enter it, or another machine may change it (DB-17); OSError as it
    comes.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise StoreError(f"others may enter `{folder}`; run chmod 700 `{folder}`")
    magic = filesystem_magic(str(folder))
    if magic in REMOTE:
        raise StoreError(f"`{folder}` lies on a remote file system ({REMOTE[magic]}); name a local folder")
    if magic in VOLATILE:
        event(log, "authority.volatile", logging.WARNING, folder=str(folder), kind=VOLATILE[magic])


def read_or_make(folder: Path) -> Manifest:
    """The folder's manifest, a new one where there is no store yet; files that it does not name are removed.

    StoreError when it is lost or damaged, OSError as it comes.
    """
    found = read_manifest(folder)
    if found is None:
        if list(folder.glob("state-*.mdb")):
            raise StoreError(f"`{folder}` has lost its manifest; restore a backup")
        found = new_manifest()
        write_manifest(folder, found)
    for path in folder.glob("state-*.mdb"):
        if path.name != found.file:
            remove(path)
    return found
