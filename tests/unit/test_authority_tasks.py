"""Tasks: what opens, narrows, delegates and ends them, and what each of these refuses."""

import itertools
from typing import Any

import pytest

from sidecar.authority import tasks
from sidecar.authority.approvals import RequestApproval, get_approval, request_approval
from sidecar.authority.draft import CHILDREN, REVOCATIONS, TASKS, Caller
from sidecar.authority.due import sweep
from sidecar.authority.errors import AuthorityError, ChangedError, DeniedError, InvalidError, MissingError, StateError
from sidecar.authority.ids import Ids
from sidecar.authority.owners import ChangeOwner, disable_owner
from sidecar.authority.revocations import Kind, Mode, Revoke, revoke
from sidecar.authority.rows import Budgets, Task, TaskState
from sidecar.authority.scope import Scope
from sidecar.authority.tasks import ChangeTask, DelegateTask, NarrowTask
from tests.fix_serve import TRUST_DOMAIN
from tests.fix_store import AGENT_A, AGENT_B, AGENT_C, ALICE, ALL, BOB, BY_A, BY_B, START_NS, Book, denial

COMMANDS = ("narrow", "delegate", "suspend", "resume", "complete", "cancel", "expire", "revoke")
READS = Scope(tools=("docs/search",), actions=("read",), any_dest=True, max_level=1)


@pytest.fixture
def book() -> Book:
    return Book()


def get(book: Book, id_: str) -> Task:
    return tasks.get_task(book.draft(), id_)


def do(book: Book, task: Task, command: str, by: Caller = ALICE) -> Any:
    """One command of COMMANDS on `task`."""
    if command == "narrow":
        return book.run(tasks.narrow_task, NarrowTask(id=task.id, max_depth=task.max_depth), by)
    if command == "delegate":
        return book.run(tasks.delegate_task, DelegateTask(parent=task.id, agent=AGENT_B, scope=task.scope), by)
    if command == "expire":
        book.pass_s(100_000)
        return book.run(tasks.expire_task, task.id.encode(), by)
    if command == "revoke":
        return book.run(revoke, Revoke(kind=Kind.TASK, key=task.id), by)
    return book.run(getattr(tasks, f"{command}_task"), ChangeTask(id=task.id), by)


ONE = Budgets(cost=1)


def delegated(book: Book, parent: Task, budgets: Budgets) -> Task:
    asked = DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL, budgets=budgets)
    return book.run(tasks.delegate_task, asked, BY_A)


def brought(book: Book, state: TaskState) -> Task:
    """A task in `state`."""
    ways = {
        TaskState.OPEN: (),
        TaskState.SUSPENDED: ("suspend",),
        TaskState.COMPLETED: ("complete",),
        TaskState.CANCELLED: ("cancel",),
        TaskState.EXPIRED: ("expire",),
        TaskState.REVOKED: ("revoke",),
    }
    task = book.open()
    for command in ways[state]:
        do(book, task, command)
    return get(book, task.id)


# ---------------------------------------------------------------- states


@pytest.mark.parametrize(("state", "command"), list(itertools.product(TaskState, COMMANDS)))
def test_every_command_in_every_state_is_a_transition_or_is_refused(book: Book, state: TaskState, command: str) -> None:
    """Row 7: TRANSITIONS is all there is; what is not in it changes nothing."""
    task = brought(book, state)
    assert task.state is state
    after = tasks.TRANSITIONS.get((state, command))
    if after is not None:
        do(book, task, command)
        assert get(book, task.id).state is after
    elif command == "expire":
        do(book, task, command)  # time asks for nothing, and finds nothing to do
        assert get(book, task.id) == task
    elif command == "revoke":
        do(book, task, command)  # the revocation stands; the task has ended already
        assert get(book, task.id) == task
    else:
        with pytest.raises(StateError, match=f"is {state}"):
            do(book, task, command)
        assert get(book, task.id) == task


