"""Compiled generations on disk: one immutable LMDB file each, and a manifest whose rename puts one in force.

    lock                        held (flock) by the one writer
    manifest.json               the generation in force and the two before it
    generation-0000000007.mdb   key "image": the image of fastpath/image.pxd; mode 0444, never written again

A publish that dies at any moment leaves the old generation or the new one in force, never neither; what it left lying
about is removed by the next writer. Nothing damaged is ever read: the manifest carries its own digest, and that of
each file, which is checked before LMDB sees the file.
"""

import contextlib
import errno
import fcntl
import filecmp
import hashlib
import importlib.metadata
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from fastpath.table import Generation
from sidecar.errors import PolicyError, RuleTableError
from sidecar.files import UnusableFile, read_text
from sidecar.policy.child import Result
from sidecar.policy.compile import CompileReport
from sidecar.policy.filesystem import REMOTE, VOLATILE, filesystem_magic
from sidecar.policy.image import VERSION
from sidecar.policy.source import PolicySource, SourceTexts
from sidecar.policy.worker import COMPILE_S, MEMORY_BYTES_MAX, compile_in_child

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 << 20
LOCK = "lock"
KEEP_BEFORE = 2
"""Generations before the one in force that stay on disk."""
_FILE = re.compile(r"generation-(\d{10})\.mdb")
_TEMPORARY = ".new-"
_ENGINE = f"cedarpy {importlib.metadata.version('cedarpy')}"


