"""Decisions for Python: what tests, benches, `policy test` and Explain ask. All but the preparing is `decide`."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from typing_extensions import disjoint_base

from fastpath.authority import Live
from fastpath.table import Generation

ARENA_BYTES: Final[int]
"""Default size of a request's arena."""
CAUSES: Final[tuple[str, ...]]
"""Names of EvalError, by number; the first, no error, is empty."""
OUTCOMES: Final[tuple[str, ...]]
"""Names of Outcome, by number: "ALLOW", "DENY", .."""

class Evaluation(NamedTuple):
    outcome: str
    """Name of the Outcome."""
    reason: str
    """Stable reason code."""
    reasons: list[str]
    """Ids of all determining policies: the satisfied forbids, else the satisfied permits."""
    errors: list[tuple[str, str]]
    """(id, cause) of every policy that erred."""
    shadows: list[tuple[str, str]]
    """(id, cause or "") of the first shadow policies that were satisfied or erred."""
    obligation: str
    input_missing: str
    cacheable: bool
    evaluation_id: str

@disjoint_base
class Prepared: ...

@disjoint_base
class Evaluator:
    def __init__(self, generation: Generation, *, strict: bool | None = None) -> None: ...
    @property
    def generation(self) -> Generation: ...
    def put_peer(
        self, *, kind: int = ..., not_after_s: int = ..., bundle_generation: int = 0, refusal: str = ""
    ) -> None: ...
    def put_authority(self, live: Live | None) -> None: ...
    def put_state(
        self,
        *,
        epoch: int = 0,
        bundle_generation: int = 0,
        not_ready: str = "",
        now_ns: int = 0,
        now_unix_ns: int = 0,
        boot: int = 0,
    ) -> None: ...
    def prepare(
        self,
        principal: tuple[str, str],
        action: tuple[str, str],
        resource: tuple[str, str],
        context_blob: bytes = b"",
        *,
        resource_parent: tuple[str, str] | None = None,
        unsent: Sequence[str] = (),
        refusal: str = "",
        deadline_ns: int = 0,
        arena_bytes: int = ...,
    ) -> Prepared: ...
    def evaluate_prepared(self, prepared: Prepared) -> Evaluation: ...
    def outcomes(self, prepared: list[Prepared]) -> bytes: ...
    def evaluate(
        self,
        principal: tuple[str, str],
        action: tuple[str, str],
        resource: tuple[str, str],
        context_blob: bytes = b"",
        *,
        resource_parent: tuple[str, str] | None = None,
        unsent: Sequence[str] = (),
        refusal: str = "",
        deadline_ns: int = 0,
        arena_bytes: int = ...,
    ) -> Evaluation: ...
    def trace(
        self,
        principal: tuple[str, str],
        action: tuple[str, str],
        resource: tuple[str, str],
        context_blob: bytes = b"",
        *,
        resource_parent: tuple[str, str] | None = None,
        unsent: Sequence[str] = (),
        every: bool = False,
    ) -> list[tuple[str, str, bool, bool | None, str]]: ...
