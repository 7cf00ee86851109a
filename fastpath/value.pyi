"""Cedar values in flat memory; Python sees the numbers and hashes that an image writer needs."""

from enum import IntEnum

class Kind(IntEnum):
    KIND_ABSENT = 0
    KIND_BOOL = 1
    KIND_LONG = 2
    KIND_STRING = 3
    KIND_ENTITY = 4
    KIND_SET = 5
    KIND_RECORD = 6
    KIND_DECIMAL = 7
    KIND_IP = 8
    KIND_DATETIME = 9
    KIND_DURATION = 10

class CellFlag(IntEnum):
    CELL_SANITISED = 1

def uid_hash(type_: str, id_: str) -> int:
    """XXH3-64 of the type's and the id's UTF-8, seeded with the type's length in bytes: the hash of a Uid."""

def text_hash(text: str) -> int:
    """XXH3-64 of the text's UTF-8, seed 0: the hash of a type slot."""
