"""Makes a disagreement small: fewer policies, clauses, entities and requests, smaller expressions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.differential.case import Case, Expr, Json, Policy, ex

SIMPLER = (ex("true"), ex("false"), ex("1"), ex('"a"'))


def shrink(case: Case, still_differs: Callable[[Case], bool], *, seconds: float = 20.0) -> Case:
    """The smallest case found, within the time given, for which `still_differs` holds. It holds for `case` itself."""
    until = time.monotonic() + seconds
    case = replace(case, after=None)
    progress = True
    while progress:
        progress = False
        for step in (
            fewer_requests,
            fewer_policies,
            fewer_links,
            fewer_entities,
            fewer_clauses,
            smaller_policies,
            smaller_values,
        ):
            case, changed = _exhaust(case, step, still_differs, until)
            progress = progress or changed
    return case


def _exhaust(
    case: Case, step: Callable[[Case], Iterator[Case]], still_differs: Callable[[Case], bool], until: float
) -> tuple[Case, bool]:
    """Take the first smaller candidate that still differs, again and again."""
    changed = False
    while True:
        for candidate in step(case):
            if time.monotonic() > until:
                return case, False
            if still_differs(candidate):
                case, changed = candidate, True
                break
        else:
            return case, changed


def _without(items: tuple, least: int = 0) -> Iterator[tuple]:
    """`items` with ever smaller runs left out, never fewer than `least` items."""
    width = len(items)
    while width >= 1:
        for start in range(0, len(items), width):
            kept = items[:start] + items[start + width :]
            if least <= len(kept) < len(items):
                yield kept
        width //= 2


def fewer_requests(case: Case) -> Iterator[Case]:
    return (replace(case, requests=kept) for kept in _without(case.requests, least=1))


def fewer_policies(case: Case) -> Iterator[Case]:
    return (replace(case, policies=kept) for kept in _without(case.policies))


def fewer_links(case: Case) -> Iterator[Case]:
    return (replace(case, links=kept) for kept in _without(case.links))


def fewer_entities(case: Case) -> Iterator[Case]:
    return (replace(case, entities=kept) for kept in _without(case.entities))


def _each_policy(case: Case, change: Callable[[Policy], Iterator[Policy]]) -> Iterator[Case]:
    for at, policy in enumerate(case.policies):
        for changed in change(policy):
            yield replace(case, policies=(*case.policies[:at], changed, *case.policies[at + 1 :]))


def fewer_clauses(case: Case) -> Iterator[Case]:
    def change(policy: Policy) -> Iterator[Policy]:
        for kept in _without(policy.clauses):
            yield replace(policy, clauses=kept)
        if policy.annotations:
            yield replace(policy, annotations="")
        for var in ("principal", "action", "resource"):
            if getattr(policy, var) != var:
                yield replace(policy, **{var: var})

    return _each_policy(case, change)


def smaller_policies(case: Case) -> Iterator[Case]:
    def change(policy: Policy) -> Iterator[Policy]:
        for at, (word, body) in enumerate(policy.clauses):
            for smaller in smaller_expressions(body):
                yield replace(policy, clauses=(*policy.clauses[:at], (word, smaller), *policy.clauses[at + 1 :]))

    return _each_policy(case, change)


def smaller_expressions(body: Expr) -> Iterator[Expr]:
    """`body` with one node replaced by one of its operands or by a simple literal, outermost first."""
    yield from body.kids()
    if body.size() > 1:
        yield from SIMPLER
    for at, part in enumerate(body.parts):
        if isinstance(part, Expr):
            for smaller in smaller_expressions(part):
                yield Expr((*body.parts[:at], smaller, *body.parts[at + 1 :]))


def smaller_values(case: Case) -> Iterator[Case]:
    """Entities and requests with one attribute, tag, parent or member less."""
    for at, entity in enumerate(case.entities):
        for smaller in _smaller_json(entity, keep=("uid", "attrs", "parents")):
            yield replace(case, entities=(*case.entities[:at], smaller, *case.entities[at + 1 :]))
    for at, request in enumerate(case.requests):
        for smaller in _smaller_json(request["context"]):
            changed = dict(request, context=smaller)
            yield replace(case, requests=(*case.requests[:at], changed, *case.requests[at + 1 :]))


def _smaller_json(value: Json, keep: tuple[str, ...] = ()) -> Iterator[Json]:
    if isinstance(value, dict):
        if "__entity" in value or "__extn" in value:
            return
        for key in value:
            if key not in keep:
                yield {k: v for k, v in value.items() if k != key}
        for key, inner in value.items():
            if key != "uid":
                yield from ({**value, key: smaller} for smaller in _smaller_json(inner))
    elif isinstance(value, list):
        for at in range(len(value)):
            yield value[:at] + value[at + 1 :]
        for at, inner in enumerate(value):
            yield from ([*value[:at], smaller, *value[at + 1 :]] for smaller in _smaller_json(inner))
