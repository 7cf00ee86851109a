"""The sidecar as a process: start, not ready, ready, reload, metrics, drain (rows SY-07, SY-08, H2-24, UD-05)."""

import json
import os
import pathlib
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sidecar._proto.remit.authz.v1 import authz_pb2, authz_pb2_grpc
from sidecar.demo.ca import Authority, Svid
from sidecar.demo.processes import Process, module, wait_for
from sidecar.demo.workload_api import WorkloadApi, svid_message
from tests.fix_native import ACK, END_HEADERS, HEADERS, PING, RawClient, call_headers, frame
from tests.fix_serve import (
    AGENT,
    BATCH,
    CHECK,
    ENVOY,
    EXT_AUTHZ,
    PERMIT,
    SIDECAR,
    TIMEOUT_S,
    TRUST_DOMAIN,
    Served,
    check,
    made_sidecar,
    outcome,
    question,
)

FORBID = '@id("closed") forbid (principal, action, resource);\n'


@pytest.fixture(scope="module", params=["grpcio", "native"])
def listener(request: pytest.FixtureRequest) -> str:
    """Every rule below holds whoever serves the doors."""
    return str(request.param)


@pytest.fixture
def served(listener: str) -> Iterator[Served]:
    """A sidecar of the test's own, not started yet."""
    with made_sidecar(listener) as made:
        yield made


@pytest.fixture(scope="module")
def running(listener: str) -> Iterator[Served]:
    """One ready sidecar for the tests that leave it as they found it."""
    with made_sidecar(listener) as made:
        made.start_ready()
        yield made


def health(channel: grpc.Channel, service: str) -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def metric(served: Served, name: str) -> float:
    """One sample; 0 when it does not exist yet."""
    lines = dict(line.rsplit(" ", 1) for line in served.http("/metrics")[1].splitlines() if not line.startswith("#"))
    return float(lines.get(name, 0))


@contextmanager
def load(served: Served, threads: int = 3) -> Iterator[Counter[tuple[str, str]]]:
    """Questions over the agent's socket until one is not decided or the block ends; how often each answer came."""
    seen: Counter[tuple[str, str]] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with served.agent_socket() as channel:
            while not stop.is_set():
                answer = outcome(channel, question())
                seen[answer] += 1
                if answer[0] not in ("ALLOW", "DENY"):
                    return

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        wait_for("calls under way", lambda: seen.total() > 50)
        yield seen
    finally:
        stop.set()
        for worker in workers:
            worker.join()


# ---------------------------------------------------------------- readiness


def test_not_ready_answers_error_and_says_why(served: Served) -> None:
    """Without an SVID the process lives, answers ERROR, and is not ready; with one it decides."""
    process = served.start()
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("UNAVAILABLE", "not_ready.svid")
        assert [health(agent, name) for name in ("live", "ready", "")] == ["SERVING", "NOT_SERVING", "NOT_SERVING"]
        assert served.http("/livez") == (200, "live\n")
        assert served.http("/readyz") == (503, "not_ready.svid\n")
        served.give_svid()
        process.wait_until("ready", lambda: served.status().ready)
        assert outcome(agent, question()) == ("ALLOW", "ok")
        assert [health(agent, name) for name in ("live", "ready", "")] == ["SERVING"] * 3
        assert served.http("/readyz") == (200, "ready\n")
        served.workload.deny()
        process.wait_until("not ready", lambda: not served.status().ready)
        assert outcome(agent, question()) == ("UNAVAILABLE", "not_ready.svid")


def test_bad_policies_at_the_start_leave_the_last_generation_in_force(served: Served) -> None:
    """A restart with a broken file serves what was published last; without a generation it lives, not ready."""
    served.policy.write_text("permit (")
    served.give_svid()
    process = served.start()
    process.wait_until("the refusal", lambda: bool(served.status().last_reload_problem))
    process.wait_until("the reason", lambda: served.status().not_ready == "not_ready.generation")
    served.policy.write_text(PERMIT)
    assert served.reload().generation == 1
    process.wait_until("ready", lambda: served.status().ready)
    assert served.stop() == 0
    served.policy.write_text("permit (")
    process = served.start()
    process.wait_until("ready", lambda: served.status().ready)
    assert served.status().generation == 1
    assert "base.cedar" in served.status().last_reload_problem


