"""Authority in tests: a model store in memory, a real one in a folder, and a sidecar that serves it."""

import bisect
import contextlib
import copy
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from fastpath.authority import Live
from sidecar._proto.remit.authority.v1 import (
    agents_pb2_grpc,
    approvals_pb2_grpc,
    owners_pb2_grpc,
    revocations_pb2_grpc,
    state_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
)
from sidecar.authority.approvals import Denial
from sidecar.authority.clock import Clock
from sidecar.authority.draft import SECOND_NS, Caller, Draft, Limits, Rest
from sidecar.authority.rows import UNLIMITED, Budgets, Task, TaskState
from sidecar.authority.scope import Scope
from sidecar.authority.store import AuthorityStore
from sidecar.authority.tasks import AXES, OpenTask, open_task
from tests.fix_serve import AGENT, OTHER, TRUST_DOMAIN, Served

ALICE, BOB, CAROL = (Caller("person", name) for name in ("alice", "bob", "carol"))
AGENT_A = f"spiffe://{TRUST_DOMAIN}/agents/a"
AGENT_B = f"spiffe://{TRUST_DOMAIN}/agents/b"
AGENT_C = f"spiffe://{TRUST_DOMAIN}/agents/c"
BY_A, BY_B = (Caller("workload", agent, agent) for agent in (AGENT_A, AGENT_B))
ALL = Scope(any_tool=True, any_action=True, any_dest=True, max_level=4)
START_NS = 1_800_000_000 * SECOND_NS
MAP_BYTES = 1 << 30


def task_of(agent: str = AGENT_A, **more: Any) -> OpenTask:
    """A task of everything for an hour."""
    fields = {"owner": "alice", "purpose": "a test", "scope": ALL, "ttl_s": 3600, "max_depth": 3, **more}
    return OpenTask(agent=agent, **fields)


def denial(task: Task, digest: bytes = b"d" * 32, **more: Any) -> Denial:
    """What the data plane remembers of a call of `task` that was answered STEP_UP."""
    fields = {
        "evaluation_id": "e" * 32,
        "task": task.id,
        "agent": task.agent,
        "class_digest": b"c" * 32,
        "action": "delete",
        "resource": "Tool::docs/drop",
        "destination": "docs",
        "data_level": 1,
        "reason": "approval.required",
        **more,
    }
    return Denial(digest=digest, **fields)


# ---------------------------------------------------------------- in memory


class MemoryRows:
    """What sidecar.authority.draft.Rows asks for, in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[bytes, bytes]] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.rows.get(table, {}).get(key)

    def scan(self, table: str, prefix: bytes = b"", after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        keys = sorted(self.rows.get(table, {}))
        for key in keys[bisect.bisect_right(keys, after) if after else 0 :]:
            if key.startswith(prefix):
                yield key, self.rows[table][key]


class MemorySpending:
    """What sidecar.authority.draft.Spending asks for, in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, int | None]] = {}
        """Of a task what is left by axis, below zero when too much was spent; None: unlimited."""
        self.stopped: set[str] = set()
        self.agents: dict[str, str] = {}
        self.owed: list[tuple[str, Budgets]] = []

    def put(self, task: str, amounts: Mapping[str, int]) -> None:
        self.rows.setdefault(task, {axis: None if amounts[axis] == UNLIMITED else amounts[axis] for axis in AXES})

    def left(self, task: str) -> Budgets | None:
        row = self.rows.get(task)
        if row is None:
            return None
        owed = [amount for id_, amount in self.owed if id_ == task]
        sums = {axis: sum(getattr(one, axis) for one in owed) for axis in AXES}
        return Budgets(**{axis: UNLIMITED if n is None else max(0, n) + sums[axis] for axis, n in row.items()})

    def open_tasks(self, agent: str) -> int:
        return sum(1 for id_, of in self.agents.items() if of == agent and id_ not in self.stopped)

    def opening(self, agent: str) -> None:
        """Each command is kept before the next one runs, and counted by `agents` then."""

    def grant(self, task: str, amount: Budgets) -> None:
        """As of `opening`: `put` says what it has."""

    def owe(self, task: str, amount: Budgets) -> None:
        self.owed.append((task, amount))

    def draw(self, task: str, amount: Budgets) -> bool:
        row = self.rows[task]
        if any(n is not None and max(0, n) < getattr(amount, axis) for axis, n in row.items()):
            return False
        self.charge(task, amount)
        return True

    def charge(self, task: str, amount: Budgets) -> None:
        self.add(task, Budgets(*(-getattr(amount, axis) for axis in AXES)))

    def add(self, task: str, amount: Budgets) -> None:
        self.rows[task] = {
            axis: None if n is None else n + getattr(amount, axis) for axis, n in self.rows[task].items()
        }

    def stop(self, tasks: Mapping[str, TaskState]) -> dict[str, Rest]:
        self.stopped |= set(tasks)
        left = {id_: self.left(id_) for id_ in tasks}
        return {id_: Rest(row, self._over(id_)) for id_, row in left.items() if row is not None}

    def _over(self, task: str) -> Budgets:
        return Budgets(**{axis: max(0, -(n or 0)) for axis, n in self.rows[task].items()})


