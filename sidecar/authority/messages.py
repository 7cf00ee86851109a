"""Rows of the authority store as messages of proto/remit/authority/v1, and requests as commands."""

import json
from typing import Any

from sidecar._proto.remit.authority.v1 import approvals_pb2, owners_pb2, revocations_pb2, tasks_pb2
from sidecar.authority.errors import invalid
from sidecar.authority.rows import (
    LIVING,
    UNLIMITED,
    Approval,
    ApprovalState,
    Budgets,
    Kind,
    Mode,
    Owner,
    Revocation,
    Task,
    TaskState,
)
from sidecar.authority.scope import ArgRule, ArgValue, Op, Scope
from sidecar.authority.tasks import AXES, Closed

OPS: dict[int, Op] = {1: "eq", 2: "in", 3: "range", 4: "prefix", 5: "host_suffix", 6: "cidr"}
_OP_NUMBERS = {name: number for number, name in OPS.items()}
TASK_STATES = dict(enumerate(TaskState, 1))
_TASK_NUMBERS = {state: number for number, state in TASK_STATES.items()}
APPROVAL_STATES = dict(enumerate(ApprovalState, 1))
_APPROVAL_NUMBERS = {state: number for number, state in APPROVAL_STATES.items()}
KINDS = {
    number: Kind(name.removeprefix("REVOCATION_KIND_").lower())
    for name, number in revocations_pb2.RevocationKind.items()
    if number
}
_KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
MODES = {0: Mode.DENY, 1: Mode.DENY, 2: Mode.READ_ONLY, 3: Mode.STEP_UP}
_MODE_NUMBERS = {Mode.DENY: 1, Mode.READ_ONLY: 2, Mode.STEP_UP: 3}
APPROVAL_SCOPES = {0: "exact", 1: "exact", 2: "class"}
_SCOPE_NUMBERS = {"exact": 1, "class": 2}
_REVIEWS = {"": 0, "due": 1, "done": 2}
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


# ---------------------------------------------------------------- requests


def scope_of(message: tasks_pb2.Scope) -> Scope:
    """InvalidError when an operation or a value cannot be read."""
    return Scope(
        any_tool=message.any_tool,
        tools=tuple(message.tools),
        tool_groups=tuple(message.tool_groups),
        any_action=message.any_action,
        actions=tuple(message.actions),
        any_dest=message.any_destination,
        destinations=tuple(message.destinations),
        zones=tuple(message.zones),
        max_level=message.max_level,
        label_allow=tuple(message.label_allow.names) if message.HasField("label_allow") else None,
        label_deny=tuple(message.label_deny),
        methods=tuple(message.methods.names) if message.HasField("methods") else None,
        arg_rules=tuple(_rule(rule, f"scope.arg_rules[{i}]") for i, rule in enumerate(message.arg_rules)),
    )


def _rule(message: tasks_pb2.ArgRule, field: str) -> ArgRule:
    op = OPS.get(message.op)
    if op is None:
        raise invalid(f"{field}.op", "is missing")
    if op == "range":
        return ArgRule(message.tool, message.path, op, _bounds(list(message.values), field))
    # Prefixes, hosts and networks are text, whatever they look like.
    values = tuple(value(text) if op in ("eq", "in") else text for text in message.values)
    return ArgRule(message.tool, message.path, op, values)


def _bounds(values: list[str], field: str) -> tuple[int, ...]:
    if len(values) != 2:
        raise invalid(f"{field}.values", "`range` takes two whole numbers; an empty one is no bound")
    try:
        return tuple(int(text) if text else none for text, none in zip(values, (INT64_MIN, INT64_MAX), strict=True))
    except ValueError:
        raise invalid(f"{field}.values", "`range` takes two whole numbers; an empty one is no bound") from None


