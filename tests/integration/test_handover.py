"""An upgrade without a failed call (H2-24): the next process takes doors and journal from the one that runs; sockets of
a service manager."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from sidecar._proto.remit.authority.v1 import revocations_pb2, tasks_pb2
from sidecar.demo.processes import Process, module, wait_for
from sidecar.errors import ConfigError
from sidecar.inherited import from_service_manager
from tests.fix_journal import held
from tests.fix_serve import AGENT, OTHER, PERMIT, TIMEOUT_S, Served, check, made_sidecar, outcome, question
from tests.fix_store import Stubs, as_caller, opening, with_authority

THREADS = 3

# gRPC's client says this before it has sent a byte of TLS: while a connection of a channel is let go of and the next
# one is made, the watch on the channel's own certificates can be cancelled last and started first, and the new
# connection then has none (grpcio 1.85, grpc_tls_certificate_distributor.cc). Nobody was asked, and the channel stays
# like that.
NEVER_ASKED = "Failed to create security handshaker"


@pytest.fixture
def served() -> Iterator[Served]:
    with made_sidecar("native") as made:
        yield made


class Load:
    """Threads that ask all the time, each on a channel of its own; every answer is counted."""

    def __init__(self, served: Served, name: str = "agent") -> None:
        """`name`: "agent" asks as AGENT, "other" as OTHER."""
        self.seen: Counter[str] = Counter()
        self._served = served
        self._stop = threading.Event()
        svid = served.authority.issue(AGENT if name == "agent" else OTHER)
        local = [lambda: served.agent_socket(name) for _ in range(THREADS)]
        remote = [lambda: served.tls("listeners.check_address", svid) for _ in range(THREADS)]
        self._threads = [threading.Thread(target=self._ask, args=(one,)) for one in [*local, *remote]]

    def _ask(self, connect: object) -> None:
        while not self._stop.is_set():
            # Some calls share a connection, others make their own.
            with connect() as channel:  # type: ignore[operator]
                for _ in range(50):
                    said = " ".join(outcome(channel, question()))
                    if NEVER_ASKED in said:
                        break
                    self.seen[said] += 1

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        wait_for("calls under way", lambda: self.seen.total() > 100)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 300) -> None:
        wanted = self.seen.total() + count
        wait_for("more calls", lambda: self.seen.total() >= wanted)


def successor(served: Served, number: int) -> Process:
    """A new process that takes over, ready and alone when this returns."""
    old = served.process
    command = module("sidecar.cli", "serve", "--take-over", "--config", str(served.config))
    new = Process(f"next{number}", command, served.folder)
    served.process = new
    assert old is not None
    try:
        new.wait_until("the old one to end", lambda: not old.running())
    except ConfigError:
        old.stop()
        raise
    new.wait_until("the control socket answers", served._answers)
    assert old.stop() == 0
    return new


def records(served: Served) -> list[int]:
    """Sequence numbers of the journal, as it stands on disk."""
    return [sequence for sequence, _ in held(pathlib.Path(served.folder) / "journal")]


def test_no_call_fails_while_processes_take_over(served: Served) -> None:
    """Two upgrades in a row under load, over Unix sockets and mutual TLS: every call is ALLOW, no record is missing."""
    served.start_ready()
    with Load(served) as load:
        for number in (1, 2):
            successor(served, number)
            load.more()
    assert set(load.seen) == {"ALLOW ok"}
    assert served.status().ready
    assert served.stop() == 0
    numbers = records(served)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= load.seen.total()
    assert not any((served.folder / "agent").glob("sock"))
    assert {one.name for one in (served.folder / "control").iterdir()} == {"sock.lock"}


def test_a_successor_that_fails_costs_nothing(served: Served) -> None:
    """Until it is ready for the journal the new one can die, and the old one goes on as if nobody had asked."""
    process = served.start_ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(f"{served.folder}/control/sock.next")
        assert json.loads(socket.recv_fds(asking, 4096, 2)[0])["door"].startswith("listeners.")
    process.wait_until("it to notice", lambda: any(one["event"] == "handover.lost" for one in served.log()))
    served.config.write_text("nonsense: 1\n")
    assert served.remit("serve", "--take-over").returncode != 0
    served.write()
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")
    successor(served, 1)
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")


def test_nobody_to_take_over_from_is_said(served: Served) -> None:
    """SY-08: --take-over needs a running sidecar; without it a second one is still refused."""
    served.give_svid()
    served.write()
    done = served.remit("serve", "--take-over")
    assert done.returncode != 0
    assert "no sidecar to take over from" in done.stderr
    served.start_ready()
    assert "another process has the journal" in served.remit("serve").stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
def test_only_our_own_user_may_take_over(served: Served) -> None:
    """The sockets and the right to write records go to nobody else, whatever the folder allows."""
    process = served.start_ready()
    path = f"{served.folder}/control/sock.next"
    for folder in (served.folder, served.folder / "control"):
        os.chmod(folder, 0o755)
    os.chmod(path, 0o666)
    code = (
        "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); s.settimeout(20)\n"
        "sys.stdout.write(repr(s.recv(9)))"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", code, path], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.stdout == "b''", done.stderr
    process.wait_until("the refusal", lambda: any(one["event"] == "handover.refused" for one in served.log()))


@contextlib.contextmanager
def preparing(served: Served) -> Iterator[Process]:
    """The next process, which has read configuration and store; after the block it takes over."""
    old = served.start_ready()
    served.workload.fail(grpc.StatusCode.UNAVAILABLE)
    new = Process("next", module("sidecar.cli", "serve", "--take-over", "--config", str(served.config)), served.folder)
    try:
        new.wait_until("it to have read the store", lambda: "generation.in_force" in new.log.read_text())
        yield new
        served.give_svid()
        served.process = new
        new.wait_until("the old one to end", lambda: not old.running())
        new.wait_until("the control socket answers", served._answers)
    finally:
        old.stop()


def test_an_edit_while_the_next_one_prepares_is_in_force_there(served: Served) -> None:
    """What the old one said is decided by is decided by after it, though the new one had read the store before."""
    (served.folder / "freeze.cedar").write_text('@id("freeze") forbid (principal, action, resource);')
    with preparing(served):
        before = served.status().generation
        assert served.remit("policy", "put", str(served.folder / "freeze.cedar")).returncode == 0
        assert served.status().generation > before
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("DENY", "policy.forbid")


def test_a_configuration_that_is_loaded_while_the_next_one_prepares_is_in_force_there(served: Served) -> None:
    """Mapping and policies belong together: neither decides after the upgrade with what the other one was before."""
    with preparing(served):
        served.policy.write_text(PERMIT.replace("Agent::", "Robot::"))
        served.settings["mapping"]["agent_type"] = "Robot"
        served.write()
        assert not served.reload().problems
        with served.agent_socket() as agent:
            assert outcome(agent, question()) == ("ALLOW", "ok")
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")
    assert served.status().generation == 2


def test_a_configuration_that_nobody_loaded_is_not_in_force_after_an_upgrade(served: Served) -> None:
    """Its policies are not compiled, and its mapping is not for those that decide; the log says so."""
    with preparing(served) as new:
        served.policy.write_text(PERMIT.replace("Agent::", "Robot::"))
        served.settings["mapping"]["agent_type"] = "Robot"
        served.write()
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")
        assert "config.not_loaded" in new.log.read_text()
        assert not served.reload().problems
        assert outcome(agent, question()) == ("ALLOW", "ok")
    assert served.status().generation == 2


def test_the_old_one_dies_while_the_new_one_waits(served: Served) -> None:
    """A kill -9 in the middle: the journal is free, the sockets are ours, and callers that waited are answered."""
    old = served.start_ready()
    os.kill(old.pid, signal.SIGSTOP)
    command = module("sidecar.cli", "serve", "--take-over", "--config", str(served.config))
    new = Process("next", command, served.folder)
    try:
        # Its doors come only from a living process, so it is let go on until it has given them.
        os.kill(old.pid, signal.SIGCONT)
        old.wait_until("the question", lambda: any(one["event"] == "handover.asked" for one in served.log()))
        old.kill()
        served.process = new
        new.wait_until("it serves", lambda: served._answers() and served.status().ready)
        with served.agent_socket() as agent:
            assert outcome(agent, question()) == ("ALLOW", "ok")
    finally:
        new.stop()


# ---------------------------------------------------------------- with authority


def test_authority_goes_with_the_doors(served: Served) -> None:
    """Row 8 over an upgrade: tasks, what they may still spend and revocations are in force in the next process.

    A revoked agent is denied by the old one, by the new one, and by whoever answers in between.
    """
    with_authority(served)
    served.start_ready()
    with as_caller(served) as alice:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=50, cost=100)))
        closed = alice.tasks.Open(opening())
        alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=closed.id))
        alice.tasks.Open(opening(agent=OTHER))
        revoked = alice.revocations.Revoke(
            revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_AGENT, key=OTHER)
        )
    mine = question(task=task.id, cost=2)
    with served.agent_socket() as agent:
        assert [outcome(agent, mine)[0] for _ in range(10)] == ["ALLOW"] * 10
    with Load(served, name="other") as load:
        for number in (1, 2):
            successor(served, number)
            load.more()
            with as_caller(served) as alice:
                wait_for("the authority services", lambda: _lists(alice))
                left = alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left
            assert (left.calls, left.cost) == (50 - 10 * number, 100 - 20 * number)
            assert served.status().revocation_epoch >= revoked.epoch
            with served.agent_socket() as agent:
                assert outcome(agent, question(task=closed.id))[0] == "DENY"
                assert [outcome(agent, mine)[0] for _ in range(10)] == ["ALLOW"] * 10
    assert set(load.seen) == {"DENY revoked.agent"}
    with as_caller(served) as alice:
        assert alice.tasks.Get(tasks_pb2.GetTaskRequest(id=task.id)).left.calls == 20
        alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id))
    with served.agent_socket() as agent:
        assert outcome(agent, mine)[0] == "DENY"
    assert served.stop() == 0


def _lists(caller: Stubs) -> bool:
    """Whether the authority services answer."""
    try:
        caller.tasks.List(tasks_pb2.ListTasksRequest(), timeout=TIMEOUT_S)
    except grpc.RpcError:
        return False
    return True


# ---------------------------------------------------------------- socket activation

STARTER = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "sidecar.cli", "serve", "--config", sys.argv[1]])
"""


