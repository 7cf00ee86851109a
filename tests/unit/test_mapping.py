"""What a call is: default mapping, routes, protocols, the agent's own question; what is ambiguous has no meaning."""

import json
import random
from typing import Any

import pytest

from fastpath.mapping import Mapping, explain_call, explain_check
from fastpath.table import Generation
from sidecar.errors import ConfigError
from sidecar.policy.compile import compile_image
from sidecar.policy.generate_schema import generate_schema
from tests.fix_calls import (
    AGENT,
    agent_check,
    envoy_call,
    mcp_call,
    network_call,
    rpc,
    tool_call,
)
from tests.fix_mapping import mapping_of

CONFIG: dict[str, Any] = {
    "trust_domains": ["example.org"],
    "servers": [{"name": "crm", "host": "crm.example.org", "path": "/mcp"}],
    "destinations": [
        {"host": "crm.example.org", "id": "crm"},
        {"host": "*.partner.example", "id": "partner"},
        {"host": "api.example.org", "port": 8443, "id": "api-test"},
    ],
    "tools": {"crm/search": "read"},
    "destination_from": {"crm/post": "url"},
}
TOOLS = [
    {
        "name": "send_money",
        "inputSchema": {
            "type": "object",
            "properties": {
                "to": {"type": "string"},
                "amount": {"type": "integer"},
                "rate": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["to", "amount"],
        },
    },
]
JSON = {"content-type": "application/json"}


def entity(type_: str, id_: str) -> dict[str, str]:
    return {"type": type_, "id": id_}


def config(**changes: Any) -> Mapping:
    return mapping_of({**CONFIG, **changes})


@pytest.fixture(scope="module")
def mapping() -> Mapping:
    return mapping_of(CONFIG)


@pytest.fixture(scope="module")
def generation() -> Generation:
    """A generation with Action::"crm/send_money" under `send`, its typed input, and the tool's level and labels."""
    made = generate_schema(TOOLS, "crm")
    tool = {"level": 3, "labels": ["pii"], "untrusted_output": False, "reversible": False, "pinned": True}
    entities = [{"uid": entity("Tool", "crm/send_money"), "attrs": tool, "parents": []}]
    policy = '@id("p") permit (principal, action == Action::"crm/mentioned", resource);'
    schema = made.schema + 'action "crm/mentioned" appliesTo { principal: [Agent], resource: [Tool], context: Ctx };'
    return Generation.from_bytes(compile_image(policy, schema=schema, entities=entities).image)


# ---------------------------------------------------------------- principal


def test_the_principal_is_the_spiffe_id_that_envoy_verified(mapping: Mapping) -> None:
    """EX-14: source.principal alone names the agent; x-forwarded-client-cert and other headers never do."""
    headers = {"x-forwarded-client-cert": "URI=spiffe://example.org/admin", "x-user": "admin"}
    found = explain_call(mapping, envoy_call(headers=headers))
    assert found["refusal"] == ""
    assert found["principal"] == entity("Agent", AGENT)
    assert found["columns"]["cred.kind"] == "x509-svid"
    assert found["columns"]["cred.bound"] is True


@pytest.mark.parametrize(
    ("principal", "reason"),
    [
        ("", "identity.missing"),
        ("agent.example.org", "identity.not_spiffe"),
        ("CN=agent,O=Example", "identity.not_spiffe"),
        ("spiffe://example.org", "identity.not_spiffe"),
        ("spiffe://example.org/", "identity.not_spiffe"),
        ("spiffe://example.org/a/../b", "identity.not_spiffe"),
        ("SPIFFE://example.org/a", "identity.not_spiffe"),
        ("spiffe://other.org/agent", "identity.trust_domain"),
        ("spiffe://example.org.evil/agent", "identity.trust_domain"),
    ],
)
def test_any_other_principal_is_refused(mapping: Mapping, principal: str, reason: str) -> None:
    """EX-14, 2.6: a DNS name, a subject, a trust domain's own ID, an ID of a domain that is not allowed."""
    found = explain_call(mapping, envoy_call(principal=principal))
    assert found["refusal"] == reason
    assert "cred.kind" not in found["columns"]
    assert explain_check(mapping, agent_check(action="crm/x"), principal)["refusal"] == reason


def test_without_trust_domains_nobody_is_a_principal() -> None:
    """The default is closed."""
    assert explain_call(mapping_of({}), envoy_call())["refusal"] == "identity.trust_domain"


# ---------------------------------------------------------------- plain HTTP


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("GET", "/reports/5", "read"),
        ("GET", "/reports/", "list"),
        ("HEAD", "/reports", "read"),
        ("OPTIONS", "/", "list"),
        ("POST", "/reports", "write"),
        ("PUT", "/reports/5", "write"),
        ("PATCH", "/reports/5", "write"),
        ("DELETE", "/reports/5", "delete"),
        ("CONNECT", "/", "send"),
        ("get", "/reports/5", "execute"),
        ("FOO", "/reports/5", "execute"),
        ("TRACE", "/", "execute"),
    ],
)
def test_http_is_classed_by_its_exact_method(mapping: Mapping, method: str, path: str, action: str) -> None:
    """EX-09: the method is a case-sensitive token; what is not known is taken for the worst."""
    found = explain_call(mapping, envoy_call(method=method, path=path))
    assert found["refusal"] == ""
    assert found["action"] == entity("Action", action)
    assert found["resource"] == entity("Endpoint", f"api.example.org{path}")
    assert found["resource_parent"] == entity("Server", "api.example.org")
    assert (found["protocol"], found["method"]) == ("http", method)


