"""The configuration: one YAML file, one typed section per component, every field documented where it is defined.

An unknown key is refused with its path, and every problem of a file is reported at once. Relative paths are relative to
the file. `documentation()` gives all fields with unit, default and text; `remit doctor --print-config` prints them.
"""

import ipaddress
import os
import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec

from fastpath import spiffe_id
from sidecar.config_authority import AuthorityConfig, check_authority
from sidecar.config_mapping import MappingConfig
from sidecar.config_section import Section, doc
from sidecar.errors import IdentityError
from sidecar.policy.limits import PolicyLimits
from sidecar.policy.source import DELTA_EDITS

MIB = 1 << 20
BUDGET_MS = 50
HEADERS_MAX = 4096  # what the decoder takes at most (LINES_MAX of fastpath/lines.pyx)
ARENA_MIN = MIB  # holds the largest set of headers that is admitted, with the longest path
MAX_AGE_OFF = 0
ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"  # SPIFFE Workload Endpoint section 4


Path = Annotated[str, msgspec.Meta(extra={"path": True})]


class Identity(Section, frozen=True, kw_only=True):
    """Where the sidecar's own X509-SVID and the trust bundles come from."""

    workload_api: Annotated[
        str,
        doc(
            "socket of the SPIFFE Workload API; empty: the environment variable SPIFFE_ENDPOINT_SOCKET",
            "unix:///path",
        ),
    ] = ""
    spiffe_id: Annotated[
        str, doc("which SVID to use when the Workload API gives several; empty: the first", "SPIFFE ID")
    ] = ""


class ExtAuthz(Section, frozen=True, kw_only=True):
    """The door for Envoy: TCP with mutual TLS, or a Unix socket that belongs to one Envoy."""

    address: Annotated[
        str, doc("listen on TCP with mutual TLS; callers must be in `peps`; port 0: the kernel chooses", "host:port")
    ] = ""
    socket: Annotated[Path, doc("listen on a Unix socket instead; needs `spiffe_id`", "path")] = ""
    spiffe_id: Annotated[str, doc("the Envoy that the Unix socket belongs to", "SPIFFE ID")] = ""
    group: Annotated[str, doc("group that may enter the socket's folder; empty: our own", "group name")] = ""


class AgentSocket(Section, frozen=True, kw_only=True):
    """A Unix socket that belongs to one agent: whoever may enter its folder is that agent."""

    socket: Annotated[Path, doc("path of the socket; its folder gets mode 0750", "path")]
    spiffe_id: Annotated[str, doc("the agent that calls here; nothing in a message can name another", "SPIFFE ID")]
    group: Annotated[str, doc("group that may enter the folder; empty: our own", "group name")] = ""


class Listeners(Section, frozen=True, kw_only=True):
    """The doors of the data plane."""

    listener: Annotated[
        Literal["native", "grpcio"],
        doc("who serves the doors: our own HTTP/2 without Python in a call, or grpcio"),
    ] = "native"
    threads: Annotated[
        int,
        doc("native: threads per door, which share its socket; a connection stays with one", "threads", ge=1, le=64),
    ] = 1
    ext_authz: Annotated[ExtAuthz | None, doc("the door for Envoy; absent: none")] = None
    access_log: Annotated[
        ExtAuthz | None, doc("the door for Envoy's access logs, which settle what calls took; absent: none")
    ] = None
    agents: Annotated[list[AgentSocket], doc("one Unix socket per agent for its own checks")] = []
    check_address: Annotated[str, doc("TCP with mutual TLS for agents' own checks; empty: none", "host:port")] = ""

    @property
    def envoy_doors(self) -> list[tuple[str, ExtAuthz]]:
        """The doors that Envoys call, by the field that names them."""
        doors = {"listeners.ext_authz": self.ext_authz, "listeners.access_log": self.access_log}
        return [(name, door) for name, door in doors.items() if door is not None]


