"""Scopes, budgets and requests of tasks, from what is written in a program."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.json_format import ParseDict

from sidecar._proto.remit.authority.v1 import tasks_pb2

ANY = "*"


def _listed(message: tasks_pb2.Scope, any_field: str, field: str, names: Iterable[str]) -> None:
    """An explicit "*" covers all; everything else is a name."""
    for name in names:
        if name == ANY:
            setattr(message, any_field, True)
        else:
            getattr(message, field).append(name)


def scope(
    *,
    tools: Iterable[str] = (),
    tool_groups: Iterable[str] = (),
    actions: Iterable[str] = (),
    destinations: Iterable[str] = (),
    zones: Iterable[str] = (),
    max_level: int = 0,
    label_allow: Iterable[str] | None = None,
    label_deny: Iterable[str] = (),
    methods: Iterable[str] | None = None,
    arg_rules: Iterable[Mapping[str, Any]] = (),
) -> tasks_pb2.Scope:
    """What a task covers. What is not named is not covered; "*" among tools, actions or destinations covers all.

    `label_allow` and `methods` of None leave labels and methods open. An argument rule is
    {"tool", "path", "op": "eq" | "in" | "range" | "prefix" | "host_suffix" | "cidr", "values"}.
    """
    made = tasks_pb2.Scope(tool_groups=tool_groups, zones=zones, max_level=max_level, label_deny=label_deny)
    _listed(made, "any_tool", "tools", tools)
    _listed(made, "any_action", "actions", actions)
    _listed(made, "any_destination", "destinations", destinations)
    if label_allow is not None:
        made.label_allow.names.extend(label_allow)
        made.label_allow.SetInParent()
    if methods is not None:
        made.methods.names.extend(methods)
        made.methods.SetInParent()
    for rule in arg_rules:
        ParseDict({**rule, "op": f"ARG_OP_{rule['op'].upper()}"}, made.arg_rules.add())
    return made


def keyed(about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request with an idempotency key of its own: a repeated attempt is the same request."""
    return {"idempotency_key": uuid.uuid4().hex, **about}


def budgets(*, calls: int | None = None, cost: int | None = None, bytes_: int | None = None) -> tasks_pb2.Budgets:
    """What a task may spend; None is unlimited."""
    return tasks_pb2.Budgets(calls=calls, cost=cost, bytes=bytes_)