# ---------------------------------------------------------------- doors


def test_one_question_has_one_answer_at_every_door(running: Served) -> None:
    """The agent's socket and its mutual TLS: same outcome, reason and policies, alone and in a batch."""
    agent_svid = running.authority.issue(AGENT)
    with running.agent_socket() as local, running.tls("listeners.check_address", agent_svid) as remote:
        for level, wanted in ((0, "ALLOW"), (2, "ALLOW"), (3, "DENY")):
            answers = [check(channel, question(level=level)) for channel in (local, remote)]
            assert {authz_pb2.Outcome.Name(a.outcome) for a in answers} == {f"OUTCOME_{wanted}"}
            assert answers[0].policy_ids == answers[1].policy_ids
            assert answers[0].reason == answers[1].reason
        items = authz_pb2.BatchCheckRequest(items=[question(level=0), question(level=3)]).SerializeToString()
        reply = authz_pb2.BatchCheckResponse.FromString(local.unary_unary(BATCH)(items, timeout=TIMEOUT_S))
        assert [item.outcome for item in reply.items] == [authz_pb2.OUTCOME_ALLOW, authz_pb2.OUTCOME_DENY]


def test_only_an_envoy_on_the_list_may_speak_for_others(running: Served) -> None:
    """EX-14: ext_authz is answered for an allow-listed PEP; an agent's SVID is refused, none does not connect."""
    pytest.importorskip("envoy.service.auth.v3.external_auth_pb2", reason="xds-protos is not installed")
    from envoy.service.auth.v3 import external_auth_pb2

    from tests.fix_calls import envoy_call

    raw = envoy_call(principal=AGENT, host="api.corp.example", path="/a")

    def ask(svid: Svid | None) -> external_auth_pb2.CheckResponse:
        with running.tls("listeners.ext_authz.address", svid) as channel:
            return external_auth_pb2.CheckResponse.FromString(channel.unary_unary(EXT_AUTHZ)(raw, timeout=TIMEOUT_S))

    allowed = ask(running.authority.issue(ENVOY))
    assert allowed.status.code == 0
    assert allowed.HasField("ok_response")
    refused = ask(running.authority.issue(AGENT))
    assert refused.status.code != 0
    assert refused.HasField("denied_response")
    with pytest.raises(grpc.RpcError) as caught:
        ask(None)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_unix_socket_can_belong_to_one_envoy(served: Served) -> None:
    """Without TLS the socket's folder says that the caller is that Envoy."""
    pytest.importorskip("envoy.service.auth.v3.external_auth_pb2", reason="xds-protos is not installed")
    from envoy.service.auth.v3 import external_auth_pb2

    from tests.fix_calls import envoy_call

    served.settings["listeners"]["ext_authz"] = {"socket": "envoy/sock", "spiffe_id": ENVOY}
    served.settings["peps"] = []
    served.start_ready()
    raw = envoy_call(principal=AGENT, host="api.corp.example", path="/a")
    with grpc.insecure_channel(f"unix:{served.folder}/envoy/sock") as channel:
        answer = external_auth_pb2.CheckResponse.FromString(channel.unary_unary(EXT_AUTHZ)(raw, timeout=TIMEOUT_S))
    assert answer.HasField("ok_response")
    printed = served.remit("envoy-config").stdout
    assert f"path: {served.folder}/envoy/sock" in printed
    assert "transport_socket" not in printed


