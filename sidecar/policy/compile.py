"""Policies, entities, links and schema in; one image of fastpath/image.pxd and a report out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cedarpy
import msgspec

from fastpath.columns import COLUMNS
from sidecar.errors import PolicyError
from sidecar.policy.code import Constants
from sidecar.policy.edits import Overlay
from sidecar.policy.entities import load_entities
from sidecar.policy.image import PolicyRow, Scope, Source, columns_read, extras_read, write_image
from sidecar.policy.lexer import Piece, PolicyText
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits
from sidecar.policy.links import Link, PlacedLink, placed
from sidecar.policy.parse import Making, Parsed, make, split_all, text_of, unheard
from sidecar.policy.program import WHOLE_CONTEXT
from sidecar.policy.rules import RuleSet, name_policies
from sidecar.policy.schema import Schema, input_shapes, load_schema, undecodable


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
    """Other names under `context` that some policy reads: `input` means that the call's arguments are needed, `*` that
    a policy reads the context as a whole."""
    warnings: tuple[str, ...]


class TemplateUse(msgspec.Struct, frozen=True):
    """A template's Cedar text, and how many links were made from it."""

    text: str
    links: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """An image with its report, and the templates by id."""

    image: bytes
    report: CompileReport
    templates: dict[str, TemplateUse]

    @property
    def digest(self) -> str:
        """SHA-256 of the image: "sha256:<hex>"."""
        return "sha256:" + hashlib.sha256(self.image).hexdigest()


def not_allowed(pieces: Sequence[Piece], schema: cedarpy.Schema) -> PolicyError:
    """Says why policies are not what the schema allows (Cedar strict validation)."""
    # cedarpy gives problems in any order, and the same one several times.
    problems = set()
    for error in cedarpy.validate_policies(text_of(pieces), schema).errors:
        name = error.policy_id
        row = int(name.removeprefix("policy"))
        problems.add((row, f"{pieces[row].title} {error.error.removeprefix(f'for policy `{name}`, ')}"))
    said = "; ".join(text for _, text in sorted(problems))
    return PolicyError(said or "policies do not conform to the schema")


def check_link_types(links: Sequence[PlacedLink], schema: Schema) -> None:
    """Refuse links whose slots hold entities of a type that the schema does not know."""
    for place in links:
        for slot, uid in sorted(place.link.slots.items()):
            if uid.type not in schema.entities:
                cause = f"has the type `{uid.type}` in `{slot}`, which the schema does not know"
                raise PolicyError(f"{place.where}: link `{place.link.id}` {cause}")


def compile_image(
    policies: str | Sequence[PolicyText],
    *,
    entities: Sequence[dict[str, Any]] | str = (),
    entities_name: str = "entities",
    links: Iterable[Link | PlacedLink | Mapping[str, Any]] = (),
    schema: str | None = None,
    overlay: Overlay | None = None,
    positional_ids: bool = False,
    columns: bool = True,
    limits: PolicyLimits = DEFAULT_LIMITS,
    processes: int = 1,
    progress: Callable[[str], object] = unheard,
) -> Compiled:
    """The image of a policy set, compiled in this process (child.py does it in a disposable one).

    `policies` is Cedar text, or named texts whose names stand in errors. `entities` is a Cedar JSON document or what it
    holds; `overlay` is laid over both and over the links. With `schema` (Cedar schema text) policies and entities are
    validated and its action entities are added.
    `positional_ids` names policies `policy0`, `policy1`, .. by the order of the text and gives annotations no meaning,
    as Cedar itself does; otherwise every policy needs a unique `@id`. `columns` compiles the live-state paths of
    `context` (`context.task.present`) to column loads; without it the context is a plain record.
    `processes` share the parsing and validating; more than one only in a process without threads.
    `progress` is told what is being done, as "parsing 4096 of 100000".
    Raises PolicyError, naming the policy, entity or link and its place, for all that cannot be published.
    """
    sources = [PolicyText("policies", policies)] if isinstance(policies, str) else list(policies)
    known = None if schema is None else load_schema(schema, limits)
    enums = () if known is None else [name for name, entity in known.entities.items() if entity.enum is not None]
    progress("splitting")
    pieces = split_all(sources, limits, enums)
    making = Making(None if known is None else known.handle, columns)
    parsed, invalid = make(pieces, making, processes, progress)
    named = name_policies(parsed, positional=positional_ids)
    chosen = placed(links)
    if overlay is not None:
        edited, bad_edits = make(split_all(overlay.policies, limits, enums), making)
        named = overlay.rules(named, name_policies(edited, positional=False))
        invalid = invalid or bad_edits
        chosen = overlay.links(chosen)
        entities = overlay.entities(entities)
    if known is not None:
        if invalid:
            raise not_allowed(invalid, known.handle)
        check_link_types(chosen, known)
    constants = Constants()
    progress(f"compiling {len(named)} policies and {len(chosen)} links")
    rows = RuleSet(named, chosen, constants, positional_ids).rows()
    progress("reading entities")
    store = load_entities(entities, None if known is None else known.handle, entities_name, limits)
    progress(f"laying out {len(rows)} rules and {len(store)} entities")
    image = write_image(Source(rows, store, constants, {} if known is None else input_shapes(known), columns))
    templates = {id_: policy for id_, policy in named.items() if policy.template}
    links_of = Counter(row.template for row in rows)
    uses = {id_: TemplateUse(templates[id_].piece.text, links_of[id_]) for id_ in sorted(templates)}
    return Compiled(image, _report(rows, templates, len(chosen), len(store), known), uses)


def _report(
    rows: Sequence[PolicyRow], templates: Mapping[str, Parsed], links: int, entities: int, schema: Schema | None
) -> CompileReport:
    bits = columns_read(rows)
    return CompileReport(
        policies=len(rows),
        templates=len(templates),
        links=links,
        entities=entities,
        columns=tuple(path for i, (path, _, _) in enumerate(COLUMNS) if bits >> i & 1),
        extras=tuple(sorted(extras_read(rows))),
        warnings=tuple(_warnings(rows, templates, schema)),
    )


def _warnings(rows: Sequence[PolicyRow], templates: Mapping[str, Parsed], schema: Schema | None) -> Iterable[str]:
    """What compiles but is probably not meant."""
    used = {row.template for row in rows}
    for id_ in sorted(templates.keys() - used):
        yield f"{templates[id_].piece.title} is a template without links: it decides nothing"
    for row in rows:
        if row.action.op is Scope.IN_LIST and not row.action.uids:
            yield f"policy `{row.id}` has an empty list of actions: it matches nothing"
        if WHOLE_CONTEXT in row.program.extras:
            yield f"policy `{row.id}` reads `context` as a whole: every call builds it, and bodies are buffered"
    if schema is not None:
        yield from undecodable(schema)
