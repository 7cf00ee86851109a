"""What calls spend, between the native view and the store: taken at once for a command, kept over a restart.

A draw is taken from the native view before the command is durable, so no call can spend it meanwhile; a command that
fails gives it back. The store keeps snapshots of what was spent; at a start what the journal holds behind the snapshot
is counted again. What was reserved counts as spent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sidecar.authority.draft import Rest
from sidecar.authority.rows import UNLIMITED, Budgets, Spent, TaskState
from sidecar.authority.tasks import AXES, NOTHING

Change = tuple[str, dict[str, Any]]
Mark = tuple[int, int, int, int]


class LiveView(Protocol):
    """What the store uses of `fastpath.authority.Live`."""

    @property
    def epoch(self) -> int: ...
    def apply(self, changes: Sequence[Change], epoch: int) -> None: ...
    def prepare(self, changes: Sequence[Change]) -> Any: ...
    def put(self, prepared: Sequence[Any], epoch: int) -> None: ...
    def task(self, id_: str) -> dict[str, Any] | None: ...
    def open_tasks(self, agent: str) -> int: ...
    def step_up(self, evaluation_id: str) -> dict[str, Any] | None: ...
    def snapshot(self) -> tuple[list[tuple[str, int, int, int]], list[tuple[str, int]]]: ...
    def redo(self, effects: Sequence[tuple[int, str, int]]) -> None: ...
    def put_floor(self, unix_ns: int) -> None: ...


class LiveSpending:
    """Budgets in the native view, with what undoes each change. For the one writer."""

    def __init__(self, live: LiveView) -> None:
        self._live = live
        self._undo: list[Change] = []
        self._owed: list[tuple[str, Budgets]] = []
        self._opening: list[str] = []
        self._opened: Counter[str] = Counter()
        """How often each agent stands in `_opening`."""
        self._granted: dict[str, Budgets] = {}
        """What new tasks have that are not in the native view yet."""

    def left(self, task: str) -> Budgets | None:
        row = self._live.task(task)
        if row is None:
            return None
        return self._rest(task, row).left

    def open_tasks(self, agent: str) -> int:
        # What commands before this one end is still counted: more than there may be is refused, never the other way.
        return self._live.open_tasks(agent) + self._opened[agent]

    def opening(self, agent: str) -> None:
        self._opening.append(agent)
        self._opened[agent] += 1

    def grant(self, task: str, amount: Budgets) -> None:
        self._granted[task] = amount

    def owe(self, task: str, amount: Budgets) -> None:
        self._owed.append((task, amount))

    def draw(self, task: str, amount: Budgets) -> bool:
        before = self._live.task(task)
        if before is None:
            return False
        amounts = {axis: getattr(amount, axis) for axis in AXES}
        if not any(amounts.values()):
            return True
        if any(before[axis] != UNLIMITED and before[axis] < n for axis, n in amounts.items()):
            return False
        self._take(task, amounts)
        # Calls spend in between: what was not there any more is owed now, and goes back with the rest.
        after = self._live.task(task) or before
        return not any(after[f"over_{axis}"] for axis, n in amounts.items() if n)

    def charge(self, task: str, amount: Budgets) -> None:
        self._take(task, {axis: getattr(amount, axis) for axis in AXES})

    def _take(self, task: str, amounts: Mapping[str, int]) -> None:
        self._live.apply([("budget", {"id": task, **{axis: -n for axis, n in amounts.items()}})], self._live.epoch)
        self._undo.append(("budget", {"id": task, **amounts}))

    def stop(self, tasks: Mapping[str, TaskState]) -> dict[str, Rest]:
        before = {id_: self._live.task(id_) for id_ in tasks}
        known = {id_: row for id_, row in before.items() if row is not None}
        if known:
            self._live.apply([("state", {"id": id_, "state": str(tasks[id_])}) for id_ in known], self._live.epoch)
            self._undo += [("state", {"id": id_, "state": row["state"]}) for id_, row in known.items()]
        after = {id_: self._live.task(id_) for id_ in known}
        rests = {id_: self._rest(id_, row) for id_, row in after.items() if row is not None}
        # Who delegated it may still wait for the answer when another one ends what it came from.
        unspent = {id_: self._granted[id_] for id_ in tasks if id_ in self._granted}
        return rests | {id_: Rest(left, NOTHING) for id_, left in unspent.items()}

    def _rest(self, task: str, row: Mapping[str, int]) -> Rest:
        owed = [amount for id_, amount in self._owed if id_ == task]
        left = Budgets(*(_with(row[axis], [getattr(one, axis) for one in owed]) for axis in AXES))
        return Rest(left, Budgets(*(row[f"over_{axis}"] for axis in AXES)))

    def mark(self) -> Mark:
        """Where `undo` goes back to."""
        return len(self._undo), len(self._owed), len(self._opening), len(self._granted)

    def undo(self, mark: Mark = (0, 0, 0, 0)) -> None:
        """Take back what was changed since `mark`."""
        changes, owed, opening, granted = mark
        while len(self._granted) > granted:
            self._granted.popitem()
        del self._owed[owed:]
        self._opened.subtract(self._opening[opening:])
        del self._opening[opening:]
        if len(self._undo) > changes:
            self._live.apply(self._undo[changes:][::-1], self._live.epoch)
            del self._undo[changes:]

    def keep(self) -> None:
        """What was changed is durable now."""
        self._undo.clear()
        self._owed.clear()
        self._opening.clear()
        self._opened.clear()
        self._granted.clear()


def with_spent(has: Mapping[str, int | None], spent: Spent) -> dict[str, int]:
    """What the native view takes of a task that has so much (None: unlimited), when calls have spent of it already."""
    row: dict[str, int] = {}
    for axis in AXES:
        whole, gone = has[axis], getattr(spent, axis)
        row[axis] = UNLIMITED if whole is None else max(0, whole - gone)
        row[f"over_{axis}"] = 0 if whole is None else max(0, gone - whole)
        row[f"spent_{axis}"] = gone
    return row


def _with(left: int, owed: list[int]) -> int:
    return left if left == UNLIMITED else left + sum(owed)
