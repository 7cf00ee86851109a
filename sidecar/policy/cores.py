"""The compiler's work on both cores: chunks of text go to forked processes, results come back in order.

Only for a process without threads, as the compiler child is. What comes back never depends on how many processes there
were. A process that dies takes the whole compilation with it, as it would have without the fork.
"""

import ctypes
import os
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TypeVar

from sidecar.errors import PolicyError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
BATCH = 32
"""Chunks per process and round: what bounds the results that wait to be taken."""
_SIZE = struct.Struct("<Q")


def end_with_parent() -> None:
    """Let this process be killed when its parent ends: nobody would take its results."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def available() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(work: Callable[[T], bytes], items: Sequence[T], processes: int) -> Iterator[bytes]:
    """`work` of each item, in order. It must not raise. Items are few and large: each round forks anew."""
    if processes < 2 or len(items) < 2:
        yield from map(work, items)
        return
    for start in range(0, len(items), BATCH * processes):
        yield from _round(work, items[start : start + BATCH * processes], processes)


def _round(work: Callable[[T], bytes], items: Sequence[T], processes: int) -> Iterator[bytes]:
    started = [_start(work, items[share::processes]) for share in range(1, processes)]
    try:
        own = [work(item) for item in items[::processes]]
    finally:
        deaths = [_end(pid) for pid, _ in started]
    for death in filter(None, deaths):
        raise PolicyError(f"the compiler died on {death}; the policies are too large or too deep")
    shares = [iter(own), *(_results(file) for _, file in started)]
    for number in range(len(items)):
        yield next(shares[number % processes])


def _start(work: Callable[[T], bytes], items: Sequence[T]) -> tuple[int, IO[bytes]]:
    # A file and not a pipe: the process never waits for us, who have a share of our own to do first.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when its results are taken
    pid = os.fork()
    if pid:
        return pid, file
    code = 1
    try:
        end_with_parent()
        for item in items:
            result = work(item)
            file.write(_SIZE.pack(len(result)) + result)
        file.flush()
        code = 0
    finally:
        os._exit(code)


def _end(pid: int) -> str:
    """Wait for a process; how it died, "" when it did not."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _results(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while head := file.read(_SIZE.size):
            yield file.read(_SIZE.unpack(head)[0])