class _Busy(Exception):
    """Another process holds the lock."""


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One generation's file: its name in the folder, and what it holds. Digests are "sha256:<hex>", sizes bytes."""

    generation: int
    file: str
    digest: str
    """SHA-256 of the image, by which answers and records name their rules."""
    size: int
    """Of the image."""
    file_digest: str
    """SHA-256 of the whole file, compared before LMDB maps it."""
    file_size: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The generation in force."""

    generation: int
    """Grows with every publish and is never used again."""
    file: str
    """This and the next four: see Stored."""
    digest: str
    size: int
    file_digest: str
    file_size: int
    image_version: int
    engine: str
    """What parsed the policies, as "cedarpy 4.12.2"."""
    built_from: dict[str, str]
    """SHA-256 of each source text by its name."""
    published_unix_s: int
    report: CompileReport
    previous: list[Stored]
    """The generations before, newest first."""
    manifest_digest: str = ""
    """SHA-256 of this manifest as compact JSON with an empty `manifest_digest`."""

    @property
    def stored(self) -> Stored:
        return Stored(self.generation, self.file, self.digest, self.size, self.file_digest, self.file_size)

    def sealed(self) -> "Manifest":
        """The same with its digest."""
        bare = msgspec.json.encode(msgspec.structs.replace(self, manifest_digest=""))
        return msgspec.structs.replace(self, manifest_digest="sha256:" + hashlib.sha256(bare).hexdigest())


class GenerationStore:
    """A folder of generations. Reading needs no lock; one process at a time may publish."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Open or make the folder (mode 0700) and remove what an interrupted publish left.

        Raises PolicyError when the folder cannot be used, or lies on a remote file system (row DB-17).
        """
        self.directory = os.fspath(directory)
        self._lock = threading.Lock()
        self._compiler: subprocess.Popen[bytes] | None = None
        self._stopping = False
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self.volatile = VOLATILE.get(self._local(), "")
            """Kind of the file system when it forgets all at power off, or empty: what is published is not durable."""
            # A reader of a clean store takes no lock, so it is never in the way of a publish.
            if self._leftovers():
                self._clean_up()
        except OSError as error:
            raise PolicyError(f"`{self.directory}` cannot be used: {_cause(error)}") from None

    def _clean_up(self) -> None:
        try:
            with self._locked():
                self._clean()
        except _Busy:
            pass  # a writer is at work; it cleans up after itself
        except OSError:
            # What was published can be served from a store that cannot be written; a publish says what is wrong.
            if not os.path.lexists(os.path.join(self.directory, MANIFEST)):
                raise

    def _local(self) -> int:
        """The kind of the folder's file system; PolicyError for a remote one."""
        magic = filesystem_magic(self.directory)
        if magic in REMOTE:
            raise PolicyError(
                f"`{self.directory}` lies on a remote file system ({REMOTE[magic]}), which cannot hold rule tables;"
                " name a local folder"
            )
        return magic

    # ------------------------------------------------------------ reading

    def current(self) -> Manifest | None:
        """The manifest of the generation in force, or None before the first publish; RuleTableError if damaged."""
        path = os.path.join(self.directory, MANIFEST)
        if not os.path.lexists(path):
            return None
        try:
            manifest = msgspec.json.decode(read_text(path, MANIFEST_BYTES_MAX), type=Manifest)
        except UnusableFile as error:
            raise RuleTableError(f"`{path}` {error}; publish again") from None
        except msgspec.DecodeError as error:
            raise RuleTableError(f"`{path}` is damaged: {str(error).lower()}; publish again") from None
        if manifest.sealed() != manifest:
            raise RuleTableError(f"`{path}` is damaged: it is not what its digest says; publish again")
        for stored in (manifest.stored, *manifest.previous):
            if not _FILE.fullmatch(stored.file):
                raise RuleTableError(f"`{path}` names the file `{stored.file}`, which is no generation; publish again")
        return manifest

    def open_current(self, *, strict: bool = True) -> Generation:
        """The generation in force, verified; the caller closes it. RuleTableError if there is none or it is damaged."""
        manifest = self.current()
        if manifest is None:
            raise RuleTableError(f"`{self.directory}` holds no generation; publish policies first")
        return self._open(manifest.stored, strict=strict)

    def _open(self, stored: Stored, *, strict: bool) -> Generation:
        return Generation.open(
            os.path.join(self.directory, stored.file),
            generation=stored.generation,
            digest=stored.digest,
            size=stored.size,
            file_digest=stored.file_digest,
            file_size=stored.file_size,
            strict=strict,
        )

    # ------------------------------------------------------------ publishing

    def publish(
        self,
        source: PolicySource,
        *,
        compile_s: int = COMPILE_S,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        progress: Callable[[str], object] | None = None,
    ) -> Manifest:
        """Compile `source` in a child and put it in force; equal content keeps the generation that is.

        When this returns, the manifest and all it names are durable. Raises PolicyError, and changes nothing, when the
        source is refused, the compiler dies, another process publishes, or the disk fails; when it fails only after the
        commit, the error says that the new generation was published. `progress` is told what the compiler
        does.
        """
        try:
            with self._locked():
                self._clean()
                return self._publish(source, compile_s, memory_bytes_max, progress)
        except _Busy:
            raise PolicyError(f"another process is publishing into `{self.directory}`; try again") from None
        except OSError as error:
            raise PolicyError(f"`{self.directory}` cannot be written: {_cause(error)}") from None

    def stop(self) -> None:
        """End a publish in progress and refuse the next ones: a stop need not wait for the compiler. Thread-safe."""
        with self._lock:
            self._stopping = True
            if self._compiler is not None:
                self._compiler.kill()

    def _started(self, compiler: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._compiler = compiler
            if self._stopping:
                compiler.kill()

    def _compile(
        self,
        texts: SourceTexts,
        output: str,
        allow_empty: bool,
        compile_s: int,
        memory: int,
        progress: Callable[[str], object] | None,
    ) -> Result:
        try:
            return compile_in_child(
                texts,
                output=output,
                allow_empty=allow_empty,
                compile_s=compile_s,
                memory_bytes_max=memory,
                started=self._started,
                progress=progress,
            )
        except PolicyError:
            # On a full disk the half that was written takes the room that a smaller set would need.
            with contextlib.suppress(OSError):
                os.unlink(output)
            if self._stopping:
                raise PolicyError("the process stops; nothing is published any more") from None
            raise
        finally:
            with self._lock:
                self._compiler = None

    def _publish(
        self,
        source: PolicySource,
        compile_s: int,
        memory_bytes_max: int,
        progress: Callable[[str], object] | None,
    ) -> Manifest:
        texts = source.read()
        before = self._current_or_none()
        # A name of its own: the compiler of a publisher that was killed may live on and write under its own.
        temporary = os.path.join(self.directory, f"{_TEMPORARY}{secrets.token_hex(8)}.mdb")
        result = self._compile(texts, temporary, source.paths.allow_empty, compile_s, memory_bytes_max, progress)
        manifest = self._manifest(result, texts, before)
        self._verify(msgspec.structs.replace(manifest.stored, file=os.path.basename(temporary)))
        if before is not None and self._same(temporary, before):
            os.unlink(temporary)
            # Whoever put it in force may have died before the folder was durable.
            self._sync_folder()
            return before
        os.rename(temporary, os.path.join(self.directory, manifest.file))
        self._sync_folder()
        self._commit(manifest)
        with contextlib.suppress(OSError):
            self._clean()  # the next writer removes what cannot be removed now
        return manifest

    def _manifest(self, result: Result, texts: SourceTexts, before: Manifest | None) -> Manifest:
        """What puts the compiled `result` in force after `before`."""
        if result.report is None:
            raise PolicyError("the compiler gave no report; publish again")
        number = self._next_number(before)
        return Manifest(
            generation=number,
            file=f"generation-{number:010d}.mdb",
            digest=result.digest,
            size=result.size,
            file_digest=result.file_digest,
            file_size=result.file_size,
            image_version=VERSION,
            engine=_ENGINE,
            built_from=texts.digests(),
            published_unix_s=int(time.time()),
            report=result.report,
            previous=[] if before is None else [before.stored, *before.previous][:KEEP_BEFORE],
        ).sealed()

    def _current_or_none(self) -> Manifest | None:
        """The manifest in force; a damaged one counts as none, since publishing is how it is mended."""
        try:
            return self.current()
        except RuleTableError:
            return None

    def _next_number(self, before: Manifest | None) -> int:
        """One more than every number that ever was in force or on disk."""
        numbers = [int(match.group(1)) for match in map(_FILE.fullmatch, os.listdir(self.directory)) if match]
        return max([0, *numbers, *([before.generation] if before else [])]) + 1

    def _verify(self, stored: Stored) -> None:
        """Refuse to put in force what no reader would open."""
        try:
            self._open(stored, strict=True).close()
        except RuleTableError as error:
            raise PolicyError(f"the compiled generation does not verify: {error}") from error

    def _same(self, temporary: str, before: Manifest) -> bool:
        """Whether the file in force has the same bytes; it may be open here, so it is compared without LMDB."""
        try:
            return filecmp.cmp(temporary, os.path.join(self.directory, before.file), shallow=False)
        except OSError:
            # What cannot be read serves nobody; publishing is how it is mended.
            return False

    def _commit(self, manifest: Manifest) -> None:
        """INVARIANT (commit point): the generation in force changes by this rename and by nothing else.

        Raises OSError when nothing has changed, PolicyError when a power cut could undo the change.
        """
        path = os.path.join(self.directory, MANIFEST)
        temporary = os.path.join(self.directory, _TEMPORARY + MANIFEST)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        try:
            self._sync_folder()
        except OSError as error:
            raise PolicyError(
                f"generation {manifest.generation} was published, but a power cut could undo it: {_cause(error)};"
                " publish again"
            ) from None

    def _sync_folder(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------ housekeeping

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the one writer; _Busy when another process is. The lock ends with the process."""
        descriptor = os.open(os.path.join(self.directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _Busy from None
            yield
        finally:
            os.close(descriptor)

    def _leftovers(self) -> list[str]:
        """Temporary files and generations that no manifest names. A damaged manifest leaves all generations."""
        names = os.listdir(self.directory)
        found = [name for name in names if name.startswith(_TEMPORARY)]
        with contextlib.suppress(RuleTableError):
            manifest = self.current()
            kept = set() if manifest is None else {manifest.file, *(stored.file for stored in manifest.previous)}
            # Before the first manifest a generation cannot be in force either.
            found += [name for name in names if _FILE.fullmatch(name) and name not in kept]
        return found

    def _clean(self) -> None:
        """Remove what interrupted publishes left. Call with the lock held: a publish in progress has leftovers too."""
        for name in self._leftovers():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, name))


def _cause(error: OSError) -> str:
    code = errno.errorcode.get(error.errno or 0, "")
    return f"{(error.strerror or str(error)).lower()}{f' ({code})' if code else ''}"
