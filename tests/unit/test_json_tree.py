"""JSON in one canonical form: the same value gives the same text, whether it came as JSON text or as a Struct."""

import json
import math

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.json_tree import JsonError, canonical


def has_one_shortest_form(value: float) -> bool:
    """Not a tie between two shortest texts, where Python and printf may choose differently (2**-24 is one)."""
    return repr(value).removesuffix(".0") in {f"{value:.{n}g}" for n in range(1, 18)}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False, width=64).filter(has_one_shortest_form)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)


def number(value: float) -> object:
    """A float as the canonical form sees it: an integer when it has no fraction."""
    return int(value) if math.floor(value) == value else value


def plain(value: object) -> object:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return [plain(one) for one in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def reference(value: object) -> bytes:
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


@given(OBJECTS)
@settings(max_examples=150, deadline=None)
def test_text_equals_the_reference_form(value: dict) -> None:
    """Keys sorted, no white space, shortest numbers: what Python's own encoder writes with those settings."""
    error, text = canonical(json.dumps(value).encode())
    assert error == JsonError.JSON_OK
    assert text == reference(value)


@given(OBJECTS)
@settings(max_examples=150, deadline=None)
def test_struct_and_text_give_the_same_form(value: dict) -> None:
    """An agent's Struct and an MCP body with the same arguments have one canonical text, hence one digest."""
    message = Struct()
    message.update(value)
    assert canonical(message.SerializeToString(), struct_=True) == canonical(json.dumps(value).encode())


@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
@settings(max_examples=150, deadline=None)
def test_every_number_reads_back_as_itself(value: float) -> None:
    """Ties included: the canonical text of a double is a text of that double and of no other."""
    assert json.loads(canonical(json.dumps([value]).encode())[1] or b"") == [value]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (b"[1.0]", b"[1]"),
        (b"[1e2]", b"[100]"),
        (b"[-0.0]", b"[0]"),
        (b"[0.1]", b"[0.1]"),
        (b"[9007199254740992]", b"[9007199254740992]"),
        (b"[9007199254740993]", b"[9007199254740993]"),
        (b"[-9223372036854775808]", b"[-9223372036854775808]"),
        (b"[1e20]", b"[100000000000000000000]"),
        (b'["\\u00e9\\/\\u001f"]', '["é/\\u001f"]'.encode()),
        (b'{"b":1,"a":{"d":[],"c":{}}}', b'{"a":{"c":{},"d":[]},"b":1}'),
    ],
)
def test_numbers_keep_their_value(written: bytes, kept: bytes) -> None:
    """Nothing is rounded: integers beyond 2^53 keep every digit, a fraction keeps its shortest form."""
    assert canonical(written) == (JsonError.JSON_OK, kept)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", JsonError.JSON_MALFORMED),
        (b"{", JsonError.JSON_MALFORMED),
        (b"1", JsonError.JSON_MALFORMED),
        (b"{} {}", JsonError.JSON_MALFORMED),
        (b"\xef\xbb\xbf{}", JsonError.JSON_MALFORMED),
        (b'["\xff"]', JsonError.JSON_MALFORMED),
        (b'["\xc0\xaf"]', JsonError.JSON_MALFORMED),
        (b'["\\ud800"]', JsonError.JSON_MALFORMED),
        (b'["\\u0000"]', JsonError.JSON_MALFORMED),
        (b"[NaN]", JsonError.JSON_MALFORMED),
        (b"[1e999]", JsonError.JSON_MALFORMED),
        (b"[92233720368547758080]", JsonError.JSON_MALFORMED),
        (b"[01]", JsonError.JSON_MALFORMED),
        (b"[1,]", JsonError.JSON_MALFORMED),
        (b"{'a':1}", JsonError.JSON_MALFORMED),
        (b'{"a":1,"a":1}', JsonError.JSON_DUPLICATE),
        (b'{"x":[{"a":1,"\\u0061":2}]}', JsonError.JSON_DUPLICATE),
        (b"[" * 65 + b"]" * 65, JsonError.JSON_DEEP),
        (b"[" * 200_000, JsonError.JSON_DEEP),
    ],
)
def test_what_is_not_one_value_is_refused(data: bytes, error: JsonError) -> None:
    """EX-15: invalid JSON, bad UTF-8, BOM, NUL, duplicate keys at any level (escaped or not), depth beyond 64."""
    assert canonical(data) == (error, None)


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    """Only real nesting is limited; 64 levels are allowed."""
    assert canonical(b'["' + b"[" * 500 + b'\\"["]')[0] == JsonError.JSON_OK
    assert canonical(b"[" * 64 + b"]" * 64)[0] == JsonError.JSON_OK


def test_struct_that_is_ambiguous_is_refused() -> None:
    """A key or a value that stands twice in a Struct's bytes is refused, though protobuf would let the last win."""
    twice = Struct(fields={"a": Value(bool_value=True)}).SerializeToString()
    assert canonical(twice + twice, struct_=True)[0] == JsonError.JSON_DUPLICATE
    entry = b"\x0a\x01a\x12\x02\x20\x01\x12\x02\x20\x00"
    assert canonical(b"\x0a" + bytes([len(entry)]) + entry, struct_=True)[0] == JsonError.JSON_MALFORMED
    both = b"\x0a\x01a\x12\x05\x1a\x01x\x20\x01"
    assert canonical(b"\x0a" + bytes([len(both)]) + both, struct_=True)[0] == JsonError.JSON_MALFORMED
    nan = Struct(fields={"a": Value(number_value=math.nan)}).SerializeToString()
    assert canonical(nan, struct_=True)[0] == JsonError.JSON_MALFORMED


def test_a_full_arena_is_an_error_and_not_a_crash() -> None:
    """A value that needs more working memory than the call has is refused."""
    data = b"[" + b",".join([b"1"] * 1000) + b"]"
    assert canonical(data, arena_bytes=1024) == (JsonError.JSON_ROOM, None)
    assert canonical(b"[1e300]", arena_bytes=600)[0] == JsonError.JSON_ROOM
