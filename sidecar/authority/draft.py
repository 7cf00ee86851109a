"""One command's view of the store: what it reads, what it will write, and what calls and followers must be told.

Commands do no I/O. They read through `Rows`, take and give budgets through `Spending`, and leave their changes in the
draft; whoever runs them makes the changes durable, gives them to the native view, and only then answers. A command that
raises leaves nothing behind. It scans before it writes: scans do not see its own writes.
"""

import functools
import heapq
import json
import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from sidecar.authority.rows import Answered, Approval, Budgets, Owner, Revocation, Task, TaskState, decode, encode

SECOND_NS = 1_000_000_000
NEVER_NS = 1 << 63
Row = TypeVar("Row", bound=msgspec.Struct)

TASKS, CHILDREN, AGENT_TASKS, OWNER_TASKS = "tasks", "children", "agent_tasks", "owner_tasks"
APPROVALS, TASK_APPROVALS, ASKED = "approvals", "task_approvals", "asked"
QUEUE_APPROVER, QUEUE_AGENT, REVIEWS = "queue_approver", "queue_agent", "reviews"
REVOCATIONS, OWNERS, ANSWERS, DUE, META = "revocations", "owners", "answers", "due", "meta"
ANSWERS_BY, SURE_DUE = "answers_by", "sure_due"
TABLES = (
    TASKS, CHILDREN, AGENT_TASKS, OWNER_TASKS, APPROVALS, TASK_APPROVALS, ASKED, QUEUE_APPROVER, QUEUE_AGENT, REVIEWS,
    REVOCATIONS, OWNERS, ANSWERS, DUE, META,
)  # fmt: skip
KINDS: Mapping[str, type[msgspec.Struct]] = {
    TASKS: Task, APPROVALS: Approval, REVOCATIONS: Revocation, OWNERS: Owner, ANSWERS: Answered,
}  # fmt: skip


class Due(msgspec.Struct, frozen=True, gc=False):
    """Something that time brings: `what` is done to the row `key` at `at_ns`."""

    at_ns: int
    what: str
    key: bytes


class Change(msgspec.Struct, frozen=True, gc=False):
    """A row for those who watch: as it is now, or as it was before it went."""

    table: str
    row: msgspec.Struct
    gone: bool


class Caller(msgspec.Struct, frozen=True):
    """Who asks, as the connection shows: a person, a workload by its SPIFFE ID, or the sidecar itself."""

    kind: Literal["person", "workload", "system"]
    id: str
    spiffe_id: str = ""
    serial: str = ""
    """Of the certificate that the connection showed, as calls name it."""

    def is_any(self, spiffe_ids: tuple[str, ...]) -> bool:
        """Whether the caller is one of these agents."""
        return self.id in spiffe_ids or (bool(self.spiffe_id) and self.spiffe_id in spiffe_ids)


SYSTEM = Caller("system", "remit")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what may be asked for. Times in seconds."""

    ttl_s_max: int = 30 * 86_400
    depth_max: int = 7
    tree_max: int = 10_000
    """Tasks ever delegated below one root."""
    agent_tasks_max: int = 1000
    """Open tasks of one agent."""
    keep_closed_s: int = 86_400
    """How long a closed task or decided approval can still be looked up."""
    answer_s: int = 86_400
    """How long an idempotency key is remembered."""
    answers_max: int = 10_000
    """How many of one caller are remembered; the oldest go first."""
    approval_wait_s: int = 900
    approval_grant_s: int = 900
    approval_uses_max: int = 100
    approver_queue_max: int = 100
    agent_queue_max: int = 20
    break_glass_s_max: int = 900
    break_glass_uses_max: int = 10
    separate_owner: bool = False
    """Whether a task's owner may not decide about its calls."""
    security: tuple[str, ...] = ()
    """The people who are told when somebody breaks the glass, beside the owner."""


