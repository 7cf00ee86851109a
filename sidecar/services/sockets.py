"""Unix sockets whose folder names who may enter: made private, bound aside, moved into place.

A path is trusted only when nobody else could have put something there: every folder above it belongs to us or to root
and cannot be written by others, neither the socket nor its folder is a symbolic link, and the socket appears by
`rename` with its final mode, so that it is never reachable half made.
"""

import contextlib
import fcntl
import grp
import os
import stat
from collections.abc import Callable
from types import TracebackType

from sidecar.errors import ConfigError

FOLDER_MODE = 0o750
SOCKET_MODE = 0o660


class BoundSocket:
    """Owns one socket path from bind to close. A second process on the same path is refused while we hold it."""

    def __init__(self, path: str, group: str = "", *, lock: int = -1) -> None:
        """`lock`: the descriptor of the path's lock, from the process that served it until now; ours from here."""
        if path.startswith(("@", "\0")):
            raise ConfigError(f"`{path}`: abstract sockets have no permissions; name a path")
        self.path = os.path.abspath(path)
        folder = os.path.dirname(self.path)
        make_folder(folder, group)
        self._lock = lock if lock >= 0 else _lock(self.path)
        try:
            _refuse_strange(self.path)
        except BaseException:
            os.close(self._lock)
            raise

    def bind(self, listen: Callable[[str], object]) -> None:
        """Let `listen` bind a temporary path in the same folder, then move it to `path`. Replaces a stale socket."""
        aside = f"{self.path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        listen(aside)
        os.chmod(aside, SOCKET_MODE)
        os.chown(aside, -1, os.stat(os.path.dirname(self.path)).st_gid)
        os.rename(aside, self.path)

    @property
    def lock(self) -> int:
        """The descriptor of the path's lock, to be handed to the process that serves it next."""
        return self._lock

    def let_go(self) -> None:
        """Leave the socket to the process that was handed its lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def close(self) -> None:
        """Remove the socket. A second call does nothing."""
        if self._lock < 0:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> "BoundSocket":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def make_folder(folder: str, group: str) -> None:
    """Make `folder` with mode 0750 for `group`, or check the one that is there. Raises ConfigError."""
    try:
        os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, FOLDER_MODE)
        check_folders(folder)
        if os.stat(folder).st_uid == os.geteuid():
            if group:
                os.chown(folder, -1, grp.getgrnam(group).gr_gid)
            os.chmod(folder, FOLDER_MODE)
    except KeyError:
        raise ConfigError(f"group `{group}` does not exist; create it or name another") from None
    except OSError as error:
        raise ConfigError(f"cannot prepare the socket folder `{folder}`: {_cause(error)}; check its owner") from None


def check_folders(folder: str) -> None:
    """Raise ConfigError when somebody else could swap what stands at `folder` or above it."""
    ours = {0, os.geteuid()}
    if stat.S_ISLNK(os.lstat(folder).st_mode):
        raise ConfigError(f"the socket folder `{folder}` is a symbolic link; name the folder itself")
    if not os.path.isdir(folder):
        raise ConfigError(f"`{folder}` is not a folder; move it away, or choose another for the socket")
    at = folder
    while True:
        info = os.stat(at)
        if info.st_uid not in ours:
            raise ConfigError(f"`{at}` belongs to user {info.st_uid}, who could replace the socket; choose another")
        if _loose(info, own=at == folder):
            raise ConfigError(f"`{at}` can be written by others, who could replace the socket; run chmod go-w `{at}`")
        parent = os.path.dirname(at)
        if parent == at:
            return
        at = parent


def _loose(info: os.stat_result, *, own: bool) -> bool:
    """Whether others can rename what stands in a folder; `own` is the socket's own folder, the strictest case."""
    if own:
        return bool(info.st_mode & (stat.S_IWOTH | stat.S_IWGRP))
    if info.st_mode & stat.S_ISVTX:
        return False  # as in /tmp: only the owner of an entry replaces it
    others = stat.S_IWOTH if info.st_gid in (0, os.getegid()) else stat.S_IWOTH | stat.S_IWGRP
    return bool(info.st_mode & others)


def _lock(path: str) -> int:
    """An exclusive lock beside the socket, so that only a socket without a living owner is replaced."""
    try:
        handle = os.open(path + ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"`{path}.lock` cannot be used: {_cause(error)}; remove it, or check its folder") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(f"another process serves `{path}`; stop it, or give this one its own socket") from None
    return handle


def _refuse_strange(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise ConfigError(f"`{path}` is a symbolic link; remove it")
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"`{path}` exists and is not a socket; move it away")


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
