"""One message of the Workload API's X.509 profile, checked whole (SPIFFE Workload API section 5.2).

Every part is checked, also what we do not use: a message with one bad part is refused as a whole, and the state
before it stays. So a half-written update can never pair a new SVID with old bundles.
"""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from google.protobuf.message import DecodeError
from spiffe._proto import workload_pb2

from fastpath import spiffe_id as spiffe_id_syntax
from fastpath.verify import Verifier, VerifyError
from sidecar.errors import IdentityError

SVIDS_MAX = 64
BUNDLES_MAX = 10_000
SVID, BUNDLE = "svid", "bundle"


class BadMessage(IdentityError):
    """A message of the Workload API is refused; `about` says which half of our identity it would have broken."""

    def __init__(self, about: str, message: str) -> None:
        super().__init__(message)
        self.about = about


@dataclass(frozen=True, slots=True)
class Choice:
    """Which SVID of several is ours. Empty fields choose nothing; with all of them empty the first SVID is it."""

    spiffe_id: str = ""
    hint: str = ""
    trust_domain: str = ""  # the SVID chosen must be of this trust domain


@dataclass(frozen=True, slots=True)
class Contents:
    """A message that passed every check."""

    spiffe_id: str
    svid_chain_pem: bytes
    key_pem: bytes
    not_after_s: int
    bundles: Mapping[str, tuple[bytes, ...]]


def read_message(raw: bytes, choice: Choice, now_s: int, *, strict: bool = True) -> Contents:
    """The contents of an X509SVIDResponse. BadMessage names what is wrong with it."""
    try:
        message = workload_pb2.X509SVIDResponse.FromString(raw)
    except DecodeError as error:
        raise BadMessage(SVID, "the message is not an X509SVIDResponse") from error
    if not 0 < len(message.svids) <= SVIDS_MAX:
        raise BadMessage(SVID, f"the message has {len(message.svids)} SVIDs; expected 1 to {SVIDS_MAX}")
    bundles = _read_bundles(message)
    verifier = Verifier(strict=strict)
    try:
        verifier.put_bundles(bundles, 1)
    except VerifyError as error:
        raise BadMessage(BUNDLE, "a bundle holds something that is no certificate") from error
    ends = [_check_svid(entry, verifier, now_s) for entry in message.svids]
    at = _choose(message.svids, choice)
    chosen = message.svids[at]
    chain = b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in split_der(chosen.x509_svid, SVID))
    return Contents(chosen.spiffe_id, chain, _key_pem(chosen.x509_svid_key), ends[at], MappingProxyType(bundles))


def _read_bundles(message: workload_pb2.X509SVIDResponse) -> dict[str, tuple[bytes, ...]]:
    """Trust domain to roots, from the SVIDs' own bundles and the federated ones."""
    if len(message.federated_bundles) > BUNDLES_MAX:
        raise BadMessage(BUNDLE, f"the message has more than {BUNDLES_MAX} federated bundles")
    bundles: dict[str, tuple[bytes, ...]] = {}
    for entry in message.svids:
        name = _trust_domain(entry.spiffe_id, SVID, with_path=True)
        roots = _roots(name, entry.bundle)
        if bundles.setdefault(name, roots) != roots:
            raise BadMessage(BUNDLE, f"two SVIDs bring different bundles for trust domain `{name}`")
    for key, value in message.federated_bundles.items():
        # The key is the trust domain's SPIFFE ID; some servers send the bare name.
        name = _trust_domain(key if key.startswith("spiffe://") else f"spiffe://{key}", BUNDLE, with_path=False)
        if name in bundles:
            raise BadMessage(BUNDLE, f"the message has two bundles for trust domain `{name}`")
        bundles[name] = _roots(name, value)
    return bundles


def _trust_domain(spiffe_id: str, about: str, *, with_path: bool) -> str:
    try:
        found = spiffe_id_syntax.parse(spiffe_id)
    except IdentityError as error:
        raise BadMessage(about, str(error)) from error
    if bool(found.path) != with_path:
        raise BadMessage(about, f"`{spiffe_id}` must {'' if with_path else 'not '}have a path")
    return str(found.trust_domain)


