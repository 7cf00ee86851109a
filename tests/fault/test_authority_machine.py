"""The authority store as a process that is killed again and again, beside a plain model of what it answered."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.fix_faults import LONG, ROOT

AGENTS = ("a", "b", "c")
TOOLS = ("x/1", "x/2", "x/3")
WORKER = """
import json, pathlib, sys
from sidecar.authority import tasks
from sidecar.authority.owners import ChangeOwner, disable_owner, enable_owner
from sidecar.authority.revocations import Kind, Lift, Revoke, lift, revoke
from sidecar.authority.rows import Budgets
from sidecar.authority.tasks import ChangeTask, DelegateTask, get_task
from sidecar.errors import SidecarError
from tests.fix_store import ALICE, ALL, BOB, Kept, task_of
made = Kept(pathlib.Path(sys.argv[1]))
made.store.open()
def agent(name):
    return f"spiffe://corp.example/agents/{name}"
def answer(do, *given):
    if do == "open":
        return made.open(agent(given[0]), budgets=Budgets(calls=given[1])).id
    if do == "delegate":
        asked = DelegateTask(parent=given[0], agent=agent(given[1]), scope=ALL, budgets=Budgets(calls=given[2]))
        return made.run(tasks.delegate_task, asked, ALICE).id
    if do in ("complete", "suspend", "resume"):
        made.run(getattr(tasks, f"{do}_task"), ChangeTask(id=given[0]), BOB)
        return do
    if do in ("revoke", "lift"):
        command, kind = (revoke, Revoke) if do == "revoke" else (lift, Lift)
        made.run(command, kind(kind=Kind.TOOL, key=given[0]), ALICE)
        return do
    if do in ("disable", "enable"):
        made.run(disable_owner if do == "disable" else enable_owner, ChangeOwner(id=given[0]), BOB)
        return do
    live = {id_: made.live.task(id_) for id_ in given[0]}
    with made.store.read() as draft:
        states = {id_: str(get_task(draft, id_).state) for id_ in given[0]}
    left = {id_: row["calls"] for id_, row in live.items() if row and states[id_] in ("open", "suspended")}
    counts = made.live.counts()
    return {"states": states, "left": left, "revoked": counts["revocations"], "disabled": counts["owners"]}
print("ready", flush=True)
for line in sys.stdin:
    try:
        said = {"done": answer(*json.loads(line))}
    except SidecarError as error:
        said = {"refused": str(error)}
    print(json.dumps(said), flush=True)
"""


class Killed(RuleBasedStateMachine):
    """What was answered is what a restart finds; what was cut off was done whole or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="authority")
        self.process: subprocess.Popen[str] | None = None
        self.tasks: dict[str, dict[str, Any]] = {}
        self.revoked: set[str] = set()
        self.disabled: set[str] = set()

    @initialize()
    def start(self) -> None:
        command = [sys.executable, "-c", WORKER, str(pathlib.Path(self._folder.name) / "s")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def send(self, *words: object) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def ask(self, *words: object) -> Any:
        """The answer, or None when it was refused."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.send(*words)
        return json.loads(self.process.stdout.readline()).get("done")

    def open_tasks(self) -> list[str]:
        return [id_ for id_, task in self.tasks.items() if task["state"] == "open"]

    @rule(agent=st.sampled_from(AGENTS), calls=st.integers(0, 9))
    def open(self, agent: str, calls: int) -> None:
        id_ = self.ask("open", agent, calls)
        assert (id_ is None) == ("alice" in self.disabled)
        if id_ is not None:
            self.tasks[id_] = {"state": "open", "left": calls, "parent": ""}

    @precondition(lambda self: self.open_tasks())
    @rule(data=st.data(), agent=st.sampled_from(AGENTS), calls=st.integers(0, 5))
    def delegate(self, data: st.DataObject, agent: str, calls: int) -> None:
        parent = data.draw(st.sampled_from(self.open_tasks()))
        id_ = self.ask("delegate", parent, agent, calls)
        if id_ is not None:
            assert calls <= self.tasks[parent]["left"]
            self.tasks[parent]["left"] -= calls
            self.tasks[id_] = {"state": "open", "left": calls, "parent": parent}

    @precondition(lambda self: self.open_tasks())
    @rule(data=st.data(), cut=st.booleans())
    def complete(self, data: st.DataObject, cut: bool) -> None:
        """Ended with all below it; `cut`: killed before the answer came."""
        id_ = data.draw(st.sampled_from(self.open_tasks()))
        if cut:
            self.send("complete", id_)
            self.kill()
            if self.ask("look", [id_])["states"][id_] == "open":
                return
        else:
            assert self.ask("complete", id_) == "complete"
        self.end(id_, "completed")

    def end(self, id_: str, state: str) -> None:
        task = self.tasks[id_]
        for child, row in self.tasks.items():
            if row["parent"] == id_ and row["state"] == "open":
                self.end(child, "cancelled")
        task["state"] = state
        if task["parent"] and self.tasks[task["parent"]]["state"] == "open":
            self.tasks[task["parent"]]["left"] += task["left"]

    @rule(tool=st.sampled_from(TOOLS))
    def revoke(self, tool: str) -> None:
        assert self.ask("revoke", tool) == "revoke"
        self.revoked.add(tool)

    @rule(tool=st.sampled_from(TOOLS))
    def lift(self, tool: str) -> None:
        assert (self.ask("lift", tool) == "lift") == (tool in self.revoked)
        self.revoked.discard(tool)

    @rule(person=st.sampled_from(["alice", "dora"]), active=st.booleans())
    def owner(self, person: str, active: bool) -> None:
        done = self.ask("enable" if active else "disable", person)
        if done == "disable":
            self.disabled.add(person)
        elif done == "enable":
            self.disabled.discard(person)

    @rule()
    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.start()

    @invariant()
    def both_say_the_same(self) -> None:
        if self.process is None:
            return
        seen = self.ask("look", list(self.tasks))
        assert seen["states"] == {id_: task["state"] for id_, task in self.tasks.items()}
        assert seen["left"] == {id_: self.tasks[id_]["left"] for id_ in self.open_tasks()}
        assert (seen["revoked"], seen["disabled"]) == (len(self.revoked), len(self.disabled))

    def teardown(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self._folder.cleanup()


Killed.TestCase.settings = settings(
    max_examples=60 if LONG else 3,
    stateful_step_count=40 if LONG else 20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestKilled = Killed.TestCase
