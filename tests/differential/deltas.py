"""Random bases, random sequences of edits as deltas over them: each must answer like the edited set compiled anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Any

from fastpath.evaluator import Evaluator
from fastpath.table import Generation
from sidecar.policy.cells import encode_context
from sidecar.policy.code import Constants
from sidecar.policy.compile import compile_image
from sidecar.policy.delta import DeltaEdits, write_delta
from sidecar.policy.entities import load_entities
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import DEFAULT_LIMITS
from sidecar.policy.parse import Making, make, split_all
from sidecar.policy.rules import RuleSet, name_policies
from tests.differential.case import Record
from tests.differential.oracle import Answer, Oracle, strict

Uid = tuple[str, str]

GROUPS = [("Group", f"g{n}") for n in range(6)]
PRINCIPALS = [("User", f"u{n}") for n in range(4)] + [("Agent", "a0")]
FOLDERS = [("Folder", f"f{n}") for n in range(5)]
RESOURCES = [("Doc", f"d{n}") for n in range(4)] + [("Page", "p0")]
ACTIONS = [("Action", name) for name in ("read", "write", "any")]
CONDITIONS = (
    "", "", "when { principal.level > 1 }", "unless { resource.level == 2 }", "when { context.n > 1 }",
    'when { principal in Group::"g1" }', 'when { resource.owner == principal }', 'when { principal has level }',
    'when { resource.getTag("label") == "pii" }', 'when { ["a", "b"].contains(principal.name) }',
    'when { context.task.present }', 'when { context.who in Group::"g2" }', 'when { context.n + 1 > 2 && true }',
)  # fmt: skip


def cedar(uid: Uid) -> str:
    return f'{uid[0]}::"{uid[1]}"'


def scope(rng: Random, name: str, own: list[Uid], groups: list[Uid]) -> str:
    """One constraint of a policy's scope."""
    uid, group, type_ = rng.choice(own), rng.choice(groups), rng.choice(own)[0]
    return rng.choice(
        (name, f"{name} == {cedar(uid)}", f"{name} in {cedar(group)}", f"{name} is {type_}",
         f"{name} is {type_} in {cedar(group)}", f"{name} in {cedar(uid)}")
    )  # fmt: skip


def policy(rng: Random, id_: str, principals: list[Uid], resources: list[Uid]) -> str:
    actions = rng.sample(ACTIONS, rng.randrange(len(ACTIONS)))
    action = rng.choice(("action", f"action == {cedar(rng.choice(ACTIONS))}", f"action in {cedar(rng.choice(ACTIONS))}",
                         f"action in [{', '.join(map(cedar, actions))}]"))  # fmt: skip
    notes = rng.choice(("", "", '@reason("why") ', '@obligation("approval") ', "@shadow "))
    effect = "forbid" if rng.random() < 0.3 else "permit"
    notes = notes if effect == "forbid" or "obligation" not in notes else ""
    principal = scope(rng, "principal", principals, GROUPS)
    resource = scope(rng, "resource", resources, FOLDERS)
    return f'@id("{id_}") {notes}{effect}({principal}, {action}, {resource}) {rng.choice(CONDITIONS)};'


def above(rng: Random, uid: Uid) -> list[Uid]:
    """Some parents of an entity, later ones of its own kind, so that none is in itself."""
    ranks = GROUPS if uid[0] in ("Group", "User", "Agent") else FOLDERS
    later = ranks[ranks.index(uid) + 1 :] if uid in ranks else ranks
    if uid[0] == "Action":
        later = ACTIONS[ACTIONS.index(uid) + 1 :]
    return rng.sample(later, min(len(later), rng.choice((0, 1, 1, 2, 3))))


