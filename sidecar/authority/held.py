"""Rows that a full disk refused and that are in force all the same, in a file whose room was taken while there was any.

Two places of equal size are written in turn, so that a write that breaks off leaves what was there before. A place is
    number of the write (8 bytes), length of the body (4), CRC32C of both and the body (4), all little-endian
    body: MessagePack of [[table, key, value]], values as the store has them
"""

import logging
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from fastpath.frames import crc32c
from sidecar.authority import revocations
from sidecar.authority.commands import Place
from sidecar.authority.database import is_full
from sidecar.authority.draft import KINDS, OWNERS, REVOCATIONS, SYSTEM, Draft
from sidecar.authority.errors import StoreError
from sidecar.authority.load import loaded_revocation
from sidecar.authority.manifest import sync_folder
from sidecar.authority.owners import live_owner
from sidecar.authority.rows import DamagedRow, Owner, Revocation, decode, encode
from sidecar.authority.spending import Change
from sidecar.logs import event

log = logging.getLogger("remit.authority")

FILE = "held.bin"
PLACE_BYTES = 128 << 10
HEAD = struct.Struct("<QI")
BODY = HEAD.size + 4
_bodies = msgspec.msgpack.Decoder(list[tuple[str, bytes, bytes]])


class Held:
    """Owns the file from `open` to `close`. For one thread at a time; `rows` may be read by all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._number = 0
        self.rows: dict[Place, msgspec.Struct] = {}
        """What is in force without being in the store."""

    def open(self) -> None:
        """Read what was kept, and take the room. StoreError for a damaged file: what it held would be allowed again.

        OSError as it comes."""
        found = b""
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            found = os.pread(self._file, 2 * PLACE_BYTES, 0)
            if len(found) < 2 * PLACE_BYTES:
                # Written, not just allocated: only then does writing it again need no room.
                _write_at(self._file, bytes(2 * PLACE_BYTES - len(found)), len(found))
                sync_folder(self._path.parent)
        except OSError as error:
            if not is_full(error):
                raise
            # Without it what a full disk refuses is in memory alone.
            event(log, "authority.no_reserve", logging.WARNING, file=str(self._path), cause=_cause(error))
            self.close()
        self._number, body = self._newest(found.ljust(2 * PLACE_BYTES, b"\0"))
        self.rows.update(_rows_of(body))

    def close(self) -> None:
        """May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def put(self, rows: Mapping[Place, msgspec.Struct]) -> bool:
        """Hold `rows` too; whether that outlives a restart."""
        self.rows.update(rows)
        return self._keep()

    def drop(self, places: Iterable[Place]) -> None:
        """Hold these no longer. Where that cannot be written they are in force again after a restart."""
        if [place for place in places if self.rows.pop(place, None) is not None]:
            self._keep()

    def _newest(self, found: bytes) -> tuple[int, bytes]:
        whole = [one for at in (0, PLACE_BYTES) if (one := _read_place(found[at : at + PLACE_BYTES])) is not None]
        if not whole:
            raise StoreError(
                f"`{self._path}` is damaged, which held revocations that a full disk refused; remove it, and revoke"
                " again what the journal's events authority.not_durable name"
            )
        return max(whole)

    def _keep(self) -> bool:
        rows = [(table, key, encode(row)) for (table, key), row in self.rows.items()]
        body = msgspec.msgpack.encode(rows)
        if self._file < 0 or len(body) > PLACE_BYTES - BODY:
            return False
        number = self._number + 1
        head = HEAD.pack(number, len(body))
        try:
            whole = head + crc32c(head + body).to_bytes(4, "little") + body
            _write_at(self._file, whole, PLACE_BYTES * (number % 2))
        except OSError as error:
            event(log, "authority.not_held", logging.ERROR, file=str(self._path), cause=_cause(error))
            return False
        self._number = number
        return True


def held_change(row: msgspec.Struct, sure_ns: int) -> Change:
    """What puts a held row in force in the native view at a start."""
    if isinstance(row, Revocation):
        return "revoke", loaded_revocation(row, sure_ns)
    assert isinstance(row, Owner)
    return "owner", live_owner(row)


def drop_ended(draft: Draft) -> None:
    """Take out the revocations whose time is over and of which nothing is durable."""
    for place, row in list(draft.unwritten.items()):
        if isinstance(row, Revocation) and draft.rows.get(*place) is None:
            revocations.drop_ended(draft, place[1], row, SYSTEM)


def keep_held(draft: Draft) -> None:
    """Make durable what is in force without being so."""
    for (table, key), row in list(draft.unwritten.items()):
        if table == REVOCATIONS:
            revocations.keep_held(draft, key, SYSTEM)
        elif isinstance(row, Owner):
            draft.put(OWNERS, key, msgspec.structs.replace(row, epoch=draft.epoch))
            draft.event("owner.kept", SYSTEM, owner=row.id)


def _read_place(place: bytes) -> tuple[int, bytes] | None:
    """(number, body); None when what stands there is not what was written."""
    number, length = HEAD.unpack_from(place)
    body = place[BODY : BODY + length]
    if number == 0 and not any(place):
        return 0, b"\x90"
    crc = int.from_bytes(place[HEAD.size : BODY], "little")
    return (number, body) if len(body) == length and crc32c(place[: HEAD.size] + body) == crc else None


def _rows_of(body: bytes) -> dict[Place, msgspec.Struct]:
    try:
        return {(table, key): decode(value, KINDS[table]) for table, key, value in _bodies.decode(body)}
    except (msgspec.DecodeError, KeyError) as error:
        raise DamagedRow(f"what a full disk refused cannot be read: {str(error).lower()}") from None


def _write_at(file: int, data: bytes, at: int) -> None:
    """Write all of it, durable at return."""
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done
    os.fdatasync(file)


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
