"""Journal to collector over real gRPC: at least once, in order, and whatever is missing is named."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from pathlib import Path
from typing import NoReturn

import grpc
import pytest

from fastpath.frames import gap_range
from fastpath.journal import Journal
from sidecar._proto.remit.decisions.v1 import decisions_pb2, decisions_pb2_grpc
from sidecar.decisions import collector as collectors
from sidecar.decisions.collector import Collector, serve
from sidecar.decisions.log_file import verify
from sidecar.decisions.service import DecisionTail
from sidecar.decisions.shipper import BACKOFF_MAX_S, Shipper, ShipperLimits, backoff_s
from sidecar.decisions.tail import tail_socket
from tests.fix_journal import (
    DEADLINE_S,
    FAST,
    CollectorProcess,
    decision_payload,
    fill,
    lines,
    offsets,
    open_journal,
    overwrite,
    shipping,
    sockets,
    wait_for,
)

__all__ = ["sockets"]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = open_journal(tmp_path / "journal", helper=True)
    yield made
    made.close()


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "records"


def shipped(journal: Journal) -> bool:
    return journal.acknowledged()[0] == journal.next_sequence - 1


def collected(records: Path, journal: Journal) -> list[dict[str, object]]:
    """The journal's log at the collector, after its chain was checked from the first line to the last."""
    path = records / f"{journal.id}.jsonl"
    verify(path)
    return lines(path)


def numbers(got: list[dict[str, object]]) -> list[object]:
    return [one["sequence"] for one in got]


class Served:
    """A collector in this process, on a Unix socket."""

    def __init__(self, records: Path, socket: Path, **options: object) -> None:
        self.collector = Collector(records, **options)  # type: ignore[arg-type]
        self.server, _ = serve(self.collector, f"unix:{socket}")

    def __enter__(self) -> Collector:
        return self.collector

    def __exit__(self, *_: object) -> None:
        self.server.stop(0).wait(DEADLINE_S)
        self.collector.close()


# ------------------------------------------------------------------ the ordinary way


def test_records_arrive_once_and_in_order(journal: Journal, records: Path, sockets: Path) -> None:
    """What was appended before and during the stream is in the log, and acknowledged segments are removed."""
    socket = sockets / "c"
    fill(journal, 500)
    with Served(records, socket) as collector, shipping(journal, socket) as shipper:
        fill(journal, 500)
        wait_for(lambda: shipped(journal), "shipping")
        assert numbers(collected(records, journal)) == list(range(1, 1001))
        assert len(journal.segments()) == 1
        stats = shipper.stats()
        assert (stats.lag_records, stats.lag_bytes, stats.oldest_age_s, stats.failures) == (0, 0, 0.0, 0)
        assert (stats.sent_records, stats.connects, collector.duplicates) == (1000, 1, 0)


def test_two_sidecars_have_two_logs(tmp_path: Path, records: Path, sockets: Path) -> None:
    """Each journal has a file of its own."""
    socket = sockets / "c"
    with open_journal(tmp_path / "a") as one, open_journal(tmp_path / "b") as two, Served(records, socket):
        fill(one, 50)
        fill(two, 70)
        with shipping(one, socket), shipping(two, socket):
            wait_for(lambda: shipped(one) and shipped(two), "shipping")
        assert len(collected(records, one)) == 50
        assert len(collected(records, two)) == 70


def test_stopping_flushes_what_is_there(journal: Journal, records: Path, sockets: Path) -> None:
    """A clean stop ships the rest first; without a collector it gives up at its deadline and loses nothing."""
    socket = sockets / "c"
    with Served(records, socket), shipping(journal, socket) as shipper:
        fill(journal, 200)
        assert shipper.stop(flush_s=DEADLINE_S) is True
        assert len(collected(records, journal)) == 200
    with shipping(journal, socket) as shipper:
        fill(journal, 5)
        assert shipper.stop(flush_s=0.1) is False
    assert journal.acknowledged()[0] == 200


def test_backoff_grows_is_random_and_ends() -> None:
    """Doubling with jitter, never more than its maximum, so that a fleet does not come back in step."""
    for attempt in range(1, 100):
        values = {backoff_s(attempt) for _ in range(20)}
        assert all(0 < value <= BACKOFF_MAX_S for value in values)
        assert len(values) > 1
    assert max(backoff_s(1) for _ in range(20)) <= 0.2


# ------------------------------------------------------------------ one side fails


