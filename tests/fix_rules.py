"""Rule tables made from a few lines of Cedar, and questions to them."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import cedarpy
import pytest

from fastpath.evaluator import Evaluation, Evaluator
from fastpath.table import Generation
from sidecar.policy.cells import encode_context
from sidecar.policy.compile import compile_image
from sidecar.policy.rows import NodeFlag

Uid = tuple[str, str]
ALICE, READ, DOC = ("User", "alice"), ("Action", "read"), ("Doc", "d1")


def entity(uid: Uid, attrs: dict[str, Any] | None = None, parents: list[Uid] | None = None, **tags: Any) -> dict:
    """One entity of Cedar's JSON."""
    made = {
        "uid": {"type": uid[0], "id": uid[1]},
        "attrs": attrs or {},
        "parents": [{"type": type_, "id": id_} for type_, id_ in parents or []],
    }
    return made | ({"tags": tags} if tags else {})


def image(policies: str, entities: list[dict] | None = None, *, named: bool = False, columns: bool = False) -> bytes:
    """A compiled image: policies called policy0, policy1, .. unless `named`, when each has its `@id`."""
    return compile_image(policies, entities=entities or [], positional_ids=not named, columns=columns).image


def policy_lists(data: bytes, node: int, first_at: int = 0) -> dict[int, int]:
    """Offset of the Entries of each list of policies of the Node at offset `node`, by FiledUnder or INHERITED.

    `first_at` is the `at` of the first byte of `data`, which for a delta is behind its base.
    """
    flags, lists = struct.unpack_from("<I", data, node + 4)[0], node + 24
    kinds = [kind for kind in range(7) if flags & NodeFlag.LIST << kind]
    if len(kinds) > 1:
        lists = 8 * (struct.unpack_from("<I", data, lists)[0] - first_at)
    return {kind: lists + 8 * i for i, kind in enumerate(kinds)}


def evaluator(policies: str, entities: list[dict] | None = None, *, strict: bool = True, **how: bool) -> Evaluator:
    return Evaluator(Generation.from_bytes(image(policies, entities, **how), strict=strict))


def ask(
    asked: Evaluator,
    principal: Uid = ALICE,
    action: Uid = READ,
    resource: Uid = DOC,
    context: dict | None = None,
    **options: Any,
) -> Evaluation:
    return asked.evaluate(principal, action, resource, encode_context(context or {}), **options)


def verdict(expression: str, entities: list[dict] | None = None, context: dict | None = None) -> bool | str:
    """What `when { expression }` comes to: True, False, or the cause of its error."""
    got = ask(evaluator(f"permit(principal, action, resource) when {{ {expression} }};", entities), context=context)
    return got.errors[0][1] if got.errors else got.outcome == "ALLOW"


def cedar_verdict(expression: str, entities: list[dict] | None = None, context: dict | None = None) -> bool | None:
    """What Cedar's own engine says: True, False, or None for an error."""
    request = {
        "principal": 'User::"alice"',
        "action": 'Action::"read"',
        "resource": 'Doc::"d1"',
        "context": context or {},
    }
    policy = f"permit(principal, action, resource) when {{ {expression} }};"
    answer = cedarpy.is_authorized(request, policy, entities or [])
    return None if answer.diagnostics.errors else answer.decision == cedarpy.Decision.Allow


locks_memory = pytest.mark.skipif("REMIT_SANITIZED" in os.environ, reason="the sanitizer makes mlock do nothing")


def locked_bytes() -> int:
    """Memory of this process that is locked."""
    found = re.search(r"^VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])
