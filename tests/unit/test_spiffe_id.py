"""Row ID-10: only what SPIFFE-ID section 2 allows is a SPIFFE ID, byte for byte; nothing is normalised."""

import string

import pytest

from fastpath.spiffe_id import SpiffeId, SpiffeIdError, check, parse
from sidecar.errors import IdentityError

DOMAIN_BYTES = (string.ascii_lowercase + string.digits + "._-").encode()
PATH_BYTES = (string.ascii_letters + string.digits + "._-").encode()
LONGEST_DOMAIN = b"a" * 255
LONGEST_ID = b"spiffe://a/" + b"x" * (2048 - 11)

VALID = [
    b"spiffe://example.org/agent/support",
    b"spiffe://example.org",
    b"spiffe://1.2.3.4/x",
    b"spiffe://a_b-c.d/x",
    b"spiffe://a/.../.x/x./X",
    b"spiffe://" + LONGEST_DOMAIN + b"/x",
    LONGEST_ID,
]
INVALID = [
    (b"", SpiffeIdError.SPIFFE_ID_EMPTY),
    (LONGEST_ID + b"x", SpiffeIdError.SPIFFE_ID_TOO_LONG),
    (b"Spiffe://a/x", SpiffeIdError.SPIFFE_ID_SCHEME),
    (b"https://a/x", SpiffeIdError.SPIFFE_ID_SCHEME),
    (b"spiffe:/a/x", SpiffeIdError.SPIFFE_ID_SCHEME),
    (b" spiffe://a/x", SpiffeIdError.SPIFFE_ID_SCHEME),
    (b"CN=agent,O=Example", SpiffeIdError.SPIFFE_ID_SCHEME),
    (b"agent.example.org", SpiffeIdError.SPIFFE_ID_SCHEME),
    (b"spiffe://", SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN),
    (b"spiffe:///x", SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN),
    (b"spiffe://" + LONGEST_DOMAIN + b"a/x", SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN),
    (b"spiffe://A/x", SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN),
    (b"spiffe://user@a/x", SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN),
    (b"spiffe://a:80/x", SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN),
    (b"spiffe://a?q", SpiffeIdError.SPIFFE_ID_TRUST_DOMAIN),
    (b"spiffe://a/", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a//x", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/./x", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/x/..", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/x/", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/x%2fy", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/x?q", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/x#f", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/x\n", SpiffeIdError.SPIFFE_ID_PATH),
    (b"spiffe://a/x\0", SpiffeIdError.SPIFFE_ID_PATH),
    ("spiffe://a/é".encode(), SpiffeIdError.SPIFFE_ID_PATH),
]


@pytest.mark.parametrize("data", VALID)
def test_what_the_standard_allows_is_accepted(data: bytes) -> None:
    """ID-10: names that look odd but follow the rules stay legal (`...`, `.x`, IPv4-looking, the longest lengths)."""
    assert check(data) == SpiffeIdError.SPIFFE_ID_OK


@pytest.mark.parametrize(("data", "cause"), INVALID)
def test_what_the_standard_forbids_is_refused_with_its_cause(data: bytes, cause: SpiffeIdError) -> None:
    """ID-10: upper case, userinfo, port, query, fragment, escapes, dot and empty segments, newline, NUL."""
    assert check(data) == cause


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_trust_domain_and_path(byte: int) -> None:
    """ID-10: of all 256 bytes exactly the listed ones may stand in a trust domain and in a path segment."""
    one = bytes([byte])
    assert (check(b"spiffe://a" + one + b"b/x") == 0) == (byte in DOMAIN_BYTES or one == b"/")
    assert (check(b"spiffe://a/x" + one + b"y") == 0) == (byte in PATH_BYTES or one == b"/")


def test_parse_gives_the_parts() -> None:
    """The parts put together are the text that came in."""
    parsed = parse("spiffe://example.org/ns/a")
    assert parsed == SpiffeId("example.org", "/ns/a")
    assert str(parsed) == "spiffe://example.org/ns/a"
    assert parse("spiffe://example.org") == SpiffeId("example.org", "")


def test_parse_names_the_cause_and_shortens_the_text() -> None:
    """A refused text is quoted escaped and cut, so that it cannot forge or flood a log."""
    with pytest.raises(IdentityError, match="trust domain must be"):
        parse("spiffe://Upper/x")
    with pytest.raises(IdentityError) as caught:
        parse("spiffe://a/\n\x1b[31m" + "x" * 5000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