def test_upstream_down_then_up_loses_nothing(journal: Journal, records: Path, sockets: Path) -> None:
    """LG-01: the spool grows while upstream is away, says how far behind it is, and drains in order."""
    socket = sockets / "c"
    with shipping(journal, socket) as shipper:
        fill(journal, 600)
        wait_for(lambda: shipper.stats().failures > 2, "failed sessions")
        stats = shipper.stats()
        assert (stats.connected, stats.lag_records) == (False, 600)
        assert stats.lag_bytes > 600 * 300
        assert stats.oldest_age_s > 0
        assert "unavailable" in stats.last_error
        with Served(records, socket):
            wait_for(lambda: shipped(journal), "draining")
            assert shipper.stats().last_error == ""
    assert numbers(collected(records, journal)) == list(range(1, 601))


def test_a_frozen_collector_is_left_and_asked_again(journal: Journal, records: Path, sockets: Path) -> None:
    """LG-02: no acknowledgement within the deadline: reconnect and resend; the log has every record once."""
    socket = sockets / "c"
    limits = ShipperLimits(batch_records=32, linger_s=0.005, ack_timeout_s=0.3)
    process = CollectorProcess(records, socket)
    try:
        with shipping(journal, socket, limits) as shipper:
            fill(journal, 100)
            wait_for(lambda: shipped(journal), "shipping")
            process.signal(signal.SIGSTOP)
            fill(journal, 300)
            wait_for(lambda: shipper.stats().failures > 1, "the deadline")
            process.signal(signal.SIGCONT)
            wait_for(lambda: shipped(journal), "resending")
            assert shipper.stats().connects > 1
    finally:
        process.signal(signal.SIGCONT)
        process.kill()
    assert numbers(collected(records, journal)) == list(range(1, 401))


def test_a_killed_collector_loses_and_repeats_nothing(journal: Journal, records: Path, sockets: Path) -> None:
    """SIGKILL of the collector under load, several times: no line is missing, none is there twice, the chain holds."""
    socket = sockets / "c"
    process = CollectorProcess(records, socket)
    path = records / f"{journal.id}.jsonl"
    with shipping(journal, socket):
        for _ in range(4):
            before = path.stat().st_size if path.exists() else 0
            fill(journal, 400)
            wait_for(lambda before=before: path.exists() and path.stat().st_size > before, "lines")
            process.kill()
            socket.unlink(missing_ok=True)
            process = CollectorProcess(records, socket)
        wait_for(lambda: shipped(journal), "shipping")
    process.kill()
    assert numbers(collected(records, journal)) == list(range(1, 1601))


SIDECAR = """
import sys, threading
import grpc
from fastpath.journal import Journal
from sidecar.decisions.shipper import Shipper, ShipperLimits
from tests.fix_journal import decision_payload
journal = Journal(sys.argv[1], segment_bytes=65536, cap_bytes=64 << 20)
shipper = Shipper(journal, lambda: grpc.insecure_channel("unix:" + sys.argv[2]), sidecar="s",
                  limits=ShipperLimits(batch_records=16, linger_s=0.005), backoff=lambda _: 0.01)
shipper.start()
n = 0
while True:
    n += 1
    sequence = journal.append_bytes(decision_payload(n))
    if sequence:
        print(sequence, flush=True)
"""


def test_a_killed_sidecar_ships_the_rest_after_its_restart(tmp_path: Path, records: Path, sockets: Path) -> None:
    """SIGKILL of the sidecar while it ships, several times: every answered record is in the log once."""
    socket = sockets / "c"
    folder = tmp_path / "journal"
    answered = 0
    with Served(records, socket):
        for kill_after in (1, 500, 1200):
            writer = subprocess.Popen(
                [sys.executable, "-c", SIDECAR, str(folder), str(socket)], stdout=subprocess.PIPE, cwd=Path.cwd()
            )
            assert writer.stdout is not None
            for text in itertools.islice(writer.stdout, kill_after):
                answered = int(text)
            writer.kill()
            answered = max([answered, *(int(text) for text in writer.stdout if text.endswith(b"\n"))])
            writer.wait(DEADLINE_S)
            writer.stdout.close()
        with open_journal(folder, cap_bytes=64 << 20) as journal, shipping(journal, socket):
            wait_for(lambda: shipped(journal), "the rest")
            got = collected(records, journal)
    assert numbers(got) == list(range(1, len(got) + 1))
    assert len(got) >= answered > 1200
    assert all(one["kind"] == "decision" for one in got)


# ------------------------------------------------------------------ loss and tampering


def ship_all(journal: Journal, records: Path, socket: Path) -> list[dict[str, object]]:
    with Served(records, socket), shipping(journal, socket) as shipper:
        wait_for(lambda: shipped(journal), f"shipping ({shipper.stats().last_error})")
    return collected(records, journal)


