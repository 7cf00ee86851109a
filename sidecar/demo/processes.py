"""Child processes of the demo: each with a log of its own, each ended by the one who started it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from sidecar.errors import ConfigError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
ABORT_TIMEOUT_S = 5.0
LAST_WORDS = 8000
"""Characters of a log that are shown of a process that failed."""
POLL_S = 0.02


def wait_for(what: str, ready: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
    """Return as soon as `ready()` holds; ConfigError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise ConfigError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(POLL_S)


class Process:
    """One child, started at once; use as a context manager or call `stop`."""

    def __init__(self, name: str, command: list[str], folder: Path, *, uid: int | None = None) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                user=uid,
                group=uid,
                extra_groups=[] if uid else None,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def running(self) -> bool:
        return self._child.poll() is None

    def wait_until(self, what: str, ready: Callable[[], bool]) -> None:
        """Like `wait_for`, but a child that ended is told at once, with its last words. On failure it is ended."""

        def ready_or_dead() -> bool:
            if not self.running():
                words = self.log.read_text(errors="replace")[-LAST_WORDS:]
                raise ConfigError(f"{self.name} ended with status {self._child.returncode} before {what}:\n{words}")
            return ready()

        try:
            wait_for(f"{self.name}: {what}", ready_or_dead)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """SIGKILL: what a crash looks like to everybody else."""
        self._child.kill()
        self._child.wait()

    def stop(self) -> int:
        """SIGTERM, then wait. One that does not end in time is ended by SIGABRT, so that a sidecar says where it hangs,
        and its last words are printed. The exit status."""
        if self.running():
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._abort()
        return self._child.returncode

    def _abort(self) -> None:
        self._child.send_signal(signal.SIGABRT)
        try:
            self._child.wait(ABORT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        words = self.log.read_text(errors="replace")[-LAST_WORDS:]
        print(f"{self.name} did not end within {STOP_TIMEOUT_S:g} s of SIGTERM:\n{words}", file=sys.stderr)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def module(name: str, *arguments: str) -> list[str]:
    """The command line of one of our modules under this interpreter."""
    return [sys.executable, "-m", name, *arguments]
