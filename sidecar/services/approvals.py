"""The service Approvals (proto/remit/authority/v1/approvals.proto)."""

from collections.abc import Callable, Iterator

from sidecar._proto.remit.authority.v1 import approvals_pb2, approvals_pb2_grpc
from sidecar.authority import approvals
from sidecar.authority.authority import Authority
from sidecar.authority.draft import (
    APPROVALS,
    QUEUE_AGENT,
    QUEUE_APPROVER,
    REVIEWS,
    TASKS,
    Caller,
    Draft,
    hashed,
)
from sidecar.authority.errors import invalid
from sidecar.authority.messages import APPROVAL_SCOPES, APPROVAL_STATES, approval_message
from sidecar.authority.rows import WAITING, Approval, ApprovalState, Task, decode
from sidecar.authority.texts import check_text
from sidecar.services.authority_calls import Service, Watch, answered, page, streamed

WATCH: Watch[Approval, approvals_pb2.ApprovalsChange] = Watch(
    APPROVALS,
    Approval,
    approvals_pb2.ApprovalsChange,
    put=lambda row: {"put": approval_message(row)},
    gone=lambda row: {"forget": row.id},
    keep=lambda row: row.state in WAITING,
)


class Approvals(Service, approvals_pb2_grpc.ApprovalsServicer):
    """Every method asks the authority's policies first."""

    @answered
    def Request(self, request: approvals_pb2.RequestApprovalRequest, caller: Caller) -> approvals_pb2.Approval:
        self.authority.refuse_following()
        denial = denial_of(self.authority, request.evaluation_id)
        with self.authority.store.read() as draft:
            task = draft.find(TASKS, denial.task.encode() or b"\0", Task)
        chain = task.chain if task is not None else ()
        owner = task.owner if task is not None else denial.owner
        self.authority.require(
            caller,
            "approval.break_glass" if request.emergency else "approval.request",
            agent=denial.agent,
            owner=owner,
            own_agent=caller.is_any((denial.agent,)),
            in_chain=caller.is_any(chain),
            own_owner=caller.kind == "person" and bool(owner) and caller.id == owner,
        )
        asked = approvals.RequestApproval(
            denial=denial,
            justification=request.justification,
            approver=request.approver,
            ttl_s=request.ttl_s,
            emergency=request.emergency,
            uses=request.uses,
        )
        return self.change(
            caller,
            "approval.request",
            request,
            lambda draft: approval_message(approvals.request_approval(draft, asked, caller)),
            approvals_pb2.Approval,
        )

    @answered
    def Decide(self, request: approvals_pb2.DecideApprovalRequest, caller: Caller) -> approvals_pb2.Approval:
        self._require(caller, "approval.decide", request.id)
        scope = APPROVAL_SCOPES.get(request.scope)
        if scope is None:
            raise invalid("scope", "is neither exact nor class")
        asked = approvals.DecideApproval(
            id=request.id,
            approve=request.approve,
            expected_digest=request.expected_digest,
            scope=scope,
            uses=request.uses,
            ttl_s=request.ttl_s,
            comment=request.comment,
        )
        return self.change(
            caller,
            "approval.decide",
            request,
            lambda draft: approval_message(approvals.decide_approval(draft, asked, caller)),
            approvals_pb2.Approval,
        )

    @answered
    def Cancel(self, request: approvals_pb2.CancelApprovalRequest, caller: Caller) -> approvals_pb2.Approval:
        self._require(caller, "approval.cancel", request.id)
        asked = approvals.CancelApproval(id=request.id, reason=request.reason)
        return self.change(
            caller,
            "approval.cancel",
            request,
            lambda draft: approval_message(approvals.cancel_approval(draft, asked, caller)),
            approvals_pb2.Approval,
        )

    @answered
    def Review(self, request: approvals_pb2.ReviewApprovalRequest, caller: Caller) -> approvals_pb2.Approval:
        self._require(caller, "approval.review", request.id)
        asked = approvals.ReviewApproval(id=request.id, comment=request.comment)
        return self.change(
            caller,
            "approval.review",
            request,
            lambda draft: approval_message(approvals.review_approval(draft, asked, caller)),
            approvals_pb2.Approval,
        )

    @answered
    def Get(self, request: approvals_pb2.GetApprovalRequest, caller: Caller) -> approvals_pb2.Approval:
        self._require(caller, "approval.read", request.id)
        self.authority.looked(caller, "approval.read")
        with self.authority.store.read() as draft:
            row = approvals.get_approval(draft, request.id)
            return approval_message(row, self.authority.live.uses(row.id))

    @answered
    def List(self, request: approvals_pb2.ListApprovalsRequest, caller: Caller) -> approvals_pb2.ListApprovalsResponse:
        self.authority.require(
            caller,
            "approval.read",
            agent=request.agent,
            own_agent=caller.is_any((request.agent,)),
            assigned=caller.id == request.approver,
        )
        self.authority.looked(caller, "approval.read")
        with self.authority.store.read() as draft:
            rows, token = list_approvals(draft, request)
            return approvals_pb2.ListApprovalsResponse(
                approvals=[approval_message(row, self.authority.live.uses(row.id)) for row in rows],
                next_page_token=token,
            )

    @streamed
    def Watch(
        self, request: approvals_pb2.WatchApprovalsRequest, caller: Caller, is_active: Callable[[], bool]
    ) -> Iterator[approvals_pb2.ApprovalsChange]:
        self.authority.require(caller, "approval.read")
        self.authority.looked(caller, "approval.watch")
        yield from WATCH.stream(self.authority, request, is_active)

    def _require(self, caller: Caller, action: str, id_: str) -> None:
        self.authority.refuse_following()
        with self.authority.store.read() as draft:
            row = approvals.get_approval(draft, id_)
        self.authority.require(
            caller,
            action,
            agent=row.agent,
            owner=row.owner,
            own_agent=caller.is_any((row.agent,)),
            in_chain=caller.is_any(row.chain),
            own_owner=caller.kind == "person" and caller.id == row.owner,
            own_request=caller.id in row.askers,
            assigned=caller.id == row.approver,
        )


