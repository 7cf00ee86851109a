"""What an MCP call is: headers, metadata and body must agree; what is ambiguous or unknown has no meaning."""

import base64
import json
from typing import Any

import pytest

from fastpath.mcp import McpTarget, read
from fastpath.request import InputMode
from tests.fix_calls import envoy_call, mcp_call, rpc, tool_call

VERSION = {"mcp-protocol-version": "2026-07-28"}
ROWS = [
    ("initialize", {}, "list", McpTarget.MCP_SERVER, ""),
    ("server/discover", {}, "list", McpTarget.MCP_SERVER, ""),
    ("ping", None, "list", McpTarget.MCP_SERVER, ""),
    ("tools/list", {"cursor": "x"}, "list", McpTarget.MCP_SERVER, ""),
    ("resources/list", {}, "list", McpTarget.MCP_SERVER, ""),
    ("resources/templates/list", {}, "list", McpTarget.MCP_SERVER, ""),
    ("prompts/list", {}, "list", McpTarget.MCP_SERVER, ""),
    ("tools/call", {"name": "refund"}, "", McpTarget.MCP_TOOL, "refund"),
    ("resources/read", {"uri": "file:///a"}, "read", McpTarget.MCP_URI, "file:///a"),
    ("resources/subscribe", {"uri": "file:///a"}, "read", McpTarget.MCP_URI, "file:///a"),
    ("subscriptions/listen", {}, "read", McpTarget.MCP_SERVER, ""),
    ("prompts/get", {"name": "p"}, "read", McpTarget.MCP_PROMPT, "p"),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}}, "read", McpTarget.MCP_PROMPT, "p"),
    ("completion/complete", {"ref": {"type": "ref/resource", "uri": "u"}}, "read", McpTarget.MCP_URI, "u"),
    ("logging/setLevel", {"level": "debug"}, "admin", McpTarget.MCP_SERVER, ""),
    ("tasks/get", {"taskId": "t"}, "read", McpTarget.MCP_TASK, "t"),
    ("tasks/result", {"taskId": "t"}, "read", McpTarget.MCP_TASK, "t"),
    ("tasks/list", {}, "read", McpTarget.MCP_SERVER, ""),
    ("tasks/update", {"taskId": "t"}, "execute", McpTarget.MCP_TASK, "t"),
    ("tasks/cancel", {"taskId": "t"}, "write", McpTarget.MCP_TASK, "t"),
]


@pytest.mark.parametrize(("method", "params", "action", "target", "name"), ROWS)
def test_each_method_has_its_row(method: str, params: Any, action: str, target: McpTarget, name: str) -> None:
    """Every method of the table, read from the body alone (older protocol versions)."""
    found = read(mcp_call(rpc(method, params)))
    assert found["refusal"] == ""
    assert (found["action"], found["target"], found["name"], found["method"]) == (action, target, name, method)
    assert found["input_mode"] == InputMode.INPUT_BODY
    assert found["body_read"]


def test_notifications_pass_only_as_notifications() -> None:
    """`notifications/*` without an id acts on the server; with an id it is a request in disguise."""
    assert read(mcp_call(rpc("notifications/progress", {}, id=None)))["action"] == "list"
    assert read(mcp_call(rpc("notifications/progress", {}, id=1)))["refusal"] == "mcp.notification.id"


@pytest.mark.parametrize("method", ["tools/run", "TOOLS/CALL", "tools/call ", "", "sampling/createMessage", "rpc.x"])
def test_an_unknown_method_has_no_meaning(method: str) -> None:
    """Whatever the table does not list is refused, also in other letters."""
    assert read(mcp_call(rpc(method)))["refusal"] == "mcp.method.unknown"


def test_get_and_delete_act_on_the_server() -> None:
    """Older versions: GET opens the server's stream, DELETE ends the session."""
    got = read(envoy_call(method="GET", path="/mcp"))
    assert (got["refusal"], got["action"], got["target"]) == ("", "list", McpTarget.MCP_SERVER)
    assert read(envoy_call(method="DELETE", path="/mcp"))["action"] == "write"
    assert read(envoy_call(method="PUT", path="/mcp"))["refusal"] == "mcp.method.unknown"
    assert read(envoy_call(method="GET", headers={"mcp-method": "tools/call"}))["refusal"] == "mcp.method.unknown"


