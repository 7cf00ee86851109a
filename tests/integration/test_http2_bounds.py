"""Where exactly a native door lets go of a peer: the last frame that its account allows, and the one after it; what a
flood of streams can make it hold (rows H2-02 and H2-04).

What provokes goes out in one write that is smaller than any turn, so the door's clock stands still meanwhile, no token
comes back, and every number of work done is exact.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from sidecar.demo.processes import wait_for
from tests.fix_native import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    SETTINGS,
    TIMEOUT_S,
    WINDOW,
    Gone,
    NativeServer,
    RawClient,
    call_headers,
    frame,
    native_server,
)

FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 3, 5, 6
PIECE_MIN = 1024  # bytes that one turn takes in any case
FAULTS_BURST, FRAMES_BURST, PRIORITY_TOKENS = 50, 1000, 16
STREAMS = 256
OPEN = 64  # calls whose answers wait when the peer begins to provoke
FRESH = 1000  # streams after those begin beyond it
LAST = 2001
CLOSED_WINDOW = struct.pack(">HI", 4, 0)
WIDE = 0x7FFFFFFF
ALIVE = frame(PING, 0, 0, b"are you?")
STREAM_BYTES = 2048  # that a begun call may cost the door, its own memory and nghttp2's


def window(stream: int, by: int) -> bytes:
    return frame(WINDOW, 0, stream, struct.pack(">I", by))


def headers_again(client: RawClient, stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, client.block(call_headers()))


def fresh(block: bytes) -> Callable[[RawClient, int], bytes]:
    """A new stream with this header block."""
    return lambda _, stream: frame(HEADERS, END_HEADERS, FRESH + stream, block)


def own_parent(stream: int) -> bytes:
    return struct.pack(">IB", stream, 1)


@dataclass(frozen=True)
class Primitive:
    """One way to make a server reset streams or the connection: how often it may be used, and how it ends."""

    name: str
    frames: Callable[[RawClient, int], bytes]
    allowed: int
    cause: str
    code: int
    counted: dict[str, int] = field(default_factory=dict)  # work done with the first one too many


# A connection error needs no account: the first one ends it, and the frames behind it are not looked at.
AT_ONCE = {"frames_in": 1, "resets_out": 0}
MALFORMED = {"frames_in": 0, "resets_out": 0}  # nghttp2 ends it before it tells of the frame
ON_ACCOUNT = {"frames_in": FAULTS_BURST + 1, "resets_out": 0}
PRIMITIVES = [
    Primitive("window 0", lambda _, i: window(i, 0), 0, "protocol", PROTOCOL_ERROR, AT_ONCE),
    Primitive("window 0 of all", lambda *_: window(0, 0), 0, "protocol", PROTOCOL_ERROR, AT_ONCE),
    Primitive("window of all", lambda *_: window(0, WIDE), 0, "protocol", FLOW_CONTROL_ERROR, AT_ONCE),
    Primitive("data", lambda _, i: frame(DATA, END_STREAM, i, b"x"), 0, "protocol", STREAM_CLOSED, MALFORMED),
    Primitive("headers", headers_again, 0, "protocol", STREAM_CLOSED, AT_ONCE),
    Primitive("length", lambda _, i: frame(PRIORITY, 0, i, b"xxx"), 0, "protocol", FRAME_SIZE_ERROR, MALFORMED),
    # Priorities are off (RFC 9113 section 5.3.2), so nothing is reset: such frames run out instead.
    Primitive(
        "parent",
        lambda _, i: frame(PRIORITY, 0, i, own_parent(i)),
        FRAMES_BURST // PRIORITY_TOKENS,
        "flood",
        ENHANCE_YOUR_CALM,
        {"frames_in": FRAMES_BURST // PRIORITY_TOKENS + 1, "resets_out": 0},
    ),
    Primitive("upper case", fresh(b"\0\1X\1v"), FAULTS_BURST, "faults", ENHANCE_YOUR_CALM, ON_ACCOUNT),
    Primitive("CR", fresh(b"\0\1x\1\r"), FAULTS_BURST, "faults", ENHANCE_YOUR_CALM, ON_ACCOUNT),
    Primitive("status", fresh(b"\x88"), FAULTS_BURST, "faults", ENHANCE_YOUR_CALM, ON_ACCOUNT),
]


def names(primitive: Primitive) -> str:
    return primitive.name


def provoked(door: NativeServer, primitive: Primitive, times: int) -> tuple[RawClient, dict[str, int]]:
    """A client with so many provocations behind it, once the door has answered or let go; the work they made."""
    client = RawClient(door.address, settings=CLOSED_WINDOW)
    client.send(b"".join(client.request(2 * i + 1) for i in range(OPEN)))
    client.until(lambda: len(client.headers) == OPEN)
    before = door.listener.counters()
    frames = b"".join(primitive.frames(client, 2 * i + 1) for i in range(times))
    assert len(frames) + len(ALIVE) <= PIECE_MIN
    client.send(frames + ALIVE)
    with contextlib.suppress(Gone):
        client.until(lambda: (PING, ACK, 0, b"are you?") in client.frames)
    done = door.listener.counters()
    return client, {name: done[name] - before[name] for name in ("frames_in", "resets_out", "calls")}


@pytest.mark.parametrize("primitive", PRIMITIVES, ids=names)
def test_the_last_provocation_that_is_allowed(door: NativeServer, primitive: Primitive) -> None:
    """H2-02: with its account used up to the last token a peer keeps its connection and its answers."""
    client, done = provoked(door, primitive, primitive.allowed)
    resets = primitive.allowed if primitive.cause == "faults" else 0
    with client:
        client.send(client.request(LAST))
        client.until(lambda: LAST in client.headers)
        assert not client.goaway
        assert done == {"frames_in": primitive.allowed + 1, "resets_out": resets, "calls": 0}
        assert len(client.resets) == resets
        assert (door.listener.counters()["closed"], door.listener.counters()["calls"]) == ({}, OPEN + 1)


@pytest.mark.parametrize("beyond", [1, 8])
@pytest.mark.parametrize("primitive", PRIMITIVES, ids=names)
def test_the_first_provocation_that_is_not(door: NativeServer, primitive: Primitive, beyond: int) -> None:
    """H2-02: one more ends the connection, and however many follow it they make no work at all."""
    client, done = provoked(door, primitive, primitive.allowed + beyond)
    with client:
        client.drain()
        assert [code for _, code in client.goaway] == [primitive.code]
        assert not client.resets
        assert done == {"calls": 0, **primitive.counted}
    wait_for("no connection", lambda: door.listener.counters()["open"] == 0, TIMEOUT_S)
    ended = door.listener.counters()
    assert ended["closed"] == {primitive.cause: 1}
    assert ended["goaways"] == {primitive.cause: 1}
    assert (ended["calls"], ended["held"]) == (OPEN, 0)


@pytest.mark.parametrize("times", [1, 38])
def test_a_stream_s_window_that_overflows_ends_the_connection(door: NativeServer, times: int) -> None:
    """H2-02: by a stream's window the first overflow ends it as well (RFC 9113 sections 5.4.2 and 6.9.1); streams that
    overflowed before the door could speak are reset by nghttp2, with nothing decided for them."""
    overflow = Primitive("", lambda _, i: window(i, WIDE) + window(i, 1), 0, "protocol", FLOW_CONTROL_ERROR)
    client, done = provoked(door, overflow, times)
    with client:
        client.drain()
        assert [code for _, code in client.goaway] == [FLOW_CONTROL_ERROR]
    assert done["calls"] == 0
    assert done["resets_out"] <= times
    assert door.ended("protocol")["goaways"] == {"protocol": 1}


def test_a_call_that_is_answered_gives_a_fault_back_now_and_then(door: NativeServer) -> None:
    """H2-02: sixteen answered calls excuse a provocation more."""
    upper = Primitive("", fresh(b"\0\1X\1v"), FAULTS_BURST, "faults", ENHANCE_YOUR_CALM)
    client, _ = provoked(door, upper, FAULTS_BURST)
    with client:
        client.send(window(0, 1 << 20) + b"".join(window(2 * i + 1, 1 << 16) for i in range(16)))
        client.until(lambda: len(client.ended) == 16)
        client.send(upper.frames(client, LAST - FRESH))
        client.until(lambda: LAST in client.resets)
        assert door.listener.counters()["closed"] == {}


# ---------------------------------------------------------------- H2-04


class _Heap(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks")),
        ("mapped", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks")),
        ("used", ctypes.c_size_t),
        *((name, ctypes.c_size_t) for name in ("fordblks", "keepcost")),
    ]


def allocated() -> int:
    """Bytes that this process has from the heap, in all its arenas."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Heap
    found = mallinfo()
    return int(found.used + found.mapped)


