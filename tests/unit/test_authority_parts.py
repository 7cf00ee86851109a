"""Parts of authority that stand alone: who calls, what is watched, what the configuration refuses."""

import json
import os
import pathlib
import socket
import threading
import time
from concurrent import futures
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import yaml

from fastpath.decide import PeerKind
from fastpath.peer import VerifiedPeer
from fastpath.plain import groups_of
from fastpath.table import Generation
from sidecar._proto.remit.authority.v1 import agents_pb2, owners_pb2, tasks_pb2
from sidecar.authority.authority import AgentOwner
from sidecar.authority.callers import Callers
from sidecar.authority.draft import REVOCATIONS, SYSTEM, Caller, Change, Draft, hashed, quoted
from sidecar.authority.errors import DeniedError, InvalidError
from sidecar.authority.feed import Fed, Feed
from sidecar.authority.messages import budgets_of, scope_message, scope_of, value
from sidecar.authority.policies import AuthorityPolicies
from sidecar.authority.revocations import Lift, Revoke, lift, revoke
from sidecar.authority.rows import DamagedRow, Kind, Owner, Revocation, decode, encode
from sidecar.authority.scope import ArgRule, Scope
from sidecar.config_authority import AuthorityConfig, Person, Workload
from sidecar.config_file import parse
from sidecar.errors import ConfigError, PolicyError
from sidecar.policy.compile import compile_image
from sidecar.services.agents import AgentView
from sidecar.services.owners import WATCH
from sidecar.services.uid_door import UidDoor
from tests.fix_store import AGENT_A, AGENT_B, AGENT_C, ALICE, Kept, kept

ROW = Owner(id="alice", active=False, reason="", changed_by="bob", changed_ns=1)
SECTION = AuthorityConfig(
    store="s",
    people=[
        Person(id="alice", uids=[1000, 1001], spiffe_ids=[AGENT_B], roles=["operator"]),
        Person(id="bob", uids=[1002]),
    ],
    workloads=[Workload(spiffe_id=AGENT_A, roles=["auditor"])],
)


ROLES = AuthorityConfig(
    store="s",
    people=[
        *(
            Person(id=role, roles=[role])
            for role in ("operator", "owner", "orchestrator", "approver", "security", "auditor")
        ),
        Person(id="nobody"),
    ],
)
ACTIONS = {
    *(f"task.{name}" for name in ("read", "open", "narrow", "suspend", "resume", "delegate", "complete", "cancel")),
    *(f"approval.{name}" for name in ("read", "request", "decide", "cancel", "review", "break_glass")),
    *("revocation.read", "revocation.revoke", "revocation.lift", "owner.read", "owner.disable", "owner.enable"),
    *("agent.show", "state.backup"),
}


# ---------------------------------------------------------------- who calls


def test_a_user_is_a_person_and_an_svid_a_person_or_a_workload() -> None:
    callers = Callers(SECTION)
    assert (callers.of_uid(1001).id, callers.of_uid(1002).id) == ("alice", "bob")
    assert callers.of_spiffe_id(AGENT_B).kind == "person"
    workload = callers.of_spiffe_id(AGENT_A)
    assert (workload.kind, workload.id, workload.spiffe_id) == ("workload", AGENT_A, AGENT_A)
    with pytest.raises(DeniedError, match="user 7 is nobody"):
        callers.of_uid(7)
    with pytest.raises(DeniedError, match=r"identity\.expired"):
        callers.of_peer(VerifiedPeer(1, AGENT_A, "x509-svid:1", refusal="identity.expired"))


def test_our_policies_give_each_role_what_it_is_for(tmp_path: pathlib.Path) -> None:
    """Row 17: every (role, action) pair; a person without a role has what they answer for, and opens nothing."""
    policies = AuthorityPolicies(tmp_path / "p", [], Callers(ROLES))
    policies.load()
    looks = {"task.read", "approval.read", "revocation.read", "owner.read", "agent.show"}
    changes = {"task.narrow", "task.suspend", "task.complete", "task.cancel"}
    expected = {
        "operator": ACTIONS - {"approval.break_glass"},
        "orchestrator": looks | changes | {"task.open", "task.delegate", "approval.request"},
        "approver": {"approval.decide", "approval.read", "task.read"},
        "auditor": looks,
        "owner": set(),
        "security": looks
        | {"revocation.revoke", "revocation.lift", "owner.disable", "owner.enable", "task.suspend", "task.cancel"}
        | {"approval.cancel", "approval.review", "approval.break_glass"},
        "": set(),
    }
    for role, allowed in expected.items():
        who = Caller("person", role or "nobody")
        assert {action for action in ACTIONS if may(policies, who, action)} == allowed, role
    own = {"task.read", "task.resume", "approval.decide", "approval.read", "approval.cancel", "agent.show"} | changes
    assert {action for action in ACTIONS if may(policies, Caller("person", "nobody"), action, own_owner=True)} == own
    owner = Caller("person", "owner")
    assert {action for action in ACTIONS if may(policies, owner, action, own_owner=True)} == own | {"task.open"}
    agent = Caller("workload", AGENT_A)
    given = {"task.read", "task.delegate", "approval.request", "approval.read", "approval.cancel", "agent.show"}
    assert {action for action in ACTIONS if may(policies, agent, action, own_agent=True)} == given | changes
    assert {action for action in ACTIONS if may(policies, agent, action, in_chain=True)} == {
        "task.read",
        "task.complete",
        "task.cancel",
    }


