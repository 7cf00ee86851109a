"""The service Owners (proto/remit/authority/v1/owners.proto)."""

import functools
from collections.abc import Callable, Iterator

from sidecar._proto.remit.authority.v1 import owners_pb2, owners_pb2_grpc
from sidecar.authority import owners
from sidecar.authority.draft import OWNERS, Caller
from sidecar.authority.messages import owner_message
from sidecar.authority.rows import Owner, decode
from sidecar.services.authority_calls import Service, Watch, answered, page_of, streamed

WATCH: Watch[Owner, owners_pb2.OwnersChange] = Watch(
    OWNERS,
    Owner,
    owners_pb2.OwnersChange,
    put=lambda row: {"put": owner_message(row)},
    gone=lambda row: {"put": owner_message(row)},
)


class Owners(Service, owners_pb2_grpc.OwnersServicer):
    """Every method asks the authority's policies first."""

    @answered
    def Disable(self, request: owners_pb2.ChangeOwnerRequest, caller: Caller) -> owners_pb2.Owner:
        self.authority.require(caller, "owner.disable", owner=request.id)
        asked = owners.ChangeOwner(id=request.id, reason=request.reason)
        return self.change(
            caller,
            "owner.disable",
            request,
            lambda draft: owner_message(owners.disable_owner(draft, asked, caller)),
            owners_pb2.Owner,
            lambda draft, _: (row := owners.find_owner(draft, asked.id)) is not None and not row.active,
        )

    @answered
    def Enable(self, request: owners_pb2.ChangeOwnerRequest, caller: Caller) -> owners_pb2.Owner:
        self.authority.require(caller, "owner.enable", owner=request.id)
        asked = owners.ChangeOwner(id=request.id, reason=request.reason)
        return self.change(
            caller,
            "owner.enable",
            request,
            lambda draft: owner_message(owners.enable_owner(draft, asked, caller)),
            owners_pb2.Owner,
        )

    @answered
    def List(self, request: owners_pb2.ListOwnersRequest, caller: Caller) -> owners_pb2.ListOwnersResponse:
        self.authority.require(caller, "owner.read")
        self.authority.looked(caller, "owner.read")
        with self.authority.store.read() as draft:
            scan = functools.partial(owners.scan_owners, draft)
            found = page_of(scan, b"", request.page_size, request.page_token, lambda _, __: True)
            rows = [owner_message(decode(stored, Owner)) for _, stored in found.rows]
            return owners_pb2.ListOwnersResponse(owners=rows, next_page_token=found.token)

    @streamed
    def Watch(
        self, request: owners_pb2.WatchOwnersRequest, caller: Caller, is_active: Callable[[], bool]
    ) -> Iterator[owners_pb2.OwnersChange]:
        self.authority.require(caller, "owner.read")
        self.authority.looked(caller, "owner.watch")
        yield from WATCH.stream(self.authority, request, is_active)
