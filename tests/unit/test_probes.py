"""`remit doctor` tries libraries and kernel: what works is ok, what does harm unsafe, what cannot be tried unknown."""

import contextlib
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastpath.json_tree import JsonError
from sidecar import doctor
from sidecar.cli import main
from sidecar.cli.output import EXIT_NO
from sidecar.errors import PolicyError
from sidecar.probes import (
    Probe,
    State,
    Verdict,
    disk,
    http2,
    kernel,
    ok,
    peers,
    run,
    texts,
    tls,
    unknown,
    unsafe,
    versions,
)
from tests.fix_native import native_server

OK, UNSAFE, UNKNOWN = State.OK, State.UNSAFE, State.UNKNOWN


# ---------------------------------------------------------------- the real ones


@pytest.mark.parametrize(
    "probe", [*texts.probes(), *http2.probes(), *tls.probes(), *peers.probes()], ids=lambda p: p.what
)
def test_what_is_installed_here_is_safe(probe: Probe) -> None:
    """The versions that the lock file and the Debian packages give do what Remit relies on."""
    assert probe.look().state is OK


def test_a_local_disk_is_safe(tmp_path: Path) -> None:
    """Folders that are not there yet are judged by the one above; nothing is left behind."""
    found = dict(run(disk.probes(str(tmp_path / "a" / "journal"), str(tmp_path / "b"))))
    kinds = {what: verdict for what, verdict in found.items() if what.endswith("file system")}
    assert {verdict.state for verdict in kinds.values()} <= {OK, UNKNOWN}  # a tmpfs forgets, and says so
    assert {verdict.state for what, verdict in found.items() if what not in kinds} == {OK}
    assert list(tmp_path.iterdir()) == []


def test_every_library_is_named_with_its_version() -> None:
    """SC-02: read from what is loaded, not from what was once installed."""
    for found in (versions.native(), versions.packages()):
        assert all(version[0].isdigit() or version.startswith("OpenSSL 3") for version in found.values()), found
    assert versions.kernel().startswith("Linux ")


# ---------------------------------------------------------------- nghttp2


def permissive_door(**counts: int) -> http2.Door:
    """A server that takes whatever comes, answers the last ping, and claims this work."""

    @contextlib.contextmanager
    def door() -> Iterator[tuple[str, Callable[[], http2.Counters]]]:
        with tempfile.TemporaryDirectory(prefix="pb") as folder, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{folder}/sock")
            listening.listen()
            thread = threading.Thread(target=_swallow, args=(listening,))
            thread.start()
            work = {"streams": 0, "calls": 0, "resets_out": 0, "frames_in": 0, "headers_in": 0}
            yield f"{folder}/sock", lambda: work | counts
            thread.join()

    return door


def _swallow(listening: socket.socket) -> None:
    made, _ = listening.accept()
    with made:
        heard = b""
        while http2.LAST_WORD not in heard:
            heard = heard[-16:] + made.recv(65536)
        made.sendall(b"\0\0\x08\x06\x01\0\0\0\0" + http2.LAST_WORD)


@pytest.mark.parametrize(
    ("probe", "work"),
    [
        (http2.rapid_reset, {"calls": 2000}),
        (http2.provoked_resets, {"resets_out": 1000}),
        (http2.endless_headers, {}),
        (http2.repeated_headers, {"headers_in": 12_000}),
        (http2.illegal_headers, {"calls": 1}),
        (http2.illegal_headers, {}),
    ],
)
def test_a_server_that_swallows_an_attack_is_unsafe(
    probe: Callable[[http2.Door], Verdict], work: dict[str, int]
) -> None:
    """The connection lives on or the work was done: the verdict says which, and what to do."""
    verdict = probe(permissive_door(**work))
    assert verdict.state is UNSAFE
    assert "install a newer libnghttp2" in verdict.advice


def test_without_our_accounting_nghttp2_is_unsafe() -> None:
    """The probe finds what the account stands against: nghttp2 1.52 itself has no bound on headers."""

    @contextlib.contextmanager
    def door() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        with native_server(headers=100_000, header_bytes=1 << 24) as server:
            yield server.path, server.listener.counters

    assert http2.repeated_headers(door).state is UNSAFE


