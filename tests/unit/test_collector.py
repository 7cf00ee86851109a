"""The collector: what it acknowledges is on disk, and what does not continue a log is refused by name."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpath.frames import gap_record
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.decisions.chain import GENESIS, link
from sidecar.decisions.collector import ChainError, Collector, OrderError, serve
from sidecar.decisions.events import event_record
from sidecar.decisions.log_file import TAIL_BYTES, LogFile, Position, verify
from sidecar.errors import JournalError, ProtocolError
from tests.fix_journal import decision_payload, lines

JOURNAL = "0" * 31 + "1"


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    made = Collector(tmp_path / "records")
    yield made
    made.close()


def entries(first: int, last: int) -> list[tuple[int, bytes]]:
    return [(sequence, decision_payload(sequence)) for sequence in range(first, last + 1)]


def batch(given: list[tuple[int, bytes]], previous: bytes = GENESIS) -> decisions_pb2.Batch:
    made = decisions_pb2.Batch(journal=JOURNAL, first_sequence=given[0][0], previous_hash=previous)
    for sequence, payload in given:
        made.entries.add(sequence=sequence, payload=payload)
    return made


def chained(given: list[tuple[int, bytes]], digest: bytes = GENESIS) -> bytes:
    for sequence, payload in given:
        digest = link(digest, sequence, payload)
    return digest


def accept(collector: Collector, made: decisions_pb2.Batch) -> Position:
    return collector.accept(collector.open(JOURNAL), made, "sidecar-a")


def log_of(collector: Collector) -> Path:
    return collector.directory / f"{JOURNAL}.jsonl"


def test_records_become_lines_in_order(collector: Collector) -> None:
    """One line per record with its sequence, chain value and fields; the answer is the position behind the last."""
    given = [*entries(1, 3), (4, event_record("generation.published", "a", generation=2))]
    assert accept(collector, batch(given)) == Position(4, chained(given))
    got = lines(log_of(collector))
    assert [one["sequence"] for one in got] == [1, 2, 3, 4]
    assert [one["hash"] for one in got] == [chained(given[:n]).hex() for n in range(1, 5)]
    assert (got[0]["agent"], got[0]["outcome"]) == ("spiffe://demo.test/agent/a", "OUTCOME_ALLOW")
    assert (got[3]["kind"], got[3]["name"]) == ("event", "generation.published")
    assert base64.b64decode(str(got[1]["payload"])) == given[1][1]


def test_wide_numbers_and_bytes_are_safe_in_json(collector: Collector) -> None:
    """64-bit numbers are strings, since JSON readers keep 53 bits; bytes are hex; all else stays what it is."""
    accept(collector, batch([(1, decision_payload(1, args_digest=bytes(range(32))))]))
    (one,) = lines(log_of(collector))
    assert one["time_unix_nano"] == "1700000000000000001"
    assert one["time"] == "2023-11-14T22:13:20.000000001Z"
    assert one["args_digest"] == bytes(range(32)).hex()
    assert one["generation"] == "7"
    assert one["door"] == "DOOR_EXT_AUTHZ"


@pytest.mark.parametrize("text", ["a\r\nb", "\x1b[31m", "\u2028", "\u202e", "\x00", '"},{"', "\N{SNOWMAN}"])
def test_a_line_is_one_line_to_every_reader(collector: Collector, text: str) -> None:
    """LG-09: hostile text neither breaks a line nor reaches a terminal; it comes back as it was."""
    accept(collector, batch([(1, decision_payload(1, resource=("Resource", text)))]))
    raw = log_of(collector).read_bytes()
    assert raw.isascii()
    assert raw.decode().rstrip("\n").isprintable()
    assert len(raw.decode().splitlines()) == 1
    assert lines(log_of(collector))[0]["resource"] == text


# ------------------------------------------------------------------ order


def test_a_gap_in_the_sequence_is_refused_and_both_ends_named(collector: Collector) -> None:
    """Records left out are never passed over in silence; nothing of the batch is written."""
    given = entries(1, 3)
    accept(collector, batch(given))
    with pytest.raises(OrderError, match="sequence 5 does not follow 3"):
        accept(collector, batch(entries(5, 6), chained(given)))
    with pytest.raises(OrderError, match="sequence 6 does not follow 4"):
        accept(collector, batch([*entries(4, 4), *entries(6, 6)], chained(given)))
    assert len(lines(log_of(collector))) == 3


def test_a_gap_record_covers_what_is_missing(collector: Collector) -> None:
    """A jump is legal when a Gap stands in its place, reaching from what is held to its own sequence."""
    given = [*entries(1, 2), (9, gap_record(2, 9, "dropped")), *entries(10, 11)]
    assert accept(collector, batch(given)).sequence == 11
    gap = lines(log_of(collector))[2]
    assert (gap["kind"], gap["first_sequence"], gap["last_sequence"], gap["cause"]) == ("gap", "2", "9", "dropped")


@pytest.mark.parametrize(("first", "last"), [(4, 9), (3, 8), (3, 10)])
def test_a_gap_record_that_does_not_cover_is_refused(collector: Collector, first: int, last: int) -> None:
    """A Gap that starts too late, or ends elsewhere than at its own sequence, covers nothing."""
    given = entries(1, 2)
    accept(collector, batch(given))
    with pytest.raises(OrderError, match="sequence 9 does not follow 2"):
        accept(collector, batch([(9, gap_record(first, last, "x"))], chained(given)))


def test_duplicates_are_dropped(collector: Collector) -> None:
    """At least once upstream, once in the log: wholly or partly known batches add only what is new."""
    given = entries(1, 6)
    accept(collector, batch(given[:4]))
    accept(collector, batch(given[:4]))
    assert accept(collector, batch(given[2:], chained(given[:2]))).sequence == 6
    assert [one["sequence"] for one in lines(log_of(collector))] == [1, 2, 3, 4, 5, 6]
    assert (collector.records, collector.duplicates) == (6, 6)


# ------------------------------------------------------------------ chain (LG-08)


def test_a_wrong_chain_value_is_refused(collector: Collector) -> None:
    """LG-08: a batch that does not continue the log's chain is refused."""
    accept(collector, batch(entries(1, 3)))
    with pytest.raises(ChainError, match="chain value before sequence 4"):
        accept(collector, batch(entries(4, 5), bytes(31) + b"\x01"))