def may(policies: AuthorityPolicies, caller: Caller, action: str, **asked: bool) -> bool:
    try:
        policies.require(caller, action, **asked)
    except DeniedError:
        return False
    return True


def test_policies_of_the_operator_replace_ours_and_must_fit_the_schema(tmp_path: pathlib.Path) -> None:
    """Who may is Cedar, with the people and roles of the configuration as entities."""
    own = tmp_path / "own.cedar"
    own.write_text('@id("a") permit (principal in Role::"auditor", action == Action::"task.read", resource);')
    callers = Callers(SECTION)
    policies = AuthorityPolicies(tmp_path / "p", [str(own)], callers)
    policies.load()
    assert policies.require(callers.of_spiffe_id(AGENT_A), "task.read") == "ok"
    with pytest.raises(DeniedError, match=r"`alice` may not task\.read: no policy of the authority permits it"):
        policies.require(callers.of_uid(1000), "task.read")
    own.write_text('@id("a") permit (principal, action, resource) when { context.nonsense };')
    with pytest.raises(PolicyError):
        policies.load()
    assert policies.require(callers.of_spiffe_id(AGENT_A), "task.read") == "ok"


def test_the_control_socket_knows_who_connected(tmp_path: pathlib.Path) -> None:
    """SO_PEERCRED of the outer connection, found again by the name of the inner one."""
    door = UidDoor()
    seen: list[int | None] = []

    def handle(_: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(door.uid(context.peer()))
        return b"x" * 200_000

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers = {"y": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", handlers),))
    server.add_insecure_port(f"unix:{door.inner}")
    server.start()
    door.bind(str(tmp_path / "outer"))
    door.start()
    try:
        for _ in range(3):
            with grpc.insecure_channel(f"unix:{tmp_path}/outer") as channel:
                assert len(channel.unary_unary("/x/y")(b"a" * 100_000, timeout=30)) == 200_000
        assert seen == [os.geteuid()] * 3
        # Whoever came another way is nobody.
        with grpc.insecure_channel(f"unix:{door.inner}") as channel:
            channel.unary_unary("/x/y")(b"", timeout=30)
        assert seen[-1] is None
        assert door.uid("unix-abstract:remit-guess") is None
        # A server that is gone takes the connection with it.
        server.stop(0).wait()
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(str(tmp_path / "outer"))
            late.settimeout(30)
            assert late.recv(1) == b""
    finally:
        server.stop(0)
        door.close()
        door.close()
    assert not pathlib.Path(door.inner).exists()


def test_a_caller_over_mutual_tls_is_known_with_the_serial_of_its_certificate() -> None:
    """What a revocation of a credential names, so that nobody lifts that of their own."""
    callers = Callers(AuthorityConfig(store=pathlib.Path("s")))
    peer = VerifiedPeer(PeerKind.PEER_AGENT, "spiffe://corp.example/a", "x509-svid:0a1b", bundle_generation=2)
    assert callers.of_peer(peer) == Caller("workload", "spiffe://corp.example/a", "spiffe://corp.example/a", "0a1b")


# ---------------------------------------------------------------- watching


def fed(epoch: int) -> Fed:
    return Fed(epoch, Change("owners", ROW, False))


def test_a_feed_gives_every_change_once_in_order_and_says_when_it_cannot() -> None:
    feed = Feed(keep=4)
    feed.start(10)
    assert feed.position() == (10, 1)
    assert (feed.behind(10), feed.behind(9), feed.behind(11)) == (1, None, None)
    feed.put(12, [fed(11), fed(12)])
    assert (feed.take(1, 0) or ())[:2] == (12, [fed(11), fed(12)])
    assert (feed.take(3, 0) or ())[:2] == (12, [])
    assert (feed.behind(10), feed.behind(11), feed.behind(12)) == (1, 2, 3)
    feed.put(15, [fed(13), fed(14), fed(15)])
    assert feed.take(1, 0) is None
    assert feed.behind(10) is None
    assert (feed.take(feed.behind(11) or 0, 0) or ())[:2] == (15, [fed(12), fed(13), fed(14), fed(15)])
    waiting: list[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(feed.take(6, 30)))
    thread.start()
    feed.close()
    thread.join()
    assert waiting == [None]


def test_who_missed_what_has_no_epoch_begins_with_a_snapshot_however_full_the_feed_is() -> None:
    feed = Feed(keep=3)
    feed.start(0)
    for epoch in (1, 2, 3):
        feed.put(epoch, [fed(epoch)])
    feed.tell([Change("owners", ROW, False)])
    feed.put(4, [fed(4)])
    assert (feed.behind(3), feed.behind(4)) == (None, 6)


def test_a_beat_is_no_younger_than_the_picture_that_it_vouches_for() -> None:
    """A follower that reads slowly holds a stream up; what was revoked meanwhile is not what the next beat is about."""
    feed = Feed()
    feed.start(1)
    kept_open = SimpleNamespace(store=SimpleNamespace(feed=feed, id="s"), section=SimpleNamespace(beat_ms=100))
    asked = owners_pb2.WatchOwnersRequest(from_epoch=1, store="s")
    stream = WATCH.stream(kept_open, asked, lambda: True)  # type: ignore[arg-type]  # all that a stream needs of it
    assert next(stream).store == "s"
    feed.put(2, [fed(2)])
    assert next(stream).put.id == ROW.id
    before_ns = time.time_ns()
    feed.put(3, [fed(3)])
    beat = next(stream)
    assert (beat.epoch, beat.beat.time_unix_ns <= before_ns) == (2, True)
    assert next(stream).epoch == 3


def test_an_epoch_of_another_store_says_nothing_here() -> None:
    """Who knows it begins with a snapshot, and hears first whose it is; so does who goes on."""
    feed = Feed()
    feed.start(7)
    authority = SimpleNamespace(store=SimpleNamespace(feed=feed, id="s"), section=SimpleNamespace(beat_ms=100))

    def first(store: str) -> tuple[str, int]:
        asked = owners_pb2.WatchOwnersRequest(from_epoch=7, store=store)
        message = next(WATCH.stream(authority, asked, lambda: True))  # type: ignore[arg-type]  # all that it needs
        return message.store, message.snapshot

    assert first("s") == first("") == ("s", tasks_pb2.SNAPSHOT_MARK_UNSPECIFIED)
    assert first("other") == ("s", tasks_pb2.SNAPSHOT_MARK_BEGIN)


# ---------------------------------------------------------------- rows and messages


def test_a_row_that_is_not_what_was_written_is_refused() -> None:
    """Every value has a version and a checksum."""
    good = encode(ROW)
    assert decode(good, Owner) == ROW
    for at in range(len(good)):
        with pytest.raises(DamagedRow, match="restore a backup"):
            decode(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :], Owner)
    for short in (b"", good[:5], good[:-1]):
        with pytest.raises(DamagedRow):
            decode(short, Owner)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("5", 5),
        ('"5"', "5"),
        ("true", True),
        ("5.5", "5.5"),
        ("null", "null"),
        ("[1]", "[1]"),
        ("abc", "abc"),
        ("", ""),
    ],
)
def test_a_value_is_a_number_a_boolean_or_text(text: str, meant: object) -> None:
    found = value(text)
    assert (type(found), found) == (type(meant), meant)


