"""RFC 7541: header compression, as a decoder meets it."""

import pytest
from hpack import Encoder

from tests.fix_http2 import (
    COMPRESSION,
    PROTOCOL,
    Answered,
    Case,
    Connection,
    Stream,
    body,
    check,
    ids,
    integer,
    raw_field,
    setting,
    text,
)
from tests.fix_native import CHECK, CONTINUATION, END_HEADERS, HEADERS, NativeServer, RawClient, frame

BROKEN = Connection((COMPRESSION,))
TABLE_BYTES = 4096
STATIC = 61
# A call in literals and static entries alone: it leaves the dynamic table as it is.
PLAIN = (
    b"\x83\x86"
    + b"\x04"
    + text(CHECK.encode())
    + b"\x01"
    + text(b"localhost")
    + b"\x0f\x10"
    + text(b"application/grpc")
    + raw_field(b"te", b"trailers")
)


def block(data: bytes, stream: int = 1) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, data) + body(stream)


def literal(flags: int, bits: int, name: bytes | int, value: bytes) -> bytes:
    """Section 6.2: a name by index or by text."""
    return (integer(name, bits, flags) if isinstance(name, int) else bytes((flags,)) + text(name)) + text(value)


def indexed(index: int) -> bytes:
    return integer(index, 7, 0x80)


def resize(size: int) -> bytes:
    return integer(size, 5, 0x20)


def inserts(count: int, size: int = 10) -> bytes:
    """So many entries of `size` bytes of value into the dynamic table."""
    return b"".join(literal(0x40, 6, b"x-%03d" % i, b"v" * size) for i in range(count))


def huffman(value: bytes) -> bytes:
    """A Huffman-coded string with its length (section 5.2)."""
    coded = bytes(Encoder().huffman_coder.encode(value))
    return integer(len(coded), 7, 0x80) + coded


def with_string(string: bytes) -> bytes:
    """A call with one literal field whose value is this string, length and all."""
    return block(PLAIN + b"\0" + text(b"x-any") + string)


