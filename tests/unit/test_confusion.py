"""Whoever is behind Envoy writes bytes that we and the upstream may read differently: then the call has no meaning."""

import json
from typing import Any

import pytest

from fastpath.arguments import InputError, typed
from fastpath.mapping import Mapping, explain_call, explain_check
from sidecar.policy import cells
from tests.fix_calls import AGENT, agent_check, envoy_call, mcp_call, rpc, tool_call
from tests.fix_mapping import mapping_of

CONFIG: dict[str, Any] = {
    "trust_domains": ["example.org"],
    "servers": [{"name": "crm", "host": "crm.example.org", "path": "/mcp", "port": 443}],
    "destinations": [{"host": "ok.example", "id": "ok"}],
    "destination_from": {"crm/post": "url"},
}


@pytest.fixture(scope="module")
def mapping() -> Mapping:
    return mapping_of(CONFIG)


# ---------------------------------------------------------------- names in other letters


@pytest.mark.parametrize(
    "body",
    [
        {"params": {"name": "search", "Name": "wipe"}},
        {"params": {"name": "search", "ARGUMENTS": {"all": True}}},
        {"params": {"name": "search"}, "Params": {"name": "wipe"}},
        {"params": {"name": "search"}, "param\u017f": {"name": "wipe"}},
        {"params": {"name": "search"}, "Method": "tools/call"},
        {"params": {"name": "search"}, "ID": 2},
        {"method": "tasks/cancel", "params": {"taskId": "1", "tas\u212aid": "2"}},
        {"method": "completion/complete", "params": {"ref": {"type": "ref/prompt", "name": "a", "NAME": "b"}}},
    ],
)
def test_a_name_in_other_letters_is_refused(mapping: Mapping, body: dict[str, Any]) -> None:
    """Readers that ignore case, as Go's encoding/json does, would call what stands last and not what we judged."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", **body}
    for ascii_ in (True, False):
        found = explain_call(mapping, mcp_call(json.dumps(message, ensure_ascii=ascii_).encode()))
        assert found["refusal"] == "mcp.body.ambiguous_key"


def test_names_that_are_only_alike_are_names_of_their_own(mapping: Mapping) -> None:
    """`names` is not `name`, and an argument may be called as it likes."""
    body = rpc("tools/call", {"name": "search", "names": 1, "nam": 2, "arguments": {"Name": 1, "name": 2}})
    assert explain_call(mapping, mcp_call(body))["refusal"] == ""


@pytest.mark.parametrize("name", ["TO", "To", "\u0074O"])
def test_an_argument_in_other_letters_than_its_schema_is_refused(name: str) -> None:
    """A tool that ignores case would send to `TO` while the policy read `to`, or found none."""
    for declared in ("to", "to?"):
        shape = cells.encode(cells.of_record({declared: cells.of_string("String")}))
        for given in ({"to": "a", name: "b"}, {name: "b"}):
            assert typed(json.dumps(given).encode(), shape) == (InputError.INPUT_VARIANT, "to", None)


def test_a_destination_argument_in_other_letters_is_ambiguous(mapping: Mapping) -> None:
    """Also without a schema: where a call goes to is never read from one of two."""
    arguments = {"url": "https://ok.example", "URL": "https://evil.example"}
    assert explain_call(mapping, tool_call("post", arguments))["refusal"] == "destination.ambiguous"
    asked = explain_check(mapping, agent_check(action="crm/post", arguments=arguments), AGENT)
    assert asked["refusal"] == "destination.ambiguous"


# ---------------------------------------------------------------- where a text leads


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("https://ok.example/?next=https://evil.example", "ok"),
        ("HTTPS://OK.example", "ok"),
        ("ok.example/path", "ok"),
        ("someone@ok.example", "ok"),
        ("mailto:someone@ok.example", "ok"),
        ("evil.example/?x=://ok.example", "evil.example"),
        ("evil.example#://ok.example", "evil.example"),
        ("evil.example/x@ok.example", "unknown"),
        ("evil.example?@ok.example", "unknown"),
        ("evil.example\\@ok.example", "unknown"),
        ("someone@ok.example?cc=someone@evil.example", "unknown"),
        ("https://ok.example\\@evil.example", "unknown"),
        ("https:///ok.example", "unknown"),
    ],
)
def test_a_destination_is_what_every_reader_takes_it_for(mapping: Mapping, text: str, id_: str) -> None:
    """A URL, a host or a mailbox; a text that is a host to one tool and a mailbox to another is none."""
    found = explain_call(mapping, tool_call("post", {"url": text}))
    assert found["columns"].get("dest", {"__entity": {"type": "Destination", "id": "unknown"}}) == {
        "__entity": {"type": "Destination", "id": id_}
    }


def test_a_resource_on_the_web_is_one_in_any_letters(mapping: Mapping) -> None:
    """RFC 3986 section 3.1: a scheme has no case; section 2: no URI holds a space, so none can hide one."""
    found = explain_call(mapping, mcp_call(rpc("resources/read", {"uri": "HTTPS://evil.example/x"})))
    assert found["destination"] == "evil.example"
    found = explain_call(mapping, mcp_call(rpc("resources/read", {"uri": " https://evil.example/x"})))
    assert found["refusal"] == "mcp.name.invalid"


# ---------------------------------------------------------------- protocols and schemes


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "Application/GRPC+proto", "application/grpc-web", "application/grpc-web+proto"]
)
def test_grpc_is_grpc_in_any_letters_and_on_the_web(mapping: Mapping, content_type: str) -> None:
    """A delete is not a mere `write` because its content type is spelt so that only the upstream knows it."""
    call = envoy_call(method="POST", path="/shop.v1.Orders/DeleteOrder", headers={"content-type": content_type})
    found = explain_call(mapping, call)
    assert (found["protocol"], found["action"]["id"]) == ("grpc", "delete")


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "hTTps"])
@pytest.mark.parametrize("host", ["crm.example.org", "crm.example.org:443"])
def test_a_server_with_a_port_is_found_in_any_letters_of_the_scheme(mapping: Mapping, scheme: str, host: str) -> None:
    """The client writes the scheme of HTTP/2: in other letters it must not make a tool call a plain POST."""
    found = explain_call(mapping, tool_call("search", host=host, scheme=scheme))
    assert found["resource"] == {"type": "Tool", "id": "crm/search"}
    assert found["context"].get("http") == {
        "host": "crm.example.org",
        "method": "POST",
        "path": "/mcp",
        "scheme": "https",
    }


def test_a_scheme_that_is_none_is_refused(mapping: Mapping) -> None:
    """RFC 3986 section 3.1; an absent one is a caller's that has none (gRPC's own ext_authz)."""
    assert explain_call(mapping, envoy_call(scheme="ht tp"))["refusal"] == "scheme.bad"
    assert explain_call(mapping, envoy_call(scheme=""))["refusal"] == ""


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[" + rpc("tools/list") + b"]", "application/json"),
        (b"[1," + rpc("tools/call", {"name": "x"}) + b"]", "application/json"),
        (rpc("tools/list"), "Application/JSON"),
        (rpc("tools/list"), "application/rpc+JSON"),
    ],
)
def test_an_undeclared_mcp_message_is_refused_in_a_batch_and_in_any_letters(
    mapping: Mapping, body: bytes, content_type: str
) -> None:
    """What looks like MCP and is not declared is refused, however it is wrapped."""
    call = envoy_call(method="POST", path="/x", headers={"content-type": content_type}, body=body)
    assert explain_call(mapping, call)["refusal"] == "mcp.server.unknown"


# ---------------------------------------------------------------- whose word it is


@pytest.mark.parametrize("marks", [["true", "false"], ["false", "true"], ["false", "false"], ["1"]])
def test_a_client_cannot_call_its_own_body_partial(mapping: Mapping, marks: list[str]) -> None:
    """Envoy adds its mark to the client's: by metadata alone a call would be judged by less than we were sent."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","name":"wipe"}}'
    headers = [("content-type", "application/json"), *(("x-envoy-auth-partial-body", mark) for mark in marks)]
    call = {"method": "POST", "path": "/mcp", "host": "crm.example.org", "headers": headers, "body": body}
    metadata = {"method": "tools/call", "params": {"name": "search"}}
    found = explain_call(mapping, envoy_call(**call, metadata=metadata, raw=True))
    assert found["refusal"] == "request.ambiguous.x-envoy-auth-partial-body"