def test_an_expired_task_takes_no_command_even_before_the_sweep(book: Book) -> None:
    """RT-01: the end is a moment, not the time at which somebody notices."""
    task = book.open(ttl_s=10)
    book.pass_s(10)
    with pytest.raises(StateError, match="has expired"):
        do(book, task, "delegate")
    assert get(book, task.id).state is TaskState.OPEN


def test_a_stale_rev_is_refused(book: Book) -> None:
    """RT-08: whoever changes what somebody else changed meanwhile is told to look again."""
    task = book.open()
    book.run(tasks.narrow_task, NarrowTask(id=task.id, ttl_s=60, expected_rev=1), ALICE)
    with pytest.raises(ChangedError, match="is at rev 2, not 1"):
        book.run(tasks.narrow_task, NarrowTask(id=task.id, ttl_s=30, expected_rev=1), ALICE)


# ---------------------------------------------------------------- nobody widens


def test_an_agent_cannot_open_a_task_for_itself(book: Book) -> None:
    """Row 17."""
    with pytest.raises(DeniedError, match="cannot open a task for itself"):
        book.open(AGENT_A, BY_A)
    # Neither by another name that its SVID goes by.
    with pytest.raises(DeniedError):
        book.open(AGENT_A, Caller("person", "alice", AGENT_A))
    assert book.open(AGENT_B, BY_A).opened_by == AGENT_A


def test_nobody_takes_a_part_of_a_task_that_is_not_their_own(book: Book) -> None:
    """Row 17: delegation is no way around opening. A task's own agent may hand on to a subprocess of the same SVID."""
    task = book.open(AGENT_A)
    orchestrator = f"spiffe://{TRUST_DOMAIN}/orchestrator"
    everywhere = Caller("person", "erin", AGENT_C)
    for by, agent in ((Caller("workload", orchestrator, orchestrator), orchestrator), (everywhere, AGENT_C)):
        with pytest.raises(DeniedError):
            book.run(tasks.delegate_task, DelegateTask(parent=task.id, agent=agent, scope=ALL), by)
    assert book.run(tasks.delegate_task, DelegateTask(parent=task.id, agent=AGENT_A, scope=ALL), BY_A).depth == 1
    child = book.run(tasks.delegate_task, DelegateTask(parent=task.id, agent=AGENT_B, scope=ALL), BY_A)
    with pytest.raises(DeniedError):
        book.run(tasks.delegate_task, DelegateTask(parent=child.id, agent=AGENT_A, scope=ALL), BY_A)


def test_nobody_of_its_chain_resumes_a_task(book: Book) -> None:
    """Row 17: neither the agent, nor whoever delegated to it."""
    parent = book.open()
    child = book.run(tasks.delegate_task, DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL), BY_A)
    do(book, child, "suspend")
    for by in (BY_A, BY_B):
        with pytest.raises(DeniedError, match="cannot resume its own task"):
            do(book, child, "resume", by)
    assert do(book, child, "resume", BOB).state is TaskState.OPEN


def test_narrowing_takes_only_what_lies_within(book: Book) -> None:
    task = book.open(scope=READS, budgets=Budgets(10, 100, -1), ttl_s=100)
    with pytest.raises(InvalidError, match="wider than what it comes from"):
        book.run(tasks.narrow_task, NarrowTask(id=task.id, scope=ALL), ALICE)
    with pytest.raises(InvalidError, match="max_depth"):
        book.run(tasks.narrow_task, NarrowTask(id=task.id, max_depth=4), ALICE)
    longer = book.run(tasks.narrow_task, NarrowTask(id=task.id, ttl_s=1000), ALICE)
    assert longer.expires_ns == task.expires_ns
    less = book.run(tasks.narrow_task, NarrowTask(id=task.id, left=Budgets(calls=3), ttl_s=10), ALICE)
    assert (less.granted, less.rev) == (Budgets(3, 100, -1), 3)
    assert less.expires_ns < task.expires_ns
    assert book.spending.left(task.id) == Budgets(3, 100, -1)
    # As much as is left takes nothing away; whoever says more believes in more than there is.
    same = book.run(tasks.narrow_task, NarrowTask(id=task.id, left=Budgets(calls=3)), ALICE)
    assert same.granted == Budgets(3, 100, -1)
    with pytest.raises(InvalidError, match="is 50, and the task has 3 left; nothing widens a task"):
        book.run(tasks.narrow_task, NarrowTask(id=task.id, left=Budgets(calls=50)), ALICE)
    assert get(book, task.id) == same
    with pytest.raises(InvalidError, match="is unlimited"):
        book.run(tasks.narrow_task, NarrowTask(id=task.id, left=Budgets(bytes=50)), ALICE)


