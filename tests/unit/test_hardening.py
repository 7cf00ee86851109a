"""The rights of the process: an ordinary user, no new privileges, no core dumps."""

import json
import os
import subprocess
import sys

import pytest

PROBE = """
import ctypes, json, os, resource, sys
from sidecar.config import Process
from sidecar.hardening import harden
harden(Process(**json.loads(sys.argv[1])))
libc = ctypes.CDLL(None)
dumpable = libc.prctl(3, 0, 0, 0, 0)
print(json.dumps({"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "dumpable": dumpable,
                  "no_new_privs": libc.prctl(39, 0, 0, 0, 0), "core": resource.getrlimit(resource.RLIMIT_CORE)}))
"""
ROOT = os.geteuid() == 0


def harden(**rights: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, json.dumps(rights)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_dumps_and_new_privileges_are_off() -> None:
    """A core would carry the SVID's key; a set-user-id program would give rights back."""
    done = harden(allow_root=True)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert (got["dumpable"], got["no_new_privs"], got["core"]) == (0, 1, [0, 0])


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_root_becomes_the_ordinary_user_for_good() -> None:
    """All three ids and the groups change, so there is no way back."""
    done = harden(run_as="nobody")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert len(set(got["uid"])) == 1
    assert got["uid"][0] != 0
    assert 0 not in got["groups"]
    assert 0 not in got["gid"]


@pytest.mark.skipif(not ROOT, reason="only root is refused")
def test_root_is_refused() -> None:
    """Unless the operator says so in the configuration."""
    done = harden()
    assert done.returncode != 0
    assert "refusing to run as root" in done.stderr
