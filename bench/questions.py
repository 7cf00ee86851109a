"""What is asked: a CheckRequest as Envoy sends it, the same question for Cerbos, and the policies that answer both.

Seven questions in eight are allowed and one is denied, and every answer is compared with that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf import struct_pb2

from bench.load import Questions

DOMAIN = "bench.example"
ENVOY = f"spiffe://{DOMAIN}/envoy"
AGENT = f"spiffe://{DOMAIN}/agents/0"
EXT_AUTHZ = "/envoy.service.auth.v3.Authorization/Check"
CERBOS = "/cerbos.svc.v1.CerbosService/CheckResources"
MARK = "0123456789abcdef"  # where the load client puts other digits into each call
REQUEST_BYTES = 900
ALLOWED, DENIED = "/v1/items/42", "/v1/admin/keys"
ASKED = [ALLOWED] * 7 + [DENIED]
OK_RESPONSE, DENIED_RESPONSE, PERMISSION_DENIED = 3, 2, 7
EFFECT_ALLOW, EFFECT_DENY = 1, 2
SHARED = (
    'forbid(principal, action, resource) when { context has http && context.http.path like "/v1/admin/*" };',
    "forbid(principal, action, resource) when { context.call.data_level > 3 };",
)
HEADERS = {
    "user-agent": "support-agent/4.2 (python 3.12; linux x86_64)",
    "accept": "application/json, text/event-stream",
    "accept-encoding": "gzip, deflate, br",
    "content-type": "application/json",
    "x-request-id": f"{MARK}-4c1e-9d3a-7be02f6a9c11",
    "traceparent": f"00-{MARK}5b6f7e8d9c0b1a2f-00f067aa0ba902b7-01",
    "x-forwarded-proto": "https",
    "x-forwarded-for": "10.20.30.40",
    "x-envoy-internal": "true",
}


def headers(path: str, method: str = "POST") -> list[tuple[str, str]]:
    """What a gRPC client sends."""
    return [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "bench"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]


def check_request(path: str) -> bytes:
    """A CheckRequest of Envoy, of 900 bytes."""
    request = external_auth_pb2.CheckRequest()
    attributes = request.attributes
    attributes.source.principal = AGENT
    attributes.source.address.socket_address.address = "10.20.30.40"
    attributes.source.address.socket_address.port_value = 41234
    attributes.destination.principal = ENVOY
    attributes.destination.address.socket_address.address = "10.20.30.41"
    attributes.destination.address.socket_address.port_value = 8443
    attributes.request.time.seconds, attributes.request.time.nanos = 1_790_000_000, 123_456_789
    http = attributes.request.http
    http.method, http.path, http.host, http.scheme = "GET", path, "api.bench.example", "https"
    http.protocol, http.size, http.id = "HTTP/2", -1, f"{MARK}-4c1e-9d3a-7be02f6a9c11"
    for name, value in HEADERS.items():
        http.headers[name] = value
    # One more header makes every question as long as the floor's POST.
    room = REQUEST_BYTES - request.ByteSize() - len("x-agent-session") - 8
    http.headers["x-agent-session"] = "s" * room
    http.headers["x-agent-session"] += "s" * (REQUEST_BYTES - request.ByteSize())
    return request.SerializeToString()


def enveloped(path: str) -> bytes:
    """The same with the request's pseudo-headers among its headers, where Envoy puts them."""
    request = external_auth_pb2.CheckRequest.FromString(check_request(path))
    pseudo = {name: value for name, value in web_headers(path) if name.startswith(":")}
    request.attributes.request.http.headers.update(pseudo)
    return request.SerializeToString()


def ext_authz(ask: Callable[[str], bytes] = check_request) -> Questions:
    """The questions for our doors, as `ask` makes them of paths, and the outcome of each."""
    expected = {ALLOWED: (0, OK_RESPONSE), DENIED: (PERMISSION_DENIED, DENIED_RESPONSE)}
    return Questions([(ask(path), *expected[path]) for path in ASKED], path=(1, 1), mark=MARK.encode())


