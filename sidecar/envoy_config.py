"""The Envoy configuration for this sidecar: HTTP filter, clusters and connection manager settings, as JSON-like dicts.

What each setting defends against is printed beside it by `render`; the facts are Envoy's own documents for ext_authz
(extensions/filters/http/ext_authz/v3) and its threat notes on path normalisation.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Iterable
from typing import Any

import yaml

from sidecar.config import Config, host_port
from sidecar.errors import ConfigError

Json = dict[str, Any]

CLUSTER = "remit"
LOG_CLUSTER = "remit_access_log"
AGENT_CLUSTER = "workload_api"
TIMEOUT_MARGIN_MS = 150  # on top of our own budget, for the way there and back; 200 ms with the default budget
BODY_BYTES_MAX = 64 * 1024
# Before a new connection's SETTINGS arrive Envoy knows no limit of ours, and a burst over it would be refused.
STREAMS = 100
MCP_NAMESPACES = ("envoy.filters.http.mcp", "mcp_proxy")  # Envoy 1.38 and later, and before
READS_BODY = frozenset({"input", "*"})  # `*`: a policy reads the context as a whole

_TYPE = "type.googleapis.com/envoy.extensions."
_CAPITAL = re.compile("(?<=[a-z0-9])([A-Z])")


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """Envoy's own SVID and the trust bundle as PEM files; `bundle` holds the roots of the sidecar's trust domain."""

    certificate: str
    key: str
    bundle: str


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the filter has to send. `body`: a rule reads it, or an MCP call's name stands only there."""

    body: bool
    timeout_ms: int
    body_bytes: int = BODY_BYTES_MAX


def needs(config: Config, extras_read: Iterable[str]) -> Needs:
    """What rules and routes in force need; `extras_read` names what policies read beside the live columns."""
    body = not READS_BODY.isdisjoint(extras_read) or config.mapping.reads_body
    return Needs(body=body, timeout_ms=config.limits.budget_ms + TIMEOUT_MARGIN_MS)


def http_filter(what: Needs, cluster: str = CLUSTER) -> Json:
    """The ext_authz filter; it stands before everything that could change the request after the decision."""
    settings: Json = {
        "@type": _TYPE + "filters.http.ext_authz.v3.ExtAuthz",
        "stat_prefix": "remit",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "timeout": f"{what.timeout_ms / 1000:g}s"},
        "failure_mode_allow": False,
        "status_on_error": {"code": "Forbidden"},
        "clear_route_cache": False,
        "encode_raw_headers": True,
        "include_peer_certificate": True,
        "include_tls_session": True,
        "metadata_context_namespaces": list(MCP_NAMESPACES),
    }
    if what.body:
        settings["with_request_body"] = {
            "max_request_bytes": what.body_bytes,
            "allow_partial_message": False,
            "pack_as_bytes": True,
        }
    return {"name": "envoy.filters.http.ext_authz", "typed_config": settings}


def connection_manager(stream_s: int = 0) -> Json:
    """Settings of the HttpConnectionManager: the path that we judge is the path that is routed.

    `stream_s` bounds every request, since a stream outlives what allowed it; 0: no bound of ours.
    """
    bound = {"common_http_protocol_options": {"max_stream_duration": f"{stream_s}s"}} if stream_s else {}
    return {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        **bound,
    }


def access_log(cluster: str = LOG_CLUSTER) -> Json:
    """The access log that tells us what an allowed call sent; the ext_authz answer's metadata goes with each entry."""
    kind = _TYPE + "access_loggers.grpc.v3.HttpGrpcAccessLogConfig"
    settings = {
        "log_name": "remit",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster}},
        "buffer_flush_interval": "0.2s",
    }
    return {"name": "envoy.access_loggers.http_grpc", "typed_config": {"@type": kind, "common_config": settings}}


def disabled_route() -> Json:
    """typed_per_filter_config of a route that is not asked about."""
    return _per_route({"disabled": True})


def bodyless_route() -> Json:
    """typed_per_filter_config of a route whose rules do not read the body."""
    return _per_route({"check_settings": {"disable_request_body_buffering": True}})


