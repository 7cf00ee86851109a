"""EX-18, EX-19, EX-21 and the answers themselves: what callers, upstreams and Envoy's own log are told."""

import json

import pytest

from sidecar.demo.stage import AGENT_A, AGENT_B, Stage
from tests.fix_raw import exchange, message
from tests.fix_stage import TestStage, evaluation_id

pytestmark = pytest.mark.envoy

OWN = ["agent", "evaluation-id", "outcome", "reason", "decision", "task", "subject", "policy", "approval", "obligation"]
OTHERS = {"content-type", "content-length", "date", "server"}

# ---------------------------------------------------------------- what the upstream gets


def test_ex_18_our_headers_never_come_from_the_client(stage: TestStage) -> None:
    """EX-18, 2.4: of ten header names of ours an upstream sees two, with our values, once each."""
    forged = [(f"x-remit-{name}".encode(), b"forged") for name in OWN]
    answer = exchange(stage, message(b"/v1/rates", headers=[*forged, (b"X-Remit-Agent", b"twice")]))
    seen = [(name, value) for name, value in answer.json()["headers"] if name.startswith("x-remit-")]
    assert sorted(seen) == [("x-remit-agent", AGENT_A), ("x-remit-evaluation-id", evaluation_id(answer))]


def test_ex_18_nothing_else_of_the_call_is_changed(stage: TestStage) -> None:
    """EX-18: path, host, method, query and the client's own headers reach the upstream as they were judged."""
    mine = [(b"authorization", b"Bearer t"), (b"x-one", b"1"), (b"x-one", b"2"), (b"cookie", b"a=b")]
    answer = exchange(stage, message(b"/p?x=1&x=2", headers=mine))
    found = answer.json()
    assert (found["method"], found["path"]) == ("GET", "/p?x=1&x=2")
    assert [value for name, value in found["headers"] if name == "x-one"] == ["1", "2"]
    assert {"authorization": "Bearer t", "cookie": "a=b", "host": "api.example.org"}.items() <= dict(
        found["headers"]
    ).items()


# ---------------------------------------------------------------- what a denied caller gets


def _internals(stage: Stage) -> list[str]:
    """Words that no caller may read: policy ids and texts, the entity of another, folders."""
    ids = [line.split('"')[1] for line in _policies(stage).splitlines() if line.startswith("@id")]
    return [*ids, "forbid", "permit", "principal", "clearance", str(stage.folder), "generation", "sha256"]


def _policies(stage: Stage) -> str:
    return "\n".join(path.read_text() for path in sorted((stage.policy / "policies").glob("*.cedar")))


DENIALS = [
    ("policy", message(b"/admin")),
    ("nobody allows", message(b"/v1/rates", b"POST")),
    ("path", message(b"//admin")),
    ("host", message(b"/v1/rates", host=b"a,b")),
    ("query", message(b"/plan?plan=%zz")),
    ("ambiguous", message(b"/role", headers=[(b"x-role", b"a"), (b"x-role", b"b")])),
    ("task", message(b"/v1/rates", headers=[(b"x-agent-task", b"a\tb" * 99)])),
    ("unread body", message(b"/note", b"POST", headers=[(b"content-type", b"application/json")], body=b"{")),
]


@pytest.mark.parametrize("data", [d[1] for d in DENIALS], ids=[d[0] for d in DENIALS])
def test_ex_19_a_denial_says_an_id_and_a_code(stage: TestStage, data: bytes) -> None:
    """EX-19: three members and no more; the record has the rest. The id leads from one to the other."""
    answer = exchange(stage, data)
    assert (answer.status, set(answer.headers)) == (403, OTHERS)
    assert set(answer.json()) == {"error", "evaluation_id", "reason"}
    assert answer.json()["error"] == "denied"
    text = answer.body.decode()
    assert not [word for word in _internals(stage) if f'"{word}"' in text or (len(word) > 12 and word in text)]
    assert stage.record(answer)["reason"] == answer.reason


def test_ex_19_an_mcp_denial_is_a_jsonrpc_error(stage: TestStage) -> None:
    """EX-19: in the caller's own protocol, with its own id, whatever it is, in proper JSON."""
    odd = 'a"\r\n</script>\u2028'
    call = {"jsonrpc": "2.0", "id": odd, "method": "tools/call", "params": {"name": "read_record", "arguments": {}}}
    lines = [(b"content-type", b"application/json")]
    data = message(b"/mcp", b"POST", host=b"bank.example.org", headers=lines, body=json.dumps(call).encode())
    answer = exchange(stage, data)
    assert str(answer) == "403 data.level"
    assert set(answer.headers) == OTHERS
    error = answer.json()["error"]
    assert (answer.json()["id"], error["code"]) == (odd, -32001)
    assert set(error["data"]) == {"evaluation_id", "reason"}


