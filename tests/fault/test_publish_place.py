"""Where a store may lie, and with which engine its files are written (DB-16, DB-17)."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from sidecar.errors import PolicyError
from sidecar.policy import filesystem
from sidecar.policy import folder as folders
from sidecar.policy.store import GenerationStore
from tests.fix_faults import ROOT, Publishing, needs_strace

OPENER = """
import sys
from sidecar.errors import PolicyError
from sidecar.policy.store import GenerationStore
try:
    GenerationStore(sys.argv[1])
except PolicyError as error:
    print(error)
"""
# The first bytes of struct statfs, as the kernel would fill them on such a file system.
MAGIC_BYTES = {name: magic.to_bytes(8, sys.byteorder).hex() for magic, name in filesystem.REMOTE.items()}


@needs_strace
@pytest.mark.parametrize("kind", ["nfs", "9p", "smb2", "ceph"])
def test_a_remote_file_system_is_refused_by_its_magic_number(tmp_path: pathlib.Path, kind: str) -> None:
    """DB-17: the kernel's answer to statfs(2) is altered to that of a remote mount; nothing is written there."""
    folder = tmp_path / "store"
    poke = f"inject=statfs:poke_exit=@arg2={MAGIC_BYTES[kind]}"
    command = ["strace", "-qq", "-o", os.devnull, "-e", "trace=statfs", "-e", poke, "--"]
    done = subprocess.run(
        [*command, sys.executable, "-c", OPENER, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == (
        f"`{folder}` lies on a remote file system ({kind}), which cannot hold rule tables; name a local folder\n"
    )
    assert os.listdir(folder) == []


def test_every_remote_kind_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DB-17: all numbers of the list; a local one passes."""
    for magic, kind in filesystem.REMOTE.items():
        monkeypatch.setattr(folders, "filesystem_magic", lambda _, magic=magic: magic)
        with pytest.raises(PolicyError, match=rf"remote file system \({kind}\)"):
            GenerationStore(tmp_path / "store")
    monkeypatch.undo()
    assert GenerationStore(tmp_path / "store").current() is None


def test_memory_file_systems_are_known_for_what_they_are(tmp_path: pathlib.Path) -> None:
    """DB-17: a store on tmpfs works and says that it forgets."""
    assert filesystem.filesystem_magic("/proc") == 0x9FA0
    with open("/proc/mounts") as mounts:
        kinds = {line.split()[1]: line.split()[2] for line in mounts}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert (kinds.get("/dev/shm") == "tmpfs") == (GenerationStore(folder).volatile == "tmpfs")
    with pytest.raises(FileNotFoundError):
        filesystem.filesystem_magic(str(tmp_path / "none"))


def test_the_writer_pins_the_format(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DB-16: an environment that asks for the engine of LMDB 1.0 changes nothing; the file has format 1."""
    monkeypatch.setenv("LMDB_DEFAULT_LIB_VERSION", "1")
    world = Publishing(tmp_path)
    manifest, ids = world.in_force()
    head = (world.store_path / manifest.file).read_bytes()[16:24]
    assert (head, ids) == (bytes.fromhex("dec0efbe") + (1).to_bytes(4, "little"), [f"p{world.count}"])
