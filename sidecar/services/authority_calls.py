"""What every authority service shares: who calls, how a refusal is told, pages, and watching."""

import base64
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import grpc
import msgspec

from sidecar._proto.remit.authority.v1 import tasks_pb2
from sidecar.authority.answers import Repeat
from sidecar.authority.authority import Authority
from sidecar.authority.commands import still
from sidecar.authority.draft import Caller, Draft
from sidecar.authority.errors import AuthorityError, ExhaustedError, StateError, invalid
from sidecar.authority.rows import decode

log = logging.getLogger("remit.authority")

PAGE, PAGE_MAX = 100, 1000
LOOK_MAX = 10_000
"""Rows that one page may look at; it can be shorter than asked and still have a next one."""
WATCHERS = 32  # streams per server; each takes a thread as long as it lasts
KEY_BYTES_MAX = 128
TOKEN_BYTES_MAX = 256  # every key of a table is shorter, and LMDB looks for none of 512
TEXT_MAX = 1500  # a status message travels in a header
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Resolve = Callable[[grpc.ServicerContext], Caller]
Message = TypeVar("Message")
Row = TypeVar("Row", bound=msgspec.Struct)


class Keyed(Protocol):
    """A request that changes something."""

    idempotency_key: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...


class Watching(Protocol):
    """A request for a stream."""

    from_epoch: int
    store: str


Scan = Callable[[bytes], Iterator[tuple[bytes, bytes]]]


class Page(NamedTuple):
    """Keys and values of one page, and where the next one begins; empty: there is none."""

    rows: list[tuple[bytes, bytes]]
    token: str


class Service:
    """An authority service for one set of callers."""

    def __init__(self, authority: Authority, resolve: Resolve, watchers: threading.Semaphore) -> None:
        self.authority = authority
        self.resolve = resolve
        self._watchers = watchers

    def change(
        self,
        caller: Caller,
        action: str,
        request: Keyed,
        command: Callable[[Draft], Message],
        kind: type[Message] | None = None,
        stands: Callable[[Draft, Message], bool] = still,
    ) -> Message:
        """Run a command whose result is a message; the same idempotency key gets `action`'s same answer.

        `stands`: whether an answer is still true; one that is not is no answer, and the command is run again.
        """
        key = request.idempotency_key
        if not key or kind is None:
            return self.authority.run(command)
        if len(key.encode()) > KEY_BYTES_MAX or not key.isprintable():
            raise invalid("idempotency_key", f"is longer than {KEY_BYTES_MAX} bytes, or not printable")
        # By the action: requests that suspend, resume and end a task look alike, and one is no answer to another.
        repeat = Repeat(caller, action, key, request.SerializeToString(deterministic=True))
        made: Any = kind
        return self.authority.run(
            command,
            repeat,
            pack=lambda answer: answer.SerializeToString(),
            unpack=made.FromString,
            stands=stands,
        )

    def watching(self, stream: Iterator[Message]) -> Iterator[Message]:
        """One of the watchers, as long as the stream is read. ExhaustedError when there are too many."""
        if not self._watchers.acquire(blocking=False):
            raise ExhaustedError(f"{WATCHERS} streams are watching already; try later")
        try:
            yield from stream
        finally:
            self._watchers.release()


def answered(method: Callable[..., Message]) -> Callable[..., Message]:
    """A servicer's method that gets the caller, and whose refusals become gRPC statuses."""

    @functools.wraps(method)
    def call(self: Service, request: Any, context: grpc.ServicerContext) -> Message:
        try:
            return method(self, request, self.resolve(context))
        except Exception as error:
            return refuse(context, error)

    return call


def streamed(method: Callable[..., Iterator[Message]]) -> Callable[..., Iterator[Message]]:
    """The same for a method that answers with a stream; it ends when the caller goes."""

    @functools.wraps(method)
    def call(self: Service, request: Any, context: grpc.ServicerContext) -> Iterator[Message]:
        try:
            caller = self.resolve(context)
            yield from self.watching(method(self, request, caller, context.is_active))
        except Exception as error:
            refuse(context, error)

    return call


def refuse(context: grpc.ServicerContext, error: Exception) -> Any:
    """End the call. What is not one of our refusals says nothing of the inside."""
    if not isinstance(error, AuthorityError):
        log.error("authority.call_failed", exc_info=error)
        return context.abort(grpc.StatusCode.INTERNAL, "internal error")
    text = str(error).encode("ascii", "backslashreplace").decode()[:TEXT_MAX]
    return context.abort(_CODES[error.code], text)


# ---------------------------------------------------------------- pages


