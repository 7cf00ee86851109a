"""The demo's stage for tests, with more listeners and routes: one Envoy, one sidecar, one collector for a test run."""

import copy
import json
import shutil
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from sidecar.demo.ca import to_pem
from sidecar.demo.calls import Answer
from sidecar.demo.envoy import Bootstrap, Json, Listener, cluster, watched_svid
from sidecar.demo.processes import wait_for
from sidecar.demo.stage import ENVOY_ID, EXAMPLES, MCP_HOST, Stage, short_folder
from tests.fix_identity import Forger, dns, new_key, pkcs8, uris
from tests.fix_serve import LISTENER

_FILTERS = "type.googleapis.com/envoy.extensions.filters."
NETWORK_FILTER = _FILTERS + "network.ext_authz.v3.ExtAuthz"
PER_ROUTE = _FILTERS + "http.ext_authz.v3.ExtAuthzPerRoute"
MCP_FILTER = _FILTERS + "http.mcp.v3.Mcp"
GRPC_HOST = "grpc.example.org"
BODY_BYTES_SMALL = 64

# Beside the demo's policies: attributes from headers, queries and bodies, a path that is closed, a gRPC service.
POLICIES = """\
@id("admin-closed") @reason("admin.closed")
forbid (principal, action, resource == Endpoint::"api.example.org/admin");
@id("role-admin") permit (principal, action == Action::"role", resource)
when { context has role && ["admin", "!!admin"].contains(context.role) };
@id("roles-admin") permit (principal, action == Action::"roles", resource)
when { context.roles.contains("admin") };
@id("roles-intern") @reason("role.intern") forbid (principal, action == Action::"roles", resource)
when { context.roles.contains("intern") };
@id("plan-pro") permit (principal, action == Action::"plan", resource)
when { context has plan && context.plan == "pro" };
@id("note-short") permit (principal, action == Action::"note", resource) when { context.input.text == "a/b" };
@id("grpc-read") permit (principal, action in Action::"observe", resource in Server::"grpc.example.org");
@id("grpc-secret") @reason("grpc.secret")
forbid (principal, action, resource == Endpoint::"grpc.example.org/shop.Prices/GetSecret");
@id("tunnel") permit (principal == Agent::"spiffe://example.org/agent/alice", action == Action::"send",
  resource == Endpoint::"spiffe://example.org/envoy");
"""
# Where the network filter's connections go: to Envoy's own identity, all that such a call tells.
TUNNEL = {"type": "Destination", "id": ENVOY_ID}
INTERNAL = {"type": "Zone", "id": "internal"}
_CONTEXT = """dest: Destination, task: TaskCtx, session: SessionCtx, behavior: BehaviorCtx, delegation: DelegationCtx,
  approval: ApprovalCtx, risk: RiskCtx, cred: CredCtx, call: CallCtx"""
_ATTRIBUTES = {"role": "role?: String", "roles": "roles: Set<String>", "plan": "plan?: String"}
SCHEMA = "".join(
    f"action {name} appliesTo {{ principal: [Agent], resource: [Endpoint], context: {{ {_CONTEXT}, {attribute} }} }};\n"
    for name, attribute in {**_ATTRIBUTES, "note": "input: { text: String }"}.items()
)
ROUTES: list[Json] = [
    {"name": "role", "path": "/role", "action": "role", "context": {"role": {"header": "x-role"}}},
    {"name": "roles", "path": "/roles", "action": "roles", "context": {"roles": {"header": "x-role", "kind": "set"}}},
    {"name": "plan", "path": "/plan", "action": "plan", "context": {"plan": {"query": "plan"}}},
    {"name": "note", "path": "/note", "action": "note"},
]


