"""HTTP/1.1 on a socket, byte for byte as a test wrote it: what a client library would refuse to send or would mend."""

import http.client
import socket
from collections.abc import Iterable

from sidecar.demo.calls import TIMEOUT_S, Answer, tls_context
from sidecar.demo.stage import API_HOST, Stage

Headers = Iterable[tuple[bytes, bytes]]


def message(
    target: bytes, method: bytes = b"GET", *, host: bytes = API_HOST.encode(), headers: Headers = (), body: bytes = b""
) -> bytes:
    """A request with one Host line (none when `host` is empty) and, when there is a body, its length."""
    lines = [method + b" " + target + b" HTTP/1.1"]
    if host:
        lines.append(b"host: " + host)
    lines += [name + b": " + value for name, value in headers]
    if body:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def chunked(target: bytes, pieces: Iterable[bytes], *, host: bytes = API_HOST.encode(), headers: Headers = ()) -> bytes:
    """A POST whose body comes in `pieces`, without a length."""
    head = message(target, b"POST", host=host, headers=[*headers, (b"transfer-encoding", b"chunked")])
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def exchange(stage: Stage, data: bytes, *, who: str = "alice", listener: str = "raw", whole: bool = True) -> Answer:
    """Send these bytes with the SVID of `who`; the listener `plain` has no TLS. Not `whole`: leave the body unread."""
    with connected(stage, who=who, listener=listener) as connection:
        return _answer(connection, data, whole)


def connected(stage: Stage, *, who: str = "alice", listener: str = "raw") -> socket.socket:
    """A connection to Envoy, with TLS unless the listener is `plain`."""
    plain = socket.create_connection(("127.0.0.1", stage.envoy.ports[listener]), TIMEOUT_S)
    if listener == "plain":
        return plain
    secure = tls_context(stage, who).wrap_socket(plain)
    # The last message of the handshake is not acknowledged at once; the request must not wait for that.
    secure.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return secure


def _answer(connection: socket.socket, data: bytes, whole: bool) -> Answer:
    connection.sendall(data)
    reply = http.client.HTTPResponse(connection, method=data.partition(b" ")[0].decode("latin-1"))
    reply.begin()
    return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read() if whole else b"")