def test_a_removed_root_ends_what_was_connected(served: Served) -> None:
    """ID-20: the next call on an old connection is refused once its root is gone; the new root's callers get in."""
    process = served.start_ready()
    old = served.authority.issue(AGENT)
    with served.tls("listeners.check_address", old) as connected:
        assert outcome(connected, question()) == ("ALLOW", "ok")
        served.authority = Authority(TRUST_DOMAIN)
        served.give_svid()
        process.wait_until("the new bundle", lambda: served.status().bundle_generation == 2)
        code, reason = outcome(connected, question())
    assert code == "UNAUTHENTICATED"
    assert reason.startswith("identity.")
    with served.tls("listeners.check_address", served.authority.issue(AGENT)) as fresh:
        assert outcome(fresh, question()) == ("ALLOW", "ok")


def test_metadata_cannot_name_another_principal(running: Served) -> None:
    """UD-05: on a Unix socket the identity is the socket's; what the client claims is not read."""
    claims = [("x-spiffe-id", AGENT), ("x-forwarded-client-cert", f"URI={AGENT}"), ("authorization", f"Bearer {AGENT}")]
    with running.agent_socket("other") as channel:
        answer = check(channel, question(), metadata=claims)
    assert answer.outcome == authz_pb2.OUTCOME_DENY
    assert answer.reason == "policy.none"


def test_reflection_names_our_services_on_the_control_socket(running: Served) -> None:
    """An operator's tool finds the contracts; a data plane door does not offer them."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with running.control() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S)
    names = {service.name for service in answer.list_services_response.service}
    assert {"remit.control.v1.Control", "remit.authz.v1.Authorization", "remit.decisions.v1.DecisionTail"} <= names
    with running.agent_socket() as channel, pytest.raises(grpc.RpcError) as caught:
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_explain_says_which_condition_failed(running: Served) -> None:
    """On the control socket: the data plane's own answer, and each matching policy with its conditions."""
    with running.control() as channel:
        stub = authz_pb2_grpc.ExplanationStub(channel)
        told = stub.Explain(authz_pb2.ExplainRequest(principal=AGENT, check=question(level=3)), timeout=TIMEOUT_S)
        assert told.response.outcome == authz_pb2.OUTCOME_DENY
        (low,) = [policy for policy in told.policies if policy.policy_id == "low"]
        assert (low.effect, low.scope_matched, low.result) == ("permit", True, "unsatisfied")
        assert [(clause.result, "data_level" in clause.text) for clause in low.clauses] == [("false", True)]
        allowed = stub.Explain(authz_pb2.ExplainRequest(principal=AGENT, check=question(level=1)), timeout=TIMEOUT_S)
        assert allowed.response.outcome == authz_pb2.OUTCOME_ALLOW
        assert "satisfied" in {policy.result for policy in allowed.policies}
        nobody = authz_pb2.ExplainRequest(principal="nobody", check=question())
        assert stub.Explain(nobody, timeout=TIMEOUT_S).response.outcome == authz_pb2.OUTCOME_DENY


# ---------------------------------------------------------------- what the operator sees


def test_metrics_count_what_was_answered(running: Served) -> None:
    """Decisions by door and outcome, latency, generation, SVID expiry, journal; no text of a request anywhere."""
    names = {
        "allow": 'remit_decisions_total{door="check",outcome="allow"}',
        "deny": 'remit_decisions_total{door="check",outcome="deny"}',
        "all": 'remit_decision_latency_seconds_count{door="check"}',
        "malformed": "remit_malformed_total",
        "records": "remit_journal_last_sequence",
    }
    before = {key: metric(running, name) for key, name in names.items()}
    canary = "c4n4ry"
    with running.agent_socket() as agent:
        for level in (0, 1, 4):
            check(agent, question(level=level, destination=f"{canary}.example", request_id=f"{canary}-{level}"))
        with pytest.raises(grpc.RpcError):
            agent.unary_unary(CHECK)(b"\xff\xff", timeout=TIMEOUT_S)
    grown = {key: metric(running, name) - before[key] for key, name in names.items()}
    assert (grown["allow"], grown["malformed"]) == (2, 1)
    assert grown["deny"] >= 1
    assert grown["all"] >= 3
    assert grown["records"] >= 3
    assert metric(running, "remit_generation") == 1
    assert metric(running, "remit_ready") == 1
    assert metric(running, "remit_svid_not_after_seconds") > 1_700_000_000
    assert canary not in running.http("/metrics")[1]
    assert canary not in (running.folder / "sidecar.log").read_text()