def page(draft: Draft, table: str, prefix: bytes, size: int, token: str, keep: Callable[[bytes, bytes], bool]) -> Page:
    """A page of the rows behind `token` that `keep`. InvalidError for a size or token that is not one."""
    return page_of(functools.partial(draft.rows.scan, table, prefix), prefix, size, token, keep)


def page_of(scan: Scan, prefix: bytes, size: int, token: str, keep: Callable[[bytes, bytes], bool]) -> Page:
    """The same of what `scan` gives behind a key; all its keys begin with `prefix`."""
    if size > PAGE_MAX:
        raise invalid("page_size", f"is {size}; at most {PAGE_MAX} can be")
    rows: list[tuple[bytes, bytes]] = []
    for looked, (key, stored) in enumerate(scan(_after(token, prefix)), 1):
        if keep(key, stored):
            rows.append((key, stored))
        if len(rows) == (size or PAGE) or looked == LOOK_MAX:
            return Page(rows, base64.urlsafe_b64encode(key).decode())
    return Page(rows, "")


def _after(token: str, prefix: bytes) -> bytes:
    try:
        key = base64.b64decode(token.encode(), b"-_", validate=True)
    except ValueError:
        raise invalid("page_token", "is none that this service gave") from None
    if len(key) > TOKEN_BYTES_MAX:
        raise invalid("page_token", "is none that this service gave")
    if key and not key.startswith(prefix):
        raise invalid("page_token", "belongs to another list")
    return key


# ---------------------------------------------------------------- watching


class Watch(Generic[Row, Message]):
    """How the rows of one table become a stream: a snapshot, then what changes, and a beat when nothing does."""

    def __init__(
        self,
        table: str,
        kind: type[Row],
        message: Callable[..., Message],
        put: Callable[[Row], dict[str, Any]],
        gone: Callable[[Row], dict[str, Any]],
        keep: Callable[[Row], bool] = lambda row: True,  # noqa: ARG005
    ) -> None:
        """`message` makes one of the stream from an epoch and the field that `put` or `gone` names."""
        self.table, self.kind, self.message, self.put, self.gone, self.keep = table, kind, message, put, gone, keep

    def stream(self, authority: Authority, request: Watching, is_active: Callable[[], bool]) -> Iterator[Message]:
        """What a follower is sent. StateError when it falls behind: it begins again, with a snapshot."""
        feed, beat_s, store = authority.store.feed, authority.section.beat_ms / 1000, authority.store.id
        known = request.from_epoch if request.store in ("", store) else 0
        number = feed.behind(known) if known else None
        if number is not None:
            yield self.message(epoch=known, store=store)
        else:
            epoch, number = feed.position()
            yield self.message(epoch=epoch, store=store, snapshot=tasks_pb2.SNAPSHOT_MARK_BEGIN)
            yield from self._snapshot(authority, epoch)
            yield self.message(epoch=epoch, snapshot=tasks_pb2.SNAPSHOT_MARK_END)
        while is_active():
            taken = feed.take(number, beat_s)
            if taken is None:
                raise StateError("the stream fell behind, or the sidecar stops; watch again")
            number += len(taken.changes)
            for one in taken.changes:
                row = one.change.row
                if one.change.table == self.table and isinstance(row, self.kind):
                    field = self.gone(row) if one.change.gone else self.put(row)
                    yield self.message(epoch=one.epoch, **field)
            # As old as what was taken, however long the way of that was: what came meanwhile is not in it.
            beat = tasks_pb2.Beat(time_unix_ns=taken.unix_ns, interval_ms=authority.section.beat_ms)
            yield self.message(epoch=taken.epoch, beat=beat)

    def _snapshot(self, authority: Authority, epoch: int) -> Iterator[Message]:
        """All rows, read in pages, so that no read transaction stays open; what changes meanwhile is sent again."""
        # First: what is made durable meanwhile is in one of both.
        unwritten = list(authority.store.unwritten.items())
        after = b""
        while True:
            with authority.store.read() as draft:
                rows: list[tuple[bytes, bytes]] = []
                for key, stored in draft.rows.scan(self.table, b"", after):
                    rows.append((key, stored))
                    if len(rows) == PAGE_MAX:
                        break
            for _, stored in rows:
                row = decode(stored, self.kind)
                if self.keep(row):
                    yield self.message(epoch=epoch, **self.put(row))
            if len(rows) < PAGE_MAX:
                break
            after = rows[-1][0]
        for (table, _), held in unwritten:
            if table == self.table and isinstance(held, self.kind) and self.keep(held):
                yield self.message(epoch=epoch, **self.put(held))
