"""H2-28: hostile bytes from the socket to the canonical call; no input crashes, hangs or gets past the rules."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath import envoy, wire
from tests.fix_wire import field, full_request, http_request, in_http, varint

ROUNDS = 4000
CALL_ARENA_BYTES = 1 << 20
HOSTILE_PIECES = [
    b"",
    b"\xff",
    b"\0",
    b"%",
    b"%2e%2e/",
    b"%00",
    b"//",
    b"\\",
    b"!",
    b"\xc0\xaf",
    b"e\xcc\x81",
    b":",
    b"\x80" * 11,
]


def holds(call: dict[str, object] | None) -> None:
    """What is true of every call that was not refused."""
    if call is None or call["refusal"] or not call["has_http"]:
        return
    path, host = str(call["path"]), str(call["host"])
    assert path.startswith("/") or path in ("", "*")
    assert "//" not in path
    assert not {"", ".", ".."} & set(path.split("/")[1:-1])
    assert all(ord(c) >= 0x20 and not 0x7F <= ord(c) < 0xA0 for c in path)
    assert host == host.lower()
    assert host.isascii()
    assert not set(host) & set(",@/%\\ ")
    headers = call["headers"]
    assert isinstance(headers, list)
    assert headers == sorted(headers, key=lambda line: line[0])
    assert all(name and name == name.lower() and name[0] != ":" for name, _ in headers)


def hostile(rng: random.Random) -> bytes:
    """A CheckRequest whose text fields are hostile, then damaged somewhere."""

    def text() -> bytes:
        return b"".join(rng.choice([*HOSTILE_PIECES, b"a", b"/b", b"?q=1"]) for _ in range(rng.randrange(5)))

    http = b"".join(field(rng.choice([2, 4, 5, 6, 11, 12]), text()) for _ in range(rng.randrange(6)))
    http += b"".join(field(3, field(1, text()) + field(2, text())) for _ in range(rng.randrange(3)))
    http += field(13, b"".join(field(1, field(1, text()) + field(3, text())) for _ in range(rng.randrange(3))))
    data = bytearray(in_http(http) if rng.random() < 0.7 else full_request(rng).SerializeToString())
    for _ in range(rng.randrange(3)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def test_hostile_requests_of_any_kind_are_survived():
    """Each is refused, malformed, or keeps the rules; with little memory too."""
    rng = random.Random(20262)
    for _ in range(ROUNDS):
        data = hostile(rng)
        holds(envoy.decode(data, strict_path=rng.random() < 0.5))
        try:
            holds(envoy.decode(data, arena_bytes=rng.randrange(4096)))
        except MemoryError:
            continue


def test_every_prefix_of_a_request_is_survived():
    """A message cut anywhere is malformed or a shorter message, never read past its end."""
    data = full_request(random.Random(7)).SerializeToString()
    for n in range(len(data)):
        holds(envoy.decode(data[:n]))


def nested(levels: int, wrap) -> bytes:
    made = b""
    for _ in range(levels):
        made = wrap(made)
    return made


@pytest.mark.parametrize(
    "data",
    [
        field(1, field(11, field(1, field(2, nested(10_000, lambda b: field(1, field(2, field(5, b)))))))),
        field(1, field(11, field(1, field(2, field(1, field(2, nested(10_000, lambda b: field(6, field(1, b))))))))),
        b"\xfb\x07" * 100_000,
        b"\xfb\x07" * 100_000 + b"\xfc\x07" * 100_000,
        in_http(b"\xfb\x07" * 100_000),
    ],
    ids=["struct", "list", "group starts", "groups", "groups in http"],
)
def test_deep_nesting_is_refused_by_depth(data: bytes):
    """Recursion is bounded at 100 however deep the bytes go."""
    assert envoy.verdict(data) == wire.WireError.WIRE_TOO_DEEP
    assert envoy.decode(data) is None


def test_any_values_are_not_opened():
    """A nested Any is bytes: nobody recurses into it."""
    any_ = nested(10_000, lambda b: field(1, b"t") + field(2, b))
    assert envoy.verdict(field(1, field(11, field(2, field(1, b"k") + field(2, any_))))) == wire.WireError.WIRE_OK


@pytest.mark.parametrize(
    "repeat", [field(3, b""), field(4, b"/"), field(13, field(1, b"")), b"\x48\x01", b"\xfb\x07\xfc\x07"]
)
def test_a_million_repetitions_stay_within_a_call_s_memory(repeat: bytes):
    """Repeated fields cost time in proportion to their bytes and no memory beyond the cap."""
    call = envoy.decode(in_http(repeat * 1_000_000), arena_bytes=CALL_ARENA_BYTES)
    assert call is not None
    assert len(call["headers"]) <= 4096  # type: ignore[arg-type]


def test_sorting_hostile_headers_is_bounded():
    """4,096 headers in reverse order, all with one long common prefix."""
    raw = [("x" * 50 + f"{n:05}", b"v") for n in range(4096, 0, -1)]
    call = envoy.decode(http_request(raw_headers=raw).SerializeToString(), headers_max=4096)
    assert call is not None
    assert (call["refusal"], len(call["headers"])) == ("", 4096)  # type: ignore[arg-type]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 2**29 - 1))
def test_the_reader_stops_at_the_first_fault_and_never_beyond_the_end(data: bytes, number: int):
    """Fields before the fault are those of the bytes without it."""
    error, found = wire.fields(data)
    again, more = wire.fields(data + varint(number << 3) + b"\x01")
    if error == wire.WireError.WIRE_OK:
        assert (again, more) == (wire.WireError.WIRE_OK, [*found, (number, 0, 1)])
    else:
        assert more[: len(found)] == found
