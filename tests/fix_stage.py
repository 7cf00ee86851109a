"""The demo's stage for tests, with more listeners: one real Envoy, one sidecar, one collector for a whole test run."""

import copy
import shutil
from collections.abc import Iterator

import pytest

from sidecar.demo.envoy import Json, Listener
from sidecar.demo.stage import Stage, short_folder

NETWORK_FILTER = "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"


class TestStage(Stage):
    """Beside `main` and `raw`: what an operator can get wrong, and what else asks.

    `joined`: without encode_raw_headers; `plain`: no TLS, so nobody is who Envoy says; `network`: the network filter;
    `extended`: context extensions of the route; `open`: failure_mode_allow.
    """

    __test__ = False

    def listeners(self) -> list[Listener]:
        main, raw = super().listeners()
        return [
            main,
            raw,
            self._variant("joined", encode_raw_headers=False),
            self._variant("open", failure_mode_allow=True),
            self._variant("small", with_request_body={"max_request_bytes": 64, "allow_partial_message": True}),
            Listener(name="plain", hosts={"*": "http"}, normalise=False, http_filters=[self.envoy_filter()]),
            Listener(name="network", tls=self.listener_tls(), network_filters=[self._network()], tcp_cluster="http"),
        ]

    def _variant(self, name: str, **settings: object) -> Listener:
        filter_: Json = copy.deepcopy(self.envoy_filter())
        filter_["typed_config"].update(settings)
        hosts = {"bank.example.org": "mcp", "*": "http"}
        return Listener(name=name, normalise=False, tls=self.listener_tls(), hosts=hosts, http_filters=[filter_])

    def _network(self) -> Json:
        settings = {
            "@type": NETWORK_FILTER,
            "stat_prefix": "network",
            "transport_api_version": "V3",
            "include_peer_certificate": True,
            "grpc_service": {"envoy_grpc": {"cluster_name": "remit"}, "timeout": "1s"},
        }
        return {"name": "envoy.filters.network.ext_authz", "typed_config": settings}


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """A running stage; its folder is kept when a test failed to start it."""
    folder = short_folder()
    with TestStage(folder) as running:
        yield running
    shutil.rmtree(folder)
