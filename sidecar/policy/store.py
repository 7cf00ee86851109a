"""Compiled generations on disk: immutable files, and a manifest whose rename puts one in force.

    manifest.json               the generation in force and the two before it
    generation-0000000007.mdb   a base: keys "image" (fastpath/image.pxd) and "basis" (basis.py)
    delta-0000000009.mdb        what was edited since the base was compiled: key "delta"
    edits-9f86d081884c7d65.json edits that stand over the files (edits.py)

All files but the manifest are never written again; folder.py says what else may lie there. A publish that dies at any
moment leaves the old generation with its edits or the new one with its edits in force, never neither; what it left
lying about is removed by the next writer. Nothing damaged is ever read: the manifest carries its own digest, and that
of each file, which is checked before LMDB sees the file.
"""

import contextlib
import filecmp
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import msgspec

from fastpath.table import Generation
from sidecar.errors import PolicyError, RuleTableError, SidecarError
from sidecar.files import UnusableFile, read_text
from sidecar.policy.compilers import STOPS, Compilers, Work, remove
from sidecar.policy.draft import Draft, base_draft, delta_draft, settings_of
from sidecar.policy.edits import Edit, account, merged, not_of, read_edits, same_content, since
from sidecar.policy.folder import Busy, Folder, cause
from sidecar.policy.jobs import BaseFile, Change
from sidecar.policy.manifest import FILE, MANIFEST, MANIFEST_BYTES_MAX, Manifest, number_of
from sidecar.policy.parse import unheard
from sidecar.policy.source import PolicySource, SourceTexts
from sidecar.policy.worker import COMPILE_S, MEMORY_BYTES_MAX

WAIT_S = 30
"""How long an edit waits for another writer."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish, an edit or a compaction came to."""

    manifest: Manifest
    standing: int = 0
    """Edits that stand over the files."""
    unneeded: Sequence[Edit] = ()
    """Removals of what the files no longer hold, forgotten with this publish."""
    edits: Sequence[Edit] = ()
    """Of an edit: what it came to."""
    compiled: str = ""
    """Of an edit: why files and edits were compiled together; empty when it cost the change."""

    @property
    def forgotten(self) -> list[str]:
        """Titles of the removals that were forgotten, without those that were asked for just now."""
        own = {edit.key for edit in self.edits}
        return [edit.title for edit in self.unneeded if edit.key not in own]


