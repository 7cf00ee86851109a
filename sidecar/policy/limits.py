"""What a publisher may hand to the compiler at most."""

import msgspec

MIB = 1 << 20


class PolicyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Caps that hold before cedarpy sees a text: its parser recurses and dies of deep input instead of refusing it."""

    text_bytes_max: int = 64 * MIB
    """All policy text of one publish, in bytes of UTF-8."""
    policy_bytes_max: int = 1 * MIB
    """One policy with its annotations, in bytes of UTF-8."""
    policies_max: int = 1_000_000
    """Policies and templates of one publish."""
    depth_max: int = 64
    """Nesting of brackets and of `if` inside one policy, in levels."""
    chain_max: int = 10_000
    """Operators (`&&`, `||`, `+`, `-`, `*`) that follow each other inside one pair of brackets."""
    members_max: int = 64
    """Member accesses (`.a`, `["a"]`, `.f()`) that follow each other, as in `a.b.c`."""
    schema_bytes_max: int = 4 * MIB
    """The schema text, in bytes of UTF-8."""
    entities_bytes_max: int = 256 * MIB
    """The entities document, in bytes of UTF-8."""
    parents_max: int = 1_000
    """Longest chain of parents above an entity: their closure grows with its square."""
    links_max: int = 1_000_000
    """Template links of one publish."""


DEFAULT_LIMITS = PolicyLimits()