def closed_journal(folder: Path, count: int = 600) -> list[Path]:
    with open_journal(folder) as journal:
        fill(journal, count)
        return [segment.path for segment in journal.segments()]


def missing_from(got: list[dict[str, object]]) -> list[tuple[int, int]]:
    return [(int(str(g["first_sequence"])), int(str(g["last_sequence"]))) for g in got if g["kind"] == "gap"]


def test_a_missing_segment_becomes_a_gap_upstream(tmp_path: Path, records: Path, sockets: Path) -> None:
    """LG-07: upstream's log names exactly the range of the segment that is gone, and holds all others."""
    paths = closed_journal(tmp_path / "journal")
    first, behind = int(paths[1].stem), int(paths[2].stem)
    paths[1].unlink()
    with open_journal(tmp_path / "journal") as journal:
        got = ship_all(journal, records, sockets / "c")
    assert missing_from(got) == [(first, behind - 1)]
    assert [n for n in numbers(got) if n != behind - 1] == [*range(1, first), *range(behind, 601)]


def test_a_damaged_record_becomes_a_gap_upstream(tmp_path: Path, records: Path, sockets: Path) -> None:
    """LG-07: a bit flipped in a sealed segment costs that record alone, and upstream knows it."""
    paths = closed_journal(tmp_path / "journal")
    sequence, at = offsets(paths[1])[7]
    overwrite(paths[1], at + 30, b"\xff\xfe\xfd")
    with open_journal(tmp_path / "journal") as journal:
        got = ship_all(journal, records, sockets / "c")
        assert journal.counters()["mended_segments"] == 1
    assert missing_from(got) == [(sequence, sequence)]
    assert numbers(got) == list(range(1, 601))


def test_damage_under_the_writer_does_not_stop_the_stream(journal: Journal, records: Path, sockets: Path) -> None:
    """LG-07: the segment in use is left, mended and shipped; later records follow."""
    fill(journal, 30)
    path = journal.segments()[0].path
    overwrite(path, offsets(path)[20][1] + 30, b"\xff\xfe\xfd")
    with Served(records, sockets / "c"), shipping(journal, sockets / "c"):
        wait_for(lambda: shipped(journal), "shipping")
        fill(journal, 30)
        wait_for(lambda: shipped(journal), "shipping")
    got = collected(records, journal)
    assert missing_from(got) == [(21, 21)]
    assert numbers(got) == list(range(1, 61))


def test_dropped_segments_become_a_gap_upstream(tmp_path: Path, records: Path, sockets: Path) -> None:
    """LG-06 `drop_oldest`: what was dropped while upstream was away is one Gap in its log."""
    with open_journal(tmp_path / "journal", cap_bytes=4 * 65536, on_full="drop_oldest") as journal:
        fill(journal, 2000)
        got = ship_all(journal, records, sockets / "c")
    ((first, last),) = missing_from(got)
    assert first == 1
    assert numbers(got) == list(range(last, 2001))


def reorder(path: Path) -> None:
    raw, frames = path.read_bytes(), offsets(path)
    (_, a), (_, b), (_, c) = frames[3:6]
    path.write_bytes(raw[:a] + raw[b:c] + raw[a:b] + raw[c:])


def delete(path: Path) -> None:
    raw, frames = path.read_bytes(), offsets(path)
    path.write_bytes(raw[: frames[3][1]] + raw[frames[4][1] :])


@pytest.mark.parametrize("tamper", [delete, reorder])
def test_a_record_removed_or_moved_on_disk_is_named_upstream(
    tmp_path: Path, records: Path, sockets: Path, tamper: object
) -> None:
    """LG-08: frames taken out or put elsewhere before they were shipped leave a Gap with their sequence."""
    paths = closed_journal(tmp_path / "journal")
    sequence = offsets(paths[1])[3][0]
    tamper(paths[1])  # type: ignore[operator]
    with open_journal(tmp_path / "journal") as journal:
        got = ship_all(journal, records, sockets / "c")
    assert missing_from(got) == [(sequence, sequence)]


def test_a_journal_rolled_back_is_refused(tmp_path: Path, records: Path, sockets: Path) -> None:
    """LG-08: an old copy of the directory put back is behind upstream's head; the stream stops and says so."""
    folder, backup = tmp_path / "journal", tmp_path / "backup"
    closed_journal(folder, 50)
    subprocess.run(["cp", "-a", str(folder), str(backup)], check=True)
    with open_journal(folder) as journal:
        fill(journal, 50)
        ship_all(journal, records, sockets / "c")
    subprocess.run(["rm", "-r", str(folder)], check=True)
    backup.rename(folder)
    with open_journal(folder) as journal, Served(records, sockets / "d"):
        fill(journal, 5)
        with shipping(journal, sockets / "d") as shipper:
            wait_for(lambda: shipper.stats().refused > 0, "the refusal")
            assert "was rolled back" in shipper.stats().last_error
        assert len(collected(records, journal)) == 100


