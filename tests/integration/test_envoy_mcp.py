"""MCP through a real Envoy: what a call is by headers, by body and by Envoy's own MCP filter, in every version."""

import json
from typing import Any

import pytest

from sidecar.demo.calls import MCP_VERSION, Answer
from sidecar.demo.stage import API_HOST, MCP_HOST
from tests.fix_raw import exchange, message
from tests.fix_stage import TestStage

pytestmark = pytest.mark.envoy

JSON = (b"content-type", b"application/json")
ACCEPT = (b"accept", b"application/json, text/event-stream")
META = {
    "io.modelcontextprotocol/protocolVersion": MCP_VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def rpc(method: str, params: dict[str, Any] | None = None, **more: Any) -> bytes:
    call = {"jsonrpc": "2.0", "id": 1, "method": method, **({"params": params} if params is not None else {}), **more}
    return json.dumps({name: value for name, value in call.items() if value is not None}).encode()


def tool(name: str, arguments: dict[str, Any] | None = None, **more: Any) -> bytes:
    return rpc("tools/call", {"name": name, "arguments": arguments or {"account": "a"}, **more})


def money(amount: object) -> bytes:
    return tool("send_money", {"recipient": "carol", "amount": amount})


def named(method: str, name: str = "", version: str = MCP_VERSION) -> list[tuple[bytes, bytes]]:
    """The headers of protocol version 2026-07-28."""
    lines = [(b"mcp-method", method.encode()), (b"mcp-protocol-version", version.encode())]
    return [*lines, *([(b"mcp-name", name.encode())] if name else [])]


def post(
    stage: TestStage, body: bytes, headers: list[tuple[bytes, bytes]] | None = None, *, listener: str = "main",
    host: str = MCP_HOST, path: bytes = b"/mcp",
) -> Answer:  # fmt: skip
    lines = [ACCEPT, *([JSON] if body else []), *(headers or [])]
    data = message(path, b"POST", host=host.encode(), headers=lines, body=body)
    return exchange(stage, data, listener=listener)


def said(answer: Answer) -> str:
    """The text of a tool's result, or the refusal."""
    return str(answer.json()["result"]["content"][0]["text"]) if answer.status == 200 else str(answer)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", ""])
@pytest.mark.parametrize("listener", ["main", "joined", "parsed"])
def test_older_versions_are_judged_by_the_body_alone(stage: TestStage, version: str, listener: str) -> None:
    """5.2: before 2026-07-28 no header says what a call is; the body does, or Envoy's MCP filter that read it."""
    headers = [(b"mcp-protocol-version", version.encode())] if version else []
    assert said(post(stage, tool("get_balance"), headers, listener=listener)) == "balance of a: 1000"
    answer = post(stage, tool("read_record", {"customer": "c"}), headers, listener=listener)
    assert said(answer) == "403 data.level"
    record = stage.record(answer)
    assert (record["method"], record["resource"]) == ("tools/call", "bank/read_record")
    assert record["input_mode"] == ("INPUT_MODE_METADATA" if listener == "parsed" else "INPUT_MODE_BODY")


@pytest.mark.parametrize("listener", ["main", "joined", "parsed"])
def test_headers_and_body_that_agree_are_one_call(stage: TestStage, listener: str) -> None:
    """5.2: with the headers of 2026-07-28 the same call gets the same answer; a name may come in base64."""
    body = tool("get_balance", _meta=META)
    for name in ("get_balance", "=?base64?Z2V0X2JhbGFuY2U=?="):
        assert post(stage, body, named("tools/call", name), listener=listener).status == 200
    assert said(post(stage, body, named("tools/call", "get_balance"), listener=listener)) == "balance of a: 1000"


DISAGREE = [
    ("name", named("tools/call", "delete_account"), "400 mcp.header_mismatch"),
    ("name in base64", named("tools/call", "=?base64?ZGVsZXRlX2FjY291bnQ=?="), "400 mcp.header_mismatch"),
    ("method", named("tools/list"), "400 mcp.header_mismatch"),
    ("case", named("tools/call", "Get_Balance"), "400 mcp.header_mismatch"),
    (
        "repeated",
        [*named("tools/call", "get_balance"), (b"mcp-name", b"get_balance")],
        "403 request.ambiguous.mcp-name",
    ),
    ("not base64", named("tools/call", "=?base64?%%%?="), "403 mcp.name.invalid"),
]


@pytest.mark.parametrize("listener", ["main", "joined", "parsed"])
@pytest.mark.parametrize(("headers", "expected"), [d[1:] for d in DISAGREE], ids=[d[0] for d in DISAGREE])
def test_headers_and_body_that_disagree_are_refused(
    stage: TestStage, headers: list[tuple[bytes, bytes]], expected: str, listener: str
) -> None:
    """5.2: whichever of the two the server would believe; a difference is 400 with the error of the specification."""
    answer = post(stage, tool("get_balance", _meta=META), headers, listener=listener)
    assert str(answer) == expected
    if answer.status == 400:
        assert answer.json()["error"]["code"] == -32020
        assert stage.record(answer)["outcome"] == "OUTCOME_DENY"


@pytest.mark.parametrize("listener", ["main", "parsed"])
def test_headers_alone_do_not_say_what_a_call_is(stage: TestStage, listener: str) -> None:
    """5.2: a POST whose body we did not get is not believed, unless the server is configured as one that compares."""
    answer = post(stage, b"", named("tools/call", "get_balance"), listener=listener)
    assert str(answer) == "403 input.missing.body"


# ---------------------------------------------------------------- methods

CLIENT = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
TWICE = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_balance","name":"rm"}}'
TWICE_ESCAPED = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","m\\u0065thod":"tools/call"}'
OTHER_LETTERS = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"tools/call","params":{"name":"rm"}}'
DEEP = rpc("tools/list", {"x": 0}).replace(b"0}", b"[" * 80 + b"]" * 80 + b"}")

