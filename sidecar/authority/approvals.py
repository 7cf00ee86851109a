"""Approvals: a person looks before an action happens, as changes to a draft.

A grant is bound to the digest of what was asked, to the generation of policies that asked for it and to the task, or to
calls of no task where a policy needs none. It covers no call of more than was shown (level and labels of its data,
cost), is used once unless more was granted, and nobody of the chain that asks can give it. Nobody's decision is a
refusal: a question that waits too long expires. A call whose content did not reach the sidecar could be any, so it can
only be granted by class.
"""

from typing import NamedTuple

import msgspec

from sidecar.authority.draft import (
    APPROVALS,
    ASKED,
    QUEUE_AGENT,
    QUEUE_APPROVER,
    REVIEWS,
    SECOND_NS,
    TASK_APPROVALS,
    TASKS,
    Caller,
    Draft,
    hashed,
)
from sidecar.authority.errors import DeniedError, ExhaustedError, StateError, invalid, missing
from sidecar.authority.rows import LIVING, WAITING, Approval, ApprovalState, Task

TEXT_BYTES_MAX = 2048
ASKERS_MAX = 8
NEVER_NS = (1 << 63) - 1
UNDECIDED_S = 600  # a question that ended without a decision can be looked up this long
EXPIRE, PURGE = "A", "a"
EXACT, CLASS = "exact", "class"

# (state, command): the state after it. What is not here is refused.
TRANSITIONS = {
    (ApprovalState.PENDING, "grant"): ApprovalState.GRANTED,
    (ApprovalState.PENDING, "deny"): ApprovalState.DENIED,
    (ApprovalState.PENDING, "cancel"): ApprovalState.CANCELLED,
    (ApprovalState.PENDING, "expire"): ApprovalState.EXPIRED,
    (ApprovalState.PENDING, "revoke"): ApprovalState.REVOKED,
    (ApprovalState.GRANTED, "cancel"): ApprovalState.CANCELLED,
    (ApprovalState.GRANTED, "expire"): ApprovalState.EXPIRED,
    (ApprovalState.GRANTED, "revoke"): ApprovalState.REVOKED,
}


class Denial(NamedTuple):
    """A call that was answered STEP_UP, as the data plane remembers it: what an approval would be about."""

    evaluation_id: str
    digest: bytes
    """Of subject, action, resource, destination, arguments, and of an HTTP call method, path, query and body."""
    class_digest: bytes
    """Of subject, action and resource alone."""
    task: str
    agent: str
    action: str
    resource: str
    destination: str
    data_level: int
    reason: str
    emergency_only: bool = False
    """It was a DENY that only breaking the glass crosses."""
    truncated: bool = False
    """Some of the texts above are cut."""
    owner: str = ""
    """Who answers for the agent, by its entity."""
    generation: int = 0
    """Of the policies that asked for an approval."""
    data_labels: tuple[str, ...] = ()
    cost: int = 0
    method: str = ""
    path: str = ""
    query: str = ""
    content_unseen: bool = False


class RequestApproval(msgspec.Struct, frozen=True, kw_only=True):
    denial: Denial
    justification: str = ""
    approver: str = ""
    ttl_s: int = 0
    emergency: bool = False
    uses: int = 0


