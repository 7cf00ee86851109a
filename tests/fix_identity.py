"""Certificates for tests: a DER builder that can write what no proper issuer would, and ready-made trust domains.

`forge` writes every field of a certificate as told and signs the result with the issuer's real key, so that a refusal
is never owed to a bad signature. `Forger` is a trust domain's root with `leaf` and `signer` on top of it.
"""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

NOW_S = int(time.time())
HOUR_S = 3600

SAN, BASIC, USAGE, EKU, NAME_CONSTRAINTS = "2.5.29.17", "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.30"
CLIENT_AUTH, SERVER_AUTH = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"
SHA256_ECDSA, SHA384_ECDSA, SHA1_ECDSA = "1.2.840.10045.4.3.2", "1.2.840.10045.4.3.3", "1.2.840.10045.4.1"
SHA224_ECDSA = "1.2.840.10045.4.3.1"
SHA256_RSA, SHA1_RSA, MD5_RSA = "1.2.840.113549.1.1.11", "1.2.840.113549.1.1.5", "1.2.840.113549.1.1.4"
ED25519 = "1.3.101.112"
HASHES: dict[str, hashes.HashAlgorithm] = {
    SHA256_ECDSA: hashes.SHA256(),
    SHA384_ECDSA: hashes.SHA384(),
    SHA1_ECDSA: hashes.SHA1(),
    SHA224_ECDSA: hashes.SHA224(),
    SHA256_RSA: hashes.SHA256(),
    SHA1_RSA: hashes.SHA1(),
    MD5_RSA: hashes.MD5(),
}
# Bits of KeyUsage (RFC 5280 section 4.2.1.3), the first in the most significant place.
DIGITAL_SIGNATURE, KEY_AGREEMENT, KEY_CERT_SIGN, CRL_SIGN = 0x80, 0x08, 0x04, 0x02


# ---------------------------------------------------------------- DER


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def seq(*parts: bytes) -> bytes:
    return der(0x30, *parts)


def oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    out = bytearray()
    for number in (first * 40 + second, *rest):
        group = [number & 0x7F]
        while number := number >> 7:
            group.append(0x80 | number & 0x7F)
        out += bytes(reversed(group))
    return der(0x06, bytes(out))


def integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def moment(at_s: int) -> bytes:
    return der(0x18, time.strftime("%Y%m%d%H%M%SZ", time.gmtime(at_s)).encode())


def name(common_name: str) -> bytes:
    if not common_name:
        return seq()
    return seq(der(0x31, seq(oid("2.5.4.3"), der(0x0C, common_name.encode()))))


def algorithm(dotted: str) -> bytes:
    return seq(oid(dotted), *([der(0x05)] if ".113549." in dotted else []))


def extension(dotted: str, value: bytes, critical: bool = False) -> bytes:
    return seq(oid(dotted), *([der(0x01, b"\xff")] if critical else []), der(0x04, value))


def uris(*values: str | bytes) -> bytes:
    """The value of a SAN with these URIs, byte for byte."""
    return seq(*(der(0x86, v if isinstance(v, bytes) else v.encode()) for v in values))


def dns(*values: str) -> bytes:
    return seq(*(der(0x82, v.encode()) for v in values))


def key_usage(bits: int) -> bytes:
    unused = (bits & -bits).bit_length() - 1 if bits else 0
    return der(0x03, bytes([unused, bits]))


def basic_constraints(ca: bool, path_length: int | None = None) -> bytes:
    return seq(*([der(0x01, b"\xff")] if ca else []), *([integer(path_length)] if path_length is not None else []))


def uri_constraints(permitted: Sequence[str] = (), excluded: Sequence[str] = ()) -> bytes:
    def trees(tag: int, hosts: Sequence[str]) -> list[bytes]:
        return [der(tag, *(seq(der(0x86, h.encode())) for h in hosts))] if hosts else []

    return seq(*trees(0xA0, permitted), *trees(0xA1, excluded))


def spki(key: Any) -> bytes:
    public = key.public_key() if hasattr(key, "public_key") else key
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_spki(modulus: int, exponent: int) -> bytes:
    return seq(algorithm("1.2.840.113549.1.1.1"), der(0x03, b"\0", seq(integer(modulus), integer(exponent))))