# ---------------------------------------------------------------- OpenSSL and grpcio


@pytest.mark.parametrize("probe", [tls.forged_chain, tls.expired_chain, tls.weak_key])
def test_a_verifier_that_takes_everything_is_unsafe(probe: Callable[[tls.Stage, tls.Verify], Verdict]) -> None:
    """Forged, expired and weak chains each show."""
    stage = tls.Stage()
    good = list(stage.ours.issue(tls.AGENT).chain_der)
    verdict = probe(stage, lambda _: stage.verify(good))
    assert verdict.state is UNSAFE
    assert "OpenSSL" in verdict.advice


def test_a_verifier_that_takes_nothing_is_unknown() -> None:
    """It fails closed, so it is not unsafe; but nobody gets in."""
    stage = tls.Stage()
    expired = list(stage.ours.issue(tls.AGENT, now_s=1_600_000_000).chain_der)
    assert tls.forged_chain(stage, lambda _: stage.verify(expired)).state is UNKNOWN


class Handshake:
    """A client's view of a door that hands out what it should not."""

    def __init__(self, version: str = "TLSv1.3", protocol: str = "h2", ticket: bool = False) -> None:
        self._version, self._protocol = version, protocol
        self.session = type("Session", (), {"has_ticket": ticket})()

    def __enter__(self) -> "Handshake":
        return self

    def __exit__(self, *_: object) -> None: ...

    def version(self) -> str:
        return self._version

    def selected_alpn_protocol(self) -> str:
        return self._protocol

    def recv(self, _: int) -> bytes:
        return b"x"


@pytest.mark.parametrize(
    ("door", "found"),
    [
        (Handshake(version="TLSv1.2"), "gets TLSv1.2 and h2"),
        (Handshake(protocol=""), "gets TLSv1.3 and no protocol"),
        (Handshake(ticket=True), "tickets are given out"),
        (Handshake(), "TLS 1.1 is taken"),
    ],
)
def test_a_door_that_gives_too_much_is_unsafe(door: Handshake, found: str) -> None:
    """Old versions, no ALPN, tickets."""
    verdict = tls.handshake(tls.Stage(), lambda *_: door)  # type: ignore[arg-type,return-value]
    assert verdict.state is UNSAFE
    assert found in verdict.found


def test_a_door_that_takes_nobody_s_certificate_is_unsafe() -> None:
    """ID-01: a client that presents none must not hear anything but a refusal."""

    def connect(_: int, context: ssl.SSLContext) -> Any:
        if context.maximum_version == ssl.TLSVersion.TLSv1_1:
            raise ssl.SSLError("no protocols available")
        return Handshake()

    verdict = tls.handshake(tls.Stage(), connect)
    assert verdict.state is UNSAFE
    assert "without a certificate" in verdict.found


@pytest.mark.parametrize(
    ("said", "refusals", "wanted"),
    [
        ([], [], UNKNOWN),
        ([tls.AGENT], ["identity.chain"], UNKNOWN),
        ([tls.AGENT], [""], OK),
        ([tls.AGENT, tls.AGENT], ["", ""], UNSAFE),
        ([tls.AGENT, tls.AGENT], ["", "identity.chain"], OK),
    ],
)
def test_grpcio_is_judged_by_what_our_verifier_makes_of_it(said: list[str], refusals: list[str], wanted: State) -> None:
    """Its own word counts for nothing; a chain that it does not hand on keeps everybody out."""
    assert peers.judged(said, refusals).state is wanted


# ---------------------------------------------------------------- disk, texts, kernel


@pytest.mark.parametrize(("magic", "wanted"), [(0x6969, UNSAFE), (0x01021994, UNKNOWN), (0xEF53, OK)])
def test_the_kind_of_file_system_is_judged(tmp_path: Path, magic: int, wanted: State) -> None:
    """DB-17: a remote one is unsafe, one that forgets is told, a local one is fine."""
    assert disk.kind(str(tmp_path), lambda _: magic).state is wanted


def test_fallocate_that_keeps_no_room_is_unsafe(tmp_path: Path) -> None:
    """A sparse segment on a full disk would end in SIGBUS."""
    assert disk.mapped(str(tmp_path), lambda handle, _, size: os.ftruncate(handle, size)).state is UNSAFE


