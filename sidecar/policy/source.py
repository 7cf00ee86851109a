"""Where policies come from: files and folders, read whole into memory before anything is compiled."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from sidecar.errors import PolicyError
from sidecar.files import UnusableFile, read_text, shown
from sidecar.policy.edits import Edit
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits

SUFFIX = ".cedar"
DELTA_EDITS = 1024
"""Edits that a delta holds before files and edits are compiled together again."""


class SourcePaths(Protocol):
    """What names a policy source: the section `policy` of the configuration, or SourceFiles."""

    @property
    def policies(self) -> Sequence[str]: ...
    @property
    def schema(self) -> str: ...
    @property
    def entities(self) -> str: ...
    @property
    def links(self) -> str: ...
    @property
    def allow_empty(self) -> bool: ...
    @property
    def limits(self) -> PolicyLimits: ...
    @property
    def delta_edits(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """A policy source named by a program. Paths that are empty stand for nothing."""

    policies: Sequence[str]
    schema: str = ""
    entities: str = ""
    links: str = ""
    allow_empty: bool = False
    limits: PolicyLimits = DEFAULT_LIMITS
    delta_edits: int = DELTA_EDITS

    @classmethod
    def in_folder(cls, folder: str | os.PathLike[str]) -> "SourceFiles":
        """A folder laid out as `policies/*.cedar` (or `*.cedar`), `*.cedarschema`, `entities.json`, `links.jsonl`."""
        root = Path(folder)
        nested = root / "policies"
        schemas = sorted(root.glob("*.cedarschema"))
        if len(schemas) > 1:
            raise PolicyError(f"`{root}` holds several schemas: {', '.join(f'`{path.name}`' for path in schemas)}")

        def optional(path: Path) -> str:
            return str(path) if path.exists() else ""

        return cls(
            policies=[str(nested if nested.is_dir() else root)],
            schema=str(schemas[0]) if schemas else "",
            entities=optional(root / "entities.json"),
            links=optional(root / "links.jsonl"),
        )


class SourceTexts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All texts of one publish. Names stand in errors."""

    policies: list[PolicyText]
    schema: str | None = None
    entities: PolicyText | None = None
    links: PolicyText | None = None
    limits: PolicyLimits = DEFAULT_LIMITS
    edits: list[Edit] = []
    """What stands over the files."""

    def digests(self) -> dict[str, str]:
        """SHA-256 of each file's text by its name: what a generation was built from, beside edits."""
        named = [*self.policies, *(text for text in (self.entities, self.links) if text is not None)]
        if self.schema is not None:
            named.append(PolicyText("schema", self.schema))
        return {text.name: "sha256:" + hashlib.sha256(text.text.encode()).hexdigest() for text in named}


class PolicySource:
    """The files of one policy set. Nothing is read before `read`."""

    def __init__(self, paths: SourcePaths) -> None:
        self.paths = paths

    def __str__(self) -> str:
        return ", ".join(str(path) for path in self.paths.policies)

    def read(self) -> SourceTexts:
        """The texts as they are now. PolicyError names the file that is missing, unreadable or no UTF-8 text."""
        paths = self.paths
        limits = paths.limits
        policies = [_read(path, limits.text_bytes_max) for path in policy_files(paths.policies)]
        if not policies and not paths.allow_empty:
            raise PolicyError(f"no `*{SUFFIX}` file in {self}; name one, or set `allow_empty`")
        schema = _read(paths.schema, limits.schema_bytes_max) if paths.schema else None
        return SourceTexts(
            policies=policies,
            schema=None if schema is None else schema.text,
            entities=_read(paths.entities, limits.entities_bytes_max) if paths.entities else None,
            links=_read(paths.links, limits.entities_bytes_max) if paths.links else None,
            limits=limits,
        )


def policy_files(paths: Iterable[str]) -> list[str]:
    """The files that `paths` names: files as they are, folders by their `*.cedar`, sorted."""
    files: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        try:
            names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIX))
        except OSError as error:
            raise PolicyError(f"`{path}` cannot be read: {_cause(error)}") from None
        files += [os.path.join(path, name) for name in names]
    return files


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _read(path: str, bytes_max: int) -> PolicyText:
    try:
        return PolicyText(path, read_text(path, bytes_max))
    except UnusableFile as error:
        raise PolicyError(f"`{shown(path)}` {error}") from None
