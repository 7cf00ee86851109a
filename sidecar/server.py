"""One sidecar from start to stop: rights first, then sockets, then policies; signals until the end.

The doors open before there is anything to decide by: until then they answer ERROR, which callers can tell from DENY.
"""

import logging
import os
import queue
import signal
import threading
from types import FrameType

from sidecar import logs
from sidecar.config import Config
from sidecar.hardening import harden
from sidecar.listening import Listening
from sidecar.logs import event
from sidecar.notify import ServiceManager
from sidecar.runtime import Runtime
from sidecar.seccomp import confine

log = logging.getLogger("remit.server")


def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT. SIGHUP reloads; a second SIGTERM ends calls in progress.

    Raises ConfigError, JournalError or PolicyError when the sidecar cannot start.
    """
    harden(config.process)
    logs.setup(config.log.level, config.log.format)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _: FrameType | None) -> None:
        signals.put(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    manager = ServiceManager(os.environ)
    ended = threading.Event()
    runtime = Runtime(config)
    listening = Listening(runtime)
    try:
        runtime.start()
        listening.open()
        # From here on nothing is opened, bound or started that the filter does not know.
        confine(config.process.seccomp)
        _tell(manager, runtime, ended)
        # Compiling can take long; signals must not wait for it.
        threading.Thread(target=runtime.load, name="load", daemon=True).start()
        _until_stopped(signals, runtime)
        manager.put_stopping()
        runtime.rules.stop()
        _drain(signals, listening, config.limits.grace_s)
    finally:
        ended.set()
        runtime.close()
        event(log, "stopped")


def _tell(manager: ServiceManager, runtime: Runtime, ended: threading.Event) -> None:
    """Keep the service manager informed: of readiness, of reloads, and that the watcher still looks."""
    runtime.on_ready(lambda _: manager.put_ready(runtime.not_ready))
    runtime.on_reload(manager.put_reloading)
    if manager.watchdog_s:
        watch = (lambda: runtime.looks, ended)
        threading.Thread(target=manager.watch, args=watch, name="watchdog", daemon=True).start()


def _until_stopped(signals: "queue.SimpleQueue[int]", runtime: Runtime) -> None:
    wanted = threading.Event()
    threading.Thread(target=_reload, args=(wanted, runtime), name="reload", daemon=True).start()
    while (number := signals.get()) == signal.SIGHUP:
        wanted.set()
    event(log, "stopping", signal=signal.Signals(number).name)


def _reload(wanted: threading.Event, runtime: Runtime) -> None:
    """One reload at a time; however many were asked for meanwhile, one more sees what they all wanted."""
    while wanted.wait():
        wanted.clear()
        runtime.reload()


def _drain(signals: "queue.SimpleQueue[int]", listening: Listening, grace_s: float) -> None:
    """Let calls in progress end; another signal ends them at once."""
    hurry = threading.Event()

    def watch() -> None:
        signals.get()
        hurry.set()

    threading.Thread(target=watch, name="hurry-signal", daemon=True).start()
    listening.close(grace_s, hurry)
