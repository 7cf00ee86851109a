"""A native door in this process, and a client of raw HTTP/2 frames that may break every rule."""

import contextlib
import functools
import os
import pathlib
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hpack import Decoder, Encoder

from fastpath.call import Pdp
from fastpath.listener import Listener
from fastpath.loop import PepList
from fastpath.mapping import Mapping
from fastpath.table import Generation
from sidecar.config_mapping import mapping_config
from sidecar.demo.processes import wait_for
from tests.fix_calls import agent_check, envoy_call
from tests.fix_rules import image

AGENT = "spiffe://example.org/agent/support"
ENVOY = "spiffe://example.org/envoy"
CHECK = "/remit.authz.v1.Authorization/Check"
BATCH = "/remit.authz.v1.Authorization/BatchCheck"
EXT_AUTHZ = "/envoy.service.auth.v3.Authorization/Check"
HEALTH = "/grpc.health.v1.Health/Check"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TIMEOUT_S = 20
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, NO_ERROR = 1, 7, 8, 11, 0
POLICY = """
permit(principal, action == Action::"read", resource);
permit(principal, action, resource) when { context has http };
"""
QUESTION = agent_check(action="read", resource=("Tool", "docs/search"))
ENVOY_QUESTION = envoy_call()


def make_pdp(journal: Any = None, *, fixed: bool = False, domains: tuple[str, ...] = ("example.org",)) -> Pdp:
    """A Pdp that decides; with `fixed` clock and ids, equal calls in equal order give equal bytes."""
    pdp = Pdp(journal, budget_ms=5000)
    put_rules(pdp, 1, domains)
    pdp.put_state(epoch=0, bundle_generation=0, not_ready="")
    if fixed:
        pdp.put_clock(1_000_000_000, 1_800_000_000_000_000_000, 7, 0)
    return pdp


def put_rules(pdp: Pdp, generation: int, domains: tuple[str, ...] = ("example.org",)) -> None:
    """The same rules under another number."""
    table = Generation.from_bytes(_image(), generation=generation)
    pdp.put_rules(table, Mapping(mapping_config({"trust_domains": list(domains)})))


@functools.cache
def _image() -> bytes:
    return image(POLICY, columns=True)


class NativeServer:
    """One plain door on a Unix socket, or with `tcp` on loopback."""

    def __init__(
        self, folder: str, pdp: Pdp, *, envoy: bool = False, tcp: bool = False, agent: str = AGENT, **options: Any
    ) -> None:
        self.pdp = pdp
        spiffe_id = "" if "verifier" in options else ENVOY if envoy else agent
        self.listener = Listener(pdp, envoy=envoy, spiffe_id=spiffe_id, **options)
        self.listener.put_peps(PepList([ENVOY]))
        self.listener.put_ready(True)
        self.path = str(pathlib.Path(folder) / "sock")
        if tcp:
            self.listening = socket.create_server(("127.0.0.1", 0))
        else:
            self.listening = socket.socket(socket.AF_UNIX)
            self.listening.bind(self.path)
            self.listening.listen(1024)
        self.address = self.listening.getsockname()
        self._thread = threading.Thread(target=self.listener.serve, args=(self.listening.fileno(),), daemon=True)
        self._thread.start()

    @property
    def target(self) -> str:
        return f"unix:{self.address}" if isinstance(self.address, str) else "{}:{}".format(*self.address)

    def stop(self, grace_ms: int = 0) -> None:
        self.listener.stop(grace_ms)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        self.listening.close()

    def ended(self, cause: str, count: int = 1) -> dict[str, Any]:
        """Wait until so many connections ended for this cause, and no other did; the work that was done."""
        wait_for(f"{count} x {cause}", lambda: sum(self.listener.counters()["closed"].values()) >= count)
        done = self.listener.counters()
        assert done["closed"] == {cause: count}
        return done


def emptied(door: NativeServer) -> dict[str, Any]:
    """Wait until no connection is left, nor what one held; the work that was done."""
    wait_for("no connection", lambda: door.listener.counters()["open"] == 0, TIMEOUT_S)
    return door.listener.counters()


