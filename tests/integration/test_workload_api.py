"""Our Workload API source against a real Workload API server over a Unix socket: rows WL-01 to WL-09, ID-18."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from spiffe import WorkloadApiClient
from spiffe._proto import workload_pb2

from fastpath.verify import Verifier, VerifyError
from sidecar.demo.ca import Authority, Svid
from sidecar.demo.workload_api import Deployment, WorkloadApi, main, read_config, svid_message
from sidecar.errors import ConfigError
from sidecar.identity.endpoint import parse_endpoint
from sidecar.identity.message import Choice
from sidecar.identity.snapshot import Identity
from sidecar.identity.source import Backoff, Stream, WorkloadSource
from tests import fix_identity as fix
from tests.fix_identity import NOW_S, Clock, Forger, wait_for

ID = "spiffe://a.test/agent/a"
QUICK = Stream(backoff=Backoff(0.01, 0.05))
A = Authority("a.test", now_s=NOW_S)
B = Authority("b.test", now_s=NOW_S)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of mode 0700 with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="wl-") as made:
        yield Path(made)


@pytest.fixture
def api(folder: Path) -> Iterator[WorkloadApi]:
    made = WorkloadApi(folder / "api.sock")
    made.start()
    yield made
    made.stop()


SourceMaker = Callable[..., WorkloadSource]


@pytest.fixture
def make_source(folder: Path) -> Iterator[SourceMaker]:
    """Make and start a source on the folder's api.sock; every one is stopped at the end."""
    made: list[WorkloadSource] = []

    def make(path: Path | None = None, **options: object) -> WorkloadSource:
        source = WorkloadSource(f"unix://{path or folder / 'api.sock'}", **{"stream": QUICK, **options})
        made.append(source)
        source.start()
        return source

    yield make
    for source in made:
        source.stop()


def good(authority: Authority = A, **federated: list[bytes]) -> workload_pb2.X509SVIDResponse:
    """A message with a new SVID for ID; keywords are federated domains with `_` for the dot."""
    foreign = {name.replace("_", "."): roots for name, roots in federated.items()}
    return svid_message([authority.issue(ID, now_s=NOW_S)], [authority.root_der], foreign)


def leaf_of(message: workload_pb2.X509SVIDResponse) -> bytes:
    return message.svids[0].x509_svid


def has(source: WorkloadSource, message: workload_pb2.X509SVIDResponse) -> bool:
    """Whether the identity in force is the one of `message`."""
    identity = source.current()
    return identity is not None and pem_body(identity.svid_chain_pem) == pem_body_of(leaf_of(message))


def pem_body(pem: bytes) -> bytes:
    return b"".join(line for line in pem.split() if not line.startswith(b"-----") and line[-5:] != b"-----")


def pem_body_of(der: bytes) -> bytes:
    import ssl

    return pem_body(ssl.DER_cert_to_PEM_cert(der).encode())


def ready(source: WorkloadSource) -> None:
    wait_for(lambda: source.state() == "", f"ready; state {source.state()}, problem {source.problem()}")


# ---------------------------------------------------------------- the ordinary way


def test_the_first_message_gives_svid_key_and_bundles_in_one_snapshot(
    api: WorkloadApi, make_source: SourceMaker
) -> None:
    """The snapshot holds what one message gave; its text form has no key."""
    message = good(b_test=[B.root_der])
    api.push(message)
    source = make_source()
    ready(source)
    identity = source.current()
    assert identity is not None
    assert (identity.spiffe_id, identity.trust_domain, identity.not_after_s) == (ID, "a.test", NOW_S + 3600)
    assert identity.bundles == {"a.test": (A.root_der,), "b.test": (B.root_der,)}
    assert identity.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in repr(identity)
    assert source.problem() == ""


def test_the_spiffe_package_reads_our_server(api: WorkloadApi) -> None:
    """Our server speaks the Workload API that others speak: the reference client fetches SVID and bundles from it."""
    api.push(good(b_test=[B.root_der]))
    client = WorkloadApiClient(f"unix://{api.path}")
    context = client.fetch_x509_context(timeout=5)
    assert str(context.default_svid.spiffe_id) == ID
    assert len(client.fetch_x509_bundles(timeout=5).bundles) == 2
    client.close()