class Rows(Protocol):
    """What is stored, as of now."""

    def get(self, table: str, key: bytes) -> bytes | None: ...
    def scan(self, table: str, prefix: bytes = b"", after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of all keys that begin with `prefix` and stand behind `after`, in order."""


class Rest(msgspec.Struct, frozen=True, gc=False):
    """Of a task that was stopped: what is left, and what its calls spent beyond what there was."""

    left: Budgets
    over: Budgets


class Spending(Protocol):
    """Budgets of the open tasks as calls spend them. What a command that fails changed is undone."""

    def left(self, task: str) -> Budgets | None:
        """What is left at this moment, with what is owed; None when the task is not known."""

    def draw(self, task: str, amount: Budgets) -> bool:
        """Take `amount` (no negative number in it) at once; False, and nothing taken, when there is not as much."""

    def charge(self, task: str, amount: Budgets) -> None:
        """Take `amount` (no negative number in it) at once, whatever is left: it was spent already."""

    def owe(self, task: str, amount: Budgets) -> None:
        """`amount` goes to the task with this command: commands behind it find it there, calls once it is durable."""

    def open_tasks(self, agent: str) -> int:
        """How many open tasks the agent has in force, or will have by the commands before this one."""

    def opening(self, agent: str) -> None:
        """The agent has one open task more with this command."""

    def grant(self, task: str, amount: Budgets) -> None:
        """The task is new with this command and has `amount`: no call spends from it before it is durable."""

    def stop(self, tasks: Mapping[str, TaskState]) -> dict[str, Rest]:
        """Let no further call spend from these, and say what is left of each."""


_plain = re.compile(r"[!#-<>-~]+").fullmatch
"""What most values are: printable ASCII but for blank, `"` and `=`."""
NOTHING_UNWRITTEN: Mapping[tuple[str, bytes], msgspec.Struct] = {}


class Draft:
    """What one command reads and changes. `now_ns` is the store's clock, which never goes back."""

    __slots__ = (
        "changed", "epoch", "events", "first_due_ns", "first_sure_due_ns", "limits", "live", "new_id", "now_ns",
        "present_ns", "rows", "spending", "sure_ns", "unwritten", "writes"
    )  # fmt: skip

    def __init__(
        self,
        rows: Rows,
        spending: Spending,
        limits: Limits,
        *,
        now_ns: int,
        epoch: int,
        new_id: Callable[[], str],
        sure_ns: int = 0,
        present_ns: int = 0,
        unwritten: Mapping[tuple[str, bytes], msgspec.Struct] = NOTHING_UNWRITTEN,
    ) -> None:
        self.rows = rows
        self.spending = spending
        self.limits = limits
        self.now_ns = now_ns
        self.sure_ns = sure_ns or now_ns
        """What every clock has reached: earlier than `now_ns` where one was set forward."""
        self.present_ns = present_ns or now_ns
        """What the clocks say at this moment: earlier than `now_ns` where one was set forward and back."""
        self.unwritten = unwritten
        """Rows that are in force and not in the store, because the disk is full."""
        self.epoch = epoch
        """That this command gets when it becomes durable."""
        self.new_id = new_id
        self.writes: dict[tuple[str, bytes], bytes | None] = {}
        self.live: list[tuple[str, dict[str, Any]]] = []
        self.events: list[tuple[str, str]] = []
        """(name, detail) for the journal."""
        self.changed: list[Change] = []
        self.first_due_ns = self.first_sure_due_ns = NEVER_NS
        """When the first of what this command adds is due."""

    # ------------------------------------------------------------ rows

    def find(self, table: str, key: bytes, kind: type[Row]) -> Row | None:
        """The row, or None."""
        place = (table, key)
        value = self.writes[place] if place in self.writes else self.rows.get(table, key)
        return None if value is None else decode(value, kind)

    def put(self, table: str, key: bytes, row: msgspec.Struct) -> None:
        self.writes[table, key] = encode(row)
        self.changed.append(Change(table, row, False))

    def rows_of(self, *tables: str) -> Iterator[tuple[tuple[str, bytes], msgspec.Struct | None]]:
        """(table and key, row) of what was changed in these tables; None: it is gone."""
        for (table, key), value in self.writes.items():
            if table in tables:
                yield (table, key), None if value is None else decode(value, KINDS[table])

    def places(self, *tables: str) -> list[tuple[str, bytes]]:
        """Table and key of what was changed in these tables."""
        return [place for place in self.writes if place[0] in tables]

    def mark(self, table: str, key: bytes, value: bytes = b"\0") -> None:
        """Put an index row; LMDB takes no empty value in every place, so there is always a byte."""
        self.writes[table, key] = value

    def drop(self, table: str, key: bytes, row: msgspec.Struct | None = None) -> None:
        """Remove a row; those who watch are told when it is given."""
        self.writes[table, key] = None
        if row is not None:
            self.changed.append(Change(table, row, True))

    def scan_with(
        self, table: str, prefix: bytes, after: bytes, held: Callable[[bytes, msgspec.Struct], msgspec.Struct | None]
    ) -> Iterator[tuple[bytes, bytes]]:
        """As Rows.scan, with the rows of `unwritten` among them; `held` makes what is given from each."""
        mine = {
            key: row
            for (name, key), row in self.unwritten.items()
            if name == table and key.startswith(prefix) and key > after
        }
        stored = ((key, value) for key, value in self.rows.scan(table, prefix, after) if key not in mine)
        made = ((key, held(key, row)) for key, row in sorted(mine.items()))
        return heapq.merge(stored, ((key, encode(row)) for key, row in made if row is not None))

    def names(self, table: str, prefix: bytes) -> Iterator[str]:
        """The ids that an index holds behind `prefix`."""
        return (key[len(prefix) :].decode() for key, _ in self.rows.scan(table, prefix))

    def let_go(self) -> None:
        """Forget what the store and the native view have taken: of many commands in one commit it is kept for long
        enough that the collector of cycles would go through it."""
        self.writes.clear()
        self.live.clear()

    # ------------------------------------------------------------ what follows from it

    def due(self, at_ns: int, what: str, key: bytes) -> None:
        """Have `what` happen to the row `key` at `at_ns`."""
        self.mark(DUE, _due_key(at_ns, what, key))
        self.first_due_ns = min(self.first_due_ns, at_ns)

    def drop_due(self, at_ns: int, what: str, key: bytes) -> None:
        """Let it not happen."""
        self.drop(DUE, _due_key(at_ns, what, key))

    def due_surely(self, at_ns: int, what: str, key: bytes) -> None:
        """The same once every clock has reached `at_ns`."""
        self.mark(SURE_DUE, _due_key(at_ns, what, key))
        self.first_sure_due_ns = min(self.first_sure_due_ns, at_ns)

    def tell(self, change: str, data: dict[str, Any]) -> None:
        """A change for the native view."""
        self.live.append((change, data))

    def event(self, name: str, by: Caller, **detail: object) -> None:
        """A line in the journal: what changed what decides, and who asked for it."""
        said = [f"{key}={quoted(value)}" for key, value in detail.items() if value != ""]
        self.events.append((name, " ".join([f"by={quoted(by.id)}", *said])))


def quoted(value: object) -> str:
    """A value of an event's detail; what could be taken for the next one is quoted as JSON."""
    text = str(value)
    if _plain(text):
        return text
    # What is printable has no white space but blanks.
    plain = text.isprintable() and text and " " not in text and "=" not in text and '"' not in text
    return text if plain else json.dumps(text, ensure_ascii=False)


def hashed(*parts: str | bytes) -> bytes:
    """16 bytes that stand for texts of any length in a key; no two lists of parts give the same bytes to hash."""
    raw = [part if isinstance(part, bytes) else part.encode() for part in parts]
    return blake2b(b"".join([len(one).to_bytes(4, "little") + one for one in raw]), digest_size=16).digest()


@functools.lru_cache(maxsize=4096)
def hashed_name(name: str) -> bytes:
    """`hashed` of the name of an agent or a person: few of them come again and again."""
    return hashed(name)


def _due_key(at_ns: int, what: str, key: bytes) -> bytes:
    return at_ns.to_bytes(8, "big") + what.encode() + key


def read_due(key: bytes) -> Due:
    """What a key of the table `due` says."""
    return Due(int.from_bytes(key[:8], "big"), chr(key[8]), key[9:])
