"""Where the CPU time of a call goes, by stage, and how many instructions it takes: perf on the server's process.

A stage is some modules of the data plane and libraries. perf's samples name the shared object and the function, and the
library of the data plane says of which module a function is. Shares of samples times the measured CPU time per call
give microseconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastpath import wire

STAGES = {
    "kernel": ("[kernel", "[vdso]"),
    "nghttp2": ("libnghttp2",),
    "TLS": ("libssl", "libcrypto", "tls.", "verify.", "certificate."),
    "HTTP/2 and gRPC": (
        *("http2.", "http2_out.", "loop.", "rounds.", "connection.", "answers.", "entrance.", "clocks.", "listener."),
        *("grpc_text.", "lane.", "admission.", "refused_calls.", "strangers.", "streams.", "stream_messages.", "talk."),
    ),
    "decode": ("wire.", "envoy.", "envoy_mcp.", "lines.", "question."),
    "canonical": ("canonical.", "libutf8proc"),
    "mapping": (
        *("mapping.", "mapping_rules.", "routes.", "mcp.", "verbs.", "target."),
        *("json_tree.", "arguments.", "spiffe_id."),
    ),
    "decide": (
        *("decide.", "candidates.", "program.", "table.", "value.", "extension.", "columns.", "libxxhash"),
        *("authority.", "standing.", "revoked.", "spending.", "settle.", "approved.", "step_ups."),
    ),
    "journal": ("record.", "journal.", "frames.", "disk."),
    "reply": ("reply.",),
    "call": ("call.", "constant.", "held.", "counters.", "causes.", "replay.", "request.", "peer."),
    "memory (libc)": ("libc.", "libc-", "ld-linux", "reserve."),
}
OTHER = "other"
FREQUENCY = 4999
ATTACH_S = 5
SYMBOL_COLUMNS = 8  # of a row of readelf: number, value, size, type, bind, visibility, section, name
NO_PERF = "perf is missing (Debian: linux-perf), so no stages and no instructions"
NO_COUNTER = "this machine counts no instructions (perf stat: not supported), as many virtual machines"


def modules_of(library: Path) -> dict[str, str]:
    """{function: module} of a library with its symbols; what several modules have is of none. Empty without readelf."""
    if shutil.which("readelf") is None:
        return {}
    table = subprocess.run(["readelf", "-sW", str(library)], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    module = ""
    for row in (line.split() for line in table.splitlines()):
        if len(row) < SYMBOL_COLUMNS:
            continue
        # The local symbols of a source file stand behind its name (ELF, "Symbol Table").
        if row[3] == "FILE":
            module = row[7].removesuffix(".c")
        elif row[3] == "FUNC":
            found[row[7]] = module if found.get(row[7], module) == module else ""
    return found


def stage_of(shared_object: str, function: str, modules: dict[str, str]) -> str:
    """The stage that a function in this shared object belongs to."""
    name = shared_object.rpartition("/")[2]
    if name.startswith("_native."):
        name = f"{modules.get(function, '')}."
    return next((stage for stage, starts in STAGES.items() if name.startswith(starts)), OTHER)


def _attached(pid: int) -> bool:
    """Whether perf has opened its events on the process that it is to watch."""
    try:
        return any("perf_event" in os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


@contextlib.contextmanager
def _perf(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """perf beside what the block does, attached when it begins and ended as by Ctrl-C."""
    process = subprocess.Popen(
        ["perf", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    deadline = time.monotonic() + ATTACH_S
    while process.poll() is None and not _attached(process.pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def shares(pid: int, work: Callable[[], object]) -> dict[str, float]:
    """{"stage|symbol": share of the CPU time of `pid` while `work` ran}; empty without perf."""
    if shutil.which("perf") is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        data = str(Path(folder) / "perf.data")
        with _perf("record", "-F", str(FREQUENCY), "-p", str(pid), "-o", data) as process:
            work()
        if process.stderr is not None:
            process.stderr.close()
        told = subprocess.run(
            ["perf", "report", "-i", data, "--stdio", "-F", "overhead,dso,sym", "-t", "|"],
            capture_output=True,
            text=True,
        )
    return parse_report(told.stdout, modules_of(Path(wire.__file__)))


def parse_report(text: str, modules: dict[str, str]) -> dict[str, float]:
    """Shares out of `perf report -F overhead,dso,sym -t '|'`, which add up to 1; `modules` as `modules_of` gives."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(r"\s*([\d.]+)%\s*\|\s*([^|]+?)\s*\|\s*(?:\[.\] )?(.*?)\s*$", line)
        if match:
            key = f"{stage_of(match[2], match[3], modules)}|{match[3]}"
            found[key] = found.get(key, 0.0) + float(match[1])
    total = sum(found.values())
    return {key: share / total for key, share in found.items()} if total else {}


def by_stage(found: dict[str, float], cpu_us: float) -> dict[str, float]:
    """Microseconds per call of each stage, in the order of a call."""
    made = {
        stage: cpu_us * sum(share for key, share in found.items() if key.partition("|")[0] == stage)
        for stage in [*STAGES, OTHER]
    }
    return {stage: round(us, 3) for stage, us in made.items() if us}


def hottest(found: dict[str, float], cpu_us: float, count: int = 25) -> dict[str, float]:
    """Microseconds per call of the functions that take most."""
    top = sorted(found.items(), key=lambda one: -one[1])[:count]
    return {key.replace("|", ": "): round(cpu_us * share, 3) for key, share in top}


def instructions(pid: int, work: Callable[[], int]) -> float | None:
    """Instructions per call of the calls that `work` made; None where the machine does not count them."""
    if shutil.which("perf") is None:
        return None
    with _perf("stat", "-e", "instructions", "-x", ",", "-p", str(pid)) as process:
        calls = work()
    assert process.stderr is not None, "a pipe"
    with process.stderr as told:
        counted = re.search(r"^(\d+),.*instructions", told.read(), re.M)
    return int(counted[1]) / calls if counted else None