def entity(rng: Random, uid: Uid) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    if rng.random() < 0.8:
        attrs = {"level": rng.randrange(4), "name": rng.choice("abc")}
    if rng.random() < 0.4:
        owner = rng.choice(PRINCIPALS + GROUPS)
        attrs["owner"] = {"__entity": {"type": owner[0], "id": owner[1]}}
    return {
        "uid": {"type": uid[0], "id": uid[1]},
        "attrs": attrs,
        "parents": [{"type": type_, "id": id_} for type_, id_ in above(rng, uid)],
        "tags": {"label": rng.choice(("pii", "public"))} if rng.random() < 0.5 else {},
    }


@dataclass
class Sets:
    """Policies by id and entities by uid, and what was changed since the base was compiled."""

    policies: dict[str, str] = field(default_factory=dict)
    entities: dict[Uid, dict[str, Any]] = field(default_factory=dict)
    edited: set[str] = field(default_factory=set)
    entities_edited: set[Uid] = field(default_factory=set)
    crowded: bool = False
    """Whether many policies name few uids, more than a walk remembers (MET_MAX, candidates.pxd)."""

    @property
    def ids(self) -> int:
        """How many policies there may be."""
        return 300 if self.crowded else 12

    @property
    def callers(self) -> list[Uid]:
        return PRINCIPALS[:1] if self.crowded else PRINCIPALS

    @property
    def targets(self) -> list[Uid]:
        return RESOURCES[:1] if self.crowded else RESOURCES

    def policy(self, rng: Random, id_: str) -> str:
        return policy(rng, id_, self.callers, self.targets)

    def edit(self, rng: Random) -> None:
        """Put or remove one policy or one entity."""
        if rng.random() < 0.5:
            id_ = f"p{rng.randrange(self.ids)}"
            self.edited.add(id_)
            self.policies.pop(id_, None)
            if rng.random() < 0.7:
                self.policies[id_] = self.policy(rng, id_)
            return
        uid = rng.choice(PRINCIPALS + GROUPS + RESOURCES + FOLDERS + ACTIONS[:2])
        self.entities_edited.add(uid)
        self.entities.pop(uid, None)
        if rng.random() < 0.7:
            self.entities[uid] = entity(rng, uid)

    def image(self, *, columns: bool) -> bytes:
        return compile_image("\n".join(self.policies.values()), entities=list(self.entities.values()),
                             columns=columns).image  # fmt: skip

    def edits(self, *, columns: bool) -> DeltaEdits:
        text = "\n".join(self.policies[id_] for id_ in sorted(self.edited & self.policies.keys()))
        parsed, _ = make(split_all([PolicyText("edits", text)], DEFAULT_LIMITS, []), Making(None, columns))
        constants = Constants()
        rows = RuleSet(name_policies(parsed, positional=False), (), constants, positional=False).rows()
        return DeltaEdits(
            policies_put=rows,
            policies_removed=sorted(self.edited - self.policies.keys()),
            entities_put=load_entities([self.entities[uid] for uid in self.entities_edited & self.entities.keys()]),
            entities_removed=sorted(self.entities_edited - self.entities.keys()),
            constants=constants,
        )


