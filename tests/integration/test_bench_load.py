"""The load client of the benches judges every answer, and what it could not judge as right has no time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

import bench.check
from bench import constant
from bench.__main__ import main
from bench.attacker import Counted, work
from bench.attacks import ATTACKS
from bench.load import Load, Questions
from bench.questions import ALLOWED, DENIED, EXT_AUTHZ, MARK, check_request, ext_authz, headers, policies
from bench.runs import Wrong, checked
from bench.servers import Pki, Server, Side, remit
from sidecar.demo.envoy import binary
from sidecar.errors import ConfigError
from tests.fix_native import ENVOY_QUESTION, native_server

needs_nghttpd = pytest.mark.skipif(not shutil.which("nghttpd"), reason="nghttpd (Debian nghttp2-server) is missing")


def has_envoy() -> bool:
    try:
        return binary().exists()
    except ConfigError:
        return False


needs_envoy = pytest.mark.skipif(not has_envoy(), reason="the Envoy binary (make setup) is missing")
ALLOW, DENY = (0, 3), (7, 2)


@dataclasses.dataclass
class Doors:
    server: Server
    pki: Pki

    def load(self, door: str, path: str = EXT_AUTHZ, connections: int = 2) -> Load:
        where = self.server.ports[door]
        address = where if isinstance(where, str) else ("127.0.0.1", where)
        chain, key, roots = self.pki.of("client") if door == "mtls" else ("", "", "")
        return Load(address, headers(path), connections=connections, chain=chain, key=key, roots=roots)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    pki = Pki(tmp_path_factory.mktemp("pki"))
    with remit("test", "plain,mtls,uds,grpcio", 5, pki) as server:
        yield Doors(server, pki)


@pytest.mark.parametrize("door", ["plain", "mtls", "uds", "grpcio"])
def test_each_door_answers_every_question_as_expected(doors: Doors, door: str) -> None:
    """Closed and open loop: all calls come back, with a latency each, and the server decided as many."""
    before = doors.server.tell()["decisions"]
    with contextlib.closing(doors.load(door)) as load:
        closed = checked(load.closed(ext_authz(), 80, 4), door)
        opened = checked(load.open(ext_authz(), 40, 2000, spin=False), door)
        assert load.cipher().startswith("TLS_") == (door == "mtls")
    after = doors.server.tell()["decisions"]
    assert len(closed["latency_ns"]) == 80
    assert min(closed["latency_ns"]) > 0
    assert set(closed["late_ns"]) == {0}
    assert len(opened["latency_ns"]) == 40
    assert {name: after[name] - before.get(name, 0) for name in after} == {"ext_authz allow": 105, "ext_authz deny": 15}


def test_an_open_loop_counts_from_when_a_call_was_to_start(doors: Doors) -> None:
    """Two thousand calls at once find little room: what waits for others is late, and its latency holds that."""
    with contextlib.closing(doors.load("plain", connections=1)) as load:
        run = checked(load.open(ext_authz(), 2000, 1e9), "plain")
    assert max(run["late_ns"]) > 0
    assert max(run["latency_ns"]) > max(run["late_ns"])


def test_what_the_kernel_stamps_leaves_out_the_client_s_own_waits(doors: Doors) -> None:
    """From given to the socket to arrived: within what counts from the schedule, call by call."""
    side = Side("plain", doors.server, ("127.0.0.1", doors.server.ports["plain"]), ext_authz)
    with contextlib.closing(side.connect(2, stamps=True)) as load:
        run = checked(load.open(ext_authz(), 40, 2000, spin=False), "plain")
    pairs = list(zip(run["served_ns"], run["latency_ns"], run["late_ns"], strict=True))
    assert len(pairs) == 40
    assert all(0 < served <= latency - late for served, latency, late in pairs)
    with contextlib.closing(side.connect(2)) as load:
        assert not load.open(ext_authz(), 40, 2000)["served_ns"]
    with pytest.raises(ValueError, match="only what arrives by TCP without TLS is stamped"):
        Load(doors.server.ports["uds"], headers(EXT_AUTHZ), stamps=True)


@pytest.mark.parametrize(
    ("path", "expected", "wrong"),
    [
        (ALLOWED, DENY, "answer"),
        (DENIED, ALLOW, "answer"),
        (ALLOWED, (0, 2), "answer"),
        (ALLOWED, (7, 3), "answer"),
    ],
    ids=["allowed for denied", "denied for allowed", "another kind", "another code"],
)
def test_an_answer_that_says_something_else_is_wrong(
    doors: Doors, path: str, expected: tuple[int, int], wrong: str
) -> None:
    with contextlib.closing(doors.load("plain")) as load:
        run = load.closed(Questions([(check_request(path), *expected)]), 10, 2)
    assert (run["good"], run["wrong"]) == (0, {wrong: 10})
    with pytest.raises(Wrong, match=r"plain: 10 of 10 answers are wrong: answer: http 200, grpc-status 0"):
        checked(run, "plain")


def test_a_grpc_error_is_wrong_though_it_is_http_200(doors: Doors) -> None:
    """UNIMPLEMENTED for a method that is none, INVALID_ARGUMENT for bytes that are no message."""
    with contextlib.closing(doors.load("plain", "/no.such/Method")) as load:
        run = load.closed(ext_authz(), 4, 1)
    assert run["wrong"] == {"grpc-status": 4}
    with contextlib.closing(doors.load("plain")) as load:
        run = load.closed(Questions([(b"\xff\xff", *ALLOW)]), 4, 1)
    assert run["wrong"] == {"grpc-status": 4}
    assert run["first_wrong"].startswith("grpc-status: http 200, grpc-status 3, 0 bytes")


def test_an_answer_of_another_length_or_status_is_wrong(doors: Doors) -> None:
    """What is not gRPC is judged by status and length."""
    body = b"\0" + len(check_request(ALLOWED)).to_bytes(4, "big") + check_request(ALLOWED)
    for judged, wrong in (({"length": 1}, "message"), ({"http_status": 403}, "http status")):
        with contextlib.closing(doors.load("plain")) as load:
            run = load.closed(Questions([(body, 0, 0)], grpc=False, **judged), 4, 1)
        assert run["wrong"] == {wrong: 4}


def test_calls_that_a_closed_connection_held_are_lost() -> None:
    """The server's end is no answer: those in flight and those that could not be asked any more both count."""
    with (
        native_server(envoy=True, tcp=True, age_ms=1) as door,
        contextlib.closing(Load(door.address, headers(EXT_AUTHZ), connections=1)) as load,
    ):
        run = load.open(Questions([(check_request(ALLOWED), *ALLOW)]), 3000, 1000, spin=False)
    assert run["good"] < run["calls"]
    assert run["wrong"].keys() <= {"connection gone", "missing", "reset", "answer"}
    assert "missing" in run["wrong"]