def _per_route(settings: Json) -> Json:
    kind = _TYPE + "filters.http.ext_authz.v3.ExtAuthzPerRoute"
    return {"typed_per_filter_config": {"envoy.filters.http.ext_authz": {"@type": kind, **settings}}}


def sidecar_cluster(endpoint: str, sidecar_id: str, tls: TlsFiles | None, name: str = CLUSTER) -> Json:
    """The cluster of the sidecar's ext_authz door. `endpoint`: host:port (mutual TLS) or unix:/path."""
    made = _cluster(name, endpoint)
    if not endpoint.startswith("unix:"):
        made["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": _tls(sidecar_id, tls)}
    return made


def workload_api_cluster(endpoint: str) -> Json:
    """The Workload API as an SDS server (SPIRE agents speak both on one socket)."""
    return _cluster(AGENT_CLUSTER, "unix:" + endpoint.removeprefix("unix://").removeprefix("unix:"))


def _cluster(name: str, endpoint: str) -> Json:
    http2 = "upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "typed_extension_protocol_options": {
            f"envoy.extensions.{http2}": {
                "@type": _TYPE + http2,
                "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": STREAMS}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(endpoint)}}]}],
        },
    }


def _address(endpoint: str) -> Json:
    if endpoint.startswith("unix:"):
        return {"pipe": {"path": endpoint.removeprefix("unix:")}}
    where = host_port(endpoint)
    if where is None or where.port == 0:
        raise ConfigError(f"`{endpoint}` is not an address that Envoy can dial; start the sidecar, or fix the port")
    host = "127.0.0.1" if where.host == "localhost" else where.host
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return {"socket_address": {"address": host, "port_value": where.port}}


def _tls(sidecar_id: str, files: TlsFiles | None) -> Json:
    """UpstreamTlsContext that shows Envoy's SVID and accepts exactly one SPIFFE ID."""
    only_us = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": sidecar_id}}]}
    # As a client Envoy stops at TLS 1.2 unless it is told otherwise, and then no version would be left.
    versions = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    common: Json = {"alpn_protocols": ["h2"], "tls_params": versions}
    if files is None:
        trust_domain = "/".join(sidecar_id.split("/")[:3])
        common["tls_certificate_sds_secret_configs"] = [_sds("default")]
        common["combined_validation_context"] = {
            "default_validation_context": only_us,
            "validation_context_sds_secret_config": _sds(trust_domain),
        }
    else:
        common["tls_certificates"] = [
            {"certificate_chain": {"filename": files.certificate}, "private_key": {"filename": files.key}}
        ]
        common["validation_context"] = {"trusted_ca": {"filename": files.bundle}, **only_us}
    return {"@type": _TYPE + "transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": common}


def _sds(name: str) -> Json:
    source = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": AGENT_CLUSTER}}],
    }
    return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}


_HEAD = """\
# Envoy beside this sidecar. Put each part where its heading says.
# failure_mode_allow stays false: anything else lets calls through while the sidecar is away.
# A stream (WebSocket, SSE, gRPC stream) is asked about once, when it opens: max_stream_duration bounds how long it may
# go on after its task ended or its agent was revoked (`authority.stream_s`). A route may set a smaller one, not none.
"""
_FILES = """\
# Envoy reads the SVID's files below once. An SVID that rotates needs SDS: over the Workload API (print this without
# --certificate), or a file of its own that names them with `watched_directory`.
"""
_BODY = "# Bodies are buffered because {why}; a route that needs none turns it off (see the last part).\n"
_NO_BODY = """\
# No rule reads a body, so none is buffered. Print this again once a policy reads `context.input`.
# A call whose body is not sent can be approved by class only: an exact approval is bound to the body.
"""