def test_status_doctor_and_envoy_config_describe_the_running_sidecar(running: Served) -> None:
    """What is in force, nothing to mend, and an Envoy side that names its port and its SPIFFE ID."""
    shown = running.remit("status")
    assert shown.returncode == 0, shown.stderr
    assert SIDECAR in shown.stdout
    assert "listeners.ext_authz.address" in shown.stdout
    doctor = running.remit("doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    printed = running.remit("envoy-config")
    assert printed.returncode == 0, printed.stderr
    port = running.addresses["listeners.ext_authz.address"].rpartition(":")[2]
    assert f"port_value: {port}" in printed.stdout
    assert f"exact: {SIDECAR}" in printed.stdout


def test_the_process_gives_up_its_rights(running: Served) -> None:
    """no_new_privs is set, and no core is ever written."""
    assert running.process is not None
    proc = pathlib.Path(f"/proc/{running.process.pid}")
    assert "NoNewPrivs:\t1" in (proc / "status").read_text()
    (line,) = [line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]


def test_a_killed_sidecar_leaves_nothing_in_the_way(served: Served) -> None:
    """Its sockets are stale: doctor says that it does not run, and the next start replaces them."""
    process = served.start_ready()
    process.kill()
    assert (served.folder / "control" / "sock").exists()
    doctor = served.remit("doctor")
    assert doctor.returncode == 1
    assert "does not run" in doctor.stdout
    assert served.remit("status").returncode == 4
    served.start_ready()
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")


def test_a_second_sidecar_on_the_same_state_is_refused(running: Served) -> None:
    """SY-08: one journal, one owner; the second says which folder is taken."""
    done = running.remit("serve")
    assert done.returncode == 3
    assert "another process has the journal" in done.stderr
    assert running.status().ready


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, and only root is refused")
def test_root_is_refused_unless_it_becomes_somebody(served: Served) -> None:
    """A sidecar needs no right of root, so it must be told what to do."""
    served.settings["process"] = {}
    served.write()
    done = served.remit("serve")
    assert done.returncode == 3
    assert "refusing to run as root" in done.stderr


# ---------------------------------------------------------------- reload


def change_policy(served: Served) -> None:
    served.policy.write_text(PERMIT + "permit (")


def change_config(served: Served) -> None:
    served.policy.write_text(FORBID)
    served.settings["limits"]["tempo"] = 1


def change_mapping(served: Served) -> None:
    served.policy.write_text(FORBID)
    served.settings["mapping"]["agent_type"] = "not a type"


def change_what_is_fixed(served: Served) -> None:
    served.policy.write_text(FORBID)
    served.settings["listeners"]["check_address"] = ""


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (change_policy, "base.cedar"),
        (change_config, "limits.tempo"),
        (change_mapping, "agent_type"),
        (change_what_is_fixed, "listeners"),
    ],
)
def test_a_bad_reload_leaves_the_last_good_state(running: Served, change: Callable[[Served], None], cause: str) -> None:
    """SY-07: bad policy, bad configuration or a change that needs a restart is refused whole, and says why."""
    refused = metric(running, 'remit_reloads_total{result="refused"}')
    file, policy = running.config.read_text(), running.policy.read_text()
    settings = {key: dict(value) if isinstance(value, dict) else value for key, value in running.settings.items()}
    try:
        change(running)
        running.write()
        answer = running.reload()
        assert (answer.generation, answer.changed) == (1, False)
        assert any(cause in problem for problem in answer.problems), answer.problems
        now = running.status()
        assert now.ready
        assert cause in now.last_reload_problem
        with running.agent_socket() as agent:
            assert outcome(agent, question()) == ("ALLOW", "ok")
        assert metric(running, 'remit_reloads_total{result="refused"}') == refused + 1
        shown = running.remit("reload", "--socket", f"{running.folder}/control/sock")
        assert shown.returncode == 1
        assert "generation 1 stays in force" in shown.stderr
    finally:
        running.settings = settings
        running.config.write_text(file)
        running.policy.write_text(policy)
        assert not running.reload().problems


