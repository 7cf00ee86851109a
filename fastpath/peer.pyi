"""A verified caller."""

from typing import Final

from typing_extensions import disjoint_base

INT64_MAX: Final[int]

@disjoint_base
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
    def kind(self) -> int: ...
    @property
    def credential(self) -> str: ...
    @property
    def spiffe_id(self) -> str: ...
    @property
    def refusal(self) -> str: ...
    @property
    def bundle_generation(self) -> int: ...
    @property
    def not_after_s(self) -> int: ...
