"""Compiling small policy sets and asking them, for tests."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fastpath.evaluator import Evaluation, Evaluator
from fastpath.table import Generation
from sidecar.errors import PolicyError
from sidecar.policy.cells import encode_context
from sidecar.policy.compile import compile_image

ANYTHING = "permit (principal, action, resource)"


def evaluate(
    policies: str,
    context: Mapping[str, Any] | None = None,
    *,
    principal: tuple[str, str] = ("A", "p"),
    action: tuple[str, str] = ("Action", "a"),
    resource: tuple[str, str] = ("R", "r"),
    strict: bool = False,
    unsent: Sequence[str] = (),
    **options: Any,
) -> Evaluation:
    """Compile `policies` (positional ids unless said otherwise) and decide one request in Cedar's own mode."""
    options.setdefault("positional_ids", True)
    compiled = compile_image(policies, **options)
    with Generation.from_bytes(compiled.image, strict=strict) as generation:
        blob = encode_context(dict(context or {}))
        return Evaluator(generation).evaluate(principal, action, resource, blob, unsent=unsent)


def condition(text: str, context: Mapping[str, Any] | None = None, **options: Any) -> bool | str:
    """What a condition says: True, False, or the cause of its error."""
    answer = evaluate(f"{ANYTHING} when {{ {text} }};", context, **options)
    if answer.errors:
        return answer.errors[0][1]
    return answer.outcome == "ALLOW"


def refusal(policies: Any, **options: Any) -> str:
    """The message with which `policies` are refused."""
    with pytest.raises(PolicyError) as caught:
        compile_image(policies, **options)
    return str(caught.value)


def example_texts() -> tuple[str, str]:
    """Policies and schema of the shared example for agents, from the folder in REMIT_EXAMPLES."""
    folder = os.environ.get("REMIT_EXAMPLES")
    if not folder:
        pytest.skip("REMIT_EXAMPLES does not name the folder with agents.cedar and agents.cedarschema")
    with (
        open(os.path.join(folder, "agents.cedar"), encoding="utf-8") as policies,
        open(os.path.join(folder, "agents.cedarschema"), encoding="utf-8") as schema,
    ):
        return policies.read(), schema.read()
