"""What an MCP call is, from headers, metadata and body; Python sees it only to test it."""

from collections.abc import Iterable
from enum import IntEnum

class McpTarget(IntEnum):
    MCP_NOTHING = 0
    MCP_SERVER = 1
    MCP_TOOL = 2
    MCP_PROMPT = 3
    MCP_URI = 4
    MCP_TASK = 5
    MCP_REFERENCE = 6

def read(
    check_request: bytes,
    *,
    headers_alone: bool = False,
    versions: Iterable[str] = ("2026-07-28",),
    arena_bytes: int = 4194304,
) -> dict[str, object]:
    """What the MCP call in an envoy.service.auth.v3.CheckRequest is; keys are those of McpCall.

    `headers_alone`: the server refuses calls whose headers and body differ. Raises ValueError for bytes that are no
    CheckRequest, MemoryError without an arena.
    """
