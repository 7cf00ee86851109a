"""One answer, whoever carries it, under authority: tasks, costs, and reports of what became of allowed calls."""

import os
import random
from contextlib import ExitStack

import grpc

from fastpath.call import Pdp
from fastpath.peer import VerifiedPeer
from sidecar._proto.remit.authz.v1 import authz_pb2
from tests import fix_live as live
from tests.differential.doors import AGENT_KIND, REPORT, broken, direct, grpcio_channel, over, words
from tests.fix_calls import agent_check
from tests.fix_native import CHECK, native_server

CASES = int(os.environ.get("REMIT_DOOR_CASES", "400"))
SEED = int(os.environ.get("REMIT_DOOR_SEED", "20261123"))


def governed_check(rng: random.Random) -> bytes:
    """A question that a task may cover, with what it would cost."""
    return agent_check(
        action=rng.choice(["read", "write", "delete"]),
        resource=("Tool", rng.choice(["files/open", "files/frozen"])),
        task=rng.choice(["", "t1", "t2", "t3", words(rng)]),
        cost=rng.choice([0, 1, 5, -1]),
        arguments={"path": words(rng)},
    )


def report_call(rng: random.Random, allowed: list[str]) -> bytes:
    """A report of an allowed call, of one that is settled already, or of none."""
    settled = authz_pb2.ReportRequest(
        evaluation_id=rng.choice([*allowed[-8:], words(rng), "0" * 32]),
        executed=rng.random() < 0.5,
        status=rng.choice([0, 200, 503]),
        error_code=words(rng),
    )
    if rng.random() < 0.5:
        settled.bytes_out = rng.choice([0, 7, 1 << 40, (1 << 64) - 1])
    if rng.random() < 0.5:
        settled.cost = rng.choice([0, 1, 9, -1])
    return settled.SerializeToString()


def governed_pdp() -> tuple[Pdp, live.Live]:
    """A Pdp with fixed clock and ids, and tasks of limited budgets: two open, one suspended."""
    limits = {"calls": 120, "cost": 400, "bytes": 4000}
    state = live.make_live(
        live.task("t1", **limits), live.task("t2", **limits), live.task("t3", state="suspended", **limits)
    )
    pdp = live.make_pdp(state)
    pdp.put_clock(1_000_000_000, live.NOW, 7, 0)
    return pdp, state


def test_every_door_settles_alike() -> None:
    """Check with task and cost, Report of what was allowed: status, bytes and what is left are equal at all doors."""
    peer = VerifiedPeer(AGENT_KIND, live.AGENT, "unix:0")
    made = [governed_pdp() for _ in range(3)]
    rng = random.Random(SEED)
    allowed: list[str] = []
    results: set[tuple[str, int]] = set()
    with ExitStack() as stack:
        door = stack.enter_context(native_server(made[2][0], agent=live.AGENT))
        asks = [
            direct(made[0][0], peer),
            over(stack.enter_context(grpcio_channel(made[1][0], peer))),
            over(stack.enter_context(grpc.insecure_channel(door.target))),
        ]
        for number in range(CASES):
            path = rng.choice([CHECK, CHECK, REPORT])
            raw = governed_check(rng) if path == CHECK else report_call(rng, allowed)
            raw = broken(rng, raw) if rng.random() < 0.2 else raw
            wanted, *others = [ask(path, raw) for ask in asks]
            assert others == [wanted, wanted], f"case {number} of seed {SEED}: {path} {raw!r}"
            if wanted[0]:
                results.add((path, -wanted[0]))
            elif path == CHECK:
                answer = authz_pb2.CheckResponse.FromString(wanted[1])
                allowed += [answer.evaluation_id] if answer.outcome == authz_pb2.OUTCOME_ALLOW else []
                results.add((path, answer.outcome))
            else:
                results.add((path, authz_pb2.ReportResponse.FromString(wanted[1]).result))
            left = [[state.task(id_) for id_ in ("t1", "t2", "t3")] for _, state in made]
            assert left == [left[0]] * 3, f"case {number} of seed {SEED}: {path} {raw!r}"
    settled, unknown = authz_pb2.REPORT_RESULT_SETTLED, authz_pb2.REPORT_RESULT_UNKNOWN
    assert {(REPORT, settled), (REPORT, unknown), (REPORT, -3), (CHECK, -3)} <= results
    assert {(CHECK, one) for one in (authz_pb2.OUTCOME_ALLOW, authz_pb2.OUTCOME_DENY, authz_pb2.OUTCOME_STEP_UP)} <= (
        results
    )
