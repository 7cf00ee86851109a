"""The directory of a journal: which files it holds, who may use it, and what a restart makes of them.

    journal               identity and high-water mark, JSON (replaced atomically)
    cursor                what upstream has acknowledged, JSON (replaced atomically)
    lock                  flock: one process writes
    <first sequence>.seg  a segment, named by the sequence of its first frame
    <n>.spare             a segment allocated ahead; the writer may already be in it, then it is renamed shortly
    <n>.reuse             a file whose records are upstream or dropped, for the next spare
    <first>.damaged       a segment as it was before it was mended; the newest few are kept for people

A gap in the sequence never stands alone: a Gap record with the sequence of the last missing record takes its place.
"""

import fcntl
import itertools
import json
import mmap
import os
import re
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastpath.disk import overwrites_in_place
from fastpath.frames import FrameLayout, Frames, crc32c, frame, gap_range, gap_record

MAGIC = b"REMITSEG"
SEGMENT_HEADER = int(FrameLayout.SEGMENT_HEADER)
END = bytes(FrameLayout.END_BYTES)
BLOCK_BYTES = 512  # of st_blocks (inode(7))
DAMAGED_KEPT = 4
LISTING_TRIES = 100
HASH_BYTES = 32
SEQUENCE_MAX = (1 << 64) - 1
_SEGMENT_NAME = re.compile(r"[0-9]{20}\.seg|[0-9]{1,20}\.spare")
FRAME_BYTES_MIN = 24  # a payload has at least one byte
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

CAUSE_DROPPED = "dropped: the journal reached its cap"
CAUSE_DAMAGED = "damaged: the frames failed their check"
CAUSE_MISSING = "missing: the segment is gone"
CAUSE_POWER = "the machine stopped without a clean stop; the last moments before it may be missing"
CAUSE_BEHIND = "lost here after upstream had acknowledged it"


@dataclass(frozen=True)
class Segment:
    """One segment file; `first_sequence` is that of its first frame, `size` its bytes on disk."""

    path: Path
    first_sequence: int
    size: int


class Mapped(NamedTuple):
    """A segment that the writer has, or will have: its mapping, where its file is, and that file's descriptor."""

    memory: mmap.mmap
    path: Path
    file: int

    def close(self) -> None:
        self.memory.close()
        os.close(self.file)


def header_of(journal_id: str) -> bytes:
    """The first SEGMENT_HEADER bytes of a segment of this journal."""
    return MAGIC + int(FrameLayout.SEGMENT_VERSION).to_bytes(4, "little") + bytes(4) + bytes.fromhex(journal_id)


def first_frame_sequence(path: Path) -> int:
    """Sequence of the first frame, or 0 when there is none yet. OSError when the file is gone."""
    frames = Frames(path)
    try:
        return next((sequence for sequence, _ in frames), 0)
    finally:
        frames.close()


def list_segments(directory: Path) -> list[Segment]:
    """Segments with at least one frame, in sequence order; works while a writer renames and removes them.

    OSError when the directory cannot be read, or changes faster than it can be listed.
    """
    for _ in range(LISTING_TRIES):
        before = _segment_names(directory)
        found = _describe(directory, before)
        # A listing is not atomic: a segment renamed meanwhile could show under neither name, and look like a gap.
        if found is not None and before == _segment_names(directory):
            return found
    raise OSError(f"journal directory `{directory}` changes faster than it can be listed")


def _segment_names(directory: Path) -> set[str]:
    return {name for name in os.listdir(directory) if _SEGMENT_NAME.fullmatch(name)}


