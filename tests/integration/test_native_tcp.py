"""What a native door's callers do below HTTP/2: handshakes of TCP that never end, peers that vanish without a word,
storms of RST, and readers with the smallest buffers there are (rows H2-12 and H2-13)."""

import contextlib
import ctypes
import os
import pathlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from sidecar.demo.processes import wait_for
from tests.fix_native import (
    BATCH,
    DATA,
    END_HEADERS,
    HEADERS,
    PREFACE,
    QUESTION,
    SETTINGS,
    TIMEOUT_S,
    WINDOW,
    NativeServer,
    RawClient,
    call_headers,
    emptied,
    frame,
    message,
    native_server,
    sockets,
    wait_for_sockets,
)
from tests.integration.test_native_tls import TlsDoor, tls_door

LONG = os.environ.get("REMIT_FAULTS") == "long"
STORM = 20_000 if LONG else 300
HALF_OPEN = 500
RESET = struct.pack(">ii", 1, 0)  # SO_LINGER: close sends RST
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
DROP_ALL = (ctypes.c_ubyte * 8).from_buffer_copy(struct.pack("@HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0 bytes
PIECE_FIRST = 2048  # bytes that the first turn of a connection takes
SMALLEST = 1  # bytes; the kernel makes it the least that it has
SMALL = message(b"\x0a\0" * 64)  # a batch of 64 empty questions: 133 bytes, and 4 KiB of answers

WIDE = frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30))  # all answers of a test fit


def deaf(client: socket.socket) -> None:
    """What comes to this socket is dropped by the kernel, unacknowledged, as for a machine that is gone."""
    program = struct.pack("@HxxxxxxP", 1, ctypes.addressof(DROP_ALL))
    client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def small_out(door: NativeServer) -> None:
    """Connections inherit the least buffer to send from the socket that they come in by."""
    door.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALLEST)


def let_go(door: NativeServer, cause: str) -> dict:
    """The same of its only connection, which ended for this cause."""
    door.ended(cause)
    return emptied(door)


# ---------------------------------------------------------------- half-open


def half_open(address: tuple[str, int]) -> socket.socket:
    """A connection whose SYN was sent, and which never hears the answer."""
    client = socket.socket()
    client.setblocking(False)
    deaf(client)
    with contextlib.suppress(BlockingIOError):
        client.connect(address)
    return client


def half_open_at(port: int) -> int:
    """How many half-open connections the kernel holds for this port."""
    rows = (row.split() for row in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "03" for row in rows)


def test_half_open_connections_are_the_kernel_s_alone() -> None:
    """H2-13: a flood of SYN that nobody completes costs the door nothing, not an event, and keeps nobody out."""
    with native_server(tcp=True) as door, contextlib.ExitStack() as stack:
        before = sockets()
        unanswered = [stack.enter_context(half_open(door.address)) for _ in range(HALF_OPEN)]
        assert half_open_at(door.address[1]) > 0
        with RawClient(door.address) as client:
            assert client.ask(1) == ("0", "")
            done = door.listener.counters()
            assert (done["accepted"], done["open"], done["closed"]) == (1, 1, {})
        let_go(door, "peer")
        wait_for_sockets(before, *unanswered)


# ---------------------------------------------------------------- peers that vanish


def no_word(_: RawClient) -> None:
    """The handshake of TCP is all there was."""


def half_a_preface(client: RawClient) -> None:
    client.send(PREFACE[:10])


def hello(client: RawClient) -> None:
    client.send(PREFACE + frame(SETTINGS))


@pytest.mark.parametrize("said", [no_word, half_a_preface])
def test_who_vanishes_before_http_2_begins_is_let_go(said: Callable[[RawClient], None]) -> None:
    """H2-13: by the time of a handshake, with its place and its socket."""
    with native_server(tcp=True, handshake_ms=100) as door:
        before = sockets()
        with RawClient(door.address, hello=False) as client:
            said(client)
            deaf(client.socket)
            let_go(door, "handshake")
            wait_for_sockets(before, client.socket)


def test_who_vanishes_before_it_knows_our_settings_is_let_go() -> None:
    """H2-11: by the time in which they must be acknowledged."""
    with native_server(tcp=True, settings_ms=100) as door, RawClient(door.address, hello=False) as client:
        deaf(client.socket)
        hello(client)
        let_go(door, "settings")


def test_who_vanishes_at_rest_is_let_go() -> None:
    """H2-27: a machine that is gone answers no ping."""
    with native_server(tcp=True, keepalive_ms=50, ping_ms=200) as door, RawClient(door.address) as client:
        assert client.ask(1) == ("0", "")
        deaf(client.socket)
        let_go(door, "stall")


def test_who_vanishes_with_answers_under_way_is_let_go() -> None:
    """H2-12: what the socket does not take has its time, and all that waited is given back."""
    with native_server(tcp=True, stream_ms=300) as door:
        small_out(door)
        with RawClient(door.address, settings=struct.pack(">HI", 4, 1 << 30)) as client:
            assert client.ask(1) == ("0", "")
            deaf(client.socket)
            client.send(WIDE + b"".join(client.request(2 * i + 1, SMALL, path=BATCH) for i in range(1, 17)))
            done = let_go(door, "stall")
        assert done["held"] == 0
        assert 1 < done["calls"] <= 17


