"""TLS of our grpcio doors from the Workload API: each handshake uses the SVID and the bundles then in force.

The roots given to grpcio are those of all trust domains together and only a first gate, since grpcio cannot tell
whose root signed whose ID: the verification that counts is PeerResolver's, per call. grpcio's TLS (BoringSSL) takes
RSA, P-256 and P-384; an Ed25519 SVID, which our verifier would accept, does not get through its handshake.
"""

import datetime
import ssl
import threading
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.identity.snapshot import Identity
from sidecar.identity.source import WorkloadSource


def server_credentials(source: WorkloadSource) -> grpc.ServerCredentials:
    """mTLS credentials of a grpcio server. A rotation or a change of bundles needs no restart; without an identity no
    handshake succeeds. Connections made before keep going: their next call is PeerResolver's to refuse."""
    served = _Served(source)
    return grpc.dynamic_ssl_server_credentials(served.first(), served.fetch, require_client_authentication=True)


class _Served:
    """The configuration handed out last, so that a handshake without news costs nothing."""

    def __init__(self, source: WorkloadSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._generation = -1

    def first(self) -> Any:
        return self.fetch() or _closed()

    def fetch(self) -> Any:
        """The certificate configuration for this handshake, or None for the one before."""
        identity = self._source.current()
        generation = identity.generation if identity is not None else 0
        with self._lock:
            if generation == self._generation:
                return None
            self._generation = generation
        return _configuration(identity) if identity is not None else _closed()


def _configuration(identity: Identity) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.svid_chain_pem)], root_certificates=roots_pem(identity)
    )


def roots_pem(identity: Identity) -> bytes:
    """The roots of all trust domains: a first gate, see above."""
    ders = {der for roots in identity.bundles.values() for der in roots}
    return b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in sorted(ders))


def _closed() -> Any:
    """A configuration with which no handshake succeeds: grpcio would go on with the last one if it were given none. The
    only root is a certificate whose key nobody else has, so no client can present a chain to it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "not ready")])
    start = datetime.datetime.fromtimestamp(0, datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return grpc.ssl_server_certificate_configuration([(key_pem, certificate)], root_certificates=certificate)
