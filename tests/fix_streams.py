"""A CheckStream as a test holds it: asks when it is told to, and hands out what comes back one by one."""

import contextlib
import pathlib
import queue
import tempfile
from collections.abc import Iterator
from typing import Any

import grpc

from fastpath.call import Pdp
from sidecar._proto.remit.authz.v1 import authz_pb2
from sidecar.config import Limits
from sidecar.services.check_streams import CheckStreams
from sidecar.services.doors import authz_service, make_server
from sidecar.services.errors import ErrorCounts
from tests.fix_native import native_server

STREAM = "/remit.authz.v1.Authorization/CheckStream"
TIMEOUT_S = 30
WORKERS = 2  # of the grpcio door: fewer than streams in any test


def asked(request_id: str = "", action: str = "read", tool: str = "files/open", **more: Any) -> authz_pb2.CheckRequest:
    resource = authz_pb2.EntityUid(type="Tool", id=tool)
    return authz_pb2.CheckRequest(request_id=request_id, action=action, resource=resource, **more)


class Talker:
    """One open stream."""

    def __init__(self, channel: grpc.Channel, **options: Any) -> None:
        self._asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = channel.stream_stream(STREAM)
        self.call = call(iter(self._asked.get, None), timeout=options.pop("timeout", TIMEOUT_S), **options)

    def __enter__(self) -> "Talker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.call.cancel()

    def ask(self, *questions: authz_pb2.CheckRequest) -> None:
        for question in questions:
            self.send(authz_pb2.CheckStreamRequest(check=question).SerializeToString())

    def send(self, raw: bytes) -> None:
        self._asked.put(raw)

    def close(self) -> None:
        """Say that nothing more is asked."""
        self._asked.put(None)

    def raw(self) -> bytes:
        return bytes(next(self.call))

    def next(self) -> authz_pb2.CheckStreamResponse:
        return authz_pb2.CheckStreamResponse.FromString(self.raw())

    def answer(self) -> authz_pb2.CheckResponse:
        """What comes next, which must be an answer."""
        got = self.next()
        assert got.WhichOneof("is") == "answer", got
        return got.answer

    def notice(self) -> list[str]:
        """The causes of the notice that comes next, in short."""
        got = self.next()
        assert got.WhichOneof("is") == "notice", got
        self.told = got.notice
        names = authz_pb2.NoticeCause.Name
        return [names(cause).removeprefix("NOTICE_CAUSE_").lower() for cause in got.notice.causes]

    def begin(self) -> "Talker":
        """Wait for the notice that the stream has begun."""
        assert self.notice() == []
        return self

    def rest(self) -> list[authz_pb2.CheckStreamResponse]:
        """All that comes before its end."""
        got = []
        with contextlib.suppress(grpc.RpcError, StopIteration):
            while True:
                got.append(self.next())
        return got

    def end(self) -> tuple[str, str]:
        """Status and message of its end; nothing may come before."""
        with contextlib.suppress(grpc.RpcError, StopIteration):
            raise AssertionError(f"not the end: {self.next()}")
        return self.call.code().name, self.call.details()


def outcome(answer: authz_pb2.CheckResponse) -> tuple[str, str]:
    return authz_pb2.Outcome.Name(answer.outcome).removeprefix("OUTCOME_"), answer.reason


class GrpcioDoor:
    """A grpcio door as a sidecar has it."""

    def __init__(self, folder: str, pdp: Pdp, peer: Any, **limits: Any) -> None:
        self.peer = peer
        self.pdp = pdp
        self.target = f"unix:{pathlib.Path(folder) / 'sock'}"
        made = Limits(workers=WORKERS, **limits)
        self.streams = CheckStreams(pdp, lambda _: self.peer, ErrorCounts(), made)
        self.server = make_server(made, made.check_bytes, "test")
        service = authz_service(
            pdp.check, pdp.batch_check, pdp.report, lambda _: self.peer, ErrorCounts(), self.streams
        )
        self.server.add_generic_rpc_handlers((service,))
        self.server.add_insecure_port(self.target)
        self.server.start()

    def drain(self) -> None:
        self.streams.drain()

    def stop(self) -> None:
        self.streams.drain()
        self.server.stop(0).wait()
        self.streams.close()


@contextlib.contextmanager
def stream_door(kind: str, pdp: Pdp, peer: Any, **limits: Any) -> Iterator[Any]:
    """A door of this kind that belongs to the peer: `target`, and `drain`."""
    if kind == "native":
        with native_server(pdp, agent=peer.spiffe_id, **limits) as native:
            native.drain = lambda: native.listener.stop(TIMEOUT_S * 1000)  # type: ignore[attr-defined]
            yield native
        return
    with tempfile.TemporaryDirectory(prefix="gd") as folder:
        door = GrpcioDoor(folder, pdp, peer, **limits)
        try:
            yield door
        finally:
            door.stop()
