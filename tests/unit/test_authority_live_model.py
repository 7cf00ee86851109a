"""The native view beside a plain model of it: random changes, calls and reports, each answer and number compared."""

import random
from typing import Any

import pytest

from fastpath.errors import ProtocolError
from tests.fix_faults import LONG
from tests.fix_live import AGENT, CHILD, OWNER, STRANGER, ask, make_live, make_pdp, outcome, task
from tests.unit.test_authority import SETTLED, report, revoke

SEEDS = 200 if LONG else 12
STEPS = 400
AGENTS = (AGENT, CHILD)
OWNERS = (OWNER, "bob")
TOOLS = ("files/open", "files/remove")
STATES = ("open", "suspended", "completed", "cancelled", "expired", "revoked")
AXES = ("calls", "cost")


Row = dict[str, Any]


class Model:
    """Tasks, revocations and owners in dictionaries; says what each call must be answered.

    A task's row stays one dictionary for as long as a call of it can be reported, whatever becomes of the task.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.live = make_live()
        self.pdp = make_pdp(self.live)
        self.tasks: dict[str, Row] = {}
        self.revoked: set[tuple[str, str]] = set()
        self.inactive: set[str] = set()
        self.settles: dict[str, tuple[Row, str, int]] = {}
        self.epoch = 1

    def apply(self, *changes: tuple[str, dict[str, Any]]) -> None:
        self.epoch += 1
        self.live.apply(changes, self.epoch)

    # -------------------------------------------------------- changes

    def put(self) -> None:
        id_ = f"t{self.rng.randrange(8)}"
        before = self.tasks.get(id_)
        parents = [name for name, one in self.tasks.items() if one["depth"] < 3 and name < id_]
        parent = self.rng.choice([*parents, None])
        agent = self.rng.choice(AGENTS)
        if before:
            agent, parent = before["agent"], before["parent"]
        depth = before["depth"] if before else self.tasks[parent]["depth"] + 1 if parent else 0
        row = {
            "agent": agent, "owner": self.rng.choice(OWNERS), "state": self.rng.choice(STATES[:2]),
            "parent": parent, "depth": depth, "calls": self.rng.choice((-1, 0, 3, 20)),
            "cost": self.rng.choice((-1, 0, 5, 50)),
        }  # fmt: skip
        self.apply(task(id_, **row))
        if before:
            before |= {"owner": row["owner"], "state": row["state"]}
            return
        row |= {f"{name}_{axis}": 0 for name in ("over", "spent") for axis in AXES}
        self.tasks[id_] = {**row, "above": None}

    def another(self) -> None:
        """Nothing makes a task another agent's, or delegated from another."""
        for id_, row in self.tasks.items():
            for other in ({"agent": STRANGER, "parent": row["parent"]}, {"agent": row["agent"], "parent": "t9"}):
                with pytest.raises(ProtocolError, match="another agent or parent"):
                    self.live.apply([task(id_, **other)], self.epoch)

    def state(self) -> None:
        id_, state = f"t{self.rng.randrange(8)}", self.rng.choice(STATES)
        self.apply(("state", {"id": id_, "state": state}))
        if id_ in self.tasks:
            self.tasks[id_]["state"] = state

    def budget(self) -> None:
        id_, amounts = f"t{self.rng.randrange(8)}", {axis: self.rng.randrange(-8, 9) for axis in AXES}
        self.apply(("budget", {"id": id_, **amounts}))
        row = self.tasks.get(id_)
        for axis, amount in amounts.items():
            if row and row[axis] >= 0:
                self.move(row, axis, amount)

    def forget(self) -> None:
        id_ = f"t{self.rng.randrange(8)}"
        self.apply(("forget", {"id": id_}))
        if id_ in self.tasks:
            self.tasks.pop(id_)["state"] = "forgotten"

    def revoke(self) -> None:
        kind = self.rng.choice(("agent", "tool", "task"))
        key = self.rng.choice({"agent": AGENTS, "tool": TOOLS, "task": ("t1", "t2", "t3")}[kind])
        if (kind, key) in self.revoked:
            self.revoked.remove((kind, key))
            self.apply(("lift", {"kind": kind, "key": key, "mode": "deny"}))
        else:
            self.revoked.add((kind, key))
            self.apply(revoke(kind, key))

    def owner(self) -> None:
        person = self.rng.choice(OWNERS)
        self.inactive ^= {person}
        self.apply(("owner", {"id": person, "active": person not in self.inactive}))

    # -------------------------------------------------------- calls

    @staticmethod
    def move(row: dict[str, Any], axis: str, amount: int) -> None:
        now = row[axis] - row[f"over_{axis}"] + amount
        row[axis], row[f"over_{axis}"] = max(0, now), max(0, -now)

    def charge(self, row: Row | None, axis: str, amount: int) -> None:
        """A task that has ended gave back what it had: what comes late is for the nearest one above that stands."""
        while row and row["state"] not in STATES[:2]:
            row = row["above"]
        if row:
            row[f"spent_{axis}"] += amount
            if row[axis] >= 0:
                self.move(row, axis, -amount)

    def tie(self, row: Row) -> None:
        """A call of the task was allowed, so all above it are there."""
        while row["above"] is None and row["parent"]:
            row["above"] = self.tasks[row["parent"]]
            row = row["above"]

    def named(self, agent: str, name: str) -> tuple[str, str]:
        """The task in force, or why there is none."""
        if name:
            return (name, "") if name in self.tasks and self.tasks[name]["agent"] == agent else ("", "task.unknown")
        mine = [id_ for id_, one in self.tasks.items() if one["agent"] == agent and one["state"] == "open"]
        return (mine[0], "") if len(mine) == 1 else ("", "task.unnamed" if mine else "task.none")

    def expected(self, agent: str, tool: str, name: str, cost: int) -> tuple[str, str]:
        """(task in force, reason)."""
        for kind, key in (("agent", agent), ("tool", tool)):
            if (kind, key) in self.revoked:
                return "", f"revoked.{kind}"
        id_, fault = self.named(agent, name)
        refusal, at = "", id_
        people = {OWNER}  # the agents' own owner, and those of every task
        while at and not fault.startswith("task.chain"):
            row = self.tasks.get(at)
            if row is None:
                fault = "task.chain"
                break
            if row["state"] != "open" and not fault:
                fault = f"task.{row['state']}"
            for kind, key in (("task", at), ("agent", row["agent"] if at != id_ else "")):
                if (kind, key) in self.revoked and not refusal:
                    refusal = f"revoked.{kind}"
            people |= {row["owner"]}
            at = row["parent"]
        fault = refusal or fault or ("owner.inactive" if people & self.inactive else "")
        if not fault and any(self.short(self.tasks[id_], axis, n) for axis, n in (("calls", 1), ("cost", cost))):
            fault = "task.budget"
        return id_, fault

    @staticmethod
    def short(row: dict[str, Any], axis: str, amount: int) -> bool:
        """Whether there is not as much, or something is owed."""
        return row[axis] >= 0 and (row[axis] < amount or row[f"over_{axis}"] > 0)

    def call(self) -> None:
        agent, tool = self.rng.choice(AGENTS), self.rng.choice(TOOLS)
        name, cost = self.rng.choice(("", "", "t0", "t1", "t2", "t3")), self.rng.randrange(4)
        id_, fault = self.expected(agent, tool, name, cost)
        answer = ask(self.pdp, tool=tool, agent=agent, task=name, cost=cost)
        assert outcome(answer) == (("DENY", fault) if fault else ("ALLOW", "ok"))
        if not fault:
            row = self.tasks[id_]
            self.tie(row)
            self.charge(row, "calls", 1)
            self.charge(row, "cost", cost)
            self.settles[answer.evaluation_id] = (row, agent, cost)

    def report(self) -> None:
        if not self.settles:
            return
        evaluation = self.rng.choice(list(self.settles))
        row, agent, reserved = self.settles.pop(evaluation)
        executed, cost = self.rng.random() < 0.5, self.rng.randrange(9)
        assert report(self.pdp, evaluation, agent=agent, executed=executed, cost=cost) == SETTLED
        self.charge(row, "cost", cost - reserved if executed else -reserved)
        self.charge(row, "calls", 0 if executed else -1)

    def same(self) -> None:
        for id_, row in self.tasks.items():
            found = self.live.task(id_)
            assert found is not None
            names = ("state", *AXES, *(f"{what}_{axis}" for what in ("spent", "over") for axis in AXES))
            assert {name: found[name] for name in names} == {name: row[name] for name in names}, id_
        assert self.live.counts()["tasks"] == len(self.tasks)
        assert self.live.counts()["revocations"] == len(self.revoked)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_native_view_is_what_a_plain_model_says(seed: int) -> None:
    """No call is allowed that the model denies, none is denied that it allows, and every number is the same."""
    rng = random.Random(seed)
    model = Model(rng)
    steps = [model.put, model.state, model.budget, model.forget, model.revoke, model.owner, model.call, model.report]
    for _ in range(STEPS):
        rng.choices(steps, weights=(6, 3, 2, 1, 2, 1, 14, 6))[0]()
        model.same()
    model.another()
