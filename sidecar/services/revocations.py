"""The service Revocations (proto/remit/authority/v1/revocations.proto)."""

import functools
import time
from collections.abc import Callable, Iterator

from sidecar._proto.remit.authority.v1 import revocations_pb2, revocations_pb2_grpc
from sidecar.authority import revocations
from sidecar.authority.draft import REVOCATIONS, Caller, Draft
from sidecar.authority.messages import mode_of, revocation_kind, revocation_message
from sidecar.authority.rows import Kind, Revocation, decode
from sidecar.services.authority_calls import Service, Watch, answered, page_of, streamed

WATCH: Watch[Revocation, revocations_pb2.RevocationsChange] = Watch(
    REVOCATIONS,
    Revocation,
    revocations_pb2.RevocationsChange,
    put=lambda row: {"put": revocation_message(row)},
    gone=lambda row: {"lifted": revocation_message(row)},
)


class Revocations(Service, revocations_pb2_grpc.RevocationsServicer):
    """Every method asks the authority's policies first."""

    @answered
    def Revoke(self, request: revocations_pb2.RevokeRequest, caller: Caller) -> revocations_pb2.RevokeResponse:
        began_ns = time.monotonic_ns()
        asked = revocations.Revoke(
            kind=revocation_kind(request.kind),
            key=request.key,
            mode=mode_of(request.mode),
            reason=request.reason,
            ttl_s=request.ttl_s,
        )
        self.authority.require(
            caller, "revocation.revoke", kind=str(asked.kind), key=asked.key, mode=str(asked.mode), ttl_s=asked.ttl_s
        )

        def command(draft: Draft) -> revocations_pb2.RevokeResponse:
            done = revocations.revoke(draft, asked, caller)
            return revocations_pb2.RevokeResponse(epoch=draft.epoch, effective_unix_ns=draft.now_ns, closed=done.closed)

        def stands(draft: Draft, answer: revocations_pb2.RevokeResponse) -> bool:
            """Whether it was neither lifted nor ended since: who is told that it is in force relies on it."""
            row = revocations.find(draft, asked.kind, asked.key, asked.mode)
            return row is not None and row.epoch == answer.epoch

        answer = self.change(caller, "revocation.revoke", request, command, revocations_pb2.RevokeResponse, stands)
        self.authority.took(began_ns)
        return answer

    @answered
    def Lift(self, request: revocations_pb2.LiftRequest, caller: Caller) -> revocations_pb2.LiftResponse:
        kind = revocation_kind(request.kind)
        asked = revocations.Lift(
            kind=kind,
            key=request.key,
            mode=mode_of(request.mode),
            reason=request.reason,
            own_class=kind is Kind.CLASS and request.key in self.authority.classes_of(caller.spiffe_id or caller.id),
        )
        self.authority.require(caller, "revocation.lift", kind=str(asked.kind), key=asked.key, mode=str(asked.mode))

        def command(draft: Draft) -> revocations_pb2.LiftResponse:
            revocations.lift(draft, asked, caller)
            return revocations_pb2.LiftResponse(epoch=draft.epoch)

        return self.change(caller, "revocation.lift", request, command, revocations_pb2.LiftResponse)

    @answered
    def List(
        self, request: revocations_pb2.ListRevocationsRequest, caller: Caller
    ) -> revocations_pb2.ListRevocationsResponse:
        self.authority.require(caller, "revocation.read")
        self.authority.looked(caller, "revocation.read")
        prefix = revocation_kind(request.kind).encode() + b"\0" if request.kind else b""
        with self.authority.store.read() as draft:
            scan = functools.partial(revocations.scan_revocations, draft, prefix)
            found = page_of(scan, prefix, request.page_size, request.page_token, lambda _, __: True)
            rows = [revocation_message(decode(stored, Revocation)) for _, stored in found.rows]
            return revocations_pb2.ListRevocationsResponse(
                revocations=rows, next_page_token=found.token, epoch=draft.epoch
            )

    @streamed
    def Watch(
        self, request: revocations_pb2.WatchRevocationsRequest, caller: Caller, is_active: Callable[[], bool]
    ) -> Iterator[revocations_pb2.RevocationsChange]:
        self.authority.require(caller, "revocation.read")
        self.authority.looked(caller, "revocation.watch")
        yield from WATCH.stream(self.authority, request, is_active)