def test_a_log_changed_upstream_is_refused(tmp_path: Path, records: Path, sockets: Path) -> None:
    """LG-08: a collector whose chain value is not the one that it acknowledged does not get more records."""
    with open_journal(tmp_path / "journal") as journal:
        fill(journal, 20)
        ship_all(journal, records, sockets / "c")
        path = records / f"{journal.id}.jsonl"
        raw = path.read_text().splitlines(keepends=True)
        good = str(lines(path)[-1]["hash"])
        path.write_text("".join(raw).replace(good, "0" * 64))
        fill(journal, 5)
        with Served(records, sockets / "d"), shipping(journal, sockets / "d") as shipper:
            wait_for(lambda: shipper.stats().refused > 0, "the refusal")
            assert "differs from ours" in shipper.stats().last_error
        assert len(lines(path)) == 20


def test_a_new_collector_learns_what_it_will_never_get(tmp_path: Path, records: Path, sockets: Path) -> None:
    """LG-03: a collector that lost what it acknowledged gets the rest, behind a Gap that names what is gone."""
    with open_journal(tmp_path / "journal") as journal:
        fill(journal, 600)
        ship_all(journal, records, sockets / "c")
        first = journal.segments()[0].first_sequence
        assert first > 1
        fill(journal, 5)
        other = tmp_path / "other"
        with Served(other, sockets / "d"), shipping(journal, sockets / "d") as shipper:
            wait_for(lambda: (other / f"{journal.id}.jsonl").exists() and shipped(journal), "shipping")
            wait_for(lambda: shipper.stats().regressed == 1, "the regress")
        got = collected(other, journal)
    assert missing_from(got) == [(1, first - 1)]
    assert numbers(got) == list(range(first - 1, 606))


def test_a_record_that_upstream_refuses_stays_and_is_loud(journal: Journal, records: Path, sockets: Path) -> None:
    """A record below the audit minimum is refused by name, and nothing is thrown away to get past it."""
    journal.append_bytes(decision_payload(1))
    journal.append_bytes(decisions_pb2.Record(decision=decisions_pb2.Decision(agent="a")).SerializeToString())
    with Served(records, sockets / "c"), shipping(journal, sockets / "c") as shipper:
        wait_for(lambda: shipper.stats().refused > 1, "the refusal")
        assert "sequence 2" in shipper.stats().last_error
        assert "evaluation_id" in shipper.stats().last_error
    assert journal.acknowledged()[0] == 0


# ------------------------------------------------------------------ the collector's door


