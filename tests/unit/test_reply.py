"""Encoded answers: never empty, never ALLOW by accident, nothing from inside (EX-01, EX-02, EX-18, EX-19)."""

from __future__ import annotations

import json
import struct

import pytest
from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath import reply
from sidecar._proto.remit.authz.v1 import authz_pb2
from tests.fix_wire import field

ALLOW, DENY, STEP_UP, ERROR = 1, 2, 3, 4
PERMISSION_DENIED, UNAVAILABLE = 7, 14
ID = "0123456789abcdef" * 2
NETWORK_DOOR = 2
AGENT = "spiffe://a.test/agent/billing"
ROOM_NEEDED = 4096
OWN_HEADERS = {
    f"x-remit-{name}"
    for name in (
        *("agent", "evaluation-id", "outcome", "reason", "decision"),
        *("task", "subject", "policy", "approval", "obligation"),
    )
}


def decision(outcome: int, reason: str = "policy.forbid", **more: object) -> dict[str, object]:
    return {
        "outcome": outcome,
        "reason": reason,
        "evaluation_id": ID,
        "generation": 7,
        "epoch": 9,
        "policies": ["secret-policy"],
    } | more


def answer(
    given_decision: dict[str, object], request: dict[str, object] | None = None, **more: object
) -> CheckResponse:
    data = reply.ext_authz(given_decision, request if request is not None else {}, **more)  # type: ignore[arg-type]
    assert data
    return CheckResponse.FromString(data)


# ---------------------------------------------------------------- codes


@pytest.mark.parametrize(
    ("outcome", "code", "part", "status"),
    [
        (ALLOW, 0, "ok_response", None),
        (DENY, PERMISSION_DENIED, "denied_response", 403),
        (STEP_UP, PERMISSION_DENIED, "denied_response", 403),
        (ERROR, UNAVAILABLE, "error_response", 503),
        (0, UNAVAILABLE, "error_response", 503),
        (5, UNAVAILABLE, "error_response", 503),
        (255, UNAVAILABLE, "error_response", 503),
    ],
)
def test_each_outcome_has_its_code_and_part(outcome: int, code: int, part: str, status: int | None):
    """Design 6: what the input causes is denied, what our state causes is an error; a status always."""
    message = answer(decision(outcome))
    assert message.HasField("status")
    assert (message.status.code, message.WhichOneof("http_response")) == (code, part)
    if status:
        assert getattr(message, part).status.code == status


def test_an_allow_says_so_in_bytes():
    """EX-01: an ALLOW begins with `status { code: 0 }`, written out, so that it is never an empty message."""
    data = reply.ext_authz(decision(ALLOW), {})
    assert data is not None
    assert data.startswith(b"\x0a\x02\x08\x00")


def test_an_allow_without_an_evaluation_id_is_an_error():
    """EX-02: decide gives every decision an id; a struct that is zeros or garbage never becomes an ALLOW."""
    for bad in ("", "0" * 31, "G" * 32, "\0" * 32):
        assert answer(decision(ALLOW, evaluation_id=bad)).status.code == UNAVAILABLE


TEXTS = st.one_of(st.text(max_size=40), st.binary(max_size=40), st.just("x" * 5000))
DECISIONS = st.fixed_dictionaries(
    {
        "outcome": st.integers(0, 6),
        "reason": TEXTS,
        "obligation": TEXTS,
        "policies": st.lists(TEXTS, max_size=20),
        "errors": st.lists(TEXTS, max_size=20),
        "generation": st.integers(0, 2**64 - 1),
        "epoch": st.integers(0, 2**64 - 1),
        "cacheable": st.booleans(),
        "evaluation_id": st.sampled_from([ID, "", "x" * 32]),
    }
)
REQUESTS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {
            "protocol": st.sampled_from(["http", "mcp", "grpc", "network", ""]),
            "denial_id": st.one_of(
                TEXTS, st.sampled_from(["1", "-1.5e3", '"a"', '"a\\"b"', '"\\u00e9"', "null", "01", '"a'])
            ),
            "principal": TEXTS,
            "request_id": TEXTS,
            "door": st.integers(0, 5),
        }
    ),
)
CAPS = st.one_of(st.integers(0, 300), st.integers(0, 5000), st.just(ROOM_NEEDED))