BAD_BODIES = [
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}', "mcp.body.duplicate_key"),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}', "mcp.body.duplicate_key"),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":1,"x":2}}}',
     "mcp.body.duplicate_key"),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping"', "mcp.body.malformed"),
    (b"\xef\xbb\xbf" + rpc("ping"), "mcp.body.malformed"),
    (rpc("ping").decode().encode("utf-16"), "mcp.body.malformed"),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', "mcp.body.malformed"),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":null}', "mcp.body.malformed"),
    (b'{"jsonrpc":"2.0","id":1,"method":["ping"]}', "mcp.body.malformed"),
    (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', "mcp.body.malformed"),
    (b'{"id":1,"method":"ping"}', "mcp.body.malformed"),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', "mcp.body.malformed"),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', "mcp.body.malformed"),
    (b'{"jsonrpc":"2.0","id":1,"result":{}}', "mcp.response"),
    (b"[" + rpc("ping") + b"]", "mcp.batch"),
    (b"[]", "mcp.batch"),
    (rpc("ping", {"x": [[[]]]}).replace(b"[[[]]]", b"[" * 70 + b"]" * 70), "mcp.body.depth"),
    (rpc("ping", id="x" * 300), "mcp.id.too_long"),
    (rpc("tools/call", {}), "mcp.name.missing"),
    (rpc("tools/call", {"name": ""}), "mcp.name.missing"),
    (rpc("tools/call", {"name": 5}), "mcp.name.invalid"),
    (rpc("tools/call", {"name": "a\nb"}), "mcp.name.invalid"),
    (rpc("tools/call", {"name": "x" * 513}), "mcp.name.invalid"),
    (rpc("completion/complete", {"ref": {"type": "other"}}), "mcp.name.invalid"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), BAD_BODIES)
def test_a_body_that_could_be_read_two_ways_is_refused(body: bytes, reason: str) -> None:
    """EX-15: one JSON object, no duplicate key, depth 64, UTF-8 without BOM, no batch, a JSON-RPC request only."""
    assert read(mcp_call(body))["refusal"] == reason


def test_a_body_too_large_for_working_memory_is_refused_not_an_error() -> None:
    """What the caller causes is a denial: the arena is given back and the sidecar's own state is untouched."""
    found = read(tool_call("a", {"x": list(range(30_000))}), arena_bytes=1_500_000)
    assert found["refusal"] == "mcp.body.too_large"
    assert not found["arena_failed"]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"content-encoding": "gzip"}, "body.encoding"),
        ({"content-encoding": "identity"}, ""),
        ({"content-type": "application/json; charset=utf-8"}, ""),
        ({"content-type": 'Application/JSON;charset="UTF-8"'}, ""),
        ({"content-type": "application/json; charset=utf-16"}, "mcp.content_type"),
        ({"content-type": "text/plain"}, "mcp.content_type"),
        ({"content-type": "application/json,text/plain"}, "request.ambiguous.content-type"),
    ],
)
def test_the_body_must_be_what_the_server_reads(headers: dict[str, str], reason: str) -> None:
    """A content encoding or charset that we do not apply would show the server another text."""
    assert read(mcp_call(rpc("ping"), headers=headers))["refusal"] == reason


def test_the_id_is_kept_as_json_for_the_denial() -> None:
    """String or integer, in JSON text, also when the call itself is refused later."""
    assert read(mcp_call(rpc("ping", id='a"b')))["id"] == r'"a\"b"'
    assert read(mcp_call(rpc("no/such", id=7)))["id"] == "7"
    assert read(mcp_call(rpc("notifications/x", id=None)))["id"] == ""


def test_headers_and_body_must_agree() -> None:
    """A header that says something else than the body is refused, whichever of the two is harmless."""
    agreed = {"mcp-method": "tools/call", "mcp-name": "refund", **VERSION}
    assert read(tool_call("refund", headers=agreed))["refusal"] == ""
    for headers in ({"mcp-method": "tools/list"}, {"mcp-name": "search"}, {**agreed, "mcp-name": "Refund"}):
        found = read(tool_call("refund", headers=headers))
        assert found["refusal"] == "mcp.header_mismatch"
        assert found["header_mismatch"]
    assert read(mcp_call(rpc("tools/list"), headers={"mcp-name": "x"}))["refusal"] == "mcp.header_mismatch"


def test_the_protocol_version_must_agree() -> None:
    """2026-07-28 states the version in the body as well."""
    stated = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2025-06-18"}}
    assert read(mcp_call(rpc("tools/list", stated), headers=VERSION))["refusal"] == "mcp.header_mismatch"
    assert read(mcp_call(rpc("tools/list", stated), headers={"mcp-protocol-version": "2025-06-18"}))["refusal"] == ""


