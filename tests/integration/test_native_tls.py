"""Mutual TLS of a native door: the same verifier in the handshake and at every call (rows ID-01 to ID-26)."""

import contextlib
import pathlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from fastpath.tls import TlsIdentity
from fastpath.verify import Verifier
from sidecar.demo.ca import Authority, Svid
from sidecar.demo.processes import wait_for
from tests import fix_identity as fix
from tests.fix_calls import agent_check
from tests.fix_identity import Forger
from tests.fix_native import (
    ACK,
    HEALTH,
    PING,
    PREFACE,
    QUESTION,
    SETTINGS,
    Gone,
    NativeServer,
    RawClient,
    frame,
    make_pdp,
    message,
    native_server,
)
from tests.fix_records import RecordClient
from tests.integration.test_mtls import BUNDLE_A, BUNDLE_B, CASES, FORGE_A, RSA_A, A, B, key_pem, pem

AGENT = "spiffe://a.test/agent/a"
WATCH = HEALTH.replace("Check", "Watch")
DOMAINS = ("a.test", "b.test")


class TlsDoor:
    """A native mutual TLS door whose identity and bundles the test changes."""

    def __init__(self, server: NativeServer, verifier: Verifier, folder: pathlib.Path) -> None:
        self.server = server
        self.listener = server.listener
        self._verifier = verifier
        self._folder = folder
        self.put_bundles({"a.test": BUNDLE_A, "b.test": BUNDLE_B}, 1)
        self.svid = self.rotate()

    def put_bundles(self, bundles: dict[str, list[bytes]], generation: int) -> None:
        """As a running sidecar does: the verifier first, then the state that calls are judged by."""
        self._verifier.put_bundles(bundles, generation)
        self.server.pdp.put_state(epoch=0, bundle_generation=generation, not_ready="")

    def rotate(self) -> Svid:
        svid = A.issue("spiffe://a.test/sidecar")
        self.listener.put_identity(TlsIdentity(svid.chain_pem, svid.key_pem))
        return svid

    def client(self, chain: bytes, key: bytes, **options: Any) -> RawClient:
        return RawClient(self.server.address, tls=self.context(chain, key), **options)

    def svid_client(self, authority: Authority = A, **how: Any) -> RawClient:
        svid = authority.issue(f"spiffe://{authority.trust_domain}/agent/a", **how)
        return self.client(svid.chain_pem, svid.key_pem)

    def record_client(self) -> RecordClient:
        svid = A.issue(AGENT)
        made = RecordClient(
            self.server.address, self.context(svid.chain_pem, svid.key_pem), self._folder / "secrets.txt"
        )
        made.send(PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK))
        assert made.ask(1) == ("0", "")
        return made

    def context(self, chain: bytes = b"", key: bytes = b"", *, alpn: bool = True) -> ssl.SSLContext:
        """A client that checks nothing, takes every algorithm, and presents what it is given."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        made.set_ciphers("DEFAULT:@SECLEVEL=0")
        if alpn:
            made.set_alpn_protocols(["h2"])
        if chain:
            file = self._folder / "client.pem"
            file.write_bytes(chain + key)
            made.load_cert_chain(file)
        return made


@contextlib.contextmanager
def tls_door(folder: pathlib.Path, **options: Any) -> Iterator[TlsDoor]:
    verifier = Verifier()
    with native_server(make_pdp(domains=DOMAINS), tcp=True, verifier=verifier, **options) as server:
        yield TlsDoor(server, verifier, folder)


@pytest.fixture
def door(tmp_path: pathlib.Path) -> Iterator[TlsDoor]:
    with tls_door(tmp_path) as made:
        yield made


def connects(client: RawClient) -> bool:
    """Whether the connection is answered; a refused chain is told after the client's side of TLS 1.3 is done."""
    with client:
        try:
            client.until(lambda: client.frames)
        except Gone:
            return False
        return True


