"""Why a request about authority is refused: a gRPC status each, and a text that says what to do next."""

from sidecar.errors import SidecarError


class AuthorityError(SidecarError):
    """A request that is refused; nothing has changed unless the text says so."""

    code = 13  # INTERNAL; every refusal is one of those below


class InvalidError(AuthorityError):
    """A field of the request cannot be used."""

    code = 3  # INVALID_ARGUMENT


class MissingError(AuthorityError):
    """What the request names is not there."""

    code = 5  # NOT_FOUND


class RepeatedError(AuthorityError):
    """An idempotency key comes with another request than before."""

    code = 6  # ALREADY_EXISTS


class DeniedError(AuthorityError):
    """This caller may not."""

    code = 7  # PERMISSION_DENIED


class ExhaustedError(AuthorityError):
    """A queue or the disk is full."""

    code = 8  # RESOURCE_EXHAUSTED


class StateError(AuthorityError):
    """Not in the state that this is in."""

    code = 9  # FAILED_PRECONDITION


class ChangedError(AuthorityError):
    """It changed meanwhile; look again."""

    code = 10  # ABORTED


class StoreError(AuthorityError):
    """The store is not there to answer."""

    code = 14  # UNAVAILABLE


def invalid(field: str, cause: str) -> InvalidError:
    """A field that cannot be used, and why."""
    return InvalidError(f"`{field}`: {cause}")


def missing(what: str, name: str) -> MissingError:
    """Something that does not exist."""
    return MissingError(f"{what} `{name}` does not exist, or is not kept any more")
