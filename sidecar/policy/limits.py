"""What a publisher may hand to the compiler at most. A million policies, links and entities fit by default."""

from typing import Annotated

import msgspec

MIB = 1 << 20
CAP_MAX = 1 << 40
"""No cap is higher; what counts or allocates by one must not overflow."""


def _cap(text: str, unit: str) -> msgspec.Meta:
    return msgspec.Meta(description=text, extra={"unit": unit}, ge=1, le=CAP_MAX)


class PolicyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps that hold before cedarpy sees a text: its parser recurses and dies of deep input instead of refusing it."""

    text_bytes_max: Annotated[int, _cap("all policy text of one publish, in UTF-8", "bytes")] = 512 * MIB
    policy_bytes_max: Annotated[int, _cap("one policy with its annotations, in UTF-8", "bytes")] = 1 * MIB
    policies_max: Annotated[int, _cap("policies and templates of one publish", "policies")] = 1_000_000
    depth_max: Annotated[int, _cap("nesting of brackets and of `if` inside one policy", "levels")] = 64
    chain_max: Annotated[
        int, _cap("`&&`, `||`, `+`, `-`, `*` that follow each other in one pair of brackets", "operators")
    ] = 10_000
    members_max: Annotated[int, _cap("member accesses that follow each other, as in `a.b.c`", "accesses")] = 64
    schema_bytes_max: Annotated[int, _cap("the schema, in UTF-8", "bytes")] = 4 * MIB
    entities_bytes_max: Annotated[int, _cap("the entities, and the links, in UTF-8", "bytes")] = 512 * MIB
    parents_max: Annotated[
        int, _cap("longest chain of parents above an entity; their closure grows with its square", "entities")
    ] = 1_000
    links_max: Annotated[int, _cap("template links of one publish", "links")] = 1_000_000


DEFAULT_LIMITS = PolicyLimits()