def test_wl_13_calls_without_the_header_are_refused_and_ours_have_it(
    api: WorkloadApi, make_source: SourceMaker
) -> None:
    """WL-13: the server rejects a call without `workload.spiffe.io: true`; the source always sends it."""
    api.push(good())
    with grpc.insecure_channel(f"unix:{api.path}") as channel:
        bare = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")(b"", timeout=5)
        with pytest.raises(grpc.RpcError) as refused:
            next(bare)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        jwt = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID")
        with pytest.raises(grpc.RpcError) as missing:
            jwt(b"", metadata=(("workload.spiffe.io", "true"),), timeout=5)
        assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED
    ready(make_source())
    assert api.seen[-1][1]["workload.spiffe.io"] == "true"


def test_subscribers_see_every_state_in_order(api: WorkloadApi, make_source: SourceMaker) -> None:
    """A subscriber gets the present state at once, then each change; one that fails does not stop the others."""
    seen: list[Identity | None] = []
    source = make_source()

    def broken(_: Identity | None) -> None:
        if seen:
            raise RuntimeError("a bug")

    source.subscribe(broken)
    end = source.subscribe(seen.append)
    for _ in range(3):
        message = good()
        api.push(message)
        wait_for(lambda m=message: has(source, m), "the new SVID")
    api.deny()
    wait_for(lambda: seen[-1] is None and len(seen) > 1, "the redaction")
    assert seen[0] is None
    generations = [identity.generation for identity in seen if identity]
    assert generations == sorted(set(generations))
    assert len(generations) == 3
    assert source.counters()["crashed"] >= 3
    end()
    api.push(good())
    ready(source)
    assert seen[-1] is None


def test_the_same_message_again_changes_nothing(api: WorkloadApi, make_source: SourceMaker) -> None:
    """An agent that repeats itself causes no new generation."""
    message = good()
    api.push(message)
    source = make_source()
    ready(source)
    api.push(message)
    api.end_streams()
    wait_for(lambda: source.counters()["attempts"] > 1 and len(api.seen) > 1, "a second stream")
    last = good()
    api.push(last)
    wait_for(lambda: has(source, last), "the next SVID")
    identity = source.current()
    assert identity is not None
    assert (identity.generation, identity.bundle_generation) == (2, 1)


# ---------------------------------------------------------------- WL-01 to WL-07


def test_wl_01_the_socket_may_come_after_the_source(folder: Path, make_source: SourceMaker) -> None:
    """WL-01: without a socket the source is not ready and keeps trying; once the socket is there it is ready."""
    source = make_source()
    wait_for(lambda: source.counters()["refused_socket"] >= 3, "three attempts")
    assert source.state() == "not_ready.svid"
    assert "cannot be reached" in source.problem()
    api = WorkloadApi(folder / "api.sock")
    api.push(good())
    api.start()
    ready(source)
    api.stop()


