"""The server of `bench check`: one plain TCP door of the kind asked for, a real rule table, journal on.

Prints one JSON line {"port": ..} when it serves, answers each line on standard input with one of counters, and ends
with standard input.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import threading
from pathlib import Path

import click
import grpc

from fastpath.call import Pdp
from fastpath.journal import Journal
from fastpath.listener import Listener, PepList
from fastpath.mapping import Mapping
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from sidecar.config import MIB, Limits
from sidecar.config_mapping import mapping_config
from sidecar.policy.compile import compile_image
from sidecar.services.doors import ext_authz_service, make_server
from sidecar.services.errors import ErrorCounts

ENVOY = "spiffe://bench.example/envoy"
AGENT = "spiffe://bench.example/agents/0"
ENVOY_KIND = 2
BUDGET_MS = 5000


def policies(count: int) -> str:
    """One permit per agent, each with a condition on the call; the asking agent has one of them."""
    return "\n".join(
        f'permit(principal == Agent::"spiffe://bench.example/agents/{number}", action, resource) '
        'when { context has http && context.http.path like "/v1/*" };'
        for number in range(count)
    )


def make_pdp(count: int, folder: str) -> Pdp:
    """A Pdp over `count` policies that writes its journal to `folder`."""
    journal = Journal(folder, segment_bytes=16 * MIB, cap_bytes=64 * MIB, on_full="drop_oldest", sync="interval")
    # On a busy machine a thread can lose its core for longer than the default budget; that is not the question here.
    pdp = Pdp(journal, budget_ms=BUDGET_MS)
    image = compile_image(policies(count), entities=[], positional_ids=True, columns=True).image
    pdp.put_rules(
        Generation.from_bytes(image, generation=1), Mapping(mapping_config({"trust_domains": ["bench.example"]}))
    )
    pdp.put_state(epoch=0, bundle_generation=0, not_ready="")
    return pdp


def serve_native(pdp: Pdp) -> int:
    """The port of a native door."""
    door = Listener(pdp, envoy=True, spiffe_id=ENVOY, message_bytes=MIB)
    door.put_peps(PepList([ENVOY]))
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = int(listening.getsockname()[1])
    threading.Thread(target=door.serve, args=(listening.detach(),), daemon=True).start()
    return port


def serve_grpcio(pdp: Pdp) -> int:
    """The port of a grpcio door."""
    server = make_server(Limits(), MIB, "bench")
    peer = VerifiedPeer(ENVOY_KIND, ENVOY, "bench")
    server.add_generic_rpc_handlers((ext_authz_service(pdp.ext_authz, lambda _: peer, ErrorCounts()),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _running.append(server)
    return int(port)


_running: list[grpc.Server] = []


@click.command()
@click.option("--listener", type=click.Choice(["grpcio", "native"]), required=True)
@click.option("--policies", "count", type=int, required=True)
def main(listener: str, count: int) -> None:
    """Serve until standard input ends."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        pdp = make_pdp(count, str(Path(folder) / "journal"))
        port = serve_native(pdp) if listener == "native" else serve_grpcio(pdp)
        print(json.dumps({"port": port}), flush=True)
        for _ in sys.stdin:
            counters = pdp.counters()
            decisions = counters["decisions"]
            told = {f"{door} {outcome}": n for (door, outcome), n in decisions.items() if n}
            print(
                json.dumps(told | {f"reason {name}": n for name, n in counters["causes"].items() if name != "ok"}),
                flush=True,
            )


if __name__ == "__main__":
    main()