METHODS = [
    # what it shows, body, answer, action and resource in the record
    ("list", rpc("tools/list"), "200", "list", "bank"),
    ("initialize", rpc("initialize", CLIENT), "200", "list", "bank"),
    ("notification", rpc("notifications/initialized", id=None), "202", "list", "bank"),
    ("notification with an id", rpc("notifications/initialized"), "403 mcp.notification.id", None, None),
    ("tool", money(5), "200", "bank/send_money", "bank/send_money"),
    ("over a limit", money(50_000), "403 amount.limit", "bank/send_money", "bank/send_money"),
    ("argument of another type", money("5"), "403 input.type.amount", "bank/send_money", "bank/send_money"),
    ("registered, without action", tool("wipe_disk"), "403 policy.none", "execute", "bank/wipe_disk"),
    ("unknown tool", tool("rm"), "403 policy.error", "execute", "bank/rm"),
    ("admin", rpc("logging/setLevel", {"level": "debug"}), "403 policy.none", "admin", "bank"),
    ("resource", rpc("resources/read", {"uri": "file:///etc/passwd"}), "200", "read", "bank/file:///etc/passwd"),
    ("unknown method", rpc("tools/run", {}), "403 mcp.method.unknown", None, None),
    ("response", b'{"jsonrpc":"2.0","id":1,"result":{}}', "403 mcp.response", None, None),
    ("batch", b"[" + tool("get_balance") + b"," + tool("delete_account") + b"]", "403 mcp.batch", None, None),
    ("name twice", TWICE, "403 mcp.body.duplicate_key", None, None),
    ("method twice", TWICE_ESCAPED, "403 mcp.body.duplicate_key", None, None),
    ("method in other letters", OTHER_LETTERS, "403 mcp.body.ambiguous_key", None, None),
    ("no name", rpc("tools/call", {"arguments": {}}), "403 mcp.name.missing", None, None),
    ("not JSON", b"hello", "403 mcp.body.malformed", None, None),
    ("cut", tool("get_balance")[:-2], "403 mcp.body.malformed", None, None),
    ("another version", b'{"jsonrpc":"1.0","id":1,"method":"tools/list"}', "403 mcp.body.malformed", None, None),
    ("deep", DEEP, "403 mcp.body.depth", None, None),
]