class Limits(Section, frozen=True, kw_only=True):
    """Bounds of the data plane (defaults: DoS review of HTTP/2 and gRPC)."""

    budget_ms: Annotated[
        int, doc("a decision later than this after its bytes arrived is ERROR `late`", "ms", ge=1, le=10_000)
    ] = BUDGET_MS
    ext_authz_bytes: Annotated[int, doc("largest CheckRequest of Envoy", "bytes", ge=1024, le=16 * MIB)] = MIB
    check_bytes: Annotated[int, doc("largest message of an agent's own check", "bytes", ge=1024, le=4 * MIB)] = (
        256 * 1024
    )
    arena_bytes: Annotated[
        int, doc("working memory of one call; a call that needs more is refused", "bytes", ge=ARENA_MIN, le=64 * MIB)
    ] = 4 * MIB
    headers: Annotated[int, doc("header lines of one call", "lines", ge=1, le=HEADERS_MAX)] = 1024
    path_bytes: Annotated[int, doc("longest path with query", "bytes", ge=64, le=64 * 1024)] = 8192
    strict_path: Annotated[bool, doc("deny when the raw path differs from its canonical form")] = True
    mcp_status: Annotated[Literal[200, 403], doc("HTTP status of a denied MCP call", "HTTP status")] = 403
    identity_headers: Annotated[bool, doc("set x-remit-agent and x-remit-evaluation-id upstream on allow")] = True
    workers: Annotated[int, doc("grpcio: threads per door", "threads", ge=1, le=64)] = 4
    concurrent_calls: Annotated[
        int, doc("grpcio: calls in progress per door; more are refused", "calls", ge=1, le=65_536)
    ] = 1024
    connections: Annotated[
        int, doc("native: connections per door; more are closed at once", "connections", ge=1, le=1 << 20)
    ] = 4096
    connections_per_peer: Annotated[
        int,
        doc("native: of these, by one SPIFFE ID or, at a Unix socket, one user", "connections", ge=1, le=1 << 20),
    ] = 256
    handshakes: Annotated[
        int,
        doc(
            "native: connections of a mutual TLS door that have shown no credential yet; the oldest makes room",
            "connections",
            ge=1,
            le=1 << 20,
        ),
    ] = 2048
    handshakes_per_address: Annotated[
        int,
        doc("native: of these, from one IPv4 address or IPv6 network of 64 bits", "connections", ge=1, le=1 << 20),
    ] = 512
    concurrent_streams: Annotated[int, doc("streams per connection", "streams", ge=1, le=4096)] = 256
    metadata_bytes: Annotated[int, doc("header block of one call", "bytes", ge=1024, le=64 * 1024)] = 16 * 1024
    metadata_lines: Annotated[int, doc("native: header lines of one call", "lines", ge=8, le=1024)] = 64
    stream_ms: Annotated[
        int,
        doc("native: a call must have arrived and its answer been taken within this", "ms", ge=100, le=600_000),
    ] = 10_000
    deadline_ms: Annotated[
        int, doc("native: a call that names no deadline must have arrived within this", "ms", ge=1, le=600_000)
    ] = 1000
    held_bytes: Annotated[
        int,
        doc("native: requests and answers held for one connection", "bytes", ge=64 * 1024, le=1 << 30),
    ] = 4 * MIB
    door_held_bytes: Annotated[
        int, doc("native: requests and answers held for one door", "bytes", ge=MIB, le=1 << 36)
    ] = 256 * MIB
    slow_calls: Annotated[
        int,
        doc("native: open calls per door that Python answers (health Watch); more are ERROR", "calls", ge=1, le=65_536),
    ] = 1024
    slow_calls_per_peer: Annotated[
        int,
        doc("native: of these, of one SPIFFE ID or, at a Unix socket, one user", "calls", ge=1, le=65_536),
    ] = 128
    watch_s: Annotated[
        int, doc("native: a health Watch ends after this, and its caller asks again", "s", ge=1, le=86_400)
    ] = 600
    check_streams: Annotated[
        int, doc("grpcio: open CheckStreams per door; each takes two threads", "streams", ge=1, le=4096)
    ] = 64
    check_streams_per_peer: Annotated[
        int,
        doc("native: open CheckStreams of one SPIFFE ID or, at a Unix socket, one user", "streams", ge=1, le=65_536),
    ] = 64
    stream_questions: Annotated[
        int,
        doc(
            "answers of one CheckStream that wait to be taken before nothing more of it is read",
            "answers",
            ge=1,
            le=65_536,
        ),
    ] = 256
    stream_queue_bytes: Annotated[
        int,
        doc("native: the same in bytes", "bytes", ge=1024, le=16 * MIB),
    ] = 64 * 1024
    connection_age_s: Annotated[int, doc("a connection is closed after this, in good order", "s", ge=1, le=86_400)] = (
        600
    )
    connection_idle_s: Annotated[int, doc("an idle connection is closed after this", "s", ge=1, le=86_400)] = 300
    keepalive_s: Annotated[int, doc("a silent peer is pinged after this", "s", ge=1, le=86_400)] = 20
    keepalive_timeout_s: Annotated[int, doc("and closed when it does not answer within this", "s", ge=1, le=3600)] = 10
    grace_s: Annotated[
        int, doc("calls in progress may finish within this at SIGTERM or at connection age", "s", ge=0, le=600)
    ] = 30
    handshake_ms: Annotated[int, doc("TLS and HTTP/2 handshake", "ms", ge=100, le=60_000)] = 5000
    settings_ms: Annotated[int, doc("acknowledgement of our HTTP/2 SETTINGS", "ms", ge=100, le=60_000)] = 2000
    first_request_ms: Annotated[
        int,
        doc("native: a connection without a request is closed after this, in good order", "ms", ge=100, le=86_400_000),
    ] = 10_000


