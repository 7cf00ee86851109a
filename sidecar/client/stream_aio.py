"""A CheckStream for asyncio: what stream.py has, awaited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.client.conversation import DEAF, Conversation, Notice, in_vain
from sidecar.client.decision import Decision
from sidecar.client.errors import RemitError, Unavailable
from sidecar.client.steps import FIRST_PAUSE_S, PAUSE_MAX_S
from sidecar.client.stream import Approving, Question

Requests = asyncio.Queue[authz_pb2.CheckStreamRequest | None]


class AsyncStream:
    """One stream, held open until `close`; opened again when it breaks. Made by AsyncClient.stream.

    `on_notice` is called before any answer that was decided later is given out. When it raises, the stream ends.
    """

    def __init__(
        self,
        connect: Callable[[AsyncIterator[authz_pb2.CheckStreamRequest]], Any],
        question: Question,
        approving: Approving[Awaitable[None]],
        timeout_s: float,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> None:
        self._connect = connect
        self._question = question
        self._approving = approving
        self.timeout_s = timeout_s
        self._on_notice = on_notice
        self._conversation = Conversation()
        self._requests: Requests = asyncio.Queue()
        self._news: Notice | None = None
        self._changed = asyncio.Event()
        self._error: RemitError | None = None
        self._closed = False
        self._call: Any = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AsyncStream":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End it; what still waits for an answer fails with Unavailable."""
        self._closed = True
        self._give_up(Unavailable("the stream is closed"))
        if self._call is not None:
            self._call.cancel()
        if self._task is not None:
            await self._task

    # ------------------------------------------------------------ questions

    async def check(self, action: str, tool: str, **about: Any) -> Decision:
        """May I do this, now? Other coroutines may ask meanwhile; errors as of Stream.check."""
        request = self._question(action, tool, about)
        if self._error is not None:
            raise self._error
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._conversation.ask(request, answer)
        self._requests.put_nowait(authz_pb2.CheckStreamRequest(check=request))
        try:
            return await asyncio.wait_for(answer, self.timeout_s)
        except TimeoutError:
            raise in_vain(self.timeout_s) from None
        finally:
            self._conversation.forget(request)

    async def require(
        self, action: str, tool: str, *, justification: str = "", wait_s: float = 0, **about: Any
    ) -> Decision:
        """`check`, but anything other than ALLOW is an error; see Stream.require."""
        decision = await self.check(action, tool, **about)
        if decision.outcome == "STEP_UP" and wait_s > 0:
            await self._approving(decision, justification, wait_s)
            decision = await self.check(action, tool, **about)
        if not decision.allowed:
            raise decision.error()
        return decision

    # ------------------------------------------------------------ notices

    async def notices(self) -> AsyncIterator[Notice]:
        """Each notice as it comes; see Stream.notices."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            notice, self._news = self._news, None
            if notice is not None:
                yield notice
            if self._error is not None:
                # Whoever looks next finds it, too.
                self._changed.set()
                if self._closed:
                    return
                raise self._error

    def _tell(self, notice: Notice | None) -> None:
        if notice is not None:
            self._news = notice.after(self._news)
            self._changed.set()
            if self._on_notice is not None:
                self._on_notice(notice)

    # ------------------------------------------------------------ the stream's own task

    async def _run(self) -> None:
        try:
            await self._hold()
        finally:
            if self._error is None:
                # `on_notice` raised, which `close` reports: without notices nothing may be asked here.
                self._give_up(Unavailable(DEAF))
                if self._call is not None:
                    self._call.cancel()

    async def _hold(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._closed:
            error = await self._listen()
            if self._closed:
                return
            begun = self._conversation.begun
            try:
                self._tell(self._conversation.lost(error))
            except RemitError as last:
                self._give_up(last)
                return
            # A stream that had begun was drained: the next one may be there already.
            pause = FIRST_PAUSE_S if begun else min(2 * pause, PAUSE_MAX_S)
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while not self._closed and (left := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, FIRST_PAUSE_S))

    async def _listen(self) -> grpc.RpcError | None:
        """Open a stream, ask what is unanswered, and take what comes until it ends; the error that ended it."""
        requests: Requests = asyncio.Queue()
        for request in self._conversation.unanswered():
            requests.put_nowait(request)
        self._requests.put_nowait(None)
        self._requests = requests
        self._call = self._connect(_each(requests))
        try:
            async for message in self._call:
                self._tell(self._conversation.take(message))
        except grpc.RpcError as error:
            return error
        except asyncio.CancelledError:
            # Of the call by `close`; a task that is cancelled itself goes on being so.
            if not self._closed:
                raise
        return None

    def _give_up(self, error: RemitError) -> None:
        self._error = error
        self._conversation.fail(error)
        self._requests.put_nowait(None)
        self._changed.set()


async def _each(requests: Requests) -> AsyncIterator[authz_pb2.CheckStreamRequest]:
    while (request := await requests.get()) is not None:
        yield request
