"""A small signing authority for the demo, the tests and users without SPIRE: roots, intermediates, X.509-SVIDs.

Keys live in memory only. It issues what X509-SVID sections 2 to 4 ask of an issuer and nothing else.
"""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE_S = 10  # a peer's clock may be a little behind ours
ROOT_TTL_S = 10 * 365 * 86400
SVID_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class Svid:
    """An issued X.509-SVID: DER chain with the leaf first and without the root, and its key (PKCS#8, DER)."""

    spiffe_id: str
    chain_der: tuple[bytes, ...]
    key_der: bytes = field(repr=False)
    not_after_s: int

    @property
    def chain_pem(self) -> bytes:
        return b"".join(to_pem(der) for der in self.chain_der)

    @property
    def key_pem(self) -> bytes:
        return serialization.load_der_private_key(self.key_der, None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


class Authority:
    """Signs for one trust domain. `Authority(td)` is a root; `intermediate()` gives one below it."""

    def __init__(self, trust_domain: str, *, now_s: int | None = None, ttl_s: int = ROOT_TTL_S) -> None:
        self.trust_domain = trust_domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.chain_der: tuple[bytes, ...] = ()
        self.certificate = _sign_authority(self, None, now_s, ttl_s)

    @property
    def root_der(self) -> bytes:
        """This authority's own certificate; of a root, what belongs into the bundle."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def intermediate(self, *, now_s: int | None = None, ttl_s: int = ROOT_TTL_S) -> "Authority":
        """An authority whose SVIDs carry its certificate, signed by this one."""
        made = Authority.__new__(Authority)
        made.trust_domain = self.trust_domain
        made.key = ec.generate_private_key(ec.SECP256R1())
        made.certificate = _sign_authority(made, self, now_s, ttl_s)
        made.chain_der = (made.root_der, *self.chain_der)
        return made

    def issue(
        self, spiffe_id: str, *, dns: Sequence[str] = (), now_s: int | None = None, ttl_s: int = SVID_TTL_S
    ) -> Svid:
        """A new key and its SVID, valid from a little before `now_s` (Unix time) until `ttl_s` seconds after it."""
        key = ec.generate_private_key(ec.SECP256R1())
        start, end = _window(now_s, ttl_s)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id), *(x509.DNSName(n) for n in dns)]
        builder = _builder(x509.Name([]), self.certificate.subject, key.public_key(), start, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs=False), critical=True)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        # The subject is empty, so the SAN alone names the workload and must be critical (RFC 5280 section 4.1.2.6).
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        leaf = builder.sign(self.key, hashes.SHA256())
        key_der = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = (leaf.public_bytes(serialization.Encoding.DER), *self.chain_der)
        return Svid(spiffe_id, chain, key_der, int(end.timestamp()))


def to_pem(der: bytes) -> bytes:
    """One certificate as PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def _sign_authority(made: Authority, parent: Authority | None, now_s: int | None, ttl_s: int) -> x509.Certificate:
    signer = parent or made
    start, end = _window(now_s, ttl_s)
    kind = "intermediate" if parent else "root"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{kind} of {made.trust_domain}"[:64])])
    issuer = parent.certificate.subject if parent else subject
    builder = _builder(subject, issuer, made.key.public_key(), start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs=True), critical=True)
    identifier = x509.UniformResourceIdentifier(f"spiffe://{made.trust_domain}")
    builder = builder.add_extension(x509.SubjectAlternativeName([identifier]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(made.key.public_key()), critical=False)
    if parent:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False
        )
    return builder.sign(signer.key, hashes.SHA256())


def _window(now_s: int | None, ttl_s: int) -> tuple[datetime.datetime, datetime.datetime]:
    at = int(time.time()) if now_s is None else now_s
    return (
        datetime.datetime.fromtimestamp(at - BACKDATE_S, datetime.UTC),
        datetime.datetime.fromtimestamp(at + ttl_s, datetime.UTC),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