@settings(max_examples=800, deadline=None)
@given(DECISIONS, REQUESTS, CAPS, st.booleans())
def test_whatever_goes_in_an_answer_comes_out_that_allows_nothing_else(given_decision, request, cap: int, named: bool):
    """EX-01, EX-02: with any texts and any room the answer is whole, parses, has a status, and allows only an ALLOW."""
    data = reply.ext_authz(given_decision, request, cap=cap, identity_header=named)
    if data is None:
        assert cap < 4
        return
    assert 0 < len(data) <= cap
    message = CheckResponse.FromString(data)
    assert message.HasField("status")
    if message.status.code == 0:
        assert given_decision["outcome"] == ALLOW
        assert given_decision["evaluation_id"] == ID
    if cap >= ROOM_NEEDED:
        # Nothing that fits the contract is ever cut down to the constant DENY.
        assert message.HasField("dynamic_metadata")
        assert (message.status.code == 0) == (
            given_decision["outcome"] == ALLOW and given_decision["evaluation_id"] == ID
        )


@settings(max_examples=300, deadline=None)
@given(DECISIONS, REQUESTS, CAPS)
def test_whatever_goes_in_a_check_answer_parses(given_decision, request, cap: int):
    """EX-01 for our own contract: an outcome is always named, and ALLOW only for an ALLOW."""
    data = reply.check(given_decision, request, cap=cap)
    if data is None:
        assert cap < 2
        return
    message = authz_pb2.CheckResponse.FromString(data)
    assert message.outcome in (ALLOW, DENY, STEP_UP, ERROR)
    if message.outcome == ALLOW:
        assert given_decision["outcome"] == ALLOW
    if cap >= ROOM_NEEDED and given_decision["outcome"] in (DENY, STEP_UP):
        assert message.outcome == given_decision["outcome"]


@settings(max_examples=300, deadline=None)
@given(DECISIONS, REQUESTS)
def test_bodies_are_json_and_headers_are_ours(given_decision, request):
    """EX-18: whatever the texts, bodies parse, header values are printable ASCII, and the names are a fixed few."""
    data = reply.ext_authz(given_decision, request)
    assert data is not None
    message = CheckResponse.FromString(data)
    part = getattr(message, message.WhichOneof("http_response") or "denied_response")
    for option in part.headers:
        assert option.header.key in {"content-type", "x-remit-agent", "x-remit-evaluation-id"}
        assert all(" " <= c <= "~" for c in option.header.value)
    if message.WhichOneof("http_response") in ("denied_response", "error_response"):
        if request is not None and request["protocol"] == "grpc":
            assert all(" " <= c <= "~" for c in part.body)
            assert len(part.body) < 256
        else:
            json.loads(part.body)


# ---------------------------------------------------------------- bytes


def option(name: str, value: str) -> bytes:
    return field(2, field(1, field(1, name.encode()) + field(2, value.encode())) + b"\x12\x02\x08\x00\x18\x02")


def entry(key: str, value: bytes) -> bytes:
    return field(1, field(1, key.encode()) + field(2, value))


def number(value: float) -> bytes:
    return b"\x11" + struct.pack("<d", value)


def allowed(agent: str) -> bytes:
    """The OkHttpResponse of an ALLOW, field by field."""
    removed = ("outcome", "reason", "decision", "task", "subject", "policy", "approval", "obligation")
    named = option("x-remit-agent", agent) if agent else field(5, b"x-remit-agent")
    gone = b"".join(field(5, f"x-remit-{name}".encode()) for name in removed)
    return field(3, option("x-remit-evaluation-id", ID) + named + gone)


def metadata(said: dict) -> bytes:
    word = {ALLOW: "ALLOW", DENY: "DENY", STEP_UP: "STEP_UP", ERROR: "ERROR"}[said["outcome"]]
    listed = b"".join(field(1, field(3, name.encode())) for name in said["policies"])
    entries = [
        entry("decision_id", field(3, said["evaluation_id"].encode())),
        entry("outcome", field(3, word.encode())),
        entry("reason", field(3, said["reason"].encode())),
        entry("policy_ids", field(6, listed)),
        entry("policies_total", number(len(said["policies"]))),
        entry("generation", number(said["generation"])),
        entry("epoch", number(said["epoch"])),
        entry("cacheable", b"\x20" + bytes([said["cacheable"] and said["outcome"] in (ALLOW, DENY)])),
    ]
    if said["obligation"]:
        entries.append(entry("obligation", field(3, said["obligation"].encode())))
    return field(4, b"".join(entries))


PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=140)
SAID = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from([ALLOW, DENY, STEP_UP, ERROR]),
        "reason": PRINTABLE.map(lambda text: text[:128]) | st.just("\N{SNOWMAN}" * 42),
        "obligation": st.sampled_from(["", "approval"]) | PRINTABLE.map(lambda text: text[:128]),
        "policies": st.lists(PRINTABLE.map(lambda text: text[:90]) | st.just("\N{SNOWMAN}"), max_size=16),
        "generation": st.integers(0, 2**64 - 1),
        "epoch": st.integers(0, 2**64 - 1),
        "cacheable": st.booleans(),
        "evaluation_id": st.just(ID),
    }
)


@settings(max_examples=500, deadline=None)
@given(SAID, PRINTABLE)
def test_an_answer_is_its_fields_encoded_one_by_one(said: dict, agent: str):
    """What is copied from templates has the bytes that writing field by field gives, whatever the lengths around it."""
    data = reply.ext_authz(said, {"principal": agent})
    assert data is not None
    assert data.endswith(metadata(said))
    if said["outcome"] == ALLOW:
        assert data == b"\x0a\x02\x08\x00" + allowed(agent) + metadata(said)
    network = reply.ext_authz(said, {"door": NETWORK_DOOR})
    assert network == data[:4] + metadata(said)


def test_an_answer_that_does_not_fit_is_the_constant_deny():
    """EX-01: a byte of room less than an ALLOW takes leaves a DENY with its body, then one without; never a part."""
    whole = reply.ext_authz(decision(ALLOW), {"principal": AGENT})
    assert whole is not None
    assert reply.ext_authz(decision(ALLOW), {"principal": AGENT}, cap=len(whole)) == whole
    denials = {reply.ext_authz(decision(ALLOW), {"principal": AGENT}, cap=cap) for cap in range(4, len(whole))}
    short, full = sorted((CheckResponse.FromString(data) for data in denials if data), key=CheckResponse.ByteSize)
    assert short == CheckResponse(status={"code": PERMISSION_DENIED})
    assert (full.status.code, full.denied_response.status.code) == (PERMISSION_DENIED, 403)
    assert json.loads(full.denied_response.body) == {"error": "denied"}


# ---------------------------------------------------------------- ALLOW


def test_an_allow_sets_overwrites_and_removes_our_own_headers():
    """ext_authz.md 2.4: both append fields; a client's x-remit-* never passes; no name is set and removed."""
    part = answer(decision(ALLOW), {"principal": AGENT}).ok_response
    assert {option.header.key: option.header.value for option in part.headers} == {
        "x-remit-evaluation-id": ID,
        "x-remit-agent": AGENT,
    }
    for option in part.headers:
        assert option.HasField("append")
        assert option.append.value is False
        assert option.append_action == HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    removed = set(part.headers_to_remove)
    assert not removed & {option.header.key for option in part.headers}
    assert removed == OWN_HEADERS - {"x-remit-evaluation-id", "x-remit-agent"}
    bare = answer(decision(ALLOW), {"principal": AGENT}, identity_header=False).ok_response
    assert sorted(bare.headers_to_remove) == sorted(OWN_HEADERS)


def test_what_is_not_set_is_removed():
    """A forged x-remit-agent does not pass when the option is off or the principal is no header value (EX-18)."""
    for request, named in (
        ({"principal": AGENT}, False),
        ({"principal": "a\r\nx: y"}, True),
        ({"principal": "é"}, True),
        ({}, True),
    ):
        part = answer(decision(ALLOW), request, identity_header=named).ok_response
        assert "x-remit-agent" in part.headers_to_remove
        assert "x-remit-agent" not in {option.header.key for option in part.headers}


# ---------------------------------------------------------------- DENY, STEP_UP, ERROR


