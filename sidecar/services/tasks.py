"""The service Tasks (proto/remit/authority/v1/tasks.proto)."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from sidecar._proto.remit.authority.v1 import tasks_pb2, tasks_pb2_grpc
from sidecar.authority import tasks
from sidecar.authority.commands import still
from sidecar.authority.draft import AGENT_TASKS, CHILDREN, OWNER_TASKS, TASKS, Caller, Draft, hashed_name
from sidecar.authority.messages import (
    TASK_STATES,
    budgets_of,
    closed_message,
    scope_of,
    task_message,
)
from sidecar.authority.rows import LIVING, Budgets, Task, decode
from sidecar.authority.task_index import tasks_of
from sidecar.services.authority_calls import Scan, Service, Watch, answered, page_of, streamed

WATCH: Watch[Task, tasks_pb2.TasksChange] = Watch(
    TASKS,
    Task,
    tasks_pb2.TasksChange,
    # What calls spent is known where they are decided; a follower counts its own.
    put=lambda row: {"put": task_message(row, tasks.undrawn(row))},
    gone=lambda row: {"forget": row.id},
    keep=lambda row: row.state in LIVING,
)
Changing = Callable[[Draft, tasks.ChangeTask, Caller], Any]


class Tasks(Service, tasks_pb2_grpc.TasksServicer):
    """Every method asks the authority's policies first."""

    @answered
    def Open(self, request: tasks_pb2.OpenTaskRequest, caller: Caller) -> tasks_pb2.Task:
        asked = tasks.OpenTask(
            agent=request.agent,
            owner=request.owner,
            purpose=request.purpose,
            scope=scope_of(request.scope),
            budgets=budgets_of(request.budgets),
            ttl_s=request.ttl_s,
            max_depth=request.max_depth,
            origin=request.origin or "user",
            on_behalf=request.on_behalf,
        )
        self.authority.require(
            caller,
            "task.open",
            agent=asked.agent,
            owner=asked.owner,
            own_agent=caller.is_any((asked.agent,)),
            own_owner=_is(caller, asked.owner),
            max_level=min(asked.scope.max_level, 1 << 31),
            ttl_s=asked.ttl_s,
        )
        return self.change(
            caller,
            "task.open",
            request,
            lambda draft: task_message(tasks.open_task(draft, asked, caller), asked.budgets),
            tasks_pb2.Task,
        )

    @answered
    def Narrow(self, request: tasks_pb2.NarrowTaskRequest, caller: Caller) -> tasks_pb2.Task:
        asked = tasks.NarrowTask(
            id=request.id,
            expected_rev=request.expected_rev,
            scope=scope_of(request.scope) if request.HasField("scope") else None,
            left=budgets_of(request.left),
            ttl_s=request.ttl_s,
            max_depth=request.max_depth if request.HasField("max_depth") else None,
        )
        self._require(caller, "task.narrow", asked.id)
        return self.change(
            caller,
            "task.narrow",
            request,
            lambda draft: _with_left(draft, tasks.narrow_task(draft, asked, caller)),
            tasks_pb2.Task,
        )

    @answered
    def Suspend(self, request: tasks_pb2.ChangeTaskRequest, caller: Caller) -> tasks_pb2.Task:
        return self._switch(request, caller, "task.suspend", tasks.suspend_task)

    @answered
    def Resume(self, request: tasks_pb2.ChangeTaskRequest, caller: Caller) -> tasks_pb2.Task:
        return self._switch(request, caller, "task.resume", tasks.resume_task)

    @answered
    def Delegate(self, request: tasks_pb2.DelegateTaskRequest, caller: Caller) -> tasks_pb2.Task:
        asked = tasks.DelegateTask(
            parent=request.parent,
            expected_rev=request.expected_rev,
            agent=request.agent,
            purpose=request.purpose,
            scope=scope_of(request.scope),
            budgets=budgets_of(request.budgets),
            ttl_s=request.ttl_s,
            max_depth=request.max_depth if request.HasField("max_depth") else None,
        )
        self._require(caller, "task.delegate", asked.parent)
        return self.change(
            caller,
            "task.delegate",
            request,
            lambda draft: task_message(tasks.delegate_task(draft, asked, caller), asked.budgets),
            tasks_pb2.Task,
        )

    @answered
    def Complete(self, request: tasks_pb2.ChangeTaskRequest, caller: Caller) -> tasks_pb2.ClosedTasks:
        return self._close(request, caller, "task.complete", tasks.complete_task)

    @answered
    def Cancel(self, request: tasks_pb2.ChangeTaskRequest, caller: Caller) -> tasks_pb2.ClosedTasks:
        return self._close(request, caller, "task.cancel", tasks.cancel_task)

    @answered
    def Get(self, request: tasks_pb2.GetTaskRequest, caller: Caller) -> tasks_pb2.Task:
        self._require(caller, "task.read", request.id)
        self.authority.looked(caller, "task.read")
        with self.authority.store.read() as draft:
            return _with_left(draft, tasks.get_task(draft, request.id))

    @answered
    def List(self, request: tasks_pb2.ListTasksRequest, caller: Caller) -> tasks_pb2.ListTasksResponse:
        self.authority.require(
            caller,
            "task.read",
            agent=request.agent,
            owner=request.owner,
            own_agent=caller.is_any((request.agent,)),
            own_owner=_is(caller, request.owner),
        )
        self.authority.looked(caller, "task.read")
        with self.authority.store.read() as draft:
            found, token = list_tasks(draft, request)
            return tasks_pb2.ListTasksResponse(tasks=[_with_left(draft, t) for t in found], next_page_token=token)

    @streamed
    def Watch(
        self, request: tasks_pb2.WatchTasksRequest, caller: Caller, is_active: Callable[[], bool]
    ) -> Iterator[tasks_pb2.TasksChange]:
        self.authority.require(caller, "task.read")
        self.authority.looked(caller, "task.watch")
        yield from WATCH.stream(self.authority, request, is_active)

    def _switch(
        self, request: tasks_pb2.ChangeTaskRequest, caller: Caller, action: str, change: Changing
    ) -> tasks_pb2.Task:
        asked = _asked(request)
        self._require(caller, action, asked.id)

        def stands(draft: Draft, answer: tasks_pb2.Task) -> bool:
            """Nobody is told that a task is suspended which was resumed since."""
            return TASK_STATES[answer.state] == tasks.get_task(draft, asked.id).state

        return self.change(
            caller,
            action,
            request,
            lambda draft: _with_left(draft, change(draft, asked, caller)),
            tasks_pb2.Task,
            stands if action == "task.suspend" else still,
        )

    def _close(
        self, request: tasks_pb2.ChangeTaskRequest, caller: Caller, action: str, change: Changing
    ) -> tasks_pb2.ClosedTasks:
        asked = _asked(request)
        self._require(caller, action, asked.id)
        return self.change(
            caller, action, request, lambda draft: closed_message(change(draft, asked, caller)), tasks_pb2.ClosedTasks
        )

    def _require(self, caller: Caller, action: str, id_: str) -> None:
        """What never changes of a task says who it belongs to, so it may be read before the command runs."""
        self.authority.refuse_following()
        with self.authority.store.read() as draft:
            task = tasks.get_task(draft, id_)
        self.authority.require(
            caller,
            action,
            agent=task.agent,
            owner=task.owner,
            own_agent=caller.is_any((task.agent,)),
            in_chain=caller.is_any(task.chain),
            own_owner=_is(caller, task.owner),
        )


