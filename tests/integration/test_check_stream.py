"""CheckStream at both doors: each question is a Check, and whoever listens is told what changes."""

import contextlib
import itertools
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.journal import Journal, read_frames
from fastpath.peer import VerifiedPeer
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from tests.fix_live import AGENT, CHILD, HOUR, NOW, OWNER, STRANGER, make_live, make_pdp, task
from tests.fix_mapping import mapping_of
from tests.fix_streams import TIMEOUT_S, Talker, asked, outcome, stream_door

CHECK = "/remit.authz.v1.Authorization/Check"
DENIED = ("DENY", "revoked.agent")
ALLOWED = ("ALLOW", "ok")


def unix_peer(agent: str = AGENT) -> VerifiedPeer:
    return VerifiedPeer(1, agent, "unix:0")


class World:
    """A door, a channel to it, and the live state behind it."""

    def __init__(self, door: Any, channel: grpc.Channel, live: Live) -> None:
        self.door, self.channel, self.live = door, channel, live
        self._epoch = itertools.count(2)

    @property
    def pdp(self) -> Pdp:
        made: Pdp = self.door.pdp
        return made

    def talk(self, **options: Any) -> Talker:
        return Talker(self.channel, **options).begin()

    def change(self, *changes: tuple[str, dict[str, Any]]) -> int:
        epoch = next(self._epoch)
        self.live.apply(changes, epoch)
        return epoch

    def revoke(self, key: str = AGENT) -> int:
        row = {"kind": "agent", "key": key, "mode": "deny", "reason": "", "expires_unix_ns": 0}
        return self.change(("revoke", row))

    def lift(self, key: str = AGENT) -> int:
        return self.change(("lift", {"kind": "agent", "key": key, "mode": "deny"}))


@pytest.fixture(params=["native", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(kind: str) -> Iterator[World]:
    live = make_live(task())
    with stream_door(kind, make_pdp(live), unix_peer()) as door, grpc.insecure_channel(door.target) as channel:
        yield World(door, channel, live)


# ---------------------------------------------------------------- questions


def test_questions_are_answered_in_their_order(world: World) -> None:
    """Many in flight: each answer repeats its question's id, and all are there when the caller has ended its side."""
    with world.talk() as talk:
        tools = ["files/open", "files/frozen"]
        talk.ask(*(asked(f"q{i}", tool=tools[i % 2]) for i in range(1000)))
        talk.close()
        answers = [talk.answer() for _ in range(1000)]
        assert talk.end() == ("OK", "")
    assert [answer.request_id for answer in answers] == [f"q{i}" for i in range(1000)]
    assert [outcome(answer)[0] for answer in answers] == ["ALLOW", "DENY"] * 500


def test_a_stream_without_a_question_ends_in_good_order(world: World) -> None:
    with world.talk() as talk:
        talk.close()
        assert talk.end() == ("OK", "")


def test_a_question_may_follow_its_answer_for_as_long_as_the_stream_is_open(world: World) -> None:
    with world.talk() as talk:
        for turn in range(50):
            talk.ask(asked(f"q{turn}"))
            assert outcome(talk.answer()) == ALLOWED


def test_a_request_id_is_one_call_at_check_and_on_a_stream(world: World) -> None:
    """The same question with the same id gets the first answer, whoever carries it; another one is refused."""
    check = world.channel.unary_unary(CHECK, response_deserializer=authz_pb2.CheckResponse.FromString)
    with world.talk() as talk:
        first = check(asked("once").SerializeToString(), timeout=TIMEOUT_S)
        talk.ask(asked("once"), asked("once", tool="files/remove"), asked("twice"))
        assert talk.answer() == first
        assert outcome(talk.answer()) == ("DENY", "request.id_reused")
        assert talk.answer() == check(asked("twice").SerializeToString(), timeout=TIMEOUT_S)


def test_what_our_own_state_fails_is_an_answer_and_no_end(world: World) -> None:
    """ERROR with its reason, where Check is UNAVAILABLE; never an ALLOW, and the next question is decided again."""
    with world.talk() as talk:
        world.pdp.put_state(epoch=0, bundle_generation=2, not_ready="not_ready.journal")
        talk.ask(asked("during"))
        answer = talk.answer()
        assert (outcome(answer), answer.request_id) == (("ERROR", "not_ready.journal"), "during")
        world.pdp.put_state(epoch=0, bundle_generation=2, not_ready="")
        talk.ask(asked("during"))
        assert outcome(talk.answer()) == ALLOWED


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xff",
        b"\x08\x01",
        authz_pb2.CheckStreamRequest(check=asked("one")).SerializeToString() * 2,
        b"\x0a\x02\xff\xff",
    ],
    ids=["no question", "no message", "a number", "two questions", "a broken question"],
)
def test_what_is_not_one_question_ends_the_stream_behind_its_answers(world: World, raw: bytes) -> None:
    """INVALID_ARGUMENT as Check says it, and a record of it; what was asked before is answered before."""
    with world.talk() as talk:
        talk.ask(asked("before"))
        talk.send(raw)
        assert talk.answer().request_id == "before"
        assert talk.end() == ("INVALID_ARGUMENT", "request.malformed")
    assert world.pdp.counters()["causes"]["request.malformed"] == 1  # type: ignore[index]


