"""One sidecar from start to stop: rights first, then sockets, then policies; signals until the end.

The doors open before there is anything to decide by: until then they answer ERROR, which callers can tell from DENY.
"""

import faulthandler
import logging
import os
import signal
import threading

from sidecar import logs
from sidecar.config import Config
from sidecar.errors import ConfigError
from sidecar.handover import Handover, TakeOver
from sidecar.hardening import harden
from sidecar.inherited import from_service_manager
from sidecar.listening import Listening
from sidecar.logs import event
from sidecar.notify import ServiceManager
from sidecar.runtime import Runtime
from sidecar.seccomp import confine
from sidecar.signals import Signals

log = logging.getLogger("remit.server")


HANDED_OVER = 0  # no signal: another process is ready to take over
PREPARE_S = 120.0
LEAVE_GRACE_S = 2.0  # callers of the next process wait meanwhile, so what still arrives after this is left to a retry
LEAVE_NOTICE_S = 0.1


def serve(config: Config, *, take_over: bool = False) -> None:
    """Run until SIGTERM or SIGINT, or until another process took over. SIGHUP reloads; a second SIGTERM ends calls.

    With `take_over` the doors and the journal come from the sidecar that runs (sidecar/handover.py). Raises
    ConfigError, JournalError or PolicyError when the sidecar cannot start.
    """
    harden(config.process)
    logs.setup(config.log.level, config.log.format)
    # A crash, and the SIGABRT of a service manager's watchdog, leave in the log where every thread was.
    faulthandler.enable()
    signals = Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    manager = ServiceManager(os.environ)
    ended = threading.Event()
    inherited = from_service_manager(os.environ)
    before = _predecessor(config) if take_over else None
    runtime = Runtime(config, deferred=before is not None)
    listening = Listening(runtime, before.sockets if before is not None else inherited)
    handover: Handover | None = None
    try:
        _open(runtime, listening, before)
        if listening.offers():
            handover = Handover(config.control.socket, listening.offers, lambda: signals.put(HANDED_OVER))
        # From here on nothing is opened, bound or started that the filter does not know.
        confine(config.process.seccomp)
        _tell(manager, runtime, ended)
        if before is None:
            # Compiling can take long; signals must not wait for it.
            threading.Thread(target=runtime.load, name="load", daemon=True).start()
        wanted = _until_stopped(signals, runtime)
        manager.put_stopping()
        runtime.rules.stop()
        if wanted == HANDED_OVER and handover is not None:
            _hand_over(handover, runtime, listening)
        _drain(signals, listening, config.limits.grace_s)
    finally:
        ended.set()
        listening.close(0)
        runtime.close()
        if handover is not None:
            handover.close()
        event(log, "stopped")


def _predecessor(config: Config) -> TakeOver:
    if config.listeners.listener != "native":
        raise ConfigError("`listeners.listener`: grpcio cannot take doors over; set it to native, or restart instead")
    return TakeOver(config.control.socket)


def _open(runtime: Runtime, listening: Listening, before: TakeOver | None) -> None:
    """Open everything; after another process in the order that keeps its callers waiting for the shortest time."""
    runtime.start()
    if before is None:
        listening.prepare()
        listening.open_doors()
    else:
        runtime.prepare(PREPARE_S)
        listening.prepare()
        runtime.open_journal(before.journal())
        listening.open_doors()
        before.wait_gone()
    listening.open_rest()


def _hand_over(handover: Handover, runtime: Runtime, listening: Listening) -> None:
    """Give doors and journal to the process that is ready for them."""
    event(log, "handover.begun")
    runtime.end_changes()
    runtime.stop_shipping()
    listening.leave_doors(LEAVE_GRACE_S, LEAVE_NOTICE_S)
    runtime.close_authority()
    handover.give(runtime.journal.give())


def _tell(manager: ServiceManager, runtime: Runtime, ended: threading.Event) -> None:
    """Keep the service manager informed: of readiness, of reloads, and that the watcher still looks."""
    runtime.on_ready(lambda _: manager.put_ready(runtime.not_ready))
    runtime.on_reload(manager.put_reloading)
    if manager.watchdog_s:
        watch = (lambda: runtime.looks, ended)
        threading.Thread(target=manager.watch, args=watch, name="watchdog", daemon=True).start()


def _until_stopped(signals: Signals, runtime: Runtime) -> int:
    """The signal that ends us, or HANDED_OVER."""
    wanted = threading.Event()
    threading.Thread(target=_reload, args=(wanted, runtime), name="reload", daemon=True).start()
    while (number := signals.get()) == signal.SIGHUP:
        wanted.set()
    event(log, "stopping", signal=signal.Signals(number).name if number != HANDED_OVER else "handover")
    return number


def _reload(wanted: threading.Event, runtime: Runtime) -> None:
    """One reload at a time; however many were asked for meanwhile, one more sees what they all wanted."""
    while wanted.wait():
        wanted.clear()
        runtime.reload()


def _drain(signals: Signals, listening: Listening, grace_s: float) -> None:
    """Let calls in progress end; another signal ends them at once."""
    hurry = threading.Event()

    def watch() -> None:
        signals.get()
        hurry.set()

    threading.Thread(target=watch, name="hurry-signal", daemon=True).start()
    listening.close(grace_s, hurry)
