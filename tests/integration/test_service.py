"""The sidecar under a service manager and a seccomp filter: what it says, and what the kernel lets it do."""

import os
import pathlib
import signal
import socket
import tempfile
from collections.abc import Iterator

import pytest

from tests.fix_serve import PERMIT, TIMEOUT_S, Served, made_sidecar, outcome, question

# What an attacker's code in the process would do: at SIGUSR1 it tries to trace, to open a raw socket and to mount.
INTRUDER = """
import ctypes, signal, socket
def strike(*_):
    libc = ctypes.CDLL(None)
    libc.ptrace(16, 1, 0, 0)
    libc.mount(b"none", b"/", b"tmpfs", 0, 0)
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    except PermissionError:
        pass
signal.signal(signal.SIGUSR1, strike)
"""


@pytest.fixture
def served() -> Iterator[Served]:
    with made_sidecar("native") as made:
        yield made


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that a service manager gives to what it starts."""
    with tempfile.TemporaryDirectory(prefix="nt") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(pathlib.Path(folder) / "notify"))
        made.settimeout(TIMEOUT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        yield made


def told(manager: socket.socket, wanted: str) -> list[str]:
    """Every line up to the message that holds `wanted`; statuses after it wait."""
    lines: list[str] = []
    while wanted not in lines:
        lines += manager.recv(4096).decode().split("\n")
    return lines


def test_the_manager_hears_of_start_reload_and_stop(served: Served, manager: socket.socket) -> None:
    """READY=1 only when calls are decided, RELOADING=1 and READY=1 around each reload, STOPPING=1 at SIGTERM."""
    served.start()
    before = told(manager, "STATUS=not ready: not_ready.svid")
    assert "READY=1" not in before
    served.give_svid()
    told(manager, "READY=1")
    assert served.status().ready
    told(manager, "WATCHDOG=1")
    served.policy.write_text(PERMIT + "permit (")
    assert served.reload().problems
    after = told(manager, "RELOADING=1")
    assert any(line.startswith("MONOTONIC_USEC=") for line in [*after, *told(manager, "READY=1")])
    assert served.stop() == 0
    told(manager, "STOPPING=1")


def test_a_refused_reload_is_one_line_in_the_log(served: Served) -> None:
    """An operator who counts lines counts refusals."""
    served.start_ready()
    served.policy.write_text("permit (")
    assert served.reload().problems
    refusals = [line for line in served.log() if line["event"] == "reload.refused"]
    assert len(refusals) == 1
    assert refusals[0]["level"] == "error"
    assert "base.cedar" in refusals[0]["cause"]


def test_the_end_of_our_svid_is_logged_as_a_time(served: Served) -> None:
    """RFC 3339, as the line's own time, and not a count of seconds."""
    served.start_ready()
    (line,) = [line for line in served.log() if line["event"] == "identity.changed"]
    assert line["detail"].startswith("spiffe://corp.example/sidecar until 20")
    assert line["detail"].endswith("Z")


def test_a_store_that_cannot_be_written_serves_what_was_published(served: Served) -> None:
    """The last generation decides and a warning says so; without one nothing is decided."""
    (served.folder / "generations" / "lock").mkdir(parents=True)
    served.give_svid()
    process = served.start()
    process.wait_until("the reason", lambda: served.status().not_ready == "not_ready.generation")
    assert served.stop() == 0
    (served.folder / "generations" / "lock").rmdir()
    served.start_ready()
    assert served.stop() == 0
    (served.folder / "generations" / "lock").unlink()
    (served.folder / "generations" / "lock").mkdir()
    (served.folder / "generations" / ".new-left").write_bytes(b"half")
    process = served.start_ready()
    assert served.status().generation == 1
    warnings = [line for line in served.log() if line["event"] == "generation.old"]
    assert [(line["level"], line["generation"]) for line in warnings] == [("warning", 1)]
    assert "cannot be written" in served.status().last_reload_problem
    assert process.running()


# ---------------------------------------------------------------- seccomp


@pytest.mark.parametrize("listener", ["native", "grpcio"])
def test_a_refused_call_is_logged_and_ends_nothing(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T14: what no sidecar needs fails inside it and stands in the log by name; calls go on being decided."""
    with made_sidecar(listener) as served:
        (served.folder / "code").mkdir()
        (served.folder / "code" / "sitecustomize.py").write_text(INTRUDER)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(served.folder / "code"), *_python_path()]))
        process = served.start_ready()
        served.refused_calls_expected = {"ptrace", "mount", "socket"}
        os.kill(process.pid, signal.SIGUSR1)
        process.wait_until("the log", lambda: served.refused_calls() == served.refused_calls_expected)
        lines = [line for line in served.log() if line["event"] == "seccomp.refused"]
        assert {line["level"] for line in lines} == {"error"}
        with served.agent_socket() as agent:
            assert outcome(agent, question()) == ("ALLOW", "ok")
        refused = 'remit_seccomp_refused_total{call="ptrace"} 1.0'
        assert refused in served.http("/metrics")[1]
        assert served.stop() == 0


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


@pytest.mark.parametrize(("mode", "wanted"), [("on", "2"), ("off", "0")])
def test_every_thread_is_confined(served: Served, mode: str, wanted: str) -> None:
    """`Seccomp: 2` (proc(5)) for all threads, those of grpcio and of the doors as well; `off` confines none."""
    served.settings["process"]["seccomp"] = mode
    process = served.start_ready()
    found = [mode for thread in pathlib.Path(f"/proc/{process.pid}/task").iterdir() for mode in _modes(thread)]
    assert len(found) > 5
    assert found == [wanted] * len(found)


def _modes(thread: pathlib.Path) -> list[str]:
    """The seccomp mode of a thread, if it is still there."""
    try:
        lines = (thread / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [line.split()[1] for line in lines if line.startswith("Seccomp:")]


def test_policies_are_published_under_the_filter(served: Served) -> None:
    """The compiler child starts, compiles and is put in force while the sidecar is confined."""
    served.start_ready()
    served.policy.write_text(PERMIT + '@id("more") permit (principal, action == Action::"write", resource);\n')
    answer = served.reload()
    assert (list(answer.problems), answer.generation) == ([], 2)