def denial_of(authority: Authority, evaluation_id: str) -> approvals.Denial:
    """What was answered STEP_UP. MissingError when nobody remembers."""
    check_text("evaluation_id", evaluation_id)
    found = authority.step_up(evaluation_id)
    kind = found["resource_type"]
    path, _, query = found["target"].partition("?")
    return approvals.Denial(
        evaluation_id=evaluation_id,
        digest=found["digest"],
        class_digest=found["class_digest"],
        task=found["task"],
        agent=found["agent"],
        action=found["action"],
        resource=f"{kind}::{found['resource']}" if kind else found["resource"],
        destination=found["destination"],
        data_level=found["data_level"],
        reason=found["reason"],
        emergency_only=found["emergency_only"],
        truncated=found["truncated"],
        generation=found["generation"],
        owner=authority.owner_of(found["agent"]).id,
        data_labels=tuple(found["data_labels"]),
        cost=found["cost"],
        method=found["http_method"],
        path=path,
        query=query,
        content_unseen=found["content_unseen"],
    )


def list_approvals(draft: Draft, request: approvals_pb2.ListApprovalsRequest) -> tuple[list[Approval], str]:
    """A page of approvals, and the token of the next one."""
    wanted = APPROVAL_STATES.get(request.state, ApprovalState.PENDING)
    table, prefix = APPROVALS, b""
    if request.review_due:
        table = REVIEWS
    elif wanted is ApprovalState.PENDING and request.approver:
        table, prefix = QUEUE_APPROVER, hashed(request.approver)
    elif wanted is ApprovalState.PENDING and request.agent:
        table, prefix = QUEUE_AGENT, hashed(request.agent)

    def row(key: bytes, stored: bytes) -> Approval | None:
        return decode(stored, Approval) if table == APPROVALS else draft.find(APPROVALS, key[len(prefix) :], Approval)

    def keep(key: bytes, stored: bytes) -> bool:
        found = row(key, stored)
        return (
            found is not None
            and (request.review_due or found.state is wanted)
            and (not request.approver or found.approver == request.approver)
            and (not request.agent or found.agent == request.agent)
        )

    found = page(draft, table, prefix, request.page_size, request.page_token, keep)
    rows = (row(key, stored) for key, stored in found.rows)
    return [one for one in rows if one is not None], found.token