def test_names_in_headers_may_be_base64() -> None:
    """`=?base64?..?=` is decoded before it is compared; anything else in that form is refused."""
    name = "größe"
    coded = "=?base64?" + base64.b64encode(name.encode()).decode() + "?="
    assert read(tool_call(name, headers={"mcp-method": "tools/call", "mcp-name": coded}))["refusal"] == ""
    for wrong in (
        "=?base64?****?=",
        "=?base64?QQ?=",
        "=?base64?QQ==",
        "=?base64??=",
        "=?base64?/w==?=",
        "=?base64?=QQ=?=",
    ):
        assert read(tool_call(name, headers={"mcp-name": wrong}))["refusal"] == "mcp.name.invalid"


def test_headers_alone_need_version_and_a_server_that_compares() -> None:
    """Without a body the headers count only from 2026-07-28 on, and only where the server compares them."""
    headers = {"mcp-method": "tools/call", "mcp-name": "refund"}
    trusted = read(mcp_call(headers={**headers, **VERSION}), headers_alone=True)
    assert (trusted["refusal"], trusted["name"]) == ("", "refund")
    assert trusted["input_mode"] == InputMode.INPUT_HEADERS
    assert not trusted["body_read"]
    assert read(mcp_call(headers={**headers, **VERSION}))["refusal"] == "input.missing.body"
    assert read(mcp_call(headers=headers), headers_alone=True)["refusal"] == "input.missing.body"
    old = {**headers, "mcp-protocol-version": "2025-06-18"}
    assert read(mcp_call(headers=old), headers_alone=True)["refusal"] == "input.missing.body"
    assert read(mcp_call(headers={"mcp-method": "tools/call", **VERSION}), headers_alone=True)["refusal"] == (
        "mcp.name.missing"
    )


def test_a_partial_body_is_no_body() -> None:
    """EX-15: what Envoy cut off is never parsed; headers may still say what the call is."""
    partial = {"x-envoy-auth-partial-body": "true"}
    whole = rpc("tools/call", {"name": "refund"})
    assert read(mcp_call(whole, headers=partial))["refusal"] == "input.missing.body"
    headers = {**partial, **VERSION, "mcp-method": "tools/call", "mcp-name": "refund"}
    found = read(mcp_call(whole[:20], headers=headers), headers_alone=True)
    assert (found["refusal"], found["body_read"]) == ("", False)


@pytest.mark.parametrize("raw", [False, True])
def test_repeated_headers_are_ambiguous(raw: bool) -> None:
    """EX-11: two values where one is expected, in either form of Envoy's headers."""
    pairs = [("content-type", "application/json"), ("mcp-method", "ping"), ("mcp-method", "tools/call")]
    call = envoy_call(method="POST", path="/mcp", headers=pairs, body=rpc("ping"), raw=raw)
    assert read(call)["refusal"] == "request.ambiguous.mcp-method"


def test_an_altered_header_is_ambiguous() -> None:
    """EX-13: bytes that are not UTF-8 never become a name."""
    pairs = [("content-type", "application/json"), ("mcp-name", "ref\udcff")]
    call = envoy_call(method="POST", path="/mcp", headers=pairs, body=rpc("tools/call", {"name": "ref!"}), raw=True)
    assert read(call)["refusal"] == "request.ambiguous.mcp-name"


def test_metadata_of_envoys_filter_says_what_the_call_is() -> None:
    """Envoy parsed the body itself; headers and, when sent, our own reading must agree with it."""
    metadata = {"method": "tools/call", "params": {"name": "refund"}}
    found = read(mcp_call(metadata=metadata))
    assert (found["refusal"], found["name"], found["input_mode"]) == ("", "refund", InputMode.INPUT_METADATA)
    assert read(mcp_call(metadata=metadata, headers={"mcp-name": "search"}))["refusal"] == "mcp.header_mismatch"
    assert read(tool_call("search", metadata=metadata))["refusal"] == "mcp.header_mismatch"
    assert read(tool_call("refund", metadata=metadata))["refusal"] == ""


def test_any_bytes_give_a_meaning_or_a_reason() -> None:
    """Every prefix and every single-byte change of a body is read or refused, never anything else."""
    whole = rpc("tools/call", {"name": "refund", "arguments": {"n": 1.5, "s": "\u00e9\\"}})
    for i in range(len(whole)):
        assert read(mcp_call(whole[:i]))["refusal"]
        changed = bytearray(whole)
        changed[i] ^= 0x55
        found = read(mcp_call(bytes(changed)))
        assert found["refusal"] or json.loads(bytes(changed))["params"]["name"] == found["name"]
