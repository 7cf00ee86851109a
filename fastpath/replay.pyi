"""Repeated requests: the same caller, request id and content get the same answer, and count once."""

from typing_extensions import disjoint_base

@disjoint_base
class Replay:
    """The remembered answers of one sidecar; native callers only."""
