"""CheckStream at a native door, frame by frame: messages cut out of DATA, bounds, windows, clocks and ends."""

import contextlib
import functools
import itertools
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo.processes import wait_for
from tests.fix_http2 import gone
from tests.fix_live import AGENT, make_live, make_pdp, task
from tests.fix_native import (
    ACK,
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    NO_ERROR,
    PING,
    RST,
    WINDOW,
    NativeServer,
    RawClient,
    call_headers,
    frame,
    message,
    native_server,
)
from tests.fix_streams import STREAM, asked

NO_WINDOW = struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE
OK, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = "0", "4", "8", "12", "13", "14"


@pytest.fixture
def door() -> Iterator[NativeServer]:
    with native_server(make_pdp(make_live(task())), agent=AGENT) as server:
        yield server


def question(request_id: str = "", **more: Any) -> bytes:
    return message(authz_pb2.CheckStreamRequest(check=asked(request_id, **more)).SerializeToString())


def begin(client: RawClient, stream: int = 1, **changes: str | None) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, client.block(call_headers(path=STREAM, **changes)))


def data(payload: bytes, stream: int = 1, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream, payload)


def said(client: RawClient, stream: int = 1) -> list[authz_pb2.CheckStreamResponse]:
    """What came so far, in whole messages."""
    raw, found = client.data.get(stream, b""), []
    while len(raw) >= 5 and len(raw) >= 5 + (length := int.from_bytes(raw[1:5], "big")):
        assert raw[0] == 0
        found.append(authz_pb2.CheckStreamResponse.FromString(raw[5 : 5 + length]))
        raw = raw[5 + length :]
    return found


def answers(client: RawClient, stream: int = 1) -> list[str]:
    """The ids of the answers that came so far; each is an ALLOW."""
    got = [one.answer for one in said(client, stream) if one.WhichOneof("is") == "answer"]
    assert all(one.outcome == authz_pb2.OUTCOME_ALLOW for one in got)
    return [one.request_id for one in got]


def wait_answers(client: RawClient, count: int, stream: int = 1) -> list[str]:
    client.until(lambda: len(answers(client, stream)) >= count or stream in client.ended | client.resets.keys())
    return answers(client, stream)


def wait_begun(client: RawClient, stream: int) -> None:
    client.until(lambda: said(client, stream))


def end_of(client: RawClient, stream: int = 1) -> tuple[str, str]:
    client.until(lambda: stream in client.ended)
    return client.headers[stream]["grpc-status"], client.headers[stream].get("grpc-message", "")


# ---------------------------------------------------------------- messages in DATA


def test_the_first_notice_comes_before_any_question(door: NativeServer) -> None:
    """Headers and the notice of the begin, as soon as the stream is there."""
    with RawClient(door.address) as client:
        client.send(begin(client))
        client.until(lambda: said(client))
        assert said(client) == [
            authz_pb2.CheckStreamResponse(notice=authz_pb2.Notice(revocation_epoch=1, generation=1))
        ]
        assert client.headers[1][":status"] == "200"


def test_messages_are_cut_wherever_frames_end(door: NativeServer) -> None:
    """Three questions in every way of two cuts through them, one byte apart: three answers in order."""
    raw = question("a") + question("bb") + question("ccc")
    with RawClient(door.address) as client:
        for stream, cut in zip(itertools.count(1, 2), range(1, len(raw)), strict=False):
            client.send(begin(client, stream) + data(raw[:cut], stream) + data(raw[cut:], stream, END_STREAM))
            assert end_of(client, stream) == (OK, "")
            assert answers(client, stream) == ["a", "bb", "ccc"]


def test_a_message_may_come_byte_by_byte(door: NativeServer) -> None:
    with RawClient(door.address) as client:
        client.send(begin(client))
        for one in question("slow"):
            client.send(data(bytes((one,))))
        assert wait_answers(client, 1) == ["slow"]


def test_many_messages_in_one_frame(door: NativeServer) -> None:
    raw = b"".join(question(f"q{i}") for i in range(100))
    with RawClient(door.address) as client:
        client.send(begin(client) + data(raw))
        assert wait_answers(client, 100) == [f"q{i}" for i in range(100)]


def test_a_message_larger_than_the_window_arrives(door: NativeServer) -> None:
    """Window is given for what has come of a message: 200 KiB through the 64 KiB of a new stream."""
    raw = question("large", arguments={"text": "x" * 200_000})
    with RawClient(door.address) as client:
        client.send(begin(client))
        for at in range(0, len(raw), 8192):
            client.until(functools.partial(_may_send, client, at + 8192))
            client.send(data(raw[at : at + 8192]))
        assert wait_answers(client, 1) == ["large"]


