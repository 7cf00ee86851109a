"""All sockets of one sidecar: a server per door (grpcio's or our own), the control socket, the metrics port.

Each door is its own server, so that what one caller does to its socket costs the others nothing; the control socket
appears last, so that whoever finds it finds everything else.
"""

import logging
import os
import threading
from collections.abc import Callable
from concurrent import futures
from types import ModuleType
from typing import TYPE_CHECKING

import grpc
from grpc_reflection.v1alpha import reflection

from fastpath.verify import Verifier
from sidecar._proto.remit.authz.v1 import authz_pb2, authz_pb2_grpc
from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar._proto.remit.decisions.v1 import decisions_pb2, decisions_pb2_grpc
from sidecar.authority.draft import Caller
from sidecar.authority.errors import DeniedError
from sidecar.config import AgentSocket, ExtAuthz, HostPort, host_port
from sidecar.decisions.service import DecisionTail
from sidecar.errors import ConfigError
from sidecar.handover import Offer
from sidecar.identity.tls import server_credentials
from sidecar.inherited import InheritedSockets
from sidecar.logs import event
from sidecar.metrics import MetricsServer
from sidecar.runtime import Runtime
from sidecar.services.access_log import access_log_service
from sidecar.services.authority import FILES as AUTHORITY_FILES
from sidecar.services.authority import add_authority
from sidecar.services.authority_calls import Resolve as ResolveCaller
from sidecar.services.check_streams import CheckStreams
from sidecar.services.control import Control
from sidecar.services.doors import Resolve, authz_service, ext_authz_service, make_server
from sidecar.services.explain import Explanation
from sidecar.services.health import Health
from sidecar.services.options import CONTROL_MESSAGE_BYTES, server_options
from sidecar.services.sockets import BoundSocket, check_folders
from sidecar.services.uid_door import UidDoor
from sidecar.status import StatusView

if TYPE_CHECKING:
    from sidecar.native import NativeDoor

log = logging.getLogger("remit.listening")

CONTROL_THREADS = 64  # decision tails and watchers keep theirs, and are bounded to leave some
# Addresses are named by the field of the configuration that asked for them.
EXT_AUTHZ_TLS, EXT_AUTHZ_SOCKET = "listeners.ext_authz.address", "listeners.ext_authz.socket"
CHECK, CONTROL, METRICS = "listeners.check_address", "control.socket", "metrics.address"
AUTHORITY = "authority.address"
ACCESS_LOG_TLS, ACCESS_LOG_SOCKET = "listeners.access_log.address", "listeners.access_log.socket"
HEALTH_SERVICE = "grpc.health.v1.Health"


