"""What reaches the main thread of a sidecar: signals, and words of its own threads.

Python runs a signal's handler in the main thread, and a signal that the kernel gave to another thread does not wake the
main thread from a lock or a queue. It does write to the wakeup descriptor (`signal.set_wakeup_fd`), whichever thread
got it; so that is what the main thread waits at.
"""

import os
import signal


class Signals:
    """Takes over `numbers` for the life of the process; any thread may `put` and `get`. For the main thread to make."""

    def __init__(self, numbers: tuple[signal.Signals, ...]) -> None:
        self._not_ours = signal.valid_signals() - set(numbers)
        # Both ends stay open until the process ends: a signal can come at any time.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def put(self, word: int) -> None:
        """A word from 0 to 255 that is none of the signals."""
        os.write(self._write, bytes([word]))

    def get(self) -> int:
        """Wait for the next signal or word, in the order in which they came."""
        # A signal that somebody else handles in Python is written as well.
        while (number := os.read(self._read, 1)[0]) in self._not_ours:
            pass
        return number
