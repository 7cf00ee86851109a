"""One reading or none: method, host, path and query (rows EX-03 to EX-10, H2-20)."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fix_wire import decode_http

# row, raw path, strict: canonical path or refusal, collapsing: the same.
OK = ""
PATHS = [
    ("EX-03", "//admin", "path.not_canonical", "/admin"),
    ("EX-03", "///admin", "path.not_canonical", "/admin"),
    ("EX-03", "/admin//x", "path.not_canonical", "/admin/x"),
    ("EX-03", "/admin//", "path.not_canonical", "/admin/"),
    ("EX-03", "//", "path.not_canonical", "/"),
    ("EX-04", "/a/./b", "path.not_canonical", "/a/b"),
    ("EX-04", "/a/../admin", "path.not_canonical", "/admin"),
    ("EX-04", "/a/b/../../admin", "path.not_canonical", "/admin"),
    ("EX-04", "/..", "path.not_canonical", "/"),
    ("EX-04", "/../../admin", "path.not_canonical", "/admin"),
    ("EX-04", "/a/.", "path.not_canonical", "/a/"),
    ("EX-04", "/a/..", "path.not_canonical", "/"),
    ("EX-04", "/a/..;/admin", "path.dot_params", "path.dot_params"),
    ("EX-04", "/a/.;x=1/admin", "path.dot_params", "path.dot_params"),
    ("EX-04", "/a/..%3b/admin", "path.dot_params", "path.dot_params"),
    ("EX-04", "/.%2e/", "path.not_canonical", "/"),
    ("EX-04", "/a/%2e%2E/admin", "path.not_canonical", "/admin"),
    ("EX-04", "/a/...", "/a/...", "/a/..."),
    ("EX-04", "/a/.hidden", "/a/.hidden", "/a/.hidden"),
    ("EX-04", "/a;v=1/b", "path.params", "/a;v=1/b"),
    ("EX-04", "/a%3Bv=1", "/a;v=1", "/a;v=1"),
    ("EX-05", "/p?x=1", "/p", "/p"),
    ("EX-05", "/p%3Fx=1", "/p?x=1", "/p?x=1"),
    ("EX-05", "/p#f", "path.fragment", "path.fragment"),
    ("EX-05", "/p?x=1#f", "path.fragment", "path.fragment"),
    ("EX-05", "/p%23f", "/p#f", "/p#f"),
    ("EX-05", "/p?", "/p", "/p"),
    ("EX-05", "/p?a;b=1", "/p", "/p"),
    ("EX-05", "?", "path.relative", "path.relative"),
    ("EX-06", "/a%2fb", "path.encoded_slash", "path.encoded_slash"),
    ("EX-06", "/a%2Fb", "path.encoded_slash", "path.encoded_slash"),
    ("EX-06", "/a%5cb", "path.encoded_slash", "path.encoded_slash"),
    ("EX-06", "/a%5Cb", "path.encoded_slash", "path.encoded_slash"),
    ("EX-06", "/a\\b", "path.backslash", "path.backslash"),
    ("EX-06", "/a%252fb", "path.double_escape", "/a%2fb"),
    ("EX-06", "/a%c0%afb", "path.bad_utf8", "path.bad_utf8"),
    ("EX-06", "/a%e0%80%afb", "path.bad_utf8", "path.bad_utf8"),
    ("EX-06", "/a%ffb", "path.bad_utf8", "path.bad_utf8"),
    ("EX-06", "/a%ed%a0%80", "path.bad_utf8", "path.bad_utf8"),
    ("EX-06", "/a%u002fb", "path.bad_escape", "path.bad_escape"),
    ("EX-06", "/a%zz", "path.bad_escape", "path.bad_escape"),
    ("EX-06", "/a%", "path.bad_escape", "path.bad_escape"),
    ("EX-06", "/a%2", "path.bad_escape", "path.bad_escape"),
    ("EX-06", "/100%25", "/100%", "/100%"),
    ("EX-06", "/%61dmin", "path.not_canonical", "/admin"),
    ("EX-06", "/%7Euser", "path.not_canonical", "/~user"),
    ("EX-06", "/a%20b", "/a b", "/a b"),
    ("EX-07", "/ADMIN", "/ADMIN", "/ADMIN"),
    ("EX-07", "/caf%C3%A9", "/café", "/café"),
    ("EX-07", "/caf%c3%a9", "/café", "/café"),
    ("EX-07", "/cafe%CC%81", "path.not_nfc", "path.not_nfc"),
    ("EX-07", "/%E2%84%AB", "path.not_nfc", "path.not_nfc"),  # ANGSTROM SIGN, which NFC replaces
    ("EX-07", "/%EF%AC%81le", "/\ufb01le", "/\ufb01le"),  # a ligature is NFC, and not the letters f and i
    ("EX-07", "/admin.", "/admin.", "/admin."),
    ("EX-07", "/admin%20", "/admin ", "/admin "),
    ("EX-07", "/a%00b", "path.control", "path.control"),
    ("EX-07", "/a%09b", "path.control", "path.control"),
    ("EX-07", "/a%0d%0ab", "path.control", "path.control"),
    ("EX-07", "/a%7fb", "path.control", "path.control"),
    ("EX-07", "/a%C2%85b", "path.control", "path.control"),
    ("EX-07", "/a\tb", "path.control", "path.control"),
    ("EX-07", "/a b", "path.control", "path.control"),
    ("EX-07", "/café", "path.not_ascii", "path.not_ascii"),
    ("EX-08", "http://other.example/admin", "path.relative", "path.relative"),
    ("EX-10", "pkg.Svc/Get", "path.relative", "path.relative"),
    ("EX-10", "", "path.relative", "path.relative"),
    ("EX-10", "*", "path.relative", "path.relative"),
]


@pytest.mark.parametrize(("row", "raw", "strict", "loose"), PATHS, ids=[f"{p[0]} {p[1]}" for p in PATHS])
def test_paths_have_one_reading_or_none(row: str, raw: str, strict: str, loose: str):
    """The table's row, under `strict_path` and without it."""
    for strict_path, want in ((True, strict), (False, loose)):
        call = decode_http(path=raw, strict_path=strict_path)
        refused = not (want.startswith("/"))
        assert call["refusal"] == (want if refused else OK), row
        assert call["path"] == ("" if refused else want), row


