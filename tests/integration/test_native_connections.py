"""Connections of a native door in numbers, and callers that leave or fall silent (rows H2-13, H2-23, H2-27)."""

import contextlib
import os
import pathlib
import random
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastpath.journal import Journal, read_frames
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.demo.processes import wait_for
from tests.fix_native import (
    ACK,
    CANCEL,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    TIMEOUT_S,
    Gone,
    NativeServer,
    RawClient,
    call_headers,
    emptied,
    frame,
    make_pdp,
    native_server,
    sockets,
    wait_for_sockets,
)

LONG = os.environ.get("REMIT_FAULTS") == "long"
CHURN = 50_000 if LONG else 2_000
IDLE = 20_000 if LONG else 1_000
CALLS = 2_000 if LONG else 200
CLOSED_WINDOW = struct.pack(">HI", 4, 0)
RESET = struct.pack(">ii", 1, 0)  # SO_LINGER: close sends RST
FEW = 40
STREAMS = 256


# ---------------------------------------------------------------- H2-13


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("sent", [b"", PREFACE, PREFACE + frame(SETTINGS)], ids=["nothing", "preface", "settings"])
def test_who_comes_and_goes_leaves_nothing(reset: bool, sent: bytes) -> None:
    """H2-13: so many connections that come and leave, in order or by RST: each is counted out, no socket stays."""
    with native_server(tcp=True) as door:
        before = sockets()
        for _ in range(CHURN // 6):
            with socket.create_connection(door.address, TIMEOUT_S) as client:
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.sendall(sent)
        with RawClient(door.address) as client:
            assert client.ask(1) == ("0", "")
        done = emptied(door)
        assert done["accepted"] == CHURN // 6 + 1
        assert done["closed"] == {"peer": done["accepted"]}
        assert done["calls"] == 1
        assert done["held"] == 0
        wait_for_sockets(before)


def test_who_leaves_with_many_streams_leaves_nothing() -> None:
    """H2-13: connections with as many unfinished calls as they may have are freed piece by piece, and all of them are;
    the door answers meanwhile, and their places are free again."""
    with native_server(tcp=True, connections_per_peer=FEW) as door, RawClient(door.address) as other:
        assert other.ask(1) == ("0", "")
        before = sockets()
        for round_ in range(1, 4):
            with contextlib.ExitStack() as stack:
                for _ in range(FEW - 1):
                    client = stack.enter_context(RawClient(door.address))
                    begun = [
                        frame(HEADERS, END_HEADERS, 2 * i + 1, client.block(call_headers())) for i in range(STREAMS)
                    ]
                    client.send(b"".join(part + frame(DATA, 0, 2 * i + 1, b"\0") for i, part in enumerate(begun)))
                begun_in_all = 2 * round_ - 1 + round_ * (FEW - 1) * STREAMS
                wait_for("all streams", lambda n=begun_in_all: door.listener.counters()["streams"] >= n, TIMEOUT_S)
                assert door.listener.counters()["held"] >= (FEW - 1) * STREAMS
            assert other.ask(4 * round_ - 1) == ("0", "")
            wait_for("one connection", lambda: door.listener.counters()["open"] == 1, TIMEOUT_S)
            assert other.ask(4 * round_ + 1) == ("0", "")
            assert door.listener.counters()["held"] == 0
            wait_for_sockets(before)
        assert door.listener.counters()["closed"] == {"peer": 3 * (FEW - 1)}


@contextlib.contextmanager
def many_descriptors(wanted: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        pytest.skip(f"{wanted} descriptors are more than this machine gives a process ({hard})")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_stop_nobody() -> None:
    """H2-13: a thousand connections that say nothing; the last who comes is answered, and so is the first."""
    bounds = {
        "connections": IDLE + 10,
        "connections_per_peer": IDLE + 10,
        "idle_ms": 600_000,
        "first_request_ms": 600_000,
    }
    with many_descriptors(2 * IDLE + 200), native_server(**bounds) as door, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(door.address)) for _ in range(IDLE)]
        wait_for("all connections", lambda: door.listener.counters()["open"] == IDLE, TIMEOUT_S)
        with RawClient(door.address) as late:
            assert late.ask(1) == ("0", "")
        assert [clients[0].ask(1), clients[-1].ask(1)] == [("0", "")] * 2
        assert set(door.listener.counters()["closed"]) <= {"peer"}
        assert door.listener.counters()["held"] == 0


SCARCE = """
import resource, sys
from tests.fix_native import native_server
with native_server() as door:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
    print(door.path, flush=True)
    sys.stdin.readline()
    print(door.listener.counters()["closed"].get("full", 0), flush=True)
"""


