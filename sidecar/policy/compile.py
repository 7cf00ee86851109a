"""Policies, entities, links and schema in; one image of fastpath/image.pxd and a report out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cedarpy
import msgspec

from fastpath.columns import COLUMNS
from sidecar.errors import PolicyError
from sidecar.policy import annotations as notes
from sidecar.policy.code import Constants
from sidecar.policy.entities import load_entities
from sidecar.policy.image import (
    PolicyRow,
    Scope,
    ScopeRow,
    Source,
    columns_read,
    extras_read,
    write_image,
)
from sidecar.policy.lexer import Piece, PolicyText
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits
from sidecar.policy.links import Link, PlacedLink, check_ids, check_slots, placed, slots_of
from sidecar.policy.parse import Parsed, chunks, parse, split_all, text_of
from sidecar.policy.program import Program, compile_conditions

_SCOPES = {"All": Scope.ANY, "==": Scope.EQ, "in": Scope.IN, "is": Scope.IS}


class CompileReport(msgspec.Struct, frozen=True):
    """What a compilation made and what its policies need."""

    policies: int
    """Policies that can decide, links included."""
    templates: int
    links: int
    entities: int
    columns: tuple[str, ...]
    """Paths under `context` of the live-state columns that some policy reads."""
    extras: tuple[str, ...]
    """Other names under `context` that some policy reads: `input` means that the call's arguments are needed, `*` that a
    policy reads the context as a whole."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """An image with its report."""

    image: bytes
    report: CompileReport


# ---------------------------------------------------------------- policies


def _name_policies(parsed: Sequence[Parsed], *, positional: bool) -> dict[str, Parsed]:
    """Policies and templates by id; PolicyError when one has none or shares it."""
    named: dict[str, Parsed] = {}
    for policy in parsed:
        id_ = f"policy{policy.position}" if positional else policy.annotations.get("id")
        if not id_:
            raise PolicyError(f'{policy.piece.title} has no `@id`; give it a unique one: @id("..")')
        if id_ in named:
            raise PolicyError(f"{policy.piece.title} has an id that {named[id_].piece.title} has already")
        named[id_] = policy
        if not positional:
            _named_error(policy, notes.check, policy.annotations)
    return named


def _named_error(policy: Parsed, step: Any, *arguments: Any, **options: Any) -> Any:
    """Run `step` and put the policy's name before its PolicyError."""
    try:
        return step(*arguments, **options)
    except PolicyError as error:
        raise PolicyError(f"{policy.piece.title} {error}") from None


def _uid(value: Mapping[str, str]) -> tuple[str, str]:
    return value["type"], value["id"]


def _scope(est: Mapping[str, Any], slots: Mapping[str, tuple[str, str]]) -> ScopeRow:
    """The row of one scope constraint (EST), its slot filled from `slots`."""
    if "entities" in est:
        return ScopeRow(Scope.IN_LIST, uids=tuple(_uid(uid) for uid in est["entities"]))
    op = _SCOPES[est["op"]]
    if op is Scope.IS:
        within = est.get("in")
        if within is None:
            return ScopeRow(op, type=est["entity_type"])
        return ScopeRow(Scope.IS_IN, uid=_filled(within, slots), type=est["entity_type"])
    return ScopeRow(op, uid=None if op is Scope.ANY else _filled(est, slots))


