"""The system calls that a running sidecar may make; the kernel refuses all others (seccomp(2), through libseccomp).

The filter is put on when the sockets are open, over every thread, and every child inherits it for good. A refused
call fails with EPERM and is logged. It does not end the process: a library that tries something new and can do without
would take the agent's authorization down with it, while an attacker gains nothing from an error. Only the compiler
child, which has no handler of ours, dies of a refused call, and what it was to publish is refused with it.
"""

import errno
import logging
import mmap
import os
import socket
import threading
import time
from types import ModuleType
from typing import Any

from fastpath import refused_calls
from sidecar.errors import ConfigError
from sidecar.logs import event

log = logging.getLogger("remit.seccomp")

# Found by tracing the suite on both listeners; beside it what the C library, grpcio, OpenSSL and Python use for the
# same ends on other kernels and versions.
ALLOWED = {
    "files": """access chdir chmod chown close close_range copy_file_range dup dup2 dup3 faccessat faccessat2 fadvise64
        fallocate fchmod fchmodat fchown fchownat fcntl fdatasync flock fstat fstatfs fsync ftruncate getcwd getdents64
        link linkat lseek lstat mkdir mkdirat msync newfstatat open openat openat2 pread64 preadv pwrite64 pwritev read
        readlink readlinkat readv rename renameat renameat2 rmdir sendfile stat statfs statx sync_file_range truncate
        umask unlink unlinkat utimensat write writev""",
    "memory": "brk madvise memfd_create mincore mlock mremap munmap",
    "events": """epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 pipe pipe2 poll ppoll
        pselect6 select timerfd_create timerfd_gettime timerfd_settime""",
    "sockets": """accept accept4 bind connect getpeername getsockname getsockopt recvfrom recvmmsg recvmsg sendmmsg
        sendmsg sendto setsockopt shutdown socketpair""",
    "threads": """arch_prctl exit futex futex_waitv get_robust_list getcpu gettid membarrier rseq sched_getaffinity
        sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min sched_yield set_robust_list
        set_tid_address""",
    "time": "clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time times",
    "signals": """kill restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend
        rt_sigtimedwait sigaltstack tgkill""",
    # The compiler child is started anew for each publish.
    "processes": """execve exit_group fork pidfd_open pidfd_send_signal vfork wait4 waitid""",
    "the process": """getegid geteuid getgid getgroups getpgrp getpid getppid getrandom getresgid getresuid getrlimit
        getrusage getsid getuid prlimit64 setrlimit sysinfo uname""",
}
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # netlink: getaddrinfo(3) asks routes
TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX = 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451
IOCTLS = (TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX)
PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA = 1, 15, 16, 0x53564D41
PRCTLS = (PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA)
CLONE_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag of clone(2)
OPTIMIZE_TREE = 2  # libseccomp: a binary tree instead of a list (SCMP_FLTATR_CTL_OPTIMIZE)
TELL_PAUSE_S = 1.0  # a call that is refused in a loop is one line a second


def confine(mode: str) -> None:
    """Put the filter on all threads: `on` refuses, `log` lets the kernel's log tell of what would be refused.

    Needs no_new_privs (sidecar/hardening.py). Raises ConfigError when the kernel or libseccomp cannot.
    """
    if mode == "off":
        return
    library = _library()
    woken = refused_calls.catch()
    try:
        _filter(library, library.TRAP if mode == "on" else library.LOG).load()
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise ConfigError(f"the kernel takes no seccomp filter: {cause}; set `process.seccomp: off`") from None
    threading.Thread(target=_tell, args=(woken,), name="seccomp", daemon=True).start()
    event(log, "seccomp.confined", mode=mode)


def refused() -> dict[str, int]:
    """{name of a system call: times that it was refused} in this process."""
    counts = refused_calls.counts()
    return {_name(number): count for number, count in counts.items()}


def _library() -> ModuleType:
    try:
        import pyseccomp  # loads libseccomp, which a machine may lack
    except RuntimeError:
        raise ConfigError("libseccomp is missing; install libseccomp2, or set `process.seccomp: off`") from None
    return pyseccomp


def _name(number: int) -> str:
    library = _library()
    return library.resolve_syscall(library.system_arch(), number).decode()


def _filter(s: ModuleType, otherwise: int) -> Any:
    made = s.SyscallFilter(otherwise)
    made.set_attr(s.Attr.ACT_BADARCH, s.KILL_PROCESS)
    made.set_attr(s.Attr.CTL_TSYNC, 1)
    if s.get_api() >= 6:
        made.set_attr(s.Attr.CTL_OPTIMIZE, OPTIMIZE_TREE)
    for names in ALLOWED.values():
        for name in names.split():
            _allow(s, made, name)
    for call, position, values in (("socket", 0, FAMILIES), ("ioctl", 1, IOCTLS), ("prctl", 0, PRCTLS)):
        for value in values:
            _allow(s, made, call, s.Arg(position, s.EQ, int(value)))
    # INVARIANT (no new code): memory is never writable and executable, nor made executable once it was written.
    for absent in (mmap.PROT_EXEC, mmap.PROT_WRITE):
        _allow(s, made, "mmap", s.Arg(2, s.MASKED_EQ, absent, 0))
    _allow(s, made, "mprotect", s.Arg(2, s.MASKED_EQ, mmap.PROT_EXEC, 0))
    _allow(s, made, "clone", s.Arg(0, s.MASKED_EQ, CLONE_NAMESPACES, 0))
    # Its flags stand in memory, where a filter cannot look; without it the C library takes clone.
    made.add_rule(s.ERRNO(errno.ENOSYS), "clone3")
    return made


def _allow(s: ModuleType, made: Any, name: str, *arguments: object) -> None:
    try:
        number = s.resolve_syscall(s.system_arch(), name)
    except ValueError:
        return  # a name that this libseccomp does not know, or this processor does not have
    if number >= 0:
        made.add_rule(s.ALLOW, name, *arguments)


def _tell(woken: int) -> None:
    """Log what was refused, with how often it happened so far."""
    told: dict[str, int] = {}
    while os.eventfd_read(woken):
        now = refused()
        for name, count in now.items():
            if count != told.get(name):
                event(log, "seccomp.refused", logging.ERROR, call=name, count=count)
        told = now
        time.sleep(TELL_PAUSE_S)
