"""Sizes, most of them for a long run: equal bytes every time, many policies, wide hierarchies (PO-02, PO-03, PO-06)."""

import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

from sidecar.errors import PolicyError
from sidecar.policy.lexer import PolicyText
from sidecar.policy.source import SourceTexts
from sidecar.policy.worker import compile_in_child
from tests.fix_faults import LONG, ROOT, SEED, Publishing
from tests.fix_policy import ANYTHING

long_only = pytest.mark.skipif(not LONG, reason="plays under make test-faults")

COMPILER = """
import hashlib, json, sys
from sidecar.policy.child import compile_texts
from sidecar.policy.lexer import PolicyText
from sidecar.policy.source import SourceTexts
policies, entities = json.load(sys.stdin)
texts = SourceTexts([PolicyText(str(i), text) for i, text in enumerate(policies)], entities=PolicyText("e", entities))
print(hashlib.sha256(compile_texts(texts, allow_empty=False).image).hexdigest())
"""


def entity(id_: str, *parents: str) -> dict[str, object]:
    return {"uid": {"type": "G", "id": id_}, "attrs": {}, "parents": [{"type": "G", "id": one} for one in parents]}


@long_only
def test_two_hundred_compilations_give_the_same_bytes() -> None:
    """PO-02: 200 processes, each with its own hash seed and order of policies, files and entities."""
    chance = random.Random(SEED)
    policies = [
        f'@id("p{i}") permit (principal in G::"{i % 7}", action in [Action::"a", Action::"{i}"], resource)'
        f' when {{ context.n == {i} && [{i}, 1].contains(context.n) && {{"k": {i}}} == context.r }};'
        for i in range(60)
    ]
    entities = [entity(str(i), str((i + 1) % 7 + 7), str(i + 20)) for i in range(7)]
    found = set()
    for seed in range(200):
        chance.shuffle(policies)
        chance.shuffle(entities)
        files = ["\n".join(policies[i : i + 20]) for i in range(0, 60, 20)]
        done = subprocess.run(
            [sys.executable, "-c", COMPILER],
            input=json.dumps([files, json.dumps(entities)]),
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1


@long_only
def test_a_hundred_thousand_policies_and_a_parent_of_as_many_compile(tmp_path: pathlib.Path) -> None:
    """PO-03, PO-06: numbers are work; the file that comes out is the same when it is made again."""
    many = "".join(f'@id("p{i}") permit (principal == G::"{i}", action, resource);\n' for i in range(100_000))
    wide = json.dumps([entity("top"), *(entity(str(i), "top") for i in range(100_000))])
    texts = SourceTexts([PolicyText("many.cedar", many)], entities=PolicyText("wide.json", wide))
    made = [compile_in_child(texts, output=str(tmp_path / name)) for name in ("one", "two")]
    assert made[0] == made[1]
    assert (made[0].report.policies, made[0].report.entities) == (100_000, 100_001)
    assert hashlib.sha256((tmp_path / "one").read_bytes()).hexdigest() == made[0].file_digest.removeprefix("sha256:")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'@id("big") {ANYTHING} when {{ "{"x" * (5 << 20)}" == "" }};', "`big`.*larger than 1048576 bytes"),
        (f'@id("deep") {ANYTHING} when {{ {"(" * 500}1{")" * 500} == 1 }};', "`deep`.*nested deeper than 64 levels"),
        (f'@id("ifs") {ANYTHING} when {{ {"if true then true else " * 500}true }};', "`ifs`.*deeper than 64 levels"),
    ],
    ids=["5 MB", "500 brackets", "500 if"],
)
def test_a_limit_names_the_policy_and_the_old_generation_stays(world: Publishing, text: str, problem: str) -> None:
    """PO-03: what is too large or too deep is refused by a publish, which changes nothing."""
    before = world.in_force()
    with pytest.raises(PolicyError, match=problem):
        world.publish(text)
    assert world.in_force() == before
