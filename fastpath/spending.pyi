"""What allowed calls spend."""

from enum import IntEnum

class EffectKind(IntEnum):
    """What redo adds to the state: remit.decisions.v1.Effect.kind."""

    EFFECT_CALLS = 1
    EFFECT_COST = 2
    EFFECT_BYTES = 3
    EFFECT_APPROVAL = 4
