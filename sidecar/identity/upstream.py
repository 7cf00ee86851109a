"""mTLS to a server that is known by its SPIFFE ID, for grpcio clients.

grpcio's client checks a host name and offers no place for another check, and an X.509-SVID need not have a host name.
So TLS ends here: the client speaks plaintext gRPC to a Unix socket that only this process may use, and what comes in
goes out over TLS after our verifier has accepted the server's chain and its ID is one of those configured. Not one
byte goes out before that. A connection ends with the server's SVID, with our own, and with a change of bundles that
refuses it.
"""

import _ssl
import asyncio
import contextlib
import logging
import os
import shutil
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from fastpath.verify import Verifier, VerifyError
from sidecar.errors import IdentityError
from sidecar.identity.snapshot import Identity
from sidecar.identity.source import WorkloadSource

READ_BYTES = 64 * 1024
HANDSHAKE_S = 5.0
PEERCRED = struct.Struct("3i")  # pid, uid, gid (unix(7), SO_PEERCRED)

log = logging.getLogger("remit.upstream")


@dataclass(eq=False, slots=True)
class _Connection:
    """A verified connection: what to check again, and how to end it."""

    leaf: bytes
    above: list[bytes]
    abort: Callable[[], Any]


class Upstream:
    """A way to `address` ("host:port") for grpcio clients. `allowed_ids` are the SPIFFE IDs that may answer there;
    `verifier` is one that `source` feeds."""

    def __init__(
        self,
        source: WorkloadSource,
        verifier: Verifier,
        address: str,
        allowed_ids: Collection[str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._source, self._verifier, self._clock = source, verifier, clock
        self._allowed_ids = frozenset(allowed_ids)
        self._connections: set[_Connection] = set()
        self._problem = ""
        self._folder = tempfile.mkdtemp(prefix="remit-upstream-")  # mode 0700
        self._path = os.path.join(self._folder, "upstream.sock")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstream-tls", daemon=True)
        self._thread.start()
        self._server = self._on_loop(asyncio.start_unix_server(self._serve, self._path))
        self._unsubscribe = source.subscribe(self._changed)

    @property
    def target(self) -> str:
        """gRPC target of this process's own end."""
        return f"unix:{self._path}"

    def channel(self, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """A channel to the server; plaintext as far as here, mTLS beyond."""
        own = [("grpc.default_authority", f"{self._host}:{self._port}"), ("grpc.enable_http_proxy", 0)]
        return grpc.insecure_channel(self.target, options=[*own, *options])

    def problem(self) -> str:
        """Why the last connection failed or ended, in words for operators; empty while all is well."""
        return self._problem

    def close(self) -> None:
        """End every connection and the thread."""
        self._unsubscribe()
        self._on_loop(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _shut(self) -> None:
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            _only_us(writer.get_extra_info("socket"))
            identity = self._source.current()
            if identity is None:
                raise IdentityError(f"no identity of our own: {self._source.state()}")
            async with asyncio.timeout(HANDSHAKE_S):
                far_reader, far_writer = await asyncio.open_connection(
                    self._host, self._port, ssl=_context(identity, self._trust_domains()), server_hostname=""
                )
            try:
                await self._pass(identity, (reader, writer), (far_reader, far_writer))
            finally:
                far_writer.transport.abort()
        except (IdentityError, OSError, TimeoutError) as error:
            self._problem = f"no connection to `{self._host}:{self._port}`: {error}"
            log.warning("%s", self._problem)
        finally:
            writer.transport.abort()

    async def _pass(self, identity: Identity, near: Any, far: Any) -> None:
        """Verify the server, then carry bytes both ways until one side or a certificate ends."""
        connection = _Connection(*_chain(far[1].get_extra_info("ssl_object")), far[1].transport.abort)
        end_s = min(self._check(connection), identity.not_after_s)
        self._connections.add(connection)
        timer = self._loop.call_later(max(0, end_s - self._clock()), connection.abort)
        self._problem = ""
        try:
            ways = [asyncio.ensure_future(_carry(near[0], far[1])), asyncio.ensure_future(_carry(far[0], near[1]))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            timer.cancel()
            self._connections.discard(connection)

    def _check(self, connection: _Connection) -> int:
        """Unix time at which the server's chain ends; IdentityError when it is not one of those that may answer."""
        try:
            peer = self._verifier.verify(connection.leaf, connection.above, now_s=int(self._clock()), server_role=False)
        except VerifyError as error:
            raise IdentityError(f"the server is refused: {error.reason}, it claimed `{error.claimed[:255]}`") from error
        if peer.spiffe_id not in self._allowed_ids:
            raise IdentityError(f"the server is `{peer.spiffe_id}`; expected {sorted(self._allowed_ids)}")
        return peer.not_after_s

    def _trust_domains(self) -> frozenset[str]:
        return frozenset(spiffe_id.removeprefix("spiffe://").partition("/")[0] for spiffe_id in self._allowed_ids)

    def _changed(self, _: Identity | None) -> None:
        self._loop.call_soon_threadsafe(self._check_all)

    def _check_all(self) -> None:
        for connection in tuple(self._connections):
            try:
                self._check(connection)
            except IdentityError as error:
                self._problem = f"the connection to `{self._host}:{self._port}` is ended: {error}"
                log.warning("%s", self._problem)
                connection.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()


def _only_us(near: Any) -> None:
    """IdentityError unless this process is at the other end: whoever connects would speak with our identity."""
    pid, _, _ = PEERCRED.unpack(near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEERCRED.size))
    if pid != os.getpid():
        raise IdentityError(f"process {pid} tried to use our connection upstream")


def _context(identity: Identity, trust_domains: Collection[str]) -> ssl.SSLContext:
    """A TLS 1.3 client with our SVID whose roots are those of the server's trust domain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the SPIFFE ID is checked instead, and stands in no host name
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    roots = b"".join(der for name in sorted(trust_domains) for der in identity.bundles.get(name, ()))
    if not roots:
        raise IdentityError(f"no bundle for the server's trust domain {sorted(trust_domains)}")
    context.load_verify_locations(cadata=roots)
    # The key goes through memory: this interface of OpenSSL reads files only, and the key must never lie on a disk.
    with open(os.memfd_create("svid", os.MFD_CLOEXEC), "wb") as file:
        file.write(identity.key_pem + identity.svid_chain_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _chain(tls: Any) -> tuple[bytes, list[bytes]]:
    """(leaf, what else the server sent) in DER."""
    leaf = tls.getpeercert(binary_form=True)
    if hasattr(tls, "get_unverified_chain"):
        sent = list(tls.get_unverified_chain())
    else:  # before Python 3.13 only the object below has it, and gives certificates
        sent = [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in tls._sslobj.get_unverified_chain()]
    return leaf, [der for der in sent if der != leaf]
