"""The example policies for agents through a real Envoy: each allows and denies by what tasks, approvals and owners say.

What is set up here is set up by the authority services alone; no test puts a column into a call. Envoy is configured
with what `remit envoy-config` prints, and its access logs settle what calls took.
"""

import http.client
import re
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cryptography import x509

from sidecar._proto.remit.authority.v1 import approvals_pb2, owners_pb2, revocations_pb2, tasks_pb2
from sidecar.client import budgets, scope
from sidecar.demo.authority import Desk, desk
from sidecar.demo.calls import TIMEOUT_S, Answer, Caller, tls_context
from sidecar.demo.processes import wait_for
from sidecar.demo.stage import AGENT_A, AGENT_B, API_HOST, OWNER, SECURITY, WEB_HOST
from tests.fix_examples import DOWN_HOST, NOBODYS, STREAM_HOST, EndlessServer, ExamplesStage

pytestmark = pytest.mark.envoy

ANY = {"tools": ["*"], "actions": ["*"], "destinations": ["*"], "max_level": 4}


class Actors:
    """The owner and security at their desks, alice and bob in front of Envoy."""

    def __init__(self, stage: ExamplesStage, owner: Desk, security: Desk, alice: Desk) -> None:
        self.stage, self.owner, self.security, self.alice = stage, owner, security, alice

    def open(self, agent: str = AGENT_A, **more: Any) -> tasks_pb2.Task:
        return self.owner.open(agent, "an example", **more)

    def tool(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        *,
        who: str = "alice",
        task: tasks_pb2.Task | None = None,
    ) -> str:
        """Status and reason of an MCP call, which names `task` if there is one."""
        headers = {"x-agent-task": task.id} if task else {}
        return str(Caller(self.stage, who).tool(name, arguments or {"account": "a"}, headers=headers))

    def send(self, host: str) -> str:
        return self.tool("send_money", {"recipient": f"https://{host}/in", "amount": 1})

    def post(self, host: str, path: str, body: bytes = b"", *, who: str = "alice") -> Answer:
        return Caller(self.stage, who).http("POST", host, path, body=body)

    def delegate(self, to: str, *, who: str = "alice") -> str:
        """Asked as the call that hands work to another agent."""
        return str(self.post(API_HOST, f"/agents/{to}", who=who))

    def left(self, task: tasks_pb2.Task) -> tasks_pb2.Budgets:
        """What the task may still spend."""
        found: tasks_pb2.Task = self.owner.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id), timeout=TIMEOUT_S)
        return found.left


@pytest.fixture
def actors(examples_stage: ExamplesStage) -> Iterator[Actors]:
    """No task is open before a test, none after it."""
    with desk(examples_stage, OWNER) as owner, desk(examples_stage, SECURITY) as security:
        with desk(examples_stage, "alice") as alice:
            yield Actors(examples_stage, owner, security, alice)
        for task in owner.tasks.List(tasks_pb2.ListTasksRequest(), timeout=TIMEOUT_S).tasks:
            if not task.parent:
                owner.tasks.Cancel(tasks_pb2.ChangeTaskRequest(id=task.id), timeout=TIMEOUT_S)


# ---------------------------------------------------------------- the caller's certificate