def test_a_door_without_descriptors_lives_on() -> None:
    """H2-13: when accept finds no descriptor (EMFILE) who comes is closed; who is in is served, and so is the next."""
    command = [sys.executable, "-c", SCARCE, str(FEW)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(RawClient(path))
            assert first.ask(1) == ("0", "")
            others = [stack.enter_context(RawClient(path, hello=False)) for _ in range(2 * FEW)]
            wait_for("some to be refused", lambda: sum(_refused(one) for one in others) >= FEW, TIMEOUT_S)
            assert first.ask(3) == ("0", "")
        wait_for("room for one more", lambda: _served(path), TIMEOUT_S)
        refused = int(process.communicate("\n", timeout=TIMEOUT_S)[0])
    assert refused >= FEW


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """A child that holds a copy of every descriptor, as one does that subprocess has forked."""
    held, let_go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let_go)
        os.read(held, 1)
        os._exit(0)
    os.close(held)
    try:
        yield
    finally:
        os.close(let_go)
        os.waitpid(child, 0)


# A peer that breaks the protocol when it is told to, then sends more, then dies.
BROKEN = """
import sys
from tests.fix_native import DATA, END_STREAM, RawClient, frame
client = RawClient(sys.argv[1])
for data in (frame(DATA, END_STREAM, 0, b"x"), b"x" * 100):
    sys.stdin.readline()
    client.send(data)
"""


def test_a_closed_connection_whose_copies_live_on_is_no_event(door: NativeServer) -> None:
    """H2-13: while a forked child keeps the sockets open, what comes on one that was closed, or the end of the process
    behind it, names nothing that is gone: the loop sees the events of the others alone."""
    command = [sys.executable, "-c", BROKEN, door.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1) as peer:
        assert peer.stdin is not None
        wait_for("the peer", lambda: door.listener.counters()["open"] == 1, TIMEOUT_S)
        with forked():
            peer.stdin.write("break\n")
            door.ended("protocol")
            with RawClient(door.address) as other:
                assert other.ask(1) == ("0", "")
                before = door.listener.counters()["events"]
                peer.communicate("more\n", TIMEOUT_S)
                asked = range(3, 43, 2)
                assert [other.ask(stream) for stream in asked] == [("0", "")] * len(asked)
                assert door.listener.counters()["events"] - before <= len(asked)


