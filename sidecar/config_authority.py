"""The section `authority` of the configuration: tasks, revocations, approvals, owners, and who may change them."""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from fastpath import spiffe_id
from sidecar.authority.draft import Limits
from sidecar.config_section import Section, doc
from sidecar.errors import IdentityError

GIB = 1 << 30
DAY_S = 86_400
Path = Annotated[str, msgspec.Meta(extra={"path": True})]
DEFAULTS = Limits()


class Person(Section, frozen=True, kw_only=True):
    """Somebody who may open tasks, answer for agents, or decide about approvals."""

    id: Annotated[str, doc("name in tasks, records and policies, as Person::`id`", "text")]
    uids: Annotated[list[int], doc("users of this machine who are this person at the control socket", "user ids")] = []
    spiffe_ids: Annotated[list[str], doc("SVIDs that this person calls `authority.address` with", "SPIFFE IDs")] = []
    roles: Annotated[
        list[str],
        doc("groups in the authority's policies; ours know operator, owner, orchestrator, approver, security, auditor"),
    ] = []


class Workload(Section, frozen=True, kw_only=True):
    """A program with a role, as an orchestrator that opens tasks."""

    spiffe_id: Annotated[str, doc("its SVID", "SPIFFE ID")]
    roles: Annotated[list[str], doc("as of a person")] = []


class CallerSocket(Section, frozen=True, kw_only=True):
    """A Unix socket for the authority services that belongs to one caller: whoever may enter its folder."""

    socket: Annotated[Path, doc("path of the socket; its folder gets mode 0750", "path")]
    spiffe_id: Annotated[str, doc("the workload that calls here; or give `person`", "SPIFFE ID")] = ""
    person: Annotated[str, doc("the person that calls here, as in `authority.people`")] = ""
    group: Annotated[str, doc("group that may enter the folder; empty: our own", "group name")] = ""


class Approvals(Section, frozen=True, kw_only=True):
    """Bounds on what is asked of people."""

    wait_s: Annotated[int, doc("a question that nobody decides is refused after this", "s", ge=1, le=DAY_S)] = (
        DEFAULTS.approval_wait_s
    )
    grant_s: Annotated[int, doc("longest life of a grant", "s", ge=1, le=DAY_S)] = DEFAULTS.approval_grant_s
    uses_max: Annotated[int, doc("most calls that one grant allows", "calls", ge=1, le=10_000)] = (
        DEFAULTS.approval_uses_max
    )
    approver_queue: Annotated[int, doc("questions that wait for one approver", "questions", ge=1, le=10_000)] = (
        DEFAULTS.approver_queue_max
    )
    agent_queue: Annotated[int, doc("questions of one agent that wait", "questions", ge=1, le=10_000)] = (
        DEFAULTS.agent_queue_max
    )
    separate_owner: Annotated[bool, doc("the task's owner may not decide about its calls")] = DEFAULTS.separate_owner
    break_glass_s: Annotated[int, doc("longest life of a break-glass grant", "s", ge=1, le=900)] = (
        DEFAULTS.break_glass_s_max
    )
    break_glass_uses: Annotated[int, doc("most calls of a break-glass grant", "calls", ge=1, le=100)] = (
        DEFAULTS.break_glass_uses_max
    )


class Follow(Section, frozen=True, kw_only=True):
    """Another sidecar whose tasks, revocations and owners are in force here as well; approvals are not."""

    address: Annotated[str, doc("its `authority.address`, mutual TLS", "host:port")] = ""
    spiffe_id: Annotated[str, doc("the sidecar that must answer at `address`", "SPIFFE ID")] = ""
    socket: Annotated[Path, doc("one of its Unix sockets instead", "path")] = ""
    stale_s: Annotated[
        int, doc("what is older than this is not known to be true any more: calls get ERROR", "s", ge=1, le=3600)
    ] = 30