def test_a_denied_http_call_gets_a_small_json_body():
    """EX-19: evaluation id and public reason, no policy id."""
    part = answer(decision(DENY, "data.above_clearance")).denied_response
    assert json.loads(part.body) == {"error": "denied", "evaluation_id": ID, "reason": "data.above_clearance"}
    assert {option.header.key: option.header.value for option in part.headers} == {"content-type": "application/json"}
    assert "secret-policy" not in part.body


def test_a_step_up_names_its_obligation():
    """An approval would help, and the answer says so."""
    part = answer(decision(STEP_UP, "pay.over_limit", obligation="approval")).denied_response
    assert part.status.code == 403
    assert json.loads(part.body) == {
        "error": "step_up",
        "evaluation_id": ID,
        "reason": "pay.over_limit",
        "obligation": "approval",
    }


def test_an_error_tells_callers_nothing_about_us():
    """EX-19, T17: our own state shows in the proxy's metadata only."""
    for protocol in ("http", "mcp", "grpc"):
        message = answer(decision(ERROR, "not_ready.svid"), {"protocol": protocol})
        assert "svid" not in message.error_response.body
        assert message.dynamic_metadata["reason"] == "not_ready.svid"


def test_the_error_response_is_field_5():
    """envoy#42098: older proxies do not know the field and see a denial with code 14."""
    data = reply.ext_authz(decision(ERROR), {})
    assert data is not None
    assert data.startswith(b"\x0a\x02\x08\x0e" + bytes([5 << 3 | 2]))


@pytest.mark.parametrize(
    ("outcome", "reason", "status", "code"),
    [
        (DENY, "task.scope", 403, -32001),
        (STEP_UP, "pay.limit", 403, -32001),
        (DENY, "mcp.header_mismatch", 400, -32020),
    ],
)
@pytest.mark.parametrize("denial_id", ["7", '"call-1"', '"a\\"\\u00e9"', "-1.5e3"])
def test_a_denied_mcp_call_gets_a_jsonrpc_error(outcome: int, reason: str, status: int, code: int, denial_id: str):
    """agents.md 5.2: the request's id is echoed; a header that contradicts the body is HTTP 400 with -32020."""
    part = answer(decision(outcome, reason), {"protocol": "mcp", "denial_id": denial_id}).denied_response
    body = json.loads(part.body)
    assert part.status.code == status
    assert (body["jsonrpc"], body["id"], body["error"]["code"]) == ("2.0", json.loads(denial_id), code)
    assert body["error"]["data"] == {"evaluation_id": ID, "reason": reason}
    assert "secret-policy" not in part.body


@pytest.mark.parametrize(
    "denial_id", ["", "true", "{}", "1,2", '"a', '"a"b"', '"\\x"', '"\\u12"', "01", "1.", "-", '"' + "a" * 300 + '"']
)
def test_an_id_that_is_no_json_scalar_is_null(denial_id: str):
    """EX-18: nothing from the request can change the shape of the answer."""
    part = answer(decision(DENY), {"protocol": "mcp", "denial_id": denial_id}).denied_response
    assert json.loads(part.body)["id"] is None


def test_the_status_of_a_denied_mcp_call_is_configurable():
    """403 or 200, for clients that drop other bodies; the code of the answer still denies, and other calls keep 403."""
    mcp = answer(decision(DENY), {"protocol": "mcp"}, mcp_status=200)
    assert (mcp.status.code, mcp.denied_response.status.code) == (PERMISSION_DENIED, 200)
    assert answer(decision(DENY), {"protocol": "mcp"}, mcp_status=204).denied_response.status.code == 403
    assert answer(decision(DENY), {"protocol": "http"}, mcp_status=200).denied_response.status.code == 403
    assert answer(decision(ERROR), {"protocol": "mcp"}, mcp_status=200).error_response.status.code == 503


def test_a_denied_grpc_call_gets_short_ascii():
    """ext_authz.md 2.3: the body becomes the grpc-message."""
    part = answer(decision(DENY, "task.scope"), {"protocol": "grpc"}).denied_response
    assert part.body == f"denied: task.scope (evaluation {ID})"
    assert len(part.headers) == 0


