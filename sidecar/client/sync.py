"""The client for threads."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import grpc

from sidecar._proto.remit.authority.v1 import tasks_pb2
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.client.channels import Channels
from sidecar.client.conversation import Notice
from sidecar.client.decision import Decision, question
from sidecar.client.steps import Call, Steps, T, approving, batching, calling, checking, requiring
from sidecar.client.stream import Stream
from sidecar.client.tasks import keyed
from sidecar.client.tool import Destination, Tool

P = ParamSpec("P")
R = TypeVar("R")


class Client:
    """Asks a sidecar. Thread-safe; `close` it, or use it as a context manager.

    `door` is where questions go ("unix:/path" or "host:port"), `authority` where tasks and approvals live, if this
    caller uses them; `credentials` for mutual TLS. `task` is named in every question that names none. A call takes at
    most `timeout_s`, repeated attempts included; only `require` can be told to wait longer, for people.
    """

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

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        for channel in self._channels.open():
            channel.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Call):
                    try:
                        answer = self._channels.method(step)(step.request, timeout=step.timeout_s)
                    except grpc.RpcError as error:
                        step = steps.throw(error)
                        continue
                    step = steps.send(answer)
                else:
                    time.sleep(step.seconds)
                    step = steps.send(None)
        except StopIteration as end:
            value: T = end.value
            return value

    # ------------------------------------------------------------ questions

    def _question(self, action: str, tool: str, about: dict[str, Any]) -> authz_pb2.CheckRequest:
        return question(action, tool, **{"task": self.task_id, **about})

    def check(self, action: str, tool: str, **about: Any) -> Decision:
        """May I do this, now? `about` as in `question`. Unavailable when nobody decided, Refused when it was wrong."""
        return self._run(checking(self._question(action, tool, about), self.timeout_s))

    def require(self, action: str, tool: str, *, justification: str = "", wait_s: float = 0, **about: Any) -> Decision:
        """`check`, but anything other than ALLOW is an error: ApprovalNeeded, TaskNeeded, Denied or Unavailable.

        With `wait_s` an approval that is missing is asked for at `authority`, with the `justification`, and waited for
        that long; the call it was granted for is then asked about again.
        """
        ask = functools.partial(self._question, action, tool, about)
        return self._run(requiring(ask, self.timeout_s, justification=justification, wait_s=wait_s))

    def batch(self, questions: list[authz_pb2.CheckRequest]) -> list[Decision]:
        """At most 64 questions (made by `question`) against one state, answered in their order."""
        return self._run(batching(questions, self.timeout_s))

    def stream(self, on_notice: Callable[[Notice], None] | None = None) -> Stream:
        """A stream that is held open: questions without a call each, and notices of what changes what was answered.

            with client.stream(on_notice=lambda notice: work.stop()) as stream:
                stream.require("send", "mail/send", destination="mail.example.com")

        It is opened again when it breaks or the sidecar is replaced; that is a notice, too.
        """
        return Stream(self._channels.stream, self._question, self._approving, self.timeout_s, on_notice)

    def _approving(self, decision: Decision, justification: str, wait_s: float) -> None:
        self._run(approving(decision, justification, self.timeout_s, wait_s))

    def report(
        self,
        decision: Decision,
        *,
        executed: bool,
        cost: int | None = None,
        bytes_out: int | None = None,
        error_code: str = "",
    ) -> bool:
        """What became of an allowed call: not executed gives back what it took, else `cost` and `bytes_out` count.

        False: it was settled already, or too long ago, and counts as spent.
        """
        request = authz_pb2.ReportRequest(
            evaluation_id=decision.evaluation_id,
            executed=executed,
            cost=cost,
            bytes_out=bytes_out,
            error_code=error_code,
        )
        answer = self._run(calling("authz", "Report", request, self.timeout_s))
        return bool(answer.result == authz_pb2.REPORT_RESULT_SETTLED)

    def tool(
        self, name: str, *, action: str = "execute", destination: Destination = "", data_level: int = 0
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function: it runs when its call is allowed, and raises what `require` raises otherwise.

        The function's arguments are the question's; `destination` is a text, or a function of the arguments.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            tool = Tool(function, name, action, destination, data_level)

            @functools.wraps(function)
            def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
                self.require(tool.action, tool.name, **tool.question(args, kwargs))
                return function(*args, **kwargs)

            return guarded

        return decorate

    # ------------------------------------------------------------ tasks

    def open_task(self, **about: Any) -> tasks_pb2.Task:
        """Open a task: agent, owner, purpose, scope, ttl_s, and budgets, max_depth, origin, on_behalf as needed."""
        task: tasks_pb2.Task = self._run(
            calling("tasks", "Open", tasks_pb2.OpenTaskRequest(**keyed(about)), self.timeout_s)
        )
        return task

    def delegate_task(self, parent: str, **about: Any) -> tasks_pb2.Task:
        """Open a task below `parent` for another agent, within it on every axis."""
        request = tasks_pb2.DelegateTaskRequest(parent=parent, **keyed(about))
        task: tasks_pb2.Task = self._run(calling("tasks", "Delegate", request, self.timeout_s))
        return task

    def complete_task(self, id_: str, reason: str = "") -> tasks_pb2.ClosedTasks:
        """End a task and all below it."""
        return self._end("Complete", id_, reason)

    def cancel_task(self, id_: str, reason: str = "") -> tasks_pb2.ClosedTasks:
        """End a task and all below it because its work will not be done."""
        return self._end("Cancel", id_, reason)

    def _end(self, method: str, id_: str, reason: str) -> tasks_pb2.ClosedTasks:
        request = tasks_pb2.ChangeTaskRequest(**keyed({"id": id_, "reason": reason}))
        closed: tasks_pb2.ClosedTasks = self._run(calling("tasks", method, request, self.timeout_s))
        return closed

    @contextlib.contextmanager
    def task(self, *, parent: str = "", **about: Any) -> Iterator[tasks_pb2.Task]:
        """A task for as long as the block runs: completed at its end, cancelled when it fails.

        `about` as in `open_task`; with `parent`, as in `delegate_task`.
        """
        task = self.delegate_task(parent, **about) if parent else self.open_task(**about)
        try:
            yield task
        except BaseException as error:
            self.cancel_task(task.id, type(error).__name__)
            raise
        self.complete_task(task.id)


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is not None:
        return grpc.secure_channel(target, credentials)
    return grpc.insecure_channel(target)
