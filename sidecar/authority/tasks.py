"""Tasks: the commands that open, narrow, delegate and end them, as changes to a draft.

Nothing widens a task. A child is within its parent on every axis and its budgets are drawn from the parent's; ending a
task ends all below it, with their approvals, in the same write.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from fastpath import spiffe_id
from sidecar.authority import scope as scopes
from sidecar.authority.approvals import undo_approvals
from sidecar.authority.draft import (
    AGENT_TASKS,
    CHILDREN,
    OWNER_TASKS,
    SECOND_NS,
    TASKS,
    Caller,
    Draft,
    Rest,
    hashed_name,
)
from sidecar.authority.errors import ChangedError, DeniedError, ExhaustedError, StateError, invalid, missing
from sidecar.authority.owners import require_active
from sidecar.authority.rows import LIVING, UNLIMITED, Budgets, Task, TaskState
from sidecar.authority.scope import Scope, as_live
from sidecar.authority.texts import check_text
from sidecar.errors import IdentityError

ORIGINS = ("user", "agent", "schedule", "event")
AXES = ("calls", "cost", "bytes")
NOTHING = Budgets(0, 0, 0)
UNBOUND = Budgets()
NO_REST = Rest(NOTHING, NOTHING)
FORGET_S = 60  # a closed task is told from an unknown one this long
EXPIRE, FORGET, PURGE = "T", "F", "P"

# (state, command): the state after it. What is not here is refused.
TRANSITIONS = {
    (TaskState.OPEN, "narrow"): TaskState.OPEN,
    (TaskState.OPEN, "delegate"): TaskState.OPEN,
    (TaskState.OPEN, "suspend"): TaskState.SUSPENDED,
    (TaskState.OPEN, "complete"): TaskState.COMPLETED,
    (TaskState.OPEN, "cancel"): TaskState.CANCELLED,
    (TaskState.OPEN, "expire"): TaskState.EXPIRED,
    (TaskState.OPEN, "revoke"): TaskState.REVOKED,
    (TaskState.SUSPENDED, "narrow"): TaskState.SUSPENDED,
    (TaskState.SUSPENDED, "resume"): TaskState.OPEN,
    (TaskState.SUSPENDED, "complete"): TaskState.COMPLETED,
    (TaskState.SUSPENDED, "cancel"): TaskState.CANCELLED,
    (TaskState.SUSPENDED, "expire"): TaskState.EXPIRED,
    (TaskState.SUSPENDED, "revoke"): TaskState.REVOKED,
}


class OpenTask(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    owner: str
    purpose: str
    scope: Scope
    budgets: Budgets = Budgets()
    ttl_s: int
    max_depth: int = 0
    origin: str = "user"
    on_behalf: str = ""


class NarrowTask(msgspec.Struct, frozen=True, kw_only=True):
    """None, 0 and an unlimited budget leave what is."""

    id: str
    expected_rev: int = 0
    scope: Scope | None = None
    left: Budgets = Budgets()
    ttl_s: int = 0
    max_depth: int | None = None


class DelegateTask(msgspec.Struct, frozen=True, kw_only=True):
    parent: str
    expected_rev: int = 0
    agent: str
    purpose: str = ""
    scope: Scope
    budgets: Budgets = Budgets()
    ttl_s: int = 0
    max_depth: int | None = None


class ChangeTask(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    expected_rev: int = 0
    reason: str = ""


class Balance(NamedTuple):
    """An amount per budget that can be below zero; None: unlimited."""

    calls: int | None = 0
    cost: int | None = 0
    bytes: int | None = 0


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """What ended: the task, all that went with it (itself first), and what its parent got back."""

    task: Task
    closed: tuple[str, ...]
    refunded: Budgets
    undone_approvals: tuple[str, ...]


# ---------------------------------------------------------------- commands


def open_task(draft: Draft, asked: OpenTask, by: Caller) -> Task:
    """A new root task. An agent cannot open one for itself."""
    _check_agent(asked.agent)
    if by.is_any((asked.agent,)):
        raise DeniedError("an agent cannot open a task for itself; let its owner or an orchestrator open it")
    check_text("owner", asked.owner)
    check_text("purpose", asked.purpose)
    check_text("on_behalf", asked.on_behalf, empty=True)
    if asked.origin not in ORIGINS:
        raise invalid("origin", f"`{asked.origin}` is none of {', '.join(ORIGINS)}")
    scopes.check(asked.scope)
    _check_budgets(asked.budgets, "budgets")
    if not 0 <= asked.max_depth <= draft.limits.depth_max:
        raise invalid("max_depth", f"is {asked.max_depth}; 0 to {draft.limits.depth_max} can be")
    require_active(draft, asked.owner)
    _refuse_many(draft, asked.agent)
    task = Task(
        id=draft.new_id(),
        agent=asked.agent,
        owner=asked.owner,
        purpose=asked.purpose,
        state=TaskState.OPEN,
        scope=asked.scope,
        opened_ns=draft.now_ns,
        expires_ns=draft.now_ns + _ttl(draft, asked.ttl_s) * SECOND_NS,
        opened_by=by.id,
        chain=(asked.agent,),
        max_depth=asked.max_depth,
        granted=asked.budgets,
        origin=asked.origin,
        on_behalf=asked.on_behalf,
        epoch=draft.epoch,
    )
    return _opened(draft, task, by)


def delegate_task(draft: Draft, asked: DelegateTask, by: Caller) -> Task:
    """A new task within another one, for another agent or for a subprocess of the same."""
    parent = _standing(draft, asked.parent, "delegate", asked.expected_rev)
    _check_agent(asked.agent)
    if by.is_any((asked.agent,)) and not by.is_any((parent.agent,)):
        raise DeniedError("an agent cannot take a part of a task that is not its own; let the task's agent delegate it")
    check_text("purpose", asked.purpose, empty=True)
    if parent.depth >= parent.max_depth:
        raise StateError(f"task `{parent.id}` stands at depth {parent.depth} of {parent.max_depth}; it cannot delegate")
    max_depth = parent.max_depth if asked.max_depth is None else asked.max_depth
    if not parent.depth < max_depth <= parent.max_depth:
        raise invalid("max_depth", f"is {max_depth}; {parent.depth + 1} to the parent's {parent.max_depth} can be")
    scopes.check(asked.scope)
    _refuse_outside(scopes.outside(asked.scope, parent.scope))
    require_active(draft, parent.owner)
    _refuse_many(draft, asked.agent)
    expires_ns = min(parent.expires_ns, draft.now_ns + _ttl(draft, asked.ttl_s) * SECOND_NS if asked.ttl_s else 1 << 63)
    _check_budgets(asked.budgets, "budgets")
    parent = _count(draft, _draw(draft, parent, asked.budgets))
    # The native view has the draw already.
    draft.put(TASKS, parent.id.encode(), parent)
    _tell_rev(draft, parent)
    child = Task(
        id=draft.new_id(),
        agent=asked.agent,
        owner=parent.owner,
        purpose=asked.purpose or parent.purpose,
        state=TaskState.OPEN,
        scope=asked.scope,
        opened_ns=draft.now_ns,
        expires_ns=expires_ns,
        opened_by=by.id,
        parent=parent.id,
        chain=(*parent.chain, asked.agent),
        depth=parent.depth + 1,
        max_depth=max_depth,
        granted=asked.budgets,
        attenuated=parent.attenuated and (asked.scope != parent.scope or expires_ns < parent.expires_ns),
        origin="agent",
        on_behalf=parent.on_behalf,
        epoch=draft.epoch,
    )
    draft.mark(CHILDREN, parent.id.encode() + child.id.encode())
    return _opened(draft, child, by)


def narrow_task(draft: Draft, asked: NarrowTask, by: Caller) -> Task:
    """Less of a task. What is taken from a budget is gone."""
    task = _standing(draft, asked.id, "narrow", asked.expected_rev)
    scope = task.scope
    if asked.scope is not None:
        scopes.check(asked.scope)
        _refuse_outside(scopes.outside(asked.scope, task.scope))
        scope = asked.scope
    expires_ns = task.expires_ns
    if asked.ttl_s:
        expires_ns = min(expires_ns, draft.now_ns + _ttl(draft, asked.ttl_s) * SECOND_NS)
    max_depth = task.max_depth if asked.max_depth is None else asked.max_depth
    if not task.depth <= max_depth <= task.max_depth:
        raise invalid("max_depth", f"is {max_depth}; {task.depth} to {task.max_depth} can be")
    _check_budgets(asked.left, "left")
    task = _cap(draft, task, asked.left)
    task = msgspec.structs.replace(
        task, scope=scope, expires_ns=expires_ns, max_depth=max_depth, rev=task.rev + 1, epoch=draft.epoch
    )
    _store(draft, task)
    draft.due(expires_ns, EXPIRE, task.id.encode())
    draft.event("task.narrowed", by, task=task.id, agent=task.agent)
    return task


def suspend_task(draft: Draft, asked: ChangeTask, by: Caller) -> Task:
    """No call of the task, or of any below it, is allowed until it is resumed."""
    return _switch(draft, asked, "suspend", by)


def resume_task(draft: Draft, asked: ChangeTask, by: Caller) -> Task:
    """Give a suspended task back; nobody of its own chain can."""
    task = get_task(draft, asked.id)
    if by.is_any(task.chain):
        raise DeniedError("an agent cannot resume its own task; let its owner do it")
    require_active(draft, task.owner)
    _refuse_many(draft, task.agent)
    task = _switch(draft, asked, "resume", by)
    draft.spending.opening(task.agent)
    return task


def complete_task(draft: Draft, asked: ChangeTask, by: Caller) -> Closed:
    """The work is done: the task and all below it end."""
    return _close_asked(draft, asked, "complete", by)


def cancel_task(draft: Draft, asked: ChangeTask, by: Caller) -> Closed:
    """The work is given up: the task and all below it end."""
    return _close_asked(draft, asked, "cancel", by)


def get_task(draft: Draft, id_: str) -> Task:
    """NOT_FOUND when there is none."""
    task = draft.find(TASKS, _key(id_), Task)
    if task is None:
        raise missing("task", id_)
    return task


# ---------------------------------------------------------------- what time does


def expire_task(draft: Draft, key: bytes, by: Caller) -> None:
    """The task's time is over, if it is."""
    task = draft.find(TASKS, key, Task)
    if task is not None and task.state in LIVING and task.expires_ns <= draft.now_ns:
        close_tasks(draft, task, "expire", "its time is over", by)


