"""The files of a store: what is said of them is what the disk has."""

import hashlib
import os
from pathlib import Path

import lmdb
import pytest

from sidecar.policy.lmdb_writer import HUGE_PAGE_BYTES, write_file


@pytest.mark.parametrize("size", [0, 100, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES + 12_345])
def test_size_and_digest_are_those_of_the_file(tmp_path: Path, size: int) -> None:
    """Of files that are read, and of those that are read back in huge pages; the values are in them."""
    values = {b"image": os.urandom(size), b"basis": b"b"}
    path = tmp_path / "1.mdb"
    said = write_file(str(path), values)
    raw = path.read_bytes()
    assert said == (len(raw), f"sha256:{hashlib.sha256(raw).hexdigest()}")
    assert path.stat().st_mode & 0o777 == 0o444
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env, env.begin() as txn:
        assert {key: txn.get(key) for key in values} == values


def test_a_file_system_without_huge_pages_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may refuse the advice; the digest is that of the file all the same."""
    monkeypatch.setattr("sidecar.policy.lmdb_writer.mmap.MADV_HUGEPAGE", 12_345)
    path = tmp_path / "1.mdb"
    _, digest = write_file(str(path), {b"image": os.urandom(HUGE_PAGE_BYTES)})
    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
