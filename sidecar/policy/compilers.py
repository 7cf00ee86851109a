"""The compilers of a store: one per base, and one of deltas that may stay; `stop` ends them all."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sidecar.errors import PolicyError
from sidecar.policy.edits import Edit
from sidecar.policy.jobs import BaseFile, Change, CompileJob, EditJob, Result
from sidecar.policy.parse import unheard
from sidecar.policy.source import PolicySource, SourceTexts
from sidecar.policy.worker import COMPILE_S, MEMORY_BYTES_MAX, Compiler

STOPS = "the process stops; nothing is published any more"


@dataclass(frozen=True, slots=True)
class Work:
    """How a store compiles: bounds in seconds and bytes, and who is told what the compiler does."""

    compile_s: int = COMPILE_S
    memory_bytes_max: int = MEMORY_BYTES_MAX
    progress: Callable[[str], object] = unheard


class Compilers:
    """Processes of one store. For one thread at a time each, except `stop`."""

    def __init__(self, *, stays: bool) -> None:
        """`stays` keeps the compiler of deltas, which has the base open, for the next one."""
        self._stays = stays
        self._lock = threading.Lock()
        self._all: set[Compiler] = set()
        self._editor: Compiler | None = None
        self._stopping = False

    def base(self, path: str, source: PolicySource, texts: SourceTexts, work: Work) -> Result:
        """Compile a base into the file `path`. PolicyError, and no file, when it is refused."""
        job = CompileJob(texts, path, source.paths.allow_empty, True, work.memory_bytes_max, work.compile_s)
        with self.another(stays=False) as compiler:
            return self._run(compiler, job, path, work)

    def delta(
        self,
        base: BaseFile,
        pending: Sequence[Edit],
        change: Change,
        path: str,
        source: PolicySource,
        work: Work,
        by: Compiler | None = None,
    ) -> Result:
        """Compile a delta into the file `path`, which is not there when Result.too_large. PolicyError as `base`."""
        limits = source.paths.limits
        job = EditJob(base, list(pending), change, path, limits, work.memory_bytes_max, work.compile_s)
        if by is not None:
            return self._run(by, job, path, work)
        if self._stays:
            if self._editor is None:
                self._editor = self._begun(Compiler(stays=True))
            return self._run(self._editor, job, path, work)
        with self.another(stays=False) as compiler:
            return self._run(compiler, job, path, work)

    @contextlib.contextmanager
    def another(self, *, stays: bool = True) -> Iterator[Compiler]:
        """A compiler of its own, which ends with the block unless it is adopted in it."""
        compiler = self._begun(Compiler(stays=stays))
        try:
            yield compiler
        finally:
            if compiler is not self._editor:
                self._end(compiler)

    def adopt(self, compiler: Compiler) -> None:
        """Let `compiler` make the next deltas, if one is to stay."""
        if not self._stays:
            return
        before, self._editor = self._editor, compiler
        if before is not None:
            self._end(before)

    @property
    def stopping(self) -> bool:
        """Whether what comes is refused."""
        return self._stopping

    def stop(self) -> None:
        """End all that compile, and refuse what comes after. Thread-safe."""
        with self._lock:
            self._stopping = True
            for compiler in self._all:
                compiler.kill()

    def close(self) -> None:
        """End the compiler that stays."""
        editor, self._editor = self._editor, None
        if editor is not None:
            self._end(editor)

    def _run(self, compiler: Compiler, job: CompileJob | EditJob, path: str, work: Work) -> Result:
        try:
            return compiler.run(job, compile_s=work.compile_s, progress=work.progress)
        except PolicyError:
            # On a full disk the half that was written takes the room that a smaller set would need.
            remove(path)
            if self._stopping:
                raise PolicyError(STOPS) from None
            raise

    def _begun(self, compiler: Compiler) -> Compiler:
        with self._lock:
            self._all.add(compiler)
            if self._stopping:
                compiler.kill()
        return compiler

    def _end(self, compiler: Compiler) -> None:
        with self._lock:
            self._all.discard(compiler)
        compiler.close()


def remove(path: str) -> None:
    """Remove a file, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)
