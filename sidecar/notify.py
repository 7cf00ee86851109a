"""What the service manager is told: ready, reloading, stopping, and that we still live (sd_notify(3)).

A message is one datagram to the socket named in NOTIFY_SOCKET. Without that variable nobody listens, nothing is sent.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping

from sidecar.logs import event

log = logging.getLogger("remit.notify")

SOCKET, WATCHDOG_USEC, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
US_PER_S = 1_000_000
NS_PER_US = 1000
SEND_S = 1.0  # a manager that does not read is not waited for
PINGS = 2  # per watchdog interval, so that one that is late does not end us (sd_watchdog_enabled(3))


class ServiceManager:
    """Tells the service manager how we are; all methods are thread-safe and none raises.

    Takes its variables out of `environ`, so that no child of ours speaks for us.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        path = environ.pop(SOCKET, "")
        interval = environ.pop(WATCHDOG_USEC, "")
        whose = environ.pop(WATCHDOG_PID, "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        ours = interval.isascii() and interval.isdigit() and whose in ("", str(os.getpid()))
        self.watchdog_s = int(interval) / US_PER_S if ours and path else 0.0
        """Longest time between two pings, seconds; 0: nobody waits for them."""
        self._lock = threading.Lock()
        self._told_ready = False
        self._reloading = False

    def put_ready(self, reason: str) -> None:
        """What keeps us from deciding, as a reason code; "" is readiness, and the first is what a start waits for."""
        with self._lock:
            lines = [f"STATUS={f'not ready: {reason}' if reason else 'ready'}"]
            if not reason and not self._told_ready:
                self._told_ready = True
                lines.insert(0, "READY=1")
            self._send(*lines)

    def put_reloading(self, reloading: bool) -> None:
        """A reload begins or is over. One before the start is over belongs to the start and is not told."""
        with self._lock:
            if reloading and self._told_ready:
                # The manager tells this reload's READY from an older one's by the time.
                self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // NS_PER_US}")
                self._reloading = True
            elif not reloading and self._reloading:
                self._send("READY=1")
                self._reloading = False

    def put_stopping(self) -> None:
        with self._lock:
            self._send("STOPPING=1", "STATUS=letting calls in progress end")

    def watch(self, looks: Callable[[], int], ended: threading.Event) -> None:
        """Ping until `ended` is set, as often as asked, while `looks()` grows: a part that hangs ends the pings."""
        seen = -1
        while self.watchdog_s and not ended.wait(self.watchdog_s / PINGS):
            now = looks()
            if now != seen:
                self._send("WATCHDOG=1")
            seen = now

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as made:
                made.settimeout(SEND_S)
                made.connect(self._address)
                made.sendall("\n".join(lines).encode())
        except OSError as error:
            # To say nothing of ourselves is no reason to stop deciding; the manager will notice by itself.
            cause = (error.strerror or str(error)).lower()
            event(log, "notify.failed", logging.WARNING, cause=cause, message=lines[0])
