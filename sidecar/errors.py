"""The errors of the sidecar: one class per part, each with the gRPC status code that a caller sees.

fastpath/errors.py says how messages read and defines those that the data plane raises itself.
"""

from fastpath.errors import IdentityError, ProtocolError, RuleTableError, SidecarError

__all__ = [
    "ConfigError",
    "IdentityError",
    "JournalError",
    "PolicyError",
    "ProtocolError",
    "RuleTableError",
    "SidecarError",
]


class ConfigError(SidecarError):
    """The configuration cannot be used; `problems` lists every cause found, one line each."""

    code = 9  # FAILED_PRECONDITION

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems or (message,)


class PolicyError(SidecarError):
    """Policies, schema, entities or links cannot be published; the last good generation stays."""

    code = 9  # FAILED_PRECONDITION


class JournalError(SidecarError):
    """Decisions cannot be recorded."""

    code = 14  # UNAVAILABLE
