"""What an approval is bound to: the whole call as it was sent, and no more of data and cost than was shown."""

from collections.abc import Mapping
from typing import Any

import pytest
from envoy.service.auth.v3 import external_auth_pb2

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.peer import VerifiedPeer
from tests.fix_calls import envoy_call, mcp_call, network_call, rpc
from tests.fix_live import AGENT, ask, make_live, make_pdp, outcome, task
from tests.unit.test_authority import ALLOW, approval, revoke

PEP = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=2)
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}
GRPC = {"content-type": "application/grpc"}
EMPTY = {"content-length": "0"}


@pytest.fixture
def live() -> Live:
    """Every call needs an approval."""
    return make_live(task(), revoke("agent", AGENT, "step_up"))


@pytest.fixture
def pdp(live: Live) -> Pdp:
    return make_pdp(live)


def through_envoy(pdp: Pdp, message: bytes) -> Mapping[str, Any]:
    code, reply = pdp.ext_authz(message, PEP)
    assert code == 0, reply
    return dict(external_auth_pb2.CheckResponse.FromString(reply).dynamic_metadata)


def said(pdp: Pdp, message: bytes) -> str:
    outcome: str = through_envoy(pdp, message)["outcome"]
    return outcome


def call(**fields: Any) -> bytes:
    return envoy_call(**{"principal": AGENT, "method": "POST", "path": "/pay", **fields})


def tool(number: int, method: str = "prompts/get", **params: Any) -> bytes:
    return mcp_call(
        rpc(method, {"name": "p", **params}, id=number), principal=AGENT, extensions={"protocol": "mcp", "server": "s"}
    )


def grpc_message(text: bytes) -> bytes:
    return b"\0" + len(text).to_bytes(4, "big") + text


@pytest.mark.parametrize(
    ("approved", "another"),
    [
        (call(headers=FORM, body=b"to=alice&amount=10"), call(headers=FORM, body=b"to=mallory&amount=999999")),
        (call(headers=EMPTY, path="/pay?to=alice"), call(headers=EMPTY, path="/pay?to=mallory")),
        (call(headers=EMPTY, path="/pay?to=alice"), call(headers=EMPTY, path="/pay")),
        (call(method="DELETE", path="/i?id=1"), call(method="DELETE", path="/i?all=true")),
        (call(method="GET", path="/i"), call(method="GET", path="/i", body=b"{}")),
        (call(headers=JSON, body=b'{"a":1}'), call(method="PUT", headers=JSON, body=b'{"a":1}')),
        (call(headers=JSON, body=b'["alice",1]'), call(headers=JSON, body=b'["mallory",99999]')),
        (call(headers=JSON, body=b'{"to":"alice"}'), call(headers=JSON, body=b'{"to":"mallory"}')),
        (call(headers=JSON, body=b"{"), call(headers=JSON, body=b"[")),
        (call(body=b"\xff\x00\x01"), call(body=b"\xff\x00\x02")),
        (call(headers=FORM, body=b"a"), call(headers={**FORM, "content-length": "9"})),
        (
            call(path="/bank.Pay/Delete", headers=GRPC, body=grpc_message(b"alice")),
            call(path="/bank.Pay/Delete", headers=GRPC, body=grpc_message(b"mallory")),
        ),
        (tool(1, arguments={"to": "alice"}), tool(2, arguments={"to": "mallory"})),
        (tool(1, "tools/call", arguments={"to": "alice"}), tool(2, "tools/call", arguments={"to": "mallory"})),
        (tool(1, "tools/call"), tool(2, "tools/call", requestState="paused")),
        (tool(1, "tools/call"), tool(2, "tools/call", inputResponses={"sure": True})),
        (call(headers=FORM, body=b"a"), call(headers=JSON, body=b"a")),
        (call(headers=FORM, body=b"a"), call(headers={**FORM, "content-encoding": "gzip"}, body=b"a")),
        (call(headers=FORM, body=b"a"), call(headers={**FORM, "x-http-method-override": "DELETE"}, body=b"a")),
    ],
)
def test_an_exact_approval_is_of_one_call(pdp: Pdp, live: Live, approved: bytes, another: bytes) -> None:
    """Method, path, query, the whole body whatever its type, and a message's arguments."""
    evaluation = through_envoy(pdp, approved)["decision_id"]
    live.apply([approval(live, evaluation)], 2)
    assert said(pdp, another) == "STEP_UP"
    assert said(pdp, approved) == "ALLOW"
    assert said(pdp, approved) == "STEP_UP"


