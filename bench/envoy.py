"""What does asking us cost an Envoy? Alone, asking a constant, asking Remit native, asking Remit grpcio.

One Envoy with one worker, and a listener for each of the four; what an agent asks is answered by Envoy itself, so that
no upstream is measured. Envoy and the sidecars share one core, as on a busy node: what the sidecar takes, Envoy lacks.
The agent speaks mutual TLS with its SVID, the sidecars are asked over Unix sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.facts import facts
from bench.latency import spread
from bench.load import Load, Questions
from bench.questions import ALLOWED, DENIED, web_headers
from bench.runs import Run, Wrong, checked
from bench.servers import LOAD_CORE, SERVER_CORE, Pki, Server, cpu_s, pin, remit, spins
from sidecar.demo.envoy import Bootstrap, Envoy, Json, binary
from sidecar.envoy_config import Needs, http_filter, sidecar_cluster
from sidecar.errors import ConfigError

SIDES = ("alone", "constant", "native", "grpcio")
CONNECTIONS = 8
OUTSTANDING = 16
POLICIES = 1000
TIMEOUT_MS = 5000
PROBE = 100
IN_FLIGHT = 100  # per connection of an open loop; Envoy's circuit breaker refuses more than 1,024 in all
BODY = "ok"
OK, FORBIDDEN = 200, 403
GOALS = {"ratio_to_constant": ("at least", 0.95)}
_TYPE = "type.googleapis.com/envoy.extensions."
_HCM = _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager"


def _listener(name: str, pki: Pki) -> Json:
    """A mutual TLS listener that answers by itself, after asking the cluster `name` unless that is `alone`."""
    chain, key, roots = pki.of("server")
    route = {"match": {"prefix": "/"}, "direct_response": {"status": OK, "body": {"inline_string": BODY}}}
    asks = [] if name == "alone" else [http_filter(Needs(body=False, timeout_ms=TIMEOUT_MS), name)]
    manager = {
        "@type": _HCM,
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            *asks,
            {"name": "envoy.filters.http.router", "typed_config": {"@type": _TYPE + "filters.http.router.v3.Router"}},
        ],
    }
    certificate = {"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}
    tls = {
        "@type": _TYPE + "transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [certificate],
            "validation_context": {"trusted_ca": {"filename": roots}},
        },
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {"filters": filters, "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}}
        ],
    }


def bootstrap(sockets: dict[str, str], pki: Pki) -> Bootstrap:
    """The configuration of the Envoy; `sockets` names the sidecars' paths."""
    return {
        "node": {"id": "bench", "cluster": "bench"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [_listener(name, pki) for name in SIDES],
            "clusters": [sidecar_cluster(f"unix:{path}", "", None, name) for name, path in sockets.items()],
        },
    }


class Stand:
    """An Envoy and the three sidecars that it asks."""

    def __init__(self, stack: contextlib.ExitStack, policies: int) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        self.pki = Pki(folder)
        native = stack.enter_context(remit("native", "uds", policies, self.pki))
        constant = stack.enter_context(remit("constant", "uds", policies, self.pki, "--constant"))
        grpcio = stack.enter_context(remit("grpcio", "grpcio_uds", policies, self.pki))
        self.sidecars: dict[str, Server] = {"native": native, "constant": constant, "grpcio": grpcio}
        sockets = {name: next(iter(server.ports.values())) for name, server in self.sidecars.items()}
        pin(SERVER_CORE)
        self.envoy = stack.enter_context(Envoy(folder, bootstrap(sockets, self.pki)))
        pin(LOAD_CORE)

    @contextlib.contextmanager
    def connected(self, side: str, path: str = ALLOWED) -> Any:
        """A load client of one listener."""
        chain, key, roots = self.pki.of("agent")
        where = ("127.0.0.1", self.envoy.ports[side])
        load = Load(where, web_headers(path), connections=CONNECTIONS, chain=chain, key=key, roots=roots)
        with contextlib.closing(load):
            yield load

    def judged(self, run: Run, side: str) -> Run:
        """The run, when every answer was right; else Wrong, with what Envoy and the sidecar counted."""
        try:
            return checked(run, side)
        except Wrong as wrong:
            counted = [line for line in self.envoy.get(f"/stats?filter={side}").splitlines() if not line.endswith(" 0")]
            doors = self.sidecars[side].tell()["doors"] if side in self.sidecars else []
            closed = [door["closed"] for door in doors]
            kept = [line for line in counted if "ext_authz" in line or "upstream_rq" in line or "upstream_cx" in line]
            raise Wrong(f"{wrong}\n{' '.join(kept)}\nconnections ended: {closed}") from None

    def check_denials(self) -> None:
        """A path that the policies forbid is 403 where they are asked, and only there."""
        for side in SIDES:
            denies = side in ("native", "grpcio")
            expected = Questions([(b"", 0, 0)], grpc=False, http_status=FORBIDDEN if denies else OK)
            with self.connected(side, DENIED) as load:
                self.judged(load.closed(expected, 2 * CONNECTIONS, 1), side)


