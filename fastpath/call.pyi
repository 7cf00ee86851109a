"""The data plane in one object: bytes of a call in, bytes of the answer out."""

from typing_extensions import disjoint_base

from fastpath.authority import Live
from fastpath.bells import BellRoom
from fastpath.journal import Journal
from fastpath.mapping import Mapping
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation

@disjoint_base
class StreamEar:
    """What one CheckStream has been told. For one thread, or under a lock of its owner's."""

    def __init__(self, pdp: Pdp, room: BellRoom, agent: str) -> None:
        """`room`: where somebody waits for its bells; `agent`: SPIFFE ID of the caller."""
    def notice(self) -> bytes | None:
        """A CheckStreamResponse with a notice of what was not told yet, or None. First that the stream has begun."""

@disjoint_base
class Pdp:
    """Decides calls. Thread-safe: each call uses the generation, mapping and state in force when it started."""

    def __init__(
        self,
        journal: Journal | None,
        *,
        budget_ms: int = 50,
        strict_path: bool = True,
        headers_max: int = 1024,
        path_bytes_max: int = 8192,
        mcp_status: int = 403,
        identity_headers: bool = True,
        arena_bytes: int = 4 << 20,
    ) -> None: ...
    def put_generation(self, generation: Generation | None) -> None: ...
    def put_mapping(self, mapping: Mapping) -> None: ...
    def put_rules(self, generation: Generation | None, mapping: Mapping) -> None:
        """Put both in force together: no call sees one without the other (an atomic reload)."""
    def put_authority(self, live: Live | None) -> None:
        """Enforce tasks, revocations, owners and approvals from now on; None: none of them."""
    def put_state(self, *, epoch: int, bundle_generation: int, not_ready: str) -> None:
        """Live state in force. `not_ready` is a reason code ("not_ready.svid", ..) or empty."""
    def put_clock(self, now_ns: int, now_unix_ns: int, boot: int, sequence: int) -> None:
        """Inject clock and ids (tests); zeros give the real clock back."""
    def ext_authz(self, request: bytes, peer: VerifiedPeer) -> tuple[int, bytes]:
        """(gRPC status code, CheckResponse bytes, or the status message when the code is not 0)."""
    def check(self, request: bytes, peer: VerifiedPeer) -> tuple[int, bytes]: ...
    def check_stream(self, request: bytes, peer: VerifiedPeer) -> tuple[int, bytes]:
        """One CheckStreamRequest: (0, CheckStreamResponse), or the gRPC status that ends the stream and its message."""
    def bell_room(self) -> BellRoom:
        """For a thread that waits for notices."""
    def batch_check(self, request: bytes, peer: VerifiedPeer) -> tuple[int, bytes]: ...
    def explain(self, request: bytes, peer: VerifiedPeer) -> tuple[int, bytes]:
        """Like check, as a dry run; the record names the door."""
    def report(self, request: bytes, peer: VerifiedPeer) -> tuple[int, bytes]:
        """What became of an allowed call: (gRPC status code, ReportResponse bytes or the status message)."""
    def counters(self) -> dict[str, object]:
        """{"decisions": {(door, outcome): n}, "causes": {reason: n}, "latency_ns": {door: (bounds, counts, sum)}}."""
