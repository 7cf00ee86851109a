"""What a client does, step by step, without saying how a step is made: the same for threads and for asyncio.

Each function is a generator of Call and Pause steps; whoever drives it sends back the answer of a Call, or throws its
grpc.RpcError in.
"""

import random
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from sidecar._proto.remit.authority.v1 import approvals_pb2
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.client.decision import Decision, decision_of
from sidecar.client.errors import ApprovalNeeded, Unavailable, error_of, is_transient

T = TypeVar("T")
FIRST_PAUSE_S = 0.02
PAUSE_MAX_S = 1.0
LOOK_S = 1.0


class Call(NamedTuple):
    """Make one call of a service ("authz", "tasks", "approvals", ..) and give its answer back."""

    service: str
    method: str
    request: Message
    timeout_s: float


class Pause(NamedTuple):
    """Wait before the next step."""

    seconds: float


Steps = Generator[Call | Pause, Any, T]


def calling(service: str, method: str, request: Message, timeout_s: float) -> Steps[Any]:
    """One call, repeated while the other side is away and there is time; RemitError when it fails."""
    end = time.monotonic() + timeout_s
    pause = FIRST_PAUSE_S
    while True:
        left = end - time.monotonic()
        try:
            return (yield Call(service, method, request, max(left, 0.001)))
        except grpc.RpcError as error:
            if not is_transient(error) or left <= pause:
                raise error_of(error) from None
        # Half of it by chance: callers that failed together do not come back together.
        yield Pause(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, PAUSE_MAX_S)


def checking(request: authz_pb2.CheckRequest, timeout_s: float) -> Steps[Decision]:
    """Ask one question."""
    answer = yield from calling("authz", "Check", request, timeout_s)
    return decision_of(answer)


def requiring(
    ask: Callable[[], authz_pb2.CheckRequest], timeout_s: float, *, justification: str, wait_s: float
) -> Steps[Decision]:
    """Ask, and accept nothing but ALLOW; with `wait_s`, ask for the approval that is missing and wait for it."""
    decision = yield from checking(ask(), timeout_s)
    if decision.outcome == "STEP_UP" and wait_s > 0:
        yield from approving(decision, justification, timeout_s, wait_s)
        decision = yield from checking(ask(), timeout_s)
    if not decision.allowed:
        raise decision.error()
    return decision


def approving(decision: Decision, justification: str, timeout_s: float, wait_s: float) -> Steps[None]:
    """Ask for the approval of a STEP_UP and wait until somebody decided; ApprovalNeeded when nobody granted it."""
    end = time.monotonic() + wait_s
    asked = approvals_pb2.RequestApprovalRequest(
        idempotency_key=decision.evaluation_id, evaluation_id=decision.evaluation_id, justification=justification
    )
    found = yield from calling("approvals", "Request", asked, timeout_s)
    while found.state == approvals_pb2.APPROVAL_STATE_PENDING:
        if time.monotonic() > end:
            raise ApprovalNeeded(
                f"nobody decided within {wait_s:g} s on approval `{found.id}`",
                reason=decision.reason,
                next_="retry",  # the question stands, and who asks it again gets the same one
                evaluation_id=decision.evaluation_id,
            )
        yield Pause(LOOK_S)
        found = yield from calling("approvals", "Get", approvals_pb2.GetApprovalRequest(id=found.id), timeout_s)
    if found.state != approvals_pb2.APPROVAL_STATE_GRANTED:
        state = approvals_pb2.ApprovalState.Name(found.state).removeprefix("APPROVAL_STATE_").lower()
        raise ApprovalNeeded(
            f"approval `{found.id}` was {state}{f': {found.comment}' if found.comment else ''}",
            reason=decision.reason,
            evaluation_id=decision.evaluation_id,
        )


def batching(requests: list[authz_pb2.CheckRequest], timeout_s: float) -> Steps[list[Decision]]:
    """Ask several questions against one state; the answers come in the same order."""
    answer = yield from calling("authz", "BatchCheck", authz_pb2.BatchCheckRequest(items=requests), timeout_s)
    if len(answer.items) != len(requests):
        raise Unavailable(f"{len(answer.items)} answers came for {len(requests)} questions", next_="retry")
    return [decision_of(item) for item in answer.items]
