"""X.509-SVID verification: the MUST list of SPIFFE X509-SVID, per trust domain; each leaf breaks one rule."""

import dataclasses

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.verify import Verifier, VerifyError
from sidecar.demo.ca import Authority
from tests import fix_identity as fix
from tests.fix_identity import CLIENT_AUTH, HOUR_S, NOW_S, SAN, SERVER_AUTH, Forger, extension, uris

A = Forger.root("a.test")
B = Forger.root("b.test")
RSA_CA = Forger.root("rsa.test", rsa.generate_private_key(65537, 2048))
ED_CA = Forger.root("ed.test", ed25519.Ed25519PrivateKey.generate())
BUNDLES = {root.td: [root.certificate] for root in (A, B, RSA_CA, ED_CA)}


@pytest.fixture(scope="module")
def strict() -> Verifier:
    made = Verifier()
    made.put_bundles(BUNDLES, 7)
    return made


@pytest.fixture(scope="module")
def lenient() -> Verifier:
    made = Verifier(strict=False)
    made.put_bundles(BUNDLES, 7)
    return made


def reason(verifier: Verifier, leaf: bytes, *chain: bytes, now_s: int = NOW_S, server_role: bool = True) -> str:
    """Reason code of the refusal, or "" when the peer is verified."""
    try:
        verifier.verify(leaf, list(chain), now_s=now_s, server_role=server_role)
    except VerifyError as refused:
        return refused.reason
    return ""


def test_a_good_leaf_gives_its_id_serial_generation_and_the_earliest_end(strict: Verifier) -> None:
    """A VerifiedPeer lasts as long as the certificate of its chain that ends first, the root included."""
    brief = A.signer(not_after_s=NOW_S + 60)
    peer = strict.verify(brief.leaf("/agent/a", serial=0xABCDEF), list(brief.chain), now_s=NOW_S)
    assert (peer.spiffe_id, peer.credential) == ("spiffe://a.test/agent/a", "x509-svid:abcdef")
    assert (peer.not_after_s, peer.bundle_generation, peer.kind, peer.refusal) == (NOW_S + 60, 7, 1, "")


def test_the_demo_authority_issues_what_the_verifier_accepts(strict: Verifier) -> None:
    """Leaves of sidecar/demo/ca.py, below a root and below an intermediate, pass the strict rules."""
    root = Authority("a.test")
    verifier = Verifier()
    verifier.put_bundles({"a.test": [root.root_der]}, 1)
    for authority in (root, root.intermediate(), root.intermediate().intermediate()):
        svid = authority.issue("spiffe://a.test/agent/a", dns=["agent-a"])
        leaf, *chain = svid.chain_der
        assert verifier.verify(leaf, chain).not_after_s == svid.not_after_s
    assert reason(strict, *root.issue("spiffe://a.test/agent/a").chain_der) == "identity.chain"


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("after_s", "expected"),
    [(-HOUR_S - 1, "identity.not_yet_valid"), (-HOUR_S, ""), (HOUR_S, ""), (HOUR_S + 1, "identity.expired")],
)
def test_id_02_the_leaf_is_valid_from_not_before_to_not_after_inclusive(
    strict: Verifier, after_s: int, expected: str
) -> None:
    """ID-02: notBefore <= now <= notAfter, to the second (RFC 5280 section 4.1.2.5)."""
    assert reason(strict, A.leaf(), now_s=NOW_S + after_s) == expected


@pytest.mark.parametrize("window", [{"not_after_s": NOW_S - 1}, {"not_before_s": NOW_S + 1}])
def test_id_14_every_certificate_of_the_chain_must_be_valid_now(strict: Verifier, window: dict[str, int]) -> None:
    """ID-14, MUST 11: an intermediate out of its time ends the chain; so does a root."""
    expected = "identity.expired" if "not_after_s" in window else "identity.not_yet_valid"
    signer = A.signer(**window)
    assert reason(strict, signer.leaf(), *signer.chain) == expected
    root = Forger.root("old.test", **window)
    verifier = Verifier()
    verifier.put_bundles({"old.test": [root.certificate]}, 1)
    assert reason(verifier, root.leaf()) == expected