def test_a_message_over_the_limit_ends_the_stream(kind: str) -> None:
    with (
        stream_door(kind, make_pdp(make_live(task())), unix_peer(), **_message_bytes(kind, 4096)) as door,
        grpc.insecure_channel(door.target) as channel,
        Talker(channel).begin() as talk,
    ):
        talk.ask(asked("fits"))
        assert outcome(talk.answer()) == ALLOWED
        talk.ask(asked("large", arguments={"text": "x" * 5000}))
        assert talk.end()[0] == "RESOURCE_EXHAUSTED"


def _message_bytes(kind: str, most: int) -> dict[str, int]:
    return {"message_bytes" if kind == "native" else "check_bytes": most}


def test_records_are_those_of_check(kind: str, tmp_path: pathlib.Path) -> None:
    """One record each, under the door of Check and with the same fields."""
    with Journal(tmp_path / "journal", helper=False) as journal:
        pdp = make_pdp(make_live(task()), journal)
        with stream_door(kind, pdp, unix_peer()) as door, grpc.insecure_channel(door.target) as channel:
            channel.unary_unary(CHECK)(asked("unary").SerializeToString(), timeout=TIMEOUT_S)
            with Talker(channel).begin() as talk:
                talk.ask(asked("streamed"))
                streamed = talk.answer()
    unary, record = _records(tmp_path / "journal")
    assert record.evaluation_id == streamed.evaluation_id
    assert record.door == decisions_pb2.DOOR_CHECK
    for one in (unary, record):
        for own in ("evaluation_id", "time_unix_nano", "latency_ns", "request_id"):
            one.ClearField(own)
        del one.effects[:]
    assert unary == record


def _records(folder: pathlib.Path) -> list[decisions_pb2.Decision]:
    frames = [payload for path in sorted(folder.glob("*.seg")) for _, payload in read_frames(path)]
    return [decisions_pb2.Record.FromString(payload).decision for payload in frames]


# ---------------------------------------------------------------- notices


def test_every_change_that_concerns_the_agent_is_told(world: World) -> None:
    """Revocation and lift, tasks, owners, approvals, policies: each a notice, with the epoch in force."""
    granted = {
        "id": "a1", "digest": b"d" * 32, "agent": AGENT, "task": "t1", "scope": "exact", "uses": 1,
        "expires_unix_ns": NOW + HOUR, "decided_unix_ns": NOW, "data_level": 0, "data_labels": [], "cost": 0,
        "state": "granted",
    }  # fmt: skip
    revoked = {"kind": "tool", "key": "files/open", "mode": "deny", "reason": "", "expires_unix_ns": 0}
    steps: list[tuple[tuple[str, dict[str, Any]], str]] = [
        (("revoke", revoked), "revocation"),
        (("lift", {"kind": "tool", "key": "files/open", "mode": "deny"}), "revocation"),
        (("owner", {"id": OWNER, "active": False}), "owner"),
        (("owner", {"id": OWNER, "active": True}), "owner"),
        (task("t2"), "task"),
        (("state", {"id": "t2", "state": "suspended"}), "task"),
        (("state", {"id": "t2", "state": "completed"}), "task"),
        (("approval", granted), "approval"),
        (("approval", {**granted, "state": "used"}), "approval"),
    ]
    with world.talk() as talk:
        for change, cause in steps:
            epoch = world.change(change)
            assert (talk.notice(), talk.told.revocation_epoch) == ([cause], epoch)
        world.pdp.put_mapping(mapping_of({"trust_domains": ["example.org"]}))
        assert (talk.notice(), talk.told.generation) == (["policy"], 1)
        talk.ask(asked("after"))
        assert outcome(talk.answer()) == ALLOWED


