"""The policy sets of the benches: five ways in which policies grow to a million, made from a seed alone.

Each has as many entities as policies, up to a few, and requests of which every other one is drawn from the scope of
some policy, so that hits and misses are both measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

Uid = dict[str, str]
CLASSES = 200
"""Policies that stand before the links in `agents`."""
AGENT = "spiffe://corp.example/agents/"
"""Its agents have SPIFFE IDs, as a verified caller has."""


@dataclass
class Workload:
    """Cedar policies that carry `@id`, template links, entities (Cedar JSON) and distinct requests."""

    policies: list[str] = field(default_factory=list)
    links: list[tuple[str, str, Uid, Uid]] = field(default_factory=list)
    """(id, template, principal, resource)"""
    templates: dict[str, str] = field(default_factory=dict)
    """Templates by id, with `?principal` and `?resource` in their scope."""
    entities: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    grows: str = "policies"
    """What there are many of: policies or links."""

    def text(self) -> str:
        return "\n".join([*self.templates.values(), *self.policies])

    def links_text(self) -> str:
        lines = (
            json.dumps({"id": id_, "template": template, "slots": {"?principal": principal, "?resource": resource}})
            for id_, template, principal, resource in self.links
        )
        return "\n".join(lines)

    def expanded(self) -> Iterator[tuple[str, str]]:
        """(id, text) of every policy with links written out, for an engine that is given text alone."""
        for text in self.policies:
            yield text.split('"', 2)[1], text
        for id_, template, principal, resource in self.links:
            text = self.templates[template].replace("?principal", _cedar(principal))
            yield id_, text.replace("?resource", _cedar(resource)).replace(f'"{template}"', f'"{id_}"', 1)


def _uid(type_: str, id_: object) -> Uid:
    return {"type": type_, "id": str(id_)}


def _cedar(uid: Uid) -> str:
    return f'{uid["type"]}::"{uid["id"]}"'


def _entity(type_: str, id_: object, parents: list[Uid] | None = None, **attrs: object) -> dict[str, Any]:
    return {"uid": _uid(type_, id_), "attrs": attrs, "parents": parents or []}


def _ask(principal: Uid, action: str, resource: Uid, **context: object) -> dict[str, Any]:
    return {"principal": principal, "action": _uid("Action", action), "resource": resource, "context": context}


def _rbac(rng: Random, size: int, requests: int) -> Workload:
    """Groups get access to folders; users are in three groups each, files in a folder each."""
    groups, folders, users = max(1, size // 10), max(1, size // 4), max(2, size // 3)
    work = Workload()
    scopes = []
    for number in range(size):
        scope = (rng.randrange(groups), rng.choice(("view", "edit")), number % folders)
        scopes.append(scope)
        work.policies.append(
            f'@id("p{number:07}") permit(principal in Group::"g{scope[0]}", action == Action::"{scope[1]}", '
            f'resource in Folder::"f{scope[2]}");'
        )
    work.entities = [_entity("Group", f"g{n}") for n in range(groups)]
    work.entities += [_entity("Folder", f"f{n}") for n in range(folders)]
    homes: dict[int, list[int]] = {}
    for user in range(users):
        mine = sorted({rng.randrange(groups) for _ in range(3)})
        work.entities.append(_entity("User", f"u{user}", [_uid("Group", f"g{n}") for n in mine]))
        for group in mine:
            homes.setdefault(group, []).append(user)
    files = max(2, size // 3)
    work.entities += [_entity("File", f"d{n}", [_uid("Folder", f"f{n % folders}")]) for n in range(files)]
    for number in range(requests):
        group, action, folder = rng.choice(scopes)
        user = rng.choice(homes.get(group, [0])) if number % 2 else rng.randrange(users)
        file = folder if number % 2 and folder < files else rng.randrange(files)
        work.requests.append(_ask(_uid("User", f"u{user}"), action, _uid("File", f"d{file}")))
    return work


def _people(rng: Random, size: int) -> tuple[list[dict[str, Any]], int]:
    count = max(2, size // 2)
    users = [_entity("User", f"u{n}", level=rng.randrange(5), suspended=rng.random() < 0.05) for n in range(count)]
    return [*users, *(_entity("Doc", f"d{n}", level=rng.randrange(5)) for n in range(count))], count


def _sharing(rng: Random, size: int, requests: int) -> Workload:
    """Documents shared with one user at a time: one template, a link per share."""
    work = Workload(grows="links")
    work.templates["share"] = (
        '@id("share") permit(principal == ?principal, action in [Action::"view", Action::"comment"], '
        "resource == ?resource) when { !principal.suspended };"
    )
    work.entities, count = _people(rng, size)
    for number in range(size):
        user, doc = _uid("User", f"u{rng.randrange(count)}"), _uid("Doc", f"d{rng.randrange(count)}")
        work.links.append((f"s{number:07}", "share", user, doc))
    for number in range(requests):
        _, _, user, doc = rng.choice(work.links)
        doc = doc if number % 2 else _uid("Doc", f"d{rng.randrange(count)}")
        work.requests.append(_ask(user, rng.choice(("view", "comment", "delete")), doc))
    return work


def _abac(rng: Random, size: int, requests: int) -> Workload:
    """Conditions over attributes and context; the scopes differ, one policy in ten forbids."""
    work = Workload()
    work.entities, count = _people(rng, size)
    scopes = []
    for number in range(size):
        doc, action = rng.randrange(count), rng.choice(("view", "edit"))
        scopes.append((doc, action))
        effect, body = ("forbid", 'context.score > 7 || context.network like "10.*"') if number % 10 == 9 else (
            "permit",
            f"principal.level >= resource.level && !principal.suspended && context.mfa && context.score < "
            f"{rng.randrange(2, 10)}",
        )  # fmt: skip
        work.policies.append(
            f'@id("p{number:07}") {effect}(principal is User, action == Action::"{action}", '
            f'resource == Doc::"d{doc}") when {{ {body} }};'
        )
    for number in range(requests):
        doc, action = rng.choice(scopes)
        doc = doc if number % 2 else rng.randrange(count)
        network = rng.choice(("10.1.2.3", "192.168.1.4"))
        context = {"mfa": rng.random() < 0.8, "score": rng.randrange(10), "network": network}
        user = _uid("User", f"u{rng.randrange(count)}")
        work.requests.append(_ask(user, action, _uid("Doc", f"d{doc}"), **context))
    return work


def _agents(rng: Random, size: int, requests: int) -> Workload:
    """The agents' vocabulary: two hundred policies over classes of agents and groups of tools, before links."""
    work = Workload(grows="links")
    work.templates["tool"] = (
        '@id("tool") permit(principal == ?principal, action in [Action::"read", Action::"list"], '
        "resource == ?resource) when { context.task.present && context.task.covers_tool };"
    )
    for number in range(CLASSES):
        scope = f'principal in AgentClass::"c{number % 50}", action == Action::"{("read", "send")[number % 2]}"'
        if number % 4 == 3:
            work.policies.append(
                f'@id("k{number:03}") forbid({scope}, resource in ToolGroup::"t{number}") '
                "when { context.session.level_seen > 2 && resource.level < context.session.level_seen };"
            )
        else:
            # Every other one needs no task, so that an agent without one is allowed something as well.
            task = "context.task.present && " if number % 4 else ""
            work.policies.append(
                f'@id("k{number:03}") permit({scope}, resource in ToolGroup::"t{number}") '
                f"when {{ {task}context.call.data_level <= principal.clearance }};"
            )
    count = max(2, size // 2)
    work.entities = [_entity("AgentClass", f"c{n}") for n in range(50)]
    work.entities += [_entity("ToolGroup", f"t{n}") for n in range(CLASSES)]
    work.entities += [
        _entity("Agent", AGENT + str(n), [_uid("AgentClass", f"c{n % 50}")], clearance=rng.randrange(5))
        for n in range(count)
    ]
    work.entities += [
        _entity("Tool", f"x{n}", [_uid("ToolGroup", f"t{n % CLASSES}")], level=rng.randrange(5)) for n in range(count)
    ]
    for number in range(size):
        agent, tool = _uid("Agent", AGENT + str(rng.randrange(count))), _uid("Tool", f"x{rng.randrange(count)}")
        work.links.append((f"s{number:07}", "tool", agent, tool))
    for number in range(requests):
        _, _, agent, tool = rng.choice(work.links)
        if number % 4 == 2:
            # From the scope of one of the two hundred, where there are agents and tools enough.
            one = rng.randrange(CLASSES)
            agent = _uid("Agent", AGENT + str(min(count - 1, one % 50 + 50 * rng.randrange(1 + count // 50))))
            tool = _uid("Tool", f"x{min(count - 1, one + CLASSES * rng.randrange(1 + count // CLASSES))}")
        elif number % 4 == 0:
            tool = _uid("Tool", f"x{rng.randrange(count)}")
        context = {
            "task": {"present": rng.random() < 0.9, "covers_tool": rng.random() < 0.9},
            "session": {"level_seen": rng.randrange(5)},
            "call": {"data_level": rng.randrange(5)},
        }
        work.requests.append(_ask(agent, rng.choice(("read", "list", "send")), tool, **context))
    return work


def _one_scope(rng: Random, size: int, requests: int) -> Workload:
    """Every policy has the same scope, so every request meets all of them: no index can help."""
    work = Workload()
    work.entities, count = _people(rng, size)
    work.policies = [
        f'@id("p{number:07}") permit(principal is User, action == Action::"view", resource is Doc) '
        f'when {{ context.project == "q{number}" && principal.level > {rng.randrange(4)} }};'
        for number in range(size)
    ]
    for number in range(requests):
        project = f"q{rng.randrange(size)}" if number % 2 else "none"
        user, doc = _uid("User", f"u{rng.randrange(count)}"), _uid("Doc", f"d{rng.randrange(count)}")
        work.requests.append(_ask(user, "view", doc, project=project))
    return work


KINDS: dict[str, Callable[[Random, int, int], Workload]] = {
    "rbac": _rbac,
    "sharing": _sharing,
    "abac": _abac,
    "agents": _agents,
    "one_scope": _one_scope,
}
SAME_SCOPE = "one_scope"
CALLS = "agents"
"""The one whose requests are calls that a door takes: the caller an agent, the action and the context a sidecar's."""


def workload(kind: str, size: int, requests: int, seed: int = 1) -> Workload:
    """`size` policies or links of a kind. The same arguments give the same workload on any machine."""
    return KINDS[kind](Random(f"bench {kind} {seed} {size}"), size, requests)
