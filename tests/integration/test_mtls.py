"""mTLS with SVIDs from the Workload API on real grpcio servers: rows ID-01 to ID-14, ID-20, ID-26; the way upstream."""

import concurrent.futures
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fastpath.verify import Verifier
from sidecar.demo.ca import Authority, Svid, to_pem
from sidecar.demo.workload_api import WorkloadApi, svid_message
from sidecar.identity.peers import PeerResolver
from sidecar.identity.source import Backoff, Stream, WorkloadSource
from sidecar.identity.tls import server_credentials
from sidecar.identity.upstream import Upstream
from tests import fix_identity as fix
from tests.fix_identity import HOUR_S, NOW_S, Clock, Forger, uris, wait_for

SERVER_ID = "spiffe://a.test/sidecar"
METHOD = "/remit.test/Who"
QUICK = Stream(backoff=Backoff(0.01, 0.05))
A = Authority("a.test", now_s=NOW_S)
B = Authority("b.test", now_s=NOW_S)
FORGE_A = Forger.root("a.test")
FORGE_B = Forger.root("b.test")
RSA_A = Forger.root("a.test", rsa.generate_private_key(65537, 2048))
BUNDLE_A = [A.root_der, FORGE_A.certificate, RSA_A.certificate]
BUNDLE_B = [B.root_der, FORGE_B.certificate]


@dataclass
class Door:
    """A grpcio server with our credentials whose one handler answers who calls, or UNAUTHENTICATED with the reason."""

    folder: Path
    server_id: str = SERVER_ID
    clock: Clock = field(default_factory=Clock)
    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.api = WorkloadApi(self.folder / f"{self.server_id.rpartition('/')[2]}.sock")
        self.push()
        self.api.start()
        self.source = WorkloadSource(f"unix://{self.api.path}", stream=QUICK)
        self.verifier = Verifier()
        self.resolver = PeerResolver(self.verifier, clock=self.clock)
        self.source.start()
        self.source.feed(self.verifier)
        wait_for(lambda: self.source.state() == "", "the door's identity")
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        handlers = {
            "Who": grpc.unary_unary_rpc_method_handler(self._who),
            "Hold": grpc.stream_stream_rpc_method_handler(self._hold),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("remit.test", handlers),))
        self.port = self.server.add_secure_port("127.0.0.1:0", server_credentials(self.source))
        self.server.start()

    def stop(self) -> None:
        self.server.stop(None).wait()
        self.source.stop()
        self.api.stop()

    def push(self, bundle: list[bytes] = BUNDLE_A, **federated: list[bytes]) -> Svid:
        """Give the door a new SVID; by default it trusts a.test and b.test."""
        svid = A.issue(self.server_id, dns=["localhost"], now_s=NOW_S)
        foreign = {
            name.replace("_", "."): roots for name, roots in (federated or {"b_test": BUNDLE_B}).items() if roots
        }
        self.api.push(svid_message([svid], bundle, foreign))
        return svid

    def _who(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        peer = self.resolver.from_auth_context(context.auth_context(), context.peer())
        if peer.refusal:
            self.refused.append(peer.refusal)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, peer.refusal)
        self.accepted.append(peer.spiffe_id)
        return peer.spiffe_id.encode()

    def _hold(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield self._who(b"", context)
        yield from requests


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tls-") as made:
        yield Path(made)


@pytest.fixture
def door(folder: Path) -> Iterator[Door]:
    made = Door(folder)
    made.start()
    yield made
    made.stop()


def channel(door: Door, key_pem: bytes | None, chain_pem: bytes | None) -> grpc.Channel:
    """A client's channel with a connection of its own."""
    credentials = grpc.ssl_channel_credentials(to_pem(A.root_der), key_pem, chain_pem)
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"127.0.0.1:{door.port}", credentials, options=options)


def who(open_channel: grpc.Channel) -> str:
    """The SPIFFE ID that the door saw, or the refusal's reason, or the code when the call did not get there."""
    try:
        return open_channel.unary_unary(METHOD)(b"", timeout=10).decode()
    except grpc.RpcError as error:
        return error.details() if error.code() is grpc.StatusCode.UNAUTHENTICATED else error.code().name


def pem(ders: tuple[bytes, ...]) -> bytes:
    return b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in ders)


