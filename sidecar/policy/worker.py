"""The parent's side of the compiler child: start it, wait, and read its death as a refusal."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from sidecar.errors import PolicyError
from sidecar.policy.child import Job, Result
from sidecar.policy.source import SourceTexts

COMPILE_S = 120
MEMORY_BYTES_MAX = 8 << 30
_ROOT = str(Path(__file__).parents[2])


def compile_in_child(
    texts: SourceTexts,
    *,
    output: str = "",
    allow_empty: bool = False,
    columns: bool = True,
    compile_s: int = COMPILE_S,
    memory_bytes_max: int = MEMORY_BYTES_MAX,
    started: Callable[[subprocess.Popen[bytes]], None] | None = None,
    progress: Callable[[str], object] | None = None,
) -> Result:
    """Compile `texts` in a disposable process, into the LMDB file `output` when it is named; `started` gets it.

    Raises PolicyError with the child's refusal, or "the compiler died on .." when the child crashed, was killed or took
    more than `compile_s` seconds or `memory_bytes_max` bytes. `progress` is told by a thread what the child does.
    """
    with _listening(progress) as told:
        job = Job(texts, output, allow_empty, columns, memory_bytes_max, compile_s, told)
        return _run(job, compile_s, started)


@contextlib.contextmanager
def _listening(progress: Callable[[str], object] | None) -> Iterator[int]:
    """The descriptor that the child may write its progress to; -1 when nobody listens."""
    if progress is None:
        yield -1
        return
    reading, writing = os.pipe()

    def listen() -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                progress(line.rstrip("\n"))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield writing
    finally:
        # The child and what it forked are gone: with our end closed the listener reads the end.
        os.close(writing)
        listener.join(1)


def _run(job: Job, compile_s: int, started: Callable[[subprocess.Popen[bytes]], None] | None) -> Result:
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar.policy.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            pass_fds=[job.progress_fd] if job.progress_fd >= 0 else [],
        )
    except OSError as error:
        raise PolicyError(f"the compiler cannot be started: {(error.strerror or str(error)).lower()}") from None
    with process:
        if started is not None:
            started(process)
        try:
            answer, said = process.communicate(msgspec.json.encode(job), timeout=compile_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise PolicyError(f"the compiler died on its limit of {compile_s} s; make the policies smaller") from None
    if process.returncode != 0:
        raise PolicyError(f"the compiler died on {_death(process.returncode, said)}")
    try:
        result = msgspec.json.decode(answer, type=Result)
    except msgspec.DecodeError as error:
        raise PolicyError(f"the compiler gave no result that can be read: {str(error).lower()}; try again") from None
    if result.error:
        raise PolicyError(result.error)
    return result


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