def test_a_mark_stands_at_few_places() -> None:
    """Where other digits go in each call, so that no call repeats another."""
    assert check_request(ALLOWED).count(MARK.encode()) == 3
    with pytest.raises(ValueError, match="more than 4 times"):
        Questions([(MARK.encode() * 5, 0, 0)], mark=MARK.encode())


def test_no_server_and_no_trust_are_errors(doors: Doors, tmp_path: pathlib.Path) -> None:
    """A client that cannot connect says so instead of measuring nothing."""
    with pytest.raises(OSError):
        Load(str(tmp_path / "none"), headers(EXT_AUTHZ))
    other = Pki(tmp_path)
    chain, key, _ = doors.pki.of("client")
    with pytest.raises(ConnectionError, match="TLS handshake"):
        Load(
            ("127.0.0.1", doors.server.ports["mtls"]), headers(EXT_AUTHZ), chain=chain, key=key, roots=other.of("x")[2]
        )


def test_a_constant_must_come_before_the_doors() -> None:
    """Once the native door has taken the real decision, it cannot be replaced unseen."""
    with pytest.raises(RuntimeError, match="imported already"):
        constant.install(b"x")


def test_the_policies_are_as_many_as_asked() -> None:
    assert [policies(count).count("\n") + 1 for count in (3, 10, 1000)] == [3, 10, 1000]


@needs_nghttpd
def test_check_reports_ratios_stages_and_memory(tmp_path: pathlib.Path) -> None:
    """The keys that are promised, for each server that could be had; Cerbos only where it is installed."""
    report = tmp_path / "check.json"
    arguments = ["--policies", "3,5", "--rounds", "1", "--seconds", "0.01", "--connections", "1,20"]
    arguments += ["--parts", "ceilings,latency,memory"]
    done = CliRunner().invoke(main, ["check", *arguments, "--json", str(report)])
    assert done.exit_code == 0, done.output
    made = json.loads(report.read_text())
    promised = {"cpu_ratio_m1", "cpu_ratio_m100", "cpu_ratio_tls_m100", "p99_ratio_half", "ratio_to_grpcio"}
    assert promised <= set(made["results"])
    sides = set(made["samples"])
    assert {"nghttpd", "nghttpd_tls", "native", "native_tls", "native_uds", "native_5", "constant", "grpcio"} <= sides
    assert ("ratio_to_cerbos" in made["results"]) == ("cerbos" in sides)
    assert set(made["by_policies"]) == {"3", "5"}
    assert set(made["results"]["memory_kib"]["mtls"]) == {"1", "20"}
    assert "cerbos" in sides or bench.check.NO_CERBOS in made["notes"]
    assert made["machine"]["command"]


