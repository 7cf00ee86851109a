"""The scenes of the demo: what each shows, what must happen, what did."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo import authority
from sidecar.demo.calls import (
    MCP_VERSION,
    Answer,
    Caller,
    ask_as_envoy,
    check_locally,
    check_over_tls,
    check_request,
    tls_context,
    told,
)
from sidecar.demo.processes import wait_for
from sidecar.demo.stage import API_HOST, MCP_HOST, WEB_HOST, Stage

ROTATIONS = 3
LOAD_CALLERS = 2
CALLS_BETWEEN = 10


@dataclass(frozen=True)
class Scene:
    """`play` says what happened in a few words; the scene holds when that is exactly `expected`."""

    shows: str
    call: str
    expected: str
    play: Callable[[Stage], str]


def _tool(who: str, name: str, arguments: dict[str, object], **more: object) -> Callable[[Stage], str]:
    return lambda stage: str(Caller(stage, who).tool(name, dict(arguments), **more))  # type: ignore[arg-type]


def _http(who: str, method: str, host: str, path: str, listener: str = "main") -> Callable[[Stage], str]:
    return lambda stage: str(Caller(stage, who, listener).http(method, host, path))


# ------------------------------------------------------------ allowed


def _mcp_client(stage: Stage) -> str:
    """The client of the `mcp` package, unchanged: it lists the tools and calls one, through Envoy."""
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> str:
        url = f"https://127.0.0.1:{stage.envoy.ports['main']}/mcp"
        web = httpx2.AsyncClient(verify=tls_context(stage, "alice"), headers={"host": MCP_HOST})
        async with web, Client(streamable_http_client(url, http_client=web)) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            result = await client.call_tool("get_balance", {"account": "alice"})
        return f"{len(names)} tools, {result.content[0].text}"

    return asyncio.run(talk())


def _same_answer(stage: Stage) -> str:
    """Small and large amounts, asked over Envoy and over the agent's own socket."""
    seen = []
    for amount in (500, 50_000):
        arguments = {"recipient": "carol", "amount": amount}
        through = Caller(stage, "alice").tool("send_money", arguments)
        direct = told(check_locally(stage, check_request("bank/send_money", arguments)))
        seen.append(f"{through} = {direct}")
    return "; ".join(seen)


# ------------------------------------------------------------ who calls


def _at_envoy(who: str, counter: str) -> Callable[[Stage], str]:
    """A connection that Envoy must refuse; Envoy's own counter says why it did."""

    def play(stage: Stage) -> str:
        name = f"listener.main.ssl.{counter}"
        before = stage.envoy.stat(name)
        answer = Caller(stage, who).http("GET", API_HOST, "/v1/rates")
        refused = "no answer" if answer.failure else str(answer)
        return f"{refused}, {counter} +{stage.envoy.stat(name) - before}"

    return play


def _at_sidecar(who: str) -> Callable[[Stage], str]:
    """The same message straight to the sidecar, with the SVID of `who` and with Envoy's: only that one is answered."""
    return lambda stage: f"{ask_as_envoy(stage, who, b'')}; Envoy's SVID: {ask_as_envoy(stage, 'envoy', b'')}"


def _agent_as_envoy(stage: Stage) -> str:
    """An agent's genuine SVID at Envoy's door: it may not speak for others."""
    from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

    question = CheckRequest()
    question.attributes.source.principal = "spiffe://example.org/agent/alice"
    question.attributes.request.http.method = "GET"
    question.attributes.request.http.host = API_HOST
    question.attributes.request.http.path = "/v1/rates"
    return ask_as_envoy(stage, "bob", question.SerializeToString())


def _repeated_id(stage: Stage) -> str:
    before = stage.decided()
    request = check_request("bank/send_money", {"recipient": "carol", "amount": 5}, request_id="demo-once")
    first, second = check_over_tls(stage, "alice", request), check_over_tls(stage, "alice", request)
    assert isinstance(first, authz_pb2.CheckResponse)
    assert isinstance(second, authz_pb2.CheckResponse)
    same = "same answer" if first.evaluation_id == second.evaluation_id else "two answers"
    return f"{same}, counted {stage.decided() - before}"


# ------------------------------------------------------------ what the call is


def _disagree(stage: Stage) -> str:
    answer = Caller(stage, "alice").rpc(
        "tools/call",
        {"name": "delete_account", "arguments": {"account": "x"}},
        headers={"mcp-method": "tools/call", "mcp-name": "get_balance", "mcp-protocol-version": MCP_VERSION},
    )
    return str(answer)


# ------------------------------------------------------------ policies change


def _policy_file(stage: Stage, name: str, text: str) -> None:
    (stage.policy / "policies" / name).write_text(text)


