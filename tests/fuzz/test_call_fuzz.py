"""Whole calls from hostile bytes to answers: whatever arrives, an ALLOW is what the evaluator allows, and is recorded.

The rules are those of examples/demo. A call is built from hostile parts, or damaged, or is two messages in one; some
have too little working memory. REMIT_FUZZ_CALLS sets how many calls there are, REMIT_FUZZ_SEED where they begin.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
from typing import Any

import pytest
from envoy.service.auth.v3 import external_auth_pb2

from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.evaluator import Evaluator
from fastpath.journal import Journal, read_frames
from fastpath.mapping import explain_call, explain_check
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.policy.cells import encode_context
from sidecar.policy.compile import compile_image
from tests.fix_calls import agent_check, envoy_call
from tests.fix_mapping import mapping_of

CALLS = int(os.environ.get("REMIT_FUZZ_CALLS", "12000"))
SEED = int(os.environ.get("REMIT_FUZZ_SEED", "2026"))
DEMO = pathlib.Path(__file__).parents[2] / "examples" / "demo"
MAPPING = mapping_of(
    {
        "trust_domains": ["example.org"],
        "servers": [{"name": "bank", "host": "bank.example.org", "path": "/mcp"}],
        "destinations": [{"host": "bank.example.org", "id": "bank"}, {"host": "api.example.org", "id": "api"}],
        "destination_from": {"bank/get_balance": "at"},
    }
)
ALICE = "spiffe://example.org/agent/alice"
ENVOY = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:01", bundle_generation=1)
AGENT = VerifiedPeer(PeerKind.PEER_AGENT, ALICE, "x509-svid:02", bundle_generation=1)
OK, INVALID_ARGUMENT, UNAVAILABLE = 0, 3, 14
PERMISSION_DENIED = 7
INPUT_BODY = 2
ARENA_BYTES = 4 << 20
BUDGET_MS = 10_000
CODE = re.compile(rb"[a-z0-9_]+(\.[a-z0-9_]+)*")


def demo() -> Generation:
    texts = [path.read_text() for path in sorted((DEMO / "policies").glob("*.cedar"))]
    links = [json.loads(line) for line in (DEMO / "links.jsonl").read_text().splitlines()]
    compiled = compile_image(
        "\n".join(texts),
        entities=(DEMO / "entities.json").read_text(),
        links=links,
        schema=(DEMO / "agents.cedarschema").read_text(),
    )
    return Generation.from_bytes(compiled.image, generation=1)


@pytest.fixture(scope="module")
def rules() -> Generation:
    return demo()


def pdp_of(rules: Generation, journal: Journal | None, arena_bytes: int = ARENA_BYTES) -> Pdp:
    pdp = Pdp(journal, arena_bytes=arena_bytes, budget_ms=BUDGET_MS)
    pdp.put_rules(rules, MAPPING)
    pdp.put_state(epoch=0, bundle_generation=1, not_ready="")
    return pdp


# ------------------------------------------------------------ hostile calls

TOOLS = ["get_balance", "send_money", "delete_account", "read_record", "wipe_disk", "", "get_balance ", "x/y", "é"]
NUMBERS = ["5", "5.0", "10001", "9007199254740993", "1e400", "-0.0", "1e4", "9223372036854775808", '"5"', "null", "[]"]
IDS = ["1", '"a"', "null", "1.5", '"\\u0000"', "{}", '"' + "x" * 300 + '"']
KEYS = ["name", "Name", "na\\u006de", "arguments", "_meta", "uri"]
TYPES = [
    "application/json",
    "application/json; charset=utf-7",
    "Application/JSON",
    "application/grpc",
    "text/plain",
    "",
]
PATHS = ["/mcp", "/mcp/", "//mcp", "/mcp/../x", "/rates", "/rates?x=1&x=2", "/%6dcp", "/a.B/GetC", "*", "", "/m\xe9"]
HOSTS = ["bank.example.org", "BANK.example.org:443", "api.example.org", "a,b", "bank.example.org.", "[::1]", "", "u@h"]
PRINCIPALS = [
    ALICE,
    "spiffe://example.org/agent/bob",
    "spiffe://example.org/agent/orphan",
    "spiffe://evil/a",
    "CN=a",
    "",
]


def rpc_body(rng: random.Random) -> bytes:
    """A JSON-RPC message, mostly a tool's, with members that another reader may take differently."""
    arguments = f'{{"recipient":"r","amount":{rng.choice(NUMBERS)},"at":"https://bank.example.org"}}'
    params = f'"name":"{rng.choice(TOOLS[:5] if rng.random() < 0.7 else TOOLS)}","arguments":{arguments}'
    if rng.random() < 0.2:
        params += f',"{rng.choice(KEYS)}":"{rng.choice(TOOLS)}"'
    method = rng.choice(["tools/call"] * 6 + ["tools/list", "Tools/Call", "resources/read", "notifications/x", "ping"])
    id_ = "1" if rng.random() < 0.7 else rng.choice(IDS)
    text = f'{{"jsonrpc":"2.0","id":{id_},"method":"{method}","params":{{{params}}}}}'
    damage = rng.randrange(14)
    if damage == 0:
        text = f"[{text}]"
    elif damage == 1:
        text = "\ufeff" + text
    elif damage == 2:
        text = text.replace("amount", 'x":' + "[" * 80 + "]" * 80 + ',"amount')
    elif damage == 3:
        text = text[: rng.randrange(len(text))]
    return text.encode()


