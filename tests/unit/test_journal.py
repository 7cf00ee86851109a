"""The journal: what is appended is there, in order, and what is not there is named."""

import dataclasses
import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpath.frames import FrameLayout, Frames, crc32c, frame, gap_range, gap_record, read_frames
from fastpath.journal import Journal, JournalState
from fastpath.spool import Segment, Spool, header_of, list_segments
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.decisions.reader import SpoolReader, directory_reader
from tests.fix_journal import (
    CAP_BYTES,
    SEGMENT_BYTES,
    decision_payload,
    fill,
    held,
    offsets,
    open_journal,
    overwrite,
)

HEADER = int(FrameLayout.SEGMENT_HEADER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def sequences(folder: Path) -> list[int]:
    return [sequence for sequence, _ in held(folder)]


def test_crc32c_is_that_of_rfc3720_with_and_without_the_instruction() -> None:
    """CRC32C of "123456789" is 0xE3069283; the table and the processor agree on every length."""
    assert crc32c(b"123456789") == crc32c(b"123456789", portable=True) == 0xE3069283
    data = os.urandom(300)
    assert all(crc32c(data[:n]) == crc32c(data[:n], portable=True) for n in range(301))


@pytest.mark.parametrize("n", [1, 7, 8, 31, 32, 33, 63, 64, 65, 300, 478])
def test_a_frame_has_the_checksum_of_its_sequence_and_its_payload(n: int) -> None:
    """frames.pxd: the CRC32C of the journal's id and both, in this order, as it is without the instruction."""
    payload = bytes(range(256)) * 2
    header = header_of("0123456789abcdef" * 2)
    made = frame(header, 2**40 + n, payload[:n])
    assert int.from_bytes(made[4:8], "little") == crc32c(header[16:] + made[8:16] + payload[:n], portable=True)


def test_appended_records_are_read_back_in_order(folder: Path) -> None:
    """Sequences start at 1 and grow by one; payloads come back byte for byte, across segments."""
    payloads = [os.urandom(1 + n * 37 % 3000) for n in range(200)]
    with open_journal(folder) as journal:
        for payload in payloads:
            assert journal.append_bytes(payload)
            journal.maintain()
        assert len(journal.segments()) > 2
        assert held(folder) == list(enumerate(payloads, 1))


def test_reopening_continues_the_sequence_and_the_id(folder: Path) -> None:
    """A journal keeps its id; its next record has the next number."""
    with open_journal(folder) as journal:
        name, given = journal.id, fill(journal, 100)
    with open_journal(folder) as journal:
        assert journal.id == name
        assert journal.append_bytes(b"next") == given[-1] + 1
    assert sequences(folder) == list(range(1, 102))


def test_a_reader_finds_a_segment_that_was_named_after_it_looked(folder: Path) -> None:
    """A path that is gone when it is opened is looked up again: what was appended is there at once."""
    with open_journal(folder) as journal:
        fill(journal, 3)
        (segment,) = journal.segments()
        listings = iter([[dataclasses.replace(segment, path=folder / "000002.spare")]])
        reader = SpoolReader(lambda: next(listings, None) or journal.segments(), 0)
        assert [sequence for sequence, _ in reader.read(10, 1 << 20)] == [1, 2, 3]
        reader.close()


def test_a_reader_of_the_directory_follows_fronts_that_are_used_again(folder: Path) -> None:
    """Between its listing and its look a front may be copied and hold later records: a segment has what it held."""
    with open_journal(folder, segment_bytes=8 << 20, cap_bytes=64 << 20) as journal:
        fill(journal, 300)

        def listing() -> list[Segment]:
            found = list_segments(folder)
            if journal.next_sequence < 8000:
                fill(journal, 700)
            return found

        reader = SpoolReader(listing, 0)
        seen: list[tuple[int, bytes]] = []
        while entries := reader.read(100, 1 << 20):
            seen.extend(entries)
        reader.close()
        assert [sequence for sequence, _ in seen] == list(range(1, journal.next_sequence))
        assert not any(gap_range(payload) for _, payload in seen)


def test_a_reader_of_the_directory_finds_what_was_not_copied(folder: Path) -> None:
    """A front that begins before the newest segment does holds what comes behind this one, until that is copied."""
    with open_journal(folder, segment_bytes=200000, cap_bytes=1 << 22) as journal:
        assert all(journal.append_bytes(b"x" * 30000) for _ in range(7))
        journal.maintain()
        reader = directory_reader(folder, 0)
        assert [sequence for sequence, _ in reader.read(100, 1 << 20)] == list(range(1, 8))
        assert journal.append_bytes(b"next") == 8
        fronts = [segment for segment in list_segments(folder) if segment.path.suffix == ".front"]
        assert fronts[-1].first_sequence < list_segments(folder, fronts=False)[-1].first_sequence
        assert reader.read(100, 1 << 20) == [(8, b"next")]
        assert sequences(folder) == list(range(1, 9))
        reader.close()


def test_a_reader_sees_records_while_the_writer_goes_on(folder: Path) -> None:
    """Iteration stops at what is written so far and resumes when there is more."""
    with open_journal(folder) as journal:
        journal.append_bytes(b"one")
        frames = read_frames(journal.segments()[0].path)
        assert list(frames) == [(1, b"one")]
        journal.append_bytes(b"two")
        journal.segments()
        assert list(frames) == [(2, b"two")]
        assert frames.damage == ""
        frames.close()


def test_concurrent_appends_and_reads_lose_nothing(folder: Path) -> None:
    """Four writers and a reader at once: each sequence is given out once, and no frame is taken for damaged."""
    per_thread = 2000
    given: list[list[int]] = [[] for _ in range(4)]
    with Journal(folder, segment_bytes=1 << 20, cap_bytes=64 << 20) as journal:

        def write(into: list[int]) -> None:
            into.extend(journal.append_bytes(b"x" * 100) for _ in range(per_thread))

        threads = [threading.Thread(target=write, args=(into,)) for into in given]
        for thread in threads:
            thread.start()
        seen = 0
        while any(thread.is_alive() for thread in threads):
            seen = max(seen, len(held(folder)))
        for thread in threads:
            thread.join()
        accepted = sorted(n for into in given for n in into if n)
        assert accepted == list(range(1, len(accepted) + 1))
        assert sequences(folder) == accepted


@pytest.mark.parametrize("payload", [b"", b"x" * (FrameLayout.PAYLOAD_BYTES_MAX + 1)], ids=["empty", "too long"])
def test_a_payload_that_is_no_record_is_refused(folder: Path, payload: bytes) -> None:
    """An empty or too long payload gets no sequence, and the journal stays in order."""
    with open_journal(folder, segment_bytes=1 << 20) as journal:
        assert journal.append_bytes(payload) == 0
        assert journal.state == JournalState.JOURNAL_OK
        assert journal.append_bytes(b"x") == 1
        assert journal.counters()["oversized"] == 1


def test_one_process_writes_a_journal(folder: Path) -> None:
    """SY-08: a second opener is refused, and told who has it."""
    with open_journal(folder), pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()}"):
        open_journal(folder)
    open_journal(folder).close()