class Listening:
    """Owns every socket from `prepare` to `close`.

    `prepare` makes the doors, `open_doors` lets callers in, `open_rest` serves metrics and the control socket.
    """

    def __init__(self, runtime: Runtime, inherited: InheritedSockets | None = None) -> None:
        """`inherited`: doors that somebody else opened; only native ones can be."""
        self._runtime = runtime
        self._inherited = inherited or InheritedSockets()
        self.addresses: dict[str, str] = {}
        self._doors: dict[str, NativeDoor] = {}
        self.view = StatusView(runtime, self.addresses, self._doors)
        self._native = runtime.config.listeners.listener == "native"
        self._health = Health()
        self._servers: list[grpc.Server | NativeDoor] = []
        self._streams: list[CheckStreams] = []
        self._sockets: list[BoundSocket] = []
        self._door_sockets: dict[str, BoundSocket] = {}
        self._tail = DecisionTail(runtime.journal)
        self._metrics: MetricsServer | None = None
        self._uid_door: UidDoor | None = None

    def prepare(self) -> None:
        """Bind every door; callers of native ones wait. ConfigError when an address cannot be bound."""
        if self._native:
            _native().raise_descriptors()
        self._open_ext_authz()
        self._open_agents()
        self._open_check()
        self._inherited.close()

    def open_doors(self) -> None:
        """Let callers in."""
        for door in self._doors.values():
            door.start()

    def open_rest(self) -> None:
        """Serve access logs, authority, metrics and the control socket. ConfigError when one cannot be bound."""
        self._open_access_log()
        self._open_authority()
        self._open_metrics()
        self._runtime.on_ready(self._health.put_ready)
        self._open_control()
        event(log, "serving", addresses=self.addresses)

    # ------------------------------------------------------------ another process takes over

    def offers(self) -> list[Offer]:
        """What a process that takes over gets: every native door."""
        locks = {name: bound.lock for name, bound in self._door_sockets.items()}
        return [Offer(name, door.fileno(), locks.get(name, -1)) for name, door in self._doors.items()]

    def leave_doors(self, grace_s: float, notice_s: float) -> None:
        """End every door when its calls were answered, within `grace_s`; its socket stays, for whoever was given it."""
        self._health.drain()
        for door in self._doors.values():
            door.drain()
        for end in [door.stop(grace_s, notice_s=notice_s) for door in self._doors.values()]:
            end.wait()
        for bound in self._door_sockets.values():
            bound.let_go()
        self._door_sockets.clear()

    # ------------------------------------------------------------ the end

    def close(self, grace_s: float, hurry: threading.Event | None = None) -> None:
        """Take no new calls, let those in progress end within `grace_s` seconds or until `hurry` is set, then go."""
        self._health.drain()
        for door in self._doors.values():
            door.drain()
        for streams in self._streams:
            streams.drain()
        self._tail.close()
        ends = [server.stop(grace_s) for server in self._servers]
        if hurry is not None:
            threading.Thread(target=self._hurry, args=(hurry,), name="hurry", daemon=True).start()
        for end in ends:
            end.wait()
        for streams in self._streams:
            streams.close()
        if self._uid_door is not None:
            self._uid_door.close()
            self._uid_door = None
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        for socket in (*self._sockets, *self._door_sockets.values()):
            socket.close()
        self._servers.clear()
        self._streams.clear()
        self._doors.clear()
        self._sockets.clear()
        self._door_sockets.clear()

    def _hurry(self, hurry: threading.Event) -> None:
        hurry.wait()
        for server in tuple(self._servers):
            server.stop(0)

    # ------------------------------------------------------------ the doors

    def _open_ext_authz(self) -> None:
        door = self._runtime.config.listeners.ext_authz
        if door is None:
            return
        if self._native:
            self._open_native(EXT_AUTHZ_SOCKET if door.socket else EXT_AUTHZ_TLS, door, envoy=True)
            return
        resolve = self._socket_resolve(door.spiffe_id) if door.socket else self._runtime.tls_peer
        limits = self._runtime.config.limits
        server = make_server(limits, limits.ext_authz_bytes, "ext_authz")
        service = ext_authz_service(self._runtime.pdp.ext_authz, resolve, self._runtime.errors)
        server.add_generic_rpc_handlers((service,))
        if door.socket:
            self._serve_socket(EXT_AUTHZ_SOCKET, server, door.socket, door.group)
        else:
            self._serve_tls(EXT_AUTHZ_TLS, server, door.address)

    def _open_agents(self) -> None:
        for i, agent in enumerate(self._runtime.config.listeners.agents):
            name = f"listeners.agents[{i}].socket"
            if self._native:
                self._open_native(name, agent, envoy=False)
                continue
            server = self._check_server(self._socket_resolve(agent.spiffe_id))
            self._serve_socket(name, server, agent.socket, agent.group)

    def _open_check(self) -> None:
        address = self._runtime.config.listeners.check_address
        if not address:
            return
        if self._native:
            self._open_native(CHECK, ExtAuthz(address=address), envoy=False)
        else:
            self._serve_tls(CHECK, self._check_server(self._runtime.tls_peer), address)

    def _open_native(self, name: str, door: ExtAuthz | AgentSocket, *, envoy: bool) -> None:
        """A door of our own HTTP/2: a Unix socket when `door` names one, else mutual TLS at its address."""
        if door.socket:
            self._native_socket(name, door, envoy)
        else:
            self._native_tls(name, getattr(door, "address", ""), envoy)
        event(log, "door.open", logging.DEBUG, door=name)

    def _native_socket(self, name: str, door: ExtAuthz | AgentSocket, envoy: bool) -> "NativeDoor":
        path = os.path.abspath(door.socket)
        given = self._inherited.take(name, path)
        if given is not None and given.lock < 0:
            # Its path belongs to who opened it; its folder names who may enter all the same.
            check_folders(os.path.dirname(path))
        else:
            bound = BoundSocket(path, door.group, lock=given.lock if given is not None else -1)
            self._door_sockets[name] = bound
        made = self._native_door(name, envoy, spiffe_id=door.spiffe_id, folder=os.path.dirname(path))
        if given is not None:
            made.adopt(given.socket)
        else:
            self._bind_native(name, path, lambda: bound.bind(made.bind_unix))
        self.addresses[name] = f"unix:{path}"
        return made

    def _native_tls(self, name: str, address: str, envoy: bool) -> "NativeDoor":
        where = host_port(address)
        assert where is not None, "the configuration was checked"
        given = self._inherited.take(name, address)
        made = self._native_door(name, envoy, verifier=self._runtime.verifier)
        self._runtime.source.subscribe(made.put_identity)
        if given is not None:
            port = made.adopt(given.socket)
        else:
            port = self._bind_native(name, str(where), lambda: made.bind_tcp(where)) or 0
        self.addresses[name] = str(HostPort(where.host, port))
        return made

    def _native_door(
        self, name: str, envoy: bool, *, spiffe_id: str = "", folder: str = "", verifier: Verifier | None = None
    ) -> "NativeDoor":
        limits, pdp = self._runtime.config.limits, self._runtime.pdp
        threads = self._runtime.config.listeners.threads
        made: NativeDoor = _native().NativeDoor(
            name, pdp, limits, envoy=envoy, spiffe_id=spiffe_id, folder=folder, verifier=verifier, threads=threads
        )
        self._servers.append(made)
        self._doors[name] = made
        self._runtime.on_peps(made.put_peps)
        self._runtime.on_ready(made.put_ready)
        return made

    def _bind_native(self, name: str, address: str, bind: Callable[[], int | None]) -> int | None:
        try:
            return bind()
        except OSError as error:
            raise _not_bound(name, address) from error

    def _check_server(self, resolve: Resolve) -> grpc.Server:
        limits, pdp = self._runtime.config.limits, self._runtime.pdp
        server = make_server(limits, limits.check_bytes, "check")
        streams = CheckStreams(pdp, resolve, self._runtime.errors, limits)
        self._streams.append(streams)
        service = authz_service(pdp.check, pdp.batch_check, pdp.report, resolve, self._runtime.errors, streams)
        server.add_generic_rpc_handlers((service,))
        return server

    def _socket_resolve(self, spiffe_id: str) -> Resolve:
        """Whoever may enter the socket's folder is this one; nothing that it sends can say otherwise (UD-05)."""
        return lambda _: self._runtime.socket_peer(spiffe_id)

    # ------------------------------------------------------------ beside the doors

    def _open_access_log(self) -> None:
        """Envoy's access logs come in Python's own time: what they settle waits for nobody."""
        door = self._runtime.config.listeners.access_log
        if door is None:
            return
        resolve = self._socket_resolve(door.spiffe_id) if door.socket else self._runtime.tls_peer
        limits = self._runtime.config.limits
        server = make_server(limits, limits.ext_authz_bytes, "access_log")
        service = access_log_service(self._runtime.pdp.report, resolve, self._runtime.errors)
        server.add_generic_rpc_handlers((service,))
        if door.socket:
            self._serve_socket(ACCESS_LOG_SOCKET, server, door.socket, door.group)
        else:
            self._serve_tls(ACCESS_LOG_TLS, server, door.address)

    def _open_metrics(self) -> None:
        address = host_port(self._runtime.config.metrics.address)
        if address is not None:
            self._metrics = MetricsServer(address, self.view)
            self.addresses[METRICS] = str(self._metrics.address)

    def _open_authority(self) -> None:
        """The authority services beside the control socket: at an address, and one socket per caller."""
        authority = self._runtime.authority
        if authority is None:
            return
        callers, section = authority.callers, authority.section
        for i, one in enumerate(section.sockets):
            caller = Caller("person", one.person) if one.person else callers.of_spiffe_id(one.spiffe_id)
            server = self._control_server("authority")
            add_authority(server, authority, _always(caller))
            self._serve_socket(f"authority.sockets[{i}].socket", server, one.socket, one.group)
        if section.address:
            server = self._control_server("authority")
            add_authority(server, authority, lambda context: callers.of_peer(self._runtime.tls_peer(context)))
            self._serve_tls(AUTHORITY, server, section.address)

    def _control_server(self, name: str) -> grpc.Server:
        limits = self._runtime.config.limits
        pool = futures.ThreadPoolExecutor(CONTROL_THREADS, thread_name_prefix=name)
        return grpc.server(pool, options=server_options(limits, CONTROL_MESSAGE_BYTES))

    def _open_control(self) -> None:
        section = self._runtime.config.control
        server = self._control_server("control")
        door = self._uid_door = UidDoor()
        control_pb2_grpc.add_ControlServicer_to_server(Control(self._runtime, self.view, door.uid), server)
        authz_pb2_grpc.add_ExplanationServicer_to_server(Explanation(self._runtime), server)
        decisions_pb2_grpc.add_DecisionTailServicer_to_server(self._tail, server)
        reflection.enable_server_reflection(_reflected(), server)
        authority = self._runtime.authority
        if authority is not None:
            add_authority(server, authority, _by_uid(door, authority.callers.of_uid))
        self._serve_uid_socket(door, server, section.socket, section.group)

    def _serve_uid_socket(self, door: UidDoor, server: grpc.Server, path: str, group: str) -> None:
        socket = BoundSocket(path, group)
        self._sockets.append(socket)
        self._start(CONTROL, server, lambda: _bind(CONTROL, server, f"unix:{door.inner}", None))
        try:
            socket.bind(door.bind)
        except OSError as error:
            raise _not_bound(CONTROL, path) from error
        door.start()
        self.addresses[CONTROL] = f"unix:{socket.path}"

    # ------------------------------------------------------------ binding

    def _serve_socket(self, name: str, server: grpc.Server, path: str, group: str) -> None:
        socket = BoundSocket(path, group)
        self._sockets.append(socket)
        self._start(name, server, lambda: socket.bind(lambda aside: _bind(name, server, f"unix:{aside}", None)))
        self.addresses[name] = f"unix:{socket.path}"

    def _serve_tls(self, name: str, server: grpc.Server, address: str) -> None:
        where = host_port(address)
        assert where is not None, "the configuration was checked"
        ports: list[int] = []
        credentials = server_credentials(self._runtime.source)
        self._start(name, server, lambda: ports.append(_bind(name, server, str(where), credentials)))
        self.addresses[name] = str(HostPort(where.host, ports[0]))

    def _start(self, name: str, server: grpc.Server, bind: Callable[[], object]) -> None:
        self._health.add_to(server)
        self._servers.append(server)
        bind()
        server.start()
        event(log, "door.open", logging.DEBUG, door=name)


