"""EX-17, second half: behind two sidecars Envoy asks the other one when one is gone, and no call is denied for it."""

import copy
import os
import shutil
import threading
from collections.abc import Iterator

import grpc
import pytest
import yaml

from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar.demo.envoy import Json
from sidecar.demo.processes import Process, module, wait_for
from sidecar.demo.stage import Stage, short_folder
from tests.fix_raw import exchange, message
from tests.fix_stage import evaluation_id

pytestmark = pytest.mark.envoy

CALLERS = 2
CALLS_BETWEEN = 20
# Ask once more, at the other address, when the connection or the call to one of the two fails.
RETRY = {
    "retry_on": "connect-failure,refused-stream,reset,unavailable",
    "num_retries": 2,
    "host_selection_retry_max_attempts": 3,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
}


class PairStage(Stage):
    """The demo's stage with a second sidecar of the same policies, and an Envoy that knows both."""

    __test__ = False

    def envoy_filter(self) -> Json:
        made = super().envoy_filter()
        made["typed_config"]["grpc_service"]["retry_policy"] = RETRY
        return made

    def envoy_cluster(self) -> Json:
        made = super().envoy_cluster()
        host, _, port = self._second().rpartition(":")
        endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        made["load_assignment"]["endpoints"][0]["lb_endpoints"].append(endpoint)
        return made

    def _second(self) -> str:
        """Start the second sidecar; the address of its door for Envoy."""
        folder = self.folder / "second"
        folder.mkdir()
        if self._uid is not None:
            os.chown(folder, self._uid, self._uid)
        settings = copy.deepcopy(self.settings())
        settings["name"] = "second"
        settings["listeners"] = {"ext_authz": settings["listeners"]["ext_authz"]}
        settings["journal"]["dir"] = str(folder / "journal")
        settings["policy"]["store"] = str(folder / "generations")
        settings["control"]["socket"] = str(folder / "control" / "control.sock")
        config = folder / "remit.yaml"
        config.write_text(yaml.safe_dump(settings))
        process = Process("second", module("sidecar.cli", "serve", "--config", str(config)), folder, uid=self._uid)
        self._stack.callback(process.stop)
        process.wait_until("the second sidecar ready", lambda: self._second_status().ready)
        return {one.name: one.address for one in self._second_status().listeners}["listeners.ext_authz.address"]

    def _second_status(self) -> control_pb2.StatusResponse:
        with grpc.insecure_channel(f"unix:{self.folder}/second/control/control.sock") as channel:
            try:
                return control_pb2_grpc.ControlStub(channel).Status(control_pb2.StatusRequest(), timeout=5)
            except grpc.RpcError:
                return control_pb2.StatusResponse()


@pytest.fixture
def pair_stage() -> Iterator[PairStage]:
    folder = short_folder()
    with PairStage(folder) as running:
        yield running
    shutil.rmtree(folder)


def test_ex_17_with_two_sidecars_the_end_of_one_denies_nobody(pair_stage: PairStage) -> None:
    """EX-17: one is killed under load; every call is answered 200 by a decision, at last by the other one alone."""
    answers: list[str] = []
    decisions: list[str] = []
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            answer = exchange(pair_stage, message(b"/v1/rates"), listener="main")
            answers.append(str(answer))
            decisions.append(evaluation_id(answer) if answer.status == 200 else "")

    def more() -> None:
        wanted = len(answers) + CALLS_BETWEEN
        wait_for("calls under load", lambda: len(answers) >= wanted)

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        more()
        pair_stage.sidecar.kill()
        more()
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert set(answers) == {"200"}
    assert pair_stage.envoy.stat("cluster.remit.upstream_rq_retry_success") > 0
    wait_for("the records of the second", lambda: _recorded(pair_stage, "second") >= set(decisions[-CALLERS:]))


def _recorded(stage: Stage, sidecar: str) -> set[str]:
    found = [one for one in stage.collected() if one["kind"] == "decision" and one["sidecar"] == sidecar]
    return {one["evaluation_id"] for one in found}
