"""What a call is: principal, action, resource, destination and context, by the configuration's `mapping` section."""

from typing import Any, Self

from typing_extensions import disjoint_base

from fastpath.table import Generation

@disjoint_base
class Mapping:
    """The section `mapping` in force; immutable and safe to share between threads."""

    def __new__(cls, config: Any) -> Self:
        """`config` is the checked section, a sidecar.config_mapping.MappingConfig: read here once, by attribute."""

def explain_call(
    mapping: Mapping,
    check_request: bytes,
    generation: Generation | None = None,
    *,
    strict_path: bool = True,
    arena_bytes: int = 4194304,
) -> dict[str, Any]:
    """What an envoy.service.auth.v3.CheckRequest is taken for: the fields of Request (fastpath/request.pxd) by name.

    Entities are {"type", "id"} or None, `context` holds the attributes that are not live columns, `columns` those
    columns that the mapping set, by path; all in Cedar JSON. `refusal` is the reason code of a call that has no
    meaning, else empty. Raises ValueError for other bytes or a closed generation, MemoryError when the call needs more
    than `arena_bytes`.
    """

def explain_check(
    mapping: Mapping,
    check_request: bytes,
    spiffe_id: str,
    generation: Generation | None = None,
    *,
    arena_bytes: int = 4194304,
) -> dict[str, Any]:
    """The same for a remit.authz.v1.CheckRequest of the verified caller `spiffe_id`."""
