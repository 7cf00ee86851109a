"""Cells as Python objects: Cedar's JSON value format."""

import datetime
from typing import Any

from fastpath.table import Generation

EPOCH: datetime.datetime

def attributes_of(generation: Generation, type_: str, id_: str) -> dict[str, Any] | None:
    """The entity's attributes as calls see them, with a delta; None when the store does not have it.

    RuleTableError when the generation is closed.
    """

def is_in(generation: Generation, type_: str, id_: str, group_type: str, group_id: str) -> bool:
    """Whether the entity is in the group, by whatever way, as calls see it.

    RuleTableError when the generation is closed.
    """
