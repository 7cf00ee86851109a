"""Families 4, 5 and 7: integers at their limits, equality and sets across types, `like`."""

from __future__ import annotations

from random import Random

from tests.differential.case import Case, Expr, ex
from tests.differential.expr import LIKE_ALPHABET, Generator, pattern
from tests.differential.families.common import as_policies, over_world
from tests.differential.text import quoted
from tests.differential.world import LONGS, World, make_entities, make_world, random_type, value


def with_context(world: World, **fields: object) -> None:
    """Give the context required attributes of these types, beside its column groups."""
    groups = tuple(
        f for f in world.context[1] if world.columns and f[0] not in fields and isinstance(f[1], tuple) and f[2]
    )
    world.context = ("record", tuple((name, type_, True) for name, type_ in fields.items()) + groups)


# ---------------------------------------------------------------- integers


def integers(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=typed, columns=columns, types=2, ids=2)
    with_context(world, x="long", y="long", z="long")
    conditions = [_comparison(rng, typed) for _ in range(25)]
    return over_world("integers", world, make_entities(world), as_policies(rng, conditions))


def _comparison(rng: Random, typed: bool) -> Expr:
    op = rng.choice((" < ", " <= ", " > ", " >= ", " == ", " != "))
    right = _number(rng, 1) if typed or rng.random() < 0.95 else ex(rng.choice(("true", '"1"', "principal", "[1]")))
    return ex(_number(rng, rng.randrange(1, 4)), op, right)


def _number(rng: Random, depth: int) -> Expr:
    if depth == 0:
        if rng.random() < 0.5:
            return ex(rng.choice(("context.x", "context.y", "context.z")))
        return ex(str(rng.choice((*LONGS, rng.randrange(-100, 100)))))
    if rng.random() < 0.2:
        return ex("-(", _number(rng, depth - 1), ")")
    return ex("(", _number(rng, depth - 1), rng.choice((" + ", " - ", " * ")), _number(rng, rng.randrange(depth)), ")")


# ---------------------------------------------------------------- equality and sets

TRICKY = (
    "1", "true", "0", "false", '"1"', '"true"', '""', "[]", "[1]", "[true]", "[1, true]", "[true, 1]", "[1, 1]",
    "[[1], [1, 1]]", "[[]]", "{}", '{"a": 1}', '{"a": true}', '{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a": {}}',
    "principal", "resource", 'ip("1.2.3.4")', 'ip("1.2.3.4/32")', 'ip("1.2.3.4/24")', 'ip("::1.2.3.4")',
    'ip("::ffff:1.2.3.4")', 'ip("::1")', 'ip("0:0:0:0:0:0:0:1/128")', 'decimal("1.0")', 'decimal("1.0000")',
    'decimal("-0.0")', 'decimal("0.0")', 'datetime("1970-01-01")', 'datetime("1970-01-01T01:00:00+0100")',
    'datetime("1970-01-01T00:00:00.000Z")', 'duration("0ms")', 'duration("-0d")', 'duration("1h")', 'duration("60m")',
    '"1.0"', '"1.2.3.4"', "10000", '[ip("1.2.3.4"), ip("1.2.3.4/32")]', '[decimal("1.0"), 1, "1.0"]',
    "[principal, resource]", "[resource, principal]", '[{"a": 1, "b": [2, 1]}]', '[{"b": [1, 2, 1], "a": 1}]', "-0",
    "context.v", "context.w", "context.s", "principal.a", '[context.v, context.w]', '{"a": context.v}', "context.v2",
    '[context.v2]',
)  # fmt: skip


def equality(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=typed, columns=columns, types=2, ids=2)
    inner = random_type(world, 1)
    with_context(world, v=inner, v2=inner, w=random_type(world, 2), s=("set", inner))
    generator = Generator(world, unsafe=not typed)
    if typed:
        conditions = [rng.choice((generator.equal, generator.sets, generator.sets))(2) for _ in range(25)]
        return over_world("equality", world, make_entities(world), as_policies(rng, conditions))
    conditions = [_relation(rng) for _ in range(30)]
    case = over_world("equality", world, make_entities(world), as_policies(rng, conditions))
    return case.with_(requests=tuple(_retyped(world, request) for request in case.requests))


def _relation(rng: Random) -> Expr:
    left, right = ex(rng.choice(TRICKY)), ex(rng.choice(TRICKY))
    form = rng.randrange(6)
    if form < 2:
        return ex("(", left, rng.choice((" == ", " != ")), right, ")")
    if form == 2:
        return ex("[", left, ", ", ex(rng.choice(TRICKY)), "].contains(", right, ")")
    method = rng.choice(("containsAll", "containsAny", "containsAll", "containsAny", "contains"))
    sides = [_set(rng) for _ in range(2)]
    if form == 5:
        return ex(sides[0], f".{rng.choice(('isEmpty', 'contains'))}()" if rng.random() < 0.1 else ".isEmpty()")
    return ex(sides[0], f".{method}(", sides[1], ")")


def _set(rng: Random) -> Expr:
    if rng.random() < 0.3:
        return ex(rng.choice(("context.s", "context.w", "context.v", "[]", "[context.v]")))
    return ex("[" + ", ".join(rng.choice(TRICKY) for _ in range(rng.randrange(4))) + "]")


def _retyped(world: World, request: dict) -> dict:
    """The request with `w` of any type, and often equal to `v` in another spelling."""
    context = dict(request["context"])
    roll = world.rng.random()
    if roll < 0.4:
        context["w"] = context["v"]
    elif roll < 0.6 and isinstance(context["s"], list):
        context["w"] = [*reversed(context["s"]), *context["s"][:1]]
    else:
        context["w"] = value(world, random_type(world, 2))
    return dict(request, context=context)


# ---------------------------------------------------------------- like


def like(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=typed, columns=columns, types=2, ids=2)
    with_context(world, s="string", u="string")
    conditions = []
    for _ in range(30):
        text = ex("context.s") if rng.random() < 0.6 else ex(quoted(_text(rng), rng))
        if not typed and rng.random() < 0.03:
            text = ex(rng.choice(("1", "true", "principal", '["a"]')))
        conditions.append(ex("(", text, f" like {pattern(rng)})"))
    conditions.append(ex(f'(context.u like "{"a*" * rng.choice((3, 8, 12))}b")'))
    case = over_world("like", world, make_entities(world), as_policies(rng, conditions))
    requests = []
    for request in case.requests:
        texts = {"s": _text(rng), "u": "a" * rng.choice((0, 5, 40)) + rng.choice(("", "b"))}
        requests.append(dict(request, context=request["context"] | texts))
    return case.with_(requests=tuple(requests))


def _text(rng: Random) -> str:
    return "".join(rng.choice(LIKE_ALPHABET) for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 10, 40))))