def test_scopes_and_budgets_survive_the_wire() -> None:
    scope = Scope(
        any_tool=True,
        label_allow=(),
        methods=("GET",),
        arg_rules=(ArgRule("t", "p", "in", (1, True, "1", "x")), ArgRule("", "q", "range", (-(1 << 63), 7))),
    )
    assert scope_of(scope_message(scope)) == scope
    with pytest.raises(InvalidError, match=r"`budgets\.cost`"):
        budgets_of(tasks_pb2.Budgets(cost=-1))


def test_texts_of_people_cannot_pretend_to_be_fields_of_an_event() -> None:
    assert quoted("alice") == "alice"
    assert quoted("x by=bob") == '"x by=bob"'
    assert quoted('a"b') == '"a\\"b"'
    assert hashed("ab", "c") != hashed("a", "bc")
    assert SYSTEM.kind == "system"


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "`authority.store`: is missing"),
        ({"store": "s", "people": [{"id": "a", "uids": [1]}, {"id": "b", "uids": [1]}]}, "`1` is"),
        ({"store": "s", "people": [{"id": "a"}, {"id": "a"}]}, "`a` is"),
        ({"store": "s", "people": [{"id": " "}]}, "is empty or not printable"),
        ({"store": "s", "people": [{"id": "a", "spiffe_ids": ["nonsense"]}]}, "is not a SPIFFE ID"),
        ({"store": "s", "workloads": [{"spiffe_id": "spiffe://corp.example"}]}, "names a trust domain"),
        ({"store": "s", "sockets": [{"socket": "x/s"}]}, "give either `spiffe_id` or `person`"),
        ({"store": "s", "sockets": [{"socket": "x/s", "person": "z"}]}, "`z` is not in `authority.people`"),
        ({"store": "s", "follow": {}}, "give either `address` with `spiffe_id`, or `socket`"),
        ({"store": "s", "follow": {"address": "h:1"}}, "name the sidecar that must answer"),
        ({"store": "s", "address": "nowhere"}, "`authority.address`: `nowhere` is not an address"),
        ({"store": "s", "approvals": {"break_glass_s": 901}}, "`authority.approvals.break_glass_s`"),
        ({"store": "s", "depth_max": 8}, "`authority.depth_max`"),
        (
            {"store": "s", "people": [{"id": "a"}], "sockets": [{"socket": "control/x", "person": "a"}]},
            "shares its folder",
        ),
    ],
)
def test_what_cannot_be_configured_is_named(section: dict[str, Any], problem: str) -> None:
    settings = {
        "identity": {"workload_api": "unix:///x"},
        "listeners": {"agents": [{"socket": "a/s", "spiffe_id": AGENT_A}]},
        "policy": {"policies": ["p"], "store": "g"},
        "journal": {"dir": "j"},
        "control": {"socket": "control/s"},
        "authority": section,
    }
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_dump(settings), "/etc/remit.yaml")
    assert problem in str(caught.value)


