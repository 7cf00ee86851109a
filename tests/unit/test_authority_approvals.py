"""Approvals, revocations and owners: who may decide, what a grant is bound to, and what queues hold."""

import itertools
from typing import Any

import pytest

from sidecar.authority import approvals, tasks
from sidecar.authority.approvals import CancelApproval, DecideApproval, RequestApproval, ReviewApproval, get_approval
from sidecar.authority.draft import APPROVALS, QUEUE_AGENT, QUEUE_APPROVER, REVIEWS, SECOND_NS, Caller
from sidecar.authority.due import sweep
from sidecar.authority.errors import DeniedError, ExhaustedError, InvalidError, MissingError, StateError
from sidecar.authority.owners import ChangeOwner, disable_owner, enable_owner
from sidecar.authority.revocations import Lift, Revoke, expire_revocation, lift, matching, revoke, row_key
from sidecar.authority.rows import Approval, ApprovalState, Kind, Mode, Task
from sidecar.authority.tasks import ChangeTask, DelegateTask
from sidecar.services.approvals import WATCH
from tests.fix_store import AGENT_A, AGENT_B, AGENT_C, ALICE, ALL, BOB, BY_A, BY_B, CAROL, Book, denial

ERIN = Caller("person", "erin", AGENT_C)
COMMANDS = ("grant", "deny", "cancel", "expire", "revoke")


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def task(book: Book) -> Task:
    return book.open()


def ask(book: Book, task: Task, by: Caller = BY_A, digest: bytes = b"d" * 32, **more: Any) -> Approval:
    return book.run(approvals.request_approval, RequestApproval(denial=denial(task, digest), **more), by)


def grant(book: Book, row: Approval, by: Caller = BOB, **more: Any) -> Approval:
    return book.run(approvals.decide_approval, DecideApproval(id=row.id, approve=True, **more), by)


def do(book: Book, row: Approval, command: str) -> None:
    if command in ("grant", "deny"):
        book.run(approvals.decide_approval, DecideApproval(id=row.id, approve=command == "grant"), BOB)
    elif command == "cancel":
        book.run(approvals.cancel_approval, CancelApproval(id=row.id), BOB)
    elif command == "expire":
        book.pass_s(3000)
        book.run(approvals.expire_approval, row.id.encode(), BOB)
    else:
        task = tasks.get_task(book.draft(), row.task)
        if task.state in ("open", "suspended"):
            book.run(tasks.complete_task, ChangeTask(id=row.task), ALICE)


@pytest.mark.parametrize(("state", "command"), list(itertools.product(ApprovalState, COMMANDS)))
def test_every_command_in_every_state_is_a_transition_or_is_refused(
    book: Book, task: Task, state: ApprovalState, command: str
) -> None:
    ways = {"pending": "", "granted": "grant", "denied": "deny", "cancelled": "cancel", "expired": "expire"}
    row = ask(book, task)
    if state is ApprovalState.REVOKED:
        do(book, row, "revoke")
    elif ways[state]:
        do(book, row, ways[state])
    before = get_approval(book.draft(), row.id)
    assert before.state is state
    after = approvals.TRANSITIONS.get((state, command))
    if after is not None:
        do(book, row, command)
        assert get_approval(book.draft(), row.id).state is after
    elif command in ("expire", "revoke"):
        do(book, row, command)
        assert get_approval(book.draft(), row.id) == before
    else:
        with pytest.raises(StateError):
            do(book, row, command)
        assert get_approval(book.draft(), row.id) == before


# ---------------------------------------------------------------- who decides


