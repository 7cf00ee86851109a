"""One thread of a native door; `fastpath.listener.Listener` makes and runs them."""

from collections.abc import Iterable

from typing_extensions import disjoint_base

@disjoint_base
class PepList:
    """The SPIFFE IDs of the Envoys that may assert another principal."""

    def __init__(self, ids: Iterable[str]) -> None: ...

@disjoint_base
class Loop:
    """What one thread of a Listener owns; used natively."""
