"""What the installed OpenSSL makes of chains and handshakes that must not get through."""

import datetime
import socket
import ssl
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fastpath.call import Pdp
from fastpath.listener import Listener
from fastpath.peer import VerifiedPeer
from fastpath.tls import TlsIdentity
from fastpath.verify import Verifier, VerifyError
from sidecar.demo.ca import Authority, Svid
from sidecar.probes import Probe, Verdict, ok, unknown, unsafe

OURS, THEIRS = "ours.probe.invalid", "theirs.probe.invalid"
AGENT = f"spiffe://{OURS}/agent"
WEAK_BITS = 1024
TIMEOUT_S = 10
MEND = "install the distribution's own OpenSSL 3, with its security updates"

Verify = Callable[[list[bytes]], VerifiedPeer]
Connect = Callable[[int, ssl.SSLContext], ssl.SSLSocket]


class Stage:
    """Two trust domains that are both trusted, each for its own IDs."""

    def __init__(self) -> None:
        self.ours, self.theirs = Authority(OURS), Authority(THEIRS)
        self.verifier = Verifier()
        self.verifier.put_bundles({OURS: [self.ours.root_der], THEIRS: [self.theirs.root_der]}, 1)

    def verify(self, chain: list[bytes]) -> VerifiedPeer:
        return self.verifier.verify(chain[0], chain[1:])


def probes() -> list[Probe]:
    stage = Stage()
    return [
        Probe("openssl: forged chain", lambda: forged_chain(stage, stage.verify)),
        Probe("openssl: expired chain", lambda: expired_chain(stage, stage.verify)),
        Probe("openssl: weak key", lambda: weak_key(stage, stage.verify)),
        Probe("openssl: TLS of a door", lambda: handshake(stage, _connect)),
    ]


def forged_chain(stage: Stage, verify: Verify) -> Verdict:
    """A trusted domain signs an ID of another one: the chain is valid, the claim is not (row ID-04)."""
    forged = stage.theirs.issue(AGENT)
    genuine = stage.ours.intermediate().issue(AGENT)
    return _judged(verify, list(forged.chain_der), list(genuine.chain_der), "an ID signed by another trust domain")


def expired_chain(stage: Stage, verify: Verify) -> Verdict:
    old = stage.ours.issue(AGENT, now_s=1_600_000_000)
    return _judged(verify, list(old.chain_der), list(stage.ours.issue(AGENT).chain_der), "an expired SVID")


def weak_key(stage: Stage, verify: Verify) -> Verdict:
    """RSA of 1024 bits: below the security level that we ask of OpenSSL (SSL_CTX_set_security_level(3))."""
    weak = _weak_leaf(stage.ours)
    return _judged(verify, [weak], list(stage.ours.issue(AGENT).chain_der), f"an RSA key of {WEAK_BITS} bits")


def _judged(verify: Verify, bad: list[bytes], good: list[bytes], what: str) -> Verdict:
    try:
        verify(good)
    except VerifyError as error:
        return unknown(f"refuses a genuine SVID ({error.reason}), so no agent over TLS gets in", MEND)
    try:
        verify(bad)
    except VerifyError as error:
        return ok(f"refused: {error.reason}")
    return unsafe(f"takes {what}", MEND)


def handshake(stage: Stage, connect: Connect) -> Verdict:
    """TLS 1.3 with ALPN h2; no TLS 1.1; nobody without a certificate; no ticket to come back with (row ID-21)."""
    svid = stage.ours.issue(AGENT)
    with _door(stage) as port, tempfile.NamedTemporaryFile() as file:
        file.write(svid.chain_pem + svid.key_pem)
        file.flush()
        with connect(port, _context(file.name)) as made:
            version, protocol = made.version(), made.selected_alpn_protocol()
            # TLS 1.3 sends tickets after the handshake: they would have come before the first frame.
            made.recv(1)
            session = made.session
            ticket = session is not None and session.has_ticket
        if (version, protocol) != ("TLSv1.3", "h2"):
            return unsafe(f"a modern client gets {version} and {protocol or 'no protocol'}", MEND)
        if ticket:
            return unsafe("tickets are given out, so a session outlives the trust that it began with", MEND)
        if _gets_in(connect, port, _context(file.name, ssl.TLSVersion.TLSv1_1)):
            return unsafe("TLS 1.1 is taken", MEND)
        if _gets_in(connect, port, _context("")):
            return unsafe("a client without a certificate gets in", MEND)
    return ok("TLS 1.3, h2, no tickets, no TLS 1.1, nobody without a certificate")


def _gets_in(connect: Connect, port: int, context: ssl.SSLContext) -> bool:
    try:
        with connect(port, context) as made:
            return bool(made.recv(1))  # a refusal of TLS 1.3 comes after the client's side of the handshake
    except (ssl.SSLError, ConnectionError):
        return False


@contextmanager
def _door(stage: Stage) -> Iterator[int]:
    """A native mutual TLS door on loopback: its port."""
    listener = Listener(Pdp(None), envoy=False, verifier=stage.verifier)
    own: Svid = stage.ours.issue(f"spiffe://{OURS}/sidecar")
    listener.put_identity(TlsIdentity(own.chain_pem, own.key_pem))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=listener.serve, args=(listening.fileno(),), name="probe", daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listener.stop(0)
            thread.join(TIMEOUT_S)


def _connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), TIMEOUT_S))


def _context(certificate: str, highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of offering TLS 1.1, which is the point
        if highest < ssl.TLSVersion.TLSv1_2:
            # Our own side must offer it, or it would be we who refuse.
            made.set_ciphers("ALL:@SECLEVEL=0")
            made.minimum_version = highest
        made.maximum_version = highest
    made.set_alpn_protocols(["h2"])
    if certificate:
        made.load_cert_chain(certificate)
    return made


def _weak_leaf(authority: Authority) -> bytes:
    """An SVID that is right in all but its key."""
    key = rsa.generate_private_key(65537, WEAK_BITS)
    model = x509.load_der_x509_certificate(authority.issue(AGENT).chain_der[0])
    builder = x509.CertificateBuilder(
        model.issuer,
        model.subject,
        key.public_key(),
        x509.random_serial_number(),
        datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1),
        model.not_valid_after_utc,
        list(model.extensions),
    )
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