class AuthorityConfig(Section, frozen=True, kw_only=True):
    """Tasks, revocations, approvals and owners. Absent: none of them is enforced."""

    store: Annotated[Path, doc("folder of the store; belongs to one sidecar", "path")]
    map_bytes: Annotated[int, doc("the store's file grows up to this", "bytes", ge=1 << 26, le=1 << 44)] = 16 * GIB
    policies: Annotated[
        list[Path], doc("Cedar files of who may open, revoke, approve, ..; empty: those of the package", "paths")
    ] = []
    people: Annotated[list[Person], doc("who is who")] = []
    workloads: Annotated[list[Workload], doc("programs with a role")] = []
    address: Annotated[str, doc("serve the authority services on TCP with mutual TLS; empty: no", "host:port")] = ""
    sockets: Annotated[list[CallerSocket], doc("Unix sockets for the authority services, one per caller")] = []
    approvals: Approvals = Approvals()
    follow: Follow | None = None
    ttl_s_max: Annotated[
        int, doc("longest life of a task or of a revocation that ends", "s", ge=1, le=3650 * DAY_S)
    ] = DEFAULTS.ttl_s_max
    depth_max: Annotated[int, doc("longest chain of delegation below a task", "hops", ge=0, le=7)] = DEFAULTS.depth_max
    tree_max: Annotated[
        int,
        doc("tasks ever delegated below one that was opened: all of them end in one write", "tasks", ge=1, le=100_000),
    ] = DEFAULTS.tree_max
    agent_tasks_max: Annotated[
        int, doc("open tasks of one agent, delegated ones among them", "tasks", ge=1, le=100_000)
    ] = DEFAULTS.agent_tasks_max
    keep_closed_s: Annotated[
        int, doc("closed tasks and decided approvals can be looked up this long", "s", ge=60, le=365 * DAY_S)
    ] = DEFAULTS.keep_closed_s
    answer_s: Annotated[int, doc("how long an idempotency key is remembered", "s", ge=1, le=30 * DAY_S)] = (
        DEFAULTS.answer_s
    )
    answers_max: Annotated[
        int, doc("idempotency keys of one caller that are remembered; the oldest go first", "keys", ge=1, le=1_000_000)
    ] = DEFAULTS.answers_max
    reserve_s: Annotated[
        int, doc("an allowed call that is not reported within this counts as made", "s", ge=1, le=DAY_S)
    ] = 300
    stream_s: Annotated[
        int,
        doc(
            "longest life of a stream through Envoy (WebSocket, SSE, gRPC stream), printed by `remit envoy-config`: it "
            "is asked about once, when it opens, so the end of its task reaches it after this at the latest",
            "s",
            ge=1,
            le=DAY_S,
        ),
    ] = 300
    beat_ms: Annotated[int, doc("watchers hear from us at least this often", "ms", ge=100, le=60_000)] = 1000

    @property
    def limits(self) -> Limits:
        """The bounds of the store."""
        asked = self.approvals
        return Limits(
            ttl_s_max=self.ttl_s_max,
            depth_max=self.depth_max,
            tree_max=self.tree_max,
            agent_tasks_max=self.agent_tasks_max,
            keep_closed_s=self.keep_closed_s,
            answer_s=self.answer_s,
            answers_max=self.answers_max,
            approval_wait_s=asked.wait_s,
            approval_grant_s=asked.grant_s,
            approval_uses_max=asked.uses_max,
            approver_queue_max=asked.approver_queue,
            agent_queue_max=asked.agent_queue,
            break_glass_s_max=asked.break_glass_s,
            break_glass_uses_max=asked.break_glass_uses,
            separate_owner=asked.separate_owner,
            security=tuple(person.id for person in self.people if "security" in person.roles),
        )


def check_authority(section: AuthorityConfig) -> Iterator[str]:
    """What single fields cannot show."""
    yield from _names(section)
    known = {person.id for person in section.people}
    for i, one in enumerate(section.sockets):
        path = f"authority.sockets[{i}]"
        if bool(one.spiffe_id) == bool(one.person):
            yield f"`{path}`: give either `spiffe_id` or `person`"
        elif one.person and one.person not in known:
            yield f"`{path}.person`: `{one.person}` is not in `authority.people`"
    follow = section.follow
    if follow and bool(follow.address) == bool(follow.socket):
        yield "`authority.follow`: give either `address` with `spiffe_id`, or `socket`"
    if follow and follow.address and not follow.spiffe_id:
        yield "`authority.follow.spiffe_id`: is missing; name the sidecar that must answer"


def _names(section: AuthorityConfig) -> Iterator[str]:
    """Nobody is two people, and every SPIFFE ID is one."""
    seen: dict[object, str] = {}
    for i, person in enumerate(section.people):
        path = f"authority.people[{i}]"
        if not person.id.strip() or not person.id.isprintable():
            yield f"`{path}.id`: is empty or not printable"
        for key in (person.id, *person.uids, *person.spiffe_ids):
            if seen.setdefault(key, path) != path:
                yield f"`{path}`: `{key}` is `{seen[key]}` already"
    for path, text in _spiffe_ids(section):
        try:
            if not spiffe_id.parse(text).path:
                yield f"`{path}`: `{text}` names a trust domain; write spiffe://trust-domain/path"
        except IdentityError as error:
            yield f"`{path}`: {error}"


def _spiffe_ids(section: AuthorityConfig) -> Iterator[tuple[str, str]]:
    for i, person in enumerate(section.people):
        yield from ((f"authority.people[{i}].spiffe_ids[{j}]", one) for j, one in enumerate(person.spiffe_ids))
    yield from ((f"authority.workloads[{i}].spiffe_id", one.spiffe_id) for i, one in enumerate(section.workloads))
    sockets = ((f"authority.sockets[{i}].spiffe_id", one.spiffe_id) for i, one in enumerate(section.sockets))
    yield from ((path, text) for path, text in sockets if text)
    if section.follow and section.follow.spiffe_id:
        yield "authority.follow.spiffe_id", section.follow.spiffe_id
