"""What a hostile HTTP/2 peer gets from a native door (rows H2-01 to H2-15, H2-21): bounded work, a clear end, and the
next caller is served. Every test asserts the work that was done, not the time it took."""

import contextlib
import statistics
import struct
import time
from collections.abc import Callable

import pytest

from tests.fix_native import (
    ACK,
    BATCH,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    QUESTION,
    REFUSED_STREAM,
    RST,
    SETTINGS,
    TIMEOUT_S,
    WINDOW,
    Gone,
    NativeServer,
    RawClient,
    call_headers,
    frame,
    message,
    native_server,
)

RESETS_BURST, FAULTS_BURST, FRAMES_BURST, STREAMS = 100, 50, 1000, 256
SLICE = 16_384
COMPRESSION_ERROR = 9
CALM = struct.pack(">I", CANCEL)
WIDE = frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30))  # all answers of a test fit


def served(door: NativeServer) -> None:
    """The door still answers, on a new connection."""
    with RawClient(door.address) as client:
        assert client.ask(1) == ("0", "")


def test_rapid_reset_ends_the_connection(door: NativeServer) -> None:
    """H2-01: 2,000 calls, each reset at once, in one write: at most the burst is looked at, none is decided twice."""
    with RawClient(door.address) as client:
        calls = [client.request(2 * i + 1) + frame(RST, 0, 2 * i + 1, CALM) for i in range(2000)]
        client.send(b"".join(calls))
        client.drain()
        assert client.goaway[-1][1] == ENHANCE_YOUR_CALM
    done = door.ended("resets")
    # A call that was answered before its reset was read gives one back.
    assert done["resets_in"] <= RESETS_BURST + done["calls"]
    assert done["streams"] <= done["resets_in"] + 1
    assert done["calls"] < RESETS_BURST
    assert done["calls"] + done["cancelled"] <= done["streams"]
    served(door)


def test_resets_among_answered_calls_are_no_attack(door: NativeServer) -> None:
    """H2-01: an Envoy resets the calls of clients that gave up; each call that it lets us answer excuses one."""
    with RawClient(door.address) as client:
        client.send(frame(WINDOW, 0, 0, struct.pack(">I", 1 << 24)))
        for i in range(1, 1200, 4):
            assert client.ask(i) == ("0", "")
            client.send(client.request(i + 2) + frame(RST, 0, i + 2, CALM))
        assert client.ask(1201) == ("0", "")
        assert not client.goaway
    done = door.ended("peer")
    assert done["resets_in"] == 300


def test_what_came_before_too_many_resets_is_answered(door: NativeServer) -> None:
    """H2-01: the end is for what comes after; whole calls that are there already have their answers first."""
    calls = range(1, 11, 2)
    with RawClient(door.address) as client:
        whole = b"".join(client.request(i) for i in calls)
        given_up = [
            frame(HEADERS, END_HEADERS, i, client.block(call_headers())) + frame(RST, 0, i, CALM)
            for i in range(11, 11 + 4 * RESETS_BURST, 2)
        ]
        client.send(whole + b"".join(given_up))
        client.drain()
        assert client.goaway[-1][1] == ENHANCE_YOUR_CALM
        assert [client.headers[i]["grpc-status"] for i in calls] == ["0"] * len(calls)
    done = door.ended("resets")
    assert done["resets_in"] <= RESETS_BURST + len(calls)
    served(door)


def window_zero(client: RawClient, i: int) -> bytes:
    return client.request(i) + frame(WINDOW, 0, i, struct.pack(">I", 0))


def window_overflow(client: RawClient, i: int) -> bytes:
    big = struct.pack(">I", 0x7FFFFFFF)
    return frame(HEADERS, END_HEADERS, i, client.block(call_headers())) + frame(WINDOW, 0, i, big)


def window_zero_while_open(client: RawClient, i: int) -> bytes:
    return frame(HEADERS, END_HEADERS, i, client.block(call_headers())) + frame(WINDOW, 0, i, struct.pack(">I", 0))


