"""Authority over an upgrade: the next process goes on with the same store, and what was spent stays spent."""

import threading
from collections.abc import Iterator

import pytest

from fastpath.spending import EffectKind
from sidecar._proto.remit.authority.v1 import revocations_pb2, tasks_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.decisions.tail import tail_directory
from sidecar.demo.processes import wait_for
from tests.fix_serve import AGENT, Served, made_sidecar, outcome, question
from tests.fix_store import as_caller, opening, with_authority
from tests.integration.test_handover import Load, successor

CALLS = 1_000_000


@pytest.fixture
def served() -> Iterator[Served]:
    with made_sidecar("native") as made:
        yield with_authority(made)


def spent(served: Served, task: str) -> int:
    """Calls of the task, by the effects of the journal's records."""
    entries = tail_directory(served.folder / "journal", from_start=True, follow=False, stop=threading.Event())
    decisions = [decisions_pb2.Record.FromString(payload).decision for _, payload in entries]
    calls = int(EffectKind.EFFECT_CALLS)
    return sum(e.value for d in decisions for e in d.effects if e.kind == calls and e.key == task.encode())


def test_a_successor_goes_on_with_tasks_and_with_what_was_spent(served: Served) -> None:
    """No call fails while the store changes hands, none is spent twice or for nothing, and commands work at once."""
    served.start_ready()
    with as_caller(served) as alice:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=CALLS)))
    with Load(served) as load:
        successor(served, 1)
        load.more()
    assert set(load.seen) == {"ALLOW ok"}
    with as_caller(served) as alice, served.agent_socket() as agent:
        left = alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left.calls
        # A client may send a call again whose answer was cut off; what counts is what was recorded.
        assert left == CALLS - spent(served, task.id)
        assert spent(served, task.id) >= load.seen.total()
        done = alice.revocations.Revoke(
            revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_AGENT, key=AGENT)
        )
        assert done.epoch > task.epoch
        assert outcome(agent, question()) == ("DENY", "revoked.agent")
    successor(served, 2)
    with served.agent_socket() as agent:
        wait_for("ready", lambda: served.status().ready)
        assert outcome(agent, question()) == ("DENY", "revoked.agent")
