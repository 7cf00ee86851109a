"""The client's stream against real doors: many at once, errors that say why, notices, a sidecar that is replaced."""

import asyncio
import contextlib
import pathlib
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastpath.authority import Live
from fastpath.peer import VerifiedPeer
from sidecar.client import ApprovalNeeded, AsyncClient, Client, Denied, Notice, Refused, TaskNeeded, Unavailable
from sidecar.client.stream import Stream
from sidecar.demo.processes import wait_for
from tests.fix_live import AGENT, make_live, make_pdp, task
from tests.fix_native import NativeServer
from tests.fix_streams import GrpcioDoor, stream_door

PEER = VerifiedPeer(1, AGENT, "unix:0")
TIMEOUT_S = 20.0
REVOKED = {"kind": "agent", "key": AGENT, "mode": "deny", "reason": "", "expires_unix_ns": 0}


class Away:
    """What stands behind a client: a door that can go away and come back."""

    def __init__(self, folder: str, live: Live) -> None:
        self.live = live
        self._folder = folder
        self.door: NativeServer | None = None
        self.come()

    @property
    def target(self) -> str:
        return f"unix:{self._folder}/sock"

    def come(self) -> None:
        pathlib.Path(self._folder, "sock").unlink(missing_ok=True)
        self.door = NativeServer(self._folder, make_pdp(self.live), agent=AGENT)

    def go(self) -> None:
        """As at SIGTERM: what came is answered."""
        assert self.door is not None
        self.door.stop(grace_ms=5000)
        self.door = None


@pytest.fixture
def away() -> Iterator[Away]:
    with tempfile.TemporaryDirectory(prefix="cs") as folder:
        made = Away(folder, make_live(task()))
        yield made
        if made.door is not None:
            made.go()


@pytest.fixture(params=["native", "grpcio"])
def door(request: pytest.FixtureRequest) -> Iterator[Any]:
    live = make_live(task())
    with stream_door(request.param, make_pdp(live), PEER) as made:
        made.live = live
        yield made


@contextlib.contextmanager
def stream(target: str, on_notice: Any = None, timeout_s: float = TIMEOUT_S) -> Iterator[Stream]:
    with Client(target, timeout_s=timeout_s) as client, client.stream(on_notice) as made:
        yield made


def test_many_threads_share_a_stream(door: Any) -> None:
    """Each gets the answer to its own question."""
    with stream(door.target) as held, ThreadPoolExecutor(16) as pool:
        tools = ["files/open", "files/frozen"] * 200
        answers = list(pool.map(lambda tool: held.check("read", tool), tools))
    assert [answer.reason for answer in answers] == ["ok", "resource.frozen"] * 200
    assert len({answer.request_id for answer in answers}) == 400


def test_anything_but_an_allow_is_an_error_of_its_kind(door: Any) -> None:
    with stream(door.target) as held:
        assert held.require("read", "files/open").allowed
        with pytest.raises(Denied, match=r"resource\.frozen") as denied:
            held.require("read", "files/frozen")
        assert len(denied.value.evaluation_id) == 32
        with pytest.raises(ApprovalNeeded):
            held.require("delete", "files/open")
        with pytest.raises(TaskNeeded, match=r"task\.unknown"):
            held.require("read", "files/open", task="nowhere")
        door.pdp.put_state(epoch=0, bundle_generation=2, not_ready="not_ready.journal")
        with pytest.raises(Unavailable, match=r"not_ready\.journal"):
            held.require("read", "files/open")


def test_a_notice_is_told_before_what_was_decided_after_it(door: Any) -> None:
    """The callback has run when a denial by what it tells is given out."""
    told: list[Notice] = []
    with stream(door.target, told.append) as held:
        assert held.check("read", "files/open").allowed
        for turn in range(100):
            door.live.apply([("revoke", REVOKED)], 2 * turn + 2)
            assert held.check("read", "files/open").reason == "revoked.agent"
            assert told[-1].epoch == 2 * turn + 2
            door.live.apply([("lift", {"kind": "agent", "key": AGENT, "mode": "deny"})], 2 * turn + 3)
            assert held.check("read", "files/open").allowed
    assert {cause for notice in told for cause in notice.causes} == {"revocation"}