def window_overflow_after_end(client: RawClient, i: int) -> bytes:
    return client.request(i) + frame(WINDOW, 0, i, struct.pack(">I", 0x7FFFFFFF))


def window_too_short(client: RawClient, i: int) -> bytes:
    return client.request(i) + frame(WINDOW, 0, i, b"xxx")


def data_after_end(client: RawClient, i: int) -> bytes:
    return client.request(i) + frame(DATA, END_STREAM, i, b"x")


def headers_after_end(client: RawClient, i: int) -> bytes:
    return client.request(i) + frame(HEADERS, END_HEADERS | END_STREAM, i, client.block(call_headers()))


def priority_of_itself(client: RawClient, i: int) -> bytes:
    return client.request(i) + frame(PRIORITY, 0, i, struct.pack(">IB", i, 1))


def priority_too_short(client: RawClient, i: int) -> bytes:
    return client.request(i) + frame(PRIORITY, 0, i, b"xxx")


@pytest.mark.parametrize(
    "provoke",
    [
        window_zero,
        window_zero_while_open,
        window_overflow,
        window_overflow_after_end,
        window_too_short,
        data_after_end,
        headers_after_end,
        priority_of_itself,
        priority_too_short,
    ],
)
def test_a_peer_that_makes_us_reset_is_sent_away(
    door: NativeServer, provoke: Callable[[RawClient, int], bytes]
) -> None:
    """H2-02 (MadeYouReset): by each of six ways, at most the burst of resets is sent, then the connection ends."""
    with RawClient(door.address) as client:
        client.send(b"".join(provoke(client, 2 * i + 1) for i in range(2000)))
        client.drain()
        assert client.goaway
        assert client.goaway[-1][1] != 0
    done = door.listener.counters()
    assert set(done["closed"]) <= {"faults", "protocol", "flood"}
    assert done["resets_out"] <= FAULTS_BURST + 1
    assert done["calls"] <= STREAMS
    served(door)


@pytest.mark.parametrize(("size", "count"), [(1024, 400), (0, 10_000)])
def test_a_header_block_without_end_is_cut_off(door: NativeServer, size: int, count: int) -> None:
    """H2-03: CONTINUATION frames without END_HEADERS, large or empty."""
    with RawClient(door.address) as client:
        client.send(frame(HEADERS, 0, 1, client.block(call_headers())))
        client.send(frame(CONTINUATION, 0, 1, b"\0" * size) * count)
        client.drain()
    done = door.ended("protocol")
    assert done["calls"] == 0
    assert done["headers_in"] <= 64 + 10
    served(door)


@pytest.mark.parametrize(("count", "cause"), [(300, "settings"), (5000, "faults")])
def test_streams_over_the_limit_are_refused(door: NativeServer, count: int, cause: str) -> None:
    """H2-04: no more streams than the limit are ever held; a peer that opens thousands more is sent away, and one that
    opens a few when it does not acknowledge the limit in time."""
    with RawClient(door.address, hello=False) as client:
        client.send(PREFACE + frame(SETTINGS))
        block = [frame(HEADERS, END_HEADERS, 2 * i + 1, client.block(call_headers())) for i in range(count)]
        client.send(b"".join(block))
        client.drain()
        assert client.goaway
    assert door.ended(cause)["streams"] <= STREAMS
    served(door)


def test_streams_opened_before_our_limit_was_known_are_no_fault(door: NativeServer) -> None:
    """H2-04: a peer cannot keep a limit that it has not heard of; what is over it is refused, and the others go on."""
    over = 1000
    with RawClient(door.address, hello=False) as client:
        client.send(PREFACE + frame(SETTINGS))
        streams = [2 * i + 1 for i in range(STREAMS + over)]
        client.send(b"".join(frame(HEADERS, END_HEADERS, i, client.block(call_headers())) for i in streams))
        client.until(lambda: len(client.resets) == over)
        client.send(frame(SETTINGS, ACK))
        # What was on its way for the streams that are gone is no fault either.
        client.send(b"".join(frame(DATA, END_STREAM, i, message(QUESTION)) for i in streams))
        client.until(lambda: len(client.ended) == STREAMS)
        assert set(client.resets) == set(streams[STREAMS:])
        assert set(client.resets.values()) == {REFUSED_STREAM}
        assert client.ask(streams[-1] + 2) == ("0", "")
    assert door.listener.counters()["calls"] == STREAMS + 1