def _filled(est: Mapping[str, Any], slots: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    return slots[est["slot"]] if "slot" in est else _uid(est["entity"])


def _row(
    id_: str, policy: Parsed, program: Program, link: Link | None, template: str, *, positional: bool
) -> PolicyRow:
    est = policy.est
    slots = {name: (uid.type, uid.id) for name, uid in link.slots.items()} if link else {}
    noted = policy.annotations
    forbid = est["effect"] == "forbid"
    return PolicyRow(
        id=id_,
        forbid=forbid,
        flags=0 if positional else notes.flags(noted, forbid=forbid),
        principal=_scope(est["principal"], slots),
        action=_scope(est["action"], slots),
        resource=_scope(est["resource"], slots),
        program=program,
        template=template,
        reason=noted.get("reason", ""),
        obligation=noted.get("obligation", ""),
        annotations=notes.as_json(noted),
    )


@dataclass(slots=True)
class _Set:
    """A policy set on its way to rows."""

    named: dict[str, Parsed]
    links: list[PlacedLink]
    constants: Constants
    columns: bool
    positional: bool

    def template(self, placed: PlacedLink) -> str:
        """The id of a link's template. Positional sets know a template by its `@id` as well, as cedarpy does."""
        wanted = placed.link.template
        if wanted in self.named and self.named[wanted].template:
            return wanted
        if self.positional:
            found = [id_ for id_, p in self.named.items() if p.template and p.annotations.get("id") == wanted]
            if len(found) == 1:
                return found[0]
        cause = "which is a policy without slots" if wanted in self.named else "which does not exist"
        raise PolicyError(f"{placed.where}: link `{placed.link.id}` names the template `{wanted}`, {cause}")

    def rows(self) -> list[PolicyRow]:
        taken = {id_: policy.piece.title for id_, policy in self.named.items()}
        check_ids(self.links, taken)
        linked: dict[str, list[PlacedLink]] = {}
        for place in self.links:
            template = self.template(place)
            check_slots(place, slots_of(self.named[template].est))
            linked.setdefault(template, []).append(place)
        rows = []
        # Sorted, so that constants and code come in the same order whatever the order of the files.
        for id_ in sorted(self.named, key=str.encode):
            rows += self._rows_of(id_, linked.get(id_, []))
        return rows

    def _rows_of(self, id_: str, links: list[PlacedLink]) -> list[PolicyRow]:
        policy = self.named[id_]
        if not policy.template:
            return [_row(id_, policy, self._program(policy, self.constants), None, "", positional=self.positional)]
        # A template without links decides nothing, but it must compile all the same.
        program = self._program(policy, self.constants if links else Constants())
        return [_row(place.link.id, policy, program, place.link, id_, positional=self.positional) for place in links]

    def _program(self, policy: Parsed, constants: Constants) -> Program:
        return _named_error(policy, compile_conditions, policy.est["conditions"], constants, columns=self.columns)


# ---------------------------------------------------------------- schema


def _load_schema(text: str | None, limits: PolicyLimits) -> cedarpy.Schema | None:
    if text is None:
        return None
    try:
        return cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise PolicyError(f"schema: {error}") from None


def _validate(pieces: Sequence[Piece], schema: cedarpy.Schema) -> None:
    """Refuse policies that the schema does not allow (Cedar strict validation)."""
    for chunk in chunks(pieces):
        result = cedarpy.validate_policies(text_of(chunk), schema)
        if result.validation_passed:
            continue
        problems = []
        for error in result.errors:
            name = error.policy_id
            piece = chunk[int(name.removeprefix("policy"))]
            problems.append(f"{piece.title} {error.error.removeprefix(f'for policy `{name}`, ')}")
        raise PolicyError("; ".join(problems) or "policies do not conform to the schema")


# ---------------------------------------------------------------- the whole


def compile_image(
    policies: str | Sequence[PolicyText],
    *,
    entities: Sequence[dict[str, Any]] | str = (),
    links: Iterable[Link | PlacedLink | Mapping[str, Any]] = (),
    schema: str | None = None,
    positional_ids: bool = False,
    columns: bool = True,
    limits: PolicyLimits = DEFAULT_LIMITS,
) -> Compiled:
    """The image of a policy set, compiled in this process (sidecar/policy/child.py does it in a disposable one).

    `policies` is Cedar text, or named texts whose names stand in errors. `entities` is a Cedar JSON document or what it holds.
    With `schema` (Cedar schema text) policies and entities are validated and its action entities are added.
    `positional_ids` names policies `policy0`, `policy1`, .. by the order of the text and gives annotations no meaning, as
    Cedar itself does; otherwise every policy needs a unique `@id`. `columns` compiles the live-state paths of `context`
    (`context.task.present`) to column loads; without it the context is a plain record.
    Raises PolicyError, naming the policy, entity or link and its place, for all that cannot be published.
    """
    sources = [PolicyText("policies", policies)] if isinstance(policies, str) else list(policies)
    pieces = split_all(sources, limits)
    parsed = parse(pieces)
    loaded = _load_schema(schema, limits)
    if loaded is not None:
        _validate(pieces, loaded)
    named = _name_policies(parsed, positional=positional_ids)
    constants = Constants()
    chosen = placed(links)
    rows = _Set(named, chosen, constants, columns, positional_ids).rows()
    store = load_entities(entities, loaded)
    image = write_image(Source(rows, store, constants, {}, columns))
    templates = sum(policy.template for policy in parsed)
    return Compiled(image, _report(rows, templates, len(chosen), len(store)))


def _report(rows: Sequence[PolicyRow], templates: int, links: int, entities: int) -> CompileReport:
    bits = columns_read(rows)
    return CompileReport(
        policies=len(rows),
        templates=templates,
        links=links,
        entities=entities,
        columns=tuple(path for i, (path, _, _) in enumerate(COLUMNS) if bits >> i & 1),
        extras=tuple(sorted(extras_read(rows))),
        warnings=(),
    )
