"""RFC 9113 section 8: what is a well-formed request.

A request that is malformed in HTTP's terms resets its stream with PROTOCOL_ERROR (section 8.1.1). One that is
well-formed HTTP but no gRPC call of ours is answered with a status and never decided.
"""

import pytest

from tests.fix_http2 import (
    ASK,
    PROTOCOL,
    Answered,
    Case,
    Reaction,
    Stream,
    body,
    check,
    headers,
    ids,
    raw_field,
)
from tests.fix_native import END_HEADERS, END_STREAM, HEADERS, NativeServer, RawClient, call_headers, frame

MALFORMED = Stream((PROTOCOL,))
NO_CALL = Answered("13")
PSEUDO = [one for one in call_headers() if one[0].startswith(":")]
REGULAR = [one for one in call_headers() if not one[0].startswith(":")]


def with_field(section: str, name: str, field: bytes, value: bytes, reaction: Reaction = MALFORMED) -> Case:
    """A call with one field more, as these bytes."""

    def send(client: RawClient) -> bytes:
        return frame(HEADERS, END_HEADERS, 1, client.block(call_headers()) + raw_field(field, value)) + body()

    return Case(section, name, send, reaction)


def with_list(section: str, name: str, fields: list[tuple[str, str]], reaction: Reaction = MALFORMED) -> Case:
    """A call with exactly these fields."""

    def send(client: RawClient) -> bytes:
        return frame(HEADERS, END_HEADERS, 1, client.block(fields)) + body()

    return Case(section, name, send, reaction)


def without(name: str) -> list[tuple[str, str]]:
    return [one for one in call_headers() if one[0] != name]


def trailers(client: RawClient, fields: list[tuple[str, str]], flags: int = END_HEADERS | END_STREAM) -> bytes:
    return headers(client) + body(flags=0) + frame(HEADERS, flags, 1, client.block(fields))


def with_length(name: str, value: str, data: bytes, reaction: Reaction) -> Case:
    return Case("8.1.1", name, lambda c: headers(c, content_length=value) + data, reaction)


HALF = len(ASK) // 2
MESSAGES = [
    Case("8.1", "headers, data", lambda c: headers(c) + body(), Answered()),
    Case("8.1", "headers that end the stream", lambda c: headers(c, 1, 5), Answered("13", calls=0)),
    Case("8.1", "trailers", lambda c: trailers(c, [("x-t", "v")]), NO_CALL),
    Case("8.1", "trailers that do not end the stream", lambda c: trailers(c, [("x-t", "v")], END_HEADERS), MALFORMED),
    Case("8.1", "a pseudo-header in trailers", lambda c: trailers(c, [(":method", "POST")]), MALFORMED),
    with_length("content-length that is right", str(len(ASK)), body(), Answered()),
    with_length(
        "content-length of DATA in two frames",
        str(len(ASK)),
        body(1, 0, ASK[:HALF]) + body(1, 1, ASK[HALF:]),
        Answered(),
    ),
    with_length("content-length that is too long", str(len(ASK) + 1), body(), MALFORMED),
    with_length("content-length that is too short", str(len(ASK) - 1), body(), MALFORMED),
    with_length(
        "content-length too short for two frames", str(HALF), body(1, 0, ASK[:HALF]) + body(1, 1, ASK[HALF:]), MALFORMED
    ),
    with_length("content-length that is no number", "many", body(), MALFORMED),
    with_length("content-length without DATA", "5", body(data=b""), MALFORMED),
    Case("8.1.1", "content-length twice", lambda c: _twice(c, "content-length", str(len(ASK))), MALFORMED),
]


def _twice(client: RawClient, name: str, value: str) -> bytes:
    return frame(HEADERS, END_HEADERS, 1, client.block([*call_headers(), (name, value), (name, value)])) + body()