class TestStage(Stage):
    """The demo's stage, with what an operator can get wrong and who else asks as listeners of their own."""

    __test__ = False

    def __init__(self, folder: Path, **overrides: Any) -> None:
        source = folder / "source"
        shutil.copytree(EXAMPLES, source)
        (source / "policies" / "tests.cedar").write_text(POLICIES)
        schema = source / "agents.cedarschema"
        schema.write_text(schema.read_text() + SCHEMA)
        entities = json.loads((source / "entities.json").read_text())
        entities.append({"uid": TUNNEL, "attrs": {"max_level": 4}, "parents": [INTERNAL]})
        (source / "entities.json").write_text(json.dumps(entities))
        super().__init__(
            folder, policy=source, overrides={"listeners.listener": LISTENER, "mapping.routes": ROUTES, **overrides}
        )

    # ------------------------------------------------------------ Envoy

    def listeners(self) -> list[Listener]:
        main, raw = super().listeners()
        raw.hosts = {GRPC_HOST: "grpc", **raw.hosts}
        return [main, raw, *self._settings(), *self._connections(), self._extended(), self._shadow(), self._parsed()]

    def _settings(self) -> list[Listener]:
        """Other settings of the filter: without raw headers, failing open, cutting bodies, taking any method."""
        http1 = {"http_protocol_options": {"allow_custom_methods": True}}
        many = {"common_http_protocol_options": {"max_headers_count": 2000}, "max_request_headers_kb": 96}
        return [
            self._variant("joined", encode_raw_headers=False),
            self._variant("open", failure_mode_allow=True),
            self._variant("small", with_request_body=_partial(BODY_BYTES_SMALL)),
            self._variant("bodyless", with_request_body=None),
            self.like_raw("lenient", [self.envoy_filter()], manager={**http1, **many}),
        ]

    def _connections(self) -> list[Listener]:
        """Who connects: anybody in plain text, any certificate of one authority, nobody we read HTTP from."""
        filters = [self.envoy_filter()]
        forwarded = {"forward_client_cert_details": "ALWAYS_FORWARD_ONLY"}
        return [
            Listener(name="plain", hosts={"*": "http"}, normalise=False, http_filters=filters, manager=forwarded),
            Listener(name="network", tls=self.listener_tls(), network_filters=[self._network()], tcp_cluster="http"),
            self.like_raw("forwarding", filters, manager=forwarded),
            Listener(name="anyname", hosts={"*": "http"}, tls=self._any_name(), http_filters=filters),
        ]

    def _any_name(self) -> Json:
        """TLS that takes every certificate of one authority, whatever it says: no SPIFFE rule is applied by Envoy."""
        authority = Forger.root("example.org")
        alice, bob = "spiffe://example.org/agent/alice", "spiffe://example.org/agent/bob"
        for name, leaf in {
            "by-dns": {"san": dns("alice.example.org"), "subject": alice},
            "by-subject": {"san": b"", "subject": alice},
            "by-https": {"san": uris("https://example.org/agent/alice")},
            "by-domain": {"san": uris("spiffe://example.org")},
            "foreign": {"san": uris("spiffe://evil.test/agent/alice")},
            "two-names": {"san": uris(alice, bob)},
        }.items():
            key = new_key()
            write_svid(self.svids / name, authority.leaf(key=key, **leaf), pkcs8(key))
        roots = self.svids / "any-name.pem"
        roots.write_bytes(to_pem(authority.certificate))
        certificates = watched_svid(self.svids / "envoy")
        return {
            "tls_certificate_sds_secret_configs": certificates,
            "validation_context": {"trusted_ca": {"filename": str(roots)}},
        }

    def _extended(self) -> Listener:
        """Context extensions by host, as an operator writes them."""
        said = {
            "dry.example.org": {"dry_run": "true"},
            "elsewhere.example.org": {"dest": "web"},
            "tool.example.org": {"server": "bank"},
            "route.example.org": {"route": "plan"},
            "wrong.example.org": {"protocol": "carrier-pigeon"},
            "spoof.example.org": {"principal": "spiffe://example.org/agent/alice", "role": "admin", "outcome": "ALLOW"},
        }
        listener = self.like_raw("extended", [self.envoy_filter()])
        listener.hosts = {**dict.fromkeys(said, "http"), **listener.hosts}
        listener.per_host = {host: _per_route({"context_extensions": keys}) for host, keys in said.items()}
        return listener

    def _shadow(self) -> Listener:
        """Decisions that Envoy does not enforce, and that say so to us, so that nothing is counted or spent."""
        listener = self._variant("shadow", shadow_mode=True)
        listener.per_host = dict.fromkeys(listener.hosts, _per_route({"context_extensions": {"dry_run": "true"}}))
        return listener

    def _parsed(self) -> Listener:
        """Envoy's own MCP filter reads the body; we get its metadata and no body."""
        mcp = {"name": "envoy.filters.http.mcp", "typed_config": {"@type": MCP_FILTER}}
        asks = self.envoy_filter()
        del asks["typed_config"]["with_request_body"]
        return self.like_raw("parsed", [mcp, asks])

    def like_raw(self, name: str, filters: list[Json], **more: Any) -> Listener:
        """A listener to the demo's upstreams that leaves paths as they are."""
        hosts = {MCP_HOST: "mcp", "*": "http"}
        return Listener(name=name, normalise=False, tls=self.listener_tls(), hosts=hosts, http_filters=filters, **more)

    def _variant(self, name: str, **settings: object) -> Listener:
        filter_: Json = copy.deepcopy(self.envoy_filter())
        filter_["typed_config"].update(settings)
        return self.like_raw(name, [filter_])

    def _network(self) -> Json:
        settings = {
            "@type": NETWORK_FILTER,
            "stat_prefix": "network",
            "transport_api_version": "V3",
            "include_peer_certificate": True,
            "grpc_service": {"envoy_grpc": {"cluster_name": "remit"}, "timeout": "1s"},
        }
        return {"name": "envoy.filters.network.ext_authz", "typed_config": settings}

    def _bootstrap(self) -> Bootstrap:
        made = super()._bootstrap()
        port = self._stack.enter_context(grpc_upstream())
        made["static_resources"]["clusters"].append(cluster("grpc", "127.0.0.1", port, http2=True))
        return made

    # ------------------------------------------------------------ what happened

    def record(self, answer: Answer) -> Json:
        """The collector's record of the decision behind this answer. AssertionError when there is none."""
        wanted = evaluation_id(answer)
        found = [one for one in self.wait_collected() if one.get("evaluation_id") == wanted]
        assert len(found) == 1, f"{len(found)} records of `{wanted}` for {answer}: {answer.body!r}"
        return found[0]

    def last_record(self) -> Json:
        """The record of the decision made last, whatever became of the call."""
        return [one for one in self.wait_collected() if one["kind"] == "decision"][-1]

    def access_log(self, path: str) -> list[Json]:
        """Lines of Envoy's access log for this path, once there is one."""
        log = self.folder / "access.log"

        def lines() -> list[Json]:
            whole = log.read_text().rpartition("\n")[0].splitlines()
            return [line for line in map(json.loads, whole) if line["path"] == path]

        wait_for(f"an access log line of {path}", lambda: bool(lines()))
        return lines()


