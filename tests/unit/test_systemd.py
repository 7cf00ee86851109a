"""What systemd is told and what it is given: sd_notify messages, and units that it accepts and finds hardened."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from sidecar import config_file
from sidecar.cli import main
from sidecar.config import Config
from sidecar.errors import ConfigError
from sidecar.notify import ServiceManager
from sidecar.systemd_units import units

TIMEOUT_S = 20
FILE = """
identity: {{workload_api: "unix:///run/spire/agent.sock"}}
listeners:
  listener: {listener}
  ext_authz: {{address: "{address}"}}
  agents:
    - {{socket: /run/remit/a/sock, spiffe_id: "spiffe://corp.example/agents/a", group: clients}}
    - {{socket: /run/remit/b/sock, spiffe_id: "spiffe://corp.example/agents/b"}}
peps: ["spiffe://corp.example/envoy"]
policy: {{policies: [/etc/remit/policies], store: /var/lib/remit/generations}}
journal: {{dir: {journal}}}
control: {{socket: /run/remit/control/sock, group: operators}}
"""


def config(listener: str = "native", address: str = "127.0.0.1:9191", journal: str = "/srv/remit/journal") -> Config:
    return config_file.parse(FILE.format(listener=listener, address=address, journal=journal), "/etc/remit/remit.yaml")


def made(given: Config, user: str = "daemon") -> dict[str, str]:
    return units(given, program=["/usr/bin/env"], name="remit", user=user)


def values(text: str, directive: str) -> list[str]:
    return re.findall(rf"^{directive}=(.*)$", text, re.M)


# ---------------------------------------------------------------- sd_notify


@pytest.fixture
def manager() -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A service manager's end of the socket, and the environment that names it."""
    with tempfile.TemporaryDirectory(prefix="nt") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(f"{folder}/notify")
        made.settimeout(TIMEOUT_S)
        yield made, {"NOTIFY_SOCKET": f"{folder}/notify"}


def received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def nothing_waits(manager: socket.socket) -> bool:
    manager.setblocking(False)
    try:
        manager.recv(4096)
    except BlockingIOError:
        return True
    finally:
        manager.settimeout(TIMEOUT_S)
    return False


