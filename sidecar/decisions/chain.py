"""The hash chain over the records of one journal (decisions.proto, Entry)."""

import hashlib

HASH_BYTES = 32
GENESIS = bytes(HASH_BYTES)
"""Chain value before the first record of a journal."""


def link(previous: bytes, sequence: int, payload: bytes) -> bytes:
    """Chain value after one record: SHA-256 of previous value, sequence (8 bytes, little-endian) and payload."""
    return hashlib.sha256(previous + sequence.to_bytes(8, "little") + payload).digest()