def _regular_file(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("")
    return path


def _open_folder(folder: Path) -> Path:
    inner = folder / "open"
    inner.mkdir()
    inner.chmod(0o777)
    api_path = inner / "api.sock"
    _bind(api_path)
    return api_path


def _link(folder: Path) -> Path:
    _bind(folder / "real.sock")
    (folder / "link.sock").symlink_to(folder / "real.sock")
    return folder / "link.sock"


def _bind(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("lay", "cause"),
    [
        (_regular_file, "is not a socket"),
        (lambda folder: folder, "is not a socket"),
        (_open_folder, "everybody may write"),
        (_link, "is not a socket"),
    ],
    ids=["regular file", "folder", "world-writable folder", "symbolic link"],
)
def test_wl_02_a_socket_that_cannot_be_trusted_is_not_used(
    folder: Path, make_source: SourceMaker, lay: Callable[[Path], Path], cause: str
) -> None:
    """WL-02: not a socket, or where everybody could have put one: refused with the reason, before any byte."""
    source = make_source(lay(folder))
    wait_for(lambda: source.counters()["refused_socket"] >= 1, "the refusal")
    wait_for(lambda: cause in source.problem(), cause)
    assert source.state() == "not_ready.svid"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a socket to another uid needs root")
def test_wl_02_a_socket_of_another_owner_is_not_used(api: WorkloadApi, make_source: SourceMaker) -> None:
    """WL-02: a socket that belongs to somebody else is refused unless the configuration names that uid."""
    api.push(good())
    os.chown(api.path, 4242, -1)
    source = make_source()
    wait_for(lambda: "belongs to uid 4242" in source.problem(), "the refusal")
    ready(make_source(socket_owners=[4242]))


def test_wl_03_unavailable_is_retried_with_backoff_and_jitter(api: WorkloadApi, make_source: SourceMaker) -> None:
    """WL-03: UNAVAILABLE several times, then good: ready, and the attempts were counted."""
    api.fail(grpc.StatusCode.UNAVAILABLE)
    source = make_source()
    wait_for(lambda: source.counters()["failed"] >= 4, "four failures")
    assert source.state() == "not_ready.svid"
    api.push(good())
    ready(source)


def test_wl_03_the_waiting_time_doubles_to_its_bound_and_chance_takes_up_to_half() -> None:
    """WL-03: 0.1 s doubled to 5 s; jitter keeps a fleet from asking in step."""
    longest = Backoff(chance=lambda: 0.0)
    assert [longest.delay_s(n) for n in (0, 1, 2, 5, 6, 60)] == [0.1, 0.2, 0.4, 3.2, 5.0, 5.0]
    assert Backoff(chance=lambda: 1.0).delay_s(60) == 2.5


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED])
def test_wl_04_a_request_that_cannot_work_is_not_repeated(
    api: WorkloadApi, make_source: SourceMaker, code: grpc.StatusCode
) -> None:
    """WL-04: INVALID_ARGUMENT and UNIMPLEMENTED end the asking; the SVID in force serves until it expires."""
    clock = Clock()
    message = good()
    api.push(message)
    source = make_source(clock=clock)
    ready(source)
    api.fail(code)
    wait_for(lambda: source.counters()["final"] == 1, "the end of asking")
    calls = len(api.seen)
    assert has(source, message)
    assert code.name in source.problem()
    clock.at_s = NOW_S + 3601
    assert (source.current(), source.state()) == (None, "not_ready.svid_expired")
    assert len(api.seen) == calls


def test_wl_05_a_redacted_svid_is_not_used_any_more(api: WorkloadApi, make_source: SourceMaker) -> None:
    """WL-05: PERMISSION_DENIED after an SVID: not ready, no bundles, and asked again until there is another."""
    message = good()
    api.push(message)
    source = make_source()
    verifier = Verifier()
    source.feed(verifier)
    ready(source)
    assert verifier.trust_domains == ("a.test",)
    api.deny()
    wait_for(lambda: source.state() == "not_ready.svid", "the redaction")
    wait_for(lambda: verifier.trust_domains == (), "no trust without an identity")
    assert source.current() is None
    before = len(api.seen)
    wait_for(lambda: len(api.seen) > before + 1, "further attempts")
    api.push(message)
    ready(source)
    assert (verifier.trust_domains, source.counters()["redacted"]) == (("a.test",), 1)


def test_wl_06_the_source_comes_back_after_every_end(folder: Path, make_source: SourceMaker) -> None:
    """WL-06: a stream that ends, a server that restarts and a new inode under the same name leave no gap."""
    path = folder / "api.sock"
    api = WorkloadApi(path)
    api.push(good())
    api.start()
    source = make_source()
    gaps: list[None] = []
    ready(source)
    source.subscribe(lambda identity: gaps.append(None) if identity is None else None)
    api.end_streams()
    wait_for(lambda: len(api.seen) >= 2, "a new stream")
    for _ in range(2):
        api.stop()
        api = WorkloadApi(path)
        message = good()
        api.push(message)
        api.start()
        wait_for(lambda m=message: has(source, m), "the restarted server's SVID")
    assert gaps == []
    api.stop()


CONFIG = """
folder: {folder}
svid_ttl_s: {ttl_s}
trust_domains:
  a.test: {{federates_with: [b.test]}}
  b.test: {{}}
identities:
  - {{socket: api.sock, spiffe_id: "spiffe://a.test/agent/a"}}
  - {{files: envoy, spiffe_id: "spiffe://a.test/envoy", dns: [localhost]}}
"""


def write_config(folder: Path, ttl_s: int = 3600) -> Path:
    path = folder / "workload.yaml"
    path.write_text(CONFIG.format(folder=folder, ttl_s=ttl_s))
    return path


