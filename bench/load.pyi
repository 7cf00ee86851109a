"""A load client that checks every answer: HTTP/2 on nghttp2, TLS on OpenSSL, one thread without the GIL."""

from collections.abc import Sequence

from typing_extensions import disjoint_base

from bench.runs import Run

@disjoint_base
class Questions:
    """Bodies that are asked in turns, and what must come back for each."""

    count: int
    bytes_max: int
    def __init__(
        self,
        bodies: Sequence[tuple[bytes, int, int]],
        *,
        grpc: bool = True,
        http_status: int = 200,
        length: int = -1,
        path: Sequence[int] = (1, 1),
        mark: bytes = b"",
    ) -> None:
        """`bodies`: (message, value that must stand at `path` in the answer, field that the answer must have or 0).

        `mark`: 16 bytes; wherever they stand in a body, other digits are sent with each call. Without `grpc` a body is
        sent as it is (empty: none); `http_status` and, unless it is -1, `length` of the answer are all that is judged.
        """

@disjoint_base
class Load:
    """Connections to one server. Not for two threads at once."""

    connections: int
    def __init__(
        self,
        address: str | tuple[str, int],
        headers: Sequence[tuple[str, str]],
        *,
        connections: int = 8,
        chain: str = "",
        key: str = "",
        roots: str = "",
        stamps: bool = False,
    ) -> None:
        """Connects, and returns when the server's SETTINGS are there on all connections.

        `stamps`: the kernel says when answers arrive, so that Run has `served_ns`; for TCP without TLS.

        `address`: path of a Unix socket, or host and port; `chain`, `key` and `roots`: PEM files of a client's
        certificate and of whom it trusts, for mutual TLS. OSError when the server is not there, refuses or closes.
        """
    def closed(
        self, questions: Questions, calls: int, outstanding: int, *, spin: bool = False, timeout_s: float = 60.0
    ) -> Run:
        """`calls` calls as fast as answers come, `outstanding` at a time on each connection."""
    def open(
        self,
        questions: Questions,
        calls: int,
        rate: float,
        *,
        spin: bool = True,
        in_flight: int = 256,
        timeout_s: float = 60.0,
    ) -> Run:
        """`calls` calls, one every 1/`rate` s whether answers come or not. `spin` keeps the core busy between them.

        No connection has more than `in_flight`, or than its server allows; the rest waits here, and its latency grows.
        """
    def pump(self, ms: int) -> None:
        """Answer what the server asks of idle connections (PING, SETTINGS) for so long."""
    def cipher(self) -> str:
        """What TLS of the first connection agreed on; empty without."""
    def close(self) -> None:
        """Close all connections; may be called again."""