# ---------------------------------------------------------------- trust domains


def test_id_04_a_root_vouches_for_its_own_trust_domain_only(strict: Verifier) -> None:
    """ID-04: a federated authority cannot issue an ID of ours, directly or through an intermediate."""
    forged = uris("spiffe://a.test/admin")
    assert reason(strict, B.leaf(san=forged)) == "identity.chain"
    signer = B.signer()
    assert reason(strict, signer.leaf(san=forged), *signer.chain) == "identity.chain"


def test_id_05_a_trust_domain_without_a_bundle_is_untrusted(strict: Verifier) -> None:
    """ID-05, MUST 5: an absent bundle and an empty one are the same; the claimed ID is there for the log."""
    stranger = Forger.root("c.test")
    with pytest.raises(VerifyError) as refused:
        strict.verify(stranger.leaf(), [], now_s=NOW_S)
    assert (refused.value.reason, refused.value.claimed) == (
        "identity.trust_domain_unknown",
        "spiffe://c.test/agent/a",
    )
    empty = Verifier()
    assert reason(empty, A.leaf()) == "identity.trust_domain_unknown"
    empty.put_bundles({"a.test": []}, 1)
    assert reason(empty, A.leaf()) == "identity.trust_domain_unknown"


def test_a_name_that_begins_like_a_known_domain_is_another_domain(strict: Verifier) -> None:
    """Trust domains compare whole: neither a prefix nor an extension of a name is that name."""
    for near in ("a.tes", "a.testx", "a.test.b", "a"):
        assert reason(strict, A.leaf(san=uris(f"spiffe://{near}/x"))) == "identity.trust_domain_unknown"


def test_a_leaf_in_the_bundle_is_not_its_own_authority() -> None:
    """A leaf that stands in a bundle by mistake authenticates nobody."""
    leaf = A.leaf()
    verifier = Verifier()
    verifier.put_bundles({"a.test": [leaf]}, 1)
    assert reason(verifier, leaf) == "identity.chain"


def test_an_intermediate_in_the_bundle_is_an_anchor() -> None:
    """A bundle may hold an authority that is not self-signed (SPIFFE Trust Domain and Bundle section 4.2)."""
    signer = A.signer()
    verifier = Verifier()
    verifier.put_bundles({"a.test": [signer.certificate]}, 1)
    assert reason(verifier, signer.leaf()) == ""
    assert reason(verifier, A.leaf()) == "identity.chain"


def test_a_renewed_root_verifies_beside_its_expired_predecessor() -> None:
    """Same subject and key, two validities in one bundle: the valid one is found in either order."""
    key = fix.new_key()
    old = Forger.root("a.test", key, not_after_s=NOW_S - 1)
    new = Forger.root("a.test", key)
    for bundle in ([old.certificate, new.certificate], [new.certificate, old.certificate]):
        verifier = Verifier()
        verifier.put_bundles({"a.test": bundle}, 1)
        assert reason(verifier, new.leaf()) == ""


def test_a_bad_root_leaves_the_bundles_in_force() -> None:
    """put_bundles is all or nothing."""
    verifier = Verifier()
    verifier.put_bundles({"a.test": [A.certificate]}, 1)
    for junk in (b"", b"junk", A.certificate + b"\0", A.certificate[:-1]):
        with pytest.raises(VerifyError, match=r"identity\.bundle"):
            verifier.put_bundles({"b.test": [B.certificate], "a.test": [junk]}, 2)
    assert (verifier.generation, verifier.trust_domains) == (1, ("a.test",))
    assert reason(verifier, A.leaf()) == ""


# ---------------------------------------------------------------- the ID


