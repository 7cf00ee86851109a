"""`python -m tests.fuzz.seeds FOLDER`: connections to begin fuzzing from, one file each.

An input is a byte that names the door (tests/fuzz/doors.py) and all that a peer sends on one connection.
"""

from __future__ import annotations

import hashlib
import pathlib
import random
import struct
import sys
from collections.abc import Iterator

from hpack import Encoder

from tests.fix_calls import agent_check, envoy_call, network_call, tool_call
from tests.fix_native import (
    ACK,
    BATCH,
    CHECK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    EXT_AUTHZ,
    GOAWAY,
    HEADERS,
    HEALTH,
    PADDED,
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
from tests.fuzz.doors import DENIES, ENVOY
from tests.fuzz.test_call_fuzz import check_bytes, envoy_bytes

HELLO = PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK)
CALLS = 24
STREAM = CHECK + "Stream"
ODD_FRAMES = {
    "ping": frame(PING, 0, 0, b"12345678"),
    "goaway": frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)),
    "window": frame(WINDOW, 0, 0, struct.pack(">I", 1 << 20)),
    "window-1": frame(WINDOW, 0, 1, struct.pack(">I", 0x7FFFFFFF)),
    "reset": frame(RST, 0, 1, struct.pack(">I", 8)),
    "priority": frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 15)),
    "unknown": frame(0x20, 0, 1, b"x"),
    "data": frame(DATA, END_STREAM, 1, b""),
    "zero-window": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)),
    "table": frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 0)),
    "continuation": frame(CONTINUATION, END_HEADERS, 1, b""),
}


def call(stream: int, path: str, body: bytes, **changes: str | None) -> bytes:
    block = Encoder().encode(call_headers(path=path, **changes), huffman=stream % 4 == 1)
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, message(body))


def seeds() -> Iterator[bytes]:
    rng = random.Random(1)
    questions = [(CHECK, check_bytes(rng)) for _ in range(CALLS)]
    questions += [(EXT_AUTHZ, envoy_bytes(rng)) for _ in range(CALLS)]
    questions += [(EXT_AUTHZ, network_call(destination="a", sni="b")), (EXT_AUTHZ, envoy_call(body=b"x", raw=True))]
    questions += [(EXT_AUTHZ, tool_call("bank/get_balance", {"a": 1})), (HEALTH, b""), (HEALTH, b"\x0a\x04live")]
    questions += [(HEALTH.replace("Check", "Watch"), body) for body in (b"", b"\x0a\x04live", b"\x0a\x01x")]
    items = b"".join(b"\x0a" + bytes((len(one),)) + one for one in [agent_check(action="read")] * 3)
    questions.append((BATCH, items))
    for path, body in questions:
        kind = ENVOY if path == EXT_AUTHZ else 0
        for door in (kind, kind | DENIES):
            yield bytes((door,)) + HELLO + call(1, path, body)
    yield from odd_connections()
    yield from streams()


def streams() -> Iterator[bytes]:
    """Questions on one stream: cut anywhere, many in a frame, broken, reset, with a window that is closed."""
    question = message(agent_stream("q"))
    begin = frame(HEADERS, END_HEADERS, 1, Encoder().encode(call_headers(path=STREAM)))
    three = question + message(agent_stream("r")) + message(agent_stream("s", action="write"))
    for door in (b"\0", bytes((DENIES,))):
        yield door + HELLO + begin + frame(DATA, END_STREAM, 1, three)
        yield door + HELLO + begin + b"".join(frame(DATA, 0, 1, three[at : at + 11]) for at in range(0, len(three), 11))
        yield door + HELLO + begin + frame(DATA, 0, 1, question) * 40 + frame(DATA, END_STREAM, 1)
    for odd in ODD_FRAMES.values():
        yield b"\0" + HELLO + begin + frame(DATA, 0, 1, question) + odd + frame(DATA, END_STREAM, 1, question)
        yield b"\0" + HELLO + odd + begin + frame(DATA, 0, 1, three[:-3])
    for broken in (
        b"\1\0\0\0\1x",
        b"\0\xff\xff\xff\xff",
        message(b""),
        message(b"\x08\1"),
        message(agent_stream("q") * 2),
    ):
        yield b"\0" + HELLO + begin + frame(DATA, 0, 1, question + broken + question)


def agent_stream(request_id: str, action: str = "read") -> bytes:
    question = agent_check(action=action, resource=("Tool", "docs/search"), request_id=request_id)
    return b"\x0a" + bytes((len(question),)) + question


def odd_connections() -> Iterator[bytes]:
    question = agent_check(action="read", resource=("Tool", "docs/search"))
    one = call(1, CHECK, question)
    for odd in ODD_FRAMES.values():
        yield b"\0" + HELLO + one + odd + call(3, CHECK, question)
        yield b"\0" + HELLO + odd + one
    block = Encoder().encode(call_headers())
    half = len(block) // 2
    split = frame(HEADERS, 0, 1, block[:half]) + frame(CONTINUATION, END_HEADERS, 1, block[half:])
    padded = frame(HEADERS, END_HEADERS | PADDED, 1, b"\3" + block + b"\0" * 3)
    body = message(question)
    yield b"\0" + HELLO + split + frame(DATA, 0, 1, body[:9]) + frame(DATA, END_STREAM, 1, body[9:])
    yield b"\0" + HELLO + padded + frame(DATA, END_STREAM | PADDED, 1, b"\2" + body + b"\0\0")
    yield b"\0" + HELLO + frame(HEADERS, END_HEADERS | 0x20, 1, b"\0\0\0\3\7" + block) + frame(DATA, END_STREAM, 1)
    for changes in (
        {"te": None},
        {"grpc_timeout": "1n"},
        {"grpc_encoding": "gzip"},
        {"p_method": "GET"},
        {"host": "x"},
    ):
        yield b"\0" + HELLO + call(1, CHECK, question, **changes)
    yield b"\1" + HELLO + b"".join(call(stream, CHECK, question) for stream in range(1, 21, 2))
    yield b"\0GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def main(folder: str) -> None:
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (target / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    main(sys.argv[1])
