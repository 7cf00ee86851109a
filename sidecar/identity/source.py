"""Our identity from the SPIFFE Workload API, supervised: what it may still be used for is known at every moment.

The wire messages are those of the package `spiffe`; the stream is ours, because its X509Source ends for good at the
first malformed update and goes on serving an SVID that was taken back or has expired.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import grpc
from spiffe._proto import workload_pb2

from fastpath.verify import Verifier
from sidecar.errors import IdentityError
from sidecar.identity.endpoint import check_socket, parse_endpoint
from sidecar.identity.message import BUNDLE, BadMessage, Choice, Contents, read_message
from sidecar.identity.snapshot import Identity

METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"
HEADER = (("workload.spiffe.io", "true"),)  # Workload Endpoint section 6.1
MESSAGE_BYTES_MAX = 16 << 20
CONNECT_MS = 5000
KEEPALIVE_S = 20.0
KEEPALIVE_TIMEOUT_S = 8.0
KEEPALIVE_S_MAX = 600.0
WATCH_S = 0.5  # how late an expiry may be noticed by subscribers; current() and state() notice it at once

NO_SVID, NO_BUNDLE, SVID_EXPIRED = "not_ready.svid", "not_ready.bundle", "not_ready.svid_expired"
# Asking again cannot help (Workload API section 6.2): the request or the profile is not supported.
FINAL = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED})

COUNTERS = (
    *("applied", "discarded", "redacted", "expired"),
    *("attempts", "failed", "too_large", "refused_socket", "final", "crashed"),
)

log = logging.getLogger("remit.source")
Callback = Callable[[Identity | None], None]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting time before an attempt: doubled each time, up to a bound, of which chance takes up to half."""

    first_s: float = 0.1
    last_s: float = 5.0
    chance: Callable[[], float] = field(default=random.random)

    def delay_s(self, attempt: int) -> float:
        """Seconds before the attempt of that number, counted from 0."""
        return min(self.last_s, self.first_s * 2 ** min(attempt, 32)) * (1 - self.chance() / 2)


@dataclass(frozen=True, slots=True)
class Stream:
    """How the stream behaves. A hung agent is noticed after keepalive_s + keepalive_timeout_s."""

    backoff: Backoff = Backoff()
    keepalive_s: float = KEEPALIVE_S
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S
    message_bytes_max: int = MESSAGE_BYTES_MAX


DEFAULT_CHOICE = Choice()
DEFAULT_STREAM = Stream()


