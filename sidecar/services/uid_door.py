"""A Unix socket whose callers are told apart by their user ids, which grpcio does not do.

The socket that people see is accepted here; the kernel says who connected (SO_PEERCRED), and the bytes go to the gRPC
server over a private socket. Each of these inner connections has a name of its own, which the server sees as its
peer, so that a call leads back to the user who made it.
"""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import struct
import tempfile
import threading

from sidecar.logs import event

log = logging.getLogger("remit.control")

CONNECTIONS = 256
CHUNK = 64 * 1024
BACKLOG = 64
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_PEER = "unix-abstract:"


class UidDoor:
    """Owns the listening socket and a private folder from construction to `close`."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="remit-")  # mode 0700: nobody else can reach the inner socket
        self.inner = os.path.join(self._folder, "inner")
        """Where the gRPC server listens."""
        self._uids: dict[str, int] = {}
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)

    def bind(self, path: str) -> None:
        """Listen at `path`; OSError as it comes."""
        self._listener.bind(path)
        self._listener.listen(BACKLOG)

    def start(self) -> None:
        threading.Thread(target=self._accept, name="control-door", daemon=True).start()

    def uid(self, peer: str) -> int | None:
        """The user behind a call, by what grpcio calls its peer; None when it did not come through this door."""
        with self._lock:
            return self._uids.get(peer.removeprefix(_PEER))

    def close(self) -> None:
        """Take no new connection and end those there are. May be called again."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                full = len(self._uids) >= CONNECTIONS
            if full:
                event(log, "control.full", logging.WARNING, connections=CONNECTIONS)
                outer.close()
                continue
            try:
                self._join(outer)
            except OSError as error:
                event(log, "control.refused", logging.WARNING, cause=str(error))
                outer.close()

    def _join(self, outer: socket.socket) -> None:
        _, uid, _ = _CREDENTIALS.unpack(outer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        name = f"remit-{secrets.token_hex(16)}"
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.bind(f"\0{name}")
            inner.connect(self.inner)
        except OSError:
            inner.close()
            raise
        with self._lock:
            self._uids[name] = uid
            self._open |= {outer, inner}
        back = threading.Thread(target=_pump, args=(inner, outer), name="control-back", daemon=True)
        back.start()
        threading.Thread(target=self._forth, args=(outer, inner, back, name), name="control-forth", daemon=True).start()

    def _forth(self, outer: socket.socket, inner: socket.socket, back: threading.Thread, name: str) -> None:
        _pump(outer, inner)
        back.join()
        with self._lock:
            del self._uids[name]
            self._open -= {outer, inner}
        outer.close()
        inner.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy bytes until either side ends; then tell both."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK):
            sink.sendall(chunk)
    for one, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            one.shutdown(how)
