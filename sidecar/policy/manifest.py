"""The manifest of a store: the generation in force, the two before it, and the edits that stand over the files."""

import hashlib
import re
from dataclasses import dataclass

import msgspec

from sidecar.policy.compile import CompileReport
from sidecar.policy.edits import EditsFile

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 << 20
FILE = re.compile(r"(?:generation|delta)-(\d{10})\.mdb|edits-[0-9a-f]{16}\.json")
"""What a manifest may name."""


def base_name(number: int) -> str:
    return f"generation-{number:010d}.mdb"


def delta_name(number: int) -> str:
    return f"delta-{number:010d}.mdb"


def number_of(name: str) -> int:
    """The number of a base or a delta by the name of its file; 0 for other files."""
    match = FILE.fullmatch(name)
    return int(match.group(1) or 0) if match else 0


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """A delta and where it lies, as Generation.open takes it."""

    path: str
    digest: str
    size: int
    file_digest: str
    file_size: int


class StoredDelta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of a delta; as Stored."""

    file: str
    digest: str
    size: int
    file_digest: str
    file_size: int

    def at(self, path: str) -> DeltaFile:
        return DeltaFile(path, self.digest, self.size, self.file_digest, self.file_size)


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One generation's files in the folder, and what they hold. Digests are "sha256:<hex>", sizes bytes."""

    generation: int
    file: str
    digest: str
    """SHA-256 of the image."""
    size: int
    """Of the image."""
    file_digest: str
    """SHA-256 of the whole file, compared before LMDB maps it."""
    file_size: int
    delta: StoredDelta | None = None
    """What was edited since the image was compiled, laid over it."""

    def files(self) -> set[str]:
        return {self.file} if self.delta is None else {self.file, self.delta.file}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The generation in force."""

    generation: int
    """Grows with every publish and is never used again."""
    file: str
    """This and the next four, and `delta`: see Stored."""
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
    manifest_digest: str
    """SHA-256 of this manifest as compact JSON with an empty `manifest_digest`."""
    delta: StoredDelta | None = None
    edits: EditsFile | None = None
    """Edits that the image holds beside the files."""
    pending: EditsFile | None = None
    """Edits made since, which the delta holds."""
    settings: str = ""
    """SHA-256 of all else that the image depends on: limits, and who compiled it."""

    @property
    def stored(self) -> Stored:
        named = (self.file, self.digest, self.size, self.file_digest, self.file_size)
        return Stored(self.generation, *named, self.delta)

    @property
    def digest_in_force(self) -> str:
        """By which answers and records name these rules: the image's, or that of image and delta together."""
        if self.delta is None:
            return self.digest
        return "sha256:" + hashlib.sha256((self.digest + self.delta.digest).encode()).hexdigest()

    def files(self) -> set[str]:
        """All files that it names, those of the generations before included."""
        stored = set().union(*(one.files() for one in (self.stored, *self.previous)))
        return stored | {one.file for one in (self.edits, self.pending) if one is not None}

    def sealed(self) -> "Manifest":
        """The same with its digest."""
        bare = msgspec.json.encode(msgspec.structs.replace(self, manifest_digest=""))
        return msgspec.structs.replace(self, manifest_digest="sha256:" + hashlib.sha256(bare).hexdigest())