def test_streams_without_end_before_our_limit_was_known_end_the_connection() -> None:
    """H2-04: good faith has a bound."""
    with native_server(settings_ms=TIMEOUT_S * 1000) as door:
        with RawClient(door.address, hello=False) as client:
            block = [frame(HEADERS, END_HEADERS, 2 * i + 1, client.block(call_headers())) for i in range(6000)]
            client.send(PREFACE + frame(SETTINGS) + b"".join(block))
            client.drain()
        done = door.ended("faults")
        assert done["streams"] <= STREAMS
        assert done["resets_out"] < 5000
        served(door)


def test_a_connection_with_more_to_do_waits_for_its_turn(door: NativeServer) -> None:
    """H2-12: who sends much at once is served piece by piece, and calls that came later come in between."""
    many, busy = 250, 20
    clients = [RawClient(door.address) for _ in range(busy)]
    with RawClient(door.address) as other:
        assert other.ask(1) == ("0", "")
        for client in clients:
            client.send(b"".join(client.request(2 * i + 1) for i in range(many)))
        before = door.listener.counters()["calls"]
        assert other.ask(3) == ("0", "")
        assert door.listener.counters()["calls"] - before < busy * many
        for client in clients:
            client.until(lambda client=client: len(client.ended) == many)
            client.socket.close()
    assert door.listener.counters()["calls"] == busy * many + 2


def test_a_single_turn_while_others_ask_little(door: NativeServer) -> None:
    """H2-12: between two looks at who asks little no more is done for the busy than fits a turn, so what a call mostly
    waits for is the turn under way, or one more that began since. Calls are dear here, so that a turn is long to us."""
    many, busy, turn = 150, 60, 32
    dear = message(b"\x0a\0" * 16)
    clients = [RawClient(door.address) for _ in range(busy)]
    with RawClient(door.address) as other:
        assert other.ask(1) == ("0", "")
        calls = [b"".join(c.request(2 * i + 1, dear, path=BATCH) for i in range(many)) for c in clients]
        for client, asked in zip(clients, calls, strict=True):
            client.send(WIDE + asked)
        waited, stream = [], 3
        while (before := door.listener.counters()["calls"]) < busy * many:
            assert other.ask(stream) == ("0", "")
            waited.append(door.listener.counters()["calls"] - before)
            stream += 2
        assert statistics.median(waited) <= 2 * turn + 1
    for client in clients:
        client.until(lambda client=client: len(client.ended) == many)
        client.socket.close()
    assert door.listener.counters()["calls"] == busy * many + 1 + len(waited)


@pytest.mark.parametrize(
    "frames",
    [
        lambda c: frame(HEADERS, END_HEADERS, 2, c.block(call_headers())),
        lambda c: c.request(5) + c.request(3),
        lambda _: frame(DATA, END_STREAM, 7, b"x"),
        lambda _: frame(RST, 0, 9, CALM),
        lambda _: frame(WINDOW, 0, 9, struct.pack(">I", 1)),
        lambda _: frame(DATA, END_STREAM, 0, b"x"),
        lambda c: frame(HEADERS, END_HEADERS, 0, c.block(call_headers())),
    ],
    ids=["even id", "id going down", "data on idle", "reset of idle", "window of idle", "data on 0", "headers on 0"],
)
def test_frames_on_streams_that_cannot_have_them_end_the_connection(
    door: NativeServer, frames: Callable[[RawClient], bytes]
) -> None:
    """H2-05, RFC 9113 section 5.1: a connection error, and no decision from such a stream."""
    with RawClient(door.address) as client:
        client.send(frames(client))
        client.drain()
        assert client.goaway
    assert door.ended("protocol")["calls"] <= 1
    served(door)


