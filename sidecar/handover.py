"""An upgrade without a failed call: a running sidecar gives its doors, and then its journal, to the next one.

    new                                 old
    connects                      ─►    judges by uid who asks
                                  ◄─    every listening socket, with the lock of its path (SCM_RIGHTS)
    gets its identity, opens the
    generation, makes its doors
    ready                         ─►    stops shipping, takes no more connections, ends those that it has (GOAWAY)
                                        when each call was answered, closes the journal
    opens the journal, accepts    ◄─    the journal's lock
    opens the control socket      ◄─    (end of the connection: gone)

One process at a time writes the journal, so for the moment between, callers wait in the backlog of the sockets, which
never close. Until it is asked for the journal the old one loses nothing by a new one that fails.
"""

import contextlib
import json
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

from sidecar.errors import ConfigError
from sidecar.inherited import Inherited, InheritedSockets
from sidecar.logs import event

log = logging.getLogger("remit.handover")

SUFFIX = ".next"  # beside the control socket, whose folder is ours
MODE = 0o600
READY_S = 300.0  # for the new one to get ready
OFFERED_S = 60.0  # for the old one to offer its doors
GIVEN_S = 660.0  # for it to let calls end: limits.grace_s may be 600
GONE_S = 60.0
AGAIN_S = 0.5  # until the next try to accept
ENDS_S = 5.0  # for the thread that serves who asks to end
MESSAGE_BYTES = 4096
CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


class Offer(NamedTuple):
    """One door: the field that asked for it, its listening socket, and the lock of its path or -1."""

    name: str
    fd: int
    lock: int


class Handover:
    """The old side: waits on a socket of its own for whoever comes next."""

    def __init__(self, control_socket: str, offers: Callable[[], list[Offer]], wanted: Callable[[], None]) -> None:
        """`wanted` is called once, from another thread, when a new process is ready for the journal."""
        self._path = control_socket + SUFFIX
        self._offers = offers
        self._wanted = wanted
        self._next: socket.socket | None = None
        self._closing = threading.Event()
        self._turn = threading.Lock()
        """Whoever is ready is taken before the end or, at the end, not at all."""
        aside = f"{self._path}.{os.getpid()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        self._socket.bind(aside)
        os.chmod(aside, MODE)
        self._socket.listen(1)
        os.rename(aside, self._path)
        self._thread = threading.Thread(target=self._run, name="handover", daemon=True)
        self._thread.start()

    def give(self, lock: int) -> None:
        """Hand over the journal's lock, and with it the right to write; the descriptor is ours no more."""
        assert self._next is not None, "somebody asked"
        try:
            socket.send_fds(self._next, [b"journal"], [lock])
        except OSError as error:
            # Whoever asked is gone, and our doors are closed: the next start finds everything in order.
            event(log, "handover.lost", logging.ERROR, cause=str(error.strerror))
        finally:
            os.close(lock)

    def close(self) -> None:
        """End; who was given everything sees that we are gone."""
        with self._turn:
            self._closing.set()
        if self._next is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # It wakes by this, and closes whom it serves; its sockets stay open until it has.
        if threading.current_thread() is not self._thread:
            self._thread.join(ENDS_S)
        self._socket.close()
        if self._next is not None:
            self._next.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                asking, _ = self._socket.accept()
            except OSError as error:
                # Without a descriptor, say: whoever asks waits meanwhile.
                if not self._closing.wait(AGAIN_S):
                    event(log, "handover.lost", logging.WARNING, cause=str(error.strerror))
                continue
            asking.settimeout(READY_S)
            if self._is_ready(asking) and self._takes(asking):
                self._wanted()
                return
            asking.close()

    def _takes(self, asking: socket.socket) -> bool:
        with self._turn:
            if not self._closing.is_set():
                self._next = asking
            return self._next is not None

    def _is_ready(self, asking: socket.socket) -> bool:
        """Offer the doors; whether the other side came to the end of its preparations."""
        pid, uid, _ = CREDENTIALS.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
        if uid not in (0, os.geteuid()):
            event(log, "handover.refused", logging.WARNING, uid=uid)
            return False
        event(log, "handover.asked", pid=pid)
        try:
            for offer in self._offers():
                told = json.dumps({"door": offer.name}).encode()
                socket.send_fds(asking, [told], [offer.fd, *([offer.lock] if offer.lock >= 0 else [])])
            asking.send(b"all")
            ready = self._answers(asking) and asking.recv(MESSAGE_BYTES) == b"ready"
        except OSError as error:
            event(log, "handover.lost", logging.WARNING, cause=str(error))
            return False
        if not ready:
            event(
                log,
                "handover.lost",
                logging.WARNING,
                cause="the new process ended before it was ready, or another one asks",
            )
        return ready

    def _answers(self, asking: socket.socket) -> bool:
        """Wait for who got our doors; false when another one asks meanwhile: a silent one would keep all others out."""
        waiting = select.poll()
        for one in (asking, self._socket):
            waiting.register(one, select.POLLIN)
        return asking.fileno() in dict(waiting.poll(READY_S * 1000))


class TakeOver:
    """The new side. ConfigError when there is nobody to take over from, or it lets us down."""

    def __init__(self, control_socket: str) -> None:
        path = control_socket + SUFFIX
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(OFFERED_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            cause = (error.strerror or str(error)).lower()
            raise ConfigError(f"no sidecar to take over from at `{path}`: {cause}; start without --take-over") from None
        self.sockets = InheritedSockets(self._receive())

    def _receive(self) -> dict[str, Inherited]:
        found: dict[str, Inherited] = {}
        while True:
            try:
                told, fds = self._message()
            except TimeoutError:
                told, fds = b"", []
            if told == b"all":
                return found
            if not told or not fds:
                raise ConfigError(
                    "the running sidecar does not hand over its doors; stop it and start without --take-over"
                )
            listening = socket.socket(fileno=fds[0])
            found[json.loads(told)["door"]] = Inherited(listening, fds[1] if len(fds) > 1 else -1)

    def _message(self) -> tuple[bytes, list[int]]:
        try:
            told, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 2)
        except TimeoutError:
            raise
        except OSError:
            return b"", []
        for fd in fds:
            os.set_inheritable(fd, False)
        return told, fds

    def journal(self) -> int:
        """Ask for the journal; the descriptor of its lock. -1: the other one died, and left it to whoever opens it.

        ConfigError when it lives and keeps it.
        """
        self._socket.settimeout(GIVEN_S)
        with contextlib.suppress(OSError):
            self._socket.send(b"ready")
        try:
            told, fds = self._message()
        except TimeoutError:
            raise ConfigError("the running sidecar does not let go of its journal; end it and start again") from None
        event(log, "handover.given" if fds else "handover.left")
        return fds[0] if told == b"journal" and fds else -1

    def wait_gone(self) -> None:
        """Return when the other process has given back all that cannot be handed over."""
        self._socket.settimeout(GONE_S)
        try:
            self._socket.recv(MESSAGE_BYTES)
        except TimeoutError:
            raise ConfigError("the sidecar that we took over from does not end; end it and start again") from None
        except OSError:
            pass  # it broke off, so it is gone as well
        finally:
            self._socket.close()
