"""A live sidecar under what operators, disks and signals do to its control plane (rows SY-01, SY-07, SY-08, DB-05)."""

import json
import os
import pathlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.demo.processes import wait_for
from tests.fix_children import children
from tests.fix_serve import AGENT, PERMIT, Served, made_sidecar, outcome, question


@pytest.fixture
def served() -> Iterator[Served]:
    """A sidecar of the test's own, not started yet."""
    with made_sidecar() as made:
        yield made


def policies(count: int) -> str:
    """So many policies that compiling them takes a while."""
    rule = 'permit (principal == Agent::"a{0}", action, resource) when {{ context.call.data_level < {0} }};'
    return PERMIT + "".join(f'@id("p{i}") ' + rule.format(i) + "\n" for i in range(count))


def reloads(served: Served) -> int:
    lines = served.http("/metrics")[1].splitlines()
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith("remit_reloads_total"))


def test_many_hangups_make_few_reloads(served: Served) -> None:
    """Each SIGHUP is followed by a reload that began after it; they do not queue up."""
    process = served.start_ready()
    served.policy.write_text(policies(1000))
    threads = pathlib.Path(f"/proc/{process.pid}/task")
    before = len(list(threads.iterdir()))
    for _ in range(50):
        os.kill(process.pid, signal.SIGHUP)
        with served.agent_socket() as agent:
            assert outcome(agent, question()) == ("ALLOW", "ok")
    assert len(list(threads.iterdir())) < before + 10
    wait_for("the reload", lambda: served.status().generation == 2)
    wait_for("quiet", lambda: not children(process.pid))
    assert reloads(served) < 40


@pytest.mark.parametrize("way", ["control", "signal"])
def test_a_stop_ends_a_reload_in_progress(served: Served, way: str) -> None:
    """SIGTERM does not wait for the compiler, leaves no process behind, and the last generation stays."""
    process = served.start_ready()
    served.policy.write_text(policies(20_000))
    answers: list[tuple[int, list[str]] | grpc.StatusCode] = []

    def ask() -> None:
        try:
            answer = served.reload()
            answers.append((answer.generation, list(answer.problems)))
        except grpc.RpcError as error:
            answers.append(error.code())

    asked = threading.Thread(target=ask)
    if way == "control":
        asked.start()
    else:
        os.kill(process.pid, signal.SIGHUP)
    wait_for("the compiler", lambda: bool(children(process.pid)))
    (compiler,) = children(process.pid)
    assert process.stop() == 0
    assert not pathlib.Path(f"/proc/{compiler}").exists()
    if way == "control":
        asked.join()
        # The end of the connection can overtake the answer: a gRPC client that cannot write any more reads no more.
        (answer,) = answers
        assert answer in ((1, ["the process stops; nothing is published any more"]), grpc.StatusCode.UNAVAILABLE)
    assert [line["event"] for line in served.log()][-1] == "stopped"
    served.policy.write_text(PERMIT)
    served.start().wait_until("ready", lambda: served.status().ready)
    assert served.status().generation == 1


def test_a_killed_sidecar_takes_its_compiler_along(served: Served) -> None:
    """SIGKILL of the parent ends the child, which would go on taking processor and memory for nobody."""
    process = served.start_ready()
    served.policy.write_text(policies(20_000))
    os.kill(process.pid, signal.SIGHUP)
    wait_for("the compiler", lambda: bool(children(process.pid)))
    (compiler,) = children(process.pid)
    # Its limits are set set after it tied itself to its parent.
    limits = pathlib.Path(f"/proc/{compiler}/limits")
    wait_for("the compiler at work", lambda: "unlimited" not in limits.read_text().split("Max cpu time")[1][:40])
    process.kill()
    wait_for("its end", lambda: not pathlib.Path(f"/proc/{compiler}").exists())


def test_a_killed_compiler_is_a_refusal(served: Served) -> None:
    """The sidecar lives, says what happened, and decides by the last generation."""
    process = served.start_ready()
    served.policy.write_text(policies(20_000))
    answers: list[control_pb2.ReloadResponse] = []
    asked = threading.Thread(target=lambda: answers.append(served.reload()))
    asked.start()
    wait_for("the compiler", lambda: bool(children(process.pid)))
    os.kill(children(process.pid)[0], signal.SIGKILL)
    asked.join()
    assert answers[0].generation == 1
    assert "the compiler died on SIGKILL" in answers[0].problems[0]
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")


# ---------------------------------------------------------------- bad input at a reload

SCHEMA = """
entity Agent; entity Tool;
action "read" appliesTo { principal: [Agent], resource: [Tool], context: {} };
"""
TEMPLATE = '@id("to") permit (principal == ?principal, action == Action::"read", resource);\n'
LINK = {"id": "linked", "template": "to", "slots": {"?principal": {"type": "Agent", "id": AGENT}}}
NAMES = ("policies/base.cedar", "agents.cedarschema", "entities.json", "links.jsonl", "remit.yaml")


@pytest.fixture(scope="module")
def whole() -> Iterator[Served]:
    """A ready sidecar with a file of every kind, for tests that leave it as they found it."""
    with made_sidecar() as made:
        made.policy.write_text(TEMPLATE)
        (made.folder / "agents.cedarschema").write_text(SCHEMA)
        (made.folder / "entities.json").write_text("[]")
        (made.folder / "links.jsonl").write_text(json.dumps(LINK))
        made.settings["policy"] |= {
            "schema": "agents.cedarschema",
            "entities": "entities.json",
            "links": "links.jsonl",
            "limits": {"text_bytes_max": 10_000, "schema_bytes_max": 10_000, "entities_bytes_max": 10_000},
        }
        made.start_ready()
        yield made