@pytest.mark.parametrize(
    "san",
    [
        uris("spiffe://a.test/x", "spiffe://a.test/y"),
        uris("spiffe://a.test/x", "https://a.test/x"),
        uris("https://a.test/x", "spiffe://a.test/x"),
        uris("spiffe://a.test/x", "spiffe://a.test/x"),
        b"",
        fix.dns("a.test"),
        fix.dns("spiffe://a.test/x"),
        fix.seq(),
    ],
    ids=["two", "spiffe+https", "https+spiffe", "duplicate", "no SAN", "DNS", "ID in DNS", "empty SAN"],
)
def test_id_06_id_07_exactly_one_uri_san(strict: Verifier, lenient: Verifier, san: bytes) -> None:
    """ID-06, ID-07: two URIs or none refuse; an ID in a DNS name or in the CN is no ID."""
    for verifier in (strict, lenient):
        assert reason(verifier, A.leaf(san=san, subject="spiffe://a.test/x")) == "identity.uri_san"


def test_other_san_types_are_ignored(strict: Verifier) -> None:
    """MUST 6: DNS, mail and address names stand beside the one URI without meaning for the identity."""
    others = fix.der(0x82, b"host") + fix.der(0x81, b"m@x") + fix.der(0x87, b"\x7f\0\0\1")
    san = fix.seq(fix.der(0x86, b"spiffe://a.test/x"), others)
    assert reason(strict, A.leaf(san=san)) == ""


VALID_IN_DOMAIN = set(b"abcdefghijklmnopqrstuvwxyz0123456789.-_")
VALID_IN_PATH = VALID_IN_DOMAIN | set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.mark.parametrize("byte", range(256))
def test_id_10_every_byte_in_trust_domain_and_path(strict: Verifier, byte: int) -> None:
    """ID-10: of 256 bytes, those that the syntax allows make an ID in each place; the others, `\\n` too, make none."""
    domain = uris(b"spiffe://a.t" + bytes([byte]) + b"st/x")
    if byte in VALID_IN_DOMAIN:
        assert reason(strict, A.leaf(san=domain)) == ("" if byte == ord("e") else "identity.trust_domain_unknown")
    elif byte == ord("/"):
        assert reason(strict, A.leaf(san=domain)) == "identity.trust_domain_unknown"
    else:
        assert reason(strict, A.leaf(san=domain)) == "identity.spiffe_id"
    inside = reason(strict, A.leaf(san=uris(b"spiffe://a.test/x" + bytes([byte]) + b"y")))
    assert inside == ("" if byte in VALID_IN_PATH or byte == ord("/") else "identity.spiffe_id")
    last = reason(strict, A.leaf(san=uris(b"spiffe://a.test/x" + bytes([byte]))))
    assert last == ("" if byte in VALID_IN_PATH else "identity.spiffe_id")


@pytest.mark.parametrize(
    ("spiffe_id", "good"),
    [
        ("spiffe://a.test", False),
        ("spiffe://a.test/", False),
        ("spiffe://a.test//x", False),
        ("spiffe://a.test/./x", False),
        ("spiffe://a.test/../x", False),
        ("spiffe://a.test/x/..", False),
        ("spiffe://a.test/x/", False),
        ("spiffe://a.test/%2f", False),
        ("spiffe://u@a.test/x", False),
        ("spiffe://a.test:80/x", False),
        ("spiffe://a.test/x?q", False),
        ("spiffe://a.test/x#f", False),
        ("spiffe://A.test/x", False),
        ("SPIFFE://a.test/x", False),
        ("spiffe:///x", False),
        ("spiffe:/a.test/x", False),
        ("https://a.test/x", False),
        ("spiffe://a.test/ü", False),
        ("", False),
        ("spiffe://a.test/...", True),
        ("spiffe://a.test/.x", True),
        ("spiffe://a.test/X-_.9", True),
        ("spiffe://a.test/" + "x" * (2048 - 16), True),
        ("spiffe://a.test/" + "x" * (2049 - 16), False),
    ],
)
def test_id_10_the_table_of_ids(strict: Verifier, spiffe_id: str, good: bool) -> None:
    """ID-10: only what SPIFFE-ID section 2 allows is an ID; nothing is normalised; a workload's ID has a path."""
    assert reason(strict, A.leaf(san=uris(spiffe_id))) == ("" if good else "identity.spiffe_id")


