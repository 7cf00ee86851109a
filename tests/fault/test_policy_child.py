"""The compiler child: whatever kills it is a refusal, and the parent lives (PO-03)."""

import os
import signal
import threading
import time

import pytest

from fastpath.table import Generation
from sidecar.errors import PolicyError
from sidecar.policy.lexer import PolicyText
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.source import SourceTexts
from sidecar.policy.worker import _death, compile_in_child
from tests.fix_children import children
from tests.fix_policy import ANYTHING

DEADLINE_S = 30
LIFTED = PolicyLimits(depth_max=1 << 30, chain_max=1 << 30, members_max=1 << 30)


def texts(*policies, **options):
    return SourceTexts([PolicyText(f"{i}.cedar", text) for i, text in enumerate(policies)], **options)


def body(text):
    return f'@id("a") {ANYTHING} when {{ {text} }};'


def refusal(*policies, limits=None, **options):
    given = {} if limits is None else {"limits": limits}
    with pytest.raises(PolicyError) as caught:
        compile_in_child(texts(*policies, **given), **options)
    return str(caught.value)


def test_a_child_compiles_into_a_file_that_opens(tmp_path):
    path = tmp_path / "g.mdb"
    made = compile_in_child(texts(f'@id("a") {ANYTHING};'), output=str(path))
    named = {"size": made.size, "file_digest": made.file_digest, "file_size": made.file_size}
    with Generation.open(path, generation=1, digest=made.digest, **named) as generation:
        assert generation.policy_ids == ["a"]
    assert made.report.policies == 1
    assert path.stat().st_mode & 0o777 == 0o444


def test_the_child_says_what_it_does():
    """A publish of minutes is not silent; what is told comes in order and is whole when the result is."""
    told = []
    policies = "".join(f'@id("p{i}") {ANYTHING} when {{ context.n == {i} }};' for i in range(1_100))
    compile_in_child(texts(policies), progress=told.append)
    assert told[0] == "splitting"
    assert [line for line in told if line.startswith("parsing")] == [
        f"parsing {done} of 1100 kinds of policies" for done in (*range(128, 1100, 128), 1100)
    ]
    assert told[-1] == "laying out 1100 rules and 0 entities"


def test_equal_sources_give_equal_files(tmp_path):
    """PO-02: the LMDB file is deterministic, not only the image in it."""
    policies = [f'@id("p{i}") {ANYTHING} when {{ context.n == {i} }};' for i in range(300)]
    for name, order in (("one", policies), ("two", policies[::-1])):
        compile_in_child(texts(*order), output=str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "(" * 2_000 + "1" + ")" * 2_000 + " == 1",
        "if true then true else " * 20_000 + "true",
        " && ".join(["true"] * 60_000),
    ],
    ids=["2,000 brackets", "20,000 if", "60,000 operators"],
)
def test_a_crash_of_the_parser_is_a_refusal(text):
    """PO-03: with the caps lifted cedarpy dies of SIGSEGV; the publish is refused and the parent lives."""
    assert refusal(body(text), limits=LIFTED) == (
        "the compiler died on SIGSEGV; the policies are too large or too deep"
    )


def test_with_the_caps_the_same_text_is_refused_by_name():
    assert refusal(body("(" * 2_000 + "1" + ")" * 2_000 + " == 1")) == (
        "policy `a` (0.cedar:1:1) is nested deeper than 64 levels (line 1)"
    )


def test_a_child_without_memory_is_a_refusal():
    """A set that needs more address space than the child has ends there, however it ends."""
    wide = body("[" + ",".join(f'"{i:0100d}"' for i in range(9_000)) + "].contains(context.x)")
    message = refusal(*(wide.replace('"a"', f'"{i}"') for i in range(16)), memory_bytes_max=64 << 20)
    assert message.startswith(("the compiler died on", "the compiler needs more than"))


def test_a_child_that_takes_too_long_is_a_refusal():
    many = "".join(f'@id("p{i}") {ANYTHING} when {{ [{i}].contains(context.n) }};\n' for i in range(60_000))
    started = time.monotonic()
    message = refusal(many, compile_s=1)
    assert message.startswith("the compiler died on")
    assert time.monotonic() - started < DEADLINE_S


def test_a_signal_without_a_name_is_a_refusal_too():
    """A real-time signal has a number only."""
    assert _death(-40, b"") == "signal 40; the policies are too large or too deep"


def test_a_killed_child_is_a_refusal():
    """An operator's or the kernel's SIGKILL at work is a death like others."""
    many = "".join(f'@id("p{i}") {ANYTHING} when {{ [{i}].contains(context.n) }};\n' for i in range(60_000))
    messages = []
    waiting = threading.Thread(target=lambda: messages.append(refusal(many)))
    waiting.start()
    os.kill(wait_for_child(), signal.SIGKILL)
    waiting.join(DEADLINE_S)
    assert messages == ["the compiler died on SIGKILL; the policies are too large or too deep"]


def wait_for_child():
    """The pid of the compiler that this process has started."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        for pid in children():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if b"sidecar.policy.child" in file.read():
                        return pid
            except FileNotFoundError:
                continue
    raise AssertionError("no compiler was started")


def test_a_child_sees_no_environment_but_what_python_needs(monkeypatch):
    """Secrets in the sidecar's environment do not reach what parses foreign text."""
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    monkeypatch.setenv("PYTHONHASHSEED", "not a number")
    assert compile_in_child(texts(f'@id("a") {ANYTHING};')).report.policies == 1


def test_an_output_that_cannot_be_written_is_a_refusal(tmp_path):
    message = refusal(f'@id("a") {ANYTHING};', output=str(tmp_path / "none" / "g.mdb"))
    assert "g.mdb` cannot be written" in message


def test_no_policy_is_refused_unless_that_is_asked_for():
    """PO-14: the empty set needs an explicit flag; templates without links are no policies."""
    template = '@id("t") permit (principal == ?principal, action, resource);'
    for text in ("// nothing", template):
        assert refusal(text) == "there is no policy, which would deny every call; add one, or set `allow_empty`"
        assert compile_in_child(texts(text), allow_empty=True).report.policies == 0
