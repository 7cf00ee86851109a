"""Names of the decision, for Python; the data plane calls the native `decide`."""

from enum import IntEnum

class Outcome(IntEnum):
    OUTCOME_UNSPECIFIED = 0
    OUTCOME_ALLOW = 1
    OUTCOME_DENY = 2
    OUTCOME_STEP_UP = 3
    OUTCOME_ERROR = 4

class PeerKind(IntEnum):
    PEER_NONE = 0
    PEER_AGENT = 1
    PEER_ENVOY = 2
