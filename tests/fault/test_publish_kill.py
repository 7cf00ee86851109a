"""A publisher that dies at any system call, or loses its power, leaves the old generation or the new one (PO-10)."""

import os
import pathlib

import pytest

from sidecar.errors import RuleTableError
from sidecar.policy.store import GenerationStore
from tests.fix_faults import LONG, Point, Publishing, assert_clean, mounted_disk, needs_strace, some, survives

COMMIT = ("write", "rename", "renameat", "renameat2", "fsync")


def slice_of(points: list[Point], last: int) -> list[Point]:
    """All in a long run, else one by chance and the `last` ones around the commit."""
    if LONG:
        return points
    return [*some(points, 1), *[point for point in points if point.call in COMMIT][-last:]]


def kill(point: Point) -> str:
    return f"{point.call}:signal=SIGKILL:when={point.n}"


@needs_strace
@pytest.mark.parametrize("who", ["publisher", "compiler"])
def test_a_kill_at_every_system_call_leaves_the_old_generation_or_the_new(world: Publishing, who: str) -> None:
    """PO-10: SIGKILL at the Nth openat, write, fsync, ..: the store opens, the next publish works and cleans."""
    points = world.points(who)
    assert {"openat", "fsync"} <= {point.call for point in points}
    chosen = slice_of(points, 4)
    died = [point for point in chosen if survives(world, who, kill(point)).published is None]
    # Memory is mapped where the allocator likes, so a run may end before its last mmap.
    assert {point for point in chosen if point.call != "mmap"} <= set(died)


@needs_strace
def test_a_kill_during_the_first_publish_leaves_nothing_or_the_first_generation(tmp_path: pathlib.Path) -> None:
    """PO-10: before the first manifest nothing is in force, and a store says so instead of serving half of one."""
    world = Publishing(tmp_path)
    for number, point in enumerate(slice_of(world.points("publisher"), 2)):
        world.store_path = tmp_path / f"first-{number}"
        world.write()
        done = world.run("publisher", kill(point))
        manifest = GenerationStore(world.store_path).current()
        if manifest is None:
            assert done.published is None
            with pytest.raises(RuleTableError, match="holds no generation; publish policies first"):
                GenerationStore(world.store_path).open_current()
        else:
            assert world.in_force() == (manifest, [f"p{world.count}"])
        after = world.publish()
        assert after.generation == (1 if manifest is None else 2)
        assert world.in_force() == (after, [f"p{world.count}"])
        assert_clean(world, after)


@needs_strace
def test_a_power_cut_at_every_system_call_leaves_the_old_generation_or_the_new(tmp_path: pathlib.Path) -> None:
    """PO-10: what was not synchronised is lost as well; what a publisher said to be published is not."""
    with mounted_disk(tmp_path) as disk:
        os.mkdir(disk.at / "store")
        world = Publishing(tmp_path, disk.at / "store")
        disk.cut()
        for point in slice_of(world.points("publisher"), 2):
            survives(world, "publisher", kill(point), cut=disk.cut)
        for point in slice_of(world.points("compiler"), 1):
            survives(world, "compiler", kill(point), cut=disk.cut)
        assert survives(world, "publisher", "", cut=disk.cut).published