class FaultStage(Stage):
    """A stage whose sidecar may be stopped, killed and started again. Listeners `main` and `open`, a small journal."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        small = {"journal.segment_bytes": 1 << 16, "journal.cap_bytes": 1 << 17}
        super().__init__(folder, overrides={"listeners.listener": LISTENER, **small})

    def listeners(self) -> list[Listener]:
        main = super().listeners()[0]
        leaking = copy.deepcopy(main)
        leaking.name = "open"
        leaking.http_filters[0]["typed_config"]["failure_mode_allow"] = True
        return [main, leaking]

    def start_again(self) -> None:
        """Start the sidecar that was ended at the addresses that Envoy knows; returns when it is ready."""
        self._overrides |= {name: self.addresses[name] for name in ("listeners.ext_authz.address", "metrics.address")}
        self.config.write_text(yaml.safe_dump(self.settings(), sort_keys=False))
        self.sidecar = self.start_sidecar()


def write_svid(folder: Path, leaf_der: bytes, key_der: bytes) -> None:
    """A certificate and its key where `Caller` and `exchange` look for them."""
    folder.mkdir(mode=0o700, exist_ok=True)
    key = serialization.load_der_private_key(key_der, None)
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(*pem))
    (folder / "svid.pem").write_bytes(to_pem(leaf_der))


def _partial(most: int) -> Json:
    return {"max_request_bytes": most, "allow_partial_message": True, "pack_as_bytes": True}


def _per_route(check_settings: Json) -> Json:
    return {"envoy.filters.http.ext_authz": {"@type": PER_ROUTE, "check_settings": check_settings}}


def evaluation_id(answer: Answer) -> str:
    """The decision's id: in a denial's body, or in the header that an allowed call reached the upstream with."""
    found = answer.json()
    if "headers" in found:
        return str(dict(found["headers"])["x-remit-evaluation-id"])
    return str(found["error"]["data"]["evaluation_id"] if "jsonrpc" in found else found["evaluation_id"])


def agent_channel(stage: Stage, who: str, listener: str, host: str) -> grpc.Channel:
    """A gRPC channel through Envoy to `host`, with the SVID of `who`."""
    bundle = (stage.svids / "envoy" / "bundle.pem").read_bytes()
    folder = stage.svids / who
    own = (folder / "key.pem").read_bytes(), (folder / "svid.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(bundle, *own)
    # Envoy's SVID carries this DNS name because gRPC insists on one.
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.default_authority", host)]
    return grpc.secure_channel(f"127.0.0.1:{stage.envoy.ports[listener]}", credentials, options)


@contextmanager
def grpc_upstream() -> Iterator[int]:
    """The port of a gRPC server that answers every unary method with what it was sent."""

    class Any_(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda request, _: request + details.method.encode())

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Any_(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@pytest.fixture(scope="session")
def stage() -> Iterator[TestStage]:
    """A running stage; its folder is kept when it failed to start."""
    folder = short_folder()
    with TestStage(folder) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def fault_stage() -> Iterator[FaultStage]:
    """A stage of the module's own; every test leaves its sidecar and its collector running."""
    folder = short_folder()
    with FaultStage(folder) as running:
        yield running
    shutil.rmtree(folder)
