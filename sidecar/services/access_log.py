"""Envoy's access logs as reports: what an allowed call really sent, and whether it was made at all.

Envoy streams its log entries (envoy.service.accesslog.v3, AccessLogService); each carries the dynamic metadata of its
ext_authz answer, and so the id of our decision. What cannot be read settles nothing: the call then counts as spent.
"""

import logging
from collections.abc import Callable, Iterator

import grpc
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf.message import DecodeError

from fastpath.peer import VerifiedPeer
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.logs import event
from sidecar.services.doors import Resolve
from sidecar.services.errors import ErrorCounts

log = logging.getLogger("remit.access_log")

SERVICE = "envoy.service.accesslog.v3.AccessLogService"
FILTER = "envoy.filters.http.ext_authz"
DECISION_ID = "decision_id"
OK = 0
# Envoy's response flags that say that no request reached the destination.
NOT_MADE = ("no_healthy_upstream", "upstream_connection_failure", "upstream_overflow", "no_route_found")
# Of a request Envoy may write several entries; only the one at its end says what became of it.
FINAL = (accesslog_pb2.NotSet, accesslog_pb2.DownstreamEnd)

Report = Callable[[bytes, VerifiedPeer], tuple[int, bytes]]


def report_of(entry: accesslog_pb2.HTTPAccessLogEntry) -> authz_pb2.ReportRequest | None:
    """What the entry says of a decision of ours; None when it names none, or is not the last about it."""
    common = entry.common_properties
    fields = common.metadata.filter_metadata[FILTER].fields if FILTER in common.metadata.filter_metadata else {}
    evaluation = fields[DECISION_ID].string_value if DECISION_ID in fields else ""
    if not evaluation or common.intermediate_log_entry or common.access_log_type not in FINAL:
        return None
    made = _was_made(common)
    report = authz_pb2.ReportRequest(evaluation_id=evaluation, executed=made, status=entry.response.response_code.value)
    if made:
        report.bytes_out = entry.request.request_body_bytes
    return report


def _was_made(common: accesslog_pb2.AccessLogCommon) -> bool:
    """Whether anything may have reached the destination. The flags tell of the last attempt alone."""
    if common.upstream_request_attempt_count > 1 or common.upstream_wire_bytes_sent:
        return True
    refused = any(getattr(common.response_flags, flag) for flag in NOT_MADE)
    return common.HasField("upstream_remote_address") and not refused


class AccessLog:
    """Takes the streams of Envoys and settles the calls that they tell of."""

    def __init__(self, report: Report, resolve: Resolve, errors: ErrorCounts) -> None:
        self._report = report
        self._resolve = resolve
        self._errors = errors

    def __call__(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """One stream, until the Envoy ends it; the answer is an empty StreamAccessLogsResponse."""
        for message in messages:
            try:
                entries = als_pb2.StreamAccessLogsMessage.FromString(message).http_logs.log_entry
            except DecodeError:
                self._errors.add("access_log")
                event(log, "access_log.malformed", logging.WARNING, peer=context.peer())
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request.malformed")
            # Verified again for every message: a stream outlives the credential that it began with.
            self._settle(entries, self._resolve(context), context)
        return b""

    def _settle(
        self, entries: list[accesslog_pb2.HTTPAccessLogEntry], peer: VerifiedPeer, context: grpc.ServicerContext
    ) -> None:
        for report in filter(None, map(report_of, entries)):
            code, body = self._report(report.SerializeToString(), peer)
            if code == grpc.StatusCode.UNAUTHENTICATED.value[0]:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, body.decode("ascii", "replace"))
            if code != OK:
                # The journal did not take it: the call counts as spent, which is the safe side.
                self._errors.add("access_log")


def access_log_service(report: Report, resolve: Resolve, errors: ErrorCounts) -> grpc.GenericRpcHandler:
    """envoy.service.accesslog.v3.AccessLogService (envoy/service/accesslog/v3/als.proto)."""
    handler = grpc.stream_unary_rpc_method_handler(AccessLog(report, resolve, errors))
    return grpc.method_handlers_generic_handler(SERVICE, {"StreamAccessLogs": handler})