@pytest.fixture
def process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The Workload API server as a process of its own, serving."""
    command = [sys.executable, "-m", "sidecar.demo.workload_api", "--config", str(write_config(folder))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        assert "serving 2 identities" in made.stdout.readline()
        yield made
        made.send_signal(signal.SIGCONT)
        made.kill()


def test_wl_07_a_hung_agent_is_noticed_and_the_svid_ends_in_time(
    process: "subprocess.Popen[str]", make_source: SourceMaker
) -> None:
    """WL-07: the agent stops without closing: the ping finds out, the SVID serves to its end and not longer."""
    # A real process issued the SVID at the real time, which this clock starts from.
    clock = Clock(time.time())
    stream = dataclasses.replace(QUICK, keepalive_s=1.0, keepalive_timeout_s=0.5)
    source = make_source(clock=clock, stream=stream)
    states: list[Identity | None] = []
    source.subscribe(states.append)
    ready(source)
    identity = source.current()
    assert identity is not None
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: source.counters()["failed"] >= 1, "the missing pings")
    assert source.current() is identity
    clock.at_s = identity.not_after_s
    assert source.state() == ""
    clock.at_s = identity.not_after_s + 1
    assert (source.state(), source.current()) == ("not_ready.svid_expired", None)
    wait_for(lambda: states[-1] is None, "the news of the end")
    clock.at_s = identity.not_after_s - 1
    assert source.state() == "not_ready.svid_expired"
    process.send_signal(signal.SIGCONT)
    ready(source)


def test_wl_07_an_agent_that_allows_few_pings_gets_few(
    folder: Path, make_source: SourceMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """WL-07: most gRPC servers end a connection that pings often; the source then halves its rate."""
    api = WorkloadApi(folder / "api.sock", options=())
    api.push(good())
    api.start()
    source = make_source(stream=dataclasses.replace(QUICK, keepalive_s=1.0))
    with caplog.at_level("INFO", "remit.source"):
        wait_for(lambda: "pings every 2 s" in caplog.text, "the lower rate")
    ready(source)
    api.stop()


# ---------------------------------------------------------------- WL-08, WL-09, ID-18


def bent(**changes: object) -> workload_pb2.X509SVIDResponse:
    """A good message in which the first SVID has other fields."""
    message = good()
    for name, value in changes.items():
        setattr(message.svids[0], name, value)
    return message


def with_federated(key: str, value: bytes) -> workload_pb2.X509SVIDResponse:
    message = good()
    message.federated_bundles[key] = value
    return message


def forged(**bend: object) -> workload_pb2.X509SVIDResponse:
    """A message whose leaf a real authority signed and bent."""
    root = Forger.root("a.test")
    key = fix.new_key()
    svid = Svid(ID, (root.leaf(key=key, **bend),), fix.pkcs8(key), 0)
    return svid_message([svid], [root.certificate], {})


OTHER = A.issue(ID, now_s=NOW_S)
BAD: dict[str, bytes] = {
    "not protobuf": b"\xff\xff\xff",
    "no SVIDs": b"",
    "junk leaf": bent(x509_svid=b"junk").SerializeToString(),
    "no leaf": bent(x509_svid=b"").SerializeToString(),
    "padding after the leaf": bent(x509_svid=OTHER.chain_der[0] + b"\0\0").SerializeToString(),
    "no key": bent(x509_svid_key=b"").SerializeToString(),
    "junk key": bent(x509_svid_key=fix.seq(fix.integer(0), fix.seq())).SerializeToString(),
    "ID-18 another key": bent(x509_svid_key=OTHER.key_der).SerializeToString(),
    "another spiffe_id": bent(spiffe_id="spiffe://a.test/other").SerializeToString(),
    "no spiffe_id": bent(spiffe_id="").SerializeToString(),
    "spiffe_id without path": bent(spiffe_id="spiffe://a.test").SerializeToString(),
    "no bundle": bent(bundle=b"").SerializeToString(),
    "junk bundle": bent(bundle=b"junk").SerializeToString(),
    "another domain's bundle": bent(bundle=B.root_der).SerializeToString(),
    "junk federated bundle": with_federated("spiffe://b.test", b"junk").SerializeToString(),
    "federated bundle that is no certificate": with_federated("spiffe://b.test", fix.seq()).SerializeToString(),
    "empty federated bundle": with_federated("spiffe://b.test", b"").SerializeToString(),
    "bad trust domain key": with_federated("spiffe://B.test\n", B.root_der).SerializeToString(),
    "trust domain key with a path": with_federated("spiffe://b.test/x", B.root_der).SerializeToString(),
    "our own domain as federated": with_federated("spiffe://a.test", B.root_der).SerializeToString(),
    "WL-14 expired": forged(not_after_s=NOW_S - 1).SerializeToString(),
    "WL-14 not yet valid": forged(not_before_s=NOW_S + 60).SerializeToString(),
    "CA leaf": forged(ca=True).SerializeToString(),
    "clientAuth only": forged(eku=(fix.CLIENT_AUTH,)).SerializeToString(),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_wl_08_a_bad_message_is_discarded_whole_and_the_next_good_one_applied(
    api: WorkloadApi, make_source: SourceMaker, raw: bytes
) -> None:
    """WL-08, ID-18: one bad part discards the message; the state before it stays; the source lives."""
    first = good()
    api.push(first)
    source = make_source(clock=Clock())
    ready(source)
    before = source.current()
    api.push_raw(raw)
    wait_for(lambda: source.counters()["discarded"] == 1, "the discarded message")
    assert source.current() is before
    assert source.problem()
    after = good()
    api.push(after)
    wait_for(lambda: has(source, after), "the good message")
    assert (source.counters()["discarded"], source.counters()["crashed"], source.problem()) == (1, 0, "")


def test_a_bad_first_message_names_which_half_is_missing(api: WorkloadApi, make_source: SourceMaker) -> None:
    """Not ready for want of a bundle and for want of an SVID are different reasons."""
    api.push_raw(BAD["no bundle"])
    source = make_source()
    wait_for(lambda: source.state() == "not_ready.bundle", "the reason")
    api.push_raw(BAD["junk leaf"])
    wait_for(lambda: source.state() == "not_ready.svid", "the reason")


def test_a_message_beyond_the_cap_is_refused_and_a_smaller_one_applied(
    api: WorkloadApi, make_source: SourceMaker
) -> None:
    """WL-10: the cap holds on the wire; the state before it stays and the next message within it is applied."""
    first = good()
    api.push(first)
    source = make_source(stream=dataclasses.replace(QUICK, message_bytes_max=100_000))
    ready(source)
    api.push_raw(b"\x12" + b"\xf0\x93\x09" + b"x" * 150_000)
    wait_for(lambda: source.counters()["too_large"] >= 1, "the refusal")
    assert has(source, first)
    last = good()
    api.push(last)
    wait_for(lambda: has(source, last), "the message within the cap")


def test_wl_09_a_bundle_that_disappears_is_untrusted_at_once(api: WorkloadApi, make_source: SourceMaker) -> None:
    """WL-09: peers of a trust domain that the update leaves out are refused from then on."""
    api.push(good(b_test=[B.root_der]))
    source = make_source()
    verifier = Verifier()
    source.feed(verifier)
    ready(source)
    peer = B.issue("spiffe://b.test/peer", now_s=NOW_S)
    wait_for(lambda: verifier.trust_domains == ("a.test", "b.test"), "both bundles")
    verifier.verify(peer.chain_der[0], [])
    api.push(good())
    wait_for(lambda: verifier.trust_domains == ("a.test",), "the update")
    with pytest.raises(VerifyError, match=r"identity\.trust_domain_unknown"):
        verifier.verify(peer.chain_der[0], [])


def test_a_rotation_of_the_svid_alone_keeps_the_bundle_generation(api: WorkloadApi, make_source: SourceMaker) -> None:
    """Peers need not be verified again because our own SVID is new."""
    api.push(good())
    source = make_source()
    ready(source)
    for changed, expected in ((good(), 1), (good(b_test=[B.root_der]), 2), (good(b_test=[B.root_der]), 2)):
        api.push(changed)
        wait_for(lambda m=changed: has(source, m), "the update")
        assert source.bundle_generation == expected


# ---------------------------------------------------------------- which SVID


def test_wl_11_the_configured_svid_is_chosen_and_the_first_of_a_hint(
    api: WorkloadApi, make_source: SourceMaker
) -> None:
    """WL-11: without a choice the first; by id; by hint, of two the first; another trust domain is refused."""
    svids = [A.issue(f"spiffe://a.test/agent/{n}", now_s=NOW_S) for n in range(5)]
    hints = ["", "in", "out", "out", ""]
    api.push(svid_message(list(zip(svids, hints, strict=True)), [A.root_der], {}))
    for choice, expected in (
        (Choice(), "spiffe://a.test/agent/0"),
        (Choice(spiffe_id="spiffe://a.test/agent/4"), "spiffe://a.test/agent/4"),
        (Choice(hint="out"), "spiffe://a.test/agent/2"),
        (Choice(hint="out", trust_domain="a.test"), "spiffe://a.test/agent/2"),
    ):
        source = make_source(choice=choice)
        ready(source)
        identity = source.current()
        assert identity is not None
        assert identity.spiffe_id == expected
    for choice in (Choice(hint="none"), Choice(trust_domain="b.test"), Choice(spiffe_id="spiffe://a.test/x")):
        source = make_source(choice=choice)
        wait_for(lambda s=source: s.counters()["discarded"] == 1, "the refusal")
        assert source.state() == "not_ready.svid"


# ---------------------------------------------------------------- endpoint and server


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unix:///run/api.sock", "unix:/run/api.sock"),
        ("unix:/run/api.sock", "unix:/run/api.sock"),
        ("/run/api.sock", "unix:/run/api.sock"),
        ("tcp://127.0.0.1:8081", "ipv4:127.0.0.1:8081"),
        ("tcp://[::1]:8081", "ipv6:[::1]:8081"),
    ],
)
def test_endpoints_are_read_as_the_specification_says(text: str, target: str) -> None:
    """Workload Endpoint section 4: unix: with an absolute path, tcp: with an address and a port."""
    assert parse_endpoint(text) == target


@pytest.mark.parametrize(
    "text",
    ["", "unix://host/run/x", "unix:run/x", "tcp://localhost:1", "tcp://127.0.0.1", "tcp://1.2.3.4:5/x", "http://x"],
)
def test_other_endpoints_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A wrong endpoint is a configuration error, not a source that never gets ready."""
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    with pytest.raises(ConfigError):
        parse_endpoint(text)


