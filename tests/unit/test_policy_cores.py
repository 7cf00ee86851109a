"""Work that processes share comes back in order and whole, or not at all; the image never shows how many there were."""

import os
import signal
import time

import pytest

from sidecar.errors import PolicyError
from sidecar.policy import cores
from sidecar.policy import parse as parsing
from sidecar.policy.compile import compile_image
from sidecar.policy.cores import in_order
from tests.fix_policy import ANYTHING

SCHEMA = "entity A { n: Long }; entity R; action a appliesTo { principal: A, resource: R, context: { n: Long } };"


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_order(processes, monkeypatch):
    """Rounds, shares and empty results: nothing is lost or swapped."""
    monkeypatch.setattr(cores, "BATCH", 2)
    items = list(range(17))
    found = list(in_order(lambda item: b"" if item % 5 == 0 else b"x" * item * 10_000, items, processes))
    assert [len(result) for result in found] == [0 if item % 5 == 0 else item * 10_000 for item in items]


@pytest.mark.parametrize(
    ("death", "named"), [(lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"), (lambda: os._exit(3), "status 3")]
)
def test_a_process_that_dies_is_a_refusal(death, named):
    """Half of the results would pass for all of them."""
    home = os.getpid()

    def work(_item):
        if os.getpid() != home:
            death()
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # the other has taken an item and is dead
        return b"done"

    with pytest.raises(PolicyError, match=f"the compiler died on .*{named}"):
        list(in_order(work, [1, 2, 3], 2))


def test_a_process_whose_parent_was_gone_first_ends_by_itself(tmp_path, monkeypatch):
    """The kernel tells of an end that comes: one that came between the fork and the request would be missed, and the
    process would work on and hold the pipe from which its caller waits for an end."""
    real, began = cores.end_with_parent, tmp_path / "began"
    ready, go = os.pipe()

    def late(parent):
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            time.sleep(0.001)
        real(parent)

    monkeypatch.setattr(cores, "end_with_parent", late)
    compiler = os.fork()
    if not compiler:
        os.close(ready)
        home = os.getpid()
        list(in_order(lambda _item: signal.pause() if os.getpid() == home else began.touch(), [1, 2], 2))
        os._exit(0)
    os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(compiler, 0)[1]) == -signal.SIGKILL
    assert os.read(ready, 1) == b""  # both are gone
    os.close(ready)
    assert not began.exists()


def texts(count, bad=-1):
    return "".join(
        f'@id("p{i:03d}") {ANYTHING} when {{ context.n == {i} && context.{"x" * (i == bad)}n != {i} }};\n'
        for i in range(count)
    )


def test_the_image_is_the_same_for_any_number_of_processes(monkeypatch):
    """PO-02: equal content gives equal bytes."""
    monkeypatch.setattr(parsing, "CHUNK_POLICIES", 7)
    made = {compile_image(texts(60), schema=SCHEMA, processes=count).digest for count in (1, 2, 3)}
    assert len(made) == 1


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("at", [0, 13, 59])
def test_the_policy_at_fault_is_named_whoever_read_it(processes, at, monkeypatch):
    """The first chunk that is refused speaks, for what cannot be parsed and for what the schema does not allow."""
    monkeypatch.setattr(parsing, "CHUNK_POLICIES", 7)
    with pytest.raises(PolicyError, match=rf"policy `p{at:03d}` \(policies:{at + 1}:1\) attribute `xn`"):
        compile_image(texts(60, at), schema=SCHEMA, processes=processes)
    broken = texts(60).replace(f"context.n == {at} ", f"context.n == {at} + ")
    with pytest.raises(PolicyError, match=rf"policy `p{at:03d}` \(policies:{at + 1}:1\) cannot be parsed"):
        compile_image(broken, schema=SCHEMA, processes=processes)
