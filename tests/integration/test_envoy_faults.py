"""EX-02, EX-16, EX-17, EX-20 through a real Envoy: what a late, dead or full sidecar lets through."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from sidecar._proto.remit.authz.v1 import authz_pb2_grpc
from sidecar.demo.calls import TIMEOUT_S, Answer, check_request
from sidecar.demo.processes import wait_for
from sidecar.demo.stage import Stage
from sidecar.envoy_config import warnings
from tests.fix_raw import connected, exchange, message
from tests.fix_stage import FaultStage, evaluation_id

pytestmark = pytest.mark.envoy

CALL = message(b"/v1/rates")
CALLERS = 2
IMPATIENT, GIVE_UPS = 60, 4  # clients that give up at once, and how often
ASKED, GIVEN_UP = "cluster.remit.upstream_rq_total", "cluster.remit.upstream_rq_tx_reset"
RECORDS_MAX = 600  # more than the small journal holds


def ask(stage: Stage, listener: str = "main") -> Answer:
    return exchange(stage, CALL, listener=listener)


@contextmanager
def load(stage: Stage) -> Iterator[list[Answer]]:
    """Calls of some agents at once until the block ends; their answers in the order they came."""
    answers: list[Answer] = []
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            answers.append(ask(stage))

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        more(answers, "200")
        yield answers
    finally:
        over.set()
        for caller in callers:
            caller.join()


def more(answers: list[Answer], status: str, count: int = 10) -> None:
    """Return after `count` more answers of this status."""
    start = len(answers)
    wait_for(f"{count} answers {status}", lambda: sum(str(one) == status for one in answers[start:]) >= count)


@contextmanager
def stopped(stage: Stage) -> Iterator[None]:
    """The sidecar's process does not run, and everything it was sent waits."""
    os.kill(stage.sidecar.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stage.sidecar.pid, signal.SIGCONT)


@contextmanager
def killed(stage: FaultStage) -> Iterator[None]:
    stage.sidecar.kill()
    try:
        yield
    finally:
        stage.start_again()


@contextmanager
def without_collector(stage: FaultStage) -> Iterator[None]:
    stage.collector.kill()
    try:
        yield
    finally:
        stage.restart_collector()


def test_ex_16_an_answer_that_does_not_come_in_time_denies(fault_stage: FaultStage) -> None:
    """EX-16: Envoy waits for our budget and a margin, then answers 403 itself; the sidecar lives on."""
    before = fault_stage.envoy.stat("http.main.ext_authz.remit.error")
    with stopped(fault_stage):
        answer = ask(fault_stage)
    assert (answer.status, answer.body) == (403, b"")
    assert fault_stage.envoy.stat("http.main.ext_authz.remit.error") == before + 1
    assert str(ask(fault_stage)) == "200"


def test_ex_16_an_answer_that_comes_in_time_counts(fault_stage: FaultStage) -> None:
    """EX-16: a stop shorter than the time limit only delays the call."""
    answers: list[Answer] = []
    caller = threading.Thread(target=lambda: answers.append(ask(fault_stage)))
    with stopped(fault_stage):
        caller.start()
        wait_for("Envoy asking", lambda: fault_stage.envoy.stat("cluster.remit.upstream_rq_active") == 1)
    caller.join()
    assert [str(one) for one in answers] == ["200"]


def test_h2_01_clients_that_give_up_fail_nobody_else(fault_stage: FaultStage) -> None:
    """H2-01 through an Envoy: it resets what its clients gave up on the connection that all share, more often than a
    peer may that gets no work done; those between are answered, and all on that connection."""
    made = "cluster.remit.upstream_cx_total"
    assert str(ask(fault_stage)) == "200"
    before, reset = fault_stage.envoy.stat(made), fault_stage.envoy.stat(GIVEN_UP)
    for _ in range(GIVE_UPS):
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(fault_stage, listener="main")) for _ in range(IMPATIENT)]
            asked = fault_stage.envoy.stat(ASKED)
            with stopped(fault_stage):
                for client in clients:
                    client.sendall(CALL)
                wait_for("all being asked for", lambda asked=asked: fault_stage.envoy.stat(ASKED) == asked + IMPATIENT)
                stack.close()
        assert {str(ask(fault_stage)) for _ in range(IMPATIENT)} == {"200"}
    assert fault_stage.envoy.stat(GIVEN_UP) >= reset + GIVE_UPS * IMPATIENT
    assert fault_stage.envoy.stat(made) == before


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_ex_17_while_the_sidecar_is_away_envoy_denies(fault_stage: FaultStage, end: str) -> None:
    """EX-17: killed or restarted under load, every call is allowed by a decision or denied; none is let through.

    While it starts it answers ERROR itself, which is 503 and no denial. Every allowed call has its record at the
    collector afterwards: a crash loses nothing that was answered.
    """
    with load(fault_stage) as answers:
        getattr(fault_stage.sidecar, end)()
        assert ask(fault_stage).status == 403
        more(answers, "403")
        fault_stage.start_again()
        more(answers, "200")
    assert {"200", "403"} <= {str(one) for one in answers} <= {"200", "403", "503 unavailable"}
    allowed = {evaluation_id(one) for one in answers if one.status == 200}
    records = fault_stage.wait_collected()
    assert allowed <= {one["evaluation_id"] for one in records if one.get("outcome") == "OUTCOME_ALLOW"}
    sequences = [one["sequence"] for one in records]
    assert sequences == list(range(1, len(sequences) + 1))


