"""A call's arguments as `context.input`; Python sees them only to test them."""

from enum import IntEnum

class InputError(IntEnum):
    INPUT_OK = 0
    INPUT_TYPE = 1
    INPUT_MISSING = 2
    INPUT_ROOM = 3
    INPUT_VARIANT = 4

def typed(
    data: bytes, shape: bytes | None = None, *, arena_bytes: int = 4194304
) -> tuple[InputError, str, dict[str, object] | None]:
    """(error, dotted name of the member at fault, record in Cedar JSON) of a JSON object.

    `shape` is an encoded record cell (fastpath/program.pxd "shapes"), as sidecar.policy.cells.encode makes it.
    Raises ValueError when `data` is not JSON, MemoryError without an arena.
    """
