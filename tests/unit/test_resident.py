"""A rule table stays in memory while it is open, and says why when it cannot."""

import mmap
import os
import resource
from pathlib import Path

import pytest

from fastpath.resident import keep
from tests.fix_rules import locked_bytes

NOBODY = 65534
TABLE_BYTES = 1 << 20


@pytest.fixture
def mapped(tmp_path: Path):
    """A megabyte of a file, mapped as LMDB maps a table."""
    file = tmp_path / "table"
    file.write_bytes(bytes(TABLE_BYTES))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as pages:
        yield pages


def test_what_is_kept_is_locked_until_it_is_unmapped(mapped: mmap.mmap):
    """No page of it can be given away while a table may be asked."""
    before = locked_bytes()
    assert keep(mapped) == ""
    assert locked_bytes() - before == TABLE_BYTES
    mapped.close()
    assert locked_bytes() == before


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