def _may_send(client: RawClient, size: int) -> bool:
    return 65_535 + _window(client, 1) >= size


def _window(client: RawClient, stream: int) -> int:
    return sum(
        int.from_bytes(payload, "big") for kind, _, id_, payload in client.frames if (kind, id_) == (WINDOW, stream)
    )


@pytest.mark.parametrize(
    ("raw", "status", "why"),
    [
        (message(b"x", length=0xFFFFFFFF), EXHAUSTED, "request.too_large"),
        (message(b"x" * 8, length=262_145), EXHAUSTED, "request.too_large"),
        (message(b"x", flag=1), UNIMPLEMENTED, "request.compressed"),
        (message(b"x", flag=2), INTERNAL, "request.framing"),
        (message(b"\xff\xff"), "3", "request.malformed"),
    ],
    ids=["4 GiB", "over", "compressed", "flag", "no protobuf"],
)
def test_what_is_no_message_ends_the_stream_behind_the_answers(
    door: NativeServer, raw: bytes, status: str, why: str
) -> None:
    """By its prefix, before room is made for it; what came before is answered, other streams live."""
    with RawClient(door.address) as client:
        client.send(begin(client, 1) + begin(client, 3) + data(question("before") + raw))
        assert end_of(client) == (status, why)
        assert answers(client) == ["before"]
        client.until(lambda: 1 in client.resets)
        assert client.resets[1] == NO_ERROR
        # What was on its way is not wanted, and harms nothing.
        client.send(data(question("after")) + data(question("other"), 3))
        assert wait_answers(client, 1, 3) == ["other"]
    assert door.listener.counters()["buffered_max"] < 16_384


@pytest.mark.parametrize("rest", [b"\0", question()[:-1], question()[:5]])
def test_a_half_close_within_a_message_is_an_error(door: NativeServer, rest: bytes) -> None:
    """H2-18: the answers to all that was whole, then INTERNAL; no decision of the rest."""
    with RawClient(door.address) as client:
        client.send(begin(client) + data(question("whole") + rest, flags=END_STREAM))
        assert end_of(client) == (INTERNAL, "request.framing")
        assert answers(client) == ["whole"]
    assert door.listener.counters()["calls"] == 1


def test_trailers_of_a_client_are_refused(door: NativeServer) -> None:
    with RawClient(door.address) as client:
        client.send(begin(client) + data(question("whole")))
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, client.block([("x-trailer", "v")])))
        assert end_of(client) == (INTERNAL, "request.trailers")
        assert answers(client) == ["whole"]


def test_a_stream_that_is_none_is_refused_before_it_begins(door: NativeServer) -> None:
    """Trailers alone, as at every method."""
    with RawClient(door.address) as client:
        for stream, changes, status in (
            (1, {"content_type": "text/plain"}, INTERNAL),
            (3, {"grpc_encoding": "gzip"}, "12"),
        ):
            client.send(begin(client, stream, **changes))
            assert end_of(client, stream)[0] == status
            assert stream not in client.data
        assert client.ask(5, message(asked("call").SerializeToString())) == (OK, "")


def test_a_door_for_envoy_has_no_streams() -> None:
    with native_server(make_pdp(make_live()), envoy=True) as door, RawClient(door.address) as client:
        client.send(begin(client))
        assert end_of(client) == (UNIMPLEMENTED, "request.unimplemented")


def test_a_reset_within_a_message_frees_all(door: NativeServer) -> None:
    """Nothing of it is decided or held, and its place is another's: far more of them than may be open."""
    with RawClient(door.address) as client:
        for stream in range(1, 801, 4):
            client.send(begin(client, stream) + data(question("whole", arguments={"a": "x" * 3000})[:-1], stream))
            wait_begun(client, stream)
            client.send(frame(RST, 0, stream, struct.pack(">I", CANCEL)))
            assert client.ask(stream + 2, message(asked("call").SerializeToString())) == (OK, "")
        wait_for("nothing held", lambda: door.listener.counters()["held"] < 4096)
    assert door.listener.counters()["calls"] == 200


# ---------------------------------------------------------------- bounds


