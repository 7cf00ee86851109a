"""Commands of the authority store on their way: in the queue, run, answered."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sidecar.authority.answers import Repeat
from sidecar.authority.draft import Draft
from sidecar.errors import SidecarError

Result = TypeVar("Result")
Place = tuple[str, bytes]
"""Table and key of a row."""


def still(draft: Draft, answer: object) -> bool:  # noqa: ARG001  # of every answer that says what was done
    """An answer about the past is true for good."""
    return True


class Ticket(Generic[Result]):
    """One command in the queue, and its answer."""

    __slots__ = ("_done", "_first", "_result", "command", "epoch", "error", "pack", "repeat", "stands", "unpack")

    def __init__(
        self,
        command: Callable[[Draft], Result],
        repeat: Repeat | None = None,
        pack: Any = None,
        unpack: Any = None,
        stands: Callable[[Draft, Result], bool] = still,
    ) -> None:
        self.command = command
        self.repeat = repeat
        self.pack, self.unpack, self.stands = pack, unpack, stands
        self.error: SidecarError | None = None
        self.epoch = 0
        self._result: Result | None = None
        self._done = threading.Lock()
        self._done.acquire()
        self._first = threading.Lock()
        """Never given back: whoever takes it answers."""

    def answer(self, result: Result | None = None, error: SidecarError | None = None) -> None:
        """Let the caller go on; the first answer counts."""
        if self._first.acquire(blocking=False):
            self._result, self.error = result, error
            self._done.release()

    def wait(self) -> Result:
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]  # set with every answer that is no error


class Ran:
    """A command that was run on the open transaction."""

    __slots__ = ("draft", "places", "prepared", "result", "ticket")

    def __init__(self, ticket: Ticket[Any], draft: Draft, result: Any, prepared: Any) -> None:
        self.ticket, self.draft, self.result = ticket, draft, result
        self.prepared = prepared
        """What the native view makes of the draft's changes, to be put in force."""
        self.places: list[Place] = []
        """Of what no longer stands without the store once this is durable."""