class DecideApproval(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    approve: bool
    expected_digest: bytes = b""
    scope: str = EXACT
    uses: int = 0
    ttl_s: int = 0
    comment: str = ""


class CancelApproval(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    reason: str = ""


class ReviewApproval(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    comment: str = ""


# ---------------------------------------------------------------- commands


def request_approval(draft: Draft, asked: RequestApproval, by: Caller) -> Approval:
    """A question to a person; the one that waits already when the same was asked. An emergency is granted at once."""
    denial = asked.denial
    about = _about(draft, denial)
    _check_text("justification", asked.justification)
    _check_text("approver", asked.approver)
    if denial.truncated:
        raise StateError("a name in the call is too long to be shown whole; nobody can approve what they cannot read")
    if denial.emergency_only and not asked.emergency:
        raise StateError("the call is denied by rules that an approval does not lift; ask nobody, or break the glass")
    if asked.emergency:
        return _break_glass(draft, asked, about, by)
    same = draft.find(ASKED, _same(denial), _Asked)
    if same is not None:
        return _ask_as_well(draft, get_approval(draft, same.id), by)
    approver = asked.approver or about.owner
    if not approver:
        raise invalid("approver", "is empty, and nobody answers for the agent; name who is to decide")
    _refuse_long_queue(draft, approver, denial.agent)
    wait_s = _seconds(asked.ttl_s, draft.limits.approval_wait_s, "ttl_s")
    row = _new(draft, asked, about, by, approver, min(about.expires_ns, draft.now_ns + wait_s * SECOND_NS))
    _put(draft, row)
    key = row.id.encode()
    draft.put(ASKED, _same(denial), _Asked(row.id))
    draft.mark(QUEUE_APPROVER, hashed(approver) + key)
    draft.mark(QUEUE_AGENT, hashed(row.agent) + key)
    _mark_task(draft, row)
    draft.due(row.expires_ns, EXPIRE, key)
    draft.event("approval.requested", by, approval=row.id, task=row.task, agent=row.agent, action=row.action)
    return row


def _ask_as_well(draft: Draft, row: Approval, by: Caller) -> Approval:
    """The question that waits, with `by` among those who asked: none of them can decide."""
    if by.id in row.askers:
        return row
    if len(row.askers) == ASKERS_MAX:
        raise ExhaustedError(f"{ASKERS_MAX} callers have asked for approval `{row.id}` already; wait for its decision")
    row = msgspec.structs.replace(row, also_asked_by=(*row.also_asked_by, by.id), rev=row.rev + 1, epoch=draft.epoch)
    _put(draft, row)
    draft.event("approval.requested", by, approval=row.id, task=row.task, agent=row.agent, action=row.action)
    return row


def decide_approval(draft: Draft, asked: DecideApproval, by: Caller) -> Approval:
    """Grant or refuse what waits. Nobody of the chain that asks, nor who asked, can."""
    row = get_approval(draft, asked.id)
    after = _next_state(row, "grant" if asked.approve else "deny")
    if row.expires_ns <= draft.now_ns:
        raise StateError(f"approval `{row.id}` waited too long; the agent must ask again")
    if asked.expected_digest and asked.expected_digest != row.digest:
        raise StateError(f"approval `{row.id}` is for another call than you looked at; look at it again")
    _refuse_dependent(draft, row, by)
    _check_text("comment", asked.comment)
    _leave_queues(draft, row)
    row = msgspec.structs.replace(
        row, state=after, decided_by=by.id, decided_ns=draft.now_ns, comment=asked.comment, rev=row.rev + 1
    )
    if asked.approve:
        row = _granted(draft, row, asked)
    else:
        draft.drop(TASK_APPROVALS, row.task.encode() + row.id.encode())
        _purge_later(draft, row, draft.limits.keep_closed_s)
    row = msgspec.structs.replace(row, epoch=draft.epoch)
    _put(draft, row)
    draft.event(
        f"approval.{after}", by, approval=row.id, task=row.task, agent=row.agent, scope=row.scope, uses=row.uses
    )
    return row


def cancel_approval(draft: Draft, asked: CancelApproval, by: Caller) -> Approval:
    """Take back a question, or a grant that was not used up."""
    row = get_approval(draft, asked.id)
    _check_text("reason", asked.reason)
    return _end(draft, row, "cancel", asked.reason, by)


def review_approval(draft: Draft, asked: ReviewApproval, by: Caller) -> Approval:
    """Somebody else looked at what a break-glass grant was used for."""
    row = get_approval(draft, asked.id)
    if row.review != "due":
        raise StateError(f"approval `{row.id}` needs no review")
    if by.id == row.decided_by:
        raise DeniedError("who broke the glass cannot review it; let somebody else do it")
    _check_text("comment", asked.comment)
    row = msgspec.structs.replace(row, review="done", reviewed_by=by.id, rev=row.rev + 1, epoch=draft.epoch)
    draft.put(APPROVALS, row.id.encode(), row)
    draft.drop(REVIEWS, row.id.encode())
    _purge_later(draft, row, draft.limits.keep_closed_s)
    draft.event("approval.reviewed", by, approval=row.id, comment=asked.comment)
    return row


def get_approval(draft: Draft, id_: str) -> Approval:
    """NOT_FOUND when there is none."""
    raw = id_.encode(errors="replace")
    row = draft.find(APPROVALS, raw if 0 < len(raw) <= 64 else b"\0", Approval)
    if row is None:
        raise missing("approval", id_)
    return row


# ---------------------------------------------------------------- what else ends them


def undo_approvals(draft: Draft, task: str, by: Caller) -> list[str]:
    """A task has ended: what waits for it or was granted to it ends as well. Ids of those."""
    undone = []
    for name in draft.names(TASK_APPROVALS, task.encode()):
        row = draft.find(APPROVALS, name.encode(), Approval)
        if row is not None and row.state in WAITING:
            _end(draft, row, "revoke", "its task ended", by)
            undone.append(name)
    return undone


def expire_approval(draft: Draft, key: bytes, by: Caller) -> None:
    """The question waited too long, or the grant's time is over, if it is."""
    row = draft.find(APPROVALS, key, Approval)
    if row is not None and row.state in WAITING and row.expires_ns <= draft.now_ns:
        _end(draft, row, "expire", "nobody decided in time" if row.state is ApprovalState.PENDING else "", by)


def purge_approval(draft: Draft, key: bytes) -> None:
    """A decided approval is not kept any longer, unless somebody must still look at it."""
    row = draft.find(APPROVALS, key, Approval)
    if row is None or row.state in WAITING or row.review == "due":
        return
    draft.drop(APPROVALS, key, row)


def live_approval(row: Approval) -> dict[str, object]:
    """The approval as the native view takes it."""
    return {
        "id": row.id,
        "generation": row.generation,
        "digest": row.class_digest if row.scope == CLASS else row.digest,
        "task": row.task,
        "agent": row.agent,
        "action": row.action,
        "resource": row.resource,
        "destination": row.destination,
        "data_level": row.data_level,
        "data_labels": row.data_labels,
        "cost": row.cost,
        "scope": row.scope,
        "uses": row.uses,
        "expires_unix_ns": row.expires_ns,
        "decided_unix_ns": row.decided_ns,
        "self_approved": False,
        "break_glass": row.break_glass,
        "state": str(row.state),
    }


# ---------------------------------------------------------------- parts


class _Asked(msgspec.Struct, frozen=True):
    id: str


def _same(asked: Denial | Approval) -> bytes:
    """What makes two questions one: more than was asked about is another question, as is one under new policies."""
    more = repr((asked.data_level, sorted(asked.data_labels), asked.cost, asked.generation))
    return hashed(asked.task, asked.action, asked.resource, asked.digest, more)


class _About(NamedTuple):
    """What a question is about beside the call: the task that it was made for, or the agent alone."""

    chain: tuple[str, ...]
    owner: str
    purpose: str
    expires_ns: int


def _about(draft: Draft, denial: Denial) -> _About:
    """StateError when the call's task has ended. A call of a class that needs no task is its agent's."""
    if not denial.task:
        return _About((denial.agent,), denial.owner, "", NEVER_NS)
    task = draft.find(TASKS, denial.task.encode(), Task)
    if task is None or task.state not in LIVING or task.agent != denial.agent:
        raise StateError("the call's task has ended; there is nothing to approve")
    return _About(task.chain, task.owner, task.purpose, task.expires_ns)


def _mark_task(draft: Draft, row: Approval) -> None:
    """Have it end with its task."""
    if row.task:
        draft.mark(TASK_APPROVALS, row.task.encode() + row.id.encode())


def _new(draft: Draft, asked: RequestApproval, about: _About, by: Caller, approver: str, expires_ns: int) -> Approval:
    denial = asked.denial
    return Approval(
        id=draft.new_id(),
        state=ApprovalState.PENDING,
        evaluation_id=denial.evaluation_id,
        digest=denial.digest,
        class_digest=denial.class_digest,
        task=denial.task,
        agent=denial.agent,
        chain=about.chain,
        owner=about.owner,
        purpose=about.purpose,
        action=denial.action,
        resource=denial.resource,
        destination=denial.destination,
        data_level=denial.data_level,
        data_labels=denial.data_labels,
        cost=denial.cost,
        method=denial.method,
        path=denial.path,
        query=denial.query,
        content_unseen=denial.content_unseen,
        reason=denial.reason,
        generation=denial.generation,
        justification=asked.justification,
        requested_by=by.id,
        approver=approver,
        requested_ns=draft.now_ns,
        expires_ns=expires_ns,
        epoch=draft.epoch,
    )


def _break_glass(draft: Draft, asked: RequestApproval, about: _About, by: Caller) -> Approval:
    """Granted at once to a named person who says why, for minutes, and looked at afterwards."""
    limits = draft.limits
    if by.kind != "person":
        raise DeniedError("only a named person can break the glass")
    if by.is_any(about.chain):
        raise DeniedError("nobody of the chain that asks can break the glass for it")
    if not asked.justification.strip():
        raise invalid("justification", "is empty; say why this cannot wait")
    uses = asked.uses or 1
    if not 1 <= uses <= limits.break_glass_uses_max:
        raise invalid("uses", f"is {uses}; 1 to {limits.break_glass_uses_max} can be")
    ttl_s = _seconds(asked.ttl_s, limits.break_glass_s_max, "ttl_s")
    row = _new(draft, asked, about, by, about.owner, min(about.expires_ns, draft.now_ns + ttl_s * SECOND_NS))
    row = msgspec.structs.replace(
        row,
        state=ApprovalState.GRANTED,
        scope=CLASS if row.content_unseen else EXACT,
        uses=uses,
        decided_by=by.id,
        decided_ns=draft.now_ns,
        break_glass=True,
        review="due",
        notify=tuple(name for name in dict.fromkeys((row.owner, *limits.security)) if name and name != by.id),
    )
    key = row.id.encode()
    _put(draft, row)
    draft.mark(REVIEWS, key)
    _mark_task(draft, row)
    draft.due(row.expires_ns, EXPIRE, key)
    draft.event(
        "approval.break_glass",
        by,
        approval=row.id,
        task=row.task,
        owner=row.owner,
        notify=",".join(row.notify),
        why=asked.justification,
    )
    return row


def _granted(draft: Draft, row: Approval, asked: DecideApproval) -> Approval:
    limits = draft.limits
    if asked.scope not in (EXACT, CLASS):
        raise invalid("scope", f"`{asked.scope}` is neither {EXACT} nor {CLASS}")
    if row.content_unseen and asked.scope == EXACT:
        raise StateError(
            f"approval `{row.id}`: content unseen: the call's body did not reach the sidecar, so this could be any "
            f"call; approve with scope {CLASS}, or have Envoy send the body on this route (`remit envoy-config`)"
        )
    uses = asked.uses or 1
    if not 1 <= uses <= limits.approval_uses_max:
        raise invalid("uses", f"is {uses}; 1 to {limits.approval_uses_max} can be")
    ttl_s = _seconds(asked.ttl_s, limits.approval_grant_s, "ttl_s")
    expires_ns = min(_task_end(draft, row), draft.now_ns + ttl_s * SECOND_NS)
    draft.due(expires_ns, EXPIRE, row.id.encode())
    return msgspec.structs.replace(row, scope=asked.scope, uses=uses, expires_ns=expires_ns)


def _task_end(draft: Draft, row: Approval) -> int:
    """When its task ends at the latest. StateError when it has."""
    if not row.task:
        return NEVER_NS
    task = draft.find(TASKS, row.task.encode(), Task)
    if task is None or task.state not in LIVING:
        raise StateError(f"task `{row.task}` has ended; there is nothing to approve")
    return task.expires_ns


def _end(draft: Draft, row: Approval, command: str, reason: str, by: Caller) -> Approval:
    """A question or a grant is over."""
    after = _next_state(row, command)
    if row.state is ApprovalState.PENDING:
        _leave_queues(draft, row)
    draft.drop(TASK_APPROVALS, row.task.encode() + row.id.encode())
    row = msgspec.structs.replace(row, state=after, comment=reason or row.comment, rev=row.rev + 1, epoch=draft.epoch)
    _put(draft, row)
    # An agent can ask and take back without end.
    _purge_later(draft, row, UNDECIDED_S if not row.decided_ns else draft.limits.keep_closed_s)
    draft.event(f"approval.{after}", by, approval=row.id, task=row.task, reason=reason)
    return row


def _put(draft: Draft, row: Approval) -> None:
    draft.put(APPROVALS, row.id.encode(), row)
    # What was never granted is nothing to a call.
    if row.decided_ns and row.state is not ApprovalState.DENIED:
        draft.tell("approval", live_approval(row))


def _leave_queues(draft: Draft, row: Approval) -> None:
    key = row.id.encode()
    draft.drop(ASKED, _same(row))
    draft.drop(QUEUE_APPROVER, hashed(row.approver) + key)
    draft.drop(QUEUE_AGENT, hashed(row.agent) + key)


def _purge_later(draft: Draft, row: Approval, keep_s: int) -> None:
    draft.due(draft.now_ns + min(keep_s, draft.limits.keep_closed_s) * SECOND_NS, PURGE, row.id.encode())


def _next_state(row: Approval, command: str) -> ApprovalState:
    after = TRANSITIONS.get((row.state, command))
    if after is None:
        raise StateError(f"approval `{row.id}` is {row.state}; `{command}` does not fit")
    return after


def _refuse_dependent(draft: Draft, row: Approval, by: Caller) -> None:
    """The approver is independent of the whole chain (ASI03 mitigation 4; ARAP approver eligibility)."""
    if by.is_any((row.agent, *row.chain)):
        raise DeniedError("an agent cannot approve a call of its own chain")
    if by.id in row.askers:
        raise DeniedError("who asks cannot approve; let somebody else decide")
    if draft.limits.separate_owner and by.id == row.owner:
        raise DeniedError("the task's owner cannot approve here; let another approver decide")


def _refuse_long_queue(draft: Draft, approver: str, agent: str) -> None:
    limits = draft.limits
    for table, name, most, who in (
        (QUEUE_APPROVER, approver, limits.approver_queue_max, "approver"),
        (QUEUE_AGENT, agent, limits.agent_queue_max, "agent"),
    ):
        waiting = sum(1 for _ in zip(range(most), draft.names(table, hashed(name)), strict=False))
        if waiting >= most:
            raise ExhaustedError(f"{waiting} questions of {who} `{name}` wait already; try later")


def _seconds(asked: int, most: int, field: str) -> int:
    if not 0 <= asked <= most:
        raise invalid(field, f"is {asked}; at most {most} seconds can be")
    return asked or most


def _check_text(field: str, text: str) -> None:
    if len(text.encode(errors="replace")) > TEXT_BYTES_MAX or not text.isprintable():
        raise invalid(field, f"is longer than {TEXT_BYTES_MAX} bytes, or not printable")