def test_the_endpoint_comes_from_the_environment_when_none_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workload Endpoint section 4: SPIFFE_ENDPOINT_SOCKET."""
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/api.sock")
    assert parse_endpoint("") == "unix:/run/spire/api.sock"


def test_the_server_process_serves_rotates_and_ends(
    folder: Path, process: "subprocess.Popen[str]", make_source: SourceMaker
) -> None:
    """The demo's server: sockets and files with federated bundles, new SVIDs on SIGHUP, end on SIGTERM."""
    source = make_source()
    ready(source)
    first = source.current()
    assert first is not None
    assert sorted(first.bundles) == ["a.test", "b.test"]
    files = folder / "envoy"
    before = (files / "svid.pem").read_bytes()
    assert {p.name: p.stat().st_mode & 0o777 for p in files.iterdir()} == dict.fromkeys(
        ["svid.pem", "key.pem", "bundle.pem", "bundle.b.test.pem"], 0o600
    )
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: source.current() not in (None, first), "the rotated SVID")
    wait_for(lambda: (files / "svid.pem").read_bytes() != before, "the rotated file")
    process.terminate()
    assert process.wait(10) == 0


def test_the_server_refuses_a_bad_configuration_with_its_cause(folder: Path) -> None:
    """A wrong file ends with status 1 and a line that names the cause."""
    path = write_config(folder)
    for text, cause in (
        (path.read_text() + "typo: 1\n", "typo"),
        (path.read_text().replace("  b.test: {}", "  c.test: {}"), "`b.test`"),
        (path.read_text().replace("spiffe://a.test/agent/a", "spiffe://x.test/agent/a"), "spiffe://x.test/agent/a"),
        (path.read_text().replace("socket: api.sock, ", ""), "`socket` or `files`"),
    ):
        bad = folder / "bad.yaml"
        bad.write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml") as refused:
            read_config(bad)
        assert cause in str(refused.value)
    with pytest.raises(ConfigError):
        read_config(folder / "missing.yaml")
    assert main.params[0].required


def test_the_server_as_a_library(folder: Path, make_source: SourceMaker) -> None:
    """`Deployment` is the same server without its process."""
    deployment = Deployment(read_config(write_config(folder)))
    deployment.start()
    source = make_source()
    ready(source)
    first = source.current()
    deployment.rotate()
    wait_for(lambda: source.current() is not first, "the rotated SVID")
    deployment.stop()


def test_a_stopped_source_has_no_threads(api: WorkloadApi, make_source: SourceMaker) -> None:
    """stop() ends both threads, whatever they were waiting for."""
    api.push(good())
    source = make_source()
    ready(source)
    source.stop()
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"svid-expiry"}