def asked() -> Questions:
    return Questions([(b"", 0, 0)], grpc=False, http_status=OK, length=len(BODY))


def sample(stand: Stand, side: str, calls: int) -> dict[str, float]:
    """One closed loop: calls/s, and the CPU of Envoy and sidecar per call."""
    sidecar = stand.sidecars.get(side)
    with stand.connected(side) as load:
        envoy_s, sidecar_s = cpu_s(stand.envoy.pid), sidecar.cpu_s() if sidecar else 0.0
        run = stand.judged(load.closed(asked(), calls, OUTSTANDING), side)
        envoy_s, sidecar_s = cpu_s(stand.envoy.pid) - envoy_s, (sidecar.cpu_s() if sidecar else 0.0) - sidecar_s
    return {
        "calls_per_s": calls / run["seconds"],
        "envoy_cpu_us": envoy_s / calls * 1e6,
        "sidecar_cpu_us": sidecar_s / calls * 1e6,
    }


def ceilings(stand: Stand, rounds: int, seconds: float, bar: Progress) -> dict[str, list[dict[str, float]]]:
    counts = {}
    for side in SIDES:
        rate = sample(stand, side, PROBE)["calls_per_s"]
        rate = sample(stand, side, max(PROBE, int(rate * seconds / 2)))["calls_per_s"]
        counts[side] = max(PROBE, int(rate * seconds))
    samples: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in bar.track(range(rounds), description="closed loop"):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            samples[side].append(sample(stand, side, counts[side]))
    return samples


def latencies(
    stand: Stand, sides: tuple[str, ...], rate: float, rounds: int, seconds: float, bar: Progress
) -> dict[str, list[dict[str, float]]]:
    """Quantiles of each round, all sides at one rate."""
    made: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    calls = max(PROBE, int(rate * seconds))
    for number in bar.track(range(rounds), description="open loop"):
        for side in sides if number % 2 == 0 else reversed(sides):
            with stand.connected(side) as load:
                run = stand.judged(load.open(asked(), calls, rate, in_flight=IN_FLIGHT, spin=spins()), side)
            made[side].append({**spread(run["latency_ns"]), "late_p99": spread(run["late_ns"])["0.99"]})
    return made


def _added(spreads: dict[str, list[dict[str, float]]], side: str, share: str) -> float:
    """Microseconds that asking adds: the median over rounds of the difference to Envoy alone."""
    pairs = zip(spreads[side], spreads["alone"], strict=True)
    return round(median(a[share] - b[share] for a, b in pairs), 1)


