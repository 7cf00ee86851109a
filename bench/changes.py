"""What does one change cost among a million policies, from the call to the first decision under it?

A store that stays open edits, as a running publisher does: its compiler is warm and the base verified. The sharing
workload is published whole, once, which is what a change would cost without deltas. Every round puts a `forbid` on a
question that is allowed, asks it, removes the `forbid`, and asks it again; a decision that is not as it must be ends
the bench. Links and entities are changed in between, so that the delta grows as it does in use.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec

from bench.tables import COMPILE_S
from bench.tables import LIMITS as SIZES
from bench.workloads import Workload, workload
from fastpath.evaluator import Evaluator
from sidecar.policy.cells import encode_context
from sidecar.policy.lexer import PolicyText
from sidecar.policy.links import EntityUid, Link
from sidecar.policy.publish import Change, GenerationStore, PolicySource, SourceFiles, Work

LIMITS = msgspec.structs.replace(SIZES, links_max=2_000_000)
"""A link is added where a million may be all."""


class Edited:
    """A published workload and the store that edits it."""

    def __init__(self, work: Workload, folder: Path) -> None:
        self.work = work
        names = {"policies": "bench.cedar", "entities": "entities.json", "links": "links.jsonl"}
        paths = {part: folder / name for part, name in names.items()}
        paths["policies"].write_text(work.text(), encoding="utf-8")
        paths["entities"].write_text(json.dumps(work.entities), encoding="utf-8")
        paths["links"].write_text(work.links_text(), encoding="utf-8")
        self.source = PolicySource(
            SourceFiles([str(paths["policies"])], "", str(paths["entities"]), str(paths["links"]), limits=LIMITS)
        )
        self.how = Work(COMPILE_S)
        self.store = GenerationStore(folder / "store", stays=True)
        started = time.perf_counter()
        self.store.publish_files(self.source, self.how)
        self.full_s = time.perf_counter() - started

    def edit(self, change: Change, expected: bool) -> float:
        """Milliseconds from the call to the first decision under the change, which must be `expected` (allowed)."""
        asked = self.question()
        started = time.perf_counter()
        done = self.store.edit(change, self.source, self.how)
        with self.store.open_current(strict=False) as generation:
            allowed = Evaluator(generation).evaluate(*asked, encode_context({})).outcome == "ALLOW"
            took = (time.perf_counter() - started) * 1e3
        if done.compiled:
            raise click.ClickException(f"a change was no delta: {done.compiled}")
        if allowed is not expected:
            raise click.ClickException(f"the decision is {'ALLOW' if allowed else 'DENY'} after {change}")
        return took

    def question(self) -> tuple[tuple[str, str], ...]:
        """What the first link allows."""
        _, _, user, doc = self.work.links[0]
        return (user["type"], user["id"]), ("Action", "view"), (doc["type"], doc["id"])


def changes(number: int, work: Workload) -> list[tuple[str, Change, bool]]:
    """What a round does, and whether the question is allowed after each."""
    _, template, user, doc = work.links[0]
    other = work.links[number % len(work.links)][3]
    text = (
        f'@id("bench-forbid") forbid(principal == User::"{user["id"]}", action, resource == Doc::"{doc["id"]}") '
        f"when {{ resource.level != {100 + number} }};"
    )
    link = Link(f"bench-{number}", template, {"?principal": EntityUid(**user), "?resource": EntityUid(**other)})
    entity = {"uid": {"type": "Doc", "id": f"bench-{number}"}, "attrs": {"level": 1}, "parents": []}
    return [
        ("policy put", Change(policies=[PolicyText("bench", text)]), False),
        ("policy remove", Change(removed=["bench-forbid"]), True),
        ("policy link", Change(links=[link]), True),
        ("entity put", Change(entities=[PolicyText("bench", json.dumps(entity))]), True),
    ]


def measure_changes(count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of every change among `count` links, the share of a full publish, and what lies on disk."""
    work = workload("sharing", count, 1)
    # The question that is asked must be allowed before any change.
    holder = work.links[0][2]["id"]
    for one in work.entities:
        if one["uid"] == {"type": "User", "id": holder}:
            one["attrs"]["suspended"] = False
    edited = Edited(work, folder)
    samples: dict[str, list[float]] = {}
    # No publisher holds the workload: a collection that walks its objects (0.6 s of a million) is no part of a change.
    gc.freeze()
    with edited.store:
        # The first change starts the compiler and verifies the base there.
        warm = PolicyText("bench", '@id("bench-warm") permit(principal, action, resource);')
        first = edited.edit(Change(policies=[warm]), True)
        edited.edit(Change(removed=["bench-warm"]), True)
        for number in range(1, rounds + 1):
            for kind, change, expected in changes(number, work):
                samples.setdefault(kind, []).append(edited.edit(change, expected))
        manifest = edited.store.current()
    gc.unfreeze()
    every = [one for some in samples.values() for one in some]
    worst = max(median(some) for some in samples.values())
    return {
        "policies": count,
        "full_publish_s": edited.full_s,
        "delta_in_force_ms": worst,
        "delta_in_force_ms_by_kind": {kind: median(some) for kind, some in samples.items()},
        "delta_in_force_ms_max": max(every),
        "delta_first_ms": first,
        "delta_share": worst / 1e3 / edited.full_s,
        "delta_bytes": manifest.delta.size if manifest and manifest.delta else 0,
        "base_bytes": manifest.size if manifest else 0,
        "samples_ms": samples,
    }