def test_a_reader_that_takes_nothing_is_read_no_further() -> None:
    """Answers wait up to their bound, then questions do, at last in the peer: memory stays, others are served.

    Once the window opens everything is answered, in order.
    """
    raw = [question(f"q{i:04}") for i in range(3000)]
    with native_server(make_pdp(make_live(task())), agent=AGENT, stream_questions=16) as door:
        with RawClient(door.address, settings=NO_WINDOW) as client, RawClient(door.address) as other:
            client.send(begin(client))
            sent = 0
            while True:
                # As much as the peer's window of this stream allows.
                client.send(frame(PING, 0, 0, struct.pack(">Q", sent)))
                client.until(functools.partial(_ponged, client, sent))
                size = sum(map(len, raw[:sent]))
                piece = raw[sent : sent + _count(raw[sent:], 65_535 + _window(client, 1) - size)]
                if not piece:
                    break
                client.send(b"".join(data(one) for one in piece))
                sent += len(piece)
            assert sent < len(raw)
            done = door.listener.counters()
            assert done["calls"] <= 17
            assert done["buffered_max"] < 4 * 65_536
            assert other.ask(1, message(asked("call").SerializeToString())) == (OK, "")
            client.send(frame(WINDOW, 0, 1, struct.pack(">I", 1 << 24)))
            client.send(frame(WINDOW, 0, 0, struct.pack(">I", 1 << 24)))
            assert wait_answers(client, sent) == [f"q{i:04}" for i in range(sent)]
        gone(door)
        assert door.listener.counters()["held"] == 0


@contextlib.contextmanager
def blocked(**limits: int) -> Iterator[tuple[NativeServer, RawClient]]:
    """A client whose stream has an answer that it does not take."""
    with served(**limits) as (door, _), RawClient(door.address, settings=NO_WINDOW) as client:
        client.send(begin(client) + data(question("waits")))
        yield door, client


@contextlib.contextmanager
def served(**limits: int) -> Iterator[tuple[NativeServer, RawClient]]:
    with native_server(make_pdp(make_live(task())), agent=AGENT, **limits) as door, RawClient(door.address) as client:
        yield door, client


def _ponged(client: RawClient, number: int) -> bool:
    return (PING, 1, 0, struct.pack(">Q", number)) in client.frames


def _count(raw: list[bytes], room: int) -> int:
    """How many of them fit."""
    count = 0
    while count < len(raw) and room >= len(raw[count]):
        room -= len(raw[count])
        count += 1
    return count


def test_a_notice_that_was_not_sent_gives_way_to_the_next() -> None:
    """However often it changes, a stream that takes nothing holds the notice of its begin and one more."""
    live = make_live(task())
    with native_server(make_pdp(live), agent=AGENT) as server, RawClient(server.address, settings=NO_WINDOW) as client:
        client.send(begin(client))
        wait_for("the stream", lambda: server.listener.counters()["check_streams"] == 1)
        for epoch in range(2, 500):
            live.apply([("owner", {"id": "ann", "active": epoch % 2 == 1})], epoch)
        assert client.ask(3, path="/none.Such/Check")[0] == UNIMPLEMENTED
        assert server.listener.counters()["buffered_max"] < 4096
        client.send(frame(WINDOW, 0, 1, struct.pack(">I", 65_535)))
        client.until(lambda: len(said(client)) == 2)
        notices = [one.notice for one in said(client)]
        assert [list(one.causes) for one in notices] == [[], [authz_pb2.NOTICE_CAUSE_OWNER]]
        assert notices[1].revocation_epoch == 499


def test_answers_that_nobody_takes_end_the_stream() -> None:
    """They have the time of a call's answer; the connection and its other streams live."""
    with blocked(stream_ms=300) as (_, client):
        client.until(lambda: 1 in client.resets)
        assert client.resets[1] == CANCEL
        client.send(frame(PING, 0, 0, struct.pack(">Q", 1)))
        client.until(functools.partial(_ponged, client, 1))


def test_a_message_that_does_not_end_ends_the_stream() -> None:
    """A message has the time of a call to arrive, which no byte of it renews; a silent stream has all the time."""
    with served(stream_ms=300) as (_, client):
        client.send(begin(client, 1) + begin(client, 3) + data(question("whole") + question("part")[:9]))
        sent = 0
        while 1 not in client.resets and sent < 40:
            client.send(data(b"\0"))
            client.send(frame(PING, 0, 0, struct.pack(">Q", sent)))
            client.until(functools.partial(_ponged, client, sent))
            sent += 1
            threading.Event().wait(0.05)
        client.until(lambda: 1 in client.resets)
        assert client.resets[1] == CANCEL
        assert answers(client) == ["whole"]
        client.send(data(question("still"), 3))
        assert wait_answers(client, 1, 3) == ["still"]


