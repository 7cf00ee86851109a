"""What the two listeners do differently below the answers: the table of ARCHITECTURE.md, by one raw client."""

import gzip
import pathlib
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from fastpath.peer import VerifiedPeer
from sidecar.config import Limits
from sidecar.services.doors import authz_service, make_server
from sidecar.services.errors import ErrorCounts
from tests.differential.doors import AGENT_KIND
from tests.fix_http2 import body, lives, raw_field
from tests.fix_native import (
    ACK,
    AGENT,
    CANCEL,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    QUESTION,
    RST,
    SETTINGS,
    WINDOW,
    RawClient,
    call_headers,
    frame,
    make_pdp,
    message,
    native_server,
)

FLOOD = 3000
DECIDED = "grpc 0"


class Row(NamedTuple):
    send: Callable[[RawClient], bytes]
    native: str
    grpcio: str


def with_field(name: bytes, value: bytes) -> Callable[[RawClient], bytes]:
    return lambda c: frame(HEADERS, END_HEADERS, 1, c.block(call_headers()) + raw_field(name, value)) + body()


def two_paths(client: RawClient) -> bytes:
    """The first is served by nobody."""
    block = raw_field(b":path", b"/none.Such/Check") + client.block(call_headers())
    return frame(HEADERS, END_HEADERS, 1, block) + body()


CALLS = {
    "two messages": Row(lambda c: c.request(1, message(QUESTION) * 2), "grpc 13", DECIDED),
    "gzip": Row(lambda c: c.request(1, message(gzip.compress(QUESTION), 1), grpc_encoding="gzip"), "grpc 12", DECIDED),
    "text/plain": Row(lambda c: c.request(1, content_type="text/plain"), "http 415", DECIDED),
    "two paths": Row(two_paths, "reset", DECIDED),
    "CR": Row(with_field(b"x-a", b"a\rb"), "reset", DECIDED),
    "LF": Row(with_field(b"x-a", b"a\nb"), "reset", DECIDED),
    "NUL": Row(with_field(b"x-a", b"a\0b"), "reset", DECIDED),
    "another host": Row(lambda c: c.request(1, host="elsewhere"), "http 400", DECIDED),
    "another method": Row(lambda c: c.request(1, p_method="GET"), "http 405", "reset"),
    "no te": Row(lambda c: c.request(1, te=None), "http 400", "reset"),
}
FLOODS = {
    "SETTINGS": frame(SETTINGS) * FLOOD,
    "WINDOW_UPDATE": frame(WINDOW, 0, 0, struct.pack(">I", 1)) * FLOOD,
    "empty DATA": frame(DATA, 0, 1) * FLOOD,
}


@contextmanager
def grpcio_door() -> Iterator[str]:
    pdp, peer = make_pdp(), VerifiedPeer(AGENT_KIND, AGENT, "test")
    server = make_server(Limits(), 1 << 20, "differences")
    service = authz_service(pdp.check, pdp.batch_check, pdp.report, lambda _: peer, ErrorCounts())
    server.add_generic_rpc_handlers((service,))
    with tempfile.TemporaryDirectory(prefix="gd") as folder:
        path = str(pathlib.Path(folder) / "sock")
        server.add_insecure_port(f"unix:{path}")
        server.start()
        yield path
        server.stop(0).wait()


@contextmanager
def native_door() -> Iterator[str]:
    with native_server() as door:
        yield door.path


DOORS = {"native": native_door, "grpcio": grpcio_door}


@pytest.fixture(scope="module", params=list(DOORS))
def listener(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(listener: str) -> Iterator[str]:
    with DOORS[listener]() as made:
        yield made


def told(client: RawClient) -> str:
    """What became of stream 1."""
    client.until(lambda: 1 in client.ended or 1 in client.resets or client.goaway)
    got = client.headers.get(1, {})
    if got.get(":status", "200") != "200":
        return f"http {got[':status']}"
    return f"grpc {got['grpc-status']}" if "grpc-status" in got else "reset"


@pytest.mark.parametrize("name", CALLS)
def test_a_call(listener: str, path: str, name: str) -> None:
    """Rows about one call."""
    with RawClient(path) as client:
        client.send(CALLS[name].send(client))
        assert told(client) == getattr(CALLS[name], listener)


def test_many_headers_before_our_settings_are_acknowledged(listener: str, path: str) -> None:
    """100 lines of a peer that does not know our limit."""
    with RawClient(path, hello=False) as client:
        client.send(PREFACE + frame(SETTINGS) + client.request(1, **{f"x_{i}": "v" for i in range(100)}))
        assert told(client) == (DECIDED if listener == "grpcio" else "reset")


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood(listener: str, path: str, name: str) -> None:
    """Rows about frames that ask nothing."""
    with RawClient(path) as client:
        opened = frame(HEADERS, END_HEADERS, 1, client.block(call_headers())) if name == "empty DATA" else b""
        client.send(opened + FLOODS[name])
        if listener == "grpcio":
            lives(client)
        else:
            client.drain()
            assert client.goaway


def test_rapid_reset(listener: str, path: str) -> None:
    """300 calls, each reset at once."""
    reset = struct.pack(">I", CANCEL)
    with RawClient(path) as client:
        client.send(b"".join(client.request(i) + frame(RST, 0, i, reset) for i in range(1, 600, 2)))
        if listener == "grpcio":
            client.send(frame(PING, 0, 0, b"are you?"))
            client.until(lambda: (PING, ACK, 0, b"are you?") in client.frames)
            assert not client.goaway
        else:
            client.drain()
            assert client.goaway
