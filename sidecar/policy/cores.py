"""The compiler's work on both cores: chunks of text go to forked processes, results come back in order.

Only for a process without threads, as the compiler child is. What comes back never depends on how many processes there
were. A process that dies takes the whole compilation with it, as it would have without the fork.
"""

import ctypes
import itertools
import os
import signal
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TypeVar

from sidecar.errors import PolicyError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
BATCH = 32
"""Chunks per process and round: what bounds the results that wait to be taken."""
_NUMBER = struct.Struct("<I")
_HEAD = struct.Struct("<iQ")
"""Number and size of a result."""


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Let this process be sent `by` when its `parent` ends, also when it has already: nobody would take its results."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    # The kernel tells of an end that comes, not of one that came before it was asked to.
    if os.getppid() != parent:
        os.kill(os.getpid(), by)


def available() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(work: Callable[[T], bytes], items: Iterable[T], processes: int) -> Iterator[bytes]:
    """`work` of each item, in order. It must not raise. Items are large: each round of them forks anew."""
    if processes < 2:
        yield from map(work, items)
        return
    rest = iter(items)
    while taken := list(itertools.islice(rest, BATCH * processes)):
        if len(taken) == 1:
            yield work(taken[0])
        else:
            yield from _round(work, taken, processes)


def _round(work: Callable[[T], bytes], items: Sequence[T], processes: int) -> Iterator[bytes]:
    # Whoever is free takes the next number from a pipe, so a core that others use as well holds nobody up.
    numbers, offered = os.pipe()
    os.write(offered, b"".join(map(_NUMBER.pack, range(len(items)))))
    os.close(offered)
    started = [_start(work, items, numbers) for _ in range(1, processes)]
    try:
        own = {number: work(items[number]) for number in _taken(numbers)}
    finally:
        os.close(numbers)
        deaths = [_end(pid) for pid, _ in started]
    for death in filter(None, deaths):
        raise PolicyError(f"the compiler died on {death}; the policies are too large or too deep")
    shares = [_Share(file) for _, file in started]
    for number in range(len(items)):
        if number in own:
            yield own.pop(number)
        else:
            yield next(share for share in shares if share.number == number).take()


def _taken(numbers: int) -> Iterator[int]:
    while raw := os.read(numbers, _NUMBER.size):
        yield _NUMBER.unpack(raw)[0]


def _start(work: Callable[[T], bytes], items: Sequence[T], numbers: int) -> tuple[int, IO[bytes]]:
    # A file and not a pipe: the process never waits for us, who have a share of our own to do first.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when its results are taken
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid, file
    code = 1
    try:
        end_with_parent(parent)
        for number in _taken(numbers):
            result = work(items[number])
            file.write(_HEAD.pack(number, len(result)) + result)
        file.flush()
        code = 0
    finally:
        os._exit(code)


def _end(pid: int) -> str:
    """Wait for a process; how it died, "" when it did not."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else signal.Signals(-code).name if code < 0 else f"exit status {code}"


class _Share:
    """The results of one process, in the order in which it took their numbers, which is ascending."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        file.seek(0)
        self._advance()

    def _advance(self) -> None:
        head = self._file.read(_HEAD.size)
        self.number, self._size = _HEAD.unpack(head) if head else (-1, 0)
        if not head:
            self._file.close()

    def take(self) -> bytes:
        """The result of `number`; then `number` is the next."""
        result = self._file.read(self._size)
        self._advance()
        return result
