"""What the journal's helper does and when: pages ahead of the writer, rest, names, room; and what is said of it."""

import contextlib
import errno
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from fastpath.frames import FrameLayout
from fastpath.journal import Journal, JournalState
from fastpath.spool import Spool
from tests.fix_journal import held, open_journal, wait_for

HEADER = int(FrameLayout.SEGMENT_HEADER)
FRONTS_MIN, FRONTS_MAX = 32, 128  # of journal.pxd


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_record_waits_for_no_page(folder: Path) -> None:
    """The memory that calls write to is there from the start, and stays, however many segments it is copied to."""
    faults = []
    with open_journal(folder, segment_bytes=1 << 20, cap_bytes=8 << 20, on_full="drop_oldest") as journal:
        payload = b"x" * 4000
        for _ in range(1000):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            for _ in range(12):
                assert journal.append_bytes(payload)
            faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
            journal.maintain()
        assert journal.counters()["dropped_segments"] > 20
    # Each of the twelve would be one, every time; some are the interpreter's own, now and then many with a sanitizer.
    assert median(faults) < 4


def used_fronts(folder: Path) -> int:
    """How many ever held a record."""
    return sum(any(path.read_bytes()[HEADER:]) for path in folder.glob("*.front"))


def test_the_front_that_was_used_last_is_used_next(folder: Path) -> None:
    """While copying keeps up, calls write to two of them alone: these stay in a core's own cache."""
    with open_journal(folder, segment_bytes=1 << 20, cap_bytes=64 << 20) as journal:
        for _ in range(5000):
            assert journal.append_bytes(b"x" * 4000)
            journal.maintain()
        assert len(list(folder.glob("*.front"))) == FRONTS_MIN
        assert used_fronts(folder) == 2


def test_a_writer_that_is_ahead_of_its_helper_gets_more_fronts(folder: Path) -> None:
    """As many as there may be; what has no front is refused, and nothing that was taken is lost."""
    payload = b"x" * 4000
    with open_journal(folder, segment_bytes=16 << 20, cap_bytes=256 << 20) as journal:
        while len(fronts := list(folder.glob("*.front"))) < FRONTS_MAX:
            while journal.append_bytes(payload):
                pass
            assert used_fronts(folder) == len(fronts)
            assert journal.state == JournalState.JOURNAL_FULL
            assert not journal.writable()
            journal.maintain()
            assert journal.writable()
        last = journal.next_sequence - 1
    assert [sequence for sequence, _ in held(folder)] == list(range(1, last + 1))


def test_what_is_refused_for_want_of_room_finds_the_journal_full(folder: Path) -> None:
    """`sync: each`, also of what a front took already: it cannot be on disk before it is answered."""
    with open_journal(folder, segment_bytes=200000, cap_bytes=2 * 200000, sync="each") as journal:
        # Three fit into a front, and four into a segment.
        with ThreadPoolExecutor(9) as pool:
            given = list(pool.map(journal.append_bytes, [b"x" * 43600] * 9))
        answered = [sequence for sequence in given if sequence]
        assert len(answered) < 9
        assert max(answered) <= journal.synced
        assert journal.state == JournalState.JOURNAL_FULL
        assert not journal.writable()
        journal.acknowledge(journal.synced, bytes(32))
        journal.maintain()
        assert journal.append_bytes(b"next") == journal.synced > 6


def test_what_a_full_journal_has_taken_stays_in_its_fronts(folder: Path) -> None:
    """A stop finds no room for it in the segments; the next start finds it."""
    with open_journal(folder, segment_bytes=200000, cap_bytes=2 * 200000) as journal:
        while journal.append_bytes(b"x" * 43600):  # three fit into a front, and four into a segment
            pass
        last = journal.next_sequence - 1
        assert last == 9
    assert used_fronts(folder)
    with open_journal(folder, segment_bytes=200000, cap_bytes=2 * 200000) as journal:
        assert [sequence for sequence, _ in held(folder)] == list(range(1, last + 1))
        journal.acknowledge(last, bytes(32))
        journal.maintain()
        assert journal.append_bytes(b"next") == last + 1
    assert held(folder, last) == [(last + 1, b"next")]


# ------------------------------------------------------------------ rest and upkeep


class Counted(Journal):
    """A journal that counts its upkeep."""

    upkeeps = 0

    def maintain(self) -> None:
        self.upkeeps += 1
        super().maintain()


def rests(journal: Journal) -> None:
    wait_for(lambda: journal.resting, "rest")


def test_a_helper_that_rests_is_woken_by_a_record_and_syncs_it(folder: Path) -> None:
    """Beside an agent that asks nothing it sleeps; what is then asked is on disk as soon as ever."""
    with Journal(folder, sync="interval", sync_ms=1) as journal:
        for _ in range(3):
            rests(journal)
            sequence = journal.append_bytes(b"one")
            wait_for(lambda sequence=sequence: journal.synced == sequence, "sync")


def test_a_helper_that_rests_is_woken_by_what_only_upkeep_can_do(folder: Path) -> None:
    """A segment that is entered gets its name, and what is acknowledged goes."""
    with Counted(folder, segment_bytes=4096, cap_bytes=64 * 4096, sync="interval", sync_ms=1) as journal:
        rests(journal)
        sequence = 0
        while len(list(folder.glob("*.seg"))) < 4:
            # 0 while the helper has yet to bring the next segment.
            sequence = journal.append_bytes(b"x" * 500) or sequence
        rests(journal)
        before = journal.upkeeps
        journal.acknowledge(sequence - 1, bytes(32))
        wait_for(lambda: journal.upkeeps > before, "upkeep")
        wait_for(lambda: len(list(folder.glob("*.seg"))) == 1, "one segment")