def test_an_mcp_call_that_is_sent_again_is_the_same(pdp: Pdp, live: Live) -> None:
    """Its id and what the protocol adds to each message may be others."""
    evaluation = through_envoy(pdp, tool(1, arguments={"to": "alice"}, _meta={"progressToken": 1}))["decision_id"]
    live.apply([approval(live, evaluation)], 2)
    assert said(pdp, tool(2, arguments={"to": "alice"}, _meta={"progressToken": 2})) == "ALLOW"


def as_text(message: bytes) -> bytes:
    """The call with its body as text, in which an Envoy replaces what is not UTF-8."""
    request = external_auth_pb2.CheckRequest.FromString(message)
    http = request.attributes.request.http
    http.body = http.raw_body.decode()
    http.raw_body = b""
    return request.SerializeToString()


@pytest.mark.parametrize(
    "unseen",
    [
        call(headers={**JSON, "content-length": "10"}),
        call(headers={"transfer-encoding": "chunked"}),
        call(headers={**FORM, "x-envoy-auth-partial-body": "true"}, body=b"to=alice"),
        call(headers={**FORM, "content-length": "100"}, body=b"to=alice"),
        as_text(call(headers=FORM, body=b"to=!")),
        as_text(tool(1, arguments={"to": "!"})),
        call(headers={**FORM, "x-http-method-override": "DELETE"}, body=b"a"),
        call(path="/bank.Pay/Delete", headers={**GRPC, "content-length": "10"}),
        network_call(principal=AGENT, sni="db.example"),
    ],
)
def test_content_that_was_not_seen_has_no_exact_approval(pdp: Pdp, live: Live, unseen: bytes) -> None:
    """A body that was not sent, not whole or not as it is, could be any. By class it can be approved."""
    evaluation = through_envoy(pdp, unseen)["decision_id"]
    asked = live.step_up(evaluation)
    assert asked is not None
    assert asked["content_unseen"]
    live.apply([approval(live, evaluation)], 2)
    assert said(pdp, unseen) == "STEP_UP"
    live.apply([approval(live, evaluation, id="a2", scope="class")], 3)
    assert said(pdp, unseen) == "ALLOW"


def test_an_approver_sees_the_call_and_what_is_cut(pdp: Pdp, live: Live) -> None:
    evaluation = through_envoy(pdp, call(headers=EMPTY, path="/pay?to=alice&amount=1"))["decision_id"]
    asked = live.step_up(evaluation)
    assert asked is not None
    assert (asked["http_method"], asked["target"]) == ("POST", "/pay?to=alice&amount=1")
    assert (asked["content_unseen"], asked["truncated"]) == (False, False)
    evaluation = through_envoy(pdp, call(headers=EMPTY, path="/pay?to=" + "x" * 5000))["decision_id"]
    asked = live.step_up(evaluation)
    assert asked is not None
    assert asked["truncated"]
    assert len(asked["target"]) > 4000


@pytest.mark.parametrize("scope", ["exact", "class"])
@pytest.mark.parametrize(
    "more", [{"data_level": 2}, {"cost": 11}, {"data_labels": ["pii", "secret"]}, {"data_labels": ["secret"]}]
)
def test_a_call_of_more_than_was_approved_is_not_covered(scope: str, more: dict[str, Any]) -> None:
    """Level, labels and cost are shown to the approver and bound; less of each is covered."""
    live = make_live(task())
    pdp = make_pdp(live)
    shown = {"data_level": 1, "cost": 10, "data_labels": ["pii"]}
    evaluation = ask(pdp, "delete", **shown).evaluation_id
    asked = live.step_up(evaluation)
    assert asked is not None
    assert {name: asked[name] for name in shown} == shown
    live.apply([approval(live, evaluation, scope=scope, uses=2)], 2)
    assert outcome(ask(pdp, "delete", **{**shown, **more}))[0] == "STEP_UP"
    assert outcome(ask(pdp, "delete", **shown)) == ALLOW
    assert outcome(ask(pdp, "delete", data_level=0)) == ALLOW