class Policy(Section, frozen=True, kw_only=True):
    """What is compiled into a generation, where it is stored and how it is evaluated."""

    policies: Annotated[list[Path], doc("Cedar files, or folders whose *.cedar files are read", "paths")]
    schema: Annotated[Path, doc("Cedar schema (text); empty: none, policies are not validated", "path")] = ""
    entities: Annotated[Path, doc("Cedar entities (JSON); empty: none", "path")] = ""
    links: Annotated[Path, doc("template links (JSON lines: id, template, slots); empty: none", "path")] = ""
    store: Annotated[Path, doc("folder of the compiled generations", "path")]
    evaluation: Annotated[
        Literal["strict", "cedar"],
        doc("strict: an error in a forbid whose scope matches denies; cedar: it is skipped, as Cedar says"),
    ] = "strict"
    allow_empty: Annotated[bool, doc("accept a source without any policy; it denies everything")] = False
    limits: Annotated[PolicyLimits, doc("caps on what is compiled")] = PolicyLimits()
    delta_edits: Annotated[
        int,
        doc(
            "edits (policies, links, entities) that cost the change; with more, files and edits are compiled together",
            "edits",
            ge=1,
            le=65_536,
        ),
    ] = DELTA_EDITS
    compile_s: Annotated[int, doc("the compiler is ended after this", "s", ge=1, le=3600)] = 120
    max_age_s: Annotated[
        int, doc("age of the last successful load after which policies are stale; 0: never", "s", ge=0, le=1 << 40)
    ] = MAX_AGE_OFF
    on_stale: Annotated[
        Literal["deny", "serve"], doc("what stale policies do: answer ERROR, or go on and only say so")
    ] = "deny"


class JournalSection(Section, frozen=True, kw_only=True):
    """The decision journal on disk."""

    dir: Annotated[Path, doc("folder of the segments; belongs to one sidecar", "path")]
    segment_bytes: Annotated[int, doc("size of one segment file", "bytes", ge=64 * 1024, le=1 << 30)] = 16 * MIB
    cap_bytes: Annotated[
        int, doc("all segments together; fronts take up to 16 MiB more", "bytes", ge=128 * 1024, le=1 << 50)
    ] = 2048 * MIB
    on_full: Annotated[
        Literal["deny", "drop_oldest"],
        doc("when the cap is reached: answer ERROR, or drop the oldest segment and record a gap"),
    ] = "deny"
    sync: Annotated[
        Literal["none", "interval", "each"],
        doc("when records reach the disk itself: as the kernel likes, every `sync_ms`, or before each answer"),
    ] = "interval"
    sync_ms: Annotated[
        int,
        doc(
            "a power cut may lose this much with sync: interval; a killed process loses nothing", "ms", ge=1, le=60_000
        ),
    ] = 100


