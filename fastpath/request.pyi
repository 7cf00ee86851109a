"""The canonical request; Python sees the numbers that a record carries."""

from enum import IntEnum

class Door(IntEnum):
    DOOR_NONE = 0
    DOOR_EXT_AUTHZ = 1
    DOOR_EXT_AUTHZ_NETWORK = 2
    DOOR_CHECK = 3
    DOOR_BATCH = 4
    DOOR_EXPLAIN = 5

class InputMode(IntEnum):
    INPUT_HEADERS = 0
    INPUT_METADATA = 1
    INPUT_BODY = 2
    INPUT_DIRECT = 3