class WorkloadSource:
    """Keeps one X.509-SVID and the bundles current, on threads of its own. All methods are thread-safe.

    `endpoint` is unix:///path or tcp://ip:port, empty for SPIFFE_ENDPOINT_SOCKET (ConfigError when neither is
    usable); `socket_owners` are the uids that may own the socket and the folders above it, besides root; default: our
    own.
    """

    def __init__(
        self,
        endpoint: str = "",
        *,
        choice: Choice = DEFAULT_CHOICE,
        strict: bool = True,
        stream: Stream = DEFAULT_STREAM,
        socket_owners: Collection[int] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._target = parse_endpoint(endpoint)
        self._choice = choice
        self._strict = strict
        self._stream = stream
        self._owners = (os.geteuid(),) if socket_owners is None else tuple(socket_owners)
        self._clock = clock
        self._keepalive_s = stream.keepalive_s
        self._lock = threading.Lock()
        self._delivery = threading.RLock()  # subscribers see the states in order
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._call: Any = None
        self._identity: Identity | None = None
        self._raw = b""
        self._generation = 0
        self._bundle_generation = 0
        self._reason = NO_SVID
        self._problem = "the Workload API has not answered yet"
        self._subscribers: list[Callback] = []
        self._counters = dict.fromkeys(COUNTERS, 0)

    def start(self) -> None:
        """Begin to fetch; returns at once. The socket may come later."""
        for name, run in (("workload-api", self._run), ("svid-expiry", self._watch)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End both threads; what was current stays so until it expires."""
        self._stopping.set()
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()
        for thread in self._threads:
            thread.join()

    def current(self) -> Identity | None:
        """The identity in force, or None: none yet, taken back, or past its end."""
        with self._lock:
            return self._usable()

    def state(self) -> str:
        """Empty when there is an identity, else why not: `not_ready.svid`, `.svid_expired` or `.bundle`."""
        with self._lock:
            if self._usable() is not None:
                return ""
            return SVID_EXPIRED if self._identity is not None else self._reason

    def problem(self) -> str:
        """What went wrong last, in words for operators; empty while all is well."""
        with self._lock:
            return self._problem

    @property
    def bundle_generation(self) -> int:
        """Generation of the bundles in force; losing them all is a generation as well."""
        with self._lock:
            return self._bundle_generation

    def counters(self) -> dict[str, int]:
        """Messages applied and discarded, identities redacted and expired, attempts and how they failed."""
        with self._lock:
            return dict(self._counters)

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` now and at every change with the identity or None, in order; returns how to end it.

        It runs on the source's thread and must not block.
        """
        with self._delivery:
            self._subscribers.append(callback)
            callback(self.current())
        return lambda: self._unsubscribe(callback)

    def feed(self, verifier: Verifier) -> Callable[[], None]:
        """Keep `verifier` on the bundles in force, none while there is no identity; returns how to end it."""

        def put(identity: Identity | None) -> None:
            if identity is None:
                verifier.put_bundles({}, self.bundle_generation)
            elif verifier.generation != identity.bundle_generation:
                verifier.put_bundles(identity.bundles, identity.bundle_generation)

        return self.subscribe(put)

    # ------------------------------------------------------------ the stream

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            before = self._count("attempts")["applied"]
            try:
                code = self._attempt()
            except Exception:
                # This thread must outlive every bug of ours: without it no new SVID would ever come.
                log.exception("an attempt at the Workload API failed inside the sidecar")
                self._count("crashed")
                code = grpc.StatusCode.INTERNAL
            if code in FINAL:
                self._count("final")
                log.error(
                    "the Workload API will not be asked again: %s; the SVID serves until it expires", self.problem()
                )
                return
            attempt = 0 if self.counters()["applied"] > before else attempt + 1
            self._stopping.wait(self._stream.backoff.delay_s(attempt))

    def _attempt(self) -> grpc.StatusCode:
        """One connection and its stream, from beginning to end; the code it ended with."""
        try:
            check_socket(self._target, self._owners)
        except IdentityError as error:
            self._count("refused_socket")
            self._note(str(error))
            return grpc.StatusCode.UNAVAILABLE
        # A channel of its own per attempt: a shared one would add its own waiting time to ours.
        with grpc.insecure_channel(self._target, options=self._options()) as channel:
            try:
                self._read(channel)
            except grpc.RpcError as error:
                self._ended(error)
                return error.code()
        self._note("the Workload API ended the stream")
        return grpc.StatusCode.OK

    def _read(self, channel: grpc.Channel) -> None:
        fetch = channel.unary_stream(METHOD, request_serializer=workload_pb2.X509SVIDRequest.SerializeToString)
        call = fetch(workload_pb2.X509SVIDRequest(), metadata=HEADER)
        with self._lock:
            self._call = call
        if self._stopping.is_set():
            call.cancel()
        for raw in call:
            self._take(raw)

    def _ended(self, error: grpc.RpcError) -> None:
        code, details = error.code(), error.details() or ""
        if self._stopping.is_set():
            return
        self._count("failed")
        self._note(f"the Workload API answered {code.name}: `{details[:200]}`")
        if code is grpc.StatusCode.PERMISSION_DENIED:
            self._redact()
        elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._count("too_large")
        elif "too many pings" in details.lower().replace("_", " "):
            # The agent allows fewer pings: double the time, as gRFC A8 says.
            self._keepalive_s = min(self._keepalive_s * 2, KEEPALIVE_S_MAX)
            log.info("the Workload API allows fewer pings; it gets pings every %g s", self._keepalive_s)

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", self._stream.message_bytes_max),
            ("grpc.keepalive_time_ms", int(self._keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self._stream.keepalive_timeout_s * 1000)),
            # Without this the ping itself may stay unanswered for a minute, whatever the line above says.
            ("grpc.http2.ping_timeout_ms", int(self._stream.keepalive_timeout_s * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ]

    # ------------------------------------------------------------ the state

    def _take(self, raw: bytes) -> None:
        """Apply one message, or discard it whole and keep what was."""
        with self._lock:
            if raw == self._raw and self._usable() is not None:
                return
        try:
            contents = read_message(raw, self._choice, int(self._clock()), strict=self._strict)
        except BadMessage as error:
            log.error("a message of the Workload API is discarded: %s", error)
            self._discard(error)
            return
        with self._delivery:
            self._apply(contents, raw)
            self._deliver()

    def _apply(self, contents: Contents, raw: bytes) -> None:
        with self._lock:
            before = self._identity
            self._generation += 1
            if before is None or before.bundles != contents.bundles:
                self._bundle_generation += 1
            self._identity = Identity(
                contents.spiffe_id,
                contents.svid_chain_pem,
                contents.key_pem,
                contents.not_after_s,
                contents.bundles,
                self._generation,
                self._bundle_generation,
            )
            self._raw, self._problem = raw, ""
            self._counters["applied"] += 1

    def _discard(self, error: BadMessage) -> None:
        with self._lock:
            self._counters["discarded"] += 1
            self._problem = str(error)
            if self._identity is None:
                self._reason = NO_BUNDLE if error.about == BUNDLE else NO_SVID

    def _redact(self) -> None:
        """The agent took our identity back: stop using it and its bundles (Workload API section 6.2)."""
        if self._drop("redacted", NO_SVID, lambda: True):
            log.error("the Workload API took our SVID back; calls are refused until it gives one")

    def _drop(self, counter: str, reason: str, still: Callable[[], bool]) -> bool:
        """Give up the identity, if there is one and `still` holds under the lock."""
        with self._delivery:
            with self._lock:
                if self._identity is None or not still():
                    return False
                self._identity, self._raw, self._reason = None, b"", reason
                self._generation += 1
                self._bundle_generation += 1
                self._counters[counter] += 1
            self._deliver()
            return True

    def _watch(self) -> None:
        """Notice the end of the SVID. It is final: a clock that goes back does not bring it to life again."""
        while not self._stopping.wait(WATCH_S):
            with self._lock:
                ended = self._usable() is None
            if ended and self._drop("expired", SVID_EXPIRED, lambda: self._usable() is None):
                log.error("our SVID has expired and the Workload API gave no other; calls are refused")

    def _usable(self) -> Identity | None:
        """The identity unless it has ended. The caller holds the lock."""
        identity = self._identity
        return identity if identity is not None and self._clock() <= identity.not_after_s else None

    def _deliver(self) -> None:
        identity = self.current()
        for callback in tuple(self._subscribers):
            try:
                callback(identity)
            except Exception:
                # One subscriber's bug must not keep the news from the others.
                log.exception("a subscriber to our identity failed")
                self._count("crashed")

    def _unsubscribe(self, callback: Callback) -> None:
        with self._delivery:
            self._subscribers.remove(callback)

    def _count(self, what: str) -> dict[str, int]:
        with self._lock:
            self._counters[what] += 1
            return dict(self._counters)

    def _note(self, problem: str) -> None:
        log.warning("%s", problem)
        with self._lock:
            self._problem = problem