class Book:
    """Runs commands one after the other, without a disk; `live` holds what the native view was told last."""

    def __init__(self, **limits: Any) -> None:
        self.store = MemoryRows()
        self.spending = MemorySpending()
        self.limits = Limits(**limits)
        self.now_ns = START_NS
        self.epoch = 0
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.events: list[tuple[str, str]] = []
        self._ids = (f"{n:032x}" for n in itertools.count(1))

    def draft(self) -> Draft:
        return Draft(
            self.store,
            self.spending,
            self.limits,
            now_ns=self.now_ns,
            epoch=self.epoch + 1,
            new_id=lambda: next(self._ids),
        )

    def run(self, command: Callable[..., Any], *arguments: Any) -> Any:
        """The command's result; its changes are made. What it raises leaves everything as it was."""
        self.spending.owed.clear()
        draft = self.draft()
        result = command(draft, *arguments)
        self.spending.owed.clear()
        self.epoch += 1
        for (table, key), value in draft.writes.items():
            rows = self.store.rows.setdefault(table, {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        for change, data in draft.live:
            if change == "task":
                self.spending.put(data["id"], data)
                self.spending.agents[data["id"]] = data["agent"]
            elif change == "budget":
                self.spending.add(data["id"], Budgets(*(data[axis] for axis in AXES)))
        self.told += draft.live
        self.events += draft.events
        return result

    def open(self, agent: str = AGENT_A, by: Caller = ALICE, **more: Any) -> Task:
        return self.run(open_task, task_of(agent, **more), by)

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


# ---------------------------------------------------------------- on disk


class Hands:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.wall_ns = START_NS
        self.passed_ns = 1

    def pass_s(self, seconds: float) -> None:
        self.wall_ns += int(seconds * SECOND_NS)
        self.passed_ns += int(seconds * SECOND_NS)

    def clock(self) -> Clock:
        return Clock(lambda: self.wall_ns, lambda: self.passed_ns)


class Kept:
    """A store in a folder, and what it told the journal."""

    def __init__(self, folder: pathlib.Path, **options: Any) -> None:
        self.noted: list[tuple[str, str, int]] = []
        self.live = Live()
        self.store = AuthorityStore(
            folder,
            self.live,
            limits=options.pop("limits", Limits()),
            map_bytes_max=options.pop("map_bytes_max", MAP_BYTES),
            note=lambda name, detail, epoch: self.noted.append((name, detail, epoch)),
            **options,
        )

    def run(self, command: Callable[..., Any], *arguments: Any) -> Any:
        return self.store.call(lambda draft: command(draft, *arguments))

    def open(self, agent: str = AGENT_A, by: Caller = ALICE, **more: Any) -> Task:
        return self.run(open_task, task_of(agent, **more), by)


@contextlib.contextmanager
def kept(folder: pathlib.Path, **options: Any) -> Iterator[Kept]:
    """An open store; closed at the end."""
    made = Kept(folder, **options)
    journal = options.get("journal")
    try:
        made.store.open(journal)
        yield made
    finally:
        made.store.close()


# ---------------------------------------------------------------- served


PEOPLE = [
    {"id": "alice", "uids": [os.geteuid()], "roles": ["operator"]},
    {"id": "bob", "roles": ["approver"]},
    {"id": "carol", "roles": ["security"]},
    {"id": "dora"},
]
ENTITIES = [
    *(
        {"uid": {"type": "Person", "id": name}, "attrs": {"active": True}, "parents": []}
        for name in ("alice", "bob", "carol", "dora")
    ),
    *(
        {
            "uid": {"type": "Agent", "id": agent},
            "attrs": {"owner": {"__entity": {"type": "Person", "id": "alice"}}},
            "parents": [],
        }
        for agent in (AGENT, OTHER)
    ),
]
POLICY = """
@id("task")
permit (principal, action, resource) when { context.task.present && context.task.state == "open" };
@id("scope") @reason("task.scope")
forbid (principal, action, resource)
unless { context.task.covers_tool && context.task.covers_action && context.task.covers_dest && context.task.ttl_s > 0 };
@id("drop") @reason("approval.required") @obligation("approval")
forbid (principal, action == Action::"delete", resource)
unless { context.approval.state == "granted" && context.approval.matches && !context.approval.self_approved };
"""


def with_authority(served: Served, **more: Any) -> Served:
    """The sidecar's configuration with an authority, sockets for people and agents, and policies that need a task."""
    (served.folder / "entities.json").write_text(json.dumps(ENTITIES))
    served.policy.write_text(POLICY)
    served.settings["policy"]["entities"] = "entities.json"
    served.settings["authority"] = {
        "store": "authority",
        "people": copy.deepcopy(PEOPLE),
        "workloads": [{"spiffe_id": f"spiffe://{TRUST_DOMAIN}/orchestrator", "roles": ["orchestrator"]}],
        "sockets": [
            {"socket": "bob/sock", "person": "bob"},
            {"socket": "carol/sock", "person": "carol"},
            {"socket": "dora/sock", "person": "dora"},
            {"socket": "asks-a/sock", "spiffe_id": AGENT},
            {"socket": "asks-b/sock", "spiffe_id": OTHER},
            {"socket": "orchestrator/sock", "spiffe_id": f"spiffe://{TRUST_DOMAIN}/orchestrator"},
        ],
        "beat_ms": 100,
        **more,
    }
    return served


class Stubs:
    """The authority services behind one socket."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.tasks = tasks_pb2_grpc.TasksStub(channel)
        self.revocations = revocations_pb2_grpc.RevocationsStub(channel)
        self.approvals = approvals_pb2_grpc.ApprovalsStub(channel)
        self.owners = owners_pb2_grpc.OwnersStub(channel)
        self.agents = agents_pb2_grpc.AgentViewStub(channel)
        self.state = state_pb2_grpc.StateStub(channel)


@contextlib.contextmanager
def as_caller(served: Served, who: str = "control") -> Iterator[Stubs]:
    """`who`: "control" is alice by her uid; else a socket's folder."""
    with grpc.insecure_channel(f"unix:{served.folder}/{who}/sock") as channel:
        yield Stubs(channel)


def everything(**more: Any) -> tasks_pb2.Scope:
    return tasks_pb2.Scope(any_tool=True, any_action=True, any_destination=True, max_level=4, **more)


def opening(agent: str = AGENT, **more: Any) -> tasks_pb2.OpenTaskRequest:
    fields = {"owner": "alice", "purpose": "a test", "scope": everything(), "ttl_s": 600, "max_depth": 3, **more}
    return tasks_pb2.OpenTaskRequest(agent=agent, **fields)
