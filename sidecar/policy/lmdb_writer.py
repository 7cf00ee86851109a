"""Writes the LMDB files of a store: each once, in one transaction, never changed again."""

import os
from collections.abc import Mapping

import lmdb

from fastpath.lmdb_file import digest_of

LMDB_FORMAT = 0
"""LMDB 0.9 writes format v1, which every released library reads."""
MAP_SLACK_BYTES = 1 << 20


def write_file(path: str, values: Mapping[bytes, bytes | bytearray]) -> tuple[int, str]:
    """Write a new file with these values, synchronised, mode 0444; its size and SHA-256. OSError, also LMDB's own."""
    try:
        _write(path, values)
    except lmdb.Error as error:
        raise OSError(str(error)) from None
    with open(path, "rb", buffering=0) as file:
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, digest_of(file)


def _write(path: str, values: Mapping[bytes, bytes | bytearray]) -> None:
    size = sum(map(len, values.values())) + MAP_SLACK_BYTES
    env = lmdb.open(path, map_size=size, subdir=False, lock=False, mode=0o600, lib_version=LMDB_FORMAT)
    try:
        with env.begin(write=True) as txn:
            for key, value in sorted(values.items()):
                txn.put(key, value)
        env.sync(True)
    finally:
        env.close()
