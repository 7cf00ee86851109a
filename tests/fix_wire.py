"""CheckRequests for tests: built by protobuf, and taken apart at the level of bytes."""

from __future__ import annotations

import random
from collections.abc import Iterable

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from fastpath import envoy


def http_request(
    *,
    method: str = "GET",
    path: str = "/",
    host: str = "api.example",
    scheme: str = "http",
    headers: dict[str, str] | None = None,
    raw_headers: Iterable[tuple[str, bytes]] = (),
    body: str = "",
    raw_body: bytes = b"",
    extensions: dict[str, str] | None = None,
    principal: str = "spiffe://a.test/agent",
) -> CheckRequest:
    """A CheckRequest as Envoy's HTTP filter sends it."""
    message = CheckRequest()
    attributes = message.attributes
    attributes.source.principal = principal
    attributes.source.address.socket_address.address = "10.0.0.7"
    http = attributes.request.http
    http.method, http.path, http.host, http.scheme = method, path, host, scheme
    http.protocol = "HTTP/1.1"
    http.size = -1
    http.body, http.raw_body = body, raw_body
    http.headers.update(headers or {})
    for key, value in raw_headers:
        http.header_map.headers.add(key=key, raw_value=value)
    attributes.context_extensions.update(extensions or {})
    return message


def decode_http(strict_path: bool = True, **parts: object) -> dict[str, object]:
    """What the data plane makes of `http_request(**parts)`."""
    call = envoy.decode(http_request(**parts).SerializeToString(), strict_path=strict_path)  # type: ignore[arg-type]
    assert call is not None
    return call


def varint(n: int) -> bytes:
    room = bytearray()
    while n >= 0x80:
        room.append(n & 0x7F | 0x80)
        n >>= 7
    room.append(n)
    return bytes(room)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def in_http(payload: bytes) -> bytes:
    """Bytes of an HttpRequest inside a CheckRequest."""
    return field(1, field(4, field(2, payload)))


def full_request(rng: random.Random) -> CheckRequest:
    """A CheckRequest with most fields set, some to odd values."""
    words = ["", "a", "x-role", "admin,user", "a!b", "é", "/p?q=1", "true", "12", "tools/call", "\U0001f600"]
    message = http_request(method=rng.choice(["GET", "post", ""]), path=rng.choice(["/a", "/a?b=1", "*", ""]))
    attributes = message.attributes
    http = attributes.request.http
    http.id, http.protocol, http.size = rng.choice(words), rng.choice(words), rng.choice([-1, 0, 2**63 - 1])
    http.query, http.fragment = rng.choice(["", "b=1"]), rng.choice(["", "", "f"])
    attributes.source.principal = rng.choice(words)
    attributes.source.service = rng.choice(words)
    attributes.source.labels[rng.choice(words)] = rng.choice(words)
    attributes.source.certificate = rng.choice(words)
    if rng.random() < 0.3:
        attributes.source.address.pipe.path = "/run/x"
    attributes.destination.principal = rng.choice(words)
    attributes.tls_session.sni = rng.choice(words)
    attributes.request.time.seconds = rng.choice([0, -1, 1_700_000_000, 2**40])
    attributes.request.time.nanos = rng.choice([0, 999_999_999])
    names = [":path", ":authority", "x-role", "host", "content-length", "x-envoy-auth-partial-body", "cookie", "X-Up"]
    for _ in range(rng.randrange(4)):
        http.headers[rng.choice(names)] = rng.choice(words)
    for _ in range(rng.randrange(4)):
        line = http.header_map.headers.add(key=rng.choice(names), raw_value=rng.choice([b"", b"1", b"\xffx", b"a!"]))
        line.value = rng.choice(["", "", "v!"])
    http.body, http.raw_body = rng.choice(["", "{}"]), rng.choice([b"", b"\xff\x00"])
    for _ in range(rng.randrange(3)):
        attributes.context_extensions[rng.choice(words)] = rng.choice(words)
    for namespace in ("envoy.filters.http.mcp", "mcp_proxy", "other"):
        if rng.random() < 0.4:
            struct = attributes.metadata_context.filter_metadata[namespace]
            struct.update({"method": rng.choice([*words, "resources/read", 3]), "id": 1})
            struct.update({"params": {"name": rng.choice(words), "uri": "file://x", "deep": [{"x": [None, True]}]}})
    attributes.metadata_context.typed_filter_metadata["t"].type_url = rng.choice(words)
    return message
