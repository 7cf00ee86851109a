"""A verified caller: made by `fastpath.verify` from a certificate chain, or from a Unix socket's configuration."""
from fastpath.decide cimport PEER_ENVOY, PEER_NONE

INT64_MAX = 2**63 - 1


cdef class VerifiedPeer:
    """Who calls, and until when that holds. Read by `decide` at every call (design: identity is repeated per call)."""

    def __init__(
        self, kind, str spiffe_id, str credential, *, not_after_s=INT64_MAX, bundle_generation=0, str refusal=""
    ):
        self._spiffe_id = spiffe_id.encode()
        self._credential = credential.encode()
        self._refusal = refusal.encode()
        if not PEER_NONE <= kind <= PEER_ENVOY:
            raise ValueError(f"a peer of kind `{kind}` does not exist; use a PeerKind")
        self.peer.kind = kind
        self.peer.spiffe_id.p, self.peer.spiffe_id.n = self._spiffe_id, len(self._spiffe_id)
        self.peer.credential.p, self.peer.credential.n = self._credential, len(self._credential)
        self.peer.refusal.p, self.peer.refusal.n = self._refusal, len(self._refusal)
        self.peer.not_after_s = not_after_s
        self.peer.bundle_generation = bundle_generation

    @property
    def kind(self) -> int:
        return self.peer.kind

    @property
    def credential(self) -> str:
        return self._credential.decode()

    @property
    def spiffe_id(self) -> str:
        return self._spiffe_id.decode()

    @property
    def refusal(self) -> str:
        return self._refusal.decode()

    @property
    def bundle_generation(self) -> int:
        return self.peer.bundle_generation

    @property
    def not_after_s(self) -> int:
        return self.peer.not_after_s
