"""SPIFFE IDs: whether some text is one (SPIFFE-ID sections 2.1 to 2.4)."""

from enum import IntEnum
from typing import NamedTuple

class SpiffeIdError(IntEnum):
    SPIFFE_ID_OK = 0
    SPIFFE_ID_EMPTY = 1
    SPIFFE_ID_TOO_LONG = 2
    SPIFFE_ID_SCHEME = 3
    SPIFFE_ID_TRUST_DOMAIN = 4
    SPIFFE_ID_PATH = 5

CAUSES: dict[SpiffeIdError, str]
SHOWN_MAX: int

class SpiffeId(NamedTuple):
    trust_domain: str
    path: str  # empty for the ID of a trust domain itself

def check(data: bytes) -> SpiffeIdError:
    """Whether `data` is a SPIFFE ID; an ID without a path is one, though never that of a workload."""

def parse(text: str) -> SpiffeId:
    """Trust domain and path of a SPIFFE ID. Raises IdentityError with the cause; nothing is normalised."""
