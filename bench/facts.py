"""What the numbers were measured on, and with what: enough to judge them, and to do it again."""

from __future__ import annotations

import os
import re
import shlex
import ssl
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.measure import machine
from bench.servers import cerbos_binary


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "not there"
    text = done.stdout.strip() or done.stderr.strip()
    return text.splitlines()[0] if text else "not there"


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not there"


def facts() -> dict[str, object]:
    """The machine, the versions of all that was measured, and how busy the machine was."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    cerbos = cerbos_binary()
    return {
        **machine(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else 0,
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "nghttp2": _first_line("nghttpd", "--version"),
        "openssl": ssl.OPENSSL_VERSION,
        "grpcio": _package("grpcio"),
        "cerbos": _first_line(cerbos, "--version") if cerbos else "not there",
        "command": shlex.join([Path(sys.executable).name, "-m", "bench", *sys.argv[1:]]),
    }
