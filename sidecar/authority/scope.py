"""What a task covers, and whether one scope lies within another.

`outside` compares what is written, not what it may come to mean: a tool that the parent has through a group is not
known to be in it, so a child must name the group. Whatever it passes is within the parent for every call and every
entity store; `sidecar.authority.covers` says what a scope covers, and a property test holds the two together.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from sidecar.authority.errors import invalid

LEVEL_MAX = 4
NAMES_MAX = 1024
NAME_BYTES_MAX = 512
RULES_MAX = 256
INT64 = 1 << 63

ArgValue = int | bool | str
Op = Literal["eq", "in", "range", "prefix", "host_suffix", "cidr"]
# The host of a URL: a reader could strip, unfold or end by the first what another takes for a part of it.
_DOUBTFUL = re.compile(r"[\x00-\x20\x7f\\@%]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAME = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?(?::[0-9]+)?")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|[0-9a-f:]+")


class ArgRule(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What one argument of a tool must be. `tool` is a resource id, "server/*", or empty for every tool."""

    tool: str
    path: str
    op: Op
    values: tuple[ArgValue, ...]


class Scope(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a task covers. An empty list covers nothing; None of `label_allow` and `methods` is no constraint."""

    any_tool: bool = False
    tools: tuple[str, ...] = ()
    tool_groups: tuple[str, ...] = ()
    any_action: bool = False
    actions: tuple[str, ...] = ()
    any_dest: bool = False
    destinations: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    max_level: int = 0
    label_allow: tuple[str, ...] | None = None
    label_deny: tuple[str, ...] = ()
    methods: tuple[str, ...] | None = None
    arg_rules: tuple[ArgRule, ...] = ()


def as_live(scope: Scope) -> dict[str, object]:
    """The scope as the native view takes it."""
    row = msgspec.structs.asdict(scope)
    if scope.arg_rules:
        row["arg_rules"] = [msgspec.structs.asdict(rule) for rule in scope.arg_rules]
    return row


# ---------------------------------------------------------------- is it well formed?


def check(scope: Scope, field: str = "scope") -> None:
    """Raise AuthorityError (INVALID_ARGUMENT) naming the part of `scope` that cannot be used."""
    for name in ("tools", "tool_groups", "actions", "destinations", "zones", "label_allow", "label_deny", "methods"):
        if names := getattr(scope, name):
            _check_names(names, f"{field}.{name}")
    for i, host in enumerate(scope.destinations):
        if not _HOST.fullmatch(host):
            raise invalid(
                f"{field}.destinations[{i}]", f"`{host}` is no host; write `host`, or `*.suffix`, in lower case"
            )
    if not 0 <= scope.max_level <= LEVEL_MAX:
        raise invalid(f"{field}.max_level", f"is {scope.max_level}; levels are 0 to {LEVEL_MAX}")
    if len(scope.arg_rules) > RULES_MAX:
        raise invalid(f"{field}.arg_rules", f"has more than {RULES_MAX} rules")
    for i, rule in enumerate(scope.arg_rules):
        _check_rule(rule, f"{field}.arg_rules[{i}]")


def _check_names(names: Sequence[str], field: str) -> None:
    if len(names) > NAMES_MAX:
        raise invalid(field, f"has more than {NAMES_MAX} names")
    for i, name in enumerate(names):
        if not name or len(name.encode()) > NAME_BYTES_MAX or not name.isprintable():
            raise invalid(f"{field}[{i}]", f"is empty, longer than {NAME_BYTES_MAX} bytes, or not printable")


def _check_rule(rule: ArgRule, field: str) -> None:
    _check_names([rule.path, *(v for v in rule.values if isinstance(v, str) and v)], field)
    if rule.tool:
        _check_names([rule.tool], f"{field}.tool")
    if not rule.values or len(rule.values) > NAMES_MAX:
        raise invalid(f"{field}.values", f"needs 1 to {NAMES_MAX} values")
    if any(type(v) is int and not -INT64 <= v < INT64 for v in rule.values):
        raise invalid(f"{field}.values", "has a number beyond 64 bits")
    if rule.op == "eq" and len(rule.values) != 1:
        raise invalid(f"{field}.values", "`eq` takes one value; use `in` for several")
    if rule.op == "range" and not (len(rule.values) == 2 and all(type(v) is int for v in rule.values)):
        raise invalid(f"{field}.values", "`range` takes two whole numbers")
    if rule.op in ("prefix", "host_suffix", "cidr"):
        if not all(isinstance(v, str) and v for v in rule.values):
            raise invalid(f"{field}.values", f"`{rule.op}` takes text")
        if rule.op == "cidr":
            _check_networks(rule.values, field)


def _check_networks(values: Sequence[ArgValue], field: str) -> None:
    for value in values:
        try:
            ipaddress.ip_network(str(value), strict=True)
        except ValueError:
            raise invalid(f"{field}.values", f"`{value}` is no network; write it as in 10.0.0.0/8") from None


# ---------------------------------------------------------------- is one within the other?


def outside(child: Scope, parent: Scope) -> list[str]:
    """Where `child` would cover what `parent` does not, a line for each; empty: it is within."""
    return [
        *_names_outside("tools", child.any_tool, child.tools, parent.any_tool, parent.tools, tool_within),
        *_names_outside("tool_groups", False, child.tool_groups, parent.any_tool, parent.tool_groups, _same),
        *_names_outside("actions", child.any_action, child.actions, parent.any_action, parent.actions, _same),
        *_names_outside(
            "destinations", child.any_dest, child.destinations, parent.any_dest, parent.destinations, host_within
        ),
        *_names_outside("zones", False, child.zones, parent.any_dest, parent.zones, _same),
        *_data_outside(child, parent),
        *_optional_outside("methods", child.methods, parent.methods),
        *_rules_outside(child, parent),
    ]


def _names_outside(
    axis: str,
    child_any: bool,
    child: Sequence[str],
    parent_any: bool,
    parent: Sequence[str],
    within: Callable[[str, str], bool],
) -> Iterator[str]:
    if parent_any:
        return
    if child_any:
        yield f"{axis}: any is more than the parent has"
    known = frozenset(parent)
    for name in child:
        if name not in known and not any(within(name, one) for one in parent):
            yield f"{axis}: `{name}` is not the parent's"


def _data_outside(child: Scope, parent: Scope) -> Iterator[str]:
    if child.max_level > parent.max_level:
        yield f"max_level: {child.max_level} is above the parent's {parent.max_level}"
    yield from _optional_outside("label_allow", child.label_allow, parent.label_allow)
    for name in sorted(set(parent.label_deny) - set(child.label_deny)):
        yield f"label_deny: `{name}`, which the parent denies, is missing"


def _optional_outside(axis: str, child: Sequence[str] | None, parent: Sequence[str] | None) -> Iterator[str]:
    if parent is None:
        return
    if child is None:
        yield f"{axis}: no constraint is more than the parent has"
        return
    for name in sorted(set(child) - set(parent)):
        yield f"{axis}: `{name}` is not the parent's"


def _same(child: str, parent: str) -> bool:
    return child == parent


def tool_within(child: str, parent: str) -> bool:
    """Whether a tool, or "server/*", is what the other one names."""
    return child == parent or (parent.endswith("/*") and child.startswith(parent[:-1]))


def host_within(child: str, parent: str) -> bool:
    """Whether every host of `child` ("host" or "*.suffix") is one of `parent`'s."""
    return child == parent or (
        parent.startswith("*.") and child.removeprefix("*").endswith(parent[1:]) and child != parent[2:]
    )


def _rules_outside(child: Scope, parent: Scope) -> Iterator[str]:
    for rule in parent.arg_rules:
        for tool in _reached(child, rule.tool):
            if not any(_implies(ours, rule, tool) for ours in child.arg_rules):
                where = f"`{tool}` " if tool else ""
                yield f"arg_rules: {where}`{rule.path}` {rule.op}, which the parent demands, is missing or wider"


def _reached(scope: Scope, tool: str) -> list[str]:
    """Of the tools that a rule is for, those that `scope` may cover; as the rule names them when it cannot tell."""
    if scope.any_tool or scope.tool_groups:
        return [tool]
    if not tool:
        return list(scope.tools)
    inner = [one for one in scope.tools if tool_within(one, tool)]
    return inner or [tool for one in scope.tools if tool_within(tool, one)][:1]


def _implies(ours: ArgRule, theirs: ArgRule, tool: str) -> bool:
    """Whether a call of `tool` that passes `ours` passes `theirs`."""
    if ours.path != theirs.path or not (not ours.tool or (tool and tool_within(tool, ours.tool))):
        return False
    if ours.op in ("eq", "in"):
        return all(holds(theirs, value) for value in ours.values)
    if ours.op != theirs.op:
        return False
    if ours.op == "range":
        (low, high), (least, most) = ours.values, theirs.values
        return int(low) > int(high) or (int(least) <= int(low) and int(high) <= int(most))
    within = {"prefix": _prefix_within, "host_suffix": _suffix_within, "cidr": _network_within}[ours.op]
    return all(any(within(str(a), str(b)) for b in theirs.values) for a in ours.values)


def _prefix_within(child: str, parent: str) -> bool:
    return child.startswith(parent)


def _suffix_within(child: str, parent: str) -> bool:
    return child == parent or child.endswith("." + parent)


def _network_within(child: str, parent: str) -> bool:
    inner, outer = ipaddress.ip_network(child), ipaddress.ip_network(parent)
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


# ---------------------------------------------------------------- one argument


def holds(rule: ArgRule, value: object) -> bool:
    """Whether an argument's value is what `rule` demands. Values of another type never are."""
    if rule.op in ("eq", "in"):
        return any(type(value) is type(one) and value == one for one in rule.values)
    if rule.op == "range":
        low, high = rule.values
        return type(value) is int and int(low) <= value <= int(high)
    if not isinstance(value, str):
        return False
    if rule.op == "prefix":
        return any(value.startswith(str(one)) for one in rule.values)
    if rule.op == "host_suffix":
        host = host_of(value)
        return host is not None and any(_suffix_within(host, str(one).lower()) for one in rule.values)
    return _in_networks(value, rule.values)


def host_of(text: str) -> str | None:
    """The host of a URL or of `host[:port]`, in lower case and without a trailing dot; None when there is none, or when
    readers could differ about it."""
    if _DOUBTFUL.search(text):
        return None
    authority = re.split("[/?#]", _SCHEME.sub("", text, count=1) if _SCHEME.match(text) else text, maxsplit=1)[0]
    found = _NAME.fullmatch(authority)
    return found[1].lower() if found else None


def _in_networks(value: str, networks: Sequence[ArgValue]) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(str(one)) for one in networks)