class Upstream(Section, frozen=True, kw_only=True):
    """The collector that decisions are shipped to."""

    address: Annotated[str, doc("TCP with mutual TLS", "host:port")] = ""
    spiffe_id: Annotated[str, doc("the collector that must answer at `address`", "SPIFFE ID")] = ""
    socket: Annotated[Path, doc("a collector on this machine instead", "path")] = ""


class Control(Section, frozen=True, kw_only=True):
    """The control socket: reload, status, Explain, decision tail. Its folder names who may enter."""

    socket: Annotated[Path, doc("path of the socket; its folder gets mode 0750", "path")]
    group: Annotated[str, doc("group that may enter the folder; empty: our own", "group name")] = ""


class Metrics(Section, frozen=True, kw_only=True):
    """Prometheus metrics at /metrics, with /livez and /readyz beside them."""

    address: Annotated[str, doc("plain HTTP; empty: none", "host:port")] = "127.0.0.1:9464"


class Log(Section, frozen=True, kw_only=True):
    """Our own events, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], doc("least severe event that is written")] = "info"
    format: Annotated[Literal["json", "console"], doc("one JSON object per line, or text for people")] = "json"


class Process(Section, frozen=True, kw_only=True):
    """The rights that the process keeps."""

    run_as: Annotated[str, doc("ordinary user to become when started as root", "user name")] = ""
    allow_root: Annotated[bool, doc("stay root; refused otherwise, since a sidecar needs no right of root")] = False
    seccomp: Annotated[
        Literal["on", "log", "off"],
        doc("system calls that a sidecar does not need: refused, only told to the kernel's log, or made"),
    ] = "on"


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    name: Annotated[str, doc("name of this sidecar in the decision stream; empty: its SPIFFE ID")] = ""
    identity: Identity = Identity()
    listeners: Listeners = Listeners()
    peps: Annotated[
        list[str], doc("Envoys that may assert `source.principal`; nobody else may call ext_authz", "SPIFFE IDs")
    ] = []
    policy: Policy
    mapping: Annotated[MappingConfig, doc("what a call is: trust domains, tools, destinations, routes")] = (
        MappingConfig()
    )
    journal: JournalSection
    authority: AuthorityConfig | None = None
    upstream: Upstream | None = None
    control: Control
    metrics: Metrics = Metrics()
    limits: Limits = Limits()
    log: Log = Log()
    process: Process = Process()
    file: Annotated[str, msgspec.Meta(extra={"hidden": True})] = ""

    @property
    def workload_api(self) -> str:
        """The Workload API endpoint in force: the file's, else the environment's (Workload Endpoint section 4)."""
        return self.identity.workload_api or os.environ.get(ENDPOINT_VARIABLE, "")


SOCKET_BYTES_MAX = 90  # of the 107 that sockaddr_un takes; the rest is for the temporary name while binding


class HostPort(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_port(text: str) -> HostPort | None:
    """`host:port` taken apart, or None. The host is an IP address (IPv6 in brackets) or `localhost`."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        return None
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        is_v6 = ipaddress.ip_address(bare).version == 6
    except ValueError:
        return HostPort(bare, int(port)) if bare == "localhost" else None
    return HostPort(bare, int(port)) if is_v6 == (bare != host) else None


def check(config: Config) -> list[str]:
    """What single fields cannot show: addresses, SPIFFE IDs, sockets, and fields that contradict each other."""
    own = check_authority(config.authority) if config.authority else ()
    return [*_addresses(config), *_spiffe_ids(config), *_sockets(config), *_contradictions(config), *own]


