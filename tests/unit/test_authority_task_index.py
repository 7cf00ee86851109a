"""The index of tasks by agent and owner follows the tasks; a list shows every task, however far it has come."""

import pathlib
import random

import pytest

from sidecar._proto.remit.authority.v1 import tasks_pb2
from sidecar.authority import tasks
from sidecar.authority.draft import AGENT_TASKS, OWNER_TASKS
from sidecar.authority.task_index import follow
from sidecar.authority.tasks import ChangeTask
from sidecar.demo.processes import wait_for
from sidecar.services.tasks import list_tasks
from tests.fix_store import AGENT_A, AGENT_B, AGENT_C, ALICE, Hands, Kept, kept

AGENTS = (AGENT_A, AGENT_B, AGENT_C)
OWNERS = ("alice", "bob")


def listed(one: Kept, size: int = 0, between: object = None, **asked: str) -> list[str]:
    """Ids of all pages; `between` is done before each."""
    found: list[str] = []
    token = ""
    while True:
        if callable(between):
            between()
        with one.store.read() as draft:
            rows, token = list_tasks(draft, tasks_pb2.ListTasksRequest(page_size=size, page_token=token, **asked))
        found += [task.id for task in rows]
        if not token:
            return found


def index(one: Kept, hands: Hands) -> bool:
    database = one.store._database
    assert database is not None
    with one.store._turn:
        return follow(database, hands.clock().now())


@pytest.mark.parametrize("seed", range(8))
def test_a_list_has_every_task_once_however_far_the_index_is(tmp_path: pathlib.Path, seed: int) -> None:
    """In any order of opening, ending, time and indexing, also between two pages."""
    rng = random.Random(f"task index {seed}")
    hands = Hands()
    opened: dict[str, tuple[str, str]] = {}
    with kept(tmp_path / "s", clock=hands.clock(), snapshot_s=1000.0) as one:

        def sometimes() -> None:
            if rng.random() < 0.5:
                hands.pass_s(rng.choice((0.2, 2)))
                index(one, hands)

        for _ in range(60):
            agent, owner = rng.choice(AGENTS), rng.choice(OWNERS)
            opened[one.open(agent, owner=owner).id] = (agent, owner)
            if rng.random() < 0.1:
                gone = rng.choice(sorted(opened))
                one.run(tasks.cancel_task, ChangeTask(id=gone), ALICE)
                del opened[gone]
            sometimes()
        for size in (0, 1, 3):
            for agent in AGENTS:
                assert listed(one, size, sometimes, agent=agent) == [t for t, (a, _) in opened.items() if a == agent]
            for owner in OWNERS:
                assert listed(one, size, sometimes, owner=owner) == [t for t, (_, o) in opened.items() if o == owner]


def test_the_index_leaves_out_the_last_second_and_comes_to_it_later(tmp_path: pathlib.Path) -> None:
    """An id that is still to come is never smaller than one that is indexed."""
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock(), snapshot_s=1000.0) as one:
        first = [one.open().id for _ in range(5)]
        assert not index(one, hands)
        assert one.store.count(AGENT_TASKS) == 0
        hands.pass_s(2)
        last = one.open().id
        assert not index(one, hands)
        assert one.store.count(AGENT_TASKS) == one.store.count(OWNER_TASKS) == len(first)
        hands.pass_s(2)
        assert index(one, hands)
        assert one.store.count(AGENT_TASKS) == len(first) + 1
        assert listed(one, agent=AGENT_A) == [*first, last]


def test_a_store_that_was_left_behind_is_listed_whole_after_a_restart(tmp_path: pathlib.Path) -> None:
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock(), snapshot_s=1000.0) as one:
        first = [one.open().id for _ in range(3)]
        hands.pass_s(2)
        assert index(one, hands)
        first += [one.open().id for _ in range(3)]
    hands.pass_s(0.01)
    with kept(tmp_path / "s", clock=hands.clock(), snapshot_s=1000.0) as two:
        first.append(two.open().id)
        assert listed(two, agent=AGENT_A) == listed(two, owner="alice") == first


def test_the_writer_indexes_by_itself(tmp_path: pathlib.Path) -> None:
    """When it has time, and again whenever there is more."""
    with kept(tmp_path / "s", snapshot_s=0.05) as one:
        for expected in (1, 2):
            one.open()
            wait_for("the index", lambda: one.store.count(AGENT_TASKS) == expected)  # noqa: B023


def test_a_task_that_is_purged_leaves_no_row_of_the_index(tmp_path: pathlib.Path) -> None:
    hands = Hands()
    with kept(tmp_path / "s", clock=hands.clock(), snapshot_s=1000.0) as one:
        early, late = one.open(), one.open(AGENT_B)
        one.run(tasks.cancel_task, ChangeTask(id=early.id), ALICE)
        hands.pass_s(2)
        index(one, hands)
        one.run(tasks.cancel_task, ChangeTask(id=late.id), ALICE)
        hands.pass_s(one.store.limits.keep_closed_s + 1)
        with one.store.read() as draft:
            keys = [key for key, _ in draft.rows.scan("tasks")]
        for key in keys:
            assert one.run(tasks.purge_task, key)
        index(one, hands)
        assert one.store.count(AGENT_TASKS) == one.store.count(OWNER_TASKS) == one.store.count("tasks") == 0