FLOODS = {
    "ping": frame(PING, 0, 0, b"12345678"),
    "settings": frame(SETTINGS),
    "window": frame(WINDOW, 0, 0, struct.pack(">I", 1)),
    "priority": frame(PRIORITY, 0, 3, struct.pack(">IB", 0, 1)),
    "unknown": frame(0xEE, 0, 0, b"x"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_that_ask_nothing_run_out(door: NativeServer, name: str) -> None:
    """H2-06: 5,000 frames from a peer that reads no reply: no more than the burst is parsed."""
    with RawClient(door.address) as client:
        client.send(FLOODS[name] * 5000)
        done = door.ended("flood")
    assert done["frames_in"] <= FRAMES_BURST + 200
    served(door)


def test_empty_data_runs_out(door: NativeServer) -> None:
    """H2-06: DATA frames without data on an open stream."""
    with RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())) + frame(DATA, 0, 1) * 5000)
        done = door.ended("flood")
    assert done["frames_in"] <= FRAMES_BURST + 200
    served(door)


def test_work_gives_frames_back(door: NativeServer) -> None:
    """A busy client with a PING per call is no flood."""
    with RawClient(door.address) as client:
        client.send(frame(WINDOW, 0, 0, struct.pack(">I", 1 << 24)))
        for i in range(1500):
            client.send(FLOODS["ping"])
            assert client.ask(2 * i + 1) == ("0", "")
    assert door.ended("peer")["calls"] == 1500


def amplified(client: RawClient, stream: int, value: int, count: int) -> bytes:
    """One header of `value` bytes put into the dynamic table, then named `count` times by one byte each."""
    block = client.block(call_headers()) + b"\x40\x01x\x7f" + _varint(value - 127) + b"v" * value + b"\xbe" * count
    parts = [block[i : i + 16384] for i in range(0, len(block), 16384)]
    frames = [frame(HEADERS, END_STREAM | (END_HEADERS if len(parts) == 1 else 0), stream, parts[0])]
    frames += [frame(CONTINUATION, END_HEADERS if part is parts[-1] else 0, stream, part) for part in parts[1:]]
    return b"".join(frames)


def _varint(n: int) -> bytes:
    out = b""
    while n >= 128:
        out += bytes((n & 127 | 128,))
        n >>= 7
    return out + bytes((n,))


def test_hpack_amplification_stops_at_the_header_limit(door: NativeServer) -> None:
    """H2-07: 12,000 references to one entry: 64 headers are looked at, the stream is reset, the connection lives."""
    with RawClient(door.address) as client:
        client.send(amplified(client, 1, 200, 12_000))
        client.until(lambda: 1 in client.resets)
        assert client.resets[1] == ENHANCE_YOUR_CALM
        done = door.listener.counters()
        assert done["headers_in"] == 65
        assert done["calls"] == 0
        client.encoder = type(client.encoder)()
        assert client.ask(3, path="/none") == ("12", "request.unimplemented")


def test_an_http2_bomb_is_refused_before_it_holds_anything(door: NativeServer) -> None:
    """H2-08: 100 streams of 12,000 references each, behind a closed window: nothing is kept, the connection ends."""
    zero_window = struct.pack(">HI", 4, 0)
    with RawClient(door.address, settings=zero_window) as client:
        client.send(b"".join(amplified(client, 2 * i + 1, 200, 12_000) for i in range(100)))
        done = door.ended("faults")
    assert done["headers_in"] <= 65 * (FAULTS_BURST + 2)
    assert done["buffered_max"] == 0
    served(door)


