"""The compiler as a process of its own: `python -m sidecar.policy.child [--stay]`, jobs on stdin, results on stdout.

cedarpy parses by recursion and can be made to overflow its stack, take memory or run long. Here it dies alone: address
space and processor time are capped, no core is written, and the parent (worker.py) reads a death as a refusal.
"""

import contextlib
import gc
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable

import msgspec

from fastpath.table import IMAGE_KEY
from sidecar.errors import PolicyError, RuleTableError
from sidecar.policy.basis import BASIS_KEY, Basis
from sidecar.policy.change import Editor
from sidecar.policy.compile import Compiled, compile_image
from sidecar.policy.cores import available, end_with_parent
from sidecar.policy.edits import Overlay
from sidecar.policy.jobs import DONE, PROGRESS, CompileJob, Job, Result, framed, receive
from sidecar.policy.lmdb_writer import write_file
from sidecar.policy.parse import unheard
from sidecar.policy.source import SourceTexts

Tell = Callable[[str], object]


def _confine(job: Job, *, stays: bool) -> None:
    """Let this process end with its parent, and cap it. Limits that are lower already stay."""
    wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: job.memory_bytes_max}
    for what, limit in wanted.items():
        _, hard = resource.getrlimit(what)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
    # Of a process that stays every job has a limit of its own.
    used = math.ceil(time.process_time()) if stays else 0
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = used + job.cpu_s_max
    seconds = seconds if hard == resource.RLIM_INFINITY else min(seconds, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard if stays else seconds))


def _stay_with(parent: int) -> None:
    """End when the parent has ended. The kernel also tells when only the thread that started us has."""

    def told(_signal: int, _frame: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGHUP, told)
    end_with_parent(parent, signal.SIGHUP)


def compile_texts(
    texts: SourceTexts,
    *,
    allow_empty: bool,
    columns: bool = True,
    processes: int = 1,
    overlay: Overlay | None = None,
    progress: Callable[[str], object] = unheard,
) -> Compiled:
    """The image of `texts` under their edits, or under `overlay` that was made of them, in this process.

    An empty policy set denies everything, so it must be asked for.
    """
    compiled = compile_image(
        texts.policies,
        entities=texts.entities.text if texts.entities else (),
        entities_name=texts.entities.name if texts.entities else "entities",
        links=texts.links or (),
        schema=texts.schema,
        overlay=overlay or Overlay(texts.edits),
        columns=columns,
        limits=texts.limits,
        processes=processes,
        progress=progress,
    )
    if compiled.report.policies == 0 and not allow_empty:
        raise PolicyError("there is no policy, which would deny every call; add one, or set `allow_empty`")
    return compiled


def _compile(job: CompileJob, tell: Tell) -> Result:
    overlay = Overlay(job.texts.edits)
    compiled = compile_texts(
        job.texts,
        allow_empty=job.allow_empty,
        columns=job.columns,
        processes=available(),
        overlay=overlay,
        progress=tell,
    )
    file_size, file_digest = 0, ""
    if job.output:
        tell(f"writing {len(compiled.buffer)} bytes")
        basis = Basis(job.texts.schema, job.columns, compiled.templates, compiled.report)
        values: dict[bytes, bytes | bytearray] = {IMAGE_KEY: compiled.buffer, BASIS_KEY: msgspec.json.encode(basis)}
        file_size, file_digest = write_file(job.output, values)
    return Result(
        size=len(compiled.buffer),
        digest=compiled.digest,
        file_size=file_size,
        file_digest=file_digest,
        report=compiled.report,
        unneeded=overlay.unneeded(),
    )


def run(job: Job, editor: Editor, tell: Tell = unheard) -> Result:
    """Compile and write. A refusal is a result, not an exception."""
    try:
        return _compile(job, tell) if isinstance(job, CompileJob) else editor.run(job)
    except (PolicyError, RuleTableError) as error:
        return Result(error=str(error))
    except MemoryError:
        return Result(error=f"the compiler needs more than {job.memory_bytes_max} bytes of memory")
    except OSError as error:
        return Result(error=f"`{job.output}` cannot be written: {str(error).lower()}")


def main(arguments: list[str]) -> None:
    stays = arguments == ["--stay"]
    if stays:
        _stay_with(os.getppid())
    else:
        end_with_parent(os.getppid())
        # Nothing here is cyclic and the process ends with its job: collections would walk every policy again and again.
        gc.disable()
    # What prints by mistake must not pass for an answer.
    editor = Editor()
    with open(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        while (message := receive(sys.stdin.buffer)) is not None:
            job = msgspec.json.decode(message, type=Job)
            _confine(job, stays=stays)
            with contextlib.suppress(BrokenPipeError):  # nobody listens any more, as the next read will tell
                result = run(job, editor, lambda text: answers.write(framed(PROGRESS, text.encode())))
                answers.write(framed(DONE, msgspec.json.encode(result)))


if __name__ == "__main__":
    main(sys.argv[1:])