# ---------------------------------------------------------------- delegation


def test_a_child_takes_its_budgets_from_its_parent_and_gives_back_what_is_left(book: Book) -> None:
    """Row 12: drawn at open, refunded at close; what calls spent meanwhile is gone."""
    parent = book.open(budgets=Budgets(10, 100, -1))
    asked = DelegateTask(parent=parent.id, agent=AGENT_B, scope=READS, budgets=Budgets(4, 40, 1000))
    child = book.run(tasks.delegate_task, asked, BY_A)
    assert book.spending.left(parent.id) == Budgets(6, 60, -1)
    assert get(book, parent.id).drawn == Budgets(4, 40, 0)
    book.spending.add(child.id, Budgets(-1, -15, -10))  # a call
    closed = book.run(tasks.complete_task, ChangeTask(id=child.id), BY_B)
    assert closed.refunded == Budgets(3, 25, 0)
    assert book.spending.left(parent.id) == Budgets(9, 85, -1)
    assert get(book, parent.id).drawn == Budgets(1, 15, 0)
    assert get(book, child.id).final == Budgets(3, 25, 990)


@pytest.mark.parametrize("drawn", [0, 9])
def test_what_a_child_spent_too_much_its_parent_pays(book: Book, drawn: int) -> None:
    """Also what a grandchild did, and beyond what the parent has: it is owed then, and what comes back pays it."""
    parent = book.open(budgets=Budgets(cost=11))
    other = delegated(book, parent, Budgets(cost=drawn)) if drawn else None
    child = delegated(book, parent, Budgets(cost=1))
    below = book.run(tasks.delegate_task, DelegateTask(parent=child.id, agent=AGENT_C, scope=ALL, budgets=ONE), BY_B)
    book.spending.add(below.id, Budgets(0, -12, 0))
    closed = book.run(tasks.complete_task, ChangeTask(id=child.id), BY_B)
    assert closed.refunded == Budgets(0, 0, 0)
    assert book.spending.left(parent.id) == Budgets(cost=0)
    assert tasks.undrawn(get(book, parent.id)) == Budgets(cost=0)
    assert ("task.overspent", f"by={AGENT_B} task={child.id} parent={parent.id} calls=0 cost=11 bytes=0") in book.events
    with pytest.raises(StateError):
        delegated(book, parent, Budgets(cost=1))
    if other is not None:
        book.run(tasks.complete_task, ChangeTask(id=other.id), BY_B)
        assert book.spending.left(parent.id) == Budgets(cost=0)


def test_a_child_cannot_take_more_than_is_left(book: Book) -> None:
    parent = book.open(budgets=Budgets(10, -1, -1))
    with pytest.raises(StateError, match="has not as much left"):
        book.run(
            tasks.delegate_task,
            DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=11)),
            BY_A,
        )
    with pytest.raises(InvalidError, match="say how much the child gets"):
        book.run(tasks.delegate_task, DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL), BY_A)
    assert book.spending.left(parent.id) == Budgets(10, -1, -1)