@pytest.mark.parametrize(
    "block",
    [
        b"\x3f\xe1\xff\x03",  # table size update to 65,536, over our SETTINGS
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # an index that overflows
        b"\xff\x80\x7f",  # an index past both tables
        b"\x00\x81\xff\x01a",  # Huffman text that is padding alone and too long
        b"\x82\x3f\x01\x84",  # table size update in the middle of a block
        b"\x40\x0anot-enough",
    ],
    ids=["size", "zero", "overflow", "beyond", "huffman", "late update", "short"],
)
def test_a_broken_header_block_ends_the_connection(door: NativeServer, block: bytes) -> None:
    """H2-09, RFC 7541: COMPRESSION_ERROR; the state of the table is unknown, so nothing after it is read."""
    with RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block) + client.request(3))
        client.drain()
        assert [code for _, code in client.goaway] == [COMPRESSION_ERROR]
    assert door.ended("protocol")["calls"] == 0
    served(door)


@pytest.mark.parametrize("size", [15_000, 30_000, 60_000])
def test_a_large_header_list_resets_its_stream(door: NativeServer, size: int) -> None:
    """H2-10: over 16 KiB of names and values; below it the call is answered."""
    with RawClient(door.address) as client:
        block = client.block([*call_headers(), ("x-large", "v" * size)])
        parts = [block[i : i + 16000] for i in range(0, len(block), 16000)]
        client.send(frame(HEADERS, END_HEADERS * (len(parts) == 1), 1, parts[0]))
        for part in parts[1:]:
            client.send(frame(CONTINUATION, END_HEADERS * (part is parts[-1]), 1, part))
        client.send(frame(DATA, END_STREAM, 1, message(QUESTION)))
        client.until(lambda: 1 in client.ended or 1 in client.resets)
        assert (1 in client.ended) == (size == 15_000)
    assert door.listener.counters()["calls"] == (size == 15_000)


def test_settings_that_nobody_acknowledges_end_the_connection() -> None:
    """H2-11: a peer that never acknowledges is not bound by our limits, so it does not stay."""
    with native_server(settings_ms=100) as door, RawClient(door.address, hello=False) as client:
        client.send(PREFACE + frame(SETTINGS))
        client.drain()
        door.ended("settings")


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, PREFACE + frame(SETTINGS)[:5]])
def test_a_handshake_that_does_not_end_is_ended(sent: bytes) -> None:
    """H2-12: part of the preface, or no SETTINGS."""
    with native_server(handshake_ms=100) as door, RawClient(door.address, hello=False) as client:
        client.send(sent)
        client.drain()
        door.ended("handshake")


def test_a_request_that_does_not_end_is_reset() -> None:
    """H2-12: a stream without END_STREAM is held for its time only; its connection lives."""
    with native_server(stream_ms=300) as door, RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())) + frame(DATA, 0, 1, b"\0\0"))
        client.until(lambda: 1 in client.resets)
        assert client.resets[1] == CANCEL
        assert client.ask(3) == ("0", "")
        assert door.listener.counters()["calls"] == 1


def test_requests_that_stall_together_are_no_fault_of_their_connection() -> None:
    """H2-12: more than the burst of faults come to their time at once; others on the connection go on."""
    stalled = range(1, 121, 2)
    with native_server(stream_ms=300) as door, RawClient(door.address) as client:
        client.send(b"".join(frame(HEADERS, END_HEADERS, i, client.block(call_headers())) for i in stalled))
        client.until(lambda: set(client.resets) == set(stalled))
        assert set(client.resets.values()) == {CANCEL}
        assert client.ask(201) == ("0", "")
        assert door.listener.counters()["closed"] == {}


BEGUN = {
    "frame header": frame(PING)[:5],
    "frame": frame(PING, 0, 0, b"1234", length=8),
    "header block": frame(HEADERS, 0, 1, b"\x83"),
    "frame of a header block": frame(HEADERS, 0, 1, b"\x83", length=100),
    "second frame of a header block": frame(HEADERS, 0, 1, b"\x83") + frame(CONTINUATION, END_HEADERS, 1)[:8],
}


