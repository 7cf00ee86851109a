"""Where we refuse on purpose what cedarpy takes; everything else the generators compare must agree."""

from __future__ import annotations

import json

import pytest

from sidecar.errors import PolicyError
from sidecar.policy.cells import encode_context
from tests.differential.case import Json
from tests.differential.families.coding import STRICTER


@pytest.mark.parametrize("value", STRICTER, ids=lambda value: json.dumps(value)[:60])
def test_a_value_that_looks_like_an_escape_and_is_none_is_refused(value: Json) -> None:
    """Ambiguity denies: no record may pass for an entity or an extension value, nor the other way round."""
    with pytest.raises(PolicyError):
        encode_context({"z": value})