def envoy_bytes(rng: random.Random) -> bytes:
    """A CheckRequest of Envoy: half of them a likely tool call, the rest of any parts."""
    likely = rng.random() < 0.6
    body = rpc_body(rng) if likely or rng.random() < 0.3 else rng.choice([None, b"", b"{", b"\xff", b'{"a":1}'])
    headers = [("content-type", "application/json" if likely and rng.random() < 0.9 else rng.choice(TYPES))]
    if body is not None and rng.random() < 0.3:
        headers.append(("content-length", str(len(body) + rng.choice([0, 0, 0, 1, -1]))))
    if rng.random() < 0.2:
        headers.append(("x-envoy-auth-partial-body", rng.choice(["true", "false", ""])))
    if rng.random() < 0.2:
        headers.append(
            (rng.choice(["mcp-method", "mcp-name", "content-type", "host"]), rng.choice(["tools/call", "x"]))
        )
    return envoy_call(
        method="POST" if likely else rng.choice(["POST", "GET", "DELETE", "CONNECT", "post", ""]),
        path="/mcp" if likely else rng.choice(PATHS),
        host="bank.example.org" if likely else rng.choice(HOSTS),
        principal=ALICE if likely and rng.random() < 0.8 else rng.choice(PRINCIPALS),
        headers=headers,
        body=body,
        raw=rng.random() < 0.5,
        scheme=rng.choice(["https", "http", "HTTPS", ""]),
        metadata={"method": "tools/call", "params": {"name": rng.choice(TOOLS)}} if rng.random() < 0.1 else None,
        extensions={"server": "bank"} if rng.random() < 0.1 else None,
    )


def check_bytes(rng: random.Random) -> bytes:
    """An agent's own question."""
    likely = rng.random() < 0.4
    named = rng.choice([None, ("Tool", "bank/get_balance"), ("Endpoint", "api.example.org/x"), ("", "")])
    return agent_check(
        action="bank/" + rng.choice(TOOLS[:2])
        if likely
        else rng.choice(["bank/" + rng.choice(TOOLS), "read", "", "bank/"]),
        resource=named if not likely and rng.random() < 0.7 else None,
        arguments={"amount": rng.choice([5, 5, 5, 5.5, 10**4 + 1, 2**60, "5", None]), "recipient": "r"},
        request_id=rng.choice(["", f"id-{rng.randrange(40)}", "a\nb"]),
        destination=rng.choice(
            ["", "", "", "bank.example.org", "bank.example.org", "evil.example/@bank.example.org", "@"]
        ),
        data_level=rng.choice([0, 0, 2, 3, 9]),
        data_labels=["x"] * rng.choice([0, 0, 1, 80]),
        dry_run=rng.random() < 0.1,
    )


