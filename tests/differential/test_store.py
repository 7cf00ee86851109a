"""A store after any sequence of edits, compactions and publishes decides as its effective set compiled anew, and as
cedarpy."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fastpath.evaluator import Evaluator
from fastpath.table import Generation
from sidecar.errors import PolicyError
from sidecar.policy.compile import compile_image
from sidecar.policy.lexer import PolicyText
from sidecar.policy.links import EntityUid, Link
from sidecar.policy.publish import Change, GenerationStore, PolicySource, SourceFiles, Work
from tests.differential.case import Json
from tests.differential.oracle import Answer, Oracle
from tests.differential.ours import ask_one

LONG = os.environ.get("REMIT_FAULTS") == "long"
DELTA_EDITS = 4
"""Few, so that some edits compile the whole set."""

USERS, GROUPS, DOCS = ("u0", "u1"), ("g0", "g1", "g2"), ("d0", "d1")
BODIES = (
    'permit (principal in G::"g0", action, resource);',
    'permit (principal in G::"g2", action == Action::"view", resource == D::"d0");',
    'permit (principal == U::"u0", action, resource) when { principal.n > 1 };',
    'forbid (principal is U, action, resource == D::"d1") when { resource.n == principal.n };',
    'forbid (principal in G::"g1", action in [Action::"view"], resource);',
    'permit (principal, action, resource) when { principal in G::"g1" && resource has n };',
)
TEMPLATES = (
    "permit (principal == ?principal, action, resource == ?resource);",
    "forbid (principal in ?principal, action, resource) when { principal has n };",
)
IDS = ("a", "b", "c", "t", "s")

Rules = dict[str, str]
ids = st.sampled_from(IDS)
bodies = st.sampled_from((*BODIES, *TEMPLATES))
names = st.sampled_from(("U u0", "U u1", "G g0", "G g1", "G g2", "D d0", "D d1"))


def uid(name: str) -> Json:
    type_, id_ = name.split()
    return {"type": type_, "id": id_}


@st.composite
def entities(draw: st.DrawFn, name: str) -> Json:
    """An entity whose parents come after it, so that no cycle is made."""
    attrs = draw(st.sampled_from(({}, {"n": 1}, {"n": 2})))
    above = [f"G {group}" for group in GROUPS if not name.startswith("G") or group > name[2:]]
    parents = draw(st.lists(st.sampled_from(above), unique=True, max_size=2)) if above else []
    return {"uid": uid(name), "attrs": attrs, "parents": [uid(one) for one in parents]}


@st.composite
def links(draw: st.DrawFn, template: str) -> Json:
    slots = {"?principal": uid(draw(st.sampled_from(("U u0", "G g1"))))}
    if template != TEMPLATES[1]:
        slots["?resource"] = uid(draw(st.sampled_from(("D d0", "D d1"))))
    return slots


REQUESTS = [
    {
        "principal": uid(f"U {user}"),
        "action": {"type": "Action", "id": action},
        "resource": uid(f"D {doc}"),
        "context": {},
    }
    for user in (*USERS, "u9")
    for action in ("view", "edit")
    for doc in DOCS
]


class Model:
    """The files and the edits over them, as dictionaries."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.edits: dict[str, str] = {}

    def effective(self) -> dict[str, str]:
        """By key, `rule <id>` or `entity <uid>`: Cedar text, or JSON of a link or an entity."""
        return {key: text for key, text in (self.files | self.edits).items() if text}

    def broken(self, rules: dict[str, str]) -> bool:
        """Whether some link has no template, or does not fill its slots."""
        for key, text in rules.items():
            if not key.startswith("rule") or text.startswith("@"):
                continue
            link = json.loads(text)
            body = rules.get(f"rule {link['template']}", "")
            slots = {slot for slot in ("?principal", "?resource") if slot in body}
            if not body.startswith("@") or not slots or slots != link["slots"].keys():
                return True
        return False