def pkcs8(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# ---------------------------------------------------------------- certificates


@dataclass(frozen=True)
class Fields:
    """What stands in a certificate. The defaults are those of a good leaf without its SAN."""

    spki: bytes
    extensions: Sequence[bytes]
    subject: str = ""
    issuer: str = "root"
    version: int = 2
    serial: int = 0x1234
    not_before_s: int = NOW_S - HOUR_S
    not_after_s: int = NOW_S + HOUR_S
    signature: str = SHA256_ECDSA


def forge(fields: Fields, signer: Any) -> bytes:
    """The certificate of `fields`, signed by the private key `signer` as fields.signature says."""
    body = seq(
        *([der(0xA0, integer(fields.version))] if fields.version else []),
        integer(fields.serial),
        algorithm(fields.signature),
        name(fields.issuer),
        seq(moment(fields.not_before_s), moment(fields.not_after_s)),
        name(fields.subject),
        fields.spki,
        *([der(0xA3, seq(*fields.extensions))] if fields.extensions else []),
    )
    return seq(body, algorithm(fields.signature), der(0x03, b"\0", sign(signer, body, fields.signature)))


def sign(key: Any, body: bytes, scheme: str) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(body)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(body, padding.PKCS1v15(), HASHES[scheme])
    return key.sign(body, ec.ECDSA(HASHES[scheme]))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Forger:
    """A signing authority of trust domain `td`. `chain` is what its leaves carry along (empty for a root)."""

    td: str
    key: Any = field(default_factory=new_key, repr=False)
    subject: str = "root"
    certificate: bytes = b""
    chain: tuple[bytes, ...] = ()

    @classmethod
    def root(cls, td: str, key: Any = None, **changes: Any) -> "Forger":
        made = cls(td, key or new_key(), f"forged root {secrets.token_hex(4)}")
        fields = made._signer_fields(made, **{"signature": _scheme(made.key), **changes})
        return dataclasses.replace(made, certificate=forge(fields, made.key))

    def signer(self, *, td: str | None = None, key: Any = None, **changes: Any) -> "Forger":
        """An intermediate below this authority. `changes` are Fields, or the parts that `_signer_fields` names."""
        made = Forger(td or self.td, key or new_key(), f"signer {secrets.token_hex(4)}")
        fields = made._signer_fields(self, **{"signature": _scheme(self.key), **changes})
        certificate = forge(fields, self.key)
        return dataclasses.replace(made, certificate=certificate, chain=(certificate, *self.chain))

    def _signer_fields(
        self,
        parent: "Forger",
        *,
        ca: bool = True,
        path_length: int | None = None,
        usage: int | None = KEY_CERT_SIGN | CRL_SIGN,
        san: bytes | None = None,
        extra: Sequence[bytes] = (),
        **changes: Any,
    ) -> Fields:
        extensions = [
            extension(BASIC, basic_constraints(ca, path_length), True),
            *([extension(USAGE, key_usage(usage), True)] if usage is not None else []),
            extension(SAN, san or uris(f"spiffe://{self.td}")),
            *extra,
        ]
        base = Fields(
            spki(self.key), extensions, subject=self.subject, issuer=parent.subject, not_after_s=NOW_S + 24 * HOUR_S
        )
        return dataclasses.replace(base, **changes)

    def leaf(
        self,
        path: str = "/agent/a",
        *,
        key: Any = None,
        san: bytes | None = None,
        san_critical: bool = True,
        ca: bool | None = False,
        usage: int | None = DIGITAL_SIGNATURE,
        usage_critical: bool = True,
        eku: Sequence[str] | None = (SERVER_AUTH, CLIENT_AUTH),
        extra: Sequence[bytes] = (),
        **changes: Any,
    ) -> bytes:
        """A leaf for spiffe://<td><path>; each argument bends one thing. `changes` are Fields."""
        extensions = [
            *([extension(BASIC, basic_constraints(ca), True)] if ca is not None else []),
            *([extension(USAGE, key_usage(usage), usage_critical)] if usage is not None else []),
            *([extension(EKU, seq(*(oid(e) for e in eku)))] if eku is not None else []),
            *([extension(SAN, san or uris(f"spiffe://{self.td}{path}"), san_critical)] if san != b"" else []),
            *extra,
        ]
        base = Fields(spki(key or new_key()), extensions, issuer=self.subject, signature=_scheme(self.key))
        return forge(dataclasses.replace(base, **changes), self.key)


def _scheme(key: Any) -> str:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return ED25519
    return SHA256_RSA if isinstance(key, rsa.RSAPrivateKey) else SHA256_ECDSA


# ---------------------------------------------------------------- time and waiting


class Clock:
    """A wall clock that tests move; Unix seconds."""

    def __init__(self, at_s: float = NOW_S) -> None:
        self.at_s = at_s

    def __call__(self) -> float:
        return self.at_s


DEADLINE_S = 20.0


def wait_for(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return once `condition()` is true; fail, naming `what`, when it is not within the deadline."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        pause.wait(0.005)
