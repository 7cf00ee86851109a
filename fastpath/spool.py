"""The directory of a journal: which files it holds, who may use it, and what a restart makes of them.

    journal, cursor,      who it is, what upstream has acknowledged, how far names go (fastpath/spool_folder.py)
    floor
    lock                  flock: one process writes
    <first sequence>.seg  a segment, named by the sequence of its first frame
    <n>.front             what calls wrote last; it is copied to a segment and used again (fastpath/front_files.pyx)
    <n>.spare             a segment allocated ahead; records may already be in it, then it is renamed shortly
    <n>.reuse             a file whose records are upstream or dropped, for the next spare
    <first>.damaged       a segment as it was before it was mended; the newest few are kept for people

A gap in the sequence never stands alone: a Gap record with the sequence of the last missing record takes its place.
"""

import fcntl
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from fastpath.frames import FrameLayout, Frames, frame, gap_range, gap_record
from fastpath.front_files import SUFFIX
from fastpath.segment_files import SegmentFiles
from fastpath.spool_folder import SpoolFolder, read_checked

MAGIC = b"REMITSEG"
SEGMENT_HEADER = int(FrameLayout.SEGMENT_HEADER)
DAMAGED_KEPT = 4
LISTING_TRIES = 100
HASH_BYTES = 32
SEQUENCE_MAX = (1 << 64) - 1
_SEGMENT_NAME = re.compile(r"[0-9]{20}\.seg|[0-9]{1,20}\.spare")
_FRONT_NAME = re.compile(r"[0-9]{3}\.front")
FRAME_BYTES_MIN = 24  # a payload has at least one byte
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

CAUSE_DAMAGED = "damaged: the frames failed their check"
CAUSE_MISSING = "missing: the segment is gone"
CAUSE_POWER = "the machine stopped without a clean stop; the last moments before it may be missing"
CAUSE_BEHIND = "lost here after upstream had acknowledged it"


@dataclass(frozen=True)
class Segment:
    """One segment file, or front; `first_sequence` is that of its first frame, `size` its bytes on disk."""

    path: Path
    first_sequence: int
    size: int


def header_of(journal_id: str, version: int = FrameLayout.SEGMENT_VERSION) -> bytes:
    """The first SEGMENT_HEADER bytes of a segment of this journal."""
    return MAGIC + int(version).to_bytes(4, "little") + bytes(4) + bytes.fromhex(journal_id)


def first_frame_sequence(path: Path) -> int:
    """Sequence of the first frame, or 0 when there is none yet. OSError when the file is gone."""
    with path.open("rb", buffering=0) as file:
        # Most fronts are empty, and hold old frames behind the end that need not be read.
        if not any(os.pread(file.fileno(), int(FrameLayout.END_BYTES), SEGMENT_HEADER)):
            return 0
    frames = Frames(path)
    try:
        return next((sequence for sequence, _ in frames), 0)
    finally:
        frames.close()


def list_segments(directory: Path, *, fronts: bool = True) -> list[Segment]:
    """Segments with at least one frame, in sequence order; works while a writer renames and removes them.

    With `fronts` also the fronts that hold any: what is in one is in a segment before it is used again.
    OSError when the directory cannot be read, or changes faster than it can be listed.
    """
    for _ in range(LISTING_TRIES):
        before = _segment_names(directory, fronts)
        found = _describe(directory, before)
        # A listing is not atomic: a segment renamed meanwhile could show under neither name, and look like a gap.
        if found is not None and before == _segment_names(directory, fronts):
            return found
    raise OSError(f"journal directory `{directory}` changes faster than it can be listed")


def _segment_names(directory: Path, fronts: bool) -> set[str]:
    names = os.listdir(directory)
    return {name for name in names if _SEGMENT_NAME.fullmatch(name) or (fronts and _FRONT_NAME.fullmatch(name))}