@pytest.mark.parametrize("begun", BEGUN.values(), ids=list(BEGUN))
def test_what_began_must_end(begun: bytes) -> None:
    """H2-12: a frame or a header block that stops in the middle keeps its connection no longer than a stream has."""
    with native_server(stream_ms=300) as door, RawClient(door.address) as client:
        client.send(begun)
        client.drain()
        assert door.ended("stall")["calls"] == 0


def test_headers_that_drip_are_bounded() -> None:
    """H2-12: a byte now and then renews nothing."""
    with native_server(stream_ms=300) as door, RawClient(door.address) as client:
        client.send(frame(HEADERS, 0, 1, b"\x83", length=SLICE))
        client.socket.settimeout(0.02)
        for _ in range(SLICE):
            try:
                client.drain()
                break
            except TimeoutError:
                client.send(b"\x83")
        door.ended("stall")


def test_frames_that_end_one_after_the_other_are_no_stall() -> None:
    """H2-12: a peer whose every write stops in the middle of the next frame is well."""
    with native_server(stream_ms=200) as door, RawClient(door.address) as client:
        rest, stream = WIDE, 1
        end = time.monotonic() + 1
        while time.monotonic() < end:
            call, following = client.request(stream), frame(PING, 0, 0, struct.pack(">Q", stream))
            client.send(rest + call + following[:11])
            rest = following[11:]
            client.until(lambda stream=stream: stream in client.ended)
            stream += 2
        assert door.listener.counters()["closed"] == {}


def test_a_connection_without_a_request_is_drained() -> None:
    """H2-12: the first request is due soon; after it the connection may rest for longer."""
    with native_server(first_request_ms=200) as door, RawClient(door.address) as used:
        assert used.ask(1) == ("0", "")
        with RawClient(door.address) as client:
            client.drain()
            assert {code for _, code in client.goaway} == {0}
        assert door.ended("idle")["streams"] == 1
        assert used.ask(3) == ("0", "")


def test_an_answer_that_nobody_takes_is_dropped() -> None:
    """H2-12: a reader with a closed window holds an answer for its time only."""
    zero_window = struct.pack(">HI", 4, 0)
    with native_server(stream_ms=300) as door, RawClient(door.address, settings=zero_window) as client:
        client.send(client.request(1))
        client.until(lambda: 1 in client.resets)
        assert client.resets[1] == CANCEL
        assert 1 not in client.data


def test_a_reader_that_takes_a_little_now_and_then_is_let_go() -> None:
    """H2-12 below HTTP/2: what waits for the socket has its time as a whole, however often a bit of it leaves."""
    large = message(b"".join(b"\x0a" + bytes((len(QUESTION),)) + QUESTION for _ in range(64)))
    with native_server(stream_ms=1000) as door, RawClient(door.address) as other:
        other.send(WIDE)
        with RawClient(door.address, settings=struct.pack(">HI", 4, 1 << 30)) as client:
            client.send(WIDE + b"".join(client.request(2 * i + 1, large, path=BATCH) for i in range(STREAMS)))
            stream, due = 1, time.monotonic()
            end = due + 10
            while not door.listener.counters()["closed"] and time.monotonic() < end:
                if time.monotonic() > due:
                    due += 0.5
                    client.socket.recv(32_768)
                assert other.ask(stream) == ("0", "")
                stream += 2
            assert door.listener.counters()["closed"] == {"stall": 1}


def test_an_answer_that_is_taken_byte_by_byte_has_its_time() -> None:
    """H2-08: a window that opens by a byte now and then holds an answer no longer than one that stays closed."""
    with native_server(stream_ms=300) as door, RawClient(door.address, settings=struct.pack(">HI", 4, 0)) as client:
        client.send(client.request(1))
        client.socket.settimeout(0.02)
        for _ in range(1000):
            with contextlib.suppress(TimeoutError):
                client.until(lambda: 1 in client.resets)
                break
            client.send(frame(WINDOW, 0, 1, struct.pack(">I", 1)))
        assert client.resets == {1: CANCEL}
        assert 0 < len(client.data[1]) < 100
        assert door.listener.counters()["held"] == 0


