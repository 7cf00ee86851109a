"""What the compiler's process is asked, what it answers, and how both pass through a pipe."""

import struct
from typing import IO

import msgspec

from sidecar.policy.compile import CompileReport
from sidecar.policy.edits import Edit
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.links import EntityUid, Link
from sidecar.policy.source import SourceTexts

JOB, PROGRESS, DONE = b"j", b"p", b"d"
FRAME = struct.Struct("<cQ")
"""Before every message: what it is, and its bytes."""


class CompileJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="compile"):
    """One compilation. Without `output` nothing is written."""

    texts: SourceTexts
    output: str
    """Path of the LMDB file to write; it must not exist."""
    allow_empty: bool
    columns: bool
    memory_bytes_max: int
    """Address space of the process, in bytes."""
    cpu_s_max: int
    """Processor time of the job, in seconds."""


class BaseFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The compiled file that a delta is laid over, as a manifest names it."""

    path: str
    generation: int
    digest: str
    size: int
    file_digest: str
    file_size: int


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of the set in force. Nothing stands twice in it."""

    policies: list[PolicyText] = []
    """Cedar texts of policies and templates with `@id`."""
    links: list[Link] = []
    entities: list[PolicyText] = []
    """Cedar JSON of one entity or a list."""
    removed: list[str] = []
    """Ids of policies, templates and links."""
    unlinked: list[str] = []
    """Ids of links."""
    entities_removed: list[EntityUid] = []


class EditJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="edit"):
    """One delta: all that was edited since the base was compiled, and a change that is asked for now."""

    base: BaseFile
    pending: list[Edit]
    change: Change
    output: str
    limits: PolicyLimits
    memory_bytes_max: int
    cpu_s_max: int


Job = CompileJob | EditJob


class Result(msgspec.Struct, frozen=True):
    """What became of a job: an error, or bytes and SHA-256 of what was compiled and of its file, and the report."""

    error: str = ""
    size: int = 0
    digest: str = ""
    file_size: int = 0
    file_digest: str = ""
    report: CompileReport | None = None
    unneeded: list[Edit] = []
    """Of a compilation: removals of what the files do not hold."""
    edits: list[Edit] = []
    """Of a delta: what the change comes to."""
    too_large: str = ""
    """Of a delta: why it cannot be one, so that files and edits have to be compiled together."""


def framed(kind: bytes, message: bytes) -> bytes:
    """The message as it passes through a pipe."""
    return FRAME.pack(kind, len(message)) + message


def receive(source: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = source.read(FRAME.size)
    return source.read(FRAME.unpack(head)[1]) if len(head) == FRAME.size else None