@pytest.mark.parametrize(("length", "expected"), [(255, ""), (256, "identity.spiffe_id")])
def test_id_10_a_trust_domain_has_at_most_255_bytes(length: int, expected: str) -> None:
    """ID-10: 255 bytes of name are good, 256 are not."""
    root = Forger.root("t" * length)
    verifier = Verifier()
    verifier.put_bundles({root.td: [root.certificate]}, 1)
    assert reason(verifier, root.leaf()) == expected


# ---------------------------------------------------------------- what the leaf may do


@pytest.mark.parametrize(
    ("bend", "strict_reason", "lenient_reason"),
    [
        ({"ca": True}, "identity.ca_leaf", "identity.ca_leaf"),
        ({"usage": fix.DIGITAL_SIGNATURE | fix.KEY_CERT_SIGN}, "identity.key_usage", "identity.key_usage"),
        ({"usage": fix.DIGITAL_SIGNATURE | fix.CRL_SIGN}, "identity.key_usage", "identity.key_usage"),
        ({"usage": fix.KEY_AGREEMENT}, "identity.key_usage", "identity.key_usage"),
        ({"usage": None}, "identity.key_usage", "identity.key_usage"),
        ({"usage_critical": False}, "identity.key_usage", ""),
        ({"ca": None}, "identity.basic_constraints", ""),
        ({"eku": (SERVER_AUTH,)}, "identity.eku", "identity.eku"),
        ({"eku": (CLIENT_AUTH,)}, "identity.eku", ""),
        ({"eku": ("2.5.29.37.0",)}, "identity.eku", "identity.eku"),
        ({"eku": None}, "", ""),
        ({"san_critical": False}, "identity.subject", "identity.subject"),
        ({"san_critical": False, "subject": "cn"}, "", ""),
        ({"version": 0, "extra": ()}, "identity.malformed", "identity.malformed"),
        ({"extra": (extension("1.2.3.4", b"\5\0", True),)}, "identity.chain", "identity.chain"),
        ({"extra": (extension("1.2.3.4", b"\5\0"),)}, "", ""),
        ({"extra": (extension("1.2.3.4", b"\5\0"),) * 2}, "identity.malformed", "identity.malformed"),
    ],
    ids=str,
)
def test_id_08_id_09_id_11_what_the_leaf_may_be_used_for(
    strict: Verifier, lenient: Verifier, bend: dict, strict_reason: str, lenient_reason: str
) -> None:
    """ID-08, ID-09, ID-11, MUST 8 to 10: each leaf breaks one rule; the issuer's MUSTs are enforced in strict only."""
    leaf = A.leaf(**bend)
    assert (reason(strict, leaf), reason(lenient, leaf)) == (strict_reason, lenient_reason)


def test_id_11_the_lenient_rule_follows_our_role(lenient: Verifier) -> None:
    """ID-11: a TLS server that we call needs serverAuth, a client of ours clientAuth."""
    leaf = A.leaf(eku=(SERVER_AUTH,))
    assert reason(lenient, leaf, server_role=False) == ""
    assert reason(lenient, A.leaf(eku=(CLIENT_AUTH,)), server_role=False) == "identity.eku"


def test_a_second_san_extension_is_refused(strict: Verifier) -> None:
    """An extension stands once (RFC 5280 section 4.2): a parser that reads the last cannot be played against ours."""
    leaf = A.leaf(extra=(extension(SAN, uris("spiffe://a.test/admin")),))
    assert reason(strict, leaf) == "identity.malformed"


