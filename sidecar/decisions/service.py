"""The control socket's DecisionTail service: follow the decisions of this sidecar."""

import threading
from collections.abc import Iterator

import grpc

from fastpath.journal import Journal
from sidecar._proto.remit.decisions.v1 import decisions_pb2, decisions_pb2_grpc
from sidecar.decisions.reader import SpoolReader, first_sequence
from sidecar.decisions.tail import follow_reader

TAILS_MAX = 8


class DecisionTail(decisions_pb2_grpc.DecisionTailServicer):
    """Streams records from the journal's files, so that a slow reader costs the data plane nothing."""

    def __init__(self, journal: Journal, *, tails_max: int = TAILS_MAX) -> None:
        self._journal = journal
        self._room = threading.BoundedSemaphore(tails_max)
        self._tails_max = tails_max
        self._closing = threading.Event()

    def close(self) -> None:
        """End every stream."""
        self._closing.set()

    def Tail(
        self, request: decisions_pb2.TailRequest, context: grpc.ServicerContext
    ) -> Iterator[decisions_pb2.TailResponse]:
        """Records from the first held one, or from now on; without `follow` up to the present end."""
        if not self._room.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._tails_max} tails are open already")
        try:
            start = first_sequence(self._journal.directory) if request.from_start else self._journal.next_sequence
            reader = SpoolReader(self._journal.segments, start - 1)

            def over(seconds: float) -> bool:
                return self._closing.wait(seconds) or not context.is_active()

            for sequence, payload in follow_reader(reader, follow=request.follow, stop=over):
                yield decisions_pb2.TailResponse(sequence=sequence, payload=payload)
        finally:
            self._room.release()
