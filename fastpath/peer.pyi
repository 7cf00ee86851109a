"""A verified caller as `decide` reads it."""

INT64_MAX: int

class VerifiedPeer:
    """Who calls, and until when that holds. Immutable; safe to share between threads."""

    def __init__(
        self,
        kind: int,
        spiffe_id: str,
        credential: str,
        *,
        not_after_s: int = ...,
        bundle_generation: int = 0,
        refusal: str = "",
    ) -> None:
        """`kind` is a PeerKind; ValueError when it is none. `refusal` is a reason code: such a peer is never allowed."""
    @property
    def kind(self) -> int:
        """A PeerKind: 0 none, 1 agent, 2 allow-listed Envoy."""
    @property
    def spiffe_id(self) -> str: ...
    @property
    def credential(self) -> str:
        """"x509-svid:<serial hex>" or "unix:<uid>"; for the record."""
    @property
    def refusal(self) -> str:
        """Reason code when verification refused the peer, else empty."""
    @property
    def bundle_generation(self) -> int:
        """Of the bundles that it was verified against; 0 for a Unix socket."""
    @property
    def not_after_s(self) -> int:
        """Unix time at which the credential ends; INT64_MAX for a Unix socket."""
