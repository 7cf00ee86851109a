"""Cases of HTTP/2 conformance: what a peer sends on a new connection, and the reaction that the RFC requires.

A case is a row of a table: section, name, bytes, reaction. Every case runs on a connection of its own to one native
door, and ends with a look at the work that was done: who was decided, and why the connection ended.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from sidecar.demo.processes import wait_for
from tests.fix_native import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    QUESTION,
    Gone,
    NativeServer,
    RawClient,
    call_headers,
    frame,
    message,
    native_server,
)

(
    NO_ERROR,
    PROTOCOL,
    INTERNAL,
    FLOW_CONTROL,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE,
    REFUSED,
    CANCEL,
    COMPRESSION,
) = range(10)
CALM = 11
ASK = message(QUESTION)
LATER = 1001  # a stream after all those of a case
Send = bytes | Callable[[RawClient], bytes]


@dataclass(frozen=True)
class Connection:
    """The connection ends with one of these codes (RFC 9113 section 5.4.1), and nobody was decided but `calls`."""

    codes: tuple[int, ...]
    calls: int = 0

    def holds(self, door: NativeServer, client: RawClient, before: Work) -> None:
        client.drain()
        assert [code for _, code in client.goaway][-1:] in [[code] for code in self.codes], client.frames
        done = work(door, before)
        assert done.closed == {"protocol": 1}
        assert done.calls == self.calls


@dataclass(frozen=True)
class Stream:
    """Stream 1 is reset with one of these codes (section 5.4.2), only `calls` were decided, the connection lives."""

    codes: tuple[int, ...]
    calls: int = 0
    stream: int = 1

    def holds(self, door: NativeServer, client: RawClient, before: Work) -> None:
        client.until(lambda: self.stream in client.resets)
        assert client.resets[self.stream] in self.codes
        lives(client)
        assert work(door, before).calls == self.calls + 1


@dataclass(frozen=True)
class Answered:
    """Streams 1, 3, .. `streams` are answered with this status and the connection lives."""

    status: str = "0"
    streams: int = 1
    calls: int | None = None

    def holds(self, door: NativeServer, client: RawClient, before: Work) -> None:
        wanted = range(1, 2 * self.streams, 2)
        client.until(lambda: client.ended.issuperset(wanted) or client.resets)
        assert [client.headers[stream]["grpc-status"] for stream in wanted] == [self.status] * self.streams
        lives(client)
        calls = self.calls if self.calls is not None else self.streams * (self.status == "0")
        assert work(door, before).calls == calls + 1


@dataclass(frozen=True)
class Ignored:
    """Nothing comes back but what the connection says anyway; nobody was decided; the connection lives."""

    calls: int = 0

    def holds(self, door: NativeServer, client: RawClient, before: Work) -> None:
        lives(client)
        assert not client.goaway
        assert not client.resets
        assert work(door, before).calls == self.calls + 1


Reaction = Connection | Stream | Answered | Ignored


@dataclass(frozen=True)
class Case:
    section: str
    name: str
    send: Send
    reaction: Reaction
    settings: bytes = b""  # of the client's first SETTINGS
    hello: bool = True  # begin with preface, SETTINGS and the acknowledgement of ours


@dataclass(frozen=True)
class Work:
    calls: int
    closed: dict[str, int]


def work(door: NativeServer, since: Work | None = None) -> Work:
    """Work done by the door, since then."""
    done = door.listener.counters()
    was = since or Work(0, {})
    closed = {cause: n - was.closed.get(cause, 0) for cause, n in done["closed"].items()}
    return Work(done["calls"] - was.calls, {cause: n for cause, n in closed.items() if n})


def lives(client: RawClient) -> None:
    """The connection still answers a PING and a call."""
    client.send(frame(PING, 0, 0, b"are you?"))
    client.until(lambda: (PING, 1, 0, b"are you?") in client.frames)
    assert client.ask(LATER) == ("0", "")


@pytest.fixture(scope="module")
def quiet_door() -> Iterator[NativeServer]:
    """One door for all cases of a file; every case ends its connection before the next begins."""
    with native_server() as server:
        yield server


def check(door: NativeServer, case: Case) -> None:
    """Run one case; afterwards the door has no connection left."""
    before = work(door)
    with RawClient(door.address, hello=case.hello, settings=case.settings) as client:
        client.send(case.send if isinstance(case.send, bytes) else case.send(client))
        try:
            case.reaction.holds(door, client, before)
        except Gone:
            raise AssertionError(f"the connection ended: {client.goaway}, {work(door, before)}") from None
    gone(door)


def gone(door: NativeServer) -> None:
    wait_for("no connection", lambda: door.listener.counters()["open"] == 0)


def ids(case: Case) -> str:
    return f"{case.section}-{case.name.replace(' ', '_')}"


# ---------------------------------------------------------------- pieces


def headers(client: RawClient, stream: int = 1, flags: int = END_HEADERS, **changes: str | None) -> bytes:
    """One HEADERS frame of a call."""
    return frame(HEADERS, flags, stream, client.block(call_headers(**changes)))


def body(stream: int = 1, flags: int = END_STREAM, data: bytes = ASK) -> bytes:
    return frame(DATA, flags, stream, data)


def raw_field(name: bytes, value: bytes) -> bytes:
    """A literal field without indexing, plain text, not checked by anybody (RFC 7541 section 6.2.2)."""
    return b"\0" + text(name) + text(value)


def text(value: bytes) -> bytes:
    return integer(len(value), 7) + value


def integer(value: int, bits: int, flags: int = 0) -> bytes:
    """RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((flags | value,))
    out, value = bytes((flags | most,)), value - most
    while value >= 128:
        out += bytes((value & 127 | 128,))
        value >>= 7
    return out + bytes((value,))


def setting(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">HI", key, value) for key, value in pairs)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)
