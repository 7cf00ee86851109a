"""Family 3: booleans from {true, false, raises, non-bool} under every connective, in every operand order."""

from __future__ import annotations

from random import Random

from tests.differential.case import Case, Expr, Policy, ex
from tests.differential.families.common import effects, over_world
from tests.differential.world import make_entities, make_world

# Each kind as constants and as values that only the request knows, so that no compiler can fold them all.
TRUE = ("true", "context.t", "1 == 1", "principal == principal", "context.one < 2", '"a" like "*"')
FALSE = ("false", "context.f", "1 == 2", "context.one > 2", '"a" like "b"', "principal != principal")
RAISES = (
    "(9223372036854775807 + context.one == 0)", "(9223372036854775807 + 1 == 0)", "(context.max * 2 > 0)",
    "(-context.min == 0)", "(context.min - context.one < 0)",
)  # fmt: skip
RAISES_ILL = (
    "context.missing", '(context.one + "a" == 0)', "(1 < true)", "(1 in [principal])", 'ip("x").isIpv4()',
    '(1 like "*")', "context.t.x", "principal.missing", 'principal.getTag("none")', "(context.one is User)",
)  # fmt: skip
NON_BOOL = ("1", '"a"', "context.one", "principal", "[true]", "{}", "context", 'ip("1.2.3.4")', "context.zero", '""')


def make(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=typed, columns=columns, types=2, ids=2)
    fixed = (("t", "bool"), ("f", "bool"), ("one", "long"), ("zero", "long"), ("max", "long"), ("min", "long"))
    groups = world.context[1] if columns else ()
    world.context = (
        "record",
        tuple((name, type_, True) for name, type_ in fixed) + tuple(f for f in groups if f[0] not in dict(fixed)),
    )
    pool = effects(rng)
    policies = tuple(_policy(rng, typed, pool) for _ in range(40))
    case = over_world("lattice", world, make_entities(world), policies)
    known = {"t": True, "f": False, "one": 1, "zero": 0, "max": 2**63 - 1, "min": -(2**63)}
    # Some requests say otherwise, so that the same programs take other turns.
    swapped = known | {"t": False, "f": True, "one": 3}
    requests = tuple(
        dict(r, context=r["context"] | rng.choice((known, known, swapped)))
        for r in case.requests[: 4 if not columns else 2]
    )
    return case.with_(requests=requests)


def boolean(rng: Random, depth: int, typed: bool) -> Expr:
    if depth == 0:
        kinds = [TRUE, FALSE] * 2 + [RAISES] if typed else [TRUE, FALSE] * 4 + [RAISES, RAISES_ILL, NON_BOOL]
        return ex(rng.choice(rng.choice(kinds)))
    form = rng.choice(("&&", "&&", "||", "||", "!", "if", "=="))
    operands = [boolean(rng, depth - 1 if rng.random() < 0.7 else 0, typed) for _ in range(3)]
    if form == "!":
        return ex("!(", operands[0], ")")
    if form == "if":
        return ex("(if ", operands[0], " then ", operands[1], " else ", operands[2], ")")
    if form == "==" and rng.random() < 0.3:
        return ex("[", operands[0], "].contains(", operands[1], ")")
    # Equality takes any value, so below it a missing type check of the operands shows: `(true && 1) == 1`.
    return ex("((", operands[0], f") {form} (", operands[1], "))")


# Each level is two brackets: we refuse policies with more than 64 of them, and cedarpy does not read its own JSON back
# above about 60 levels.
LEVELS = 26


def deep(rng: Random, typed: bool) -> Expr:
    """One operand under many operators."""
    body = boolean(rng, 1, typed)
    for _ in range(rng.randrange(10, LEVELS)):
        other = boolean(rng, 0, typed)
        form = rng.randrange(5)
        if form == 0:
            body = ex("!(", body, ")")
        elif form == 1:
            body = ex("(if ", other, " then ", body, " else (", other, "))")
        else:
            sides = (body, other) if form < 4 else (other, body)
            body = ex("((", sides[0], rng.choice((") && (", ") || (", ") == (")), sides[1], "))")
    return body


def long(rng: Random, typed: bool) -> Expr:
    """Many operands of one operator, mostly of the kind that lets the next one run."""
    op, pool = rng.choice(((" && ", TRUE), (" || ", FALSE)))
    operands = [ex("(", ex(rng.choice(pool)), ")") for _ in range(rng.randrange(20, 200))]
    operands[rng.randrange(len(operands))] = boolean(rng, 1, typed)
    parts: list[str | Expr] = [operands[0]]
    for operand in operands[1:]:
        parts += [op, operand]
    return ex("(", *parts, ")")


def _body(rng: Random, typed: bool) -> Expr:
    roll = rng.random()
    if roll < 0.04:
        return rng.choice((deep, long))(rng, typed)
    return boolean(rng, rng.randrange(4), typed)


def _policy(rng: Random, typed: bool, pool: list[str]) -> Policy:
    clauses = tuple(
        (rng.choice(("when", "when", "unless")), _body(rng, typed)) for _ in range(rng.choice((1, 1, 2, 3)))
    )
    return Policy(effect=rng.choice(pool), clauses=clauses)
