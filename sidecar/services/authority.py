"""All authority services on one gRPC server."""

import threading

import grpc

from sidecar._proto.remit.authority.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    approvals_pb2,
    approvals_pb2_grpc,
    owners_pb2,
    owners_pb2_grpc,
    revocations_pb2,
    revocations_pb2_grpc,
    state_pb2,
    state_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
)
from sidecar.authority.authority import Authority
from sidecar.services.agents import AgentView
from sidecar.services.approvals import Approvals
from sidecar.services.authority_calls import WATCHERS, Resolve
from sidecar.services.owners import Owners
from sidecar.services.revocations import Revocations
from sidecar.services.state import State
from sidecar.services.tasks import Tasks

FILES = (tasks_pb2, revocations_pb2, approvals_pb2, owners_pb2, agents_pb2, state_pb2)


def add_authority(server: grpc.Server, authority: Authority, resolve: Resolve) -> None:
    """Serve tasks, revocations, approvals, owners, the view of an agent, and backups to whoever `resolve` names."""
    watchers = threading.Semaphore(WATCHERS)
    tasks_pb2_grpc.add_TasksServicer_to_server(Tasks(authority, resolve, watchers), server)
    revocations_pb2_grpc.add_RevocationsServicer_to_server(Revocations(authority, resolve, watchers), server)
    approvals_pb2_grpc.add_ApprovalsServicer_to_server(Approvals(authority, resolve, watchers), server)
    owners_pb2_grpc.add_OwnersServicer_to_server(Owners(authority, resolve, watchers), server)
    agents_pb2_grpc.add_AgentViewServicer_to_server(AgentView(authority, resolve, watchers), server)
    state_pb2_grpc.add_StateServicer_to_server(State(authority, resolve, watchers), server)
