"""The service AgentView: what an agent may do now (proto/remit/authority/v1/agents.proto)."""

from fastpath.authority import Live
from sidecar._proto.remit.authority.v1 import agents_pb2, agents_pb2_grpc, approvals_pb2, tasks_pb2
from sidecar.authority.authority import AgentOwner
from sidecar.authority.draft import Caller, Draft
from sidecar.authority.messages import (
    approval_message,
    owner_message,
    revocation_message,
    task_message,
)
from sidecar.authority.owners import find_owner
from sidecar.authority.revocations import check_agent, matching, trust_domain_of
from sidecar.authority.rows import Kind, Mode, Owner, Revocation, Task, TaskState
from sidecar.services.approvals import list_approvals
from sidecar.services.authority_calls import Service, answered
from sidecar.services.tasks import list_tasks


class AgentView(Service, agents_pb2_grpc.AgentViewServicer):
    """Asks the authority's policies first."""

    @answered
    def Show(self, request: agents_pb2.ShowAgentRequest, caller: Caller) -> agents_pb2.EffectiveAuthority:
        check_agent(request.agent)
        self.authority.require(caller, "agent.show", agent=request.agent, own_agent=caller.is_any((request.agent,)))
        self.authority.looked(caller, "agent.show")
        owner = self.authority.owner_of(request.agent)
        classes = self.authority.classes_of(request.agent)
        with self.authority.store.read() as draft:
            return _view(draft, request.agent, owner, classes, self.authority.live)


def _view(draft: Draft, agent: str, owner: AgentOwner, classes: list[str], live: Live) -> agents_pb2.EffectiveAuthority:
    found, more = list_tasks(draft, tasks_pb2.ListTasksRequest(agent=agent))
    people = sorted({owner.id, *(task.owner for task in found)} - {""})
    owners = [row for name in people if (row := find_owner(draft, name)) is not None]
    hits = _revocations(draft, agent, classes, found, people)
    asked = [
        row
        for state in (approvals_pb2.APPROVAL_STATE_PENDING, approvals_pb2.APPROVAL_STATE_GRANTED)
        for row in list_approvals(draft, approvals_pb2.ListApprovalsRequest(agent=agent, state=state))[0]
    ]
    return agents_pb2.EffectiveAuthority(
        agent=agent,
        owner=owner.id,
        epoch=draft.epoch,
        tasks=[task_message(task, draft.spending.left(task.id)) for task in found],
        more_tasks=bool(more),
        revocations=[revocation_message(row) for row in hits],
        approvals=[approval_message(row, live.uses(row.id)) for row in asked],
        owners=[owner_message(row) for row in owners],
        verdict=verdict(found, hits, owners, owner),
    )


def _revocations(
    draft: Draft, agent: str, classes: list[str], tasks: list[Task], people: list[str]
) -> list[Revocation]:
    """Those that meet the agent by name; tools, servers, destinations and credentials depend on the call."""
    targets = [
        (Kind.AGENT, agent),
        (Kind.TRUST_DOMAIN, trust_domain_of(agent)),
        *((Kind.TASK, task.id) for task in tasks),
        *((Kind.OWNER, person) for person in people),
        *((Kind.CLASS, name) for name in classes),
    ]
    return [row for kind, key in targets for row in matching(draft, kind, key)]


def verdict(tasks: list[Task], revocations: list[Revocation], owners: list[Owner], own: AgentOwner) -> str:
    """What stands in the way of every call, in a few words; empty: nothing that is known without the call."""
    for row in revocations:
        if row.kind in (Kind.AGENT, Kind.CLASS, Kind.TRUST_DOMAIN) and row.mode is Mode.DENY:
            return f"{row.kind} is revoked"
    disabled = {row.id for row in owners if not row.active}
    ended = {row.key for row in revocations if row.mode is Mode.DENY and row.kind in (Kind.TASK, Kind.OWNER)}
    if not own.id:
        return "nobody answers for the agent"
    if own.id in disabled or not own.active:
        return "the agent's owner is disabled"
    if own.id in ended:
        return "the agent's owner is revoked"
    if not tasks:
        return "no open task"
    standing = [task for task in tasks if task.state is TaskState.OPEN]
    if not standing:
        return "every task is suspended"
    if all(task.owner in disabled for task in standing):
        return "every task's owner is disabled"
    if all(task.id in ended or task.owner in ended for task in standing):
        return "every task is revoked"
    return ""