INDEXES = [
    Case("2.3.3", "index 0", block(PLAIN + b"\x80"), BROKEN),
    Case("2.3.3", "an index past both tables", block(PLAIN + indexed(STATIC + 1)), BROKEN),
    Case("2.3.3", "a name past both tables", block(PLAIN + literal(0, 4, STATIC + 1, b"v")), BROKEN),
    Case("2.3.3", "the newest entry", block(PLAIN + inserts(2) + indexed(STATIC + 1)), Answered()),
    Case("2.3.3", "the oldest entry", block(PLAIN + inserts(2) + indexed(STATIC + 2)), Answered()),
    Case("2.3.3", "one past the oldest entry", block(PLAIN + inserts(2) + indexed(STATIC + 3)), BROKEN),
    Case(
        "2.3.2",
        "entries of a request before",
        block(PLAIN + inserts(1)) + block(PLAIN + indexed(STATIC + 1), 3),
        Answered(streams=2),
    ),
    Case("2.3.2", "a static entry for all of a field", block(PLAIN + indexed(19)), Answered()),
    Case("2.3.2", "an entry twice", block(PLAIN + inserts(1) + inserts(1) + indexed(STATIC + 2)), Answered()),
]
SIZES = [
    Case("4.2", "a size update at the start", block(resize(100) + PLAIN), Answered()),
    Case("4.2", "two size updates at the start", block(resize(0) + resize(TABLE_BYTES) + PLAIN), Answered()),
    Case("4.2", "a size update after a field", block(PLAIN + resize(100)), BROKEN),
    Case("4.2", "a size update between fields", block(PLAIN[:1] + resize(100) + PLAIN[1:]), BROKEN),
    Case("6.3", "a size update over our limit", block(resize(TABLE_BYTES + 1) + PLAIN), BROKEN),
    Case("6.3", "a size update to our limit", block(resize(TABLE_BYTES) + PLAIN), Answered()),
    Case("6.3", "a size update far over any limit", block(resize(1 << 30) + PLAIN), BROKEN),
    Case(
        "4.2",
        "a size update at the start of a later block",
        block(PLAIN) + block(resize(0) + PLAIN, 3),
        Answered(streams=2),
    ),
    Case(
        "4.3",
        "an entry that a size update evicted",
        block(PLAIN + inserts(1)) + block(resize(0) + PLAIN + indexed(62), 3),
        Connection((COMPRESSION,), 1),
    ),
    Case(
        "4.3",
        "an entry that stays when the table shrinks",
        block(PLAIN + inserts(3)) + block(resize(60) + PLAIN + indexed(62), 3),
        Answered(streams=2),
    ),
    Case(
        "4.4",
        "an entry that newer ones evicted",
        block(PLAIN + inserts(5, 1000) + indexed(STATIC + 4)),
        BROKEN,
    ),
    Case(
        "4.4",
        "an entry as large as the table",
        block(PLAIN + literal(0x40, 6, b"x", b"v" * (TABLE_BYTES - 33)) + indexed(62)),
        Answered(),
    ),
    Case(
        "4.4",
        "an entry over the table empties it",
        block(PLAIN + inserts(1) + literal(0x40, 6, b"x", b"v" * TABLE_BYTES)),
        Answered(),
    ),
    Case(
        "4.4",
        "what such an entry would have been",
        block(PLAIN + literal(0x40, 6, b"x", b"v" * TABLE_BYTES) + indexed(62)),
        BROKEN,
    ),
    Case(
        "4.4",
        "a name whose entry is evicted by its use",
        block(PLAIN + inserts(1, 2000) + literal(0x40, 6, 62, b"v" * 3000) + indexed(62)),
        Answered(),
    ),
]
INTEGERS = [
    Case("5.1", "an integer of 2^63", block(PLAIN + b"\xff" + b"\xff" * 8 + b"\x7f"), BROKEN),
    Case("5.1", "an integer without end", block(PLAIN + b"\xff" + b"\x80" * 50 + b"\x01"), BROKEN),
    Case("5.1", "an integer that is cut", block(PLAIN + b"\xff\x80"), BROKEN),
    Case(
        "5.1",
        "an integer with a zero more than it needs",
        block(PLAIN + inserts(40)) + block(PLAIN + inserts(40) + b"\xff\x80\x00", 3),
        Answered(streams=2),
    ),
    Case("5.2", "a length past the block", block(PLAIN + b"\0" + integer(1000, 7) + b"x"), BROKEN),
    Case("5.2", "a length of 2^62", block(PLAIN + b"\0\x7f" + b"\xff" * 8 + b"\x3f"), BROKEN),
]
STRINGS = [
    Case("5.2", "plain text", with_string(text(b"value")), Answered()),
    Case("5.2", "Huffman text", with_string(huffman(b"value, with %7 bits")), Answered()),
    Case("5.2", "every byte that Huffman codes", with_string(huffman(bytes(range(33, 127)) * 2)), Answered()),
    Case("5.2", "an empty Huffman text", with_string(b"\x80"), Answered()),
    Case("5.2", "Huffman padding of 8 bits", with_string(b"\x82\x1f\xff"), BROKEN),
    Case("5.2", "Huffman padding that is not ones", with_string(b"\x81\x18"), BROKEN),
    Case("5.2", "the end of string within Huffman text", with_string(b"\x85\xff\xff\xff\xff\x1f"), BROKEN),
    Case("5.2", "padding alone", with_string(b"\x81\xff"), BROKEN),
]
FORMS = [
    Case("6.2.1", "with indexing, name by index", block(PLAIN + literal(0x40, 6, 19, b"*/*")), Answered()),
    Case("6.2.1", "with indexing, name by text", block(PLAIN + literal(0x40, 6, b"x-any", b"v")), Answered()),
    Case("6.2.2", "without indexing, name by index", block(PLAIN + literal(0, 4, 19, b"*/*")), Answered()),
    Case("6.2.2", "without indexing adds no entry", block(PLAIN + literal(0, 4, b"x", b"v") + indexed(62)), BROKEN),
    Case("6.2.3", "never indexed, name by index", block(PLAIN + literal(0x10, 4, 19, b"*/*")), Answered()),
    Case("6.2.3", "never indexed, name by text", block(PLAIN + literal(0x10, 4, b"x-any", b"v")), Answered()),
    Case("6.2.3", "never indexed adds no entry", block(PLAIN + literal(0x10, 4, b"x", b"v") + indexed(62)), BROKEN),
    Case("6.2", "a field that is cut", block(PLAIN + b"\x40\x05x-any"), BROKEN),
    Case("6.1", "an empty block", block(b""), Stream((PROTOCOL,))),
    Case(
        "6.1",
        "a name by the index of a dynamic entry",
        block(PLAIN + inserts(1) + literal(0, 4, 62, b"other")),
        Answered(),
    ),
]
KINDS = INDEXES + SIZES + INTEGERS + STRINGS + FORMS