def test_a_directory_open_to_others_is_refused(folder: Path) -> None:
    """SY-07: decisions are not for everybody; the message says what to do."""
    folder.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        open_journal(folder)


def test_names_that_are_no_segments_are_left_alone(folder: Path) -> None:
    """A name beyond the last sequence, or that is no number, is somebody else's file."""
    with open_journal(folder) as journal:
        fill(journal, 3)
    for name in ("99999999999999999999.seg", "notes.seg"):
        (folder / name).write_bytes(b"x" * 100)
    with open_journal(folder) as journal:
        assert journal.next_sequence == 4
    assert (folder / "notes.seg").read_bytes() == b"x" * 100


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_in_the_place_of_a_segment_is_named(folder: Path, make: Callable[[Path], None]) -> None:
    """A pipe would keep the start waiting for ever."""
    with open_journal(folder) as journal:
        fill(journal, 3)
    segment = folder / f"{1:020d}.seg"
    segment.rename(folder / "aside")
    make(segment)
    with pytest.raises(OSError, match=r"0001\.seg` is not a regular file; move it away"):
        open_journal(folder)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["000.front", "000009.spare", "floor"])
def test_what_is_no_file_beside_the_segments_is_named(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    """A pipe would keep the start waiting for ever."""
    filled(folder, 3)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(OSError, match=rf"{name}` is not a regular file; move it away"):
        open_journal(folder)


def test_no_link_is_written_through(folder: Path, tmp_path: Path) -> None:
    """A name that leads elsewhere is no file of the journal's."""
    filled(folder, 3)
    other = tmp_path / "other"
    other.write_bytes(b"of somebody else")
    (folder / "floor").unlink()
    (folder / "floor").symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        open_journal(folder)
    assert other.read_bytes() == b"of somebody else"


def test_a_pipe_in_the_place_of_the_identity_counts_as_lost(folder: Path) -> None:
    """It is found again in the segments, as when the file is gone."""
    with open_journal(folder) as journal:
        fill(journal, 3)
        before = journal.id
    (folder / "journal").unlink()
    os.mkfifo(folder / "journal")
    with open_journal(folder) as journal:
        assert (journal.id, journal.next_sequence) == (before, 4)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"on_full": "block"}, "on_full"), ({"sync": "often"}, "sync"), ({"cap_bytes": SEGMENT_BYTES}, "segment_bytes")],
)
def test_options_that_do_not_fit_are_named(folder: Path, options: dict[str, object], named: str) -> None:
    """A wrong option is an error that names it."""
    with pytest.raises(ValueError, match=named):
        open_journal(folder, **options)


# ------------------------------------------------------------------ full


def test_spares_follow_the_rate_of_the_writer(folder: Path) -> None:
    """A fast writer finds more room each time that its helper comes late; a slow one leaves the cap to records."""
    with open_journal(folder, segment_bytes=4096, cap_bytes=256 * 4096, helper=False) as journal:

        def until_refused() -> int:
            count = 0
            while journal.append_bytes(decision_payload(count)):
                count += 1
            journal.maintain()
            return count

        at_first, later = until_refused(), [until_refused() for _ in range(4)]
        assert later[-1] >= 4 * at_first
        assert later == sorted(later)
        most = len(list(folder.glob("*.spare")))
        for _ in range(20):
            journal.maintain()
        fill(journal, most * 8)
        journal.maintain()
        assert len(list(folder.glob("*.spare"))) < most


