"""Random schemas, entities and requests, and Cedar values as JSON and as text.

A type is "bool", "long", "string", "decimal", "ip", "datetime", "duration", or a tuple: ("entity", name),
("set", type), ("record", ((name, type, required), ..)).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from fastpath.columns import COLUMNS
from tests.differential.case import Json
from tests.differential.text import extension_text, is_plain, quoted

Type = Any
SCALARS = ("bool", "long", "string", "decimal", "ip", "datetime", "duration")
SCHEMA_NAMES = {
    "bool": "__cedar::Bool",
    "long": "__cedar::Long",
    "string": "__cedar::String",
    "decimal": "__cedar::decimal",
    "ip": "__cedar::ipaddr",
    "datetime": "__cedar::datetime",
    "duration": "__cedar::duration",
}
LONGS = (0, 1, -1, 2, 3, 7, 2**31, 2**32, 3037000500, -(2**63), -(2**63) + 1, 2**63 - 2, 2**63 - 1)
STRINGS = (
    "", "a", "b", "ab", "abc", "*", "a*b", "\\", "é", "e\u0301", "\U0001f600", "x y", "a\nb", "1", "true", "\0", '"',
    "1.0", "1.2.3.4", "principal", "type", "\u2028", "A",
)  # fmt: skip
IDS = (
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "alice",
    "",
    'q"uote',
    "new\nline",
    "\0",
    "é",
    "\U0001f600",
    "a::b",
    "*",
    "\\",
    "A",
)
TYPES = ("User", "Agent", "Group", "Team", "Folder", "Doc", "NS::Thing", "NS::Sub::Box", "User_2", "Doc::Doc")
NAMES = (
    "a",
    "b",
    "n",
    "s",
    "flag",
    "owner",
    "items",
    "if",
    "in",
    "type",
    "id",
    "",
    "has space",
    "é",
    "_x",
    "principal",
    "B",
)
PLAIN_NAMES = tuple(name for name in NAMES if is_plain(name))


@dataclass
class World:
    """What the policies of one case may talk about."""

    rng: Random
    typed: bool
    principal: str = "User"
    resource: str = "Doc"
    attributes: dict[str, tuple[tuple[str, Type, bool], ...]] = field(default_factory=dict)
    tags: dict[str, Type] = field(default_factory=dict)
    member_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    uids: dict[str, list[str]] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    action_parents: dict[str, list[str]] = field(default_factory=dict)
    action_type: str = "Action"
    context: Type = ("record", ())
    columns: bool = False

    def uid(self, name: str | None = None) -> Json:
        """A uid of the pool, of type `name` when given; never an action of that type's own."""
        name = name or self.rng.choice(sorted(self.uids))
        return {"type": name, "id": self.rng.choice(self.uids.get(name) or ["a"])}

    def above(self, name: str) -> list[str]:
        """The types that an entity of type `name` may be in, itself included."""
        found, open_ = {name}, [name]
        while open_:
            for parent in self.member_of.get(open_.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    open_.append(parent)
        return sorted(found)

    def action(self, *, groups: bool = False) -> Json:
        pool = self.actions + (self.groups if groups else [])
        return {"type": self.action_type, "id": self.rng.choice(pool)}


# ---------------------------------------------------------------- types


def random_type(world: World, depth: int = 2) -> Type:
    rng = world.rng
    roll = rng.random()
    if depth > 0 and roll < 0.2:
        return ("set", random_type(world, depth - 1))
    if depth > 0 and roll < 0.3:
        return random_record(world, depth - 1)
    if roll < 0.42:
        return ("entity", rng.choice(sorted(world.uids)))
    return rng.choice(("bool", "long", "string", *SCALARS))


def random_record(world: World, depth: int, most: int = 3) -> Type:
    names = world.rng.sample(NAMES, world.rng.randrange(most + 1))
    return ("record", tuple((name, random_type(world, depth), world.rng.random() < 0.6) for name in names))


def column_groups(world: World) -> tuple[tuple[str, Type, bool], ...]:
    """The live-state attributes of the context, typed: always there, `task.owner` excepted."""
    kinds = {"bool": "bool", "long": "long", "string": "string", "set": ("set", "string")}
    groups: dict[str, list[tuple[str, Type, bool]]] = {}
    made: list[tuple[str, Type, bool]] = []
    for path, kind, absent in COLUMNS:
        group, _, leaf = path.partition(".")
        owner = ("entity", "Person" if leaf else "Destination")
        type_ = owner if kind == "entity" else kinds[kind]
        if leaf:
            groups.setdefault(group, []).append((leaf, type_, absent is not None))
        else:
            made.append((group, type_, True))
    for name in ("Person", "Destination"):
        world.uids.setdefault(name, ["a", "b", "unknown"])
    return (*made, *((group, ("record", tuple(fields)), True) for group, fields in groups.items()))


def schema_type(type_: Type) -> str:
    if isinstance(type_, str):
        return SCHEMA_NAMES[type_]
    kind, inner = type_
    if kind == "entity":
        return str(inner)
    if kind == "set":
        return f"Set<{schema_type(inner)}>"
    fields = (f"{quoted(name)}{'' if need else '?'}: {schema_type(t)}" for name, t, need in inner)
    return "{" + ", ".join(fields) + "}"


def schema_text(world: World) -> str:
    """The Cedar schema that the world follows."""
    spaces: dict[str, list[str]] = {}
    for name in world.uids:
        space, _, base = name.rpartition("::")
        parents = world.member_of.get(name, ())
        member = f" in [{', '.join(parents)}]" if parents else ""
        shape = schema_type(("record", world.attributes.get(name, ())))
        tags = f" tags {schema_type(world.tags[name])}" if name in world.tags else ""
        spaces.setdefault(space, []).append(f"entity {base}{member} = {shape}{tags};")
    ends = f"principal: [{world.principal}], resource: [{world.resource}]"
    applies = f"appliesTo {{{ends}, context: {schema_type(world.context)}}}"
    for name in [*world.groups, *world.actions]:
        parents = [quoted(parent) for parent in world.action_parents.get(name, [])]
        member = f" in [{', '.join(parents)}]" if parents else ""
        spaces.setdefault("", []).append(f"action {quoted(name)}{member} {applies if name in world.actions else ''};")
    return "\n".join(
        "\n".join(lines) if not space else f"namespace {space} {{\n" + "\n".join(lines) + "\n}"
        for space, lines in spaces.items()
    )


# ---------------------------------------------------------------- values


def value(world: World, type_: Type, *, wild: bool = False, short: bool = False) -> Json:
    """A value of the type as entity JSON.

    `wild` texts may be no extension value; `short` forms are read only under a schema.
    """
    rng = world.rng
    if type_ == "bool":
        return rng.random() < 0.5
    if type_ == "long":
        return rng.choice(LONGS)
    if type_ == "string":
        return rng.choice(STRINGS)
    if isinstance(type_, str):
        text = extension_text(rng, type_, wild=wild)
        return text if short else {"__extn": {"fn": type_, "arg": text}}
    kind, inner = type_
    if kind == "entity":
        return world.uid(inner) if short else {"__entity": world.uid(inner)}
    if kind == "set":
        return [value(world, inner, wild=wild, short=short) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    return {name: value(world, t, wild=wild, short=short) for name, t, need in inner if need or rng.random() < 0.5}


def literal(json_value: Json, rng: Random | None = None) -> str:
    """A JSON value as a Cedar expression."""
    if isinstance(json_value, bool):
        return "true" if json_value else "false"
    if isinstance(json_value, int):
        return str(json_value)
    if isinstance(json_value, str):
        return quoted(json_value, rng)
    if isinstance(json_value, list):
        return "[" + ", ".join(literal(item, rng) for item in json_value) + "]"
    if "__entity" in json_value:
        uid = json_value["__entity"]
        return f"{uid['type']}::{quoted(uid['id'])}"
    if "__extn" in json_value:
        body = json_value["__extn"]
        if "args" in body:
            first, *rest = (literal(item, rng) for item in body["args"])
            return f"{first}.{body['fn']}({', '.join(rest)})"
        return f"{body['fn']}({quoted(body['arg'], rng)})"
    return "{" + ", ".join(f"{quoted(name)}: {literal(item, rng)}" for name, item in json_value.items()) + "}"


# ---------------------------------------------------------------- worlds


def make_world(rng: Random, *, typed: bool, columns: bool = False, types: int = 4, ids: int = 4) -> World:
    """A world with `types` entity types of up to `ids` uids each."""
    world = World(rng, typed, columns=columns)
    names = rng.sample(TYPES, types)
    # `Doc::Doc` beside `Doc` makes no schema: a namespace and a type of one name collide.
    if typed and "Doc::Doc" in names:
        names[names.index("Doc::Doc")] = next(name for name in TYPES if name not in names)
    world.principal, world.resource = names[0], names[rng.choice((0, 1, 1, 1))]
    world.uids = {name: rng.sample(IDS, rng.randrange(1, ids + 1)) for name in names}
    world.groups = ["readers", "all", "none"][: rng.randrange(4)]
    world.actions = rng.sample(("read", "write", "list", "send", "a", ""), rng.randrange(1, 4))
    world.action_type = "Action" if typed or rng.random() < 0.9 else "NS::Action"
    for at, group in enumerate(world.groups):
        world.action_parents[group] = [g for g in world.groups[at + 1 :] if rng.random() < 0.5]
    for name in world.actions:
        world.action_parents[name] = [g for g in world.groups if rng.random() < 0.5]
    for at, name in enumerate(names):
        world.member_of[name] = tuple(other for other in names[at:] if rng.random() < 0.6)
        world.attributes[name] = random_record(world, 2, 5)[1]
        if rng.random() < 0.5:
            world.tags[name] = random_type(world, 1)
    fields = random_record(world, 2, 5)[1]
    world.context = ("record", fields + column_groups(world) if columns else fields)
    return world


def make_entities(world: World, *, wild: bool = False) -> tuple[Json, ...]:
    """Entities of the world: some uids are left out, parents are not closed, actions are explicit."""
    rng, made = world.rng, []
    ranked = [{"type": name, "id": id_} for name, ids in world.uids.items() for id_ in ids]
    for at, uid in enumerate(ranked):
        if rng.random() < 0.15:
            continue
        allowed = world.member_of.get(uid["type"], ())
        later = [
            other for other in ranked[at + 1 :] if other["type"] in allowed or (not world.typed and rng.random() < 0.3)
        ]
        made.append(_entity(world, uid, rng.sample(later, rng.randrange(min(len(later), 3) + 1)), wild=wild))
    for name in [*world.actions, *world.groups]:
        if rng.random() < 0.9:
            parents = [{"type": world.action_type, "id": parent} for parent in world.action_parents.get(name, [])]
            made.append({"uid": {"type": world.action_type, "id": name}, "attrs": {}, "parents": parents})
    rng.shuffle(made)
    return tuple(made)


def _entity(world: World, uid: Json, parents: list[Json], *, wild: bool) -> Json:
    rng = world.rng
    fields = world.attributes.get(uid["type"], ())
    if not world.typed and rng.random() < 0.3:
        # Ill-typed stores: this entity's attributes follow a shape of their own.
        fields = tuple((name, random_type(world, 1), need) for name, _, need in fields)
    short = world.typed and rng.random() < 0.3
    made = {"uid": uid, "attrs": value(world, ("record", fields), wild=wild, short=short), "parents": parents}
    if uid["type"] in world.tags and (world.typed or rng.random() < 0.9):
        made["tags"] = {
            rng.choice(STRINGS): value(world, world.tags[uid["type"]], wild=wild, short=short)
            for _ in range(rng.randrange(3))
        }
    return made


def make_request(world: World, *, wild: bool = False) -> Json:
    """A request of the world; some name uids that no entity has."""
    rng = world.rng
    context = value(world, world.context, wild=wild)
    if not world.typed and rng.random() < 0.3:
        names = [name for name in context if not world.columns or name in NAMES]
        for name in names:
            if rng.random() < 0.4:
                context[name] = value(world, random_type(world, 1), wild=wild)
    principal = world.uid(world.principal if world.typed or rng.random() < 0.8 else None)
    resource = world.uid(world.resource if world.typed or rng.random() < 0.8 else None)
    if rng.random() < 0.08:
        principal = {"type": principal["type"], "id": "stranger"}
    if rng.random() < 0.08:
        resource = {"type": resource["type"], "id": "stranger"}
    action = world.action() if world.typed or rng.random() < 0.95 else world.action(groups=True)
    if not world.typed and rng.random() < 0.04:
        action = {"type": world.action_type, "id": "unheard"}
    return {"principal": principal, "action": action, "resource": resource, "context": context}
