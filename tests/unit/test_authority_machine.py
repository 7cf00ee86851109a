"""Tasks and approvals as a state machine, beside a plain model of what they are."""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from sidecar.authority import approvals, due, tasks
from sidecar.authority.approvals import DecideApproval, RequestApproval
from sidecar.authority.draft import SYSTEM, Caller
from sidecar.authority.errors import AuthorityError
from sidecar.authority.rows import Budgets, Task
from sidecar.authority.tasks import ChangeTask, DelegateTask, NarrowTask
from tests.fix_faults import LONG
from tests.fix_store import AGENT_A, AGENT_B, AGENT_C, ALICE, ALL, BOB, Book, denial

AGENTS = (AGENT_A, AGENT_B, AGENT_C)
PEOPLE = (ALICE, BOB, *(Caller("workload", agent, agent) for agent in AGENTS))
FINAL = ("completed", "cancelled", "expired", "revoked")


@dataclass
class Plain:
    """A task as anybody would write it down."""

    id: str
    agent: str
    parent: "Plain | None"
    calls: int
    """Left; below zero: spent too much."""
    expires_ns: int
    max_depth: int
    state: str = "open"
    children: list["Plain"] = field(default_factory=list)
    approvals: dict[str, str] = field(default_factory=dict)

    @property
    def chain(self) -> list[str]:
        return [*(self.parent.chain if self.parent else []), self.agent]

    @property
    def living(self) -> bool:
        return self.state not in FINAL

    def end(self, state: str) -> int:
        """Close all of it; the calls that go back to the parent."""
        below = "cancelled" if state == "completed" else state
        back = self.calls + sum(child.end(below) for child in self.children if child.living)
        self.state, self.calls = state, 0
        for id_, was in self.approvals.items():
            if was in ("pending", "granted"):
                self.approvals[id_] = "revoked"
        return back