def full_journal(folder: Path) -> Counted:
    journal = Counted(folder, segment_bytes=4096, cap_bytes=2 * 4096, sync="interval", sync_ms=1)
    while journal.append_bytes(b"x" * 500):
        pass
    return journal


def test_a_full_journal_looks_for_room_again_and_says_what_it_waits_for(folder: Path) -> None:
    with full_journal(folder) as journal:
        wait_for(lambda: "at `cap_bytes`" in journal.problem, "the cause")
        before = journal.upkeeps
        wait_for(lambda: journal.upkeeps > before + 2, "upkeep")


def at_its_cap(folder: Path) -> Counted:
    """With one spare, where two are wanted; its helper rests."""
    journal = Counted(folder, segment_bytes=4096, cap_bytes=3 * 4096, on_full="drop_oldest", sync="interval", sync_ms=1)
    while not journal.counters()["dropped_segments"]:
        journal.append_bytes(b"x" * 500)
    wait_for(lambda: journal.at_cap, "the cap")
    rests(journal)
    return journal


def test_a_journal_at_its_cap_that_has_a_spare_lets_upkeep_be(folder: Path, tmp_path: Path) -> None:
    """Nothing changes by itself: the next segment that is entered, or what makes room, says when to look."""
    with at_its_cap(folder) as journal, full_journal(tmp_path / "full") as clock:
        before = journal.upkeeps
        # Twelve looks of the other are more than two of the rate at which spares that are missing are looked for.
        looks = clock.upkeeps
        wait_for(lambda: clock.upkeeps > looks + 12, "the other's upkeep")
        assert journal.upkeeps == before


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_what_upstream_has_makes_room_for_the_spares_that_are_wanted(
    folder: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it failed in the end: some of it was done."""
    acknowledge = Spool.acknowledge

    def fails_late(self: Spool, *what: Any) -> None:
        acknowledge(self, *what)
        raise OSError(errno.EIO, "Input/output error")

    with at_its_cap(folder) as journal:
        if fails:
            monkeypatch.setattr(Spool, "acknowledge", fails_late)
        with pytest.raises(OSError, match="Input/output") if fails else contextlib.nullcontext():
            journal.acknowledge(journal.next_sequence - 1, bytes(32))
        wait_for(lambda: len(list(folder.glob("*.spare"))) == 2, "the second spare")
        wait_for(lambda: not journal.at_cap, "the end of upkeep")


@contextlib.contextmanager
def spares_aside(folder: Path) -> Iterator[None]:
    """Nothing can be named meanwhile: upkeep looks for the files in vain."""
    aside = folder.with_name("aside")
    aside.mkdir()
    for path in folder.glob("*.spare"):
        path.rename(aside / path.name)
    yield
    for path in aside.iterdir():
        path.rename(folder / path.name)


def test_upkeep_that_failed_is_tried_again(folder: Path) -> None:
    """Nobody says when it would succeed: until it has, the helper does not rest, and the operator reads why."""
    with Journal(folder, segment_bytes=1 << 16, cap_bytes=1 << 20, sync="interval", sync_ms=1) as journal:
        rests(journal)
        with spares_aside(folder):
            assert journal.append_bytes(b"one")
            wait_for(lambda: journal.problem == "upkeep of the journal failed: No such file or directory", "the cause")
        wait_for(lambda: not journal.problem, "the next try")
        rests(journal)
    assert held(folder) == [(1, b"one")]


def test_a_stop_that_cannot_name_gives_the_directory_back(folder: Path) -> None:
    """It is no orderly one, and nothing that was answered is lost by it."""
    journal = open_journal(folder, segment_bytes=4096, cap_bytes=16 * 4096)
    given = [journal.append_bytes(b"x" * 500) for _ in range(10)]
    with spares_aside(folder), pytest.raises(FileNotFoundError):
        journal.close()
    assert all(given)
    with open_journal(folder) as again:
        assert again.next_sequence > given[-1]
    assert [sequence for sequence, _ in held(folder)] == given


def test_a_stop_on_a_full_disk_gives_the_directory_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the stop itself cannot be noted."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = open_journal(folder, segment_bytes=4096, cap_bytes=16 * 4096)
    given = [journal.append_bytes(b"x" * 500) for _ in range(10)]
    with monkeypatch.context() as full:
        full.setattr(Spool, "save", fails)
        with pytest.raises(OSError, match="No space left"):
            journal.close()
    assert all(given)
    with open_journal(folder) as again:
        assert again.next_sequence > given[-1]
    assert [sequence for sequence, _ in held(folder)] == given


def test_a_segment_that_could_not_be_named_is_named_later(folder: Path) -> None:
    """Else it would stay open, which nobody drops: a journal that may drop what is oldest would be full for good."""
    with open_journal(folder, segment_bytes=4096, cap_bytes=4 * 4096, on_full="drop_oldest") as journal:
        while journal.append_bytes(b"x" * 500):
            pass
        with spares_aside(folder), pytest.raises(FileNotFoundError):
            journal.maintain()
        for _ in range(8):
            journal.maintain()
            assert journal.append_bytes(b"x" * 500)
            while journal.append_bytes(b"x" * 500):
                pass
        assert journal.counters()["dropped_segments"] > 4
