"""PeerResolver: from grpcio's auth context to a verified or refused peer, and when an answer may be remembered."""

import logging

import pytest

from fastpath.verify import Verifier
from sidecar.demo.ca import Authority
from sidecar.identity.peers import PEER_AGENT, PEER_ENVOY, PEER_NONE, PeerResolver, pem_to_ders
from tests.fix_identity import NOW_S, Clock

A = Authority("a.test", now_s=NOW_S)
AGENT = A.issue("spiffe://a.test/agent/a", now_s=NOW_S)
ENVOY = A.intermediate(now_s=NOW_S).issue("spiffe://a.test/envoy", now_s=NOW_S)
CLOCK_END = 2**63 - 1


def context(pem: bytes) -> dict[str, list[bytes]]:
    """The auth context that grpcio gives for a chain: the leaf, and the intermediates in one text."""
    blocks = pem.split(b"-----END CERTIFICATE-----\n")
    leaf, *above = [block + b"-----END CERTIFICATE-----\n" for block in blocks if block]
    return {"x509_pem_cert": [leaf], "x509_pem_cert_chain": [b"".join(above)]}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier() -> Verifier:
    made = Verifier()
    made.put_bundles({"a.test": [A.root_der]}, 3)
    return made


@pytest.fixture
def resolver(verifier: Verifier, clock: Clock) -> PeerResolver:
    return PeerResolver(verifier, {"spiffe://a.test/envoy"}, clock=clock)


def test_a_verified_peer_is_an_agent_or_an_allow_listed_envoy(resolver: PeerResolver) -> None:
    """Only an ID on the list may assert another principal; the rest speak for themselves."""
    agent = resolver.from_auth_context(context(AGENT.chain_pem), "ipv4:127.0.0.1:1")
    assert (agent.kind, agent.spiffe_id, agent.refusal) == (PEER_AGENT, "spiffe://a.test/agent/a", "")
    assert (agent.bundle_generation, agent.not_after_s) == (3, NOW_S + 3600)
    envoy = resolver.from_auth_context(context(ENVOY.chain_pem))
    assert (envoy.kind, envoy.spiffe_id, envoy.bundle_generation) == (PEER_ENVOY, "spiffe://a.test/envoy", 3)
    assert envoy.credential.startswith("x509-svid:")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "identity.no_certificate"),
        ({"transport_security_type": [b"local"]}, "identity.no_certificate"),
        ({"x509_pem_cert": [b""]}, "identity.no_certificate"),
        ({"x509_pem_cert": [b"junk"]}, "identity.malformed"),
        ({"x509_pem_cert": [b"-----BEGIN CERTIFICATE-----\nAAAA"]}, "identity.malformed"),
        ({"x509_pem_cert": [b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"]}, "identity.malformed"),
        ({"x509_pem_cert": [b"x" * 100_000]}, "identity.too_large"),
        (context(AGENT.chain_pem * 5), "identity.too_large"),
        (context(Authority("a.test").issue("spiffe://a.test/x").chain_pem), "identity.chain"),
    ],
)
def test_a_peer_that_fails_is_a_refused_peer_without_identity(
    resolver: PeerResolver, given: dict[str, list[bytes]], reason: str
) -> None:
    """No exception reaches the door, and nothing of a refused peer can be taken for an identity."""
    peer = resolver.from_auth_context(given)
    assert (peer.kind, peer.spiffe_id, peer.credential, peer.refusal) == (PEER_NONE, "", "", reason)
    assert resolver.counters()["refused"] == 1


def test_id_05_the_log_names_what_was_claimed_capped(resolver: PeerResolver, caplog: pytest.LogCaptureFixture) -> None:
    """ID-05: an operator sees which trust domain knocked; a long name cannot flood the log."""
    stranger = Authority("t" * 250)
    svid = stranger.issue(f"spiffe://{stranger.trust_domain}/" + "x" * 1000)
    with caplog.at_level(logging.WARNING):
        assert resolver.from_auth_context(context(svid.chain_pem)).refusal == "identity.trust_domain_unknown"
    assert "t" * 246 in caplog.text
    assert len(caplog.messages[0]) < 400


def test_an_answer_is_remembered_until_the_bundles_change(resolver: PeerResolver, verifier: Verifier) -> None:
    """Verification runs once per chain and bundle generation, for refusals too; a new generation asks again (ID-20)."""
    given = context(AGENT.chain_pem)
    first = resolver.from_auth_context(given)
    assert resolver.from_auth_context(given) is first
    assert resolver.counters() == {"verified": 1, "refused": 0, "cached": 1}
    verifier.put_bundles({}, 4)
    for _ in range(2):
        assert resolver.from_auth_context(given).refusal == "identity.trust_domain_unknown"
    assert resolver.counters() == {"verified": 1, "refused": 1, "cached": 2}
    verifier.put_bundles({"a.test": [A.root_der]}, 5)
    assert resolver.from_auth_context(given).bundle_generation == 5


def test_id_03_a_remembered_peer_ends_with_its_certificate(resolver: PeerResolver, clock: Clock) -> None:
    """ID-03: the second after notAfter refuses, remembered or not; a verdict of the clock alone is not remembered."""
    given = context(AGENT.chain_pem)
    clock.at_s = NOW_S - 3600
    assert resolver.from_auth_context(given).refusal == "identity.not_yet_valid"
    clock.at_s = NOW_S
    assert resolver.from_auth_context(given).refusal == ""
    clock.at_s = NOW_S + 3600
    assert resolver.from_auth_context(given).refusal == ""
    clock.at_s = NOW_S + 3601
    assert resolver.from_auth_context(given).refusal == "identity.expired"


def test_a_socket_is_the_agent_that_the_configuration_names(resolver: PeerResolver) -> None:
    """A Unix socket's peer needs no certificate and does not expire; an allow-listed ID makes it a PEP."""
    peer = resolver.for_socket("spiffe://a.test/agent/a", 1000)
    assert (peer.kind, peer.spiffe_id, peer.credential) == (PEER_AGENT, "spiffe://a.test/agent/a", "unix:1000")
    assert (peer.not_after_s, peer.bundle_generation, peer.refusal) == (CLOCK_END, 0, "")
    assert resolver.for_socket("spiffe://a.test/envoy").kind == PEER_ENVOY


def test_what_is_remembered_is_bounded(resolver: PeerResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory holds the peers used last; the one that fell out is verified again."""
    monkeypatch.setattr("sidecar.identity.peers.CACHE_ENTRIES_MAX", 2)
    several = [context(A.issue(f"spiffe://a.test/{n}", now_s=NOW_S).chain_pem) for n in range(3)]
    for given in several:
        resolver.from_auth_context(given)
    resolver.from_auth_context(several[2])
    assert resolver.counters()["cached"] == 1
    resolver.from_auth_context(several[0])
    assert resolver.counters() == {"verified": 4, "refused": 0, "cached": 1}


def test_pem_is_read_block_by_block() -> None:
    """RFC 7468: text between blocks is ignored, lines may end either way."""
    chain = ENVOY.chain_pem.replace(b"\n", b"\r\n")
    assert tuple(pem_to_ders(b"# leaf\r\n" + chain)) == ENVOY.chain_der
