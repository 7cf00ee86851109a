"""The servers under load: each a process of its own on the first core, whose CPU time and memory can be read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import questions
from bench.load import Load, Questions
from sidecar.demo.ca import Authority, to_pem

SERVER_CORE, LOAD_CORE = 0, 1
CORES = sorted(os.sched_getaffinity(0))  # that we may use; a container's need not begin with 0
FIRST = -20  # nice
START_S = 120
STOP_S = 10
CLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED (linux/posix-timers.h): nanoseconds that all threads of a process ran
CERBOS_BINARY = Path(__file__).parent / "peers" / "node_modules" / "@cerbos" / "cerbos-linux-x64" / "cerbos-linux-x64"


def pin(core: int) -> None:
    """Run the calling thread, and what it starts, on one core of ours; where there is one they share it."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})


@contextlib.contextmanager
def real_time() -> Iterator[bool]:
    """The calling thread runs before all that is ordinary on its core, where the system lets it."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)


def _start() -> None:
    """Of a server: its core, and before all else that is ordinary there, where the system lets it."""
    pin(SERVER_CORE)
    os.setsid()  # to be a scheduling group of its own (sched(7), autogroup): nice counts within one alone
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)
        Path("/proc/self/autogroup").write_text(str(FIRST))


def spins() -> bool:
    """Whether the load client may keep its core busy while it waits: as a real-time thread it would be throttled."""
    return os.sched_getscheduler(0) == os.SCHED_OTHER


def cpu_s(pid: int) -> float:
    """What all threads of a process have run so far, also those that ended."""
    return time.clock_gettime(~pid << 3 | CLOCK_OF_PROCESS)


@dataclass
class Pki:
    """PEM files of one trust domain: a server, a client and the root of both."""

    folder: Path
    authority: Authority = field(default_factory=lambda: Authority(questions.DOMAIN))

    def __post_init__(self) -> None:
        self._write("server", f"spiffe://{questions.DOMAIN}/sidecar", ["localhost"])
        self._write("client", questions.ENVOY, [])
        self._write("agent", questions.AGENT, [])
        (self.folder / "roots.pem").write_bytes(to_pem(self.authority.root_der))

    def _write(self, name: str, spiffe_id: str, dns: list[str]) -> None:
        svid = self.authority.issue(spiffe_id, dns=dns)
        (self.folder / f"{name}.pem").write_bytes(svid.chain_pem)
        (self.folder / f"{name}.key").write_bytes(svid.key_pem)

    def of(self, name: str) -> tuple[str, str, str]:
        """(chain, key, roots)."""
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key"), str(self.folder / "roots.pem")


@dataclass
class Server:
    """One process, and the doors that load can be put on."""

    name: str
    process: subprocess.Popen[str]
    command: list[str]
    ports: dict[str, Any] = field(default_factory=dict)

    def cpu_s(self) -> float:
        """As the function of that name."""
        return cpu_s(self.process.pid)

    def memory_kib(self) -> int:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    def tell(self) -> dict[str, Any]:
        """Counters of a server of ours."""
        assert self.process.stdin is not None, "a pipe"
        assert self.process.stdout is not None, "a pipe"
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


@dataclass
class Side:
    """A door under load: how to connect, what to ask."""

    name: str
    server: Server
    address: str | tuple[str, int]
    ask: Callable[[], Questions]
    path: str = questions.EXT_AUTHZ
    pki: Pki | None = None

    def connect(self, connections: int = 8, *, stamps: bool = False) -> Load:
        """Connections that are ready to ask."""
        chain, key, roots = self.pki.of("client") if self.pki else ("", "", "")
        made = questions.headers(self.path)
        return Load(self.address, made, connections=connections, chain=chain, key=key, roots=roots, stamps=stamps)


@contextlib.contextmanager
def _process(name: str, command: list[str], **how: Any) -> Iterator[Server]:
    """Started on the server's core, ended with its standard input, or by a signal when it has none."""
    process = subprocess.Popen(command, text=True, preexec_fn=_start, **how)
    try:
        yield Server(name, process, command)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        else:
            process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def remit(name: str, doors: str, policies: int, pki: Pki, *more: str) -> Iterator[Server]:
    """A server of ours; `doors` as bench.check_server takes them."""
    command = [sys.executable, "-m", "bench.check_server", "--doors", doors, "--policies", str(policies)]
    command += ["--pki", str(pki.folder), *more]
    with _process(name, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.process.stdout is not None, "a pipe"
        line = server.process.stdout.readline()
        if not line:
            raise OSError(f"{name} did not start: {' '.join(command)}")
        server.ports = json.loads(line)
        yield server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def nghttpd(reply_bytes: int, pki: Pki | None = None) -> Iterator[Server]:
    """nghttpd with one thread, answering the path of ext_authz with a file as long as an answer of ours."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        file = Path(folder) / questions.EXT_AUTHZ.lstrip("/")
        file.parent.mkdir()
        file.write_bytes(b"x" * reply_bytes)
        command = ["nghttpd", "-n1", "-d", folder]
        if pki is None:
            command += ["--no-tls", str(port)]
        else:
            chain, key, _ = pki.of("server")
            command += ["--verify-client", str(port), key, chain]
        name = "nghttpd" if pki is None else "nghttpd_tls"
        with _process(name, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            _wait(server, lambda: _connects(port))
            server.ports = {"plain" if pki is None else "mtls": port}
            yield server


def cerbos_binary() -> str:
    """Where Cerbos is; empty when it was not installed."""
    return str(CERBOS_BINARY) if CERBOS_BINARY.exists() else shutil.which("cerbos") or ""


@contextlib.contextmanager
def cerbos(policies: int, *, logged: bool) -> Iterator[Server]:
    """Cerbos on one core, as it comes, or `logged`: with every decision written to a file."""
    port, http_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        (Path(folder) / "policies").mkdir()
        questions.cerbos_policies(Path(folder) / "policies", policies)
        settings = {
            "server.grpcListenAddr": f"127.0.0.1:{port}",
            "server.httpListenAddr": f"127.0.0.1:{http_port}",
            "storage.driver": "disk",
            "storage.disk.directory": f"{folder}/policies",
            "storage.disk.watchForChanges": "false",
            "telemetry.disabled": "true",
            "audit.enabled": "true" if logged else "false",
            "audit.backend": "file",
            "audit.file.path": f"{folder}/audit.log",
            "audit.accessLogsEnabled": "false",
        }
        command = [cerbos_binary(), "server", "--log-level", "error"]
        command += [f"--set={key}={value}" for key, value in settings.items()]
        name = "cerbos_logged" if logged else "cerbos"
        with _process(name, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder) as server:
            _wait(server, lambda: _healthy(http_port))
            server.ports = {"plain": port}
            yield server


def _wait(server: Server, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"{server.name} did not start: {' '.join(server.command)}")
        time.sleep(0.05)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_cerbos/health", timeout=1) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