def value(text: str) -> ArgValue:
    """A whole number, `true`, `false` or a quoted text as JSON has them; anything else is that text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if type(found) in (int, bool, str) else text


def budgets_of(message: tasks_pb2.Budgets) -> Budgets:
    """What is absent is unlimited. InvalidError for a negative number, which would mean the same."""
    found: dict[str, int] = {}
    for axis in AXES:
        if message.HasField(axis):
            amount = getattr(message, axis)
            if amount < 0:
                raise invalid(f"budgets.{axis}", "is negative")
            found[axis] = amount
    return Budgets(**found)


# ---------------------------------------------------------------- answers


def scope_message(scope: Scope) -> tasks_pb2.Scope:
    rules = [
        tasks_pb2.ArgRule(tool=r.tool, path=r.path, op=_OP_NUMBERS[r.op], values=_texts(r))  # type: ignore[arg-type]  # an enum's number
        for r in scope.arg_rules
    ]
    return tasks_pb2.Scope(
        any_tool=scope.any_tool,
        tools=scope.tools,
        tool_groups=scope.tool_groups,
        any_action=scope.any_action,
        actions=scope.actions,
        any_destination=scope.any_dest,
        destinations=scope.destinations,
        zones=scope.zones,
        max_level=scope.max_level,
        label_allow=None if scope.label_allow is None else tasks_pb2.Names(names=scope.label_allow),
        label_deny=scope.label_deny,
        methods=None if scope.methods is None else tasks_pb2.Names(names=scope.methods),
        arg_rules=rules,
    )


def _texts(rule: ArgRule) -> list[str]:
    if rule.op in ("eq", "in"):
        return [json.dumps(one, ensure_ascii=False) for one in rule.values]
    return ["" if one in (INT64_MIN, INT64_MAX) else str(one) for one in rule.values]


def budgets_message(budgets: Budgets) -> tasks_pb2.Budgets:
    found: dict[str, Any] = {axis: getattr(budgets, axis) for axis in AXES}
    return tasks_pb2.Budgets(**{axis: n for axis, n in found.items() if n != UNLIMITED})


def task_message(task: Task, left: Budgets | None = None) -> tasks_pb2.Task:
    """`left`: of a living task, as calls have spent it; else what was left when it closed."""
    rest = task.final if task.state not in LIVING else left
    return tasks_pb2.Task(
        id=task.id,
        agent=task.agent,
        owner=task.owner,
        purpose=task.purpose,
        state=_TASK_NUMBERS[task.state],  # type: ignore[arg-type]  # an enum's number
        scope=scope_message(task.scope),
        parent=task.parent,
        chain=task.chain,
        depth=task.depth,
        max_depth=task.max_depth,
        opened_unix_ns=task.opened_ns,
        expires_unix_ns=task.expires_ns,
        granted=budgets_message(task.granted),
        left=None if rest is None else budgets_message(rest),
        rev=task.rev,
        epoch=task.epoch,
        attenuated=task.attenuated,
        origin=task.origin,
        on_behalf=task.on_behalf,
        opened_by=task.opened_by,
        closed_unix_ns=task.closed_ns,
        close_reason=task.close_reason,
    )


def closed_message(closed: Closed) -> tasks_pb2.ClosedTasks:
    return tasks_pb2.ClosedTasks(
        task=task_message(closed.task),
        closed=closed.closed,
        refunded=budgets_message(closed.refunded),
        undone_approvals=closed.undone_approvals,
    )


def revocation_message(row: Revocation) -> revocations_pb2.Revocation:
    return revocations_pb2.Revocation(
        kind=_KIND_NUMBERS[row.kind],  # type: ignore[arg-type]
        key=row.key,
        mode=_MODE_NUMBERS[row.mode],  # type: ignore[arg-type]
        reason=row.reason,
        expires_unix_ns=row.expires_ns,
        epoch=row.epoch,
        revoked_by=row.revoked_by,
        revoked_unix_ns=row.revoked_ns,
    )


def approval_message(row: Approval, uses_left: int | None = None) -> approvals_pb2.Approval:
    return approvals_pb2.Approval(
        id=row.id,
        state=_APPROVAL_NUMBERS[row.state],  # type: ignore[arg-type]
        evaluation_id=row.evaluation_id,
        digest=row.digest,
        task=row.task,
        agent=row.agent,
        chain=row.chain,
        owner=row.owner,
        purpose=row.purpose,
        action=row.action,
        resource=row.resource,
        destination=row.destination,
        data_level=row.data_level,
        data_labels=row.data_labels,
        cost=row.cost,
        method=row.method,
        path=row.path,
        query=row.query,
        content_unseen=row.content_unseen,
        reason=row.reason,
        justification=row.justification,
        requested_by=row.requested_by,
        also_asked_by=row.also_asked_by,
        notify=row.notify,
        generation=row.generation,
        approver=row.approver,
        requested_unix_ns=row.requested_ns,
        expires_unix_ns=row.expires_ns,
        scope=_SCOPE_NUMBERS[row.scope],  # type: ignore[arg-type]
        uses=row.uses,
        decided_by=row.decided_by,
        decided_unix_ns=row.decided_ns,
        comment=row.comment,
        break_glass=row.break_glass,
        review=_REVIEWS[row.review],  # type: ignore[arg-type]
        reviewed_by=row.reviewed_by,
        uses_left=uses_left,
        rev=row.rev,
        epoch=row.epoch,
    )


def owner_message(row: Owner) -> owners_pb2.Owner:
    return owners_pb2.Owner(
        id=row.id,
        active=row.active,
        reason=row.reason,
        changed_by=row.changed_by,
        changed_unix_ns=row.changed_ns,
        epoch=row.epoch,
    )


def revocation_kind(number: int) -> Kind:
    """InvalidError when it is missing or unknown."""
    kind = KINDS.get(number)
    if kind is None:
        raise invalid("kind", "is missing, or none of the kinds")
    return kind


def task_state(number: int) -> TaskState:
    """InvalidError when it is missing or unknown."""
    state = TASK_STATES.get(number)
    if state is None:
        raise invalid("state", "is missing, or none of the states of a task")
    return state


def mode_of(number: int) -> Mode:
    mode = MODES.get(number)
    if mode is None:
        raise invalid("mode", "is none of deny, read_only, step_up")
    return mode