def test_a_chain_ends_at_its_depth(book: Book) -> None:
    """Row 12: depth + 1 is at most the depth that was granted, and a child may grant less."""
    at = book.open(max_depth=2)
    for agent in (AGENT_B, AGENT_C):
        at = book.run(tasks.delegate_task, DelegateTask(parent=at.id, agent=agent, scope=ALL), ALICE)
    assert (at.depth, at.chain) == (2, (AGENT_A, AGENT_B, AGENT_C))
    with pytest.raises(StateError, match="stands at depth 2 of 2"):
        book.run(tasks.delegate_task, DelegateTask(parent=at.id, agent=AGENT_A, scope=ALL), ALICE)
    flat = book.open(max_depth=3)
    child = book.run(tasks.delegate_task, DelegateTask(parent=flat.id, agent=AGENT_B, scope=ALL, max_depth=1), ALICE)
    with pytest.raises(StateError, match="depth 1 of 1"):
        book.run(tasks.delegate_task, DelegateTask(parent=child.id, agent=AGENT_C, scope=ALL), ALICE)


def test_a_child_ends_no_later_and_is_attenuated_only_when_it_got_less(book: Book) -> None:
    parent = book.open(ttl_s=100)
    same = book.run(tasks.delegate_task, DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL, ttl_s=1000), BY_A)
    less = book.run(tasks.delegate_task, DelegateTask(parent=parent.id, agent=AGENT_B, scope=READS), BY_A)
    below = book.run(tasks.delegate_task, DelegateTask(parent=same.id, agent=AGENT_C, scope=READS), BY_B)
    assert same.expires_ns == parent.expires_ns
    assert (parent.attenuated, same.attenuated, less.attenuated, below.attenuated) == (True, False, True, False)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("command", ["complete", "cancel", "revoke", "expire"])
def test_ending_a_task_ends_all_below_it_and_their_approvals_in_one_write(book: Book, command: str) -> None:
    """Row 7: one command, one epoch; grants, approvals and every later call."""
    root = book.open(budgets=Budgets(calls=10))
    child = book.run(
        tasks.delegate_task, DelegateTask(parent=root.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=6)), BY_A
    )
    leaf = book.run(
        tasks.delegate_task, DelegateTask(parent=child.id, agent=AGENT_C, scope=ALL, budgets=Budgets(calls=2)), BY_B
    )
    ended = book.run(
        tasks.delegate_task, DelegateTask(parent=root.id, agent=AGENT_B, scope=ALL, budgets=Budgets(calls=1)), BY_A
    )
    book.run(tasks.cancel_task, ChangeTask(id=ended.id), BY_B)
    asked = book.run(request_approval, RequestApproval(denial=denial(leaf)), BY_B)
    before, said = book.epoch, len(book.told)
    do(book, root, command)
    assert book.epoch == before + 1
    inherited = {"complete": TaskState.CANCELLED, "cancel": TaskState.CANCELLED}.get(command)
    states = [get(book, task.id).state for task in (root, child, leaf)]
    assert all(state not in (TaskState.OPEN, TaskState.SUSPENDED) for state in states)
    if inherited is not None:
        assert states[1:] == [inherited, inherited]
    assert get(book, ended.id).state is TaskState.CANCELLED
    told = {data["id"] for change, data in book.told[said:] if change == "state"}
    assert told == {root.id, child.id, leaf.id}
    assert get_approval(book.draft(), asked.id).state == "revoked"
    # What the leaf had left went to the child and with it to the root, not to the root twice.
    assert get(book, root.id).final == Budgets(10, -1, -1)
    assert book.spending.stopped >= {root.id, child.id, leaf.id}


def test_closed_tasks_are_kept_for_a_while_and_then_gone(book: Book) -> None:
    parent = book.open()
    child = book.run(tasks.delegate_task, DelegateTask(parent=parent.id, agent=AGENT_B, scope=ALL), BY_A)
    book.run(tasks.purge_task, child.id.encode())
    assert get(book, child.id).state is TaskState.OPEN
    book.run(tasks.complete_task, ChangeTask(id=child.id), BY_B)
    book.run(tasks.purge_task, child.id.encode())
    with pytest.raises(MissingError):
        get(book, child.id)
    assert not list(book.store.scan(CHILDREN))
    assert len(list(book.store.scan(TASKS))) == 1


