"""Parsed policies and links to rows of the image: ids, scopes, flags and programs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sidecar.errors import PolicyError
from sidecar.policy import annotations as notes
from sidecar.policy.cells import Uid
from sidecar.policy.code import Constants
from sidecar.policy.links import Link, PlacedLink, check_ids, check_slots, slots_of
from sidecar.policy.literals import MARK, fill_text
from sidecar.policy.parse import Parsed
from sidecar.policy.program import Program
from sidecar.policy.rows import Scope
from sidecar.policy.shapes import Shape
from sidecar.policy.source_rows import PolicyRow, ScopeRow

T = TypeVar("T")
_SCOPES = {"All": Scope.ANY, "==": Scope.EQ, "in": Scope.IN, "is": Scope.IS}


def name_policies(parsed: Sequence[Parsed], *, positional: bool) -> dict[str, Parsed]:
    """Policies and templates by id; PolicyError when one has none or shares it."""
    named: dict[str, Parsed] = {}
    for policy in parsed:
        noted = {} if positional else policy.annotations
        id_ = f"policy{policy.position}" if positional else noted.get("id")
        if not id_:
            raise PolicyError(f'{policy.piece.title} has no `@id`; give it a unique one: @id("..")')
        if id_ in named:
            raise PolicyError(f"{policy.piece.title} has an id that {named[id_].piece.title} has already")
        named[id_] = policy
        _check_annotations(policy, noted)
    return named


def _named_error(policy: Parsed, step: Callable[[], T]) -> T:
    """Run `step` and put the policy's name before its PolicyError."""
    try:
        return step()
    except PolicyError as error:
        raise PolicyError(f"{policy.piece.title} {error}") from None


def _check_annotations(policy: Parsed, noted: Mapping[str, str]) -> None:
    _named_error(policy, lambda: notes.check(noted))


def _uid(value: Mapping[str, str]) -> tuple[str, str]:
    return value["type"], value["id"]


Fill = Callable[[tuple[str, ...], Mapping[str, Uid | None]], ScopeRow]


def _scope_of(shape: Shape, part: str) -> Fill:
    """What makes the row of one scope constraint from a policy's literals and a link's slots."""
    found: Fill | None = shape.cache.get(part)
    if found is None:
        found = shape.cache[part] = _filler(shape.est[part])
    return found


def _filler(est: Mapping[str, Any]) -> Fill:
    if "entities" in est:
        # Actions, which are never lifted.
        return _constant(ScopeRow(Scope.IN_LIST, uids=tuple(_uid(uid) for uid in est["entities"])))
    op = _SCOPES[est["op"]]
    type_ = est["entity_type"] if op is Scope.IS else None
    within = est.get("in") if op is Scope.IS else None if op is Scope.ANY else est
    if within is None:
        return _constant(ScopeRow(op, type=type_))
    if op is Scope.IS:
        op = Scope.IS_IN
    if "slot" in within:
        slot = within["slot"]
        return lambda _, slots: ScopeRow(op, slots[slot], type_)
    uid_type, uid_id = _uid(within["entity"])
    if uid_id.startswith(MARK):
        return lambda values, _: ScopeRow(op, (uid_type, fill_text(uid_id, values)), type_)
    return _constant(ScopeRow(op, (uid_type, uid_id), type_))


def _constant(row: ScopeRow) -> Fill:
    return lambda _values, _slots: row


def _row(
    id_: str, policy: Parsed, program: Program, slots: Mapping[str, Uid | None], template: str, *, positional: bool
) -> PolicyRow:
    shape, values = policy.shape, policy.piece.values
    noted = policy.annotations
    forbid = shape.est["effect"] == "forbid"
    return PolicyRow(
        id=id_,
        forbid=forbid,
        flags=0 if positional else notes.flags(noted, forbid=forbid),
        principal=_scope_of(shape, "principal")(values, slots),
        action=_scope_of(shape, "action")(values, slots),
        resource=_scope_of(shape, "resource")(values, slots),
        program=program,
        template=template,
        reason=noted.get("reason", ""),
        obligation=noted.get("obligation", ""),
        annotations=notes.as_json(noted),
    )


_EMPTY_SLOTS = {"?principal": None, "?resource": None}


@dataclass(slots=True)
class RuleSet:
    """A policy set on its way to rows of the image."""

    named: dict[str, Parsed]
    links: Sequence[PlacedLink]
    constants: Constants
    positional: bool

    def template_of(self, placed: PlacedLink) -> str:
        """The id of a link's template; PolicyError names a link that has none, or does not fill exactly its slots.

        Positional sets know a template by its `@id` as well, as cedarpy does.
        """
        wanted = placed.link.template
        if wanted not in self.named or not self.named[wanted].template:
            found = []
            if self.positional:
                found = [id_ for id_, p in self.named.items() if p.template and p.annotations.get("id") == wanted]
            if len(found) != 1:
                cause = "which is a policy without slots" if wanted in self.named else "which does not exist"
                raise PolicyError(f"{placed.where}: link `{placed.link.id}` names the template `{wanted}`, {cause}")
            wanted = found[0]
        shape = self.named[wanted].shape
        needed = shape.cache.get("slots")
        if needed is None:
            needed = shape.cache["slots"] = slots_of(shape.est)
        check_slots(placed, needed)
        return wanted

    def row(self, id_: str, link: Link | None = None) -> PolicyRow:
        """The row of a policy, or of a link of the template `id_`; PolicyError names the policy."""
        policy = self.named[id_]
        slots = {name: (uid.type, uid.id) for name, uid in link.slots.items()} if link else {}
        program = _program(policy, self.constants)
        row_id, template = (link.id, id_) if link else (id_, "")
        return _row(row_id, policy, program, slots, template, positional=self.positional)

    def like(self, id_: str, *, linked: bool) -> PolicyRow:
        """What all links of a template share: their row without an id, and without uids where slots are.

        A template without links decides nothing, but it must compile all the same.
        """
        policy = self.named[id_]
        program = _program(policy, self.constants if linked else Constants())
        return _row("", policy, program, _EMPTY_SLOTS, id_, positional=self.positional)

    def rows(self) -> list[PolicyRow]:
        """One row per policy and per link; PolicyError names the policy or the link's place."""
        taken = {id_: policy.piece.title for id_, policy in self.named.items()}
        check_ids(self.links, taken)
        linked: dict[str, list[Link]] = {}
        for place in self.links:
            linked.setdefault(self.template_of(place), []).append(place.link)
        rows = []
        # Sorted, so that constants and code come in the same order whatever the order of the files.
        for id_ in sorted(self.named, key=str.encode):
            if not self.named[id_].template:
                rows.append(self.row(id_))
            elif id_ in linked:
                rows += [self.row(id_, link) for link in linked[id_]]
            else:
                self.like(id_, linked=False)
        return rows


def _program(policy: Parsed, constants: Constants) -> Program:
    """The policy's conditions. What shapes share is compiled once, with constants that are linked for each."""
    draft = policy.shape.draft
    if draft is None:
        raise AssertionError("policies are compiled from drafts")
    return _named_error(policy, lambda: draft.linked(policy.piece.values, constants))