def forget_task(draft: Draft, key: bytes) -> None:
    """Calls need not tell a closed task from an unknown one any more."""
    draft.tell("forget", {"id": key.decode()})


def purge_task(draft: Draft, key: bytes) -> bool:
    """A closed task is not kept any longer; whether there was one."""
    task = draft.find(TASKS, key, Task)
    if task is None or task.state in LIVING:
        return False
    draft.drop(TASKS, key, task)
    draft.drop(AGENT_TASKS, hashed_name(task.agent) + key)
    draft.drop(OWNER_TASKS, hashed_name(task.owner) + key)
    if task.parent:
        draft.drop(CHILDREN, task.parent.encode() + key)
    return True


def close_tasks(draft: Draft, root: Task, command: str, reason: str, by: Caller) -> Closed:
    """End `root` and all below it. What is left goes to the parent of `root`."""
    tree = subtree(draft, root)
    ends = {task.id: _next_state(task, command if task is root else _inherited(command)) for task in tree}
    rests = draft.spending.stop(ends)
    undone: list[str] = []
    total = Balance()
    below: defaultdict[str, list[Balance]] = defaultdict(list)
    # Children first, so that what they give back, or spent too much, is part of what their parent gives back.
    for task in reversed(tree):
        total = _total(task, rests.get(task.id, NO_REST), below[task.id])
        below[task.parent].append(total)
        closed = _closed(draft, task, ends[task.id], _left(task, total), reason)
        undone += undo_approvals(draft, task.id, by)
        if task is root:
            root = closed
    refunded = _refund(draft, root, total, by)
    draft.event(f"task.{ends[root.id]}", by, task=root.id, agent=root.agent, closed=len(tree), reason=reason)
    return Closed(task=root, closed=tuple(task.id for task in tree), refunded=refunded, undone_approvals=tuple(undone))