def test_method_override_headers_are_ignored(mapping: Mapping) -> None:
    """EX-09: X-HTTP-Method-Override does not change what a call is."""
    found = explain_call(mapping, envoy_call(method="GET", path="/a", headers={"x-http-method-override": "DELETE"}))
    assert found["action"] == entity("Action", "read")


def test_context_http_is_canonical(mapping: Mapping) -> None:
    """Host lower-case without default port, path without query."""
    found = explain_call(mapping, envoy_call(path="/a/b?token=x", host="API.example.org:443"))
    assert found["context"] == {"http": {"host": "api.example.org", "method": "GET", "path": "/a/b", "scheme": "https"}}
    assert (found["host"], found["path"]) == ("api.example.org", "/a/b")


@pytest.mark.parametrize("path", ["//admin", "/a/../admin", "/a%2fb", "/%00"])
def test_what_is_not_canonical_has_no_meaning(mapping: Mapping, path: str) -> None:
    """EX-03 to EX-07: the canonicaliser's refusal stands, and the record shows the path as sent, without its query."""
    found = explain_call(mapping, envoy_call(path=path + "?secret=1"))
    assert found["refusal"].startswith("path.")
    assert found["path"] == path


@pytest.mark.parametrize(
    ("body", "headers", "complete", "unsent", "input_"),
    [
        (b'{"a":1}', JSON, True, [], {"a": 1}),
        (b'{"a":1}', {"content-type": "application/vnd.x+json; charset=utf-8"}, True, [], {"a": 1}),
        (b"[1]", JSON, True, ["input"], None),
        (b'{"a":', JSON, False, ["input"], None),
        (b'{"a":1,"a":2}', JSON, False, ["input"], None),
        (b'{"a":1}', {"content-type": "application/json;v=1; Charset=UTF-8"}, True, [], {"a": 1}),
        (b'{"a":1}', {"content-type": "application/json; charset=utf-16"}, True, ["input"], None),
        (b'{"a":1}', {"content-type": "application/json;v=1;charset = utf-7"}, True, ["input"], None),
        (b'{"a":1}', {"content-type": "text/plain"}, True, ["input"], None),
        (b'{"a":1}', {**JSON, "content-encoding": "gzip"}, True, ["input"], None),
        (b'{"a":1}', {**JSON, "x-envoy-auth-partial-body": "true"}, False, ["input"], None),
        (b'{"a":1}', {**JSON, "content-length": "70"}, False, ["input"], None),
        (None, {**JSON, "content-length": "70"}, False, ["input"], None),
        (None, {**JSON, "transfer-encoding": "chunked"}, False, ["input"], None),
        (None, {"content-length": "0"}, True, [], None),
        (None, {}, True, [], None),
    ],
)
def test_bodies_are_read_whole_or_not_at_all(
    mapping: Mapping, body: bytes | None, headers: dict[str, str], complete: bool, unsent: list[str], input_: Any
) -> None:
    """EX-15: only a whole JSON object becomes `input`; what is there and unread is `unsent`: reading it denies."""
    found = explain_call(mapping, envoy_call(method="POST", path="/a", headers=headers, body=body))
    assert found["refusal"] == ""
    assert found["columns"].get("call.body_complete", False) is complete
    assert found["unsent"] == unsent
    assert found["context"].get("input") == input_


def test_a_body_larger_than_working_memory_is_unread(mapping: Mapping) -> None:
    """What a caller sends cannot turn a decision into our own failure."""
    body = json.dumps({"a": list(range(30_000))}).encode()
    call = envoy_call(method="POST", path="/a", headers=JSON, body=body)
    found = explain_call(mapping, call, arena_bytes=1_500_000)
    assert found["unsent"] == ["input"]
    assert explain_call(mapping, call)["unsent"] == []
    deep = tool_call("x", {"a": list(range(30_000))})
    assert explain_call(mapping, deep, arena_bytes=2_300_000)["refusal"] == "input.too_large"


# ---------------------------------------------------------------- gRPC and network


@pytest.mark.parametrize("path", ["//shop.v1.Orders/GetOrder", "/shop.v1.Orders/GetOrder/", "/shop.v1.Orders"])
def test_a_grpc_call_is_refused_as_one(mapping: Mapping, path: str) -> None:
    """EX-10: a path that is no gRPC path is refused in the caller's own protocol, not with a JSON body."""
    call = envoy_call(method="POST", path=path, headers={"content-type": "application/grpc"})
    found = explain_call(mapping, call)
    assert (found["refusal"][:5], found["protocol"]) == ("path.", "grpc")


