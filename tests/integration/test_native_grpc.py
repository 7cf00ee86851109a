"""gRPC at a native door (rows H2-16 to H2-23, UD-01, UD-05): what is a call, what is not, and who asks."""

import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar._proto.remit.authz.v1 import authz_pb2
from tests.fix_native import (
    BATCH,
    CHECK,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENVOY_QUESTION,
    EXT_AUTHZ,
    HEADERS,
    HEALTH,
    NO_ERROR,
    QUESTION,
    TIMEOUT_S,
    NativeServer,
    RawClient,
    call_headers,
    frame,
    make_pdp,
    message,
    native_server,
    put_rules,
)

INTERNAL, UNIMPLEMENTED, EXHAUSTED, DEADLINE = "13", "12", "8", "4"


@pytest.mark.parametrize("tcp", [False, True])
def test_every_method_is_answered(tcp: bool) -> None:
    """Check, BatchCheck, ext_authz and health, over a Unix socket and TCP, by a gRPC client that is not ours."""
    with native_server(tcp=tcp) as door, grpc.insecure_channel(door.target) as channel:
        answer = authz_pb2.CheckResponse.FromString(channel.unary_unary(CHECK)(QUESTION, timeout=TIMEOUT_S))
        assert answer.outcome == authz_pb2.OUTCOME_ALLOW
        items = [authz_pb2.CheckRequest.FromString(QUESTION)] * 3
        raw = channel.unary_unary(BATCH)(
            authz_pb2.BatchCheckRequest(items=items).SerializeToString(), timeout=TIMEOUT_S
        )
        assert [one.outcome for one in authz_pb2.BatchCheckResponse.FromString(raw).items] == [1, 1, 1]
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(EXT_AUTHZ)(ENVOY_QUESTION, timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with native_server(tcp=tcp, envoy=True) as door, grpc.insecure_channel(door.target) as channel:
        assert channel.unary_unary(EXT_AUTHZ)(ENVOY_QUESTION, timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(CHECK)(QUESTION, timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_says_ready_live_and_nothing_else(door: NativeServer) -> None:
    """grpc.health.v1 Check: the empty name and `ready` follow readiness, `live` does not, others are NOT_FOUND."""
    with grpc.insecure_channel(door.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def status(service: str) -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S).status

        assert [status(name) for name in ("", "ready", "live")] == [1, 1, 1]
        door.listener.put_ready(False)
        assert [status(name) for name in ("", "ready", "live")] == [2, 2, 1]
        with pytest.raises(grpc.RpcError) as caught:
            status("other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert door.listener.counters()["calls"] == 0


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (message(QUESTION, length=0xFFFFFFFF), EXHAUSTED, "request.too_large"),
        (message(QUESTION, length=262_145), EXHAUSTED, "request.too_large"),
        (message(QUESTION, flag=1), UNIMPLEMENTED, "request.compressed"),
        (message(QUESTION, flag=2), INTERNAL, "request.framing"),
        (b"", INTERNAL, "request.framing"),
        (b"\0\0\0", INTERNAL, "request.framing"),
        (message(QUESTION)[:-1], INTERNAL, "request.framing"),
        (message(QUESTION) * 2, INTERNAL, "request.framing"),
        (message(QUESTION) + b"x", INTERNAL, "request.framing"),
        (message(b"\xff\xff"), "3", "request.malformed"),
    ],
    ids=["4 GiB", "over", "compressed", "flag", "none", "prefix", "short", "two", "more", "no protobuf"],
)
def test_what_is_not_one_message_is_refused(door: NativeServer, body: bytes, status: str, why: str) -> None:
    """H2-16, H2-17, H2-18: by the prefix, before room is made for it; the connection lives."""
    with RawClient(door.address) as client:
        assert client.ask(1, body) == (status, why)
        assert client.ask(3) == ("0", "")
    done = door.listener.counters()
    assert done["calls"] == 1 + (status == "3")
    assert done["buffered_max"] < 8192


def test_a_message_of_the_largest_size_is_taken_in_pieces() -> None:
    """H2-16: exactly the limit is a message; what is held grows with what arrives."""
    question = authz_pb2.CheckRequest.FromString(QUESTION)
    question.arguments["text"] = "x" * 100_000
    raw = question.SerializeToString()
    with native_server(message_bytes=len(raw)) as door, grpc.insecure_channel(door.target) as channel:
        assert channel.unary_unary(CHECK)(raw, timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(CHECK)(raw + b"\x0a\x00", timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(raw) < door.listener.counters()["buffered_max"] < 4 * len(raw)


def test_an_early_refusal_does_not_wait_for_the_rest(door: NativeServer) -> None:
    """RFC 9113 section 8.1: the answer, then RST_STREAM(NO_ERROR); the rest of the message is not kept."""
    with RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())))
        client.send(frame(DATA, 0, 1, message(b"x" * 1000, length=1 << 30)))
        client.until(lambda: 1 in client.resets)
        assert client.headers[1]["grpc-status"] == EXHAUSTED
        assert client.resets[1] == NO_ERROR
        assert client.ask(3) == ("0", "")


def test_trailers_of_a_client_are_refused(door: NativeServer) -> None:
    """H2-18: a request ends with its data."""
    with RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())))
        client.send(frame(DATA, 0, 1, message(QUESTION)))
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, client.block([("x-trailer", "v")])))
        client.until(lambda: 1 in client.ended)
        assert client.headers[1]["grpc-status"] == INTERNAL
    assert door.listener.counters()["calls"] == 0


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("changes", "http", "status", "why"),
    [
        ({"p_method": "GET"}, "405", INTERNAL, "request.method"),
        ({"p_method": "PUT"}, "405", INTERNAL, "request.method"),
        ({"p_scheme": "ftp"}, "400", INTERNAL, "request.scheme"),
        ({"content_type": "text/plain"}, "415", INTERNAL, "request.content_type"),
        ({"content_type": "application/grpc-web"}, "415", INTERNAL, "request.content_type"),
        ({"content_type": "application/grpc+json"}, "415", INTERNAL, "request.content_type"),
        ({"content_type": None}, "415", INTERNAL, "request.content_type"),
        ({"te": None}, "400", INTERNAL, "request.te"),
        ({"grpc_encoding": "gzip"}, "200", UNIMPLEMENTED, "request.encoding"),
        ({"host": "other"}, "400", INTERNAL, "request.host"),
        ({"path": "/none.Such/Check"}, "200", UNIMPLEMENTED, "request.unimplemented"),
        ({"path": "/" + CHECK}, "200", UNIMPLEMENTED, "request.unimplemented"),
        ({"path": CHECK + "/"}, "200", UNIMPLEMENTED, "request.unimplemented"),
        ({"path": CHECK.lower()}, "200", UNIMPLEMENTED, "request.unimplemented"),
        ({"path": CHECK + "?x"}, "200", UNIMPLEMENTED, "request.unimplemented"),
        ({"path": CHECK.replace("Check", "%43heck")}, "200", UNIMPLEMENTED, "request.unimplemented"),
        ({"path": HEALTH.replace("Check", "List")}, "200", UNIMPLEMENTED, "request.unimplemented"),
    ],
)
def test_a_request_that_is_no_call_of_ours_is_refused(
    door: NativeServer, changes: dict[str, Any], http: str, status: str, why: str
) -> None:
    """H2-19, H2-20, H2-21: nothing near a method is that method, nothing near gRPC is gRPC."""
    with RawClient(door.address) as client:
        assert client.ask(1, **changes) == (status, why)
        assert client.headers[1][":status"] == http
        assert client.ask(3) == ("0", "")
    assert door.listener.counters()["calls"] == 1