# ---------------------------------------------------------------- for the native view


def live_task(task: Task, left: Budgets) -> dict[str, Any]:
    """The task as the native view takes it, with what is left of its budgets."""
    return {
        "id": task.id,
        "agent": task.agent,
        "owner": task.owner,
        "purpose": task.purpose,
        "state": str(task.state),
        "parent": task.parent,
        "depth": task.depth,
        "max_depth": task.max_depth,
        "expires_unix_ns": task.expires_ns,
        "rev": task.rev,
        "attenuated": task.attenuated,
        "origin": task.origin,
        "on_behalf": bool(task.on_behalf),
        "scope": as_live(task.scope),
        "calls": left.calls,
        "cost": left.cost,
        "bytes": left.bytes,
    }


def undrawn(task: Task) -> Budgets:
    """What its own calls could have spent of what was granted; nothing when its children spent more than that."""
    if task.granted == UNBOUND:
        return UNBOUND
    return Budgets(*(UNLIMITED if n is None else max(0, n) for n in balance(task)))


def balance(task: Task) -> Balance:
    """Granted less drawn: below zero when what its children overspent was charged to it."""
    pairs = ((getattr(task.granted, axis), getattr(task.drawn, axis)) for axis in AXES)
    return Balance(*(None if granted == UNLIMITED else granted - drawn for granted, drawn in pairs))


