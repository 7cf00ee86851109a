"""One answer, whoever carries it: the Pdp asked directly, through grpcio and through the native door (H2-29)."""

import os

import pytest

from tests.differential.doors import compare

CASES = int(os.environ.get("REMIT_DOOR_CASES", "400"))
SEED = int(os.environ.get("REMIT_DOOR_SEED", "20261123"))


@pytest.mark.parametrize("envoy", [True, False], ids=["ext_authz", "check"])
def test_every_door_gives_the_same_bytes(envoy: bool) -> None:
    """With clock and ids given, status and bytes are equal, for good and for broken messages, in any order of doors."""
    assert {0, 3} <= compare(SEED, CASES, envoy=envoy)