# ---------------------------------------------------------------- keys and signatures

P192 = fix.seq(
    fix.seq(fix.oid("1.2.840.10045.2.1"), fix.oid("1.2.840.10045.3.1.1")),
    fix.der(
        0x03,
        b"\0\4"
        + bytes.fromhex(
            "188da80eb03090f67cbf20eb43a18800f4ff0afd82ff101207192b95ffc8da78631011ed6b24cdd573f977a11e794811"
        ),
    ),
)
DSA = fix.seq(
    fix.seq(fix.oid("1.2.840.10040.4.1"), fix.seq(fix.integer(2**1023 + 1), fix.integer(2**159 + 1), fix.integer(5))),
    fix.der(0x03, b"\0" + fix.integer(7)),
)
ML_DSA = fix.seq(fix.seq(fix.oid("2.16.840.1.101.3.4.3.18")), fix.der(0x03, b"\0" + b"k" * 1952))
MODULUS = RSA_CA.key.public_key().public_numbers().n
PSS = fix.seq(
    fix.seq(fix.oid("1.2.840.113549.1.1.10")), fix.der(0x03, b"\0", fix.seq(fix.integer(MODULUS), fix.integer(65537)))
)


@pytest.mark.parametrize(
    ("spki", "good"),
    [
        (fix.spki(ec.generate_private_key(ec.SECP256R1())), True),
        (fix.spki(ec.generate_private_key(ec.SECP384R1())), True),
        (fix.spki(ed25519.Ed25519PrivateKey.generate()), True),
        (fix.rsa_spki(MODULUS, 65537), True),
        (fix.rsa_spki(MODULUS << 2048 | 1, 65537), True),
        (fix.spki(ec.generate_private_key(ec.SECP521R1())), False),
        (P192, False),
        (DSA, False),
        (ML_DSA, False),
        (PSS, False),
        (fix.rsa_spki(MODULUS >> 1024 | 1, 65537), False),
        (fix.rsa_spki(MODULUS >> 1 | 1, 65537), False),
        (fix.rsa_spki(2**8192 + 1, 65537), False),
        (fix.rsa_spki(MODULUS, 1), False),
        (fix.rsa_spki(MODULUS, 3), False),
        (fix.rsa_spki(MODULUS, 65536), False),
        (fix.rsa_spki(MODULUS, 2**64 + 1), False),
    ],
    ids=[
        *("P-256", "P-384", "Ed25519", "RSA-2048", "RSA-4096", "P-521", "P-192", "DSA", "ML-DSA", "RSA-PSS key"),
        *("RSA-1024", "RSA-2047", "RSA-8193", "e=1", "e=3", "e even", "e of 65 bits"),
    ],
)
def test_id_12_id_13_the_list_of_keys(strict: Verifier, spki: bytes, good: bool) -> None:
    """ID-12, ID-13: P-256, P-384, Ed25519, RSA of 2048 to 8192 bits with a sane e; no other key."""
    assert reason(strict, A.leaf(spki=spki)) == ("" if good else "identity.key")


