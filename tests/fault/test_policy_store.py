"""Publishing: one rename commits, a bad publish changes nothing, a kill leaves old or new in force (PO-10)."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from fastpath.table import Generation
from sidecar.errors import PolicyError, RuleTableError
from sidecar.policy.source import PolicySource, SourceFiles
from sidecar.policy.store import GenerationStore
from tests.fix_policy import ANYTHING

DEADLINE_S = 60
PUBLISHER = """
import sys
from sidecar.policy.source import PolicySource, SourceFiles
from sidecar.policy.store import GenerationStore
print("ready", flush=True)
print(GenerationStore(sys.argv[1]).publish(PolicySource(SourceFiles([sys.argv[2]]))).generation, flush=True)
"""
HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


class Bench:
    """A store and a policy folder that a test writes into."""

    def __init__(self, root):
        self.folder = root / "policies"
        self.folder.mkdir()
        self.store_path = root / "store"
        self.store = GenerationStore(self.store_path)

    def write(self, *ids):
        text = "".join(f'@id("{id_}") {ANYTHING};\n' for id_ in ids)
        (self.folder / "a.cedar").write_text(text)
        return PolicySource(SourceFiles([str(self.folder)]))

    def publish(self, *ids):
        return self.store.publish(self.write(*ids))

    def in_force(self):
        with self.store.open_current() as generation:
            return generation.policy_ids

    def files(self):
        return sorted(os.listdir(self.store_path))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_before_the_first_publish_there_is_nothing(bench):
    assert bench.store.current() is None
    with pytest.raises(RuleTableError, match="holds no generation; publish policies first"):
        bench.store.open_current()


def test_a_publish_is_in_force_and_says_what_it_was_made_of(bench):
    manifest = bench.publish("one")
    assert bench.in_force() == ["one"]
    assert bench.store.current() == manifest
    assert list(manifest.built_from) == [str(bench.folder / "a.cedar")]
    assert (manifest.generation, manifest.report.policies, manifest.previous) == (1, 1, [])
    assert os.stat(bench.store_path / manifest.file).st_mode & 0o777 == 0o444
    assert os.stat(bench.store_path).st_mode & 0o777 == 0o700


def test_equal_content_keeps_the_generation(bench):
    first = bench.publish("one")
    with bench.store.open_current() as held:
        assert bench.publish("one") == first
        assert held.generation == 1
    assert bench.publish("two").generation == 2


def test_numbers_only_grow_and_two_before_stay(bench):
    """A reader of an older generation keeps its file; the one in force and two before it stay on disk."""
    bench.publish("p0")
    with bench.store.open_current() as held:
        manifests = [bench.publish(f"p{i}") for i in range(1, 5)]
        assert held.policy_ids == ["p0"]
    assert [manifest.generation for manifest in manifests] == [2, 3, 4, 5]
    assert [stored.generation for stored in manifests[-1].previous] == [4, 3]
    assert bench.files() == [
        "generation-0000000003.mdb",
        "generation-0000000004.mdb",
        "generation-0000000005.mdb",
        "lock",
        "manifest.json",
    ]
    for stored in manifests[-1].previous:
        named = {name: value for name, value in msgspec.structs.asdict(stored).items() if name != "file"}
        Generation.open(bench.store_path / stored.file, **named).close()


@pytest.mark.parametrize(
    "text",
    [
        "not cedar",
        f"{ANYTHING};",
        f'@id("a") @shdow("") {ANYTHING};',
        "",
        f'@id("a") {ANYTHING} when {{ {"(" * 100}1{")" * 100} == 1 }};',
    ],
    ids=["syntax", "no id", "lookalike", "empty", "too deep"],
)
def test_a_bad_publish_changes_nothing(bench, text):
    """The last good generation stays in force, and nothing of the bad one stays on disk."""
    before = bench.publish("good")
    (bench.folder / "a.cedar").write_text(text)
    with pytest.raises(PolicyError):
        bench.store.publish(PolicySource(SourceFiles([str(bench.folder)])))
    assert bench.store.current() == before
    assert bench.in_force() == ["good"]
    assert bench.files() == [before.file, "lock", "manifest.json"]


def test_one_process_publishes_at_a_time(bench, monkeypatch):
    """A second writer waits for its turn, and is refused when that does not come; the lock ends with its process."""
    monkeypatch.setattr("sidecar.policy.store.WAIT_S", 0)
    source = bench.write("one")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(bench.store_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PolicyError, match="another process is publishing into"):
            bench.store.publish(source)
        assert GenerationStore(bench.store_path).current() is None
        holder.kill()
    assert bench.store.publish(source).generation == 1


def test_a_reader_takes_no_lock(bench, monkeypatch):
    """A command that opens a clean store is never the other publisher that a reload is refused for."""
    bench.publish("one")
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("a reader locked the store"))
    with GenerationStore(bench.store_path).open_current() as generation:
        assert generation.policy_ids == ["one"]


def test_what_an_interrupted_publish_left_is_removed_at_start(bench):
    """Temporary files and a generation whose manifest never came are rubbish; what is named stays."""
    bench.publish("one")
    for name in (".new-generation-0000000002.mdb", ".new-manifest.json", "generation-0000000002.mdb"):
        (bench.store_path / name).write_bytes(b"half")
    (bench.store_path / "notes.txt").write_text("mine")
    store = GenerationStore(bench.store_path)
    assert bench.files() == ["generation-0000000001.mdb", "lock", "manifest.json", "notes.txt"]
    assert store.current().generation == 1


@pytest.mark.parametrize("text", ["", "{}", '{"generation": "x"}', "\0" * 100])
def test_a_damaged_manifest_is_reported_and_a_publish_mends_it(bench, text):
    """The generations stay where they are, and the next number is above all of them."""
    bench.publish("one")
    (bench.store_path / "manifest.json").write_text(text)
    with pytest.raises(RuleTableError, match=r"manifest\.json` is damaged: .*; publish again"):
        bench.store.current()
    GenerationStore(bench.store_path)
    assert "generation-0000000001.mdb" in bench.files()
    assert bench.publish("one").generation == 2
    assert bench.in_force() == ["one"]


def test_a_manifest_cannot_name_a_file_elsewhere(bench):
    bench.publish("one")
    path = bench.store_path / "manifest.json"
    elsewhere = msgspec.structs.replace(bench.store.current(), file="../generation-0000000001.mdb").sealed()
    path.write_bytes(msgspec.json.encode(elsewhere))
    with pytest.raises(RuleTableError, match="which is no generation; publish again"):
        bench.store.open_current()


def test_a_damaged_generation_is_refused_and_a_publish_mends_it(bench):
    """Every flipped bit in the image is found by its digest; equal content is published anew."""
    manifest = bench.publish("one")
    path = bench.store_path / manifest.file
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"REMITGEN") + 200] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(raw))
    with pytest.raises(RuleTableError, match="digest"):
        bench.store.open_current()
    assert bench.publish("one").generation == 2
    assert bench.in_force() == ["one"]


def test_a_generation_that_is_gone_is_refused_and_a_publish_mends_it(bench):
    manifest = bench.publish("one")
    os.unlink(bench.store_path / manifest.file)
    with pytest.raises(RuleTableError):
        bench.store.open_current()
    assert bench.publish("one").generation == 2


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PolicyError, match=r"file/store` cannot be used: not a directory \(ENOTDIR\)"):
        GenerationStore(tmp_path / "file" / "store")


def test_a_kill_at_any_moment_leaves_the_old_generation_or_the_new(bench):
    """PO-10: 20 publishers die by SIGKILL at random moments, half of them without their compiler, which lives on.

    The generation in force always opens, and its number never falls.
    """
    bench.publish("start")
    moments = random.Random(7)
    sample = time_of_publish(bench)
    number = bench.store.current().generation
    for i in range(20):
        bench.write(f"p{i}")
        kill_after(bench, moments.uniform(0, sample), orphan=i % 2 == 1)
        manifest = GenerationStore(bench.store_path).current()
        assert manifest.generation in (number, number + 1)
        wanted = [f"p{i}"] if manifest.generation > number else None
        found = bench.in_force()
        assert wanted is None or found == wanted
        number = manifest.generation
    assert bench.publish("end").generation == number + 1


def start(bench):
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(bench.store_path), str(bench.folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def time_of_publish(bench):
    bench.write("sample")
    started = time.monotonic()
    with start(bench) as process:
        assert process.wait(DEADLINE_S) == 0
    return time.monotonic() - started


def kill_after(bench, moment_s, *, orphan):
    """Kill a publisher, and its compiler unless `orphan`, `moment_s` after it began; it may be done by then."""
    with start(bench) as process:
        try:
            process.wait(moment_s)
        except subprocess.TimeoutExpired:
            if orphan:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