@pytest.mark.parametrize(
    ("path", "action"),
    [
        ("/shop.v1.Orders/GetOrder", "read"),
        ("/shop.v1.Orders/ListOrders", "read"),
        ("/shop.v1.Orders/Getaway", "execute"),
        ("/shop.v1.Orders/DeleteOrder", "delete"),
        ("/shop.v1.Orders/CreateOrder", "write"),
        ("/shop.v1.Orders/SendInvoice", "send"),
        ("/shop.v1.Orders/Ship", "execute"),
        ("/shop.v1.Orders/getOrder", "execute"),
    ],
)
def test_grpc_is_classed_by_the_verb_of_its_method(mapping: Mapping, path: str, action: str) -> None:
    """EX-10: exact letters; a method that says nothing is `execute`; the message is never read."""
    found = explain_call(
        mapping, envoy_call(method="POST", path=path, headers={"content-type": "application/grpc+proto"})
    )
    assert found["refusal"] == ""
    assert found["action"] == entity("Action", action)
    assert found["resource"] == entity("Endpoint", f"api.example.org{path}")
    assert (found["protocol"], found["method"]) == ("grpc", path)
    assert found["unsent"] == ["input"]


def test_grpc_can_be_limited_to_where_the_proxy_says_so() -> None:
    """A content type is the client's word; with `grpc_by_content_type: false` it does not count."""
    strict = config(grpc_by_content_type=False)
    call = {"method": "POST", "path": "/a.S/GetX", "headers": {"content-type": "application/grpc"}}
    assert explain_call(strict, envoy_call(**call))["action"] == entity("Action", "write")
    stated = envoy_call(**call, extensions={"protocol": "grpc"})
    assert explain_call(strict, stated)["action"] == entity("Action", "read")
    wrong = envoy_call(method="POST", path="/GetX", extensions={"protocol": "grpc"})
    assert explain_call(strict, wrong)["refusal"] == "path.not_grpc"


def test_a_connection_is_a_send_to_its_destination(mapping: Mapping) -> None:
    """2.1: the network filter sends no `http`; destination principal, else SNI, else unknown."""
    found = explain_call(mapping, network_call(sni="x.partner.example"))
    assert found["action"] == entity("Action", "send")
    assert found["columns"]["dest"] == {"__entity": entity("Destination", "partner")}
    assert found["resource"] == entity("Endpoint", "x.partner.example")
    assert (found["protocol"], found["context"]) == ("network", {})
    peer = "spiffe://example.org/db"
    named = explain_call(mapping, network_call(destination=peer, sni="x.partner.example"))
    assert named["resource"] == entity("Endpoint", peer)
    assert named["columns"]["dest"] == {"__entity": entity("Destination", peer)}
    assert explain_call(mapping, network_call())["resource"] == entity("Endpoint", "unknown")


# ---------------------------------------------------------------- destination


@pytest.mark.parametrize(
    ("host", "id_", "authority"),
    [
        ("crm.example.org", "crm", "crm.example.org"),
        ("CRM.example.org.:443", "crm", "crm.example.org"),
        ("a.b.partner.example", "partner", "a.b.partner.example"),
        ("partner.example", "partner.example", "partner.example"),
        ("xpartner.example", "xpartner.example", "xpartner.example"),
        ("api.example.org:8443", "api-test", "api.example.org:8443"),
        ("api.example.org", "api.example.org", "api.example.org"),
        ("[2001:DB8::1]:80", "[2001:db8::1]:80", "[2001:db8::1]:80"),
    ],
)
def test_destinations_are_found_by_canonical_authority(mapping: Mapping, host: str, id_: str, authority: str) -> None:
    """EX-08: one canonical form; the first rule that fits names it, else the authority itself."""
    found = explain_call(mapping, envoy_call(host=host))
    assert found["columns"]["dest"] == {"__entity": entity("Destination", id_)}
    assert found["destination"] == authority


@pytest.mark.parametrize(
    ("argument", "id_", "reason"),
    [
        ("https://x.partner.example/path?q#f", "partner", ""),
        ("X.PARTNER.EXAMPLE:443", "x.partner.example:443", ""),
        ("someone@x.partner.example", "partner", ""),
        (["a@x.partner.example", "b@x.partner.example"], "partner", ""),
        (["a@x.partner.example", "b@evil.example"], "unknown", "destination.ambiguous"),
        ("https://x.partner.example@evil.example/", "unknown", ""),
        ("https://x.partner.example\\@evil.example/", "unknown", ""),
        ("not a host", "unknown", ""),
        ("", "unknown", ""),
        (5, "unknown", ""),
        (None, "unknown", ""),
        ([], "unknown", ""),
    ],
)
def test_a_tool_that_sends_names_its_destination_in_an_argument(
    mapping: Mapping, argument: Any, id_: str, reason: str
) -> None:
    """URL, host or address by the one canonicaliser; what cannot be read is `unknown`, never the tool's own server."""
    if id_ == "x.partner.example:443":
        id_ = "partner"
    for found in (
        explain_call(mapping, tool_call("post", {"url": argument})),
        explain_check(mapping, agent_check(action="crm/post", arguments={"url": argument}), AGENT),
    ):
        assert found["refusal"] == reason
        assert found["columns"].get("dest", {"__entity": entity("Destination", "unknown")}) == {
            "__entity": entity("Destination", id_)
        }


# ---------------------------------------------------------------- MCP


