"""Metrics of the native doors, from what their loops count (`fastpath.listener.Listener.counters`).

Labels are names of ours: the door by its field of the configuration, causes, statuses and reasons from fixed lists.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

COUNTERS = {
    "accepted": ("connections", "connections accepted"),
    "events": ("events", "events of sockets and of processes behind them that the loops were told of"),
    "bytes_in": ("received_bytes", "bytes received, TLS taken off"),
    "bytes_out": ("sent_bytes", "bytes sent, before TLS"),
    "records_in": ("received_records", "TLS records received after handshakes"),
    "frames_in": ("received_frames", "HTTP/2 frames received"),
    "headers_in": ("received_headers", "header lines received"),
    "streams": ("streams", "requests begun"),
    "calls": ("calls", "requests that were decided"),
    "health": ("health_checks", "health checks answered"),
    "refused": ("refused", "requests answered with a status of our own, undecided"),
    "cancelled": ("cancelled", "whole requests that were gone before they were decided"),
    "resets_in": ("received_resets", "RST_STREAM frames received"),
    "resets_out": ("sent_resets", "RST_STREAM frames sent"),
    "verified": ("verifications", "certificate chains verified, in handshakes and when bundles or time changed"),
    "check_streams": ("check_streams", "CheckStreams begun"),
    "notices": ("notices", "notices told on CheckStreams, that of their begin too"),
    "slow": ("slow_calls", "calls handed to Python"),
    "slow_full": ("slow_refused", "calls refused since the queue for Python was full"),
    "internal": ("internal_errors", "answers that the data plane left empty: a bug of ours"),
}
GAUGES = {
    "open": ("connections_open", "connections open now"),
    "held": ("held_bytes", "bytes of requests and replies held now"),
    "buffered_max": ("held_bytes_max", "most bytes of requests and replies that one connection held"),
    "slow_waiting": ("slow_waiting", "calls that wait for Python now"),
}
# What is counted by a name: (family, label, text).
NAMED = {
    "closed": ("connections_closed", "cause", "connections that ended; a handshake that failed is cause handshake"),
    "goaways": ("goaways", "cause", "final GOAWAY frames sent"),
    "refusals": ("chains_refused", "reason", "certificate chains refused in handshakes"),
}
STATUSES = {code.value[0]: code.name.lower() for code in grpc.StatusCode}


def families(doors: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """Metric families of all native doors; `doors`: counters by the name of the door."""
    for key, (name, text) in COUNTERS.items():
        yield _family(CounterMetricFamily, name, text, {(door,): counts[key] for door, counts in doors.items()})
    for key, (name, text) in GAUGES.items():
        yield _family(GaugeMetricFamily, name, text, {(door,): counts[key] for door, counts in doors.items()})
    for key, (name, label, text) in NAMED.items():
        found = {(door, what): n for door, counts in doors.items() for what, n in counts[key].items()}
        yield _family(CounterMetricFamily, name, text, found, label)
    found = {(door, STATUSES[code]): n for door, counts in doors.items() for code, n in counts["statuses"].items()}
    text = "calls answered with a gRPC status alone: refused, malformed, or ERROR of our own state"
    yield _family(CounterMetricFamily, "statuses", text, found, "status")


def _family(
    kind: Callable[..., CounterMetricFamily | GaugeMetricFamily],
    name: str,
    text: str,
    values: Mapping[Any, int],
    *labels: str,
) -> Metric:
    """One family; `values` by (door, label's value)."""
    made = kind(f"remit_door_{name}", text, labels=("door", *labels))
    for names, value in values.items():
        made.add_metric(names, value)
    return made
