"""A rule table stays in memory while it is open, and says why when it cannot."""

import io
import mmap
import os
import resource
import subprocess
from pathlib import Path

import pytest

from fastpath.resident import fetch, keep
from tests.fix_rules import locked_bytes, locks_memory

NOBODY = 65534
TABLE_BYTES = 1 << 20
LARGE_BYTES = 5 << 20


@pytest.fixture
def mapped(tmp_path: Path):
    """A megabyte of a file, mapped as LMDB maps a table."""
    file = tmp_path / "table"
    file.write_bytes(bytes(TABLE_BYTES))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as pages:
        yield pages


@locks_memory
def test_what_is_kept_is_locked_until_it_is_unmapped(mapped: mmap.mmap):
    """No page of it can be given away while a table may be asked."""
    before = locked_bytes()
    assert keep(mapped) == ""
    assert locked_bytes() - before == TABLE_BYTES
    mapped.close()
    assert locked_bytes() == before


@pytest.fixture
def large(tmp_path: Path):
    """A large file that is on disk, none of it in memory, open for reading."""
    file = tmp_path / "large"
    with file.open("wb") as written:
        written.write(os.urandom(LARGE_BYTES))
        os.fsync(written.fileno())
    if subprocess.check_output(["stat", "-f", "-c", "%T", file], text=True).strip() in ("tmpfs", "ramfs"):
        pytest.skip("the files of this file system never leave memory")
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield opened


def test_what_is_not_in_memory_is_fetched_once(large: io.FileIO):
    """All of it or a part; what is there stays as it is, and a small file is left to who reads it."""
    size = os.fstat(large.fileno()).st_size
    assert fetch(large.fileno(), size)
    assert not fetch(large.fileno(), size)
    os.posix_fadvise(large.fileno(), 0, 2 << 20, os.POSIX_FADV_DONTNEED)
    assert fetch(large.fileno(), size)
    assert not fetch(large.fileno(), size)
    os.posix_fadvise(large.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert not fetch(large.fileno(), TABLE_BYTES)


def test_a_file_that_ends_early_is_no_fault_of_who_fetches_it(large: io.FileIO):
    """It is cut off by somebody while it is read: whoever checks its digest next finds out."""
    os.truncate(large.name, 1000)
    assert fetch(large.fileno(), LARGE_BYTES)
    assert len(large.read()) == 1000
    os.truncate(large.name, 0)
    assert fetch(large.fileno(), LARGE_BYTES)


@locks_memory
def test_a_limit_is_named(mapped: mmap.mmap):
    """An ordinary user with no right to lock memory hears of it, and the table serves as it did."""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without the right to lock memory")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.write(writer, keep(mapped).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == "EPERM"
    assert os.waitpid(child, 0)[1] == 0
