"""What a CheckRequest says: headers in both forms, typed fields, body, metadata (EX-11 to EX-15, EX-21)."""

from __future__ import annotations

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from hypothesis import given
from hypothesis import strategies as st

from fastpath import envoy
from fastpath.wire import WireError
from tests.fix_wire import decode_http, field, http_request, in_http


def decode(message: CheckRequest) -> dict[str, object]:
    call = envoy.decode(message.SerializeToString())
    assert call is not None
    return call


# ---------------------------------------------------------------- headers


def test_both_header_forms_are_one_sorted_list():
    """ext_authz.md 2.1: a server that reads only one of `headers` and `header_map` sees nothing of the other."""
    pairs = {"x-b": "2", "authorization": "Bearer t", "x-a": "1"}
    from_map = decode_http(headers=pairs)
    from_raw = decode_http(raw_headers=[(k, v.encode()) for k, v in pairs.items()])
    assert from_map["headers"] == from_raw["headers"] == sorted(pairs.items())
    assert (from_map["joined"], from_raw["joined"]) == (True, False)


@given(st.dictionaries(st.text("abx-", min_size=1, max_size=12), st.just("v"), max_size=40))
def test_names_of_any_length_and_number_are_sorted_by_their_bytes(pairs: dict[str, str]):
    """Their order is found by their first eight bytes, few lines and many in two ways."""
    for call in (decode_http(headers=pairs), decode_http(raw_headers=[(k, v.encode()) for k, v in pairs.items()])):
        assert call["headers"] == sorted(pairs.items())


def test_an_entry_is_read_in_whatever_order_it_stands():
    """A map's entry may hold its value first, a key twice, or lengths with more bytes than they need."""
    key, value = field(1, b"x-role"), field(2, b"admin")
    entries = [key + value, value + key, field(1, b"x-other") + key + value, b"\x0a\x86\x00x-role" + value]
    for entry in entries:
        call = envoy.decode(in_http(field(3, entry)))
        assert call is not None
        assert call["headers"] == [("x-role", "admin")]


def test_repeated_headers_stay_apart_in_the_raw_form_and_in_order():
    """EX-11: one line per occurrence; the map's one line is marked as possibly several values joined."""
    call = decode_http(raw_headers=[("x-role", b"user"), ("a", b"1"), ("x-role", b"admin")])
    assert call["headers"] == [("a", "1"), ("x-role", "user"), ("x-role", "admin")]
    assert decode_http(headers={"x-role": "user,admin"})["joined"] is True


def test_a_thousand_values_are_read_and_too_many_refused():
    """EX-11: the limit on lines is a refusal, not a truncation."""
    call = decode_http(raw_headers=[("x-role", b"%d" % i) for i in range(1000)])
    assert (call["refusal"], len(call["headers"])) == ("", 1000)  # type: ignore[arg-type]
    assert decode_http(raw_headers=[("x-role", b"")] * 1025)["refusal"] == "headers.too_many"
    assert decode_http(headers={f"h{i}": "" for i in range(1025)})["refusal"] == "headers.too_many"


def test_a_million_map_entries_are_refused_within_the_memory_of_a_call():
    """H2-28: 1M entries cost no more memory than the cap on lines."""
    entry = field(3, field(1, b"k") + field(2, b"v"))
    call = envoy.decode(in_http(entry * 1_000_000), arena_bytes=1 << 20)
    assert call is not None
    assert call["refusal"] == "headers.too_many"
    entry = field(10, field(1, b"k") + field(2, b"v"))
    call = envoy.decode(field(1, entry * 1_000_000), arena_bytes=1 << 20)
    assert call is not None
    assert call["refusal"] == "headers.too_many"