@pytest.mark.parametrize("case", KINDS, ids=ids)
def test_decoding(quiet_door: NativeServer, case: Case) -> None:
    """RFC 7541: what cannot be decoded ends the connection with COMPRESSION_ERROR, whatever else it says."""
    check(quiet_door, case)


def test_every_static_entry_is_known(quiet_door: NativeServer) -> None:
    """RFC 7541 appendix A: a name by each static index that is no pseudo-header."""
    with RawClient(quiet_door.address) as client:
        fields = b"".join(
            literal(0, 4, index, b"identity") for index in range(15, STATIC + 1) if index not in (28, 31, 38, 57, 23)
        )
        client.send(block(PLAIN + fields))
        client.until(lambda: 1 in client.ended or 1 in client.resets)
        # `host`, `content-type` and the like are no call of ours twice; each was decoded to say so.
        assert not client.goaway
        client.send(block(PLAIN, 3))
        client.until(lambda: 3 in client.ended)
        assert client.headers[3]["grpc-status"] == "0"


@pytest.mark.parametrize(
    "spoil", [raw_field(b"X-Upper", b"v"), raw_field(b"x-large", b"v" * 16_000)], ids=["illegal", "large"]
)
def test_a_refused_stream_still_changes_the_table(quiet_door: NativeServer, spoil: bytes) -> None:
    """RFC 9113 section 4.3: the block of a stream that is reset is decoded to its end, or every later one is wrong."""
    with RawClient(quiet_door.address) as client:
        data = PLAIN + spoil + literal(0x40, 6, b":authority", b"localhost")
        parts = [data[i : i + 16_000] for i in range(0, len(data), 16_000)]
        client.send(frame(HEADERS, END_HEADERS * (len(parts) == 1), 1, parts[0]))
        for part in parts[1:]:
            client.send(frame(CONTINUATION, END_HEADERS * (part is parts[-1]), 1, part))
        client.until(lambda: 1 in client.resets)
        client.send(block(PLAIN.replace(b"\x01" + text(b"localhost"), indexed(62)), 3))
        client.until(lambda: 3 in client.ended or 3 in client.resets)
        assert client.headers[3]["grpc-status"] == "0"


def test_two_connections_share_no_table(quiet_door: NativeServer) -> None:
    """RFC 7541 section 2.2: an entry that one peer made does not exist for another."""
    with RawClient(quiet_door.address) as first, RawClient(quiet_door.address) as second:
        first.send(block(PLAIN + inserts(1)))
        first.until(lambda: 1 in first.ended)
        second.send(block(PLAIN + indexed(62)))
        second.drain()
        assert second.goaway[-1][1] == COMPRESSION
        first.send(block(PLAIN + indexed(62), 3))
        first.until(lambda: 3 in first.ended)


@pytest.mark.parametrize("size", [0, 100, TABLE_BYTES, 1 << 20])
def test_our_encoder_keeps_to_the_table_of_the_peer(quiet_door: NativeServer, size: int) -> None:
    """RFC 7541 section 4.2: never more than the peer's SETTINGS_HEADER_TABLE_SIZE; fifty answers decode."""
    with RawClient(quiet_door.address, settings=setting((1, size))) as client:
        client.decoder.max_allowed_table_size = size
        assert [client.ask(2 * i + 1)[0] for i in range(50)] == ["0"] * 50


def test_a_table_that_grows_and_shrinks_all_the_time(quiet_door: NativeServer) -> None:
    """RFC 7541 section 4.2 (row H2-09): a size update in each of 200 blocks, 0 and all, with entries in between."""
    with RawClient(quiet_door.address) as client:
        for i in range(200):
            client.send(block(resize(0) + resize(TABLE_BYTES) + PLAIN + inserts(2) + indexed(63), 2 * i + 1))
            client.until(lambda i=i: 2 * i + 1 in client.ended)
            assert client.headers[2 * i + 1]["grpc-status"] == "0"
