"""Envoy's access logs settle what calls took: what was not sent on comes back, what was sent counts as it was."""

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.auth.v3 import external_auth_pb2

from fastpath.authority import Live
from fastpath.decide import PeerKind
from fastpath.peer import VerifiedPeer
from sidecar.demo.processes import wait_for
from sidecar.services.access_log import FILTER, access_log_service, report_of
from sidecar.services.errors import ErrorCounts
from tests.fix_calls import envoy_call
from tests.fix_live import AGENT, make_live, make_pdp, task

ENVOY = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=2)
STALE = VerifiedPeer(PeerKind.PEER_ENVOY, "spiffe://example.org/envoy", "x509-svid:02", bundle_generation=1)


def entry(evaluation: str, *, sent: int = 0, upstream: bool = True, flag: str = "") -> accesslog_pb2.HTTPAccessLogEntry:
    """A log entry as Envoy writes it for a call that was allowed as `evaluation`."""
    made = accesslog_pb2.HTTPAccessLogEntry()
    made.request.request_body_bytes = sent
    made.response.response_code.value = 200
    if evaluation:
        made.common_properties.metadata.filter_metadata[FILTER].update({"decision_id": evaluation, "outcome": "ALLOW"})
    if upstream:
        made.common_properties.upstream_remote_address.socket_address.address = "127.0.0.1"
    if flag:
        setattr(made.common_properties.response_flags, flag, True)
    return made


def message(*entries: accesslog_pb2.HTTPAccessLogEntry) -> als_pb2.StreamAccessLogsMessage:
    logs = als_pb2.StreamAccessLogsMessage.HTTPAccessLogEntries(log_entry=entries)
    return als_pb2.StreamAccessLogsMessage(http_logs=logs)


class Served:
    """The service on a Unix socket, over a Pdp with a task of limited calls and bytes."""

    def __init__(self, folder: Path) -> None:
        self.live: Live = make_live(task(calls=10, bytes=1000))
        self.pdp = make_pdp(self.live)
        self.peer = ENVOY
        self.errors = ErrorCounts()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = access_log_service(self.pdp.report, lambda _: self.peer, self.errors)
        self.server.add_generic_rpc_handlers((handler,))
        address = f"unix:{folder}/log.sock"
        self.server.add_insecure_port(address)
        self.server.start()
        self.channel = grpc.insecure_channel(address)
        self.stub = als_pb2_grpc.AccessLogServiceStub(self.channel)

    def allowed(self) -> str:
        """The id of the decision that allowed a call through Envoy."""
        code, reply = self.pdp.ext_authz(envoy_call(principal=AGENT), ENVOY)
        answer = external_auth_pb2.CheckResponse.FromString(reply)
        assert (code, answer.status.code) == (0, 0)
        return str(answer.dynamic_metadata["decision_id"])

    def left(self, what: str) -> int:
        found = self.live.task("t1")
        assert found is not None
        return int(found[what])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.channel.close()
    made.server.stop(None).wait()


def test_what_was_sent_counts_and_what_was_not_comes_back(served: Served) -> None:
    """In one stream, message by message; entries of other filters are passed over."""
    one, two, three = (served.allowed() for _ in range(3))
    assert served.left("calls") == 7
    messages = [
        message(entry(one, sent=300), entry("")),
        message(entry(two, upstream=False), entry(three, flag="no_healthy_upstream")),
    ]
    served.stub.StreamAccessLogs(iter(messages), timeout=10)
    assert (served.left("calls"), served.left("bytes")) == (9, 700)


def test_an_entry_that_names_no_decision_is_no_report() -> None:
    assert report_of(entry("")) is None


@pytest.mark.parametrize("flag", ["no_healthy_upstream", "upstream_connection_failure", "upstream_overflow"])
def test_a_request_that_reached_nobody_was_not_made(flag: str) -> None:
    """Everything else counts as made: the safe side."""
    assert not report_of(entry("a", flag=flag)).executed  # type: ignore[union-attr]
    assert report_of(entry("a", flag="upstream_request_timeout")).executed  # type: ignore[union-attr]


def test_a_stream_ends_with_its_credential(served: Served) -> None:
    """The peer is verified again for every message."""
    one, two = (served.allowed() for _ in range(2))

    def messages() -> Iterator[als_pb2.StreamAccessLogsMessage]:
        yield message(entry(one, upstream=False))
        wait_for("the first to be settled", lambda: served.left("calls") == 9)
        served.peer = STALE
        yield message(entry(two, upstream=False))

    with pytest.raises(grpc.RpcError) as error:
        served.stub.StreamAccessLogs(messages(), timeout=10)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert served.left("calls") == 9


def test_bytes_that_are_no_message_end_the_stream(served: Served) -> None:
    call = served.channel.stream_unary("/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs")
    with pytest.raises(grpc.RpcError) as error:
        call(iter([b"\xff\xff"]), timeout=10)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("kind", [accesslog_pb2.DownstreamStart, accesslog_pb2.DownstreamPeriodic])
@pytest.mark.parametrize("intermediate", [False, True])
def test_an_entry_from_the_middle_of_a_request_settles_nothing(kind: Any, intermediate: bool) -> None:
    """At its start no upstream is known yet, which says nothing about whether the call will be made."""
    early = entry("a" * 32, upstream=False)
    early.common_properties.access_log_type = kind
    early.common_properties.intermediate_log_entry = intermediate
    assert report_of(early) is None
    early.common_properties.access_log_type = accesslog_pb2.DownstreamEnd
    found = report_of(early)
    assert (found is None) == intermediate
    assert found is None or not found.executed


def test_a_call_that_was_sent_and_tried_again_was_made() -> None:
    """The flags are of the last attempt: the first one may have reached the destination."""
    for count, sent, executed in ((1, 0, False), (2, 0, True), (1, 500, True)):
        failed = entry("a" * 32, sent=300, flag="upstream_connection_failure")
        failed.common_properties.upstream_request_attempt_count = count
        failed.common_properties.upstream_wire_bytes_sent = sent
        found = report_of(failed)
        assert found is not None
        assert (found.executed, found.bytes_out) == (executed, 300 if executed else 0)
