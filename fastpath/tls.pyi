"""TLS of the native doors."""

from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class TlsIdentity:
    """An X509-SVID with its key, as a TLS server presents it."""

    def __new__(cls, chain_pem: bytes, key_pem: bytes) -> Self:
        """Leaf first, without the root; key unencrypted. ValueError when they are none or do not belong together."""
