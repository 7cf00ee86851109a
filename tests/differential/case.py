"""A differential case while it can still be taken apart: policies as trees, entities and requests as JSON values.

`render` turns a case into a *record*: the plain JSON object of the conformance corpus, with `links`,
`typed` and `columns` added. Everything that evaluates (oracle, ours, replay) reads records; only generators and the
shrinker know trees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fastpath.columns import COLUMNS

Json = Any
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Expr:
    """A Cedar expression: text pieces with sub-expressions between them."""

    parts: tuple[str | Expr, ...]

    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text() for part in self.parts)

    def kids(self) -> Iterator[Expr]:
        return (part for part in self.parts if isinstance(part, Expr))

    def size(self) -> int:
        return 1 + sum(kid.size() for kid in self.kids())


def ex(*parts: str | Expr) -> Expr:
    """An expression from its pieces."""
    return Expr(parts)


@dataclass(frozen=True, eq=False)
class Policy:
    """One static policy or template. `raw` replaces all the rest when the policy came as text."""

    effect: str = "permit"
    principal: str = "principal"
    action: str = "action"
    resource: str = "resource"
    clauses: tuple[tuple[str, Expr], ...] = ()
    annotations: str = ""
    raw: str | None = None
    # Copies made by the shrinker keep the key, so that links still find their template.
    key: object = field(default_factory=object)

    def text(self) -> str:
        if self.raw is not None:
            return self.raw
        head = f"{self.annotations}{self.effect}({self.principal}, {self.action}, {self.resource})"
        return "".join([head, *(f" {word} {{ {body.text()} }}" for word, body in self.clauses), ";"])


@dataclass(frozen=True)
class Link:
    """A template link: `slots` maps "?principal" and "?resource" to uids."""

    name: str
    template: object
    slots: dict[str, Json]


@dataclass(frozen=True)
class Case:
    """One policy set with its entities and requests; each request counts as one case."""

    family: str
    policies: tuple[Policy, ...]
    entities: tuple[Json, ...]
    requests: tuple[Json, ...]
    links: tuple[Link, ...] = ()
    schema: str = ""
    typed: bool = False
    columns: bool = False
    # A second state of the same tables, compiled while the first is in use (family `state`).
    after: Case | None = None

    def render(self, name: str) -> Record:
        """The record of this case, without expectations."""
        position = {policy.key: f"policy{i}" for i, policy in enumerate(self.policies)}
        requests = [dict(request) for request in self.requests]
        if self.columns:
            requests = [dict(request, context=fill_columns(request["context"])) for request in requests]
        return {
            "name": name,
            "policies": "\n".join(policy.text() for policy in self.policies),
            "schema": self.schema,
            "entities": list(self.entities),
            "links": [
                {"id": link.name, "template": position[link.template], "slots": link.slots}
                for link in self.links
                if link.template in position
            ],
            "typed": self.typed,
            "columns": self.columns,
            "requests": requests,
        }

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)


def fill_columns(context: Json) -> Json:
    """`context` with every live-state attribute that it lacks at its documented absent value."""
    if not isinstance(context, dict):
        return context
    filled = dict(context)
    for path, kind, value in COLUMNS:
        if value is None:
            continue
        group, _, leaf = path.partition(".")
        if kind == "entity":
            value = {"__entity": {"type": value[0], "id": value[1]}}
        elif kind == "set":
            value = list(value)
        if not leaf:
            filled.setdefault(group, value)
        else:
            filled[group] = {leaf: value, **filled.get(group, {})}
    return filled