def _describe(directory: Path, names: set[str]) -> list[Segment] | None:
    found = {}
    for name in names:
        path = directory / name
        try:
            if not path.is_file() and path.exists():
                # Opening a pipe would wait for ever.
                raise OSError(f"`{path}` is not a regular file; move it away")
            first = int(path.stem) if path.suffix == ".seg" else first_frame_sequence(path)
            if 0 < first <= SEQUENCE_MAX:
                found[first] = Segment(path, first, path.stat().st_size)
        except FileNotFoundError:
            return None
    return [found[first] for first in sorted(found)]


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace `path` as a whole; with `durable` it is on disk when this returns. OSError as it comes."""
    room = path.with_suffix(".tmp")
    fd = os.open(room, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    room.replace(path)
    if durable:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_checked(path: Path, fields: dict[str, object], *, durable: bool = True) -> None:
    """Write a small JSON file that carries its own CRC32C."""
    text = json.dumps(fields, sort_keys=True)
    replace_file(path, f"{text}\n{crc32c(text.encode()):08x}\n".encode(), durable=durable)


def read_checked(path: Path) -> dict[str, object] | None:
    """What write_checked wrote; None when the file is missing or fails its check."""
    if not path.is_file():
        return None
    try:
        text, crc = path.read_text().splitlines()
        if int(crc, 16) != crc32c(text.encode()):
            return None
        fields = json.loads(text)
    except (FileNotFoundError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def _is_ours_alone(fd: int) -> bool:
    """Whether no other descriptor of the file is open anywhere: only then is a write lease given (fcntl(2))."""
    try:
        # Whoever opens the file meanwhile breaks the lease, and the signal that then comes would else end the process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


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


class Spool:
    """Everything of a journal that is not a native append. Not thread-safe: the journal calls it under its own lock."""

    def __init__(self, directory: Path, segment_bytes: int, cap_bytes: int, *, durable: bool, lock: int = -1) -> None:
        """Take the directory; `durable` says that its segments must survive a power cut.

        `lock` is the descriptor of the lock that another process held until now and handed to us; we own it from here.
        PermissionError when others may enter it, BlockingIOError when another process has it.
        """
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.cap_bytes = cap_bytes
        self.durable = durable
        self.problem = ""
        self.dropped_segments = 0
        self.mended_segments = 0
        self._maps: dict[int, Mapped] = {}
        self._reuse: list[Path] = []
        self._reused_max = 0
        self._next_id = 1
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            raise PermissionError(f"journal directory `{directory}` is open to others; run chmod 700 on it")
        self._lock = self._take_lock(lock)
        try:
            self._load()
        except BaseException:
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
        self.floor = int(str(meta.get("floor", 0)))
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

    def save(self, *, clean: bool, durable: bool = True) -> None:
        """Write identity and high-water mark; `clean` marks an orderly stop."""
        fields: dict[str, object] = {"id": self.id, "floor": self.floor, "boot": boot_id(), "clean": clean}
        write_checked(self.directory / "journal", fields, durable=durable)

    # ------------------------------------------------------------------ recovery

    def recover(self, *, each: bool) -> tuple[int, list[tuple[int, str]]]:
        """(first free sequence, gaps to record): each gap reaches from there to its sequence, for its cause.

        `each` says that every record was synced before it was answered, so that a power cut lost none.
        """
        for path in [*self.directory.glob("*.tmp"), *self.directory.glob("*.reuse")]:
            path.unlink()
        behind = self._newest_known()
        damaged_spares = sum(self._adopt(path, behind) for path in sorted(self.directory.glob("*.spare")))
        held = list_segments(self.directory)
        free = (self._settle(held[-1]) if held else self.acknowledged) + 1
        gaps: list[tuple[int, str]] = []

        def reach(sequence: int, cause: str) -> None:
            if sequence >= (gaps[-1][0] + 1 if gaps else free):
                gaps.append((sequence, cause))

        if self.floor and (not held or held[-1].first_sequence < self.floor):
            # How many records it had is unknown; a segment cannot hold more than this.
            reach(self.floor + self.segment_bytes // FRAME_BYTES_MIN, CAUSE_MISSING)
        if self.acknowledged >= free:
            reach(self.acknowledged + 1, CAUSE_BEHIND)
        end = gaps[-1][0] if gaps else free - 1
        if damaged_spares:
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
        return max(self.acknowledged, self.floor, newest, *known)

    def _adopt(self, path: Path, behind: int) -> bool:
        """Name a spare that the last run had entered, or remove it; True when it held nothing but damage."""
        frames = Frames(path, after=behind)
        first = next((sequence for sequence, _ in frames), 0)
        damaged = bool(frames.damage)
        if not first and frames.resync():
            first = next(frames)[0]
        frames.close()
        if first:
            path.rename(self._named(first))
            return False
        path.unlink()
        return damaged

    def _settle(self, segment: Segment) -> int:
        """Close what the last run left open; the last sequence it holds."""
        frames = Frames(segment.path)
        expected, orderly = segment.first_sequence, self._is_ours(segment.path)
        for sequence, payload in frames:
            orderly = orderly and (sequence == expected or _covers(payload, expected, sequence))
            expected = sequence + 1
        end = frames.offset
        empty = expected == segment.first_sequence  # a segment gets its name after its first frame
        if empty or frames.damage or not orderly or frames.resync():
            frames.close()
            return self.mend(segment.path, segment.first_sequence, None)
        frames.close()
        os.truncate(segment.path, end)  # behind it is at most a frame whose call was never answered
        return expected - 1

    def _is_ours(self, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(SEGMENT_HEADER) == header_of(self.id)

    def mend(self, path: Path, first: int, next_first: int | None) -> int:
        """The last sequence of a damaged segment, rewritten: good frames stay, a Gap replaces each run of bad ones.

        `next_first` is the first sequence of the segment behind it; None for the newest.
        """
        out = bytearray(header_of(self.id))
        expected = first
        frames = Frames(path)
        good = self._is_ours(path)
        while good:
            for sequence, payload in frames:
                if sequence < expected:
                    continue  # given before: a frame that was copied
                if sequence > expected and not _covers(payload, expected, sequence):
                    out += frame(sequence - 1, gap_record(expected, sequence - 1, CAUSE_DAMAGED))
                out += frame(sequence, payload)
                expected = sequence + 1
            good = frames.resync()
        lost = next_first - 1 if next_first else expected if frames.damage or expected == first else expected - 1
        frames.close()
        if lost >= expected:
            out += frame(lost, gap_record(expected, lost, CAUSE_DAMAGED))
            expected = lost + 1
        kept = path.with_name(f"{first:020d}.damaged")
        kept.unlink(missing_ok=True)
        os.link(path, kept)
        replace_file(path, bytes(out))
        self.mended_segments += 1
        return expected - 1

    def _forget_damaged(self) -> None:
        for path in sorted(self.directory.glob("*.damaged"))[:-DAMAGED_KEPT]:
            path.unlink()

    # ------------------------------------------------------------------ mapped segments

    def create(self) -> tuple[int, Mapped]:
        """(id, segment) of a new empty segment whose blocks exist, so that writing cannot fail for want of space."""
        number = self._next_number()
        path = self.directory / f"{number:06d}.spare"
        fd, made = self._take_reuse() or self._open_new(path)
        try:
            os.posix_fallocate(fd, 0, self.segment_bytes)
            # The end comes before the name: what the file held before is never read as a segment.
            os.pwrite(fd, header_of(self.id) + END, 0)
            if self.durable:
                os.fsync(fd)
            made.rename(path)
            if self.durable:
                sync_directory(self.directory)
            memory = mmap.mmap(fd, self.segment_bytes)
        except BaseException:
            (path if path.exists() else made).unlink()
            os.close(fd)
            raise
        self._maps[number] = Mapped(memory, path, fd)
        return number, self._maps[number]

    def _next_number(self) -> int:
        number = self._next_id
        self._next_id = number + 1
        return number

    @staticmethod
    def _open_new(path: Path) -> tuple[int, Path]:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path

    def _take_reuse(self) -> tuple[int, Path] | None:
        """A file to write over, which nobody else has open: whoever still reads it would read other records."""
        while self._reuse:
            try:
                fd = os.open(self._reuse[-1], os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # somebody made room by hand
                self._reuse.pop()
                continue
            path = self._reuse.pop()
            if _is_ours_alone(fd):
                return fd, path
            os.close(fd)
            path.unlink()
        return None

    def name(self, number: int, first: int) -> None:
        """Give the segment that the writer has entered its name."""
        held = self._maps[number]
        if held.path.suffix != ".spare":
            return
        named = self._named(first)
        held.path.rename(named)
        self._maps[number] = held._replace(path=named)
        self.floor = first
        # Only a missing newest segment is found by it: not worth a wait for the disk.
        self.save(clean=False, durable=False)

    def release(self, number: int, end: int | None = None) -> None:
        """Unmap a segment and cut it at `end`; an empty one is removed."""
        path = self._maps[number].path
        self._maps.pop(number).close()
        if path.suffix == ".spare":
            path.unlink()
        elif end is not None:
            os.truncate(path, end)

    def _named(self, first: int) -> Path:
        return self.directory / f"{first:020d}.seg"

    # ------------------------------------------------------------------ room

    def bytes_held(self) -> int:
        """Bytes of segments and spares on disk."""
        return sum(
            entry.stat().st_size for entry in os.scandir(self.directory) if entry.name.endswith((".seg", ".spare"))
        )

    def has_room(self) -> bool:
        # What serves again was counted when it held records.
        return bool(self._reuse) or self.bytes_held() + self.segment_bytes <= self.cap_bytes

    def keep_for_reuse(self, count: int) -> None:
        """Keep at most so many files that served."""
        self._reused_max = count
        while len(self._reuse) > count:
            self._reuse.pop(0).unlink(missing_ok=True)

    def _keep(self, path: Path) -> Path | None:
        """Where a segment that is not needed any more may wait for its reuse, or None when it must go."""
        about = path.stat()
        whole = about.st_size == self.segment_bytes <= about.st_blocks * BLOCK_BYTES and about.st_nlink == 1
        mapped = any(path == held.path for held in self._maps.values())
        if not whole or mapped or len(self._reuse) >= self._reused_max or not overwrites_in_place(str(path)):
            return None
        return self.directory / f"{self._next_number():06d}.reuse"

    def _discard(self, path: Path) -> None:
        """Take a segment out of the journal."""
        kept = self._keep(path)
        if kept is None:
            path.unlink()
        else:
            path.rename(kept)
            self._reuse.append(kept)

    def drop_oldest(self) -> bool:
        """Replace the oldest segments, if possible one segment's size, by one Gap; False when that frees nothing."""
        held = list_segments(self.directory)
        # What the writer has entered since the last upkeep is listed too, but still to be named and released.
        mapped = {held.path for held in self._maps.values()}
        freed = count = 0
        while count < len(held) - 1 and freed < self.segment_bytes and held[count].path not in mapped:
            freed += held[count].size
            count += 1
        if not count:
            return False
        first = max(held[0].first_sequence, self.acknowledged + 1)
        last = held[count].first_sequence - 1
        # Replacing comes first: a crash in between leaves records that the Gap already covers, which readers skip.
        gap = header_of(self.id) + frame(last, gap_record(first, last, CAUSE_DROPPED))
        if freed <= len(gap):
            return False
        kept = self._keep(held[0].path)
        if kept is not None:
            os.link(held[0].path, kept)
        try:
            replace_file(held[0].path, gap)
        except OSError:
            if kept is not None:
                kept.unlink()
            raise
        if kept is not None:
            self._reuse.append(kept)
        for segment in held[1:count]:
            self._discard(segment.path)
        self.dropped_segments += count
        return True

    def acknowledge(self, sequence: int, digest: bytes) -> None:
        """Upstream holds all up to `sequence`: remember it durably, and remove segments that are wholly below."""
        self.acknowledged, self.acknowledged_hash = sequence, digest
        write_checked(self.directory / "cursor", {"journal": self.id, "sequence": sequence, "hash": digest.hex()})
        held = list_segments(self.directory)
        for segment, behind in itertools.pairwise(held):
            if behind.first_sequence > sequence + 1:
                break
            self._discard(segment.path)

    def close(self, *, clean: bool) -> None:
        """Give the directory back; mappings still held are closed and keep their files."""
        for held in self._maps.values():
            held.close()
            if clean and held.path.suffix == ".spare":
                held.path.unlink()
        self._maps.clear()
        for path in self._reuse if clean else []:
            path.unlink(missing_ok=True)
        self._reuse.clear()
        if self._lock >= 0:
            try:
                self.save(clean=clean)
            finally:
                os.close(self._lock)
                self._lock = -1
