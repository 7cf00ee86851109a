"""Why the sidecar must not decide: the first condition that fails, as the reason code that ERROR answers carry.

Nothing is decided until there is a valid SVID with its bundles, a verified generation and a journal that takes records;
losing one later answers ERROR again.
"""

import dataclasses
import time
from collections.abc import Callable

NO_GENERATION = "not_ready.generation"
NO_JOURNAL = "not_ready.journal"
STALE_POLICY = "not_ready.policy_stale"
STARTING = "not_ready.starting"
NO_AUTHORITY = "not_ready.authority"


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What readiness is made of. `identity`: empty, or the identity source's own reason code."""

    identity: str
    generation: bool
    journal: bool
    fresh: bool
    authority: bool = True


def reason(now: Conditions) -> str:
    """The reason code in force, or empty when calls may be decided."""
    if now.identity:
        return now.identity
    if not now.generation:
        return NO_GENERATION
    if not now.journal:
        return NO_JOURNAL
    if not now.authority:
        return NO_AUTHORITY
    return "" if now.fresh else STALE_POLICY


class Freshness:
    """How old the last successful load of the policies is. A clock that goes back makes nothing younger."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loaded: float | None = None

    def loaded(self) -> None:
        """The policies in force are those of their source, now."""
        self._loaded = self._clock()

    def stale(self, max_age_s: int) -> bool:
        """Whether the last load is older than `max_age_s`; 0: nothing is ever stale."""
        return bool(max_age_s) and (self._loaded is None or self._clock() - self._loaded > max_age_s)
