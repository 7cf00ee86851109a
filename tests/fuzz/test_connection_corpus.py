"""H2-25: the kept corpus of `make fuzz`, connection by connection, at the doors that the fuzz target talks to.

An input is a byte that names the door and what a peer sends. The corpus is what coverage-guided runs found worth
keeping; the target itself (connection.c) runs under sanitizers by `make fuzz`, this replay in every build.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
from collections.abc import Iterator

import pytest
from envoy.service.auth.v3 import external_auth_pb2

from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.demo.processes import wait_for
from tests.fix_native import TIMEOUT_S, Gone, NativeServer, RawClient
from tests.fuzz.doors import DENIES, ENVOY, doors

CORPUS = sorted((pathlib.Path(__file__).parent / "corpus").iterdir())
CORPUS_BYTES_MAX = 1 << 20
NOTICE = 0x12  # CheckStreamResponse.notice; no other answer has its second field alone
HEALTH_ANSWERS = {b"\x08\x01", b"\x08\x02", b"\x08\x03"}


@pytest.fixture(scope="module")
def all_doors() -> Iterator[list[NativeServer]]:
    with doors() as made:
        yield made


def replay(door: NativeServer, data: bytes) -> RawClient:
    """All of an input, then the end of our side; everything that came back."""
    with RawClient(door.address, hello=False) as client:
        client.send(data)
        with contextlib.suppress(OSError):
            client.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(Gone):
            client.until(lambda: False)
        return client


def messages(data: bytes) -> Iterator[bytes]:
    """One of a call, any number of a CheckStream."""
    assert data, "no answer"
    while data:
        size = int.from_bytes(data[1:5], "big")
        assert len(data) >= 5 + size
        yield data[5 : 5 + size]
        data = data[5 + size :]


def allows(message: bytes, *, envoy: bool) -> bool:
    """Whether an answer lets somebody through; it must be an answer."""
    assert message, "an empty answer"
    if message in HEALTH_ANSWERS:
        return False
    if envoy:
        return bool(external_auth_pb2.CheckResponse.FromString(message).status.code == 0)
    if message[0] == NOTICE and len(message) == 2 + message[1]:
        return False
    one = authz_pb2.CheckResponse.FromString(message)
    found = (
        [one.outcome] if one.outcome else [i.outcome for i in authz_pb2.BatchCheckResponse.FromString(message).items]
    )
    assert found
    assert authz_pb2.OUTCOME_UNSPECIFIED not in found
    return authz_pb2.OUTCOME_ALLOW in found


def test_the_corpus_is_small_and_there() -> None:
    """It is kept with the sources: many inputs, each small."""
    assert len(CORPUS) > 200
    assert sum(path.stat().st_size for path in CORPUS) < CORPUS_BYTES_MAX


def test_no_connection_of_the_corpus_breaks_a_door(all_doors: list[NativeServer]) -> None:
    """Every connection ends; no answer is empty; the doors without a permit allow nothing; nothing stays held."""
    answers = 0
    for path in CORPUS:
        raw = path.read_bytes()
        number = raw[0] % len(all_doors)
        client = replay(all_doors[number], raw[1:])
        for stream, data in client.data.items():
            if stream not in client.ended or client.headers[stream].get("grpc-status") != "0":
                continue
            answers += 1
            allowed = [allows(message, envoy=bool(number & ENVOY)) for message in messages(data)]
            assert not (any(allowed) and number & DENIES), path.name
    assert answers > len(CORPUS) // 20
    for door in all_doors:
        wait_for("no connection", lambda door=door: door.listener.counters()["open"] == 0, TIMEOUT_S)
        done = door.listener.counters()
        assert done["internal"] == 0
        assert done["held"] == 0
