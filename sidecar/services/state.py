"""The service State (proto/remit/authority/v1/state.proto)."""

from pathlib import Path

from sidecar._proto.remit.authority.v1 import state_pb2, state_pb2_grpc
from sidecar.authority.draft import Caller
from sidecar.services.authority_calls import Service, answered


class State(Service, state_pb2_grpc.StateServicer):
    """Asks the authority's policies first."""

    @answered
    def Backup(self, request: state_pb2.BackupRequest, caller: Caller) -> state_pb2.BackupResponse:
        self.authority.require(caller, "state.backup")
        epoch, size = self.authority.store.backup(Path(request.directory))
        self.authority.looked(caller, "state.backup")
        return state_pb2.BackupResponse(epoch=epoch, bytes=size)
