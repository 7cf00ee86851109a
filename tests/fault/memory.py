"""`python -m tests.fault.memory KIND STEP OFFSET`, under failmalloc.so: a native door whose allocations fail.

For every STEP-th allocation n that one connection of KIND makes, from its accept to its close, the connection is made
again with n failing, and with n and all after it. Prints one JSON object: how many there are, and what came of them.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import pathlib
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2
from grpc_health.v1 import health_pb2

from fastpath.journal import Journal
from fastpath.tls import TlsIdentity
from fastpath.verify import Verifier
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo.ca import Authority
from sidecar.demo.processes import wait_for
from sidecar.health_watch import HealthWatch
from tests.fix_calls import agent_check
from tests.fix_native import (
    BATCH,
    CHECK,
    ENVOY_QUESTION,
    EXT_AUTHZ,
    HEALTH,
    Gone,
    NativeServer,
    RawClient,
    make_pdp,
    message,
    native_server,
)

FOREVER = 1 << 40
STREAM = "/remit.authz.v1.Authorization/CheckStream"
REPORT = "/remit.authz.v1.Authorization/Report"
WATCH = HEALTH.replace("Check", "Watch")
REPORTED = authz_pb2.ReportRequest(evaluation_id="0" * 32).SerializeToString()
LENT = {"watch": 2}  # a message that Python may still read, an answer that Python made
DENIED = agent_check(action="write", resource=("Tool", "docs/search"))
ALLOWED = agent_check(action="read", resource=("Tool", "docs/search"))
STREAMED = authz_pb2.CheckStreamRequest(check=authz_pb2.CheckRequest.FromString(DENIED)).SerializeToString()
Outcome = str


class Door:
    """A door, how to come in, and what to ask."""

    def __init__(self, server: NativeServer, path: str, question: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.server, self.path, self.question, self.tls = server, path, question, tls
        self.memory = ctypes.CDLL(None)
        self.memory.failmalloc.argtypes = [ctypes.c_long] * 3
        for name in ("failmalloc_asked", "failmalloc_failed", "failmalloc_live"):
            getattr(self.memory, name).restype = ctypes.c_long

    def connect(self) -> Outcome:
        """One connection and one call, until the door has nothing of it any more; what the caller got."""
        got = self._connect()
        # What it held is kept for connections that are there when it ends: the next one is to find nothing.
        wait_for("no connection", lambda: self.server.listener.counters()["open"] == 0)
        return got

    def _connect(self) -> Outcome:
        try:
            with RawClient(self.server.address, tls=self.tls) as client:
                client.send(client.request(1, message(self.question), path=self.path))
                client.until(
                    lambda: 1 in client.ended or 1 in client.resets or (self.path == WATCH and 1 in client.data)
                )
                status = client.headers.get(1, {}).get("grpc-status", "0" if 1 in client.data else "reset")
                return outcome(self.path, client.data[1][5:]) if status == "0" else f"status {status}"
        except (Gone, OSError):
            return "closed"

    def connect_without(self, first: int, count: int) -> tuple[Outcome, int, int, int]:
        """The same while these allocations fail: outcome, allocations, failures, allocations that were not released."""
        self.memory.failmalloc(self.server._thread.native_id, first, count)
        got = self.connect()
        asked, failed = self.memory.failmalloc_asked(), self.memory.failmalloc_failed()
        self.memory.failmalloc(0, 0, 0)
        return got, asked, failed, self.memory.failmalloc_live()


def outcome(path: str, answer: bytes) -> Outcome:
    if path == BATCH:
        return "/".join(
            authz_pb2.Outcome.Name(one.outcome) for one in authz_pb2.BatchCheckResponse.FromString(answer).items
        )
    if path == CHECK:
        return authz_pb2.Outcome.Name(authz_pb2.CheckResponse.FromString(answer).outcome)
    if path == STREAM:
        return streamed(answer)
    if path == REPORT:
        return authz_pb2.ReportResult.Name(authz_pb2.ReportResponse.FromString(answer).result)
    if path in (HEALTH, WATCH):
        return f"health {health_pb2.HealthCheckResponse.FromString(answer).status}"
    return f"code {external_auth_pb2.CheckResponse.FromString(answer).status.code}"


def streamed(messages: bytes) -> Outcome:
    """What the question was answered, behind the notice of the begin; the first prefix is taken off."""
    size = messages.find(b"\0\0\0\0")
    if size < 0:
        return "status reset"
    assert authz_pb2.CheckStreamResponse.FromString(messages[:size]).WhichOneof("is") == "notice"
    answer = authz_pb2.CheckStreamResponse.FromString(messages[size + 5 :]).answer
    return authz_pb2.Outcome.Name(answer.outcome)


@contextlib.contextmanager
def plain(folder: pathlib.Path, path: str, question: bytes, *, envoy: bool = False) -> Iterator[Door]:
    with Journal(folder / "journal") as journal, native_server(make_pdp(journal), envoy=envoy) as server:
        yield Door(server, path, question)


@contextlib.contextmanager
def watched(folder: pathlib.Path, path: str, question: bytes) -> Iterator[Door]:
    """With Python at the other end of the slow lane."""
    with plain(folder, path, question) as door:
        health = HealthWatch(door.server.listener.lane)
        health.put_ready(True)
        threading.Thread(target=health.run, daemon=True).start()
        yield door


@contextlib.contextmanager
def mutual_tls(folder: pathlib.Path, _: str, question: bytes) -> Iterator[Door]:
    """A whole handshake with client certificate before the call."""
    authority = Authority("example.org")
    ours, theirs = (
        authority.issue("spiffe://example.org/sidecar"),
        authority.issue("spiffe://example.org/agent/support"),
    )
    verifier = Verifier()
    verifier.put_bundles({"example.org": [authority.root_der]}, 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    (folder / "client.pem").write_bytes(theirs.chain_pem + theirs.key_pem)
    context.load_cert_chain(folder / "client.pem")
    pdp = make_pdp()
    pdp.put_state(epoch=0, bundle_generation=1, not_ready="")
    with native_server(pdp, tcp=True, verifier=verifier) as server:
        server.listener.put_identity(TlsIdentity(ours.chain_pem, ours.key_pem))
        yield Door(server, CHECK, question, context)


KINDS: dict[str, Callable[[pathlib.Path], Any]] = {
    "check": lambda folder: plain(folder, CHECK, ALLOWED),
    "denied": lambda folder: plain(folder, CHECK, DENIED),
    "batch": lambda folder: plain(folder, BATCH, b"\x0a" + bytes((len(DENIED),)) + DENIED),
    "envoy": lambda folder: plain(folder, EXT_AUTHZ, ENVOY_QUESTION, envoy=True),
    "stream": lambda folder: plain(folder, STREAM, STREAMED),
    "report": lambda folder: plain(folder, REPORT, REPORTED),
    "health": lambda folder: plain(folder, HEALTH, b""),
    "watch": lambda folder: watched(folder, WATCH, b""),
    "tls": lambda folder: mutual_tls(folder, CHECK, DENIED),
}


def main(kind: str, step: int, offset: int) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="nm") as name, KINDS[kind](pathlib.Path(name)) as door:
        wanted = door.connect()
        assert door.connect() == wanted
        _, total, _, kept = door.connect_without(FOREVER, 1)
        leaks, never = [], 0
        for n in range(1 + offset % step, total + 1, step):
            for count in (1, FOREVER):
                got, _, failed, live = door.connect_without(n, count)
                outcomes[got] += 1
                never += failed == 0
                leaks += [(n, count, live - kept)] if live > kept + LENT.get(kind, 0) else []
                after = door.connect()
                assert after == wanted, f"allocation {n}: afterwards {after}"
    print(
        json.dumps(
            {"wanted": wanted, "total": total, "outcomes": outcomes, "leaks": leaks, "never": never, "kept": kept}
        )
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
