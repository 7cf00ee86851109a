"""Prometheus metrics, with /livez and /readyz beside them, on a port of their own.

Everything is read when Prometheus asks: the data plane counts natively and never touches this module. Labels are names
of our own (doors, outcomes, causes); nothing of a request becomes one.
"""

import socket
import socketserver
import threading
import wsgiref.simple_server
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.config import HostPort
from sidecar.errors import ConfigError
from sidecar.metrics_doors import families

NS = 1e-9
CLIENT_TIMEOUT_S = 10
ERROR_REASONS = frozenset({"internal", "late", "limit", "request.in_flight"})
ERROR_PREFIXES = ("not_ready.", "journal.")
TEXT = ("content-type", "text/plain; charset=utf-8")


class AuthorityFacts(NamedTuple):
    """`rows` by kind; how long revocations took to be in force: counts per bucket (ms), and their sum."""

    rows: dict[str, int]
    bounds_ms: tuple[float, ...]
    counts: tuple[int, ...]
    sum_ms: float
    old_readers: int = 0
    """Reads of the store that took too long and were refused the rest."""


class Facts(Protocol):
    """What the metrics read of a running sidecar."""

    def counters(self) -> dict[str, Any]:
        """As `fastpath.call.Pdp.counters`."""

    def error_counts(self) -> dict[str, int]:
        """{cause: times} of errors outside the native call."""

    def reload_counts(self) -> dict[str, int]:
        """{"applied" | "refused": times}."""

    def door_counts(self) -> Mapping[str, Mapping[str, Any]]:
        """{field of the configuration: counters of that native door, as `fastpath.listener.Listener.counters`}."""

    def refused_calls(self) -> dict[str, int]:
        """As `sidecar.seccomp.refused`."""

    def status(self) -> control_pb2.StatusResponse:
        """What is in force now."""

    def authority(self) -> AuthorityFacts | None:
        """Figures of the authority store; None without one."""


class SidecarCollector(Collector):
    """Turns the facts of one sidecar into metric families at each scrape."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        counters = self._facts.counters()
        yield _counter("remit_decisions", "decisions by door and outcome", ("door", "outcome"), counters["decisions"])
        yield _latency(counters["latency_ns"])
        reasons = counters["causes"]
        yield _counter("remit_reasons", "decisions by reason code", ("reason",), _single(reasons))
        causes = {**self._facts.error_counts(), **{cause: n for cause, n in reasons.items() if _is_error(cause)}}
        yield _counter("remit_errors", "calls that could not be decided, by cause", ("cause",), _single(causes))
        yield _counter("remit_replayed", "answers given again to a repeated request id", (), {(): counters["replayed"]})
        yield _counter("remit_malformed", "messages that did not decode", (), {(): counters["malformed"]})
        yield _counter("remit_reloads", "reloads by result", ("result",), _single(self._facts.reload_counts()))
        refused = _single(self._facts.refused_calls())
        yield _counter("remit_seccomp_refused", "system calls that the seccomp filter refused", ("call",), refused)
        yield from _gauges(self._facts.status())
        yield from families(self._facts.door_counts())
        authority = self._facts.authority()
        if authority is not None:
            yield from _authority(authority)


def _is_error(reason: str) -> bool:
    """Whether a reason code names our own state as the cause (fastpath/decide.pyx, fastpath/call.pyx)."""
    return reason in ERROR_REASONS or reason.startswith(ERROR_PREFIXES)


def _single(counts: dict[str, int]) -> dict[tuple[str, ...], int]:
    return {(name,): n for name, n in counts.items()}


def _counter(name: str, text: str, labels: tuple[str, ...], counts: dict[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _latency(doors: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]]) -> Metric:
    """Cumulative buckets in seconds from counts per bucket; the last bucket has no bound."""
    family = HistogramMetricFamily("remit_decision_latency_seconds", "from received bytes to answer", labels=("door",))
    for door, (bounds, counts, total_ns) in doors.items():
        sums, so_far = [], 0
        for bound, count in zip([*(f"{b * NS:g}" for b in bounds), "+Inf"], counts, strict=True):
            so_far += count
            sums.append((bound, so_far))
        family.add_metric((door,), sums, total_ns * NS)
    return family


def _gauges(now: control_pb2.StatusResponse) -> Iterator[Metric]:
    figures = {
        "remit_ready": ("1 while calls are decided", int(now.ready)),
        "remit_generation": ("policy generation in force", now.generation),
        "remit_revocation_epoch": ("revocation epoch in force", now.revocation_epoch),
        "remit_bundle_generation": ("grows with every change of the trust bundles", now.bundle_generation),
        "remit_svid_not_after_seconds": ("Unix time at which our SVID ends; 0: none", now.svid_not_after_unix),
        "remit_journal_bytes": ("size of all journal segments", now.journal.bytes),
        "remit_journal_last_sequence": ("last record written", now.journal.last_sequence),
        "remit_stream_connected": ("1 while the collector acknowledges", int(now.stream.connected)),
        "remit_stream_lag_records": ("records that the collector does not hold yet", now.stream.lag),
    }
    for name, (text, value) in figures.items():
        yield GaugeMetricFamily(name, text, value=value)


def _authority(facts: AuthorityFacts) -> Iterator[Metric]:
    for name, count in facts.rows.items():
        yield GaugeMetricFamily(f"remit_authority_{name}", f"{name.replace('_', ' ')} in the store", value=count)
    buckets, so_far = [], 0
    for bound, count in zip([*(f"{ms / 1000:g}" for ms in facts.bounds_ms), "+Inf"], facts.counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    family = HistogramMetricFamily("remit_revocation_effect_seconds", "from the request to being in force")
    family.add_metric((), buckets, facts.sum_ms / 1000)
    yield family
    old = CounterMetricFamily("remit_authority_old_readers", "reads of the store that took too long and were ended")
    old.add_metric((), facts.old_readers)
    yield old


def registry(facts: Facts) -> CollectorRegistry:
    """A registry of its own, so that nothing in the process adds to it unseen."""
    made = CollectorRegistry(auto_describe=False)
    made.register(SidecarCollector(facts))
    ProcessCollector(registry=made)
    return made


def wsgi_app(facts: Facts) -> Callable[..., Iterable[bytes]]:
    """/metrics, /livez (the process answers), /readyz (calls are decided; else 503 with the reason)."""
    metrics = make_wsgi_app(registry(facts))

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/livez":
            start_response("200 OK", [TEXT])
            return [b"live\n"]
        if path == "/readyz":
            now = facts.status()
            start_response("200 OK" if now.ready else "503 Service Unavailable", [TEXT])
            return [b"ready\n" if now.ready else now.not_ready.encode() + b"\n"]
        start_response("404 Not Found", [TEXT])
        return [b"try /metrics, /livez or /readyz\n"]

    return app


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True

    def __init__(self, address: HostPort) -> None:
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__((address.host, address.port), _Quiet)

    def server_bind(self) -> None:
        # WSGIServer would ask DNS for our own name here, which can take seconds and serves nothing.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no events of ours."""


class MetricsServer:
    """Owns the metrics port and its thread."""

    def __init__(self, address: HostPort, facts: Facts) -> None:
        try:
            self._server = _Server(address)
        except OSError as error:
            cause = (error.strerror or str(error)).lower()
            raise ConfigError(f"`metrics.address`: cannot listen on {address}: {cause}; choose another port") from None
        self._server.set_app(wsgi_app(facts))
        self.address = HostPort(address.host, self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