def test_nobody_of_the_chain_and_not_who_asked_can_grant(book: Book, task: Task) -> None:
    """Row 17: the full matrix of who could; only people and workloads outside the chain that did not ask."""
    child = book.run(tasks.delegate_task, DelegateTask(parent=task.id, agent=AGENT_B, scope=ALL), BY_A)
    row = ask(book, child, CAROL)
    by_c = Caller("workload", AGENT_C, AGENT_C)
    for by in (BY_A, BY_B, CAROL, Caller("person", "dora", AGENT_A)):
        with pytest.raises(DeniedError):
            grant(book, row, by)
    assert get_approval(book.draft(), row.id).state is ApprovalState.PENDING
    assert grant(book, row, by_c).decided_by == AGENT_C


def test_the_owner_may_decide_unless_duties_are_separate() -> None:
    for separate in (False, True):
        book = Book(separate_owner=separate)
        row = ask(book, book.open())
        if separate:
            with pytest.raises(DeniedError, match="owner cannot approve"):
                grant(book, row, ALICE)
        else:
            assert grant(book, row, ALICE).state is ApprovalState.GRANTED


# ---------------------------------------------------------------- what a grant is


def test_a_grant_is_for_one_call_with_these_arguments_unless_more_is_said(book: Book, task: Task) -> None:
    """Row 6: bound to the digest; of a class to the digest without arguments."""
    exact = grant(book, ask(book, task))
    told = dict(book.told)["approval"]
    assert (exact.scope, exact.uses, told["digest"], told["uses"]) == ("exact", 1, b"d" * 32, 1)
    assert told["self_approved"] is False
    several = grant(book, ask(book, task, digest=b"e" * 32), scope="class", uses=5, ttl_s=60)
    told = book.told[-1][1]
    assert (several.scope, told["digest"], told["uses"]) == ("class", b"c" * 32, 5)
    assert several.expires_ns == book.now_ns + 60 * 10**9


def test_a_grant_ends_with_its_task_at_the_latest(book: Book) -> None:
    task = book.open(ttl_s=30)
    row = ask(book, task)
    assert row.expires_ns == task.expires_ns
    assert grant(book, row, ttl_s=900).expires_ns == task.expires_ns


def test_a_decision_on_another_digest_than_was_looked_at_is_refused(book: Book, task: Task) -> None:
    row = ask(book, task)
    with pytest.raises(StateError, match="another call than you looked at"):
        grant(book, row, expected_digest=b"x" * 32)
    assert grant(book, row, expected_digest=b"d" * 32).state is ApprovalState.GRANTED


@pytest.mark.parametrize("more", [{"uses": 101}, {"uses": -1}, {"ttl_s": 100_000}, {"scope": "all"}])
def test_a_grant_of_more_than_the_bounds_is_refused(book: Book, task: Task, more: dict[str, Any]) -> None:
    row = ask(book, task)
    with pytest.raises(InvalidError):
        grant(book, row, **more)


def test_a_question_that_waits_too_long_is_refused(book: Book, task: Task) -> None:
    """Row 18: nobody's decision is a refusal, even before the sweep."""
    row = ask(book, task, ttl_s=60)
    book.pass_s(60)
    with pytest.raises(StateError, match="waited too long"):
        grant(book, row)
    book.run(approvals.expire_approval, row.id.encode(), BOB)
    assert get_approval(book.draft(), row.id).state is ApprovalState.EXPIRED


def test_there_is_nothing_to_approve_for_a_task_that_ended(book: Book, task: Task) -> None:
    book.run(tasks.complete_task, ChangeTask(id=task.id), ALICE)
    with pytest.raises(StateError, match="task has ended"):
        ask(book, task)


# ---------------------------------------------------------------- queues


def test_a_thousand_questions_of_the_same_are_one(book: Book, task: Task) -> None:
    """Row 18: deduplicated by task, action, resource and digest; other arguments are another question."""
    first = ask(book, task)
    for _ in range(999):
        assert ask(book, task).id == first.id
    assert len(list(book.store.scan(APPROVALS))) == 1
    assert ask(book, task, digest=b"o" * 32).id != first.id
    under_new_policies = RequestApproval(denial=denial(task, generation=first.generation + 1))
    assert book.run(approvals.request_approval, under_new_policies, BY_A).id != first.id
    do(book, first, "deny")
    assert ask(book, task).id != first.id