def parts(rules: dict[str, str]) -> tuple[list[str], list[Json], list[Json]]:
    """Policies and templates, links, entities."""
    mine = [text for key, text in sorted(rules.items()) if key.startswith("rule")]
    return (
        [text for text in mine if text.startswith("@")],
        [json.loads(text) for text in mine if not text.startswith("@")],
        [json.loads(text) for key, text in sorted(rules.items()) if key.startswith("entity")],
    )


def policy(id_: str, body: str) -> str:
    return f'@id("{id_}") {body}'


class Stored(RuleBasedStateMachine):
    """Every rule is one command of an operator; what is refused changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="remit-store-"))
        self.model = Model()
        self.store = GenerationStore(self.root / "store", stays=True)
        paths = (str(self.root / name) for name in ("entities.json", "links.jsonl"))
        entity_file, link_file = paths
        self.source = PolicySource(
            SourceFiles([str(self.root)], "", entity_file, link_file, allow_empty=True, delta_edits=DELTA_EDITS)
        )

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    def _write(self, files: dict[str, str]) -> None:
        policies, linked, rows = parts(files)
        (self.root / "a.cedar").write_text("\n".join(policies))
        (self.root / "links.jsonl").write_text("\n".join(map(json.dumps, linked)))
        (self.root / "entities.json").write_text(json.dumps(rows))

    @initialize(data=st.data())
    def first(self, data: st.DataObject) -> None:
        self._publish(self._files(data))

    def _files(self, data: st.DataObject) -> dict[str, str]:
        chosen = {f"rule {id_}": policy(id_, data.draw(bodies)) for id_ in data.draw(st.sets(ids, max_size=4))}
        for name in data.draw(st.sets(names, max_size=5)):
            chosen[f"entity {name}"] = json.dumps(data.draw(entities(name)))
        return chosen

    def _publish(self, files: dict[str, str]) -> None:
        before = self.model.files
        self._write(files)
        if self.model.broken({key: text for key, text in (files | self.model.edits).items() if text}):
            with pytest.raises(PolicyError):
                self.store.publish(self.source)
            self._write(before)
            return
        self.store.publish_files(self.source, Work())
        self.model.files = files
        self._standing()

    def _standing(self) -> None:
        """What the store says that stands decides with the files what is in force; the model forgets what it forgot."""
        found = {
            f"{'entity' if e.of == 'entity' else 'rule'} {f'{e.type} ' * (e.of == 'entity')}{e.id}"
            for e in self.store.edits()
        }
        assert found <= self.model.edits.keys()
        # Only a removal of what the files do not hold may be forgotten.
        for key in self.model.edits.keys() - found:
            assert (self.model.edits[key], key in self.model.files) == ("", False)
        self.model.edits = {key: text for key, text in self.model.edits.items() if key in found}

    def _edit(self, change: Change, edits: dict[str, str], *, refused: bool = False) -> None:
        after = self.model.edits | edits
        if refused or self.model.broken({key: text for key, text in (self.model.files | after).items() if text}):
            with pytest.raises(PolicyError):
                self.store.edit(change, self.source, Work())
            return
        self.store.edit(change, self.source, Work())
        self.model.edits = after
        self._standing()

    @rule(id_=ids, body=bodies)
    def put(self, id_: str, body: str) -> None:
        text = policy(id_, body)
        self._edit(Change(policies=[PolicyText("put", text)]), {f"rule {id_}": text})

    @rule(id_=st.sampled_from((*IDS, "l", "m")))
    def remove(self, id_: str) -> None:
        there = f"rule {id_}" in self.model.effective()
        self._edit(Change(removed=[id_]), {f"rule {id_}": ""}, refused=not there)

    @rule(id_=st.sampled_from(("l", "m", "a")), data=st.data())
    def link(self, id_: str, data: st.DataObject) -> None:
        rules = self.model.effective()
        known = [name for name in IDS if "?principal" in rules.get(f"rule {name}", "") and name != id_]
        template = data.draw(st.sampled_from(known or ["t"]))
        body = rules.get(f"rule {template}", "").partition(") ")[2]
        slots = data.draw(links(body))
        made = Link(id_, template, {slot: EntityUid(one["type"], one["id"]) for slot, one in slots.items()})
        text = json.dumps({"id": id_, "template": template, "slots": slots})
        self._edit(Change(links=[made]), {f"rule {id_}": text})

    @rule(id_=st.sampled_from(("l", "m", "a")))
    def unlink(self, id_: str) -> None:
        is_link = self.model.effective().get(f"rule {id_}", "").startswith("{")
        self._edit(Change(unlinked=[id_]), {f"rule {id_}": ""}, refused=not is_link)

    @rule(name=names, data=st.data())
    def put_entity(self, name: str, data: st.DataObject) -> None:
        text = json.dumps(data.draw(entities(name)))
        self._edit(Change(entities=[PolicyText("put", text)]), {f"entity {name}": text})

    @rule(name=names)
    def remove_entity(self, name: str) -> None:
        there = f"entity {name}" in self.model.effective()
        self._edit(Change(entities_removed=[EntityUid(*name.split())]), {f"entity {name}": ""}, refused=not there)

    @rule()
    def compact(self) -> None:
        self.store.compact(self.source, Work())
        manifest = self.store.current()
        assert manifest is not None
        assert (manifest.delta, manifest.pending) == (None, None)
        self._standing()

    @rule(data=st.data())
    def publish_other_files(self, data: st.DataObject) -> None:
        self._publish(self._files(data))

    @rule()
    def drop(self) -> None:
        if self.model.broken({key: text for key, text in self.model.files.items() if text}):
            return
        self.store.publish_files(self.source, Work(), drop_edits=True)
        self.model.edits = {}
        assert self.store.edits() == []

    @invariant()
    def decides_as_compiled_anew_and_as_cedarpy(self) -> None:
        if self.store.current() is None:
            return
        policies, linked, rows = parts(self.model.effective())
        with self.store.open_current(strict=False) as generation:
            got = [ask_one(Evaluator(generation, strict=False), request) for request in REQUESTS]
        image = compile_image("\n".join(policies), entities=rows, links=linked).image
        with Generation.from_bytes(image, strict=False) as fresh:
            assert generation_ids(fresh) == sorted(one for one in self._rule_ids())
            assert got == [ask_one(Evaluator(fresh, strict=False), request) for request in REQUESTS]
        by_position = {f"policy{i}": text.split('"')[1] for i, text in enumerate(policies)}
        record = {"policies": "\n".join(policies), "links": _positional(linked, by_position), "entities": rows}
        assert got == [_named(one, by_position) for one in Oracle(record).ask(REQUESTS)]

    def _rule_ids(self) -> list[str]:
        rules = {key: text for key, text in self.model.effective().items() if key.startswith("rule")}
        return [
            key.split()[1]
            for key, text in rules.items()
            if "?principal," not in text and "(principal in ?p" not in text
        ]


def generation_ids(generation: Generation) -> list[str]:
    return sorted(generation.policy_ids)


def _positional(linked: list[Json], by_position: dict[str, str]) -> list[Json]:
    position = {id_: name for name, id_ in by_position.items()}
    return [link | {"template": position[link["template"]]} for link in linked]


def _named(answer: object, by_position: dict[str, str]) -> object:
    if not isinstance(answer, Answer):
        return answer
    reasons, errors = (frozenset(by_position.get(one, one) for one in some) for some in (answer.reasons, answer.errors))
    return Answer(answer.decision, reasons, errors)


def test_a_store_decides_as_its_effective_set_after_any_sequence() -> None:
    """Put, remove, link, unlink, entities, compactions, other files, dropped edits: the answers are those of the files
    under the edits, whichever way the generation was made; what is refused changes nothing."""
    examples, steps = (200, 40) if LONG else (6, 12)
    run_state_machine_as_test(
        Stored,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not LONG,
            suppress_health_check=list(HealthCheck),
        ),
    )
