"""The journal record of one decision, encoded natively."""

from collections.abc import Mapping
from typing import Final

MANDATORY: Final[dict[int, str]]
"""Field number and name of what every Decision record holds (draft-klrc-aiagent-auth, audit minimum)."""

def missing_fields(payload: bytes) -> tuple[str, ...]:
    """Names of mandatory fields that a Record lacks; empty for a Gap or an Event. ValueError when it is no message."""

def encode(
    request: Mapping[str, object],
    decision: Mapping[str, object],
    *,
    peer: tuple[int, str, str] | None = None,
    digest: bytes | None = None,
) -> bytes:
    """Encode a record from plain values, for tests and tools.

    `request` names fields of fastpath.request.Request (uids as (type, id) or None, `columns` as {path: value});
    `decision` those of fastpath.decide.Decision (`policies` and `shadows` as ids, `errors` as (id, EvalError)); `peer`
    is (kind, SPIFFE ID, credential); `digest` that of the generation. MemoryError when they do not fit.
    """
