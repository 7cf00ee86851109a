"""A real Envoy for the demo and the tests: its bootstrap, its process, its ports."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from sidecar.errors import ConfigError

Json = dict[str, Any]
START_TIMEOUT_S = 30.0

_TYPE = "type.googleapis.com/envoy.extensions."
_HCM = _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = _TYPE + "filters.http.router.v3.Router"
_DOWNSTREAM_TLS = _TYPE + "transport_sockets.tls.v3.DownstreamTlsContext"
_SECRET = _TYPE + "transport_sockets.tls.v3.Secret"
_SPIFFE_VALIDATOR = _TYPE + "transport_sockets.tls.v3.SPIFFECertValidatorConfig"
_ACCESS_LOG = _TYPE + "access_loggers.file.v3.FileAccessLog"


class Listener(msgspec.Struct, kw_only=True):
    """One listener of the bootstrap; Envoy binds it to a port that the kernel chooses."""

    name: str
    normalise: bool = True  # the path settings that the README recommends; False leaves paths as the client sent them
    tls: Json | None = None  # a common_tls_context with our SVID and the trust bundles; None: plain text
    hosts: dict[str, str] = {}  # virtual host -> cluster name; "*" for any
    per_host: dict[str, Json] = {}  # virtual host -> its typed_per_filter_config
    manager: Json = {}  # further fields of the HTTP connection manager
    http_filters: list[Json] = []  # before the router
    network_filters: list[Json] = []  # before the HTTP connection manager, or alone when `hosts` is empty
    tcp_cluster: str = ""  # proxy TCP to this cluster instead of speaking HTTP


class Bootstrap(TypedDict):
    node: Json
    admin: Json
    static_resources: Json


def watched_svid(folder: Path) -> list[Json]:
    """tls_certificate_sds_secret_configs for the SVID in `folder`: Envoy reads it again when a file there is renamed.

    Writes the secret that Envoy reads beside them; a certificate named in the bootstrap would never be read again.
    """
    secret = {
        "@type": _SECRET,
        "name": "svid",
        "tls_certificate": {
            "certificate_chain": {"filename": str(folder / "svid.pem")},
            "private_key": {"filename": str(folder / "key.pem")},
            "watched_directory": {"path": str(folder)},
        },
    }
    path = folder / "sds.json"
    path.write_text(json.dumps({"resources": [secret]}))
    return [{"name": "svid", "sds_config": {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}}]


def tls_files(folder: Path, bundles: dict[str, Path]) -> Json:
    """A common_tls_context that shows the SVID in `folder` and accepts peers by SPIFFE, one bundle per trust domain."""
    domains = [{"name": name, "trust_bundle": {"filename": str(path)}} for name, path in sorted(bundles.items())]
    return {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": watched_svid(folder),
        "validation_context": {
            "custom_validator_config": {
                "name": "envoy.tls.cert_validator.spiffe",
                "typed_config": {"@type": _SPIFFE_VALIDATOR, "trust_domains": domains},
            }
        },
    }


def cluster(name: str, host: str, port: int, *, http2: bool = False) -> Json:
    """An upstream at one fixed address."""
    made: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}]}
            ],
        },
    }
    if http2:
        made["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPE + "upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return made


def _routes(listener: Listener) -> list[Json]:
    return [
        {
            "name": f"host_{i}",
            "domains": ["*"] if host == "*" else [host, f"{host}:*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "30s"}}],
            "typed_per_filter_config": listener.per_host.get(host, {}),
        }
        for i, (host, name) in enumerate(listener.hosts.items())
    ]


def _http(listener: Listener, access_log: str) -> Json:
    manager: Json = {
        "@type": _HCM,
        "stat_prefix": listener.name,
        "route_config": {"name": listener.name, "virtual_hosts": _routes(listener)},
        "http_filters": [
            *listener.http_filters,
            {"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}},
        ],
        "access_log": [
            {
                "name": "file",
                "typed_config": {
                    "@type": _ACCESS_LOG,
                    "path": access_log,
                    "log_format": {
                        "json_format": {
                            "listener": listener.name,
                            "status": "%RESPONSE_CODE%",
                            "details": "%RESPONSE_CODE_DETAILS%",
                            "path": "%PATH(NQ)%",
                            "remit": "%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%",
                        }
                    },
                },
            }
        ],
    }
    if listener.normalise:
        manager |= {
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
        }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager | listener.manager}


def _listener(listener: Listener, access_log: str) -> Json:
    chain: Json = {"filters": list(listener.network_filters)}
    if listener.hosts:
        chain["filters"].append(_http(listener, access_log))
    if listener.tcp_cluster:
        proxy = {
            "@type": _TYPE + "filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": listener.name,
            "cluster": listener.tcp_cluster,
        }
        chain["filters"].append({"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy})
    if listener.tls is not None:
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _DOWNSTREAM_TLS,
                "require_client_certificate": True,
                "common_tls_context": listener.tls,
            },
        }
    return {
        "name": listener.name,
        "stat_prefix": listener.name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [chain],
    }


def bootstrap(listeners: list[Listener], clusters: list[Json], *, access_log: str = "/dev/null") -> Bootstrap:
    """The whole configuration of one Envoy."""
    return {
        "node": {"id": "demo", "cluster": "demo"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": [_listener(one, access_log) for one in listeners], "clusters": clusters},
    }


def binary() -> Path:
    """The Envoy that `make setup` installs. ConfigError when it is not there."""
    root = Path(__file__).resolve().parents[2]
    found = sorted((root / ".venv-envoy").glob("lib/python*/site-packages/envoy/_bin/envoy"))
    if not found:
        raise ConfigError("the envoy binary is missing: run `make setup`")
    return found[-1]


class Envoy:
    """A running Envoy; use as a context manager.

    `ports` maps each listener's name to its port. Errors: ConfigError with Envoy's last words when it does not start.
    """

    def __init__(self, folder: Path, configuration: Bootstrap) -> None:
        self._folder = folder
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, int] = {}
        self.admin = ""

    def start(self) -> Envoy:
        config = self._folder / "envoy.json"
        config.write_text(json.dumps(self._configuration, indent=1))
        address = self._folder / "envoy-admin"
        address.unlink(missing_ok=True)
        log = self._folder / "envoy.log"
        command = [str(binary()), "-c", str(config), "--use-dynamic-base-id", "--concurrency", "1"]
        command += ["--admin-address-path", str(address), "--log-path", str(log), "-l", "warning"]
        command += ["--file-flush-interval-msec", "100"]
        with (self._folder / "envoy.out").open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listening(address):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ConfigError(f"envoy did not start: {self._last_words()}")
            time.sleep(0.02)
        return self

    @property
    def pid(self) -> int:
        """Its process, once started."""
        assert self._process is not None, "started"
        return self._process.pid

    def _last_words(self) -> str:
        texts = [
            path.read_text(errors="replace") for path in sorted(self._folder.glob("envoy.[lo]*")) if path.is_file()
        ]
        return " ".join(texts)[-800:].strip() or "it said nothing"

    def _listening(self, address: Path) -> bool:
        if not address.exists() or not (found := address.read_text()):
            return False
        self.admin = f"http://{found}"
        wanted = {one["name"] for one in self._configuration["static_resources"]["listeners"]}
        for status in json.loads(self.get("/listeners?format=json")).get("listener_statuses", []):
            self.ports[status["name"]] = status["local_address"]["socket_address"]["port_value"]
        return wanted <= set(self.ports) and self.get("/ready").strip() == "LIVE"

    def get(self, path: str) -> str:
        """The text of an admin page."""
        try:
            with urllib.request.urlopen(self.admin + path, timeout=5) as reply:
                return str(reply.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return "{}"

    def stat(self, name: str) -> int:
        """One counter or gauge; 0 when Envoy has not made it yet."""
        for line in self.get("/stats?filter=" + name.replace(".", r"\.")).splitlines():
            if line.startswith(name + ": "):
                return int(line.split(": ")[1])
        return 0

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Envoy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
