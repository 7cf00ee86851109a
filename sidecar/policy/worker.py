"""The parent's side of the compiler child: start it, wait, and read its death as a refusal."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
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
) -> Result:
    """Compile `texts` in a disposable process, into the LMDB file `output` when it is named; `started` gets it.

    Raises PolicyError with the child's refusal, or "the compiler died on .." when the child crashed, was killed or took
    more than `compile_s` seconds or `memory_bytes_max` bytes.
    """
    job = Job(texts, output, allow_empty, columns, memory_bytes_max, compile_s)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar.policy.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
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
    if code < 0:
        known = {one.value: one.name for one in signal.Signals}
        return f"{known.get(-code, f'signal {-code}')}; the policies are too large or too deep"
    last = said.decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit status {code}: {last}"
