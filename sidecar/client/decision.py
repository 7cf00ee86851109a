"""A question to the sidecar and its answer, as plain values."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.client.errors import ApprovalNeeded, Denied, RemitError, TaskNeeded, Unavailable

TASK_STEPS = ("open_task", "name_task")


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question. Only `allowed` means yes."""

    outcome: str
    """"ALLOW", "DENY" or "STEP_UP"; "ERROR" inside a batch."""
    reason: str
    next: str
    evaluation_id: str
    request_id: str
    obligation: str
    policy_ids: tuple[str, ...]
    generation: int
    epoch: int
    cacheable: bool

    @property
    def allowed(self) -> bool:
        return self.outcome == "ALLOW"

    def error(self) -> RemitError:
        """Why not, as the error that `require` raises."""
        about = {"reason": self.reason, "next_": self.next, "evaluation_id": self.evaluation_id}
        if self.outcome == "STEP_UP":
            return ApprovalNeeded(f"needs an approval: {self.reason}", **about)
        if self.outcome == "DENY":
            kind = TaskNeeded if self.next in TASK_STEPS else Denied
            return kind(f"denied: {self.reason}", **about)
        return Unavailable(f"nobody decided: {self.reason or 'no answer'}", **about)


def question(
    action: str,
    tool: str,
    *,
    resource_type: str = "Tool",
    destination: str = "",
    arguments: Mapping[str, Any] | None = None,
    data_level: int = 0,
    data_labels: Sequence[str] = (),
    task: str = "",
    cost: int = 0,
    trace_id: str = "",
    span_id: str = "",
    dry_run: bool = False,
    request_id: str = "",
) -> authz_pb2.CheckRequest:
    """One question, with an id of its own, so that a repeated one counts once."""
    request = authz_pb2.CheckRequest(
        request_id=request_id or uuid.uuid4().hex,
        action=action,
        resource=authz_pb2.EntityUid(type=resource_type, id=tool),
        destination=destination,
        data_level=data_level,
        data_labels=data_labels,
        task=task,
        cost=cost,
        trace_id=trace_id,
        span_id=span_id,
        dry_run=dry_run,
    )
    if arguments is not None:
        request.arguments.update(arguments)
    return request


def decision_of(answer: authz_pb2.CheckResponse) -> Decision:
    """The answer as a value. An outcome that this version does not know is no yes."""
    known = answer.outcome in authz_pb2.Outcome.values()
    name = authz_pb2.Outcome.Name(answer.outcome) if known else ""
    return Decision(
        outcome=name.removeprefix("OUTCOME_") if name and answer.outcome else "ERROR",
        reason=answer.reason,
        next=answer.next,
        evaluation_id=answer.evaluation_id,
        request_id=answer.request_id,
        obligation=answer.obligation,
        policy_ids=tuple(answer.policy_ids),
        generation=answer.generation,
        epoch=answer.revocation_epoch,
        cacheable=answer.cacheable,
    )