def test_a_tool_call_without_a_schema_has_its_class(mapping: Mapping) -> None:
    """Tool::"server/tool" below its server; the configured class, else `execute`."""
    found = explain_call(mapping, tool_call("search", {"q": "x"}))
    assert found["refusal"] == ""
    assert found["action"] == entity("Action", "read")
    assert found["resource"] == entity("Tool", "crm/search")
    assert found["resource_parent"] == entity("Server", "crm")
    assert found["context"]["input"] == {"q": "x"}
    assert (found["protocol"], found["method"], found["denial_id"]) == ("mcp", "tools/call", "1")
    assert explain_call(mapping, tool_call("other"))["action"] == entity("Action", "execute")


def test_a_tool_that_the_schema_names_has_its_own_action(mapping: Mapping, generation: Generation) -> None:
    """Typed input, level and labels come from the generation in force."""
    found = explain_call(mapping, tool_call("send_money", {"to": "x", "amount": 5, "rate": 1}), generation)
    assert found["refusal"] == ""
    assert found["action"] == entity("Action", "crm/send_money")
    assert found["context"]["input"] == {
        "to": "x",
        "amount": 5,
        "rate": {"__extn": {"fn": "decimal", "arg": "1.0000"}},
    }
    assert found["columns"]["call.data_level"] == 3
    assert found["columns"]["call.data_labels"] == ["pii"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"to": "x", "amount": "5"}, "input.type.amount"),
        ({"to": "x", "amount": 5.5}, "input.type.amount"),
        ({"to": "x", "amount": 5, "tags": [1]}, "input.type.tags"),
        ({"to": "x"}, "input.missing.amount"),
        ({"to": None, "amount": 5}, "input.missing.to"),
        (None, "input.missing.amount"),
    ],
)
def test_arguments_must_fit_the_schema(
    mapping: Mapping, generation: Generation, arguments: dict[str, Any] | None, reason: str
) -> None:
    """A policy never meets an argument of another type than it was validated for; both doors say the same."""
    assert explain_call(mapping, tool_call("send_money", arguments), generation)["refusal"] == reason
    check = agent_check(action="crm/send_money", arguments=arguments)
    assert explain_check(mapping, check, AGENT, generation)["refusal"] == reason


def test_an_action_that_is_only_mentioned_is_not_a_tools_own(mapping: Mapping) -> None:
    """Without a declaration it is in no class, so a forbid on the class would miss it: the class action is used."""
    policy = '@id("p") permit (principal, action == Action::"crm/mentioned", resource);'
    mentioned = Generation.from_bytes(compile_image(policy).image)
    assert explain_call(mapping, tool_call("mentioned"), mentioned)["action"] == entity("Action", "execute")


@pytest.mark.parametrize(
    ("method", "params", "action", "type_", "id_"),
    [
        ("tools/list", {}, "list", "Endpoint", "crm"),
        ("ping", None, "list", "Endpoint", "crm"),
        ("logging/setLevel", {"level": "info"}, "admin", "Endpoint", "crm"),
        ("resources/read", {"uri": "file:///a"}, "read", "Endpoint", "crm/file:///a"),
        ("prompts/get", {"name": "p"}, "read", "Tool", "crm/prompts/p"),
        ("tasks/cancel", {"taskId": "t"}, "write", "Endpoint", "crm/tasks/t"),
    ],
)
def test_other_mcp_methods_act_on_what_they_name(
    mapping: Mapping, method: str, params: Any, action: str, type_: str, id_: str
) -> None:
    """Resources, prompts and tasks are below their server's name, so that no client picks another entity by them."""
    found = explain_call(mapping, mcp_call(rpc(method, params)))
    assert (found["refusal"], found["action"], found["resource"]) == ("", entity("Action", action), entity(type_, id_))
    assert found["resource_parent"] == entity("Server", "crm")


def test_a_resource_on_the_web_is_at_its_own_destination(mapping: Mapping) -> None:
    """resources/read of an https uri reaches that host; any other uri stays with the server."""
    found = explain_call(mapping, mcp_call(rpc("resources/read", {"uri": "https://x.partner.example/a"})))
    assert found["columns"]["dest"] == {"__entity": entity("Destination", "partner")}
    found = explain_call(mapping, mcp_call(rpc("resources/read", {"uri": "file:///a"})))
    assert found["columns"]["dest"] == {"__entity": entity("Destination", "crm")}


def test_header_and_body_that_disagree_are_refused(mapping: Mapping) -> None:
    """The refusal is a column as well, and the id is kept for the answer."""
    found = explain_call(mapping, tool_call("search", headers={"mcp-name": "send_money"}))
    assert found["refusal"] == "mcp.header_mismatch"
    assert found["columns"]["call.header_mismatch"] is True
    assert found["denial_id"] == "1"


