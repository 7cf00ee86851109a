"""The whole sidecar killed at work: what was answered stays answered."""

import pathlib
import threading
from collections.abc import Iterator

import grpc
import pytest

from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.decisions.tail import tail_directory
from sidecar.demo.processes import wait_for
from tests.fix_serve import Served, check, made_sidecar, question

CALLERS = 4
CALLS = 300


@pytest.fixture
def served() -> Iterator[Served]:
    """A sidecar of the test's own, not started yet."""
    with made_sidecar() as made:
        yield made


def recorded(journal: pathlib.Path) -> list[str]:
    """Evaluation ids in the journal, in its order; a gap would stand there as a record of its own kind."""
    records = [
        decisions_pb2.Record.FromString(payload)
        for _, payload in tail_directory(journal, from_start=True, follow=False, stop=threading.Event())
    ]
    assert not [record for record in records if record.WhichOneof("kind") == "gap"]
    return [record.decision.evaluation_id for record in records if record.WhichOneof("kind") == "decision"]


def test_sigkill_under_load_loses_no_answered_decision(served: Served) -> None:
    """LG-04: SIGKILL while callers wait; every answer that came is in the journal, before and after the next start."""
    process = served.start_ready()
    answered: list[str] = []
    killed = threading.Event()

    def ask() -> None:
        with served.agent_socket() as agent:
            while not killed.is_set():
                try:
                    answered.append(check(agent, question()).evaluation_id)
                except grpc.RpcError:
                    return

    callers = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        wait_for("calls under load", lambda: len(answered) >= CALLS)
        process.kill()
    finally:
        killed.set()
        for caller in callers:
            caller.join()
    journal = served.folder / "journal"
    kept = recorded(journal)
    assert len(answered) >= CALLS
    assert set(answered) <= set(kept)
    assert len(kept) == len(set(kept))
    served.start_ready()
    assert recorded(journal)[: len(kept)] == kept
