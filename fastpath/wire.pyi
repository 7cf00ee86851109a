"""Protobuf reader and writer; Python sees them only to test them."""

from enum import IntEnum
from typing import TypeAlias

class WireType(IntEnum):
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_BYTES = 2
    WIRE_GROUP = 3
    WIRE_GROUP_END = 4
    WIRE_FIXED32 = 5

class WireError(IntEnum):
    WIRE_OK = 0
    WIRE_BAD_VARINT = 1
    WIRE_BAD_TAG = 2
    WIRE_TRUNCATED = 3
    WIRE_BAD_GROUP = 4
    WIRE_TOO_DEEP = 5
    WIRE_BAD_UTF8 = 6

def is_utf8(data: bytes) -> bool:
    """Whether `data` is UTF-8 by RFC 3629."""

def fields(data: bytes) -> tuple[WireError, list[tuple[int, int, int | bytes]]]:
    """The top-level fields up to the first error: (number, wire type, value), groups left out."""

def check_struct(data: bytes) -> WireError:
    """Whether `data` is a google.protobuf.Struct."""

_Values: TypeAlias = list[tuple[int, "int | bytes | _Values"]]

def write(values: _Values) -> bytes | None:
    """Encode (number, value) pairs, a list being a nested message; None when it takes more than 64 KiB."""
