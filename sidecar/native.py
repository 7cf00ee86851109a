"""The native doors: sockets, threads and news for `fastpath.listener`, which answers without Python.

A `NativeDoor` stands where a grpc.Server would: `start` it once it is bound, `stop` it with a grace. Its socket can
come from another process, and go to one.
"""

import logging
import os
import resource
import socket
import threading

from fastpath.call import Pdp
from fastpath.listener import Listener
from fastpath.loop import PepList
from fastpath.tls import TlsIdentity
from fastpath.verify import Verifier
from sidecar.config import HostPort, Limits
from sidecar.health_watch import HealthWatch
from sidecar.identity.snapshot import Identity
from sidecar.logs import event

log = logging.getLogger("remit.native")

BACKLOG = 1024
NOTICE_S = 1.0
STRANGERS_S = 1.0  # between two looks at who was refused
DESCRIPTORS = 65_536
MS = 1000


def raise_descriptors() -> None:
    """Let this process open as many files as it may: a connection over a Unix socket takes two descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class NativeDoor:
    """Owns one listening socket and the thread that serves it."""

    def __init__(
        self,
        name: str,
        pdp: Pdp,
        limits: Limits,
        *,
        envoy: bool,
        spiffe_id: str = "",
        folder: str = "",
        verifier: Verifier | None = None,
        threads: int = 1,
    ) -> None:
        """`folder` of a Unix socket: its group may enter. With `verifier` the door is mutual TLS."""
        self._name = name
        self.listener = Listener(
            pdp,
            envoy=envoy,
            spiffe_id=spiffe_id,
            group=os.stat(folder).st_gid if folder else -1,
            verifier=verifier,
            threads=threads,
            message_bytes=limits.ext_authz_bytes if envoy else limits.check_bytes,
            streams=limits.concurrent_streams,
            headers=limits.metadata_lines,
            header_bytes=limits.metadata_bytes,
            connections=limits.connections,
            connections_per_peer=limits.connections_per_peer,
            handshakes=limits.handshakes,
            handshakes_per_address=limits.handshakes_per_address,
            held_bytes=limits.held_bytes,
            door_held_bytes=limits.door_held_bytes,
            handshake_ms=limits.handshake_ms,
            settings_ms=limits.settings_ms,
            first_request_ms=limits.first_request_ms,
            stream_ms=limits.stream_ms,
            deadline_ms=limits.deadline_ms,
            idle_ms=limits.connection_idle_s * MS,
            keepalive_ms=limits.keepalive_s * MS,
            ping_ms=limits.keepalive_timeout_s * MS,
            age_ms=limits.connection_age_s * MS,
            grace_ms=limits.grace_s * MS,
            slow_calls=limits.slow_calls,
            slow_calls_per_peer=limits.slow_calls_per_peer,
            watch_ms=limits.watch_s * MS,
            check_streams_per_peer=limits.check_streams_per_peer,
            stream_questions=limits.stream_questions,
            stream_queue_bytes=limits.stream_queue_bytes,
            arena_bytes=limits.arena_bytes,
        )
        self._watch = HealthWatch(self.listener.lane)
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended = threading.Event()
        self._generation = -1

    def bind_unix(self, path: str) -> None:
        """Listen on a Unix socket. OSError when that cannot be."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(path)
        self._socket.listen(BACKLOG)

    def bind_tcp(self, where: HostPort) -> int:
        """Listen on TCP; the port. OSError when that cannot be."""
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        self._socket = socket.create_server(tuple(where), family=family, backlog=BACKLOG)
        return int(self._socket.getsockname()[1])

    def adopt(self, listening: socket.socket) -> int:
        """Listen on a socket that somebody else opened; its port, 0 for a Unix socket."""
        self._socket = listening
        return int(listening.getsockname()[1]) if listening.family != socket.AF_UNIX else 0

    def fileno(self) -> int:
        """The listening socket's descriptor."""
        assert self._socket is not None, "bound"
        return self._socket.fileno()

    def start(self) -> None:
        threading.Thread(target=self._watch.run, name=f"{self._name} lane", daemon=True).start()
        if self._socket is not None and self._socket.family == socket.AF_UNIX:
            threading.Thread(target=self._tell_strangers, name=f"{self._name} strangers", daemon=True).start()
        self._thread.start()

    def stop(self, grace_s: float, *, notice_s: float = NOTICE_S) -> threading.Event:
        """Begin to end; the event is set when the last connection is gone. A shorter grace may follow a longer one.

        A peer has `notice_s` to say that it has heard before it is told which of its calls are the last.
        """
        if self._thread.ident is None:
            self._finish()
        else:
            self.listener.stop(int(grace_s * MS), int(notice_s * MS))
        return self._ended

    def put_ready(self, ready: bool) -> None:
        """What health answers: Check by the door itself, Watch through its slow lane."""
        self.listener.put_ready(ready)
        self._watch.put_ready(ready)

    def drain(self) -> None:
        """Tell those who watch health that the end is near; calls go on."""
        self._watch.drain()

    def put_identity(self, identity: Identity | None) -> None:
        """The SVID for the next handshakes; open connections stay."""
        generation = identity.generation if identity is not None else 0
        if generation != self._generation:
            self._generation = generation
            made = TlsIdentity(identity.svid_chain_pem, identity.key_pem) if identity is not None else None
            self.listener.put_identity(made)

    def put_peps(self, ids: frozenset[str]) -> None:
        self.listener.put_peps(PepList(sorted(ids)))

    def _run(self) -> None:
        assert self._socket is not None, "bound before it is started"
        try:
            self.listener.serve(self._socket.fileno())
        finally:
            event(log, "door.closed", door=self._name, work=self.listener.counters())
            self._finish()

    def _tell_strangers(self) -> None:
        """Log who was not let in (UD-01): a line per user now and then, however often they try."""
        while told := self.listener.strangers.take():
            for uid, times in told:
                event(log, "door.refused", logging.WARNING, door=self._name, uid=uid, connections=times)
            self._ended.wait(STRANGERS_S)

    def _finish(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._ended.set()
