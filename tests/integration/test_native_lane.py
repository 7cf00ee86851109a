"""Health Watch and the slow lane of a native door: what needs Python leaves the loop, and no call waits (SY-11)."""

import contextlib
import ctypes
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.demo.processes import wait_for
from sidecar.health_watch import HealthWatch
from tests.fix_native import HEALTH, QUESTION, TIMEOUT_S, NativeServer, RawClient, message, native_server

WATCH = HEALTH.replace("Check", "Watch")
SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3
DEADLINE, UNAVAILABLE = "4", "14"


class Watched(NativeServer):
    """A door whose slow lane is served."""

    def serve_lane(self) -> None:
        self.health = HealthWatch(self.listener.lane)
        self.health.put_ready(True)
        self._lane = threading.Thread(target=self.health.run, daemon=True)
        self._lane.start()

    def put_ready(self, ready: bool) -> None:
        self.listener.put_ready(ready)
        self.health.put_ready(ready)


@pytest.fixture(params=[1, 3])
def door(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with native_server(threads=request.param, kind=Watched) as made:
        assert isinstance(made, Watched)
        made.serve_lane()
        yield made


def watch(channel: grpc.Channel, service: str = "", **options: Any) -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Watch(request, timeout=options.pop("timeout", TIMEOUT_S), **options)


# ---------------------------------------------------------------- Watch


def test_watch_tells_the_status_at_once_and_every_change(door: Watched) -> None:
    """grpc.health.v1: one message now, one per change; `live` does not change, an unknown name is SERVICE_UNKNOWN."""
    with grpc.insecure_channel(door.target) as channel:
        ready, live, other = watch(channel), watch(channel, "live"), watch(channel, "other")
        assert [next(one).status for one in (ready, live, other)] == [SERVING, SERVING, UNKNOWN]
        for status in (NOT_SERVING, SERVING, NOT_SERVING):
            door.put_ready(status == SERVING)
            assert next(ready).status == status
        for one in (ready, live, other):
            one.cancel()
    wait_for("the streams to end", lambda: door.listener.counters()["open"] == 0)


def test_watch_ends_when_the_door_drains(door: Watched) -> None:
    """NOT_SERVING, then UNAVAILABLE: whoever watches looks elsewhere, and the door does not wait for them."""
    with grpc.insecure_channel(door.target) as channel:
        watching = [watch(channel, name) for name in ("", "live")]
        assert [next(one).status for one in watching] == [SERVING, SERVING]
        door.health.drain()
        assert [next(one).status for one in watching] == [NOT_SERVING, NOT_SERVING]
        door.stop(grace_ms=TIMEOUT_S * 1000)
        for one in watching:
            with pytest.raises(grpc.RpcError) as caught:
                next(one)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert set(door.listener.counters()["closed"]) <= {"drain", "peer"}


def test_watch_keeps_its_deadline(door: Watched) -> None:
    """H2-22: a stream of several messages ends when its own time is over, also on the server."""
    with RawClient(door.address) as client:
        client.send(client.request(1, message(b""), path=WATCH, grpc_timeout="300m"))
        client.until(lambda: 1 in client.ended)
        assert client.data[1] == message(b"\x08\x01")
        assert client.headers[1]["grpc-status"] == DEADLINE
        assert client.ask(3) == ("0", "")


def test_a_watch_has_an_end_of_ours() -> None:
    """H2-22: whatever its caller asks for, a day or no end at all."""
    with native_server(kind=Watched, watch_ms=300) as door, RawClient(door.address) as client:
        assert isinstance(door, Watched)
        door.serve_lane()
        client.send(client.request(1, message(b""), path=WATCH, grpc_timeout="24H"))
        client.send(client.request(3, message(b""), path=WATCH))
        client.until(lambda: {1, 3} <= client.ended)
        assert [client.headers[stream]["grpc-status"] for stream in (1, 3)] == [DEADLINE] * 2
        assert {len(client.data[stream]) for stream in (1, 3)} == {len(message(b"\x08\x01"))}


def test_a_watch_that_is_no_message_of_its_kind_is_refused(door: Watched) -> None:
    """H2-28: INVALID_ARGUMENT, and the stream ends."""
    with RawClient(door.address) as client:
        assert client.ask(1, message(b"\xff\xff"), path=WATCH)[0] == "3"
        assert client.ask(3) == ("0", "")


def test_a_watcher_that_reads_nothing_costs_one_message(door: Watched) -> None:
    """A status that was not sent yet is replaced by the next one: what waits does not grow with the changes."""
    closed_window = b"\x00\x04\x00\x00\x00\x00"  # SETTINGS_INITIAL_WINDOW_SIZE 0
    with RawClient(door.address, settings=closed_window) as client:
        client.send(client.request(1, message(b""), path=WATCH))
        client.until(lambda: 1 in client.headers)
        for turn in range(500):
            door.put_ready(turn % 2 == 1)
        assert client.ask(3, path="/none.Such/Check")[0] == "12"
        assert door.listener.counters()["buffered_max"] < 16_384


def test_tickets_come_back_when_their_streams_end() -> None:
    """A lane of two: streams that ended make room, whoever ended them."""
    with native_server(kind=Watched, slow_calls=2) as door:
        assert isinstance(door, Watched)
        door.serve_lane()

        def all_gone(count: int) -> bool:
            return sum(door.listener.counters()["closed"].values()) == count and not door.health._watchers

        for turn in range(20):
            with RawClient(door.address) as client:
                client.send(client.request(1, message(b""), path=WATCH))
                client.send(client.request(3, message(b""), path=WATCH))
                client.until(lambda: {1, 3} <= set(client.data))
            wait_for("both to be gone", functools.partial(all_gone, turn + 1))


# ---------------------------------------------------------------- the lane


def test_a_full_lane_is_an_error_and_the_rest_goes_on() -> None:
    """What Python does not take in time fills the table: more is UNAVAILABLE, counted, and calls are answered."""
    with native_server(slow_calls=4, deadline_ms=TIMEOUT_S * 1000) as door, RawClient(door.address) as client:
        for stream in range(1, 15, 2):
            client.send(client.request(stream, message(b""), path=WATCH))
        client.until(lambda: len(client.ended) == 3)
        assert {client.headers[one]["grpc-message"] for one in client.ended} == {"slow.full"}
        assert {client.headers[one]["grpc-status"] for one in client.ended} == {UNAVAILABLE}
        assert client.ask(21) == ("0", "")
        done = door.listener.counters()
        assert (done["slow"], done["slow_full"], done["calls"]) == (4, 3, 1)


def test_a_call_that_python_does_not_answer_ends_by_the_deadline() -> None:
    """Nobody serves the lane: the caller hears DEADLINE_EXCEEDED, and its ticket is free again."""
    with native_server(slow_calls=1, deadline_ms=1) as door, RawClient(door.address) as client:
        for stream in (1, 3, 5):
            assert client.ask(stream, message(b""), path=WATCH, grpc_timeout="500m") == (DEADLINE, "late")
        assert door.listener.counters()["slow_full"] == 0


CALLS = """
import sys
from tests.fix_native import RawClient, message
with RawClient(sys.argv[1]) as client:
    client.send(client.request(1, message(b""), path=sys.argv[2], grpc_timeout="60S"))
    told = [client.ask(2 * i + 3)[0] for i in range(200)]
    sys.stdout.write(" ".join([*told, str(1 in client.headers)]))
"""


def test_an_interpreter_that_is_blocked_stops_no_call(door: Watched) -> None:
    """SY-11: while one thread keeps the GIL in C, every call is answered; what needs Python waits, and only that."""
    # A thread needs the GIL to begin: each loop has served somebody before it is taken away.
    with contextlib.ExitStack() as stack:
        for _ in door.listener.counters()["loops"]:
            assert stack.enter_context(RawClient(door.path)).ask(1) == ("0", "")
        assert set(door.listener.counters()["loops"]) == {1}
    before = door.listener.counters()["calls"]
    read, write = os.pipe()
    client = subprocess.Popen(
        [sys.executable, "-c", CALLS, door.path, WATCH], stdout=write, pass_fds=[write], text=True
    )
    os.close(write)
    held = ctypes.create_string_buffer(4096)
    # PyDLL calls keep the GIL: nothing of Python runs here until the client has ended and its output comes.
    n = ctypes.PyDLL(None).read(read, held, 4096)
    os.close(read)
    assert client.wait(TIMEOUT_S) == 0
    assert held.raw[:n].decode().split() == ["0"] * 200 + ["False"]
    assert door.listener.counters()["calls"] - before == 200
    with grpc.insecure_channel(door.target) as channel:
        assert next(watch(channel)).status == SERVING


def test_a_question_and_a_watch_share_a_connection(door: Watched) -> None:
    """The answers of fast calls do not wait behind an open stream."""
    with RawClient(door.address) as client:
        client.send(client.request(1, message(b""), path=WATCH))
        for stream in range(3, 41, 2):
            assert client.ask(stream, message(QUESTION)) == ("0", "")
        client.until(lambda: 1 in client.data)
