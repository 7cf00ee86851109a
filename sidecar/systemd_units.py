"""systemd units for one configuration: a hardened service, and a socket unit per door that systemd opens for it.

A door's descriptor is named by the field of the configuration that asks for it (`FileDescriptorName=`), as in
`listeners.agents[0].socket`, so that it cannot be taken for another door.
"""

import ipaddress
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from sidecar.config import Config, host_port
from sidecar.config import sockets as sockets_of
from sidecar.errors import ConfigError

UNIT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
WATCHDOG_S = 15  # far longer than the watcher's pause (sidecar/runtime.py) or the last moments of a stop
STOP_SLACK_S = 15  # for what a stop does beside letting calls end: the last records, the journal
BACKLOG = 1024
DESCRIPTORS = 65536
MANAGED = (("/run/", "RuntimeDirectory"), ("/var/lib/", "StateDirectory"), ("/var/log/", "LogsDirectory"))
HOMES = ("/home/", "/root/", "/run/user/")
TEMPORARY = ("/tmp/", "/var/tmp/")

# What a sidecar never needs (systemd.exec(5)). PrivateUsers= is not here: it would hide who calls on a Unix socket.
HARDENING = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectProc=invisible
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service seccomp
SystemCallFilter=~@keyring @setuid process_vm_readv process_vm_writev
SystemCallErrorNumber=EPERM
UMask=0027
LimitCORE=0
LimitMEMLOCK=infinity
"""


class Door(NamedTuple):
    """One door as a socket unit: the field that asks for it, where it listens, and who may enter a Unix socket."""

    field: str
    listen: str
    group: str


def units(config: Config, *, program: list[str], name: str, user: str) -> dict[str, str]:
    """{file name: text} of the service `name` and its sockets. ConfigError when a path or name cannot stand in a unit.

    `program` starts `remit`, with absolute path; `user` exists already and runs it.
    """
    for what, text in (("--name", name), ("--user", user)):
        if not UNIT_NAME.fullmatch(text):
            raise ConfigError(f"`{what}`: `{text}` cannot stand in a unit; use letters, digits, `_`, `.` and `-`")
    # grpcio cannot take a socket that somebody else opened.
    doors = list(_doors(config)) if config.listeners.listener == "native" else []
    made = {f"{name}-{number}.socket": _socket_unit(door, name, user) for number, door in enumerate(doors)}
    opened = frozenset(door.field for door in doors)
    return {f"{name}.service": _service_unit(config, program, user, list(made), opened), **made}


def _doors(config: Config) -> Iterator[Door]:
    """The doors that calls wait at; other sockets (control, authority, access log, metrics) are the service's own."""
    listeners = config.listeners
    if listeners.ext_authz is not None:
        door = listeners.ext_authz
        field = f"listeners.ext_authz.{'socket' if door.socket else 'address'}"
        yield Door(field, door.socket or _address(field, door.address), door.group)
    for i, agent in enumerate(listeners.agents):
        yield Door(f"listeners.agents[{i}].socket", agent.socket, agent.group)
    if listeners.check_address:
        field = "listeners.check_address"
        yield Door(field, _address(field, listeners.check_address), "")


def _address(field: str, text: str) -> str:
    where = host_port(text)
    assert where is not None, "the configuration was checked"
    if where.port == 0:
        raise ConfigError(f"`{field}`: systemd cannot choose a port; name one instead of 0")
    # systemd resolves no names.
    return text.replace("localhost", "127.0.0.1") if where.host == "localhost" else text


def _socket_unit(door: Door, name: str, user: str) -> str:
    lines = ["[Unit]", f"Description=Remit door {door.field}", "", "[Socket]", f"ListenStream={_quoted(door.listen)}"]
    if door.listen.startswith("/"):
        group, folder = door.group or user, _quoted(os.path.dirname(door.listen))
        # The folder names who may enter: it must be there, with its group, before the socket is.
        make = f"/usr/bin/install -d -m 0750 -o {user} -g {_word('group', group)} {folder}"
        lines += [f"ExecStartPre={make}", f"SocketUser={user}", f"SocketGroup={group}", "SocketMode=0660"]
        lines += ["DirectoryMode=0755", "RemoveOnStop=yes"]
    else:
        lines += ["NoDelay=yes"]
    lines += [f"FileDescriptorName={door.field}", f"Service={name}.service", f"Backlog={BACKLOG}"]
    return "\n".join([*lines, "", "[Install]", "WantedBy=sockets.target", ""])