def test_a_record_edited_after_it_was_sent_is_refused(collector: Collector) -> None:
    """LG-08: what is sent again must be what the log holds."""
    given = entries(1, 4)
    accept(collector, batch(given[:3]))
    forged = [given[0], (2, decision_payload(99)), *given[2:]]
    with pytest.raises(ChainError, match="sequence 3 was sent again with other content"):
        accept(collector, batch(forged))
    assert len(lines(log_of(collector))) == 3


@pytest.mark.parametrize("order", [(1, 3, 2), (1, 1, 2)])
def test_records_out_of_order_are_refused(collector: Collector, order: tuple[int, ...]) -> None:
    """LG-08: reordered or repeated entries of one batch are no batch."""
    with pytest.raises((ProtocolError, OrderError)):
        accept(collector, batch([(n, decision_payload(n)) for n in order]))
    assert not log_of(collector).read_bytes()


def edited(raw: list[bytes], _: int) -> list[bytes]:
    return [raw[0], raw[1].replace(b"doc-2", b"doc-9"), *raw[2:]]


def edited_payload(raw: list[bytes], _: int) -> list[bytes]:
    fields = json.loads(raw[1])
    fields["payload"] = base64.b64encode(decision_payload(77)).decode()
    return [raw[0], json.dumps(fields, separators=(",", ":")).encode(), *raw[2:]]


def deleted(raw: list[bytes], _: int) -> list[bytes]:
    return [raw[0], *raw[2:]]


def swapped(raw: list[bytes], _: int) -> list[bytes]:
    return [raw[0], raw[2], raw[1], *raw[3:]]


def inserted(raw: list[bytes], _: int) -> list[bytes]:
    return [raw[0], raw[0], *raw[1:]]


@pytest.mark.parametrize("tamper", [edited, edited_payload, deleted, swapped, inserted])
def test_verify_finds_a_changed_log(collector: Collector, tamper: object) -> None:
    """LG-08: a line edited, removed, moved or added later is found, with its number."""
    given = entries(1, 5)
    accept(collector, batch(given))
    assert verify(log_of(collector)) == (5, Position(5, chained(given)))
    raw = log_of(collector).read_bytes().splitlines()
    log_of(collector).write_bytes(b"\n".join(tamper(raw, 0)) + b"\n")  # type: ignore[operator]
    with pytest.raises(JournalError, match="line 2 of"):
        verify(log_of(collector))


def test_a_log_cut_short_is_behind_its_noted_position(collector: Collector) -> None:
    """LG-08: a cut tail leaves a whole log; only a position noted elsewhere shows it."""
    given = entries(1, 5)
    position = accept(collector, batch(given))
    raw = log_of(collector).read_bytes().splitlines(keepends=True)
    log_of(collector).write_bytes(b"".join(raw[:3]))
    assert verify(log_of(collector))[1].sequence < position.sequence