# ---------------------------------------------------------------- storms of RST


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def part_of_a_call(client: RawClient) -> bytes:
    return frame(HEADERS, END_HEADERS, 1, client.block(call_headers())) + frame(DATA, 0, 1, message(QUESTION)[:9])


def whole_calls(client: RawClient) -> bytes:
    return b"".join(client.request(2 * i + 1) for i in range(8))


@pytest.mark.parametrize("sent", [part_of_a_call, whole_calls])
def test_a_storm_of_resets_within_calls_leaves_nothing(sent: Callable[[RawClient], bytes]) -> None:
    """H2-13: whatever of a call the RST meets is undone: no stream, no byte, no socket stays."""
    with native_server(tcp=True) as door:
        before = sockets()
        for _ in range(STORM):
            client = RawClient(door.address)
            client.send(sent(client))
            reset(client.socket)
        with RawClient(door.address) as client:
            assert client.ask(1) == ("0", "")
        done = emptied(door)
        assert done["accepted"] == STORM + 1
        assert done["closed"] == {"peer": STORM + 1}
        assert done["held"] == 0
        wait_for_sockets(before)
        assert done["calls"] + done["cancelled"] <= done["streams"]
        if sent is part_of_a_call:
            assert done["calls"] == 1


def client_hello(tls: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


@pytest.fixture
def secure(tmp_path: pathlib.Path) -> Iterator[TlsDoor]:
    """A door with few places for handshakes, so that one which is not given back is missed."""
    with tls_door(tmp_path, handshakes=8, handshakes_per_address=8, keepalive_ms=600_000) as made:
        yield made


@pytest.mark.parametrize("part", [1, 60, 10_000], ids=["a byte", "a part", "a hello"])
def test_a_storm_of_resets_within_handshakes_leaves_nothing(secure: TlsDoor, part: int) -> None:
    """H2-13: in the middle of TLS each gives its place back; who has a credential gets in afterwards and meanwhile."""
    greeting = client_hello(secure.context())[:part]
    with secure.svid_client() as other:
        assert other.ask(1) == ("0", "")
        before = sockets()
        for i in range(STORM):
            stranger = socket.create_connection(secure.server.address, TIMEOUT_S)
            stranger.sendall(greeting)
            reset(stranger)
            if i % (STORM // 4) == 0:
                assert other.ask(2 * i + 3) == ("0", "")

        def alone() -> bool:
            # The last of the strangers may still wait to be accepted.
            counted = secure.listener.counters()
            return counted["accepted"] == STORM + 1 and counted["open"] == 1

        wait_for("one connection", alone, TIMEOUT_S)
        wait_for_sockets(before)
    with contextlib.ExitStack() as stack:
        late = [stack.enter_context(secure.svid_client()) for _ in range(8)]
        assert [client.ask(1) for client in late] == [("0", "")] * 8
    done = emptied(secure.server)
    assert done["accepted"] == STORM + 9
    # One that was slower to go than the next ones came made room for them.
    assert set(done["closed"]) <= {"handshake", "peer", "full", "crowd"}
    assert sum(done["closed"].values()) == done["accepted"]
    assert (done["verified"], done["held"]) == (9, 0)


def test_a_storm_of_resets_of_those_who_are_known_leaves_nothing(secure: TlsDoor) -> None:
    """H2-13: a whole handshake, a call on the way, and an RST."""
    before = sockets()
    for _ in range(STORM // 10):
        client = secure.svid_client()
        client.send(part_of_a_call(client))
        reset(client.socket)
    done = emptied(secure.server)
    assert sum(done["closed"].values()) == done["accepted"] == STORM // 10
    assert set(done["closed"]) <= {"peer", "handshake"}
    assert (done["calls"], done["held"]) == (0, 0)
    wait_for_sockets(before)


# ---------------------------------------------------------------- small buffers


def buffered(client: RawClient) -> int:
    """Bytes that kernel buffers of the smallest size hold on both sides, at most."""
    ours = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALLEST)
        return ours + other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_a_reader_with_the_smallest_buffers_renews_no_time() -> None:
    """H2-12: bytes of an answer leave again and again, a few at a time, and the time that all of them have goes on."""
    with native_server(tcp=True, stream_ms=1000) as door, RawClient(door.address) as other:
        small_out(door)
        with RawClient(door.address, settings=struct.pack(">HI", 4, 1 << 30), receive_bytes=SMALLEST) as client:
            asked = WIDE + b"".join(client.request(2 * i + 1, SMALL, path=BATCH) for i in range(10))
            # No frame is cut by the turn that reads them, which would have a time of its own.
            assert len(asked) <= PIECE_FIRST
            client.send(asked)
            other.send(WIDE)
            stream, taken, due = 1, 0, time.monotonic()
            end = due + TIMEOUT_S
            while not door.listener.counters()["closed"] and time.monotonic() < end:
                if time.monotonic() > due:
                    due += 0.05
                    with contextlib.suppress(BlockingIOError):
                        taken += len(client.socket.recv(1024, socket.MSG_DONTWAIT))
                assert other.ask(stream) == ("0", "")
                stream += 2
            wait_for("what it held to be freed", lambda: door.listener.counters()["open"] == 1, TIMEOUT_S)
            done = door.listener.counters()
            assert (done["closed"], done["held"]) == ({"stall": 1}, 0)
            # More than the buffers hold: the door wrote again while the rest waited.
            assert taken > buffered(client)
