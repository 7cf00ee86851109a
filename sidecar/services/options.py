"""Options of every gRPC server: the bounds of the wire, stated in one place.

`settings_timeout` matters most: until a client acknowledges our SETTINGS, grpcio does not enforce its metadata limits.
"""

from sidecar.config import Limits

PING_INTERVAL_MIN_MS = 10_000  # a client may ping this often
PING_STRIKES = 2
CONTROL_MESSAGE_BYTES = 1 << 20
"""Of a message to the control socket."""

Option = tuple[str, int]


def server_options(limits: Limits, message_bytes: int) -> list[Option]:
    """grpc channel arguments of a server whose requests are at most `message_bytes` long."""
    ms = 1000
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.concurrent_streams),
        ("grpc.max_connection_age_ms", limits.connection_age_s * ms),
        ("grpc.max_connection_age_grace_ms", limits.grace_s * ms),
        ("grpc.max_connection_idle_ms", limits.connection_idle_s * ms),
        ("grpc.server_handshake_timeout_ms", limits.handshake_ms),
        ("grpc.http2.settings_timeout", limits.settings_ms),
        ("grpc.keepalive_time_ms", limits.keepalive_s * ms),
        ("grpc.keepalive_timeout_ms", limits.keepalive_timeout_s * ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
        ("grpc.http2.max_ping_strikes", PING_STRIKES),
        # Two sidecars on one port would share its calls without knowing of each other.
        ("grpc.so_reuseport", 0),
    ]
