"""Whatever goes wrong inside a policy, a call is decided, and never by the policy that erred (PO-05)."""

import pytest

from tests.fix_policy import ANYTHING, evaluate

CONTEXT = {"n": 1, "t": "no address", "r": {}, "least": -(2**63)}
# condition -> cause; all of them are found only when they run.
ERRORS = {
    "9223372036854775807 + context.n > 0": "overflow",
    "context.least - context.n < 0": "overflow",
    "context.least * -1 > 0": "overflow",
    "-context.least > 0": "overflow",
    "context.none == 1": "attribute",
    "context.r.none == 1": "attribute",
    "principal.none == 1": "entity",
    "context.n && true": "type",
    "context.t < 1": "type",
    "context.n like \"*\"": "type",
    "context.t in principal": "type",
    "ip(context.t).isIpv4()": "extension",
    "decimal(context.t).lessThan(decimal(\"1.0\"))": "extension",
    "datetime(context.t) < datetime(\"2026-01-01\")": "extension",
    "principal.getTag(\"none\") == 1": "entity",
}  # fmt: skip
FORBID = ANYTHING.replace("permit", "forbid")


@pytest.mark.parametrize("text", ERRORS)
def test_po_05_an_error_skips_its_policy_and_denies_in_strict_mode_when_it_is_a_forbid(text: str) -> None:
    """PO-05: Cedar mode skips what errs and lists it; strict mode, the default, denies on an erring forbid."""
    permit = f"{ANYTHING};\n"
    for strict in (True, False):
        erring_permit = evaluate(f"{permit}{ANYTHING} when {{ {text} }};", CONTEXT, strict=strict)
        assert (erring_permit.outcome, erring_permit.reasons) == ("ALLOW", ["policy0"])
        alone = evaluate(f"{ANYTHING} when {{ {text} }};", CONTEXT, strict=strict)
        assert (alone.outcome, alone.reason) == ("DENY", "policy.none")
        erring_forbid = evaluate(f"{permit}{FORBID} when {{ {text} }};", CONTEXT, strict=strict)
        assert (erring_forbid.outcome, erring_forbid.reason) == (
            ("DENY", "policy.error") if strict else ("ALLOW", "ok")
        )
        assert erring_permit.errors == erring_forbid.errors == [("policy1", ERRORS[text])]