# ---------------------------------------------------------------- what Envoy's log gets


@pytest.mark.parametrize(
    ("path", "outcome", "policy"), [("/log/allow", "ALLOW", "rates"), ("/log//deny", "DENY", None)]
)
def test_dynamic_metadata_names_the_decision_on_allow_and_on_deny(
    stage: TestStage, path: str, outcome: str, policy: str | None
) -> None:
    """2.3: the access log gets id, outcome, reason, policies and generation; answers that depend on state say so."""
    answer = exchange(stage, message(path.encode()))
    (line,) = stage.access_log(path)
    found = line["remit"]
    assert (found["decision_id"], found["outcome"]) == (evaluation_id(answer), outcome)
    assert found["policy_ids"] == ([policy] if policy else [])
    assert found["generation"] == stage.status().generation
    assert found["cacheable"] is False
    assert line["details"] == ("via_upstream" if outcome == "ALLOW" else "ext_authz_denied")


# ---------------------------------------------------------------- what an operator's Envoy may say

EXTENDED = [
    # host on the listener `extended`, call, answer, what the record has
    ("dry.example.org", b"/plan?plan=pro", "200", {"dry_run": True}),
    ("dry.example.org", b"/plan?plan=no", "403 policy.none", {"dry_run": True}),
    ("tool.example.org", b"/", "200", {"protocol": "mcp", "resource": "bank"}),
    ("route.example.org", b"/plan?plan=pro", "200", {"action": "plan"}),
    ("route.example.org", b"/role", "403 extension.route", {}),
    ("wrong.example.org", b"/plan?plan=pro", "403 extension.protocol", {}),
    ("spoof.example.org", b"/plan?plan=pro", "200", {"agent": AGENT_B}),
    ("spoof.example.org", b"/role", "403 policy.none", {"agent": AGENT_B, "outcome": "OUTCOME_DENY"}),
]


@pytest.mark.parametrize(("host", "target", "expected", "recorded"), EXTENDED)
def test_ex_21_only_documented_extensions_are_read(
    stage: TestStage, host: str, target: bytes, expected: str, recorded: dict[str, object]
) -> None:
    """EX-21: five keys with fixed meanings; what is wrong denies, and none names a principal, a role or an outcome."""
    who = "bob" if host.startswith("spoof") else "alice"
    answer = exchange(stage, message(target, host=host.encode()), who=who, listener="extended")
    assert str(answer) == expected
    record = stage.record(answer)
    assert {key: record.get(key) for key in recorded} == recorded
    assert record.get("dry_run", False) is (host == "dry.example.org")


def test_ex_21_an_extension_names_the_destination(stage: TestStage) -> None:
    """EX-21: `dest` is the operator's word for where the route leads, here the open web."""
    for host, expected in ((b"api.example.org", "403 policy.none"), (b"elsewhere.example.org", "403 dest.not_allowed")):
        assert str(exchange(stage, message(b"/v1/x", b"POST", host=host), listener="extended")) == expected


@pytest.mark.parametrize("name", [b"dry_run", b"x-dry-run", b"context_extensions", b"protocol"])
def test_ex_21_a_client_cannot_say_what_the_operator_says(stage: TestStage, name: bytes) -> None:
    """EX-21: extensions come from Envoy's configuration alone."""
    answer = exchange(stage, message(b"/plan?plan=pro&dry_run=true", headers=[(name, b"true")]), listener="extended")
    assert str(answer) == "200"
    assert "dry_run" not in stage.record(answer)


def test_shadow_mode_decides_without_enforcing_or_counting(stage: TestStage) -> None:
    """2.3: with Envoy's shadow_mode a denied call goes through; our record says DENY, and that it was a dry run."""
    answer = exchange(stage, message(b"/admin"), listener="shadow")
    assert (answer.status, answer.json()["path"]) == (200, "/admin")
    assert not [name for name, _ in answer.json()["headers"] if name.startswith("x-remit-")]
    record = stage.last_record()
    assert (record["outcome"], record["reason"], record["dry_run"]) == ("OUTCOME_DENY", "admin.closed", True)