def _policy_changed(stage: Stage) -> str:
    bob = Caller(stage, "bob")
    before = bob.tool("get_balance", {"account": "bob"})
    text = '@id("bob-reads") permit (principal == Agent::"spiffe://example.org/agent/bob",'
    _policy_file(stage, "bob.cedar", text + ' action in Action::"observe", resource in Server::"bank");\n')
    generation = stage.status().generation
    answer = stage.reload()
    after = bob.tool("get_balance", {"account": "bob"})
    step = "generation +1" if answer.generation == generation + 1 else f"problems {list(answer.problems)}"
    return f"{before}, {step}, {after}"


def _bad_policy(stage: Stage) -> str:
    _policy_file(
        stage, "bad.cedar", '@id("bad") permit (principal, action, resource) when { principal.statsu == 1 };\n'
    )
    generation = stage.status().generation
    answer = stage.reload()
    (stage.policy / "policies" / "bad.cedar").unlink()
    stage.reload()
    said = "refused, says why" if any("bad" in problem for problem in answer.problems) else "not refused"
    kept = "old one serves" if answer.generation == generation else "generation changed"
    return f"{said}, {kept}, {Caller(stage, 'alice').tool('get_balance', {'account': 'a'})}"


# ------------------------------------------------------------ under load


def _under_load(stage: Stage, change: Callable[[Callable[[], None]], None]) -> int:
    """Calls that were not allowed while `change` ran; it gets a function that waits for some more calls."""
    stop = threading.Event()
    answers: list[Answer] = []

    def load() -> None:
        while not stop.is_set():
            answers.append(Caller(stage, "alice").tool("get_balance", {"account": "a"}))

    threads = [threading.Thread(target=load) for _ in range(LOAD_CALLERS)]

    def more() -> None:
        wanted = len(answers) + CALLS_BETWEEN
        wait_for("calls under load", lambda: len(answers) >= wanted)

    for thread in threads:
        thread.start()
    try:
        more()
        change(more)
        more()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return sum(answer.status != 200 for answer in answers)


def _rotation(stage: Stage) -> str:
    def rotate(more: Callable[[], None]) -> None:
        for _ in range(ROTATIONS):
            stage.rotate()
            more()

    return f"{ROTATIONS} rotations, {_under_load(stage, rotate)} failed"


def _collector_restart(stage: Stage) -> str:
    def restart(more: Callable[[], None]) -> None:
        stage.collector.kill()
        more()
        stage.restart_collector()

    failed = _under_load(stage, restart)
    records = stage.wait_collected()
    sequences = [record["sequence"] for record in records]
    gaps = sum(b != a + 1 for a, b in itertools.pairwise(sequences))
    return f"{failed} calls failed, {gaps} records missing"


def _counts(stage: Stage) -> str:
    records = stage.wait_collected()
    collected = sum(record["kind"] == "decision" for record in records)
    decided = stage.decided()
    return "equal" if collected == decided else f"sidecar {decided}, collector {collected}"


def _owners_named(stage: Stage) -> str:
    """Every call that was let through names the agent whose it was and the human who answers for it."""
    allowed = [record for record in stage.wait_collected() if record.get("outcome") == "OUTCOME_ALLOW"]
    unnamed = [record for record in allowed if not record["agent"] or not record.get("owner")]
    return f"{len(unnamed)} without an owner" if allowed else "none allowed"


AMOUNT = {"recipient": "carol"}
GENUINE = "Envoy's SVID: denied identity.missing"

