"""What a scope covers, said plainly: the reference that the native view is tested against.

Nothing at run time decides by this; `fastpath` does. A call is allowed by a chain only when every scope of it covers
the call on every axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sidecar.authority.scope import ArgRule, Scope, holds, host_within, tool_within

_FOLDS = {0x17F: "s", 0x212A: "k"}  # what Go's encoding/json folds besides ASCII


@dataclass(frozen=True)
class Call:
    """A call as the sidecar sees it: ids, and what stands above them in the entity store."""

    tool: str
    action: str
    destination: str
    tool_groups: frozenset[str] = frozenset()
    action_classes: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()
    level: int = 0
    labels: frozenset[str] = frozenset()
    method: str = ""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """By dotted path."""


class Covers(NamedTuple):
    """What `context.task.covers_*` says."""

    tool: bool
    action: bool
    dest: bool
    data: bool


def covers(scope: Scope, call: Call) -> Covers:
    """Which axes of `call` lie within `scope`."""
    return Covers(_tool(scope, call), _action(scope, call), _dest(scope, call), _data(scope, call))


def allows(scope: Scope, call: Call) -> bool:
    """Whether `scope` covers `call` on every axis."""
    return all(covers(scope, call))


def chain_allows(chain: Sequence[Scope], call: Call) -> bool:
    """Whether every task of a chain covers the call."""
    return bool(chain) and all(allows(scope, call) for scope in chain)


def _tool(scope: Scope, call: Call) -> bool:
    named = any(tool_within(call.tool, one) for one in scope.tools) or bool(call.tool_groups & set(scope.tool_groups))
    if not (scope.any_tool or named):
        return False
    rules = [rule for rule in scope.arg_rules if not rule.tool or tool_within(call.tool, rule.tool)]
    return all(_argument(rule, call) for rule in rules)


def _argument(rule: ArgRule, call: Call) -> bool:
    if any(_is_variant(given, rule.path) for given in call.arguments):
        return False
    return rule.path in call.arguments and holds(rule, call.arguments[rule.path])


def _is_variant(given: str, path: str) -> bool:
    """Whether the argument is on the way to `path` for a reader that ignores the case of letters, and for us is not."""
    for ours, theirs in zip(path.split("."), given.split("."), strict=False):
        if ours != theirs:
            return _folded(ours) == _folded(theirs.translate(_FOLDS))
    return False


def _folded(name: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def _action(scope: Scope, call: Call) -> bool:
    named = {call.action, *call.action_classes} & set(scope.actions)
    return (scope.any_action or bool(named)) and (scope.methods is None or call.method in scope.methods)


def _dest(scope: Scope, call: Call) -> bool:
    if scope.any_dest or call.zones & set(scope.zones):
        return True
    return any(host_within(call.destination, one) for one in scope.destinations)


def _data(scope: Scope, call: Call) -> bool:
    allowed = scope.label_allow is None or call.labels <= set(scope.label_allow)
    return call.level <= scope.max_level and allowed and not call.labels & set(scope.label_deny)
