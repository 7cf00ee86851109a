"""RFC 9113 section 6: each type of frame.

Where the RFC leaves it open: an acknowledgement of SETTINGS that nobody asked for, a window of a stream past 2^31-1,
and an increment of 0 on a stream end the connection (section 5.4.1). A peer's DATA past the window that we gave is not
seen as such, since the window grows as bytes are parsed; what is held of it is bounded by the size of a message.
"""

import pytest

from tests.fix_http2 import (
    ASK,
    FLOW_CONTROL,
    FRAME_SIZE,
    PROTOCOL,
    Answered,
    Case,
    Connection,
    Ignored,
    body,
    check,
    headers,
    ids,
    lives,
    setting,
    u32,
)
from tests.fix_native import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    RST,
    SETTINGS,
    WINDOW,
    NativeServer,
    RawClient,
    call_headers,
    frame,
)

PUSH_PROMISE = 5
WITH_PRIORITY = 0x20
TABLE, PUSH, STREAMS, INITIAL_WINDOW, MAX_FRAME, HEADER_LIST, NO_PRIORITIES = 1, 2, 3, 4, 5, 6, 9
WINDOW_MAX = 2**31 - 1


def padded(client: RawClient, before: bytes, after: bytes, flags: int = 0) -> bytes:
    """HEADERS with what stands before and after the block given."""
    block = before + client.block(call_headers()) + after
    return frame(HEADERS, END_HEADERS | PADDED | flags, 1, block) + body()