def unwilling(_: Notice) -> None:
    raise LookupError("the caller's own")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_caller_that_fails_at_a_notice_is_told_no_more(door: Any) -> None:
    """Nobody waits in vain for answers and notices of a stream that has ended; nothing is allowed unheard."""
    with stream(door.target, unwilling) as held:
        assert held.check("read", "files/open").allowed
        door.live.apply([("revoke", REVOKED)], 2)
        for _ in range(2):
            with pytest.raises(Unavailable, match="at a notice"):
                held.check("read", "files/open")
        seen = held.notices()
        assert next(seen).epoch == 2
        with pytest.raises(Unavailable, match="at a notice"):
            next(seen)


def test_a_coroutine_that_fails_at_a_notice_is_told_no_more(door: Any) -> None:
    """The same; leaving the stream reports what failed."""

    async def talk() -> None:
        async with AsyncClient(door.target, timeout_s=TIMEOUT_S) as client, client.stream(unwilling) as held:
            assert (await held.check("read", "files/open")).allowed
            door.live.apply([("revoke", REVOKED)], 2)
            for _ in range(2):
                with pytest.raises(Unavailable) as refused:
                    await held.check("read", "files/open")
                said.append(str(refused.value))

    said: list[str] = []
    with pytest.raises(LookupError):
        asyncio.run(talk())
    assert ["at a notice" in text for text in said] == [True, True]


def test_notices_are_iterated_until_the_stream_is_closed(door: Any) -> None:
    """Those that nobody took are one, with all causes and the newest epoch."""
    seen: list[Notice] = []
    told = threading.Event()
    with stream(door.target, lambda notice: told.set() if "task" in notice.causes else None) as held:
        held.check("read", "files/open")
        door.live.apply([("owner", {"id": "ann", "active": False})], 2)
        door.live.apply([task("t2")], 3)
        assert told.wait(TIMEOUT_S)
        listener = threading.Thread(target=lambda: seen.extend(held.notices()))
        listener.start()
        wait_for("a notice", lambda: seen)
        assert seen == [Notice(frozenset({"owner", "task"}), 3, 1)]
        door.live.apply([("revoke", REVOKED)], 4)
        wait_for("another", lambda: len(seen) == 2)
    listener.join(TIMEOUT_S)
    assert not listener.is_alive()
    assert seen[1:] == [Notice(frozenset({"revocation"}), 4, 1)]


def test_a_replaced_sidecar_is_asked_again(away: Away) -> None:
    """The stream is opened anew, whoever listens hears that it was lost, and what was asked meanwhile is answered."""
    told: list[Notice] = []
    with stream(away.target, told.append) as held:
        assert held.check("read", "files/open").allowed
        for turn in range(3):
            away.go()
            wait_for("to hear of it", lambda turn=turn: len(told) == turn + 1)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(held.check, "read", "files/open")
                away.come()
                assert waiting.result().allowed
    assert {notice.causes for notice in told} == {frozenset({"lost"})}


def test_no_answer_is_lost_while_sidecars_come_and_go(away: Away) -> None:
    """Many threads ask all the time: each question has an answer, whichever door was there."""
    stop = threading.Event()
    counts = [0] * 8

    def ask(number: int, held: Stream) -> None:
        while not stop.is_set():
            assert held.check("read", "files/open").allowed
            counts[number] += 1

    with stream(away.target) as held, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, number, held) for number in range(8)]
        for _ in range(4):
            before = list(counts)
            wait_for("progress", lambda before=before: all(a > b for a, b in zip(counts, before, strict=True)))
            away.go()
            away.come()
        stop.set()
        for one in asking:
            one.result()


