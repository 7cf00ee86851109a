"""The errors that the data plane raises where Python meets it; sidecar/errors.py adds those of the control plane.

A message is lower case, ends without a period, quotes foreign text in backticks, and names the field, the cause and the
next step. It is for operators (log, command line, control socket); callers on the data plane get fixed texts instead.
Deny is a decision, never an error.
"""

from typing import ClassVar


class SidecarError(Exception):
    """What can go wrong inside the sidecar. `code` is a gRPC status code (grpc/status.proto numbers)."""

    code: ClassVar[int] = 13  # INTERNAL


class IdentityError(SidecarError):
    """An SVID, a bundle or a peer cannot be trusted (SPIFFE X.509-SVID section 5)."""

    code = 16  # UNAUTHENTICATED


class ProtocolError(SidecarError):
    """A peer's bytes or its use of a protocol are wrong."""

    code = 3  # INVALID_ARGUMENT


class RuleTableError(SidecarError):
    """A generation cannot be opened or verified."""

    code = 14  # UNAVAILABLE
