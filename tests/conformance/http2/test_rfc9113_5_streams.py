"""RFC 9113 section 5: states and identifiers of streams, and errors.

A frame on a closed stream may be ignored (section 5.1, "closed"); DATA is. A second HEADERS of an identifier is a
connection error. DATA and HEADERS after END_STREAM are a connection error where the RFC asks for a stream error at
least (section 5.4.1 allows that).
"""

import pytest

from tests.fix_http2 import (
    LATER,
    NO_ERROR,
    PROTOCOL,
    REFUSED,
    STREAM_CLOSED,
    Answered,
    Case,
    Connection,
    Ignored,
    Stream,
    body,
    check,
    headers,
    ids,
    lives,
    setting,
    u32,
)
from tests.fix_native import (
    CANCEL,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST,
    SETTINGS,
    WINDOW,
    NativeServer,
    RawClient,
    call_headers,
    frame,
    native_server,
)

# Our answer waits, so that a stream whose request has ended stays half-closed.
HELD = setting((4, 0))
RESET = frame(RST, 0, 1, u32(CANCEL))
OPEN_WINDOW = frame(SETTINGS, 0, 0, setting((4, 65_535)))
STREAMS = 4

CASES = [
    Case("5.1", "DATA on an idle stream", body(), Connection((PROTOCOL,))),
    Case("5.1", "RST_STREAM on an idle stream", RESET, Connection((PROTOCOL,))),
    Case("5.1", "WINDOW_UPDATE on an idle stream", frame(WINDOW, 0, 1, u32(9)), Connection((PROTOCOL,))),
    Case("5.1", "CONTINUATION on an idle stream", frame(CONTINUATION, 4, 1, b"\x82"), Connection((PROTOCOL,))),
    Case("5.1", "PRIORITY on an idle stream", frame(PRIORITY, 0, 1, u32(0) + b"\7"), Ignored()),
    Case("5.1", "DATA when half-closed", lambda c: c.request(1) + body(), Connection((STREAM_CLOSED,), 1), HELD),
    Case(
        "5.1",
        "HEADERS when half-closed",
        lambda c: c.request(1) + headers(c, 1, 5),
        Connection((STREAM_CLOSED,), 1),
        HELD,
    ),
    Case(
        "5.1",
        "CONTINUATION when half-closed",
        lambda c: c.request(1) + frame(CONTINUATION, END_HEADERS, 1, b"\x82"),
        Connection((PROTOCOL, STREAM_CLOSED), 1),
        HELD,
    ),
    Case(
        "5.1",
        "WINDOW_UPDATE when half-closed",
        lambda c: c.request(1) + frame(WINDOW, 0, 1, u32(9)) + OPEN_WINDOW,
        Answered(),
        HELD,
    ),
    Case(
        "5.1",
        "PRIORITY when half-closed",
        lambda c: c.request(1) + frame(PRIORITY, 0, 1, u32(0) + b"\7") + OPEN_WINDOW,
        Answered(),
        HELD,
    ),
    Case("5.1", "RST_STREAM when half-closed", lambda c: c.request(1) + RESET + OPEN_WINDOW, Ignored(), HELD),
    Case("5.1", "DATA after the peer's reset", lambda c: headers(c) + RESET + body(), Ignored()),
    Case(
        "5.1",
        "HEADERS after the peer's reset",
        lambda c: headers(c) + RESET + headers(c),
        Connection((STREAM_CLOSED, PROTOCOL)),
    ),
    Case(
        "5.1",
        "CONTINUATION after the peer's reset",
        lambda c: headers(c) + RESET + frame(CONTINUATION, 4, 1),
        Connection((PROTOCOL,)),
    ),
    Case(
        "5.1",
        "PRIORITY after the peer's reset",
        lambda c: headers(c) + RESET + frame(PRIORITY, 0, 1, u32(0) + b"\7"),
        Ignored(),
    ),
    Case("5.1", "a second reset", lambda c: headers(c) + RESET + RESET, Ignored()),
    Case(
        "5.1",
        "WINDOW_UPDATE after the peer's reset",
        lambda c: headers(c) + RESET + frame(WINDOW, 0, 1, u32(9)),
        Ignored(),
    ),
    Case("5.1.1", "an even identifier", lambda c: headers(c, 2, 5), Connection((PROTOCOL,))),
    Case(
        "5.1.1",
        "an identifier below the last",
        lambda c: headers(c, 5, 5) + headers(c, 3, 5),
        Connection((PROTOCOL,), 0),
    ),
    Case(
        "5.1.1",
        "DATA on an identifier passed over",
        lambda c: headers(c, 5) + body(3),
        Ignored(),
    ),
    Case(
        "5.1.1",
        "an identifier used twice",
        lambda c: c.request(1) + c.request(1),
        Connection((STREAM_CLOSED, PROTOCOL), 1),
        HELD,
    ),
    Case("5.1.1", "HEADERS on stream 0", lambda c: headers(c, 0, 5), Connection((PROTOCOL,))),
    Case(
        "5.3.1",
        "a stream that depends on itself",
        lambda c: frame(PRIORITY, 0, 1, u32(1) + b"\7") + c.request(1),
        Answered(),
    ),
    Case(
        "5.4.1",
        "the frame after a connection error",
        lambda c: frame(PING, 0, 0, b"x") + c.request(1),
        Connection((6,)),
    ),
    Case("5.4.2", "a stream error", lambda c: headers(c, **{"p_path": ""}), Stream((PROTOCOL,))),
    Case("5.4.2", "the peer resets with NO_ERROR", lambda c: headers(c) + frame(RST, 0, 1, u32(NO_ERROR)), Ignored()),
    Case(
        "5.4.2",
        "a frame on a stream that we reset",
        lambda c: headers(c, **{"p_path": ""}) + body(),
        Stream((PROTOCOL,)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_streams(quiet_door: NativeServer, case: Case) -> None:
    """RFC 9113 section 5."""
    check(quiet_door, case)


def test_5_1_headers_after_the_end_of_both_sides(quiet_door: NativeServer) -> None:
    """RFC 9113 section 5.1.1: an identifier is used once."""
    with RawClient(quiet_door.address) as client:
        assert client.ask(1) == ("0", "")
        before = quiet_door.listener.counters()["calls"]
        client.send(headers(client, 1, END_HEADERS | END_STREAM))
        client.drain()
        assert client.goaway[-1][1] in (STREAM_CLOSED, PROTOCOL)
        assert quiet_door.listener.counters()["calls"] == before


def test_5_1_data_on_closed_streams_is_ignored_and_counted(quiet_door: NativeServer) -> None:
    """RFC 9113 section 5.1: closed streams may be ignored; what they carry goes back into the connection's window."""
    with RawClient(quiet_door.address) as client:
        assert client.ask(1) == ("0", "")
        before = quiet_door.listener.counters()["calls"]
        for _ in range(100):
            client.send(body(flags=0, data=b"x" * 16_384))
        lives(client)
        given_back = sum(
            int.from_bytes(data, "big") for kind, _, stream, data in client.frames if (kind, stream) == (WINDOW, 0)
        )
        assert given_back > 100 * 16_384 // 2
        assert quiet_door.listener.counters()["calls"] == before + 1


TRAILERS = [("x-trailer", "remembered")]


def trailers(client: RawClient, stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, client.block(TRAILERS))


RESET_BY_US = {
    "illegal header": {"x_upper": "a\nb"},
    "answered before its end": {"p_path": "/none"},
    "too many headers": {f"x_{i}": "v" for i in range(70)},
}


@pytest.mark.parametrize("changes", RESET_BY_US.values(), ids=list(RESET_BY_US))
def test_5_1_what_follows_on_a_stream_that_we_reset_is_ignored(
    quiet_door: NativeServer, changes: dict[str, str | None]
) -> None:
    """RFC 9113 section 5.1: trailers that were sent before our reset was heard; their fields are in the table all the
    same (section 4.3)."""
    with RawClient(quiet_door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers(**changes))))
        client.until(lambda: 1 in client.resets)
        client.send(body(1, 0) + trailers(client, 1))
        client.send(frame(HEADERS, END_HEADERS, 3, client.block([*call_headers(), *TRAILERS])) + body(3))
        client.until(lambda: 3 in client.ended or client.goaway)
        assert client.headers[3]["grpc-status"] == "0"
        lives(client)


def test_5_1_what_follows_on_a_stream_that_we_refused_is_ignored() -> None:
    """RFC 9113 section 5.1: the same for a stream over the limit, also in the same write."""
    with native_server(streams=STREAMS) as door, RawClient(door.address, hello=False) as client:
        over = 2 * STREAMS + 1
        client.send(PREFACE + frame(SETTINGS) + b"".join(headers(client, i) for i in range(1, over, 2)))
        client.send(headers(client, over) + trailers(client, over))
        client.until(lambda: over in client.resets)
        client.send(trailers(client, over))
        client.send(b"".join(body(i) for i in range(1, over, 2)))
        client.until(lambda: len(client.ended) == STREAMS)
        lives(client)
        assert door.listener.counters()["calls"] == STREAMS + 1


def test_5_1_a_reset_that_is_long_ago_excuses_nothing(quiet_door: NativeServer) -> None:
    """RFC 9113 section 5.1: an endpoint may bound for how long it ignores such frames; ours is 8,192 streams."""
    with RawClient(quiet_door.address) as client:
        assert client.ask(1, p_path="/none") == ("12", "request.unimplemented")
        assert client.ask(3 + 2 * 8192) == ("0", "")
        client.send(trailers(client, 1))
        client.drain()
        assert client.goaway[-1][1] == PROTOCOL


def test_5_1_1_the_last_identifier_of_all(quiet_door: NativeServer) -> None:
    """RFC 9113 section 5.1.1: 2^31-1 is an identifier."""
    with RawClient(quiet_door.address) as client:
        assert client.ask(2**31 - 1) == ("0", "")


def test_5_1_2_streams_over_the_limit_are_refused() -> None:
    """RFC 9113 section 5.1.2: REFUSED_STREAM before the limit was acknowledged; those below it are answered."""
    with native_server(streams=STREAMS) as door, RawClient(door.address, hello=False) as client:
        client.send(PREFACE + frame(SETTINGS))
        opened = [headers(client, 2 * i + 1) for i in range(STREAMS + 1)]
        client.send(b"".join(opened))
        over = 2 * STREAMS + 1
        client.until(lambda: over in client.resets)
        assert client.resets == {over: REFUSED}
        client.send(b"".join(body(2 * i + 1) for i in range(STREAMS)))
        client.until(lambda: len(client.ended) == STREAMS)
        assert door.listener.counters()["calls"] == STREAMS


def test_5_1_2_a_limit_that_was_acknowledged_holds() -> None:
    """RFC 9113 section 5.1.2: a peer that knows the limit and passes it is in error."""
    with native_server(streams=STREAMS) as door, RawClient(door.address) as client:
        client.until(lambda: client.frames)
        lives(client)
        client.send(b"".join(headers(client, LATER + 2 * i) for i in range(1, STREAMS + 2)))
        client.drain()
        assert client.goaway[-1][1] in (PROTOCOL, REFUSED)
        assert door.listener.counters()["calls"] == 1


def test_5_4_1_nothing_follows_our_goaway(quiet_door: NativeServer) -> None:
    """RFC 9113 section 5.4.1: one GOAWAY that names the last stream we took up, then the end."""
    with RawClient(quiet_door.address) as client:
        assert client.ask(1) == ("0", "")
        client.send(frame(PING, 0, 1, b"12345678"))
        client.drain()
        assert client.goaway == [(1, PROTOCOL)]
        assert client.frames[-1][0] == GOAWAY