def test_the_path_has_a_length_limit():
    """EX-07: `path_bytes_max` counts the raw path with its query."""
    assert decode_http(path="/" + "a" * 8191)["refusal"] == OK
    assert decode_http(path="/" + "a" * 8192)["refusal"] == "path.too_long"
    assert decode_http(path="/?" + "a" * 8192)["refusal"] == "path.too_long"


QUERIES = [
    ("/p?x=1", "x=1", [("x", "1")]),
    ("/p?x=1?y=2", "x=1?y=2", [("x", "1?y=2")]),
    ("/p%3Fx=1", "", []),
    ("/p?", "", []),
    ("/p?a;b=1", "a;b=1", [("a;b", "1")]),
    ("/p?a=1&a=2", "a=1&a=2", [("a", "1"), ("a", "2")]),
    ("/p?A=1&a=2", "A=1&a=2", [("A", "1"), ("a", "2")]),
    ("/p?&a=&=b&c", "&a=&=b&c", [("a", ""), ("", "b"), ("c", "")]),
    ("/p?a+b=c%2Bd%20e", "a+b=c%2Bd%20e", [("a b", "c+d e")]),
    ("/p?a=%2561", "a=%2561", [("a", "%61")]),
    ("/p?n=a%0Ab", "n=a%0Ab", [("n", "a\nb")]),
    ("/p?u=//x/../y", "u=//x/../y", [("u", "//x/../y")]),
    ("/p?a=b=c", "a=b=c", [("a", "b=c")]),
    ("/p?n=%C3%A9", "n=%C3%A9", [("n", "é")]),
]


