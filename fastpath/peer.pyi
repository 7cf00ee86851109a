"""A verified caller."""

from typing import Final

INT64_MAX: Final[int]

class VerifiedPeer:
    """Who calls, and until when that holds. Read by `decide` at every call."""

    def __init__(
        self,
        kind: int,
        spiffe_id: str,
        credential: str,
        *,
        not_after_s: int = ...,
        bundle_generation: int = 0,
        refusal: str = "",
    ) -> None: ...
    @property
    def spiffe_id(self) -> str: ...
    @property
    def refusal(self) -> str: ...
    @property
    def bundle_generation(self) -> int: ...
    @property
    def not_after_s(self) -> int: ...
