"""LMDB in one process only once, from one library, without a lock file, and not across a fork (DB-11 to DB-13)."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.fix_faults import ROOT, Publishing

OURS = sorted(
    path
    for folder in ("sidecar", "fastpath")
    for pattern in ("*.py", "*.pyx", "*.pxd")
    for path in (ROOT / folder).rglob(pattern)
    if "_proto" not in path.parts
)


def run(program: str, *arguments: str) -> str:
    """What a process of its own prints; it must end well and in silence."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---------------------------------------------------------------- the lock file


def test_db_11_no_code_of_ours_names_a_lock_file_of_lmdb() -> None:
    """DB-11: opening and closing it drops every lock of the process."""
    assert len(OURS) > 100
    for path in TABLES:
        assert not re.search(r"lock\.mdb|\.mdb-lock|[\"']-lock", path.read_text()), path


TABLES = [path for path in OURS if path.parent.name in ("fastpath", "policy")]
"""What has to do with generations; the authority store, which has writers and readers, is another matter."""


def test_db_11_every_environment_is_opened_without_a_lock_file() -> None:
    """DB-11: `lock=False` wherever LMDB is opened: generations have one writer ever and never change after it."""
    found = []
    for path in TABLES:
        calls = re.findall(r"lmdb\.open\((.*?)\n?\s*\)$", path.read_text(), re.S | re.M)
        found += [(path.name, call) for call in calls]
    assert sorted(name for name, _ in found) == ["lmdb_writer.py", "table.pyx"]
    assert all("lock=False" in call and "subdir=False" in call for _, call in found)
    assert [name for name, call in found if "readonly=True" in call] == ["table.pyx"]


def test_db_11_a_store_in_use_holds_no_lock_file_of_lmdb(world: Publishing) -> None:
    """DB-11: nothing beside generations, manifest and our own lock is ever created."""
    with_reader = run(
        "import os, sys\n"
        "from sidecar.policy.store import GenerationStore\n"
        "with GenerationStore(sys.argv[1]).open_current(): print(*sorted(os.listdir(sys.argv[1])))",
        str(world.store_path),
    )
    assert re.fullmatch(r"(generation-\d{10}\.mdb )+lock manifest\.json\n", with_reader)


# ---------------------------------------------------------------- one library


def test_db_12_one_copy_of_lmdb_is_in_a_process(world: Publishing) -> None:
    """DB-12: with every module of ours loaded and a generation open, one file in the maps is LMDB: py-lmdb's own."""
    modules = sorted(path.name.partition(".")[0] for path in (ROOT / "fastpath").glob("*.pyx"))
    program = f"""
import importlib, sys
from sidecar.policy.store import GenerationStore
import sidecar.cli, sidecar.server
for name in {modules!r}:
    importlib.import_module("fastpath." + name)
generation = GenerationStore(sys.argv[1]).open_current()
with open("/proc/self/maps") as maps:
    files = {{line.split()[5] for line in maps if len(line.split()) == 6}}
for path in sorted(files):
    if path.startswith("/") and ".so" in path:
        with open(path, "rb") as file:
            if b"mdb_env_open" in file.read():
                print(path)
"""
    found = run(program, str(world.store_path)).split()
    assert [pathlib.Path(path).parent.name for path in found] == ["lmdb"]


def test_db_12_no_module_declares_lmdb_for_itself() -> None:
    """DB-12: native code reads what py-lmdb mapped; none of it links or declares LMDB."""
    assert [path for path in TABLES if "lmdb.h" in path.read_text()] == []
    imports = {
        path.name
        for path in TABLES
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(alias.name == "lmdb" for alias in node.names)
    }
    assert imports == {"lmdb_writer.py"}


# ---------------------------------------------------------------- fork


FORKER = """
import gc, os, sys
from fastpath.evaluator import Evaluator
from sidecar.errors import RuleTableError
from sidecar.policy.store import GenerationStore
generation = GenerationStore(sys.argv[1]).open_current()
asked = Evaluator(generation)
def answer():
    return asked.evaluate(("A", "p"), ("Action", "a"), ("R", "r"), b"").outcome
before = generation.policy_ids, generation.digest
child = os.fork()
if child == 0:
    for use in (lambda: generation.policy_ids, lambda: generation.policy_count, answer):
        try:
            use()
        except RuleTableError:
            continue
        os._exit(1)
    {end}
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert status == 41, status
assert (generation.policy_ids, generation.digest) == before
with GenerationStore(sys.argv[1]).open_current() as again:
    assert again.policy_ids == before[0]
print("read on")
"""


@pytest.mark.parametrize(
    "end",
    [
        "os._exit(41)",
        "sys.exit(41)",
        "generation.close(); del generation, asked; gc.collect(); sys.exit(41)",
    ],
    ids=["at once", "with finalizers", "after closing"],
)
def test_db_13_a_forked_child_reads_nothing_and_takes_nothing_from_its_parent(world: Publishing, end: str) -> None:
    """DB-13: in the child every use is a typed error; however it ends, the parent reads on from the same mapping."""
    assert run(FORKER.replace("{end}", end), str(world.store_path)) == "read on\n"