def test_a_full_journal_refuses_and_recovers_when_upstream_acknowledges(folder: Path) -> None:
    """LG-06 `deny`: at the cap appends are refused, readiness says so, nothing is lost; acknowledged room is used."""
    with open_journal(folder, cap_bytes=3 * SEGMENT_BYTES) as journal:
        given = fill(journal, 1000)
        last = max(given)
        assert given[-1] == 0
        assert journal.state == JournalState.JOURNAL_FULL
        assert not journal.writable()
        assert sequences(folder) == list(range(1, last + 1))
        journal.acknowledge(last, bytes(32))
        journal.maintain()
        assert journal.writable()
        assert journal.append_bytes(b"more") == last + 1


def test_dropping_the_oldest_leaves_a_gap_record(folder: Path) -> None:
    """LG-06 `drop_oldest`: appends never stop, the cap holds, and one Gap names all that was dropped."""
    with open_journal(folder, cap_bytes=4 * SEGMENT_BYTES, on_full="drop_oldest") as journal:
        given = fill(journal, 2000)
        assert given == list(range(1, 2001))
        assert sum(path.stat().st_size for path in folder.glob("*.s*")) <= 4 * SEGMENT_BYTES + 4096
        assert journal.counters()["dropped_segments"] > 0
        (gap, *rest) = held(folder)
        assert gap_range(gap[1]) == (1, gap[0])
        assert [sequence for sequence, _ in rest] == list(range(gap[0] + 1, 2001))


def test_dropping_goes_on_under_a_cap_of_two_segments(folder: Path) -> None:
    """The Gap in the place of what was dropped is small, but not nothing; a start leaves segments that do not serve."""
    for _ in range(4):
        with open_journal(folder, cap_bytes=2 * SEGMENT_BYTES, on_full="drop_oldest") as journal:
            for _ in range(5):
                assert all(fill(journal, 100))
                journal.maintain()


LEFT_IN_FRONTS = """
import os, sys
from fastpath.journal import Journal
journal = Journal(sys.argv[1], segment_bytes=65536, cap_bytes=2 * 65536, helper=False)
n = 0
while journal.append_bytes(b"x" * 400):
    n += 1
os.write(1, str(n).encode())
os._exit(0)
"""


@pytest.mark.parametrize("on_full", ["deny", "drop_oldest"])
def test_what_a_start_takes_from_fronts_leaves_room_under_the_cap(folder: Path, on_full: str) -> None:
    """The newest segment is never given up, so it is no longer than others."""
    program = [sys.executable, "-c", LEFT_IN_FRONTS, str(folder)]
    written = int(subprocess.run(program, check=True, stdout=subprocess.PIPE).stdout)
    with open_journal(folder, cap_bytes=2 * SEGMENT_BYTES, on_full=on_full) as journal:
        assert all(segment.size <= SEGMENT_BYTES for segment in journal.segments())
        if on_full == "deny":
            assert sequences(folder) == list(range(1, written + 1))
            journal.acknowledge(written, bytes(32))
        journal.maintain()
        assert journal.append_bytes(b"x" * 400) == written + 1


def test_the_rest_of_a_front_takes_no_room_from_the_next(folder: Path) -> None:
    """A record that does not fit into it goes to the next front, even where a segment ends before the front does."""
    with open_journal(folder, segment_bytes=4096, cap_bytes=8192) as journal:
        assert all(journal.append_bytes(b"x" * n) for n in [1000, 1000, 900])
        journal.mend(1)
        assert journal.append_bytes(b"x" * 900) == 4
        journal.maintain()
        journal.acknowledge(4, bytes(32))
        journal.maintain()
        assert journal.append_bytes(b"x" * 3000) == 5
        journal.maintain()
        assert journal.append_bytes(b"x" * 2000) == 6


def test_dropping_spares_what_the_writer_has_entered_and_upkeep_has_not_named(folder: Path) -> None:
    """LG-06 `drop_oldest`: segments that are still open stay, however full the journal is, and get their names."""
    spool = Spool(folder, SEGMENT_BYTES, 4 * SEGMENT_BYTES, durable=False)
    files = spool.files
    entered = [files.create() for _ in range(3)]
    for sequence, made in enumerate(entered, 1):
        os.pwrite(made.file, frame(spool.header, sequence, b"x" * 100), HEADER)
    assert not files.drop_oldest(0)
    for sequence, made in enumerate(entered, 1):
        files.name(made.id, sequence)
        assert not files.drop_oldest(0)
    for made in entered:
        files.release(made.id)
    assert sequences(folder) == [1, 2, 3]
    assert files.drop_oldest(0)
    spool.close(clean=True)