def _describe(directory: Path, names: set[str]) -> list[Segment] | None:
    found = {}
    # A front last: where it begins with a segment, it holds all that this one does.
    for name in sorted(names, key=lambda name: name.endswith(SUFFIX)):
        path = directory / name
        try:
            _require_regular(path)
            first = int(path.stem) if path.suffix == ".seg" else first_frame_sequence(path)
            if 0 < first <= SEQUENCE_MAX:
                found[first] = Segment(path, first, path.stat().st_size)
        except FileNotFoundError:
            return None
    return [found[first] for first in sorted(found)]


def _require_regular(path: Path) -> None:
    """Opening a pipe would wait for ever. What is gone meanwhile is nothing to mind."""
    if not path.is_file() and path.exists():
        raise OSError(f"`{path}` is not a regular file; move it away")


def boot_id() -> str:
    """Changes with every start of the machine; empty where the kernel does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _covers(payload: bytes, expected: int, sequence: int) -> bool:
    """Whether `payload`, with this sequence, is a Gap that stands for everything from `expected` on."""
    covered = gap_range(payload)
    return covered is not None and covered[0] <= expected and covered[1] >= sequence


def _behind_damage(frames: Frames) -> list[int]:
    """Sequences of the frames behind the place where reading stopped."""
    found = []
    while frames.resync():
        found += [sequence for sequence, _ in frames]
    return found


class Spool:
    """Everything of a journal that is not a native append. Not thread-safe: the journal calls it under its own lock."""

    def __init__(self, directory: Path, segment_bytes: int, cap_bytes: int, *, durable: bool, lock: int = -1) -> None:
        """Take the directory; `durable` says that its segments must survive a power cut.

        `lock` is the descriptor of the lock that another process held until now and handed to us; we own it from here.
        PermissionError when others may enter it, BlockingIOError when another process has it.
        """
        self.directory = directory
        self._segment_bytes = segment_bytes
        self.mended_segments = 0
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            raise PermissionError(f"journal directory `{directory}` is open to others; run chmod 700 on it")
        self._lock = self._take_lock(lock)
        try:
            self.folder = SpoolFolder(directory)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._load()
            self.header = header_of(self.id)
            self.files = SegmentFiles(self.folder, self.header, segment_bytes, cap_bytes, durable=durable)
        except BaseException:
            self.folder.close()
            os.close(self._lock)
            raise

    def _take_lock(self, given: int) -> int:
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if given >= 0:
            # A lock belongs to the open file: with the descriptor it passes on, and nobody can come in between.
            if os.path.sameopenfile(given, fd):
                os.close(fd)
                fd = given
            else:
                os.close(given)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise BlockingIOError(
                error.errno,
                f"journal directory `{self.directory}` is in use by process {holder or 'unknown'}; stop it first",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def _load(self) -> None:
        """Identity and cursor. A lost identity is taken from a segment, so that the stream upstream continues."""
        meta = read_checked(self.directory / "journal") or {}
        self.id = str(meta.get("id") or self._id_from_segments() or secrets.token_hex(16))
        self._floor = self.folder.floor
        self.stopped_cleanly = bool(meta.get("clean", True)) or meta.get("boot") == boot_id()
        cursor = read_checked(self.directory / "cursor") or {}
        if cursor.get("journal") != self.id:
            cursor = {}
        self.acknowledged = int(str(cursor.get("sequence", 0)))
        self.acknowledged_hash = bytes.fromhex(str(cursor.get("hash", ""))) or bytes(HASH_BYTES)

    def _id_from_segments(self) -> str:
        for path in sorted(path for path in self.directory.glob("*.seg") if path.is_file()):
            head = path.read_bytes()[:SEGMENT_HEADER]
            if head[:8] == MAGIC:
                return head[16:SEGMENT_HEADER].hex()
        return ""

    def give_lock(self) -> int:
        """A second descriptor of our lock, for the process that comes after us: held as long as either is open."""
        return os.dup(self._lock)

    def save(self, *, clean: bool) -> None:
        """Write who the journal is; `clean` marks an orderly stop."""
        self.folder.write("journal", {"id": self.id, "boot": boot_id(), "clean": clean})

    # ------------------------------------------------------------------ recovery

    def recover(self, *, each: bool) -> tuple[int, list[tuple[int, str]]]:
        """(first free sequence, gaps to record): each gap reaches from there to its sequence, for its cause.

        `each` says that every record was synced before it was answered, so that a power cut lost none.
        """
        for path in [*self.directory.glob("*.tmp"), *self.directory.glob("*.reuse")]:
            path.unlink()
        behind = self._newest_known()
        fronts, damaged_fronts = self._in_fronts()
        damaged_spares = sum(self._adopt_spare(path, behind, fronts) for path in sorted(self.directory.glob("*.spare")))
        held = list_segments(self.directory, fronts=False)
        free = (self._settle(held[-1], fronts) if held else self.acknowledged) + 1
        free = self._adopt(fronts, free)
        held = list_segments(self.directory, fronts=False)
        self.files.put_held(held)
        gaps: list[tuple[int, str]] = []

        def reach(sequence: int, cause: str) -> None:
            if sequence >= (gaps[-1][0] + 1 if gaps else free):
                gaps.append((sequence, cause))

        if self._floor and (not held or held[-1].first_sequence < self._floor):
            # How many records it had is unknown; a segment cannot hold more than this.
            reach(self._floor + self._segment_bytes // FRAME_BYTES_MIN, CAUSE_MISSING)
        if self.acknowledged >= free:
            reach(self.acknowledged + 1, CAUSE_BEHIND)
        end = gaps[-1][0] if gaps else free - 1
        # After a power cut a front may hold pages of several times, and what was promised is in the segments.
        if damaged_spares or (damaged_fronts and self.stopped_cleanly):
            reach(end + 1, CAUSE_DAMAGED)
        if not self.stopped_cleanly and not each:
            reach((gaps[-1][0] if gaps else free - 1) + 1, CAUSE_POWER)
        self._forget_damaged()
        return free, gaps

    def _newest_known(self) -> int:
        """A sequence that every record in an entered spare is above, and every one that its file held before is not."""
        named = [path for path in self.directory.glob("*.seg") if _SEGMENT_NAME.fullmatch(path.name) and path.is_file()]
        known = [first for path in named if 0 < (first := int(path.stem)) <= SEQUENCE_MAX]
        # A Gap in the place of dropped segments has their first sequence in its name and their last in its frame.
        newest = first_frame_sequence(self._named(max(known))) if known else 0
        return max(self.acknowledged, self._floor, newest, *known)

    def _adopt_spare(self, path: Path, behind: int, fronts: dict[int, bytes]) -> bool:
        """Name a spare that the last run had entered, or remove it; True when it held nothing but damage."""
        _require_regular(path)
        frames = Frames(path, after=behind)
        first = next((sequence for sequence, _ in frames), 0)
        damaged = bool(frames.damage)
        if not first:
            found = _behind_damage(frames)
            # What was being copied to it is all in the fronts.
            if found and not all(sequence in fronts for sequence in found):
                first = found[0]
        frames.close()
        if first:
            path.rename(self._named(first))
            return False
        path.unlink()
        return damaged

    def _in_fronts(self) -> tuple[dict[int, bytes], bool]:
        """Records by sequence that the last run had in its fronts, copied or not; whether one of these is damaged."""
        found: dict[int, bytes] = {}
        damaged = False
        for path in self._fronts():
            good = self._is_ours(path)
            frames = Frames(path)
            while good:
                found.update(frames)
                damaged = damaged or bool(frames.damage)
                good = bool(frames.damage) and frames.resync()
            frames.close()
        return found, damaged

    def _fronts(self) -> list[Path]:
        found = [path for path in self.directory.glob(f"*{SUFFIX}") if _FRONT_NAME.fullmatch(path.name)]
        for path in found:
            _require_regular(path)
        return found

    def _adopt(self, fronts: dict[int, bytes], free: int) -> int:
        """Write what only the fronts hold to segments of its own; the first free sequence.

        Records between that are missing, as after a power cut, have a Gap in their place.
        """
        out = bytearray(self.header)
        first = expected = free
        for sequence in sorted(sequence for sequence in fronts if sequence >= free):
            payload = fronts[sequence]
            made = frame(self.header, sequence, payload)
            if sequence > expected and not _covers(payload, expected, sequence):
                made = frame(self.header, sequence - 1, gap_record(expected, sequence - 1, CAUSE_DAMAGED)) + made
            # No longer than others, which are given up one by one: the newest stays, and must leave room under the cap.
            if len(out) + len(made) > self._segment_bytes and expected > first:
                self.folder.write_over(self._named(first), bytes(out))
                out, first = bytearray(self.header), expected
            out += made
            expected = sequence + 1
        if expected > first:
            self.folder.write_over(self._named(first), bytes(out))
        for path in self._fronts():
            path.unlink()
        return expected

    def _settle(self, segment: Segment, fronts: dict[int, bytes]) -> int:
        """Close what the last run left open; the last sequence it holds.

        Where it ends in the middle of what was being copied to it, all of that is in the fronts.
        """
        frames = Frames(segment.path)
        expected, orderly = segment.first_sequence, self._is_ours(segment.path)
        for sequence, payload in frames:
            orderly = orderly and (sequence == expected or _covers(payload, expected, sequence))
            expected = sequence + 1
        end = frames.offset
        empty = expected == segment.first_sequence  # a segment gets its name after its first frame
        broken = bool(frames.damage)
        behind = _behind_damage(frames)
        frames.close()
        copied = orderly and not empty and all(n in fronts for n in range(expected, max([expected, *behind]) + 1))
        if (empty or broken or behind or not orderly) and not copied:
            return self.mend(segment.path, segment.first_sequence, None)
        os.truncate(segment.path, end)  # behind it is at most a frame whose call was never answered
        return expected - 1

    def _is_ours(self, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(SEGMENT_HEADER) in (self.header, header_of(self.id, FrameLayout.UNSEEDED_VERSION))

    def mend(self, path: Path, first: int, next_first: int | None) -> int:
        """The last sequence of a damaged segment, rewritten: good frames stay, a Gap replaces each run of bad ones.

        `next_first` is the first sequence of the segment behind it; None for the newest.
        """
        out = bytearray(self.header)
        expected = first
        frames = Frames(path)
        good = self._is_ours(path)
        while good:
            for sequence, payload in frames:
                if sequence < expected:
                    continue  # given before: a frame that was copied
                if sequence > expected and not _covers(payload, expected, sequence):
                    out += frame(self.header, sequence - 1, gap_record(expected, sequence - 1, CAUSE_DAMAGED))
                out += frame(self.header, sequence, payload)
                expected = sequence + 1
            good = frames.resync()
        lost = next_first - 1 if next_first else expected if frames.damage or expected == first else expected - 1
        frames.close()
        if lost >= expected:
            out += frame(self.header, lost, gap_record(expected, lost, CAUSE_DAMAGED))
            expected = lost + 1
        kept = path.with_name(f"{first:020d}.damaged")
        kept.unlink(missing_ok=True)
        os.link(path, kept)
        self.folder.write_over(path, bytes(out))
        self.files.put_size(path, len(out))
        self.mended_segments += 1
        return expected - 1

    def _forget_damaged(self) -> None:
        for path in sorted(self.directory.glob("*.damaged"))[:-DAMAGED_KEPT]:
            path.unlink()

    def _named(self, first: int) -> Path:
        return self.directory / f"{first:020d}.seg"

    # ------------------------------------------------------------------ upstream, and the end

    def acknowledge(self, sequence: int, digest: bytes) -> None:
        """Upstream holds all up to `sequence`: remember it durably, and remove segments that are wholly below."""
        self.acknowledged, self.acknowledged_hash = sequence, digest
        self.folder.write("cursor", {"journal": self.id, "sequence": sequence, "hash": digest.hex()})
        self.files.discard_below(sequence)

    def close(self, *, clean: bool) -> None:
        """Give the directory back; with `clean` what was allocated and holds no record is removed."""
        self.files.let_go_of_all(clean)
        if self._lock >= 0:
            try:
                self.save(clean=clean)
            finally:
                self.folder.close()
                os.close(self._lock)
                self._lock = -1
