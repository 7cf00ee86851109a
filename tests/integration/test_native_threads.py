"""A native door with several loops: one socket, connections shared out, limits and ends that hold for all of them."""

import contextlib
import socket
import subprocess
import sys
import threading

import grpc
import pytest

from fastpath.listener import Listener
from sidecar.demo.processes import wait_for
from tests.fix_native import AGENT, CHECK, QUESTION, TIMEOUT_S, Gone, RawClient, make_pdp, native_server

THREADS = 4


@pytest.mark.parametrize("tcp", [False, True])
def test_connections_are_shared_out_over_the_loops(tcp: bool) -> None:
    """Whichever loop accepts, the one with the fewest connections serves: 16 connections are four for each of four."""
    with native_server(threads=THREADS, tcp=tcp) as door, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(4 * THREADS):
            # One after the other: two loops that accept at the same moment may choose the same one.
            clients.append(stack.enter_context(RawClient(door.address)))
            assert clients[-1].ask(1) == ("0", "")
        done = door.listener.counters()
        assert done["loops"] == [4] * THREADS
        assert (done["open"], done["accepted"], done["calls"]) == (16, 16, 16)
        for client in clients:
            assert client.ask(3) == ("0", "")
        assert door.listener.counters()["calls"] == 32


def test_a_thread_that_cannot_start_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops that run already end before `serve` fails: nothing of theirs outlives the door."""
    start = threading.Thread.start

    def doors() -> int:
        return sum(one.name == "door" for one in threading.enumerate())

    def scarce(thread: threading.Thread) -> None:
        if thread.name == "door" and doors() == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        door = Listener(make_pdp(), envoy=False, spiffe_id=AGENT, threads=THREADS)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            door.serve(listening.fileno())
        assert doors() == 0


def test_a_stop_ends_all_loops_in_order() -> None:
    """H2-24: every connection of every loop hears GOAWAY twice and what it had sent is answered."""
    with native_server(threads=THREADS) as door, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(door.address)) for _ in range(2 * THREADS)]
        for client in clients:
            assert client.ask(1) == ("0", "")
        door.listener.stop(TIMEOUT_S * 1000)
        for client in clients:
            client.until(lambda: client.goaway)  # noqa: B023
            assert client.goaway[0] == ((1 << 31) - 1, 0)
            client.send(client.request(3))
            client.until(lambda: 3 in client.ended)  # noqa: B023
            assert client.headers[3]["grpc-status"] == "0"
        stack.close()
        door.stop(TIMEOUT_S * 1000)
        assert door.listener.counters()["open"] == 0


def test_the_bound_on_connections_is_the_door_s() -> None:
    """Four loops do not make four times as many; one that leaves makes room for one."""
    with native_server(threads=THREADS, connections=8) as door, contextlib.ExitStack() as stack:
        inside = [stack.enter_context(RawClient(door.address)) for _ in range(8)]
        for client in inside:
            assert client.ask(1) == ("0", "")
        with RawClient(door.address) as late, pytest.raises(Gone):
            late.until(lambda: late.frames)
        assert door.listener.counters()["closed"] == {"full": 1}
        inside[0].socket.close()
        wait_for("one to leave", lambda: door.listener.counters()["open"] == 7)
        with RawClient(door.address) as next_one:
            assert next_one.ask(1) == ("0", "")


def test_one_peer_has_its_own_bound() -> None:
    """UD-06, H2-13: a user with all its connections is refused, counted as such; the loops live on."""
    with native_server(threads=2, connections_per_peer=3) as door, contextlib.ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(RawClient(door.address)).ask(1) == ("0", "")
        for _ in range(5):
            with RawClient(door.address) as late, pytest.raises(Gone):
                late.until(lambda: late.frames)
        assert door.listener.counters()["closed"] == {"crowd": 5}
        stack.close()
        wait_for("all to leave", lambda: door.listener.counters()["open"] == 0)
        with RawClient(door.address) as again:
            assert again.ask(1) == ("0", "")


def test_a_grpc_client_meets_any_number_of_loops() -> None:
    """Channels come and go while others ask: no call fails."""
    with native_server(threads=THREADS) as door:
        for _ in range(10):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(door.target, options) as channel:
                call = channel.unary_unary(CHECK)
                assert all(call(QUESTION, timeout=TIMEOUT_S) for _ in range(20))
        assert door.listener.counters()["calls"] == 200


# ---------------------------------------------------------------- the process behind a Unix connection

PARENT = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(9)
if os.fork() == 0:
    sys.stdout.close(); os.close(1)
    while s.recv(65536): pass
    os.write(2, b"closed")
    os._exit(0)
sys.stdout.write("connected"); sys.stdout.flush(); sys.stdin.readline(); os._exit(0)
"""


def _has_peer_pidfd() -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        try:
            fd = ours.getsockopt(socket.SOL_SOCKET, 77)
        except OSError:
            return False
        import os

        os.close(fd)
        return True


@pytest.mark.skipif(not _has_peer_pidfd(), reason="SO_PEERPIDFD needs Linux 6.5")
def test_a_connection_ends_with_the_process_that_made_it() -> None:
    """UD-02, UD-03: whoever inherited the socket is not who connected; its connection is closed, counted as `died`."""
    with native_server() as door:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, door.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert parent.stdout is not None
        assert parent.stdout.read(9) == "connected"
        assert door.listener.counters()["open"] == 1
        _, told = parent.communicate("\n", timeout=TIMEOUT_S)
        assert told == "closed"
        door.ended("died")