def damaged(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The bytes as they are, or cut, flipped, or merged with a second message as protobuf merges."""
    kind = rng.randrange(10)
    if kind == 0:
        return data + other
    if kind == 1:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 2 and data:
        flipped = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    return data


# ------------------------------------------------------------ what must hold


def context_of(found: dict[str, Any]) -> bytes:
    """The context that a call was judged in, as the evaluator takes it."""
    context = dict(found["context"])
    for path, value in found["columns"].items():
        group, _, member = path.partition(".")
        if member:
            context.setdefault(group, {})[member] = value
        else:
            context[group] = value
    return encode_context(context)


def evaluated(rules: Generation, found: dict[str, Any]) -> str:
    """The outcome that the evaluator gives to what a call was taken for."""

    def uid(name: str) -> tuple[str, str]:
        return found[name]["type"], found[name]["id"]

    if found["refusal"]:
        return "DENY"
    parent = uid("resource_parent") if found["resource_parent"] else None
    asked = Evaluator(rules).evaluate(
        uid("principal"),
        uid("action"),
        uid("resource"),
        context_of(found),
        resource_parent=parent,
        unsent=found["unsent"],
    )
    return asked.outcome


def readings(body: bytes) -> set[str]:
    """What servers may take a tool call for: the first or the last of equal names, letters as sent or in lower case."""

    def first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(reversed(pairs))

    def folded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key.lower(): value for key, value in pairs}

    found = set()
    for hook in (first, dict, folded):
        message = json.loads(body, object_pairs_hook=hook)
        params = message["params"]
        amount = params["arguments"].get("amount") if params.get("name") == "send_money" else 0
        found.add(json.dumps([message["method"], params.get("name"), amount]))
    return found


def body_of(request: bytes) -> bytes:
    http = external_auth_pb2.CheckRequest.FromString(request).attributes.request.http
    return http.raw_body or http.body.encode()


def holds_ext_authz(rules: Generation, request: bytes, code: int, reply: bytes) -> str:
    """The outcome of an answer that keeps all rules."""
    assert reply
    if code != OK:
        assert code in (INVALID_ARGUMENT, UNAVAILABLE)
        assert CODE.fullmatch(reply)
        return "DENY" if code == INVALID_ARGUMENT else "ERROR"
    answer = external_auth_pb2.CheckResponse.FromString(reply)
    outcome = str(answer.dynamic_metadata["outcome"])
    status = {"ALLOW": OK, "DENY": PERMISSION_DENIED, "STEP_UP": PERMISSION_DENIED, "ERROR": UNAVAILABLE}[outcome]
    form = {OK: "ok_response", PERMISSION_DENIED: "denied_response", UNAVAILABLE: "error_response"}[status]
    assert answer.status.code == status
    assert answer.WhichOneof("http_response") in (form, None)
    assert len(str(answer.dynamic_metadata["decision_id"])) == 32
    if outcome == "ALLOW":
        found = explain_call(MAPPING, request, rules)
        assert evaluated(rules, found) == "ALLOW"
        body = body_of(request)
        if found["protocol"] == "mcp" and found["input_mode"] == INPUT_BODY and b"tools/call" in body:
            assert len(readings(body)) == 1
    elif form == answer.WhichOneof("http_response"):
        text = getattr(answer, form).body
        assert outcome != "ERROR" or "unavailable" in text
        assert not re.search(r"bank-tellers|examples|fastpath|\.cedar", text)
    return outcome


def recorded(directory: pathlib.Path) -> list[str]:
    found = []
    for path in sorted(directory.glob("*.seg")):
        for _, payload in read_frames(path):
            decision = decisions_pb2.Record.FromString(payload).decision
            found.append(authz_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_"))
    return found


def test_an_envoy_call_of_any_bytes_is_allowed_only_by_the_rules(rules: Generation, tmp_path: pathlib.Path) -> None:
    """EX-01, EX-02, I1, I4: no empty answer, ALLOW only where the evaluator allows, each answer in the journal."""
    rng = random.Random(SEED)
    outcomes = []
    with Journal(tmp_path / "journal", helper=False) as journal:
        pdp = pdp_of(rules, journal)
        for _ in range(CALLS):
            request = damaged(rng, envoy_bytes(rng), envoy_bytes(rng))
            outcomes.append(holds_ext_authz(rules, request, *pdp.ext_authz(request, ENVOY)))
    assert recorded(tmp_path / "journal") == outcomes
    # The corpus is worth its time only while it meets all of them.
    assert {"ALLOW", "DENY"} <= set(outcomes)
    assert outcomes.count("ALLOW") > CALLS // 50


def test_an_envoy_call_with_little_memory_is_never_more_than_with_enough(rules: Generation) -> None:
    """SY-03: what does not fit is an ERROR or a denial; an ALLOW is still what the whole call deserves."""
    rng = random.Random(SEED + 1)
    for arena_bytes in range(0, 1 << 17, 1 << 17 >> 6):
        pdp = pdp_of(rules, None, arena_bytes + rng.randrange(64))
        for _ in range(CALLS // 100):
            request = damaged(rng, envoy_bytes(rng), envoy_bytes(rng))
            holds_ext_authz(rules, request, *pdp.ext_authz(request, ENVOY))


def asked(rules: Generation, request: bytes) -> str:
    return evaluated(rules, explain_check(MAPPING, request, ALICE, rules))


def test_a_check_of_any_bytes_is_allowed_only_by_the_rules(rules: Generation) -> None:
    """The agent's own door: the same, with answers that are remembered by request id."""
    rng = random.Random(SEED + 2)
    pdp, small = pdp_of(rules, None), pdp_of(rules, None, 1 << 16)
    allowed = 0
    for _ in range(CALLS):
        request = damaged(rng, check_bytes(rng), check_bytes(rng))
        code, reply = (small if rng.random() < 0.1 else pdp).check(request, AGENT)
        if code != OK:
            assert CODE.fullmatch(reply)
            continue
        outcome = authz_pb2.CheckResponse.FromString(reply).outcome
        assert outcome in (authz_pb2.OUTCOME_ALLOW, authz_pb2.OUTCOME_DENY, authz_pb2.OUTCOME_STEP_UP)
        if outcome == authz_pb2.OUTCOME_ALLOW:
            allowed += 1
            assert asked(rules, request) == "ALLOW"
    assert allowed > CALLS // 50


def test_a_batch_of_any_bytes_is_answered_whole_or_not_at_all(rules: Generation) -> None:
    """As many answers as questions, each as it would be alone; or a status and nothing else."""
    rng = random.Random(SEED + 3)
    pdp = pdp_of(rules, None, 1 << 18)
    for _ in range(CALLS // 10):
        items = [check_bytes(rng) for _ in range(rng.randrange(1, 8))]
        whole = b"".join(b"\x0a" + bytes([len(i) & 127 | 128, len(i) >> 7]) + i for i in items)
        request = damaged(rng, whole, b"\x0a\x00")
        code, reply = pdp.batch_check(request, AGENT)
        if code != OK:
            assert CODE.fullmatch(reply)
            continue
        questions = authz_pb2.BatchCheckRequest.FromString(request).items
        answers = authz_pb2.BatchCheckResponse.FromString(reply).items
        assert len(answers) == len(questions)
        for question, answer in zip(questions, answers, strict=True):
            assert answer.outcome != authz_pb2.OUTCOME_UNSPECIFIED
            if answer.outcome == authz_pb2.OUTCOME_ALLOW:
                assert asked(rules, question.SerializeToString()) == "ALLOW"
