"""The protobuf reader and writer, field by field (H2-28)."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath import wire
from fastpath.wire import WireError, WireType
from tests.fix_wire import field, varint

U64 = 2**64 - 1


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\x00", 0),
        (b"\x7f", 127),
        (b"\x80\x01", 128),
        (b"\xff" * 9 + b"\x01", U64),
        (b"\xff" * 9 + b"\x7f", U64),
        (b"\x80" * 9 + b"\x00", 0),
    ],
)
def test_a_varint_has_up_to_ten_bytes_and_64_bits(data: bytes, value: int):
    """Overlong forms are read; bits above 64 are dropped, as upb does."""
    assert wire.fields(b"\x08" + data) == (WireError.WIRE_OK, [(1, WireType.WIRE_VARINT, value)])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x08", WireError.WIRE_BAD_VARINT),
        (b"\x08\x80", WireError.WIRE_BAD_VARINT),
        (b"\x08" + b"\x80" * 10 + b"\x00", WireError.WIRE_BAD_VARINT),
        (b"\x80", WireError.WIRE_BAD_VARINT),
        (b"\x80\x80\x80\x80\x80\x01", WireError.WIRE_BAD_VARINT),
        (b"\x00\x00", WireError.WIRE_BAD_TAG),
        (b"\x07", WireError.WIRE_BAD_TAG),
        (b"\x0e\x00", WireError.WIRE_BAD_TAG),
        (b"\x80\x80\x80\x80\x10\x00", WireError.WIRE_BAD_TAG),
        (b"\x0a\x01", WireError.WIRE_TRUNCATED),
        (b"\x0a\xff\xff\xff\xff\x07", WireError.WIRE_TRUNCATED),
        (b"\x0a\xff\xff\xff\xff\x0f", WireError.WIRE_TRUNCATED),
        (b"\x09" + b"\0" * 7, WireError.WIRE_TRUNCATED),
        (b"\x0d" + b"\0" * 3, WireError.WIRE_TRUNCATED),
        (b"\x0b", WireError.WIRE_TRUNCATED),
        (b"\x0c", WireError.WIRE_BAD_GROUP),
        (b"\x0b\x14", WireError.WIRE_BAD_GROUP),
        (b"\x0b" * 101, WireError.WIRE_TOO_DEEP),
    ],
)
def test_each_fault_has_its_code(data: bytes, error: WireError):
    """Nothing is read after a fault, and what came before it stays readable."""
    assert wire.fields(data) == (error, [])
    assert wire.fields(b"\x10\x05" + data) == (error, [(2, WireType.WIRE_VARINT, 5)])


def test_groups_are_skipped_with_all_that_is_in_them():
    """A group, known or not, leaves no field."""
    inner = b"\x08\x01" + field(2, b"x") + b"\x19" + b"\0" * 8 + b"\x25" + b"\0" * 4 + b"\x2b\x2c"
    assert wire.fields(b"\x0b" + inner + b"\x0c\x10\x07") == (WireError.WIRE_OK, [(2, WireType.WIRE_VARINT, 7)])


def test_every_wire_type_is_read():
    """Fixed values are little-endian."""
    data = b"\x08\x05" + field(2, b"ab") + b"\x19" + bytes(range(8)) + b"\x25" + bytes(range(4))
    assert wire.fields(data) == (
        WireError.WIRE_OK,
        [(1, 0, 5), (2, 2, b"ab"), (3, 1, int.from_bytes(bytes(range(8)), "little")), (4, 5, 0x03020100)],
    )


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=24), st.text(max_size=12).map(str.encode)), st.integers(0, 24))
def test_utf8_is_what_python_decodes(data: bytes, cut: int):
    """RFC 3629: cut sequences, surrogates, overlong forms and values above U+10FFFF are not UTF-8."""
    for text in (data, data[:cut], b"ascii---" + data):
        try:
            text.decode()
        except UnicodeDecodeError:
            assert not wire.is_utf8(text)
        else:
            assert wire.is_utf8(text)


VALUES = st.recursive(
    st.lists(st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, U64), st.binary(max_size=200))), max_size=4),
    lambda inner: st.lists(st.tuples(st.integers(1, 15), inner), max_size=4),
    max_leaves=12,
)


def encode(values: list) -> bytes:
    """The same by the rules of the format, in Python."""
    made = b""
    for number, value in values:
        if isinstance(value, int):
            made += varint(number << 3) + varint(value)
        else:
            made += field(number, value if isinstance(value, bytes) else encode(value))
    return made


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_back(values: list):
    """Nested messages get their length in front, however many bytes it takes."""
    data = wire.write(values)
    assert data == encode(values)
    error, found = wire.fields(data)
    assert error == WireError.WIRE_OK
    assert [(number, kind) for number, kind, _ in found] == [(n, 0 if isinstance(v, int) else 2) for n, v in values]


def test_writing_never_goes_past_the_room():
    """A writer that is full says so and writes nothing more."""
    assert wire.write([(1, b"x" * 40_000), (2, b"x" * 40_000)]) is None
    assert wire.write([(1, [(2, b"x" * 65_525)])]) is not None
    assert wire.write([(1, [(2, b"x" * 65_530)])]) is None


def test_a_struct_is_checked_to_the_bottom():
    """Strings deep inside must be UTF-8 too."""
    struct = struct_pb2.Struct()
    struct.update({"a": [{"b": "text"}], "n": 1.5, "t": True, "z": None})
    data = struct.SerializeToString()
    assert wire.check_struct(data) == WireError.WIRE_OK
    assert wire.check_struct(data.replace(b"text", b"te\xffx")) == WireError.WIRE_BAD_UTF8
