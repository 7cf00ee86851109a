"""What a scope covers: the native view beside the plain reference, over random scopes and calls."""

import json
import random
from typing import Any

import pytest

from fastpath.authority import Live
from fastpath.call import Pdp
from fastpath.decide import PeerKind
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.authority.covers import Call, covers
from sidecar.authority.scope import Scope, as_live
from sidecar.policy.compile import compile_image
from tests import fix_scopes
from tests.fix_faults import LONG, SEED
from tests.fix_live import UNHURRIED_MS
from tests.fix_mapping import mapping_of

AGENT = "spiffe://example.org/agents/a"
SCOPES = 5_000 if LONG else 250
CALLS = 20
REASONS = {"task.scope.tool": 0, "task.scope.action": 1, "task.scope.destination": 2, "task.scope.data": 3}
FAR_NS = 4_000_000_000 * 10**9


def entity(type_: str, id_: str, attrs: dict[str, Any], parents: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "uid": {"type": type_, "id": id_},
        "attrs": attrs,
        "parents": [{"type": kind, "id": name} for kind, name in parents],
    }


def entities() -> str:
    rows = [
        entity("Person", "ann", {"active": True}, []),
        entity("Agent", AGENT, {"owner": {"__entity": {"type": "Person", "id": "ann"}}}, []),
    ]
    rows += [entity("Tool", t, {}, [("ToolGroup", g) for g in groups]) for t, groups in fix_scopes.GROUPS.items()]
    rows += [entity("Action", a, {}, [("Action", c) for c in above]) for a, above in fix_scopes.CLASSES.items()]
    rows += [entity("Destination", h, {}, [("Zone", z) for z in zones]) for h, zones in fix_scopes.ZONES.items()]
    return json.dumps(rows)


@pytest.fixture(scope="module")
def world() -> tuple[Pdp, Live, VerifiedPeer]:
    live = Live()
    pdp = Pdp(journal=None, budget_ms=UNHURRIED_MS)
    image = compile_image('@id("all") permit (principal, action, resource);', entities=entities()).image
    pdp.put_rules(Generation.from_bytes(image, generation=1), mapping_of({"trust_domains": ["example.org"]}))
    pdp.put_state(epoch=0, bundle_generation=1, not_ready="")
    pdp.put_authority(live)
    return pdp, live, VerifiedPeer(PeerKind.PEER_AGENT, AGENT, "x509-svid:01", bundle_generation=1)


def put(live: Live, scope: Scope) -> None:
    task = {
        "id": "t", "agent": AGENT, "owner": "ann", "purpose": "p", "state": "open", "parent": "", "depth": 0,
        "max_depth": 0, "expires_unix_ns": FAR_NS, "calls": -1, "cost": -1, "bytes": -1, "scope": as_live(scope),
    }  # fmt: skip
    live.apply([("task", task)], 1)


def asked(call: Call) -> bytes:
    request = authz_pb2.CheckRequest(
        action=call.action,
        resource=authz_pb2.EntityUid(type="Tool", id=call.tool),
        destination=call.destination,
        data_level=call.level,
        data_labels=sorted(call.labels),
    )
    request.arguments.update(call.arguments)
    return request.SerializeToString()


def test_the_native_view_covers_what_the_reference_covers(world: tuple[Pdp, Live, VerifiedPeer]) -> None:
    """Allowed is covered on every axis; a denial names an axis that is not. Methods are those of other doors."""
    pdp, live, peer = world
    rng = random.Random(SEED)
    allowed = 0
    for _ in range(SCOPES):
        scope = fix_scopes.scope(rng)
        scope = Scope(**{**_fields(scope), "methods": None})
        if rng.random() < 0.7:  # most random scopes cover hardly anything
            scope = Scope(
                **{**_fields(scope), rng.choice(("any_tool", "any_action", "any_dest")): True, "max_level": 4}
            )
        put(live, scope)
        for _ in range(CALLS):
            call = fix_scopes.call(rng)
            if "/" in call.action and call.action != call.tool:
                continue  # no door takes one tool's action for another tool
            code, reply = pdp.check(asked(call), peer)
            assert code == 0, reply
            answer = authz_pb2.CheckResponse.FromString(reply)
            expected = covers(scope, call)
            if all(expected):
                assert answer.outcome == authz_pb2.OUTCOME_ALLOW, (scope, call, answer)
                allowed += 1
            else:
                assert answer.outcome == authz_pb2.OUTCOME_DENY, (scope, call, answer)
                assert not expected[REASONS[answer.reason]], (scope, call, answer)
    assert allowed > SCOPES / 10


def _fields(scope: Scope) -> dict[str, Any]:
    return {name: getattr(scope, name) for name in scope.__struct_fields__}
