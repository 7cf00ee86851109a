"""One stream to a collector, and what travels on it."""

import queue
import threading
from dataclasses import dataclass
from types import TracebackType

import grpc
from google.protobuf.message import DecodeError

from fastpath.frames import gap_range
from fastpath.journal import Journal
from sidecar._proto.remit.decisions.v1 import decisions_pb2, decisions_pb2_grpc
from sidecar.decisions.chain import link
from sidecar.decisions.reader import Entry, SpoolReader
from sidecar.errors import JournalError

VERIFY_RECORDS = 1024


class Stalled(Exception):
    """The collector does not answer."""


@dataclass(frozen=True)
class Flight:
    """One batch and the acknowledgement that it awaits."""

    request: decisions_pb2.PublishRequest
    last_sequence: int
    last_hash: bytes
    time_unix_ns: int  # of its first record; 0 when that has none


class Batcher:
    """Makes batches, and carries the chain through them."""

    def __init__(self, journal: str, digest: bytes) -> None:
        self._journal = journal
        self._hash = digest

    def flight(self, entries: list[Entry]) -> Flight:
        batch = decisions_pb2.Batch(journal=self._journal, first_sequence=entries[0][0], previous_hash=self._hash)
        for sequence, payload in entries:
            batch.entries.add(sequence=sequence, payload=payload)
            self._hash = link(self._hash, sequence, payload)
        return Flight(decisions_pb2.PublishRequest(batch=batch), entries[-1][0], self._hash, self.time_of(entries[0]))

    @staticmethod
    def time_of(entry: Entry) -> int:
        """Unix time in ns of a record; 0 for a Gap and for bytes that are no record (the collector names those)."""
        try:
            record = decisions_pb2.Record.FromString(entry[1])
        except DecodeError:
            return 0
        return record.decision.time_unix_nano or record.event.time_unix_nano


class Session:
    """A Publish call with both directions as queues. Closing it cancels the call and closes the channel."""

    def __init__(self, channel: grpc.Channel, answer_timeout_s: float) -> None:
        self._channel = channel
        self._timeout_s = answer_timeout_s
        self._out: queue.SimpleQueue[decisions_pb2.PublishRequest | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[decisions_pb2.PublishResponse | grpc.RpcError | None] = queue.SimpleQueue()
        self._call = decisions_pb2_grpc.DecisionStreamStub(channel).Publish(iter(self._out.get, None))
        self._listener = threading.Thread(target=self._listen, name="remit-shipper-acks", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        try:
            for answer in self._call:
                self._in.put(answer)
            self._in.put(None)
        except grpc.RpcError as error:
            self._in.put(error)

    def send(self, request: decisions_pb2.PublishRequest) -> None:
        self._out.put(request)

    def poll(self, wait_s: float) -> decisions_pb2.PublishResponse | None:
        """The next answer, or None when none came in time. grpc.RpcError or Stalled when the stream is over."""
        try:
            got = self._in.get(timeout=wait_s) if wait_s > 0 else self._in.get_nowait()
        except queue.Empty:
            return None
        if got is None:
            raise Stalled("the collector ended the stream")
        if isinstance(got, grpc.RpcError):
            raise got
        return got

    def answer(self) -> decisions_pb2.PublishResponse:
        """The next answer. Stalled when it does not come in time."""
        got = self.poll(self._timeout_s)
        if got is None:
            raise Stalled(f"no answer for {self._timeout_s:g} s")
        return got

    def cancel(self) -> None:
        """End the stream from another thread; whoever waits in `poll` gets the error."""
        self._call.cancel()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        self._out.put(None)
        self._channel.close()
        self._listener.join(self._timeout_s)


def base_of(journal: Journal, ours: tuple[int, bytes], theirs: tuple[int, bytes]) -> None:
    """Check that upstream's (sequence, chain value) continues the acknowledged one; JournalError when it does not."""
    sequence, digest = theirs
    if sequence >= journal.next_sequence:
        raise JournalError(
            f"the collector holds journal `{journal.id}` up to sequence {sequence}, this one ends at "
            f"{journal.next_sequence - 1}: its directory was rolled back; move `{journal.directory}` aside"
        )
    at, chain = ours
    reader = SpoolReader(journal.segments, at)
    try:
        while at < sequence:
            entries = reader.read(min(VERIFY_RECORDS, sequence - at), 1 << 20)
            if not entries:
                return
            for at, payload in entries:
                if gap_range(payload):
                    return  # what upstream holds there may be the record that is lost here
                chain = link(chain, at, payload)
    finally:
        reader.close()
    if at == sequence and chain != digest:
        raise JournalError(
            f"the collector's chain value at sequence {sequence} of journal `{journal.id}` differs from ours; "
            "one of the two logs was changed"
        )