def test_rename_that_does_not_replace_is_unsafe(tmp_path: Path) -> None:
    """The commit of a publish is a rename."""
    assert disk.renamed(str(tmp_path), lambda *_: None).state is UNSAFE


@pytest.mark.parametrize(("fault", "wanted"), [("", UNSAFE), ("always", UNKNOWN)])
def test_a_check_of_tables_that_says_one_thing_only_is_found(tmp_path: Path, fault: str, wanted: State) -> None:
    """DB-15: it must tell a damaged table from a whole one."""
    assert disk.damaged(str(tmp_path), lambda *_: fault).state is wanted


@pytest.mark.parametrize("probe", [texts.duplicate_keys, texts.nesting])
def test_a_reader_that_takes_everything_is_unsafe(probe: Callable[[texts.Read], Verdict]) -> None:
    """Two equal keys, and thousands of nested lists."""
    assert probe(lambda _: (JsonError.JSON_OK, b"{}")).state is UNSAFE


def test_a_kernel_without_what_is_needed_is_unsafe(tmp_path: Path) -> None:
    """Another user's name on a socket, no seccomp action, too few descriptors."""
    assert kernel.peer_credentials(lambda: 4242).state is UNSAFE
    (tmp_path / "actions").write_text("kill_process errno allow\n")
    assert kernel.seccomp_actions(tmp_path / "actions").state is UNSAFE
    assert kernel.seccomp_actions(tmp_path / "none").state is UNKNOWN
    few = kernel.descriptors(4352, lambda _: (1024, 4096))
    assert few.state is UNSAFE
    assert "LimitNOFILE=4352" in few.advice


def test_a_clock_that_goes_back_is_unsafe(tmp_path: Path) -> None:
    """SY-02: monotonic must be; a day in the past lets SVIDs live on; a slow source and no NTP are told."""
    readings = iter([5, 6, 4])
    assert kernel.monotonic(lambda: next(readings)).state is UNSAFE
    assert kernel.time_of_day(lambda: 0.0).state is UNSAFE
    late = 2_000_000_000.0
    told = [kernel.time_of_day(lambda: late, lambda: how).state for how in (True, False, None)]  # noqa: B023
    assert told == [OK, UNKNOWN, UNKNOWN]
    (tmp_path / "clock").write_text("acpi_pm\n")
    assert kernel.clock_source(tmp_path / "clock").state is UNKNOWN


# ---------------------------------------------------------------- the report


def failing(error: Exception) -> Callable[[], Verdict]:
    def look() -> Verdict:
        raise error

    return look


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied"), "could not be tried: permission denied"),
        (PolicyError("no room"), "could not be tried: no room"),
        (ZeroDivisionError("odd"), "could not be tried: ZeroDivisionError: odd"),
    ],
)
def test_a_probe_that_fails_is_unknown_and_stops_no_other(error: Exception, told: str) -> None:
    """A broken library may raise anything; what was found is reported, with a next step."""
    (_, first), (_, second) = run([Probe("bad", failing(error)), Probe("good", lambda: ok("fine"))])
    assert (first.state, first.found) == (UNKNOWN, told)
    assert first.advice
    assert second == ok("fine")


@pytest.mark.parametrize(
    ("verdict", "shown", "code"),
    [
        (ok("fine"), "ok", 0),
        (unsafe("takes everything", "install another"), "no", EXIT_NO),
        (unknown("cannot say", "ask again"), "?", 0),
    ],
)
def test_the_report_says_what_each_probe_found(
    verdict: Verdict, shown: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each with its next step; only what is unsafe changes the exit status, what is unknown is named."""
    monkeypatch.setattr(doctor, "probes_of", lambda _: [Probe("the probe", lambda: verdict)])
    result = CliRunner().invoke(main, ["doctor", "--libraries"])
    assert result.exit_code == code
    (line,) = [line for line in result.stdout.splitlines() if "the probe" in line]
    assert line.split()[2] == shown
    assert verdict.advice in line
    assert ("the probe" in result.stderr) == (shown != "ok")