def test_a_revocation_that_ends_or_only_restricts_leaves_the_task(book: Book) -> None:
    """A task ends by a denial for good; what can be lifted must find it again."""
    task = book.open()
    book.run(revoke, Revoke(kind=Kind.TASK, key=task.id, mode=Mode.READ_ONLY), ALICE)
    book.run(revoke, Revoke(kind=Kind.TASK, key=task.id, ttl_s=60), ALICE)
    assert get(book, task.id).state is TaskState.OPEN
    assert book.run(revoke, Revoke(kind=Kind.TASK, key=task.id), ALICE).closed == (task.id,)


def test_revocations_of_a_task_go_with_it(book: Book) -> None:
    """Rows do not gather for ever: a task that is not kept any longer can be named by no call."""
    task = book.open()
    do(book, task, "revoke")
    book.run(revoke, Revoke(kind=Kind.TASK, key=task.id, mode=Mode.STEP_UP), ALICE)
    book.pass_s(book.limits.keep_closed_s)
    book.run(sweep)
    assert not list(book.store.scan(TASKS))
    assert not list(book.store.scan(REVOCATIONS))
    assert [change for change, _ in book.told[-2:]] == ["lift", "lift"]


# ---------------------------------------------------------------- what cannot be asked


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"agent": "clerk"}, "agent"),
        ({"agent": "spiffe://corp.example"}, "agent"),
        ({"owner": ""}, "owner"),
        ({"purpose": ""}, "purpose"),
        ({"purpose": "a\nb"}, "purpose"),
        ({"purpose": "x" * 1025}, "purpose"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": 1 << 40}, "ttl_s"),
        ({"max_depth": 8}, "max_depth"),
        ({"max_depth": -1}, "max_depth"),
        ({"origin": "moon"}, "origin"),
        ({"budgets": Budgets(calls=-2)}, "budgets.calls"),
        ({"budgets": Budgets(cost=1 << 63)}, "budgets.cost"),
        ({"scope": Scope(max_level=9)}, "scope.max_level"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_field(book: Book, more: dict[str, Any], field: str) -> None:
    asked = {"agent": AGENT_A, **more}
    with pytest.raises(InvalidError, match=f"`{field}"):
        book.open(**asked)
    assert book.epoch == 0


def test_a_disabled_owner_opens_delegates_and_resumes_nothing(book: Book) -> None:
    """Row 21."""
    task = book.open()
    do(book, task, "suspend")
    other = book.open()
    book.run(disable_owner, ChangeOwner(id="alice"), BOB)
    for attempt in (
        book.open,
        lambda: do(book, task, "resume", BOB),
        lambda: do(book, other, "delegate"),
    ):
        with pytest.raises(StateError, match="owner `alice` is disabled"):
            attempt()


@pytest.mark.parametrize("id_", ["", "no such", "x" * 100, "\0", "ü"])
def test_an_id_that_is_none_leads_nowhere(book: Book, id_: str) -> None:
    """RT-06: a guess is refused like one that never was."""
    book.open()
    with pytest.raises(AuthorityError, match="does not exist"):
        get(book, id_)


def test_ids_are_in_order_and_no_two_stores_give_the_same() -> None:
    """RT-06: an id is a name, bound to its agent's SVID, and not a secret; chance keeps those of one moment apart."""
    one, two = Ids(), Ids()
    made = [one.make(START_NS) for _ in range(1000)]
    assert made == sorted(set(made))
    assert not {id_[16:] for id_ in made} & {two.make(START_NS)[16:] for _ in range(1000)}
    assert one.make(START_NS + 1_000_000) > made[-1]