def test_id_12_a_curve_spelled_out_is_refused(strict: Verifier) -> None:
    """ID-12: explicit curve parameters are refused even when they are those of P-256 (CVE-2020-0601)."""
    point = (
        fix.new_key()
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = bytes.fromhex("5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b")
    g = bytes.fromhex(
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    curve = fix.seq(
        fix.integer(1),
        fix.seq(fix.oid("1.2.840.10045.1.1"), fix.integer(p)),
        fix.seq(fix.der(0x04, (p - 3).to_bytes(32, "big")), fix.der(0x04, b)),
        fix.der(0x04, g),
        fix.integer(order),
        fix.integer(1),
    )
    spki = fix.seq(fix.seq(fix.oid("1.2.840.10045.2.1"), curve), fix.der(0x03, b"\0" + point))
    assert reason(strict, A.leaf(spki=spki)) == "identity.key"


@pytest.mark.parametrize(
    ("authority", "scheme", "expected"),
    [
        (A, fix.SHA256_ECDSA, ""),
        (A, fix.SHA384_ECDSA, ""),
        (A, fix.SHA1_ECDSA, "identity.signature"),
        (A, fix.SHA224_ECDSA, "identity.signature"),
        (RSA_CA, fix.SHA256_RSA, ""),
        (RSA_CA, fix.SHA1_RSA, "identity.signature"),
        (RSA_CA, fix.MD5_RSA, "identity.signature"),
        (ED_CA, fix.ED25519, ""),
    ],
)
def test_id_12_the_list_of_signatures(strict: Verifier, authority: Forger, scheme: str, expected: str) -> None:
    """ID-12, MUST 14: SHA-256 or better; the SHA-1 and MD5 signatures here are genuine."""
    assert reason(strict, authority.leaf(signature=scheme)) == expected


def test_id_12_signing_certificates_obey_the_same_lists(strict: Verifier) -> None:
    """ID-12: a weak key or signature in an intermediate refuses the chain."""
    weak = A.signer(key=rsa.generate_private_key(65537, 1024))
    assert reason(strict, weak.leaf(), *weak.chain) == "identity.key"
    for authority, scheme in ((RSA_CA, fix.SHA1_RSA), (A, fix.SHA224_ECDSA)):
        signer = authority.signer(signature=scheme)
        assert reason(strict, signer.leaf(), *signer.chain) == "identity.signature"
    other = A.signer(key=ec.generate_private_key(ec.SECP521R1()))
    assert reason(strict, other.leaf(), *other.chain) == "identity.key"


def test_a_signature_that_does_not_verify_is_refused(strict: Verifier) -> None:
    """A leaf with the right issuer's name and another key's signature has no path."""
    impostor = dataclasses.replace(A, key=fix.new_key())
    assert reason(strict, impostor.leaf()) == "identity.chain"


# ---------------------------------------------------------------- signing certificates


@pytest.mark.parametrize(
    ("bend", "expected"),
    [
        ({}, ""),
        ({"ca": False}, "identity.chain"),
        ({"usage": fix.DIGITAL_SIGNATURE}, "identity.chain"),
        ({"usage": None}, "identity.signing_cert"),
        ({"san": uris("spiffe://a.test/intermediate")}, "identity.signing_cert"),
        ({"san": uris("spiffe://b.test")}, "identity.signing_cert"),
        ({"san": uris("https://corp.example/ca")}, ""),
        ({"extra": (extension("1.2.3.4", b"\5\0", True),)}, "identity.chain"),
        ({"extra": (extension(fix.EKU, fix.seq(fix.oid("1.3.6.1.5.5.7.3.3"))),)}, "identity.eku"),
        ({"extra": (extension(fix.EKU, fix.seq(fix.oid("2.5.29.37.0"))),)}, ""),
    ],
    ids=str,
)
def test_id_14_what_an_intermediate_must_be(strict: Verifier, bend: dict, expected: str) -> None:
    """ID-14, MUST 12: cA, keyCertSign, no path in its SPIFFE ID, its own trust domain, no unknown critical one."""
    signer = A.signer(**bend)
    assert reason(strict, signer.leaf(), *signer.chain) == expected


def test_id_14_path_length_is_honoured(strict: Verifier) -> None:
    """ID-14: pathLen 0 allows leaves below an intermediate and no further intermediate."""
    last = A.signer(path_length=0)
    assert reason(strict, last.leaf(), *last.chain) == ""
    beyond = last.signer()
    assert reason(strict, beyond.leaf(), *beyond.chain) == "identity.chain"


def test_id_14_a_leaf_signs_nothing(strict: Verifier) -> None:
    """ID-14, MUST 12: a workload cannot issue an ID below its own SVID."""
    key = fix.new_key()
    workload = Forger("a.test", key, "workload", chain=(A.leaf(key=key, subject="workload"),))
    assert reason(strict, workload.leaf("/admin"), *workload.chain) == "identity.chain"


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        (fix.uri_constraints(permitted=["a.test"]), ""),
        (fix.uri_constraints(permitted=["b.test"]), "identity.name_constraints"),
        (fix.uri_constraints(excluded=["a.test"]), "identity.name_constraints"),
        (fix.uri_constraints(excluded=["b.test"]), ""),
    ],
    ids=["permitted", "not permitted", "excluded", "not excluded"],
)
def test_id_15_uri_name_constraints_are_honoured(strict: Verifier, constraints: bytes, expected: str) -> None:
    """ID-15: a signing certificate limited to a host issues for that trust domain only."""
    signer = A.signer(extra=(extension(fix.NAME_CONSTRAINTS, constraints, True),), san=fix.dns("x"))
    assert reason(strict, signer.leaf(), *signer.chain) == expected


