"""Ships the journal to a collector: acknowledged, in order, at least once.

What upstream holds is what upstream says: every session starts from the collector's own last sequence and chain value,
so a restart of either side needs no agreement but that one. Records stay in the journal until they are acknowledged.
"""

import dataclasses
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable

import grpc

from fastpath.journal import Journal
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.decisions.chain import GENESIS
from sidecar.decisions.reader import Entry, SpoolReader
from sidecar.decisions.session import Batcher, Flight, Session, Stalled, base_of
from sidecar.errors import JournalError
from sidecar.logs import event

log = logging.getLogger("remit.shipper")

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 4.0  # a full journal answers ERROR, so a collector that is back must be found within seconds
REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


def backoff_s(attempt: int) -> float:
    """Seconds before try number `attempt` (from 1): doubling up to BACKOFF_MAX_S, half of it random."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class ShipperLimits:
    """How much is under way at once, and how long to wait."""

    batch_records: int = 512
    batch_bytes: int = 1 << 20
    window: int = 4  # batches sent and not yet acknowledged
    linger_s: float = 0.05  # between looks at an idle journal
    ack_timeout_s: float = 10.0  # without progress the collector is taken for dead


@dataclasses.dataclass(frozen=True)
class ShipperStats:
    """One look at the stream; counters start with the process."""

    connected: bool
    acknowledged: int  # last sequence upstream holds
    lag_records: int
    lag_bytes: int  # of the journal on disk that is not yet removed
    oldest_age_s: float  # of the oldest record upstream does not hold; 0 when there is none
    sent_records: int
    connects: int
    failures: int  # sessions that ended in an error
    refused: int  # of these, by the collector's judgement
    regressed: int  # times upstream held less than it had acknowledged
    last_error: str


class Shipper:
    """One thread that keeps one stream to the collector. `start` it once, `stop` it once."""

    def __init__(
        self,
        journal: Journal,
        channel_factory: Callable[[], grpc.Channel],
        *,
        sidecar: Callable[[], str] | str,
        limits: ShipperLimits | None = None,
        backoff: Callable[[int], float] = backoff_s,
    ) -> None:
        """`channel_factory` makes a channel per session, so that a rotated SVID takes effect; `sidecar` names us."""
        self._journal = journal
        self._channel_factory = channel_factory
        self._sidecar = sidecar
        self._limits = limits or ShipperLimits()
        self._backoff = backoff
        self._stopping = threading.Event()
        self._flush_until = 0.0
        self._thread = threading.Thread(target=self._run, name="remit-shipper", daemon=True)
        self._stats = ShipperStats(False, journal.acknowledged()[0], 0, 0, 0.0, 0, 0, 0, 0, 0, "")
        self._oldest_ns = 0
        self._live: Session | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, flush_s: float = 5.0) -> bool:
        """Ship what is there for at most `flush_s` seconds, then end; whether upstream holds everything."""
        self._flush_until = time.monotonic() + flush_s
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(flush_s)
            session = self._live
            if self._thread.is_alive() and session is not None:
                session.cancel()
            self._thread.join(self._limits.ack_timeout_s)
        return self._journal.acknowledged()[0] == self._journal.next_sequence - 1

    def stats(self) -> ShipperStats:
        counters = self._journal.counters()
        lag = max(0, counters["next_sequence"] - 1 - counters["acknowledged"])
        age_s = max(0.0, (time.time_ns() - self._oldest_ns) / 1e9) if lag and self._oldest_ns else 0.0
        return dataclasses.replace(
            self._stats,
            acknowledged=counters["acknowledged"],
            lag_records=lag,
            lag_bytes=counters["bytes"] if lag else 0,
            oldest_age_s=age_s,
        )

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        attempt = 0
        while not self._over():
            acknowledged = self._journal.acknowledged()[0]
            try:
                self._session()
            except (grpc.RpcError, JournalError, OSError, Stalled) as error:
                attempt = 1 if self._journal.acknowledged()[0] > acknowledged else attempt + 1
                self._failed(error, attempt)
                self._pause(self._backoff(attempt))

    def _over(self) -> bool:
        """Whether to end: asked to, and nothing is left to ship or no time to ship it."""
        if not self._stopping.is_set():
            return False
        return (
            time.monotonic() >= self._flush_until or self._journal.acknowledged()[0] >= self._journal.next_sequence - 1
        )

    def _pause(self, seconds: float) -> None:
        if not self._stopping.is_set():
            self._stopping.wait(seconds)
        elif time.monotonic() < self._flush_until:
            time.sleep(max(0.0, min(seconds, self._limits.linger_s, self._flush_until - time.monotonic())))

    def _failed(self, error: Exception, attempt: int) -> None:
        code = error.code() if isinstance(error, grpc.RpcError) else None
        details = error.details() if isinstance(error, grpc.RpcError) else str(error)
        text = f"{code.name.lower()}: {details}" if code is not None else str(details)
        refused = code in REFUSALS or isinstance(error, JournalError)
        self._count(connected=False, failures=1, refused=int(refused), last_error=text)
        level = logging.ERROR if refused else logging.WARNING
        event(log, "stream.refused" if refused else "stream.lost", level, cause=text, attempt=attempt)

    def _count(self, *, connected: bool | None = None, last_error: str | None = None, **more: int) -> None:
        changes: dict[str, object] = {name: getattr(self._stats, name) + n for name, n in more.items()}
        if connected is not None:
            changes["connected"] = connected
        if last_error is not None:
            changes["last_error"] = last_error
        self._stats = dataclasses.replace(self._stats, **changes)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ one session

    def _session(self) -> None:
        """Connect, agree where to go on, ship until something ends it. Raises what ended it."""
        self._note_oldest()
        name = self._sidecar if isinstance(self._sidecar, str) else self._sidecar()
        with Session(self._channel_factory(), self._limits.ack_timeout_s) as session:
            self._live = session
            session.send(
                decisions_pb2.PublishRequest(hello=decisions_pb2.Hello(sidecar=name, journal=self._journal.id))
            )
            sequence, digest = self._agree(session.answer())
            self._count(connected=True, connects=1, last_error="")
            event(log, "stream.connected", from_sequence=sequence + 1)
            self._pump(session, sequence, digest)

    def _agree(self, answer: decisions_pb2.PublishResponse) -> tuple[int, bytes]:
        """(sequence, chain value) to go on from. JournalError when the two sides cannot be of one history."""
        sequence, digest = answer.last_sequence, answer.last_hash or GENESIS
        acknowledged, known = self._journal.acknowledged()
        if sequence < acknowledged:
            self._count(regressed=1)
            event(log, "stream.regressed", logging.ERROR, acknowledged=acknowledged, upstream=sequence)
            return sequence, digest
        base_of(self._journal, (acknowledged, known), (sequence, digest))
        if sequence > acknowledged:
            self._journal.acknowledge(sequence, digest)
        return sequence, digest

    def _pump(self, session: Session, sequence: int, digest: bytes) -> None:
        limits = self._limits
        reader = SpoolReader(self._journal.segments, sequence, mend=self._journal.mend)
        batcher = Batcher(self._journal.id, digest)
        under_way: deque[Flight] = deque()
        progress = time.monotonic()
        try:
            while not self._over():
                entries: list[Entry] = []
                if len(under_way) < limits.window:
                    entries = reader.read(limits.batch_records, limits.batch_bytes)
                if entries:
                    progress = progress if under_way else time.monotonic()
                    under_way.append(batcher.flight(entries))
                    session.send(under_way[-1].request)
                    self._count(sent_records=len(entries))
                    self._oldest_ns = under_way[0].time_unix_ns
                answer = session.poll(0.0 if entries else limits.linger_s)
                if answer is not None:
                    self._acknowledged(answer, under_way)
                    progress = time.monotonic()
                elif under_way and time.monotonic() - progress > limits.ack_timeout_s:
                    raise Stalled(f"no acknowledgement for {limits.ack_timeout_s:g} s")
        finally:
            reader.close()

    def _acknowledged(self, answer: decisions_pb2.PublishResponse, under_way: deque[Flight]) -> None:
        """Drop what upstream now holds. JournalError when it holds something else than was sent."""
        last: Flight | None = None
        while under_way and under_way[0].last_sequence <= answer.last_sequence:
            last = under_way.popleft()
        if last is None:
            return
        if (last.last_sequence, last.last_hash) != (answer.last_sequence, answer.last_hash):
            raise JournalError(
                f"the collector acknowledged sequence {answer.last_sequence} with another chain value than was sent; "
                "its log is not this journal's"
            )
        self._journal.acknowledge(answer.last_sequence, answer.last_hash)
        self._oldest_ns = under_way[0].time_unix_ns if under_way else 0

    def _note_oldest(self) -> None:
        """Remember the age of the first record upstream lacks, which a session that fails would not come to read."""
        reader = SpoolReader(self._journal.segments, self._journal.acknowledged()[0])
        entries = reader.read(1, 1)
        reader.close()
        self._oldest_ns = Batcher.time_of(entries[0]) if entries else 0
