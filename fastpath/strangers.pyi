"""Users who may not enter a Unix door."""

from typing_extensions import disjoint_base

@disjoint_base
class Strangers:
    """What the loops of a door tell; `fastpath.listener.Listener.strangers` is one."""

    def take(self) -> list[tuple[int | None, int]]:
        """Wait until somebody was refused: (uid, connections) since the last time, of at most 64 users; uid None: of
        all further ones. Empty once it is closed and all is told."""
    def close(self) -> None:
        """End `take`."""