# ---------------------------------------------------------------- size


def test_id_16_more_than_four_certificates_are_refused_unparsed(strict: Verifier) -> None:
    """ID-16: the fifth certificate ends it; the bytes, here no certificates at all, are not looked at."""
    deep = A.signer().signer().signer()
    assert reason(strict, deep.leaf(), *deep.chain) == ""
    assert reason(strict, b"x", *[b"x"] * 4) == "identity.too_large"
    assert reason(strict, b"x", *[b"x"] * 49) == "identity.too_large"
    assert reason(strict, b"x", *[b"x"] * 3) == "identity.malformed"


def test_id_16_more_than_32_kib_are_refused_unparsed(strict: Verifier) -> None:
    """ID-16: 32 KiB for all certificates together."""
    padding = extension("1.2.3.4", fix.der(0x04, b"p" * 32000))
    large = A.leaf(extra=(padding,))
    assert len(large) < 32768
    assert reason(strict, large) == ""
    assert reason(strict, large, B.certificate, B.certificate, B.certificate) == "identity.too_large"
    assert reason(strict, b"x" * 32768) == "identity.malformed"
    assert reason(strict, b"x" * 32769) == "identity.too_large"
    assert reason(strict, b"x" * 1_000_000) == "identity.too_large"


def test_id_16_many_names_and_extensions_are_refused(strict: Verifier) -> None:
    """ID-16: 128 names and 64 extensions per certificate bound the work of looking at them."""
    own = fix.der(0x86, b"spiffe://a.test/x")
    assert reason(strict, A.leaf(san=fix.seq(own, fix.der(0x82, b"h") * 127))) == ""
    assert reason(strict, A.leaf(san=fix.seq(own, fix.der(0x82, b"h") * 128))) == "identity.uri_san"
    many = [extension(f"1.2.3.{n}", b"\5\0") for n in range(61)]
    assert reason(strict, A.leaf(extra=many[:60])) == ""
    assert reason(strict, A.leaf(extra=many)) == "identity.malformed"


GOOD = A.leaf()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 7), st.booleans())
def test_id_17_a_changed_bit_or_a_cut_never_verifies(at: int, bit: int, cut: bool) -> None:
    """ID-17: a flipped bit or a missing tail refuses with a known code and never crashes."""
    verifier = Verifier()
    verifier.put_bundles({"a.test": [A.certificate]}, 1)
    broken = GOOD[:at] if cut else GOOD[:at] + bytes([GOOD[at] ^ 1 << bit]) + GOOD[at + 1 :]
    assert reason(verifier, broken).startswith("identity.")


def test_id_17_trailing_bytes_are_refused(strict: Verifier) -> None:
    """ID-17: one certificate is one certificate; bytes behind it make it none."""
    assert reason(strict, GOOD + b"\0") == "identity.malformed"
    assert reason(strict, b"") == "identity.malformed"
    assert reason(strict, GOOD, b"junk") == "identity.malformed"
