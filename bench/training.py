"""`python -m bench.training`: calls like those that a sidecar gets, for a build that counts which branches they take.

Envoy's questions with the headers that it adds and without, over TCP, TLS and a Unix socket, alone and in crowds;
agents' questions and reports under tasks and revocations, one by one and in batches; allowed and denied ones. The
outcomes are checked: a build follows no calls that went wrong.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import click
from google.protobuf.message import Message
from rich.progress import Progress

from bench.authority import World, make_live
from bench.runs import Wrong, checked
from fastpath.call import Pdp
from fastpath.journal import Journal
from fastpath.mapping import Mapping
from fastpath.peer import VerifiedPeer
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.config_mapping import mapping_config

POLICIES = 1000
DOORS = ("plain", "mtls", "uds")
CALLS = 30_000  # of each kind; well above the thousands of everything that start-up has
CONNECTIONS = 8
OUTSTANDING = (1, 16, 100)
AGENT_KIND = 1
AGENTS, TASKS, REVOCATIONS = 1000, 1000, 1000
AGENT_CALLS = 10_000
BATCH = 10
BUDGET_MS = 60_000  # nothing is late here, however slow the build


def envoys(folder: Path, progress: Progress) -> None:
    """Calls of Envoys, over every kind of door."""
    # The load client of these is built where the doors are.
    from bench.questions import check_request, enveloped, ext_authz
    from bench.servers import Pki, Side, remit

    step = progress.add_task("calls of Envoys", total=len(DOORS) * 2 * len(OUTSTANDING))
    pki = Pki(folder)
    with remit("training", ",".join(DOORS), POLICIES, pki) as server:
        for door in DOORS:
            where = server.ports[door]
            address = where if isinstance(where, str) else ("127.0.0.1", where)
            side = Side(door, server, address, ext_authz, pki=pki if door == "mtls" else None)
            for ask in (check_request, enveloped):
                with contextlib.closing(side.connect(CONNECTIONS)) as load:
                    for outstanding in OUTSTANDING:
                        checked(load.closed(ext_authz(ask), CALLS, outstanding), door)
                        progress.advance(step)
    if server.process.returncode:
        raise Wrong(f"the server ended with status {server.process.returncode}, before it had written its counts")


class Caller:
    """An agent's calls to a Pdp in this process; whatever is no answer ends the training."""

    def __init__(self, pdp: Pdp, agent: int) -> None:
        self._pdp = pdp
        self._peer = VerifiedPeer(AGENT_KIND, f"spiffe://corp.example/agent/{agent}", "training")

    def check(self, question: authz_pb2.CheckRequest) -> authz_pb2.CheckResponse:
        return authz_pb2.CheckResponse.FromString(self._ask("check", question))

    def batch_check(self, questions: list[authz_pb2.CheckRequest]) -> list[int]:
        raw = self._ask("batch_check", authz_pb2.BatchCheckRequest(items=questions))
        return [answer.outcome for answer in authz_pb2.BatchCheckResponse.FromString(raw).items]

    def report(self, evaluation_id: str) -> None:
        self._ask("report", authz_pb2.ReportRequest(evaluation_id=evaluation_id, executed=True))

    def _ask(self, method: str, message: Message) -> bytes:
        code, answer = getattr(self._pdp, method)(message.SerializeToString(), self._peer)
        if code:
            raise Wrong(f"{method}: status {code}, {answer.decode()}")
        return bytes(answer)


def agents(folder: Path, progress: Progress) -> None:
    """Calls of agents that hold tasks: each alone, with its report, and then again with others in a batch."""
    world = World(AGENTS, AGENT_CALLS, 1)
    alone: defaultdict[int, list[tuple[authz_pb2.CheckRequest, int]]] = defaultdict(list)
    with Journal(str(folder / "agents"), on_full="drop_oldest", sync="interval") as journal:
        pdp = Pdp(journal, budget_ms=BUDGET_MS)
        pdp.put_rules(world.generation, Mapping(mapping_config({"trust_domains": ["corp.example"]})))
        pdp.put_state(epoch=0, bundle_generation=1, not_ready="")
        pdp.put_authority(make_live(TASKS, REVOCATIONS))
        for number, (agent, action, tool, dest, level) in enumerate(progress.track(world.calls, description="agents")):
            caller = Caller(pdp, agent)
            question = authz_pb2.CheckRequest(request_id=f"call-{number}", action=action, data_level=level)
            question.resource.type, question.resource.id = "Tool", tool
            question.destination = dest["__entity"]["id"]
            answer = caller.check(question)
            if answer.outcome == authz_pb2.OUTCOME_ALLOW:
                caller.report(answer.evaluation_id)
            question.request_id = f"again-{number}"
            alone[agent].append((question, answer.outcome))
        for agent, asked in alone.items():
            for at in range(0, len(asked), BATCH):
                questions, outcomes = zip(*asked[at : at + BATCH], strict=True)
                if Caller(pdp, agent).batch_check(list(questions)) != list(outcomes):
                    raise Wrong("agents: a batch was answered otherwise than its questions one by one")
    seen = {outcome for asked in alone.values() for _, outcome in asked}
    if seen != {authz_pb2.OUTCOME_ALLOW, authz_pb2.OUTCOME_DENY}:
        raise Wrong(f"agents: outcomes {sorted(seen)}; some are to be allowed, the others denied")


def train() -> None:
    with tempfile.TemporaryDirectory(prefix="bench") as name, Progress(transient=True) as progress:
        agents(Path(name), progress)
        if importlib.util.find_spec("fastpath.listener") is None:
            click.echo("built without the native doors: their part of a call is not counted")
            return
        envoys(Path(name), progress)


def main() -> None:
    try:
        train()
    except (Wrong, OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"training failed: {error}") from None


if __name__ == "__main__":
    main()
