"""The section `mapping` of the configuration: what a call is, in Cedar's terms.

fastpath.mapping compiles it; the default mapping needs `trust_domains` alone.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from fastpath.columns import RESERVED
from fastpath.patterns import action_uid, check_header, path_segments, require, template_pieces
from sidecar.config_section import Section, doc
from sidecar.errors import ConfigError

# The classes of the agents' vocabulary, from harmless to dangerous. `list` and `read` observe, the others change.
TOOL_CLASSES = ("list", "read", "write", "delete", "send", "execute", "admin")
ExtensionKey = Literal["protocol", "dest", "server", "route", "dry_run"]
EXTENSIONS: tuple[ExtensionKey, ...] = ("protocol", "dest", "server", "route", "dry_run")
HEADER_ONLY_VERSIONS = ("2026-07-28",)
# Of EXTRAS_MAX (8) attributes that are not columns, `input` and `http` are ours.
ROUTE_CONTEXT_MAX = 6
CAPTURES_MAX = 16
LEVEL_MAX = 4

ToolClass = Literal["list", "read", "write", "delete", "send", "execute", "admin"]
_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(::[A-Za-z_][A-Za-z0-9_]*)*")
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]|\*")
_METHOD = re.compile(r"[A-Z][A-Z-]*")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SERVER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def _check_host(host: str) -> None:
    require(
        _HOST.fullmatch(host),
        f"`host`: `{host}` is not a host; write a lower-case name, `*.name`, an IPv6 address in brackets, or `*`",
    )


def _check_type(field: str, text: str) -> None:
    require(_TYPE.fullmatch(text), f"`{field}`: `{text}` is not a Cedar entity type; write Name or Namespace::Name")


class McpServer(Section, frozen=True, kw_only=True):
    """An MCP server behind the proxy: where it listens and how its tools are named in policies."""

    name: Annotated[str, doc('first part of its tools\' names, as in Tool::"name/tool"')]
    host: Annotated[str, doc("host of its endpoint, `*.example.org` or `*`", "host")]
    port: Annotated[int, doc("port of its endpoint; 0: any", "port", ge=0, le=65_535)] = 0
    path: Annotated[str, doc("its endpoint: this path and everything below it", "path")] = "/"
    headers_alone: Annotated[
        bool,
        doc(
            "it refuses a call whose Mcp-Method or Mcp-Name header differs from the body, so that the headers alone "
            "say what a call is (only for the protocol versions in `header_only_versions`)"
        ),
    ] = False

    def __post_init__(self) -> None:
        require(_SERVER_NAME.fullmatch(self.name), f"`name`: `{self.name}` must be 1 to 128 of A-Z a-z 0-9 _ . -")
        _check_host(self.host)
        require(self.path.startswith("/"), f"`path`: `{self.path}` must begin with a slash")


class DestinationRule(Section, frozen=True, kw_only=True):
    """Which hosts are one destination; the first rule that matches names it."""

    host: Annotated[str, doc("host, `*.example.org` (not the name itself) or `*`", "host")]
    port: Annotated[int, doc("port; 0: any", "port", ge=0, le=65_535)] = 0
    id: Annotated[str, doc('id of the entity, as in Destination::"id"')]

    def __post_init__(self) -> None:
        _check_host(self.host)
        require(self.id, "`id`: is empty; name the destination")


class EntityTemplate(Section, frozen=True, kw_only=True):
    """An entity made from a call."""

    type: Annotated[str, doc("entity type; `mapping.namespace` is put before it when it has none")]
    id: Annotated[
        str,
        doc("id with {capture}, {host}, {method}, {path}, {header.name} or {query.name} filled in from the call"),
    ]

    def __post_init__(self) -> None:
        _check_type("type", self.type)
        template_pieces(self.id)


class ContextFrom(Section, frozen=True, kw_only=True):
    """Where one context attribute of a route comes from: exactly one of capture, header, query, constant."""

    capture: Annotated[str, doc("name of a path capture")] = ""
    header: Annotated[str, doc("name of a request header, lower case")] = ""
    query: Annotated[str, doc("name of a query parameter")] = ""
    constant: Annotated[str | int | bool | None, doc("the value itself")] = None
    kind: Annotated[
        Literal["string", "long", "bool", "set"],
        doc(
            "type of the attribute; set: all values, as strings (a header is split at commas); any other kind "
            "refuses a call that has two values"
        ),
    ] = "string"
    required: Annotated[bool, doc("refuse a call that does not have it; otherwise the attribute is absent")] = False

    def __post_init__(self) -> None:
        given = [name for name in ("capture", "header", "query") if getattr(self, name)]
        given += ["constant"] if self.constant is not None else []
        require(len(given) == 1, "give exactly one of `capture`, `header`, `query` and `constant`")
        if self.header:
            check_header(self.header)
        if self.constant is not None:
            wanted = {"string": str, "long": int, "bool": bool}.get(self.kind)
            require(type(self.constant) is wanted, f"`constant`: is not a {self.kind}; set `kind` to its type")


class Route(Section, frozen=True, kw_only=True):
    """Calls that have a meaning of their own; the first route that matches decides it."""

    name: Annotated[str, doc("unique name; the context extension `route` can select by it")]
    methods: Annotated[list[str], doc("exact HTTP methods; empty: any")] = []
    host: Annotated[str, doc("host, `*.example.org` or `*`", "host")] = "*"
    port: Annotated[int, doc("port; 0: any", "port", ge=0, le=65_535)] = 0
    path: Annotated[
        str,
        doc("path pattern: literal segments, `*` for one, `{name}` for one that is kept, `**` last for the rest"),
    ] = "/**"
    principal_type: Annotated[str, doc("entity type of the principal; empty: `mapping.agent_type`")] = ""
    action: Annotated[str, doc('Action::"name", or the bare name; empty: by the HTTP method')] = ""
    resource: Annotated[EntityTemplate | None, doc("the resource; absent: the endpoint")] = None
    parent: Annotated[EntityTemplate | None, doc("the resource's parent when the entity store lacks it")] = None
    destination: Annotated[str, doc("id of the destination; empty: by host")] = ""
    context: Annotated[dict[str, ContextFrom], doc("context attributes by name")] = {}

    def __post_init__(self) -> None:
        require(self.name, "`name`: is empty; name the route")
        _check_host(self.host)
        for method in self.methods:
            require(_METHOD.fullmatch(method), f"`methods`: `{method}` is not an upper-case HTTP method")
        captures = [text for kind, text in path_segments(self.path) if kind == "capture"]
        require(len(captures) <= CAPTURES_MAX, f"`path`: has more than {CAPTURES_MAX} captures")
        require(len(set(captures)) == len(captures), f"`path`: `{self.path}` names a capture twice")
        if self.principal_type:
            _check_type("principal_type", self.principal_type)
        if self.action:
            action_uid(self.action, "")
        for field in ("resource", "parent"):
            self._check_template(field, getattr(self, field), captures)
        self._check_context(captures)

    def _check_template(self, field: str, template: EntityTemplate | None, captures: list[str]) -> None:
        for kind, text in template_pieces(template.id) if template else ():
            require(kind != "capture" or text in captures, f"`{field}.id`: `{{{text}}}` is no capture of `path`")

    def _check_context(self, captures: list[str]) -> None:
        require(
            len(self.context) <= ROUTE_CONTEXT_MAX,
            f"`context`: has more than {ROUTE_CONTEXT_MAX} attributes",
        )
        for name, source in self.context.items():
            taken = RESERVED | {"input", "http"}
            require(name and name not in taken, f"`context.{name}`: is set by the sidecar alone; use another name")
            require(
                not source.capture or source.capture in captures,
                f"`context.{name}.capture`: `{source.capture}` is no capture of `path`",
            )


class MappingConfig(Section, frozen=True, kw_only=True):
    """What a call is: trust domains, tools, servers, destinations and routes."""

    trust_domains: Annotated[
        list[str], doc("trust domains whose workloads may be principals; empty: every call is refused")
    ] = []
    namespace: Annotated[str, doc("Cedar namespace put before every type that has none; empty: none")] = ""
    agent_type: Annotated[str, doc("entity type of principals; the id is the SPIFFE ID")] = "Agent"
    tools: Annotated[
        dict[str, ToolClass], doc('class action of a tool that the policies\' schema does not name, by "server/tool"')
    ] = {}
    tool_class: Annotated[ToolClass, doc("class action of every other tool")] = "execute"
    tool_level: Annotated[int, doc("data level of a tool whose entity has no `level`", "level", ge=0, le=LEVEL_MAX)] = 0
    destination_from: Annotated[
        dict[str, str], doc('argument that names where a tool sends to (URL, host or address), by "server/tool"')
    ] = {}
    servers: Annotated[list[McpServer], doc("MCP servers; the first that matches host, port and path")] = []
    destinations: Annotated[
        list[DestinationRule],
        doc('destinations by host; without a rule the id is the authority, "host[:port]"'),
    ] = []
    routes: Annotated[list[Route], doc("routes, in order; they come before the default mapping")] = []
    context_extensions: Annotated[
        list[ExtensionKey],
        doc("keys of Envoy's context_extensions that are read; all others never reach a policy"),
    ] = msgspec.field(default_factory=lambda: list(EXTENSIONS))
    header_only_versions: Annotated[
        list[str], doc("MCP protocol versions in which a server must compare headers and body", "YYYY-MM-DD")
    ] = msgspec.field(default_factory=lambda: list(HEADER_ONLY_VERSIONS))
    grpc_by_content_type: Annotated[
        bool, doc("take POST with content-type application/grpc for gRPC; false: only where `protocol` says so")
    ] = True

    def __post_init__(self) -> None:
        for name in self.trust_domains:
            require(_TRUST_DOMAIN.fullmatch(name), f"`trust_domains`: `{name}` is not a trust domain")
        if self.namespace:
            _check_type("namespace", self.namespace)
        _check_type("agent_type", self.agent_type)
        for field in ("tools", "destination_from"):
            for name in getattr(self, field):
                server, slash, tool = name.partition("/")
                require(server and slash and tool, f"`{field}`: `{name}` is not `server/tool`")
        _unique("servers", [(one.host, one.port, one.path) for one in self.servers])
        _unique("routes", [one.name for one in self.routes])

    @property
    def reads_body(self) -> bool:
        """Whether the mapping itself needs bodies, whatever the policies read: to know what an MCP call is."""
        return bool(self.destination_from) or any(not one.headers_alone for one in self.servers)


def _unique(field: str, names: Iterable[Any]) -> None:
    seen = set()
    for name in names:
        require(name not in seen, f"`{field}`: `{name}` stands twice; keep one")
        seen.add(name)


def mapping_config(raw: Mapping[str, Any] | MappingConfig) -> MappingConfig:
    """The section as its type, checked. Raises ConfigError that names the field."""
    if isinstance(raw, MappingConfig):
        return raw
    try:
        return msgspec.convert(raw, MappingConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"`mapping`: {str(error)[:1].lower()}{str(error)[1:]}") from None
