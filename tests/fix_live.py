"""An agent's world in small: policies of the agents' vocabulary, their entities, and a Pdp that enforces authority."""

import json
from typing import Any

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.journal import Journal
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.policy.compile import compile_image
from tests.fix_mapping import mapping_of

AGENT = "spiffe://example.org/agent/writer"
CHILD = "spiffe://example.org/agent/helper"
LEAD = "spiffe://partner.example/agent/lead"  # bob answers for it
STRANGER = "spiffe://example.org/agent/stranger"
OWNER = "ann"
NOW = 1_800_000_000_000_000_000
BOOT = 5_000_000_000_000
SECOND = 1_000_000_000
HOUR = 3600 * SECOND
UNHURRIED_MS = 60_000  # a busy machine makes no call late

POLICIES = """
@id("base") permit (principal, action, resource);
@id("probe") @task("none") permit (principal in AgentClass::"probe", action, resource);
@id("sensitive") @reason("approval.required") @obligation("approval")
forbid (principal, action == Action::"delete", resource)
unless { context.approval.state == "granted" && context.approval.matches && !context.approval.self_approved };
@id("frozen") @reason("resource.frozen") forbid (principal, action, resource == Tool::"files/frozen");
@id("sealed") @never @reason("resource.sealed") forbid (principal, action, resource == Tool::"files/sealed")
unless { context.approval.state == "granted" };
"""


def _entity(type_: str, id_: str, attrs: dict[str, Any] | None = None, *parents: tuple[str, str]) -> dict[str, Any]:
    return {
        "uid": {"type": type_, "id": id_},
        "attrs": attrs or {},
        "parents": [{"type": kind, "id": name} for kind, name in parents],
    }


def entities(active: bool = True) -> str:
    """Agents with an owner, tools on a server, actions in their classes."""
    owner = {"__entity": {"type": "Person", "id": OWNER}}
    agents = [(AGENT, "worker"), (CHILD, "worker"), ("spiffe://example.org/agent/probe", "probe")]
    rows = [_entity("Person", OWNER, {"active": active}), _entity("Person", "bob", {"active": True})]
    rows += [_entity("AgentClass", "worker"), _entity("AgentClass", "probe"), _entity("Server", "files")]
    rows += [_entity("Agent", id_, {"owner": owner}, ("AgentClass", kind)) for id_, kind in agents]
    lead = {"owner": {"__entity": {"type": "Person", "id": "bob"}}}
    rows += [_entity("Agent", LEAD, lead, ("AgentClass", "worker"))]
    rows += [_entity("Agent", "spiffe://example.org/agent/orphan", {}, ("AgentClass", "worker"))]
    rows += [
        _entity("Tool", f"files/{name}", {}, ("Server", "files"), ("ToolGroup", "docs"))
        for name in ("open", "remove", "frozen", "sealed")
    ]
    rows += [_entity("ToolGroup", "docs"), _entity("Zone", "internal"), _entity("Action", "observe")]
    rows += [_entity("Action", name, {}, ("Action", "observe")) for name in ("read", "list")]
    rows += [_entity("Action", name) for name in ("write", "delete", "send")]
    rows += [_entity("Destination", "db.internal", {}, ("Zone", "internal"))]
    return json.dumps(rows)


def scope(**more: Any) -> dict[str, Any]:
    """A scope that covers everything up to level 2, but for what is given."""
    return {"any_tool": True, "any_action": True, "any_dest": True, "max_level": 2, **more}


def task(id_: str = "t1", **more: Any) -> tuple[str, dict[str, Any]]:
    """The change that puts an open task of AGENT in force, unlimited and for an hour unless said otherwise."""
    return "task", {
        "id": id_, "agent": AGENT, "owner": OWNER, "purpose": "write the report", "state": "open", "parent": None,
        "depth": 0, "max_depth": 2, "expires_unix_ns": NOW + HOUR, "calls": -1, "cost": -1, "bytes": -1,
        "scope": scope(), **more,
    }  # fmt: skip


def make_live(*changes: tuple[str, dict[str, Any]]) -> Live:
    live = Live()
    live.put_clock(boot_ns=BOOT, unix_ns=NOW)
    live.apply(changes, 1)
    return live


def make_pdp(live: Live | None, journal: Journal | None = None, policies: str = POLICIES, active: bool = True) -> Pdp:
    """A ready Pdp over these policies and entities; clock and ids are its own."""
    pdp = Pdp(journal=journal, budget_ms=UNHURRIED_MS)
    image = compile_image(policies, entities=entities(active)).image
    pdp.put_rules(Generation.from_bytes(image, generation=1), mapping_of({"trust_domains": ["example.org"]}))
    pdp.put_state(epoch=0, bundle_generation=2, not_ready="")
    pdp.put_authority(live)
    return pdp


def peer(agent: str = AGENT, credential: str = "x509-svid:01") -> VerifiedPeer:
    return VerifiedPeer(PeerKind.PEER_AGENT, agent, credential, bundle_generation=2)


def ask(
    pdp: Pdp, action: str = "read", tool: str = "files/open", *, agent: str = AGENT, arguments: Any = None, **more: Any
) -> authz_pb2.CheckResponse:
    """The answer to one Check; an ERROR comes back as one, with its reason."""
    request = authz_pb2.CheckRequest(action=action, resource=authz_pb2.EntityUid(type="Tool", id=tool), **more)
    if arguments is not None:
        request.arguments.update(arguments)
    code, reply = pdp.check(request.SerializeToString(), peer(agent))
    if code:
        return authz_pb2.CheckResponse(outcome=authz_pb2.OUTCOME_ERROR, reason=reply.decode())
    return authz_pb2.CheckResponse.FromString(reply)


def outcome(answer: authz_pb2.CheckResponse) -> tuple[str, str]:
    """("ALLOW", "ok") and the like."""
    return authz_pb2.Outcome.Name(answer.outcome).removeprefix("OUTCOME_"), answer.reason
