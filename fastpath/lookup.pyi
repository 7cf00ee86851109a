"""What a base holds, by name. RuleTableError from all when it is closed, or when a delta lies over it."""

from fastpath.table import Generation

def value_of(generation: Generation, key: bytes) -> bytes | None:
    """What the LMDB file of a generation holds under `key`, copied; None when there is nothing."""

def template_of(generation: Generation, policy_id: str) -> str | None:
    """The template that a policy was made from: "" for one that is no link, None when there is none of the id."""

def links_of(generation: Generation, template: str, most: int) -> list[str]:
    """Ids of at most `most` links of a template, the smallest ones in order. Looks at every policy."""

def has_entity(generation: Generation, type_: str, id_: str) -> bool:
    """Whether the store has the entity, not only names it."""