def _service_unit(config: Config, program: list[str], user: str, sockets: list[str], opened: frozenset[str]) -> str:
    start = " ".join(_quoted(part) for part in program)
    file = _quoted(config.file)
    unit = ["[Unit]", "Description=Remit, runtime authority for AI agents", "Wants=network-online.target"]
    unit += ["After=network-online.target"]
    unit += [f"{order}={' '.join(sockets)}" for order in ("Requires", "After") if sockets]
    service = ["[Service]", "Type=notify", "NotifyAccess=main"]
    service += [f"ExecStart={start} serve --config {file}", f"ExecReload={start} reload --config {file}"]
    service += [f"Sockets={' '.join(sockets)}"] if sockets else []
    service += [f"User={user}"]
    if groups := _groups(config, opened):
        service.append(f"SupplementaryGroups={' '.join(groups)}")
    # Without an SVID it waits and answers ERROR; `systemctl status` shows for what.
    service += ["TimeoutStartSec=infinity", f"TimeoutStopSec={config.limits.grace_s + STOP_SLACK_S}"]
    service += [f"WatchdogSec={WATCHDOG_S}", "Restart=on-failure", "RestartSec=1", "KillMode=mixed"]
    service += [f"LimitNOFILE={DESCRIPTORS}", *_places(config, program, opened)]
    if _stays_here(config):
        service += ["IPAddressDeny=any", "IPAddressAllow=localhost"]
    return "\n".join([*unit, "", *service, HARDENING, "[Install]", "WantedBy=multi-user.target", ""])


def _groups(config: Config, opened: frozenset[str]) -> list[str]:
    """Groups that the service itself gives a socket to, which only a member may do."""
    named = {"control.group": config.control.group}
    named |= {f"listeners.agents[{i}].socket": agent.group for i, agent in enumerate(config.listeners.agents)}
    named |= {f"{name}.socket": door.group for name, door in config.listeners.envoy_doors}
    if config.authority is not None:
        named |= {f"authority.sockets[{i}].socket": one.group for i, one in enumerate(config.authority.sockets)}
    return sorted({_word(field, group) for field, group in named.items() if group and field not in opened})


def _places(config: Config, program: list[str], opened: frozenset[str]) -> Iterator[str]:
    """Where the service may write: made by systemd where it manages the place, else only opened."""
    own = [config.control.socket, *(path for field, path in sockets_of(config) if field not in opened)]
    writable = [config.journal.dir, config.policy.store, *map(os.path.dirname, own)]
    writable += [config.authority.store] if config.authority is not None else []
    for path in dict.fromkeys(writable):
        root, directive = next((m for m in MANAGED if path.startswith(m[0])), ("", "ReadWritePaths"))
        yield f"{directive}={_quoted(path.removeprefix(root))}"
        if root:
            # What is stored is nobody else's; a socket's folder has a group that may enter.
            yield f"{directive}Mode={'0750' if directive == 'RuntimeDirectory' else '0700'}"
    read = [
        *program,
        config.file,
        *config.policy.policies,
        config.policy.schema,
        config.policy.entities,
        config.policy.links,
    ]
    read += [config.workload_api.removeprefix("unix:").replace("//", "/", 1), *writable]
    read += [config.upstream.socket] if config.upstream is not None else []
    yield f"ProtectHome={'read-only' if any(path.startswith(HOMES) for path in read) else 'yes'}"
    yield f"PrivateTmp={'no' if any(path.startswith(TEMPORARY) for path in read) else 'yes'}"


def _stays_here(config: Config) -> bool:
    """Whether every TCP address of the configuration is one of this machine's loopback."""
    listeners, up, authority = config.listeners, config.upstream, config.authority
    used = [listeners.check_address, config.metrics.address, *(door.address for _, door in listeners.envoy_doors)]
    used += [up.address] if up is not None else []
    if authority is not None:
        used += [authority.address, authority.follow.address if authority.follow is not None else ""]
    return all(where is not None and _is_loopback(where.host) for where in map(host_port, filter(None, used)))


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _quoted(text: str) -> str:
    """Text as it stands in a unit: `%` doubled (specifiers), quoted where a space would end a word."""
    if not text.isprintable():
        raise ConfigError(f"`{text!r}` has characters that cannot stand in a unit; name another path")
    plain = text.replace("%", "%%")
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$") + '"'


def _word(what: str, text: str) -> str:
    if not UNIT_NAME.fullmatch(text):
        raise ConfigError(f"`{what}`: `{text}` cannot stand in a unit; use letters, digits, `_`, `.` and `-`")
    return text
