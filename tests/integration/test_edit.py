"""Edits of a running sidecar: `remit policy put` and its like decide from the next call on, without a reload."""

import contextlib
import getpass
import os
import pathlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar.cli.output import EXIT_UNREACHABLE
from sidecar.services.control import Control
from sidecar.services.uid_door import CONNECTIONS
from tests.fix_serve import AGENT, CHECK, TIMEOUT_S, Served, made_sidecar, outcome, question

FREEZE = '@id("freeze") forbid (principal, action, resource);'
LINKED = '@id("one") permit (principal == ?principal, action == Action::"write", resource);'
ALLOWED = ("ALLOW", "ok")


@pytest.fixture
def running() -> Iterator[Served]:
    """A ready sidecar of the test's own."""
    with made_sidecar() as made:
        made.start_ready()
        yield made


def edit(served: Served, **parts: object) -> control_pb2.EditResponse:
    with served.control() as channel:
        return control_pb2_grpc.ControlStub(channel).Edit(control_pb2.EditRequest(**parts), timeout=TIMEOUT_S)


def text(cedar: str) -> list[control_pb2.NamedText]:
    return [control_pb2.NamedText(name="urgent.cedar", text=cedar)]


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def outcome_of(raw: bytes) -> tuple[int, str]:
    """Generation and outcome of an encoded answer."""
    answer = authz_pb2.CheckResponse.FromString(raw)
    return answer.generation, authz_pb2.Outcome.Name(answer.outcome).removeprefix("OUTCOME_")


def test_a_command_decides_when_it_ends(running: Served) -> None:
    """`put` denies the next call and `remove` allows it again; a restart keeps what stands."""
    (running.folder / "freeze.cedar").write_text(FREEZE)
    with running.agent_socket() as agent:
        assert outcome(agent, question()) == ALLOWED
        put = lines(running.remit("policy", "put", str(running.folder / "freeze.cedar")))
        assert put[0] == "put policy `freeze`"
        assert put[1].endswith("; 1 edit stands over the files")
        assert outcome(agent, question()) == ("DENY", "policy.forbid")
    assert running.stop() == 0
    running.start_ready()
    with running.agent_socket() as agent:
        assert outcome(agent, question()) == ("DENY", "policy.forbid")
        lines(running.remit("policy", "remove", "freeze"))
        assert outcome(agent, question()) == ALLOWED


def test_templates_links_and_entities_are_edited_alike(running: Served) -> None:
    """A template, a link of it, its end by `unlink`, and an entity that comes and goes."""
    put = edit(running, policies=text(LINKED))
    assert (list(put.problems), [(one.title, one.removed) for one in put.edits]) == ([], [("policy `one`", False)])
    with running.agent_socket() as agent:
        assert outcome(agent, question("write")) == ("DENY", "policy.none")
        principal = control_pb2.EntityUid(type="Agent", id=AGENT)
        assert not edit(running, links=[{"id": "l", "template": "one", "principal": principal}]).problems
        assert outcome(agent, question("write")) == ALLOWED
        assert not edit(running, unlinked=["l"]).problems
        assert outcome(agent, question("write")) == ("DENY", "policy.none")
    clerk = text('{"uid": {"type": "Clerk", "id": "c"}, "attrs": {}, "parents": []}')
    assert [one.title for one in edit(running, entities=clerk).edits] == ['entity `Clerk::"c"`']
    gone = edit(running, entities_removed=[control_pb2.EntityUid(type="Clerk", id="c")])
    assert [(one.title, one.removed) for one in gone.edits] == [('entity `Clerk::"c"`', True)]


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ({"policies": text("permit (")}, "urgent.cedar"),
        ({"policies": text("permit (principal, action, resource);")}, "@id"),
        ({"removed": ["nothing"]}, "nothing"),
        ({"links": [{"id": "l", "template": "none"}]}, "none"),
        ({"entities": text("[]]")}, "urgent.cedar"),
        ({"entities": text("\0")}, "urgent.cedar"),
        ({"entities": text('[{"uid": 7}]')}, "uid"),
        ({"policies": text(FREEZE + FREEZE)}, "freeze"),
        ({"policies": [*text(FREEZE), *text(FREEZE)]}, "freeze"),
        ({"policies": text(FREEZE), "removed": ["freeze"]}, "freeze"),
        ({"removed": ["low", "low"]}, "low"),
        ({"links": [{"id": "", "template": ""}]}, "template"),
        ({"entities_removed": [control_pb2.EntityUid(type="Clerk", id="c")]}, "Clerk"),
    ],
)
def test_what_is_refused_changes_nothing(running: Served, parts: dict[str, object], cause: str) -> None:
    """The answer names the cause; the generation in force, its edits and its decisions are what they were."""
    before = running.status()
    refused = edit(running, **parts)
    assert [cause in problem for problem in refused.problems] == [True]
    assert (refused.generation, refused.generation_digest) == (before.generation, before.generation_digest)
    with running.agent_socket() as agent:
        assert outcome(agent, question()) == ALLOWED
    assert lines(running.remit("policy", "edits", "--json")) == []