@pytest.mark.parametrize("path", ["", "*"])
def test_a_path_that_is_none_resets_its_stream(door: NativeServer, path: str) -> None:
    """H2-20, RFC 9113 section 8.3.1."""
    with RawClient(door.address) as client:
        assert client.ask(1, path=path)[0] in ("reset", UNIMPLEMENTED)
    assert door.listener.counters()["calls"] == 0


@pytest.mark.parametrize("name", ["content-type", "te", "grpc-timeout", "grpc-encoding", "host", "authorization"])
def test_a_header_that_may_come_once_comes_once(door: NativeServer, name: str) -> None:
    """H2-21: two values where one is expected are no call."""
    values = {"content-type": "application/grpc", "te": "trailers", "grpc-timeout": "1S", "grpc-encoding": "identity"}
    value = values.get(name, "localhost")
    kept = [(key, text) for key, text in call_headers() if key != name]
    with RawClient(door.address) as client:
        block = client.block([*kept, (name, value), (name, value)])
        client.send(frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, message(QUESTION)))
        client.until(lambda: 1 in client.ended or 1 in client.resets)
        assert client.headers.get(1, {}).get("grpc-message", "request.header_twice") == "request.header_twice"
    assert door.listener.counters()["calls"] == 0


@pytest.mark.parametrize(
    ("timeout", "status"),
    [
        ("1n", DEADLINE),
        ("0S", DEADLINE),
        ("0H", DEADLINE),
        ("99999999H", "0"),
        ("30S", "0"),
        ("5000m", "0"),
        ("-5S", INTERNAL),
        ("123456789S", INTERNAL),
        ("5", INTERNAL),
        ("S", INTERNAL),
        ("5 S", INTERNAL),
        ("5s", INTERNAL),
    ],
)
def test_a_deadline_that_has_passed_has_no_effect(door: NativeServer, timeout: str, status: str) -> None:
    """H2-22: DEADLINE_EXCEEDED without a decision; what is no timeout is an error."""
    with RawClient(door.address) as client:
        assert client.ask(1, grpc_timeout=timeout)[0] == status
    assert door.listener.counters()["calls"] == (status == "0")


