"""The compiled `mapping` section; used by other native modules alone."""

from typing_extensions import disjoint_base

SEGMENTS: dict[str, int]
PIECES: dict[str, int]
KINDS: dict[str, int]
EXTENSIONS: dict[str, int]

@disjoint_base
class Room:
    """Memory that compiled rules point into; it lives as long as this object."""