def test_headers_alone_leave_the_arguments_unsent() -> None:
    """Only where the server is said to compare; a rule that reads `input` then denies with input.missing.input."""
    trusting = config(servers=[{"name": "crm", "host": "crm.example.org", "headers_alone": True}])
    headers = {"mcp-method": "tools/call", "mcp-name": "search", "mcp-protocol-version": "2026-07-28"}
    found = explain_call(trusting, mcp_call(headers=headers))
    assert (found["refusal"], found["resource"]) == ("", entity("Tool", "crm/search"))
    assert found["unsent"] == ["input"]
    assert "call.body_complete" not in found["columns"]
    assert explain_call(config(), mcp_call(headers=headers))["refusal"] == "input.missing.body"


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/mcp/session/5"])
def test_a_server_is_its_endpoint_and_what_is_below(mapping: Mapping, path: str) -> None:
    """By whole segments: `/mcpx` is another place."""
    assert explain_call(mapping, mcp_call(rpc("tools/list"), path=path))["resource"] == entity("Endpoint", "crm")


@pytest.mark.parametrize("call", [{"path": "/mcpx"}, {"host": "other.example.org"}])
def test_what_looks_like_mcp_and_is_not_declared_is_refused(mapping: Mapping, call: dict[str, str]) -> None:
    """A client cannot make its POST a harmless `list` by headers or by a body that the upstream ignores."""
    assert explain_call(mapping, mcp_call(rpc("tools/list"), **call))["refusal"] == "mcp.server.unknown"
    headers = {"mcp-method": "tools/list"}
    assert explain_call(mapping, mcp_call(headers=headers, **call))["refusal"] == "mcp.server.unknown"
    stated = explain_call(mapping, mcp_call(rpc("tools/list"), extensions={"protocol": "http"}, **call))
    assert (stated["refusal"], stated["action"]) == ("", entity("Action", "write"))


def test_metadata_of_envoys_mcp_filter_declares_the_server(mapping: Mapping) -> None:
    """The operator put that filter there; without a name in the configuration the server is called by its host."""
    found = explain_call(mapping, mcp_call(host="new.example.org", metadata={"method": "tools/list"}))
    assert (found["refusal"], found["resource"]) == ("", entity("Endpoint", "new.example.org"))


# ---------------------------------------------------------------- context extensions


def test_only_documented_extensions_are_read(mapping: Mapping) -> None:
    """EX-21: five keys with fixed meaning; any other key reaches nothing."""
    extensions = {
        "protocol": "mcp",
        "server": "wiki",
        "dest": "inside",
        "dry_run": "true",
        "principal": "admin",
        "x": "y",
    }
    found = explain_call(mapping, mcp_call(rpc("tools/list"), host="w.example.org", extensions=extensions))
    assert found["resource"] == entity("Endpoint", "wiki")
    assert found["columns"]["dest"] == {"__entity": entity("Destination", "inside")}
    assert found["dry_run"] is True
    assert found["principal"] == entity("Agent", AGENT)
    assert set(found["context"]) == {"http"}


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ({"protocol": "smtp"}, "extension.protocol"),
        ({"dry_run": "yes"}, "extension.dry_run"),
        ({"server": "a/b"}, "extension.server"),
        ({"server": "a\u00e9"}, "extension.server"),
        ({"route": "none"}, "extension.route"),
    ],
)
def test_an_extension_of_another_type_is_refused(mapping: Mapping, extensions: dict[str, str], reason: str) -> None:
    """EX-21: fixed types; a configuration that contradicts itself decides nothing."""
    assert explain_call(mapping, envoy_call(extensions=extensions))["refusal"] == reason


def test_the_configuration_can_switch_extensions_off() -> None:
    """EX-21: a key that is not on the list is as good as absent."""
    closed = config(context_extensions=["protocol"])
    found = explain_call(closed, envoy_call(extensions={"dest": "inside", "dry_run": "true", "server": "x"}))
    assert found["columns"]["dest"] == {"__entity": entity("Destination", "api.example.org")}
    assert (found["dry_run"], found["resource_parent"]) == (False, entity("Server", "api.example.org"))


# ---------------------------------------------------------------- routes

ROUTE: dict[str, Any] = {
    "name": "document",
    "methods": ["GET", "POST"],
    "host": "*.example.org",
    "path": "/v1/{tenant}/docs/{id}/**",
    "principal_type": "Robot",
    "action": 'App::Action::"openDocument"',
    "resource": {"type": "Document", "id": "{tenant}:{id}"},
    "parent": {"type": "Folder", "id": "{host}"},
    "destination": "documents",
    "context": {
        "tenant": {"capture": "tenant"},
        "role": {"header": "x-role"},
        "roles": {"header": "x-role", "kind": "set"},
        "page": {"query": "page", "kind": "long"},
        "draft": {"query": "draft", "kind": "bool"},
        "kind": {"constant": "doc"},
    },
}


def routed(**changes: Any) -> Mapping:
    return config(routes=[{**ROUTE, **changes}])