# ---------------------------------------------------------------- parts


def _refuse_many(draft: Draft, agent: str) -> None:
    """What walks through an agent's open tasks must stay short."""
    most = draft.limits.agent_tasks_max
    if draft.spending.open_tasks(agent) >= most:
        raise ExhaustedError(
            f"agent `{agent}` has {most} open tasks; complete some of them, or raise `authority.agent_tasks_max`"
        )


def _opened(draft: Draft, task: Task, by: Caller) -> Task:
    _store(draft, task)
    draft.spending.opening(task.agent)
    draft.spending.grant(task.id, task.granted)
    draft.due(task.expires_ns, EXPIRE, task.id.encode())
    name = "task.delegated" if task.parent else "task.opened"
    draft.event(name, by, task=task.id, agent=task.agent, owner=task.owner, parent=task.parent)
    return task


def _store(draft: Draft, task: Task) -> None:
    """Put the row, and tell the native view what does not spend."""
    draft.put(TASKS, task.id.encode(), task)
    draft.tell("task", live_task(task, undrawn(task)))


def _switch(draft: Draft, asked: ChangeTask, command: str, by: Caller) -> Task:
    task = _standing(draft, asked.id, command, asked.expected_rev)
    check_text("reason", asked.reason, empty=True)
    task = msgspec.structs.replace(task, state=_next_state(task, command), rev=task.rev + 1, epoch=draft.epoch)
    draft.put(TASKS, task.id.encode(), task)
    draft.tell("state", {"id": task.id, "state": str(task.state), "rev": task.rev})
    draft.event(f"task.{command}d" if command != "suspend" else "task.suspended", by, task=task.id, reason=asked.reason)
    return task


def _close_asked(draft: Draft, asked: ChangeTask, command: str, by: Caller) -> Closed:
    task = _standing(draft, asked.id, command, asked.expected_rev)
    check_text("reason", asked.reason, empty=True)
    return close_tasks(draft, task, command, asked.reason, by)


def _standing(draft: Draft, id_: str, command: str, expected_rev: int) -> Task:
    """The task, when `command` fits its state and nobody changed it meanwhile."""
    task = get_task(draft, id_)
    _next_state(task, command)
    if task.state in LIVING and task.expires_ns <= draft.now_ns:
        raise StateError(f"task `{id_}` has expired; open a new one")
    if expected_rev and expected_rev != task.rev:
        raise ChangedError(f"task `{id_}` is at rev {task.rev}, not {expected_rev}; look at it again")
    return task


