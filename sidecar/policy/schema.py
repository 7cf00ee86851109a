"""What the compiler takes from a Cedar schema: actions with their parents, and what a call's arguments look like.

Names are resolved as Cedar does (RFC 24): in the own namespace before the empty one, aliases before entity types before
the types that Cedar brings.
"""

from dataclasses import dataclass, field

import cedarpy

from sidecar.errors import PolicyError
from sidecar.policy import cells
from sidecar.policy.cells import Uid, Value
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits
from sidecar.policy.schema_text import (
    ActionDecl,
    Attribute,
    EntityDecl,
    EntityRef,
    NamespaceDecl,
    NameType,
    RecordType,
    SetType,
    Type,
    read_declarations,
)

_CEDAR = "__cedar::"
INPUT = "input"


@dataclass(frozen=True, slots=True)
class Action:
    """One action entity. `parents` are direct; `context` has its aliases resolved."""

    uid: Uid
    parents: tuple[Uid, ...]
    principals: tuple[str, ...]
    resources: tuple[str, ...]
    context: RecordType


@dataclass(frozen=True, slots=True)
class EntityType:
    """One entity type; attribute types have their aliases resolved."""

    name: str
    parents: tuple[str, ...]
    attributes: RecordType
    enum: tuple[str, ...] | None


@dataclass(slots=True)
class Schema:
    """A schema that Cedar accepts: its text, cedarpy's handle, and the declarations by full name."""

    text: str
    handle: cedarpy.Schema
    actions: dict[Uid, Action] = field(default_factory=dict)
    entities: dict[str, EntityType] = field(default_factory=dict)


def _join(space: str, name: str) -> str:
    return f"{space}::{name}" if space else name


class _Resolver:
    def __init__(self, spaces: list[NamespaceDecl]) -> None:
        self.aliases = {_join(s.name, name): (s.name, type_) for s in spaces for name, type_ in s.types.items()}
        self.entities = {_join(s.name, decl.name) for s in spaces for decl in s.entities}
        self.actions = {(_join(s.name, "Action"), decl.name) for s in spaces for decl in s.actions}

    def _candidates(self, space: str, name: str) -> list[str]:
        return [name] if "::" in name or not space else [_join(space, name), name]

    def entity_name(self, space: str, name: str) -> str:
        for full in self._candidates(space, name):
            if full in self.entities:
                return full
        return name

    def type(self, space: str, type_: Type) -> Type:
        """`type_` with aliases replaced and entity types marked. Aliases cannot be cyclic: cedarpy refuses them."""
        if isinstance(type_, SetType):
            return SetType(self.type(space, type_.element))
        if isinstance(type_, RecordType):
            return self.record(space, type_)
        if isinstance(type_, EntityRef):
            return type_
        for full in self._candidates(space, type_.name):
            if full in self.aliases:
                return self.type(*self.aliases[full])
            if full in self.entities:
                return EntityRef(full)
        return NameType(type_.name.removeprefix(_CEDAR))

    def record(self, space: str, record: RecordType) -> RecordType:
        return RecordType(
            {
                name: Attribute(self.type(space, attribute.type), attribute.required)
                for name, attribute in record.attributes.items()
            }
        )

    def parent(self, space: str, parent: tuple[str | None, str]) -> Uid:
        path, id_ = parent
        if path is None:
            return _join(space, "Action"), id_
        for full in self._candidates(space, path):
            if (full, id_) in self.actions:
                return full, id_
        return path, id_

    def action(self, space: str, decl: ActionDecl) -> Action:
        context = RecordType({}) if decl.context is None else self.type(space, decl.context)
        return Action(
            uid=(_join(space, "Action"), decl.name),
            parents=tuple(self.parent(space, parent) for parent in decl.parents),
            principals=tuple(self.entity_name(space, name) for name in decl.principals),
            resources=tuple(self.entity_name(space, name) for name in decl.resources),
            context=context if isinstance(context, RecordType) else RecordType({}),
        )

    def entity(self, space: str, decl: EntityDecl) -> EntityType:
        parents = tuple(self.entity_name(space, name) for name in decl.parents)
        return EntityType(_join(space, decl.name), parents, self.record(space, decl.shape), decl.enum)


def load_schema(text: str, limits: PolicyLimits = DEFAULT_LIMITS) -> Schema:
    """The schema in `text`, which cedarpy has accepted. PolicyError says what is wrong and, when known, where."""
    size = len(text.encode(errors="replace"))
    if size > limits.schema_bytes_max:
        raise PolicyError(f"schema: {size} bytes; at most {limits.schema_bytes_max} are compiled")
    spaces = read_declarations(text)
    try:
        handle = cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise PolicyError(f"schema: {error}") from None
    resolver = _Resolver(spaces)
    schema = Schema(text, handle)
    for space in spaces:
        for action in (resolver.action(space.name, decl) for decl in space.actions):
            schema.actions[action.uid] = action
        for entity in (resolver.entity(space.name, decl) for decl in space.entities):
            schema.entities[entity.name] = entity
    return schema


# ---------------------------------------------------------------- shapes of context.input


def type_name(type_: Type) -> str:
    """The name of a type in a shape: `Long`, `Set<String>`, `Entity<Person>`; a record inside a set is `Record`."""
    if isinstance(type_, SetType):
        return f"Set<{type_name(type_.element)}>"
    if isinstance(type_, EntityRef):
        return f"Entity<{type_.name}>"
    return "Record" if isinstance(type_, RecordType) else type_.name


def shape_of(record: RecordType) -> Value:
    """The shape (fastpath/program.pxd "shapes") of a record type."""
    fields: dict[str, Value] = {}
    for name, attribute in record.attributes.items():
        if name.endswith("?"):
            raise PolicyError(f"schema: attribute `{name}` of `context.input` must not end in `?`; rename it")
        inner = shape_of(attribute.type) if isinstance(attribute.type, RecordType) else None
        fields[name if attribute.required else name + "?"] = inner or cells.of_string(type_name(attribute.type))
    return cells.of_record(fields)


def input_shapes(schema: Schema) -> dict[Uid, Value]:
    """Per action that declares `context.input` as a record: the shape of its arguments."""
    shapes = {}
    for uid, action in schema.actions.items():
        declared = action.context.attributes.get(INPUT)
        if declared is not None and isinstance(declared.type, RecordType):
            shapes[uid] = shape_of(declared.type)
    return shapes


def undecodable(schema: Schema) -> list[str]:
    """Warnings for arguments whose type no caller's JSON can be turned into."""
    out = []
    for (_, id_), action in sorted(schema.actions.items()):
        declared = action.context.attributes.get(INPUT)
        if declared is None:
            continue
        if not isinstance(declared.type, RecordType):
            out.append(f"action `{id_}`: `context.input` is no record, so no call can fill it")
        elif _has_record_set(declared.type):
            out.append(
                f"action `{id_}`: `context.input` holds a set of records, which a call's arguments do not become"
            )
    return out


def _has_record_set(type_: Type) -> bool:
    if isinstance(type_, RecordType):
        return any(_has_record_set(attribute.type) for attribute in type_.attributes.values())
    return isinstance(type_, SetType) and (isinstance(type_.element, RecordType) or _has_record_set(type_.element))
