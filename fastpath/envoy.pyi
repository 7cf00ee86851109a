"""Envoy's CheckRequest as the data plane reads it; Python sees it only to test and to explain it."""

from fastpath.wire import WireError

SCHEMA: dict[str, dict[int, str]]

def decode(
    request: bytes,
    *,
    strict_path: bool = True,
    headers_max: int = 1024,
    path_bytes_max: int = 8192,
    arena_bytes: int = 1048576,
) -> dict[str, object] | None:
    """The HttpCall of an envoy.service.auth.v3.CheckRequest, made canonical; None when the bytes are not one.

    Keys are those of HttpCall; `headers` is a list of (name, value), `sanitised` the names of altered lines, `refusal`
    the reason code of a call that is malformed or ambiguous (its canonical fields then mean nothing).
    Raises MemoryError when the call needs more than `arena_bytes`.
    """

def verdict(request: bytes) -> WireError:
    """Whether the bytes are a CheckRequest, and what is wrong when they are not."""
