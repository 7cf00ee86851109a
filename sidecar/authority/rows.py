"""What the authority store holds, row by row, and how a row looks on disk.

A value is one version byte, the CRC32C of the rest (4 bytes, little-endian), and MessagePack. Ids are text; times are
Unix nanoseconds; 0 of an expiry is never; -1 of a budget is unlimited. Rows hold no row that could hold them, so the
collector of cycles need not look at them (`gc=False`): thousands of them stay in the feed.
"""

import enum
from typing import TypeVar

import msgspec

from fastpath.frames import crc32c
from sidecar.authority.scope import Scope
from sidecar.errors import SidecarError

VERSION = 1
UNLIMITED = -1
HEAD = 5
Row = TypeVar("Row", bound=msgspec.Struct)


class DamagedRow(SidecarError):
    """A value that is not what was written."""

    code = 14


class Budgets(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Calls, cost in the operator's unit, bytes."""

    calls: int = UNLIMITED
    cost: int = UNLIMITED
    bytes: int = UNLIMITED


class TaskState(enum.StrEnum):
    OPEN = "open"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REVOKED = "revoked"


LIVING = frozenset({TaskState.OPEN, TaskState.SUSPENDED})


class Task(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What an agent may do now. `drawn` is what its children hold or have spent of `granted`."""

    id: str
    agent: str
    owner: str
    purpose: str
    state: TaskState
    scope: Scope
    opened_ns: int
    expires_ns: int
    opened_by: str
    parent: str = ""
    chain: tuple[str, ...] = ()
    depth: int = 0
    max_depth: int = 0
    granted: Budgets = Budgets()
    drawn: Budgets = Budgets(0, 0, 0)
    final: Budgets | None = None
    """What was left when it closed."""
    below: int = 0
    """How many tasks were ever delegated in the tree; of its root only."""
    rev: int = 1
    epoch: int = 0
    attenuated: bool = True
    origin: str = "user"
    on_behalf: str = ""
    closed_ns: int = 0
    close_reason: str = ""


class Mode(enum.StrEnum):
    DENY = "deny"
    READ_ONLY = "read_only"
    STEP_UP = "step_up"


class Kind(enum.StrEnum):
    AGENT = "agent"
    CLASS = "class"
    TASK = "task"
    SESSION = "session"
    TOOL = "tool"
    SERVER = "server"
    DESTINATION = "destination"
    CREDENTIAL = "credential"
    OWNER = "owner"
    TRUST_DOMAIN = "trust_domain"


class Revocation(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    kind: Kind
    key: str
    mode: Mode
    reason: str
    revoked_by: str
    revoked_ns: int
    expires_ns: int = 0
    epoch: int = 0


class ApprovalState(enum.StrEnum):
    PENDING = "pending"
    GRANTED = "granted"
    DENIED = "denied"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REVOKED = "revoked"


WAITING = frozenset({ApprovalState.PENDING, ApprovalState.GRANTED})


class Approval(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One question to people, and what came of it. `expires_ns` is the question's, then the grant's."""

    id: str
    state: ApprovalState
    evaluation_id: str
    digest: bytes
    class_digest: bytes
    task: str
    agent: str
    chain: tuple[str, ...]
    owner: str
    purpose: str
    action: str
    resource: str
    destination: str
    data_level: int
    reason: str
    justification: str
    requested_by: str
    approver: str
    requested_ns: int
    expires_ns: int
    data_labels: tuple[str, ...] = ()
    cost: int = 0
    method: str = ""
    """Of an HTTP call, with path and query as sent."""
    path: str = ""
    query: str = ""
    content_unseen: bool = False
    """Part of the call did not reach the sidecar: no exact grant can fit it."""
    scope: str = "exact"
    uses: int = 0
    decided_by: str = ""
    decided_ns: int = 0
    comment: str = ""
    break_glass: bool = False
    review: str = ""
    """"", "due" or "done"."""
    reviewed_by: str = ""
    rev: int = 1
    epoch: int = 0
    also_asked_by: tuple[str, ...] = ()
    """Who asked for the same while it waited."""
    notify: tuple[str, ...] = ()
    """People who must learn that it was given, when nobody was asked before."""
    generation: int = 0
    """Of the policies that asked for it, and the only ones that it is for; 0: of any."""

    @property
    def askers(self) -> tuple[str, ...]:
        return (self.requested_by, *self.also_asked_by)


class Owner(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A person who was disabled at least once; whoever has no row is active."""

    id: str
    active: bool
    reason: str
    changed_by: str
    changed_ns: int
    epoch: int = 0


class Answered(msgspec.Struct, frozen=True, gc=False):
    """The answer to a request with an idempotency key."""

    digest: bytes
    answer: bytes
    expires_ns: int
    by: bytes
    """Who asked, as it stands in `answers_by`."""
    number: int
    """Of this answer among those of the same caller; they grow."""


class Span(msgspec.Struct, frozen=True, gc=False):
    """Which numbers answers to one caller may have: from `first` on, below `next`."""

    first: int
    next: int


class Spent(msgspec.Struct, frozen=True, gc=False):
    """What calls had spent of a task at the moment of a snapshot."""

    calls: int
    cost: int
    bytes: int


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder] = {}


def encode(row: msgspec.Struct) -> bytes:
    """The value that is stored for `row`."""
    body = _encoder.encode(row)
    return bytes((VERSION,)) + crc32c(body).to_bytes(4, "little") + body


def decode(value: bytes, kind: type[Row]) -> Row:
    """The row in a stored value. DamagedRow when it is not what was written."""
    if len(value) <= HEAD or value[0] != VERSION or crc32c(value[HEAD:]) != int.from_bytes(value[1:HEAD], "little"):
        raise DamagedRow("a row of the authority store is damaged; restore a backup")
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders.setdefault(kind, msgspec.msgpack.Decoder(kind))
    try:
        return decoder.decode(value[HEAD:])
    except msgspec.DecodeError as error:
        raise DamagedRow(f"a row of the authority store is damaged: {str(error).lower()}; restore a backup") from None