def key_pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def call_with(door: Door, forger: Forger, **bend: Any) -> str:
    """Call with a leaf of `forger`; `bend` as in Forger.leaf."""
    key = bend.pop("key", None) or fix.new_key()
    leaf = forger.leaf(key=key, **bend)
    with channel(door, key_pem(key), pem((leaf, *forger.chain))) as opened:
        return who(opened)


# ---------------------------------------------------------------- callers


def test_callers_of_both_trust_domains_are_known_by_their_own(door: Door) -> None:
    """A good SVID, also below an intermediate and of a federated domain, is who it says it is."""
    for authority in (A, A.intermediate(now_s=NOW_S), B):
        svid = authority.issue(f"spiffe://{authority.trust_domain}/agent/a", now_s=NOW_S)
        with channel(door, svid.key_pem, svid.chain_pem) as opened:
            assert who(opened) == svid.spiffe_id
    assert call_with(door, FORGE_A) == "spiffe://a.test/agent/a"


def test_id_01_without_a_certificate_no_handler_runs(door: Door) -> None:
    """ID-01: the handshake fails; the door runs nothing."""
    with channel(door, None, None) as opened:
        assert who(opened) == "UNAVAILABLE"
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as plain:
        assert who(plain) == "UNAVAILABLE"
    assert (door.accepted, door.refused) == ([], [])


BRIEF = ec.generate_private_key(ec.SECP384R1())
CASES: dict[str, tuple[Forger, dict[str, Any], str]] = {
    "ID-02 expired": (FORGE_A, {"not_after_s": NOW_S - 1}, ""),
    "ID-02 not yet valid": (FORGE_A, {"not_before_s": NOW_S + HOUR_S, "not_after_s": NOW_S + 2 * HOUR_S}, ""),
    "ID-04 forged trust domain": (FORGE_B, {"san": uris("spiffe://a.test/admin")}, "identity.chain"),
    "ID-05 unknown trust domain": (FORGE_A, {"san": uris("spiffe://c.test/x")}, "identity.trust_domain_unknown"),
    "ID-06 two URIs": (FORGE_A, {"san": uris("spiffe://a.test/x", "spiffe://a.test/y")}, "identity.uri_san"),
    "ID-06 spiffe and https": (FORGE_A, {"san": uris("spiffe://a.test/x", "https://x")}, "identity.uri_san"),
    "ID-06 duplicate": (FORGE_A, {"san": uris("spiffe://a.test/x", "spiffe://a.test/x")}, "identity.uri_san"),
    "ID-07 no SAN": (FORGE_A, {"san": b"", "subject": "spiffe://a.test/x"}, "identity.uri_san"),
    "ID-07 DNS only": (FORGE_A, {"san": fix.dns("a.test")}, "identity.uri_san"),
    "ID-08 CA leaf": (FORGE_A, {"ca": True}, "identity.ca_leaf"),
    "ID-08 keyCertSign": (FORGE_A, {"usage": fix.DIGITAL_SIGNATURE | fix.KEY_CERT_SIGN}, "identity.key_usage"),
    "ID-08 cRLSign": (FORGE_A, {"usage": fix.DIGITAL_SIGNATURE | fix.CRL_SIGN}, "identity.key_usage"),
    "ID-08 no digitalSignature": (FORGE_A, {"usage": fix.KEY_AGREEMENT}, ""),
    "ID-09 no BasicConstraints": (FORGE_A, {"ca": None}, "identity.basic_constraints"),
    "ID-09 no KeyUsage": (FORGE_A, {"usage": None}, "identity.key_usage"),
    "ID-09 KeyUsage not critical": (FORGE_A, {"usage_critical": False}, "identity.key_usage"),
    "ID-10 root path": (FORGE_A, {"san": uris("spiffe://a.test")}, "identity.spiffe_id"),
    "ID-10 newline": (FORGE_A, {"san": uris("spiffe://a.test/x\n")}, "identity.spiffe_id"),
    "ID-10 NUL": (FORGE_A, {"san": uris("spiffe://a.test/x\0/y")}, "identity.spiffe_id"),
    "ID-11 serverAuth only": (FORGE_A, {"eku": (fix.SERVER_AUTH,)}, ""),
    "ID-11 clientAuth only": (FORGE_A, {"eku": (fix.CLIENT_AUTH,)}, "identity.eku"),
    "ID-12 RSA-1024": (FORGE_A, {"key": rsa.generate_private_key(65537, 1024)}, "identity.key"),
    "ID-12 SHA-1": (RSA_A, {"signature": fix.SHA1_RSA}, ""),
    "ID-13 Ed25519": (FORGE_A, {"key": ed25519.Ed25519PrivateKey.generate()}, ""),
    "ID-14 intermediate of another domain": (
        FORGE_A.signer(san=uris("spiffe://b.test")),
        {"san": uris("spiffe://a.test/x")},
        "identity.signing_cert",
    ),
}