@pytest.mark.parametrize(("raw", "query", "pairs"), QUERIES, ids=[q[0] for q in QUERIES])
def test_the_query_begins_at_the_first_raw_question_mark(raw: str, query: str, pairs: list[tuple[str, str]]):
    """EX-05: split there, decoded once, only `&` separates; duplicates stay in order."""
    call = decode_http(path=raw)
    assert (call["refusal"], call["query"], call["query_pairs"]) == (OK, query, pairs)


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        ("/p?a=%zz", "query.bad_escape"),
        ("/p?a=%", "query.bad_escape"),
        ("/p?a=%00", "query.control"),
        ("/p?a=%ff", "query.bad_utf8"),
        ("/p?%c0%af=1", "query.bad_utf8"),
        ("/p?" + "a&" * 256, "query.too_many"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused(raw: str, refusal: str):
    """EX-05, EX-06: the same rules for escapes; text in a query may hold line ends, not NUL."""
    assert decode_http(path=raw)["refusal"] == refusal


HOSTS = [
    ("H.EXAMPLE", "http", "h.example", 0),
    ("h:8080", "http", "h", 8080),
    ("h:80", "http", "h", 0),
    ("h:080", "http", "h", 0),
    ("h:443", "http", "h", 443),
    ("h:443", "https", "h", 0),
    ("h:443", "HTTPS", "h", 0),
    ("h:80", "https", "h", 80),
    ("h:80", "", "h", 80),
    ("h.", "http", "h", 0),
    ("H.Example.:80", "http", "h.example", 0),
    ("xn--caf-dma.example", "http", "xn--caf-dma.example", 0),
    ("my_svc.ns", "http", "my_svc.ns", 0),
    ("127.0.0.1:9", "http", "127.0.0.1", 9),
    ("[::1]:8080", "http", "[::1]", 8080),
    ("[2001:DB8:0:0::1]", "http", "[2001:db8::1]", 0),
    ("[0:0:0:0:0:0:0:1]", "http", "[::1]", 0),
    ("a" * 63 + ".b", "http", "a" * 63 + ".b", 0),
]


@pytest.mark.parametrize(("raw", "scheme", "host", "port"), HOSTS)
def test_hosts_are_lower_case_without_default_port_and_trailing_dot(raw: str, scheme: str, host: str, port: int):
    """EX-08: each host has one spelling; a default port is one only under its scheme."""
    call = decode_http(host=raw, scheme=scheme)
    assert (call["refusal"], call["host"], call["port"]) == (OK, host, port)


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        ("", "host.missing"),
        ("a,b", "host.list"),
        ("a, b", "host.list"),
        ("user@h", "host.userinfo"),
        ("user:pw@h:80", "host.userinfo"),
        *((raw, "host.bad") for raw in [
            ".", "..", "h..", "a..b", ".h", "h:", "h:0", "h:65536", "h:123456", "h:8o", "h:80:80", "h h", "h\t",
            "h\x00", "h/p", "h?q", "h#f", "h\\x", "h%41", "é.example", "h!", "*", "[::1", "[]", "[::1]x",
            "[::1%25eth0]", "[1.2.3.4]", "::1", "1.2.3", "1.2.3.4.5", "0x7f.1", "0x7f000001", "2130706433",
            "127.0.0.01", "256.1.1.1", "a" * 64 + ".b", "a." * 127 + "b",
        ]),
    ],
)  # fmt: skip
def test_hosts_with_two_readings_are_refused(raw: str, refusal: str):
    """EX-08: a list, userinfo, numbers that some resolvers take for an address, text that is no host."""
    assert decode_http(host=raw)["refusal"] == refusal


def test_forwarded_headers_change_nothing():
    """EX-08, EX-09, EX-12: who the client says it is, was, or wants to be is never read."""
    forged = {
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
        "x-forwarded-port": "1",
        "forwarded": "host=evil.example",
        "x-original-url": "/admin",
        "x-rewrite-url": "/admin",
        "x-envoy-original-path": "/admin",
        "x-envoy-original-host": "evil.example",
        "x-http-method-override": "DELETE",
        "x-http-method": "DELETE",
        "x-method-override": "DELETE",
        ":path": "/admin",
        ":authority": "evil.example",
        ":method": "DELETE",
    }
    plain, call = decode_http(path="/a", host="h:80"), decode_http(path="/a", host="h:80", headers=forged)
    same = ["method", "path", "host", "port", "query", "scheme", "refusal"]
    assert [call[key] for key in same] == [plain[key] for key in same]


