"""The collector: receives decision streams and keeps each journal as JSON lines (`remit collect`).

An acknowledgement is a promise: what it names is on disk. Whatever does not continue the log is refused, never
repaired: loss and tampering are for people to see.
"""

import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import NoReturn

import grpc

from sidecar._proto.remit.decisions.v1 import decisions_pb2, decisions_pb2_grpc
from sidecar.decisions.chain import HASH_BYTES, link
from sidecar.decisions.jsonline import line
from sidecar.decisions.log_file import LogFile, Position, check_order
from sidecar.errors import JournalError, ProtocolError
from sidecar.logs import event

log = logging.getLogger("remit.collector")

STREAMS_MAX = 256
JOURNALS_MAX = 4096
SIDECAR_CHARS_MAX = 2048
JOURNAL_ID = re.compile(r"[0-9a-f]{32}")

Identify = Callable[[grpc.ServicerContext], str]
"""The verified SPIFFE ID of a caller, or empty when there is none."""


class ChainError(JournalError):
    """A stream whose records are not those that the log holds."""

    code = 15  # DATA_LOSS


class CallerError(JournalError):
    """A caller that is not who it says, or has no right to this journal."""

    code = 7  # PERMISSION_DENIED


class OrderError(JournalError):
    """A stream that leaves records out."""

    code = 9  # FAILED_PRECONDITION


class Collector(decisions_pb2_grpc.DecisionStreamServicer):
    """Keeps `<directory>/<journal id>.jsonl`. Thread-safe; one process per directory."""

    def __init__(self, directory: Path, *, identify: Identify | None = None) -> None:
        """Take the directory; JournalError when another collector has it or a file in it cannot be continued.

        With `identify`, a sidecar must be who its Hello says, and a journal stays with the sidecar that began it.
        """
        self.directory = directory
        self._identify = identify
        self._files: dict[str, LogFile] = {}
        self._lock = threading.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = self._take_directory()
        except OSError as error:
            cause = (error.strerror or str(error)).lower()
            raise JournalError(f"directory `{directory}` cannot be used: {cause}; name another") from None
        self.records = 0
        self.duplicates = 0
        self.refused = 0

    def _take_directory(self) -> int:
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise JournalError(f"directory `{self.directory}` is in use by another collector; stop it first") from None
        return fd

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            os.close(self._held)

    # ------------------------------------------------------------------ the stream

    def Publish(
        self, request_iterator: Iterator[decisions_pb2.PublishRequest], context: grpc.ServicerContext
    ) -> Iterator[decisions_pb2.PublishResponse]:
        """One sidecar's stream: Hello, then batches; each answer says what is durable now."""
        try:
            hello = self._hello(next(request_iterator, None), context)
            file = self.open(hello.journal)
            self._check_owner(file, hello.sidecar)
            event(log, "collect.stream", journal=hello.journal, sidecar=hello.sidecar, sequence=file.position.sequence)
            yield _answer(hello.journal, file.position)
            for request in request_iterator:
                self._check_caller(hello, context)
                if request.WhichOneof("message") != "batch" or request.batch.journal != hello.journal:
                    raise ProtocolError("after `hello` come batches of its journal")
                yield _answer(hello.journal, self.accept(file, request.batch, hello.sidecar))
        except (JournalError, ProtocolError) as error:
            self._refuse(context, _STATUS[error.code], str(error))
        except OSError as error:
            self._refuse(context, grpc.StatusCode.UNAVAILABLE, f"the log cannot be written: {error.strerror}")

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
        self.refused += 1
        event(log, "collect.refused", logging.ERROR, code=code.name.lower(), cause=text)
        context.abort(code, text)
        raise AssertionError("abort returns to nobody")

    def _hello(
        self, request: decisions_pb2.PublishRequest | None, context: grpc.ServicerContext
    ) -> decisions_pb2.Hello:
        if request is None or request.WhichOneof("message") != "hello":
            raise ProtocolError("a stream starts with `hello`")
        if not JOURNAL_ID.fullmatch(request.hello.journal):
            raise ProtocolError("`hello.journal` is not 32 hex digits")
        if len(request.hello.sidecar) > SIDECAR_CHARS_MAX:
            raise ProtocolError("`hello.sidecar` is too long")
        self._check_caller(request.hello, context)
        return request.hello

    def _check_caller(self, hello: decisions_pb2.Hello, context: grpc.ServicerContext) -> None:
        """The caller is who its Hello says: asked again for each batch, since a stream outlives an SVID."""
        if self._identify is not None and self._identify(context) != hello.sidecar:
            raise CallerError("`hello.sidecar` is not the caller's SPIFFE ID")

    def _check_owner(self, file: LogFile, sidecar: str) -> None:
        if self._identify is not None and file.sidecar not in ("", sidecar):
            raise CallerError("this journal belongs to another sidecar")

    def open(self, journal: str) -> LogFile:
        """The file of a journal. JournalError when it cannot be continued, or there are too many."""
        with self._lock:
            file = self._files.get(journal)
            if file is None:
                if len(self._files) >= JOURNALS_MAX:
                    raise JournalError(f"there are {JOURNALS_MAX} journals already; start another collector")
                file = self._files[journal] = LogFile(self.directory / f"{journal}.jsonl")
                if file.repaired_bytes:
                    event(log, "collect.repaired", logging.WARNING, journal=journal, cut_bytes=file.repaired_bytes)
            return file

    # ------------------------------------------------------------------ one batch

    def accept(self, file: LogFile, batch: decisions_pb2.Batch, sidecar: str) -> Position:
        """Append what is new of a batch, durably; the position then. Duplicates are checked and dropped.

        ChainError, OrderError and ProtocolError say what is wrong; then nothing of the batch is written.
        """
        if not batch.entries or batch.first_sequence != batch.entries[0].sequence:
            raise ProtocolError("`first_sequence` is not that of the first entry")
        if len(batch.previous_hash) != HASH_BYTES:
            raise ProtocolError(f"`previous_hash` has {len(batch.previous_hash)} bytes, not {HASH_BYTES}")
        with file.lock:
            lines, position, duplicates = self._extend(file, batch, sidecar)
            if lines:
                file.append(lines, position, sidecar)
        with self._lock:
            self.records += len(lines)
            self.duplicates += duplicates
        return position

    def _extend(self, file: LogFile, batch: decisions_pb2.Batch, sidecar: str) -> tuple[list[bytes], Position, int]:
        """(lines to append, position behind them, duplicates seen)."""
        lines: list[bytes] = []
        position = held = file.position
        digest, before = batch.previous_hash, 0
        for entry in batch.entries:
            if entry.sequence <= before:
                raise ProtocolError(f"sequence {entry.sequence} comes after {before}")
            before = entry.sequence
            if entry.sequence > held.sequence:
                _check_next(position, digest, entry)
            digest = link(digest, entry.sequence, entry.payload)
            if entry.sequence < held.sequence:
                continue
            if entry.sequence == held.sequence:
                _check_same(held, digest)
                continue
            position = Position(entry.sequence, digest)
            lines.append(_line(batch.journal, sidecar, entry, digest))
        return lines, position, len(batch.entries) - len(lines)