def test_the_certificate_of_a_caller_behind_envoy_can_be_revoked(actors: Actors) -> None:
    """Envoy passes it on: calls with alice's are denied, with bob's they are not, until it is lifted."""
    actors.open()
    actors.open(AGENT_B)
    leaf = x509.load_pem_x509_certificate((actors.stage.svids / "alice" / "svid.pem").read_bytes())
    number = leaf.serial_number
    key = number.to_bytes((number.bit_length() + 7) // 8, "big").hex()
    kind = revocations_pb2.REVOCATION_KIND_CREDENTIAL
    assert actors.tool("get_balance") == actors.tool("get_balance", who="bob") == "200"
    actors.security.revocations.Revoke(
        revocations_pb2.RevokeRequest(kind=kind, key=key, reason="leaked"), timeout=TIMEOUT_S
    )
    assert actors.tool("get_balance") == "403 revoked.credential"
    assert actors.tool("get_balance", who="bob") == "200"
    actors.security.revocations.Lift(revocations_pb2.LiftRequest(kind=kind, key=key), timeout=TIMEOUT_S)
    assert actors.tool("get_balance") == "200"


# ---------------------------------------------------------------- the policies, one by one


def test_p0_nothing_is_allowed_without_an_open_task(actors: Actors) -> None:
    """p0-base: none, open, suspended, resumed, completed. Without one in force p1 forbids as well."""
    assert actors.tool("get_balance") == "403 task.scope"
    task = actors.open()
    assert actors.tool("get_balance") == actors.tool("get_balance", task=task) == "200"
    actors.owner.tasks.Suspend(tasks_pb2.ChangeTaskRequest(id=task.id), timeout=TIMEOUT_S)
    assert actors.tool("get_balance", task=task) == "403 policy.none"
    assert actors.tool("get_balance") == "403 task.scope"
    actors.owner.tasks.Resume(tasks_pb2.ChangeTaskRequest(id=task.id), timeout=TIMEOUT_S)
    assert actors.tool("get_balance", task=task) == "200"
    actors.owner.complete(task)
    assert actors.tool("get_balance", task=task).startswith("403")


@pytest.mark.parametrize(
    ("axis", "inside", "outside"),
    [
        ("tools", "bank/get_balance", "bank/send_money"),
        ("actions", "observe", "change"),
        ("destinations", "bank", "api"),
    ],
)
def test_p1_a_call_stays_in_its_tasks_scope(actors: Actors, axis: str, inside: str, outside: str) -> None:
    """p1-task-scope: tool, action and destination, each alone decides."""
    task = actors.open(scope=scope(**{**ANY, axis: [inside]}))  # type: ignore[arg-type]
    assert actors.tool("get_balance") == "200"
    actors.owner.complete(task)
    actors.open(scope=scope(**{**ANY, axis: [outside]}))  # type: ignore[arg-type]
    assert actors.tool("get_balance") == "403 task.scope"


def test_p1_a_task_ends_by_itself(actors: Actors) -> None:
    """p1-task-scope: no second of its time is left."""
    long = actors.open(ttl_s=600)
    assert actors.tool("get_balance") == "200"
    actors.owner.tasks.Narrow(tasks_pb2.NarrowTaskRequest(id=long.id, ttl_s=1), timeout=TIMEOUT_S)
    wait_for("the task's end", lambda: actors.tool("get_balance") != "200")
    assert actors.tool("get_balance") == "403 task.scope"


def test_p2_a_task_caps_the_level_of_data(actors: Actors) -> None:
    """p2-data-level: the tool's level is 1; narrowing the task to 0 is enough."""
    task = actors.open(scope=scope(**{**ANY, "max_level": 1}))  # type: ignore[arg-type]
    assert actors.tool("get_balance") == "200"
    narrow = tasks_pb2.NarrowTaskRequest(id=task.id, scope=scope(**{**ANY, "max_level": 0}))  # type: ignore[arg-type]
    actors.owner.tasks.Narrow(narrow, timeout=TIMEOUT_S)
    assert actors.tool("get_balance") == "403 data.level"


def test_p3_data_goes_only_where_its_level_may_be(actors: Actors) -> None:
    """p3-destination: the same tool under the same task, sending inside and outside."""
    actors.open()
    assert actors.send("bank.example.org") == "200"
    assert actors.send(WEB_HOST) == "403 dest.level"


def test_p6_delegation_ends_where_its_depth_does(actors: Actors) -> None:
    """p6-delegation: the root may hand on, its child of the greatest depth may not; nobody to a higher clearance."""
    task = actors.open(max_depth=1)
    assert actors.delegate("bob") == "200"
    assert actors.delegate("above") == "403 delegation.depth"
    less = scope(**{**ANY, "max_level": 1})  # type: ignore[arg-type]
    actors.alice.tasks.Delegate(
        tasks_pb2.DelegateTaskRequest(parent=task.id, agent=AGENT_B, scope=less), timeout=TIMEOUT_S
    )
    assert actors.tool("get_balance", who="bob") == "200"
    assert actors.delegate("bob", who="bob") == "403 delegation.depth"


def test_p7_what_cannot_be_undone_needs_an_approval(actors: Actors) -> None:
    """p7-approval: STEP_UP, decided by somebody outside the chain, good for this call and once."""
    actors.open()
    denied = Caller(actors.stage, "alice").tool("delete_account", {"account": "a"})
    said = denied.json()["error"]["data"]
    assert (str(denied), said["next"]) == ("403 approval.required", "request_approval")
    asked = approvals_pb2.RequestApprovalRequest(
        evaluation_id=said["evaluation_id"], justification="the customer left", approver=SECURITY
    )
    row = actors.alice.approvals.Request(asked, timeout=TIMEOUT_S)
    assert actors.tool("delete_account") == "403 approval.required"
    decided = approvals_pb2.DecideApprovalRequest(id=row.id, approve=True, expected_digest=row.digest)
    with pytest.raises(grpc.RpcError) as refused:
        actors.alice.approvals.Decide(decided, timeout=TIMEOUT_S)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    actors.security.approvals.Decide(decided, timeout=TIMEOUT_S)
    assert actors.tool("delete_account", {"account": "another"}) == "403 approval.required"
    assert actors.tool("delete_account") == "200"
    assert actors.tool("delete_account") == "403 approval.required"


def test_p7_a_refused_approval_is_none(actors: Actors) -> None:
    actors.open()
    denied = Caller(actors.stage, "alice").tool("delete_account", {"account": "b"})
    asked = approvals_pb2.RequestApprovalRequest(evaluation_id=denied.json()["error"]["data"]["evaluation_id"])
    row = actors.alice.approvals.Request(asked, timeout=TIMEOUT_S)
    actors.security.approvals.Decide(
        approvals_pb2.DecideApprovalRequest(id=row.id, approve=False, comment="not today"), timeout=TIMEOUT_S
    )
    assert actors.tool("delete_account", {"account": "b"}) == "403 approval.required"


def test_p8_somebody_answers_for_every_call(actors: Actors) -> None:
    """p8-owner: an agent without an owner, and an owner who was disabled; the task alone does not do."""
    actors.open()
    actors.open(NOBODYS)
    assert actors.tool("get_balance") == "200"
    assert actors.tool("get_balance", who="partner") == "403 owner.missing"
    change = owners_pb2.ChangeOwnerRequest(id=OWNER, reason="on leave")
    actors.security.owners.Disable(change, timeout=TIMEOUT_S)
    try:
        assert actors.tool("get_balance") == "403 owner.inactive"
    finally:
        actors.security.owners.Enable(change, timeout=TIMEOUT_S)
    assert actors.tool("get_balance") == "200"


def test_p9_a_tool_that_changes_things_is_the_one_that_was_reviewed(actors: Actors) -> None:
    """p9-pinned: the same task covers both tools; one has no pin."""
    actors.open()
    assert actors.send("bank.example.org") == "200"
    assert actors.tool("read_record", {"customer": "c"}) == "403 tool.unpinned"


# ---------------------------------------------------------------- what calls took


def test_what_envoy_could_not_deliver_comes_back(actors: Actors) -> None:
    """The upstream is down: the call was allowed and took from its task, and Envoy's access log gives that back."""
    task = actors.open(budgets=budgets(calls=3, bytes_=1000))
    answer = actors.post(DOWN_HOST, "/in", b"x" * 300)
    assert answer.status == 503
    wait_for("the call given back", lambda: actors.left(task).calls == 3)
    assert actors.left(task).bytes == 1000
    assert [actors.post(DOWN_HOST, "/in").status for _ in range(2)] == [503, 503]


def test_bytes_count_as_they_were_sent(actors: Actors) -> None:
    """A body of a length that was not told when the call was decided counts with what really went."""
    task = actors.open(budgets=budgets(calls=3, bytes_=1000))
    assert actors.post(API_HOST, "/in", b"x" * 300).status == 200
    wait_for("the bytes", lambda: actors.left(task).bytes == 700)
    reply = _chunked(actors.stage, API_HOST, "/in", [b"y" * 100] * 2)
    assert reply == 200
    wait_for("the bytes", lambda: actors.left(task).bytes == 500)
    assert actors.left(task).calls == 1


def _chunked(stage: ExamplesStage, host: str, path: str, parts: list[bytes]) -> int:
    """The status of a POST in chunks, by alice."""
    with _connection(stage, "main", host) as connection:
        connection.request("POST", path, body=iter(parts), headers={"host": host}, encode_chunked=True)
        reply = connection.getresponse()
        reply.read()
        return reply.status


class _connection:
    """An HTTP connection of alice to one of Envoy's listeners."""

    def __init__(self, stage: ExamplesStage, listener: str, host: str) -> None:
        plain = socket.create_connection(("127.0.0.1", stage.envoy.ports[listener]), TIMEOUT_S)
        self._connection = http.client.HTTPConnection(host)
        self._connection.sock = tls_context(stage, "alice").wrap_socket(plain)

    def __enter__(self) -> http.client.HTTPConnection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


# ---------------------------------------------------------------- long streams


def test_a_stream_does_not_outlive_its_task_for_long(actors: Actors, endless: EndlessServer) -> None:
    """A stream is asked about once; Envoy ends it by the bound that `remit envoy-config` prints, whatever happens."""
    said = actors.stage.printed()["common_http_protocol_options"]
    assert said == {"max_stream_duration": "300s"}  # the default of `authority.stream_s`
    task = actors.open()
    counter = "http.short.downstream_rq_max_duration_reached"
    before = actors.stage.envoy.stat(counter)
    with _connection(actors.stage, "short", STREAM_HOST) as connection:
        connection.request("GET", "/events", headers={"host": STREAM_HOST})
        reply = connection.getresponse()
        assert (reply.status, reply.readline()) == (200, b"data: x\n")
        actors.owner.complete(task)
        # What is open goes on, and what would be opened is refused: that is what the bound is for.
        assert reply.readline() == b"\n"
        assert str(Caller(actors.stage, "alice").http("GET", STREAM_HOST, "/events")).startswith("403")
        with pytest.raises((http.client.IncompleteRead, OSError)):
            reply.read()  # to the end, which the upstream never sends
    wait_for("the upstream to see it", endless.ended.is_set)
    assert actors.stage.envoy.stat(counter) == before + 1


# ---------------------------------------------------------------- what an approval is of

FORM = {"content-type": "application/x-www-form-urlencoded"}
GRPC = {"content-type": "application/grpc", "te": "trailers"}


@pytest.fixture
def stepping_up(actors: Actors) -> Iterator[Actors]:
    """Every call of alice needs an approval."""
    kind, mode = revocations_pb2.REVOCATION_KIND_AGENT, revocations_pb2.REVOCATION_MODE_STEP_UP
    actors.open()
    actors.security.revocations.Revoke(
        revocations_pb2.RevokeRequest(kind=kind, key=AGENT_A, mode=mode), timeout=TIMEOUT_S
    )
    yield actors
    actors.security.revocations.Lift(revocations_pb2.LiftRequest(kind=kind, key=AGENT_A, mode=mode), timeout=TIMEOUT_S)


def _said(answer: Answer) -> str:
    """Where a denial says why: the body, of a gRPC call its message."""
    return answer.headers.get("grpc-message", "") or answer.body.decode()


def _is_stepped_up(answer: Answer) -> bool:
    return "revoked.step_up" in _said(answer)


def _evaluation(answer: Answer) -> str:
    return re.findall("[0-9a-f]{32}", _said(answer))[0]


@pytest.mark.parametrize(
    ("headers", "approved", "another"),
    [
        (FORM, ("/in", b"to=alice&amount=10"), ("/in", b"to=mallory&amount=999999")),
        (FORM, ("/in?to=alice", b"amount=10"), ("/in?to=mallory", b"amount=10")),
        (GRPC, ("/bank.Pay/SendMoney", b"\0\0\0\0\5alice"), ("/bank.Pay/SendMoney", b"\0\0\0\0\7mallory")),
    ],
)
def test_an_exact_approval_is_of_one_http_or_grpc_call(
    stepping_up: Actors, headers: dict[str, str], approved: tuple[str, bytes], another: tuple[str, bytes]
) -> None:
    """Another form, query or gRPC message is another call; the approver saw method, path and query."""

    def call(what: tuple[str, bytes]) -> Answer:
        return Caller(stepping_up.stage, "alice").http("POST", API_HOST, what[0], headers=headers, body=what[1])

    denied = call(approved)
    assert _is_stepped_up(denied)
    asked = approvals_pb2.RequestApprovalRequest(evaluation_id=_evaluation(denied))
    row = stepping_up.alice.approvals.Request(asked, timeout=TIMEOUT_S)
    assert (row.method, row.path, row.query, row.content_unseen) == ("POST", *_parts(approved[0]), False)
    decided = approvals_pb2.DecideApprovalRequest(id=row.id, approve=True, expected_digest=row.digest)
    stepping_up.security.approvals.Decide(decided, timeout=TIMEOUT_S)
    assert _is_stepped_up(call(another))
    assert not _is_stepped_up(call(approved))
    assert _is_stepped_up(call(approved))


def _parts(target: str) -> tuple[str, str]:
    path, _, query = target.partition("?")
    return path, query
