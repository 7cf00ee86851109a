"""Policies, entities, links and schema in; one image of fastpath/image.pxd and a report out."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cedarpy
import msgspec

from fastpath.columns import COLUMNS
from sidecar.errors import PolicyError
from sidecar.policy.code import Constants
from sidecar.policy.edits import Overlay
from sidecar.policy.entities import Reading, read_chunks
from sidecar.policy.image import Assembly
from sidecar.policy.lexer import Piece, PolicyText
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits
from sidecar.policy.link_table import LinkReading, LinkTable, read_links
from sidecar.policy.links import Link, PlacedLink, placed
from sidecar.policy.parse import Making, Parsed, make, split_all, text_of, unheard
from sidecar.policy.program import WHOLE_CONTEXT
from sidecar.policy.rows import Scope
from sidecar.policy.rules import RuleSet, name_policies
from sidecar.policy.schema import Schema, input_shapes, load_schema, undecodable

WARNINGS_MAX = 100
"""Of a report."""


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

    buffer: bytearray
    """The image."""
    report: CompileReport
    templates: dict[str, TemplateUse]

    @property
    def image(self) -> bytes:
        """A copy of the image."""
        return bytes(self.buffer)

    @property
    def digest(self) -> str:
        """SHA-256 of the image: "sha256:<hex>"."""
        return "sha256:" + hashlib.sha256(self.buffer).hexdigest()


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
    links: PolicyText | Iterable[Link | PlacedLink | Mapping[str, Any]] = (),
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
    holds, `links` the text of a `links.jsonl` or what it holds; `overlay` is laid over all of them. With `schema`
    (Cedar schema text) policies and entities are validated and its action entities are added.
    `positional_ids` names policies `policy0`, `policy1`, .. by the order of the text and gives annotations no meaning,
    as Cedar itself does; otherwise every policy needs a unique `@id`. `columns` compiles the live-state paths of
    `context` (`context.task.present`) to column loads; without it the context is a plain record.
    `processes` share the reading and validating; more than one only in a process without threads.
    `progress` is told what is being done, as "parsing 4096 of 100000".
    Raises PolicyError, naming the policy, entity or link and its place, for all that cannot be published.
    """
    sources = [PolicyText("policies", policies)] if isinstance(policies, str) else list(policies)
    known = None if schema is None else load_schema(schema, limits)
    made = Assembly(Constants(), columns=columns, name=entities_name)
    run = _Run(made, known, overlay or Overlay(), limits, processes, progress)
    rules = RuleSet(run.policies(sources, positional=positional_ids), (), made.constants, positional_ids)
    table = run.links(links if isinstance(links, PolicyText) else placed(links), rules)
    progress(f"compiling {len(rules.named)} policies and {len(table)} links")
    warnings = Warnings()
    run.rules(rules, table, warnings)
    run.entities(entities, entities_name)
    if known is not None:
        made.shapes = input_shapes(known)
        warnings.extend(undecodable(known))
    report = _report(made, rules, len(table), warnings)
    progress(f"laying out {report.policies} rules and {report.entities} entities")
    templates = {id_: policy for id_, policy in sorted(rules.named.items()) if policy.template}
    uses = {id_: TemplateUse(policy.piece.text, table.count(id_)) for id_, policy in templates.items()}
    # A million parsed policies are not needed while the image is written.
    del rules, table, templates
    return Compiled(made.image(), report, uses)


