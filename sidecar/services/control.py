"""The control service: what the operator asks, on the control socket only (proto/remit/control/v1/control.proto)."""

import os
from collections.abc import Callable

import grpc

from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar.errors import PolicyError, RuleTableError
from sidecar.policy.edits import account
from sidecar.runtime import Runtime
from sidecar.services.edit_messages import change_of
from sidecar.status import StatusView

UidOf = Callable[[str], int | None]
"""The user behind a call, by what grpcio calls its peer."""


class Control(control_pb2_grpc.ControlServicer):
    """Answers for one runtime. A reload that is refused is an answer, not an error: the caller reads why."""

    def __init__(self, runtime: Runtime, view: StatusView, uid_of: UidOf) -> None:
        self._runtime = runtime
        self._view = view
        self._uid_of = uid_of

    def Reload(self, _: control_pb2.ReloadRequest, __: grpc.ServicerContext) -> control_pb2.ReloadResponse:
        done = self._runtime.reload()
        return control_pb2.ReloadResponse(
            generation=done.generation, generation_digest=done.digest, changed=done.changed, problems=done.problems
        )

    def Edit(self, request: control_pb2.EditRequest, context: grpc.ServicerContext) -> control_pb2.EditResponse:
        rules, uid = self._runtime.rules, self._uid_of(context.peer())
        if uid is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the caller of this connection is not known")
        if uid not in (0, os.geteuid()):
            # INVARIANT (who edits): whoever can write the store. Approvers and auditors enter the socket's folder too.
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"user {uid} may not edit what decides; run it as the sidecar's own user ({os.geteuid()}) or as root",
            )
        try:
            done = self._runtime.edit(change_of(request), account(uid))
        except (PolicyError, RuleTableError) as error:
            return control_pb2.EditResponse(
                generation=rules.generation, generation_digest=rules.digest, problems=[str(error)]
            )
        return control_pb2.EditResponse(
            generation=rules.generation,
            generation_digest=rules.digest,
            edits=[control_pb2.Edited(title=edit.title, removed=edit.removed) for edit in done.edits],
            standing=done.standing,
            compiled=done.compiled,
            unneeded=done.forgotten,
        )

    def Status(self, _: control_pb2.StatusRequest, __: grpc.ServicerContext) -> control_pb2.StatusResponse:
        return self._view.status()
