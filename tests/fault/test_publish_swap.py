"""Generations change under a running sidecar while many callers ask it (PO-09)."""

import itertools
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo.processes import wait_for
from sidecar.policy.lexer import PolicyText
from sidecar.policy.publish import Change, GenerationStore, PolicySource, SourceFiles, Work
from tests.fix_faults import LONG
from tests.fix_serve import BATCH, TIMEOUT_S, Served, check, made_sidecar, question

RELOADS = 60 if LONG else 4
CALLERS = 6
ITEMS = 20

Answer = authz_pb2.CheckResponse


@pytest.fixture
def served() -> Iterator[Served]:
    with made_sidecar() as made:
        yield made


def policy(version: int) -> str:
    """A set whose every answer tells its version."""
    return f'@id("v{version}") @reason("version.{version}") forbid (principal, action, resource);\n'


def batch(channel: grpc.Channel) -> list[Answer]:
    call = channel.unary_unary(
        BATCH, authz_pb2.BatchCheckRequest.SerializeToString, authz_pb2.BatchCheckResponse.FromString
    )
    return list(call(authz_pb2.BatchCheckRequest(items=[question()] * ITEMS), timeout=TIMEOUT_S).items)


def one(channel: grpc.Channel) -> list[Answer]:
    return [check(channel, question())]


class Callers:
    """Threads that ask until they are stopped; each keeps what it was told, call by call, and what failed."""

    def __init__(self, served: Served) -> None:
        self.calls: list[list[list[Answer]]] = [[] for _ in range(CALLERS)]
        self.failures: list[grpc.RpcError] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(served, into, ask))
            for into, ask in zip(self.calls, itertools.cycle((one, one, batch)), strict=False)
        ]

    def _ask(self, served: Served, into: list[list[Answer]], ask: Callable[[grpc.Channel], list[Answer]]) -> None:
        with served.agent_socket() as channel:
            while not self._stop.is_set():
                try:
                    into.append(ask(channel))
                except grpc.RpcError as error:
                    self.failures.append(error)
                    return

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self) -> None:
        """Every caller has been answered to a call that it began after this was called."""
        enough = [len(calls) + 2 for calls in self.calls]
        wait_for(
            "an answer to every caller",
            lambda: bool(self.failures) or all(len(c) >= n for c, n in zip(self.calls, enough, strict=True)),
        )


def edit(served: Served, version: int, *, compact: bool) -> int:
    """What another process does to the store: one change, and now and then a compaction before; the generation."""
    source = PolicySource(SourceFiles([str(served.policy.parent)]))
    change = Change(policies=[PolicyText("edit", policy(version))], removed=[f"v{version - 1}"])
    with GenerationStore(served.folder / "generations") as store:
        if compact:
            store.compact(source, Work())
        done = store.edit(change, source, Work())
        assert done.compiled == ""
        return done.manifest.generation


@pytest.mark.parametrize("how", ["files", "edits"])
def test_each_answer_under_reloads_names_exactly_one_generation_and_no_call_fails(served: Served, how: str) -> None:
    """PO-09, I5: outcome, reason, policies and generation of an answer belong together, in a batch all items alike.

    Whole sets are published, or deltas and the bases that they are compacted into.

    A caller never sees the generation go down, and a call that begins after a reload has ended is under the new one.
    """
    served.policy.write_text(policy(0))
    # No collector takes what so many calls record, and small segments would fill faster than new ones are allocated.
    served.settings["journal"] |= {"cap_bytes": 1 << 32, "segment_bytes": 1 << 24}
    served.start_ready()
    version_of = {served.status().generation: 0}
    callers = Callers(served)
    callers.start()
    try:
        for version in range(1, RELOADS + 1):
            callers.wait_for_more()
            published = 0
            if how == "files":
                served.policy.write_text(policy(version))
            else:
                published = edit(served, version, compact=version % 3 == 0)
            answer = served.reload()
            # A delta is picked up as it is: files that did not change are not compiled.
            assert answer.generation == published or not published
            assert (answer.changed, list(answer.problems)) == (True, [])
            version_of[answer.generation] = version
            begun = [len(calls) + 1 for calls in callers.calls]
            callers.wait_for_more()
            for calls, first in zip(callers.calls, begun, strict=True):
                assert {item.generation for call in calls[first:] for item in call} <= {answer.generation}
    finally:
        callers.stop()
    assert callers.failures == []
    for calls in callers.calls:
        assert [len({item.generation for item in call}) for call in calls] == [1] * len(calls)
        seen = [call[0].generation for call in calls]
        assert seen == sorted(seen)
        for item in itertools.chain.from_iterable(calls):
            version = version_of[item.generation]
            wanted = (authz_pb2.OUTCOME_DENY, f"version.{version}", [f"v{version}"])
            assert (item.outcome, item.reason, list(item.policy_ids)) == wanted
    assert {item.generation for calls in callers.calls for call in calls for item in call} == set(version_of)