def test_a_question_that_is_none_fails_alone(door: Any) -> None:
    """One that is too large is refused; those beside it are asked again and answered."""
    with stream(door.target) as held, ThreadPoolExecutor(8) as pool:
        held.check("read", "files/open")
        large = pool.submit(held.check, "read", "files/open", arguments={"text": "x" * 300_000})
        with pytest.raises(Refused):
            large.result()
        assert all(one.allowed for one in pool.map(lambda _: held.check("read", "files/open"), range(20)))


def test_a_sidecar_that_is_away_is_no_yes(tmp_path: pathlib.Path) -> None:
    with stream(f"unix:{tmp_path}/nobody", timeout_s=0.2) as held, pytest.raises(Unavailable, match="no answer"):
        held.check("read", "files/open")


def test_a_door_that_has_no_streams_says_so() -> None:
    """It is not asked again and again; every question fails, and so does whoever listens."""
    with tempfile.TemporaryDirectory(prefix="cs") as folder:
        door = NativeServer(folder, make_pdp(make_live(task())), envoy=True)
        with stream(door.target) as held:
            with pytest.raises(Refused):
                next(held.notices())
            with pytest.raises(Refused):
                held.check("read", "files/open")
        door.stop()


def test_a_caller_that_is_not_known_any_more_is_told() -> None:
    """A credential that ends while nothing is asked: the stream ends, and every question after it."""
    with tempfile.TemporaryDirectory(prefix="cs") as folder:
        door = GrpcioDoor(folder, make_pdp(make_live(task())), PEER)
        with stream(door.target) as held:
            assert held.check("read", "files/open").allowed
            door.peer = VerifiedPeer(0, "", "", not_after_s=0, refusal="identity.expired")
            with pytest.raises(Refused, match=r"identity\.expired"):
                next(held.notices())
            with pytest.raises(Refused, match=r"identity\.expired"):
                held.check("read", "files/open")
        door.stop()


def test_what_waits_at_the_close_fails(tmp_path: pathlib.Path) -> None:
    with Client(f"unix:{tmp_path}/nobody", timeout_s=TIMEOUT_S) as client, ThreadPoolExecutor(1) as pool:
        held = client.stream()
        waiting = pool.submit(held.check, "read", "files/open")
        wait_for("the question", lambda: held._conversation.unanswered())
        held.close()
        with pytest.raises(Unavailable, match="closed"):
            waiting.result()


# ---------------------------------------------------------------- asyncio


def test_coroutines_share_a_stream_and_its_notices(door: Any) -> None:
    """The same for asyncio: order, errors, and a notice before what was decided after it."""

    async def run() -> None:
        told: list[Notice] = []
        async with AsyncClient(door.target, timeout_s=TIMEOUT_S) as client, client.stream(told.append) as held:
            tools = ["files/open", "files/frozen"] * 100
            answers = await asyncio.gather(*(held.check("read", tool) for tool in tools))
            assert [answer.reason for answer in answers] == ["ok", "resource.frozen"] * 100
            with pytest.raises(ApprovalNeeded):
                await held.require("delete", "files/open")
            notices = held.notices()
            door.live.apply([("revoke", REVOKED)], 2)
            assert await anext(notices) == Notice(frozenset({"revocation"}), 2, 1)
            with pytest.raises(Denied, match=r"revoked\.agent"):
                await held.require("read", "files/open")
            assert len(told) == 1
        assert [notice async for notice in notices] == []

    asyncio.run(run())


def test_a_coroutine_asks_a_replaced_sidecar_again(away: Away) -> None:
    async def run() -> None:
        async with AsyncClient(away.target, timeout_s=TIMEOUT_S) as client, client.stream() as held:
            assert (await held.require("read", "files/open")).allowed
            notices = held.notices()
            await asyncio.to_thread(away.go)
            assert (await anext(notices)).causes == {"lost"}
            waiting = asyncio.create_task(held.check("read", "files/open"))
            await asyncio.to_thread(away.come)
            assert (await waiting).allowed
            with pytest.raises(Refused):
                await held.check("read", "files/open", arguments={"text": "x" * 300_000})

    asyncio.run(run())