def render(
    config: Config,
    *,
    endpoint: str,
    sidecar_id: str,
    extras_read: Iterable[str],
    tls: TlsFiles | None,
    log_endpoint: str = "",
) -> str:
    """The whole as YAML text with comments that say where each part goes and why.

    `endpoint` is the ext_authz door, `log_endpoint` that of access logs, empty when there is none.
    """
    extras = set(extras_read)
    what = needs(config, extras)
    why = (
        "a rule reads `context.input`" if extras & READS_BODY else "the name of an MCP call can stand in the body alone"
    )
    clusters = [sidecar_cluster(endpoint, sidecar_id, tls)]
    manager = connection_manager(config.authority.stream_s if config.authority else 0)
    if log_endpoint:
        clusters.append(sidecar_cluster(log_endpoint, sidecar_id, tls, LOG_CLUSTER))
        manager["access_log"] = [access_log()]
    if tls is None and not endpoint.startswith("unix:"):
        clusters.append(workload_api_cluster(config.workload_api))
    parts = [
        _HEAD + (_FILES if tls is not None else "") + (_BODY.format(why=why) if what.body else _NO_BODY),
        _part("HttpConnectionManager: the path that is judged is the path that is routed", manager),
        _part(
            "http_filters: before the router, and before any filter that changes the request",
            {"http_filters": [http_filter(what)]},
        ),
        _part("static_resources", {"clusters": clusters}),
        _comment("A route that is not asked about, such as a health check of your own:", disabled_route()),
        _comment("A route whose rules read no body:", bodyless_route()) if what.body else "",
    ]
    return "\n".join(part for part in parts if part)


def _part(title: str, content: Json) -> str:
    return f"# --- {title}\n{yaml.safe_dump(content, sort_keys=False, width=120)}"


def _comment(title: str, content: Json) -> str:
    lines = yaml.safe_dump(content, sort_keys=False, width=120).splitlines()
    return "\n".join([f"# {title}", *(f"#   {line}" for line in lines), ""])


def warnings(text: str) -> list[str]:
    """What is unsafe in an Envoy bootstrap or a part of one, a line each. Raises ConfigError when it is not YAML."""
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        raise ConfigError(f"the Envoy configuration is not YAML: {' '.join(str(error).split())[:200]}") from None
    found: list[str] = []
    filters = 0
    for node in _nodes(documents, set()):
        kind = str(node.get("@type", ""))
        if kind.endswith("ext_authz.v3.ExtAuthz"):
            filters += 1
            found += _enforcement_warnings(node)
        if kind.endswith("filters.http.ext_authz.v3.ExtAuthz"):
            found += _filter_warnings(node)
        if kind.endswith("HttpConnectionManager"):
            found += _manager_warnings(node)
    return found if filters else [*found, "no ext_authz filter found: nothing asks the sidecar"]


def _nodes(value: Any, seen: set[int]) -> Iterable[Json]:
    """Every mapping once: Envoy's YAML may have aliases, which can make a tree without end."""
    if id(value) in seen:
        return
    if isinstance(value, dict | list):
        seen.add(id(value))
    if isinstance(value, dict):
        yield _snake(value)
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _nodes(one, seen)


def _snake(node: Any) -> Json:
    """A mapping with its keys in one of the two spellings that protobuf's JSON takes; empty when it is none."""
    if not isinstance(node, dict):
        return {}
    return {_CAPITAL.sub(r"_\1", str(key)).lower(): value for key, value in node.items()}


def _enforcement_warnings(node: Json) -> Iterable[str]:
    if node.get("failure_mode_allow"):
        yield "`failure_mode_allow: true`: every call passes while the sidecar is away or errs; set it to false"
    if node.get("shadow_mode"):
        yield "`shadow_mode: true`: decisions are made and not enforced; set it to false"
    if node.get("filter_enabled") and not node.get("deny_at_disable"):
        yield "`filter_enabled`: only a part of the calls is asked about; remove it, or set `deny_at_disable`"


def _filter_warnings(node: Json) -> Iterable[str]:
    if not node.get("encode_raw_headers"):
        yield "`encode_raw_headers` is off: repeated headers arrive joined and bad bytes replaced; set it to true"
    if _snake(node.get("with_request_body")).get("allow_partial_message"):
        yield "`allow_partial_message: true`: rules that read the body deny cut bodies; set it to false"
    if node.get("clear_route_cache"):
        yield "`clear_route_cache: true`: a call can be routed elsewhere after the decision; set it to false"


def _manager_warnings(node: Json) -> Iterable[str]:
    for key, value in connection_manager().items():
        if node.get(key) != value:
            shown = str(value).lower() if isinstance(value, bool) else value
            yield f"`{key}` is not {shown}: paths that are not canonical reach the sidecar, which denies them"
