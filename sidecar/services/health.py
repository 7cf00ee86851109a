"""Live and ready as grpc.health.v1: `live`: the process answers; `ready` and the empty name: calls are decided."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

LIVE = "live"
READY = ("", "ready")


class Health:
    """One health state for all servers of the process."""

    def __init__(self) -> None:
        # Watchers must not hold the threads that answer calls.
        self._servicer = health.HealthServicer(experimental_non_blocking=True)
        self._servicer.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        self.put_ready(False)

    def add_to(self, server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def put_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in READY:
            self._servicer.set(name, status)

    def drain(self) -> None:
        """Say NOT_SERVING for good, so that balancers look elsewhere while calls in progress end."""
        self._servicer.enter_graceful_shutdown()
