"""Everything that the demo plays on: SVIDs, upstreams, collector, sidecar and a real Envoy, as processes of their own.

The tests use the same stage, so what they prove is what the demo shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import yaml

from sidecar import config_file, envoy_config
from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar.demo.envoy import Bootstrap, Envoy, Json, Listener, bootstrap, cluster, tls_files, watched_svid
from sidecar.demo.processes import Process, module, wait_for

TRUST_DOMAIN = "example.org"
FOREIGN_DOMAIN = "evil.test"  # its authority exists, nobody federates with it
PARTNER_DOMAIN = "partner.test"  # federated: its SVIDs verify, but no policy knows its agents
SIDECAR_ID = f"spiffe://{TRUST_DOMAIN}/sidecar"
ENVOY_ID = f"spiffe://{TRUST_DOMAIN}/envoy"
AGENT_A = f"spiffe://{TRUST_DOMAIN}/agent/alice"
AGENT_B = f"spiffe://{TRUST_DOMAIN}/agent/bob"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "demo"
MCP_HOST = "bank.example.org"
API_HOST = "api.example.org"
WEB_HOST = "paste.example.com"  # a public destination
NOBODY_UID = 65534
OWNER, SECURITY = "ana", "eve"  # who answers for the agents, and who watches over all


def ordinary_uid() -> int | None:
    """The user to run the stage as when we are root; None: stay who we are.

    Root stays root only where an ordinary user could not even read this interpreter and this code (an interpreter under
    a closed home folder): the sidecar is then told so explicitly by `process.allow_root`.
    """
    if os.geteuid() != 0:
        return None
    places = [Path(sys.executable).resolve(), Path(sys.prefix), Path(__file__).resolve()]
    open_to_all = all(folder.stat().st_mode & 0o001 for place in places for folder in place.parents)
    return NOBODY_UID if open_to_all else None


class Stage:
    """Start with `with Stage(folder) as stage`; `folder` must be short, since sockets lie in it."""

    def __init__(
        self,
        folder: Path,
        *,
        policy: Path = EXAMPLES,
        tasks: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """`tasks`: no call is allowed that no task covers; `overrides` are settings by dotted name."""
        self.folder = folder
        self.policy = folder / "policy"
        self.svids = folder / "svids"
        self.config = folder / "remit.yaml"
        self.records = folder / "records"
        self._source = policy
        self._tasks = tasks
        self._overrides = dict(overrides or {})
        self._stack = contextlib.ExitStack()
        self._uid = ordinary_uid()
        self.upstream: dict[str, int] = {}

    # ------------------------------------------------------------ start and stop

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as undo:
            self._stack = undo
            self._prepare()
            self.workload = undo.enter_context(self._workload_api())
            self.upstreams = undo.enter_context(self._upstreams())
            # Both may be started anew in between; the present one is ended, the sidecar while it can still ship.
            self.collector = self.start_collector()
            undo.callback(lambda: self.collector.stop())
            self.sidecar = self.start_sidecar()
            undo.callback(lambda: self.sidecar.stop())
            self.envoy = undo.enter_context(Envoy(self.folder, self._bootstrap()))
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self._source, self.policy, dirs_exist_ok=True)
        self.config.write_text(yaml.safe_dump(self.settings(), sort_keys=False))
        (self.folder / "workload.yaml").write_text(yaml.safe_dump(self._identities(), sort_keys=False))
        if self._uid is not None:
            for path in [self.folder, *self.folder.rglob("*")]:
                os.chown(path, self._uid, self._uid)

    def _start(self, name: str, command: list[str]) -> Process:
        return Process(name, command, self.folder, uid=self._uid)

    def _identities(self) -> Json:
        identities: list[Json] = [{"socket": "sidecar.sock", "spiffe_id": SIDECAR_ID, "dns": ["localhost"]}]
        for name, spiffe_id in {
            "envoy": ENVOY_ID,
            "alice": AGENT_A,
            "bob": AGENT_B,
            "partner": f"spiffe://{PARTNER_DOMAIN}/agent/alice",
            "forged": f"spiffe://{FOREIGN_DOMAIN}/agent/alice",
        }.items():
            identities.append({"files": name, "spiffe_id": spiffe_id, "dns": ["localhost"] if name == "envoy" else []})
        domains = {TRUST_DOMAIN: {"federates_with": [PARTNER_DOMAIN]}, PARTNER_DOMAIN: {}, FOREIGN_DOMAIN: {}}
        return {"folder": str(self.svids), "trust_domains": domains, "identities": identities}

    def authority_socket(self, who: str) -> Path:
        """Where a person or an agent reaches the authority services."""
        return self.folder / f"authority-{who}" / "sock"

    def authority(self) -> Json:
        """The section that makes the sidecar enforce tasks, for a stage that shows them."""
        people = [{"id": OWNER, "roles": ["operator"]}, {"id": SECURITY, "roles": ["security", "approver"]}]
        sockets = [{"socket": str(self.authority_socket(who)), "person": who} for who in (OWNER, SECURITY)]
        sockets.append({"socket": str(self.authority_socket("alice")), "spiffe_id": AGENT_A})
        return {"store": str(self.folder / "authority"), "people": people, "sockets": sockets}

    def settings(self) -> Json:
        """The sidecar's configuration."""
        made: Json = {
            "identity": {"workload_api": f"unix://{self.svids}/sidecar.sock"},
            "listeners": {
                "ext_authz": {"address": "127.0.0.1:0"},
                "check_address": "127.0.0.1:0",
                "agents": [{"socket": f"{self.folder}/alice/check.sock", "spiffe_id": AGENT_A}],
            },
            "peps": [ENVOY_ID],
            "policy": {
                "policies": [str(self.policy / "policies")],
                "schema": str(self.policy / "agents.cedarschema"),
                "entities": str(self.policy / "entities.json"),
                "links": str(self.policy / "links.jsonl"),
                "store": str(self.folder / "generations"),
            },
            "mapping": {
                "trust_domains": [TRUST_DOMAIN, PARTNER_DOMAIN],
                "servers": [{"name": "bank", "host": MCP_HOST, "path": "/mcp"}],
                "destinations": [
                    {"host": MCP_HOST, "id": "bank"},
                    {"host": API_HOST, "id": "api"},
                    {"host": WEB_HOST, "id": "web"},
                ],
            },
            "journal": {"dir": str(self.folder / "journal"), "segment_bytes": 1 << 20, "cap_bytes": 1 << 28},
            "upstream": {"socket": f"{self.folder}/collect/collect.sock"},
            "control": {"socket": f"{self.folder}/control/control.sock"},
            "metrics": {"address": "127.0.0.1:0"},
            # A laptop that is busy starting things must not make the demo late; production keeps the default.
            "limits": {"budget_ms": 2500, "grace_s": 5},
            "process": {"allow_root": os.geteuid() == 0 and self._uid is None},
        }
        if self._tasks:
            made["authority"] = self.authority()
        for path, value in self._overrides.items():
            section = made
            *parents, last = path.split(".")
            for name in parents:
                section = section.setdefault(name, {})
            section[last] = value
        return made

    # ------------------------------------------------------------ processes

    def _workload_api(self) -> Process:
        process = self._start(
            "workload", module("sidecar.demo.workload_api", "--config", str(self.folder / "workload.yaml"))
        )
        process.wait_until("SVIDs given out", lambda: (self.svids / "sidecar.sock").exists())
        return process

    def _upstreams(self) -> Process:
        ready = self.folder / "upstreams.json"
        process = self._start("upstreams", module("sidecar.demo.upstreams", "--ready", str(ready)))
        process.wait_until("upstreams listening", ready.exists)
        self.upstream = json.loads(ready.read_text())
        return process

    def start_collector(self) -> Process:
        """The collector; call again after it was stopped."""
        socket = self.folder / "collect" / "collect.sock"
        command = ["collect", "--socket", str(socket), "--dir", str(self.records)]
        process = self._start("collector", module("sidecar.cli", *command))
        process.wait_until("collector listening", socket.exists)
        return process

    def restart_collector(self) -> None:
        """Start a collector after the present one was ended."""
        self.collector = self.start_collector()

    def start_sidecar(self) -> Process:
        """The sidecar; returns when it is ready."""
        process = self._start("sidecar", module("sidecar.cli", "serve", "--config", str(self.config)))
        process.wait_until("the sidecar ready", self._ready)
        self.addresses = {one.name: one.address for one in self.status().listeners}
        return process

    def _ready(self) -> bool:
        try:
            return self.status().ready
        except grpc.RpcError:
            return False

    # ------------------------------------------------------------ Envoy

    def envoy_cluster(self) -> Json:
        """The sidecar's cluster, as `remit envoy-config` prints it, with an SVID that is read again when it rotates."""
        folder = self.svids / "envoy"
        files = envoy_config.TlsFiles(
            certificate=str(folder / "svid.pem"), key=str(folder / "key.pem"), bundle=str(folder / "bundle.pem")
        )
        made = envoy_config.sidecar_cluster(self.addresses["listeners.ext_authz.address"], SIDECAR_ID, files)
        tls = made["transport_socket"]["typed_config"]["common_tls_context"]
        del tls["tls_certificates"]
        tls["tls_certificate_sds_secret_configs"] = watched_svid(folder)
        return made

    def envoy_filter(self) -> Json:
        """The ext_authz filter, as `remit envoy-config` prints it."""
        needs = envoy_config.needs(config_file.load(str(self.config)), self.status().extras_read)
        return envoy_config.http_filter(needs)

    def listener_tls(self) -> Json:
        """Envoy's own SVID, and every trust domain whose agents may connect."""
        folder = self.svids / "envoy"
        bundles = {TRUST_DOMAIN: folder / "bundle.pem", PARTNER_DOMAIN: folder / f"bundle.{PARTNER_DOMAIN}.pem"}
        return tls_files(folder, bundles)

    def listeners(self) -> list[Listener]:
        """Two doors to the same upstreams: one with the path settings that the README recommends, one without."""
        shared: dict[str, Any] = {
            "hosts": {MCP_HOST: "mcp", "*": "http"},
            "tls": self.listener_tls(),
            "http_filters": [self.envoy_filter()],
        }
        return [Listener(name="main", **shared), Listener(name="raw", normalise=False, **shared)]

    def _bootstrap(self) -> Bootstrap:
        clusters = [
            self.envoy_cluster(),
            cluster("mcp", "127.0.0.1", self.upstream["mcp"]),
            cluster("http", "127.0.0.1", self.upstream["http"]),
        ]
        return bootstrap(self.listeners(), clusters, access_log=str(self.folder / "access.log"))

    # ------------------------------------------------------------ what a scene does

    def control(self) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{self.folder}/control/control.sock")

    def status(self) -> control_pb2.StatusResponse:
        """What the sidecar has in force."""
        with self.control() as channel:
            return control_pb2_grpc.ControlStub(channel).Status(control_pb2.StatusRequest(), timeout=5)

    def reload(self) -> control_pb2.ReloadResponse:
        """Load the policies again; the answer names the generation in force and why a reload was refused."""
        with self.control() as channel:
            return control_pb2_grpc.ControlStub(channel).Reload(control_pb2.ReloadRequest(), timeout=60)

    def rotate(self) -> None:
        """Give every workload a new SVID; returns when the sidecar and Envoy show theirs."""
        doors = [self.addresses["listeners.ext_authz.address"], f"127.0.0.1:{self.envoy.ports['main']}"]
        before = {door: _shown(door) for door in doors}
        os.kill(self.workload.pid, signal.SIGHUP)
        wait_for("rotation", lambda: all(_shown(door) != before[door] for door in doors))

    def decided(self) -> int:
        """Decisions that the sidecar has answered."""
        return sum(one.count for one in self.status().decisions)

    def collected(self) -> list[Json]:
        """What the collector holds, in order; decisions and other records."""
        lines: list[Json] = []
        for path in sorted(self.records.glob("*.jsonl")):
            lines += [json.loads(line) for line in path.read_text().splitlines()]
        return lines

    def wait_collected(self) -> list[Json]:
        """The collector's records once it has all that the sidecar has."""
        wait_for("all records at the collector", lambda: self.status().stream.lag == 0)
        return self.collected()


def _shown(door: str) -> bytes:
    """The leaf certificate (DER) that a TLS server at `host:port` shows to anybody."""
    # Only looked at: whether it may be trusted is the business of the calls.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, _, port = door.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True) or b""


def short_folder(base: Path | None = None) -> Path:
    """A folder for a stage: Unix sockets bear paths of about 100 bytes only."""
    folder = (base or Path("/tmp")) / f"remit-{os.getpid()}-{time.monotonic_ns() % 1_000_000:x}"
    folder.mkdir(mode=0o755)
    return folder
