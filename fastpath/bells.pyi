"""Who is told that what decides has changed."""

from typing_extensions import disjoint_base

@disjoint_base
class Bells:
    """The bells of one Pdp; rung and heard natively."""

    def __new__(cls) -> Bells: ...

@disjoint_base
class BellRoom:
    """A thread of Python that waits for them."""

    def __new__(cls, bells: Bells) -> BellRoom: ...
    def wait(self) -> bool:
        """Wait until one rings; several that did meanwhile count as one. False once the room is closed."""
    def close(self) -> None:
        """End `wait`, from any thread."""
