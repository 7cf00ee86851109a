"""The boundary of the process: what goes wrong behind a door is a refusal that says nothing (EX-01, EX-02, EX-19)."""

import logging
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest

from fastpath.peer import VerifiedPeer
from sidecar.config import Limits
from sidecar.services.doors import AUTHZ, EXT_AUTHZ, authz_service, ext_authz_service, make_server
from sidecar.services.errors import ErrorCounts

SECRET = "s3cret detail"
PEER = VerifiedPeer(1, "spiffe://corp.example/a", "unix:0")
LIMITS = Limits()
Decide = Callable[[bytes, VerifiedPeer], tuple[int, bytes]]


def raises(error: Exception) -> Decide:
    def decide(_: bytes, __: VerifiedPeer) -> tuple[int, bytes]:
        raise error

    return decide


@contextmanager
def served(decide: Decide, errors: ErrorCounts, limits: Limits = LIMITS) -> Iterator[grpc.Channel]:
    server = make_server(limits, limits.check_bytes, "test")
    server.add_generic_rpc_handlers(
        (
            ext_authz_service(decide, lambda _: PEER, errors),
            authz_service(decide, decide, decide, lambda _: PEER, errors),
        )
    )
    with tempfile.TemporaryDirectory(prefix="door") as folder:
        target = f"unix:{pathlib.Path(folder) / 'sock'}"
        server.add_insecure_port(target)
        server.start()
        with grpc.insecure_channel(target) as channel:
            yield channel
        server.stop(0).wait()


def ask(channel: grpc.Channel, service: str = EXT_AUTHZ, body: bytes = b"question") -> bytes:
    return bytes(channel.unary_unary(f"/{service}/Check")(body, timeout=10))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SECRET),
        MemoryError(SECRET),
        AssertionError(SECRET),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, SECRET),
    ],
)
@pytest.mark.parametrize("service", [EXT_AUTHZ, AUTHZ])
def test_an_exception_is_unavailable_counted_and_logged(
    error: Exception, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    """EX-02: no traceback and no text of ours reaches the caller; the operator sees cause and place."""
    errors = ErrorCounts()
    with (
        served(raises(error), errors) as channel,
        caplog.at_level(logging.ERROR),
        pytest.raises(grpc.RpcError) as caught,
    ):
        ask(channel, service)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "unavailable"
    assert errors.read() == {"internal": 1}
    assert "call.failed" in caplog.text


def test_an_empty_answer_never_leaves() -> None:
    """EX-01: Envoy takes an empty CheckResponse for ALLOW."""
    errors = ErrorCounts()
    with served(lambda _, __: (0, b""), errors) as channel, pytest.raises(grpc.RpcError) as caught:
        ask(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert errors.read() == {"internal": 1}


def test_bytes_go_through_untouched() -> None:
    """A door is no codec: what came in is decided, what was encoded goes out."""
    seen = []

    def decide(request: bytes, peer: VerifiedPeer) -> tuple[int, bytes]:
        seen.append((request, peer.spiffe_id))
        return 0, b"\x00answer\xff"

    with served(decide, ErrorCounts()) as channel:
        assert ask(channel, body=b"\xff\x00question") == b"\x00answer\xff"
    assert seen == [(b"\xff\x00question", PEER.spiffe_id)]


@pytest.mark.parametrize(
    ("code", "status"), [(3, "INVALID_ARGUMENT"), (16, "UNAUTHENTICATED"), (14, "UNAVAILABLE"), (99, "UNAVAILABLE")]
)
def test_a_status_is_passed_on(code: int, status: str) -> None:
    """What the native call refuses arrives as that gRPC status with its reason code."""
    with (
        served(lambda _, __: (code, b"identity.expired"), ErrorCounts()) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        ask(channel)
    assert caught.value.code().name == status
    assert caught.value.details() == "identity.expired"


def test_a_change_of_bundles_between_the_steps_costs_no_call() -> None:
    """Rotation drops nothing: a caller verified by bundles that were just replaced is verified again."""
    answers = [(16, b"identity.bundle_changed"), (0, b"answer")]
    with served(lambda _, __: answers.pop(0), ErrorCounts()) as channel:
        assert ask(channel) == b"answer"
    assert answers == []


def test_a_message_over_the_limit_is_refused_before_it_is_read() -> None:
    """H2-16: the bound holds at the wire; the next call is answered."""
    calls = []

    def decide(request: bytes, _: VerifiedPeer) -> tuple[int, bytes]:
        calls.append(len(request))
        return 0, b"answer"

    with served(decide, ErrorCounts(), Limits(check_bytes=1024)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel, AUTHZ, b"x" * 1100)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ask(channel, AUTHZ, b"x" * 900) == b"answer"
    assert calls == [900]


def test_a_call_in_progress_is_answered_while_the_door_closes() -> None:
    """H2-24: a stop with grace refuses new calls and lets the one under way end."""
    gate, entered = threading.Event(), threading.Event()

    def decide(_: bytes, __: VerifiedPeer) -> tuple[int, bytes]:
        entered.set()
        gate.wait(30)
        return 0, b"answer"

    server = make_server(LIMITS, 1024, "test")
    server.add_generic_rpc_handlers((ext_authz_service(decide, lambda _: PEER, ErrorCounts()),))
    with tempfile.TemporaryDirectory(prefix="door") as folder:
        server.add_insecure_port(f"unix:{folder}/sock")
        server.start()
        with grpc.insecure_channel(f"unix:{folder}/sock") as channel:
            call = channel.unary_unary(f"/{EXT_AUTHZ}/Check").future(b"", timeout=30)
            assert entered.wait(30)
            stopped = server.stop(30)
            gate.set()
            assert call.result() == b"answer"
            stopped.wait(30)


@pytest.mark.parametrize(
    "method", ["/none.Such/Check", f"/{AUTHZ}/check", f"//{AUTHZ}/Check", f"/{AUTHZ}/Check/", f"/{AUTHZ}/Check?x"]
)
def test_another_method_is_unimplemented(method: str) -> None:
    """H2-20: a method is its exact name; nothing near it reaches a decision."""
    calls = []

    def decide(_: bytes, __: VerifiedPeer) -> tuple[int, bytes]:
        calls.append(1)
        return 0, b"answer"

    with served(decide, ErrorCounts()) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert calls == []


def test_more_calls_than_allowed_are_refused_and_not_queued() -> None:
    """A flood at one door ends in RESOURCE_EXHAUSTED, not in memory."""
    gate = threading.Event()

    def decide(_: bytes, __: VerifiedPeer) -> tuple[int, bytes]:
        gate.wait(30)
        return 0, b"answer"

    limits = Limits(workers=1, concurrent_calls=2)
    with served(decide, ErrorCounts(), limits) as channel, futures.ThreadPoolExecutor(8) as pool:
        calls = [channel.unary_unary(f"/{AUTHZ}/Check").future(b"", timeout=30) for _ in range(8)]
        first = next(futures.as_completed([pool.submit(call.code) for call in calls]))
        assert first.result() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.set()
        codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.OK) >= 2
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