@pytest.mark.parametrize(("forger", "bend", "reason"), CASES.values(), ids=CASES.keys())
def test_a_caller_who_breaks_a_rule_is_never_accepted(
    door: Door, forger: Forger, bend: dict[str, Any], reason: str
) -> None:
    """Each row at a real TLS server: the call ends UNAUTHENTICATED with the reason or, where grpcio's TLS knows the
    rule (no reason in the table), in the handshake; in no case is the caller anybody."""
    got = call_with(door, forger, **bend)
    assert door.accepted == []
    if reason:
        assert got == reason
    else:
        assert got == "UNAVAILABLE" or got.startswith("identity.")


def test_id_13_the_keys_that_get_through(door: Door) -> None:
    """ID-13: P-384 and RSA-2048 SVIDs are accepted from the handshake to the door."""
    for key in (BRIEF, RSA_A.key):
        assert call_with(door, FORGE_A, key=key) == "spiffe://a.test/agent/a"
    assert call_with(door, RSA_A) == "spiffe://a.test/agent/a"


def test_id_03_a_certificate_that_ends_during_a_connection_ends_its_calls(door: Door) -> None:
    """ID-03: on one connection, the call in the last second is good and the next one is not."""
    svid = A.issue("spiffe://a.test/agent/a", now_s=NOW_S)
    with channel(door, svid.key_pem, svid.chain_pem) as opened:
        door.clock.at_s = svid.not_after_s
        assert who(opened) == svid.spiffe_id
        door.clock.at_s = svid.not_after_s + 1
        assert who(opened) == "identity.expired"


def test_id_20_a_root_that_goes_refuses_the_next_call_on_an_old_connection(door: Door) -> None:
    """ID-20: the connection stays, its next call is refused; the other domain goes on; a root that returns heals."""
    ours = A.issue("spiffe://a.test/agent/a", now_s=NOW_S)
    theirs = B.issue("spiffe://b.test/agent/b", now_s=NOW_S)
    with channel(door, ours.key_pem, ours.chain_pem) as mine, channel(door, theirs.key_pem, theirs.chain_pem) as other:
        assert (who(mine), who(other)) == (ours.spiffe_id, theirs.spiffe_id)
        door.push(b_test=[])
        wait_for(lambda: door.verifier.trust_domains == ("a.test",), "the update")
        assert (who(mine), who(other)) == (ours.spiffe_id, "identity.trust_domain_unknown")
        door.push()
        wait_for(lambda: door.verifier.trust_domains == ("a.test", "b.test"), "the update")
        assert who(other) == theirs.spiffe_id


def test_a_rotated_root_of_our_own_domain(door: Door) -> None:
    """Both roots in force while workloads change over; then the old one goes, and with it who did not change."""
    new_root = Authority("a.test", now_s=NOW_S)
    old, new = (authority.issue("spiffe://a.test/agent/a", now_s=NOW_S) for authority in (A, new_root))
    with channel(door, old.key_pem, old.chain_pem) as before:
        assert who(before) == old.spiffe_id
        door.push([*BUNDLE_A, new_root.root_der])
        wait_for(lambda: door.verifier.generation == 2, "both roots")
        with channel(door, new.key_pem, new.chain_pem) as after:
            assert (who(before), who(after)) == (old.spiffe_id, new.spiffe_id)
        svid = new_root.issue(SERVER_ID, dns=["localhost"], now_s=NOW_S)
        door.api.push(svid_message([svid], [new_root.root_der], {}))
        wait_for(lambda: door.verifier.generation == 3, "the new root alone")
        assert who(before) == "identity.chain"


# ---------------------------------------------------------------- our own identity


