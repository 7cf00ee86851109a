"""The compiler as a process of its own: `python -m sidecar.policy.child`, a job on stdin, its result on stdout.

cedarpy parses by recursion and can be made to overflow its stack, take memory or run long. Here it dies alone: address
space and processor time are capped, no core is written, and the parent (worker.py) reads a death as a refusal.
"""

import contextlib
import gc
import os
import resource
import sys
from collections.abc import Callable

import lmdb
import msgspec

from fastpath.lmdb_file import digest_of
from fastpath.table import IMAGE_KEY
from sidecar.errors import PolicyError
from sidecar.policy.compile import Compiled, CompileReport, compile_image
from sidecar.policy.cores import available, end_with_parent
from sidecar.policy.edits import Edit, Overlay
from sidecar.policy.links import parse_links
from sidecar.policy.parse import unheard
from sidecar.policy.source import SourceTexts

LMDB_FORMAT = 0
"""LMDB 0.9 writes format v1, which every released library reads."""
MAP_SLACK_BYTES = 1 << 20


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One compilation. Without `output` nothing is written."""

    texts: SourceTexts
    output: str
    """Path of the LMDB file to write; it must not exist."""
    allow_empty: bool
    columns: bool
    memory_bytes_max: int
    """Address space of the child, in bytes."""
    cpu_s_max: int
    """Processor time of the child, in seconds."""
    progress_fd: int = -1
    """Where to write what is being done, a line each; -1 for nowhere."""

    def tell(self, text: str) -> None:
        """Report progress. Nobody may be left to read it, which is no reason to stop."""
        if self.progress_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self.progress_fd, text.encode() + b"\n")


class Result(msgspec.Struct, frozen=True):
    """What became of a job: an error, or size in bytes and SHA-256 of the image and of its file, and the report."""

    error: str = ""
    size: int = 0
    digest: str = ""
    file_size: int = 0
    file_digest: str = ""
    report: CompileReport | None = None
    unneeded: list[Edit] = []
    """Removals of what the files do not hold."""


def _confine(job: Job) -> None:
    """Let this process end with its parent, and cap it. Limits that are lower already stay."""
    end_with_parent()
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: job.memory_bytes_max,
        resource.RLIMIT_CPU: job.cpu_s_max,
    }
    for what, limit in wanted.items():
        _, hard = resource.getrlimit(what)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(what, (limit, limit))


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
    links = parse_links(texts.links.text, texts.links.name, texts.limits) if texts.links else []
    compiled = compile_image(
        texts.policies,
        entities=texts.entities.text if texts.entities else (),
        entities_name=texts.entities.name if texts.entities else "entities",
        links=links,
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


def write_file(path: str, image: bytes) -> tuple[int, str]:
    """Write the LMDB file of a generation: one committed transaction, synchronised, mode 0444; its size and SHA-256."""
    size = len(image) + MAP_SLACK_BYTES
    env = lmdb.open(path, map_size=size, subdir=False, lock=False, mode=0o600, lib_version=LMDB_FORMAT)
    try:
        with env.begin(write=True) as txn:
            txn.put(IMAGE_KEY, image)
        env.sync(True)
    finally:
        env.close()
    with open(path, "rb", buffering=0) as file:
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, digest_of(file)


def run(job: Job) -> Result:
    """Compile and write. A refusal is a result, not an exception."""
    try:
        overlay = Overlay(job.texts.edits)
        compiled = compile_texts(
            job.texts,
            allow_empty=job.allow_empty,
            columns=job.columns,
            processes=available(),
            overlay=overlay,
            progress=job.tell,
        )
        file_size, file_digest = 0, ""
        if job.output:
            job.tell(f"writing {len(compiled.image)} bytes")
            file_size, file_digest = write_file(job.output, compiled.image)
    except PolicyError as error:
        return Result(error=str(error))
    except MemoryError:
        return Result(error=f"the compiler needs more than {job.memory_bytes_max} bytes of memory")
    except (OSError, lmdb.Error) as error:
        return Result(error=f"`{job.output}` cannot be written: {str(error).lower()}")
    return Result(
        size=len(compiled.image),
        digest=compiled.digest,
        file_size=file_size,
        file_digest=file_digest,
        report=compiled.report,
        unneeded=overlay.unneeded(),
    )


def main() -> None:
    # Nothing here is cyclic and the process ends with its job: collections would walk every policy again and again.
    gc.disable()
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    _confine(job)
    sys.stdout.buffer.write(msgspec.json.encode(run(job)))


if __name__ == "__main__":
    main()
