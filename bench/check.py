"""What does a call cost beside HTTP/2 itself? nghttpd (a file for the same POST), the native and the grpcio door.

Load is h2load on the other core, closed loop; the server's CPU is user and system time from /proc over calls answered.
Every answer counts: h2load must see 2xx for all, and the sidecar's own counters must show that many ALLOW decisions,
since a gRPC error is HTTP 200 too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
import grpc
from envoy.service.auth.v3 import external_auth_pb2
from rich.console import Console
from rich.table import Table

from bench.check_server import AGENT
from bench.measure import machine

PATH = "/envoy.service.auth.v3.Authorization/Check"
CONNECTIONS = 8
REQUEST_BYTES = 900
START_S = 60
HEADERS = ("content-type: application/grpc", "te: trailers")
SIDES = ("nghttpd", "native", "grpcio")


class Wrong(Exception):
    """Some call was not answered as it should be, so its time means nothing."""


def question() -> bytes:
    """A CheckRequest of Envoy, of about 900 bytes."""
    request = external_auth_pb2.CheckRequest()
    request.attributes.source.principal = AGENT
    http = request.attributes.request.http
    http.method, http.path, http.host, http.scheme = "GET", "/v1/items/42", "api.bench.example", "https"
    http.protocol, http.size, http.id = "HTTP/2", -1, "bench"
    names = ("user-agent", "accept", "accept-language", "x-request-id", "traceparent", "x-forwarded-proto")
    for name in names:
        http.headers[name] = f"{name} of a realistic length for this header"
    for number in range(100):
        if request.ByteSize() >= REQUEST_BYTES:
            break
        http.headers[f"x-more-{number}"] = "v" * min(40, REQUEST_BYTES - request.ByteSize())
    return request.SerializeToString()


class Server:
    """One server process, pinned to the first core, whose CPU time can be read."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def cpu_s(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def allowed(self) -> int | None:
        """ALLOW decisions so far; None for a server that decides nothing."""
        if self.process.stdin is None or self.process.stdout is None:
            return None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        counts = json.loads(self.process.stdout.readline())
        if set(counts) - {"ext_authz allow"}:
            raise Wrong(f"not every decision was ALLOW: {counts}")
        return int(counts.get("ext_authz allow", 0))


def _pin(core: int) -> None:
    os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


@contextlib.contextmanager
def ours(listener: str, policies: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "bench.check_server", "--listener", listener, "--policies", str(policies)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: _pin(0)
    ) as process:
        assert process.stdout is not None, "a pipe"
        server = Server(process, json.loads(process.stdout.readline())["port"])
        _check_answer(server.port)
        yield server
        assert process.stdin is not None, "a pipe"
        process.stdin.close()


def _check_answer(port: int) -> None:
    """The first answer, read in full by another gRPC implementation."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        raw = channel.unary_unary(PATH)(question(), timeout=START_S)
    answer = external_auth_pb2.CheckResponse.FromString(raw)
    if answer.status.code != 0 or not answer.HasField("ok_response"):
        raise Wrong(f"the first answer is not ALLOW: {answer}")


@contextlib.contextmanager
def nghttpd(reply_bytes: int = 160) -> Iterator[Server]:
    """nghttpd with one thread, answering the path of ext_authz with a file as long as an answer of ours."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        file = Path(folder) / PATH.lstrip("/")
        file.parent.mkdir()
        file.write_bytes(b"x" * reply_bytes)
        command = ["nghttpd", "--no-tls", "-n1", "-d", folder, str(port)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, preexec_fn=lambda: _pin(0)
        )
        try:
            _wait_for_port(port)
            yield Server(process, port)
        finally:
            process.terminate()
            process.wait()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), START_S).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def command(port: int, body: str, calls: int, outstanding: int) -> list[str]:
    """h2load with the calls of one sample."""
    headers = [part for header in HEADERS for part in ("-H", header)]
    base = ["h2load", f"-n{calls}", f"-c{CONNECTIONS}", f"-m{outstanding}", "-t1", "-d", body, *headers]
    return [*base, f"http://127.0.0.1:{port}{PATH}"]


def sample(server: Server, body: str, calls: int, outstanding: int) -> dict[str, float]:
    """{"cpu_us": per call, "calls_per_s": ..} of one run."""
    allowed, cpu = server.allowed(), server.cpu_s()
    done = subprocess.run(
        command(server.port, body, calls, outstanding),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: _pin(1),
    )
    cpu = server.cpu_s() - cpu
    good = re.search(r"status codes: (\d+) 2xx", done.stdout)
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", done.stdout)
    if not good or not rate or int(good[1]) != calls:
        raise Wrong(f"h2load saw other answers than 2xx:\n{done.stdout}")
    if allowed is not None and (server.allowed() or 0) - allowed != calls:
        raise Wrong(f"{calls} calls, but {(server.allowed() or 0) - allowed} ALLOW decisions")
    return {"cpu_us": cpu / calls * 1e6, "calls_per_s": float(rate[1])}


