"""The system calls of a running sidecar: what it needs is allowed, all else refused, on every thread (SC-05, T14)."""

import json
import subprocess
import sys

import pytest

from sidecar import seccomp
from sidecar.config_file import parse
from sidecar.errors import ConfigError
from tests.unit.test_config import MINIMAL

# What it does under the filter is an expression of its own; a thread that was there before makes the same call.
PROBE = """
import ctypes, json, logging, mmap, os, socket, subprocess, sys, threading
logging.disable()
from fastpath import refused_calls
from sidecar import seccomp
import pyseccomp
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
page = mmap.mmap(-1, 4096)
def call(name, *arguments):
    number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
    ctypes.set_errno(0)
    got = libc.syscall(number, *(ctypes.c_long(a) for a in arguments))
    return ctypes.get_errno() if got == -1 else 0
def run():
    try:
        return eval(sys.argv[2])
    except OSError as error:
        return error.errno
go, from_thread = threading.Event(), []
def late():
    go.wait()
    from_thread.append(run())
thread = threading.Thread(target=late)
thread.start()
libc.prctl(38, 1, 0, 0, 0)
seccomp.confine(sys.argv[1])
here = run()
go.set()
thread.join()
print(json.dumps({"here": here, "thread": from_thread[0], "refused": seccomp.refused()}))
"""
EPERM = 1


def under_filter(expression: str, mode: str = "on") -> dict[str, object]:
    command = [sys.executable, "-c", PROBE, mode, expression]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ptrace", (16, 1)),
        ("process_vm_readv", (1,)),
        ("mount", ()),
        ("umount2", ()),
        ("pivot_root", ()),
        ("chroot", ()),
        ("unshare", (0x10000000,)),
        ("setns", ()),
        ("bpf", (0,)),
        ("perf_event_open", ()),
        ("kexec_load", ()),
        ("init_module", ()),
        ("finit_module", ()),
        ("add_key", ()),
        ("keyctl", (0,)),
        ("io_uring_setup", (1,)),
        ("userfaultfd", ()),
        ("setuid", (0,)),
        ("capset", ()),
        ("personality", (0x0040000,)),
        ("listen", (0, 1)),
        ("seccomp", (0,)),
        ("socket", (17, 3, 0)),  # AF_PACKET
        ("ioctl", (0, 0x5412, 0)),  # TIOCSTI types into a terminal
        ("prctl", (4, 1)),  # PR_SET_DUMPABLE would bring core dumps back
        ("mmap", (0, 4096, 7, 0x22, -1, 0)),  # writable and executable
        ("mprotect", (0, 0, 4)),  # executable, after it was written
        ("clone", (0x10000000 | 17, 0, 0, 0, 0)),  # CLONE_NEWUSER
    ],
)
def test_a_call_that_no_sidecar_needs_is_refused_on_every_thread(name: str, arguments: tuple[int, ...]) -> None:
    """EPERM for the thread that put the filter on and for one that was there before; both are counted."""
    found = under_filter(f"call({name!r}, *{arguments!r})")
    assert (found["here"], found["thread"]) == (EPERM, EPERM)
    assert found["refused"] == {name: 2}


@pytest.mark.parametrize(
    "expression",
    [
        "threading.Thread(target=print, kwargs={'end': ''}).start()",
        "subprocess.run([sys.executable, '-c', 'import sidecar.policy.child'], check=True).returncode",
        "socket.getaddrinfo('localhost', 80) and 0",
        "socket.create_connection(('127.0.0.1', 1)) and 0",
        "call('mprotect', 0, 0, 3)",
        "__import__('cedarpy') and 0",
        "os.kill(os.getpid(), 0)",
    ],
)
def test_what_a_sidecar_does_is_allowed(expression: str) -> None:
    """Threads, the compiler child, names, connections, libraries that are loaded late."""
    assert under_filter(expression)["refused"] == {}


def test_a_child_that_needs_more_dies_of_it() -> None:
    """The filter is inherited through exec, where our handler is not."""
    child = "import os; os.getpriority(0, 0)"
    found = under_filter(f"subprocess.run([sys.executable, '-c', {child!r}]).returncode")
    assert found["here"] == -31  # SIGSYS


def test_log_refuses_nothing() -> None:
    """For an operator who wants to see first: the call is made, and only the kernel's log tells of it."""
    found = under_filter("call('getpriority', 0, 0)", "log")
    assert found == {"here": 0, "thread": 0, "refused": {}}


def test_off_is_off() -> None:
    """No filter, no handler."""
    assert under_filter("call('getpriority', 0, 0)", "off")["refused"] == {}


@pytest.mark.parametrize("mode", ["on", "log", "off"])
def test_the_modes_are_words_of_the_configuration(mode: str) -> None:
    """`on` and `off` are words here, though YAML 1.1 takes them for booleans."""
    assert parse(f"{MINIMAL}process: {{seccomp: {mode}}}\n", "/etc/remit.yaml").process.seccomp == mode


def test_on_is_the_default() -> None:
    """Whoever says nothing is confined."""
    assert parse(MINIMAL, "/etc/remit.yaml").process.seccomp == "on"


def test_without_libseccomp_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install and what to set instead."""
    monkeypatch.setattr("builtins.__import__", _without_libseccomp(__import__))
    with pytest.raises(ConfigError, match=r"install libseccomp2, or set `process.seccomp: off`"):
        seccomp.confine("on")


def _without_libseccomp(real: object) -> object:
    def load(name: str, *arguments: object, **more: object) -> object:
        if name == "pyseccomp":
            raise RuntimeError("Unable to find libseccomp")
        assert callable(real)
        return real(name, *arguments, **more)

    return load
