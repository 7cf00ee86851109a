"""Damaged, swapped and foreign files: refused with a clear error, never a crash or a wrong answer (DB-14 to DB-16)."""

import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys

import lmdb
import msgspec
import pytest

from fastpath.lmdb_file import digest_of
from fastpath.table import IMAGE_KEY, Generation
from sidecar.errors import RuleTableError
from sidecar.policy.store import GenerationStore, Manifest
from tests.fix_faults import LONG, ROOT, SEED, Publishing, ended
from tests.fix_policy import ANYTHING

VARIANTS = 10_000 if LONG else 500


class Stored:
    """A copy of a store with two generations, for one test to damage."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.store = GenerationStore(path)
        self.manifest_path = path / "manifest.json"
        found = self.store.current()
        assert found is not None
        self.manifest: Manifest = found
        self.file = path / found.file
        self.before = path / found.previous[0].file

    def put(self, path: pathlib.Path, data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def refused(self) -> str:
        with pytest.raises(RuleTableError) as caught:
            self.store.open_current()
        return str(caught.value)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    world = Publishing(tmp_path_factory.mktemp("published"))
    # Large enough for pages of its own, which LMDB maps and nobody copies.
    world.publish("".join(f'@id("p{i}") {ANYTHING} when {{ context.n == {i} }};\n' for i in range(100)))
    return world.store_path


@pytest.fixture
def stored(published: pathlib.Path, tmp_path: pathlib.Path) -> Stored:
    return Stored(shutil.copytree(published, tmp_path / "store"))


def flips(data: bytes, count: int) -> list[bytes]:
    """`data` with one bit changed, `count` times somewhere else; all places when there are no more."""
    chance = random.Random(SEED)
    bits = range(8 * len(data)) if 8 * len(data) <= count else chance.sample(range(8 * len(data)), count)
    made = []
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        made.append(bytes(changed))
    return made


# ---------------------------------------------------------------- the file of a generation


def test_db_15_no_flipped_bit_reaches_lmdb(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """DB-15: the file's digest is compared before LMDB opens or maps it."""
    whole = stored.file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", lambda *_, **__: pytest.fail("lmdb saw a damaged file"))
        for data in flips(whole, VARIANTS):
            stored.put(stored.file, data)
            assert "is damaged: digest of the file is sha256:" in stored.refused()
    stored.put(stored.file, whole)
    stored.store.open_current().close()


def test_db_14_a_file_of_another_length_is_refused(stored: Stored) -> None:
    """DB-14: cut at every page and beside it, and longer than it was."""
    whole = stored.file.read_bytes()
    cuts = {cut + off for cut in range(0, len(whole), 4096) for off in (-1, 0, 1, 100)} - {-1}
    for cut in sorted(cuts):
        stored.put(stored.file, whole[:cut])
        assert f"the file has {cut} bytes, the manifest says {len(whole)}; publish it again" in stored.refused()
    stored.put(stored.file, whole + bytes(4096))
    assert f"the file has {len(whole) + 4096} bytes" in stored.refused()


def test_swapped_files_are_refused(stored: Stored) -> None:
    """The generation before under the name of the one in force, and the other way round."""
    now, before = stored.file.read_bytes(), stored.before.read_bytes()
    assert len(now) != len(before)
    stored.put(stored.file, before)
    stored.put(stored.before, now)
    assert "is damaged: the file has" in stored.refused()
    stored.put(stored.file, before.ljust(len(now), b"\0"))
    assert "is damaged: digest of the file is" in stored.refused()


def test_what_is_no_regular_file_is_refused_and_nothing_waits_for_it(stored: Stored) -> None:
    """A folder, a pipe that nobody writes, a socket and a link into nothing, where a generation or a manifest was."""
    makers = [os.mkdir, os.mkfifo, listen_at, lambda path: os.symlink("nowhere", path)]
    for path in (stored.file, stored.manifest_path):
        whole = path.read_bytes()
        for make in makers:
            path.unlink()
            make(path)
            assert "publish" in stored.refused()
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(whole)
    stored.store.open_current().close()


