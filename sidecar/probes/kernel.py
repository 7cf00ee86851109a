"""What the kernel offers: who a Unix peer is, waiting without a herd, confinement, descriptors, clocks."""

import ctypes
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from sidecar.config import Config, Limits
from sidecar.probes import Probe, Verdict, ok, unknown, unsafe

SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
SPARE_DESCRIPTORS = 256  # for files, the control socket, the collector, the policy compiler
READS = 20_000
RELEASED_UNIX = 1_767_225_600  # 2026-01-01: no sidecar of this version ran before
FAST_CLOCKS = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"})
ACTIONS = Path("/proc/sys/kernel/seccomp/actions_avail")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
STA_UNSYNC = 0x0040  # adjtimex(2)
NEWER = "a newer kernel has it; Debian 12's is enough for all but SO_PEERPIDFD"


def probes(config: Config | None) -> list[Probe]:
    """Without a configuration the defaults are asked for."""
    limits = config.limits if config is not None else Limits()
    doors = _doors(config) if config is not None else 1
    return [
        Probe("kernel: SO_PEERCRED", peer_credentials),
        Probe("kernel: SO_PEERPIDFD", peer_pidfd),
        Probe("kernel: EPOLLEXCLUSIVE", exclusive_epoll),
        Probe("kernel: seccomp", seccomp_actions),
        Probe("kernel: descriptors", lambda: descriptors(limits.connections * doors + SPARE_DESCRIPTORS)),
        Probe("clock: monotonic", monotonic),
        Probe("clock: source", clock_source),
        Probe("clock: time of day", time_of_day),
    ]


def _doors(config: Config) -> int:
    listeners = config.listeners
    return len(listeners.agents) + bool(listeners.ext_authz) + bool(listeners.check_address)


def peer_credentials(ours: Callable[[], int] = os.geteuid) -> Verdict:
    """A Unix caller is who the kernel says (UD-01)."""
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        _, uid, gid = struct.unpack("3i", here.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if (uid, gid) != (ours(), os.getegid()):
        return unsafe(
            f"names user {uid} instead of {ours()}", "run without a user namespace of its own (PrivateUsers=)"
        )
    return ok(f"user {uid}, group {gid}")


def peer_pidfd() -> Verdict:
    """A peer as a process that cannot be taken for a later one (UD-02)."""
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        try:
            handle = here.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError:
            return ok("not there (Linux 6.5 has it): callers are known by user and group, never by process")
    os.close(handle)
    return ok("works")


def exclusive_epoll() -> Verdict:
    """Several loops wait on one socket and one of them wakes."""
    with select.epoll() as waiting, socket.socket(socket.AF_UNIX) as made:
        try:
            waiting.register(made, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        except OSError as error:
            return unknown(f"refused: {os.strerror(error.errno or 0).lower()}", NEWER)
    return ok("works")


def seccomp_actions(file: Path = ACTIONS) -> Verdict:
    """`process.seccomp: on` needs the action `trap`."""
    if not file.exists():
        return unknown("this kernel does not say", "set `process.seccomp: off` if the sidecar does not start")
    actions = file.read_text().split()
    if "trap" not in actions:
        return unsafe("has no action `trap`", "set `process.seccomp: off`, or " + NEWER)
    return ok("filters can be put on")


def descriptors(needed: int, limit: Callable[[int], tuple[int, int]] = resource.getrlimit) -> Verdict:
    """The sidecar raises its limit to what it may have; one descriptor for each connection that it may take."""
    highest = limit(resource.RLIMIT_NOFILE)[1]
    if highest != resource.RLIM_INFINITY and highest < needed:
        advice = f"set LimitNOFILE={needed} in the unit (ulimit -Hn), or lower `limits.connections`"
        return unsafe(f"{highest} at most, {needed} can be asked for", advice)
    return ok(f"{'no limit' if highest == resource.RLIM_INFINITY else highest}, {needed} can be asked for")


def monotonic(clock: Callable[[], int] = time.monotonic_ns) -> Verdict:
    """Deadlines and ages rest on a clock that never goes back, on no processor."""
    before = clock()
    for _ in range(READS):
        now = clock()
        if now < before:
            return unsafe(f"goes back by {before - now} ns", "take another clock source; see the kernel's log")
        before = now
    return ok(f"never back in {READS} readings")


def clock_source(file: Path = CLOCK_SOURCE) -> Verdict:
    """Each call looks at the clock; a source that is a system call or a device makes every call slow."""
    if not file.exists():
        return unknown("this kernel does not say", "none is needed if calls are fast")
    name = file.read_text().strip()
    if name not in FAST_CLOCKS:
        return unknown(f"`{name}`, which may be slow", "see /sys/devices/system/clocksource/*/available_clocksource")
    return ok(name)


def _synchronised() -> bool | None:
    """What adjtimex(2) says, asked without changing anything."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = ctypes.create_string_buffer(512)  # more than struct timex; modes 0 reads only
    if libc.adjtimex(timex) < 0:
        return None
    (status,) = struct.unpack_from("i", timex, struct.calcsize("I4xllll"))
    return not status & STA_UNSYNC


def time_of_day(
    now: Callable[[], float] = time.time, synchronised: Callable[[], bool | None] = _synchronised
) -> Verdict:
    """SVIDs and tasks end by the time of day: a clock that is behind lets them live on."""
    if now() < RELEASED_UNIX:
        return unsafe(f"stands at Unix time {now():.0f}, before this version was made", "set the clock; use NTP")
    told = synchronised()
    if told is None:
        return unknown("the kernel does not tell whether the clock is kept right", "is NTP or another time service on?")
    if not told:
        return unknown("no time service keeps the clock right", "run chrony or systemd-timesyncd on this machine")
    return ok("kept right by a time service")