def test_a_small_arena_fails_the_call_and_never_writes_past_it():
    """A call that does not fit ends in MemoryError here and in ERROR in the data plane."""
    data = http_request(
        path="/" + "%C3%A9" * 100 + "?" + "a=1&" * 50, headers={f"H{i}": "v" for i in range(50)}
    ).SerializeToString()
    sizes = range(0, 120_000, 97)
    outcomes = []
    for size in sizes:
        try:
            outcomes.append(envoy.decode(data, arena_bytes=size) is not None)
        except MemoryError:
            outcomes.append(False)
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]


@pytest.mark.parametrize("name", ["x role", "", "x:role", "x-rôle", "x\r\ny", "x\0", "(x)"])
def test_a_header_name_that_is_no_token_is_refused(name: str):
    """EX-18, H2-21: such a name cannot have come through HTTP."""
    assert decode_http(headers={name: "v"})["refusal"] == "headers.name"


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\0", "\x7f", "\x1b[0m"])
def test_a_header_value_with_control_bytes_is_refused(value: str):
    """H2-21; a tab is allowed (RFC 9110 section 5.5)."""
    assert decode_http(headers={"x": value})["refusal"] == "headers.control"
    assert decode_http(raw_headers=[("x", value.encode())])["refusal"] == "headers.control"
    assert decode_http(headers={"x": "a\tb"})["refusal"] == ""


def test_names_are_compared_without_case_and_with_underscores():
    """EX-12: `X-Role` is `x-role` (two lines then), `x_role` is not."""
    call = decode_http(headers={"X-Role": "1", "x-role": "2", "x_role": "3"})
    assert call["headers"] == [("x-role", "1"), ("x-role", "2"), ("x_role", "3")]


def test_pseudo_headers_are_not_headers():
    """EX-12: path, host and method come from the typed fields only."""
    forged = {":path": "/admin", ":authority": "evil.example", ":method": "DELETE", ":x": "1", "a": "b"}
    for call in (decode_http(headers=forged), decode_http(raw_headers=[(k, v.encode()) for k, v in forged.items()])):
        assert call["headers"] == [("a", "b")]
        assert (call["path"], call["host"], call["method"], call["refusal"]) == ("/", "api.example", "GET", "")


def test_both_forms_at_once_are_refused():
    """Two lists of headers where Envoy sends one: ambiguous."""
    assert decode_http(headers={"a": "1"}, raw_headers=[("a", b"1")])["refusal"] == "headers.two_forms"
    assert decode_http(headers={":path": "/"}, raw_headers=[("a", b"1")])["refusal"] == "headers.two_forms"


def test_value_and_raw_value_that_differ_are_refused():
    """One line with two values."""
    message = http_request()
    line = message.attributes.request.http.header_map.headers.add(key="x-role", value="user", raw_value=b"admin")
    assert decode(message)["refusal"] == "headers.two_forms"
    line.raw_value = b"user"
    assert decode(message)["headers"] == [("x-role", "user")]


def test_a_host_header_that_contradicts_the_authority_is_refused():
    """H2-21: `host` and `:authority` are one thing."""
    assert decode_http(host="a.example", headers={"host": "A.example"})["refusal"] == ""
    assert decode_http(host="a.example", headers={"host": "b.example"})["refusal"] == "host.conflict"
    both = [("host", b"a.example"), ("host", b"b.example")]
    assert decode_http(host="a.example", raw_headers=both)["refusal"] == "host.conflict"


# ---------------------------------------------------------------- EX-13


def test_raw_bytes_that_are_not_utf8_are_replaced_as_envoy_does_and_marked():
    """EX-13: `\\xff\\xffadmin` and `\\xfe\\xfeadmin` both read `!!admin`; the mark tells them apart."""
    call = decode_http(
        raw_headers=[("x-a", b"\xff\xfeadmin"), ("x-b", b"!!admin"), ("x-c", "é".encode()), ("x-d", b"a\xc3")]
    )
    assert call["headers"] == [("x-a", "!!admin"), ("x-b", "!!admin"), ("x-c", "é"), ("x-d", "a!")]
    assert call["sanitised"] == ["x-a", "x-d"]
    assert call["refusal"] == ""


def test_an_exclamation_mark_from_the_map_is_marked_since_nothing_tells_whose_it_is():
    """EX-13: the mark refuses nothing by itself: a user agent with a `!` passes."""
    call = decode_http(headers={"user-agent": "Yahoo!", "x-user": "!!admin", "x-ok": "admin"})
    assert (call["refusal"], call["sanitised"]) == ("", ["user-agent", "x-user"])


# ---------------------------------------------------------------- callers other than Envoy's HTTP filter


def test_a_network_filter_call_has_no_http():
    """ext_authz.md 2.1: absent `http` is a call of its own kind, not a malformed one."""
    message = CheckRequest()
    message.attributes.source.principal = "spiffe://a.test/agent"
    message.attributes.tls_session.sni = "db.example"
    call = decode(message)
    assert (call["has_http"], call["refusal"], call["sni"], call["size"]) == (False, "", "db.example", -1)
    empty = envoy.decode(b"")
    assert empty is not None
    assert (empty["has_http"], empty["refusal"]) == (False, "")


def grpc_request(*headers: tuple[str, bytes]) -> CheckRequest:
    """As gRPC's own ext_authz sends it (gRFC A92): header_map only, POST, no scheme."""
    message = CheckRequest()
    http = message.attributes.request.http
    http.method, http.size, http.protocol = "POST", -1, "HTTP/2"
    for key, value in (("content-type", b"application/grpc"), *headers):
        http.header_map.headers.add(key=key, raw_value=value)
    return message


def test_grpc_callers_may_leave_path_and_host_to_the_pseudo_headers():
    """gRFC A92: the typed fields count when set, else `:path` and `:authority` of header_map."""
    message = grpc_request((":path", b"/pkg.Svc/Get"), (":authority", b"svc.example:443"))
    call = decode(message)
    assert (call["refusal"], call["path"], call["host"], call["port"]) == ("", "/pkg.Svc/Get", "svc.example", 443)
    message.attributes.request.http.path = "/pkg.Svc/Put"
    assert decode(message)["path"] == "/pkg.Svc/Put"


@pytest.mark.parametrize(
    "twice",
    [[(":path", b"/a/B"), (":path", b"/a/C")], [(":path", b"/a/\xff")], [(":authority", b"a"), (":authority", b"b")]],
)
def test_a_pseudo_header_that_is_ambiguous_is_refused(twice: list[tuple[str, bytes]]):
    """EX-12, H2-20: two `:path`, or one that is not text."""
    assert decode(grpc_request(*twice))["refusal"] == "headers.pseudo"


def test_pseudo_headers_of_the_map_never_stand_in():
    """EX-12: only the raw form, which Envoy sends unjoined, may fill an empty field."""
    assert decode_http(path="", headers={":path": "/a"})["refusal"] == "path.relative"
    assert decode_http(host="", headers={":authority": "a"})["refusal"] == "host.missing"


def test_query_and_fragment_fields_must_not_contradict_the_path():
    """ext_authz.md 2.1: Envoy leaves both empty."""
    for path, query, refusal in [
        ("/a?b=1", "b=1", ""),
        ("/a?b=1", "b=2", "query.conflict"),
        ("/a", "b=1", "query.conflict"),
    ]:
        message = http_request(path=path)
        message.attributes.request.http.query = query
        assert decode(message)["refusal"] == refusal
    message = http_request()
    message.attributes.request.http.fragment = "f"
    assert decode(message)["refusal"] == "path.fragment"


# ---------------------------------------------------------------- body


@pytest.mark.parametrize(
    ("headers", "complete"),
    [
        ([], True),
        ([("x-envoy-auth-partial-body", b"false")], True),
        ([("x-envoy-auth-partial-body", b"true")], False),
        ([("x-envoy-auth-partial-body", b"")], False),
        ([("x-envoy-auth-partial-body", b"TRUE")], False),
        ([("x-envoy-auth-partial-body", b"false"), ("x-envoy-auth-partial-body", b"true")], False),
        ([("content-length", b"2")], True),
        ([("content-length", b"3")], False),
        ([("content-length", b"2x")], False),
        ([("content-length", b"-2")], False),
        ([("content-length", b"2"), ("content-length", b"2")], False),
        ([("content-length", b"9" * 30)], False),
        ([("transfer-encoding", b"chunked")], True),
    ],
)
def test_a_body_is_complete_when_nothing_says_otherwise(headers: list[tuple[str, bytes]], complete: bool):
    """EX-15: marked partial by any line, or another length than announced, is not complete."""
    call = decode_http(raw_headers=headers, raw_body=b"{}")
    assert (call["body"], call["body_present"], call["body_complete"]) == (b"{}", True, complete)


def test_body_and_raw_body():
    """One of them, whichever form the filter was configured for; without either there is no body and no signal."""
    assert decode_http(body="{}")["body"] == b"{}"
    assert decode_http(raw_body=b"\xff")["body"] == b"\xff"
    assert decode_http(body="{}", raw_body=b"[]")["refusal"] == "body.two_forms"
    call = decode_http(headers={"content-length": "2"})
    assert (call["body_present"], call["body_complete"]) == (False, False)


# ---------------------------------------------------------------- the rest


def test_extensions_are_sorted_and_single():
    """EX-21: lookups by exact name; protobuf's map keeps the last of two."""
    assert decode_http(extensions={"b": "2", "a": "1"})["extensions"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize("namespace", ["envoy.filters.http.mcp", "mcp_proxy"])
def test_mcp_metadata_names_method_and_subject(namespace: str):
    """agents.md 5.2: both namespaces; a resource is named by its uri."""
    message = http_request()
    struct = message.attributes.metadata_context.filter_metadata[namespace]
    struct.update({"method": "tools/call", "id": 1, "params": {"name": "search", "uri": "file://x"}})
    call = decode(message)
    assert (call["mcp_metadata"], call["mcp_method"], call["mcp_name"]) == (True, "tools/call", "search")
    struct.update({"method": "resources/read"})
    assert decode(message)["mcp_name"] == "file://x"
    struct.update({"method": 3, "params": "x"})
    call = decode(message)
    assert (call["mcp_metadata"], call["mcp_method"], call["mcp_name"]) == (True, "", "")


def test_two_namespaces_that_disagree_are_refused():
    """Two values where one is expected."""
    message = http_request()
    for namespace, tool in (("envoy.filters.http.mcp", "search"), ("mcp_proxy", "delete")):
        struct = message.attributes.metadata_context.filter_metadata[namespace]
        struct.update({"method": "tools/call", "params": {"name": tool}})
    assert decode(message)["refusal"] == "mcp.metadata_conflict"


def test_the_source_is_passed_on_unparsed():
    """EX-14: whether `principal` means anything depends on who the caller is, which is not decided here."""
    call = decode_http(principal="CN=agent", headers={"x-forwarded-client-cert": "URI=spiffe://evil.test/x"})
    assert (call["source_principal"], call["source_address"]) == ("CN=agent", "10.0.0.7")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x08" + b"\xff" * 10, WireError.WIRE_BAD_VARINT),
        (b"\x00", WireError.WIRE_BAD_TAG),
        (b"\x0a\x05", WireError.WIRE_TRUNCATED),
        (b"\x0c", WireError.WIRE_BAD_GROUP),
        (b"\x0b" * 200, WireError.WIRE_TOO_DEEP),
        (in_http(field(4, b"\xff")), WireError.WIRE_BAD_UTF8),
    ],
)
def test_bytes_that_are_no_check_request_have_a_verdict(data: bytes, error: WireError):
    """H2-28: malformed is told apart from allowed, and says what is wrong."""
    assert envoy.verdict(data) == error
    assert envoy.decode(data) is None
