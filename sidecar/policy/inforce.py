"""The set in force as an edit is judged against it: a base, and the edits that a delta lays over it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastpath.rowview import Rows
from fastpath.table import Generation
from sidecar.policy.basis import Basis
from sidecar.policy.cells import Uid
from sidecar.policy.compile import check_link_types, not_allowed
from sidecar.policy.edits import Edit, Key, Overlay
from sidecar.policy.entities import load_entities
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.parse import Making, Parsed, make, split_all
from sidecar.policy.rules import name_policies
from sidecar.policy.schema import Schema
from sidecar.policy.source_rows import EntityRow

Kind = Literal["policy", "template", "link"]


@dataclass(slots=True)
class Base:
    """An open base, and what was parsed for edits over it, by text: a delta holds all edits since, again and again."""

    table: Generation
    basis: Basis
    schema: Schema | None
    rules: dict[str, Parsed] = field(default_factory=dict)
    entities: dict[str, EntityRow] = field(default_factory=dict)

    def parse(self, texts: Sequence[PolicyText], limits: PolicyLimits) -> dict[str, Parsed]:
        """Policies and templates by id, validated. PolicyError names the first that is refused."""
        types = {} if self.schema is None else self.schema.entities
        enums = [name for name, entity in types.items() if entity.enum is not None]
        handle = None if self.schema is None else self.schema.handle
        parsed, invalid = make(split_all(texts, limits, enums), Making(handle, self.basis.columns))
        named = name_policies(parsed, positional=False)
        if invalid and handle is not None:
            raise not_allowed(invalid, handle)
        self.rules |= {one.piece.text: one for one in parsed}
        return named

    def entity_rows(self, documents: Iterable[tuple[Edit, dict[str, Any]]], limits: PolicyLimits) -> list[EntityRow]:
        """The rows of entities, validated. PolicyError names the first that is refused."""
        wanted = list(documents)
        fresh = [document for edit, document in wanted if edit.text not in self.entities]
        if fresh:
            handle = None if self.schema is None else self.schema.handle
            rows = {row.uid: row for row in load_entities(fresh, handle, "edits", limits)}
            self.entities |= {edit.text: rows[edit.uid] for edit, _ in wanted if edit.text not in self.entities}
        return [self.entities[edit.text] for edit, _ in wanted]

    def keep(self, edits: Iterable[Edit]) -> None:
        """Forget what was parsed for anything but these edits and the templates of the base."""
        texts = {edit.text for edit in edits} | {use.text for use in self.basis.templates.values()}
        self.rules = {text: one for text, one in self.rules.items() if text in texts}
        self.entities = {text: row for text, row in self.entities.items() if text in texts}


class InForce:
    """A base with edits over it."""

    def __init__(self, base: Base, edits: Sequence[Edit], limits: PolicyLimits) -> None:
        """PolicyError when an edit cannot be read."""
        self.base = base
        self.edits = {edit.key: edit for edit in edits}
        self.limits = limits
        self.overlay = Overlay(edits)
        missing = [PolicyText("edits", edit.text) for edit in edits if self._is_unparsed(edit)]
        if missing:
            base.parse(missing, limits)

    def _is_unparsed(self, edit: Edit) -> bool:
        return edit.of == "policy" and not edit.removed and edit.text not in self.base.rules

    def read(self, texts: Sequence[PolicyText]) -> dict[str, Parsed]:
        """Policies and templates that are asked for, by id."""
        return self.base.parse(texts, self.limits) if texts else {}

    @property
    def actions(self) -> frozenset[Uid]:
        """Action entities of the schema."""
        return frozenset() if self.base.schema is None else frozenset(self.base.schema.actions)

    def kind(self, id_: str) -> Kind | None:
        """What bears an id."""
        edit = self.edits.get(("policy", "", id_))
        if edit is None:
            return self.base_kind(id_)
        if edit.removed:
            return None
        if edit.of == "link":
            return "link"
        return "template" if self.base.rules[edit.text].template else "policy"

    def base_kind(self, id_: str) -> Kind | None:
        """What bears an id in the base."""
        if id_ in self.base.basis.templates:
            return "template"
        template = Rows(self.base.table).template_of(id_)
        return None if template is None else "link" if template else "policy"

    def has_entity(self, uid: Uid) -> bool:
        edit = self.edits.get(("entity", *uid))
        return Rows(self.base.table).has_entity(*uid) if edit is None else not edit.removed

    def base_holds(self, key: Key) -> bool:
        """Whether the base has what an edit is of."""
        return Rows(self.base.table).has_entity(*key[1:]) if key[0] == "entity" else self.base_kind(key[2]) is not None

    # ------------------------------------------------------------ what is compiled into a delta

    def rules(self) -> dict[str, Parsed]:
        """Policies and templates of the edits by id, and the base's templates that links of the edits are made from."""
        puts = (edit for edit in self.edits.values() if edit.of == "policy" and not edit.removed)
        named = {edit.id: self.base.rules[edit.text] for edit in puts}
        templates = self.base.basis.templates
        for wanted in sorted({place.link.template for place in self.overlay.own_links}):
            if ("policy", "", wanted) in self.edits or wanted not in templates:
                continue
            text = templates[wanted].text
            if text not in self.base.rules:
                self.base.parse([PolicyText(f"template `{wanted}`", text)], self.limits)
            named[wanted] = self.base.rules[text]
        if self.base.schema is not None:
            check_link_types(self.overlay.own_links, self.base.schema)
        return named

    def entity_rows(self) -> list[EntityRow]:
        """The rows of the entities that edits put."""
        puts = [edit for edit in self.edits.values() if edit.of == "entity" and not edit.removed]
        return self.base.entity_rows(zip(puts, self.overlay.own_entities, strict=True), self.limits)

    # ------------------------------------------------------------ templates and links

    def own_links(self, template: str) -> list[str]:
        """Links that edits made from a template."""
        return [place.link.id for place in self.overlay.own_links if place.link.template == template]

    def base_links(self, template: str) -> int:
        """Links of the base's that no edit hides."""
        use = self.base.basis.templates.get(template)
        if use is None:
            return 0
        rules = (id_ for of, _, id_ in self.edits if of == "policy")
        base = Rows(self.base.table)
        return use.links - sum(base.template_of(id_) == template for id_ in rules)

    def links_of(self, template: str) -> int:
        return self.base_links(template) + len(self.own_links(template))

    def names_of_links(self, template: str, most: int) -> list[str]:
        """The first links by id."""
        base = Rows(self.base.table).links_of(template, most + len(self.edits))
        names = [id_ for id_ in base if ("policy", "", id_) not in self.edits]
        return sorted([*names, *self.own_links(template)], key=str.encode)[:most]
