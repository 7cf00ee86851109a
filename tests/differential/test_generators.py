"""The differential test is worth what its generators make: the same for a seed everywhere, varied, and shrinkable."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.differential.case import Case, Policy, Record, ex
from tests.differential.compare import Reply, differences
from tests.differential.families import FAMILIES, make_case
from tests.differential.oracle import Answer, Oracle, Refused, schema_of, strict
from tests.differential.shrink import shrink

DIGEST = """
from tests.differential.test_generators import digest
print(digest(7, 40))
"""


def digest(seed: int, batches: int) -> str:
    """Digest of the first batches of a seed as records."""
    text = json.dumps([make_case(seed, batch).render("case") for batch in range(batches)])
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_a_seed_makes_the_same_cases_whatever_the_hash_seed(hash_seed: str) -> None:
    """A failure printed by its seed can be made again in another process."""
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    assert done.stdout.strip() == digest(7, 40)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_reaches_every_kind_of_answer(family: str) -> None:
    """A generator whose cases all end alike would prove nothing."""
    seen: Counter[str] = Counter()
    for batch in range(12):
        record = make_case(1, batch, family).render("case")
        oracle = Oracle(record)
        seen["typed" if record["typed"] else "ill-typed"] += 1
        seen["columns"] += record["columns"]
        seen["validated"] += schema_of(record) is not None
        for answer in oracle.ask(record["requests"]):
            if isinstance(answer, Refused):
                seen["refused"] += 1
            else:
                seen[answer.decision] += 1
                seen["errors"] += len(answer.errors)
                seen["reasons"] += len(answer.reasons)
    assert all(seen[kind] for kind in ("allow", "deny", "errors", "reasons", "columns", "ill-typed")), seen
    assert family == "coding" or seen["validated"], seen
    assert family not in ("coding", "extensions") or seen["refused"], seen
    # A case that cedarpy refuses compares nothing else.
    assert seen["refused"] < (seen["allow"] + seen["deny"]) / 2, seen


def test_policy_sets_have_templates_with_links() -> None:
    """Links are part of the first family, in every slot form."""
    records = [make_case(1, batch, "policy_sets").render("case") for batch in range(30)]
    text = "".join(record["policies"] for record in records)
    assert sum(len(record["links"]) for record in records) > 50
    for form in ("== ?principal", "in ?principal", "in ?resource", "== ?resource", " in ?"):
        assert form in text


class Wrong:
    """cedarpy over policies in which every `<=` has become `<`."""

    def __init__(self, record: Record) -> None:
        self.oracle = Oracle(record | {"policies": record["policies"].replace("<=", "<")})

    def ask(self, requests: list[object], *, strict: bool) -> list[Reply]:  # noqa: ARG002
        return list(self.oracle.ask(requests))


def test_shrinking_leaves_what_disagrees_and_little_else() -> None:
    """One policy, one clause and one request remain of a case that a single wrong operator made fail."""

    def differs(case: Case) -> bool:
        return any(found.mode == "cedar" for found in differences(case.render("case"), Wrong))

    case = next(case for batch in range(100) if differs(case := make_case(3, batch, "integers")))
    small = shrink(case, differs, seconds=60)
    assert differs(small)
    assert (len(small.policies), len(small.requests), len(small.entities)) == (1, 1, 0)
    assert sum(body.size() for _, body in small.policies[0].clauses) <= 5


def test_strict_mode_denies_what_cedar_would_let_pass_over_an_erring_forbid() -> None:
    """The rule that strict expectations are made by: an erring forbid denies, satisfied forbids stay the reasons."""
    erring = Policy("forbid", clauses=(("when", ex("context.missing")),))
    request = {"principal": {"type": "U", "id": "a"}, "action": {"type": "Action", "id": "a"}} | {
        "resource": {"type": "R", "id": "r"},
        "context": {},
    }
    oracle = Oracle(Case("", (Policy(), erring), (), (request,)).render("case"))
    (answer,) = oracle.ask([request])
    assert answer == Answer("allow", frozenset({"policy0"}), frozenset({"policy1"}))
    assert strict(answer, oracle.effects()) == Answer("deny", frozenset(), frozenset({"policy1"}))
