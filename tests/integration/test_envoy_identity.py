"""EX-14 through a real Envoy: who calls is what Envoy's TLS proved, by our own rules, and nothing a caller says."""

import pytest

from sidecar.demo.stage import AGENT_A, AGENT_B, ENVOY_ID
from tests.fix_raw import exchange, message
from tests.fix_stage import TestStage

pytestmark = pytest.mark.envoy

XFCC = b"x-forwarded-client-cert"
CLAIM = b"By=spiffe://example.org/envoy;Hash=00;URI=" + AGENT_A.encode()
SAYS_ALICE = [
    (XFCC, CLAIM),
    (b"x-remit-agent", AGENT_A.encode()),
    (b"x-spiffe-id", AGENT_A.encode()),
    (b"x-forwarded-user", b"alice"),
]


@pytest.mark.parametrize("headers", [[], SAYS_ALICE], ids=["bare", "claims"])
def test_ex_14_without_tls_nobody_is_anybody(stage: TestStage, headers: list[tuple[bytes, bytes]]) -> None:
    """EX-14: a plain text listener proves no principal, and headers do not stand in for it."""
    answer = exchange(stage, message(b"/v1/rates", headers=headers), listener="plain")
    assert str(answer) == "403 identity.missing"
    record = stage.record(answer)
    assert (record["agent"], record["peer"]) == ("", ENVOY_ID)


def test_ex_14_xfcc_does_not_change_who_calls(stage: TestStage) -> None:
    """EX-14: Envoy forwards the client's own XFCC header to us here; bob stays bob, who may not read balances."""
    answer = exchange(stage, message(b"/admin", headers=SAYS_ALICE), who="bob", listener="forwarding")
    assert str(answer) == "403 admin.closed"
    assert stage.record(answer)["agent"] == AGENT_B


@pytest.mark.parametrize(
    ("who", "expected", "agent"),
    [
        ("by-dns", "403 identity.not_spiffe", ""),
        ("by-subject", "403 identity.not_spiffe", ""),
        ("by-https", "403 identity.not_spiffe", ""),
        ("by-domain", "403 identity.not_spiffe", ""),
        ("foreign", "403 identity.trust_domain", "spiffe://evil.test/agent/alice"),
    ],
)
def test_ex_14_a_principal_that_is_no_spiffe_id_of_ours_is_denied(
    stage: TestStage, who: str, expected: str, agent: str
) -> None:
    """2.1: Envoy falls back to DNS names and subjects, here of certificates that it accepts whatever they say."""
    answer = exchange(stage, message(b"/v1/rates"), who=who, listener="anyname")
    assert str(answer) == expected
    assert stage.record(answer)["agent"] == agent


def test_ex_14_the_svid_names_the_agent(stage: TestStage) -> None:
    """The record names agent and Envoy by their SPIFFE IDs, and the answer told the upstream who calls."""
    answer = exchange(stage, message(b"/v1/rates"))
    record = stage.record(answer)
    assert (record["agent"], record["peer"], record["door"]) == (AGENT_A, ENVOY_ID, "DOOR_EXT_AUTHZ")
    assert dict(answer.json()["headers"])["x-remit-agent"] == AGENT_A


# ---------------------------------------------------------------- network filter


def test_the_network_filter_asks_before_any_byte_of_the_call(stage: TestStage) -> None:
    """2.1: a call without `http` is judged by who connects and where to; a refusal closes the connection."""
    assert exchange(stage, message(b"/v1/rates"), listener="network").json()["path"] == "/v1/rates"
    with pytest.raises(OSError):
        exchange(stage, message(b"/v1/rates"), who="bob", listener="network")
    records = [one for one in stage.wait_collected() if one.get("door") == "DOOR_EXT_AUTHZ_NETWORK"]
    assert [(one["agent"], one["outcome"], one["action"]) for one in records] == [
        (AGENT_A, "OUTCOME_ALLOW", "send"),
        (AGENT_B, "OUTCOME_DENY", "send"),
    ]
    assert {(one["protocol"], one["resource"]) for one in records} == {("network", ENVOY_ID)}
