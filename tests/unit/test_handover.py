"""The two sides of an upgrade by themselves: who asks, who is silent, who does not let go."""

import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fastpath.journal import Journal
from sidecar import handover
from sidecar.errors import ConfigError, JournalError
from sidecar.handover import Handover, Offer, TakeOver
from sidecar.runtime import _open_journal


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


class Short:
    """A listening socket whose next accept finds no descriptor."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self.failed = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.failed:
            self.failed = 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._real.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_moment_without_descriptors_ends_no_handover(old: Old) -> None:
    """SY-08: when accept finds no descriptor who asks waits, and is served when there is one again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        first.connect(old.control + handover.SUFFIX)
        assert b"door" in first.recv(4096)
        short = Short(old.handover._socket)
        old.handover._socket = short  # type: ignore[assignment]
    assert list(TakeOver(old.control).sockets._sockets) == ["door"]
    assert short.failed


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


def test_who_is_ready_as_the_old_one_ends_is_not_left_waiting(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old process ends between the word of the new one and its look at it: that hears of the end."""
    is_ready = old.handover._is_ready

    def slow(asking: socket.socket) -> bool:
        ready = is_ready(asking)
        old.handover.close()
        return ready

    monkeypatch.setattr(old.handover, "_is_ready", slow)
    assert TakeOver(old.control).journal() == -1
    assert old.asked == 0


def test_a_journal_whose_owner_died_is_free(old: Old) -> None:
    after = TakeOver(old.control)
    old.handover.close()
    assert after.journal() == -1


def test_the_journal_of_a_process_that_dies_is_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel closes what it had one by one: the connection that tells of its end can go before its lock."""
    journal = Journal(str(tmp_path / "journal"), segment_bytes=4096, cap_bytes=1 << 20, deferred=True)
    (tmp_path / "journal").mkdir(mode=0o700)
    looks: list[float] = []
    with open(tmp_path / "journal" / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def waited(seconds: float) -> None:
            looks.append(seconds)
            held.close()

        monkeypatch.setattr("sidecar.runtime.time.sleep", waited)
        _open_journal(journal, -1, 60.0)
    assert len(looks) == 1
    with journal, pytest.raises(JournalError, match="another process has the journal"):
        _open_journal(Journal(str(tmp_path / "journal"), segment_bytes=4096, cap_bytes=1 << 20, deferred=True))
