"""One state of our identity, whole: the SVID, its key and every bundle that came with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Identity:
    """What the Workload API last gave and our checks accepted. SVID and bundles always belong together.

    `generation` changes with every update, `bundle_generation` only when a bundle does; both start at 1 and never go
    down while the process lives. The private key stays out of every text form.
    """

    spiffe_id: str
    svid_chain_pem: bytes  # leaf first, without the root
    key_pem: bytes = field(repr=False)  # PKCS#8, unencrypted
    not_after_s: int  # earliest end of the chain, its root included; Unix time
    bundles: Mapping[str, tuple[bytes, ...]] = field(repr=False)  # trust domain name to its roots in DER
    generation: int
    bundle_generation: int

    @property
    def trust_domain(self) -> str:
        return self.spiffe_id.removeprefix("spiffe://").partition("/")[0]
