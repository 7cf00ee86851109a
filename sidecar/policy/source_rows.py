"""What an image is made of, one by one: policies, their scopes, and entities."""

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.policy.cells import EMPTY_RECORD, Uid, Value
from sidecar.policy.program import Program
from sidecar.policy.rows import Scope


@dataclass(frozen=True, slots=True)
class ScopeRow:
    """One constraint: the uid of `==` and `in`, the type of `is`, the uids of an action list."""

    op: Scope = Scope.ANY
    uid: Uid | None = None
    type: str | None = None
    uids: tuple[Uid, ...] = ()

    def named(self) -> Iterable[Uid]:
        return self.uids if self.uid is None else (self.uid,)


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One policy or one link, ready to be filed."""

    id: str
    forbid: bool
    flags: int
    principal: ScopeRow
    action: ScopeRow
    resource: ScopeRow
    program: Program
    template: str = ""
    reason: str = ""
    obligation: str = ""
    annotations: str = "{}"


@dataclass(frozen=True, slots=True)
class EntityRow:
    """One entity of the store with its own parents; what those are in follows from their rows."""

    uid: Uid
    attrs: Value = EMPTY_RECORD
    tags: Value = EMPTY_RECORD
    parents: frozenset[Uid] = frozenset()