def test_callers_of_both_trust_domains_get_in(door: TlsDoor) -> None:
    """A good SVID, also below an intermediate and of a federated domain; one verification each, and TLS 1.3."""
    for authority in (A, A.intermediate(), B):
        with door.svid_client(authority) as client:
            assert client.ask(1) == ("0", "")
            assert client.ask(3) == ("0", "")
            assert isinstance(client.socket, ssl.SSLSocket)
            assert (client.socket.version(), client.socket.selected_alpn_protocol()) == ("TLSv1.3", "h2")
    assert door.listener.counters()["verified"] == 3


def test_nobody_gets_in_without_a_certificate_or_without_h2(door: TlsDoor) -> None:
    """ID-01: no certificate, plain text, another protocol: the connection ends in the handshake."""
    svid = A.issue(AGENT)
    assert not connects(RawClient(door.server.address, tls=door.context()))
    assert not connects(RawClient(door.server.address))
    assert not connects(RawClient(door.server.address, tls=door.context(svid.chain_pem, svid.key_pem, alpn=False)))
    assert door.server.ended("handshake", 3)["streams"] == 0


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("ID-13")])
def test_a_chain_that_breaks_a_rule_ends_the_handshake(door: TlsDoor, name: str) -> None:
    """ID-02 to ID-14: counted by its reason, nothing of it is parsed, the next caller gets in."""
    forger, bend, reason = CASES[name]
    bend = dict(bend)
    key = bend.pop("key", None) or fix.new_key()
    leaf = forger.leaf(key=key, **bend)
    try:
        client = door.client(pem((leaf, *forger.chain)), key_pem(key))
    except ssl.SSLError:
        pytest.skip("this OpenSSL does not present such a certificate")
    assert not connects(client)
    done = door.server.ended("credentials")
    assert sum(done["refusals"].values()) == 1
    assert not reason or list(done["refusals"]) == [reason]
    assert (done["bytes_in"], done["streams"]) == (0, 0)
    with door.svid_client() as good:
        assert good.ask(1) == ("0", "")


@pytest.mark.parametrize(
    "key", [fix.new_key(), RSA_A.key, ed25519.Ed25519PrivateKey.generate()], ids=["P-256", "RSA", "Ed25519"]
)
def test_id_13_the_keys_that_get_in(door: TlsDoor, key: Any) -> None:
    """ID-13: what the table above bends is good when it is not bent; an Ed25519 SVID, too, gets through this TLS."""
    with door.client(pem((FORGE_A.leaf(key=key),)), key_pem(key)) as client:
        assert client.ask(1) == ("0", "")


def test_a_chain_that_is_too_long_is_refused(door: TlsDoor) -> None:
    """ID-15: five certificates; nothing of them is verified."""
    forger: Forger = FORGE_A
    for _ in range(5):
        forger = forger.signer()
    key = fix.new_key()
    assert not connects(door.client(pem((forger.leaf(key=key), *forger.chain)), key_pem(key)))
    assert door.server.ended("credentials")["refusals"] == {"identity.too_large": 1}


def test_a_removed_root_refuses_the_next_call_on_an_old_connection(door: TlsDoor) -> None:
    """ID-20: the chain is verified again when the bundles change, and once per change."""
    with door.svid_client() as client:
        assert client.ask(1) == ("0", "")
        door.put_bundles({"a.test": [A.root_der]}, 2)
        assert client.ask(3) == ("0", "")
        door.put_bundles({"b.test": [B.root_der]}, 3)
        assert client.ask(5) == ("16", "identity.trust_domain_unknown")
        assert client.ask(7) == ("16", "identity.trust_domain_unknown")
        door.put_bundles({"a.test": [A.root_der]}, 4)
        assert client.ask(9) == ("0", "")
    assert door.listener.counters()["verified"] == 4


def test_an_ended_svid_ends_its_calls(door: TlsDoor) -> None:
    """ID-03: the connection outlives the certificate; its calls do not."""
    with door.svid_client(ttl_s=3600) as client:
        assert client.ask(1) == ("0", "")
        door.server.pdp.put_clock(0, (fix.NOW_S + 2 * 3600) * 10**9, 1, 1)
        assert client.ask(3) == ("16", "identity.expired")


