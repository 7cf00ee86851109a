"""The two sides of an upgrade by themselves: who asks, who is silent, who does not let go."""

import os
import pathlib
import resource
import socket
from collections.abc import Iterator

import pytest

from sidecar import handover
from sidecar.demo.processes import wait_for
from sidecar.errors import ConfigError
from sidecar.handover import Handover, Offer, TakeOver


class Old:
    """A sidecar with one door that is ready to be taken over from."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.control = str(folder / "sock")
        self.door = socket.create_server(("127.0.0.1", 0))
        self.asked = 0
        self.handover = Handover(self.control, lambda: [Offer("door", self.door.fileno(), -1)], self._wanted)

    def _wanted(self) -> None:
        self.asked += 1


@pytest.fixture
def old(tmp_path: pathlib.Path) -> Iterator[Old]:
    made = Old(tmp_path)
    yield made
    made.handover.close()
    made.door.close()


def test_a_moment_without_descriptors_ends_no_handover(old: Old, caplog: pytest.LogCaptureFixture) -> None:
    """SY-08: when accept finds no descriptor who asks waits, and is served when there is one again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        free = os.dup(asking.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            asking.connect(old.control + handover.SUFFIX)
            wait_for("the failure to be told", lambda: any("handover.lost" in one.message for one in caplog.records))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        told, fds, _, _ = socket.recv_fds(asking, 4096, 2)
        assert b"door" in told
        for fd in fds:
            os.close(fd)


def test_a_silent_asker_keeps_nobody_out(old: Old) -> None:
    """SY-08: the newest who asks is served; the silent one is dropped, and is ready for nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(old.control + handover.SUFFIX)
        assert b"door" in silent.recv(4096)
        assert silent.recv(4096) == b"all"
        TakeOver(old.control)
        assert silent.recv(4096) == b""
    assert old.asked == 0


def test_a_journal_that_is_kept_is_said(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """SY-08: an old process that does not end in time has not died: its journal is left alone."""
    monkeypatch.setattr(handover, "GIVEN_S", 0.2)
    after = TakeOver(old.control)
    with pytest.raises(ConfigError, match="does not let go of its journal"):
        after.journal()
    assert old.asked == 1


def test_a_journal_whose_owner_died_is_free(old: Old) -> None:
    after = TakeOver(old.control)
    old.handover.close()
    assert after.journal() == -1
