"""The sidecar under a service manager: what it says while it starts, reloads and stops."""

import pathlib
import socket
import tempfile
from collections.abc import Iterator

import pytest

from tests.fix_serve import PERMIT, TIMEOUT_S, Served, made_sidecar


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
