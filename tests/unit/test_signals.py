"""Signals reach the main thread whichever thread the kernel gives them to."""

import signal
import subprocess
import sys

import pytest

ALL = """
import signal, sys, threading
from sidecar.signals import Signals

signals = Signals((signal.SIGTERM, signal.SIGHUP))
signal.signal(signal.SIGUSR1, lambda *_: None)

def send():
    # The main thread waits by now or will: either way nothing but this signal can wake it.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        signal.pthread_kill(threading.get_ident(), number)
    signals.put(0)

threading.Thread(target=send).start()
print([signals.get() for _ in range(3)])
"""


def test_a_signal_that_another_thread_got_wakes_the_main_thread() -> None:
    """In order, with the words of our own threads, and without what somebody else handles."""
    done = subprocess.run([sys.executable, "-c", ALL], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str([signal.SIGHUP.value, signal.SIGTERM.value, 0])


@pytest.mark.parametrize("count", [1, 100_000])
def test_more_signals_than_anybody_reads_hang_nothing(count: int) -> None:
    """The pipe holds 65,536 of them; whoever sends more is not waited for."""
    script = f"""
import os, signal
from sidecar.signals import Signals
signals = Signals((signal.SIGHUP,))
for _ in range({count}):
    os.kill(os.getpid(), signal.SIGHUP)
print(signals.get())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == (str(signal.SIGHUP.value), "")