def listen_at(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # Names of sockets are short, so it is bound where it is reached through its folder's descriptor.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


def test_a_file_that_its_manifest_describes_and_lmdb_cannot_read_is_refused(stored: Stored) -> None:
    """DB-15, DB-16: digests prove what was written, not that it was right: format and length are checked as well."""
    whole = stored.file.read_bytes()

    def put(data: bytes) -> str:
        stored.put(stored.file, data)
        with open(stored.file, "rb", buffering=0) as file:
            named = msgspec.structs.replace(stored.manifest, file_digest=digest_of(file), file_size=len(data))
        stored.put(stored.manifest_path, msgspec.json.encode(named.sealed()))
        return stored.refused()

    assert "it is no LMDB file" in put(os.urandom(8192))
    assert "it is no LMDB file" in put(b"")
    assert "it is no whole LMDB file" in put(whole[:-4096])
    assert "it is no LMDB file" in put(whole[:100])
    assert "it has LMDB format 2, this engine reads 1" in put(whole[:20] + b"\2" + whole[21:])
    assert "it is no whole LMDB file" in put(whole[:40] + bytes(4) + whole[44:])
    other = stored.path / "other.mdb"
    with (
        lmdb.open(str(other), subdir=False, lock=False, map_size=1 << 24, lib_version=1) as env,
        env.begin(write=True) as txn,
    ):
        txn.put(IMAGE_KEY, bytes(stored.manifest.size))
    assert "it is no LMDB file" in put(other.read_bytes())


def test_a_file_that_is_replaced_after_it_was_verified_is_not_what_gets_mapped(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bears the name between the check and the mapping is never read."""
    opened = lmdb.open

    def swap_and_open(*arguments: object, **options: object) -> object:
        stored.put(stored.file, stored.before.read_bytes())
        return opened(*arguments, **options)

    monkeypatch.setattr(lmdb, "open", swap_and_open)
    with stored.store.open_current() as generation:
        assert generation.digest == stored.manifest.digest
        assert len(generation.policy_ids) == 100


# ---------------------------------------------------------------- the manifest


def test_no_flipped_bit_of_a_manifest_is_read(stored: Stored) -> None:
    """The manifest carries its own digest: no number, name or digest in it can change unseen."""
    whole = stored.manifest_path.read_bytes()
    for data in flips(whole, 1 << 20 if LONG else VARIANTS):
        stored.put(stored.manifest_path, data)
        assert "manifest.json` " in stored.refused()
    for cut in range(len(whole)):
        stored.put(stored.manifest_path, whole[:cut])
        if whole[cut:].strip():
            assert "manifest.json` is damaged" in stored.refused()


def test_a_manifest_without_its_digest_or_of_another_store_is_refused(stored: Stored, tmp_path: pathlib.Path) -> None:
    """A digest that is left out proves nothing; a sound manifest does not make other files its own."""
    bare = msgspec.structs.replace(stored.manifest, manifest_digest="")
    stored.put(stored.manifest_path, msgspec.json.encode(bare))
    assert "is damaged: it is not what its digest says" in stored.refused()
    other = Publishing(tmp_path, tmp_path / "other")
    other.publish(f'@id("other") {ANYTHING};')
    stored.put(stored.manifest_path, (other.store_path / "manifest.json").read_bytes())
    assert f"{stored.file.name}` is damaged" in stored.refused()


# ---------------------------------------------------------------- under a running process


SERVER = """
import resource, sys
from fastpath.evaluator import Evaluator
from sidecar.policy.cells import encode_context
from sidecar.policy.store import GenerationStore
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
generation = GenerationStore(sys.argv[1]).open_current()
asked = Evaluator(generation)
for _ in sys.stdin if print("ready", flush=True) is None else ():
    print(asked.evaluate(("A", "p"), ("Action", "a"), ("R", "r"), encode_context({"n": 3})).reasons, flush=True)
"""


def serve(stored: Stored) -> "subprocess.Popen[str]":
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(stored.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def ask(server: "subprocess.Popen[str]") -> str:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    return server.stdout.readline().strip()


def test_db_14_a_file_that_is_removed_or_replaced_goes_on_serving(stored: Stored) -> None:
    """DB-14: a mapping outlives the name of its file."""
    with serve(stored) as server:
        answer = ask(server)
        assert answer == "['p3']"
        stored.put(stored.file, os.urandom(100))
        assert ask(server) == answer
        shutil.rmtree(stored.path)
        assert ask(server) == answer


def test_db_14_a_file_cut_under_its_reader_gives_no_wrong_answer_and_no_second_start(stored: Stored) -> None:
    """DB-14: files have mode 0444, so only root cuts one; the reader dies of SIGBUS, and the next start refuses it."""
    assert stored.file.stat().st_mode & 0o777 == 0o444
    with serve(stored) as server:
        stored.file.chmod(0o600)
        os.truncate(stored.file, 0)
        answer = ask(server)
        assert server.wait(60) == -signal.SIGBUS
        assert answer == ""
    assert "the file has 0 bytes" in stored.refused()


def test_db_15_the_command_line_survives_every_kind_of_damage(stored: Stored) -> None:
    """A process that meets a damaged store ends with a sentence, not with a signal."""
    program = """
import sys
from sidecar.errors import RuleTableError
from sidecar.policy.store import GenerationStore
try:
    GenerationStore(sys.argv[1]).open_current()
except RuleTableError as error:
    print(error)
"""
    whole = stored.file.read_bytes()
    for data in (b"", whole[:5000], whole[:16] + b"\xff" * 4080 + whole[4096:], os.urandom(len(whole))):
        stored.put(stored.file, data)
        done = ended([sys.executable, "-c", program, str(stored.path)])
        assert (done.status, done.stderr) == (0, "")
        assert done.said.endswith("; publish it again")


def test_a_generation_needs_no_name_to_be_read_again(stored: Stored) -> None:
    """Two tables over one file share its mapping; the second is verified as the first was."""
    first = stored.store.open_current()
    second = stored.store.open_current(strict=False)
    assert isinstance(first, Generation)
    first.close()
    assert len(second.policy_ids) == 100
    second.close()
