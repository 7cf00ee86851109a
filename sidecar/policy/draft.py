"""A generation on its way into force: what its manifest will say, and where its files lie until they are renamed."""

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from fastpath.table import Generation
from sidecar.errors import PolicyError
from sidecar.policy.compile import CompileReport
from sidecar.policy.edits import Edit, EditsFile, encoded, without
from sidecar.policy.image import VERSION
from sidecar.policy.jobs import Result
from sidecar.policy.manifest import Manifest, Stored, StoredDelta, base_name, delta_name
from sidecar.policy.source import PolicySource, SourceTexts
from sidecar.version import VERSION as RELEASE

KEEP_BEFORE = 2
"""Generations before the one in force that stay on disk."""
ENGINE = f"cedarpy {importlib.metadata.version('cedarpy')}"


@dataclass(frozen=True, slots=True)
class Draft:
    """A manifest, the paths of files that have not their names yet, and the edits files that are to be written."""

    manifest: Manifest
    places: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[tuple[EditsFile, bytes], ...] = ()

    def with_delta(self, path: str, result: Result, pending: Sequence[Edit]) -> "Draft":
        """The same with a delta of the edits that are `pending`; without any it needs none."""
        if not pending:
            return self
        name = delta_name(self.manifest.generation)
        delta = StoredDelta(name, result.digest, result.size, result.file_digest, result.file_size)
        named, raw = encoded(pending)
        manifest = msgspec.structs.replace(self.manifest, delta=delta, pending=named, report=_needed(result.report))
        return Draft(manifest.sealed(), {**self.places, name: path}, (*self.edits, (named, raw)))

    def is_like(self, before: Manifest) -> bool:
        """Whether it is a base alone that decides as `before` does, under the same edits."""
        new = self.manifest
        same = (new.digest, new.file_digest, new.edits) == (before.digest, before.file_digest, before.edits)
        return same and before.delta is None and before.pending is None

    def as_renewed(self, before: Manifest) -> "Draft":
        """What `before` held, under its number, made of the files as they are now."""
        new = self.manifest
        return Draft(msgspec.structs.replace(before, built_from=new.built_from, settings=new.settings).sealed())

    def counted(self, opened: Generation) -> "Draft":
        """The same with what is told by the table itself, which a delta does not count."""
        report = msgspec.structs.replace(
            self.manifest.report,
            policies=opened.policy_count,
            entities=opened.entity_count,
            columns=tuple(opened.columns_read),
            extras=tuple(sorted(opened.extras_read)),
        )
        return Draft(msgspec.structs.replace(self.manifest, report=report).sealed(), self.places, self.edits)


def base_draft(
    before: Manifest | None, number: int, path: str, result: Result, texts: SourceTexts, source: PolicySource
) -> Draft:
    """What puts the base compiled to `path` in force after `before`."""
    folded = without(texts.edits, result.unneeded)
    named = encoded(folded) if folded else None
    manifest = Manifest(
        generation=number,
        file=base_name(number),
        digest=result.digest,
        size=result.size,
        file_digest=result.file_digest,
        file_size=result.file_size,
        image_version=VERSION,
        engine=ENGINE,
        built_from=texts.digests(),
        published_unix_s=int(time.time()),
        report=_needed(result.report),
        previous=_previous(before),
        manifest_digest="",
        edits=named[0] if named else None,
        settings=settings_of(source),
    )
    return Draft(manifest.sealed(), {manifest.file: path}, (named,) if named else ())


def delta_draft(before: Manifest, number: int, path: str, result: Result, pending: Sequence[Edit]) -> Draft:
    """What puts a delta over the base of `before` in force; the base alone when nothing is pending any more."""
    manifest = msgspec.structs.replace(
        before,
        generation=number,
        delta=None,
        pending=None,
        report=_needed(result.report),
        published_unix_s=int(time.time()),
        previous=_previous(before),
    )
    return Draft(manifest.sealed()).with_delta(path, result, pending)


def _previous(before: Manifest | None) -> list[Stored]:
    return [] if before is None else [before.stored, *before.previous][:KEEP_BEFORE]


def _needed(report: CompileReport | None) -> CompileReport:
    if report is None:
        raise PolicyError("the compiler gave no report; publish again")
    return report


def settings_of(source: PolicySource) -> str:
    """SHA-256 of what an image depends on beside texts and edits."""
    parts = [source.paths.limits, source.paths.allow_empty, ENGINE, RELEASE, VERSION]
    return "sha256:" + hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