def _refused(client: RawClient) -> bool:
    """Whether the door has closed this connection."""
    try:
        while client.socket.recv(4096, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return True


def _served(path: str) -> bool:
    with contextlib.suppress(Gone, OSError), RawClient(path) as client:
        return client.ask(1) == ("0", "")
    return False


# ---------------------------------------------------------------- H2-23


def recorded(folder: pathlib.Path) -> list[str]:
    """The evaluation ids of all decisions in a journal."""
    found = []
    for path in sorted(folder.glob("*.seg")):
        for _, payload in read_frames(path):
            record = decisions_pb2.Record.FromString(payload)
            if record.HasField("decision"):
                found.append(record.decision.evaluation_id)
    return found


@pytest.mark.parametrize("leave", ["reset", "disconnect"])
def test_a_caller_that_leaves_before_its_answer_is_recorded_once(tmp_path: pathlib.Path, leave: str) -> None:
    """H2-23: the answer waits behind a closed window when the caller resets or goes: one record each, nothing held."""
    with Journal(tmp_path / "journal") as journal, native_server(make_pdp(journal), tcp=True) as door:
        for i in range(CALLS):
            with RawClient(door.address, settings=CLOSED_WINDOW) as client:
                client.send(client.request(1))
                client.until(lambda: 1 in client.headers)
                if leave == "reset":
                    client.send(frame(RST, 0, 1, struct.pack(">I", CANCEL)) + frame(PING, 0, 0, struct.pack(">Q", i)))
                    client.until(lambda: any(kind == PING for kind, *_ in client.frames))
                assert 1 not in client.data
        done = emptied(door)
        assert (done["calls"], done["held"], done["closed"]) == (CALLS, 0, {"peer": CALLS})
    records = recorded(tmp_path / "journal")
    assert len(records) == len(set(records)) == CALLS


def test_a_reset_at_any_moment_leaves_as_many_records_as_decisions(tmp_path: pathlib.Path) -> None:
    """H2-23: the reset meets the call before, in or after its decision: what was decided is recorded, and only that."""
    rng = random.Random(7)
    with Journal(tmp_path / "journal") as journal, native_server(make_pdp(journal), tcp=True) as door:
        for _ in range(CALLS // 20):
            with RawClient(door.address) as client:
                for stream in range(1, 41, 2):
                    call, reset = client.request(stream), frame(RST, 0, stream, struct.pack(">I", CANCEL))
                    if rng.random() < 0.5:
                        # The door is through with the call when this comes back.
                        ping = struct.pack(">Q", stream)
                        client.send(call + frame(PING, 0, 0, ping))
                        client.until(lambda ping=ping: (PING, ACK, 0, ping) in client.frames)
                        client.send(reset)
                    else:
                        cut = rng.randrange(len(call))
                        client.send(call[:cut])
                        client.send(call[cut:] + reset)
                client.send(frame(PING, 0, 0, b"the last"))
                client.until(lambda: (PING, ACK, 0, b"the last") in client.frames)
        done = emptied(door)
        assert done["streams"] == CALLS // 20 * 20
        assert done["held"] == 0
        assert done["calls"] + done["cancelled"] <= done["streams"]
        assert min(done["calls"], done["cancelled"]) > 0
    records = recorded(tmp_path / "journal")
    assert len(records) == len(set(records)) == done["calls"]


# ---------------------------------------------------------------- H2-27


def test_a_dead_peer_is_freed() -> None:
    """H2-27: who does not answer a ping within its time is let go."""
    with native_server(keepalive_ms=50, ping_ms=200) as door, RawClient(door.address) as client:
        assert client.ask(1) == ("0", "")
        client.drain()
        assert any(kind == PING for kind, *_ in client.frames)
        door.ended("stall")


def test_a_silent_peer_that_answers_pings_stays() -> None:
    """H2-27: silence is no fault; several pings later the connection still serves."""
    with native_server(keepalive_ms=50, ping_ms=5_000) as door, RawClient(door.address) as client:
        answered = 0
        while answered < 3:
            client.until(lambda known=answered: len(pinged(client)) > known)
            answered = len(pinged(client))
            client.send(frame(PING, ACK, 0, pinged(client)[-1]))
        assert client.ask(1) == ("0", "")
        assert not any(kind == GOAWAY for kind, *_ in client.frames)
        assert door.listener.counters()["closed"] == {}


@pytest.mark.parametrize("answer", [b"\0" * 8, b"whatever"])
def test_an_answer_to_no_ping_of_ours_is_no_sign_of_life(answer: bytes) -> None:
    """H2-27: who answers what nobody asked is let go like one that says nothing."""
    with native_server(keepalive_ms=50, ping_ms=200) as door, RawClient(door.address) as client:
        with pytest.raises(Gone):
            answer_all(client, answer)
        door.ended("stall")


def test_only_its_own_answer_ends_the_notice_of_a_drain() -> None:
    """H2-24: the answer to a keepalive ping that was under way says nothing about what the peer has heard."""
    with native_server(keepalive_ms=50, ping_ms=60_000) as door, RawClient(door.address) as client:
        client.until(lambda: pinged(client))
        keepalive = pinged(client)[0]
        door.listener.stop(60_000, 60_000)
        client.until(lambda: client.goaway and pinged(client)[-1] != keepalive)
        client.send(frame(PING, ACK, 0, keepalive) + frame(PING, 0, 0, b"and now?"))
        client.until(lambda: (PING, ACK, 0, b"and now?") in client.frames)
        assert client.goaway == [(2**31 - 1, NO_ERROR)]
        assert client.ask(1) == ("0", "")
        client.send(frame(PING, ACK, 0, pinged(client)[-1]))
        client.until(lambda: len(client.goaway) == 2)
        assert client.goaway[1] == (1, NO_ERROR)


def answer_all(client: RawClient, answer: bytes, most: int = 50) -> None:
    """Answer so many pings, each with the same bytes."""
    for known in range(most):
        client.until(lambda known=known: len(pinged(client)) > known)
        client.send(frame(PING, ACK, 0, answer))


def pinged(client: RawClient) -> list[bytes]:
    """What the door's pings carried."""
    return [payload for kind, flags, _, payload in client.frames if kind == PING and not flags & ACK]


def test_a_client_may_ping(door: NativeServer) -> None:
    """H2-27: a client that asks whether we are there is told so, every time, without calls in between."""
    with RawClient(door.address) as client:
        for i in range(100):
            client.send(frame(PING, 0, 0, struct.pack(">Q", i)))
            client.until(lambda i=i: (PING, ACK, 0, struct.pack(">Q", i)) in client.frames)
        assert client.ask(1) == ("0", "")
        client.send(frame(GOAWAY, 0, 0, struct.pack(">II", 0, NO_ERROR)))
    assert door.ended("peer")["calls"] == 1
