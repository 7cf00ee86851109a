"""The control service: what the operator asks, on the control socket only (proto/remit/control/v1/control.proto)."""

import grpc

from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar.runtime import Runtime
from sidecar.status import StatusView


class Control(control_pb2_grpc.ControlServicer):
    """Answers for one runtime. A reload that is refused is an answer, not an error: the caller reads why."""

    def __init__(self, runtime: Runtime, view: StatusView) -> None:
        self._runtime = runtime
        self._view = view

    def Reload(self, _: control_pb2.ReloadRequest, __: grpc.ServicerContext) -> control_pb2.ReloadResponse:
        done = self._runtime.reload()
        return control_pb2.ReloadResponse(
            generation=done.generation, generation_digest=done.digest, changed=done.changed, problems=done.problems
        )

    def Status(self, _: control_pb2.StatusRequest, __: grpc.ServicerContext) -> control_pb2.StatusResponse:
        return self._view.status()