def _addresses(config: Config) -> Iterator[str]:
    named = {
        **{f"{name}.address": door.address for name, door in config.listeners.envoy_doors},
        "listeners.check_address": config.listeners.check_address,
        "metrics.address": config.metrics.address,
        "authority.address": config.authority and config.authority.address,
    }
    for path, text in named.items():
        if text and host_port(text) is None:
            yield f"`{path}`: `{text}` is not an address; write an IP address and a port, as in 127.0.0.1:9191"
    # The collector is dialled, not bound, so a name is fine there.
    if config.upstream and config.upstream.address and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", config.upstream.address):
        yield f"`upstream.address`: `{config.upstream.address}` is not host:port"


def _spiffe_ids(config: Config) -> Iterator[str]:
    named = [(f"peps[{i}]", one) for i, one in enumerate(config.peps)]
    named += [(f"listeners.agents[{i}].spiffe_id", one.spiffe_id) for i, one in enumerate(config.listeners.agents)]
    named += [("identity.spiffe_id", config.identity.spiffe_id)] if config.identity.spiffe_id else []
    named += [(f"{name}.spiffe_id", door.spiffe_id) for name, door in config.listeners.envoy_doors if door.spiffe_id]
    if config.upstream and config.upstream.spiffe_id:
        named.append(("upstream.spiffe_id", config.upstream.spiffe_id))
    for path, text in named:
        try:
            found = spiffe_id.parse(text)
        except IdentityError as error:
            yield f"`{path}`: {error}"
        else:
            if not found.path:
                yield f"`{path}`: `{text}` names a trust domain, not a workload; write spiffe://trust-domain/path"


def sockets(config: Config) -> list[tuple[str, str]]:
    """(field, path) of every Unix socket that the sidecar makes."""
    made = [(f"listeners.agents[{i}].socket", one.socket) for i, one in enumerate(config.listeners.agents)]
    made += [(f"{name}.socket", door.socket) for name, door in config.listeners.envoy_doors if door.socket]
    if config.authority:
        made += [(f"authority.sockets[{i}].socket", one.socket) for i, one in enumerate(config.authority.sockets)]
    return [*made, ("control.socket", config.control.socket)]


def _sockets(config: Config) -> Iterator[str]:
    folders: dict[str, str] = {}
    for field, path in sockets(config):
        if len(path.encode()) > SOCKET_BYTES_MAX:
            yield f"`{field}`: `{path}` is longer than {SOCKET_BYTES_MAX} bytes; choose a shorter folder"
        # The folder is what tells callers apart, so two sockets in one folder would be one identity with two names.
        taken = folders.setdefault(os.path.dirname(path), field)
        if taken != field:
            yield f"`{field}`: shares its folder with `{taken}`; the folder names who may enter, so give it its own"


def _contradictions(config: Config) -> Iterator[str]:
    for name, door in config.listeners.envoy_doors:
        if bool(door.address) == bool(door.socket):
            yield f"`{name}`: give either `address` (TCP with mutual TLS) or `socket`"
        if door.socket and not door.spiffe_id:
            yield f"`{name}.spiffe_id`: is missing; name the Envoy that the socket belongs to"
        if door.address and not config.peps:
            yield f"`peps`: is empty, so nobody could call `{name}`; list the SPIFFE IDs of your Envoys"
    if not config.listeners.ext_authz and not config.listeners.agents and not config.listeners.check_address:
        yield "`listeners`: has no door; give `ext_authz`, `agents` or `check_address`"
    if not config.workload_api:
        yield f"`identity.workload_api`: is empty and {ENDPOINT_VARIABLE} is not set; give unix:///path"
    up = config.upstream
    if up and bool(up.address) == bool(up.socket):
        yield "`upstream`: give either `address` with `spiffe_id`, or `socket`"
    if up and up.address and not up.spiffe_id:
        yield "`upstream.spiffe_id`: is missing; name the collector that must answer at `upstream.address`"
    if up and up.address and config.name:
        yield "`name`: a collector over TLS knows a sidecar by its SPIFFE ID; leave `name` empty"
    if config.journal.cap_bytes < 2 * config.journal.segment_bytes:
        yield "`journal.cap_bytes`: is less than two segments; raise it or lower `journal.segment_bytes`"
    if not config.policy.policies:
        yield "`policy.policies`: is empty; name at least one Cedar file or folder"