def sockets() -> set[str]:
    """Every socket that this process has open, by the name that the kernel has for it."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


def wait_for_sockets(before: set[str], *ours: socket.socket) -> None:
    """Wait until no socket is open but those of `before` and `ours`.

    A channel that another test of this process left behind may be trying to connect; what the door leaves stays.
    """
    mine = {os.readlink(f"/proc/self/fd/{one.fileno()}") for one in ours}
    wait_for("the end of every other socket", lambda: not sockets() - before - mine, TIMEOUT_S)


@contextlib.contextmanager
def native_server(
    pdp: Pdp | None = None, *, kind: type[NativeServer] = NativeServer, **options: Any
) -> Iterator[NativeServer]:
    with tempfile.TemporaryDirectory(prefix="nd") as folder:
        server = kind(folder, pdp or make_pdp(), **options)
        try:
            yield server
        finally:
            if server._thread.is_alive():
                server.stop()


@pytest.fixture
def door() -> Iterator[NativeServer]:
    with native_server() as server:
        yield server


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """One frame; `length` lies about the payload."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def message(body: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A length-prefixed gRPC message."""
    return struct.pack(">BI", flag, len(body) if length is None else length) + body


def call_headers(path: str = CHECK, **changes: str | None) -> list[tuple[str, str]]:
    """What a gRPC client sends. A change replaces or adds a header (`_` for `-`, `p_` for `:`), None drops it."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for key, value in changes.items():
        name = ":" + key[2:] if key.startswith("p_") else key.replace("_", "-")
        if value is None:
            headers.pop(name)
        else:
            headers[name] = value
    return list(headers.items())


class Gone(Exception):
    """The server closed the connection."""


class RawClient:
    """Sends what it is told and notes every frame that comes back, by stream."""

    def __init__(
        self,
        address: Any,
        *,
        hello: bool = True,
        settings: bytes = b"",
        tls: ssl.SSLContext | None = None,
        receive_bytes: int = 0,
    ) -> None:
        self.socket: socket.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.settimeout(TIMEOUT_S)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(address)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket)
        self.encoder, self.decoder = Encoder(), Decoder()
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.headers: dict[int, dict[str, str]] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.goaway: list[tuple[int, int]] = []
        self.resets: dict[int, int] = {}
        self._rest = b""
        if hello:
            self.send(PREFACE + frame(SETTINGS, payload=settings) + frame(SETTINGS, ACK))

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send as much as the server takes; it may have gone already."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.socket.sendall(data)

    def block(self, headers: list[tuple[str, str]]) -> bytes:
        return bytes(self.encoder.encode(headers, huffman=False))

    def request(self, stream: int, body: bytes | None = None, **changes: Any) -> bytes:
        """The frames of one call; body: what its DATA carries (default: one question)."""
        block = self.block(call_headers(**changes))
        data = message(QUESTION) if body is None else body
        return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, data)

    def ask(self, stream: int, body: bytes | None = None, **changes: Any) -> tuple[str, str]:
        """(grpc-status, grpc-message) of one call."""
        self.send(self.request(stream, body, **changes))
        self.until(lambda: stream in self.ended or stream in self.resets)
        got = self.headers.get(stream, {})
        return got.get("grpc-status", "reset"), got.get("grpc-message", "")

    def until(self, happened: Any) -> None:
        """Read until `happened()`; Gone when the connection ends before."""
        while not happened():
            try:
                chunk = self.socket.recv(65536)
            except (ConnectionResetError, ssl.SSLError):
                chunk = b""
            if not chunk:
                raise Gone
            self._take(chunk)

    def drain(self) -> None:
        """Read to the end of the connection."""
        with contextlib.suppress(Gone):
            self.until(lambda: False)

    def _take(self, chunk: bytes) -> None:
        self._rest += chunk
        while len(self._rest) >= 9:
            size = int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < 9 + size:
                return
            kind, flags, stream = self._rest[3], self._rest[4], int.from_bytes(self._rest[5:9], "big")
            payload, self._rest = self._rest[9 : 9 + size], self._rest[9 + size :]
            self._note(kind, flags, stream, payload)

    def _note(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.frames.append((kind, flags, stream, payload))
        if kind == HEADERS:
            self.headers.setdefault(stream, {}).update(dict(self.decoder.decode(payload)))
        elif kind == DATA:
            self.data[stream] = self.data.get(stream, b"") + payload
        elif kind == RST:
            self.resets[stream] = int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway.append((int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended.add(stream)
