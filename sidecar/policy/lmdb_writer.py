"""Writes the LMDB files of a store: each once, in one transaction, never changed again."""

import contextlib
import hashlib
import mmap
import os
from collections.abc import Mapping
from io import FileIO

import lmdb

from fastpath.lmdb_file import digest_of

LMDB_FORMAT = 0
"""LMDB 0.9 writes format v1, which every released library reads."""
MAP_SLACK_BYTES = 1 << 20
HUGE_PAGE_BYTES = 2 << 20


def write_file(path: str, values: Mapping[bytes, bytes | bytearray]) -> tuple[int, str]:
    """Write a new file with these values, synchronised, mode 0444; its size and SHA-256. OSError, also LMDB's own."""
    try:
        _write(path, values)
    except lmdb.Error as error:
        raise OSError(str(error)) from None
    with open(path, "rb", buffering=0) as file:
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        return size, _digest_in_huge_pages(file) if size >= HUGE_PAGE_BYTES else digest_of(file)


def _digest_in_huge_pages(file: FileIO) -> str:
    """As digest_of, of what the disk gives back. Whoever maps the file next finds it in memory in huge pages, where the
    system has any: a decision in a large table waits for memory, and a third of that is the processor's page walk.
    """
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        with contextlib.suppress(OSError):
            mapped.madvise(mmap.MADV_HUGEPAGE)
        return f"sha256:{hashlib.sha256(mapped).hexdigest()}"


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
