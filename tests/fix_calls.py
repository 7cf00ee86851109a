"""Builds the CheckRequests of Envoy and of an agent that tests map and decide."""

import json
from collections.abc import Mapping
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2

from sidecar._proto.remit.authz.v1 import authz_pb2

AGENT = "spiffe://example.org/agent/support"


def envoy_call(
    *,
    method: str = "GET",
    path: str = "/",
    host: str = "api.example.org",
    headers: Mapping[str, str] | list[tuple[str, str]] = (),  # type: ignore[assignment]
    body: bytes | None = None,
    principal: str = AGENT,
    extensions: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    raw: bool = False,
    scheme: str = "https",
    size: int = -1,
    protocol: str = "HTTP/1.1",
) -> bytes:
    """An ext_authz CheckRequest. `headers` as pairs gives repeated lines; `raw`: the header_map form."""
    request = external_auth_pb2.CheckRequest()
    request.attributes.source.principal = principal
    http = request.attributes.request.http
    http.method, http.path, http.host, http.scheme = method, path, host, scheme
    http.protocol, http.size, http.id = protocol, size, "request-1"
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if raw:
        for name, value in pairs:
            http.header_map.headers.add(key=name, raw_value=value.encode("utf-8", "surrogateescape"))
    else:
        for name, value in pairs:
            joined = http.headers.get(name)
            http.headers[name] = value if joined is None else f"{joined},{value}"
    if body is not None:
        http.raw_body = body
    request.attributes.context_extensions.update(extensions or {})
    if metadata is not None:
        request.attributes.metadata_context.filter_metadata["envoy.filters.http.mcp"].update(metadata)
    return request.SerializeToString()


def network_call(*, principal: str = AGENT, destination: str = "", sni: str = "") -> bytes:
    """A CheckRequest of Envoy's network filter: no `http`."""
    request = external_auth_pb2.CheckRequest()
    request.attributes.source.principal = principal
    request.attributes.destination.principal = destination
    request.attributes.tls_session.sni = sni
    return request.SerializeToString()


def rpc(method: str, params: Mapping[str, Any] | None = None, *, id: Any = 1) -> bytes:
    """A JSON-RPC request, or a notification when `id` is None."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if id is not None:
        message["id"] = id
    if params is not None:
        message["params"] = params
    return json.dumps(message).encode()


def mcp_call(body: bytes | None = None, *, headers: Mapping[str, str] | None = None, **call: Any) -> bytes:
    """A POST to an MCP server, through Envoy."""
    with_type = {"content-type": "application/json", **(headers or {})}
    settings = {"method": "POST", "path": "/mcp", "host": "crm.example.org", **call}
    return envoy_call(headers=with_type, body=body, **settings)


def tool_call(tool: str, arguments: Mapping[str, Any] | None = None, **call: Any) -> bytes:
    """A tools/call with a body, through Envoy."""
    params: dict[str, Any] = {"name": tool}
    if arguments is not None:
        params["arguments"] = arguments
    return mcp_call(rpc("tools/call", params), **call)


def agent_check(
    *, resource: tuple[str, str] | None = None, arguments: Mapping[str, Any] | None = None, **fields: Any
) -> bytes:
    """A remit.authz.v1.CheckRequest."""
    request = authz_pb2.CheckRequest(**fields)
    if resource is not None:
        request.resource.type, request.resource.id = resource
    if arguments is not None:
        request.arguments.update(arguments)
    return request.SerializeToString()
