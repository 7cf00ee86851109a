"""The rights of the process: an ordinary user, no new privileges, no core dumps.

A core would carry the SVID's private key, so dumps are off and the process cannot be traced by its own user
(PR_SET_DUMPABLE 0, prctl(2)).
"""

import ctypes
import grp
import os
import pwd
import resource

from sidecar.config import Process
from sidecar.errors import ConfigError

PR_SET_DUMPABLE = 4  # linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38


def harden(rights: Process) -> None:
    """Give up what a sidecar never needs. Call before any thread starts. Raises ConfigError when root is left."""
    if os.geteuid() == 0 and rights.run_as:
        _become(rights.run_as)
    if os.geteuid() == 0 and not rights.allow_root:
        raise ConfigError(
            "refusing to run as root; set `process.run_as` to an ordinary user, or `process.allow_root: true`"
        )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    os.umask(0o027)


def _become(name: str) -> None:
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"`process.run_as`: user `{name}` does not exist; create it or name another") from None
    # The groups go first: an ordinary user could not drop them.
    os.setgroups([g.gr_gid for g in grp.getgrall() if name in g.gr_mem])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.environ["HOME"] = user.pw_dir


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise ConfigError(f"prctl option {option} failed: {os.strerror(number).lower()}; this kernel is not supported")
