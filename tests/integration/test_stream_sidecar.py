"""CheckStream at a whole sidecar, native and grpcio: revocation under load, credentials that end, stop and upgrade."""

import pathlib
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from sidecar._proto.remit.authority.v1 import owners_pb2, revocations_pb2, tasks_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.client import Client
from sidecar.client.conversation import Notice
from sidecar.demo.ca import Authority
from sidecar.demo.processes import wait_for
from sidecar.demo.workload_api import svid_message
from tests.fix_journal import held
from tests.fix_serve import AGENT, SIDECAR, TRUST_DOMAIN, Served, made_sidecar, question
from tests.fix_store import as_caller, opening, with_authority
from tests.fix_streams import Talker, outcome
from tests.integration.test_handover import successor

AGENT_KIND = revocations_pb2.REVOCATION_KIND_AGENT
REVOCATIONS = 25
IN_FLIGHT = 8


@pytest.fixture(params=["native", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(kind: str) -> Iterator[Served]:
    with made_sidecar(kind) as made:
        with_authority(made)
        made.start_ready()
        yield made


class Asked(NamedTuple):
    """One question of a stream: when it was asked, and what it was answered when (monotonic ns)."""

    at: int
    answered: int
    outcome: str


class Asker:
    """A thread that keeps questions in flight on one stream and notes what becomes of them, and what is told."""

    def __init__(self, talk: Talker) -> None:
        self.history: list[Asked] = []
        self.told: list[tuple[int, int]] = []
        self._talk = talk
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        at: list[int] = []
        number = 0
        while not self._stop.is_set() or len(self.history) < number:
            while not self._stop.is_set() and number - len(self.history) < IN_FLIGHT:
                at.append(time.monotonic_ns())
                self._talk.ask(question(request_id=f"q{number}"))
                number += 1
            got = self._talk.next()
            now = time.monotonic_ns()
            if got.WhichOneof("is") == "notice":
                self.told.append((got.notice.revocation_epoch, now))
                continue
            assert got.answer.request_id == f"q{len(self.history)}"
            self.history.append(Asked(at[len(self.history)], now, outcome(got.answer)[0]))

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, answer: str, count: int = 5) -> None:
        """Wait for so many further answers of this kind."""
        start = len(self.history)
        wait_for(f"{count} x {answer}", lambda: sum(one.outcome == answer for one in self.history[start:]) >= count)

    def heard(self, epoch: int) -> None:
        """Wait until it was told of this epoch."""
        wait_for(f"epoch {epoch}", lambda: any(told >= epoch for told, _ in self.told))


def test_nothing_asked_between_acknowledgement_and_lift_is_allowed(served: Served) -> None:
    """Row 8 on streams at two doors under load, as a history; each revocation is told on both, once in force."""
    svid = served.authority.issue(AGENT)
    in_force: list[tuple[int, int]] = []
    with (
        as_caller(served) as alice,
        served.agent_socket() as local,
        served.tls("listeners.check_address", svid) as remote,
    ):
        alice.tasks.Open(opening())
        with Asker(Talker(local).begin()) as one, Asker(Talker(remote).begin()) as two:
            for _ in range(REVOCATIONS):
                for asker in (one, two):
                    asker.more("ALLOW")
                epoch = alice.revocations.Revoke(revocations_pb2.RevokeRequest(kind=AGENT_KIND, key=AGENT)).epoch
                acknowledged = time.monotonic_ns()
                for asker in (one, two):
                    asker.heard(epoch)
                    asker.more("DENY")
                in_force.append((acknowledged, time.monotonic_ns()))
                alice.revocations.Lift(revocations_pb2.LiftRequest(kind=AGENT_KIND, key=AGENT))
    history = [*one.history, *two.history]
    within = [one for one in history for begin, end in in_force if begin <= one.at and one.answered <= end]
    assert {one.outcome for one in within} == {"DENY"}
    assert {one.outcome for one in history} == {"ALLOW", "DENY"}


def test_a_silent_stream_is_told_what_people_change(served: Served) -> None:
    """Tasks, owners and policies by the commands that change them."""
    with as_caller(served) as alice, served.agent_socket() as channel, Talker(channel).begin() as talk:
        task = alice.tasks.Open(opening())
        assert talk.notice() == ["task"]
        alice.owners.Disable(owners_pb2.ChangeOwnerRequest(id="bob"))
        assert talk.notice() == ["owner"]
        alice.owners.Enable(owners_pb2.ChangeOwnerRequest(id="bob"))
        assert talk.notice() == ["owner"]
        alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id))
        assert talk.notice() == ["task"]
        served.policy.write_text(served.policy.read_text() + '\n@id("more") permit (principal, action, resource);\n')
        assert not served.reload().problems
        assert talk.notice() == ["policy"]
        assert talk.told.generation == served.status().generation