def begun(client: RawClient, stream: int, frames: int) -> bytes:
    """So many pieces of 12,000 bytes of a message that is not whole."""
    head = frame(HEADERS, END_HEADERS, stream, client.block(call_headers()))
    return (
        head
        + frame(DATA, 0, stream, message(b"x" * 11_995, length=100_000))
        + (frame(DATA, 0, stream, b"x" * 12_000) * (frames - 1))
    )


def test_a_connection_holds_so_much_and_no_more() -> None:
    """H2-12: a request for which its connection has no room is refused, and the next one is answered."""
    with native_server(held_bytes=16_384) as door, RawClient(door.address) as client:
        client.send(begun(client, 1, 2))
        client.until(lambda: 1 in client.ended)
        assert (client.headers[1]["grpc-status"], client.headers[1]["grpc-message"]) == ("8", "request.memory")
        assert client.ask(3) == ("0", "")
        assert door.listener.counters()["buffered_max"] <= 16_384


def test_a_door_holds_so_much_and_no_more() -> None:
    """H2-12: what one connection holds counts for all; when it lets go the others are answered again."""
    with native_server(door_held_bytes=16_384) as door, RawClient(door.address) as holding:
        holding.send(begun(holding, 1, 2) + frame(PING, 0, 0, b"all read"))
        holding.until(lambda: (PING, ACK, 0, b"all read") in holding.frames)
        assert door.listener.counters()["held"] == 32_768
        with RawClient(door.address) as other:
            assert other.ask(1) == ("8", "request.memory")
            holding.send(frame(RST, 0, 1, CALM) + frame(PING, 0, 0, b"let go  "))
            holding.until(lambda: (PING, ACK, 0, b"let go  ") in holding.frames)
            assert door.listener.counters()["held"] == 0
            assert other.ask(3) == ("0", "")


def test_answers_that_nobody_takes_are_bounded(door: NativeServer) -> None:
    """H2-12: behind a closed window answers pile up to the bound of streams; who asks for more is sent away."""
    large = message(b"".join(b"\x0a" + bytes((len(QUESTION),)) + QUESTION for _ in range(64)))
    with RawClient(door.address, settings=struct.pack(">HI", 4, 0)) as client:
        for i in range(3 * STREAMS):
            client.send(client.request(2 * i + 1, large, path=BATCH))
        client.drain()
    done = door.listener.counters()
    assert done["calls"] <= STREAMS
    assert done["buffered_max"] < 6 << 20
    served(door)


def test_connections_over_the_limit_are_closed_at_once() -> None:
    """H2-13: those that are open go on."""
    with native_server(connections=3) as door:
        clients = [RawClient(door.address) for _ in range(3)]
        assert [client.ask(1) for client in clients] == [("0", "")] * 3
        with RawClient(door.address) as extra:
            extra.drain()
        assert door.listener.counters()["closed"] == {"full": 1}
        assert [client.ask(3) for client in clients] == [("0", "")] * 3
        for client in clients:
            client.socket.close()


def test_an_exchange_cut_anywhere_is_never_decided(door: NativeServer) -> None:
    """H2-14: the peer leaves after each byte of a whole exchange: no decision from a part of a message."""
    with RawClient(door.address) as client:
        whole = PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK) + client.request(1)
    for cut in range(len(whole)):
        with RawClient(door.address, hello=False) as client:
            client.send(whole[:cut])
    done = door.ended("peer", len(whole) + 1)
    assert done["calls"] == 0
    served(door)