def test_a_network_call_gets_no_http_part():
    """ext_authz.md 2.1: a denial closes the connection."""
    message = answer(decision(DENY), {"door": NETWORK_DOOR})
    assert (message.status.code, message.WhichOneof("http_response")) == (PERMISSION_DENIED, None)
    assert message.dynamic_metadata["decision_id"] == ID


# ---------------------------------------------------------------- dynamic metadata


@pytest.mark.parametrize(
    ("outcome", "word"), [(ALLOW, "ALLOW"), (DENY, "DENY"), (STEP_UP, "STEP_UP"), (ERROR, "ERROR")]
)
def test_every_answer_carries_metadata(outcome: int, word: str):
    """ext_authz.md 2.3: decision id, reason and policies for the proxy's log, on allow and on deny."""
    message = answer(decision(outcome, "r", policies=["p1", "p2"], cacheable=True))
    assert MessageToDict(message.dynamic_metadata) == {
        "decision_id": ID,
        "outcome": word,
        "reason": "r",
        "policy_ids": ["p1", "p2"],
        "policies_total": 2.0,
        "generation": 7.0,
        "epoch": 9.0,
        "cacheable": outcome in (ALLOW, DENY),
    }


def test_listed_policies_are_capped_and_counted():
    """Whole ids only; the total says what is missing."""
    message = answer(decision(DENY, policies=["p" * 1000, "q" * 1000, "r"]))
    assert list(message.dynamic_metadata["policy_ids"]) == ["p" * 1000]
    assert message.dynamic_metadata["policies_total"] == 3
    many = answer(decision(DENY, policies=[f"p{i}" for i in range(40)]))
    assert (len(many.dynamic_metadata["policy_ids"]), many.dynamic_metadata["policies_total"]) == (16, 40)


# ---------------------------------------------------------------- remit.authz.v1


def test_a_check_answer_has_every_field():
    """proto/remit/authz/v1: the same decision, in our own contract."""
    given_decision = decision(
        STEP_UP, "pay.limit", obligation="approval", policies=["a", "b"], errors=["c"], cacheable=True
    )
    data = reply.check(given_decision, {"request_id": "r-1"})
    assert data is not None
    assert MessageToDict(authz_pb2.CheckResponse.FromString(data), preserving_proto_field_name=True) == {
        "request_id": "r-1",
        "evaluation_id": ID,
        "outcome": "OUTCOME_STEP_UP",
        "reason": "pay.limit",
        "policy_ids": ["a", "b"],
        "policies_total": 2,
        "obligation": "approval",
        "generation": "7",
        "revocation_epoch": "9",
        "error_policy_ids": ["c"],
        "errors_total": 1,
    }


# ------------------------------------------------------------ what a caller can do next

NEXT = [
    ({"outcome": 3, "reason": "approval.required"}, "request_approval"),
    ({"outcome": 2, "reason": "task.none"}, "open_task"),
    ({"outcome": 2, "reason": "task.unnamed"}, "name_task"),
    ({"outcome": 2, "reason": "revoked.agent"}, "ask_owner"),
    ({"outcome": 2, "reason": "owner.inactive"}, "ask_owner"),
    ({"outcome": 2, "reason": "policy.none"}, ""),
]


@pytest.mark.parametrize(("decision", "word"), NEXT)
def test_an_answer_under_authority_says_what_to_do_next(decision: dict[str, object], word: str) -> None:
    """A word that programs read, in the body of Envoy's denial and in the answer to Check; without authority none."""
    given = {"evaluation_id": "a" * 32, **decision}
    for enforced, said in ((True, word), (False, "")):
        response = CheckResponse.FromString(reply.ext_authz({**given, "enforced": enforced}, {}))
        body = json.loads(response.denied_response.body)
        assert body.get("next", "") == said
        answer = authz_pb2.CheckResponse.FromString(reply.check({**given, "enforced": enforced}, {}))
        assert answer.next == said


def test_an_error_under_authority_says_when_to_ask_again() -> None:
    """And still nothing of its cause."""
    given = {"evaluation_id": "a" * 32, "outcome": 4, "reason": "not_ready.authority", "enforced": True}
    body = json.loads(CheckResponse.FromString(reply.ext_authz(given, {})).error_response.body)
    assert (body["next"], body["retry_after_ms"]) == ("retry", 1000)
    assert "authority" not in json.dumps(body)
