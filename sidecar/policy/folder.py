"""The folder of a store: one writer at a time, files that appear whole or not at all, and nothing left behind.

lock            held (flock) by the one writer
.new-*          on the way to another name; whose writer is gone, it is removed by the next one
.fold-*/        what a compaction in progress writes; its folder is held (flock) by whoever compacts
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator

from sidecar.errors import PolicyError
from sidecar.policy.filesystem import REMOTE, VOLATILE, filesystem_magic
from sidecar.policy.manifest import FILE

LOCK = "lock"
TEMPORARY = ".new-"
FOLDING = ".fold-"
LOOK_S = 0.01
"""How often a held lock is looked at."""


class Busy(Exception):
    """Another process holds the lock."""


class Folder:
    """A folder on a local file system, mode 0700."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or make it. OSError when it cannot be used, PolicyError for a remote file system (row DB-17)."""
        self.path = os.fspath(path)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        magic = filesystem_magic(self.path)
        if magic in REMOTE:
            raise PolicyError(
                f"`{self.path}` lies on a remote file system ({REMOTE[magic]}), which cannot hold rule tables;"
                " name a local folder"
            )
        self.volatile = VOLATILE.get(magic, "")
        """Kind of the file system when it forgets all at power off, or empty: what is published is not durable."""

    def at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def temporary(self, suffix: str) -> str:
        """A path of its own: the compiler of a publisher that was killed may live on and write under its own."""
        return self.at(f"{TEMPORARY}{secrets.token_hex(8)}{suffix}")

    def sync(self) -> None:
        """Make the names durable."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write(self, name: str, raw: bytes) -> None:
        """The file `name` with `raw`, whole and synchronised; its name is durable after `sync`."""
        temporary = self.at(TEMPORARY + name)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self.at(name))

    # ------------------------------------------------------------ one writer

    @contextlib.contextmanager
    def locked(self, wait_s: float = 0, given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Be the one writer; Busy when another is, and still is after `wait_s` or as soon as it is `given_up`.

        The lock ends with the process.
        """
        descriptor = os.open(self.at(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_s
        try:
            while not _flock(descriptor):
                if time.monotonic() >= deadline or given_up():
                    raise Busy
                time.sleep(LOOK_S)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def folding(self, wait_s: float) -> Iterator[str]:
        """A folder to compile into without being the one writer, gone afterwards. Busy when another process has one."""
        with self.locked(wait_s):
            self.clean_folding()
            if any(name.startswith(FOLDING) for name in os.listdir(self.path)):
                raise Busy
            path = self.at(FOLDING + secrets.token_hex(8))
            os.mkdir(path, mode=0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _flock(descriptor)
        try:
            yield path
        finally:
            os.close(descriptor)
            shutil.rmtree(path, ignore_errors=True)

    # ------------------------------------------------------------ housekeeping

    def leftovers(self, kept: Iterable[str] | None) -> list[str]:
        """Temporary files, and files of a store that are not `kept`; None keeps all of these."""
        names = os.listdir(self.path)
        found = [name for name in names if name.startswith((TEMPORARY, FOLDING))]
        if kept is not None:
            found += [name for name in names if FILE.fullmatch(name) and name not in set(kept)]
        return found

    def clean(self, kept: Iterable[str] | None) -> None:
        """Remove leftovers. Call with the lock held: a publish in progress has some too."""
        for name in self.leftovers(kept):
            if not name.startswith(FOLDING):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.at(name))
        self.clean_folding()

    def clean_folding(self) -> None:
        """Remove what compactions left that are no more."""
        for name in os.listdir(self.path):
            if not name.startswith(FOLDING):
                continue
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(self.at(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    if _flock(descriptor):
                        shutil.rmtree(self.at(name), ignore_errors=True)
                finally:
                    os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cause(error: OSError) -> str:
    """What went wrong, for people."""
    code = errno.errorcode.get(error.errno or 0, "")
    return f"{(error.strerror or str(error)).lower()}{f' ({code})' if code else ''}"
