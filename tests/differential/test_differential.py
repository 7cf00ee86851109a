"""Our evaluator and cedarpy agree on generated policy sets, entities, requests and live state, in both modes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.differential.families import FAMILIES
from tests.differential.run import run

CASES = 3000


def test_no_disagreement_in_a_seeded_run(tmp_path: Path) -> None:
    """Decision, determining and erring policies are cedarpy's; what cedarpy refuses is refused (all ten families)."""
    total = run(20, CASES, save=tmp_path)
    assert not total.failures, "\n".join(total.failures)
    assert total.cases >= CASES
    assert all(total.answers[kind] > CASES / 50 for kind in ("allow", "deny", "erring", "refused")), total.answers
    assert set(total.families) == set(FAMILIES)


def test_a_saved_disagreement_can_be_replayed(tmp_path: Path) -> None:
    """`--replay` compares the records of a file and exits 0 when they agree by now, or were refused by both."""
    uid = {"type": "U", "id": "a"}
    request = {"principal": uid, "action": uid, "resource": uid, "context": {}}
    record = {"name": "replayed", "policies": "permit(principal, action, resource);", "schema": "", "entities": []}
    path = tmp_path / "saved.jsonl"
    refused = record | {"name": "refused", "policies": "permit(principal);", "requests": [request]}
    path.write_text("".join(json.dumps(line) + "\n" for line in (record | {"requests": [request]}, refused)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.differential", "--replay", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "replayed: 0 difference(s)\nrefused: 0 difference(s)\n")