# ------------------------------------------------------------------ records that are none


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"\xff\xff", "does not decode"),
        (b"", "neither a decision, a gap nor an event"),
        (decisions_pb2.Record(decision=decisions_pb2.Decision(agent="a")).SerializeToString(), "lacks `evaluation_id`"),
    ],
    ids=["junk", "empty", "no audit minimum"],
)
def test_a_record_below_the_audit_minimum_is_refused(collector: Collector, payload: bytes, cause: str) -> None:
    """AIMS audit minimum: a decision without its mandatory fields is no record; the refusal names it."""
    with pytest.raises(ProtocolError, match=f"sequence 2: .*{cause}"):
        accept(collector, batch([*entries(1, 1), (2, payload)]))
    assert not log_of(collector).read_bytes()


def test_a_batch_must_say_what_it_is(collector: Collector) -> None:
    """First sequence and chain value are checked before anything is read."""
    wrong = batch(entries(1, 2))
    wrong.first_sequence = 2
    with pytest.raises(ProtocolError, match="first_sequence"):
        accept(collector, wrong)
    with pytest.raises(ProtocolError, match="previous_hash"):
        accept(collector, batch(entries(1, 2), b"short"))
    with pytest.raises(ProtocolError, match="first_sequence"):
        accept(collector, decisions_pb2.Batch(journal=JOURNAL))


# ------------------------------------------------------------------ the file


@pytest.mark.parametrize("torn", [b"{", b'{"sequence":4,"hash":"', b"\xff\x00" * 50_000])
def test_a_torn_last_line_is_cut_and_sent_again(collector: Collector, tmp_path: Path, torn: bytes) -> None:
    """A crash in the middle of a write: the state is that of the last whole line."""
    given = entries(1, 3)
    accept(collector, batch(given))
    whole = log_of(collector).read_bytes()
    path = tmp_path / "copy.jsonl"
    path.write_bytes(whole + torn)
    file = LogFile(path)
    assert file.position == Position(3, chained(given))
    assert file.repaired_bytes == len(torn)
    file.close()
    assert path.read_bytes() == whole


def test_a_long_last_line_is_found(tmp_path: Path, collector: Collector) -> None:
    """The state is read from the end of the file, however long its last line is."""
    big = decision_payload(2, path="\N{SNOWMAN}" * 600, columns={"session.labels_seen": ("\N{SNOWMAN}" * 170,) * 32})
    given = [(1, decision_payload(1)), (2, big)]
    accept(collector, batch(given))
    path = tmp_path / "copy.jsonl"
    path.write_bytes(log_of(collector).read_bytes())
    assert len(path.read_bytes().splitlines()[1]) > TAIL_BYTES
    file = LogFile(path)
    assert file.position == Position(2, chained(given))
    file.close()


@pytest.mark.parametrize(
    "last",
    [
        b"not json\n",
        b"{}\n",
        b"[]\n",
        b"[" * 100_000 + b"\n",
        b'{"sequence":1,"hash":"zz","sidecar":""}\n',
        b'{"sequence":1,"hash":"00","sidecar":""}\n',
        b'{"sequence":-1,"hash":"%s","sidecar":""}\n' % (b"0" * 64),
        b'{"sequence":18446744073709551616,"hash":"%s","sidecar":""}\n' % (b"0" * 64),
    ],
)
def test_a_log_that_cannot_be_continued_is_named(tmp_path: Path, last: bytes) -> None:
    """A whole last line that is not ours: the file is left as it is."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(last)
    with pytest.raises(JournalError, match=r"x\.jsonl"):
        LogFile(path)
    assert path.read_bytes() == last


def test_a_write_that_fails_leaves_nothing_behind(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """LG-06 at the collector: a full disk is no acknowledgement, and no half of a batch."""
    given = entries(1, 4)
    accept(collector, batch(given[:2]))
    before = log_of(collector).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            accept(collector, batch(given[2:], chained(given[:2])))
    assert log_of(collector).read_bytes() == before
    assert accept(collector, batch(given[2:], chained(given[:2]))).sequence == 4


def test_one_collector_per_directory(collector: Collector) -> None:
    """SY-08: a second collector on the same files is refused."""
    with pytest.raises(JournalError, match="in use by another collector"):
        Collector(collector.directory)


def test_tcp_without_an_svid_is_refused(collector: Collector) -> None:
    """Decisions do not travel in the clear."""
    with pytest.raises(JournalError, match="needs an SVID"):
        serve(collector, "127.0.0.1:0")