@contextlib.contextmanager
def activated(served: Served, names: dict[str, socket.socket]) -> Iterator[subprocess.Popen[bytes]]:
    """The sidecar, started as a service manager does: its sockets from descriptor 3 on, named."""
    environ = os.environ | {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
    wanted = [one.fileno() for one in names.values()]

    def place() -> None:
        high = [os.dup2(fd, 100 + i) for i, fd in enumerate(wanted)]
        for i, fd in enumerate(high):
            os.dup2(fd, 3 + i)

    with (served.folder / "sidecar.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(served.config)],
            env=environ,
            preexec_fn=place,
            close_fds=False,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def test_doors_come_from_a_service_manager(served: Served) -> None:
    """Socket activation: callers wait in the manager's sockets while no sidecar runs, and the next one answers them."""
    folder = served.folder / "agent"
    folder.mkdir(mode=0o750)
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as remote:
        local.bind(str(folder / "sock"))
        local.listen()
        port = remote.getsockname()[1]
        served.settings["listeners"]["check_address"] = f"127.0.0.1:{port}"
        served.give_svid()
        served.write()
        names = {"listeners.agents[0].socket": local, "listeners.check_address": remote}
        for _ in range(2):
            with grpc.insecure_channel(f"unix:{folder}/sock") as channel:
                waiting = channel.unary_unary("/grpc.health.v1.Health/Check").future(b"", timeout=TIMEOUT_S)
                with activated(served, names):
                    assert waiting.result()
                    wait_for("ready", lambda: served._answers() and served.status().ready)
                    assert check(channel, question()).reason == "ok"
                    served.addresses = {one.name: one.address for one in served.status().listeners}
                    with served.tls("listeners.check_address", served.authority.issue(AGENT)) as tls:
                        assert outcome(tls, question()) == ("ALLOW", "ok")
        assert (folder / "sock").exists()


def test_a_socket_without_a_door_is_refused(served: Served) -> None:
    """A unit that names what the configuration does not have must be mended; the door is not left closed in silence."""
    served.give_svid()
    served.write()
    with socket.create_server(("127.0.0.1", 0)) as spare, activated(served, {"listeners.none": spare}) as process:
        assert process.wait(TIMEOUT_S) != 0
    assert "no such door" in (served.folder / "sidecar.log").read_text()


def test_what_is_no_listening_socket_is_refused(served: Served) -> None:
    """sd_listen_fds(3): each descriptor is what its unit says."""
    served.give_svid()
    served.write()
    with socket.socket() as unbound, activated(served, {"listeners.check_address": unbound}) as process:
        assert process.wait(TIMEOUT_S) != 0
    assert "does not listen" in (served.folder / "sidecar.log").read_text()


def test_a_socket_elsewhere_is_refused(served: Served) -> None:
    """The configuration says where callers are expected; a unit that listens elsewhere is a mistake."""
    served.settings["listeners"]["check_address"] = "127.0.0.1:1"
    served.give_svid()
    served.write()
    names = "listeners.check_address"
    with socket.create_server(("127.0.0.1", 0)) as elsewhere, activated(served, {names: elsewhere}) as process:
        assert process.wait(TIMEOUT_S) != 0
    assert "the configuration says `127.0.0.1:1`" in (served.folder / "sidecar.log").read_text()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LISTEN_FDS": "x"}, "not a number"),
        ({"LISTEN_FDS": "1"}, "does not name every socket"),
    ],
)
def test_what_is_no_list_of_sockets_is_refused(environ: dict[str, str], message: str) -> None:
    """sd_listen_fds(3): a number, and a name for each."""
    given = {"LISTEN_PID": str(os.getpid()), **environ}
    with pytest.raises(ConfigError, match=message):
        from_service_manager(given)
    assert "LISTEN_FDS" not in given


def test_sockets_for_another_process_are_left_alone() -> None:
    """LISTEN_PID names who they are for; whoever else inherits the variables ignores them."""
    given = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}
    from_service_manager(given).close()
    assert given == {}
