"""Metrics, live and ready: read from one snapshot, named by us, never labelled by a request."""

import urllib.error
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.config import HostPort
from sidecar.errors import ConfigError
from sidecar.metrics import AuthorityFacts, MetricsServer, registry
from sidecar.metrics_doors import COUNTERS, GAUGES, NAMED
from tests.fix_native import native_server


class Facts:
    """A sidecar that decided three calls and is not ready."""

    def counters(self) -> dict[str, Any]:
        return {
            "decisions": {("ext_authz", "allow"): 2, ("check", "error"): 1},
            "causes": {"not_ready.svid": 1, "ok": 2},
            "latency_ns": {"ext_authz": ((1000, 5000), (1, 1, 0), 4000), "check": ((1000, 5000), (0, 0, 1), 9000)},
            "replayed": 4,
            "malformed": 5,
        }

    def error_counts(self) -> dict[str, int]:
        return {"internal": 6}

    def reload_counts(self) -> dict[str, int]:
        return {"applied": 1, "refused": 2}

    def authority(self) -> AuthorityFacts | None:
        return AuthorityFacts({"tasks": 3}, (1.0, 5.0), (2, 1, 1), 20.0, 6)

    def door_counts(self) -> dict[str, dict[str, Any]]:
        with native_server() as server:
            counts = server.listener.counters()
        named = {"closed": {"flood": 2}, "goaways": {"flood": 1}, "refusals": {"expired": 4}, "statuses": {16: 4}}
        return {"listeners.check_address": {**counts, "accepted": 5, "held": 6, **named}}

    def refused_calls(self) -> dict[str, int]:
        return {"ptrace": 3}

    def status(self) -> control_pb2.StatusResponse:
        return control_pb2.StatusResponse(
            ready=False,
            not_ready="not_ready.svid",
            generation=7,
            svid_not_after_unix=1_800_000_000,
            stream=control_pb2.Stream(lag=3),
            journal=control_pb2.Journal(bytes=4096),
        )


@pytest.fixture
def server() -> Any:
    made = MetricsServer(HostPort("127.0.0.1", 0), Facts())
    yield made
    made.close()


def get(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{server.address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_name_decisions_latency_errors_and_state(server: MetricsServer) -> None:
    """Every figure that the operator is promised is there, with its labels."""
    status, text = get(server, "/metrics")
    assert status == 200
    samples = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }
    assert samples["remit_decisions_total", (("door", "ext_authz"), ("outcome", "allow"))] == 2
    assert samples["remit_authority_tasks", ()] == 3
    assert samples["remit_authority_old_readers_total", ()] == 6
    assert samples["remit_revocation_effect_seconds_bucket", (("le", "0.005"),)] == 3
    assert samples["remit_revocation_effect_seconds_sum", ()] == 0.02
    assert samples["remit_errors_total", (("cause", "not_ready.svid"),)] == 1
    assert samples["remit_errors_total", (("cause", "internal"),)] == 6
    assert ("remit_errors_total", (("cause", "ok"),)) not in samples
    assert samples["remit_reasons_total", (("reason", "ok"),)] == 2
    assert samples["remit_reloads_total", (("result", "refused"),)] == 2
    assert samples["remit_seccomp_refused_total", (("call", "ptrace"),)] == 3
    door = ("door", "listeners.check_address")
    assert samples["remit_door_connections_total", (door,)] == 5
    assert samples["remit_door_held_bytes", (door,)] == 6
    assert samples["remit_door_connections_closed_total", (("cause", "flood"), door)] == 2
    assert samples["remit_door_goaways_total", (("cause", "flood"), door)] == 1
    assert samples["remit_door_chains_refused_total", (door, ("reason", "expired"))] == 4
    assert samples["remit_door_statuses_total", (door, ("status", "unauthenticated"))] == 4
    assert samples["remit_generation", ()] == 7
    assert samples["remit_svid_not_after_seconds", ()] == 1_800_000_000
    assert samples["remit_stream_lag_records", ()] == 3
    assert samples["remit_journal_bytes", ()] == 4096
    bucket = "remit_decision_latency_seconds_bucket"
    assert samples[bucket, (("door", "ext_authz"), ("le", "5e-06"))] == 2
    assert samples[bucket, (("door", "check"), ("le", "+Inf"))] == 1
    assert samples["remit_decision_latency_seconds_sum", (("door", "ext_authz"),)] == pytest.approx(4e-6)


def test_live_and_ready_are_different_questions(server: MetricsServer) -> None:
    """A sidecar without an SVID lives, is not ready, and says why."""
    assert get(server, "/livez") == (200, "live\n")
    assert get(server, "/readyz") == (503, "not_ready.svid\n")
    assert get(server, "/other")[0] == 404


def test_labels_are_names_of_ours_only() -> None:
    """No path, host, principal or id of a call is a label."""
    labels = {name for family in registry(Facts()).collect() for s in family.samples for name in s.labels}
    assert labels == {"door", "outcome", "reason", "cause", "result", "call", "status", "le"}


def test_a_taken_port_is_a_clear_error(server: MetricsServer) -> None:
    """The message names the field, the address and the next step."""
    with pytest.raises(ConfigError, match=r"`metrics.address`: cannot listen on .*; choose another port"):
        MetricsServer(server.address, Facts())


def test_every_count_of_a_native_door_is_a_metric() -> None:
    """What the loops count can be scraped; a new counter without a text of its own fails here."""
    with native_server() as server:
        counts = set(server.listener.counters())
    assert counts - {"loops", "statuses"} == {*COUNTERS, *GAUGES, *NAMED}
