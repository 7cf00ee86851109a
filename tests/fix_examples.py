"""A stage that plays the example policies for agents (REMIT_EXAMPLES) with live authority; upstreams that misbehave.

Its Envoy is configured with what `remit envoy-config` prints, access log and bound of streams included.
"""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.demo.envoy import Bootstrap, Json, Listener, cluster
from sidecar.demo.stage import AGENT_A, AGENT_B, API_HOST, MCP_HOST, OWNER, PARTNER_DOMAIN, Stage, short_folder
from sidecar.envoy_config import connection_manager
from tests.fix_serve import LISTENER

STREAM_HOST = "stream.example.org"  # its answers never end
DOWN_HOST = "down.example.org"  # nobody listens there
NOBODYS = f"spiffe://{PARTNER_DOMAIN}/agent/alice"  # an agent that nobody answers for
STREAM_S = 1
TOOL_CLASSES = {
    "bank/get_balance": "read",
    "bank/read_record": "write",
    "bank/send_money": "send",
    "bank/delete_account": "delete",
}
DELEGATE: Json = {
    "name": "delegate",
    "methods": ["POST"],
    "host": API_HOST,
    "path": "/agents/{name}",
    "action": "delegate",
    "resource": {"type": "Agent", "id": "spiffe://example.org/agent/{name}"},
}


def examples() -> Path:
    """The folder of the example policies; skips the test when there is none."""
    folder = os.environ.get("REMIT_EXAMPLES", "")
    if not folder:
        pytest.skip("REMIT_EXAMPLES is not set: the example policies for agents are not part of this tree")
    return Path(folder)


def _row(type_: str, id_: str, attrs: dict[str, Any] | None = None, *parents: tuple[str, str]) -> Json:
    above = [{"type": kind, "id": name} for kind, name in parents]
    return {"uid": {"type": type_, "id": id_}, "attrs": attrs or {}, "parents": above}


def _agent(id_: str, clearance: int, *, owner: str = "") -> Json:
    attrs: dict[str, Any] = {"status": "active", "tier": 2, "clearance": clearance}
    if owner:
        attrs["owner"] = {"__entity": {"type": "Person", "id": owner}}
    return _row("Agent", id_, attrs, ("AgentClass", "worker"))


def _tool(name: str, *, reversible: bool = True, pinned: bool = True) -> Json:
    attrs = {"level": 1, "labels": [], "untrusted_output": False, "reversible": reversible, "pinned": pinned}
    return _row("Tool", f"bank/{name}", attrs, ("Server", "bank"))


def entities() -> list[Json]:
    """Who and what there is: two agents with an owner, one without; a destination that takes no data of any level."""
    levels = {"bank": 3, "api": 1, "web": 0}
    places = [
        _row("Destination", id_, {"max_level": most, "trusted_content": True, "region": "eu"}, ("Zone", "internal"))
        for id_, most in levels.items()
    ]
    return [
        _row("Person", OWNER, {"active": True, "risk": 0}),
        _row("AgentClass", "worker"),
        _row("Zone", "internal"),
        _agent(AGENT_A, 2, owner=OWNER),
        _agent(AGENT_B, 1, owner=OWNER),
        _agent("spiffe://example.org/agent/above", 4, owner=OWNER),
        _agent(NOBODYS, 2),
        *places,
        _row("Server", "bank", {"pinned": True}, ("Destination", "bank")),
        _tool("get_balance"),
        _tool("send_money"),
        _tool("read_record", pinned=False),
        _tool("delete_account", reversible=False),
    ]


class ExamplesStage(Stage):
    """The example policies in force, each call judged by live tasks, approvals and owners."""

    def __init__(self, folder: Path, policies: Path, endless: int) -> None:
        """`endless`: port of an upstream whose answers do not end."""
        source = folder / "source"
        (source / "policies").mkdir(parents=True)
        shutil.copy(policies / "agents.cedar", source / "policies")
        shutil.copy(policies / "agents.cedarschema", source)
        (source / "entities.json").write_text(json.dumps(entities()))
        (source / "links.jsonl").write_text("")
        self._endless = endless
        overrides = {
            "listeners.listener": LISTENER,
            "listeners.access_log": {"address": "127.0.0.1:0"},
            "mapping.tools": TOOL_CLASSES,
            "mapping.destination_from": {"bank/send_money": "recipient"},
            "mapping.routes": [DELEGATE],
        }
        super().__init__(folder, policy=source, tasks=True, overrides=overrides)

    def printed(self) -> Json:
        """What `remit envoy-config` prints for this sidecar."""
        files = {"--certificate": "svid.pem", "--key": "key.pem", "--bundle": "bundle.pem"}
        named = [text for option, name in files.items() for text in (option, str(self.svids / "envoy" / name))]
        command = [sys.executable, "-m", "sidecar.cli", "envoy-config", "--config", str(self.config), *named]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found: Json = yaml.safe_load(done.stdout)
        return found

    def _bootstrap(self) -> Bootstrap:
        self._print = self.printed()
        made = super()._bootstrap()
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = closed.getsockname()[1]
        more = [cluster("endless", "127.0.0.1", self._endless), cluster("down", "127.0.0.1", nobody)]
        own = [one for one in made["static_resources"]["clusters"] if one["name"] != "remit"]
        made["static_resources"]["clusters"] = [*self._print["clusters"], *own, *more]
        return made

    def listeners(self) -> list[Listener]:
        """As printed; and one whose streams are bounded more tightly, so that a test sees one end."""
        said = copy.deepcopy(self._print)
        filters = said.pop("http_filters")
        del said["clusters"]
        hosts = {MCP_HOST: "mcp", STREAM_HOST: "endless", DOWN_HOST: "down", "*": "http"}
        shared: dict[str, Any] = {
            "normalise": False,
            "hosts": hosts,
            "tls": self.listener_tls(),
            "http_filters": filters,
        }
        short = {**said, **connection_manager(STREAM_S)}
        return [Listener(name="main", manager=said, **shared), Listener(name="short", manager=short, **shared)]


class _Endless(BaseHTTPRequestHandler):
    """Sends server-sent events until the other side is gone."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, EndlessServer)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            while not server.stopping.wait(0.05):
                self.wfile.write(b"9\r\ndata: x\n\n\r\n")
        except OSError:
            pass
        server.ended.set()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class EndlessServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Endless)
        self.stopping = threading.Event()
        self.ended = threading.Event()
        """A stream has ended at the upstream's side."""


@contextmanager
def endless_server() -> Iterator[EndlessServer]:
    with EndlessServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def endless() -> Iterator[EndlessServer]:
    """The upstream whose streams never end of themselves."""
    with endless_server() as server:
        yield server


@pytest.fixture(scope="module")
def examples_stage(endless: EndlessServer) -> Iterator[ExamplesStage]:
    """A running stage; its folder is kept when it failed to start."""
    policies = examples()
    folder = short_folder()
    with ExamplesStage(folder, policies, endless.server_address[1]) as running:
        yield running
    shutil.rmtree(folder)