def measure(policies: int, rounds: int, calls: dict[int, int]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Raw samples by side and by outstanding calls per connection; the sides take turns."""
    samples: dict[str, dict[str, list[dict[str, float]]]] = {side: {f"m{m}": [] for m in calls} for side in SIDES}
    with contextlib.ExitStack() as stack, tempfile.NamedTemporaryFile(prefix="bench") as body:
        raw = question()
        body.write(b"\0" + len(raw).to_bytes(4, "big") + raw)
        body.flush()
        servers = {
            "nghttpd": stack.enter_context(nghttpd()),
            "native": stack.enter_context(ours("native", policies)),
            "grpcio": stack.enter_context(ours("grpcio", policies)),
        }
        for number in range(rounds + 1):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                for m, count in calls.items():
                    # grpcio is slow enough for a tenth of the calls to tell.
                    got = sample(servers[side], body.name, count // 10 if side == "grpcio" else count, m)
                    if number:  # the first round warms up
                        samples[side][f"m{m}"].append(got)
    return samples


def results(samples: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, float]:
    """Medians per side, and the ratios that the claims are about."""
    made: dict[str, float] = {}
    for side, by_load in samples.items():
        for load, taken in by_load.items():
            for figure in ("cpu_us", "calls_per_s"):
                made[f"{side}_{figure}_{load}"] = round(median(one[figure] for one in taken), 3)
    for load in samples["native"]:
        made[f"cpu_ratio_{load}"] = round(made[f"native_cpu_us_{load}"] / made[f"nghttpd_cpu_us_{load}"], 3)
        made[f"cpu_ratio_to_grpcio_{load}"] = round(made[f"grpcio_cpu_us_{load}"] / made[f"native_cpu_us_{load}"], 3)
        made[f"rate_ratio_to_grpcio_{load}"] = round(
            made[f"native_calls_per_s_{load}"] / made[f"grpcio_calls_per_s_{load}"], 3
        )
    return made


@click.command()
@click.option("--json", "report", type=click.Path(dir_okay=False), help="Write results and raw samples here.")
@click.option("--policies", default=1000, show_default=True, help="Policies in force.")
@click.option("--rounds", default=5, show_default=True, help="Samples of each side.")
@click.option("--calls", default=40_000, show_default=True, help="Calls per sample with one outstanding; 5x with 100.")
def check(report: str | None, policies: int, rounds: int, calls: int) -> None:
    """What does an ext_authz call cost beside HTTP/2 itself?

    Needs nghttpd and h2load (Debian: nghttp2-server, nghttp2-client). Plain TCP, 8 connections, journal on.
    """
    for tool in ("nghttpd", "h2load"):
        if shutil.which(tool) is None:
            raise click.ClickException(f"`{tool}` is missing; apt-get install nghttp2-server nghttp2-client")
    loads = {1: calls, 100: calls * 5}
    try:
        samples = measure(policies, rounds, loads)
    except Wrong as wrong:
        raise click.ClickException(str(wrong)) from None
    made = results(samples)
    _print(made, loads)
    if report:
        commands = {f"m{m}": " ".join(command(0, "BODY", count, m)) for m, count in loads.items()}
        facts: dict[str, Any] = {"results": made, "samples": samples, "machine": machine(), "commands": commands}
        Path(report).write_text(json.dumps({**facts, "policies": policies}, indent=1))


def _print(made: dict[str, float], loads: dict[int, int]) -> None:
    table = Table(
        "server", *(f"{figure}, {m} outstanding" for m in loads for figure in ("CPU per call, us", "calls/s"))
    )
    for side in SIDES:
        cells = [made[f"{side}_{figure}_m{m}"] for m in loads for figure in ("cpu_us", "calls_per_s")]
        table.add_row(side, *(f"{cell:,.1f}" for cell in cells))
    console = Console(width=140)
    console.print(table)
    for m in loads:
        console.print(
            f"{m} outstanding: native takes {made[f'cpu_ratio_m{m}']:.2f} x the CPU of nghttpd, "
            f"grpcio {made[f'cpu_ratio_to_grpcio_m{m}']:.1f} x that of native"
        )
