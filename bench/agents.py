"""The workload of the decision bench: agents that call tools under 1 to many policies. Made from a seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

AGENTS, CLASSES, TOOLS = 50, 10, 100
VERBS = ("read", "write", "send", "delete")


@dataclass(frozen=True)
class Workload:
    """Cedar policies, entities (Cedar JSON) and distinct requests."""

    policies: str
    entities: list[dict[str, Any]]
    requests: list[dict[str, Any]]


def workload(policies: int, requests: int, seed: int = 1) -> Workload:
    """`policies` policies over 50 agents in 10 classes and 100 tools; one in ten forbids, each has a condition."""
    rng = Random(f"bench {seed} {policies}")
    text = "\n".join(_policy(rng, number) for number in range(policies))
    return Workload(text, _entities(rng), [_request(rng) for _ in range(requests)])


def _uid(type_: str, id_: object) -> dict[str, str]:
    return {"type": type_, "id": str(id_)}


def _entities(rng: Random) -> list[dict[str, Any]]:
    classes = [{"uid": _uid("AgentClass", n), "attrs": {}, "parents": []} for n in range(CLASSES)]
    agents = [
        {
            "uid": _uid("Agent", n),
            "attrs": {"clearance": rng.randrange(5), "status": rng.choice(("active", "active", "quarantined"))},
            "parents": [_uid("AgentClass", n % CLASSES)],
        }
        for n in range(AGENTS)
    ]
    groups = [{"uid": _uid("ToolGroup", n), "attrs": {}, "parents": []} for n in range(10)]
    tools = [
        {"uid": _uid("Tool", n), "attrs": {"level": rng.randrange(5)}, "parents": [_uid("ToolGroup", n % 10)]}
        for n in range(TOOLS)
    ]
    verbs = [{"uid": _uid("Action", verb), "attrs": {}, "parents": []} for verb in VERBS]
    return [*classes, *agents, *groups, *tools, *verbs]


def _policy(rng: Random, number: int) -> str:
    """The first policy is one that most requests meet, so that one policy alone also decides something."""
    principal = f'principal in AgentClass::"{rng.randrange(CLASSES)}"'
    resource = rng.choice(
        (f'resource == Tool::"{rng.randrange(TOOLS)}"', f'resource in ToolGroup::"{rng.randrange(10)}"')
    )
    action = f'action == Action::"{rng.choice(VERBS)}"'
    if number == 0:
        return (
            "permit(principal is Agent, action, resource is Tool) "
            'when { principal.status == "active" && resource.level <= principal.clearance };'
        )
    if number % 10 == 0:
        return f"forbid({principal}, {action}, resource) when {{ context.untrusted_seen && context.data_level > 2 }};"
    return (
        f"permit({principal}, {action}, {resource}) "
        'when { context.task_covers && context.data_level <= principal.clearance && context.host like "*.internal" };'
    )


def _request(rng: Random) -> dict[str, Any]:
    return {
        "principal": _uid("Agent", rng.randrange(AGENTS)),
        "action": _uid("Action", rng.choice(VERBS)),
        "resource": _uid("Tool", rng.randrange(TOOLS)),
        "context": {
            "task_covers": rng.random() < 0.8,
            "data_level": rng.randrange(5),
            "untrusted_seen": rng.random() < 0.2,
            "host": rng.choice(("db.internal", "mail.internal", "example.com")),
        },
    }