class Authority(RuleBasedStateMachine):
    """Every rule asks the book and the model the same; they agree on whether it is allowed, and on what is then."""

    tasks = Bundle("tasks")
    questions = Bundle("questions")

    def __init__(self) -> None:
        super().__init__()
        self.book = Book(agent_queue_max=1000, approver_queue_max=1000)
        self.all: list[Plain] = []
        self.spent = 0
        self.granted = 0

    def attempt(self, allowed: bool, command: object, *arguments: object) -> object | None:
        try:
            result = self.book.run(command, *arguments)  # type: ignore[arg-type]
        except AuthorityError:
            assert not allowed, (command, arguments)
            return None
        assert allowed, (command, arguments)
        return result

    def stands(self, task: Plain) -> bool:
        return task.living and task.expires_ns > self.book.now_ns

    @initialize(target=tasks)
    def chain(self) -> MultipleResults[Plain]:
        """Something to work on from the start: a task, its child, and that one's."""
        root = self.open(AGENT_A, 20, 150)
        child = self.delegate(root, AGENT_B, 12, 120, ALICE)
        return multiple(root, child, self.delegate(child, AGENT_C, 6, 90, ALICE))

    @rule(target=tasks, agent=st.sampled_from(AGENTS), calls=st.integers(0, 20), ttl_s=st.integers(10, 200))
    def open(self, agent: str, calls: int, ttl_s: int) -> Plain:
        task = self.book.open(agent, budgets=Budgets(calls=calls), ttl_s=ttl_s, max_depth=2)
        self.granted += calls
        return self.keep(Plain(task.id, agent, None, calls, task.expires_ns, 2))

    def keep(self, made: Plain) -> Plain:
        self.all.append(made)
        return made

    @rule(
        target=tasks,
        parent=tasks,
        agent=st.sampled_from(AGENTS),
        calls=st.integers(0, 10),
        ttl_s=st.integers(10, 300),
        by=st.sampled_from(PEOPLE),
    )
    def delegate(self, parent: Plain, agent: str, calls: int, ttl_s: int, by: Caller) -> Plain:
        depth = len(parent.chain) - 1
        allowed = self.stands(parent) and parent.state == "open" and depth < parent.max_depth
        allowed = allowed and calls <= max(0, parent.calls)
        allowed = allowed and (by.id != agent or by.id == parent.agent)  # nobody gives themselves what others have
        asked = DelegateTask(parent=parent.id, agent=agent, scope=ALL, budgets=Budgets(calls=calls), ttl_s=ttl_s)
        child = self.attempt(allowed, tasks.delegate_task, asked, by)
        if child is None:
            return parent
        assert isinstance(child, Task)
        parent.calls -= calls
        expires_ns = min(parent.expires_ns, self.book.now_ns + ttl_s * 10**9)
        made = Plain(child.id, agent, parent, calls, expires_ns, parent.max_depth)
        parent.children.append(made)
        return self.keep(made)

    @rule(task=tasks, calls=st.integers(0, 10))
    def narrow(self, task: Plain, calls: int) -> None:
        allowed = self.stands(task) and calls <= max(0, task.calls)
        if self.attempt(allowed, tasks.narrow_task, NarrowTask(id=task.id, left=Budgets(calls=calls)), ALICE):
            less = max(0, task.calls - calls)
            self.granted -= less
            task.calls -= less

    @rule(task=tasks)
    def suspend(self, task: Plain) -> None:
        allowed = self.stands(task) and task.state == "open"
        if self.attempt(allowed, tasks.suspend_task, ChangeTask(id=task.id), ALICE):
            task.state = "suspended"

    @rule(task=tasks, by=st.sampled_from(PEOPLE))
    def resume(self, task: Plain, by: Caller) -> None:
        allowed = self.stands(task) and task.state == "suspended" and by.id not in task.chain
        if self.attempt(allowed, tasks.resume_task, ChangeTask(id=task.id), by):
            task.state = "open"

    @rule(task=tasks, how=st.sampled_from(["complete", "cancel"]))
    def close(self, task: Plain, how: str) -> None:
        command = tasks.complete_task if how == "complete" else tasks.cancel_task
        if self.attempt(self.stands(task), command, ChangeTask(id=task.id), ALICE):
            self.ended(task, "completed" if how == "complete" else "cancelled")

    def ended(self, task: Plain, state: str) -> None:
        back = task.end(state)
        if task.parent is not None and task.parent.living:
            task.parent.calls += back
        else:
            self.granted -= back  # nobody has it any more

    @rule(task=tasks, really=st.integers(1, 5))
    def call(self, task: Plain, really: int) -> None:
        """A call spends, as the data plane would let it; what it really spent, as its report says, can be more."""
        if task.living and task.calls > 0:
            self.book.spending.add(task.id, Budgets(-really, 0, 0))
            task.calls -= really
            self.spent += really

    @rule(seconds=st.sampled_from([1, 10, 30]))
    def wait(self, seconds: int) -> None:
        """Time passes, and nobody has looked yet what it ended."""
        self.book.pass_s(seconds)

    @rule()
    def sweep(self) -> None:
        """What is due is done; a child ends no later than its parent."""
        self.book.run(due.sweep)
        now = self.book.now_ns
        for task in sorted(self.all, key=lambda one: len(one.chain), reverse=True):
            if task.living and task.expires_ns <= now:
                self.ended(task, "expired")

    @rule(target=questions, task=tasks, digest=st.binary(min_size=32, max_size=32))
    def ask(self, task: Plain, digest: bytes) -> tuple[Plain, str]:
        row = tasks.get_task(self.book.draft(), task.id)
        allowed = task.living
        asked = RequestApproval(denial=denial(row, digest))
        made = self.attempt(allowed, approvals.request_approval, asked, Caller("workload", task.agent, task.agent))
        if made is None:
            return task, ""
        task.approvals.setdefault(made.id, "pending")  # type: ignore[attr-defined]
        return task, made.id  # type: ignore[attr-defined]

    @rule(question=questions, approve=st.booleans(), by=st.sampled_from(PEOPLE))
    def decide(self, question: tuple[Plain, str], approve: bool, by: Caller) -> None:
        task, id_ = question
        if not id_:
            return
        row = approvals.get_approval(self.book.draft(), id_)
        allowed = task.approvals[id_] == "pending" and row.expires_ns > self.book.now_ns and by.id not in task.chain
        if self.attempt(allowed, approvals.decide_approval, DecideApproval(id=id_, approve=approve), by):
            task.approvals[id_] = "granted" if approve else "denied"

    @rule(question=consumes(questions))
    def lapse(self, question: tuple[Plain, str]) -> None:
        """Time ends a question or a grant."""
        task, id_ = question
        if not id_ or task.approvals[id_] not in ("pending", "granted"):
            return
        row = approvals.get_approval(self.book.draft(), id_)
        if row.expires_ns <= self.book.now_ns:
            self.book.run(approvals.expire_approval, id_.encode(), SYSTEM)
            task.approvals[id_] = "expired"

    @invariant()
    def both_say_the_same(self) -> None:
        draft = self.book.draft()
        for plain in self.all:
            row = tasks.get_task(draft, plain.id)
            assert (row.state, list(row.chain)) == (plain.state, plain.chain)
            if plain.living:
                left = self.book.spending.left(plain.id)
                assert left is not None
                assert left.calls == max(0, plain.calls)
                assert row.granted.calls - row.drawn.calls >= plain.calls
                if plain.parent is not None:
                    assert row.expires_ns <= tasks.get_task(draft, plain.parent.id).expires_ns

    @invariant()
    def no_call_is_made_of_nothing(self) -> None:
        """What is left and what was spent is what was granted: budgets are only ever moved."""
        assert self.spent + sum(task.calls for task in self.all if task.living) == self.granted

    @invariant()
    def approvals_agree(self) -> None:
        draft = self.book.draft()
        for task in self.all:
            for id_, state in task.approvals.items():
                row = approvals.get_approval(draft, id_)
                if row.state != state:
                    # The sweep may have come first; it only ever ends what time has ended.
                    assert (str(row.state), row.expires_ns <= draft.now_ns) == ("expired", True)
                    task.approvals[id_] = "expired"


Authority.TestCase.settings = settings(
    max_examples=2000 if LONG else 100,
    stateful_step_count=60 if LONG else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestAuthority = Authority.TestCase