def results(samples: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    made: dict[str, float] = {}
    for side, taken in samples.items():
        for figure in ("calls_per_s", "envoy_cpu_us", "sidecar_cpu_us"):
            made[f"{side}_{figure}"] = round(median(one[figure] for one in taken), 2)
    for key, of, to in (
        ("ratio_to_constant", "native", "constant"),
        ("grpcio_to_constant", "grpcio", "constant"),
        ("native_to_grpcio", "native", "grpcio"),
        ("native_to_alone", "native", "alone"),
    ):
        pairs = zip(samples[of], samples[to], strict=True)
        made[key] = round(median(a["calls_per_s"] / b["calls_per_s"] for a, b in pairs), 3)
    return made


def _measure(stand: Stand, rounds: int, seconds: float, bar: Progress) -> dict[str, Any]:
    stand.check_denials()
    samples = ceilings(stand, rounds, seconds, bar)
    found = results(samples)
    # A quarter: with few calls at a time each wakes Envoy and sidecar, so that half of the ceiling is no light load.
    found["latency_calls_per_s"] = rate = round(found["native_calls_per_s"] / 4)
    found["latency_calls_per_s_grpcio"] = slow = round(found["grpcio_calls_per_s"] / 4)
    spreads = latencies(stand, ("alone", "constant", "native"), rate, rounds, seconds * 2, bar)
    slower = latencies(stand, SIDES, slow, rounds, seconds * 2, bar)
    for name, share in (("p50", "0.5"), ("p99", "0.99")):
        for side in ("constant", "native"):
            found[f"{side}_added_{name}_us"] = _added(spreads, side, share)
        for side in ("constant", "native", "grpcio"):
            found[f"{side}_added_{name}_us_at_rate_of_grpcio"] = _added(slower, side, share)
    sidecars = {name: server.command for name, server in stand.sidecars.items()}
    return {
        "question": "envoy",
        "results": found,
        "goals": GOALS,
        "samples": samples,
        "latency_us": spreads,
        "latency_us_at_rate_of_grpcio": slower,
        "servers": {"envoy": [str(binary()), "--concurrency", "1"], **sidecars},
        "notes": [],
        "machine": facts(),
    }


@click.command()
@click.option("--json", "report", type=click.Path(dir_okay=False), help="Write results and raw samples here.")
@click.option("--policies", default=POLICIES, show_default=True, help="Policies in force.")
@click.option("--rounds", default=9, show_default=True, help="Samples of each side.")
@click.option("--seconds", default=1.0, show_default=True, help="Length of a sample.")
def envoy(report: str | None, policies: int, rounds: int, seconds: float) -> None:
    """What does asking us cost an Envoy?

    Envoy alone, with ext_authz answered by our own listener with a constant, by Remit native and by Remit grpcio; 8
    connections with 16 requests each. Needs the Envoy that `make setup` installs. Exits 1 when one answer is wrong.
    """
    cores = os.sched_getaffinity(0)
    pin(LOAD_CORE)
    try:
        with contextlib.ExitStack() as stack, Progress(transient=True) as bar:
            made = _measure(Stand(stack, policies), rounds, seconds, bar)
    except (Wrong, OSError, ConfigError) as wrong:
        raise click.ClickException(str(wrong)) from None
    finally:
        os.sched_setaffinity(0, cores)
    _print(made["results"])
    if report:
        Path(report).write_text(json.dumps(made, indent=1) + "\n")
        click.echo(f"wrote {report}")


def _print(found: dict[str, float]) -> None:
    table = Table("Envoy", "calls/s", "CPU of Envoy, us", "CPU of sidecar, us", "added p50, us", "added p99, us")
    for side in SIDES:
        half = "_at_rate_of_grpcio" if side == "grpcio" else ""
        added = [found.get(f"{side}_added_{name}_us{half}") for name in ("p50", "p99")]
        cells = [found[f"{side}_{figure}"] for figure in ("calls_per_s", "envoy_cpu_us", "sidecar_cpu_us")]
        table.add_row(
            side, *(f"{cell:,.1f}" for cell in cells), *("-" if one is None else f"{one:,.1f}" for one in added)
        )
    console = Console(width=120)
    console.print(table)
    for key, (how, goal) in GOALS.items():
        console.print(f"{key} {found[key]} (goal: {how} {goal})", highlight=False)
    rates = f"{found['latency_calls_per_s']:,} calls/s; grpcio at {found['latency_calls_per_s_grpcio']:,}"
    console.print(f"added latency at a quarter of capacity, {rates}", highlight=False)
