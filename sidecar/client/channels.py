"""The connections of a client: one per target, opened when first used, and the methods on them."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from sidecar._proto.remit.authority.v1 import approvals_pb2_grpc, tasks_pb2_grpc
from sidecar._proto.remit.authz.v1 import authz_pb2_grpc
from sidecar.client.steps import Call

STUBS: Mapping[str, Callable[[Any], Any]] = {
    "authz": authz_pb2_grpc.AuthorizationStub,
    "tasks": tasks_pb2_grpc.TasksStub,
    "approvals": approvals_pb2_grpc.ApprovalsStub,
}


class Channels:
    """Stubs by service. `make` opens a channel to a target, for threads or for asyncio."""

    def __init__(self, door: str, authority: str, make: Callable[[str], Any]) -> None:
        self._targets = {name: door if name == "authz" else authority for name in STUBS}
        self._make = make
        self._lock = threading.Lock()
        self._channels: dict[str, Any] = {}
        self._stubs: dict[str, Any] = {}

    def method(self, call: Call) -> Any:
        """What makes the call when it is called with the request. ValueError when there is no target for it."""
        return getattr(self._stub(call.service), call.method)

    def stream(self, requests: Any) -> Any:
        """A CheckStream that asks what the iterator gives."""
        return self._stub("authz").CheckStream(requests)

    def _stub(self, service: str) -> Any:
        with self._lock:
            if service not in self._stubs:
                self._stubs[service] = STUBS[service](self._channel(service))
            return self._stubs[service]

    def _channel(self, service: str) -> Any:
        target = self._targets[service]
        if not target:
            raise ValueError(f"`authority`: is empty; give the client the address where {service} are served")
        if target not in self._channels:
            self._channels[target] = self._make(target)
        return self._channels[target]

    def open(self) -> list[Any]:
        """All channels that were opened."""
        with self._lock:
            return list(self._channels.values())