class Warnings:
    """What compiles but is probably not meant: the first of many, and how many there are."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._more = 0

    def say(self, text: str) -> None:
        if len(self._said) < WARNINGS_MAX:
            self._said.append(text)
        else:
            self._more += 1

    def extend(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.say(text)

    def all(self) -> tuple[str, ...]:
        return (*self._said, *([f"and {self._more} more warnings"] if self._more else []))


@dataclass(frozen=True, slots=True)
class _Run:
    """One compilation: what is read goes into `made`."""

    made: Assembly
    schema: Schema | None
    overlay: Overlay
    limits: PolicyLimits
    processes: int
    progress: Callable[[str], object]

    @property
    def handle(self) -> cedarpy.Schema | None:
        return None if self.schema is None else self.schema.handle

    def policies(self, sources: Sequence[PolicyText], *, positional: bool) -> dict[str, Parsed]:
        """Policies and templates by id, validated."""
        types = {} if self.schema is None else self.schema.entities
        enums = [name for name, entity in types.items() if entity.enum is not None]
        making = Making(self.handle, bool(self.made.columns))
        self.progress("splitting")
        pieces = split_all(sources, self.limits, enums)
        parsed, invalid = make(pieces, making, self.processes, self.progress)
        named = name_policies(parsed, positional=positional)
        edited, bad_edits = make(split_all(self.overlay.policies, self.limits, enums), making)
        named = self.overlay.rules(named, name_policies(edited, positional=False))
        if self.handle is not None and (invalid or bad_edits):
            raise not_allowed(invalid or bad_edits, self.handle)
        return named

    def links(self, links: PolicyText | Sequence[PlacedLink], rules: RuleSet) -> LinkTable:
        """All links, the overlay's last, with ids that no policy has."""
        # The ids of policies and templates come first, so that a link finds its own taken.
        self.made.ids.add_all(id_.encode() for id_ in sorted(rules.named, key=str.encode))
        table = LinkTable(self.made.uids, self.made.ids)

        def check(some: Sequence[PlacedLink]) -> list[str]:
            if self.schema is not None:
                check_link_types(some, self.schema)
            return [rules.template_of(place) for place in some]

        reading = LinkReading(check, self.overlay.hides_rule, self.limits)
        for source in (links, self.overlay.own_links):
            of_files = source is links
            for chunk in read_links(source, reading if of_files else replace(reading, hides=_nothing), self.processes):
                for id_ in chunk.hidden:
                    self.overlay.hides_rule(id_)  # another process asked, and what it met is lost
                name = source.name if isinstance(source, PolicyText) else ""
                table.add(chunk, name, lambda id_: rules.named[id_].piece.title)
                self.progress(f"reading {len(table)} links")
        return table

    def rules(self, rules: RuleSet, table: LinkTable, warnings: Warnings) -> None:
        """Every policy, and every link as a policy."""
        linked = set(table.templates())
        # Sorted, so that constants and code come in the same order whatever the order of the files.
        for id_ in sorted(rules.named, key=str.encode):
            policy = rules.named[id_]
            if not policy.template:
                row = rules.row(id_)
                self.made.add(row)
            elif id_ in linked:
                row = rules.like(id_, linked=True)
                self.made.add_links(row, table.of(id_))
            else:
                rules.like(id_, linked=False)
                warnings.say(f"{policy.piece.title} is a template without links: it decides nothing")
                continue
            if row.action.op is Scope.IN_LIST and not row.action.uids:
                warnings.say(f"policy `{id_}` has an empty list of actions: it matches nothing")
            if WHOLE_CONTEXT in row.program.extras:
                warnings.say(
                    f"policy `{id_}` reads `context` as a whole: every call builds it, and bodies are buffered"
                )

    def entities(self, document: str | Sequence[dict[str, Any]], name: str) -> None:
        """All entities, the overlay's last, with what the schema adds."""
        reading = Reading(
            self.handle, self.limits.parents_max, self.overlay.hides_entity if self.overlay.edits_entities else None
        )
        own = replace(reading, hides=None)
        for source, how in ((document, reading), (self.overlay.own_entities, own)):
            if not source and not isinstance(source, str) and (self.handle is None or source is not document):
                continue
            for chunk, done in read_chunks(source, how, name, self.processes):
                for uid in chunk.hidden:
                    self.overlay.hides_entity({"uid": {"type": uid[0], "id": uid[1]}})
                self.made.entities.add(chunk)
                self.progress(f"reading {done} entities")
        self.made.entities.check(self.limits.parents_max)


def _nothing(_id: str) -> bool:
    return False


def _report(made: Assembly, rules: RuleSet, links: int, warnings: Warnings) -> CompileReport:
    templates = sum(policy.template for policy in rules.named.values())
    return CompileReport(
        policies=len(rules.named) - templates + links,
        templates=templates,
        links=links,
        entities=len(made.entities),
        columns=tuple(path for i, (path, _, _) in enumerate(COLUMNS) if made.columns_read >> i & 1),
        extras=tuple(sorted(made.extras_read)),
        warnings=warnings.all(),
    )