@needs_nghttpd
def test_check_ends_with_the_first_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers all, but one of them wrongly, gets no figure."""
    monkeypatch.setattr("bench.check.ext_authz", lambda: Questions([(check_request(ALLOWED), *DENY)]))
    done = CliRunner().invoke(main, ["check", "--policies", "3", "--rounds", "1", "--seconds", "0.01"])
    assert done.exit_code == 1
    assert "answers are wrong: answer: http 200, grpc-status 0" in done.output


@needs_envoy
@pytest.mark.envoy
def test_envoy_reports_what_asking_costs(tmp_path: pathlib.Path) -> None:
    """All four listeners answer, a forbidden path is 403 where policies are asked, and the ratios are there."""
    report = tmp_path / "envoy.json"
    done = CliRunner().invoke(
        main, ["envoy", "--policies", "5", "--rounds", "1", "--seconds", "0.02", "--json", str(report)]
    )
    assert done.exit_code == 0, done.output
    made = json.loads(report.read_text())
    assert {"ratio_to_constant", "native_added_p50_us", "native_added_p99_us", "native_to_grpcio"} <= set(
        made["results"]
    )
    assert set(made["samples"]) == {"alone", "constant", "native", "grpcio"}
    assert made["results"]["alone_sidecar_cpu_us"] == 0 < made["results"]["native_sidecar_cpu_us"]


@needs_envoy
@pytest.mark.envoy
def test_envoy_ends_with_the_first_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A door that allows what the policies forbid is not measured."""
    monkeypatch.setattr("bench.envoy.DENIED", ALLOWED)
    done = CliRunner().invoke(main, ["envoy", "--policies", "5", "--rounds", "1", "--seconds", "0.02"])
    assert done.exit_code == 1
    assert "native: 16 of 16 answers are wrong: http status: http 200" in done.output


def test_attack_reports_what_others_notice(tmp_path: pathlib.Path) -> None:
    """Per attack: p99 with and without it, growth, and that it was really made; then the worst of all."""
    report = tmp_path / "attack.json"
    arguments = [
        "--attacks",
        "rapid_reset,idle_connections,key_update_flood",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--json",
        str(report),
    ]
    done = CliRunner().invoke(main, ["attack", *arguments])
    assert done.exit_code == 0, done.output
    made = json.loads(report.read_text())
    assert {"worst_p99_ratio", "worst_growth_mib"} <= set(made["results"])
    rapid, idle = made["attacks"]["rapid_reset"], made["attacks"]["idle_connections"]
    assert rapid["closed"]["resets"] == rapid["attack"][0]["connections"] > 0
    assert idle["attack"][0]["connections"] > 0
    assert rapid["row"] == "H2-01"
    assert {name: one["clock"] for name, one in made["attacks"].items()} == {
        "rapid_reset": "kernel",
        "idle_connections": "kernel",
        "key_update_flood": "client",
    }


def test_attack_ends_when_others_get_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that makes answers wrong is worse than one that makes them late."""
    monkeypatch.setattr("bench.attack.ext_authz", lambda: Questions([(check_request(ALLOWED), *DENY)]))
    done = CliRunner().invoke(main, ["attack", "--attacks", "rapid_reset", "--rounds", "1", "--seconds", "0.1"])
    assert done.exit_code == 1
    assert "answers are wrong: answer: http 200, grpc-status 0" in done.output


def test_an_unknown_attack_is_named() -> None:
    done = CliRunner().invoke(main, ["attack", "--attacks", "rapid_reset,nothing"])
    assert done.exit_code == 2
    assert "`nothing` is none of rapid_reset" in done.output


def test_an_attack_below_http2_leaves_the_door_serving(doors: Doors) -> None:
    """The same for the one over mutual TLS, by a peer that is let in."""
    counted = Counted()
    attack = ATTACKS["key_update_flood"]
    work(attack, ("127.0.0.1", doors.server.ports["mtls"]), counted, doors.pki.folder)()
    assert counted.connections == 1
    assert 0 < counted.bytes < attack.key_updates * 27
    with contextlib.closing(doors.load("mtls")) as load:
        checked(load.closed(ext_authz(), 5, 1), "key_update_flood")


@pytest.mark.parametrize("name", [name for name in ATTACKS if not ATTACKS[name].key_updates])
def test_each_attack_leaves_the_door_serving(name: str, tmp_path: pathlib.Path) -> None:
    """One turn of each attack on a real door: bytes are sent, none is decided that must not be, others are answered."""
    with native_server(envoy=True, tcp=True) as door:
        counted = Counted()
        attack = dataclasses.replace(ATTACKS[name], held=min(2, ATTACKS[name].held))
        work(attack, door.address, counted, tmp_path)()
        assert counted.connections > 0
        assert counted.bytes > 0 or not attack.data
        with contextlib.closing(Load(door.address, headers(EXT_AUTHZ), connections=1)) as load:
            checked(load.closed(Questions([(ENVOY_QUESTION, *ALLOW)]), 5, 1), name)
