"""A sidecar that follows another one's authority: what is opened and revoked there is in force here."""

import os
import shutil
from collections.abc import Iterator

import pytest

from sidecar._proto.remit.authority.v1 import approvals_pb2, owners_pb2, revocations_pb2, tasks_pb2
from sidecar.demo.processes import wait_for
from tests.fix_serve import AGENT, OTHER, SIDECAR, TRUST_DOMAIN, Served, made_sidecar, outcome, question
from tests.fix_store import Stubs, as_caller, everything, opening, with_authority
from tests.integration.test_authority import refused

STALE_S = 2


@pytest.fixture
def pair() -> Iterator[tuple[Served, Served]]:
    """(followed, follower), both running."""
    with made_sidecar() as first, made_sidecar() as second:
        with_authority(first)
        with_authority(second)
        follow = {"socket": f"{first.folder}/orchestrator/sock", "stale_s": STALE_S}
        second.settings["authority"] = {"store": "authority", "follow": follow, "people": []}
        first.start_ready()
        yield first, second


def test_tasks_revocations_and_owners_of_another_sidecar_are_in_force(pair: tuple[Served, Served]) -> None:
    """What was there before comes in the snapshot, what changes comes after, and each is in force at once."""
    first, second = pair
    agent_kind = revocations_pb2.REVOCATION_KIND_AGENT
    with as_caller(first) as alice, as_caller(first, "carol") as carol:
        task = alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=6)))
        alice.revocations.Revoke(revocations_pb2.RevokeRequest(kind=agent_kind, key=OTHER))
        second.start_ready()
        with second.agent_socket() as agent, second.agent_socket("other") as other:
            assert outcome(agent, question())[0] == "ALLOW"
            assert outcome(other, question()) == ("DENY", "revoked.agent")

            def becomes(channel: object, wanted: str) -> None:
                wait_for(wanted, lambda: outcome(channel, question())[0] == wanted)  # type: ignore[arg-type]

            alice.revocations.Lift(revocations_pb2.LiftRequest(kind=agent_kind, key=OTHER))
            child = alice.tasks.Delegate(
                tasks_pb2.DelegateTaskRequest(
                    parent=task.id, agent=OTHER, scope=everything(), budgets=tasks_pb2.Budgets(calls=2)
                )
            )
            becomes(other, "ALLOW")
            becomes(other, "DENY")  # its two calls are made
            alice.tasks.Cancel(tasks_pb2.ChangeTaskRequest(id=child.id))
            carol.owners.Disable(owners_pb2.ChangeOwnerRequest(id="alice"))
            becomes(agent, "DENY")
            carol.owners.Enable(owners_pb2.ChangeOwnerRequest(id="alice"))
            becomes(agent, "ALLOW")
            alice.tasks.Complete(tasks_pb2.ChangeTaskRequest(id=task.id))
            becomes(agent, "DENY")
            wait_for("the epoch", lambda: second.status().revocation_epoch == first.status().revocation_epoch)
        with as_caller(second) as nobody:
            code, text = refused(lambda: nobody.tasks.Open(opening()))
            assert code in ("FAILED_PRECONDITION", "PERMISSION_DENIED"), text


def test_a_follower_says_where_to_ask_whatever_it_is_asked(pair: tuple[Served, Served]) -> None:
    """It holds no rows of its own, so nothing is looked up here and nothing is said to be missing."""
    first, second = pair
    second.settings["authority"]["people"] = [{"id": "alice", "uids": [os.geteuid()], "roles": ["operator"]}]
    second.start_ready()
    change = tasks_pb2.ChangeTaskRequest(id="t")
    key = revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_TOOL, key="a/b")
    with as_caller(second) as alice:
        for ask in (
            lambda: alice.tasks.Open(opening()),
            lambda: alice.tasks.Get(tasks_pb2.GetTaskRequest(id="t")),
            lambda: alice.tasks.Narrow(tasks_pb2.NarrowTaskRequest(id="t")),
            lambda: alice.tasks.Delegate(tasks_pb2.DelegateTaskRequest(parent="t")),
            lambda: alice.tasks.Suspend(change),
            lambda: alice.tasks.Cancel(change),
            lambda: alice.tasks.List(tasks_pb2.ListTasksRequest()),
            lambda: next(alice.tasks.Watch(tasks_pb2.WatchTasksRequest())),
            lambda: alice.approvals.Request(approvals_pb2.RequestApprovalRequest(evaluation_id="e" * 32)),
            lambda: alice.approvals.Get(approvals_pb2.GetApprovalRequest(id="a")),
            lambda: alice.approvals.Decide(approvals_pb2.DecideApprovalRequest(id="a")),
            lambda: alice.approvals.Cancel(approvals_pb2.CancelApprovalRequest(id="a")),
            lambda: alice.approvals.Review(approvals_pb2.ReviewApprovalRequest(id="a")),
            lambda: alice.revocations.Revoke(key),
            lambda: alice.revocations.List(revocations_pb2.ListRevocationsRequest()),
            lambda: alice.owners.Disable(owners_pb2.ChangeOwnerRequest(id="alice")),
        ):
            code, text = refused(ask)
            assert (code, f"`{first.folder}/orchestrator/sock`; ask there" in text) == ("FAILED_PRECONDITION", True), (
                text
            )