SCENES = [
    Scene(
        "a real MCP client lists tools and calls one",
        "alice, mcp package",
        "4 tools, balance of alice: 1000",
        _mcp_client,
    ),
    Scene("allowed tool call", "alice get_balance", "200", _tool("alice", "get_balance", {"account": "a"})),
    Scene(
        "allowed tool call with an argument",
        "alice send_money 500",
        "200",
        _tool("alice", "send_money", {**AMOUNT, "amount": 500}),
    ),
    Scene("allowed HTTP call", f"alice GET {API_HOST}/v1/rates", "200", _http("alice", "GET", API_HOST, "/v1/rates")),
    Scene("wrong agent", "bob get_balance", "403 policy.none", _tool("bob", "get_balance", {"account": "a"})),
    Scene("wrong tool: nobody was given it", "alice wipe_disk", "403 policy.none", _tool("alice", "wipe_disk", {})),
    Scene(
        "a tool that nobody registered: rules err on it, and an error denies",
        "alice rename_account",
        "403 policy.error",
        _tool("alice", "rename_account", {}),
    ),
    Scene(
        "data level above the agent's clearance",
        "alice read_record",
        "403 data.level",
        _tool("alice", "read_record", {"customer": "c"}),
    ),
    Scene(
        "destination not allowed",
        f"alice POST {WEB_HOST}",
        "403 dest.not_allowed",
        _http("alice", "POST", WEB_HOST, "/paste"),
    ),
    Scene(
        "tool argument over a limit",
        "alice send_money 50000",
        "403 amount.limit",
        _tool("alice", "send_money", {**AMOUNT, "amount": 50_000}),
    ),
    Scene(
        "an approval would help: STEP_UP",
        "alice delete_account",
        "403 approval.required",
        _tool("alice", "delete_account", {"account": "a"}),
    ),
    Scene(
        "the same question over the agent's own socket",
        "alice send_money 500; 50000",
        "200 = ALLOW ok; 403 amount.limit = DENY amount.limit",
        _same_answer,
    ),
    Scene("a repeated request id", "alice Check twice over mTLS", "same answer, counted 1", _repeated_id),
    Scene(
        "no SVID at Envoy",
        "GET /v1/rates",
        "no answer, fail_verify_no_cert +1",
        _at_envoy("", "fail_verify_no_cert"),
    ),
    Scene(
        "forged trust domain at Envoy",
        "evil.test GET /v1/rates",
        "no answer, fail_verify_error +1",
        _at_envoy("forged", "fail_verify_error"),
    ),
    Scene("no SVID straight at the sidecar", "ext_authz Check", f"UNAVAILABLE; {GENUINE}", _at_sidecar("")),
    Scene(
        "forged trust domain straight at the sidecar",
        "evil.test, ext_authz Check",
        f"UNAVAILABLE; {GENUINE}",
        _at_sidecar("forged"),
    ),
    Scene(
        "an agent may not speak for another", "bob's SVID at Envoy's door", "denied identity.not_a_pep", _agent_as_envoy
    ),
    Scene(
        "federated, but nobody answers for it",
        "partner.test GET /v1/rates",
        "403 owner.missing",
        _http("partner", "GET", API_HOST, "/v1/rates"),
    ),
    Scene(
        "//admin on the raw listener",
        "alice GET //admin",
        "403 path.not_canonical",
        _http("alice", "GET", API_HOST, "//admin", "raw"),
    ),
    Scene(
        "%2e%2e on the raw listener",
        "alice GET /v1/%2e%2e/admin",
        "403 path.not_canonical",
        _http("alice", "GET", API_HOST, "/v1/%2e%2e/admin", "raw"),
    ),
    Scene(
        "an encoded slash on the normalising listener",
        "alice GET /v1%2fadmin",
        "400",
        _http("alice", "GET", API_HOST, "/v1%2fadmin"),
    ),
    Scene(
        "header and body disagree", "Mcp-Name get_balance, body delete_account", "400 mcp.header_mismatch", _disagree
    ),
    Scene(
        "a policy changed, in force after reload",
        "bob get_balance",
        "403 policy.none, generation +1, 200",
        _policy_changed,
    ),
    Scene("a bad policy is refused", "reload", "refused, says why, old one serves, 200", _bad_policy),
    Scene("SVIDs rotated under load", "alice get_balance", f"{ROTATIONS} rotations, 0 failed", _rotation),
    Scene(
        "collector killed and started again",
        "alice get_balance",
        "0 calls failed, 0 records missing",
        _collector_restart,
    ),
    Scene(
        "a task ends, and so does what it allowed",
        "alice get_balance",
        "200, completed, 403 task.completed",
        authority.task_ends,
    ),
    Scene(
        "allowed by policy, outside the task", "alice send_money", "200, 403 task.scope.tool", authority.outside_scope
    ),
    Scene("a budget of three calls", "alice get_balance x 4", "200, 200, 200, 403 task.budget", authority.budget),
    Scene(
        "alice delegates to bob, within what she has",
        "bob get_balance",
        "200, chain alice > bob, parent suspended, 403 task.suspended",
        authority.delegation,
    ),
    Scene(
        "an approval, for one call",
        "alice delete_account",
        "request_approval, own approval PERMISSION_DENIED, approved, 200, 403 approval.required",
        authority.approval,
    ),
    Scene(
        "revoked under load",
        "alice get_balance",
        f"0 allowed after {authority.REVOCATIONS} acknowledgements, lifted, 200",
        authority.revocation_under_load,
    ),
    Scene("the owner is disabled", "alice get_balance", "403 owner.inactive, 200", authority.owner_disabled),
    Scene("every allowed call names agent and owner", "collector's records", "0 without an owner", _owners_named),
    Scene("the collector's count is the sidecar's", "decisions", "equal", _counts),
]