def first(rng: Random) -> Sets:
    """A random policy set to begin with."""
    made = Sets(crowded=rng.random() < 0.3)
    count = rng.randrange(made.ids // 3, made.ids) if made.crowded else rng.randrange(9)
    for number in rng.sample(range(made.ids), count):
        made.policies[f"p{number}"] = made.policy(rng, f"p{number}")
    for uid in rng.sample(PRINCIPALS + GROUPS + RESOURCES + FOLDERS + ACTIONS[:2], rng.randrange(20)):
        made.entities[uid] = entity(rng, uid)
    return made


def requests(rng: Random, count: int, sets: Sets) -> list[tuple[Uid, Uid, Uid, dict[str, Any]]]:
    everything = list(product(sets.callers + GROUPS[:2], ACTIONS, sets.targets + FOLDERS[:2]))
    who = {"__entity": {"type": "Group", "id": "g1"}}
    return [(*rng.choice(everything), {"n": rng.randrange(4), "who": who}) for _ in range(count)]


def answers(generation: Generation, asked: list[tuple[Uid, Uid, Uid, dict[str, Any]]]) -> list[tuple[Any, ...]]:
    """All that an evaluation says of each request, in both modes, but for its own id and whether it may be kept."""
    found = []
    for mode in (True, False):
        evaluator = Evaluator(generation, strict=mode)
        for principal, action, resource, context in asked:
            said = evaluator.evaluate(principal, action, resource, encode_context(context))
            traced = evaluator.trace(principal, action, resource, encode_context(context), every=True)
            found.append((*said[:7], traced))
            parent = ("Folder", "f1")
            said = evaluator.evaluate(principal, action, resource, encode_context(context), resource_parent=parent)
            found.append(said[:7])
    return found


def cedar_differs(sets: Sets, generation: Generation, asked: list[tuple[Uid, Uid, Uid, dict[str, Any]]]) -> str:
    """Where cedarpy decides otherwise, in both modes; policies that shadow are no policies to it."""
    shown = {id_: text for id_, text in sets.policies.items() if "@shadow" not in text}
    names = {f"policy{n}": id_ for n, id_ in enumerate(shown)}
    uids = [{"principal": {"type": p[0], "id": p[1]}, "action": {"type": a[0], "id": a[1]},
             "resource": {"type": r[0], "id": r[1]}, "context": context} for p, a, r, context in asked]  # fmt: skip
    record: Record = {
        "name": "delta", "policies": "\n".join(shown.values()), "schema": "", "links": [], "typed": False,
        "columns": False, "entities": list(sets.entities.values()), "requests": uids,
    }  # fmt: skip
    oracle = Oracle(record)
    effects = oracle.effects()
    for mode in (False, True):
        evaluator = Evaluator(generation, strict=mode)
        for request, answer in zip(asked, oracle.ask(uids), strict=True):
            assert isinstance(answer, Answer)
            wanted = strict(answer, effects) if mode else answer
            said = evaluator.evaluate(*request[:3], encode_context(request[3]))
            ours = (
                "allow" if said.outcome == "ALLOW" else "deny",
                sorted(said.reasons),
                sorted(n for n, _ in said.errors),
            )
            theirs = (
                wanted.decision,
                sorted(names[n] for n in wanted.reasons),
                sorted(names[n] for n in wanted.errors),
            )
            if ours != theirs:
                return f"{request}: cedarpy says {theirs}, the delta {ours}"
    return ""


def check(seed: int, *, edits: int = 8, asked: int = 6) -> int:
    """Compare after each edit of one random sequence; AssertionError names the seed. Returns how many deltas."""
    rng = Random(f"deltas {seed}")
    columns = rng.random() < 0.5
    sets = first(rng)
    base_image = sets.image(columns=columns)
    base = Generation.from_bytes(base_image)
    for step in range(edits):
        for _ in range(rng.choice((1, 1, 3))):
            sets.edit(rng)
        raw = write_delta(base, sets.edits(columns=columns))
        anew = Generation.from_bytes(sets.image(columns=columns))
        over = Generation.from_bytes(base_image, delta=raw)
        where = f"seed {seed}, step {step}"
        assert over.policy_ids == anew.policy_ids, where
        assert (over.policy_count, over.entity_count) == (anew.policy_count, anew.entity_count), where
        assert set(over.columns_read) >= set(anew.columns_read), where
        assert set(over.extras_read) >= set(anew.extras_read), where
        wanted = requests(rng, asked, sets)
        got, want = answers(over, wanted), answers(anew, wanted)
        assert got == want, f"{where}: {next((g, w) for g, w in zip(got, want, strict=True) if g != w)}"
        if not columns:
            differs = cedar_differs(sets, over, wanted)
            assert not differs, f"{where}: {differs}"
        assert write_delta(base, sets.edits(columns=columns)) == raw, where
    return edits
