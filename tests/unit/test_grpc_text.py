"""Texts of gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md)."""

import string
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.grpc_text import is_grpc, message, timeout_ns

DAY_NS = 86_400 * 10**9


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"1n", 1),
        (b"1u", 1000),
        (b"20m", 20_000_000),
        (b"3S", 3 * 10**9),
        (b"2M", 120 * 10**9),
        (b"1H", 3600 * 10**9),
        (b"0S", 0),
        (b"99999999H", DAY_NS),
        (b"99999999n", 99_999_999),
    ],
)
def test_a_timeout_is_digits_and_a_unit(text: bytes, ns: int) -> None:
    """Up to eight digits; what is longer than a day is a day."""
    assert timeout_ns(text) == ns


@pytest.mark.parametrize(
    "text", [b"", b"S", b"1", b"-1S", b"+1S", b"1s", b"1 S", b" 1S", b"123456789S", b"1.5S", b"1SS"]
)
def test_what_is_no_timeout_is_told(text: bytes) -> None:
    """H2-22: never taken for none."""
    assert timeout_ns(text) == -1


@given(st.binary(max_size=12))
def test_a_timeout_is_read_only_from_its_own_form(text: bytes) -> None:
    """Any bytes: a value for the form of the specification, else -1."""
    form = 2 <= len(text) <= 9 and text[:-1].isdigit() and text[-1:] in (b"H", b"M", b"S", b"m", b"u", b"n")
    assert (timeout_ns(text) >= 0) == form


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"Application/GRPC", True),
        (b"application/grpc;charset=utf-8", True),
        (b"application/grpc+proto;v=1", True),
        (b"application/grpc+json", False),
        (b"application/grpc-web", False),
        (b"application/grpcx", False),
        (b"application/grp", False),
        (b"text/plain", False),
        (b"", False),
    ],
)
def test_a_content_type_is_grpc_or_not(text: bytes, wanted: bool) -> None:
    """H2-19: gRPC with protobuf, nothing near it."""
    assert is_grpc(text) == wanted


@given(st.binary(max_size=200))
def test_a_message_is_percent_encoded(text: bytes) -> None:
    """Printable ASCII without `%` stays, all else becomes %XX, so that any decoder gives it back."""
    encoded = message(text)
    assert set(encoded.decode()) <= set(string.printable[:95])
    assert urllib.parse.unquote_to_bytes(encoded) == text


def test_a_message_is_cut_between_escapes() -> None:
    """What does not fit is left out whole."""
    assert message("aü".encode(), 6) == b"a%C3"
    assert message(b"abc", 2) == b"ab"
    assert message(b"abc", 0) == b""