def test_rotation_drops_no_connection(door: TlsDoor) -> None:
    """ID-26: open connections go on; the next handshake sees the new leaf."""
    with door.svid_client() as before:
        assert before.ask(1) == ("0", "")
        old = before.socket.getpeercert(True)  # type: ignore[attr-defined]
        door.rotate()
        with door.svid_client() as after:
            assert after.ask(1) == ("0", "")
            assert after.socket.getpeercert(True) != old  # type: ignore[attr-defined]
        assert before.ask(3) == ("0", "")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_taken_up_again(door: TlsDoor, version: ssl.TLSVersion) -> None:
    """ID-21: no ticket, so no early data either, and a session that is offered is not resumed: each connection shows
    its chain."""
    svid = A.issue(AGENT)
    tls = door.context(svid.chain_pem, svid.key_pem)
    tls.minimum_version = tls.maximum_version = version
    with RawClient(door.server.address, tls=tls) as client:
        assert client.ask(1) == ("0", "")
        assert isinstance(client.socket, ssl.SSLSocket)
        session = client.socket.session
        assert session is not None
        assert not session.has_ticket
    with socket.create_connection(door.server.address) as plain, tls.wrap_socket(plain, session=session) as again:
        assert again.recv(1)
        assert not again.session_reused
    assert door.listener.counters()["verified"] == 2


def test_without_an_identity_no_handshake_succeeds(door: TlsDoor) -> None:
    """WL-05: what was taken away is not presented any more."""
    door.listener.put_identity(None)
    svid = A.issue(AGENT)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connects(door.client(svid.chain_pem, svid.key_pem))
    door.server.ended("handshake")
    door.rotate()
    with door.svid_client() as client:
        assert client.ask(1) == ("0", "")


def test_a_certificate_names_the_principal(door: TlsDoor) -> None:
    """The caller is who its SVID says, in every call: the policy for one SPIFFE ID allows that one only."""
    other = agent_check(action="write", resource=("Tool", "docs/search"))
    with door.svid_client() as client:
        assert client.ask(1, message(QUESTION)) == ("0", "")
        assert client.ask(3, message(other)) == ("0", "")
        assert client.data[1] != client.data[3]


# ---------------------------------------------------------------- H2-13, before the credential


STRANGERS = 20


@contextlib.contextmanager
def strangers(door: TlsDoor) -> Iterator[None]:
    """Connections that say nothing, all of them accepted."""
    before = door.listener.counters()["accepted"]
    with contextlib.ExitStack() as stack:
        for _ in range(STRANGERS):
            stack.enter_context(socket.create_connection(door.server.address))
        wait_for("all accepted", lambda: door.listener.counters()["accepted"] == before + STRANGERS)
        yield


@pytest.mark.parametrize(
    ("bounds", "closed"),
    [
        ({"handshakes": 3}, {"full": STRANGERS - 3 + 1}),
        ({"handshakes_per_address": 4}, {"crowd": STRANGERS - 4 + 1}),
        ({"connections": 5}, {"full": STRANGERS + 1 + 1 - 5}),
    ],
    ids=["handshakes", "address", "connections"],
)
def test_strangers_keep_nobody_out(tmp_path: pathlib.Path, bounds: dict[str, int], closed: dict[str, int]) -> None:
    """H2-13: who has shown no credential makes room for the next, oldest first; who has shown one stays and gets in."""
    with tls_door(tmp_path, handshake_ms=600_000, **bounds) as door, door.svid_client() as first:
        assert first.ask(1) == ("0", "")
        with strangers(door), door.svid_client() as second:
            assert second.ask(1) == ("0", "")
            assert first.ask(3) == ("0", "")
            assert door.listener.counters()["closed"] == closed