def list_tasks(draft: Draft, request: tasks_pb2.ListTasksRequest) -> tuple[list[Task], str]:
    """A page of tasks by parent, agent or owner, else of all; and the token of the next page."""
    wanted = {TASK_STATES[request.state]} if request.state in TASK_STATES else LIVING
    scan, prefix = _scan(draft, request)

    def row(key: bytes, stored: bytes) -> Task | None:
        return draft.find(TASKS, key[len(prefix) :], Task) if prefix else decode(stored, Task)

    def keep(key: bytes, stored: bytes) -> bool:
        task = row(key, stored)
        return (
            task is not None
            and task.state in wanted
            and (not request.agent or task.agent == request.agent)
            and (not request.owner or task.owner == request.owner)
        )

    found = page_of(scan, prefix, request.page_size, request.page_token, keep)
    rows = (row(key, stored) for key, stored in found.rows)
    return [task for task in rows if task is not None], found.token


def _scan(draft: Draft, request: tasks_pb2.ListTasksRequest) -> tuple[Scan, bytes]:
    """Where the tasks that are asked for stand, and what their keys begin with there: nothing, or all before the id."""
    rows = draft.rows
    if request.parent:
        prefix = request.parent.encode()
        return functools.partial(rows.scan, CHILDREN, prefix), prefix
    for name, table in ((request.agent, AGENT_TASKS), (request.owner, OWNER_TASKS)):
        if name:
            return functools.partial(tasks_of, rows, table, name), hashed_name(name)
    return functools.partial(rows.scan, TASKS, b""), b""


def _with_left(draft: Draft, task: Task) -> tasks_pb2.Task:
    left: Budgets | None = draft.spending.left(task.id) if task.state in LIVING else None
    return task_message(task, left)


def _asked(request: tasks_pb2.ChangeTaskRequest) -> tasks.ChangeTask:
    return tasks.ChangeTask(id=request.id, expected_rev=request.expected_rev, reason=request.reason)


def _is(caller: Caller, person: str) -> bool:
    return caller.kind == "person" and bool(person) and caller.id == person