def test_queues_are_bounded_by_agent_and_by_approver() -> None:
    """Row 18."""
    book = Book(agent_queue_max=3, approver_queue_max=5)
    first, second = book.open(AGENT_A), book.open(AGENT_B)
    rows = [ask(book, first, digest=bytes([n]) * 32) for n in range(3)]
    with pytest.raises(ExhaustedError, match=f"3 questions of agent `{AGENT_A}`"):
        ask(book, first, digest=b"x" * 32)
    for n in range(2):
        ask(book, second, BY_B, digest=bytes([n]) * 32)
    with pytest.raises(ExhaustedError, match="5 questions of approver `alice`"):
        ask(book, second, BY_B, digest=b"x" * 32)
    assert ask(book, second, BY_B, digest=b"x" * 32, approver="bob").approver == "bob"
    # Whatever ends a question makes room.
    for row, command in zip(rows, ("grant", "deny", "cancel"), strict=True):
        do(book, row, command)
    assert ask(book, first, digest=b"y" * 32).state is ApprovalState.PENDING
    assert len(list(book.store.scan(QUEUE_AGENT))) == len(list(book.store.scan(QUEUE_APPROVER))) == 4


# ---------------------------------------------------------------- break-glass


def test_breaking_the_glass_grants_at_once_for_minutes_and_must_be_reviewed(book: Book, task: Task) -> None:
    """Row 29: a named person, a reason, at most 15 minutes, few uses, and a review item in every case."""
    row = ask(book, task, CAROL, emergency=True, justification="production is down", uses=2)
    assert (row.state, row.break_glass, row.uses, row.review) == (ApprovalState.GRANTED, True, 2, "due")
    assert row.expires_ns <= book.now_ns + 900 * 10**9
    assert book.told[-1][1]["break_glass"] is True
    assert 'why="production is down"' in dict(book.events)["approval.break_glass"]
    with pytest.raises(DeniedError, match="who broke the glass"):
        book.run(approvals.review_approval, ReviewApproval(id=row.id), CAROL)
    do(book, row, "expire")
    book.pass_s(1_000_000)
    book.run(approvals.purge_approval, row.id.encode())
    assert [key.decode() for key, _ in book.store.scan(REVIEWS)] == [row.id]
    done = book.run(approvals.review_approval, ReviewApproval(id=row.id), BOB)
    assert (done.review, done.reviewed_by) == ("done", "bob")
    with pytest.raises(StateError, match="needs no review"):
        book.run(approvals.review_approval, ReviewApproval(id=row.id), ALICE)
    book.run(approvals.purge_approval, row.id.encode())
    with pytest.raises(MissingError):
        get_approval(book.draft(), row.id)