class Streams:
    """Raw Publish calls."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self.stub = decisions_pb2_grpc.DecisionStreamStub(self.channel)

    def refusal(self, requests: Iterable[decisions_pb2.PublishRequest]) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.stub.Publish(iter(requests), timeout=DEADLINE_S))
        return caught.value


def hello(journal: str = "a" * 32, sidecar: str = "s") -> decisions_pb2.PublishRequest:
    return decisions_pb2.PublishRequest(hello=decisions_pb2.Hello(sidecar=sidecar, journal=journal))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 31, "A" * 32, "a" * 32 + "\n", "a" * 32 + "/"])
def test_a_journal_id_is_never_a_path(records: Path, sockets: Path, name: str) -> None:
    """What a sidecar calls its journal becomes a file name only when it is 32 hex digits."""
    with Served(records, sockets / "c"):
        error = Streams(sockets / "c").refusal([hello(name)])
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [path.name for path in records.iterdir()] == ["lock"]


def test_a_stream_starts_with_hello_and_stays_with_its_journal(records: Path, sockets: Path) -> None:
    """Batches without Hello, a second Hello, and batches of another journal are refused."""
    batch = decisions_pb2.PublishRequest(batch=decisions_pb2.Batch(journal="b" * 32, first_sequence=1))
    with Served(records, sockets / "c"):
        streams = Streams(sockets / "c")
        for requests in ([batch], [hello(), hello()], [hello(), batch]):
            assert streams.refusal(requests).code() == grpc.StatusCode.INVALID_ARGUMENT


def test_gaps_are_refused_on_the_wire(records: Path, sockets: Path) -> None:
    """FAILED_PRECONDITION, naming both sequences."""
    batch = decisions_pb2.Batch(journal="a" * 32, first_sequence=5, previous_hash=bytes(32))
    batch.entries.add(sequence=5, payload=decision_payload(5))
    with Served(records, sockets / "c"):
        error = Streams(sockets / "c").refusal([hello(), decisions_pb2.PublishRequest(batch=batch)])
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "sequence 5 does not follow 0" in error.details()


def test_a_sidecar_is_who_it_says(records: Path, sockets: Path) -> None:
    """A Hello must name its verified caller, at every batch; a journal stays with the sidecar that began it."""
    caller = ["spiffe://demo.test/a"]
    batch = decisions_pb2.Batch(journal="a" * 32, first_sequence=1, previous_hash=bytes(32))
    batch.entries.add(sequence=1, payload=decision_payload(1))
    publish = decisions_pb2.PublishRequest(batch=batch)
    with Served(records, sockets / "c", identify=lambda _: caller[0]):
        streams = Streams(sockets / "c")
        assert streams.refusal([hello(sidecar="spiffe://demo.test/b")]).code() == grpc.StatusCode.PERMISSION_DENIED
        answers = list(streams.stub.Publish(iter([hello(sidecar=caller[0]), publish]), timeout=DEADLINE_S))
        assert [answer.last_sequence for answer in answers] == [0, 1]

        expired = threading.Event()

        def requests() -> Iterator[decisions_pb2.PublishRequest]:
            yield hello(sidecar="spiffe://demo.test/a")
            expired.wait(DEADLINE_S)
            yield publish

        call = streams.stub.Publish(requests(), timeout=DEADLINE_S)
        assert next(call).last_sequence == 1
        caller[0] = ""
        expired.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        caller[0] = "spiffe://demo.test/b"
        error = streams.refusal([hello(sidecar=caller[0])])
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "belongs to another sidecar" in error.details()


def test_a_log_that_may_not_be_opened_is_the_collectors_own_trouble(
    records: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sidecar is told UNAVAILABLE and tries again, not that it has no right; no path of ours is told."""

    def refuse(path: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(collectors, "LogFile", refuse)
    with Served(records, sockets / "c"):
        error = Streams(sockets / "c").refusal([hello(sidecar="a")])
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the log cannot be written: Permission denied"


# ------------------------------------------------------------------ tail


def test_tail_follows_the_running_sidecar(journal: Journal, sockets: Path) -> None:
    """The control socket's Tail gives what is there and what comes; without `follow` it ends; too many are refused."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = DecisionTail(journal, tails_max=1)
    decisions_pb2_grpc.add_DecisionTailServicer_to_server(servicer, server)
    socket = sockets / "control"
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    fill(journal, 20)
    journal.acknowledge(5, bytes(32))
    try:
        whole = list(tail_socket(socket, from_start=True, follow=False))
        assert [sequence for sequence, _ in whole] == list(range(1, 21))
        assert not any(gap_range(payload) for _, payload in whole)
        following = tail_socket(socket, from_start=True, follow=True)
        assert [next(following)[0] for _ in range(20)] == list(range(1, 21))
        fill(journal, 1)
        assert next(following)[0] == 21
        with pytest.raises(grpc.RpcError) as caught:
            list(tail_socket(socket, from_start=True, follow=False))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        servicer.close()
        assert list(following) == []
    finally:
        servicer.close()
        server.stop(0).wait(DEADLINE_S)


def test_no_thread_or_descriptor_is_left(tmp_path: Path, records: Path, sockets: Path) -> None:
    """Sessions that fail and streams that end give back what they took."""

    def held() -> tuple[int, int]:
        named = [t for t in threading.enumerate() if t.name.startswith("remit-shipper")]
        files = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        ]
        return len(named), sum(str(tmp_path) in name for name in files)

    with open_journal(tmp_path / "journal") as journal:
        fill(journal, 100)
        with shipping(journal, sockets / "none") as shipper:
            wait_for(lambda: shipper.stats().failures > 20, "failures")
        with Served(records, sockets / "c"), shipping(journal, sockets / "c"):
            wait_for(lambda: shipped(journal), "shipping")
    wait_for(lambda: held() == (0, 0), "the end of threads and files")


def test_a_shipper_that_never_started_can_be_stopped(journal: Journal) -> None:
    """Stopping is safe whatever came before."""
    fill(journal, 1)
    shipper = Shipper(journal, lambda: grpc.insecure_channel("unix:/nonexistent"), sidecar="s", limits=FAST)
    assert shipper.stop(flush_s=0.0) is False