def test_ex_17_the_first_call_after_ready_is_decided(fault_stage: FaultStage) -> None:
    """EX-17: recovery needs no operator and no retry: once we say that we are ready, Envoy gets its answer."""
    with killed(fault_stage):
        assert ask(fault_stage).status == 403
    assert str(ask(fault_stage)) == "200"


def _refusal(call: Callable[[], object]) -> str:
    """The gRPC status of a question that was not answered, or nothing."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return ""


def test_ex_02_decisions_that_cannot_be_recorded_are_errors(fault_stage: FaultStage) -> None:
    """EX-02: with the collector away the journal fills up; then nothing is allowed, and callers are not told why.

    Once the collector is back, calls are decided again, and no record is missing.
    """
    question = check_request("bank/get_balance", {"account": "a"})
    with (
        without_collector(fault_stage),
        grpc.insecure_channel(f"unix:{fault_stage.folder}/alice/check.sock") as channel,
    ):
        last = ask(fault_stage)
        ask_directly = authz_pb2_grpc.AuthorizationStub(channel).Check
        refused = [_refusal(lambda: ask_directly(question, timeout=TIMEOUT_S)) for _ in range(RECORDS_MAX)]
        assert set(refused) == {"", "UNAVAILABLE"}
        full = ask(fault_stage)
        assert (full.status, full.json()["error"], full.reason) == (503, "unavailable", "unavailable")
        assert b"journal" not in full.body
        wait_for("not ready", lambda: fault_stage.status().not_ready == "not_ready.journal")
    wait_for("ready", lambda: fault_stage.status().ready)
    assert str(ask(fault_stage)) == "200"
    allowed = [one["evaluation_id"] for one in fault_stage.wait_collected() if one.get("outcome") == "OUTCOME_ALLOW"]
    assert evaluation_id(last) in allowed
    assert len(allowed) >= refused.count("")


def test_a_reload_under_load_changes_whole_generations(fault_stage: FaultStage) -> None:
    """2.6, I5: each call is decided by one generation whole, none fails, and generations only grow."""
    closed = fault_stage.policy / "policies" / "closed.cedar"
    forbid = '@id("closed") @reason("closed") forbid (principal, action, resource);\n'
    with load(fault_stage) as answers:
        for text in (forbid, "", forbid, ""):
            closed.write_text(text)
            assert not fault_stage.reload().problems
            more(answers, "403 closed" if text else "200")
    assert {str(one) for one in answers} == {"200", "403 closed"}
    wanted = {evaluation_id(one): str(one) for one in answers}
    records = [one for one in fault_stage.wait_collected() if one.get("evaluation_id") in wanted]
    by_generation: dict[int, set[str]] = {}
    for one in records:
        by_generation.setdefault(int(one["generation"]), set()).add(wanted[one["evaluation_id"]])
    assert len(records) == len(answers)
    assert [len(seen) for seen in by_generation.values()] == [1] * 5
    assert list(by_generation) == sorted(by_generation)


# ---------------------------------------------------------------- failure_mode_allow


def test_ex_20_failing_open_lets_everything_through_while_the_sidecar_is_away(fault_stage: FaultStage) -> None:
    """EX-20: what `failure_mode_allow: true` means: no decision, no record, and the call arrives."""
    forbidden = message(b"/v1/rates", b"POST")
    assert str(exchange(fault_stage, forbidden, listener="open")) == "403 policy.none"
    decided = fault_stage.decided()
    with stopped(fault_stage):
        late = exchange(fault_stage, forbidden, listener="open")
    assert fault_stage.decided() == decided
    with killed(fault_stage):
        gone = exchange(fault_stage, forbidden, listener="open")
    for leaked in (late, gone):
        assert (leaked.status, leaked.json()["method"]) == (200, "POST")
        assert not [name for name, _ in leaked.json()["headers"] if name.startswith("x-remit-")]


def test_ex_20_the_doctor_warns_of_failing_open(fault_stage: FaultStage) -> None:
    """EX-20: `remit doctor --envoy-config` names the setting; the listener as we print it has nothing to mend."""
    file = fault_stage.folder / "envoy.json"
    command = ["doctor", "--config", str(fault_stage.config), "--envoy-config", str(file)]
    found = subprocess.run(
        [sys.executable, "-m", "sidecar.cli", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert (found.returncode, "`failure_mode_allow: true`" in found.stdout) == (1, True), found
    bootstrap = json.loads(file.read_text())
    listeners = bootstrap["static_resources"]["listeners"]
    assert warnings(json.dumps([one for one in listeners if one["name"] == "main"])) == []