def test_a_reload_changes_rules_and_says_the_generation(served: Served) -> None:
    """The next call is decided by the new policies; equal content keeps the generation; SIGHUP does the same."""
    process = served.start_ready()
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")
        served.policy.write_text(PERMIT + FORBID)
        done = served.remit("reload")
        assert (done.returncode, done.stdout.split()[:2]) == (0, ["generation", "2"]), done.stderr
        assert outcome(agent, question())[0] == "DENY"
        assert check(agent, question()).generation == 2
        assert "(unchanged)" in served.remit("reload").stdout
        served.policy.write_text(PERMIT)
        os.kill(process.pid, signal.SIGHUP)
        process.wait_until("generation 3", lambda: served.status().generation == 3)
        assert outcome(agent, question()) == ("ALLOW", "ok")


def test_mapping_and_policies_come_into_force_together(served: Served) -> None:
    """A reload is atomic: under load no call sees the new mapping with the old policies, or the other way round."""
    served.start_ready()
    served.policy.write_text(PERMIT.replace("Agent::", "Robot::"))
    served.settings["mapping"]["agent_type"] = "Robot"
    served.write()
    with load(served) as seen:
        answer = served.reload()
        enough = seen.total() + 50
        wait_for("calls after the reload", lambda: seen.total() > enough)
    assert (answer.generation, list(answer.problems)) == (2, [])
    assert set(seen) == {("ALLOW", "ok")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
def test_a_user_who_may_not_enter_is_logged() -> None:
    """UD-01: refused before a byte is read, and the log says who it was, once for many times."""
    code = (
        "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for _ in range(9):\n    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); assert not s.recv(9)"
    )
    with made_sidecar("native") as served:
        served.start_ready()
        path = served.folder / "agent" / "sock"
        for folder in (served.folder, path.parent):
            os.chmod(folder, 0o755)
        os.chmod(path, 0o666)
        subprocess.run(["/usr/bin/python3", "-c", code, path], check=True, timeout=60)

        def told() -> list[dict[str, Any]]:
            return [line for line in served.log() if line["event"] == "door.refused"]

        wait_for("all to be told", lambda: sum(line["connections"] for line in told()) == 9)
        assert {line["uid"] for line in told()} == {65534}


# ---------------------------------------------------------------- stop


def test_sigterm_lets_calls_end_and_stops(served: Served, listener: str) -> None:
    """H2-24: under load every call is decided or refused at the door; exit status 0; nothing is left behind.

    At a native door no call fails: one that gets no answer found no door any more. CANCELLED is how grpcio refuses
    what came in while its door was closing; no handler saw it.
    """
    process = served.start_ready()
    with load(served) as seen:
        os.kill(process.pid, signal.SIGTERM)
        wait_for("the end", lambda: not process.running())
    assert process.stop() == 0
    failed = {answer for answer in seen if answer[0] != "ALLOW"}
    assert {code for code, _ in failed} <= ({"UNAVAILABLE"} if listener == "native" else {"UNAVAILABLE", "CANCELLED"})
    assert listener != "native" or all("failed to connect" in why for _, why in failed), failed
    assert not (served.folder / "agent" / "sock").exists()
    assert not (served.folder / "control" / "sock").exists()
    arguments = ("--dir", f"{served.folder}/journal", "--from-start", "--no-follow", "--json")
    recorded = served.remit("decisions", "tail", *arguments).stdout.count('"OUTCOME_ALLOW"')
    assert recorded >= seen["ALLOW", "ok"]


def test_sigterm_answers_all_that_was_taken() -> None:
    """H2-24: a caller that asks until it hears of the end, and once more before it says so, has an answer to each.

    grpcio tells of the end otherwise.
    """
    with made_sidecar("native") as served:
        process = served.start_ready()
        with RawClient(f"{served.folder}/agent/sock") as client:
            assert client.ask(1) == ("0", "")
            os.kill(process.pid, signal.SIGTERM)
            stream = 3
            while not client.goaway:
                assert client.ask(stream) == ("0", "")
                stream += 2
            client.send(client.request(stream))
            for payload in [payload for kind, flags, _, payload in client.frames if kind == PING and not flags & ACK]:
                client.send(frame(PING, ACK, 0, payload))
            client.drain()
            last, code = client.goaway[-1]
            assert code == 0
            assert client.ended == set(range(1, last + 1, 2))
            assert {got["grpc-status"] for got in client.headers.values()} == {"0"}
        wait_for("the end", lambda: not process.running())
        assert process.stop() == 0


def test_a_second_sigterm_waits_for_nobody(served: Served) -> None:
    """H2-24: a call that does not come to its end keeps the process until the grace is over; another signal ends it."""
    served.settings["limits"] |= {"grace_s": 600, "stream_ms": 600_000}
    process = served.start_ready()
    with RawClient(f"{served.folder}/agent/sock") as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())))
        assert client.ask(3) == ("0", "")
        os.kill(process.pid, signal.SIGTERM)
        client.until(lambda: client.goaway)
        client.send(frame(PING, 0, 0, b"still on"))
        client.until(lambda: (PING, ACK, 0, b"still on") in client.frames)
        assert process.running()
        os.kill(process.pid, signal.SIGTERM)
        client.drain()
    wait_for("the end", lambda: not process.running())
    assert process.stop() == 0


