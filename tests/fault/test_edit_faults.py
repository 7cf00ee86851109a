"""An edit that dies, fails or meets damaged files leaves the generation and its edits as they were, or both new."""

import contextlib
import os
import pathlib
import random

import msgspec
import pytest

from sidecar.errors import PolicyError, RuleTableError
from sidecar.policy.publish import GenerationStore, PolicySource, SourceFiles, Work
from tests.fault.test_publish_errors import ERRORS, OTHERWISE, WRITES, assert_clear, failing, fill
from tests.fault.test_publish_kill import kill, slice_of
from tests.fix_faults import LONG, SEED, Editing, Publishing, assert_clean, mounted_disk, needs_strace, some, survives

FLIPS = 200 if LONG else 12


@needs_strace
@pytest.mark.parametrize("who", ["publisher", "compiler"])
def test_a_kill_at_every_system_call_of_an_edit_leaves_old_or_new(edited: Editing, who: str) -> None:
    """PO-10: SIGKILL at the Nth openat, write, fsync, rename: generation and edits belong together, the next works."""
    points = edited.points(who)
    assert {"openat", "fsync"} <= {point.call for point in points}
    chosen = slice_of(points, 5)
    died = [point for point in chosen if survives(edited, who, kill(point)).published is None]
    assert {point for point in chosen if point.call != "mmap"} <= set(died)


@needs_strace
@pytest.mark.parametrize("who", ["publisher", "compiler"])
def test_an_error_of_any_system_call_refuses_the_edit(edited: Editing, who: str) -> None:
    """PO-10: EIO or ENOSPC from the Nth call is a clear refusal, and what was in force stays, edits included."""
    faults = [(point, error) for point in edited.points(who) for error in ERRORS.get(point.call, OTHERWISE)]
    for point, error in some(faults, 2):
        old = edited.in_force()[0].generation
        assert_clear(survives(edited, who, failing(point, error)), old)


@needs_strace
def test_a_disk_that_stays_full_refuses_the_edit(edited: Editing) -> None:
    """PO-10: from some write of the compiler on, every write fails."""
    for point in some([point for point in edited.points("compiler") if point.call in WRITES], 1):
        old = edited.in_force()[0].generation
        done = survives(edited, "compiler", f"{point.call}:error=ENOSPC:when={point.n}+")
        assert_clear(done, old)
        assert done.published is None


def test_a_full_disk_refuses_the_edit_and_room_lets_it_through(tmp_path: pathlib.Path) -> None:
    """PO-10: on a file system without a free block nothing is edited, nothing is lost, and nothing lies about."""
    with mounted_disk(tmp_path) as disk:
        os.mkdir(disk.at / "store")
        world = Editing(tmp_path, disk.at / "store")
        before = world.in_force()
        fill(disk.at / "filler")
        with pytest.raises(PolicyError, match=r"`.*` cannot be written: .*no space left on device"):
            world.publish()
        assert world.in_force() == before
        assert_clean(world, before[0])
        os.unlink(disk.at / "filler")
        assert world.publish().generation == before[0].generation + 1


@needs_strace
def test_a_power_cut_at_an_edits_system_calls_leaves_old_or_new(tmp_path: pathlib.Path) -> None:
    """PO-10: what was acknowledged is there after the cut, and the edits with it."""
    with mounted_disk(tmp_path) as disk:
        os.mkdir(disk.at / "store")
        world = Editing(tmp_path, disk.at / "store")
        disk.cut()
        for point in slice_of(world.points("publisher"), 2):
            survives(world, "publisher", kill(point), cut=disk.cut)
        assert survives(world, "publisher", "", cut=disk.cut).published


# ---------------------------------------------------------------- damaged files


def store_of(world: Publishing) -> GenerationStore:
    return GenerationStore(world.store_path)


@contextlib.contextmanager
def damaged(path: pathlib.Path, raw: bytes):
    """The file with other bytes, and put back."""
    whole, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(raw)
    try:
        yield
    finally:
        path.write_bytes(whole)
        path.chmod(mode)


def test_a_delta_with_any_bit_flipped_or_bytes_missing_is_refused(edited: Editing) -> None:
    """DB-14, DB-15: the digest of the whole file is compared before LMDB sees it; the right file opens again."""
    manifest, ids = edited.in_force()
    assert manifest.delta is not None
    path = edited.store_path / manifest.delta.file
    whole = path.read_bytes()
    chance = random.Random(SEED)
    for _ in range(FLIPS):
        raw = bytearray(whole)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        with damaged(path, bytes(raw)), pytest.raises(RuleTableError, match="publish it again"):
            store_of(edited).open_current()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        with damaged(path, whole[:size]), pytest.raises(RuleTableError, match="publish it again"):
            store_of(edited).open_current()
    assert edited.in_force() == (manifest, ids)


def test_a_delta_of_another_base_is_refused(edited: Editing, tmp_path: pathlib.Path) -> None:
    """DB-15: swapped deltas and bases are refused, even when a manifest names both with their digests."""
    other = Editing(tmp_path)
    other.rebase()
    mine, theirs = edited.in_force()[0], other.in_force()[0]
    assert mine.delta is not None
    assert theirs.delta is not None
    path = edited.store_path / mine.delta.file
    raw = (other.store_path / theirs.delta.file).read_bytes()
    with damaged(path, raw), pytest.raises(RuleTableError):
        store_of(edited).open_current()
    named = msgspec.structs.replace(theirs.delta, file=mine.delta.file)
    forged = msgspec.structs.replace(mine, delta=named).sealed()
    manifest = edited.store_path / "manifest.json"
    with (
        damaged(path, raw),
        damaged(manifest, msgspec.json.encode(forged)),
        pytest.raises(RuleTableError, match="base"),
    ):
        store_of(edited).open_current()
    assert edited.in_force()[0] == mine


def test_edits_that_cannot_be_read_are_never_lost_silently(tmp_path: pathlib.Path) -> None:
    """A publish that cannot read the edits is refused and says what to do; what is in force goes on serving."""
    world = Editing(tmp_path)
    manifest, ids = world.in_force()
    assert manifest.pending is not None
    source = PolicySource(SourceFiles([str(world.folder)]))
    for name in (manifest.pending.file, "manifest.json"):
        path = world.store_path / name
        with damaged(path, path.read_bytes()[:-9]):
            with pytest.raises(PolicyError, match=r"remit policy edits --drop"):
                store_of(world).publish(source)
            if name != "manifest.json":
                with store_of(world).open_current() as generation:
                    assert generation.policy_ids == ids
    path = world.store_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:-9])
    done = store_of(world).publish_files(source, Work(), drop_edits=True)
    assert done.manifest.generation > manifest.generation
    assert store_of(world).edits() == []
    with store_of(world).open_current() as generation:
        # What the file held before the one edit over it.
        assert generation.policy_ids == [f"p{world.count - 1}"]


def test_an_old_manifest_stays_readable(world: Publishing) -> None:
    """One from before there were deltas has none of their fields and opens as it did."""
    manifest, ids = world.in_force()
    bare = msgspec.structs.replace(manifest, edits=None, pending=None, delta=None, settings="").sealed()
    path = world.store_path / "manifest.json"
    raw = msgspec.json.format(msgspec.json.encode(bare))
    assert not {b'"delta"', b'"edits"', b'"pending"', b'"settings"'} & set(raw.split())
    with damaged(path, raw), store_of(world).open_current() as generation:
        assert generation.policy_ids == ids
