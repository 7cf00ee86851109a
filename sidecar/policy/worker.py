"""The parent's side of the compiler's process: start it, give it jobs, and read its death as a refusal."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

import msgspec

from sidecar.errors import PolicyError
from sidecar.policy.jobs import FRAME, JOB, PROGRESS, CompileJob, Job, Result, framed
from sidecar.policy.parse import unheard
from sidecar.policy.source import SourceTexts

COMPILE_S = 120
MEMORY_BYTES_MAX = 8 << 30
READ_BYTES = 1 << 16
WRITE_BYTES = 1 << 20
_ROOT = str(Path(__file__).parents[2])


class Compiler:
    """A process that compiles one job at a time, and ends with this one.

    One that `stays` keeps what it has read for the next job; it is started again when it died. Without that every job
    has a process of its own. For one thread at a time, except `kill`.
    """

    def __init__(self, *, stays: bool = False) -> None:
        self._stays = stays
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Job, *, compile_s: int = COMPILE_S, progress: Callable[[str], object] = unheard) -> Result:
        """What became of the job; `progress` is told what the process does.

        Raises PolicyError with the refusal, or "the compiler died on .." when the process crashed, was killed or took
        more than `compile_s` seconds.
        """
        process = self._running()
        deadline = time.monotonic() + compile_s
        try:
            answer = _exchange(process, framed(JOB, msgspec.json.encode(job)), deadline, progress)
        except TimeoutError:
            self.close(now=True)
            raise PolicyError(f"the compiler died on its limit of {compile_s} s; make the policies smaller") from None
        except BaseException:
            self.close(now=True)
            raise
        if answer is None:
            code, said = process.wait(), self._last_words()
            self.close()
            raise PolicyError(f"the compiler died on {_death(code, said)}")
        if not self._stays:
            self.close()
        return _result(answer)

    def kill(self) -> None:
        """End the job in progress and refuse the next ones. Thread-safe."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def close(self, *, now: bool = False) -> None:
        """Let the process end and wait for it; `now` kills it in its work. The next job starts another."""
        with self._lock:
            process, self._process = self._process, None
            said, self._said = self._said, None
        if process is None:
            return
        if now:
            process.kill()
        with process, contextlib.suppress(BrokenPipeError):
            pass  # closes its pipes, which ends it, and waits
        if said is not None:
            said.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it died between two jobs
        with self._lock:
            if self._process is None:
                self._said = open(os.memfd_create("compiler"), "w+b", buffering=0)  # noqa: SIM115 - closed with it
                self._process = _started(self._said, stays=self._stays)
            if self._stopped:
                self._process.kill()
            return self._process

    def _last_words(self) -> bytes:
        if self._said is None:
            return b""
        self._said.seek(0)
        return self._said.read()


def _started(said: IO[bytes], *, stays: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sidecar.policy.child", *(["--stay"] if stays else [])]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=_environment())
    except OSError as error:
        raise PolicyError(f"the compiler cannot be started: {(error.strerror or str(error)).lower()}") from None


def _exchange(
    process: subprocess.Popen[bytes], message: bytes, deadline: float, progress: Callable[[str], object]
) -> bytes | None:
    """The answer to `message`; None when the process ended without one, TimeoutError when it took too long."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError("the compiler has pipes")
    to, source = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(to, False)
    left, got = memoryview(message), bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(to, selectors.EVENT_WRITE)
        ready.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select(max(0.0, deadline - time.monotonic())):
                if key.fd == to:
                    left = _written(to, left)
                    if not left:
                        ready.unregister(to)
                    continue
                read = os.read(source, READ_BYTES)
                if not read:
                    return None
                got += read
                answer = _taken(got, progress)
                if answer is not None:
                    return answer
            if time.monotonic() >= deadline:
                raise TimeoutError


def _written(to: int, left: memoryview) -> memoryview:
    try:
        return left[os.write(to, left[:WRITE_BYTES]) :]
    except BrokenPipeError:
        return left[:0]  # it is dead, as reading will tell


def _taken(got: bytearray, progress: Callable[[str], object]) -> bytes | None:
    """Take whole messages out of what was read: progress is told, an answer is returned."""
    while len(got) >= FRAME.size:
        kind, size = FRAME.unpack_from(got)
        end = FRAME.size + size
        if len(got) < end:
            return None
        message = bytes(got[FRAME.size : end])
        del got[:end]
        if kind != PROGRESS:
            return message
        progress(message.decode(errors="replace"))
    return None


def _result(answer: bytes) -> Result:
    try:
        result = msgspec.json.decode(answer, type=Result)
    except msgspec.DecodeError as error:
        raise PolicyError(f"the compiler gave no result that can be read: {str(error).lower()}; try again") from None
    if result.error:
        raise PolicyError(result.error)
    return result


def compile_in_child(
    texts: SourceTexts,
    *,
    output: str = "",
    allow_empty: bool = False,
    columns: bool = True,
    compile_s: int = COMPILE_S,
    memory_bytes_max: int = MEMORY_BYTES_MAX,
    progress: Callable[[str], object] = unheard,
) -> Result:
    """Compile `texts` in a disposable process, into the LMDB file `output` when it is named.

    Raises PolicyError as Compiler.run does, also when the child takes more than `memory_bytes_max` bytes.
    """
    job = CompileJob(texts, output, allow_empty, columns, memory_bytes_max, compile_s)
    with Compiler() as compiler:
        return compiler.run(job, compile_s=compile_s, progress=progress)


def _environment() -> dict[str, str]:
    """Only what Python needs: the child sees none of the sidecar's secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    paths = [_ROOT, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _death(code: int, said: bytes) -> str:
    if code == -signal.SIGSYS:
        return "SIGSYS: the sidecar's seccomp filter refused it a system call; `process.seccomp: log` shows which"
    if code < 0:
        known = {one.value: one.name for one in signal.Signals}
        return f"{known.get(-code, f'signal {-code}')}; the policies are too large or too deep"
    last = said.decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit status {code}: {last}"