class GenerationStore:
    """A folder of generations. Reading needs no lock; one process at a time may publish."""

    def __init__(self, directory: str | os.PathLike[str], *, stays: bool = False) -> None:
        """Open or make the folder and remove what an interrupted publish left.

        `stays` is for who edits again and again: the compiler of edits and the base stay open until `close`. Raises
        PolicyError when the folder cannot be used, or lies on a remote file system (row DB-17).
        """
        self.directory = os.fspath(directory)
        self._stays = stays
        self._compilers = Compilers(stays=stays)
        self._held: Generation | None = None
        self._folding: threading.Thread | None = None
        self.compaction_problem = ""
        """Why the last compaction in the background was refused; empty after one that was not."""
        with self._failing("used"):
            self._folder = Folder(self.directory)
            # A reader of a clean store takes no lock, so it is never in the way of a publish.
            if self._folder.leftovers(self._kept()):
                self._clean_up()

    def _clean_up(self) -> None:
        """Remove what is left over; a writer that is at work cleans up after itself."""
        try:
            with contextlib.suppress(Busy), self._folder.locked():
                self._folder.clean(self._kept())
        except OSError:
            # What was published can be served from a store that cannot be written; a publish says what is wrong.
            if not os.path.lexists(self._folder.at(MANIFEST)):
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the compiler that stays and a compaction in progress, and let go of the base. May be called again."""
        folding, self._folding = self._folding, None
        if folding is not None:
            self._compilers.stop()
            folding.join()
        self._compilers.close()
        self._hold(None)

    @property
    def volatile(self) -> str:
        """Kind of the file system when it forgets all at power off, or empty."""
        return self._folder.volatile

    # ------------------------------------------------------------ reading

    def current(self) -> Manifest | None:
        """The manifest of the generation in force, or None before the first publish; RuleTableError if damaged."""
        path = self._folder.at(MANIFEST)
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
        for name in sorted(manifest.files()):
            if not FILE.fullmatch(name):
                raise RuleTableError(f"`{path}` names the file `{name}`, which is no generation; publish again")
        return manifest

    def open_current(self, *, strict: bool = True) -> Generation:
        """The generation in force, verified; the caller closes it. RuleTableError if there is none or it is damaged."""
        return self._open(Draft(self._in_force()), strict=strict)

    def edits(self) -> list[Edit]:
        """The edits that stand over the files, by what they are of. RuleTableError when they cannot be read."""
        manifest = self.current()
        return [] if manifest is None else self._standing(manifest)

    def _in_force(self) -> Manifest:
        manifest = self.current()
        if manifest is None:
            raise RuleTableError(f"`{self.directory}` holds no generation; publish policies first")
        return manifest

    def _standing(self, manifest: Manifest) -> list[Edit]:
        return merged(read_edits(self.directory, manifest.edits), read_edits(self.directory, manifest.pending))

    def _open(self, draft: Draft, *, strict: bool = True) -> Generation:
        stored = draft.manifest.stored
        return Generation.open(
            self._place(draft, stored.file),
            generation=stored.generation,
            digest=stored.digest,
            size=stored.size,
            file_digest=stored.file_digest,
            file_size=stored.file_size,
            strict=strict,
            delta=None if stored.delta is None else stored.delta.at(self._place(draft, stored.delta.file)),
        )

    def _place(self, draft: Draft, name: str) -> str:
        return draft.places.get(name, self._folder.at(name))

    # ------------------------------------------------------------ publishing

    def publish(
        self,
        source: PolicySource,
        *,
        compile_s: int = COMPILE_S,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        progress: Callable[[str], object] = unheard,
    ) -> Manifest:
        """Compile `source` in a child and put it in force, under the edits that stand over the files.

        Equal content keeps the generation that is. When this returns, the manifest and all it names are durable. Raises
        PolicyError, and changes nothing, when the source is refused, the compiler dies, another process publishes for
        longer than WAIT_S, or the disk fails; when it fails only after the commit, the error says that the new
        generation was published. `progress` is told what the compiler does.
        """
        return self.publish_files(source, Work(compile_s, memory_bytes_max, progress)).manifest

    def publish_files(self, source: PolicySource, work: Work, *, drop_edits: bool = False) -> Published:
        """The same, told in full. `drop_edits` forgets the edits and publishes the files alone."""
        with self._writing():
            texts = source.read()
            before = self._current_or_none()
            edits = [] if drop_edits else self._to_carry(before)
            if before is not None and not drop_edits and self._is_made_of(before, texts, source):
                # Whoever put it in force may have died before the folder was durable.
                self._folder.sync()
                return Published(before, len(edits))
            return self._compile(source, msgspec.structs.replace(texts, edits=edits), before, work)

    def edit(self, change: Change, source: PolicySource, work: Work, by: str = "") -> Published:
        """Put a change of single policies, links or entities in force, as a delta that costs the change.

        When this returns, the edits and the generation that holds them are durable; a power cut before leaves both as
        they were. Where a delta cannot hold them (Published.compiled says why), files and edits are compiled together,
        for which the files must be those of the generation in force. Raises PolicyError, and changes nothing, as
        `publish` does, and RuleTableError when there is nothing to edit. `by` is who asks for it, by default
        the account of this process.
        """
        with self._writing():
            before = self._in_force()
            standing, pending = self._standing(before), read_edits(self.directory, before.pending)
            path = self._folder.temporary(".mdb")
            base = self._base_file(Draft(before))
            result = self._compilers.delta(base, pending, change, path, source, work)
            now = int(time.time())
            made = [msgspec.structs.replace(one, by=by or account(), at_unix_s=now) for one in result.edits]
            if same_content(merged(standing, made), standing):
                remove(path)
                self._folder.sync()
                return Published(before, len(standing), edits=made)
            pending = not_of(merged(pending, made), result.unneeded)
            why = result.too_large or _too_many(pending, source)
            if why:
                remove(path)
                texts = self._same_texts(source, before, why)
                texts = msgspec.structs.replace(texts, edits=merged(standing, made))
                return replace(self._compile(source, texts, before, work), edits=made, compiled=why)
            draft = delta_draft(before, self._next_number(before), path, result, pending)
            manifest = self._put(draft, source, before)
            if self._stays and 2 * len(pending) > source.paths.delta_edits:
                self._fold(source, work)
            return Published(manifest, len(self._standing(manifest)), edits=made)

    def compact(self, source: PolicySource, work: Work) -> Published:
        """Compile the files and the edits over them into a new base; what is edited meanwhile carries over.

        Others may edit while the compiler works. The files must be those of the generation in force. A compaction of
        ours in the background is waited for: it is no other process. Raises as `edit` does, and PolicyError when
        something else was published meanwhile.
        """
        self.wait_for_compaction()
        return self._compact(source, work)

    def _compact(self, source: PolicySource, work: Work) -> Published:
        with self._failing("written"), self._folder.folding(WAIT_S) as folder:
            before = self._in_force()
            standing, pending = self._standing(before), read_edits(self.directory, before.pending)
            if not pending and before.delta is None:
                return Published(before, len(standing))
            texts = self._same_texts(source, before, "the files and the edits are to be compiled together")
            texts = msgspec.structs.replace(texts, edits=standing)
            path = os.path.join(folder, "base.mdb")
            result = self._compilers.base(path, source, texts, work)
            draft = base_draft(before, self._next_number(before), path, result, texts, source)
            over = os.path.join(folder, "delta.mdb")
            # What is done as the one writer is short: the base is verified before, here and in the compiler of edits.
            with self._open(draft), self._compilers.another() as editor:
                self._compilers.delta(self._base_file(draft), [], Change(), over, source, work, by=editor)
                os.unlink(over)
                with self._writing():
                    now = self._in_force()
                    if (now.file, now.edits) != (before.file, before.edits):
                        raise PolicyError("something else was published meanwhile, so nothing was compacted")
                    draft = base_draft(now, self._next_number(now), path, result, texts, source)
                    carried = since(read_edits(self.directory, now.pending), pending)
                    if carried:
                        base = self._base_file(draft)
                        made = self._compilers.delta(base, carried, Change(), over, source, work, by=editor)
                        if made.too_large:
                            raise PolicyError(f"{made.too_large}, so nothing was compacted; try again")
                        draft = draft.with_delta(over, made, not_of(carried, made.unneeded))
                    manifest = self._put(draft, source, now)
                    self._compilers.adopt(editor)
            return Published(manifest, len(self._standing(manifest)), result.unneeded)

    def _fold(self, source: PolicySource, work: Work) -> None:
        """Compact in the background: a delta that is half full would have to compile the set before long."""
        if self._folding is not None and self._folding.is_alive():
            return

        def fold() -> None:
            try:
                self._compact(source, work)
                self.compaction_problem = ""
            except SidecarError as error:
                # The delta goes on growing; the edit that it cannot hold compiles the set, or says why it cannot.
                self.compaction_problem = str(error)

        self._folding = threading.Thread(target=fold, name="compaction")
        self._folding.start()

    def wait_for_compaction(self) -> None:
        """Return when no compaction is going on in the background."""
        folding = self._folding  # `close` forgets it while we wait
        if folding is not None:
            folding.join()

    def stop(self) -> None:
        """End a publish in progress and refuse the next ones: a stop need not wait for the compiler. Thread-safe."""
        self._compilers.stop()

    # ------------------------------------------------------------ what a publish starts from

    def _current_or_none(self) -> Manifest | None:
        """The manifest in force; a damaged one counts as none, since publishing is how it is mended."""
        try:
            return self.current()
        except RuleTableError:
            return None

    def _to_carry(self, before: Manifest | None) -> list[Edit]:
        """The edits that a publish keeps. PolicyError when there may be some that cannot be read."""
        try:
            if before is not None:
                return self._standing(before)
        except RuleTableError as error:
            raise PolicyError(str(error)) from None
        if any(name.startswith("edits-") for name in os.listdir(self.directory)):
            raise PolicyError(
                f"`{self._folder.at(MANIFEST)}` is damaged, so it is not known which edits stand over the files; put it"
                " back, or forget all edits with remit policy edits --drop"
            )
        return []

    def _is_made_of(self, before: Manifest, texts: SourceTexts, source: PolicySource) -> bool:
        """Whether the generation in force is what compiling `texts` under its edits would make again."""
        if before.built_from != texts.digests() or before.settings != settings_of(source):
            return False
        try:
            self._hold(self._open(Draft(before)))
        except RuleTableError:
            return False  # what cannot be read serves nobody; publishing is how it is mended
        return True

    def _same_texts(self, source: PolicySource, before: Manifest, why: str) -> SourceTexts:
        """The texts of the files; PolicyError when they are no longer those of the generation in force."""
        texts = source.read()
        if before.built_from != texts.digests():
            raise PolicyError(
                f"{why}, but the policy files are no longer those of generation {before.generation};"
                " run remit policy publish first"
            )
        return texts

    def _next_number(self, before: Manifest | None) -> int:
        """One more than every number that ever was in force or on disk."""
        numbers = map(number_of, os.listdir(self.directory))
        return max([0, *numbers, *([before.generation] if before else [])]) + 1

    def _compile(self, source: PolicySource, texts: SourceTexts, before: Manifest | None, work: Work) -> Published:
        """Compile files and edits and put them in force."""
        path = self._folder.temporary(".mdb")
        result = self._compilers.base(path, source, texts, work)
        draft = base_draft(before, self._next_number(before), path, result, texts, source)
        if before is not None and draft.is_like(before) and self._is_same_file(path, before):
            os.unlink(path)
            draft = draft.as_renewed(before)
        manifest = self._put(draft, source, before)
        return Published(manifest, len(self._standing(manifest)), result.unneeded)

    def _base_file(self, draft: Draft) -> BaseFile:
        one = draft.manifest
        named = (one.digest, one.size, one.file_digest, one.file_size)
        return BaseFile(self._place(draft, one.file), one.generation, *named)

    # ------------------------------------------------------------ putting it in force

    def _put(self, draft: Draft, source: PolicySource, before: Manifest | None) -> Manifest:
        """Verify a draft and put it in force; one that changes nothing is only made durable."""
        if draft.manifest == before:
            self._folder.sync()
            return before
        opened = self._verified(draft)
        try:
            draft = draft.counted(opened)
            if draft.manifest.report.policies == 0 and not source.paths.allow_empty:
                raise PolicyError(
                    "there would be no policy, which would deny every call; set `allow_empty` if that is meant"
                )
            for named, raw in draft.edits:
                self._folder.write(named.file, raw)
            for name, path in draft.places.items():
                os.rename(path, self._folder.at(name))
            self._folder.sync()
            self._commit(draft.manifest)
        except BaseException:
            opened.close()
            raise
        self._hold(opened)
        with contextlib.suppress(OSError):
            self._folder.clean(self._kept())  # the next writer removes what cannot be removed now
        return draft.manifest

    def _verified(self, draft: Draft) -> Generation:
        """Refuse to put in force what no reader would open."""
        try:
            return self._open(draft)
        except RuleTableError as error:
            raise PolicyError(f"the compiled generation does not verify: {error}") from error

    def _commit(self, manifest: Manifest) -> None:
        """INVARIANT (commit point): the generation in force and its edits change by this rename and by nothing else.

        Raises OSError when nothing has changed, PolicyError when a power cut could undo the change.
        """
        self._folder.write(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        try:
            self._folder.sync()
        except OSError as error:
            raise PolicyError(
                f"generation {manifest.generation} was published, but a power cut could undo it: {cause(error)};"
                " publish again"
            ) from None

    def _hold(self, opened: Generation | None) -> None:
        """Keep what was verified last open, for who stays: over the same base the next one is verified quickly."""
        if not self._stays and opened is not None:
            opened.close()
            return
        held, self._held = self._held, opened
        if held is not None:
            held.close()

    # ------------------------------------------------------------ housekeeping

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the one writer, in a clean folder; others are waited for: our own compaction writes when it is ready."""
        with self._failing("written"), self._folder.locked(WAIT_S, lambda: self._compilers.stopping):
            self._folder.clean(self._kept())
            yield

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """What goes wrong with the folder is a PolicyError that says so."""
        try:
            yield
        except Busy:
            text = f"another process is publishing into `{self.directory}`; try again"
            raise PolicyError(STOPS if self._compilers.stopping else text) from None
        except OSError as error:
            raise PolicyError(f"`{self.directory}` cannot be {what}: {cause(error)}") from None

    def _kept(self) -> set[str] | None:
        """Files that the manifest names. A damaged one keeps all; before the first none can be in force."""
        try:
            manifest = self.current()
        except RuleTableError:
            return None
        return set() if manifest is None else manifest.files()

    def _is_same_file(self, path: str, before: Manifest) -> bool:
        """Whether the file in force has the same bytes; it may be open here, so it is compared without LMDB."""
        try:
            return filecmp.cmp(path, self._folder.at(before.file), shallow=False)
        except OSError:
            # What cannot be read serves nobody; publishing is how it is mended.
            return False


def _too_many(pending: Sequence[Edit], source: PolicySource) -> str:
    """Why a delta cannot hold these edits, or empty."""
    most = source.paths.delta_edits
    return f"a delta holds at most {most} edits" if len(pending) > most else ""