def test_changes_of_other_agents_tasks_are_not_told(world: World) -> None:
    """What touches others alone is no notice; a task that could be delegated from may be above anybody's."""
    with world.talk() as talk:
        world.change(task("s1", agent=STRANGER, max_depth=0))
        world.change(("state", {"id": "s1", "state": "completed"}))
        world.change(task("s2", agent=STRANGER, max_depth=1))
        talk.ask(asked("next"))
        assert talk.answer().request_id == "next"
        world.change(("state", {"id": "s2", "state": "suspended"}))
        assert talk.notice() == ["task"]


def test_an_answer_after_a_notice_was_decided_by_what_it_tells(world: World) -> None:
    """Of many changes among many questions: no answer behind a notice names an older epoch than the notice."""
    told = answers = notices = 0
    with world.talk() as talk, changing(world):
        talk.ask(*(asked(f"q{i}") for i in range(20)))
        while answers < 1000 or notices < 20:
            got = talk.next()
            if got.WhichOneof("is") == "notice":
                assert got.notice.revocation_epoch >= told
                told, notices = got.notice.revocation_epoch, notices + 1
            else:
                assert got.answer.revocation_epoch >= told
                answers += 1
                talk.ask(asked(f"q{answers + 19}"))


@contextlib.contextmanager
def changing(world: World) -> Iterator[None]:
    """Somebody revokes and lifts all the time, not faster than it could be told."""
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.0005):
            world.revoke()
            world.lift()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_no_question_after_a_revocation_is_allowed(world: World) -> None:
    """Row 8 on a stream: what is asked once a revocation has returned is denied, hundreds of times."""
    with world.talk() as talk:
        for turn in range(300):
            world.revoke()
            talk.ask(asked(f"revoked{turn}"))
            assert talk.notice() == ["revocation"]
            assert outcome(talk.answer()) == DENIED
            world.lift()
            talk.ask(asked(f"lifted{turn}"))
            assert talk.notice() == ["revocation"]
            assert outcome(talk.answer()) == ALLOWED


def test_everybody_is_told_of_what_may_concern_anybody(world: World) -> None:
    """Several streams, none of which asks; also one that opens while changes go on misses none after its begin."""
    with world.talk() as one, world.talk() as two:
        epoch = world.revoke(CHILD)
        for talk in (one, two):
            assert (talk.notice(), talk.told.revocation_epoch) == (["revocation"], epoch)
        with world.talk() as late:
            assert late.told.revocation_epoch == epoch
            world.lift(CHILD)
            assert [talk.notice() for talk in (one, two, late)] == [["revocation"]] * 3


# ---------------------------------------------------------------- bounds and ends


def test_more_streams_than_may_be_open_are_refused(kind: str) -> None:
    """By peer at the native door, by door at grpcio's; one that ends makes room, and other calls go on."""
    name = "check_streams_per_peer" if kind == "native" else "check_streams"
    with (
        stream_door(kind, make_pdp(make_live(task())), unix_peer(), **{name: 3}) as door,
        grpc.insecure_channel(door.target) as channel,
    ):
        talks = [Talker(channel).begin() for _ in range(3)]
        with Talker(channel) as fourth:
            assert fourth.end() == ("RESOURCE_EXHAUSTED", "request.streams")
        assert channel.unary_unary(CHECK)(asked("call").SerializeToString(), timeout=TIMEOUT_S)
        talks[0].close()
        assert talks[0].end() == ("OK", "")
        with Talker(channel) as again:
            again.begin()
        for talk in talks:
            talk.__exit__()


def test_a_door_that_closes_answers_what_came_and_says_so(world: World) -> None:
    """UNAVAILABLE `draining` behind the answers to all that was asked."""
    with world.talk() as talk, world.talk() as silent:
        talk.ask(*(asked(f"q{i}") for i in range(200)))
        assert talk.answer().request_id == "q0"
        world.door.drain()
        ids = [one.answer.request_id for one in talk.rest()]
        assert ids == [f"q{i}" for i in range(1, len(ids) + 1)]
        assert talk.end() == ("UNAVAILABLE", "draining")
        assert silent.end() == ("UNAVAILABLE", "draining")


def test_a_stream_keeps_its_deadline(world: World) -> None:
    with world.talk(timeout=0.3) as talk:
        assert talk.end()[0] == "DEADLINE_EXCEEDED"
