"""grpc.health.v1 Watch of the native doors: the current status at once, then every change.

The calls come through the slow lane of the door, since they stay open and change only when Python says so; `Check` is
answered by the door itself.
"""

import threading

from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from fastpath.lane import Lane
from sidecar.services.health import LIVE, READY

WATCH = "grpc.health.v1.Health/Watch"
Response = health_pb2.HealthCheckResponse


class HealthWatch:
    """Answers what one lane brings, on a thread of its own. `put_ready` and `drain` are for any thread."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._lock = threading.Lock()
        self._drained = False
        self._status = {LIVE: Response.SERVING} | dict.fromkeys(READY, Response.NOT_SERVING)
        self._watchers: dict[int, str] = {}

    def run(self) -> None:
        """Serve until the lane is closed."""
        while (call := self._lane.take()) is not None:
            number, method, message = call
            if message is None:
                with self._lock:
                    self._watchers.pop(number, None)
            elif method == WATCH:
                self._watch(number, message)
            else:
                self._lane.answer(number, code=StatusCode.UNIMPLEMENTED.value[0])

    def put_ready(self, ready: bool) -> None:
        with self._lock:
            if not self._drained:
                self._put(READY, Response.SERVING if ready else Response.NOT_SERVING)

    def drain(self) -> None:
        """Say NOT_SERVING for good; the door then ends the streams with its connections."""
        with self._lock:
            self._drained = True
            self._put((LIVE, *READY), Response.NOT_SERVING)

    def _put(self, names: tuple[str, ...], status: int) -> None:
        changed = {name for name in names if self._status[name] != status}
        self._status.update(dict.fromkeys(changed, status))
        for number, name in self._watchers.items():
            if name in changed:
                self._tell(number, status)

    def _watch(self, number: int, message: bytes) -> None:
        try:
            name = health_pb2.HealthCheckRequest.FromString(message).service
        except DecodeError:
            self._lane.answer(number, code=StatusCode.INVALID_ARGUMENT.value[0])
            return
        with self._lock:
            self._watchers[number] = name
            self._tell(number, self._status.get(name, Response.SERVICE_UNKNOWN))

    def _tell(self, number: int, status: int) -> None:
        self._lane.answer(number, Response(status=status).SerializeToString())
