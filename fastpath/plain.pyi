"""Cells as Python objects: Cedar's JSON value format."""

import datetime
from typing import Any

from fastpath.table import Generation

EPOCH: datetime.datetime

def attributes_of(generation: Generation, type_: str, id_: str) -> dict[str, Any] | None:
    """The entity's attributes as calls see them, with a delta; None when the store does not have it.

    RuleTableError when the generation is closed.
    """

def groups_of(generation: Generation, type_: str, id_: str, group_type: str) -> list[str]:
    """Ids of all that the entity is in, by whatever way, as calls see it, of one type; in order.

    RuleTableError when the generation is closed.
    """