def test_who_is_known_is_counted_as_a_stranger_no_more(tmp_path: pathlib.Path) -> None:
    """The bounds of strangers hold for handshakes at once, not for connections that stay."""
    with tls_door(tmp_path, handshakes=2, handshakes_per_address=2) as door, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(door.svid_client()) for _ in range(8)]
        assert [client.ask(1) for client in clients] == [("0", "")] * 8
        assert door.listener.counters()["closed"] == {}


def test_one_peer_has_its_share_of_the_slow_lane_only(tmp_path: pathlib.Path) -> None:
    """H2-12: calls for Python that nobody answers, on all connections of one peer; another one still gets in, and so
    does the first when it has let go."""
    bounds = {"slow_calls": 8, "slow_calls_per_peer": 3, "deadline_ms": 600_000}
    with tls_door(tmp_path, **bounds) as door, door.svid_client() as one, door.svid_client(B) as other:

        def watched(slow: int, refused: int) -> None:
            wait_for(f"{slow} calls for Python", lambda: counted("slow") == slow and counted("slow_full") == refused)

        def counted(name: str) -> int:
            return int(door.listener.counters()[name])

        with door.svid_client() as same:
            same.send(same.request(1, message(b""), path=WATCH) + same.request(3, message(b""), path=WATCH))
            watched(2, 0)
            one.send(one.request(1, message(b""), path=WATCH) + one.request(3, message(b""), path=WATCH))
            watched(3, 1)
            other.send(other.request(1, message(b""), path=WATCH))
            watched(4, 1)
        wait_for("the first to be gone", lambda: counted("open") == 2)
        one.send(one.request(5, message(b""), path=WATCH) + one.request(7, message(b""), path=WATCH))
        watched(6, 1)


# ---------------------------------------------------------------- H2-06, below HTTP/2


FRAMES_BURST, OTHER_TOKENS = 1000, 16
EMPTY_MAX = 32  # records without data in a row, for OpenSSL


@pytest.mark.parametrize("requested", [False, True], ids=["own", "requested"])
def test_key_updates_run_out(door: TlsDoor, requested: bool) -> None:
    """H2-06 by key updates (RFC 8446 section 4.6.3): no more than a burst is worked through, others are served."""
    with door.record_client() as client, door.svid_client() as other:
        client.send_records(b"".join(client.key_update(requested) for _ in range(2000)))
        client.drain()
        assert other.ask(1) == ("0", "")
        done = door.listener.counters()
        assert done["closed"] == {"flood": 1}
        assert done["records_in"] < FRAMES_BURST // OTHER_TOKENS + 20


def test_a_key_update_now_and_then_is_no_flood(door: TlsDoor) -> None:
    """New keys with each of a few calls, also such that ours must follow; data behind them waits for no other event."""
    with door.record_client() as client:
        for stream in range(3, 43, 2):
            client.send_records(client.key_update(stream % 4 == 1) + client.record(client.request(stream)))
            client.until(lambda stream=stream: stream in client.ended)
        assert door.listener.counters()["calls"] == 21


def test_records_without_data_run_out(door: TlsDoor) -> None:
    """H2-06 by empty records: OpenSSL ends many in a row; fewer between frames are counted as such frames are."""
    with door.record_client() as client:
        parts: list[bytes] = []
        for i in range(200):
            parts += [client.record(b"") for _ in range(EMPTY_MAX - 1)]
            parts.append(client.record(frame(PING, 0, 0, i.to_bytes(8, "big"))))
        client.send_records(b"".join(parts))
        client.drain()
    done = door.server.ended("flood")
    assert done["records_in"] < FRAMES_BURST + 3 * EMPTY_MAX


def test_a_call_byte_by_byte_is_answered(door: TlsDoor) -> None:
    """Short records cost something, but a call of many of them has more turns and is whole in the end."""
    with door.record_client() as client:
        client.send_records(b"".join(client.record(bytes((byte,))) for byte in client.request(3)))
        client.until(lambda: 3 in client.ended)
        assert client.headers[3]["grpc-status"] == "0"