def test_a_route_gives_a_call_its_own_meaning() -> None:
    """Principal type, action, resource, parent, destination and context by the user's own schema."""
    call = envoy_call(path="/v1/acme/docs/7/raw?page=3&draft=true", headers={"x-role": "editor"})
    found = explain_call(routed(), call)
    assert found["refusal"] == ""
    assert found["principal"] == entity("Robot", AGENT)
    assert found["action"] == entity("App::Action", "openDocument")
    assert found["resource"] == entity("Document", "acme:7")
    assert found["resource_parent"] == entity("Folder", "api.example.org")
    assert found["columns"]["dest"] == {"__entity": entity("Destination", "documents")}
    del found["context"]["http"]
    assert found["context"] == {
        "tenant": "acme", "role": "editor", "roles": ["editor"], "page": 3, "draft": True, "kind": "doc",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "fits"),
    [
        ({"path": "/v1/a/docs/7"}, True),
        ({"path": "/v1/a/docs/7/"}, True),
        ({"path": "/v1/a/docs/7/x/y"}, True),
        ({"path": "/v1/a/docs/"}, False),
        ({"path": "/v1/a/docs"}, False),
        ({"path": "/v1/a/DOCS/7"}, False),
        ({"path": "/v1/a/b/docs/7"}, False),
        ({"path": "/v1/a/docs/7", "method": "PUT"}, False),
        ({"path": "/v1/a/docs/7", "host": "example.org"}, False),
    ],
)
def test_routes_match_by_whole_segments(call: dict[str, str], fits: bool) -> None:
    """`{name}` and `*` are one segment each, `**` the rest; methods, letters and hosts are exact."""
    found = explain_call(routed(), envoy_call(**call))
    assert (found["resource"]["type"] == "Document") is fits


def test_the_first_route_that_fits_decides() -> None:
    """Order is the operator's; a pattern without `**` ends where it ends."""
    routes = [
        {"name": "one", "path": "/a/*", "action": "first"},
        {"name": "two", "path": "/a/**", "action": "second"},
    ]
    both = config(routes=routes)
    assert explain_call(both, envoy_call(path="/a/x"))["action"] == entity("Action", "first")
    assert explain_call(both, envoy_call(path="/a/x/y"))["action"] == entity("Action", "second")
    assert explain_call(both, envoy_call(path="/b"))["action"] == entity("Action", "read")


def test_the_proxy_can_name_the_route() -> None:
    """A named route must fit the call: otherwise the proxy's configuration and ours disagree."""
    named = {"extensions": {"route": "document"}}
    assert explain_call(routed(), envoy_call(path="/v1/a/docs/7", **named))["resource"] == entity("Document", "a:7")
    assert explain_call(routed(), envoy_call(path="/other", **named))["refusal"] == "extension.route"


@pytest.mark.parametrize("raw", [False, True])
def test_a_header_with_two_values_is_ambiguous(raw: bool) -> None:
    """EX-11: a single value wanted, two sent: refused. As a set both forms of Envoy's headers give the same members."""
    call = envoy_call(path="/v1/a/docs/7", headers=[("x-role", "admin"), ("x-role", "user")], raw=raw)
    assert explain_call(routed(), call)["refusal"] == "request.ambiguous.x-role"
    sets = routed(context={"roles": {"header": "x-role", "kind": "set"}})
    assert sorted(explain_call(sets, call)["context"]["roles"]) == ["admin", "user"]


def test_an_altered_header_equals_no_constant() -> None:
    """EX-13: bytes that are not UTF-8 arrive replaced and marked; they never name an entity."""
    call = envoy_call(path="/v1/a/docs/7", headers=[("x-role", "\udcff\udcffadmin")], raw=True)
    found = explain_call(routed(), call)
    assert found["sanitised"] is True
    assert found["refusal"] == ""
    by_header = routed(resource={"type": "Document", "id": "{header.x-role}"})
    assert explain_call(by_header, call)["refusal"] == "request.ambiguous.x-role"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("page=1&page=2", "request.ambiguous.page"),
        ("page=x", "input.type.page"),
        ("page=+1", "input.type.page"),
        ("page=01", "input.type.page"),
        ("page=9223372036854775808", "input.type.page"),
        ("page=-9223372036854775808", ""),
        ("page=", "input.type.page"),
        ("draft=1", "input.type.draft"),
        ("Page=1", ""),
    ],
)
def test_query_parameters_have_their_kind(query: str, reason: str) -> None:
    """2.6: a parameter that stands twice or is no Long or Bool is refused; names are case-sensitive."""
    assert explain_call(routed(), envoy_call(path=f"/v1/a/docs/7?{query}"))["refusal"] == reason


def test_required_attributes_must_be_there() -> None:
    """`required` refuses; otherwise the attribute is absent."""
    needed = routed(context={"role": {"header": "x-role", "required": True}})
    assert explain_call(needed, envoy_call(path="/v1/a/docs/7"))["refusal"] == "input.missing.role"
    assert "role" not in explain_call(routed(), envoy_call(path="/v1/a/docs/7"))["context"]


def test_header_names_are_exact() -> None:
    """EX-12: `x_role` is not `x-role`; a pseudo header in the map is no header."""
    call = envoy_call(path="/v1/a/docs/7", headers={"x_role": "admin", ":authority": "evil.example"})
    found = explain_call(routed(), call)
    assert "role" not in found["context"]
    assert found["host"] == "api.example.org"


