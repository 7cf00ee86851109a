"""The client for asyncio: what sync.py has, awaited."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import grpc

from sidecar._proto.remit.authority.v1 import tasks_pb2
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.client.channels import Channels
from sidecar.client.conversation import Notice
from sidecar.client.decision import Decision, question
from sidecar.client.steps import Call, Steps, T, approving, batching, calling, checking, requiring
from sidecar.client.stream_aio import AsyncStream
from sidecar.client.tasks import keyed
from sidecar.client.tool import Destination, Tool

P = ParamSpec("P")
R = TypeVar("R")


class AsyncClient:
    """Asks a sidecar from a coroutine. Belongs to one event loop; the parameters are those of Client."""

    def __init__(
        self,
        door: str,
        *,
        authority: str = "",
        task: str = "",
        timeout_s: float = 2.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.task_id = task
        self.timeout_s = timeout_s
        self._channels = Channels(door, authority, lambda target: _channel(target, credentials))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        for channel in self._channels.open():
            await channel.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Call):
                    try:
                        answer = await self._channels.method(step)(step.request, timeout=step.timeout_s)
                    except grpc.RpcError as error:
                        step = steps.throw(error)
                        continue
                    step = steps.send(answer)
                else:
                    await asyncio.sleep(step.seconds)
                    step = steps.send(None)
        except StopIteration as end:
            value: T = end.value
            return value

    # ------------------------------------------------------------ questions

    def _question(self, action: str, tool: str, about: dict[str, Any]) -> authz_pb2.CheckRequest:
        return question(action, tool, **{"task": self.task_id, **about})

    async def check(self, action: str, tool: str, **about: Any) -> Decision:
        """May I do this, now?"""
        return await self._run(checking(self._question(action, tool, about), self.timeout_s))

    async def require(
        self, action: str, tool: str, *, justification: str = "", wait_s: float = 0, **about: Any
    ) -> Decision:
        """`check`, but anything other than ALLOW is an error; see Client.require."""
        ask = functools.partial(self._question, action, tool, about)
        return await self._run(requiring(ask, self.timeout_s, justification=justification, wait_s=wait_s))

    async def batch(self, questions: list[authz_pb2.CheckRequest]) -> list[Decision]:
        """At most 64 questions against one state, answered in their order."""
        return await self._run(batching(questions, self.timeout_s))

    def stream(self, on_notice: Callable[[Notice], None] | None = None) -> AsyncStream:
        """A stream that is held open, to be used as an asynchronous context manager; see Client.stream."""
        return AsyncStream(self._channels.stream, self._question, self._approving, self.timeout_s, on_notice)

    async def _approving(self, decision: Decision, justification: str, wait_s: float) -> None:
        await self._run(approving(decision, justification, self.timeout_s, wait_s))

    async def report(
        self,
        decision: Decision,
        *,
        executed: bool,
        cost: int | None = None,
        bytes_out: int | None = None,
        error_code: str = "",
    ) -> bool:
        """What became of an allowed call; see Client.report."""
        request = authz_pb2.ReportRequest(
            evaluation_id=decision.evaluation_id,
            executed=executed,
            cost=cost,
            bytes_out=bytes_out,
            error_code=error_code,
        )
        answer = await self._run(calling("authz", "Report", request, self.timeout_s))
        return bool(answer.result == authz_pb2.REPORT_RESULT_SETTLED)

    def tool(
        self, name: str, *, action: str = "execute", destination: Destination = "", data_level: int = 0
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
        """Decorate a coroutine function; see Client.tool."""

        def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
            tool = Tool(function, name, action, destination, data_level)

            @functools.wraps(function)
            async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
                await self.require(tool.action, tool.name, **tool.question(args, kwargs))
                return await function(*args, **kwargs)

            return guarded

        return decorate

    # ------------------------------------------------------------ tasks

    async def open_task(self, **about: Any) -> tasks_pb2.Task:
        """Open a task; see Client.open_task."""
        request = tasks_pb2.OpenTaskRequest(**keyed(about))
        task: tasks_pb2.Task = await self._run(calling("tasks", "Open", request, self.timeout_s))
        return task

    async def delegate_task(self, parent: str, **about: Any) -> tasks_pb2.Task:
        """Open a task below `parent` for another agent, within it on every axis."""
        request = tasks_pb2.DelegateTaskRequest(parent=parent, **keyed(about))
        task: tasks_pb2.Task = await self._run(calling("tasks", "Delegate", request, self.timeout_s))
        return task

    async def complete_task(self, id_: str, reason: str = "") -> tasks_pb2.ClosedTasks:
        """End a task and all below it."""
        return await self._end("Complete", id_, reason)

    async def cancel_task(self, id_: str, reason: str = "") -> tasks_pb2.ClosedTasks:
        """End a task and all below it because its work will not be done."""
        return await self._end("Cancel", id_, reason)

    async def _end(self, method: str, id_: str, reason: str) -> tasks_pb2.ClosedTasks:
        request = tasks_pb2.ChangeTaskRequest(**keyed({"id": id_, "reason": reason}))
        closed: tasks_pb2.ClosedTasks = await self._run(calling("tasks", method, request, self.timeout_s))
        return closed

    @contextlib.asynccontextmanager
    async def task(self, *, parent: str = "", **about: Any) -> AsyncIterator[tasks_pb2.Task]:
        """A task for as long as the block runs: completed at its end, cancelled when it fails."""
        task = await self.delegate_task(parent, **about) if parent else await self.open_task(**about)
        try:
            yield task
        except BaseException as error:
            await self.cancel_task(task.id, type(error).__name__)
            raise
        await self.complete_task(task.id)


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is not None:
        return grpc.aio.secure_channel(target, credentials)
    return grpc.aio.insecure_channel(target)