@pytest.mark.skipif("REMIT_SANITIZED" in os.environ, reason="the sanitizer has the allocator")
@pytest.mark.parametrize("over", [0, 1000, 4000])
def test_a_flood_of_streams_costs_what_its_limit_costs(over: int) -> None:
    """H2-04: the memory of a peer is that of as many streams as it may open, however many it tries; those over the
    limit cost none, and with the connection all of it is given back."""
    with native_server(settings_ms=TIMEOUT_S * 1000) as door:
        with RawClient(door.address, hello=False) as client:
            streams = [2 * i + 1 for i in range(STREAMS + over)]
            flood = b"".join(frame(HEADERS, END_HEADERS, i, client.block(call_headers())) for i in streams)
            client.send(PREFACE + frame(SETTINGS))
            client.until(lambda: client.frames)
            before = allocated()
            client.send(flood)
            # Read only afterwards: what this client notes is on the same heap.
            wait_for("all frames", lambda: door.listener.counters()["frames_in"] == len(streams) + 1, TIMEOUT_S)
            wait_for("all refusals", lambda: door.listener.counters()["resets_out"] == over, TIMEOUT_S)
            grown, done = allocated() - before, door.listener.counters()
        assert (done["streams"], done["closed"], done["held"], done["calls"]) == (STREAMS, {}, 0, 0)
        assert STREAMS * 256 < grown < STREAMS * STREAM_BYTES
        wait_for("no connection", lambda: door.listener.counters()["open"] == 0, TIMEOUT_S)
        assert allocated() - before < STREAMS * 256
