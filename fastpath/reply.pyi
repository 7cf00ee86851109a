"""Encoded answers; Python sees them only to test them.

A decision is a dict with any of outcome (fastpath.decide.Outcome), reason, obligation, policies, errors (lists of ids),
generation, epoch, evaluation_id, cacheable; a request one with any of door, protocol, denial_id, request_id, principal.
"""

def ext_authz(
    decision: dict[str, object],
    request: dict[str, object] | None,
    *,
    cap: int = 4096,
    mcp_status: int = 403,
    identity_header: bool = True,
) -> bytes | None:
    """The envoy.service.auth.v3.CheckResponse of a decision; None when `cap` bytes do not even hold a DENY."""

def check(decision: dict[str, object], request: dict[str, object] | None, *, cap: int = 4096) -> bytes | None:
    """The remit.authz.v1.CheckResponse of a decision; None when `cap` bytes do not even hold a DENY."""
