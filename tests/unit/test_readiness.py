"""Readiness: every condition must hold, and the first that does not is the reason code (fail-closed rules 2 and 3)."""

import dataclasses

import pytest

from sidecar.readiness import Conditions, Freshness, reason

READY = Conditions(identity="", generation=True, journal=True, fresh=True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, ""),
        ({"identity": "not_ready.svid"}, "not_ready.svid"),
        ({"identity": "not_ready.bundle"}, "not_ready.bundle"),
        ({"generation": False}, "not_ready.generation"),
        ({"journal": False}, "not_ready.journal"),
        ({"fresh": False}, "not_ready.policy_stale"),
        ({"authority": False}, "not_ready.authority"),
        ({"identity": "not_ready.svid", "generation": False, "journal": False, "fresh": False}, "not_ready.svid"),
    ],
)
def test_each_condition_alone_keeps_the_sidecar_from_deciding(change: dict[str, object], code: str) -> None:
    """Rule 2: SVID and bundle, a verified generation, a writable journal."""
    assert reason(dataclasses.replace(READY, **change)) == code


def test_policies_grow_stale_and_a_load_makes_them_fresh() -> None:
    """Rule 3: past max_age the last load no longer counts; 0 means that it always does."""
    now = [100.0]
    age = Freshness(lambda: now[0])
    assert age.stale(60)
    assert not age.stale(0)
    age.loaded()
    now[0] += 60
    assert not age.stale(60)
    now[0] += 1
    assert age.stale(60)
    age.loaded()
    assert not age.stale(60)
