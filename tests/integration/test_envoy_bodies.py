"""EX-15 through a real Envoy: a body that did not come whole, or can be read two ways, denies where a rule reads it."""

import json

import pytest

from tests.fix_raw import chunked, exchange, message
from tests.fix_stage import BODY_BYTES_SMALL, TestStage

pytestmark = pytest.mark.envoy

JSON = (b"content-type", b"application/json")
PARTIAL = b"x-envoy-auth-partial-body"
# The policy allows a note whose text is exactly this.
GOOD = b'{"text":"a/b"}'
UNREAD = "403 input.missing.input"

BODIES = [
    # what it shows, header lines, body, answer
    ("whole", [JSON], GOOD, "200"),
    ("escapes", [JSON], b'{"text":"a\\/b"}', "200"),
    ("unicode escapes", [JSON], b'{"text":"\\u0061\\u002fb"}', "200"),
    ("another text", [JSON], b'{"text":"a/c"}', "403 policy.none"),
    ("charset", [(b"content-type", b"application/json; charset=utf-8")], GOOD, "200"),
    ("structured suffix", [(b"content-type", b"application/vnd.note+json")], GOOD, "200"),
    ("another charset", [(b"content-type", b"application/json; charset=utf-16")], GOOD, UNREAD),
    ("no content type", [], GOOD, UNREAD),
    ("text", [(b"content-type", b"text/plain")], GOOD, UNREAD),
    ("compressed", [JSON, (b"content-encoding", b"gzip")], GOOD, UNREAD),
    ("cut", [JSON], GOOD[:-1], UNREAD),
    ("trailing", [JSON], GOOD + b"{}", UNREAD),
    ("duplicate key", [JSON], b'{"text":"x","text":"a/b"}', UNREAD),
    ("duplicate key, escaped", [JSON], b'{"te\\u0078t":"x","text":"a/b"}', UNREAD),
    ("array", [JSON], b'["a/b"]', UNREAD),
    ("not UTF-8", [JSON], b'{"text":"a/b","more":"\xff"}', UNREAD),
    ("byte order mark", [JSON], b"\xef\xbb\xbf" + GOOD, UNREAD),
    ("deep", [JSON], b'{"text":"a/b","x":' + b"[" * 200 + b"]" * 200 + b"}", UNREAD),
    ("missing", [JSON], b"{}", "403 input.missing.text"),
    ("another type", [JSON], b'{"text":7}', "403 input.type.text"),
    ("none", [], b"", "403 policy.none"),
    # A client that says so itself is not believed: Envoy writes this header anew.
    ("forged as partial", [JSON, (PARTIAL, b"true")], GOOD, "200"),
]


@pytest.mark.parametrize("listener", ["raw", "joined"])
@pytest.mark.parametrize(("headers", "body", "expected"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES])
def test_ex_15_a_body_is_read_one_way_or_not_at_all(
    stage: TestStage, headers: list[tuple[bytes, bytes]], body: bytes, expected: str, listener: str
) -> None:
    """EX-15: only a whole JSON object in UTF-8 becomes `input`; the record shows a digest of it and no text."""
    answer = exchange(stage, message(b"/note", b"POST", headers=headers, body=body), listener=listener)
    assert str(answer) == expected
    if answer.status == 200:
        record = stage.record(answer)
        assert len(record["args_digest"]) == 64
        assert "a/b" not in json.dumps(record)


def test_ex_15_two_content_types_are_no_content_type(stage: TestStage) -> None:
    """EX-15, EX-11: which of two the server reads is its own business, so neither counts."""
    both = [JSON, (b"content-type", b"text/plain")]
    answer = exchange(stage, message(b"/note", b"POST", headers=both, body=GOOD))
    assert answer.status == 403


def test_ex_15_chunks_are_one_body(stage: TestStage) -> None:
    """EX-15: without a length, in pieces, the body is the same."""
    assert str(exchange(stage, chunked(b"/note", [GOOD[:5], GOOD[5:]], headers=[JSON]))) == "200"
    assert str(exchange(stage, chunked(b"/note", [b'{"text":', b'"a/c"}'], headers=[JSON]))) == "403 policy.none"


def test_ex_15_a_body_on_a_get_is_a_body(stage: TestStage) -> None:
    """2.6: the method does not say whether there is one."""
    assert str(exchange(stage, message(b"/note", headers=[JSON], body=GOOD))) == "200"
    assert str(exchange(stage, message(b"/note", headers=[JSON], body=GOOD[:-1]))) == UNREAD


def test_ex_15_length_and_chunks_at_once_stop_at_envoy(stage: TestStage) -> None:
    """EX-15: what could be two messages is none."""
    lines = [JSON, (b"content-length", b"3"), (b"transfer-encoding", b"chunked")]
    assert exchange(stage, message(b"/note", b"POST", headers=lines)).status == 400


def _padded(size: int) -> bytes:
    """A good note of exactly `size` bytes: all of it but a part of the padding fits where it is cut."""
    return GOOD + b" " * (size - len(GOOD))


@pytest.mark.parametrize(
    ("size", "headers", "expected"),
    [
        (BODY_BYTES_SMALL, [JSON], "200"),
        (BODY_BYTES_SMALL + 1, [JSON], UNREAD),
        (BODY_BYTES_SMALL * 3, [JSON], UNREAD),
        (BODY_BYTES_SMALL * 3, [JSON, (PARTIAL, b"false")], UNREAD),
        (BODY_BYTES_SMALL * 3, [JSON, (PARTIAL, b"false"), (PARTIAL, b"false")], UNREAD),
    ],
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_ex_15_a_cut_body_is_no_body(
    stage: TestStage, size: int, headers: list[tuple[bytes, bytes]], expected: str, framing: str
) -> None:
    """EX-15: Envoy may cut here; what is left is valid JSON, and a rule that reads it denies all the same."""
    body = _padded(size)
    plain = message(b"/note", b"POST", headers=headers, body=body)
    data = plain if framing == "length" else chunked(b"/note", [body], headers=headers)
    assert str(exchange(stage, data, listener="small")) == expected


def test_ex_15_beyond_the_limit_envoy_refuses(stage: TestStage) -> None:
    """EX-15: as we print it, Envoy answers 413 without asking; a body just below its limit is decided."""
    assert str(exchange(stage, message(b"/note", b"POST", headers=[JSON], body=_padded(65_000)))) == "200"
    assert exchange(stage, message(b"/note", b"POST", headers=[JSON], body=_padded(70_000))).status == 413


def test_ex_15_without_bodies_only_rules_that_read_none_allow(stage: TestStage) -> None:
    """2.1: nothing says that a body was not sent; a rule that reads one denies, others decide."""
    assert str(exchange(stage, message(b"/note", b"POST", headers=[JSON], body=GOOD), listener="bodyless")) == UNREAD
    assert str(exchange(stage, message(b"/v1/rates"), listener="bodyless")) == "200"