@pytest.mark.parametrize(
    ("body", "expected", "action", "resource"), [m[1:] for m in METHODS], ids=[m[0] for m in METHODS]
)
def test_each_method_has_its_action_and_resource(
    stage: TestStage, body: bytes, expected: str, action: str | None, resource: str | None
) -> None:
    """5.2: one table of methods; what is not in it, or could be read two ways, is denied in JSON-RPC."""
    answer = post(stage, body)
    assert str(answer) == expected
    if answer.status not in (200, 202):
        assert (answer.json()["jsonrpc"], answer.json()["error"]["code"]) == ("2.0", -32001)
    found = stage.last_record()
    assert found["protocol"] == "mcp"
    if action:
        assert (found["action"], found["resource"]) == (action, resource)


@pytest.mark.parametrize(
    ("method", "expected", "action"),
    [(b"GET", "200", "list"), (b"DELETE", "403 policy.none", "write"), (b"PUT", "403 mcp.method.unknown", None)],
)
def test_streams_and_sessions_of_older_versions_act_on_the_server(
    stage: TestStage, method: bytes, expected: str, action: str | None
) -> None:
    """5.2: GET opens the server's stream, DELETE ends a session; no other method is MCP."""
    data = message(b"/mcp", method, host=MCP_HOST.encode(), headers=[ACCEPT])
    answer = exchange(stage, data, listener="main", whole=method != b"GET")
    assert str(answer) == expected
    if action:
        found = stage.last_record()
        assert (found["action"], found["resource"], found["method"]) == (action, "bank", method.decode())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], "403 mcp.content_type"),
        ([(b"content-type", b"text/plain")], "403 mcp.content_type"),
        ([(b"content-type", b"application/json; charset=utf-16")], "403 mcp.content_type"),
        ([JSON, (b"content-encoding", b"gzip")], "403 body.encoding"),
        # Envoy joins the two to one that is no media type.
        ([JSON, JSON], "403 mcp.content_type"),
    ],
)
def test_the_body_is_what_the_server_reads(stage: TestStage, headers: list[tuple[bytes, bytes]], expected: str) -> None:
    """5.2: JSON in UTF-8 as it is, and said so once; anything else the server may read as another call."""
    data = message(b"/mcp", b"POST", host=MCP_HOST.encode(), headers=[ACCEPT, *headers], body=tool("get_balance"))
    assert str(exchange(stage, data)) == expected


# ---------------------------------------------------------------- where MCP is not declared


@pytest.mark.parametrize(
    ("host", "path"), [(API_HOST, b"/v1/rates"), (MCP_HOST, b"/mcpx"), (MCP_HOST, b"/other"), (API_HOST, b"/mcp")]
)
@pytest.mark.parametrize(
    ("body", "headers"), [(tool("get_balance"), []), (b"", named("tools/list"))], ids=["body", "headers"]
)
def test_what_looks_like_mcp_elsewhere_is_refused(
    stage: TestStage, host: str, path: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """A client's own words cannot turn a POST into a harmless `list`: only the configuration names MCP servers."""
    assert str(post(stage, body, headers, host=host, path=path)) == "403 mcp.server.unknown"


def test_rules_that_read_arguments_deny_where_only_metadata_came(stage: TestStage) -> None:
    """2.1: Envoy's MCP filter says method and tool, not the arguments; the limit on amounts cannot be judged."""
    for amount in (5, 50_000):
        answer = post(stage, money(amount), listener="parsed")
        assert str(answer) == "403 input.missing.input"