@pytest.mark.parametrize(
    ("by", "more", "error"),
    [
        (BY_B, {"justification": "x"}, DeniedError),
        (Caller("person", "dora", AGENT_A), {"justification": "x"}, DeniedError),
        (CAROL, {"justification": " "}, InvalidError),
        (CAROL, {"justification": "x", "uses": 11}, InvalidError),
        (CAROL, {"justification": "x", "ttl_s": 901}, InvalidError),
    ],
)
def test_the_glass_is_not_broken_by_agents_without_reason_or_beyond_its_bounds(
    book: Book, task: Task, by: Caller, more: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(book, task, by, emergency=True, **more)
    assert not list(book.store.scan(APPROVALS))


def test_who_answers_and_security_are_named_when_the_glass_is_broken() -> None:
    """Row 29: in the journal and to whoever watches; not the one who did it."""
    book = Book(security=("carol", "erin"))
    row = ask(book, book.open(), CAROL, emergency=True, justification="fire")
    assert row.notify == ("alice", "erin")
    (said,) = (detail for name, detail in book.events if name == "approval.break_glass")
    assert "owner=alice notify=alice,erin why=fire" in said
    assert list(WATCH.put(row)["put"].notify) == ["alice", "erin"]
    assert WATCH.keep(row)


def test_a_call_that_needs_no_task_is_approved_for_its_agent(book: Book) -> None:
    """A class that a policy exempts: who answers for the agent is asked, and the grant is for such calls."""
    denied = denial(book.open())._replace(task="", owner="alice")
    row = book.run(approvals.request_approval, RequestApproval(denial=denied), BY_A)
    assert (row.task, row.chain, row.owner, row.approver) == ("", (AGENT_A,), "alice", "alice")
    with pytest.raises(DeniedError):
        grant(book, row, BY_A)
    granted = grant(book, row, ALICE)
    assert granted.expires_ns == book.now_ns + book.limits.approval_grant_s * SECOND_NS
    assert dict(book.told)["approval"]["task"] == ""
    book.pass_s(book.limits.approval_grant_s)
    book.run(sweep)
    assert get_approval(book.draft(), row.id).state is ApprovalState.EXPIRED
    nobody = RequestApproval(denial=denied._replace(owner=""))
    with pytest.raises(InvalidError, match="name who is to decide"):
        book.run(approvals.request_approval, nobody, BY_A)


# ---------------------------------------------------------------- revocations and owners


@pytest.mark.parametrize(
    ("kind", "key", "good"),
    [
        (Kind.AGENT, AGENT_A, True),
        (Kind.AGENT, "clerk", False),
        (Kind.AGENT, "spiffe://corp.example", False),
        (Kind.TRUST_DOMAIN, "corp.example", True),
        (Kind.TRUST_DOMAIN, "spiffe://corp.example", False),
        (Kind.CREDENTIAL, "0a1b2c", True),
        (Kind.CREDENTIAL, "0A:1B", False),
        (Kind.DESTINATION, "bank.example", True),
        (Kind.DESTINATION, "Bank.example", False),
        (Kind.TOOL, "mail/send", True),
        (Kind.TOOL, "", False),
        (Kind.TOOL, "mail/*", False),
        (Kind.TOOL, "*", False),
        (Kind.SERVER, "mail/*", False),
        (Kind.CLASS, "*", False),
        (Kind.CLASS, "crm", True),
        (Kind.OWNER, "alice", True),
        (Kind.SERVER, "x\ny", False),
        (Kind.SESSION, "s", False),
    ],
)
def test_a_revocation_names_something_that_can_be(book: Book, kind: Kind, key: str, good: bool) -> None:
    if good:
        revoked = book.run(revoke, Revoke(kind=kind, key=key, reason="why"), ALICE).revocation
        assert dict(book.told)["revoke"]["revoked_unix_ns"] == book.now_ns
        assert matching(book.draft(), kind, key) == [revoked]
    else:
        with pytest.raises(InvalidError):
            book.run(revoke, Revoke(kind=kind, key=key), ALICE)


def test_modes_stand_beside_each_other_and_are_lifted_alone(book: Book) -> None:
    for mode in Mode:
        book.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A, mode=mode), ALICE)
    book.run(lift, Lift(kind=Kind.AGENT, key=AGENT_A, mode=Mode.DENY), ALICE)
    assert [row.mode for row in matching(book.draft(), Kind.AGENT, AGENT_A)] == [Mode.READ_ONLY, Mode.STEP_UP]
    with pytest.raises(MissingError):
        book.run(lift, Lift(kind=Kind.AGENT, key=AGENT_A, mode=Mode.DENY), ALICE)


