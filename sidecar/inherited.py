"""Listening sockets that somebody else opened: the service manager (sd_listen_fds(3)), or the sidecar before this one.

A socket stands under the name of the field that asks for it, as in `listeners.agents[0].socket`. While any process has
it open, the kernel keeps callers waiting instead of refusing them.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from sidecar.errors import ConfigError

FIRST = 3  # SD_LISTEN_FDS_START
FIRST_PORT_FREE = 0


class Inherited(NamedTuple):
    """A listening socket, and the lock of its path (services/sockets.py); -1: its path is the giver's own affair."""

    socket: socket.socket
    lock: int


class InheritedSockets:
    """What this process was given. A door takes its socket by name; what no door asks for is closed."""

    def __init__(self, sockets: Mapping[str, Inherited] | None = None, *, by: str = "") -> None:
        """`by` whom: a giver that insists, as a socket without a door is a mistake of its own; empty: it does not."""
        self._sockets = dict(sockets or {})
        self._by = by

    def take(self, name: str, where: str) -> Inherited | None:
        """The socket of this door, or None. ConfigError when it cannot be `where` the door is to listen."""
        found = self._sockets.pop(name, None)
        if found is not None and self._by:
            _check(name, found.socket, where)
        return found

    def close(self) -> None:
        """Give back what no door asked for. ConfigError when the giver must mend it."""
        left = sorted(self._sockets)
        for found in self._sockets.values():
            found.socket.close()
            if found.lock >= 0:
                os.close(found.lock)
        self._sockets.clear()
        if left and self._by:
            raise ConfigError(f"{self._by} passes a socket named `{left[0]}`, but the configuration has no such door")


def from_service_manager(environ: MutableMapping[str, str]) -> InheritedSockets:
    """What LISTEN_FDS says, which is removed, so that no child takes it for its own. ConfigError when it is wrong."""
    pid, count, names = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if not count or pid != str(os.getpid()):
        return InheritedSockets()
    if not count.isdecimal():
        raise ConfigError(
            f"`LISTEN_FDS` is `{count}`, not a number; start the sidecar from a socket unit, or without it"
        )
    sockets: dict[str, Inherited] = {}
    for number, name in enumerate(names.split(":") if names else []):
        if name in sockets:
            raise ConfigError(f"`LISTEN_FDNAMES` has `{name}` twice; give each socket unit its own FileDescriptorName=")
        sockets[name] = Inherited(_listening(FIRST + number, name), -1)
    if len(sockets) != int(count):
        raise ConfigError("`LISTEN_FDNAMES` does not name every socket; set FileDescriptorName= in each socket unit")
    return InheritedSockets(sockets, by="the service manager")


def _listening(fd: int, name: str) -> socket.socket:
    os.set_inheritable(fd, False)
    try:
        made = socket.socket(fileno=fd)
    except OSError:
        raise ConfigError(f"what is passed as `{name}` is no socket; mend its unit") from None
    if not made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"the socket that is passed as `{name}` does not listen; set ListenStream= in its unit")
    return made


def _check(name: str, given: socket.socket, where: str) -> None:
    """Raise ConfigError when the socket listens elsewhere than the configuration says: a path, or host:port."""
    bound = given.getsockname()
    if given.family == socket.AF_UNIX:
        same, shown = bound == where, str(bound)
    else:
        port = where.rpartition(":")[2]
        same, shown = port in (str(bound[1]), str(FIRST_PORT_FREE)), f"port {bound[1]}"
    if not same:
        raise ConfigError(
            f"`{name}`: the socket that was passed listens at `{shown}`, the configuration says `{where}`"
        )
