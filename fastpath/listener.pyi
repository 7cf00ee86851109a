"""A native door: HTTP/2 and gRPC without Python between the bytes of a call and those of its answer."""

from typing import Any

from typing_extensions import disjoint_base

from fastpath.call import Pdp
from fastpath.lane import Lane
from fastpath.loop import PepList
from fastpath.strangers import Strangers
from fastpath.tls import TlsIdentity
from fastpath.verify import Verifier

@disjoint_base
class Listener:
    """One door. `serve` runs it on its threads; every other method is for any thread."""

    lane: Lane
    """Calls for Python: grpc.health.v1 Watch."""
    strangers: Strangers
    """Users whom a Unix socket let not in."""

    def __init__(
        self,
        pdp: Pdp,
        *,
        envoy: bool,
        spiffe_id: str = "",
        group: int = -1,
        verifier: Verifier | None = None,
        threads: int = 1,
        message_bytes: int = 262144,
        streams: int = 256,
        headers: int = 64,
        header_bytes: int = 16384,
        connections: int = 4096,
        connections_per_peer: int = 256,
        handshakes: int = 2048,
        handshakes_per_address: int = 512,
        held_bytes: int = 4194304,
        door_held_bytes: int = 268435456,
        handshake_ms: int = 5000,
        settings_ms: int = 2000,
        first_request_ms: int = 10000,
        stream_ms: int = 10000,
        deadline_ms: int = 1000,
        idle_ms: int = 300000,
        keepalive_ms: int = 20000,
        ping_ms: int = 10000,
        age_ms: int = 600000,
        grace_ms: int = 30000,
        slow_calls: int = 1024,
        slow_calls_per_peer: int = 128,
        watch_ms: int = 600000,
        check_streams_per_peer: int = 64,
        stream_questions: int = 256,
        stream_queue_bytes: int = 65536,
        arena_bytes: int = 4194304,
    ) -> None:
        """`envoy`: the door serves ext_authz, else Check and BatchCheck. With `verifier` it is mutual TLS; without, a
        plain socket that belongs to `spiffe_id`: on a Unix socket only our own user, root and members of `group` enter.
        """
    def put_identity(self, identity: TlsIdentity | None) -> None:
        """What the next handshakes present; None: none succeeds. Open connections stay."""
    def put_peps(self, peps: PepList) -> None: ...
    def put_ready(self, ready: bool) -> None:
        """What grpc.health.v1 answers for "" and "ready"; "live" is always SERVING."""
    def serve(self, fd: int) -> None:
        """Accept on the listening socket `fd`, which stays the caller's, until `stop`. OSError when it cannot.

        The first loop runs on the calling thread, the others on threads of their own that end before this returns.
        """
    def stop(self, grace_ms: int, notice_ms: int = 1000) -> None:
        """Take no new connections, tell the open ones (GOAWAY), end when all have left or after `grace_ms`.

        A peer that does not say within `notice_ms` that it has heard is told the last stream that will be answered.
        """
    def counters(self) -> dict[str, Any]:
        """Work done: connections, bytes, frames, headers, calls; "closed" and "goaways": {cause: n}, "refusals": {why a
        chain was refused: n}, "statuses": {gRPC status that was the whole answer: n}, "loops": connections that each
        loop took. And as of now: "open" connections, "held" bytes of requests and replies, "slow_waiting" calls for
        Python.
        """
