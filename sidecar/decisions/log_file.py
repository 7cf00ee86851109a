"""One journal's file at the collector: JSON lines, appended whole or not at all, durable before acknowledged."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpath.frames import gap_range
from sidecar.decisions.chain import GENESIS, HASH_BYTES, link
from sidecar.decisions.jsonline import line
from sidecar.errors import JournalError, ProtocolError

TAIL_BYTES = 16 * 1024
SEQUENCE_MAX = (1 << 64) - 1  # decisions.proto, Entry


@dataclass(frozen=True)
class Position:
    """How far a log goes: its last sequence and the chain value there."""

    sequence: int = 0
    digest: bytes = GENESIS


class LogFile:
    """The lines of one journal. `lock` is held by whoever appends."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; a torn last line is cut. JournalError when its last whole line is not one of ours."""
        self.path = path
        self.lock = threading.Lock()
        self.sidecar = ""
        self.repaired_bytes = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.position = self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self) -> Position:
        size = os.fstat(self._fd).st_size
        last, end = self._last_line(size)
        if end < size:
            # Its batch was never acknowledged, so upstream sends it again.
            os.ftruncate(self._fd, end)
            os.fsync(self._fd)
            self.repaired_bytes = size - end
        if not last:
            return Position()
        try:
            fields = json.loads(last)
            found = Position(int(fields["sequence"]), bytes.fromhex(fields["hash"]))
            if not 0 < found.sequence <= SEQUENCE_MAX or len(found.digest) != HASH_BYTES:
                raise ValueError("no position of a log")
            self.sidecar = str(fields["sidecar"])
            return found
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise JournalError(
                f"the last line of `{self.path}` is not a decision line ({type(error).__name__}); move the file aside"
            ) from None

    def _last_line(self, size: int) -> tuple[bytes, int]:
        """(last whole line, offset behind it), read from the end."""
        held = b""
        at = size
        while at > 0:
            step = min(TAIL_BYTES, at)
            at -= step
            held = os.pread(self._fd, step, at) + held
            end = held.rfind(b"\n")
            start = held.rfind(b"\n", 0, end) if end > 0 else -1
            if end >= 0 and (start >= 0 or at == 0):
                return held[start + 1 : end], at + end + 1
        return b"", 0

    def append(self, lines: list[bytes], position: Position, sidecar: str) -> None:
        """Write lines and move on to `position`, durably. OSError when that fails; then none of them is there."""
        before = os.fstat(self._fd).st_size
        try:
            view = memoryview(b"".join(lines))
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, before)
            raise
        self.position, self.sidecar = position, sidecar

    def close(self) -> None:
        os.close(self._fd)


def lines_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, fields) of every line. JournalError for a line that is not a JSON object."""
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError):
                fields = None
            if not isinstance(fields, dict):
                raise JournalError(f"line {number} of `{path}` is not a JSON object")
            yield number, fields


def verify(path: Path) -> tuple[int, Position]:
    """(lines, end position) of a collected log after its sequence, chain and rendered fields were all checked.

    JournalError names the first line that was edited, removed, added or moved. Lines cut from the end leave a whole
    log: compare the position with the sidecar's or with one noted earlier.
    """
    position = Position()
    count = 0
    for count, fields in lines_of(path):
        try:
            position = _verify_line(fields, position)
        except (JournalError, ProtocolError) as error:
            raise JournalError(f"line {count} of `{path}`: {error}") from None
        except (KeyError, ValueError, TypeError) as error:
            raise JournalError(f"line {count} of `{path}` is malformed ({type(error).__name__})") from None
    return count, position


def _verify_line(fields: dict[str, Any], position: Position) -> Position:
    sequence, payload = int(fields["sequence"]), base64.b64decode(fields["payload"], validate=True)
    check_order(position.sequence, sequence, payload)
    digest = link(position.digest, sequence, payload)
    if digest.hex() != fields["hash"]:
        raise JournalError(f"the chain breaks at sequence {sequence}")
    if fields != json.loads(line(fields["journal"], fields["sidecar"], sequence, digest, payload)):
        raise JournalError(f"the fields of sequence {sequence} differ from its payload")
    return Position(sequence, digest)


def check_order(last: int, sequence: int, payload: bytes) -> None:
    """Let a record follow `last`. JournalError when it does not, and is no Gap that covers what is between."""
    if sequence == last + 1:
        return
    covered = gap_range(payload)
    if covered is None or covered[0] > last + 1 or covered[1] != sequence or sequence <= last:
        raise JournalError(f"sequence {sequence} does not follow {last}, and no gap record covers what is between")