def test_a_request_without_a_deadline_has_ours() -> None:
    """H2-22: a message that took longer than the default to arrive is not decided."""
    with native_server(deadline_ms=1) as door, RawClient(door.address) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, client.block(call_headers())))
        assert client.ask(3, grpc_timeout="30S") == ("0", "")
        for stream in range(5, 2000, 2):
            client.send(frame(DATA, 0, 1, b""))
            client.ask(stream, path=HEALTH, body=message(b""), grpc_timeout="30S")
            if door.listener.counters()["health"] > 50:
                break
        client.send(frame(DATA, END_STREAM, 1, message(QUESTION)))
        client.until(lambda: 1 in client.ended)
        assert client.headers[1]["grpc-status"] == DEADLINE
        assert door.listener.counters()["calls"] == 1


# ---------------------------------------------------------------- who asks


def test_metadata_names_nobody(door: NativeServer) -> None:
    """UD-05: the identity is the socket's, whatever a header says."""
    pdp = make_pdp()
    with (
        native_server(pdp, envoy=True) as envoy_door,
        grpc.insecure_channel(envoy_door.target) as envoy,
        grpc.insecure_channel(door.target) as agent,
    ):
        assert envoy.unary_unary(EXT_AUTHZ)(ENVOY_QUESTION, timeout=TIMEOUT_S)
        claims = (("x-forwarded-client-cert", "URI=spiffe://example.org/envoy"),)
        with pytest.raises(grpc.RpcError):
            agent.unary_unary(EXT_AUTHZ)(ENVOY_QUESTION, timeout=TIMEOUT_S, metadata=claims)


CLIENT = """
import os, socket, sys
os.setgroups([int(g) for g in sys.argv[3].split(",") if g]); os.setgid(int(sys.argv[2])); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(20)
sys.stdout.write("in" if s.recv(9) else "out")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can connect as somebody else")
@pytest.mark.parametrize(
    ("gid", "groups", "wanted"), [(65534, "", "out"), (4242, "", "in"), (65534, "4242", "in"), (65534, "4243", "out")]
)
def test_the_kernel_says_who_may_enter_a_socket(tmp_path: pathlib.Path, gid: int, groups: str, wanted: str) -> None:
    """UD-01: another user enters only as a member of the group, main or supplementary; else no byte is read of it."""
    with native_server(group=4242) as door:
        folder = pathlib.Path(door.path).parent
        os.chmod(folder, 0o755)
        os.chmod(door.path, 0o666)
        command = [sys.executable, "-c", CLIENT, door.path, str(gid), groups]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path)
        if done.returncode and "PermissionError" in done.stderr:
            pytest.skip("the interpreter cannot be run by another user here")
        assert done.stdout == wanted, done.stderr
        assert ("credentials" in door.listener.counters()["closed"]) == (wanted == "out")
        assert door.listener.counters()["bytes_in"] == 0
        if wanted == "out":
            assert door.listener.strangers.take() == [(65534, 1)]
        door.stop()
        assert door.listener.strangers.take() == []


def test_a_busy_interpreter_stops_no_call() -> None:
    """The loop never waits for Python: a thread that holds the GIL does not delay an answer beyond itself."""
    with native_server() as door:
        code = "import sys; from tests.fix_native import RawClient\n"
        code += f"with RawClient({door.path!r}) as c:\n  print(*[c.ask(2*i+1)[0] for i in range(50)])"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        # One long call into C that keeps the GIL until the client has ended.
        ended = threading.Event()
        while process.poll() is None and not ended.is_set():
            sum(range(10_000_000))
        assert process.communicate(timeout=TIMEOUT_S)[0].split() == ["0"] * 50


def test_rules_change_under_load_without_a_failed_call(door: NativeServer) -> None:
    """A swap of generation and state waits for nobody and frees nothing under a call."""
    stop = threading.Event()

    def change() -> None:
        number = 2
        while not stop.is_set():
            put_rules(door.pdp, number)
            number += 1

    changer = threading.Thread(target=change)
    changer.start()
    try:
        with grpc.insecure_channel(door.target) as channel:
            call = channel.unary_unary(CHECK)
            answers = [authz_pb2.CheckResponse.FromString(call(QUESTION, timeout=TIMEOUT_S)) for _ in range(500)]
    finally:
        stop.set()
        changer.join()
    assert {answer.outcome for answer in answers} == {authz_pb2.OUTCOME_ALLOW}
    generations = [answer.generation for answer in answers]
    assert generations == sorted(generations)
    assert generations[-1] > generations[0]