def test_a_revocation_that_is_made_longer_does_not_end_by_its_old_date(book: Book) -> None:
    book.run(revoke, Revoke(kind=Kind.TOOL, key="a/b", ttl_s=10), ALICE)
    book.run(revoke, Revoke(kind=Kind.TOOL, key="a/b", ttl_s=100), ALICE)
    key = row_key(Kind.TOOL, "a/b", Mode.DENY)
    book.pass_s(10)
    book.run(expire_revocation, key, ALICE)
    assert matching(book.draft(), Kind.TOOL, "a/b")
    book.pass_s(90)
    book.run(expire_revocation, key, ALICE)
    assert not matching(book.draft(), Kind.TOOL, "a/b")
    assert book.told[-1][0] == "lift"


@pytest.mark.parametrize(("first_s", "then_s", "ends_s"), [(0, 5, 0), (100, 5, 100), (5, 100, 100), (5, 0, 0)])
def test_revoking_again_never_makes_it_shorter(book: Book, first_s: int, then_s: int, ends_s: int) -> None:
    """Shortening is lifting, which has a permission of its own."""
    began_ns = book.now_ns
    for ttl_s in (first_s, then_s):
        book.run(revoke, Revoke(kind=Kind.AGENT, key=AGENT_A, ttl_s=ttl_s), ALICE)
    (row,) = matching(book.draft(), Kind.AGENT, AGENT_A)
    assert row.expires_ns == (began_ns + ends_s * SECOND_NS if ends_s else 0)
    book.pass_s(50)
    book.run(sweep)
    assert matching(book.draft(), Kind.AGENT, AGENT_A)
    book.run(lift, Lift(kind=Kind.AGENT, key=AGENT_A), BOB)
    assert not matching(book.draft(), Kind.AGENT, AGENT_A)


@pytest.mark.parametrize(
    ("kind", "key", "name"),
    [
        (Kind.DESTINATION, "evil.example.", "evil.example"),
        (Kind.DESTINATION, "db.evil.example:08443", "db.evil.example:8443"),
        (Kind.DESTINATION, "::1", "[::1]"),
        (Kind.DESTINATION, "[0:0::1]", "[::1]"),
        (Kind.DESTINATION, "::ffff:127.0.0.1", "127.0.0.1"),
        (Kind.DESTINATION, "[::ffff:7f00:1]", "127.0.0.1"),
        (Kind.DESTINATION, "spiffe://example.org/db", "spiffe://example.org/db"),
        (Kind.DESTINATION, "unknown", "unknown"),
        (Kind.CREDENTIAL, "a1b", "0a1b"),
        (Kind.CREDENTIAL, "00a1b0", "a1b0"),
        (Kind.CREDENTIAL, "0", "00"),
        *((Kind.DESTINATION, key, "") for key in ("*.evil.example", "https://evil.example", "evil.example/")),
        *((Kind.DESTINATION, key, "") for key in ("evil.example:443", "evil.example:80", "user@evil.example")),
        *(
            (Kind.DESTINATION, key, "")
            for key in ("evil example", "b\u00fccher.example", "127.1", "spiffe://example.org")
        ),
        *((Kind.SERVER, key, "") for key in ("docs/", " docs")),
        *((Kind.TOOL, key, "") for key in ("docs/search ", " docs/search")),
        (Kind.OWNER, "alice ", ""),
    ],
)
def test_a_revocation_has_the_form_that_calls_have_or_is_refused(book: Book, kind: Kind, key: str, name: str) -> None:
    """One that no call can match is acknowledged and never in force. It is lifted by either form."""
    if not name:
        with pytest.raises(InvalidError, match="`key`"):
            book.run(revoke, Revoke(kind=kind, key=key), ALICE)
        return
    assert book.run(revoke, Revoke(kind=kind, key=key), ALICE).revocation.key == name
    assert book.told[-1][1]["key"] == name  # type: ignore[index]
    book.run(lift, Lift(kind=kind, key=key), BOB)
    assert not matching(book.draft(), kind, name)