def _roots(name: str, value: bytes) -> tuple[bytes, ...]:
    roots = tuple(split_der(value, BUNDLE))
    if not roots:
        raise BadMessage(BUNDLE, f"the bundle of trust domain `{name}` is empty")
    return roots


def _check_svid(entry: workload_pb2.X509SVID, verifier: Verifier, now_s: int) -> int:
    """Unix time at which the SVID ends, when it is one that we could serve (facts: MUST list, item 13)."""
    leaf, *above = list(split_der(entry.x509_svid, SVID)) or [b""]
    try:
        verified = verifier.verify(leaf, above, now_s=now_s, server_role=False)
    except VerifyError as error:
        raise BadMessage(SVID, f"the SVID for `{entry.spiffe_id}` would not be accepted: {error.reason}") from error
    if verified.spiffe_id != entry.spiffe_id:
        raise BadMessage(SVID, f"the message says `{entry.spiffe_id}`, its SVID says `{verified.spiffe_id}`")
    if _public_key(entry.x509_svid_key) != _leaf_key(leaf):
        raise BadMessage(SVID, f"the private key for `{entry.spiffe_id}` is not that of its SVID")
    return verified.not_after_s


def _choose(svids: Iterable[workload_pb2.X509SVID], choice: Choice) -> int:
    """Index of the SVID that `choice` names; of two with the same hint the first (Workload API section 5.2.1)."""
    for at, entry in enumerate(svids):
        if (choice.spiffe_id and entry.spiffe_id != choice.spiffe_id) or (choice.hint and entry.hint != choice.hint):
            continue
        name = _trust_domain(entry.spiffe_id, SVID, with_path=True)
        if choice.trust_domain and name != choice.trust_domain:
            raise BadMessage(SVID, f"the SVID is of trust domain `{name}`; configured is `{choice.trust_domain}`")
        return at
    raise BadMessage(SVID, f"no SVID is the configured one: id `{choice.spiffe_id}`, hint `{choice.hint}`")


# ---------------------------------------------------------------- keys and DER


def _public_key(key_der: bytes) -> bytes:
    """The SubjectPublicKeyInfo of an unencrypted PKCS#8 key (RFC 5208)."""
    _, body = next(_elements(key_der, SVID), (b"", b""))
    # PKCS#8 goes on with an AlgorithmIdentifier; the older forms of one algorithm, which load as well, do not.
    if body[:2] != b"\x02\x01" or body[3:4] != b"\x30":
        raise BadMessage(SVID, "the private key is not PKCS#8")
    try:
        key = serialization.load_der_private_key(key_der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadMessage(SVID, "the private key cannot be read") from error
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _leaf_key(leaf_der: bytes) -> bytes:
    try:
        key = x509.load_der_x509_certificate(leaf_der).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadMessage(SVID, "the SVID's key cannot be read") from error
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_pem(key_der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(key_der).replace(" CERTIFICATE", " PRIVATE KEY").encode()


def split_der(data: bytes, about: str) -> Iterator[bytes]:
    """The SEQUENCEs that stand in `data` one after the other, without padding (Workload API section 5.2.1)."""
    return (element for element, _ in _elements(data, about))


def _elements(data: bytes, about: str) -> Iterator[tuple[bytes, bytes]]:
    """(whole, contents) of each SEQUENCE of definite length."""
    at = 0
    while at < len(data):
        head, size = 2, data[at + 1] if at + 1 < len(data) else 0
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[at + 2 : at + head], "big")
        end = at + head + size
        if data[at] != 0x30 or not 2 <= head <= 6 or data[at + 1 : at + 2] == b"\x80" or end > len(data):
            raise BadMessage(about, "the bytes are not DER, one SEQUENCE after the other")
        yield data[at:end], data[at + head : end]
        at = end