@pytest.mark.parametrize(
    ("section", "cause"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"trust_domains": ["Example.org"]}, "trust_domains"),
        ({"agent_type": "no type"}, "agent_type"),
        ({"tools": {"search": "read"}}, "server/tool"),
        ({"tools": {"a/b": "reading"}}, "reading"),
        ({"servers": [{"name": "a/b", "host": "x"}]}, "name"),
        ({"servers": [{"name": "a", "host": "X"}]}, "host"),
        ({"routes": [{"name": "r", "path": "a"}]}, "slash"),
        ({"routes": [{"name": "r", "path": "/**/a"}]}, "last segment"),
        ({"routes": [{"name": "r", "path": "/{a}/{a}"}]}, "twice"),
        ({"routes": [{"name": "r", "path": "/a{b}"}]}, "pattern"),
        ({"routes": [{"name": "r", "methods": ["get"]}]}, "upper-case"),
        ({"routes": [{"name": "r", "action": 'Action::"a'}]}, "action"),
        ({"routes": [{"name": "r", "resource": {"type": "T", "id": "{x}"}}]}, "no capture"),
        ({"routes": [{"name": "r", "resource": {"type": "T", "id": "{x"}}]}, "brace"),
        ({"routes": [{"name": "r", "context": {"task": {"constant": "x"}}}]}, "another name"),
        ({"routes": [{"name": "r", "context": {"input": {"constant": "x"}}}]}, "another name"),
        ({"routes": [{"name": "r", "context": {"a": {"header": "authorization"}}}]}, "credentials"),
        ({"routes": [{"name": "r", "context": {"a": {"header": "x", "query": "y"}}}]}, "exactly one"),
        ({"routes": [{"name": "r", "context": {"a": {"constant": 5}}}]}, "kind"),
        ({"routes": [{"name": "r"}, {"name": "r"}]}, "twice"),
    ],
)
def test_a_wrong_section_is_refused_with_its_field(section: dict[str, Any], cause: str) -> None:
    """Nothing of a wrong mapping comes into force, and the message names what to change."""
    with pytest.raises(ConfigError, match=cause):
        mapping_of({"trust_domains": ["example.org"], **section})


def test_a_namespace_stands_before_every_type() -> None:
    """Also before those of routes that have none of their own."""
    named = config(namespace="Acme", routes=[{**ROUTE, "action": "open"}])
    found = explain_call(named, envoy_call(path="/v1/a/docs/7"))
    assert found["principal"]["type"] == "Acme::Robot"
    assert found["action"] == entity("Acme::Action", "open")
    assert found["resource"]["type"] == "Acme::Document"
    plain = explain_call(named, tool_call("search"))
    assert (plain["principal"]["type"], plain["resource"]["type"]) == ("Acme::Agent", "Acme::Tool")
    assert plain["columns"]["dest"]["__entity"]["type"] == "Acme::Destination"


# ---------------------------------------------------------------- ids


def test_ids_are_taken_over_when_they_are_plain(mapping: Mapping) -> None:
    """traceparent, x-request-id and the task's id; anything malformed there starts no trace."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{span}-01", "x-agent-task": "task-7"}
    found = explain_call(mapping, envoy_call(headers=headers))
    assert (found["trace_id"], found["span_id"], found["task"]) == (trace, span, "task-7")
    assert found["request_id"] == "request-1"
    for wrong in (f"01-{trace}-{span}-01", f"00-{trace.upper()}-{span}-01", f"00-{'0' * 32}-{span}-01", "x"):
        assert explain_call(mapping, envoy_call(headers={"traceparent": wrong}))["trace_id"] == ""


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([("x-agent-task", "a"), ("x-agent-task", "b")], "request.ambiguous.x-agent-task"),
        ([("x-agent-task", "x" * 129)], "task.malformed"),
        ([("x-agent-task", "")], "task.malformed"),
    ],
)
def test_the_task_is_one_or_the_call_is_refused(mapping: Mapping, headers: list[tuple[str, str]], reason: str) -> None:
    """EX-11: authority hangs on it, so it is single and plain."""
    assert explain_call(mapping, envoy_call(headers=headers))["refusal"] == reason


# ---------------------------------------------------------------- the agent's own question


def test_a_question_names_a_class_action_and_a_resource(mapping: Mapping) -> None:
    """Action "read" is Action::"read"; the principal is the caller, whatever the message says."""
    check = agent_check(action="read", resource=("Document", "7"), destination="https://X.partner.example:443/a")
    found = explain_check(mapping, check, AGENT)
    assert found["refusal"] == ""
    assert found["principal"] == entity("Agent", AGENT)
    assert (found["action"], found["resource"]) == (entity("Action", "read"), entity("Document", "7"))
    assert found["columns"]["dest"] == {"__entity": entity("Destination", "partner")}
    assert found["destination"] == "x.partner.example"
    assert (found["protocol"], found["unsent"], found["context"]) == ("check", [], {})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "action.missing"),
        ({"action": "read"}, "resource.missing"),
        ({"action": "read", "resource": ("", "7")}, "resource.malformed"),
        ({"action": "read", "resource": ("no type", "7")}, "resource.malformed"),
        ({"action": "read", "resource": ("T", "x" * 3000)}, "resource.malformed"),
        ({"action": "read\n", "resource": ("T", "7")}, "action.malformed"),
        ({"action": "crm/"}, "action.malformed"),
        ({"action": "/x"}, "action.malformed"),
        ({"action": "crm/x", "resource": ("Tool", "crm/y")}, "resource.mismatch"),
        ({"action": "crm/x", "resource": ("Document", "crm/x")}, "resource.mismatch"),
        ({"action": "crm/x", "request_id": "x" * 129}, "request_id.malformed"),
        ({"action": "crm/x", "request_id": "\u00e9"}, "request_id.malformed"),
        ({"action": "crm/x", "task": "a\nb"}, "task.malformed"),
        ({"action": "crm/x", "data_level": 5}, "data_level.range"),
        ({"action": "crm/x", "data_labels": [""]}, "data_labels.range"),
        ({"action": "crm/x", "data_labels": ["a"] * 65}, "data_labels.range"),
        ({"action": "crm/x", "destination": "https://a@b/"}, "destination.malformed"),
        (
            {"action": "crm/post", "destination": "a.example", "arguments": {"url": "b.example"}},
            "destination.ambiguous",
        ),
        ({"action": "crm/x", "resource": ("Tool", "crm/x"), "request_id": "r", "task": "t", "data_level": 4}, ""),
    ],
)
def test_a_question_that_is_not_clear_is_refused(mapping: Mapping, fields: dict[str, Any], reason: str) -> None:
    """Each field has one meaning or the call has none."""
    assert explain_check(mapping, agent_check(**fields), AGENT)["refusal"] == reason


def test_what_a_caller_declares_can_only_raise(mapping: Mapping, generation: Generation) -> None:
    """Data level and labels: the tool's own, and more."""

    def columns(level: int, labels: list[str]) -> dict[str, Any]:
        check = agent_check(
            action="crm/send_money", arguments={"to": "x", "amount": 5}, data_level=level, data_labels=labels
        )
        return explain_check(mapping, check, AGENT, generation)["columns"]

    assert columns(0, [])["call.data_level"] == 3
    assert columns(1, [])["call.data_labels"] == ["pii"]
    assert columns(4, ["secret", "pii"])["call.data_level"] == 4
    assert sorted(columns(4, ["secret", "pii"])["call.data_labels"]) == ["pii", "secret"]