def parts(client: RawClient, count: int) -> bytes:
    """A header block in so many frames."""
    block = client.block(call_headers())
    cuts = [block[i * len(block) // count : (i + 1) * len(block) // count] for i in range(count)]
    frames = [frame(CONTINUATION, END_HEADERS * (i == count - 1), 1, cut) for i, cut in enumerate(cuts)]
    return frame(HEADERS, 0, 1, cuts[0]) + b"".join(frames[1:]) + body()


def on_call(kind: int, payload: bytes, flags: int = 0, stream: int = 1):
    """A frame between the headers and the data of a call."""
    return lambda c: headers(c) + frame(kind, flags, stream, payload) + body()


DATA_CASES = [
    Case("6.1", "DATA on stream 0", frame(DATA, END_STREAM, 0, ASK), Connection((PROTOCOL,))),
    Case("6.1", "padded DATA", lambda c: headers(c) + body(flags=9, data=b"\3" + ASK + b"\0\0\0"), Answered()),
    Case(
        "6.1", "padding that is not zero", lambda c: headers(c) + body(flags=9, data=b"\3" + ASK + b"xyz"), Answered()
    ),
    Case(
        "6.1", "DATA that is padding alone", lambda c: headers(c) + body(flags=8, data=b"\2\0\0") + body(), Answered()
    ),
    Case(
        "6.1",
        "padding as long as the payload",
        lambda c: headers(c) + body(flags=9, data=b"\3\0\0"),
        Connection((PROTOCOL,)),
    ),
    Case(
        "6.1",
        "padded DATA without a length",
        lambda c: headers(c) + body(flags=9, data=b""),
        Connection((FRAME_SIZE, PROTOCOL)),
    ),
    Case("6.1", "empty DATA that ends the stream", lambda c: headers(c) + body(flags=0) + body(data=b""), Answered()),
]
HEADERS_CASES = [
    Case("6.2", "padded HEADERS", lambda c: padded(c, b"\2", b"\0\0"), Answered()),
    Case("6.2", "HEADERS with a priority", lambda c: padded(c, b"\0" + u32(3) + b"\7", b"", WITH_PRIORITY), Answered()),
    Case(
        "6.2",
        "an exclusive priority",
        lambda c: padded(c, b"\0" + u32(1 << 31) + b"\7", b"", WITH_PRIORITY),
        Answered(),
    ),
    Case("6.2", "padding as long as the payload", frame(HEADERS, 12, 1, b"\3ab"), Connection((PROTOCOL,))),
    Case("6.2", "padded HEADERS without a length", frame(HEADERS, 12, 1, b""), Connection((FRAME_SIZE, PROTOCOL))),
    Case(
        "6.2",
        "a priority that is cut",
        frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\0\0"),
        Connection((FRAME_SIZE, PROTOCOL)),
    ),
    Case("6.2", "HEADERS on stream 0", lambda c: headers(c, 0), Connection((PROTOCOL,))),
]
PRIORITY_CASES = [
    Case("6.3", "PRIORITY on an open stream", on_call(PRIORITY, u32(0) + b"\7"), Answered()),
    Case("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, u32(1) + b"\7"), Connection((PROTOCOL,))),
    Case("6.3", "PRIORITY of 4 bytes", lambda c: headers(c) + frame(PRIORITY, 0, 1, u32(0)), Connection((FRAME_SIZE,))),
]
RST_CASES = [
    Case("6.4", "RST_STREAM on stream 0", frame(RST, 0, 0, u32(8)), Connection((PROTOCOL,))),
    Case("6.4", "RST_STREAM of 3 bytes", lambda c: headers(c) + frame(RST, 0, 1, b"\0\0\0"), Connection((FRAME_SIZE,))),
    Case("6.4", "RST_STREAM of 5 bytes", lambda c: headers(c) + frame(RST, 0, 1, b"\0" * 5), Connection((FRAME_SIZE,))),
    Case("6.4", "RST_STREAM of an open stream", lambda c: headers(c) + frame(RST, 0, 1, u32(8)), Ignored()),
]
SETTINGS_CASES = [
    Case("6.5", "an acknowledgement with content", frame(SETTINGS, ACK, 0, setting((3, 1))), Connection((FRAME_SIZE,))),
    Case("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1), Connection((PROTOCOL,))),
    Case("6.5", "SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, b"\0" * 5), Connection((FRAME_SIZE,))),
    Case("6.5", "an acknowledgement nobody asked for", frame(SETTINGS, ACK), Connection((PROTOCOL,))),
    Case("6.5.2", "ENABLE_PUSH 2", frame(SETTINGS, 0, 0, setting((PUSH, 2))), Connection((PROTOCOL,))),
    Case("6.5.2", "ENABLE_PUSH 1", frame(SETTINGS, 0, 0, setting((PUSH, 1))), Ignored()),
    Case(
        "6.5.2",
        "INITIAL_WINDOW_SIZE 2^31",
        frame(SETTINGS, 0, 0, setting((INITIAL_WINDOW, 1 << 31))),
        Connection((FLOW_CONTROL,)),
    ),
    Case(
        "6.5.2", "INITIAL_WINDOW_SIZE 2^31-1", frame(SETTINGS, 0, 0, setting((INITIAL_WINDOW, WINDOW_MAX))), Ignored()
    ),
    Case("6.5.2", "MAX_FRAME_SIZE 16383", frame(SETTINGS, 0, 0, setting((MAX_FRAME, 16_383))), Connection((PROTOCOL,))),
    Case("6.5.2", "MAX_FRAME_SIZE 2^24", frame(SETTINGS, 0, 0, setting((MAX_FRAME, 1 << 24))), Connection((PROTOCOL,))),
    Case("6.5.2", "MAX_FRAME_SIZE 2^24-1", frame(SETTINGS, 0, 0, setting((MAX_FRAME, (1 << 24) - 1))), Ignored()),
    Case("6.5.2", "MAX_HEADER_LIST_SIZE 0", frame(SETTINGS, 0, 0, setting((HEADER_LIST, 0))), Ignored()),
    Case("6.5.2", "MAX_CONCURRENT_STREAMS 0", frame(SETTINGS, 0, 0, setting((STREAMS, 0))), Ignored()),
    Case("6.5.2", "an unknown setting", frame(SETTINGS, 0, 0, setting((0xFFFF, 0xFFFFFFFF))), Ignored()),
    Case(
        "6.5.3",
        "the last of equal settings counts",
        lambda c: frame(SETTINGS, 0, 0, setting((4, 0), (4, 99))) + c.request(1),
        Answered("0"),
    ),
]
OTHER_CASES = [
    Case(
        "6.6",
        "PUSH_PROMISE of a client",
        lambda c: headers(c) + frame(PUSH_PROMISE, 4, 1, u32(2) + b"\x82"),
        Connection((PROTOCOL,)),
    ),
    Case("6.7", "PING on a stream", frame(PING, 0, 1, b"12345678"), Connection((PROTOCOL,))),
    Case("6.7", "PING of 6 bytes", frame(PING, 0, 0, b"123456"), Connection((FRAME_SIZE,))),
    Case("6.7", "PING of 9 bytes", frame(PING, 0, 0, b"123456789"), Connection((FRAME_SIZE,))),
    Case("6.7", "an acknowledgement nobody asked for", frame(PING, ACK, 0, b"12345678"), Ignored()),
    Case("6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, u32(0) * 2), Connection((PROTOCOL,))),
    Case("6.8", "GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, b"\0" * 7), Connection((FRAME_SIZE,))),
    Case("7", "RST_STREAM with an unknown code", lambda c: headers(c) + frame(RST, 0, 1, u32(0xFFFFFFF0)), Ignored()),
]
WINDOW_CASES = [
    Case("6.9", "0 on the connection", frame(WINDOW, 0, 0, u32(0)), Connection((PROTOCOL,))),
    Case("6.9", "0 on a stream", on_call(WINDOW, u32(0)), Connection((PROTOCOL,))),
    Case("6.9", "WINDOW_UPDATE of 3 bytes", frame(WINDOW, 0, 0, b"\0\0\1"), Connection((FRAME_SIZE,))),
    Case("6.9", "WINDOW_UPDATE of 5 bytes", frame(WINDOW, 0, 0, b"\0\0\0\0\1"), Connection((FRAME_SIZE,))),
    Case("6.9", "the reserved bit", frame(WINDOW, 0, 0, u32(1 << 31 | 5)), Ignored()),
    Case("6.9.1", "over 2^31-1 on the connection", frame(WINDOW, 0, 0, u32(WINDOW_MAX)), Connection((FLOW_CONTROL,))),
    Case(
        "6.9.1",
        "over 2^31-1 on a stream",
        lambda c: headers(c) + frame(WINDOW, 0, 1, u32(WINDOW_MAX)),
        Connection((FLOW_CONTROL,)),
    ),
    Case(
        "6.9.2",
        "over 2^31-1 by SETTINGS",
        lambda c: (
            headers(c) + frame(WINDOW, 0, 1, u32(1)) + frame(SETTINGS, 0, 0, setting((INITIAL_WINDOW, WINDOW_MAX)))
        ),
        Connection((FLOW_CONTROL,)),
    ),
]
CONTINUATION_CASES = [
    Case("6.10", "a block in seven frames", lambda c: parts(c, 7), Answered()),
    Case(
        "6.10",
        "CONTINUATION after the end of a block",
        on_call(CONTINUATION, b"\x82", END_HEADERS),
        Connection((PROTOCOL,)),
    ),
    Case(
        "6.10",
        "CONTINUATION after DATA",
        lambda c: headers(c) + body(flags=0) + frame(CONTINUATION, 4, 1),
        Connection((PROTOCOL,)),
    ),
    Case(
        "6.10",
        "CONTINUATION on stream 0",
        frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 4, 0),
        Connection((PROTOCOL,)),
    ),
    Case(
        "6.10",
        "CONTINUATION on another stream",
        frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 4, 3),
        Connection((PROTOCOL,)),
    ),
    Case("6.10", "CONTINUATION without a block", frame(CONTINUATION, END_HEADERS, 1, b"\x82"), Connection((PROTOCOL,))),
]
ALL = (
    DATA_CASES
    + HEADERS_CASES
    + PRIORITY_CASES
    + RST_CASES
    + SETTINGS_CASES
    + OTHER_CASES
    + WINDOW_CASES
    + CONTINUATION_CASES
)


@pytest.mark.parametrize("case", ALL, ids=ids)
def test_frame(quiet_door: NativeServer, case: Case) -> None:
    """RFC 9113 section 6: a frame of the wrong size, place or value; and those that look odd and are none of it."""
    check(quiet_door, case)


def test_6_5_3_every_settings_is_acknowledged_in_order(quiet_door: NativeServer) -> None:
    """RFC 9113 section 6.5.3."""
    with RawClient(quiet_door.address) as client:
        client.send((frame(SETTINGS, 0, 0, setting((4, 9))) + frame(PING, 0, 0, b"12345678")) * 5)
        client.until(lambda: sum(kind == PING for kind, *_ in client.frames) == 5)
        acks = [kind for kind, flags, *_ in client.frames if flags & ACK and kind in (SETTINGS, PING)]
        assert acks.count(SETTINGS) == 6


def test_6_7_a_ping_comes_back_as_it_was(quiet_door: NativeServer) -> None:
    """RFC 9113 section 6.7: the same eight bytes with ACK; an acknowledgement is not answered."""
    with RawClient(quiet_door.address) as client:
        client.send(frame(PING, ACK, 0, b"no reply") + frame(PING, 0, 0, b"\0\xff\1\2\3\4\5\6"))
        client.until(lambda: any(kind == PING for kind, *_ in client.frames))
        assert [one for one in client.frames if one[0] == PING] == [(PING, ACK, 0, b"\0\xff\1\2\3\4\5\6")]


def test_6_8_calls_in_flight_outlive_the_goaway_of_the_peer(quiet_door: NativeServer) -> None:
    """RFC 9113 section 6.8: what a client began before GOAWAY is answered, whatever its code and debug data are."""
    with RawClient(quiet_door.address) as client:
        client.send(headers(client) + frame(GOAWAY, 0, 0, u32(0) + u32(0xABCDEF) + b"good bye") + body())
        client.until(lambda: 1 in client.ended)
        assert client.headers[1]["grpc-status"] == "0"


def test_6_9_1_we_send_no_more_than_the_window_of_a_stream(quiet_door: NativeServer) -> None:
    """RFC 9113 section 6.9.1: byte for byte as the peer gives room."""
    with RawClient(quiet_door.address, settings=setting((INITIAL_WINDOW, 1))) as client:
        client.send(client.request(1))
        client.until(lambda: 1 in client.data)
        assert len(client.data[1]) == 1
        client.send(frame(WINDOW, 0, 1, u32(2)) + frame(PING, 0, 0, b"12345678"))
        client.until(lambda: len(client.data[1]) > 1)
        assert len(client.data[1]) == 3
        client.send(frame(WINDOW, 0, 1, u32(10_000)))
        client.until(lambda: 1 in client.ended)
        assert client.headers[1]["grpc-status"] == "0"


def test_6_9_2_a_window_may_become_negative(quiet_door: NativeServer) -> None:
    """RFC 9113 section 6.9.2: room given later fills what is owed first."""
    with RawClient(quiet_door.address, settings=setting((INITIAL_WINDOW, 4))) as client:
        client.send(client.request(1))
        client.until(lambda: 1 in client.data)
        client.send(frame(SETTINGS, 0, 0, setting((INITIAL_WINDOW, 1))) + frame(WINDOW, 0, 1, u32(4)))
        client.until(lambda: len(client.data[1]) > 4)
        assert len(client.data[1]) == 5
        client.send(frame(SETTINGS, 0, 0, setting((INITIAL_WINDOW, 65_535))))
        client.until(lambda: 1 in client.ended)


def test_6_9_1_we_send_no_more_than_the_window_of_the_connection(quiet_door: NativeServer) -> None:
    """RFC 9113 section 6.9.1: 65,535 bytes for all streams together until the peer gives more."""
    with RawClient(quiet_door.address) as client:
        stream = 1
        while not client.data or stream - 2 in client.ended:
            client.send(client.request(stream))
            client.send(frame(PING, 0, 0, u32(stream) * 2))
            pong = (PING, ACK, 0, u32(stream) * 2)
            client.until(lambda pong=pong: pong in client.frames)
            stream += 2
        assert sum(map(len, client.data.values())) == 65_535
        client.send(frame(WINDOW, 0, 0, u32(1 << 20)))
        client.until(lambda: stream - 2 in client.ended)
        lives(client)


def test_6_9_a_window_is_given_back_as_data_is_taken(quiet_door: NativeServer) -> None:
    """RFC 9113 section 6.9: a long-lived connection may send far more than one window."""
    with RawClient(quiet_door.address) as client:
        for stream in range(1, 201, 2):
            client.send(frame(WINDOW, 0, 0, u32(1 << 16)))
            assert client.ask(stream, path="/none", body=b"\0\0\0\x3f\0" + b"x" * 16_128)[0] == "12"
        assert len([1 for kind, _, stream, _ in client.frames if (kind, stream) == (WINDOW, 0)]) >= 2
