"""CheckStream at a grpcio door (proto/remit/authz/v1/authz.proto): the questions of an agent, and notices between them.

A stream takes two threads of a pool of its own, so that open streams leave the threads of all other calls alone: one
reads questions, as many as may wait, the other decides them and sends. A third one per door waits for bells.
"""

import collections
import threading
from collections.abc import Generator, Iterator
from concurrent import futures

import grpc

from fastpath.call import Pdp, StreamEar
from sidecar.config import Limits
from sidecar.services.doors import OK, Door, Resolve, status_of
from sidecar.services.errors import ErrorCounts

LOOK_S = 0.25  # between two looks at who calls, while nothing is asked
REFUSERS = 4  # threads beyond the streams that may be open, to say so to the others
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED.value[0]
DRAINING = "draining"
FULL = "request.streams"


class _Questions:
    """What one caller has asked and nobody has decided; its reader fills it, its answerer empties it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Condition()
        self._waiting: collections.deque[bytes] = collections.deque()
        self._ended = False
        self._draining = False
        self._news = False

    def read(self, requests: Iterator[bytes]) -> None:
        """Take questions until the caller has no more, or the answerer has gone."""
        try:
            for request in requests:
                if not self._put(request):
                    return
        except grpc.RpcError:
            pass  # The caller gave up: nobody waits for the answers.
        finally:
            self.end()

    def _put(self, request: bytes) -> bool:
        with self._lock:
            self._lock.wait_for(lambda: self._ended or len(self._waiting) < self._most)
            if not self._ended:
                self._waiting.append(request)
                self._lock.notify_all()
            return not self._ended

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._lock.notify_all()

    def tell(self, *, draining: bool = False) -> None:
        """There may be news, or the door closes: the answerer looks."""
        with self._lock:
            self._news = True
            self._draining |= draining
            self._lock.notify_all()

    def take(self) -> bytes | None:
        """The next question, or None after a moment, at news, and when nothing more comes."""
        with self._lock:
            self._lock.wait_for(lambda: self._waiting or self._news or self._ended, LOOK_S)
            self._news = False
            if not self._waiting:
                return None
            self._lock.notify_all()
            return self._waiting.popleft()

    @property
    def over(self) -> bool:
        """The caller has asked all, and it is decided."""
        with self._lock:
            return self._ended and not self._waiting

    @property
    def draining(self) -> bool:
        with self._lock:
            return self._draining and not self._waiting


class CheckStreams:
    """All CheckStreams of one door. Thread-safe; `close` it once its server has stopped."""

    def __init__(self, pdp: Pdp, resolve: Resolve, errors: ErrorCounts, limits: Limits) -> None:
        self._pdp = pdp
        self._resolve = resolve
        self._door = Door("check_stream", pdp.check_stream, resolve, errors)
        self._questions = limits.stream_questions
        self._room = pdp.bell_room()
        self._slots = threading.BoundedSemaphore(limits.check_streams)
        self._lock = threading.Lock()
        self._open: set[_Questions] = set()
        self._draining = False
        # grpcio runs a behaviour that has such a pool on it.
        self.experimental_thread_pool = futures.ThreadPoolExecutor(
            limits.check_streams + REFUSERS, thread_name_prefix="check stream"
        )
        threading.Thread(target=self._listen, name="bells", daemon=True).start()

    def drain(self) -> None:
        """Let every stream end with UNAVAILABLE once what came is answered."""
        with self._lock:
            self._draining = True
            for one in self._open:
                one.tell(draining=True)

    def close(self) -> None:
        """Wait for no bells any more."""
        self._room.close()
        self.experimental_thread_pool.shutdown(wait=False)

    def _listen(self) -> None:
        while self._room.wait():
            with self._lock:
                for one in self._open:
                    one.tell()

    def __call__(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if not self._slots.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, FULL)
        questions = _Questions(self._questions)
        try:
            with self._lock:
                self._open.add(questions)
                if self._draining:
                    questions.tell(draining=True)
            context.add_callback(questions.end)
            code, why = yield from self._answers(questions, requests, context)
        finally:
            questions.end()
            with self._lock:
                self._open.discard(questions)
            self._slots.release()
        if code != OK:
            context.abort(status_of(code), why)

    def _answers(
        self, questions: _Questions, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Generator[bytes, None, tuple[int, str]]:
        """Answers and notices in their order; the status that ends the stream."""
        peer = self._resolve(context)
        if peer.refusal:
            return UNAUTHENTICATED, peer.refusal
        ear = StreamEar(self._pdp, self._room, peer.spiffe_id)
        threading.Thread(target=questions.read, args=(requests,), name="check stream reader", daemon=True).start()
        while True:
            # Before what is decided after it.
            if (notice := ear.notice()) is not None:
                yield notice
            request = questions.take()
            if request is not None:
                if (notice := ear.notice()) is not None:
                    yield notice
                code, body = self._door.answer(request, context)
                if code != OK:
                    return code, body.decode("ascii", "replace")
                yield body
            elif questions.over:
                return OK, ""
            elif questions.draining:
                return UNAVAILABLE, DRAINING
            elif (peer := self._resolve(context)).refusal:
                return UNAUTHENTICATED, peer.refusal
