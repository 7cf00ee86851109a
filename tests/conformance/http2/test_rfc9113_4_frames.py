"""RFC 9113 section 4: the form and size of frames, and header blocks."""

import pytest

from tests.fix_http2 import (
    ASK,
    COMPRESSION,
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
    setting,
)
from tests.fix_native import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    SETTINGS,
    NativeServer,
    RawClient,
    call_headers,
    frame,
)

UNKNOWN = 0x20
RESERVED = 1 << 31
OVER = b"\0" * 16_385


def split(client: RawClient, between: bytes) -> bytes:
    """A header block in two frames with something between them."""
    block = client.block(call_headers())
    return frame(HEADERS, 0, 1, block[:9]) + between + frame(CONTINUATION, END_HEADERS, 1, block[9:]) + body()


CASES = [
    Case("4.1", "a frame of an unknown type", lambda c: frame(UNKNOWN, 0, 0, b"xyz") + c.request(1), Answered()),
    Case("4.1", "one on an idle stream", lambda c: frame(UNKNOWN, 0, 77, b"xyz") + c.request(1), Answered()),
    Case("4.1", "one on an open stream", lambda c: headers(c) + frame(UNKNOWN, 255, 1, b"x") + body(), Answered()),
    Case("4.1", "unknown flags of PING", frame(PING, 0xFE, 0, b"12345678"), Ignored()),
    Case("4.1", "unknown flags of HEADERS", lambda c: headers(c, flags=END_HEADERS | 0x92) + body(), Answered()),
    Case("4.1", "unknown flags of DATA", lambda c: headers(c) + body(flags=END_STREAM | 0xF6), Answered()),
    Case("4.1", "unknown flags of SETTINGS", lambda c: frame(SETTINGS, 0xFE, 0) + c.request(1), Answered()),
    Case("4.1", "the reserved bit of PING", frame(PING, 0, RESERVED, b"12345678"), Ignored()),
    Case("4.1", "the reserved bit of a stream", lambda c: headers(c, RESERVED | 1) + body(RESERVED | 1), Answered()),
    Case(
        "4.2",
        "DATA of 16384 bytes",
        lambda c: headers(c) + frame(DATA, PADDED, 1, b"\xff" + b"\0\0\0\x40\0" + b"x" * 16_123 + b"\0" * 255) + body(),
        Answered("13", calls=0),
    ),
    Case("4.2", "an unknown frame of 16384 bytes", lambda c: frame(UNKNOWN, 0, 0, OVER[1:]) + c.request(1), Answered()),
    Case("4.2", "DATA of 16385 bytes", lambda c: headers(c) + frame(DATA, 0, 1, OVER), Connection((FRAME_SIZE,))),
    Case("4.2", "HEADERS of 16385 bytes", frame(HEADERS, END_HEADERS, 1, OVER), Connection((FRAME_SIZE,))),
    Case("4.2", "SETTINGS of 16386 bytes", frame(SETTINGS, 0, 0, OVER + b"\0"), Connection((FRAME_SIZE,))),
    Case("4.2", "an unknown frame of 16385 bytes", frame(UNKNOWN, 0, 0, OVER), Connection((FRAME_SIZE,))),
    Case("4.2", "a length of 16 MiB", frame(PING, 0, 0, length=0xFFFFFF), Connection((FRAME_SIZE,))),
    Case("4.3", "a block that is no HPACK", frame(HEADERS, END_HEADERS, 1, b"\xff" * 8), Connection((COMPRESSION,))),
    Case("4.3", "a block that ends early", frame(HEADERS, END_HEADERS, 1, b"\0\5ab"), Connection((COMPRESSION,))),
    Case(
        "4.3",
        "no HPACK in the second part of a block",
        lambda c: frame(HEADERS, 0, 1, c.block(call_headers())) + frame(CONTINUATION, END_HEADERS, 1, b"\x80"),
        Connection((COMPRESSION,)),
    ),
    Case("4.3", "a block in two frames", lambda c: split(c, b""), Answered()),
    Case(
        "4.3",
        "PRIORITY within a block",
        lambda c: split(c, frame(PRIORITY, 0, 1, b"\0\0\0\0\7")),
        Connection((PROTOCOL,)),
    ),
    Case("4.3", "PING within a block", lambda c: split(c, frame(PING, 0, 0, b"12345678")), Connection((PROTOCOL,))),
    Case("4.3", "DATA within a block", lambda c: split(c, frame(DATA, 0, 1, b"x")), Connection((PROTOCOL,))),
    Case("4.3", "SETTINGS within a block", lambda c: split(c, frame(SETTINGS)), Connection((PROTOCOL,))),
    Case(
        "4.3",
        "another HEADERS within a block",
        lambda c: split(c, frame(HEADERS, 4, 3, b"\x82")),
        Connection((PROTOCOL,)),
    ),
    Case(
        "5.5", "an unknown frame within a block", lambda c: split(c, frame(UNKNOWN, 0, 1, b"")), Connection((PROTOCOL,))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_frames(quiet_door: NativeServer, case: Case) -> None:
    """RFC 9113 section 4: what is unknown is ignored, what is too long or no header block ends the connection."""
    check(quiet_door, case)


def test_a_smaller_header_table_of_the_peer_is_respected(quiet_door: NativeServer) -> None:
    """RFC 9113 section 4.3.1, RFC 7541 section 4.2: our first block after SETTINGS says that the table is smaller."""
    with RawClient(quiet_door.address, settings=setting((1, 0))) as client:
        client.decoder.max_allowed_table_size = 0
        assert client.ask(1) == ("0", "")
        first = next(payload for kind, _, _, payload in client.frames if kind == HEADERS)
        assert first[0] == 0x20
        assert client.ask(3) == ("0", "")


def test_we_send_no_frame_over_the_limit_of_the_peer(quiet_door: NativeServer) -> None:
    """RFC 9113 section 4.2: 16,384 bytes unless the peer's SETTINGS say more."""
    with RawClient(quiet_door.address) as client:
        items = b"".join(b"\x0a" + bytes((len(ASK) - 5,)) + ASK[5:] for _ in range(64))
        length = len(items).to_bytes(4, "big")
        client.send(headers(client, path="/remit.authz.v1.Authorization/BatchCheck"))
        client.send(body(data=b"\0" + length + items))
        client.until(lambda: 1 in client.ended)
        assert max(len(payload) for _, _, _, payload in client.frames) <= 16_384
        assert client.headers[1]["grpc-status"] == "0"
