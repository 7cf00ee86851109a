"""A live sidecar under what operators, disks and signals do to its control plane (rows SY-01, SY-07, SY-08, DB-05)."""

import os
import pathlib
import signal
import threading
from collections.abc import Iterator

import pytest

from sidecar._proto.remit.control.v1 import control_pb2
from sidecar.demo.processes import wait_for
from tests.fix_serve import PERMIT, Served, made_sidecar, outcome, question


@pytest.fixture
def served() -> Iterator[Served]:
    """A sidecar of the test's own, not started yet."""
    with made_sidecar() as made:
        yield made


def policies(count: int) -> str:
    """So many policies that compiling them takes a while."""
    rule = 'permit (principal == Agent::"a{0}", action, resource) when {{ context.call.data_level < {0} }};'
    return PERMIT + "".join(f'@id("p{i}") ' + rule.format(i) + "\n" for i in range(count))


def children(pid: int) -> list[int]:
    """Processes that this one started."""
    tasks = pathlib.Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


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
    served.policy.write_text(policies(40_000))
    answers: list[control_pb2.ReloadResponse] = []
    asked = threading.Thread(target=lambda: answers.append(served.reload()))
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
        assert (answers[0].generation, list(answers[0].problems)) == (
            1,
            ["the process stops; nothing is published any more"],
        )
    assert [line["event"] for line in served.log()][-1] == "stopped"
    served.policy.write_text(PERMIT)
    served.start().wait_until("ready", lambda: served.status().ready)
    assert served.status().generation == 1


def test_a_killed_sidecar_takes_its_compiler_along(served: Served) -> None:
    """SIGKILL of the parent ends the child, which would go on taking processor and memory for nobody."""
    process = served.start_ready()
    served.policy.write_text(policies(40_000))
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
