"""A publish whose system calls fail is refused with a clear error, and the old generation stays (PO-10)."""

import contextlib
import os
import pathlib
import re

import pytest

from sidecar.errors import PolicyError
from tests.fix_faults import Ended, Point, Publishing, assert_clean, mounted_disk, needs_strace, some, survives

ERRORS = {"flock": ["ENOLCK"], "mmap": ["ENOMEM"], "fchmod": ["EIO", "EPERM"], "vfork": ["EAGAIN"], "clone": ["EAGAIN"]}
OTHERWISE = ["EIO", "ENOSPC"]
WRITES = ("write", "pwrite64", "writev", "ftruncate")


def assert_clear(done: Ended, old: int) -> None:
    """Refused in one line that says why, or published because the call was not needed; never a traceback."""
    assert (done.status, done.stderr) == (0, "")
    if done.published:
        assert done.published == old + 1
        return
    assert re.fullmatch(r"refused [a-z`].{20,}[^.]", done.said), done


def failing(point: Point, error: str) -> str:
    return f"{point.call}:error={error}:when={point.n}"


def fill(path: pathlib.Path) -> None:
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@needs_strace
@pytest.mark.parametrize("who", ["publisher", "compiler"])
def test_an_error_of_any_system_call_refuses_the_publish(world: Publishing, who: str) -> None:
    """PO-10: EIO or ENOSPC from the Nth openat, write, fsync, rename, ..: the publish says so, the old stays in force.

    Only when the folder cannot be synchronised after the commit is the new one in force, and then the error says that.
    """
    faults = [(point, error) for point in world.points(who) for error in ERRORS.get(point.call, OTHERWISE)]
    refused = 0
    for point, error in some(faults, 2):
        old = world.in_force()[0].generation
        done = survives(world, who, failing(point, error))
        assert_clear(done, old)
        refused += done.published is None
    assert refused


@needs_strace
def test_a_folder_that_cannot_be_synchronised_after_the_commit_is_told_as_it_is(world: Publishing) -> None:
    """The new generation is in force for whoever opens the store, so the error does not claim the old one."""
    last = [point for point in world.points("publisher") if point.call == "fsync"][-1]
    before = world.in_force()[0].generation
    world.write()
    done = world.run("publisher", failing(last, "EIO"))
    assert done.said == (
        f"refused generation {before + 1} was published, but a power cut could undo it: input/output error (EIO);"
        " publish again"
    )
    assert world.in_force()[0].generation == before + 1
    again = world.run("publisher")
    assert again.published == before + 1
    calls = re.findall(r"^\w+(?=\()", world.log.read_text(), re.M)
    assert "rename" not in calls
    assert calls.count("fsync") == 1, "equal content is synchronised before it is called published"


@needs_strace
def test_a_disk_that_stays_full_refuses_the_publish(world: Publishing) -> None:
    """PO-10: from some write of the compiler on, every write fails."""
    for point in some([point for point in world.points("compiler") if point.call in WRITES], 1):
        old = world.in_force()[0].generation
        done = survives(world, "compiler", f"{point.call}:error=ENOSPC:when={point.n}+")
        assert_clear(done, old)
        assert done.published is None


def test_a_full_disk_refuses_the_publish_and_room_lets_it_through(tmp_path: pathlib.Path) -> None:
    """PO-10: on a file system without a free block nothing is published, nothing is lost, and nothing lies about."""
    with mounted_disk(tmp_path) as disk:
        os.mkdir(disk.at / "store")
        world = Publishing(tmp_path, disk.at / "store")
        before = world.in_force()
        fill(disk.at / "filler")
        with pytest.raises(PolicyError, match=r"`.*` cannot be written: .*no space left on device"):
            world.publish()
        assert world.in_force() == before
        assert_clean(world, before[0])
        os.unlink(disk.at / "filler")
        assert world.publish().generation == before[0].generation + 1


@needs_strace
def test_a_process_that_cannot_be_started_is_no_other_publisher(world: Publishing) -> None:
    """EAGAIN of fork is a full process table; the error names it, and no lock that nobody holds."""
    world.write()
    before = world.in_force()
    done = world.run("publisher", "?fork,?vfork,clone,clone3:error=EAGAIN")
    assert done.said == "refused the compiler cannot be started: resource temporarily unavailable"
    assert world.in_force() == before