def _next_state(task: Task, command: str) -> TaskState:
    after = TRANSITIONS.get((task.state, command))
    if after is None:
        raise StateError(f"task `{task.id}` is {task.state}; `{command}` does not fit")
    return after


def _inherited(command: str) -> str:
    """How the tasks below one end that ends by `command`: nobody completed them."""
    return "cancel" if command == "complete" else command


def subtree(draft: Draft, root: Task) -> list[Task]:
    """`root` and the living tasks below it, parents before children."""
    found = [root]
    for task in found:
        for name in draft.names(CHILDREN, task.id.encode()):
            child = draft.find(TASKS, name.encode(), Task)
            if child is not None and child.state in LIVING:
                found.append(child)
    return found


def _closed(draft: Draft, task: Task, end: TaskState, left: Budgets, reason: str) -> Task:
    key = task.id.encode()
    closed = msgspec.structs.replace(
        task,
        state=end,
        closed_ns=draft.now_ns,
        close_reason=reason,
        final=left,
        rev=task.rev + 1,
        epoch=draft.epoch,
    )
    draft.put(TASKS, key, closed)
    draft.tell("state", {"id": task.id, "state": str(end), "rev": closed.rev})
    draft.due(draft.now_ns + FORGET_S * SECOND_NS, FORGET, key)
    draft.due(draft.now_ns + draft.limits.keep_closed_s * SECOND_NS, PURGE, key)
    return closed


def _draw(draft: Draft, parent: Task, wanted: Budgets) -> Task:
    """`parent` with `wanted` taken from its budgets; what is unlimited gives without becoming less."""
    amounts = []
    for axis in AXES:
        granted, amount = getattr(parent.granted, axis), getattr(wanted, axis)
        if granted != UNLIMITED and amount == UNLIMITED:
            raise invalid(f"budgets.{axis}", "the parent's is limited; say how much the child gets")
        amounts.append(0 if granted == UNLIMITED else amount)
    if not draft.spending.draw(parent.id, Budgets(*amounts)):
        raise StateError(f"task `{parent.id}` has not as much left; look at its budgets with Get")
    drawn = Budgets(*(getattr(parent.drawn, axis) + amount for axis, amount in zip(AXES, amounts, strict=True)))
    return msgspec.structs.replace(parent, drawn=drawn, rev=parent.rev + 1, epoch=draft.epoch)


def _count(draft: Draft, parent: Task) -> Task:
    """`parent`, when its tree may grow: who ends the root ends all below it in one write, which must stay short."""
    root = parent
    while root.parent:
        root = get_task(draft, root.parent)
    if root.below >= draft.limits.tree_max:
        raise ExhaustedError(
            f"{root.below} tasks were delegated below `{root.id}`; open a new task, or raise `authority.tree_max`"
        )
    root = msgspec.structs.replace(root, below=root.below + 1)
    if root.id == parent.id:
        return root
    draft.put(TASKS, root.id.encode(), root)
    return parent


def _cap(draft: Draft, task: Task, most: Budgets) -> Task:
    """`task` with this much left, of what is limited in `most`."""
    if most == Budgets():
        return task
    left = draft.spending.left(task.id)
    if left is None:
        raise StateError(f"task `{task.id}` is not in force here; try again")
    granted, taken = [], []
    for axis in AXES:
        has, cap, now = getattr(task.granted, axis), getattr(most, axis), getattr(left, axis)
        if has == UNLIMITED and cap != UNLIMITED:
            raise invalid(f"left.{axis}", "is unlimited and cannot be counted afterwards; open a task with a budget")
        if cap > max(0, now):
            raise invalid(f"left.{axis}", f"is {cap}, and the task has {max(0, now)} left; nothing widens a task")
        less = max(0, now - cap) if cap != UNLIMITED else 0
        taken.append(less)
        granted.append(has - less if has != UNLIMITED else UNLIMITED)
    if not draft.spending.draw(task.id, Budgets(*taken)):
        raise ChangedError(f"task `{task.id}` is spending; try again")
    return msgspec.structs.replace(task, granted=Budgets(*granted))