def test_nobody_lifts_a_revocation_of_themselves(book: Book, task: Task) -> None:
    """Whatever it names them by: their agent, what it holds, where it belongs or what it is reached at."""
    child = book.run(tasks.delegate_task, DelegateTask(parent=task.id, agent=AGENT_C, scope=ALL), BY_A)
    shown = Caller("workload", AGENT_B, AGENT_B, "0a1b")
    elsewhere = "spiffe://other.example/agents/x"
    for kind, key, by in (
        (Kind.OWNER, "alice", ALICE),
        (Kind.AGENT, AGENT_A, BY_A),
        (Kind.AGENT, AGENT_C, ERIN),
        (Kind.DESTINATION, AGENT_A, BY_A),
        (Kind.TRUST_DOMAIN, "corp.example", BY_A),
        (Kind.TRUST_DOMAIN, "corp.example", ERIN),
        (Kind.CREDENTIAL, "a1b", shown),
        (Kind.TASK, task.id, BY_A),
        (Kind.TASK, task.id, ERIN),  # whose task stands below it
        (Kind.TASK, child.id, ERIN),
    ):
        book.run(revoke, Revoke(kind=kind, key=key, mode=Mode.READ_ONLY), BOB)
        with pytest.raises(DeniedError, match="themselves"):
            book.run(lift, Lift(kind=kind, key=key, mode=Mode.READ_ONLY), by)
        for other in (BOB, Caller("workload", elsewhere, elsewhere, "ff")):
            book.run(lift, Lift(kind=kind, key=key, mode=Mode.READ_ONLY), other)
            book.run(revoke, Revoke(kind=kind, key=key, mode=Mode.READ_ONLY), BOB)
    book.run(revoke, Revoke(kind=Kind.CLASS, key="worker"), BOB)
    with pytest.raises(DeniedError, match="themselves"):
        book.run(lift, Lift(kind=Kind.CLASS, key="worker", own_class=True), BY_A)
    book.run(lift, Lift(kind=Kind.CLASS, key="worker"), BY_A)


def test_who_asked_second_cannot_decide_either(book: Book, task: Task) -> None:
    """Row 17: one question, all who asked it; and not more of them than are kept."""
    row = ask(book, task)
    for by in (CAROL, BOB, CAROL):
        assert ask(book, task, by).id == row.id
    assert get_approval(book.draft(), row.id).askers == (AGENT_A, "carol", "bob")
    for by in (BOB, CAROL):
        with pytest.raises(DeniedError, match="who asks"):
            grant(book, row, by)
    for n in range(approvals.ASKERS_MAX - 3):
        ask(book, task, Caller("person", f"p{n}"))
    with pytest.raises(ExhaustedError, match="wait for its decision"):
        ask(book, task, Caller("person", "late"))
    assert grant(book, row, Caller("person", "late")).state is ApprovalState.GRANTED


def test_a_question_that_cannot_help_or_is_shown_cut_reaches_nobody(book: Book, task: Task) -> None:
    """Rules that no approval lifts; and nobody approves what they cannot read."""
    for more in ({"emergency_only": True}, {"truncated": True}):
        asked = RequestApproval(denial=denial(task, **more), justification="it cannot wait")
        with pytest.raises(StateError):
            book.run(approvals.request_approval, asked, BY_A)
    asked = RequestApproval(denial=denial(task, emergency_only=True), justification="it cannot wait", emergency=True)
    assert book.run(approvals.request_approval, asked, CAROL).break_glass


def test_an_owner_is_enabled_by_somebody_else(book: Book) -> None:
    with pytest.raises(MissingError):
        book.run(enable_owner, ChangeOwner(id="alice"), BOB)
    assert book.run(disable_owner, ChangeOwner(id="alice"), BOB).active is False
    with pytest.raises(DeniedError, match="enable themselves"):
        book.run(enable_owner, ChangeOwner(id="alice"), ALICE)
    assert book.run(enable_owner, ChangeOwner(id="alice"), BOB).active is True
    assert [data for change, data in book.told if change == "owner"] == [
        {"id": "alice", "active": False},
        {"id": "alice", "active": True},
    ]