FIELDS = [
    with_field("8.2", "a field", b"x-any", b"value", Answered()),
    with_field("8.2", "an empty value", b"x-any", b"", Answered()),
    with_field("8.2", "bytes over 127 in a value", b"x-any", b"\xe9\xff", Answered()),
    with_field("8.2.1", "an upper-case name", b"X-any", b"v"),
    with_field("8.2.1", "an empty name", b"", b"v"),
    with_field("8.2.1", "a blank in a name", b"x any", b"v"),
    with_field("8.2.1", "a control in a name", b"x\x01any", b"v"),
    with_field("8.2.1", "DEL in a name", b"x\x7fany", b"v"),
    with_field("8.2.1", "a byte over 127 in a name", b"x\xe9", b"v"),
    with_field("8.2.1", "a colon within a name", b"x:any", b"v"),
    with_field("8.2.1", "NUL in a value", b"x-any", b"a\0b"),
    with_field("8.2.1", "LF in a value", b"x-any", b"a\nb"),
    with_field("8.2.1", "CR in a value", b"x-any", b"a\rb"),
    with_field("8.2.1", "a blank before a value", b"x-any", b" v"),
    with_field("8.2.1", "a tab before a value", b"x-any", b"\tv"),
    with_field("8.2.1", "a blank after a value", b"x-any", b"v "),
    with_field("8.2.1", "a tab after a value", b"x-any", b"v\t"),
    with_field("8.2.2", "connection", b"connection", b"keep-alive"),
    with_field("8.2.2", "proxy-connection", b"proxy-connection", b"keep-alive"),
    with_field("8.2.2", "keep-alive", b"keep-alive", b"timeout=5"),
    with_field("8.2.2", "transfer-encoding", b"transfer-encoding", b"chunked"),
    with_field("8.2.2", "upgrade", b"upgrade", b"h2c"),
    with_list("8.2.2", "te that is not trailers", [*without("te"), ("te", "gzip")]),
    with_list(
        "8.2.3", "cookies in several fields", [*call_headers(), ("cookie", "a=1"), ("cookie", "b=2")], Answered()
    ),
]
CONTROL_DATA = [
    with_list("8.3", "a pseudo-header after a field", [*PSEUDO[1:], *REGULAR, PSEUDO[0]]),
    with_field("8.3", "an unknown pseudo-header", b":unknown", b"v"),
    with_list("8.3", "an unknown pseudo-header among the others", [*PSEUDO, (":unknown", "v"), *REGULAR]),
    with_list("8.3", "a pseudo-header of responses", [*PSEUDO, (":status", "200"), *REGULAR]),
    with_list("8.3.1", "no :method", without(":method")),
    with_list("8.3.1", "no :scheme", without(":scheme")),
    with_list("8.3.1", "no :path", without(":path")),
    with_list("8.3.1", "no :authority and no host", without(":authority")),
    with_list("8.3.1", "host in the place of :authority", [*without(":authority"), ("host", "localhost")], Answered()),
    with_list("8.3.1", "host that repeats :authority", [*call_headers(), ("host", "localhost")], Answered()),
    with_list("8.3.1", "host that is not :authority", [*call_headers(), ("host", "elsewhere")], NO_CALL),
    with_list("8.3.1", "an empty :path", call_headers(path="")),
    with_list("8.3.1", "a :path without a slash", call_headers(path="remit.authz.v1.Authorization/Check")),
    with_list("8.3.1", "* as :path of a POST", call_headers(path="*")),
    *[with_list("8.3.1", f"{name} twice", [(name, value), *PSEUDO, *REGULAR]) for name, value in PSEUDO],
    with_list("8.3.1", "an empty :method", call_headers(p_method="")),
    with_list("8.3.1", "a :method that is no token", call_headers(p_method="PO ST")),
    with_list("8.3.1", "an unknown :scheme", call_headers(p_scheme="ftp"), NO_CALL),
    with_list("8.5", "CONNECT with :scheme and :path", call_headers(p_method="CONNECT")),
    with_list("8.5", "CONNECT", [(":method", "CONNECT"), (":authority", "a:1"), *REGULAR], Answered("13")),
    with_list("8.3.1", "GET", call_headers(p_method="GET"), NO_CALL),
]


@pytest.mark.parametrize("case", MESSAGES + FIELDS + CONTROL_DATA, ids=ids)
def test_message(quiet_door: NativeServer, case: Case) -> None:
    """RFC 9113 section 8: what is malformed resets its stream, what is no call is answered, and neither is decided."""
    check(quiet_door, case)


def test_8_1_an_answer_before_the_end_of_a_request(quiet_door: NativeServer) -> None:
    """RFC 9113 section 8.1: a server may answer early and asks the client with NO_ERROR to stop."""
    with RawClient(quiet_door.address) as client:
        client.send(headers(client, path="/none"))
        client.until(lambda: 1 in client.resets)
        assert client.headers[1]["grpc-status"] == "12"
        assert client.resets[1] == 0


def test_8_3_2_an_answer_has_status_and_lower_case_names(quiet_door: NativeServer) -> None:
    """RFC 9113 sections 8.2 and 8.3.2: `:status` first and once; names in lower case; nothing of a connection."""
    with RawClient(quiet_door.address) as client:
        client.send(client.request(1))
        client.until(lambda: 1 in client.ended)
        names = list(client.headers[1])
        assert names[0] == ":status"
        assert names == [name.lower() for name in names]
        assert not {"connection", "transfer-encoding", "upgrade"} & set(names)