def served_leaf(door: Door, client: ssl.SSLContext) -> bytes | None:
    """The leaf that a new handshake gets, or None when there is no handshake."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", door.port), 10) as plain,
        client.wrap_socket(plain) as tls,
    ):
        return tls.getpeercert(True)
    return None


@pytest.fixture
def client(folder: Path) -> ssl.SSLContext:
    """A TLS client with a good SVID that takes whatever the server shows."""
    svid = A.issue("spiffe://a.test/agent/a", now_s=NOW_S)
    (folder / "client.pem").write_bytes(svid.key_pem + svid.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(folder / "client.pem")
    return context


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_id_26_rotation_under_calls_loses_none_and_new_handshakes_see_the_new_leaf(
    door: Door, client: ssl.SSLContext
) -> None:
    """ID-26: ten rotations while old and new connections call without pause: no call fails, nothing is left behind."""
    svid = A.issue("spiffe://a.test/agent/a", now_s=NOW_S)
    stop = threading.Event()
    failures: list[str] = []
    answered = [0, 0]

    def keep_calling() -> None:
        with channel(door, svid.key_pem, svid.chain_pem) as opened:
            while not stop.is_set():
                if (got := who(opened)) != svid.spiffe_id:
                    failures.append(got)
                answered[0] += 1

    def keep_connecting() -> None:
        while not stop.is_set():
            with channel(door, svid.key_pem, svid.chain_pem) as opened:
                if (got := who(opened)) != svid.spiffe_id:
                    failures.append(got)
                answered[1] += 1

    threads = [threading.Thread(target=run) for run in (keep_calling, keep_connecting)]
    for thread in threads:
        thread.start()
    wait_for(lambda: min(answered) > 2, "both ways of calling")
    before = descriptors()
    for _ in range(10):
        pushed = door.push()
        calls, connections = answered
        wait_for(lambda p=pushed: served_leaf(door, client) == p.chain_der[0], "the new leaf in a new handshake")
        wait_for(lambda c=calls, n=connections: answered[0] > c and answered[1] > n, "calls after the rotation")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert door.refused == []
    assert door.source.counters()["applied"] == 11
    wait_for(lambda: descriptors() <= before, "descriptors of closed connections returned")


def test_wl_05_without_an_identity_no_handshake_succeeds(door: Door, client: ssl.SSLContext) -> None:
    """WL-05: a redacted SVID is not shown to anybody again; calls on old connections are refused; both come back."""
    svid = A.issue("spiffe://a.test/agent/a", now_s=NOW_S)
    shown = door.source.current()
    assert shown is not None
    with channel(door, svid.key_pem, svid.chain_pem) as old:
        assert who(old) == svid.spiffe_id
        door.api.deny()
        wait_for(lambda: door.verifier.trust_domains == (), "the redaction")
        leaf = served_leaf(door, client)
        assert leaf is None or ssl.DER_cert_to_PEM_cert(leaf).encode() not in shown.svid_chain_pem
        assert who(old) == "identity.trust_domain_unknown"
        with channel(door, svid.key_pem, svid.chain_pem) as fresh:
            assert who(fresh) == "UNAVAILABLE"
        door.push()
        wait_for(lambda: door.source.state() == "", "an identity again")
        assert who(old) == svid.spiffe_id
        with channel(door, svid.key_pem, svid.chain_pem) as fresh:
            assert who(fresh) == svid.spiffe_id


# ---------------------------------------------------------------- upstream

UpstreamMaker = Callable[..., Upstream]


@pytest.fixture
def collector(folder: Path) -> Iterator[Door]:
    made = Door(folder, "spiffe://a.test/collector")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def make_upstream(door: Door, collector: Door) -> Iterator[UpstreamMaker]:
    """Ways from the sidecar (whose identity is the door's) to the collector."""
    made: list[Upstream] = []

    def make(*allowed: str, port: int | None = None, **options: Any) -> Upstream:
        address = f"127.0.0.1:{port or collector.port}"
        upstream = Upstream(door.source, door.verifier, address, allowed or [collector.server_id], **options)
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        upstream.close()


def test_upstream_carries_calls_to_the_collector_under_our_identity(
    collector: Door, make_upstream: UpstreamMaker
) -> None:
    """The client needs no TLS of its own: the collector sees our SVID, we have verified its."""
    upstream = make_upstream()
    with upstream.channel() as opened:
        assert who(opened) == SERVER_ID
        big = opened.stream_stream("/remit.test/Hold")(iter([b"x" * 1_000_000] * 8), timeout=20)
        assert [len(part) for part in big] == [len(SERVER_ID), *[1_000_000] * 8]
    assert collector.accepted == [SERVER_ID, SERVER_ID]
    assert upstream.problem() == ""


def test_lg_15_upstream_sends_nothing_to_another_id(collector: Door, make_upstream: UpstreamMaker) -> None:
    """A server with a good SVID and another ID gets no byte of a call."""
    upstream = make_upstream("spiffe://a.test/other")
    with upstream.channel() as opened:
        assert who(opened) == "UNAVAILABLE"
    assert "spiffe://a.test/collector" in upstream.problem()
    assert (collector.accepted, collector.refused) == ([], [])


@contextlib.contextmanager
def tls_server(folder: Path, key: Any, *chain: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A TLS server with a chain of our choice: its port, and what it was sent after the handshake."""
    (folder / "server.pem").write_bytes(key_pem(key) + pem(chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.set_alpn_protocols(["h2"])
    got: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as tls:
                tls.settimeout(10)
                got.append(tls.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], got
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize(
    ("forger", "bend"),
    [
        (FORGE_B, {"san": uris("spiffe://a.test/collector")}),
        (FORGE_A, {"san": uris("spiffe://a.test/collector"), "not_after_s": NOW_S - 1}),
        (FORGE_A, {"san": uris("spiffe://a.test/collector"), "ca": True}),
        (FORGE_A, {"san": uris("spiffe://a.test/collector", "spiffe://a.test/x")}),
        (FORGE_A, {"san": uris("spiffe://c.test/collector")}),
    ],
    ids=["other domain's root", "expired", "CA leaf", "two URIs", "unknown domain"],
)
def test_lg_15_upstream_sends_nothing_to_a_server_that_breaks_a_rule(
    folder: Path, make_upstream: UpstreamMaker, forger: Forger, bend: dict[str, Any]
) -> None:
    """LG-15: the ID rows hold for a server as they do for a client; not one byte of the call goes out."""
    key = fix.new_key()
    with tls_server(folder, key, forger.leaf(key=key, **bend)) as (port, got):
        upstream = make_upstream("spiffe://a.test/collector", port=port)
        with upstream.channel() as opened:
            assert who(opened) == "UNAVAILABLE"
        assert upstream.problem() != ""
    assert b"".join(got) == b""


def test_upstream_ends_when_the_bundles_refuse_the_server(
    door: Door, collector: Door, make_upstream: UpstreamMaker
) -> None:
    """ID-20 for the server's side: a stream that is open ends when the collector's root goes."""
    upstream = make_upstream()
    with upstream.channel() as opened:
        waiting = threading.Event()
        call = opened.stream_stream("/remit.test/Hold")(iter(waiting.wait, True), timeout=20)
        assert next(call) == SERVER_ID.encode()
        assert collector.accepted == [SERVER_ID]
        other = Authority("a.test", now_s=NOW_S)
        door.api.push(svid_message([other.issue(SERVER_ID, now_s=NOW_S)], [other.root_der], {}))
        with pytest.raises(grpc.RpcError) as ended:
            next(call)
        waiting.set()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "identity.chain" in upstream.problem()


def test_upstream_without_an_identity_connects_to_nobody(
    door: Door, collector: Door, make_upstream: UpstreamMaker
) -> None:
    """Not ready: the client gets UNAVAILABLE; ready again: the same channel works."""
    upstream = make_upstream()
    door.api.deny()
    wait_for(lambda: door.source.state() != "", "the redaction")
    with upstream.channel([("grpc.initial_reconnect_backoff_ms", 100)]) as opened:
        assert who(opened) == "UNAVAILABLE"
        assert "not_ready.svid" in upstream.problem()
        door.push()
        wait_for(lambda: who(opened) == SERVER_ID, "the call after the identity is back")
    assert collector.accepted == [SERVER_ID]


def test_upstream_serves_this_process_only(make_upstream: UpstreamMaker, collector: Door) -> None:
    """Another process of the same user that finds the socket cannot speak with our identity."""
    upstream = make_upstream()
    path = upstream.target.removeprefix("unix:")
    script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(len(s.recv(1)))"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.strip() == "0" or "ConnectionResetError" in done.stderr
    assert "tried to use our connection" in upstream.problem()
    assert collector.accepted == []