def test_other_bytes_are_no_question(mapping: Mapping) -> None:
    """Malformed protobuf and text that is not UTF-8 are refused before they mean anything."""
    for data in (b"\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28", b"\x2a\x02\x0a\x09"):
        with pytest.raises(ValueError, match="CheckRequest"):
            explain_check(mapping, data, AGENT)
    with pytest.raises(ValueError, match="CheckRequest"):
        explain_call(mapping, b"\xff")


def test_arguments_that_stand_twice_are_refused(mapping: Mapping) -> None:
    """Protobuf would merge the two structs; another reader may not."""
    once = agent_check(action="crm/x", arguments={"a": 1})
    again = agent_check(arguments={"b": 1})
    assert explain_check(mapping, once + again, AGENT)["refusal"] == "input.duplicate_key"


ARGUMENTS = [
    {"to": "x", "amount": 5},
    {"to": "x", "amount": 5.0, "rate": 0.25, "tags": ["b", "a", "b"]},
    {"to": "é\n", "amount": -1, "rate": 12, "note": {"deep": [1, {"x": None}], "none": None}},
    {"to": "", "amount": 2**53, "big": 2**60, "tiny": 1e-7, "half": 0.5, "flag": True},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("tool", ["send_money", "search", "unheard_of"])
def test_both_doors_ask_the_same_question(
    mapping: Mapping, generation: Generation, tool: str, arguments: dict[str, Any]
) -> None:
    """The same tool call through Envoy and through Check: same principal, action, resource, input and digest."""
    headers = {"mcp-method": "tools/call", "mcp-name": tool, "mcp-protocol-version": "2026-07-28"}
    through_envoy = explain_call(mapping, tool_call(tool, arguments, headers=headers), generation)
    directly = explain_check(mapping, agent_check(action=f"crm/{tool}", arguments=arguments), AGENT, generation)
    assert through_envoy["refusal"] == directly["refusal"] == ""
    for field in ("principal", "action", "resource", "resource_parent", "destination", "args_digest", "unsent"):
        assert through_envoy[field] == directly[field], field
    assert through_envoy["context"]["input"] == directly["context"]["input"]
    for path in ("dest", "call.data_level", "call.data_labels", "call.body_complete", "cred.kind"):
        assert through_envoy["columns"].get(path) == directly["columns"].get(path), path


def test_any_bytes_are_mapped_or_refused(mapping: Mapping, generation: Generation) -> None:
    """Seeded changes of whole calls: never a crash, and never a meaning without an allowed principal."""
    rng = random.Random(20261123)
    calls = [tool_call("send_money", ARGUMENTS[1]), envoy_call(path="/v1/a?b=c"), network_call(sni="a.example")]
    check = agent_check(action="crm/send_money", arguments=ARGUMENTS[2], data_labels=["a"], task="t")
    for _ in range(3000):
        data = bytearray(rng.choice([*calls, check]))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        for explain in (
            lambda d: explain_call(mapping, d, generation),
            lambda d: explain_check(mapping, d, AGENT, generation),
        ):
            try:
                found = explain(bytes(data))
            except ValueError:
                continue
            assert found["refusal"] or found["principal"]["id"].startswith("spiffe://example.org/")
