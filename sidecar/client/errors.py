"""What a caller can be told instead of a yes. Each error says why, and what can be done next."""

import grpc

ADVICE = {
    "request_approval": "ask for an approval with the evaluation id, then try again",
    "open_task": "have somebody open a task that covers this call; an agent cannot open its own",
    "name_task": "several tasks are open: name the one that this call belongs to",
    "ask_owner": "ask the owner of the agent; nothing that the agent does changes this",
    "retry": "ask again in a moment",
}


class RemitError(Exception):
    """Nothing may be done. `reason` is a stable code, `next` a word of ADVICE or empty, `evaluation_id` names the
    decision in the records."""

    def __init__(self, message: str, *, reason: str = "", next_: str = "", evaluation_id: str = "") -> None:
        advice = ADVICE.get(next_, "")
        super().__init__(f"{message}{f'; {advice}' if advice else ''}")
        self.reason = reason
        self.next = next_
        self.evaluation_id = evaluation_id


class Denied(RemitError):
    """The call may not be made. Trying again changes nothing unless something else changes first."""


class ApprovalNeeded(Denied):
    """The call may be made once somebody outside the chain of agents approves it."""


class TaskNeeded(Denied):
    """No open task of the agent covers the call."""


class Unavailable(RemitError):
    """Nobody decided: the sidecar cannot be reached, is not ready, or did not answer in time. Not a yes."""


class Refused(RemitError):
    """The request itself was wrong, or the caller may not make it. `status` is the gRPC status code."""

    def __init__(self, message: str, *, status: grpc.StatusCode) -> None:
        super().__init__(message, reason=status.name.lower())
        self.status = status


TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def is_transient(error: grpc.RpcError) -> bool:
    """Whether the same request may succeed in a moment."""
    return error.code() in TRANSIENT


def error_of(error: grpc.RpcError) -> RemitError:
    """The gRPC status of a failed call as an error that says why and what next."""
    code, details = error.code(), error.details() or ""
    if code in (*TRANSIENT, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return Unavailable(f"nobody decided: {details or code.name.lower()}", reason=details, next_="retry")
    return Refused(f"{code.name.lower().replace('_', ' ')}: {details}", status=code)
