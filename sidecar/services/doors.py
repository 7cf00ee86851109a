"""The doors of the data plane: gRPC handlers on raw bytes around one native call each.

Whatever goes wrong here is UNAVAILABLE with a fixed text, counted and logged; a caller never sees a traceback, and
never an empty message, which Envoy would take for ALLOW.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc

from fastpath.peer import VerifiedPeer
from sidecar.config import Limits
from sidecar.logs import event
from sidecar.services.errors import ErrorCounts
from sidecar.services.options import server_options

log = logging.getLogger("remit.doors")

EXT_AUTHZ = "envoy.service.auth.v3.Authorization"
AUTHZ = "remit.authz.v1.Authorization"
UNAVAILABLE = b"unavailable"
BUNDLE_CHANGED = b"identity.bundle_changed"
OK = 0

Decide = Callable[[bytes, VerifiedPeer], tuple[int, bytes]]
Converse = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
Resolve = Callable[[grpc.ServicerContext], VerifiedPeer]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Door:
    """One method: who calls (`resolve`), what is answered (`decide`)."""

    def __init__(self, name: str, decide: Decide, resolve: Resolve, errors: ErrorCounts) -> None:
        self._name = name
        self._decide = decide
        self._resolve = resolve
        self._errors = errors

    def __call__(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        code, body = self.answer(request, context)
        if code != OK:
            context.abort(status_of(code), body.decode("ascii", "replace"))
        return body

    def answer(self, request: bytes, context: grpc.ServicerContext) -> tuple[int, bytes]:
        """The gRPC status code and the answer, or the status message when the code is not 0; whatever fails is one."""
        try:
            return self._answer(request, context)
        except Exception:
            # The boundary of the process: the cause is for us, the caller gets a refusal that says nothing.
            self._errors.add("internal")
            log.error("call.failed", exc_info=True, extra={"fields": {"door": self._name}})
            return grpc.StatusCode.UNAVAILABLE.value[0], UNAVAILABLE

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> tuple[int, bytes]:
        code, body = self._decide(request, self._resolve(context))
        if body == BUNDLE_CHANGED:
            # Other bundles came into force between the two steps: the caller is verified again, by those.
            code, body = self._decide(request, self._resolve(context))
        if code == OK and not body:
            raise AssertionError("an encoder made an empty answer")
        return code, body


def status_of(code: int) -> grpc.StatusCode:
    """The status of a code; UNAVAILABLE for one that is none."""
    return _CODES.get(code, grpc.StatusCode.UNAVAILABLE)


def raw(door: Door) -> grpc.RpcMethodHandler:
    """A unary method without serialisers: bytes in, bytes out."""
    return grpc.unary_unary_rpc_method_handler(door)


def ext_authz_service(decide: Decide, resolve: Resolve, errors: ErrorCounts) -> grpc.GenericRpcHandler:
    """Envoy's ext_authz v3 (envoy/service/auth/v3/external_auth.proto)."""
    return grpc.method_handlers_generic_handler(EXT_AUTHZ, {"Check": raw(Door("ext_authz", decide, resolve, errors))})


def authz_service(
    check: Decide,
    batch_check: Decide,
    report: Decide,
    resolve: Resolve,
    errors: ErrorCounts,
    stream: Converse | None = None,
) -> grpc.GenericRpcHandler:
    """The agent's own question (proto/remit/authz/v1/authz.proto); `stream` serves CheckStream."""
    methods = {
        "Check": raw(Door("check", check, resolve, errors)),
        "BatchCheck": raw(Door("batch", batch_check, resolve, errors)),
        "Report": raw(Door("report", report, resolve, errors)),
    }
    if stream is not None:
        methods["CheckStream"] = grpc.stream_stream_rpc_method_handler(stream)
    return grpc.method_handlers_generic_handler(AUTHZ, methods)


def make_server(limits: Limits, message_bytes: int, name: str) -> grpc.Server:
    """A gRPC server with the bounds of `limits`; one for each socket, so that a flood at one spares the others."""
    pool = futures.ThreadPoolExecutor(limits.workers, thread_name_prefix=name)
    server = grpc.server(
        pool, options=server_options(limits, message_bytes), maximum_concurrent_rpcs=limits.concurrent_calls
    )
    event(log, "door.made", logging.DEBUG, door=name)
    return server
