"""What the journal's and the store's file systems do, and what LMDB leaves on them."""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import lmdb

from fastpath.lmdb_file import digest_of, fault_of, open_regular
from sidecar.policy.filesystem import REMOTE, VOLATILE, filesystem_magic
from sidecar.probes import Probe, Verdict, ok, unknown, unsafe

BYTES = 1 << 20
MARK = b"remit"
LMDB_FORMAT = 0  # LMDB 0.9 writes format v1 (sidecar/policy/child.py)
OTHER_DISK = "put it on a local ext4, xfs or btrfs"


def probes(journal: str, store: str) -> list[Probe]:
    """Probes of the file systems under these folders, which need not be there yet."""
    return [
        Probe("journal: file system", lambda: kind(journal)),
        Probe("journal: preallocated and mapped", lambda: mapped(journal)),
        Probe("store: file system", lambda: kind(store)),
        Probe("store: rename and lock", lambda: renamed(store)),
        Probe("lmdb: a read-only table", lambda: table(store)),
        Probe("lmdb: a damaged table", lambda: damaged(store)),
    ]


def existing(folder: str) -> str:
    """`folder`, or the nearest one above it that is there."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def kind(folder: str, magic_of: Callable[[str], int] = filesystem_magic) -> Verdict:
    magic = magic_of(existing(folder))
    if magic in REMOTE:
        return unsafe(f"{REMOTE[magic]}: another machine can take it away under us", OTHER_DISK)
    if magic in VOLATILE:
        return unknown(f"{VOLATILE[magic]}: a power cut forgets it all, if that is not meant", OTHER_DISK)
    return ok(f"local ({magic:#x})")


def mapped(folder: str, allocate: Callable[[int, int, int], None] = os.posix_fallocate) -> Verdict:
    """A segment is preallocated, so that a full disk is an error and no SIGBUS; its map is the file."""
    with tempfile.NamedTemporaryFile(dir=existing(folder), prefix=".remit-probe-") as file:
        allocate(file.fileno(), 0, BYTES)
        info = os.fstat(file.fileno())
        if info.st_size != BYTES or info.st_blocks * 512 < BYTES:
            return unsafe("fallocate gives a file without its blocks, so a full disk would be a SIGBUS", OTHER_DISK)
        with mmap.mmap(file.fileno(), BYTES) as pages:
            pages[: len(MARK)] = MARK
            seen = Path(file.name).read_bytes()[: len(MARK)]
            pages.flush()
            os.fdatasync(file.fileno())
    return ok("works") if seen == MARK else unsafe("what is written to a map does not show in the file", OTHER_DISK)


def renamed(folder: str, rename: Callable[[str, str], None] = os.rename) -> Verdict:
    """The rename of a manifest commits a publish; a lock keeps the second writer out."""
    with tempfile.TemporaryDirectory(dir=existing(folder), prefix=".remit-probe-") as made:
        old, new = Path(made, "old"), Path(made, "new")
        old.write_bytes(b"old")
        new.write_bytes(MARK)
        rename(str(new), str(old))
        if old.read_bytes() != MARK or new.exists():
            return unsafe("rename does not replace a file", OTHER_DISK)
        with old.open("rb") as one, old.open("rb") as two:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ok("works")
    return unsafe("two writers hold the lock at once", OTHER_DISK)


def table(folder: str) -> Verdict:
    """A reader leaves no lock file, reads format v1, and goes on reading what was unlinked under it."""
    with tempfile.TemporaryDirectory(dir=existing(folder), prefix=".remit-probe-") as made:
        path = _written(made)
        environment = lmdb.open(path, readonly=True, lock=False, subdir=False, create=False)
        try:
            with environment.begin(buffers=True) as transaction:
                left = sorted(os.listdir(made))
                os.unlink(path)
                seen = bytes(transaction.get(b"key") or b"")
        finally:
            environment.close()
    if seen != MARK:
        return unsafe("a table that was replaced is not read on", "install the lmdb that the lock file names")
    if left != ["table"]:
        return unsafe(f"a reader leaves {', '.join(left)}", "install the lmdb that the lock file names")
    return ok(f"read in place (LMDB {'.'.join(map(str, lmdb.version()))})")


Fault = Callable[[str, int, str], str]


def fault(path: str, size: int, digest: str) -> str:
    with open_regular(path) as file:
        return fault_of(file, size=size, digest=digest)


def damaged(folder: str, fault: Fault = fault) -> Verdict:
    """LMDB trusts its file, so a truncated or changed one must be refused before it is mapped (rows DB-14 to DB-16)."""
    with tempfile.TemporaryDirectory(dir=existing(folder), prefix=".remit-probe-") as made:
        path = _written(made)
        size = os.path.getsize(path)
        with open_regular(path) as file:
            digest = digest_of(file)
        if found := fault(path, size, digest):
            return unknown(f"a whole table is refused: {found}", "install the lmdb that the lock file names")
        whole = Path(path).read_bytes()
        for bad in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
            Path(path).write_bytes(bad)
            if not fault(path, size, digest):
                return unsafe("a damaged table is taken", "install Remit again")
    return ok("refused before it is mapped")


def _written(folder: str) -> str:
    path = os.path.join(folder, "table")
    environment = lmdb.open(path, subdir=False, lock=False, map_size=BYTES, lib_version=LMDB_FORMAT)
    with environment.begin(write=True) as transaction:
        transaction.put(b"key", MARK)
    environment.close()
    return path
