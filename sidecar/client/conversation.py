"""What a caller has asked on a CheckStream, and what it is told: the same for threads and for asyncio.

A stream that breaks or is drained is opened again and what it left unanswered asked again, under the same ids, so that
nothing counts twice. Whoever listens is told that it broke: from then on until the next begin nobody tells.
"""

from dataclasses import dataclass
from typing import Any

import grpc

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.client.decision import decision_of
from sidecar.client.errors import Refused, RemitError, Unavailable, error_of, is_transient

LOST = "lost"
DEAF = "the stream has ended: its caller's own code failed at a notice"
TOO_LARGE = ("request.too_large", "larger than max")  # of the native doors, and of grpcio


@dataclass(frozen=True, slots=True)
class Notice:
    """What was answered before may not hold any more: drop it, and ask again about what is under way."""

    causes: frozenset[str]
    """What changed: "revocation", "task", "owner", "approval", "policy"; "lost": the stream ended, and begins anew."""
    epoch: int
    generation: int

    def after(self, earlier: "Notice | None") -> "Notice":
        """Both in one."""
        return self if earlier is None else Notice(self.causes | earlier.causes, self.epoch, self.generation)


def notice_of(message: authz_pb2.Notice) -> Notice:
    known = authz_pb2.NoticeCause.values()
    names = (authz_pb2.NoticeCause.Name(cause) if cause in known else "other" for cause in message.causes)
    causes = frozenset(name.removeprefix("NOTICE_CAUSE_").lower() for name in names)
    return Notice(causes, message.revocation_epoch, message.generation)


class Conversation:
    """Questions that wait, oldest first, each with the future of its answer. Belongs to one thread or one lock."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[authz_pb2.CheckRequest, Any]] = {}
        self.begun = False
        self.epoch = 0
        self.generation = 0

    def ask(self, request: authz_pb2.CheckRequest, answer: Any) -> None:
        """`answer`: a future, of threads or of asyncio. ValueError when the id waits for an answer already."""
        if request.request_id in self._waiting:
            raise ValueError(f"`request_id`: `{request.request_id}` is asked already")
        self._waiting[request.request_id] = (request, answer)

    def forget(self, request: authz_pb2.CheckRequest) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(request.request_id, None)

    def unanswered(self) -> list[authz_pb2.CheckStreamRequest]:
        return [authz_pb2.CheckStreamRequest(check=request) for request, _ in self._waiting.values()]

    def take(self, message: authz_pb2.CheckStreamResponse) -> Notice | None:
        """Give an answer to who waits for it; a notice comes back, but for that of the begin."""
        if message.WhichOneof("is") == "answer":
            _, answer = self._waiting.pop(message.answer.request_id, (None, None))
            if answer is not None and not answer.done():
                answer.set_result(decision_of(message.answer))
            return None
        notice = notice_of(message.notice)
        self.begun, self.epoch, self.generation = True, notice.epoch, notice.generation
        return notice if notice.causes else None

    def lost(self, error: grpc.RpcError | None) -> Notice | None:
        """The stream ended. What listeners are told of it, if it had begun. RemitError when another would end likewise;
        then every question has failed."""
        notice = Notice(frozenset((LOST,)), self.epoch, self.generation) if self.begun else None
        if error is not None and self.begun and _is_of_a_question(error):
            self._fail_first(Refused(f"the question is none: {error.details()}", status=error.code()))
            error = None
        self.begun = False
        if error is not None and not is_transient(error):
            last = error_of(error)
            self.fail(last)
            raise last
        return notice

    def fail(self, error: RemitError) -> None:
        """Every question has failed."""
        while self._waiting:
            self._fail_first(error)

    def _fail_first(self, error: RemitError) -> None:
        if self._waiting:
            _, answer = self._waiting.pop(next(iter(self._waiting)))
            if not answer.done():
                answer.set_exception(error)


def _is_of_a_question(error: grpc.RpcError) -> bool:
    """Whether it says that a message is no question: the oldest that has no answer."""
    details = error.details() or ""
    return error.code() is grpc.StatusCode.INVALID_ARGUMENT or any(text in details for text in TOO_LARGE)


def in_vain(timeout_s: float) -> Unavailable:
    return Unavailable(f"no answer within {timeout_s:g} s", next_="retry")
