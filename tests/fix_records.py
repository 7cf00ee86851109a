"""A client that seals its TLS 1.3 records itself, to send what a TLS library would not (RFC 8446 section 5)."""

import contextlib
import os
import pathlib
import socket
import ssl
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.fix_native import TIMEOUT_S, RawClient

HANDSHAKE, DATA = 22, 23
TAG = 16
CIPHERS: dict[str, tuple[type[AESGCM] | type[ChaCha20Poly1305], int, hashes.HashAlgorithm]] = {
    "TLS_AES_256_GCM_SHA384": (AESGCM, 32, hashes.SHA384()),
    "TLS_AES_128_GCM_SHA256": (AESGCM, 16, hashes.SHA256()),
    "TLS_CHACHA20_POLY1305_SHA256": (ChaCha20Poly1305, 32, hashes.SHA256()),
}


class RecordClient(RawClient):
    """The TLS library does the handshake and reads; what is sent afterwards is sealed here, by its secret."""

    def __init__(self, address: Any, tls: ssl.SSLContext, secrets: pathlib.Path) -> None:
        secrets.unlink(missing_ok=True)
        tls.keylog_filename = str(secrets)
        super().__init__(address, hello=False, tls=tls)
        assert isinstance(self.socket, ssl.SSLSocket)
        chosen = self.socket.cipher()
        assert chosen is not None
        self._cipher, self._key_bytes, self._hash = CIPHERS[chosen[0]]
        self.plain = socket.socket(fileno=os.dup(self.socket.fileno()))
        self.plain.settimeout(TIMEOUT_S)
        logged = dict(line.split()[::2] for line in secrets.read_text().splitlines() if not line.startswith("#"))
        self._use(bytes.fromhex(logged["CLIENT_TRAFFIC_SECRET_0"]))

    def __exit__(self, *_: object) -> None:
        self.plain.close()
        super().__exit__()

    def send(self, data: bytes) -> None:
        """One record of data."""
        self.send_records(self.record(data))

    def send_records(self, sealed: bytes) -> None:
        """Send as much as the server takes; it may have gone already."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.plain.sendall(sealed)

    def record(self, content: bytes, kind: int = DATA, padding: int = 0) -> bytes:
        inner = content + bytes((kind,)) + b"\0" * padding
        header = b"\x17\x03\x03" + (len(inner) + TAG).to_bytes(2, "big")
        nonce = (int.from_bytes(self._iv, "big") ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return header + self._sealer.encrypt(nonce, inner, header)

    def key_update(self, requested: bool = False) -> bytes:
        """The next record is sealed by other keys; `requested`: the server shall change its own."""
        made = self.record(b"\x18\0\0\x01" + bytes((requested,)), HANDSHAKE)
        self._use(self._expand(self._secret, b"traffic upd", self._hash.digest_size))
        return made

    def _use(self, secret: bytes) -> None:
        self._secret, self._sequence = secret, 0
        self._sealer = self._cipher(self._expand(secret, b"key", self._key_bytes))
        self._iv = self._expand(secret, b"iv", 12)

    def _expand(self, secret: bytes, label: bytes, n: int) -> bytes:
        """HKDF-Expand-Label of no context (RFC 8446 section 7.1)."""
        full = b"tls13 " + label
        info = n.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0"
        return HKDFExpand(self._hash, n, info).derive(secret)