@pytest.mark.parametrize("method", ["GET", "get", "FOO", "M-SEARCH", "x!", "PROPFIND"])
def test_a_method_is_the_token_as_sent(method: str):
    """EX-09: methods are case-sensitive, so `get` stays `get` and is no GET."""
    call = decode_http(method=method)
    assert (call["refusal"], call["method"]) == (OK, method)


@pytest.mark.parametrize("method", ["", "GE T", "GET\n", "GET,POST", "GÉT", "A" * 65, "a/b"])
def test_a_method_that_is_no_token_is_refused(method: str):
    """EX-09."""
    assert decode_http(method=method)["refusal"] == "method.bad"


def test_targets_without_a_path():
    """RFC 9112 section 3.2: `*` belongs to OPTIONS, no path at all to CONNECT."""
    assert (decode_http(method="OPTIONS", path="*")["refusal"], decode_http(method="CONNECT", path="")["refusal"]) == (
        OK,
        OK,
    )
    assert decode_http(method="GET", path="*")["refusal"] == "path.relative"


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("/s.S/M", OK),
        ("/S.s/m", OK),  # a path of its own: compared with case
        ("s.S/M", "path.relative"),
        ("//s.S/M", "path.not_canonical"),
        ("/s.S/M/", "path.not_grpc"),
        ("/s.S/M?x", "path.not_grpc"),
        ("/s.S/M?", "path.not_grpc"),
        ("/s.S/%4d", "path.not_canonical"),
        ("/s.S/a%20b", "path.not_grpc"),
        ("/s.S", "path.not_grpc"),
        ("/", "path.not_grpc"),
        ("", "path.relative"),
        ("*", "path.relative"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "application/grpc-web"])
def test_a_grpc_path_is_service_and_method(path: str, refusal: str, content_type: str):
    """EX-10, H2-20: no other spelling of a gRPC method gets through."""
    call = decode_http(method="POST", path=path, headers={"content-type": content_type})
    assert call["refusal"] == refusal
    assert refusal or call["path"] == path


SEGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "",
                ".",
                "..",
                "a",
                "%2e",
                "%2E%2e",
                "..;",
                "%2f",
                "%5c",
                "%",
                "%25",
                "%252e",
                "%C3%A9",
                "e%CC%81",
                ";",
                "~",
            ]
        ),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FF), max_size=4),
        st.text(max_size=3).map(lambda text: quote(text.encode("utf-8", "surrogatepass"))),
        st.text("/.%2efF5cC;\\ab?", max_size=8),
    ),
    max_size=6,
)


@settings(max_examples=1000, deadline=None)
@given(SEGMENTS, st.booleans())
@example(["%25", "2e"], False)
def test_canonical_paths_are_clean_and_fixed_points(segments: list[str], strict: bool):
    """No accepted path holds `//`, a dot segment or a control byte, and the canonical form is its own."""
    call = decode_http(path="/" + "/".join(segments), strict_path=strict)
    if call["refusal"]:
        return
    path = str(call["path"])
    assert path.startswith("/")
    assert "//" not in path
    assert "\\" not in path
    assert not {".", ".."} & {segment.split(";")[0] for segment in path.split("/")}
    assert not any(unicodedata.category(c) == "Cc" for c in path)
    assert unicodedata.is_normalized("NFC", path)
    again = decode_http(path=quote(path, safe="/:@!$&'()*+,=~"), strict_path=strict)
    assert (again["refusal"], again["path"]) == (OK, path)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.text("aA1.:[]-_@,xX0\u00e9%", max_size=12), st.from_regex(r"\A[A-Za-z0-9.-]{1,12}(:[0-9]{1,5})?\Z"))
)
def test_canonical_hosts_are_fixed_points(raw: str):
    """A canonical host and port are their own canonical form."""
    call = decode_http(host=raw)
    if call["refusal"]:
        return
    host, port = call["host"], call["port"]
    again = decode_http(host=f"{host}:{port}" if port else str(host))
    assert (again["refusal"], again["host"], again["port"]) == (OK, host, port)
    assert host == str(host).lower()