def test_an_edit_names_its_author_and_stands_among_the_decisions(running: Served) -> None:
    """The account is the kernel's word for who called; the change is in the sequence of what it changes."""
    edit(running, policies=text(FREEZE))
    (shown,) = lines(running.remit("policy", "edits", "--json"))
    assert f'"by": "{getpass.getuser()}"' in shown
    (told,) = [line for line in running.log() if line["event"] == "edit.applied"]
    assert told["detail"] == f"{getpass.getuser()}: policy `freeze`"


def test_calls_meanwhile_see_one_generation_each(running: Served) -> None:
    """Edits under load: no call fails, and each answer agrees with the generation that it names."""
    seen: list[tuple[int, str]] = []
    failures: list[grpc.RpcError] = []
    done = threading.Event()

    def ask() -> None:
        with running.agent_socket() as agent:
            stub = agent.unary_unary(CHECK)
            while not done.is_set():
                try:
                    seen.append(outcome_of(stub(question().SerializeToString(), timeout=TIMEOUT_S)))
                except grpc.RpcError as error:
                    failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    frozen: set[int] = set()
    for _ in range(5):
        frozen.add(edit(running, policies=text(FREEZE)).generation)
        edit(running, removed=["freeze"])
    done.set()
    asking.join()
    assert not failures
    assert {generation in frozen for generation, outcome in seen if outcome == "DENY"} <= {True}
    assert {generation in frozen for generation, outcome in seen if outcome == "ALLOW"} <= {False}


def test_without_a_sidecar_the_store_is_edited(running: Served) -> None:
    """After a kill, whose socket is left behind: the command edits the store, and the next start decides by it."""
    (running.folder / "freeze.cedar").write_text(FREEZE)
    assert running.process is not None
    running.process.kill()
    assert lines(running.remit("policy", "put", str(running.folder / "freeze.cedar")))[-1] == (
        "no sidecar runs here; one that starts decides by it"
    )
    running.start_ready()
    with running.agent_socket() as agent:
        assert outcome(agent, question()) == ("DENY", "policy.forbid")


def test_a_sidecar_that_does_not_answer_is_not_passed_over(running: Served) -> None:
    """Its store is not edited behind its back: that would say done, and nothing would be decided by it."""
    (running.folder / "freeze.cedar").write_text(FREEZE)
    with contextlib.ExitStack() as crowd:
        for _ in range(CONNECTIONS):
            one = crowd.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(running.folder / "control" / "sock"))
        refused = running.remit("policy", "put", str(running.folder / "freeze.cedar"))
        assert refused.returncode == EXIT_UNREACHABLE
        assert "does not answer" in refused.stderr
    assert lines(running.remit("policy", "edits", "--json")) == []


@pytest.mark.parametrize(
    ("uid", "code"),
    [(None, grpc.StatusCode.UNAUTHENTICATED), (os.geteuid() + 1, grpc.StatusCode.PERMISSION_DENIED)],
)
def test_who_cannot_write_the_store_edits_nothing(tmp_path: pathlib.Path, uid: int | None, code: object) -> None:
    """Whoever may look, approve or reload enters the control socket's folder too."""
    asked: list[object] = []
    runtime = SimpleNamespace(rules=None, edit=lambda *of: asked.append(of))
    server = grpc.server(ThreadPoolExecutor(1))
    control_pb2_grpc.add_ControlServicer_to_server(Control(runtime, None, lambda _: uid), server)  # type: ignore[arg-type]
    server.add_insecure_port(f"unix:{tmp_path}/sock")
    server.start()
    with grpc.insecure_channel(f"unix:{tmp_path}/sock") as channel, pytest.raises(grpc.RpcError) as refused:
        control_pb2_grpc.ControlStub(channel).Edit(control_pb2.EditRequest(policies=text(FREEZE)), timeout=TIMEOUT_S)
    server.stop(None).wait()
    assert refused.value.code() is code
    assert not asked


def test_an_edit_that_is_too_large_says_what_to_do(running: Served) -> None:
    """More than the control socket takes at a time is not sent; a store that nobody serves takes it."""
    (running.folder / "large.cedar").write_text(FREEZE + f"// {'x' * (1 << 20)}\n")
    refused = running.remit("policy", "put", str(running.folder / "large.cedar"))
    assert refused.returncode != 0
    assert "make it in parts" in refused.stderr
    assert running.stop() == 0
    assert lines(running.remit("policy", "put", str(running.folder / "large.cedar")))[0] == "put policy `freeze`"
