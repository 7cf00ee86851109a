"""The decision record: every field where the contract says, nothing else, and nothing secret."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.columns import COLUMNS
from fastpath.record import MANDATORY, encode, missing_fields
from fastpath.wire import WireType, fields
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from tests.fix_wire import field, varint

REQUEST: dict[str, object] = {
    "principal": ("Agent", "spiffe://demo.test/agent/a"),
    "action": ("Action", "files/read"),
    "resource": ("Resource", "doc-1"),
    "door": 3,
    "input_mode": 2,
    "dry_run": True,
    "sanitised": True,
    "request_id": "request-1",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "task": "task-named",
    "protocol": "mcp",
    "method": "tools/call",
    "host": "files.test",
    "path": "/mcp",
    "destination": "files.test:443",
    "subject": "user:ann",
    "started_unix_ns": 1_700_000_000_123_456_789,
    "args_digest": bytes(range(32)),
}
DECISION: dict[str, object] = {
    "evaluation_id": "00112233445566778899aabbccddeeff",
    "outcome": 2,
    "late": True,
    "reason": "policy.forbid",
    "obligation": "approval",
    "policies": ["p1", "p2"],
    "errors": [("e1", 1), ("e2", 5)],
    "shadows": ["s1"],
    "generation": 7,
    "epoch": 9,
    "latency_ns": 1234,
}
PEER = (2, "spiffe://demo.test/envoy", "x509-svid:0a1b")


def decoded(
    request: dict[str, object], decision: dict[str, object] = DECISION, **more: object
) -> decisions_pb2.Decision:
    payload = encode(request, decision, **more)  # type: ignore[arg-type]
    record = decisions_pb2.Record.FromString(payload)
    assert record.WhichOneof("kind") == "decision"
    return record.decision


def test_every_field_of_the_call_is_recorded() -> None:
    """What Request, Decision, Peer and Table give stands in the field of decisions.proto that is made for it."""
    columns = {
        "task.id": "task-7",
        "task.owner": ("User", "eve"),
        "call.data_level": 3,
        "session.level_seen": 2,
        "session.labels_seen": ("pii", "secret"),
        "session.untrusted_seen": True,
        "approval.state": "granted",
        "approval.matches": True,
        "risk.agent": 11,
        "risk.user": 22,
        "risk.source_age_s": 33,
        "cred.kind": "x509-svid",
        "cred.ttl_s": 600,
        "cred.bound": True,
    }
    decision = decoded({**REQUEST, "columns": columns}, peer=PEER, digest=bytes(range(32, 64)))
    assert decision == decisions_pb2.Decision(
        evaluation_id="00112233445566778899aabbccddeeff",
        time_unix_nano=1_700_000_000_123_456_789,
        outcome=authz_pb2.OUTCOME_DENY,
        reason="policy.forbid",
        policy_ids=["p1", "p2"],
        policies_total=2,
        errors=[
            decisions_pb2.PolicyError(policy_id="e1", cause="type"),
            decisions_pb2.PolicyError(policy_id="e2", cause="overflow"),
        ],
        errors_total=2,
        shadow_policy_ids=["s1"],
        agent="spiffe://demo.test/agent/a",
        agent_type="Agent",
        delegated_subject="user:ann",
        peer="spiffe://demo.test/envoy",
        credential="x509-svid:0a1b",
        owner="eve",
        action_type="Action",
        action="files/read",
        resource_type="Resource",
        resource="doc-1",
        destination="files.test:443",
        protocol="mcp",
        method="tools/call",
        host="files.test",
        path="/mcp",
        args_digest=bytes(range(32)),
        data_level=3,
        input_mode=decisions_pb2.INPUT_MODE_BODY,
        generation=7,
        generation_digest=bytes(range(32, 64)),
        revocation_epoch=9,
        task="task-7",
        taint=decisions_pb2.Taint(level_seen=2, labels_seen=["pii", "secret"], untrusted_seen=True),
        approval=decisions_pb2.Approval(state="granted", matches=True),
        posture=decisions_pb2.Posture(
            risk_agent=11,
            risk_user=22,
            risk_source_age_s=33,
            credential_kind="x509-svid",
            credential_ttl_s=600,
            credential_bound=True,
        ),
        door=decisions_pb2.DOOR_CHECK,
        latency_ns=1234,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        request_id="request-1",
        dry_run=True,
        late=True,
        obligation="approval",
        sanitised=True,
    )


def test_absent_state_is_left_out() -> None:
    """A column with its absent value is no fact: no owner, task, taint, approval or posture is recorded."""
    request = {name: value for name, value in REQUEST.items() if name != "task"}
    decision = decoded(request)
    assert not decision.owner
    assert not decision.task
    assert not any(decision.HasField(name) for name in ("taint", "approval", "posture"))


@pytest.mark.parametrize(
    ("cause", "error"), [("attribute", 2), ("tag", 3), ("entity", 4), ("extension", 6), ("arity", 7)]
)
def test_every_cedar_error_has_its_cause(cause: str, error: int) -> None:
    """The causes are those that decisions.proto lists."""
    assert decoded(REQUEST, {**DECISION, "errors": [("e", error)]}).errors[0].cause == cause


def test_a_call_that_was_never_mapped_still_has_its_agent() -> None:
    """A refused call names no entities; a caller that is an agent is the agent. All mandatory fields are there."""
    nobody = {"principal": None, "action": None, "resource": None, "door": 3, "started_unix_ns": 1}
    payload = encode(nobody, DECISION, peer=(1, "spiffe://demo.test/agent/b", "unix:1"))
    assert missing_fields(payload) == ()
    decision = decisions_pb2.Record.FromString(payload).decision
    assert (decision.agent, decision.action, decision.resource) == ("spiffe://demo.test/agent/b", "", "")


# ------------------------------------------------------------------ the audit minimum


def fields_of(payload: bytes) -> list[tuple[int, bytes]]:
    """(number, whole field) of each field of the decision, read off the wire."""
    at, end = 1, len(payload)
    while payload[at] & 0x80:
        at += 1
    at += 1
    found = []

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = payload[at]
            value |= (byte & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not byte & 0x80:
                return value, at

    while at < end:
        start = at
        tag, at = varint(at)
        if tag & 7 == 0:
            _, at = varint(at)
        elif tag & 7 == 1:
            at += 8
        else:
            size, at = varint(at)
            at += size
        found.append((tag >> 3, payload[start:at]))
    return found


@pytest.mark.parametrize("number", sorted(MANDATORY))
def test_a_record_without_a_mandatory_field_is_noticed(number: int) -> None:
    """AIMS audit minimum (draft-klrc-aiagent-auth): each of its fields must be on the wire, even when it is empty."""
    payload = encode(REQUEST, DECISION, peer=PEER)
    assert missing_fields(payload) == ()
    inner = b"".join(field for at, field in fields_of(payload) if at != number)
    size = bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7])
    assert missing_fields(b"\x0a" + size + inner) == (MANDATORY[number],)


def test_mandatory_numbers_are_those_of_the_contract() -> None:
    """The native encoder and the generated messages agree on the numbers."""
    by_name = decisions_pb2.Decision.DESCRIPTOR.fields_by_name
    assert {by_name[name].number: name for name in MANDATORY.values()} == MANDATORY


def test_gaps_and_events_have_no_mandatory_fields() -> None:
    """Only decisions are held to the audit minimum."""
    for record in (
        decisions_pb2.Record(gap=decisions_pb2.Gap(first_sequence=1)),
        decisions_pb2.Record(event=decisions_pb2.Event(name="x")),
    ):
        assert missing_fields(record.SerializeToString()) == ()


@pytest.mark.parametrize("junk", [b"\xff", b"\x0a\x05\x01", b"\x0a\x02\xff\xff"])
def test_bytes_that_are_no_record_are_an_error(junk: bytes) -> None:
    """A record that cannot be read is not one that lacks fields."""
    with pytest.raises(ValueError, match="protobuf"):
        missing_fields(junk)


# ------------------------------------------------------------------ hostile text


@pytest.mark.parametrize(
    ("name", "cap"),
    [("path", 2048), ("host", 512), ("method", 512), ("destination", 512), ("request_id", 512), ("subject", 512)],
)
def test_long_text_is_cut_at_a_character(name: str, cap: int) -> None:
    """LG-09: a text ends at its cap, never inside a character, and the record says so."""
    text = "a" + "\N{SNOWMAN}" * 400_000
    decision = decoded({**REQUEST, name: text})
    kept = getattr(decision, {"subject": "delegated_subject"}.get(name, name))
    assert text.startswith(kept)
    assert cap - 3 <= len(kept.encode()) <= cap
    assert decision.truncated
    assert not decoded(REQUEST).truncated


def test_a_text_of_exactly_its_cap_is_whole() -> None:
    """The cap counts bytes of UTF-8, and the last one fits."""
    for text in ("x" * 512, "\N{SNOWMAN}" * 170 + "xx"):
        decision = decoded({**REQUEST, "host": text})
        assert decision.host == text
        assert not decision.truncated


@given(st.binary(max_size=700))
@settings(max_examples=300, deadline=None)
def test_any_bytes_make_a_readable_record(raw: bytes) -> None:
    """LG-09: bytes that are not UTF-8 are replaced, and the record says so."""
    decision = decoded({**REQUEST, "sanitised": False, "path": raw})
    assert decision.sanitised == (raw.decode(errors="replace").encode() != raw)
    assert "\N{REPLACEMENT CHARACTER}" in decision.path or decision.path == raw.decode()


@pytest.mark.parametrize(("name", "cap"), [("path", 2048), ("host", 512)])
def test_bytes_that_are_replaced_count_as_what_replaces_them(name: str, cap: int) -> None:
    """LG-09: three bytes stand for one that is no UTF-8, up to the cap of the field and not of the others."""
    for raw in (b"\xff" * (cap // 3), b"\xff" * (cap // 3 + 1), b"a" * 300 + b"\xff" * 100):
        decision = decoded({**REQUEST, name: raw})
        whole = raw.decode(errors="replace")
        assert whole.startswith(getattr(decision, name))
        assert decision.truncated == (len(whole.encode()) > cap)
        assert len(getattr(decision, name).encode()) > min(cap, len(whole.encode())) - 3


def written(number: int, kind: int, value: int | bytes) -> bytes:
    """One field in the fewest bytes."""
    if isinstance(value, bytes):
        return field(number, value)
    data = value.to_bytes(8, "little") if kind == WireType.WIRE_FIXED64 else varint(value)
    return varint(number << 3 | kind) + data


@given(st.integers(0, 300), st.integers(0, 16), st.sampled_from([0, 60, 127, 128, 500, 512]))
@settings(max_examples=300, deadline=None)
def test_a_record_of_any_size_has_the_fewest_bytes(path: int, listed: int, each: int) -> None:
    """The lengths of a record and its fields take one byte, two or three, as they must, and nothing stands between."""
    nobody = {"principal": None, "action": None, "resource": None, "path": "/" * path}
    decision = {"evaluation_id": "", "policies": ["p" * each] * listed, "shadows": ["\N{SNOWMAN}" * each] * listed}
    payload = encode(nobody, decision)
    ((_, _, inner),) = fields(payload)[1]
    assert isinstance(inner, bytes)
    assert payload == field(1, inner)
    assert inner == b"".join(written(*one) for one in fields(inner)[1])
    got = decisions_pb2.Record.FromString(payload).decision
    assert (len(got.path), len(got.policy_ids), len(got.shadow_policy_ids)) == (path, listed, listed)


def test_the_largest_record_fits() -> None:
    """Every list and text at its cap still makes a record that the journal takes."""
    big = "\N{SNOWMAN}" * 1000
    texts = (
        "request_id",
        "trace_id",
        "span_id",
        "task",
        "protocol",
        "method",
        "host",
        "path",
        "destination",
        "subject",
    )
    columns = {
        "task.owner": ("User", big),
        "session.labels_seen": tuple(f"{n:03}{big}" for n in range(100)),
        "approval.state": big,
        "cred.kind": big,
    }
    everything = {**REQUEST, **dict.fromkeys(texts, big), "columns": columns, "principal": (big, big)}
    everything.update(action=(big, big), resource=(big, big))
    listed = [f"{n:02}{big}" for n in range(20)]
    decision = {**DECISION, "policies": listed, "errors": [(p, 1) for p in listed], "shadows": listed, "reason": big}
    payload = encode(everything, decision, peer=(2, big, big), digest=bytes(32))
    assert len(payload) <= 65536
    got = decisions_pb2.Record.FromString(payload).decision
    assert len(got.policy_ids) == len(got.errors) == len(got.shadow_policy_ids) == 16
    assert (got.policies_total, got.errors_total, got.truncated) == (20, 20, True)


def test_no_secret_has_a_way_into_the_record() -> None:
    """LG-10: canaries in all else that a call carries (columns, the echoed JSON-RPC id) are not in the bytes."""
    canary = "CANARY" + os.urandom(8).hex()
    recorded = {"task.id", "task.owner", "session.labels_seen", "approval.state", "cred.kind"}
    columns: dict[str, object] = {}
    for path, kind, _ in COLUMNS:
        if path not in recorded and kind in ("string", "set", "entity"):
            columns[path] = {"string": canary, "set": (canary,), "entity": ("Destination", canary)}[kind]
    assert len(columns) >= 8
    payload = encode({**REQUEST, "columns": columns, "denial_id": f'"{canary}"'}, DECISION, peer=PEER)
    assert canary.encode() not in payload