def test_what_is_too_old_is_not_decided_by(pair: tuple[Served, Served]) -> None:
    """Staleness beyond the bound answers ERROR; when the other sidecar is back, so are its tasks."""
    first, second = pair
    with as_caller(first) as alice:
        alice.tasks.Open(opening())
    second.start_ready()
    with second.agent_socket() as agent:
        assert outcome(agent, question())[0] == "ALLOW"
        assert first.process is not None
        first.process.kill()
        wait_for("stale", lambda: outcome(agent, question())[0] == "UNAVAILABLE")
        first.start_ready()
        with as_caller(first) as alice:
            alice.revocations.Revoke(
                revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_AGENT, key=AGENT)
            )
        wait_for("fresh", lambda: outcome(agent, question()) == ("DENY", "revoked.agent"))


def test_a_restart_of_the_follower_refills_no_budget_and_an_emptied_authority_is_not_believed(
    pair: tuple[Served, Served],
) -> None:
    """What its calls spent stays spent, and what was revoked stays revoked, whoever answers as the authority then."""
    first, second = pair
    with as_caller(first) as alice:
        alice.tasks.Open(opening(budgets=tasks_pb2.Budgets(calls=2)))
    for outcomes in (["ALLOW", "ALLOW", "DENY"], ["DENY"]):
        second.start_ready()
        with second.agent_socket() as agent:
            assert [outcome(agent, question())[0] for _ in outcomes] == outcomes
        assert second.process is not None
        second.process.kill()
    second.start_ready()
    with as_caller(first) as alice, second.agent_socket() as agent:
        alice.revocations.Revoke(revocations_pb2.RevokeRequest(kind=revocations_pb2.REVOCATION_KIND_AGENT, key=AGENT))
        wait_for("the revocation", lambda: outcome(agent, question()) == ("DENY", "revoked.agent"))
        first.stop()
        for name in ("authority", "journal"):
            shutil.rmtree(first.folder / name)
        first.start_ready()
        assert first.status().revocation_epoch == 0
        wait_for("the cause", lambda: any("another one than was" in str(line.get("cause")) for line in second.log()))
        wait_for("stale", lambda: outcome(agent, question())[0] == "UNAVAILABLE")


def test_nothing_is_decided_before_the_first_snapshot(pair: tuple[Served, Served]) -> None:
    """A follower that never heard of the revocations cannot know whom they meet."""
    first, second = pair
    assert first.process is not None
    first.process.kill()
    second.give_svid()
    second.start()
    wait_for("the reason", lambda: second.status().not_ready == "not_ready.authority")
    with second.agent_socket() as agent:
        assert outcome(agent, question())[0] == "UNAVAILABLE"
    first.start_ready()
    wait_for("ready", lambda: second.status().ready)


def test_over_mutual_tls_both_sides_are_known_by_their_svids() -> None:
    """`authority.address`: the follower has a role there, and whoever answers must be the sidecar that is named."""
    with made_sidecar() as first, made_sidecar() as second:
        with_authority(first, address="127.0.0.1:0")
        first.settings["authority"]["workloads"].append({"spiffe_id": SIDECAR, "roles": ["auditor"]})
        first.start_ready()
        svid = first.authority.issue(f"spiffe://{TRUST_DOMAIN}/orchestrator")
        with first.tls("authority.address", svid) as channel:
            task = Stubs(channel).tasks.Open(opening())
            assert task.opened_by == svid.spiffe_id
        with first.tls("authority.address", first.authority.issue(AGENT)) as channel:
            assert [one.id for one in Stubs(channel).tasks.List(tasks_pb2.ListTasksRequest(agent=AGENT)).tasks] == [
                task.id
            ]
            assert refused(lambda: Stubs(channel).tasks.Open(opening()))[0] == "PERMISSION_DENIED"
        with_authority(second)
        second.authority = first.authority
        follow = {"address": first.addresses["authority.address"], "spiffe_id": SIDECAR, "stale_s": 10}
        second.settings["authority"] = {"store": "authority", "follow": follow}
        second.start_ready()
        with second.agent_socket() as agent:
            assert outcome(agent, question(task=task.id))[0] == "ALLOW"
