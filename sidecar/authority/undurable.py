"""What is in force without being in the store: commands that take authority away, while the disk is full (RT-02).

They stand in a file whose room was taken before (held.py), and go into the store as soon as there is room.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from sidecar.authority.commands import Place, Ran
from sidecar.authority.draft import OWNERS, REVOCATIONS
from sidecar.authority.feed import Feed
from sidecar.authority.held import FILE, Held, held_change
from sidecar.authority.spending import LiveView

AGAIN_S = 5.0
"""How long after a failure room is looked for."""


class Undurable:
    """Owns the file from `open` to `close`. For whoever has the store's turn; `rows` may be read by all."""

    def __init__(self, folder: Path, live: LiveView, feed: Feed, note: Callable[[str, str, int], None]) -> None:
        self._held = Held(folder / FILE)
        self.rows: Mapping[Place, msgspec.Struct] = self._held.rows
        self._live = live
        self._feed = feed
        self._note = note
        self._look_at = 0.0

    def open(self, sure_ns: int, epoch: int) -> None:
        """Put in force what was kept. StoreError and OSError as of Held.open."""
        self._held.open()
        self._live.apply([held_change(row, sure_ns) for row in self.rows.values()], epoch)

    def close(self) -> None:
        """May be called again."""
        self._held.close()

    def drop(self, places: Iterable[Place]) -> None:
        """These are in the store now, or in force no longer."""
        self._held.drop(places)

    def is_due(self) -> bool:
        """Whether it is time to look for room; then not again for a while."""
        if not self.rows or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + AGAIN_S
        return True

    def take_away(self, ran: Ran) -> str:
        """Put the revocations of a command in force without the store; what is to be said of it, if there are any."""
        draft = ran.draft
        changes = [(n, d) for n, d in draft.live if n == "revoke" or (n == "owner" and not d["active"])]
        if not changes:
            return ""
        kept = self._held.put({place: row for place, row in draft.rows_of(REVOCATIONS, OWNERS) if row is not None})
        self._look_at = time.monotonic() + AGAIN_S
        self._live.apply(changes, draft.epoch)
        self._feed.tell([one for one in draft.changed if one.table in (REVOCATIONS, OWNERS)])
        self._note("authority.not_durable", "; ".join(detail for _, detail in draft.events), draft.epoch)
        if kept:
            return "it is in force all the same, and after a restart, but not yet in the store"
        return "it is in force until a restart but it is not durable"

    def let_go(self, ran: Ran, stores: Callable[[list[Place]], bool]) -> bool:
        """Take back what a command undoes, if all of that is in force without the store; whether it is.

        Nothing of it need be durable then. `stores` says whether the store has any of some rows.
        """
        draft = ran.draft
        places = draft.places(REVOCATIONS, OWNERS)
        undoes = all(n == "lift" or (n == "owner" and d["active"]) for n, d in draft.live)
        if not places or not undoes or not all(place in self.rows for place in places) or stores(places):
            return False
        self._held.drop(places)
        self._live.apply(draft.live, draft.epoch)
        self._feed.tell(draft.changed)
        for name, detail in draft.events:
            self._note(name, detail, draft.epoch)
        return True