def test_ready_is_told_once_and_only_when_calls_are_decided(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """READY=1 comes with the first readiness; before and after it the status says what is missing."""
    there, environ = manager
    ours = ServiceManager(environ)
    ours.put_ready("not_ready.svid")
    assert received(there) == ["STATUS=not ready: not_ready.svid"]
    ours.put_ready("")
    assert received(there) == ["READY=1", "STATUS=ready"]
    ours.put_ready("not_ready.journal")
    ours.put_ready("")
    assert [received(there) for _ in range(2)] == [["STATUS=not ready: not_ready.journal"], ["STATUS=ready"]]


def test_a_reload_is_told_with_its_time_and_its_end(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """RELOADING=1 carries MONOTONIC_USEC, READY=1 ends it; what is reloaded before the start is over is not told."""
    there, environ = manager
    ours = ServiceManager(environ)
    ours.put_reloading(True)
    ours.put_reloading(False)
    assert nothing_waits(there)
    ours.put_ready("")
    assert received(there)[0] == "READY=1"
    ours.put_reloading(True)
    first, second = received(there)
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    ours.put_reloading(False)
    assert received(there) == ["READY=1"]
    ours.put_stopping()
    assert received(there)[0] == "STOPPING=1"


def test_an_abstract_socket_is_reached() -> None:
    """A name that begins with @ is one of the abstract namespace (sd_notify(3))."""
    name = f"remit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(f"\0{name}")
        there.settimeout(TIMEOUT_S)
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).put_ready("")
        assert received(there)[0] == "READY=1"


def test_pings_stop_when_the_watcher_hangs(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """WATCHDOG=1 is sent while the watcher's count grows; a count that stands still is told to nobody."""
    there, environ = manager
    ended, asked = threading.Event(), threading.Semaphore(0)
    counts = iter([1, 2, 2, 2])

    def looks() -> int:
        asked.release()
        return next(counts, 2)

    ours = ServiceManager({**environ, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
    assert ours.watchdog_s == 0.02
    watcher = threading.Thread(target=ours.watch, args=(looks, ended))
    watcher.start()
    try:
        assert [received(there) for _ in range(2)] == [["WATCHDOG=1"]] * 2
        for _ in range(4):
            assert asked.acquire(timeout=TIMEOUT_S)
    finally:
        ended.set()
        watcher.join()
    assert nothing_waits(there)


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("soon", ""), ("20000", "1")])
def test_a_watchdog_that_is_not_ours_is_not_answered(usec: str, pid: str) -> None:
    """The variables may be meant for the process that started us (sd_watchdog_enabled(3))."""
    environ = {"NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert ServiceManager(environ).watchdog_s == 0


def test_the_variables_do_not_reach_our_children(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """A child that inherited them could speak for us."""
    environ = {**manager[1], "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "PATH": "/usr/bin"}
    ServiceManager(environ)
    assert environ == {"PATH": "/usr/bin"}


def test_without_a_manager_nothing_is_sent_and_a_dead_one_stops_nothing() -> None:
    """An operator's terminal has no manager; one that went away must not end the sidecar."""
    for environ in ({}, {"NOTIFY_SOCKET": "/nonexistent/notify"}):
        ours = ServiceManager(environ)
        ours.put_ready("")
        ours.put_stopping()


# ---------------------------------------------------------------- units


def test_each_door_is_a_socket_named_by_its_field() -> None:
    """The descriptor's name is the configuration's, so no door is taken for another."""
    found = made(config())
    names = {values(text, "FileDescriptorName")[0]: text for file, text in found.items() if file.endswith(".socket")}
    assert list(names) == [
        "listeners.ext_authz.address",
        "listeners.agents[0].socket",
        "listeners.agents[1].socket",
    ]
    assert values(names["listeners.ext_authz.address"], "ListenStream") == ["127.0.0.1:9191"]
    assert values(found["remit.service"], "Sockets") == ["remit-0.socket remit-1.socket remit-2.socket"]


def test_a_unix_door_is_made_for_its_group() -> None:
    """UD-04: folder 0750 and socket 0660, owned by the service's user and the configured group."""
    text = made(config())["remit-1.socket"]
    assert values(text, "ExecStartPre") == ["/usr/bin/install -d -m 0750 -o daemon -g clients /run/remit/a"]
    assert (values(text, "SocketMode"), values(text, "SocketGroup")) == (["0660"], ["clients"])
    assert values(made(config())["remit-2.socket"], "SocketGroup") == ["daemon"]


def test_the_service_may_write_only_where_it_must() -> None:
    """Journal, generations and the control socket's folder; systemd makes what it manages itself."""
    text = made(config())["remit.service"]
    assert values(text, "ProtectSystem") == ["strict"]
    assert values(text, "ReadWritePaths") == ["/srv/remit/journal"]
    assert values(text, "StateDirectory") == ["remit/generations"]
    assert values(text, "RuntimeDirectory") == ["remit/control"]
    assert values(text, "SupplementaryGroups") == ["operators"]
    assert (values(text, "PrivateTmp"), values(text, "ProtectHome")) == (["yes"], ["yes"])
    moved = made(config(journal="/home/remit/journal"))["remit.service"]
    assert values(moved, "ProtectHome") == ["read-only"]


def test_the_authority_has_its_places_and_its_network() -> None:
    """Its store is nobody else's, its sockets are made by the service, and an orchestrator may be elsewhere."""
    section = (
        "authority: {store: /var/lib/remit/authority, people: [{id: a}], address: %s, "
        "sockets: [{socket: /run/remit/asks/sock, person: a, group: people}]}"
    )
    text = FILE.format(listener="native", address="127.0.0.1:9191", journal="/srv/remit/journal")
    near, far = (
        made(config_file.parse(f"{text}\n{section % address}\n", "/etc/remit/remit.yaml"))["remit.service"]
        for address in ("127.0.0.1:9393", "192.0.2.1:9393")
    )
    assert values(near, "StateDirectory") == ["remit/generations", "remit/authority"]
    assert set(values(near, "StateDirectoryMode")) == {"0700"}
    assert values(near, "RuntimeDirectory") == ["remit/control", "remit/asks"]
    assert set(values(near, "RuntimeDirectoryMode")) == {"0750"}
    assert values(near, "SupplementaryGroups") == ["operators people"]
    assert values(near, "IPAddressAllow") == ["localhost"]
    assert values(far, "IPAddressDeny") == []


def test_only_loopback_is_reached_when_nothing_else_is_configured() -> None:
    """An address of another machine opens the network, none does not."""
    assert values(made(config())["remit.service"], "IPAddressAllow") == ["localhost"]
    assert values(made(config(address="192.0.2.1:9191"))["remit.service"], "IPAddressDeny") == []


def test_grpcio_binds_for_itself() -> None:
    """grpcio takes no socket from outside: no socket units, and the service makes the folders."""
    found = made(config(listener="grpcio"))
    assert list(found) == ["remit.service"]
    assert set(values(found["remit.service"], "RuntimeDirectory")) == {"remit/a", "remit/b", "remit/control"}
    assert values(found["remit.service"], "SupplementaryGroups") == ["clients operators"]


def test_the_access_log_has_its_place() -> None:
    """Envoy's access logs come over a socket that the service makes itself."""
    text = FILE.format(listener="native", address="127.0.0.1:9191", journal="/srv/remit/journal")
    door = '  access_log: {socket: /run/remit/log/sock, spiffe_id: "spiffe://corp.example/envoy", group: envoys}'
    text = text.replace("  agents:", f"{door}\n  agents:")
    found = made(config_file.parse(text, "/etc/remit/remit.yaml"))
    assert len(found) == 4
    assert values(found["remit.service"], "RuntimeDirectory") == ["remit/control", "remit/log"]
    assert values(found["remit.service"], "SupplementaryGroups") == ["envoys operators"]


@pytest.mark.parametrize("user", ["a b", "remit\nExecStart=/bin/sh", "%n", ""])
def test_a_name_that_would_be_more_than_a_name_is_refused(user: str) -> None:
    """Text of the command line cannot add a directive."""
    with pytest.raises(ConfigError, match="cannot stand in a unit"):
        made(config(), user)


def test_a_path_is_data() -> None:
    """`%` is no specifier, a space ends no word, and a line break is refused."""
    text = made(config(journal='"/srv/a b%n"'))["remit.service"]
    assert values(text, "ReadWritePaths") == ['"/srv/a b%%n"']
    with pytest.raises(ConfigError, match="cannot stand in a unit"):
        made(config(journal='"/srv/a\\nExecStart=/bin/sh"'))


def test_a_port_that_the_kernel_chooses_cannot_be_a_socket_unit() -> None:
    """The message names the field."""
    with pytest.raises(ConfigError, match=r"`listeners.ext_authz.address`: systemd cannot choose a port"):
        made(config(address="127.0.0.1:0"))


def analyze(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *arguments]
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("listener", ["native", "grpcio"])
def test_systemd_accepts_the_units_and_finds_them_hardened(tmp_path: pathlib.Path, listener: str) -> None:
    """`systemd-analyze verify` has nothing to say; `security` rates the exposure below 2.5 of 10."""
    (tmp_path / "remit.yaml").write_text(FILE.format(listener=listener, address="127.0.0.1:9191", journal="/srv/j"))
    arguments = ["--config", str(tmp_path / "remit.yaml"), "--dir", str(tmp_path), "--user", "daemon"]
    result = CliRunner().invoke(main, ["systemd", *arguments])
    assert result.exit_code == 0, result.output
    files = sorted(str(path) for path in tmp_path.glob("remit*.s*"))
    assert len(files) == (4 if listener == "native" else 1)
    verified = analyze(tmp_path, "verify", *files)
    assert verified.returncode == 0, verified.stderr
    ours = [line for line in verified.stderr.splitlines() if str(tmp_path) in line]
    assert ours == []
    rated = analyze(tmp_path, "security", "--offline=yes", "--threshold=25", f"{tmp_path}/remit.service")
    assert rated.returncode == 0, rated.stdout[-500:] + rated.stderr
