"""Texts of gRPC over HTTP/2: timeouts, content types, status messages."""

def timeout_ns(text: bytes) -> int:
    """Nanoseconds of a grpc-timeout, at most a day; -1 when it is none."""

def is_grpc(content_type: bytes) -> bool:
    """Whether a content type is gRPC with protobuf."""

def message(text: bytes, room: int = 1024) -> bytes:
    """`text` as the value of grpc-message."""
