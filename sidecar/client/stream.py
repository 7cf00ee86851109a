"""A CheckStream for threads."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError
from typing import Any

import grpc

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.client.conversation import DEAF, Conversation, Notice, in_vain
from sidecar.client.decision import Decision
from sidecar.client.errors import RemitError, Unavailable
from sidecar.client.steps import FIRST_PAUSE_S, PAUSE_MAX_S, T

Question = Callable[[str, str, dict[str, Any]], authz_pb2.CheckRequest]
Approving = Callable[[Decision, str, float], T]
"""Asks for the approval that a decision lacks, with a justification, and waits for it so many seconds."""
Requests = queue.SimpleQueue[authz_pb2.CheckStreamRequest | None]


class Stream:
    """One stream, held open until `close`; opened again when it breaks. Thread-safe. Made by Client.stream.

    `on_notice` is called on the stream's own thread, before any answer that was decided later is given out. It must not
    ask on this stream; when it raises, the stream ends.
    """

    def __init__(
        self,
        connect: Callable[[Iterator[authz_pb2.CheckStreamRequest]], Any],
        question: Question,
        approving: Approving[None],
        timeout_s: float,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> None:
        self._connect = connect
        self._question = question
        self._approving = approving
        self.timeout_s = timeout_s
        self._on_notice = on_notice
        self._lock = threading.Condition()
        self._conversation = Conversation()
        self._requests: Requests = queue.SimpleQueue()
        self._news: Notice | None = None
        self._error: RemitError | None = None
        self._closed = threading.Event()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="remit stream", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; what still waits for an answer fails with Unavailable."""
        with self._lock:
            self._closed.set()
            self._requests.put(None)
            if self._call is not None:
                self._call.cancel()
            self._give_up(Unavailable("the stream is closed"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ------------------------------------------------------------ questions

    def check(self, action: str, tool: str, **about: Any) -> Decision:
        """May I do this, now? `about` as in `question`. Other threads may ask meanwhile.

        Unavailable when nobody decided in time, Refused when the question was wrong or the caller may not ask.
        """
        request = self._question(action, tool, about)
        answer: Future[Decision] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._conversation.ask(request, answer)
            self._requests.put(authz_pb2.CheckStreamRequest(check=request))
        try:
            return answer.result(self.timeout_s)
        except TimeoutError:
            raise in_vain(self.timeout_s) from None
        finally:
            with self._lock:
                self._conversation.forget(request)

    def require(self, action: str, tool: str, *, justification: str = "", wait_s: float = 0, **about: Any) -> Decision:
        """`check`, but anything other than ALLOW is an error: ApprovalNeeded, TaskNeeded, Denied or Unavailable.

        With `wait_s` an approval that is missing is asked for and waited for, as by Client.require.
        """
        decision = self.check(action, tool, **about)
        if decision.outcome == "STEP_UP" and wait_s > 0:
            self._approving(decision, justification, wait_s)
            decision = self.check(action, tool, **about)
        if not decision.allowed:
            raise decision.error()
        return decision

    # ------------------------------------------------------------ notices

    def notices(self) -> Iterator[Notice]:
        """Each notice as it comes, until the stream is closed; those that come while nobody looks are one.

        RemitError when the stream cannot be opened any more.
        """
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._news or self._error)
                notice, self._news = self._news, None
            if notice is not None:
                yield notice
            elif self._closed.is_set():
                return
            else:
                assert self._error is not None
                raise self._error

    def _tell(self, notice: Notice | None) -> None:
        if notice is None:
            return
        with self._lock:
            self._news = notice.after(self._news)
            self._lock.notify_all()
        if self._on_notice is not None:
            self._on_notice(notice)

    # ------------------------------------------------------------ the stream's own thread

    def _run(self) -> None:
        try:
            self._hold()
        finally:
            with self._lock:
                if self._error is None:
                    # `on_notice` raised, which its thread reports: without notices nothing may be asked here.
                    self._give_up(Unavailable(DEAF))
                    if self._call is not None:
                        self._call.cancel()

    def _hold(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._closed.is_set():
            error = None
            try:
                self._listen()
            except grpc.RpcError as failed:
                error = failed
            if self._closed.is_set():
                return
            begun = self._conversation.begun
            try:
                with self._lock:
                    notice = self._conversation.lost(error)
            except RemitError as last:
                with self._lock:
                    self._give_up(last)
                return
            self._tell(notice)
            # A stream that had begun was drained: the next one may be there already.
            pause = FIRST_PAUSE_S if begun else min(2 * pause, PAUSE_MAX_S)
            self._closed.wait(pause)

    def _listen(self) -> None:
        """Open a stream, ask what is unanswered, and take what comes until it ends."""
        requests: Requests = queue.SimpleQueue()
        with self._lock:
            if self._closed.is_set():
                return
            for request in self._conversation.unanswered():
                requests.put(request)
            # What feeds the stream before ends with it.
            self._requests.put(None)
            self._requests = requests
            self._call = self._connect(iter(requests.get, None))
        for message in self._call:
            with self._lock:
                notice = self._conversation.take(message)
            self._tell(notice)

    def _give_up(self, error: RemitError) -> None:
        """Under the lock."""
        self._error = error
        self._conversation.fail(error)
        self._requests.put(None)
        self._lock.notify_all()