def test_questions_beyond_the_memory_of_a_connection_end_the_stream() -> None:
    """RESOURCE_EXHAUSTED, behind the answers to what came before."""
    with served(held_bytes=64 * 1024) as (door, client):
        large = question("large", arguments={"text": "x" * 100_000})
        client.send(begin(client) + data(question("before")))
        for at in range(0, 65_000, 13_000):
            client.send(data(large[at : at + 13_000]))
        client.send(begin(client, 3) + data(question("other"), 3))
        assert wait_answers(client, 1, 3) == ["other"]
        left = len(large)
        for at in range(65_000, left, 13_000):
            client.send(data(large[at : at + 13_000]))
        assert end_of(client) == (EXHAUSTED, "request.memory")
        assert answers(client) == ["before"]
        assert door.listener.counters()["buffered_max"] <= 64 * 1024 + 4096


def test_frames_without_an_end_of_a_message_run_out(door: NativeServer) -> None:
    """A question may come in as many frames as a call; a message in thousands of them is a flood."""
    raw = question("flood", arguments={"text": "x" * 5000})
    with RawClient(door.address) as client:
        client.send(begin(client) + b"".join(data(bytes((one,))) for one in raw))
        client.drain()
        assert [code for _, code in client.goaway] == [ENHANCE_YOUR_CALM]
    door.ended("flood")


def test_well_behaved_questions_never_run_out(door: NativeServer) -> None:
    """Ten thousand questions in two frames each, on one stream of one connection."""
    with RawClient(door.address) as client:
        client.send(begin(client))
        for turn in range(100):
            raw = [question(f"{turn}.{i}") for i in range(100)]
            client.send(b"".join(data(one[:7]) + data(one[7:]) for one in raw))
            # Of what came, the last is enough; to read all again each time would take long.
            client.until(functools.partial(_has, client, f"{turn}.99".encode()))
            size = struct.pack(">I", len(client.data[1]))
            client.send(frame(WINDOW, 0, 1, size) + frame(WINDOW, 0, 0, size))
            client.data[1] = b""
    assert door.listener.counters()["calls"] == 10_000


def _has(client: RawClient, text: bytes) -> bool:
    return text in client.data.get(1, b"")


# ---------------------------------------------------------------- the end of a connection


def test_a_silent_stream_outlives_every_other_clock() -> None:
    """Not idle, not late, not slow: with keepalive answered it stays, and is told what changes."""
    live = make_live(task())
    limits = {"stream_ms": 200, "deadline_ms": 200, "idle_ms": 200, "watch_ms": 200, "first_request_ms": 200}
    with native_server(make_pdp(live), agent=AGENT, **limits) as door, RawClient(door.address) as client:
        client.send(begin(client))
        client.until(lambda: said(client))
        with RawClient(door.address) as witness:
            # Its time without a request is over after those of the stream would have been.
            witness.drain()
        live.apply([("owner", {"id": "ann", "active": False})], 2)
        client.until(lambda: len(said(client)) == 2)
        assert not client.resets
        assert not client.goaway
        assert door.listener.counters()["closed"] == {"idle": 1}


def test_a_connection_of_age_ends_its_streams_in_good_order() -> None:
    """GOAWAY, answers to what came, UNAVAILABLE; the peer may still be sending and loses nothing of it."""
    with native_server(make_pdp(make_live(task())), agent=AGENT, age_ms=300) as door, RawClient(door.address) as client:
        client.send(begin(client) + data(question("early")))
        client.until(lambda: client.goaway)
        client.send(data(question("late")))
        drain = next(payload for kind, flags, _, payload in client.frames if kind == PING and not flags & ACK)
        client.send(frame(PING, ACK, 0, drain))
        assert end_of(client) == (UNAVAILABLE, "draining")
        assert answers(client) == ["early", "late"]
        for _ in range(50):
            client.send(data(question("too late")))
        assert [code for _, code in client.goaway] == [NO_ERROR] * 2
    wait_for("its end", lambda: door.listener.counters()["open"] == 0)


def test_a_blocked_stream_does_not_keep_the_door_from_closing() -> None:
    """What is not taken within the grace is given up."""
    with blocked() as (door, _):
        wait_for("a call", lambda: door.listener.counters()["calls"] == 1)
        door.stop(grace_ms=300)
    assert door.listener.counters()["held"] == 0


def test_streams_of_several_loops_are_all_told() -> None:
    """Each loop is woken by its own bell; streams on other connections too."""
    live = make_live(task())
    with native_server(make_pdp(live), agent=AGENT, threads=3) as door, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(door.address)) for _ in range(9)]
        for client in clients:
            client.send(begin(client) + begin(client, 3))
            wait_begun(client, 1)
            wait_begun(client, 3)
        live.apply([("owner", {"id": "ann", "active": False})], 2)
        for client in clients:
            client.until(functools.partial(_told_both, client))
        assert min(door.listener.counters()["loops"]) >= 1


def _told_both(client: RawClient) -> bool:
    return len(said(client, 1)) == len(said(client, 3)) == 2