# ---------------------------------------------------------------- upstream


@pytest.mark.parametrize("way", ["socket", "mutual TLS"])
def test_decisions_reach_the_collector(served: Served, way: str) -> None:
    """`remit collect` holds every record of the sidecar, named by its SPIFFE ID; status says so."""
    with collecting(served, way) as records:
        process = served.start_ready()
        with served.agent_socket() as agent:
            assert [outcome(agent, question(level=level))[0] for level in (0, 4)] == ["ALLOW", "DENY"]
        process.wait_until("nothing left to ship", lambda: served.status().stream.lag == 0)
        now = served.status()
        assert now.stream.connected
        assert now.stream.acknowledged == now.journal.last_sequence
        assert served.stop() == 0
    lines = [json.loads(line) for line in (records / f"{now.journal.id}.jsonl").read_text().splitlines()]
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["sidecar"] for line in lines} == {SIDECAR}
    assert [line["outcome"] for line in lines if line["kind"] == "decision"] == ["OUTCOME_ALLOW", "OUTCOME_DENY"]


@contextmanager
def collecting(served: Served, way: str) -> Iterator[pathlib.Path]:
    """A collector that the sidecar's configuration names; the folder of its logs."""
    records = served.folder / "records"
    command = ["collect", "--dir", str(records), "--log-format", "json"]
    workload = WorkloadApi(served.folder / "collector.sock")
    if way == "socket":
        path = served.folder / "collect" / "sock"
        served.settings["upstream"] = {"socket": str(path)}
        command += ["--socket", str(path)]
    else:
        identity = "spiffe://corp.example/collector"
        workload.push(svid_message([served.authority.issue(identity)], [served.authority.root_der], {}))
        workload.start()
        command += ["--address", "127.0.0.1:0", "--workload-api", f"unix://{workload.path}"]
    with Process("collector", module("sidecar.cli", *command), served.folder) as process:
        log = served.folder / "collector.log"
        process.wait_until("listening", lambda: "collect.serving" in log.read_text())
        if way != "socket":
            (line,) = [line for line in log.read_text().splitlines() if "collect.serving" in line]
            served.settings["upstream"] = {"address": json.loads(line)["address"], "spiffe_id": identity}
        yield records
    workload.stop()
