"""The Envoy configuration that we print: valid for Envoy's own schema, safe, and buffering only what rules read."""

from typing import Any

import pytest
import yaml

from sidecar import config_file, envoy_config
from sidecar.errors import ConfigError

CONFIG = """
identity: {workload_api: "unix:///run/spire/agent.sock"}
listeners: {ext_authz: {address: "127.0.0.1:9191"}}
peps: ["spiffe://corp.example/envoy"]
policy: {policies: [policies], store: var/generations}
journal: {dir: var/journal}
control: {socket: run/control/sock}
"""
SIDECAR = "spiffe://corp.example/sidecar"
FILES = envoy_config.TlsFiles("/e/svid.pem", "/e/key.pem", "/e/bundle.pem")


def rendered(
    extras: tuple[str, ...] = (), endpoint: str = "127.0.0.1:9191", tls: Any = None
) -> tuple[str, dict[str, Any]]:
    config = config_file.parse(CONFIG, "/etc/remit/remit.yaml")
    text = envoy_config.render(config, endpoint=endpoint, sidecar_id=SIDECAR, extras_read=extras, tls=tls)
    return text, yaml.safe_load(text)


def settings(parsed: dict[str, Any]) -> dict[str, Any]:
    return dict(parsed["http_filters"][0]["typed_config"])


def test_the_filter_has_the_safe_settings() -> None:
    """Fail closed, raw headers, verified peer, no second routing after the decision (EX-20, EX-11, EX-14)."""
    _, parsed = rendered()
    got = settings(parsed)
    assert got["failure_mode_allow"] is False
    assert got["clear_route_cache"] is False
    assert got["encode_raw_headers"] is True
    assert got["include_peer_certificate"] is True
    assert got["transport_api_version"] == "V3"
    assert got["status_on_error"] == {"code": "Forbidden"}
    assert got["grpc_service"]["timeout"] == "0.2s"
    assert parsed["normalize_path"] is True
    assert parsed["merge_slashes"] is True
    assert parsed["path_with_escaped_slashes_action"] == "REJECT_REQUEST"


@pytest.mark.parametrize(("extras", "buffered"), [((), False), (("http",), False), (("http", "input"), True)])
def test_a_body_is_buffered_only_where_a_rule_reads_it(extras: tuple[str, ...], buffered: bool) -> None:
    """The generation's list of read inputs decides; a cut body is never sent (EX-15)."""
    text, parsed = rendered(extras)
    body = settings(parsed).get("with_request_body")
    assert (body is not None) == buffered
    if body:
        assert body["allow_partial_message"] is False
        assert body["pack_as_bytes"] is True
        assert body["max_request_bytes"] > 0
    assert ("disable_request_body_buffering" in text) == buffered


@pytest.mark.parametrize(
    ("endpoint", "tls"), [("127.0.0.1:9191", None), ("127.0.0.1:9191", FILES), ("unix:/run/remit/envoy/sock", None)]
)
def test_what_is_printed_is_valid_for_envoy(endpoint: str, tls: Any) -> None:
    """Every part parses as the message that Envoy reads, with no unknown field."""
    pytest.importorskip("envoy.config.cluster.v3.cluster_pb2", reason="xds-protos is not installed")
    from envoy.config.cluster.v3 import cluster_pb2
    from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
    from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
    from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401  registers the Any type
    from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
    from google.protobuf import json_format

    _, parsed = rendered(("input",), endpoint, tls)
    filter_settings = {k: v for k, v in settings(parsed).items() if k != "@type"}
    assert not json_format.ParseDict(filter_settings, ext_authz_pb2.ExtAuthz()).failure_mode_allow
    for one in parsed["clusters"]:
        json_format.ParseDict(one, cluster_pb2.Cluster())
    json_format.ParseDict(envoy_config.connection_manager(), http_connection_manager_pb2.HttpConnectionManager())
    for route in (envoy_config.disabled_route(), envoy_config.bodyless_route()):
        (per_route,) = route["typed_per_filter_config"].values()
        fields = {k: v for k, v in per_route.items() if k != "@type"}
        json_format.ParseDict(fields, ext_authz_pb2.ExtAuthzPerRoute())