def _bind(name: str, server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise _not_bound(name, address) from error


def _by_uid(door: UidDoor, caller_of: Callable[[int], Caller]) -> ResolveCaller:
    """Who calls at the control socket, by the kernel's word."""

    def resolve(context: grpc.ServicerContext) -> Caller:
        uid = door.uid(context.peer())
        if uid is None:
            raise DeniedError("the caller of this connection is not known")
        return caller_of(uid)

    return resolve


def _always(caller: Caller) -> ResolveCaller:
    """Whoever may enter the socket's folder is this one."""
    return lambda _: caller


def _native() -> ModuleType:
    """What serves native doors. ConfigError where the build left it out, since its libraries were missing."""
    try:
        from sidecar import native
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`listeners.listener`: this build has no native doors (`{error.name}` is missing): install libnghttp2-dev "
            "and libssl-dev and build again, or set it to grpcio"
        ) from None
    return native


def _not_bound(name: str, address: str) -> ConfigError:
    return ConfigError(f"`{name}`: cannot listen on `{address}`; is it taken, or not ours to take?")


def _reflected() -> tuple[str, ...]:
    """What the control socket tells of itself: its own services and the agent's contract."""
    ours = [file.DESCRIPTOR.services_by_name for file in (control_pb2, authz_pb2, decisions_pb2, *AUTHORITY_FILES)]
    names = [service.full_name for services in ours for service in services.values()]
    return (*names, HEALTH_SERVICE, reflection.SERVICE_NAME)
