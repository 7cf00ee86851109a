"""A server of the benches: doors of the kinds asked for on one Pdp, with a real rule table and the journal on.

Prints one JSON line with the port or path of each door when they serve, answers each line on standard input with one
of counters, and ends with standard input.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc

from bench import constant
from bench.questions import ALLOWED, DOMAIN, ENVOY, check_request, policies
from fastpath.call import Pdp
from fastpath.journal import Journal
from fastpath.mapping import Mapping
from fastpath.peer import VerifiedPeer
from fastpath.table import Generation
from fastpath.verify import Verifier
from sidecar._proto.remit.decisions.v1 import decisions_pb2
from sidecar.config import MIB, Limits
from sidecar.config_mapping import mapping_config
from sidecar.policy.compile import compile_image
from sidecar.services.doors import ext_authz_service, make_server
from sidecar.services.errors import ErrorCounts

if TYPE_CHECKING:
    from fastpath.listener import Listener

ENVOY_KIND = 2
BUDGET_MS = 5000  # on a busy machine a thread can lose its core for long; that is not the question here
WAIT_MS = 3_600_000
SEGMENT_BYTES = 16 * MIB
# Written in turns while a collector keeps up: one is being filled, one is ahead, one on its way upstream.
SEGMENTS = 3
TRIES = 20  # of an append, each with room made before
EVENT = decisions_pb2.Record(event=decisions_pb2.Event(name="bench", detail="x" * 4000)).SerializeToString()
DOORS = ("plain", "mtls", "uds", "grpcio", "grpcio_uds")


def make_journal(folder: Path) -> Journal:
    """A journal as a sidecar keeps it whose collector keeps up: segments of the default size, a few, written again."""
    cap = SEGMENTS * SEGMENT_BYTES
    made = Journal(str(folder), segment_bytes=SEGMENT_BYTES, cap_bytes=cap, on_full="drop_oldest", sync="interval")
    # A sidecar writes over what was written long after its first minutes; files that are new each time cost it more.
    refused = 0
    while made.counters()["dropped_segments"] < SEGMENTS:
        if made.append_bytes(EVENT):
            refused = 0
            continue
        made.maintain()
        refused += 1
        if refused == TRIES:
            problem = made.problem or "it does not say why"
            made.close()
            raise OSError(f"the journal in `{folder}` takes nothing: {problem}")
    return made


def make_pdp(count: int, journal: Journal) -> Pdp:
    """A Pdp over `count` policies."""
    pdp = Pdp(journal, budget_ms=BUDGET_MS)
    image = compile_image(policies(count), entities=[], positional_ids=True, columns=True).image
    mapping = Mapping(mapping_config({"trust_domains": [DOMAIN]}))
    pdp.put_rules(Generation.from_bytes(image, generation=1), mapping)
    pdp.put_state(epoch=0, bundle_generation=1, not_ready="")
    return pdp


class Doors:
    """The doors of one process."""

    def __init__(self, pdp: Pdp, folder: Path, pki: Path, connections: int) -> None:
        """`connections`: as many as may be open, of one peer too; 0: what a door allows by default."""
        self._pdp, self._folder, self._pki = pdp, folder, pki
        bounds = ("connections", "connections_per_peer", "handshakes", "handshakes_per_address")
        self._limits = dict.fromkeys(bounds, connections) if connections else {}
        self._grpc: list[grpc.Server] = []
        self._native: list[Listener] = []
        self._peer = VerifiedPeer(ENVOY_KIND, ENVOY, "bench")

    def open(self, kind: str) -> int | str:
        """The port, or the path of a Unix socket."""
        if kind.startswith("grpcio"):
            return self._open_grpcio(f"unix:{self._folder}/grpcio" if kind == "grpcio_uds" else "127.0.0.1:0")
        verifier = Verifier() if kind == "mtls" else None
        listening = self._socket(kind)
        where = str(self._folder / kind) if kind == "uds" else int(listening.getsockname()[1])
        self._serve(listening, verifier)
        return where

    def _socket(self, kind: str) -> socket.socket:
        if kind != "uds":
            return socket.create_server(("127.0.0.1", 0), backlog=1024)
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(self._folder / kind))
        made.listen(1024)
        return made

    def _serve(self, listening: socket.socket, verifier: Verifier | None) -> None:
        # Imported late: `--constant` must come first.
        from fastpath.listener import Listener
        from fastpath.loop import PepList
        from fastpath.tls import TlsIdentity

        # Connections of one side wait while another one is measured.
        limits: dict[str, Any] = {"message_bytes": MIB, "deadline_ms": BUDGET_MS, "first_request_ms": WAIT_MS}
        limits |= self._limits
        door = Listener(self._pdp, envoy=True, spiffe_id="" if verifier else ENVOY, verifier=verifier, **limits)
        door.put_peps(PepList([ENVOY]))
        if verifier is not None:
            root = (self._pki / "roots.pem").read_bytes()
            verifier.put_bundles({DOMAIN: [_der(root)]}, 1)
            door.put_identity(
                TlsIdentity((self._pki / "server.pem").read_bytes(), (self._pki / "server.key").read_bytes())
            )
        threading.Thread(target=door.serve, args=(listening.detach(),), daemon=True).start()
        self._native.append(door)

    def _open_grpcio(self, address: str) -> int | str:
        server = make_server(Limits(), MIB, "bench")
        service = ext_authz_service(self._pdp.ext_authz, lambda _: self._peer, ErrorCounts())
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port(address)
        server.start()
        self._grpc.append(server)
        return address.removeprefix("unix:") if address.startswith("unix:") else int(port)

    def counters(self) -> dict[str, Any]:
        """{"decisions": {"ext_authz allow": n, ..}, "doors": the native doors' own counters}."""
        decisions: Any = self._pdp.counters()["decisions"]
        told = {f"{door} {outcome}": n for (door, outcome), n in decisions.items() if n}
        return {"decisions": told, "doors": [door.counters() for door in self._native]}


def _der(pem: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def answer(pdp: Pdp) -> bytes:
    """What the Pdp answers to an allowed question."""
    code, raw = pdp.ext_authz(check_request(ALLOWED), VerifiedPeer(ENVOY_KIND, ENVOY, "bench"))
    if code:
        raise ValueError(f"the bench's own question got status {code}")
    return bytes(raw)


def serve(doors: Doors, kinds: Iterable[str]) -> None:
    print(json.dumps({kind: doors.open(kind) for kind in kinds}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(doors.counters()), flush=True)


@click.command()
@click.option("--doors", "kinds", required=True, help=f"Which of {', '.join(DOORS)}, with commas.")
@click.option("--policies", "count", type=int, required=True)
@click.option(
    "--pki", type=click.Path(path_type=Path), required=True, help="Folder with the PEM files of bench.servers."
)
@click.option("--connections", default=0, help="Allow so many connections, to a single peer too.")
@click.option("--constant", "always", is_flag=True, help="Native doors answer a constant instead of deciding.")
def main(kinds: str, count: int, pki: Path, connections: int, always: bool) -> None:
    """Serve until standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory(prefix="bench") as name, make_journal(Path(name) / "journal") as journal:
        pdp = make_pdp(count, journal)
        if always:
            constant.install(answer(pdp))
        serve(Doors(pdp, Path(name), pki, connections), kinds.split(","))


if __name__ == "__main__":
    main()