def test_gap_records_are_what_the_contract_says() -> None:
    """gap_record and gap_range agree with the generated messages."""
    payload = gap_record(300, 2**63, "why \N{SNOWMAN}" * 200)
    gap = decisions_pb2.Record.FromString(payload).gap
    assert (gap.first_sequence, gap.last_sequence) == gap_range(payload) == (300, 2**63)
    assert len(gap.cause.encode()) <= 512
    event = decisions_pb2.Record(event=decisions_pb2.Event(name="x")).SerializeToString()
    assert all(gap_range(other) is None for other in (event, b"", b"\x12\x02\x08\x01", payload[:4], b"\xff" * 40))


def test_closing_ends_appends_and_frees_the_unused(folder: Path) -> None:
    """After close() appends are refused, and the files are as long as what they hold."""
    journal = open_journal(folder)
    fill(journal, 10)
    journal.close()
    journal.close()
    assert journal.append_bytes(b"x") == 0
    assert journal.state == JournalState.JOURNAL_FAILED
    assert not journal.writable()
    assert sum(path.stat().st_size for path in folder.iterdir()) < SEGMENT_BYTES
    with pytest.raises(ValueError, match="is closed"):
        journal.counters()


def test_a_file_is_open_while_it_is_written_to(folder: Path) -> None:
    """However many segments come and go: one descriptor each, beside those of the folder; fronts are mapped alone."""

    def opened() -> int:
        listed = [Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd")]
        return sum(str(folder) in os.readlink(fd) for fd in listed if fd.is_symlink())

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{folder}/0")

    journal = open_journal(folder)
    for _ in range(10):
        fill(journal, 300)
        journal.maintain()
        journal.acknowledge(journal.next_sequence - 1, bytes(32))
        journal.maintain()
    ahead = len(list(folder.glob("*.spare")))
    assert ahead >= 2
    assert opened() == 1 + ahead + 3  # the segment in use, those ahead, the lock, the directory and the floor
    assert mapped() == len(list(folder.glob("*.front")))
    journal.close()
    assert opened() == mapped() == 0


@pytest.mark.parametrize("sync", ["none", "interval", "each"])
def test_every_sync_mode_keeps_the_records(folder: Path, sync: str) -> None:
    """The mode changes what a power cut may take, never what is read back."""
    with open_journal(folder, sync=sync) as journal:
        fill(journal, 300)
    assert sequences(folder) == list(range(1, 301))


# ------------------------------------------------------------------ acknowledged


def test_acknowledged_segments_are_removed_and_the_position_is_durable(folder: Path) -> None:
    """Only wholly acknowledged segments go; position and chain value survive a restart."""
    digest = bytes(range(32))
    with open_journal(folder) as journal:
        fill(journal, 500)
        journal.maintain()
        second = journal.segments()[1].first_sequence
        journal.acknowledge(second, digest)
        assert journal.segments()[0].first_sequence == second
    with open_journal(folder) as journal:
        assert journal.acknowledged() == (second, digest)
        assert journal.next_sequence == 501


def test_a_damaged_cursor_means_asking_upstream(folder: Path) -> None:
    """A cursor that fails its check is not believed."""
    with open_journal(folder) as journal:
        fill(journal, 5)
        journal.acknowledge(3, bytes(range(32)))
    overwrite(folder / "cursor", 5, b"\xff")
    with open_journal(folder) as journal:
        assert journal.acknowledged() == (0, bytes(32))


def test_a_lost_identity_is_found_in_the_segments(folder: Path) -> None:
    """The id stands in every segment, so the stream upstream goes on when the identity file is gone."""
    with open_journal(folder) as journal:
        fill(journal, 5)
        name = journal.id
    (folder / "journal").unlink()
    with open_journal(folder) as journal:
        assert journal.id == name
        assert journal.next_sequence == 6


# ------------------------------------------------------------------ files that serve again


def inodes(folder: Path, pattern: str) -> set[int]:
    return {path.stat().st_ino for path in folder.glob(pattern)}


def test_files_of_acknowledged_segments_serve_again(folder: Path) -> None:
    """Pages and blocks of a segment that upstream has are the next segment's: after the first few no file is new."""
    with open_journal(folder) as journal:
        seen: set[int] = set()
        early: set[int] = set()
        for turn in range(60):
            fill(journal, 100)
            journal.acknowledge(journal.next_sequence - 1, bytes(32))
            journal.maintain()
            seen |= inodes(folder, "*.s*")
            early = early if turn > 10 else set(seen)
        assert seen == early
        assert journal.counters()["bytes"] <= SEGMENT_BYTES


def test_what_a_file_held_before_is_never_read(folder: Path) -> None:
    """Old frames stand behind the end of a segment whose file serves again; readers get the new ones and no damage."""
    payloads: dict[int, bytes] = {}
    with open_journal(folder) as journal:
        for turn in range(40):
            for number in range(60):
                payload = bytes([turn, number]) * (1 + (turn * 61 + number * 37) % 600)
                payloads[journal.append_bytes(payload)] = payload
                journal.maintain()
            behind = journal.acknowledged()[0]
            assert held(folder, behind) == [(n, payloads[n]) for n in sorted(payloads) if n > behind]
            frames = read_frames(journal.segments()[-1].path)
            assert [n for n, _ in frames][-1] == journal.next_sequence - 1
            assert not frames.damage
            assert not frames.resync()
            frames.close()
            journal.acknowledge(max(behind, journal.next_sequence - 30), bytes(32))


def test_a_file_that_somebody_reads_does_not_serve_again(folder: Path) -> None:
    """Who has a segment open that goes reads it to its end, as it was."""
    with open_journal(folder) as journal:
        fill(journal, 400)
        first = journal.segments()[0].path
        reader = read_frames(first)
        before = [next(reader)]
        mine = first.stat().st_ino
        for _ in range(6):
            journal.acknowledge(journal.next_sequence - 1, bytes(32))
            fill(journal, 400)
            assert mine not in inodes(folder, "*.s*")
        before += list(reader)
        assert [sequence for sequence, _ in before] == list(range(1, len(before) + 1))
        assert not reader.damage
        reader.close()


def test_a_file_that_has_another_name_does_not_serve_again(folder: Path, tmp_path: Path) -> None:
    """A hard link is a copy that somebody keeps."""
    with open_journal(folder) as journal:
        fill(journal, 400)
        first = journal.segments()[0].path
        os.link(first, tmp_path / "kept")
        content = first.read_bytes()
        for _ in range(6):
            journal.acknowledge(journal.next_sequence - 1, bytes(32))
            fill(journal, 400)
    assert (tmp_path / "kept").read_bytes() == content


def test_who_opens_a_file_that_serves_again_ends_no_process(folder: Path) -> None:
    """A backup reads the folder while the writer looks whether it has the file alone: the writer lives on."""
    program = """
import os, sys
from fastpath.disk import has_alone
fd = os.open(sys.argv[1], os.O_RDWR)
print("ready", flush=True)
print(sum(has_alone(fd) for _ in range(50000)) > 0)
"""
    folder.mkdir()
    path = folder / "000001.reuse"
    path.write_bytes(b"records")
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    while writer.poll() is None:
        path.read_bytes()
    assert (writer.returncode, writer.stdout.read()) == (0, "True\n")
    writer.stdout.close()


def reusable(journal: Journal, folder: Path) -> list[Path]:
    """Have files of acknowledged segments wait for their reuse."""
    fill(journal, 800)
    journal.acknowledge(journal.next_sequence - 1, bytes(32))
    return list(folder.glob("*.reuse"))


def test_files_that_somebody_removed_do_not_serve_again(folder: Path) -> None:
    """Who makes room by hand takes what looks unused: the journal makes new files, and closes as ever."""
    with open_journal(folder) as journal:
        for path in reusable(journal, folder):
            path.unlink()
        assert all(fill(journal, 800))
        assert journal.problem == ""
        removed = reusable(journal, folder)
        assert removed
        for path in removed:
            path.unlink()
    with open_journal(folder) as journal:
        assert journal.append_bytes(b"next")


def test_what_could_not_be_dropped_keeps_one_name(folder: Path) -> None:
    """A Gap that cannot be written leaves the segment as it was, without a second name that would keep its bytes."""
    with open_journal(folder, cap_bytes=8 * SEGMENT_BYTES, on_full="drop_oldest") as journal:
        fill(journal, 600)
        assert not journal.counters()["dropped_segments"]
        (folder / "replacing.tmp").mkdir()
        with pytest.raises(IsADirectoryError):
            fill(journal, 1200)
        assert {path.stat().st_nlink for path in folder.glob("*.seg")} == {1}
        (folder / "replacing.tmp").rmdir()
        assert all(fill(journal, 1200)[100:])


@pytest.mark.parametrize("on_full", ["deny", "drop_oldest"])
def test_a_process_that_dies_leaves_no_old_records_in_its_spares(folder: Path, on_full: str) -> None:
    """LG-04: a spare whose file held records is empty at the next start, whatever stood in it."""
    program = """
import os, sys
from fastpath.journal import Journal
journal = Journal(sys.argv[1], segment_bytes=4096, cap_bytes=6 * 4096, helper=False, on_full=sys.argv[2])
for n in range(200):
    assert journal.append_bytes(b"x" * 300)
    journal.maintain()
    if sys.argv[2] == "deny":
        journal.acknowledge(n // 20 * 20, bytes(32))
# The writer enters a segment that upkeep does not name any more.
while journal.append_bytes(b"y" * 300) and n < 200 + int(sys.argv[3]):
    n += 1
os._exit(0)
"""
    for more in range(0, 30, 3):
        at = folder / str(more)
        subprocess.run([sys.executable, "-c", program, str(at), on_full, str(more)], check=True, timeout=60)
        with open_journal(at, segment_bytes=4096, cap_bytes=6 * 4096, on_full=on_full) as journal:
            behind, end = journal.acknowledged()[0], journal.next_sequence
        records = held(at, behind)
        assert end > 200
        dropped = [found for _, payload in records if (found := gap_range(payload))]
        assert [sequence for sequence, _ in records] == list(range(dropped[0][1] if dropped else behind + 1, end))
        assert len(dropped) == (on_full == "drop_oldest")
        on_disk = [offsets(segment.path) for segment in list_segments(at)]
        assert all(on_disk)
        assert [n for frames in on_disk for n, _ in frames] == list(range(on_disk[0][0][0], end))


def test_what_was_dropped_does_not_come_back_from_a_spare(folder: Path) -> None:
    """LG-06: killed between dropping and naming: the Gap alone tells which records the spare's file held before."""
    open_journal(folder).close()
    spool = Spool(folder, SEGMENT_BYTES, CAP_BYTES, durable=False)
    header = header_of(spool.id)
    (folder / f"{1:020d}.seg").write_bytes(header + frame(header, 100, gap_record(1, 100, "dropped")))
    (folder / "000005.spare").write_bytes(
        header + bytes(64) + b"".join(frame(header, n, b"old") for n in range(50, 60))
    )
    (folder / "000006.spare").write_bytes(header + b"".join(frame(header, n, b"new") for n in range(101, 104)))
    assert spool.recover(each=False) == (104, [])
    spool.close(clean=True)
    assert [segment.first_sequence for segment in list_segments(folder)] == [1, 101]


def test_what_looks_like_a_frame_in_a_record_never_becomes_one(folder: Path) -> None:
    """Agents say what stands in records. A start looks for frames behind the end, where a file that serves again holds
    what it held before: without the journal's id nobody makes a frame that passes there for a record of its own.
    """
    program = """
import os, sys
from fastpath.frames import frame
from fastpath.journal import Journal
from fastpath.spool import header_of
journal = Journal(sys.argv[1], segment_bytes=4096, cap_bytes=6 * 4096, helper=False)
known = header_of(journal.id) if sys.argv[2] == "known" else header_of("00" * 16)
for n in range(300):
    given = journal.append_bytes(b"x" * 8 + frame(known, 1 << 20, b"allowed") + b"y" * 40)
    journal.maintain()
    if n % 20 == 19:
        journal.acknowledge(given - 2, bytes(32))
        journal.maintain()
for n in range(7):
    journal.append_bytes(b"honest")
    journal.maintain()
os._exit(0)
"""

    def made(how: str) -> list[tuple[int, bytes]]:
        at = folder / how
        subprocess.run([sys.executable, "-c", program, str(at), how], check=True, timeout=60)
        with open_journal(at, segment_bytes=4096, cap_bytes=6 * 4096):
            pass
        return held(at, 298)

    # Who knows it would get one in: this is where a start looks.
    assert (1 << 20, b"allowed") in made("known")
    assert [sequence for sequence, _ in made("unknown")] == list(range(299, 308))


def test_segments_without_the_id_in_their_checksums_are_read(folder: Path) -> None:
    """Version 1, as what wrote before left them: nothing that was answered is lost by a new version."""
    filled(folder, 3)
    (path,) = folder.glob("*.seg")
    records = [(n, f"{n}".encode() * 50) for n in (1, 2, 3)]
    with open_journal(folder) as journal:
        header = header_of(journal.id, FrameLayout.UNSEEDED_VERSION)
    path.write_bytes(header + b"".join(frame(header, *one) for one in records))
    with open_journal(folder) as journal:
        assert journal.append_bytes(b"next") == 4
    assert held(folder) == [*records, (4, b"next")]


def test_frames_out_of_order_are_none(tmp_path: Path) -> None:
    """A whole frame with a lower or equal sequence is an old or a copied one; what is behind it is found."""
    path = tmp_path / "segment"
    header = bytes(HEADER)
    written = [(7, b"seven"), (8, b"eight"), (8, b"again"), (9, b"nine")]
    path.write_bytes(header + b"".join(frame(header, *one) for one in written))
    frames = Frames(path)
    assert [sequence for sequence, _ in frames] == [7, 8]
    assert frames.damage == "order"
    assert frames.resync()
    assert list(frames) == [(9, b"nine")]
    frames.close()
    late = Frames(path, after=8)
    assert list(late) == []
    assert late.resync()
    assert list(late) == [(9, b"nine")]
    late.close()


def test_old_frames_that_a_power_cut_uncovers_are_not_taken_for_new(folder: Path) -> None:
    """LG-05: when the page with the end did not reach the disk, what stood there before shows again, and is nothing."""
    with open_journal(folder) as journal:
        fill(journal, 2000)
        old = frame(header_of(journal.id), 3, b"o" * 200)
    last = list_segments(folder)[-1]
    end = offsets(last.path)[-1]
    with last.path.open("ab") as file:
        file.write(old * 20)
    with open_journal(folder) as journal:
        assert journal.next_sequence in (end[0] + 1, end[0] + 2)
        following = journal.append_bytes(b"next")
    records = held(folder)
    assert [sequence for sequence, _ in records] == list(range(1, following + 1))
    assert b"o" * 200 not in [payload for _, payload in records]


@pytest.mark.parametrize("segment_bytes", [4096, 4101, 4103, 65537])
def test_a_segment_is_filled_to_its_last_byte(folder: Path, segment_bytes: int) -> None:
    """The end behind a frame needs no room: where the file ends, nothing is read."""
    with open_journal(folder, segment_bytes=segment_bytes, cap_bytes=64 * segment_bytes) as journal:
        most = min(segment_bytes // 8 * 8 - HEADER, 65536) - FrameLayout.FRAME_HEADER
        sizes = [most, most - 8, 1, most - 1, most - 20, 1]
        for size in sizes:
            assert journal.append_bytes(b"x" * size)
            journal.maintain()
        assert [len(payload) for _, payload in held(folder)] == sizes


# ------------------------------------------------------------------ disks


def run_limited(folder: Path, program: str, file_bytes: int) -> str:
    """Run a program whose files may not grow beyond `file_bytes`; what it prints."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], preexec_fn=limit, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_disk_that_refuses_the_first_segment_is_an_error_at_open(folder: Path) -> None:
    """LG-06: space is reserved before it is written to, so a full disk is an error and never a SIGBUS."""
    program = """
import sys
from fastpath.journal import Journal
try:
    Journal(sys.argv[1], segment_bytes=1 << 20, cap_bytes=8 << 20)
except OSError as error:
    print(error.errno)
"""
    assert run_limited(folder, program, 512 * 1024) == str(errno.EFBIG)
    open_journal(folder).close()


def test_a_disk_that_fills_up_makes_the_journal_full(tmp_path: Path) -> None:
    """LG-06: on a real full file system appends are refused, what was answered is there, and room heals it."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)], capture_output=True).returncode:
        pytest.skip("this kernel does not let us mount a tmpfs")
    try:
        with open_journal(mount / "journal", cap_bytes=64 << 20) as journal:
            given = fill(journal, 5000)
            last = max(given)
            assert given[-1] == 0
            assert journal.state == JournalState.JOURNAL_FULL
            assert "No space left" in journal.problem
            assert sequences(mount / "journal") == list(range(1, last + 1))
            journal.acknowledge(last, bytes(32))
            journal.maintain()
            assert journal.append_bytes(b"more") == last + 1
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# ------------------------------------------------------------------ damage


def filled(folder: Path, count: int = 400) -> list[Path]:
    """A closed journal of several segments."""
    with open_journal(folder) as journal:
        fill(journal, count)
    return [segment.path for segment in list_segments(folder)]


def gaps(folder: Path) -> list[tuple[int, int]]:
    return [found for _, payload in held(folder) if (found := gap_range(payload))]


def test_a_torn_tail_is_cut_off_without_a_trace(folder: Path) -> None:
    """LG-07: a frame without its length was never answered; the next record takes its number."""
    last = filled(folder)[-1]
    torn = frame(last.read_bytes()[:HEADER], 401, b"torn" * 50)
    with last.open("ab") as file:
        file.write(bytes(4) + torn[4:])
    with open_journal(folder) as journal:
        assert journal.append_bytes(b"whole") == 401
    assert sequences(folder) == list(range(1, 402))
    assert gaps(folder) == []


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_segment_cut_inside_its_last_frame_names_the_lost_record(folder: Path, cut: int) -> None:
    """LG-07: a frame that was whole once and is not any more is a record lost: its place is a Gap."""
    last = filled(folder)[-1]
    os.truncate(last, last.stat().st_size - cut - 8)
    with open_journal(folder) as journal:
        assert journal.append_bytes(b"next") == 401
    assert gaps(folder) == [(400, 400)]
    assert sequences(folder) == list(range(1, 402))


@pytest.mark.parametrize("part", [0, 4, 8, 20], ids=["length", "checksum", "sequence", "payload"])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_quarantines_the_segment(folder: Path, part: int, bit: int) -> None:
    """LG-07: any bit of a frame in the newest segment: the others stay, a Gap names it, the original is kept aside."""
    last = filled(folder)[-1]
    frames = offsets(last)
    sequence, at = frames[len(frames) // 2]
    overwrite(last, at + part, bytes([last.read_bytes()[at + part] ^ (1 << bit)]))
    with open_journal(folder) as journal:
        assert journal.counters()["mended_segments"] == 1
        assert journal.next_sequence == 401
    assert gaps(folder) == [(sequence, sequence)]
    assert sequences(folder) == list(range(1, 401))
    assert len(list(folder.glob("*.damaged"))) == 1


@pytest.mark.parametrize("where", ["start", "middle"])
def test_a_zeroed_page_is_found(folder: Path, where: str) -> None:
    """LG-07: a page of zeros looks like the end of a segment; frames behind it show that it is not."""
    last = filled(folder)[-1]
    overwrite(last, HEADER if where == "start" else 8192, bytes(4096))
    with open_journal(folder) as journal:
        assert journal.next_sequence == 401
    ((first, end),) = gaps(folder)
    kept = [sequence for sequence, payload in held(folder) if not gap_range(payload)]
    assert kept == [n for n in range(1, 401) if not first <= n <= end]


def test_a_wholly_zeroed_newest_segment_is_not_taken_for_an_empty_one(folder: Path) -> None:
    """LG-07: a segment has its name because it had a record, so one without any is damaged."""
    last = filled(folder)[-1]
    first = int(last.stem)
    overwrite(last, HEADER, bytes(last.stat().st_size - HEADER))
    with open_journal(folder):
        pass
    assert gaps(folder) == [(first, first)]


def test_a_missing_newest_segment_never_leads_to_a_sequence_used_twice(folder: Path) -> None:
    """LG-07: what it held is unknown, so the sequence jumps over all it could have held and a Gap says so."""
    last = filled(folder)[-1]
    first = int(last.stem)
    last.unlink()
    with open_journal(folder) as journal:
        assert journal.append_bytes(b"next") > 400
    ((start, end),) = gaps(folder)
    assert start == first
    assert end >= 400


def test_damage_in_the_middle_is_mended_on_demand(folder: Path) -> None:
    """LG-07: a sealed segment with a damaged frame keeps its other records, and a Gap takes the place of that one."""
    paths = filled(folder)
    sequence, at = offsets(paths[1])[-1]
    overwrite(paths[1], at + 20, b"\xff\xfe")
    with open_journal(folder) as journal:
        journal.mend(int(paths[1].stem))
    assert gaps(folder) == [(sequence, sequence)]
    assert sequences(folder) == list(range(1, 401))


def test_the_segment_in_use_can_be_mended(folder: Path) -> None:
    """Damage under the writer: it goes on in the next segment, with the next number."""
    with open_journal(folder) as journal:
        fill(journal, 20)
        path = journal.segments()[0].path
        overwrite(path, offsets(path)[10][1] + 20, b"\xff\xfe")
        journal.mend(1)
        assert journal.append_bytes(b"next") == 21
    assert gaps(folder) == [(11, 11)]
    assert sequences(folder) == list(range(1, 22))


def test_mending_the_segment_in_use_leaves_what_is_copied_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that comes to the next segment after mending looked which there are is not named as lost."""
    with open_journal(folder) as journal:
        fill(journal, 3)
        late = iter([b"late"])

        def listing(*args: Path, **options: bool) -> list[Segment]:
            found = list_segments(*args, **options)
            for payload in late:
                assert journal.append_bytes(payload) == 4
                journal.maintain()
            return found

        monkeypatch.setattr("fastpath.journal.list_segments", listing)
        journal.mend(1)
        monkeypatch.undo()
        reader = SpoolReader(journal.segments, 0)
        assert reader.read(10, 1 << 20)[3:] == [(4, b"late")]
        reader.close()


def test_a_segment_of_another_journal_is_no_record_of_ours(folder: Path, tmp_path: Path) -> None:
    """LG-08: a segment replaced by one from elsewhere has another id, and becomes a Gap."""
    last = filled(folder)[-1]
    other = filled(tmp_path / "other")
    first = int(last.stem)
    last.write_bytes(other[-1].read_bytes())
    with open_journal(folder) as journal:
        assert journal.next_sequence > first
    assert gaps(folder)[0][0] == first


def test_records_lost_here_that_upstream_has_are_not_numbered_again(folder: Path) -> None:
    """LG-05: after a power cut the disk may be behind what was shipped; the sequence goes on behind upstream's."""
    filled(folder, 50)
    with open_journal(folder) as journal:
        journal.acknowledge(50, bytes(range(32)))
    path = list_segments(folder)[0].path
    os.truncate(path, offsets(path)[30][1])
    with open_journal(folder) as journal:
        assert journal.append_bytes(b"next") == 52
    assert gaps(folder) == [(31, 51)]


def test_a_machine_that_stopped_without_us_leaves_a_gap_record(folder: Path) -> None:
    """LG-05: another boot id without a clean stop: the record of the last moments may be incomplete, and says so."""
    filled(folder, 5)
    program = """
import os, sys, fastpath.spool
fastpath.spool.boot_id = lambda: "an earlier boot"
from fastpath.journal import Journal
journal = Journal(sys.argv[1], segment_bytes=65536, cap_bytes=1 << 20)
journal.append_bytes(b"x")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=60)
    open_journal(folder).close()
    records = held(folder)
    assert gaps(folder) == [(7, 7)]
    assert "without a clean stop" in decisions_pb2.Record.FromString(records[-1][1]).gap.cause
    open_journal(folder).close()
    assert gaps(folder) == [(7, 7)]


def test_bytes_that_are_no_segment_never_harm_a_reader(tmp_path: Path) -> None:
    """Random bytes read as a segment end the iteration with damage or at the end; nothing else happens."""
    for seed in range(50):
        path = tmp_path / f"{seed}.bin"
        path.write_bytes(os.urandom(seed * 97))
        frames = Frames(path)
        assert list(frames) == []
        assert frames.resync() is False
        frames.close()


def test_the_cap_is_counted_over_all_restarts(folder: Path) -> None:
    """Segments of earlier runs count: the cap holds across restarts."""
    for _ in range(8):
        with open_journal(folder, cap_bytes=3 * SEGMENT_BYTES) as journal:
            fill(journal, 1000)
    assert sum(path.stat().st_size for path in folder.glob("*.s*")) <= 3 * SEGMENT_BYTES <= CAP_BYTES