@pytest.mark.parametrize(
    "data",
    [
        frame(SETTINGS, payload=b"\0" * 16_386),
        frame(DATA, 0, 1, b"", length=0xFFFFFF),
        frame(PING, 0, 0, b"1234567"),
        frame(SETTINGS, ACK, 0, b"\0" * 6),
        frame(SETTINGS, 0, 1),
        frame(WINDOW, 0, 0, b"\0\0\0"),
        frame(GOAWAY, 0, 1, b"\0" * 8),
    ],
    ids=["too long", "16 MiB", "short ping", "ack with content", "settings on 1", "short window", "goaway on 1"],
)
def test_a_frame_of_the_wrong_size_or_place_ends_the_connection(door: NativeServer, data: bytes) -> None:
    """H2-15, RFC 9113 section 4.2."""
    with RawClient(door.address) as client:
        client.send(data)
        client.drain()
        assert client.goaway
    assert door.ended("protocol")["calls"] == 0
    served(door)


def test_more_padding_than_payload_ends_the_connection(door: NativeServer) -> None:
    """H2-15, RFC 9113 section 6.1."""
    with RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())))
        client.send(frame(DATA, PADDED | END_STREAM, 1, b"\xff" + b"x" * 10))
        client.drain()
    assert door.ended("protocol")["calls"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"X-Upper", b"v"),
        (b"x-cr", b"a\rb"),
        (b"x-lf", b"a\nb: c"),
        (b"x-nul", b"a\0b"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"x y", b"v"),
        (b"", b"v"),
        (b":unknown", b"v"),
        (b":path", b"/again"),
    ],
)
def test_an_illegal_header_resets_its_stream(door: NativeServer, name: bytes, value: bytes) -> None:
    """H2-21, RFC 9113 sections 8.2 and 8.3: never dropped in silence, never passed on."""
    with RawClient(door.address) as client:
        block = client.block(call_headers()) + b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        client.send(frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, message(QUESTION)))
        client.until(lambda: 1 in client.resets or 1 in client.ended)
        assert 1 in client.resets
        assert door.listener.counters()["calls"] == 0
        assert client.ask(3) == ("0", "")


def test_a_stop_tells_the_peer_twice_and_answers_what_came_before(door: NativeServer) -> None:
    """H2-24, RFC 9113 section 6.8: GOAWAY(2^31-1), PING, and after its reply GOAWAY with the last stream."""
    with RawClient(door.address) as client:
        assert client.ask(1) == ("0", "")
        client.send(frame(HEADERS, END_HEADERS, 3, client.block(call_headers())))
        assert client.ask(5) == ("0", "")
        door.listener.stop(20_000)
        client.until(lambda: client.goaway and any(kind == PING for kind, *_ in client.frames))
        assert client.goaway == [(2**31 - 1, 0)]
        client.send(client.request(7))
        client.send(frame(PING, ACK, 0, next(payload for kind, _, _, payload in client.frames if kind == PING)))
        client.until(lambda: len(client.goaway) == 2)
        assert client.goaway[1] == (7, 0)
        assert 7 in client.ended
        client.send(frame(DATA, END_STREAM, 3, message(QUESTION)))
        client.drain()
        assert client.headers[3]["grpc-status"] == "0"
    door.stop(0)
    assert door.listener.counters()["closed"] == {"drain": 1}
    assert door.listener.counters()["calls"] == 4


def test_a_peer_that_ignores_the_end_is_closed_when_grace_is_over(door: NativeServer) -> None:
    """H2-24: an open stream does not keep the door from closing."""
    with RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())))
        assert client.ask(3) == ("0", "")
        door.stop(100)
        client.drain()
    assert door.listener.counters()["closed"] == {"drain": 1}


def test_idle_and_old_connections_are_drained() -> None:
    """Idle and age: GOAWAY without an error, then the end."""
    for options, cause in (({"idle_ms": 100}, "idle"), ({"age_ms": 100}, "age")):
        with native_server(**options) as door, RawClient(door.address) as client:
            assert client.ask(1) == ("0", "")
            with pytest.raises(Gone):
                client.until(lambda: False)
            assert {code for _, code in client.goaway} == {0}
            door.ended(cause)