KINDS: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "gone": (os.fspath, "no such file"),
    "folder": (lambda path: path.mkdir(), "is a directory"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "loop": (lambda path: path.symlink_to(path.name), "too many levels of symbolic links"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "latin": (lambda path: path.write_bytes(b"# \xe9\n"), "is not UTF-8 (line 1, byte 2)"),
    "huge": (lambda path: path.write_bytes(b" " * (2 << 20)), "is larger than"),
    "nul": (lambda path: path.write_bytes(b"\0" * 10), ""),
    "half": (lambda path: path.write_text("{["), ""),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_file_at_a_reload_leaves_the_last_good_state(whole: Served, name: str, kind: str) -> None:
    """Policies, schema, entities, links and configuration: named with the cause; the old state decides on."""
    path = whole.folder / name
    aside = whole.folder / "aside"
    make, cause = KINDS[kind]
    path.rename(aside)
    try:
        make(path)
        answer = whole.reload()
        if name.startswith("policies/") and kind in ("gone", "folder"):
            cause = "is a directory" if kind == "folder" else "no `*.cedar` file"
        assert (answer.generation, len(answer.problems)) == (1, 1)
        named = "policies" if name.startswith("policies/") else "schema" if name == "agents.cedarschema" else name
        assert named in answer.problems[0]
        assert cause in answer.problems[0]
        with whole.agent_socket() as agent:
            assert outcome(agent, question()) == ("ALLOW", "ok")
        assert whole.status().ready
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        aside.rename(path)
    assert not whole.reload().problems
    assert "Traceback" not in whole.folder.joinpath("sidecar.log").read_text()


# ---------------------------------------------------------------- disks


@pytest.fixture
def small_disk(served: Served) -> Iterator[pathlib.Path]:
    """A file system of 2 MiB inside the sidecar's folder."""
    disk = served.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        served.stop()
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: pathlib.Path) -> pathlib.Path:
    """A file that takes all that is left."""
    path = disk / "fill"
    with pytest.raises(OSError, match="No space left"):
        path.write_bytes(b"x" * (4 << 20))
    return path


def test_db_05_a_full_disk_refuses_a_publish_and_keeps_the_last_generation(
    served: Served, small_disk: pathlib.Path
) -> None:
    """The cause is named; with room again the next reload goes through. The same for a disk that became read-only."""
    served.settings["policy"]["store"] = "disk/generations"
    served.start_ready()
    filler = fill(small_disk)
    served.policy.write_text(policies(10))
    answer = served.reload()
    assert (answer.generation, "no space left on device" in answer.problems[0]) == (1, True)
    assert not list(small_disk.glob("generations/.new-*"))
    with served.agent_socket() as agent:
        assert outcome(agent, question()) == ("ALLOW", "ok")
    filler.unlink()
    assert served.reload().generation == 2
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    served.policy.write_text(policies(11))
    answer = served.reload()
    assert (answer.generation, "read-only file system" in answer.problems[0]) == (2, True)
    assert served.status().ready


def test_lg_06_a_full_disk_under_the_journal_answers_error_until_there_is_room(
    served: Served, small_disk: pathlib.Path
) -> None:
    """No answer without its record; no restart is needed afterwards."""
    served.settings["journal"] = {"dir": "disk/journal", "segment_bytes": 1 << 16, "cap_bytes": 1 << 24}
    process = served.start_ready()
    filler = fill(small_disk)
    with served.agent_socket() as agent:
        process.wait_until("refused", lambda: outcome(agent, question()) == ("UNAVAILABLE", "journal.full"))
        process.wait_until("not ready", lambda: served.http("/readyz") == (503, "not_ready.journal\n"))
        cause = "no journal segment can be allocated: No space left on device"
        process.wait_until("the cause is told", lambda: served.status().journal.problem == cause)
        # A table breaks lines.
        assert f"journal's problem {cause}" in " ".join(served.remit("status").stdout.split())
        assert "to mend: sidecar, journal" in served.remit("doctor").stderr
        filler.unlink()
        process.wait_until("decided again", lambda: outcome(agent, question()) == ("ALLOW", "ok"))
        process.wait_until("it is over", lambda: not served.status().journal.problem)


# ---------------------------------------------------------------- a long life


def test_sy_12_rotations_and_reloads_leave_no_descriptors_and_threads(served: Served) -> None:
    """What a rotation, a reload and a refused reload open, they close."""
    process = served.start_ready()

    def held() -> tuple[int, int]:
        proc = pathlib.Path(f"/proc/{process.pid}")
        return len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))

    def work(rounds: int) -> None:
        for i in range(rounds):
            served.give_svid()
            served.policy.write_text("permit (" if i % 3 == 2 else policies(i % 3))
            served.reload()
            with served.agent_socket() as agent:
                assert outcome(agent, question())[0] == "ALLOW"

    work(3)
    descriptors, threads = held()
    work(6)
    # A connection of ours that just ended may still be counted.
    wait_for("nothing is left", lambda: held()[0] <= descriptors + 2 and held()[1] <= threads + 2)