def _total(task: Task, rest: Rest, below: Sequence[Balance]) -> Balance:
    """What a closed task gives back: its own rest and that of those below, less what any of them spent too much."""
    amounts: list[int | None] = []
    for axis in AXES:
        if getattr(task.granted, axis) == UNLIMITED:
            amounts.append(None)
        else:
            own = max(0, getattr(rest.left, axis)) - getattr(rest.over, axis)
            amounts.append(own + sum(getattr(one, axis) or 0 for one in below))
    return Balance(*amounts)


def _left(task: Task, total: Balance) -> Budgets:
    """For whoever looks at the closed task."""
    pairs = ((getattr(task.granted, axis), getattr(total, axis)) for axis in AXES)
    return Budgets(*(UNLIMITED if granted == UNLIMITED else max(0, n) for granted, n in pairs))


def _refund(draft: Draft, closed: Task, total: Balance, by: Caller) -> Budgets:
    """Give what is left of a closed task to its parent, if that is still there and limited, and charge it the debts."""
    parent = draft.find(TASKS, closed.parent.encode(), Task) if closed.parent else None
    if parent is None or parent.state not in LIVING:
        return NOTHING
    amounts = [getattr(total, axis) or 0 if getattr(parent.granted, axis) != UNLIMITED else 0 for axis in AXES]
    if not any(amounts):
        return NOTHING
    drawn = Budgets(*(getattr(parent.drawn, axis) - n for axis, n in zip(AXES, amounts, strict=True)))
    parent = msgspec.structs.replace(parent, drawn=drawn, rev=parent.rev + 1, epoch=draft.epoch)
    draft.put(TASKS, parent.id.encode(), parent)
    _tell_rev(draft, parent)
    refunded, charged = Budgets(*(max(0, n) for n in amounts)), Budgets(*(max(0, -n) for n in amounts))
    if any(n < 0 for n in amounts):
        # What was spent too much does not go with the child: a parent would be unlimited in small pieces.
        draft.spending.charge(parent.id, charged)
        draft.event("task.overspent", by, task=closed.id, parent=parent.id, **_said(charged))
    if any(n > 0 for n in amounts):
        draft.spending.owe(parent.id, refunded)
        draft.tell("budget", {"id": parent.id, **_said(refunded)})
    return refunded


def _tell_rev(draft: Draft, task: Task) -> None:
    """Records name the revision of the row that a call was decided by."""
    draft.tell("state", {"id": task.id, "state": str(task.state), "rev": task.rev})


def _said(amount: Budgets) -> dict[str, int]:
    return {axis: getattr(amount, axis) for axis in AXES}


def _ttl(draft: Draft, ttl_s: int) -> int:
    if not 1 <= ttl_s <= draft.limits.ttl_s_max:
        raise invalid("ttl_s", f"is {ttl_s}; 1 to {draft.limits.ttl_s_max} seconds can be")
    return ttl_s


def _key(id_: str) -> bytes:
    """The id as a key; ids that are no ids of ours lead nowhere."""
    raw = id_.encode(errors="replace")
    return raw if 0 < len(raw) <= 64 else b"\0"


def _refuse_outside(lines: list[str]) -> None:
    if lines:
        raise invalid("scope", f"is wider than what it comes from: {'; '.join(lines[:5])}")


def _check_agent(agent: str) -> None:
    try:
        found = spiffe_id.parse(agent)
    except IdentityError as error:
        raise invalid("agent", str(error)) from None
    if not found.path:
        raise invalid("agent", f"`{agent}` names a trust domain; write spiffe://trust-domain/path")


def _check_budgets(budgets: Budgets, field: str) -> None:
    for axis in AXES:
        if not UNLIMITED <= getattr(budgets, axis) < scopes.INT64:
            raise invalid(f"{field}.{axis}", "is negative or beyond 64 bits")
