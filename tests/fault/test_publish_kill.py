"""A publisher that dies at any system call, or loses its power, leaves the old generation or the new one (PO-10)."""

import os
import pathlib

import pytest

from tests.fix_faults import Point, Publishing, mounted_disk, needs_strace, some, survives

# The calls around the commit are in every slice, the others by chance.
COMMIT = ("rename", "renameat", "renameat2", "fsync")


def slice_of(points: list[Point], count: int) -> list[Point]:
    commit = [point for point in points if point.call in COMMIT]
    return [*some(commit, count), *some([point for point in points if point not in commit], count)]


def kill(point: Point) -> str:
    return f"{point.call}:signal=SIGKILL:when={point.n}"


@needs_strace
@pytest.mark.parametrize("who", ["publisher", "compiler"])
def test_a_kill_at_every_system_call_leaves_the_old_generation_or_the_new(world: Publishing, who: str) -> None:
    """PO-10: SIGKILL at the Nth openat, write, fsync, ..: the store opens, the next publish works and cleans."""
    points = world.points(who)
    assert {"openat", "fsync"} <= {point.call for point in points}
    chosen = slice_of(points, 1)
    died = [point for point in chosen if survives(world, who, kill(point)).published is None]
    # Memory is mapped where the allocator likes, so a run may end before its last mmap.
    assert {point for point in chosen if point.call != "mmap"} <= set(died)


@needs_strace
def test_a_power_cut_at_every_system_call_leaves_the_old_generation_or_the_new(tmp_path: pathlib.Path) -> None:
    """PO-10: what was not synchronised is lost as well; what a publisher said to be published is not."""
    with mounted_disk(tmp_path) as disk:
        os.mkdir(disk.at / "store")
        world = Publishing(tmp_path, disk.at / "store")
        disk.cut()
        for point in slice_of(world.points("publisher"), 1):
            survives(world, "publisher", kill(point), cut=disk.cut)
        for point in slice_of(world.points("compiler"), 1):
            survives(world, "compiler", kill(point), cut=disk.cut)
        assert survives(world, "publisher", "", cut=disk.cut).published