def posts(length: int) -> Questions:
    """The same bytes for a server that answers each with `length` bytes of a file."""
    bodies = [(b"\0" + REQUEST_BYTES.to_bytes(4, "big") + check_request(path), 0, 0) for path in ASKED]
    return Questions(bodies, grpc=False, length=length, mark=MARK.encode())


def policies(count: int) -> str:
    """Cedar: one permit per agent, each with a condition on the call, and two forbids that every call meets."""
    permits = (
        f'permit(principal == Agent::"spiffe://{DOMAIN}/agents/{number}", action, resource) '
        'when { context has http && context.http.path like "/v1/*" };'
        for number in range(max(1, count - len(SHARED)))
    )
    return "\n".join([*SHARED, *permits])


def web_headers(path: str) -> list[tuple[str, str]]:
    """A request of an agent to Envoy, which asks us about it."""
    own = ("user-agent", "accept", "accept-encoding", "traceparent")
    made = [(":method", "GET"), (":scheme", "https"), (":path", path), (":authority", "api.bench.example")]
    return [*made, *((name, HEADERS[name]) for name in own)]


# ---------------------------------------------------------------- Cerbos


def cerbos() -> Questions:
    """The same for Cerbos: CheckResourcesResponse.results[0].actions["read"]."""
    effects = {ALLOWED: EFFECT_ALLOW, DENIED: EFFECT_DENY}
    return Questions([(_check_resources(path), effects[path], 2) for path in ASKED], path=(2, 2, 2), mark=MARK.encode())


def cerbos_policies(folder: Path, count: int) -> None:
    """The same policies as Cerbos has them: one principal policy per agent with the two denials in it."""
    path = "request.resource.attr.path"
    conditions = (
        ("EFFECT_DENY", f'{path}.startsWith("/v1/admin/")'),
        ("EFFECT_DENY", "request.resource.attr.data_level > 3"),
        ("EFFECT_ALLOW", f'{path}.startsWith("/v1/")'),
    )
    actions = [{"action": "*", "effect": effect, "condition": {"match": {"expr": test}}} for effect, test in conditions]
    for number in range(max(1, count - len(SHARED))):
        policy = {
            "principal": f"agent_{number}",
            "version": "default",
            "rules": [{"resource": "endpoint", "actions": actions}],
        }
        text = json.dumps({"apiVersion": "api.cerbos.dev/v1", "principalPolicy": policy})
        (folder / f"agent_{number}.json").write_text(text)


def _field(number: int, value: bytes | str) -> bytes:
    """One length-delimited field of at most 16 KiB."""
    raw = value.encode() if isinstance(value, str) else value
    length = bytes((len(raw),)) if len(raw) < 128 else bytes((len(raw) & 127 | 128, len(raw) >> 7))
    return bytes((number << 3 | 2,)) + length + raw


def _attributes(values: Mapping[str, str | int]) -> bytes:
    """map<string, google.protobuf.Value> attr = 4."""
    made = b""
    for name, value in values.items():
        held = struct_pb2.Value(string_value=value) if isinstance(value, str) else struct_pb2.Value(number_value=value)
        made += _field(4, _field(1, name) + _field(2, held.SerializeToString()))
    return made


def _check_resources(path: str) -> bytes:
    """cerbos.request.v1.CheckResourcesRequest with what our policies read, and what a decision log wants to know."""
    principal = _field(1, "agent_0") + _field(3, "agent") + _attributes({"spiffe_id": AGENT, "address": "10.20.30.40"})
    called: dict[str, str | int] = {
        "path": path,
        "data_level": 0,
        "host": "api.bench.example",
        "method": "GET",
        "session": "s" * 300,
    }
    resource = _field(1, "endpoint") + _field(3, f"api.bench.example{path}") + _attributes(called)
    entry = _field(1, "read") + _field(2, resource)
    return _field(1, f"{MARK}-4c1e-9d3a-7be02f6a9c11") + _field(3, principal) + _field(4, entry)
