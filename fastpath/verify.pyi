"""X.509-SVID verification (SPIFFE X509-SVID, RFC 5280): the Python face."""

from collections.abc import Iterable, Mapping
from enum import IntEnum

from typing_extensions import disjoint_base

from fastpath.peer import VerifiedPeer

class Refusal(IntEnum):
    VERIFIED = 0
    REFUSED_TOO_LARGE = 1
    REFUSED_MALFORMED = 2
    REFUSED_URI_SAN = 3
    REFUSED_SPIFFE_ID = 4
    REFUSED_CA_LEAF = 5
    REFUSED_BASIC_CONSTRAINTS = 6
    REFUSED_KEY_USAGE = 7
    REFUSED_EKU = 8
    REFUSED_SUBJECT = 9
    REFUSED_KEY = 10
    REFUSED_SIGNATURE = 11
    REFUSED_TRUST_DOMAIN = 12
    REFUSED_EXPIRED = 13
    REFUSED_NOT_YET_VALID = 14
    REFUSED_CHAIN = 15
    REFUSED_SIGNING_CERT = 16
    REFUSED_NAME_CONSTRAINTS = 17
    REFUSED_INTERNAL = 18
    REFUSALS = 19

class VerifyError(Exception):
    """A chain or bundle is refused. `reason` is a stable code ("identity.chain", ..); `claimed` is the SPIFFE ID that
    the leaf carried, as far as it is one: fit for a log line, proof of nothing."""

    reason: str
    claimed: str
    def __init__(self, reason: str, claimed: str = "") -> None: ...

@disjoint_base
class Verifier:
    """Verifies peers against the bundle of their own trust domain. Thread-safe.

    `strict` adds what an issuer MUST set and a verifier need not insist on: BasicConstraints present, KeyUsage
    critical, and both clientAuth and serverAuth in an extended key usage.
    """

    def __init__(self, strict: bool = True) -> None: ...
    @property
    def generation(self) -> int:
        """Generation of the bundles in force; 0 before the first."""
    @property
    def trust_domains(self) -> tuple[str, ...]:
        """Names that have at least one root, sorted."""
    def put_bundles(self, bundles: Mapping[str, Iterable[bytes]], generation: int) -> None:
        """Replace all bundles (trust domain name to DER roots) at once; a domain that is missing or empty is untrusted.

        VerifyError("identity.bundle") when a root is no certificate; the bundles in force then stay.
        """
    def verify(
        self, leaf_der: bytes, intermediates_der: Iterable[bytes], *, now_s: int | None = None, server_role: bool = True
    ) -> VerifiedPeer:
        """The peer (kind AGENT) that presented this chain, at `now_s` (Unix time; default: now).

        `not_after_s` is the earliest notAfter of the chain that was built, its root included. `server_role`: we are the
        TLS server and the peer a client. VerifyError otherwise.
        """
