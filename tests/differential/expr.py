"""Random Cedar expressions of a wanted type over a world, with a chance of ill-typed sub-expressions."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.differential.case import Expr, ex
from tests.differential.text import extension_text, is_plain, quoted, uid_text
from tests.differential.world import (
    NAMES,
    Type,
    World,
    literal,
    random_type,
    value,
)

METHODS_DECIMAL = ("lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual")
METHODS_TO = ("toMilliseconds", "toSeconds", "toMinutes", "toHours", "toDays")
LIKE_ALPHABET = "ab*\\\n\U0001f600"


def attribute(base: Expr, name: str) -> Expr:
    """`base.name`, or `base["name"]` where the name is no identifier."""
    return ex(base, f".{name}") if is_plain(name) else ex(base, f"[{quoted(name)}]")


def has(base: Expr, name: str) -> Expr:
    return ex("(", base, f" has {name if is_plain(name) else quoted(name)})")


def pattern(rng: Random, alphabet: str = LIKE_ALPHABET, stars: int = 6) -> str:
    """A `like` pattern literal: some wildcards, some escaped stars."""
    made = (
        "*" if rng.random() < 0.4 else quoted(rng.choice(alphabet), pattern=True)[1:-1]
        for _ in range(rng.randrange(stars + 1) + rng.randrange(5))
    )
    return '"' + "".join(made) + '"'


class Generator:
    """Expressions over `world`; `ill` is the chance, at each node, of another type than the wanted one.

    `unsafe` allows what the validator refuses without a proof: optional attributes and tags without a guard.
    """

    def __init__(self, world: World, *, ill: float = 0.0, unsafe: bool = False, wild: bool = False) -> None:
        self.world, self.rng, self.ill, self.unsafe, self.wild = world, world.rng, ill, unsafe, wild
        makers: dict[str, list[Callable[[int], Expr]]] = {
            "bool": [
                self.logic, self.logic, self.logic, self.equal, self.compare, self.membership,
                self.membership, self.type_test, self.like, self.sets, self.sets, self.presence, self.decimals,
                self.ips, self.branch_bool,
            ],
            "long": [self.sums, self.sums, self.parts_of_time],
            "datetime": [self.instants],
            "duration": [self.spans],
        }  # fmt: skip
        self.makers = makers

    def expr(self, type_: Type, depth: int) -> Expr:
        """An expression of the type, at most `depth` operators deep (guards not counted)."""
        if self.ill and self.rng.random() < self.ill:
            type_ = random_type(self.world, 1)
        if depth <= 0 or self.rng.random() < 0.1:
            return self.leaf(type_)
        if self.rng.random() < 0.08:
            return self.branch(type_, depth)
        if isinstance(type_, str) and type_ in self.makers and self.rng.random() < 0.8:
            return self.rng.choice(self.makers[type_])(depth - 1)
        if not isinstance(type_, str) and self.rng.random() < 0.3:
            return self.built(type_, depth - 1)
        return self.leaf(type_)

    # ------------------------------------------------------------ leaves

    def leaf(self, type_: Type) -> Expr:
        """A literal, or an attribute of the type when there is one."""
        if self.rng.random() < 0.65:
            found = [path for path in self.paths() if path[1] == type_]
            if found:
                return self.rng.choice(found)[0]()
        if self.unsafe and self.rng.random() < 0.05:
            return attribute(self.root(), self.rng.choice(NAMES))
        return self.constant(type_)

    def constant(self, type_: Type) -> Expr:
        if isinstance(type_, tuple) and type_[0] == "set" and self.world.typed:
            # The validator knows no type for an empty set literal.
            return ex("[", self.constant(type_[1]), "]")
        if isinstance(type_, tuple) and type_[0] == "record":
            fields = [(name, self.constant(t)) for name, t, _ in type_[1]]
            return _record(fields)
        if type_ in ("decimal", "ip", "datetime", "duration"):
            return ex(f"{type_}({quoted(extension_text(self.rng, type_, wild=self.wild))})")
        return ex(literal(value(self.world, type_), self.rng))

    def root(self) -> Expr:
        return ex(self.rng.choice(("principal", "resource", "context", "principal", "resource", "context", "action")))

    def paths(self) -> list[tuple[Callable[[], Expr], Type]]:
        """Every attribute path of principal, resource and context, with how to write it and its type."""
        found: list[tuple[Callable[[], Expr], Type]] = []
        world = self.world
        for name, type_ in (("principal", world.principal), ("resource", world.resource)):
            found.append((lambda name=name: ex(name), ("entity", type_)))  # type: ignore[misc]
            self._walk(ex(name), world.attributes.get(type_, ()), found, 2)
        self._walk(ex("context"), world.context[1], found, 2)
        return found

    def _walk(self, base: Expr, fields: tuple, found: list, depth: int) -> None:
        for name, type_, need in fields:
            here = attribute(base, name)
            found.append(
                (lambda base=base, name=name, type_=type_, need=need: self.guarded(base, name, type_, need), type_)
            )
            if need and depth and isinstance(type_, tuple):
                if type_[0] == "record":
                    self._walk(here, type_[1], found, depth - 1)
                elif type_[0] == "entity":
                    self._walk(here, self.world.attributes.get(type_[1], ()), found, depth - 1)

    def guarded(self, base: Expr, name: str, type_: Type, need: bool) -> Expr:
        """Access to an attribute, behind `has` where the validator wants proof."""
        if need or self.unsafe:
            return attribute(base, name)
        if type_ == "bool":
            return ex("(", has(base, name), " && ", attribute(base, name), ")")
        return ex("(if ", has(base, name), " then ", attribute(base, name), " else ", self.constant(type_), ")")

    # ------------------------------------------------------------ any type

    def branch(self, type_: Type, depth: int) -> Expr:
        parts = [self.expr(t, depth - 1) for t in ("bool", type_, type_)]
        return ex("(if ", parts[0], " then ", parts[1], " else ", parts[2], ")")

    def branch_bool(self, depth: int) -> Expr:
        return self.branch("bool", depth)

    def built(self, type_: Type, depth: int) -> Expr:
        """A set or record built from expressions."""
        kind, inner = type_
        if kind == "set":
            members = [self.expr(inner, depth) for _ in range(self.rng.randrange(1 if self.world.typed else 0, 4))]
            return ex("[", *_joined(members), "]")
        if kind == "record":
            return _record([(name, self.expr(t, depth)) for name, t, need in inner])
        return self.leaf(type_)

    # ------------------------------------------------------------ booleans

    def logic(self, depth: int) -> Expr:
        op = self.rng.choice(("&&", "||", "!"))
        if op == "!":
            return ex("!", self.expr("bool", depth))
        return ex("(", self.expr("bool", depth), f" {op} ", self.expr("bool", depth), ")")

    def equal(self, depth: int) -> Expr:
        type_ = random_type(self.world)
        other = type_ if self.world.typed or self.rng.random() < 0.8 else random_type(self.world)
        return ex("(", self.expr(type_, depth), self.rng.choice((" == ", " != ")), self.expr(other, depth), ")")

    def compare(self, depth: int) -> Expr:
        type_ = self.rng.choice(("long", "long", "long", "datetime", "duration"))
        op = self.rng.choice((" < ", " <= ", " > ", " >= "))
        return ex("(", self.expr(type_, depth), op, self.expr(type_, depth), ")")

    def entity(self, depth: int) -> Expr:
        name = self.rng.choice(sorted(self.world.uids))
        return self.expr(("entity", name), depth)

    def membership(self, depth: int) -> Expr:
        left = self.entity(depth)
        if self.rng.random() < 0.5:
            return ex("(", left, " in ", self.entity(depth), ")")
        name = self.rng.choice(sorted(self.world.uids))
        members = [self.expr(("entity", name), 0) for _ in range(self.rng.randrange(1 if self.world.typed else 0, 4))]
        return ex("(", left, " in [", *_joined(members), "])")

    def type_test(self, depth: int) -> Expr:
        left, name = self.entity(depth), self.rng.choice(sorted(self.world.uids))
        if self.rng.random() < 0.5:
            return ex("(", left, f" is {name})")
        return ex("(", left, f" is {name} in ", self.entity(0), ")")

    def like(self, depth: int) -> Expr:
        return ex("(", self.expr("string", depth), f" like {pattern(self.rng)})")

    def sets(self, depth: int) -> Expr:
        inner = random_type(self.world, 1)
        left = self.expr(("set", inner), depth)
        method = self.rng.choice(("contains", "containsAll", "containsAny", "isEmpty"))
        if method == "isEmpty":
            return ex(left, ".isEmpty()")
        right = self.expr(inner if method == "contains" else ("set", inner), depth)
        return ex(left, f".{method}(", right, ")")

    def presence(self, depth: int) -> Expr:
        roll = self.rng.random()
        base = self.root()
        if self.world.typed or roll < 0.5:
            return has(base, self.rng.choice(NAMES))
        if roll < 0.65:
            path = ".".join(self.rng.choice(("a", "b", "n", "s", "owner")) for _ in range(self.rng.randrange(2, 4)))
            return ex("(", base, f" has {path})")
        if roll < 0.85:
            return ex(self.entity(0), ".hasTag(", self.expr("string", depth), ")")
        return ex(
            "(", ex(self.entity(0), ".getTag(", self.expr("string", depth), ")"), " == ", self.leaf("string"), ")"
        )

    def decimals(self, depth: int) -> Expr:
        method = self.rng.choice(METHODS_DECIMAL)
        return ex(self.expr("decimal", depth), f".{method}(", self.expr("decimal", depth), ")")

    def ips(self, depth: int) -> Expr:
        left = self.expr("ip", depth)
        method = self.rng.choice(
            ("isIpv4", "isIpv6", "isLoopback", "isMulticast", "isInRange", "isInRange", "isInRange")
        )
        return ex(left, f".{method}(", *((self.expr("ip", depth),) if method == "isInRange" else ()), ")")

    # ------------------------------------------------------------ numbers and times

    def sums(self, depth: int) -> Expr:
        op = self.rng.choice((" + ", " - ", " * ", "-"))
        if op == "-":
            return ex("-(", self.expr("long", depth), ")")
        return ex("(", self.expr("long", depth), op, self.expr("long", depth), ")")

    def parts_of_time(self, depth: int) -> Expr:
        return ex(self.expr("duration", depth), f".{self.rng.choice(METHODS_TO)}()")

    def instants(self, depth: int) -> Expr:
        if self.rng.random() < 0.3:
            return ex(self.expr("datetime", depth), ".toDate()")
        return ex(self.expr("datetime", depth), ".offset(", self.expr("duration", depth), ")")

    def spans(self, depth: int) -> Expr:
        if self.rng.random() < 0.3:
            return ex(self.expr("datetime", depth), ".toTime()")
        return ex(self.expr("datetime", depth), ".durationSince(", self.expr("datetime", depth), ")")


def _joined(members: list[Expr]) -> list[str | Expr]:
    out: list[str | Expr] = []
    for member in members:
        out += [", ", member] if out else [member]
    return out


def _record(fields: list[tuple[str, Expr]]) -> Expr:
    parts: list[str | Expr] = ["{"]
    for at, (name, body) in enumerate(fields):
        parts += [", " if at else "", f"{name if is_plain(name) else quoted(name)}: ", body]
    return ex(*parts, "}")


def random_scope(world: World, var: str, *, slot: bool = False) -> str:
    """A scope constraint for principal, resource or action, in every form the grammar has."""
    rng = world.rng
    if var == "action":
        # The validator wants a scope that some action meets: no empty list, no group without members.
        groups = not world.typed
        form = rng.choice(("any", "any", "==", "in", "list", "list"))
        if form == "list":
            members = [uid_text(world.action(groups=groups)) for _ in range(rng.choice((0, 1, 1, 2, 3)) or world.typed)]
            return f"action in [{', '.join(members)}]"
        return "action" if form == "any" else f"action {form} {uid_text(world.action(groups=groups))}"
    form = rng.choice(("any", "any", "==", "==", "in", "in", "is", "is in"))
    own = world.principal if var == "principal" else world.resource
    name = own if world.typed or rng.random() < 0.7 else rng.choice(sorted(world.uids))
    target = f"?{var}" if slot else uid_text(world.uid(name if form == "==" else rng.choice(world.above(name))))
    if slot and form in ("any", "is"):
        form = "in" if form == "any" else "is in"
    if form == "any":
        return var
    if form in ("==", "in"):
        return f"{var} {form} {target}"
    return f"{var} is {name}" + (f" in {target}" if form == "is in" else "")
