"""How the demo's agents call: HTTP and MCP through Envoy, and the sidecar's own doors."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import struct_pb2

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo.stage import MCP_HOST, Stage

TIMEOUT_S = 15
ROTATED_MEANWHILE_MAX = 100
MCP_VERSION = "2026-07-28"
CHECK = "/remit.authz.v1.Authorization/Check"
EXT_AUTHZ = "/envoy.service.auth.v3.Authorization/Check"
_ids = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """What came back: an HTTP status, or what the connection died of."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason code in a denial of ours, in its HTTP or its JSON-RPC form; empty when there is none."""
        try:
            found = self.json()
        except ValueError:
            return ""
        if not isinstance(found, dict):
            return ""
        error = found.get("error")
        data = error.get("data", {}) if isinstance(error, dict) else found
        return str(data.get("reason", "")) if isinstance(data, dict) else ""

    def __str__(self) -> str:
        return self.failure or (f"{self.status} {self.reason}".strip())


def tls_context(stage: Stage, who: str) -> ssl.SSLContext:
    """A client context with the SVID of `who` ("" for none) that trusts our trust domain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # An SVID names a workload by its URI; its chain is checked, its host name does not exist.
    context.check_hostname = False
    context.load_verify_locations(stage.svids / "envoy" / "bundle.pem")
    if who:
        _load_svid(context, stage.svids / who)
    return context


def _load_svid(context: ssl.SSLContext, folder: Path) -> None:
    """Load certificate and key; a rotation between the two files is noticed and they are read again."""
    for left in reversed(range(ROTATED_MEANWHILE_MAX)):
        try:
            context.load_cert_chain(folder / "svid.pem", folder / "key.pem")
            return
        except ssl.SSLError as error:
            if error.reason != "KEY_VALUES_MISMATCH" or not left:
                raise


class Caller:
    """One agent in front of one of Envoy's listeners. `who` is the folder of its SVID; "" for none."""

    def __init__(self, stage: Stage, who: str, listener: str = "main") -> None:
        self._stage = stage
        self._who = who
        self._listener = listener

    def http(
        self, method: str, host: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """One HTTP/1.1 request with exactly this path."""
        port = self._stage.envoy.ports[self._listener]
        try:
            with (
                socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain,
                tls_context(self._stage, self._who).wrap_socket(plain) as secure,
            ):
                # Headers and body leave in two writes; the second must not wait for Envoy's delayed ACK.
                secure.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = http.client.HTTPConnection(host)
                connection.sock = secure
                connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
                for name, value in {"host": host, "content-length": str(len(body)), **(headers or {})}.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                reply = connection.getresponse()
                return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, failure=f"refused: {getattr(error, 'reason', None) or type(error).__name__}")

    def tool(
        self, name: str, arguments: dict[str, Any], *, headers: dict[str, str] | None = None, host: str = MCP_HOST
    ) -> Answer:
        """An MCP tools/call, with the headers of protocol version 2026-07-28."""
        given = {"mcp-method": "tools/call", "mcp-name": name, "mcp-protocol-version": MCP_VERSION}
        return self.rpc(
            "tools/call", {"name": name, "arguments": arguments}, headers={**given, **(headers or {})}, host=host
        )

    def rpc(
        self, method: str, params: dict[str, Any], *, headers: dict[str, str] | None = None, host: str = MCP_HOST
    ) -> Answer:
        """One JSON-RPC request to the MCP server, without any header that is not given."""
        meta = {
            "io.modelcontextprotocol/protocolVersion": MCP_VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "demo", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        body = json.dumps(
            {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": {**params, "_meta": meta}}
        ).encode()
        common = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        return self.http("POST", host, "/mcp", headers={**common, **(headers or {})}, body=body)


def check_request(tool: str, arguments: dict[str, Any], **more: Any) -> authz_pb2.CheckRequest:
    """The same question as an MCP tools/call, for the agent's own door."""
    struct = struct_pb2.Struct()
    struct.update(arguments)
    resource = authz_pb2.EntityUid(type="Tool", id=tool)
    return authz_pb2.CheckRequest(action=tool, resource=resource, destination=MCP_HOST, arguments=struct, **more)


def _ask(channel: grpc.Channel, request: authz_pb2.CheckRequest) -> authz_pb2.CheckResponse | grpc.RpcError:
    call = channel.unary_unary(CHECK, authz_pb2.CheckRequest.SerializeToString, authz_pb2.CheckResponse.FromString)
    try:
        return call(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return error


def check_locally(stage: Stage, request: authz_pb2.CheckRequest) -> authz_pb2.CheckResponse | grpc.RpcError:
    """Ask over the Unix socket that belongs to alice."""
    with grpc.insecure_channel(f"unix:{stage.folder}/alice/check.sock") as channel:
        return _ask(channel, request)


def secure_channel(stage: Stage, who: str, door: str) -> grpc.Channel:
    """A channel with mutual TLS to one of the sidecar's TCP doors, with the SVID of `who` ("" for none)."""
    bundle = (stage.svids / "envoy" / "bundle.pem").read_bytes()
    folder: Path = stage.svids / who
    own = (folder / "key.pem").read_bytes() if who else None
    chain = (folder / "svid.pem").read_bytes() if who else None
    credentials = grpc.ssl_channel_credentials(bundle, own, chain)
    # The demo's SVID for the sidecar carries this DNS name because gRPC insists on one.
    return grpc.secure_channel(stage.addresses[door], credentials, [("grpc.ssl_target_name_override", "localhost")])


def check_over_tls(stage: Stage, who: str, request: authz_pb2.CheckRequest) -> authz_pb2.CheckResponse | grpc.RpcError:
    """Ask over TCP with mutual TLS."""
    with secure_channel(stage, who, "listeners.check_address") as channel:
        return _ask(channel, request)


def ask_as_envoy(stage: Stage, who: str, message: bytes) -> str:
    """Send bytes to the ext_authz door with the SVID of `who`: what it decided, or the gRPC status code."""
    from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

    with secure_channel(stage, who, "listeners.ext_authz.address") as channel:
        try:
            answer = channel.unary_unary(EXT_AUTHZ, None, CheckResponse.FromString)(message, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return f"{'denied' if answer.status.code else 'allowed'} {answer.dynamic_metadata['reason']}"


def told(answer: authz_pb2.CheckResponse | grpc.RpcError) -> str:
    """An answer of the agent's own door in a few words."""
    if isinstance(answer, authz_pb2.CheckResponse):
        return f"{authz_pb2.Outcome.Name(answer.outcome).removeprefix('OUTCOME_')} {answer.reason}"
    return str(answer.code().name)