def test_a_credential_that_ends_ends_its_streams(served: Served) -> None:
    """Silent ones too: expired by the clock, or its bundle gone; a stream of the new bundle is served."""
    short = served.authority.issue(AGENT, ttl_s=4)
    with served.tls("listeners.check_address", short) as channel, Talker(channel).begin() as talk:
        assert talk.end() == ("UNAUTHENTICATED", "identity.expired")
    old, fresh = served.authority.issue(AGENT), Authority(TRUST_DOMAIN)
    with served.tls("listeners.check_address", old) as channel, Talker(channel).begin() as talk:
        talk.ask(question())
        assert talk.answer().request_id == ""
        svid = fresh.issue(SIDECAR, dns=["localhost"])
        served.workload.push(svid_message([svid], [fresh.root_der], {}))
        code, why = talk.end()
        assert code == "UNAUTHENTICATED"
        assert why.startswith("identity.")
    served.authority = fresh
    with served.tls("listeners.check_address", fresh.issue(AGENT)) as channel:
        Talker(channel).begin().__exit__()


def test_a_stop_loses_no_answer(served: Served) -> None:
    """SIGTERM among many questions: each that was decided is answered, then UNAVAILABLE."""
    with as_caller(served) as alice, served.agent_socket() as channel, Talker(channel, timeout=60).begin() as talk:
        alice.tasks.Open(opening())
        assert talk.notice() == ["task"]
        talk.ask(*(question(request_id=f"q{i}") for i in range(3000)))
        assert talk.answer().request_id == "q0"
        stopped = threading.Thread(target=served.stop)
        stopped.start()
        ids = ["q0", *(one.answer.request_id for one in talk.rest() if one.WhichOneof("is") == "answer")]
        assert talk.end() == ("UNAVAILABLE", "draining")
    stopped.join()
    assert served.stop() == 0
    assert ids == [f"q{i}" for i in range(len(ids))]
    assert _decided(served) == ids


def _decided(served: Served) -> list[str]:
    """Request ids of the decisions on disk."""
    records = (decisions_pb2.Record.FromString(payload) for _, payload in held(pathlib.Path(served.folder) / "journal"))
    return [record.decision.request_id for record in records if record.decision.request_id]


def test_an_upgrade_costs_a_stream_a_moment() -> None:
    """A client's stream goes over to the next process: every question is answered once, and it is told."""
    told: list[Notice] = []
    stop = threading.Event()
    answers: list[str] = []
    with made_sidecar("native") as served:
        with_authority(served)
        served.start_ready()
        with as_caller(served) as alice:
            alice.tasks.Open(opening())
        with Client(f"unix:{served.folder}/agent/sock", timeout_s=30) as client, client.stream(told.append) as stream:

            def ask() -> None:
                while not stop.is_set():
                    answers.append(stream.check("read", "docs/search").outcome)

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for number in (1, 2):
                before = len(answers)
                wait_for("answers", lambda before=before: len(answers) > before + 100)
                successor(served, number)
            stop.set()
            for thread in threads:
                thread.join()
        assert set(answers) == {"ALLOW"}
        assert frozenset({"lost"}) in {notice.causes for notice in told}
        assert served.stop() == 0
        assert len(_decided(served)) == len(answers)
