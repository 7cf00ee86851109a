"""Family 8: extension values: what the text parsers take, and what every method makes of it."""

from __future__ import annotations

from random import Random

from tests.differential.case import Case, Expr, ex
from tests.differential.expr import METHODS_DECIMAL, METHODS_TO
from tests.differential.families.common import as_policies, over_world
from tests.differential.families.scalars import with_context
from tests.differential.text import extension_text, quoted
from tests.differential.world import make_entities, make_world

KINDS = ("decimal", "ip", "datetime", "duration")


def make(rng: Random, *, typed: bool, columns: bool) -> Case:
    world = make_world(rng, typed=typed, columns=columns, types=2, ids=2)
    with_context(
        world, decimal="decimal", ip="ip", datetime="datetime", duration="duration", text="string", other="string"
    )
    maker = Maker(rng, typed)
    conditions = [maker.condition() for _ in range(30)]
    # A refused text in an entity refuses the whole store, so only a few stores have any.
    entities = make_entities(world, wild=not typed and rng.random() < 0.15)
    case = over_world(
        "extensions", world, entities, as_policies(rng, conditions), wild=not typed and rng.random() < 0.3
    )
    return case.with_(requests=tuple(_with_texts(rng, request) for request in case.requests))


def _with_texts(rng: Random, request: dict) -> dict:
    """The request with texts that the policies parse, and now and then a value made by `offset`."""
    context = dict(request["context"])
    context["text"], context["other"] = (extension_text(rng, rng.choice(KINDS), wild=True) for _ in range(2))
    if rng.random() < 0.2:
        start, span = (extension_text(rng, kind, wild=False) for kind in ("datetime", "duration"))
        args = [{"__extn": {"fn": "datetime", "arg": start}}, {"__extn": {"fn": "duration", "arg": span}}]
        context["datetime"] = {"__extn": {"fn": "offset", "args": args}}
    return dict(request, context=context)


class Maker:
    """Conditions about extension values. Typed ones take literals that parse, as the validator demands."""

    def __init__(self, rng: Random, typed: bool) -> None:
        self.rng, self.typed = rng, typed

    def value(self, kind: str, depth: int = 1) -> Expr:
        rng = self.rng
        roll = rng.random()
        if roll < 0.25:
            return ex(f"context.{kind}")
        if roll < 0.4 and not self.typed:
            return ex(f"{kind}({rng.choice(('context.text', 'context.other'))})")
        if roll < 0.65 and depth:
            if kind == "datetime":
                return self.instant(depth)
            if kind == "duration":
                return self.span(depth)
        if not self.typed and rng.random() < 0.03:
            return ex(rng.choice(("1", '"1.0"', "true", "principal", "[]")))
        return ex(f"{kind}({quoted(extension_text(rng, kind, wild=not self.typed and rng.random() < 0.6), rng)})")

    def instant(self, depth: int) -> Expr:
        if self.rng.random() < 0.4:
            return ex(self.value("datetime", depth - 1), ".toDate()")
        return ex(self.value("datetime", depth - 1), ".offset(", self.value("duration", depth - 1), ")")

    def span(self, depth: int) -> Expr:
        if self.rng.random() < 0.4:
            return ex(self.value("datetime", depth - 1), ".toTime()")
        return ex(self.value("datetime", depth - 1), ".durationSince(", self.value("datetime", depth - 1), ")")

    def condition(self) -> Expr:
        rng = self.rng
        if not self.typed and rng.random() < 0.04:
            return self.wrong_arity()
        form = rng.randrange(7)
        if form == 0:
            method = rng.choice(METHODS_DECIMAL)
            return ex(self.value("decimal"), f".{method}(", self.value("decimal"), ")")
        if form == 1:
            method = rng.choice(("isIpv4", "isIpv6", "isLoopback", "isMulticast"))
            return ex(self.value("ip"), f".{method}()")
        if form == 2:
            return ex(self.value("ip"), ".isInRange(", self.value("ip"), ")")
        if form == 3:
            kind = rng.choice(("datetime", "duration"))
            return ex(
                "(", self.value(kind), rng.choice((" < ", " <= ", " > ", " >= ", " == ", " != ")), self.value(kind), ")"
            )
        if form in (4, 5):
            number = rng.choice((0, 1, -1, 23, 24, 25, 60, 90, 1000, 3600, 86400, 90061, 93784005, -90000))
            call = ex(self.value("duration"), f".{rng.choice(METHODS_TO)}()")
            return ex("(", call, rng.choice((" == ", " < ", " >= ")), str(number), ")")
        kind = rng.choice(KINDS)
        return ex("(", self.value(kind), rng.choice((" == ", " != ")), self.value(kind), ")")

    def wrong_arity(self) -> Expr:
        """Calls that parse and raise when reached."""
        kind = self.rng.choice(KINDS)
        value = self.value(kind, 0)
        return self.rng.choice(
            (
                ex(f"{kind}()"),
                ex(f'{kind}("1", "2")'),
                ex(value, ".isIpv4(", value, ")"),
                ex(value, ".lessThan()"),
                ex(value, ".toDays(1)"),
                ex(value, ".offset()"),
                ex(value, ".isInRange(", value, ", ", value, ")"),
                ex("(false && ", ex(f"{kind}()"), ")"),
            )
        )