def test_tls_names_exactly_our_spiffe_id() -> None:
    """Envoy shows its SVID and accepts one URI SAN: ours."""
    for tls in (None, FILES):
        _, parsed = rendered(tls=tls)
        common = parsed["clusters"][0]["transport_socket"]["typed_config"]["common_tls_context"]
        text = yaml.safe_dump(common)
        assert "san_type: URI" in text
        assert f"exact: {SIDECAR}" in text
        # As a client Envoy stops at TLS 1.2 unless both ends of the range are given.
        assert set(common["tls_params"].values()) == {"TLSv1_3"}
    _, parsed = rendered(tls=FILES)
    assert [c["name"] for c in parsed["clusters"]] == ["remit"]
    _, parsed = rendered()
    assert parsed["clusters"][1]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] == {
        "pipe": {"path": "/run/spire/agent.sock"}
    }


def test_a_socket_needs_no_tls() -> None:
    """The folder of a Unix socket says who calls."""
    _, parsed = rendered(endpoint="unix:/run/remit/envoy/sock")
    (only,) = parsed["clusters"]
    assert "transport_socket" not in only


def test_an_address_that_cannot_be_dialled_is_refused() -> None:
    """Port 0 is known only to a running sidecar; an unspecified address means this machine."""
    with pytest.raises(ConfigError, match="start the sidecar"):
        rendered(endpoint="127.0.0.1:0")
    _, parsed = rendered(endpoint="0.0.0.0:9191")
    assert "address: 127.0.0.1" in yaml.safe_dump(parsed["clusters"][0])


def test_an_unsafe_envoy_configuration_is_pointed_out() -> None:
    """EX-20: failure_mode_allow and friends are found wherever they stand; our own output is clean."""
    text, parsed = rendered()
    manager = {"@type": "x.HttpConnectionManager", **envoy_config.connection_manager()}
    bootstrap = {"a": [{"b": {**manager, "http_filters": parsed["http_filters"]}}]}
    assert envoy_config.warnings(yaml.safe_dump(bootstrap)) == []
    assert envoy_config.warnings(text) == []
    parsed["http_filters"][0]["typed_config"].update(failure_mode_allow=True, encode_raw_headers=False)
    found = envoy_config.warnings(yaml.safe_dump({"x": {"@type": "x.HttpConnectionManager", **parsed}}))
    assert any("`failure_mode_allow: true`" in line for line in found)
    camel = {"@type": "x.filters.network.ext_authz.v3.ExtAuthz", "failureModeAllow": True, "shadowMode": True}
    found_again = envoy_config.warnings(yaml.safe_dump({"n": camel}))
    assert [line.partition(":")[0] for line in found_again] == ["`failure_mode_allow", "`shadow_mode"]
    part = {"@type": "x.filters.http.ext_authz.v3.ExtAuthz", "encodeRawHeaders": True, "filter_enabled": {"a": 1}}
    part["withRequestBody"] = {"allowPartialMessage": True}
    assert [line.partition("`:")[0] for line in envoy_config.warnings(yaml.safe_dump(part))] == [
        "`filter_enabled",
        "`allow_partial_message: true",
    ]
    assert any("`encode_raw_headers`" in line for line in found)
    assert envoy_config.warnings("a: 1") == ["no ext_authz filter found: nothing asks the sidecar"]
    del bootstrap["a"][0]["b"]["merge_slashes"]
    assert any("`merge_slashes`" in line for line in envoy_config.warnings(yaml.safe_dump(bootstrap)))


def test_under_authority_streams_are_bounded_and_logs_are_sent() -> None:
    """A stream is asked about once, so it ends in time; what a call sent comes back as a log entry of its decision."""
    from envoy.config.cluster.v3 import cluster_pb2
    from envoy.extensions.access_loggers.grpc.v3 import als_pb2  # noqa: F401  registers the Any type
    from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
    from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
    from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
    from google.protobuf import json_format

    config = config_file.parse(CONFIG + "authority: {store: var/authority, stream_s: 120}", "/etc/remit/remit.yaml")
    text = envoy_config.render(
        config,
        endpoint="127.0.0.1:9191",
        sidecar_id=SIDECAR,
        extras_read=(),
        tls=FILES,
        log_endpoint="unix:/run/remit/log/sock",
    )
    parsed = yaml.safe_load(text)
    assert parsed["common_http_protocol_options"] == {"max_stream_duration": "120s"}
    names = [json_format.ParseDict(one, cluster_pb2.Cluster()).name for one in parsed["clusters"]]
    assert names == ["remit", "remit_access_log"]
    manager = {name: parsed[name] for name in ("common_http_protocol_options", "access_log", "normalize_path")}
    made = json_format.ParseDict(manager, http_connection_manager_pb2.HttpConnectionManager())
    assert made.access_log[0].name == "envoy.access_loggers.http_grpc"