def _check_next(position: Position, digest: bytes, entry: decisions_pb2.Entry) -> None:
    """The entry continues the log at `position`, coming with the chain value `digest`."""
    try:
        check_order(position.sequence, entry.sequence, entry.payload)
    except JournalError as error:
        raise OrderError(str(error)) from None
    if digest != position.digest:
        raise ChainError(
            f"the chain value before sequence {entry.sequence} is not that of the log at {position.sequence}"
        )


def _check_same(held: Position, digest: bytes) -> None:
    if digest != held.digest:
        raise ChainError(f"sequence {held.sequence} was sent again with other content than the log holds")


def _line(journal: str, sidecar: str, entry: decisions_pb2.Entry, digest: bytes) -> bytes:
    try:
        return line(journal, sidecar, entry.sequence, digest, entry.payload)
    except ProtocolError as error:
        raise ProtocolError(f"sequence {entry.sequence}: {error}") from None


def _answer(journal: str, position: Position) -> decisions_pb2.PublishResponse:
    return decisions_pb2.PublishResponse(journal=journal, last_sequence=position.sequence, last_hash=position.digest)


_STATUS = {status.value[0]: status for status in grpc.StatusCode}


def serve(
    collector: Collector, address: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.Server, int]:
    """(started server, port or 0 for a Unix socket). `address` is `unix:PATH` or `host:port`; TCP needs `credentials`.

    JournalError when the address cannot be bound.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(STREAMS_MAX, thread_name_prefix="remit-collect"),
        maximum_concurrent_rpcs=STREAMS_MAX,
        options=[("grpc.so_reuseport", 0)],
    )
    decisions_pb2_grpc.add_DecisionStreamServicer_to_server(collector, server)
    local = address.startswith("unix:")
    if not local and credentials is None:
        raise JournalError(
            f"collector address `{address}` is TCP, which needs an SVID; use `unix:PATH` for one machine"
        )
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        raise JournalError(f"collector address `{address}` cannot be bound; is another collector running?") from None
    server.start()
    return server, 0 if local else port
