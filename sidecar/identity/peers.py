"""Who calls: the verified peer of a grpcio call, by our own verifier and not by grpcio's word.

grpcio checks a certificate once, at the handshake, against one merged set of roots, and names as SPIFFE ID what any
of them signed. Here the chain is verified again per trust domain whenever the bundles change, so that a call on an
old connection is denied as soon as its root is gone.
"""

import base64
import binascii
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

from fastpath.peer import VerifiedPeer
from fastpath.verify import Verifier, VerifyError

PEER_NONE, PEER_AGENT, PEER_ENVOY = 0, 1, 2  # fastpath.decide.PeerKind

CACHE_ENTRIES_MAX = 4096
PEM_BYTES_MAX = 48 * 1024  # 32 KiB of DER in base64, with its lines and labels
CLAIMED_SHOWN_MAX = 255

NO_CERTIFICATE = "identity.no_certificate"
EXPIRED = "identity.expired"
# The clock alone changes these verdicts, so they are not remembered.
_PASSING = frozenset({EXPIRED, "identity.not_yet_valid", "identity.internal"})
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"

log = logging.getLogger("remit.peers")


class PeerResolver:
    """Turns what grpcio knows of a connection into a VerifiedPeer. Thread-safe; a peer that fails is a refused peer,
    never an exception. `allowed_envoys` are the SPIFFE IDs of the PEPs that may assert another principal."""

    def __init__(
        self, verifier: Verifier, allowed_envoys: Collection[str] = (), *, clock: Callable[[], float] = time.time
    ) -> None:
        self._verifier = verifier
        self._allowed_envoys = frozenset(allowed_envoys)
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[bytes, int], VerifiedPeer] = OrderedDict()
        self._counters = {"verified": 0, "refused": 0, "cached": 0}

    def from_auth_context(self, auth_context: Mapping[str, Iterable[bytes]], peer: str = "") -> VerifiedPeer:
        """The peer of a call, from `ServicerContext.auth_context()` and, for the log, `.peer()`.

        Kind ENVOY for an allow-listed SPIFFE ID, else AGENT. A refused peer has kind NONE, no SPIFFE ID, and its
        reason in `refusal`: an `identity.` code of fastpath.verify, or `identity.no_certificate` when the connection
        has none.
        """
        leaf_pem = b"".join(auth_context.get("x509_pem_cert", ()))
        chain_pem = b"".join(auth_context.get("x509_pem_cert_chain", ()))
        if not leaf_pem:
            return self._refuse(NO_CERTIFICATE, peer)
        if len(leaf_pem) + len(chain_pem) > PEM_BYTES_MAX:
            return self._refuse("identity.too_large", peer)
        generation = self._verifier.generation
        key = (hashlib.sha256(leaf_pem + b"\0" + chain_pem).digest(), generation)
        found = self._recall(key)
        if found is None:
            found = self._verify(leaf_pem, chain_pem, peer)
            # Between the two reads other bundles may have come into force: then the verdict is not that generation's.
            if found.refusal not in _PASSING and self._verifier.generation == generation:
                self._remember(key, found)
        if not found.refusal and self._clock() > found.not_after_s:
            return self._refuse(EXPIRED, peer)
        return found

    def for_socket(self, spiffe_id: str, uid: int | None = None) -> VerifiedPeer:
        """The agent to which a Unix socket belongs by configuration; `uid` is who may enter the socket's folder."""
        credential = "unix:unknown" if uid is None else f"unix:{uid}"
        kind = PEER_ENVOY if spiffe_id in self._allowed_envoys else PEER_AGENT
        return VerifiedPeer(kind, spiffe_id, credential)

    def counters(self) -> dict[str, int]:
        """How many chains were verified, how many peers refused, and how many answers came from memory."""
        with self._lock:
            return dict(self._counters)

    def _verify(self, leaf_pem: bytes, chain_pem: bytes, peer: str) -> VerifiedPeer:
        try:
            leaf, *above = [*pem_to_ders(leaf_pem), *pem_to_ders(chain_pem)]
        except ValueError:
            return self._refuse("identity.malformed", peer)
        try:
            found = self._verifier.verify(leaf, above, now_s=int(self._clock()))
        except VerifyError as refused:
            return self._refuse(refused.reason, peer, refused.claimed)
        self._count("verified")
        if found.spiffe_id not in self._allowed_envoys:
            return found
        return VerifiedPeer(
            PEER_ENVOY,
            found.spiffe_id,
            found.credential,
            not_after_s=found.not_after_s,
            bundle_generation=found.bundle_generation,
        )

    def _refuse(self, reason: str, peer: str, claimed: str = "") -> VerifiedPeer:
        self._count("refused")
        log.warning("peer `%s` refused: %s, it claimed `%s`", peer, reason, claimed[:CLAIMED_SHOWN_MAX])
        return VerifiedPeer(PEER_NONE, "", "", not_after_s=0, refusal=reason)

    def _recall(self, key: tuple[bytes, int]) -> VerifiedPeer | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                self._counters["cached"] += 1
            return found

    def _remember(self, key: tuple[bytes, int], peer: VerifiedPeer) -> None:
        with self._lock:
            self._known[key] = peer
            while len(self._known) > CACHE_ENTRIES_MAX:
                self._known.popitem(last=False)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counters[what] += 1


def pem_to_ders(pem: bytes) -> list[bytes]:
    """The certificates of a PEM text in DER (RFC 7468); ValueError when a block is none."""
    ders = []
    for block in pem.split(_BEGIN)[1:]:
        body, mark, _ = block.partition(_END)
        if not mark:
            raise ValueError("a certificate without its end")
        try:
            ders.append(base64.b64decode(b"".join(body.split()), validate=True))
        except binascii.Error as error:
            raise ValueError("a certificate that is not base64") from error
    return ders
