"""Repeated requests: the same caller, request id and content get the same answer, and count once."""

from enum import IntEnum

from typing_extensions import disjoint_base

class ReplayFound(IntEnum):
    REPLAY_NEW = 0
    REPLAY_ANSWERED = 1
    REPLAY_PENDING = 2
    REPLAY_REUSED = 3
    REPLAY_UNTRACKED = 4

@disjoint_base
class Replay:
    """The remembered answers of one sidecar; native callers only."""

def play(steps: list[tuple[str, str, str, int, int, bytes]]) -> list[tuple[int, bytes] | None]:
    """What each step finds: the test partner of the native methods (verb, caller, content, generation, s, answer)."""
