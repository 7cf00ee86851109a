"""A sidecar as a process of its own, with a Workload API that the test holds in its hands."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import yaml

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar._proto.remit.control.v1 import control_pb2, control_pb2_grpc
from sidecar.demo.ca import Authority, Svid, to_pem
from sidecar.demo.processes import Process, module
from sidecar.demo.workload_api import WorkloadApi, svid_message

TRUST_DOMAIN = "corp.example"
SIDECAR = f"spiffe://{TRUST_DOMAIN}/sidecar"
AGENT = f"spiffe://{TRUST_DOMAIN}/agents/a"
OTHER = f"spiffe://{TRUST_DOMAIN}/agents/b"
ENVOY = f"spiffe://{TRUST_DOMAIN}/envoy"
TIMEOUT_S = 30
LISTENER = os.environ.get("REMIT_LISTENER", "native")
"""Who serves the doors where a test does not say: the whole suite runs on either."""
PERMIT = """
@id("web")
permit (principal == Agent::"spiffe://corp.example/agents/a", action, resource) when { context has http };
@id("low")
permit (principal == Agent::"spiffe://corp.example/agents/a", action == Action::"read", resource)
when { context.call.data_level < 3 };
"""
CHECK = "/remit.authz.v1.Authorization/Check"
BATCH = "/remit.authz.v1.Authorization/BatchCheck"
EXT_AUTHZ = "/envoy.service.auth.v3.Authorization/Check"


class Served:
    """One folder with a configuration, and the sidecar that serves it once `start` is called."""

    def __init__(self, folder: pathlib.Path, listener: str = LISTENER) -> None:
        self.folder = folder
        self.config = folder / "remit.yaml"
        self.authority = Authority(TRUST_DOMAIN)
        self.workload = WorkloadApi(folder / "workload.sock")
        self.policy = folder / "policies" / "base.cedar"
        self.policy.parent.mkdir()
        self.policy.write_text(PERMIT)
        self.settings: dict[str, Any] = {
            "identity": {"workload_api": f"unix://{self.workload.path}"},
            "listeners": {
                "listener": listener,
                "ext_authz": {"address": "127.0.0.1:0"},
                "check_address": "127.0.0.1:0",
                "agents": [
                    {"socket": "agent/sock", "spiffe_id": AGENT},
                    {"socket": "other/sock", "spiffe_id": OTHER},
                ],
            },
            "peps": [ENVOY],
            "policy": {"policies": ["policies"], "store": "generations"},
            "mapping": {"trust_domains": [TRUST_DOMAIN]},
            "journal": {"dir": "journal", "segment_bytes": 1 << 20, "cap_bytes": 1 << 24},
            "control": {"socket": "control/sock"},
            "metrics": {"address": "127.0.0.1:0"},
            "limits": {"budget_ms": 5000, "grace_s": 5},
            "process": {"allow_root": os.geteuid() == 0},
        }
        self.refused_calls_expected: set[str] = set()
        self.process: Process | None = None
        self.addresses: dict[str, str] = {}

    # ------------------------------------------------------------ start and stop

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def start(self) -> Process:
        """Start it; its sockets are open when this returns, and no more is promised."""
        self.write()
        self.process = Process("sidecar", module("sidecar.cli", "serve", "--config", str(self.config)), self.folder)
        self.process.wait_until("the control socket answers", self._answers)
        self.addresses = {one.name: one.address for one in self.status().listeners}
        return self.process

    def give_svid(self, ttl_s: int = 3600, *, federated: dict[str, list[bytes]] | None = None) -> Svid:
        """Push a fresh SVID for the sidecar."""
        svid = self.authority.issue(SIDECAR, dns=["localhost"], ttl_s=ttl_s)
        self.workload.push(svid_message([svid], [self.authority.root_der], federated or {}))
        return svid

    def start_ready(self) -> Process:
        """Start it with an SVID; it decides when this returns."""
        self.give_svid()
        process = self.start()
        process.wait_until("ready", lambda: self.status().ready)
        return process

    def stop(self) -> int:
        assert self.process is not None
        return self.process.stop()

    def close(self) -> None:
        if self.process is not None:
            self.process.stop()
        self.workload.stop()

    def log(self) -> list[dict[str, Any]]:
        """Its events so far."""
        file = self.folder / "sidecar.log"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def refused_calls(self) -> set[str]:
        """System calls that its seccomp filter refused it; no test makes it need one."""
        return {line["call"] for line in self.log() if line["event"] == "seccomp.refused"}

    # ------------------------------------------------------------ control and metrics

    def _answers(self) -> bool:
        try:
            self.status()
        except grpc.RpcError:
            return False
        return True

    @contextlib.contextmanager
    def control(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(f"unix:{self.folder}/control/sock") as channel:
            yield channel

    def status(self) -> control_pb2.StatusResponse:
        with self.control() as channel:
            return control_pb2_grpc.ControlStub(channel).Status(control_pb2.StatusRequest(), timeout=TIMEOUT_S)

    def reload(self) -> control_pb2.ReloadResponse:
        with self.control() as channel:
            return control_pb2_grpc.ControlStub(channel).Reload(control_pb2.ReloadRequest(), timeout=TIMEOUT_S)

    def http(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.addresses['metrics.address']}{path}", timeout=TIMEOUT_S) as got:
                return got.status, got.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def remit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, with this configuration."""
        command = [sys.executable, "-m", "sidecar.cli", *arguments, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    # ------------------------------------------------------------ questions

    @contextlib.contextmanager
    def agent_socket(self, name: str = "agent") -> Iterator[grpc.Channel]:
        """The socket that belongs to AGENT, or with "other" to OTHER."""
        with grpc.insecure_channel(f"unix:{self.folder}/{name}/sock") as channel:
            yield channel

    @contextlib.contextmanager
    def tls(self, door: str, svid: Svid | None) -> Iterator[grpc.Channel]:
        """mTLS to a TCP door with this SVID; None: without one."""
        root = to_pem(self.authority.root_der)
        credentials = (
            grpc.ssl_channel_credentials(root, svid.key_pem, svid.chain_pem)
            if svid
            else grpc.ssl_channel_credentials(root)
        )
        # gRPC insists on a host name; the sidecar's SVID has this one beside its SPIFFE ID.
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(self.addresses[door], credentials, options) as channel:
            yield channel


def question(action: str = "read", level: int = 0, **more: Any) -> authz_pb2.CheckRequest:
    resource = authz_pb2.EntityUid(type="Tool", id="docs/search")
    return authz_pb2.CheckRequest(action=action, resource=resource, data_level=level, **more)


def check(channel: grpc.Channel, request: authz_pb2.CheckRequest, **options: Any) -> authz_pb2.CheckResponse:
    call = channel.unary_unary(CHECK, authz_pb2.CheckRequest.SerializeToString, authz_pb2.CheckResponse.FromString)
    return call(request, timeout=TIMEOUT_S, **options)


def outcome(channel: grpc.Channel, request: authz_pb2.CheckRequest) -> tuple[str, str]:
    """(outcome or gRPC status, reason)."""
    try:
        answer = check(channel, request)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return authz_pb2.Outcome.Name(answer.outcome).removeprefix("OUTCOME_"), answer.reason


@contextlib.contextmanager
def made_sidecar(listener: str = LISTENER) -> Iterator[Served]:
    """A sidecar that is not started yet; the Workload API answers `no identity issued`."""
    with tempfile.TemporaryDirectory(prefix="sv") as name:
        made = Served(pathlib.Path(name), listener)
        made.workload.start()
        try:
            yield made
        finally:
            made.close()
        assert made.refused_calls() == made.refused_calls_expected
