"""JSON values in one canonical form, from text and from google.protobuf.Struct; Python sees them only to test them."""

from enum import IntEnum

class JsonKind(IntEnum):
    TREE_NULL = 0
    TREE_BOOL = 1
    TREE_INTEGER = 2
    TREE_NUMBER = 3
    TREE_STRING = 4
    TREE_ARRAY = 5
    TREE_OBJECT = 6

class JsonError(IntEnum):
    JSON_OK = 0
    JSON_MALFORMED = 1
    JSON_DUPLICATE = 2
    JSON_DEEP = 3
    JSON_ROOM = 4

def canonical(data: bytes, *, struct_: bool = False, arena_bytes: int = 4194304) -> tuple[JsonError, bytes | None]:
    """Canonical text of JSON text, or of an encoded google.protobuf.Struct with `struct_`; None with an error.

    Keys are sorted by bytes, nothing is padded, only what must be escaped is. Raises MemoryError without an arena.
    """