def shown(one: Kept, classes: list[str]) -> agents_pb2.EffectiveAuthority:
    """What `remit agent show` says of AGENT_A, which is in these classes."""
    authority = SimpleNamespace(
        store=one.store,
        live=one.live,
        require=lambda *_, **__: None,
        looked=lambda *_: None,
        owner_of=lambda _: AgentOwner("alice", True),
        classes_of=lambda agent: classes if agent == AGENT_A else [],
    )
    view = AgentView(authority, lambda _: ALICE, threading.Semaphore())  # type: ignore[arg-type]  # all that it needs
    return view.Show(agents_pb2.ShowAgentRequest(agent=AGENT_A), None)  # type: ignore[arg-type]


def test_what_an_agent_may_do_names_the_revocations_of_its_classes(tmp_path: pathlib.Path) -> None:
    """By the entities in force, as its calls are judged."""
    with kept(tmp_path / "s") as one:
        one.open()
        for name in ("crm", "other"):
            one.run(revoke, Revoke(kind=Kind.CLASS, key=name), ALICE)
        found = shown(one, ["crm", "staff"])
        assert ([row.key for row in found.revocations], found.verdict) == (["crm"], "class is revoked")
        one.run(lift, Lift(kind=Kind.CLASS, key="crm"), ALICE)
        assert shown(one, ["crm", "staff"]).verdict == ""


def test_it_names_them_however_many_classes_are_revoked(tmp_path: pathlib.Path) -> None:
    with kept(tmp_path / "s") as one:
        one.open()

        def revoke_many(draft: Draft) -> None:
            for number in range(10_050):
                revoke(draft, Revoke(kind=Kind.CLASS, key=f"c{number}"), ALICE)

        one.store.call(revoke_many)
        with one.store.read() as draft:
            *_, last = (decode(value, Revocation).key for _, value in draft.rows.scan(REVOCATIONS))
        found = shown(one, [last, "staff"])
        assert ([row.key for row in found.revocations], found.verdict) == ([last], "class is revoked")


def test_the_classes_of_an_agent_are_those_that_its_calls_are_judged_by() -> None:
    """By whatever way it is in them, and nothing of another type."""

    def row(type_: str, id_: str, *parents: tuple[str, str]) -> dict[str, Any]:
        return {"uid": {"type": type_, "id": id_}, "attrs": {}, "parents": [{"type": t, "id": i} for t, i in parents]}

    rows = [
        row("AgentClass", "top"),
        row("AgentClass", "middle", ("AgentClass", "top")),
        row("AgentClass", "other"),
        row("Team", "red", ("AgentClass", "middle")),
        row("Agent", AGENT_A, ("Team", "red"), ("AgentClass", "b"), ("AgentClass", "a")),
        row("Agent", AGENT_B, ("Agent", AGENT_A)),
        row("Agent", AGENT_C),
    ]
    image = compile_image('@id("p") permit (principal, action, resource);', entities=json.dumps(rows)).image
    with Generation.from_bytes(image, generation=1) as generation:
        all_ = ["a", "b", "middle", "top"]
        found = {agent: groups_of(generation, "Agent", agent, "AgentClass") for agent in (AGENT_A, AGENT_B, AGENT_C)}
        assert found == {AGENT_A: all_, AGENT_B: all_, AGENT_C: []}
        assert groups_of(generation, "Agent", AGENT_A, "Team") == ["red"]
        assert groups_of(generation, "Agent", "nobody", "AgentClass") == []
